namespace Kmem.Tracing;

/// <summary><see cref="Pictures.Slab"/>: objects as boxes, free lists as arrows from one object to the next.</summary>
internal static class SlabPicture
{
    private const int PerRow = 16;
    private const double Width = 56;
    private const double Height = 34;
    private const double RowStep = 84;
    private const double Left = 32;
    private const double Top = 118;

    public static unsafe string Draw(Machine machine, VirtAddr address)
    {
        Explanation it = machine.Explain(address);
        if (it.Slab is not { } info)
            throw new ArgumentException($"0x{address} is in no slab", nameof(address));

        Page* slab = machine.Map.PageOf(info.First.Value);
        KmemCache cache = machine.Slabs.CacheOf(slab);
        var svg = new Svg(Svg.PageWidth);
        svg.Word(20, 56, Svg.Text($"{info.ObjectSize} bytes an object, {info.Objects} objects in ")
            + Svg.Text($"{Svg.Bytes(Pfn.PageSize << info.Order)} from frame {info.First}; {info.Place}"));
        svg.Word(20, 76, Svg.Text($"{info.Live} allocated, {info.Objects - info.Live} free"), "s");
        for (int i = 0; i < info.Objects; i++)
        {
            (double x, double y) = At(i);
            bool live = cache.IsLive(cache.ObjectOf(slab, i));
            svg.Box(x, y, Width - 6, Height, live ? "c1" : "free", 4);
            if (it.Object?.Number == i)
                svg.Box(x - 2.5, y - 2.5, Width - 1, Height + 5, "hit", 6);
            svg.Word(x + ((Width - 6) / 2), y + 21, Svg.Text($"{i}"), "m c");
        }

        List<int> ofCpu = [];
        for (int cpu = 0; cpu < machine.Cpus; cpu++)
        {
            KmemCacheCpu* c = cache.StateOf(cpu);
            if (c->Slab == slab)
                ofCpu = Follow(machine, cache, slab, info, c->Freelist);
        }

        SlabState state = SlabState.Read(slab);
        List<int> own = Follow(machine, cache, slab, info, state.HasFree ? cache.ObjectOf(slab, state.FreeIndex)
            : null);
        DrawList(svg, ofCpu, 4);
        DrawList(svg, own, 3);
        double y2 = Top + ((((info.Objects - 1) / PerRow) + 1) * RowStep) + 4;
        y2 = svg.Legend(y2, Legend(ofCpu.Count, own.Count, it.Object != null));
        return svg.Finish(y2 + 4, $"A slab of {info.Cache}", Describe(it, info, ofCpu, own));
    }

    private static IEnumerable<(string Type, string Words)> Legend(int ofCpu, int own, bool marked)
    {
        yield return ("c1", "allocated");
        yield return ("free", "free");
        if (marked)
            yield return ("hit", "the object asked for");
        if (ofCpu > 0)
            yield return ("l4", Svg.Text($"arrows: the CPU's free list, {ofCpu} objects"));
        if (own > 0)
            yield return ("l3", Svg.Text($"arrows: the slab's own free list, {own} objects"));
    }

    private static (double X, double Y) At(int index) =>
        (Left + (index % PerRow * Width), Top + (index / PerRow * RowStep));

    private static unsafe List<int> Follow(
        Machine machine, KmemCache cache, Page* slab, ExplainedSlab info, void* first)
    {
        byte* start = machine.Map.AddressOf(slab);
        byte* end = start + ((long)info.Objects * info.SlotSize);
        var list = new List<int>();
        for (void* at = first; at >= start && at < end && list.Count < info.Objects; at = cache.NextFree(at))
            list.Add((int)(((byte*)at - start) / info.SlotSize));
        return list;
    }

    private static void DrawList(Svg svg, List<int> list, int colour)
    {
        if (list.Count == 0)
            return;

        (double x, double y) = At(list[0]);
        double centre = x + ((Width - 6) / 2);
        svg.Arrow($"M{centre:0.#} {y + Height + 24:0.#}L{centre:0.#} {y + Height + 3:0.#}", colour);
        svg.Word(centre, y + Height + 37, "first", "i c");
        for (int i = 1; i < list.Count; i++)
        {
            (double fromX, double fromY) = At(list[i - 1]);
            (double toX, double toY) = At(list[i]);
            fromX += (Width - 6) / 2;
            toX += (Width - 6) / 2;
            if (fromY == toY)
            {
                double lift = Math.Min(26, 12 + (Math.Abs(toX - fromX) / 40));
                double lean = toX > fromX ? 6 : -6;
                double top = fromY - lift;
                double middle = (fromX + toX) / 2;
                svg.Arrow(
                    $"M{fromX + lean:0.#} {fromY:0.#}Q{middle:0.#} {top:0.#} {toX - lean:0.#} {toY - 2:0.#}",
                    colour);
            }
            else
            {
                double turn = toY > fromY ? fromY + Height : fromY;
                double land = toY > fromY ? toY - 2 : toY + Height + 2;
                double half = (turn + land) / 2;
                svg.Arrow(
                    $"M{fromX:0.#} {turn:0.#}C{fromX:0.#} {half:0.#} {toX:0.#} {half:0.#} {toX:0.#} {land:0.#}",
                    colour);
            }
        }
    }

    private static string Describe(Explanation it, ExplainedSlab info, List<int> ofCpu, List<int> own)
    {
        string lists = (ofCpu.Count > 0 ? Svg.Text($" The CPU's free list visits {string.Join(", ", ofCpu)}.") : "")
            + (own.Count > 0 ? Svg.Text($" The slab's own free list visits {string.Join(", ", own)}.") : "");
        string marked = it.Object is { } obj ? Svg.Text($" Object {obj.Number} is marked.") : "";
        return Svg.Text($"{info.Live} of {info.Objects} objects are allocated.{lists}{marked}");
    }
}
