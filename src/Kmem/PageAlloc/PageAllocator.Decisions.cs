namespace Kmem;

/// <content>What a request finds, told to those who want to know why it is decided as it is.</content>
internal sealed partial class PageAllocator
{
    private void TellBegin(ITrace trace, int order, Gfp gfp, int node)
    {
        gfp = ScopedFlags(gfp);
        if (!gfp.HasValidZone() || !gfp.HasValidMobility())
            return;     // it is refused

        trace.RequestBegins(order, gfp, TypeOf(gfp), Survey(gfp, order, node));
    }

    /// <summary>The flags as the scopes of this task leave them.</summary>
    public unsafe Gfp ScopedFlags(Gfp gfp) => ApplyScopes(gfp, _cpus.Current->Flags);

    /// <summary>The migrate type that a request is served from.</summary>
    public Migratetype TypeOf(Gfp gfp) => GroupingDisabled ? Migratetype.Unmovable : gfp.ToMigratetype();

    /// <summary>The zones of a request in order, with the numbers that its watermark checks see now.</summary>
    public List<ZoneVerdict> Survey(Gfp gfp, int order, int node)
    {
        var request = new AllocRequest(gfp, order, ZonelistFor(gfp, node), GroupingDisabled);
        int cpu = _cpus.CurrentCpu;
        var zones = new List<ZoneVerdict>(request.Zones.Length);
        foreach (Zone zone in request.Zones)
        {
            ZonePages pages = _zones[zone.Index]!;
            zones.Add(new ZoneVerdict(
                zone.NodeId,
                zone.Name,
                ZoneResult.NotAsked,
                zone.FreePages,
                zone.Mark(WatermarkLevel.Min),
                zone.Mark(WatermarkLevel.Low),
                zone.Mark(WatermarkLevel.High),
                zone.Boost,
                zone.LowmemReserve[(int)request.Highest],
                OnCpuList(pages, cpu, order, request.Migratetype),
                LargestFree(pages, request.Migratetype)));
        }

        return zones;
    }

    /// <summary>The zones that a request may use, best first.</summary>
    public IReadOnlyList<ZonePages> ZonesFor(Gfp gfp, int node) =>
        [.. ZonelistFor(gfp, node).UpTo(gfp.HighestZone()).Select(zone => _zones[zone.Index]!)];

    /// <summary>Whether a zone would serve a request at a watermark, with the flags of the slow path if that is
    /// MIN.</summary>
    public static bool WouldServe(ZonePages pages, Gfp gfp, int order, WatermarkLevel level)
    {
        AllocFlags flags = level == WatermarkLevel.Min ? SlowFlags(gfp, order) : AllocFlags.WatermarkLow;
        return pages.WatermarkFast(order, pages.Zone.Mark(level), gfp.HighestZone(), flags);
    }

    private static unsafe int OnCpuList(ZonePages pages, int cpu, int order, Migratetype type) =>
        PerCpuPages.IsPcpOrder(order)
            ? (int)ListHead.Count(PerCpuPages.ListOf(pages.PcpOf(cpu), PerCpuPages.ListIndex(order, type)))
            : 0;

    private static unsafe int LargestFree(ZonePages pages, Migratetype type)
    {
        int order = PageOrder.Max;
        while (order >= 0 && ListHead.IsEmpty(pages.Buddy.ListOf(order, type)))
            order--;
        return order;
    }
}
