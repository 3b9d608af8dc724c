namespace Kmem;

/// <content>The vmalloc space and page tables.</content>
internal sealed partial class Answers
{
    private const int MostTreeNodes = 1023;
    private const int MostAreas = 10_000;

    public VirtualAnswer Virtual(int moment) => source.Ask(moment, machine =>
    {
        string start = Hex(_shape.VmallocStart);
        string end = Hex(_shape.VmallocEnd);
        if (machine.VmapSpace is not { } space)
            return new VirtualAnswer(moment, start, end, [], [], 0, null, false);

        List<AreaAnswer> areas = AreasOf(machine, space);
        return new VirtualAnswer(
            moment, start, end, areas, HolesBetween(areas), space.LazyPages, TreeOf(space, out bool truncated),
                truncated);
    });

    public WalkAnswer Walk(int moment, ulong address) => source.Ask(moment, machine =>
    {
        // A machine makes its tables when they are first needed; one that is replayed must not have what the others
        // have not.
        if (source.Timeline != null && machine.VmallocIfUsed is null)
            throw new QueryException("nothing in this recording has made page tables", "address", 409);

        PageWalk walk;
        try
        {
            walk = machine.WalkPageTables(new VirtAddr(address));
        }
        catch (Exception e) when (e is ArgumentException or NotSupportedException or OutOfMemoryException)
        {
            throw new QueryException(e.Message.Split(" (Parameter", 2)[0], "address");
        }

        return WalkOf(machine, walk, moment);
    });

    private static List<AreaAnswer> AreasOf(Machine machine, VmapAllocator space)
    {
        if (machine.VmallocIfUsed is null)
        {
            return [.. space.Capture().Nodes.SelectMany(node => node.Busy).OrderBy(area => area.Start).Take(MostAreas)
                .Select(area => new AreaAnswer(
                    Hex(area.Start), Hex(area.End), area.End - area.Start, "vmalloc", [], null, null, null, false,
                        null))];
        }

        return [.. machine.Proc.ReadVmallocInfo().Rows.OrderBy(row => row.Start).Take(MostAreas).Select(row =>
            new AreaAnswer(
            Hex(row.Start), Hex(row.End), row.End - row.Start, KindOf(row), FlagsOf(row), row.Caller, row.Pages,
            row.Kind == VmallocInfoKind.Area ? IsGuarded(machine, row) : null,
            row.Kind == VmallocInfoKind.Unpurged,
            row.NodePages.Count == 1 ? row.NodePages[0].Node : null))];
    }

    private static bool IsGuarded(Machine machine, VmallocInfoRow row) =>
        row.End > row.Start && !machine.VmallocIfUsed!.Tables.Translate(row.End - Pfn.PageSize).IsValid;

    private static string KindOf(VmallocInfoRow row) => row.Kind switch
    {
        VmallocInfoKind.Unpurged => "unpurged",
        VmallocInfoKind.MapRam => "vmMapRam",
        _ => (row.Flags & VmallocInfoFlags.IoRemap) != 0 ? "ioremap"
            : (row.Flags & VmallocInfoFlags.Sparse) != 0 ? "sparse"
            : (row.Flags & VmallocInfoFlags.DmaCoherent) != 0 ? "dma"
            : (row.Flags & VmallocInfoFlags.Vmap) != 0 ? "vmap"
            : "vmalloc",
    };

    private static string[] FlagsOf(VmallocInfoRow row) =>
        [.. Enum.GetValues<VmallocInfoFlags>().Where(flag => flag != 0 && (row.Flags & flag) != 0).Select(flag =>
            flag.ToString().ToLowerInvariant())];

    private List<HoleAnswer> HolesBetween(List<AreaAnswer> areas)
    {
        var holes = new List<HoleAnswer>();
        ulong at = _shape.VmallocStart;
        foreach (AreaAnswer area in areas)
        {
            ulong start = Convert.ToUInt64(area.Start, 16);
            if (start > at)
                holes.Add(new HoleAnswer(Hex(at), Hex(start), start - at));
            at = Math.Max(at, Convert.ToUInt64(area.End, 16));
        }

        if (at < _shape.VmallocEnd)
            holes.Add(new HoleAnswer(Hex(at), Hex(_shape.VmallocEnd), _shape.VmallocEnd - at));
        return holes;
    }

