namespace Kmem;

/// <summary>One compaction of a zone on its way (struct compact_control, mm/internal.h, Linux 6.18).</summary>
internal sealed class CompactControl(ZonePages zone, int order, Migratetype wanted, CompactPriority priority)
{
    /// <summary>The order of a compaction that goes on until the scanners meet.</summary>
    public const int WholeZone = -1;

    public ZonePages Zone { get; } = zone;

    /// <summary>The block that is wanted, or <see cref="WholeZone"/>.</summary>
    public int Order { get; } = order;

    /// <summary>For whom.</summary>
    public Migratetype Wanted { get; } = wanted;

    public CompactPriority Priority { get; } = priority;

    /// <summary>Pageblocks in which there was nothing to move the last time are looked at, too.</summary>
    public bool IgnoresSkip => Order == WholeZone || Priority == CompactPriority.SyncFull;

    /// <summary>Where the scanner for pages to move is; it goes up.</summary>
    public ulong MigratePfn { get; set; }

    /// <summary>Where the scanner for free blocks is: the start of a pageblock; it goes down.</summary>
    public ulong FreePfn { get; set; }

    /// <summary>Both scanners started at the ends of the zone.</summary>
    public bool FromTheEnds { get; set; }

    /// <summary>Free blocks in hand, by order.</summary>
    public List<ulong>[] Free { get; } = [.. Enumerable.Range(0, PageOrder.Count).Select(_ => new List<ulong>())];

    public long Scanned { get; set; }

    public long FreeScanned { get; set; }

    public long Moved { get; set; }

    public long Failed { get; set; }

    public CompactionReport Report => new(Scanned, Moved, Failed, FreeScanned);
}

/// <summary>What a zone remembers from one compaction to the next.</summary>
internal sealed class CompactMemory
{
    /// <summary>At most 2^6 − 1 attempts are left out (COMPACT_MAX_DEFER_SHIFT).</summary>
    private const int MaxDeferShift = 6;

    private int _considered;
    private int _deferShift;
    private int _orderFailed;

    /// <summary>Held by whoever compacts the zone: two scanners of each kind would be in each other's way.</summary>
    public Lock Gate { get; } = new();

    public ulong MigratePfn { get; set; }

    public ulong FreePfn { get; set; }

    /// <summary>A pass from end to end was in vain; what it found out about pageblocks is out of date by now.</summary>
    public bool ForgetSkips { get; set; }

    /// <summary>Whether this attempt is left out (compaction_deferred).</summary>
    public bool IsDeferred(int order)
    {
        if (order < _orderFailed)
            return false;
        int limit = 1 << _deferShift;
        _considered = Math.Min(_considered + 1, limit);
        return _considered < limit;
    }

    /// <summary>An attempt failed (defer_compaction).</summary>
    public void Defer(int order)
    {
        _considered = 0;
        _deferShift = Math.Min(_deferShift + 1, MaxDeferShift);
        _orderFailed = Math.Min(_orderFailed, order);
    }

    /// <summary>An attempt succeeded (compaction_defer_reset).</summary>
    public void Reset(int order)
    {
        _considered = 0;
        _deferShift = 0;
        _orderFailed = Math.Max(_orderFailed, order + 1);
    }
}
