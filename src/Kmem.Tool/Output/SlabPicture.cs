namespace Kmem.Tool.Output;

/// <summary>Draws a slab as a row of slots, and a slot to scale.</summary>
/// <remarks>
/// <code>
/// slab  8192 bytes = 12 x 640 + 512
///       +--------+--------+-- --+---------+-------+
///       | slot 0 | slot 1 | ... | slot 11 | waste |
///       +--------+--------+-- --+---------+-------+
///
/// slot  640 bytes, a letter is 10
///       ooooooooooooooooooooooooooooofoooooooooooooooooooooooooooooo....
/// </code>
/// </remarks>
internal static class SlabPicture
{
    private const int BarWidth = 64;
    private const int TrackSize = 32;           // one record of STORE_USER, as SlabGeometryRequest has it
    private const string Indent = "      ";

    /// <summary>A part of a slot; offsets in bytes from the slot's start.</summary>
    internal readonly record struct Part(int Start, int End, char Letter, string What);

    internal static IReadOnlyList<string> Draw(SlabGeometry geometry) =>
        [.. DrawSlab(geometry), "", .. DrawSlot(geometry)];

    /// <summary>
    /// What a slot is made of, from its start to its end without a gap; the inner free pointer comes last.
    /// </summary>
    internal static IReadOnlyList<Part> PartsOf(SlabGeometry g)
    {
        bool redZone = g.RedLeftPad > 0;
        bool tracks = (g.Flags & SlabFlags.StoreUser) != SlabFlags.None;
        var parts = new List<Part>();
        int at = 0;
        void Add(int end, char letter, string what)
        {
            if (end > at) parts.Add(new Part(at, end, letter, what));
            at = Math.Max(at, end);
        }

        int start = g.RedLeftPad;                               // every offset of the geometry counts from the object
        Add(start, '<', "left red zone");
        Add(start + g.ObjectSize, 'o', "object");
        Add(start + g.Inuse, redZone ? '>' : '.', redZone ? "right red zone" : "padding");
        if (g.FreePointerOutside) Add(start + g.FreePointerOffset + 8, 'f', "free pointer");
        if (tracks) Add(start + g.TrackOffset + (2 * TrackSize), 't', "who allocated, who freed");
        Add(g.Size, '.', "padding");
        if (!g.FreePointerOutside)
        {
            int pointer = start + g.FreePointerOffset;
            parts.Add(new Part(pointer, pointer + 8, 'f', "free pointer, while the object is free"));
        }
        return parts;
    }

    private static IEnumerable<string> DrawSlab(SlabGeometry g)
    {
        int slab = 4096 << g.Order;
        List<string> boxes = [.. Enumerable.Range(0, Math.Min(2, g.ObjectsPerSlab)).Select(i => $" slot {i} ")];
        if (g.ObjectsPerSlab > 3) boxes.Add(" ... ");
        if (g.ObjectsPerSlab > 2) boxes.Add($" slot {g.ObjectsPerSlab - 1} ");
        if (g.WastePerSlab > 0) boxes.Add(" waste ");

        string edge = Indent + '+' + string.Concat(boxes.Select(box =>
            (box.Contains("...", StringComparison.Ordinal) ? "-- --" : new string('-', box.Length)) + '+'));
        yield return $"slab  {slab} bytes = {g.ObjectsPerSlab} x {g.Size} + {g.WastePerSlab}";
        yield return edge;
        yield return $"{Indent}|{string.Join('|', boxes)}|";
        yield return edge;
    }

    private static IEnumerable<string> DrawSlot(SlabGeometry g)
    {
        IReadOnlyList<Part> parts = PartsOf(g);
        int scale = (g.Size + BarWidth - 1) / BarWidth;
        char[] bar = new char[(g.Size + scale - 1) / scale];
        // Small parts are painted last and get a letter at least, so none disappears.
        foreach (Part part in parts.OrderByDescending(part => part.End - part.Start))
        {
            int first = part.Start / scale;
            int end = Math.Max(first + 1, part.End / scale);
            if (part.End == g.Size) end = bar.Length;
            bar.AsSpan(first..end).Fill(part.Letter);
        }

        yield return $"slot  {g.Size} bytes, a letter is {scale}";
        yield return Indent + new string(bar);
        int width = $"{g.Size}".Length;
        foreach (Part part in parts)
        {
            string from = $"{part.Start}".PadLeft(width);
            string to = $"{part.End - 1}".PadLeft(width);
            yield return $"{Indent}{part.Letter}  {from} - {to}  {part.What}";
        }
    }
}
