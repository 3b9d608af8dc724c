namespace Kmem;

/// <content>The vmalloc space and page tables.</content>
internal sealed partial class Answers
{
    private const int MostTreeNodes = 1023;
    private const int MostAreas = 10_000;

    public VirtualAnswer Virtual(int moment) => source.Ask(moment, machine =>
    {
        if (machine.VmapSpace is not { } space)
        {
            return new VirtualAnswer(
                moment, Hex(_shape.VmallocStart), Hex(_shape.VmallocEnd), [], [], 0, null, false);
        }

        List<AreaAnswer> areas = machine.VmallocIfUsed is null
            ? RecordedAreasOf(machine, space) : AreasOf(machine);
        return new VirtualAnswer(
            moment, Hex(space.Start), Hex(space.End), areas, HolesBetween(areas, space.Start, space.End),
            space.LazyPages, TreeOf(space, out bool truncated), truncated);
    });

    public WalkAnswer Walk(int moment, ulong address) => source.Ask(moment, machine =>
    {
        PageWalk walk;
        try
        {
            if (source.RecordedTables is { } tables)
                walk = tables(new VirtAddr(address));
            else if (machine.Recorded is { } space && machine.VmallocIfUsed is null)
                return WalkOf(machine, space, address, moment);
            else if (machine.VmallocIfUsed is null && source.Kind != "live")
                throw new QueryException("there are no page tables in this recording at this moment", "address", 409);
            else
                walk = machine.WalkPageTables(new VirtAddr(address));
        }
        catch (Exception e) when (e is ArgumentException or NotSupportedException or OutOfMemoryException)
        {
            throw new QueryException(e.Message.Split(" (Parameter", 2)[0], "address");
        }

        return WalkOf(machine, walk, moment);
    });

    /// <summary>Areas of a kernel, from its state or its events, and what is kept for reuse.</summary>
    private static List<AreaAnswer> RecordedAreasOf(Machine machine, VmapAllocator space)
    {
        return [.. StatesOf(space).OrderBy(it => it.Area.Start).Take(MostAreas)
            .Select(it => RecordedArea(machine, it.Area, s_areaStates[it.State]))];
    }

    /// <summary>All areas, and whether they are busy (0), lazy (1) or in a pool (2).</summary>
    internal static List<(VmapAreaState Area, int State)> StatesOf(VmapAllocator space)
    {
        var areas = new List<(VmapAreaState Area, int State)>();
        foreach (VmapNodeState node in space.Capture().Nodes)
        {
            areas.AddRange(node.Busy.Select(area => (area, 0)));
            areas.AddRange(node.Lazy.Select(area => (area, 1)));
            areas.AddRange(node.Pools.Values.SelectMany(pool => pool).Select(area => (area, 2)));
        }

        return areas;
    }

    private static readonly string[] s_areaStates = ["busy", "lazy", "pool"];

    private static AreaAnswer RecordedArea(Machine machine, in VmapAreaState area, string state)
    {
        VmStructState? its = machine.RecordedStructs.GetValueOrDefault(area.Start);
        RecordedArea? told = null;
        bool followed = state == "busy" && machine.Recorded?.TryGetArea(area.Start, out told) == true;
        var flags = (VmFlags)(its?.Flags ?? 0);
        ulong ram = (ulong)(VmapAreaFlags.Ram | VmapAreaFlags.Block);
        string kind = state == "lazy" ? "unpurged"
            : state == "pool" ? "pooled"
            : (area.Flags & ram) != 0 ? "vmMapRam"
            : s_vmFlags.FirstOrDefault(it => (flags & it.Flag) != 0).Name ?? "vmalloc";
        return new AreaAnswer(
            Hex(area.Start), Hex(area.End), area.End - area.Start, kind,
            [.. s_vmFlags.Where(it => (flags & it.Flag) != 0).Select(it => it.Name)],
            null,
            its?.PageCount ?? (told is { Mapped: > 0 } ? told.Mapped : (ulong?)null),
            its != null ? (flags & VmFlags.NoGuard) == 0 : followed ? true : null,
            state == "lazy", null)
        {
            State = state,
            Born = told?.Born,
        };
    }

    private static readonly (VmFlags Flag, string Name)[] s_vmFlags =
    [
        (VmFlags.IoRemap, "ioremap"), (VmFlags.Sparse, "sparse"), (VmFlags.DmaCoherent, "dma"), (VmFlags.Map, "vmap"),
        (VmFlags.Alloc, "vmalloc"), (VmFlags.UserMap, "user"),
    ];

    private static List<AreaAnswer> AreasOf(Machine machine)
    {
        return [.. machine.Proc.ReadVmallocInfo().Rows.OrderBy(row => row.Start).Take(MostAreas).Select(row =>
            new AreaAnswer(
            Hex(row.Start), Hex(row.End), row.End - row.Start, KindOf(row), FlagsOf(row), row.Caller, row.Pages,
            row.Kind == VmallocInfoKind.Area ? IsGuarded(machine, row) : null,
            row.Kind == VmallocInfoKind.Unpurged,
            row.NodePages.Count == 1 ? row.NodePages[0].Node : null)
        {
            State = row.Kind == VmallocInfoKind.Unpurged ? "lazy" : "busy",
        })];
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

    private static List<HoleAnswer> HolesBetween(List<AreaAnswer> areas, ulong from, ulong to)
    {
        var holes = new List<HoleAnswer>();
        ulong at = from;
        foreach (AreaAnswer area in areas)
        {
            // Modules have a range of their own, behind the space.
            ulong start = Math.Min(Convert.ToUInt64(area.Start, 16), to);
            if (start > at)
                holes.Add(new HoleAnswer(Hex(at), Hex(start), start - at));
            at = Math.Max(at, Convert.ToUInt64(area.End, 16));
        }

        if (at < to)
            holes.Add(new HoleAnswer(Hex(at), Hex(to), to - at));
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

    /// <summary>The way as far as events tell it: which entries lead there, and the frame if it is known.</summary>
    private WalkAnswer WalkOf(Machine machine, RecordedSpace space, ulong address, int moment)
    {
        VmapRange? next = space.Vmap.FindNext(address);
        bool inArea = next is { } found && found.Start <= address;
        if (!inArea && (address < space.Vmap.Start || address > space.Vmap.End))
        {
            throw new QueryException(
                $"{Hex(address)} is not in the vmalloc space: no other page tables are recorded", "address", 409);
        }

        WalkAnswer walk = WalkOf(machine, space.Walk(address), moment);
        string? stop = walk.Mapped ? null
            : !inArea ? $"Nothing is in use at {Hex(address)} at this moment."
            : address >= next!.Value.End - Pfn.PageSize ? $"{Hex(address)} is in the guard page of its area."
            : "The recording does not tell which frame is there: a kernel takes most pages of vmalloc in bulk, and writes no "
                + "event of that.";
        return walk with
        {
            Stop = stop,
            Steps = [.. walk.Steps.Select(step => walk.Mapped && step.Level == "pte" ? step
                : step with { Entry = "", Flags = "" })],
            Area = inArea ? new WalkAreaAnswer(Hex(next!.Value.Start), Hex(next.Value.End), "vmalloc") : null,
        };
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
    int? Node)
{
    /// <summary>
    /// <c>busy</c>, <c>lazy</c> (freed, not usable yet) or <c>pool</c> (kept for the next request of its size).
    /// </summary>
    public required string State { get; init; }

    /// <summary>The moment at which it was there; null if that is not known.</summary>
    public long? Born { get; init; }
}

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
