namespace Kmem.Tests;

/// <summary>
/// A page allocator without slab caches in front of it, so that nothing is allocated but what the test asks for. Only
/// descriptors, no RAM: requests must not clear memory.
/// </summary>
internal sealed class BarePages : IDisposable
{
    private readonly PageblockMap _blocks;
    private readonly MemMap _map;

    public unsafe BarePages(MachineOptions options)
    {
        BootMemoryMap boot = options.MemoryMap!;
        _map = new MemMap(boot.EndPfn, ramBase: null);
        _blocks = new PageblockMap(boot.EndPfn);
        Cpus = new CpuSet(options.Cpus);
        Nodes = ZoneLayout.Build(
            boot, options.Cpus, options.MovableBytes, options.NodeDistance ?? ((a, b) => a == b ? 10 : 20), _blocks);
        int[] nodeOfCpu = [.. Enumerable.Range(0, options.Cpus)
            .Select(cpu => ZoneLayout.NodeOfCpu(cpu, options.Cpus, Nodes.Length))];
        Pages = new PageAllocator(Cpus, _map, _blocks, Nodes, nodeOfCpu, Log);
        foreach (BootPages range in boot.FreePages().OrderBy(range => range.Start))
            Pages.HandOver(range.Start, range.End);
        ZoneLayout.SetReserves(
            Nodes, options.Cpus, options.MinFreeKbytes, options.WatermarkScaleFactor, hugePages: false);
        Pages.Configure(options.WatermarkBoostFactor, options.PercpuPagelistHighFraction);
        Pages.Trace = Trace;
        Pages.Hooks = Hooks;
    }

    /// <summary>One CPU, one node, these ranges of frames, and watermarks near zero.</summary>
    public BarePages(params (ulong Start, ulong End)[] ranges)
        : this(Options(ranges))
    {
    }

    public CpuSet Cpus { get; }

    public Node[] Nodes { get; }

    public PageAllocator Pages { get; }

    public KernelLog Log { get; } = new();

    public RecordingTrace Trace { get; } = new();

    public CountingHooks Hooks { get; } = new();

    public static MachineOptions Options(params (ulong Start, ulong End)[] ranges)
    {
        var map = new BootMemoryMap();
        foreach ((ulong start, ulong end) in ranges)
            map.AddMemory(start << 12, end << 12);
        return new MachineOptions { Profile = KernelProfile.Linux618, MemoryMap = map, Cpus = 1, MinFreeKbytes = 0 };
    }

    public ZonePages Zone(ZoneType type, int node = 0) => Pages.Zones.Single(
        zone => zone.Zone.Type == type && zone.Zone.NodeId == node);

    public unsafe ulong? Alloc(Gfp gfp, int order = 0, int node = -1)
    {
        Page* page = Pages.Alloc(gfp, order, node);
        return page == null ? null : _map.PfnOf(page);
    }

    public void Free(ulong pfn, int order = 0) => Pages.Free(pfn, order);

    /// <summary>Allocates until it fails.</summary>
    public List<ulong> Exhaust(Gfp gfp, int order = 0)
    {
        var blocks = new List<ulong>();
        while (Alloc(gfp, order) is { } pfn)
            blocks.Add(pfn);
        return blocks;
    }

    public ulong[] FreeList(ZonePages zone, int order, Migratetype type) => Lists.Blocks(zone, _map, order, type);

    public Migratetype TypeOf(ulong pfn) => _blocks.TypeOf(pfn);

    public ZoneType ZoneTypeOf(ulong pfn) => Pages.ZoneOf(pfn).Zone.Type;

    public int NodeOf(ulong pfn) => Pages.ZoneOf(pfn).Zone.NodeId;

    public unsafe Page* PageOf(ulong pfn) => _map.PageOf(pfn);

    /// <summary>
    /// Boot pagesets, which hold nothing back, and counters without per-CPU parts: each request takes exactly its
    /// frames.
    /// </summary>
    public unsafe BarePages WithoutCaching()
    {
        foreach (ZonePages zone in Pages.Zones)
        {
            zone.Zone.StatThreshold = 0;
            for (int cpu = 0; cpu < Cpus.Count; cpu++)
            {
                PerCpuPages* pcp = zone.PcpOf(cpu);
                (pcp->Batch, pcp->HighMin, pcp->HighMax) = (1, 0, 0);
            }
        }

        return this;
    }

    /// <summary>And no watermarks, no protection: a zone can be emptied by anybody.</summary>
    public BarePages WithoutReserves()
    {
        foreach (ZonePages zone in WithoutCaching().Pages.Zones)
        {
            zone.Zone.Watermarks = default;
            zone.Zone.LowmemReserve.AsSpan().Clear();
        }

        return this;
    }

    public void Dispose()
    {
        Cpus.Dispose();
        Pages.Dispose();
        _blocks.Dispose();
        _map.Dispose();
    }
}

/// <summary>Counts what the page allocator calls under pressure, and answers as the test says.</summary>
internal sealed class CountingHooks : ReclaimHooks
{
    public List<(int Node, int Order, ZoneType Highest)> Wakes { get; } = [];

    public List<(int Order, Gfp Gfp)> Reclaims { get; } = [];

    public List<CompactPriority> Compactions { get; } = [];

    public int Ooms { get; private set; }

    public Func<long> OnReclaim { get; set; } = () => 0;

    public Func<long> Reclaimable { get; set; } = () => 0;

    public Func<CompactResult> OnCompact { get; set; } = () => CompactResult.Skipped;

    public Func<bool> OnOom { get; set; } = () => false;

    public override void WakeKswapd(Node node, int order, ZoneType highest) => Wakes.Add((node.Id, order, highest));

    public override long DirectReclaim(int order, Gfp gfp, Zone[] zones)
    {
        Reclaims.Add((order, gfp));
        return OnReclaim();
    }

    public override CompactResult DirectCompact(
        int order, Gfp gfp, CompactPriority priority, Zone[] zones)
    {
        Compactions.Add(priority);
        return OnCompact();
    }

    public override long ReclaimableFrames(Node node) => Reclaimable();

    public override bool OutOfMemory(int order, Gfp gfp)
    {
        Ooms++;
        return OnOom();
    }

    public void Forget()
    {
        Wakes.Clear();
        Reclaims.Clear();
        Compactions.Clear();
        Ooms = 0;
    }
}
