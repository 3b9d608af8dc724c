namespace Kmem.Tracing;

/// <summary><see cref="Pictures.Walk"/>: the bits of the address, a column for each table, an arrow for each
/// entry.</summary>
internal static class WalkPicture
{
    private const double ColumnTop = 176;
    private const double ColumnHeight = 200;
    private const int IndexBits = 9;

    public static string Draw(PageWalk walk)
    {
        var svg = new Svg(Svg.PageWidth);
        int levels = walk.Steps[0].Level;
        int columns = walk.Steps.Count + 1;
        double step = Math.Min(190, (Svg.PageWidth - 40.0) / columns);
        DrawBits(svg, walk, levels);
        for (int i = 0; i < walk.Steps.Count; i++)
            DrawTable(svg, walk.Steps[i], 20 + (i * step), step, last: i + 1 == walk.Steps.Count);
        DrawEnd(svg, walk, 20 + (walk.Steps.Count * step), step);
        double y = svg.Legend(ColumnTop + ColumnHeight + 62,
            [("c1", "the entry"), ("free", "the other 511 entries of the table"), ("c4", "the frame")]);
        string end = walk.IsMapped ? $"frame {walk.Pfn}" : "nothing: the entry is empty";
        string way = string.Join(", ", walk.Steps.Select(it => Svg.Text($"{it.Name} entry {it.Index}")));
        return svg.Finish(
            y + 4,
            $"From 0x{walk.Address:x16} to " + (walk.IsMapped ? $"frame {walk.Pfn}" : "nothing"),
            $"The walk through the page tables reads {way}, and ends at {end}.");
    }

    /// <summary>The address in parts: nine bits for each table, twelve for the byte.</summary>
    private static void DrawBits(Svg svg, PageWalk walk, int levels)
    {
        double x = 20;
        for (int level = levels; level >= 0; level--)
        {
            PageWalkStep? step = walk.Steps.Select(it => (PageWalkStep?)it).FirstOrDefault(it =>
                it!.Value.Level == level);
            int shift = level == 0 ? 0 : Pfn.PageShift + ((level - 1) * IndexBits);
            int bits = level == 0 ? Pfn.PageShift : IndexBits;
            ulong value = (walk.Address >> shift) & ((1UL << bits) - 1);
            double width = level == 0 ? 184 : 148;
            if (levels == 5)
                width -= 22;
            svg.Box(x, 66, width - 6, 46, step != null ? "c1" : level == 0 || walk.IsMapped ? "c4" : "free", 4);
            string digits = Convert.ToString((long)value, 2).PadLeft(bits, '0');
            svg.Word(x + ((width - 6) / 2), 84, digits, "m c");
            string name = step is { } used ? Svg.Text($"{used.Name} entry {used.Index}") : "offset";
            svg.Word(x + ((width - 6) / 2), 103, name, "i c");
            svg.Word(x + ((width - 6) / 2), 60, Svg.Text($"{shift + bits - 1}…{shift}"), "s c");
            x += width;
        }
    }

    private static void DrawTable(Svg svg, PageWalkStep step, double x, double width, bool last)
    {
        double w = Math.Min(104, width - 46);
        svg.Word(x, ColumnTop - 28, step.Name, "b");
        string where = step.TablePfn == Pfn.None.Value ? "place unknown" : Svg.Text($"frame 0x{step.TablePfn:x}");
        svg.Word(x, ColumnTop - 11, where, "s");
        svg.Box(x, ColumnTop, w, ColumnHeight, "free");
        double at = ColumnTop + 4 + ((ColumnHeight - 28) * step.Index / 511.0);
        svg.Box(x, at, w, 20, step.Present ? "c1" : "none");
        svg.Word(x + (w / 2), at + 14, Svg.Text($"{step.Index}"), "m c");
        svg.Word(x, ColumnTop + ColumnHeight + 17, Svg.Text($"{step.Entry:x16}"), "m i");
        svg.Word(x, ColumnTop + ColumnHeight + 34, step.Present ? step.FlagNames() : "empty", "s");
        if (step.Present && !step.Bad)
        {
            double from = x + w;
            double end = x + width - 3;
            double y = at + 10;
            double middle = x + w + ((width - w) / 2);
            double target = last ? ColumnTop + (ColumnHeight / 2) : ColumnTop + 2;
            svg.Arrow(
                $"M{from:0.#} {y:0.#}C{middle:0.#} {y:0.#} {middle:0.#} {target:0.#} {end:0.#} {target:0.#}",
                1);
        }
    }

    private static void DrawEnd(Svg svg, PageWalk walk, double x, double width)
    {
        if (!walk.IsMapped)
        {
            svg.Word(x, ColumnTop + (ColumnHeight / 2), "nothing is mapped", "b");
            return;
        }

        double w = Math.Min(150, width - 10);
        double y = ColumnTop + (ColumnHeight / 2) - 44;
        svg.Box(x, y, w, 88, "c4", 6);
        svg.Word(x + (w / 2), y + 24, Svg.Text($"frame {walk.Pfn}"), "m c");
        svg.Word(x + (w / 2), y + 44, Svg.Text($"byte {walk.Offset}"), "i c");
        svg.Word(x + (w / 2), y + 62, Svg.Text($"physical {walk.PhysicalAddress}"), "i c");
        svg.Word(x + (w / 2), y + 79, $"{Svg.Bytes(walk.LeafBytes)}, {walk.CacheMode}", "i c");
    }
}