    /// <summary>The tree, as deep as so many nodes go; above them all are there.</summary>
    private static TreeAnswer? TreeOf(VmapAllocator space, out bool truncated)
    {
        List<VmapBlockState> blocks = space.ObserveFree(MostTreeNodes, out truncated);
        var children = blocks.Where(block => block.Parent != null).ToLookup(block => block.Parent!.Value);
        return blocks.Count == 0 ? null : Build(blocks[0], 0);

        // A tree of so many blocks is balanced: at most twice the logarithm deep.
        TreeAnswer Build(VmapBlockState block, int depth)
        {
            Bug.On(depth > MostTreeNodes, "a tree of free ranges goes in a circle");
            VmapBlockState[] below = [.. children[block.Start]];
            TreeAnswer? Child(bool left) => below.Where(it => it.Start < block.Start == left)
                .Select(it => Build(it, depth + 1)).FirstOrDefault();
            return new TreeAnswer(
                Hex(block.Start), Hex(block.End), block.End - block.Start, block.Largest, !block.IsBlack, Child(true),
                    Child(false));
        }
    }

    private unsafe WalkAnswer WalkOf(Machine machine, PageWalk walk, int moment)
    {
        PageFrameInfo? frame = walk.IsMapped ? machine.DescribeFrame(walk.Pfn) : null;
        VmallocInfoRow? area = machine.VmallocIfUsed is null ? null
            : machine.Proc.ReadVmallocInfo().Rows.FirstOrDefault(row => walk.Address >= row.Start
                && walk.Address < row.End);
        PageWalkStep last = walk.Steps[^1];
        string? stop = walk.IsMapped ? null
            : $"Nothing is mapped at {Hex(walk.Address)}: the walk stops at the {last.Name}, entry {last.Index} is "
                + (last.Bad ? "neither empty nor a table nor a leaf" : "empty")
                + (area != null && walk.Address >= area.End - Pfn.PageSize ? "; it is in the area's guard page." : ".");
        return new WalkAnswer(
            moment, Hex(walk.Address), walk.Region, walk.IsMapped,
            [.. walk.Steps.Select(step => new WalkStepAnswer(
                step.Name, step.TablePfn == Pfn.None.Value ? null : Hex(step.TablePfn << Pfn.PageShift), step.Index,
                    Hex(step.Entry),
                step.FlagNames()))],
            stop,
            walk.IsMapped ? Hex(walk.PhysicalAddress.Value) : null,
            walk.LeafBytes, walk.Prot.ToString(), walk.CacheMode.ToString(),
            frame is null ? null : Hex(_shape.DirectMap + walk.PhysicalAddress.Value),
            frame is null ? null : new WalkFrameAnswer(
                frame.Frame.ToString(), frame.Frame.Value, frame.Node, frame.Zone, frame.Use, frame.Order,
                    frame.References, frame.Flags),
            area is null ? null : new WalkAreaAnswer(Hex(area.Start), Hex(area.End), KindOf(area)));
    }
}

internal sealed record VirtualAnswer(
    int T, string Start, string End, IReadOnlyList<AreaAnswer> Areas, IReadOnlyList<HoleAnswer> Holes, ulong LazyPages,
    TreeAnswer? Tree, bool TreeTruncated);

internal sealed record AreaAnswer(
    string Start, string End, ulong Bytes, string Kind, IReadOnlyList<string> Flags, string? Caller, ulong? Pages,
        bool? Guard, bool Lazy,
    int? Node);

internal sealed record HoleAnswer(string Start, string End, ulong Bytes);

internal sealed record TreeAnswer(
    string Start, string End, ulong Bytes, ulong Max, bool Red, TreeAnswer? Left, TreeAnswer? Right);

internal sealed record WalkAnswer(
    int T, string Address, string Region, bool Mapped, IReadOnlyList<WalkStepAnswer> Steps, string? Stop,
        string? Physical, ulong LeafBytes,
    string Prot, string CacheMode, string? DirectMap, WalkFrameAnswer? Frame, WalkAreaAnswer? Area);

internal sealed record WalkStepAnswer(string Level, string? Table, int Index, string Entry, string Flags);

internal sealed record WalkFrameAnswer(
    string Pfn, ulong Number, int Node, string Zone, string Use, int Order, int References,
        IReadOnlyList<string> Flags);

internal sealed record WalkAreaAnswer(string Start, string End, string Text);
