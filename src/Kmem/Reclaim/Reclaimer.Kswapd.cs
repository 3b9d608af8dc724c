namespace Kmem;

/// <content>The background threads, and how allocators wait for them.</content>
internal sealed partial class Reclaimer : IDisposable
{
    /// <summary>How long a request that must not enter file systems waits for kswapd.</summary>
    private const int LongestThrottle = 1000;

    private readonly Kswapd[] _kswapds;

    /// <summary>One for each node.</summary>
    public IReadOnlyList<Kswapd> Kswapds => _kswapds;

    /// <inheritdoc/>
    public override void WakeKswapd(Node node, int order, ZoneType highest) => _kswapds[node.Id].Wake(order, highest);

    /// <summary>Starts the threads.</summary>
    public void StartThreads()
    {
        foreach (Kswapd kswapd in _kswapds)
            kswapd.Start();
    }

    /// <summary>Does what the threads would do for the requests since the last time.</summary>
    /// <returns>Frames that came back.</returns>
    public unsafe long RunKswapd()
    {
        _pages.CheckContext(Gfp.Kernel, Task);
        return _kswapds.Sum(kswapd => kswapd.RunPending());
    }

    /// <summary>Ends the threads.</summary>
    public void Dispose()
    {
        foreach (Kswapd kswapd in _kswapds)
            kswapd.Dispose();
    }

    /// <summary>
    /// With half of the reserve gone allocators wait until kswapd has brought it back, instead of taking the rest
    /// (throttle_direct_reclaim). Without a thread there is nobody to wait for.
    /// </summary>
    private void Throttle(Gfp gfp, Zone[] zones)
    {
        if (zones.FirstOrDefault(candidate => candidate.Type <= ZoneType.Normal) is not { } zone)
            return;
        Kswapd kswapd = _kswapds[zone.NodeId];
        if (!kswapd.HasThread || MayReclaim(kswapd, zone.NodeId))
            return;

        Interlocked.Increment(ref Counters.PgScanDirectThrottle);
        bool patient = (gfp & Gfp.FS) != 0;
        for (int waited = 0; (patient || waited < LongestThrottle) && !MayReclaim(kswapd, zone.NodeId); waited++)
        {
            kswapd.Wake(0, ZoneType.Normal);
            Pause.For(1);
        }
    }

    /// <summary>
    /// allow_direct_reclaim; every run of kswapd either frees something or brings it nearer to giving up.
    /// </summary>
    private bool MayReclaim(Kswapd kswapd, int node)
    {
        if (kswapd.IsHopeless || !kswapd.HasThread)
            return true;

        long reserve = 0;
        long free = 0;
        foreach (ZonePages pages in _pages.Zones)
        {
            if (pages.Zone.NodeId != node || pages.Zone.Type > ZoneType.Normal)
                continue;
            reserve += pages.Zone.Mark(WatermarkLevel.Min);
            free += pages.Zone.FreePagesExact;
        }

        return reserve == 0 || free > reserve / 2;
    }
}
