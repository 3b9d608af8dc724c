namespace Kmem;

/// <summary>One reclaim on its way (struct scan_control, mm/vmscan.c, Linux 6.18).</summary>
internal sealed class ScanControl(ReclaimActor actor, Gfp gfp, int order, long target)
{
    /// <summary>The gentlest (DEF_PRIORITY): one object, or page, of 4096.</summary>
    public const int DefaultPriority = 12;

    /// <summary>What one direct reclaim wants (SWAP_CLUSTER_MAX), and the batch in which pages are looked at.</summary>
    public const int Cluster = 32;

    public ReclaimActor Actor { get; } = actor;

    public Gfp Gfp { get; set; } = gfp;

    public int Order { get; set; } = order;

    /// <summary>Frames wanted.</summary>
    public long Target { get; set; } = target;

    public int Priority { get; set; } = DefaultPriority;

    /// <summary>Whether pages may be written out.</summary>
    public bool MaySwap { get; set; } = true;

    /// <summary>A shrinker had objects and could not get on.</summary>
    public bool Stopped { get; set; }

    /// <summary>Frames that came back so far.</summary>
    public long Reclaimed { get; set; }

    /// <summary>Pages of LRU lists looked at so far.</summary>
    public long Scanned { get; set; }
}

/// <summary>Who reclaims, for the counters.</summary>
internal enum ReclaimActor
{
    Direct,
    Kswapd,
    Proactive,
}
