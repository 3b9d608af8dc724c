using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// A zone: the frames of one node that lie in one range of addresses (DMA below 16 MiB, DMA32 below 4 GiB, Normal
/// above, Movable by option). Sizes, watermarks and counters; the free blocks themselves are in <see cref="Buddy"/>.
/// </summary>
/// <remarks>
/// <code>
///   StartPfn                                   StartPfn + Spanned
///   |– present –|..hole..|–––– present ––––|        spanned = present + holes
///    managed = present − what boot reserved; the watermarks sit on the free part of managed:
///    free: 0 ──── MIN ──── LOW ──── HIGH ──── PROMO ────▶
/// </code>
/// </remarks>
internal sealed class Zone : IDisposable
{
    // NR_FREE_PAGES: a global part and a small difference per CPU that is folded in when it exceeds the threshold.
    // Watermark checks read the global part only, as in the kernel (mm/vmstat.c).
    private readonly unsafe int* _freePagesDiff;
    private readonly long[] _marks = new long[3];
    private Watermarks _watermarks;
    private long _freePages;
    private int _flags;

    public unsafe Zone(int index, int node, ZoneType type, ulong startPfn, ulong spanned, ulong present, int cpus)
    {
        Index = index;
        NodeId = node;
        Type = type;
        StartPfn = startPfn;
        Spanned = spanned;
        Present = present;
        _freePagesDiff = (int*)NativeMemory.AllocZeroed((nuint)cpus, sizeof(int));
        CpuCount = cpus;
    }

    /// <summary>Number of this zone in the machine: node × zone types + type.</summary>
    public int Index { get; }

    public int NodeId { get; }

    public ZoneType Type { get; }

    public string Name => Type.Name();

    public ulong StartPfn { get; }

    public ulong Spanned { get; }

    public ulong Present { get; }

    public ulong EndPfn => StartPfn + Spanned;

    public int CpuCount { get; }

    public bool IsPopulated => Present != 0;

    /// <summary>
    /// Frames ever given to the buddy system. Watermarks, reserves and per-CPU lists are sized by it.
    /// </summary>
    public ulong Managed { get; set; }

    /// <summary>Without boost.</summary>
    public Watermarks Watermarks
    {
        get => _watermarks;
        set
        {
            _watermarks = value;
            _marks[(int)WatermarkLevel.Min] = value.Min;
            _marks[(int)WatermarkLevel.Low] = value.Low;
            _marks[(int)WatermarkLevel.High] = value.High;
        }
    }

    /// <summary>Temporary addition to every watermark after a fallback (watermark_boost).</summary>
    public long Boost { get; set; }

    /// <summary>Frames that a request which could have used a higher zone leaves alone, by that zone's type.</summary>
    public long[] LowmemReserve { get; set; } = new long[ZoneTypes.Count];

    public ZoneFlags Flags => (ZoneFlags)Volatile.Read(ref _flags);

    /// <summary>Frames in pageblocks of type HighAtomic.</summary>
    public long ReservedHighAtomic { get; set; }

    /// <summary>The free ones among them; no per-CPU part.</summary>
    public long FreeHighAtomic { get; set; }

    /// <summary>Frames in free blocks of at least a pageblock (NR_FREE_PAGES_BLOCKS).</summary>
    public long FreePagesInBlocks { get; set; }

    /// <summary>Largest difference that a CPU keeps for itself (stat_threshold).</summary>
    public int StatThreshold { get; set; }

    public long PercpuDriftMark { get; set; }

    /// <summary>zone_page_state(NR_FREE_PAGES): the global part, never negative.</summary>
    public long FreePages
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get
        {
            long free = Volatile.Read(ref _freePages);
            return free < 0 ? 0 : free;
        }
    }

    /// <summary>
    /// zone_page_state_snapshot(NR_FREE_PAGES): with all per-CPU differences, exact while the zone is locked.
    /// </summary>
    public unsafe long FreePagesExact
    {
        get
        {
            long free = Volatile.Read(ref _freePages);
            for (int cpu = 0; cpu < CpuCount; cpu++)
                free += _freePagesDiff[cpu];
            return free < 0 ? 0 : free;
        }
    }

    /// <summary>wmark_pages(): the watermark with the current boost.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public long Mark(WatermarkLevel level) => _marks[(int)level] + Boost;

    public void SetFlag(ZoneFlags flag)
    {
        if ((Flags & flag) == 0)
            Interlocked.Or(ref _flags, (int)flag);
    }

    public void ClearFlag(ZoneFlags flag)
    {
        if ((Flags & flag) != 0)
            Interlocked.And(ref _flags, ~(int)flag);
    }

    /// <summary>Whether the whole pageblock of a frame lies within the zone's span.</summary>
    public bool SpansPageblockOf(ulong pfn)
    {
        ulong start = pfn & ~(ulong)(PageOrder.PageblockPages - 1);
        return start >= StartPfn && start + PageOrder.PageblockPages <= EndPfn;
    }

    /// <summary>Books a change of NR_FREE_PAGES on the executing CPU. The zone is locked.</summary>
    public unsafe void AddFreePagesLocked(long delta, int cpu)
    {
        long diff = _freePagesDiff[cpu] + delta;
        if (Math.Abs(diff) > StatThreshold)
        {
            Volatile.Write(ref _freePages, _freePages + diff);
            diff = 0;
        }

        _freePagesDiff[cpu] = (int)diff;
    }

    /// <summary>Sets the counter of free frames: its global part, and one CPU's difference.</summary>
    public unsafe void RestoreFreePages(long global, int cpu, int diff)
    {
        _freePages = global;
        _freePagesDiff[cpu] = diff;
    }

    /// <summary>The global part as it is, and what a CPU has not folded in.</summary>
    public unsafe (long Global, int Diff) FreePagesParts(int cpu) => (_freePages, _freePagesDiff[cpu]);

    /// <summary>
    /// Folds one CPU's difference into the global part (the stat work, or a CPU going idle). Zone locked.
    /// </summary>
    public unsafe void FoldLocked(int cpu)
    {
        Volatile.Write(ref _freePages, _freePages + _freePagesDiff[cpu]);
        _freePagesDiff[cpu] = 0;
    }

    public unsafe void Dispose() => NativeMemory.Free(_freePagesDiff);
}

/// <summary>Which watermark (enum zone_watermarks).</summary>
internal enum WatermarkLevel
{
    Min,
    Low,
    High,
}

/// <summary>zone->flags (include/linux/mmzone.h, Linux 6.18).</summary>
[Flags]
internal enum ZoneFlags
{
    None = 0,

    /// <summary>The boost was raised: the next allocation that may wakes kswapd.</summary>
    BoostedWatermark = 1,

    /// <summary>kswapd is at work on this zone: per-CPU lists shrink.</summary>
    ReclaimActive = 2,

    /// <summary>Free pages were seen below the high watermark: per-CPU lists stop growing.</summary>
    BelowHigh = 4,
}
