namespace Kmem.Tracing;

/// <summary>
/// <see cref="Pictures.Areas"/>: the first areas of the vmalloc space in order of address, with their holes, and the
/// tree of free blocks in which each node knows the largest block below it.
/// </summary>
internal static class AreasPicture
{
    private const int MostAreas = 14;
    private const int MostLevels = 4;
    private const double NodeWidth = 108;
    private const double LevelHeight = 84;

    public static string Draw(Machine machine)
    {
        VmapAllocator space = machine.VmapSpace
            ?? throw new ArgumentException("the machine has no vmalloc space yet: nothing was allocated there",
                nameof(machine));
        VmapState state = space.Capture();
        var svg = new Svg(Svg.PageWidth);
        double y = DrawAreas(svg, space, state);
        y = DrawTree(svg, state, y + 20);
        y = svg.Legend(y + 6,
        [
            ("c4", "busy, guard page included"), ("none", "freed, waiting for a purge"),
                ("free", "free, and a black node of the tree"),
            ("c5", "a red node"),
        ]);
        int busy = state.Nodes.Sum(node => node.Busy.Count);
        return svg.Finish(
            y + 4,
            "The vmalloc space and its tree of free blocks",
            Svg.Text($"{busy} busy areas and {state.Free.Count} free blocks. The root of the tree is the block at ")
                + Svg.Text($"0x{state.Free.FirstOrDefault(block => block.Parent == null).Start:x}; each node shows its own ")
                + "size and the largest block of its subtree, so that a search can leave out whole subtrees.");
    }

    private static double DrawAreas(Svg svg, VmapAllocator space, VmapState state)
    {
        var areas = state.Nodes.SelectMany(node => node.Busy.Select(area => (area.Start, area.End, Type: "c4"))
                .Concat(node.Lazy.Select(area => (area.Start, area.End, Type: "none"))))
            .Concat(state.Free.Where(block => block.End > space.Start && block.Start < space.End)
                .Select(block => (Start: Math.Max(block.Start, space.Start), block.End, Type: "free")))
            .OrderBy(area => area.Start).ToList();
        double x = 20;
        double y = 58;
        double step = (Svg.PageWidth - 40.0) / Math.Min(MostAreas, Math.Max(8, areas.Count));
        foreach ((ulong start, ulong end, string type) in areas.Take(MostAreas))
        {
            svg.Box(x, y, step - 4, 44, type, 3);
            svg.Word(x + ((step - 4) / 2), y + 26, Svg.Bytes(end - start).Replace(" ", "", StringComparison.Ordinal),
                "i c");
            svg.Word(x + 1, y + 58, Svg.Text($"+{start - space.Start:x}"), "m s");
            x += step;
        }

        string more = areas.Count > MostAreas ? Svg.Text($"; the first {MostAreas} of {areas.Count} ranges") : "";
        svg.Word(20, y + 78, Svg.Text($"offsets from 0x{space.Start:x}, in order of address, not to scale{more}"), "s");
        return y + 88;
    }

    private static double DrawTree(Svg svg, VmapState state, double y)
    {
        svg.Word(20, y, "Free blocks", "b");
        var children = state.Free.ToLookup(block => block.Parent ?? 0);
        var drawn = new List<(VmapBlockState Block, int Level)>();
        foreach (VmapBlockState root in state.Free.Where(block => block.Parent == null))
            Collect(root, 0, children, drawn);
        drawn = [.. drawn.OrderBy(it => it.Block.Start)];
        double step = drawn.Count == 0 ? 0
            : Math.Min(150, (Svg.PageWidth - 40 - NodeWidth) / Math.Max(1, drawn.Count - 1));
        var place = new Dictionary<ulong, (double X, double Y)>();
        for (int i = 0; i < drawn.Count; i++)
            place[drawn[i].Block.Start] = (20 + (i * step), y + 16 + (drawn[i].Level * LevelHeight));

        foreach ((VmapBlockState block, _) in drawn.Where(it => it.Block.Parent != null))
        {
            (double px, double py) = place[block.Parent!.Value];
            (double cx, double cy) = place[block.Start];
            svg.Stroke(px + (NodeWidth / 2), py + 58, cx + (NodeWidth / 2), cy);
        }

        foreach ((VmapBlockState block, int level) in drawn)
        {
            (double nx, double ny) = place[block.Start];
            svg.Box(nx, ny, NodeWidth, 58, block.IsBlack ? "free" : "c5", 6);
            svg.Word(nx + (NodeWidth / 2), ny + 17, Short(block.Start), "m i c");
            svg.Word(nx + (NodeWidth / 2), ny + 33, $"size {Svg.Bytes(block.End - block.Start)}", "i c");
            svg.Word(nx + (NodeWidth / 2), ny + 49, $"max {Svg.Bytes(LargestOf(block, children))}", "i c");
            if (level == MostLevels - 1 && children[block.Start].Any(it => it.Start != block.Start))
                svg.Word(nx + (NodeWidth / 2), ny + 72, "…", "c");
        }

        int levels = drawn.Count == 0 ? 1 : drawn.Max(it => it.Level) + 1;
        return y + 16 + (levels * LevelHeight);
    }

    private static void Collect(
        VmapBlockState block, int level, ILookup<ulong, VmapBlockState> children, List<(VmapBlockState, int)> drawn)
    {
        if (level == MostLevels)
            return;
        drawn.Add((block, level));
        foreach (VmapBlockState child in children[block.Start].Where(it => it.Parent != null))
            Collect(child, level + 1, children, drawn);
    }

    private static ulong LargestOf(VmapBlockState block, ILookup<ulong, VmapBlockState> children)
    {
        ulong largest = block.End - block.Start;
        foreach (VmapBlockState child in children[block.Start].Where(it => it.Parent != null))
            largest = Math.Max(largest, LargestOf(child, children));
        return largest;
    }

    private static string Short(ulong address) => address <= 1 ? "0x1" : Svg.Text($"…{address & 0xff_ffff_ffff:x}");
}
