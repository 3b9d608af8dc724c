namespace Kmem;

/// <summary>
/// What reclaim counts for /proc/vmstat (enum vm_event_item, include/linux/vm_event_item.h, Linux 6.18). Changed with
/// interlocked operations.
/// </summary>
internal sealed class ReclaimCounters
{
    public readonly long[] AllocStall = new long[ZoneTypes.Count];
    public long PswpIn;
    public long PswpOut;
    public long PgStealKswapd;
    public long PgStealDirect;
    public long PgStealProactive;
    public long PgScanKswapd;
    public long PgScanDirect;
    public long PgScanProactive;
    public long PgScanDirectThrottle;
    public long SlabsScanned;
    public long KswapdLowWmarkHitQuickly;
    public long KswapdHighWmarkHitQuickly;
    public long PageOutRun;
    public long OomKill;
    public long CompactMigrateScanned;
    public long CompactFreeScanned;
    public long CompactIsolated;
    public long CompactStall;
    public long CompactFail;
    public long CompactSuccess;
    public long PgMigrateSuccess;
    public long PgMigrateFail;
}
