using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// One CPU's store of free blocks of one zone (<c>struct per_cpu_pages</c>): lists for the orders 0 … 3 and 9, so that
/// most allocations and frees need no zone lock.
/// <code>
///   list index:  3 × order + type for orders 0–3 (types Unmovable, Movable, Reclaimable)
///                12 order 9, not movable      13 order 9, movable
///   push at the head, pop at the head (LIFO); a refill appends at the tail, a drain takes from the tail
/// </code>
/// Only the CPU itself touches it, inside a section.
/// </summary>
/// <remarks>
/// The tuning of <c>High</c> follows mm/page_alloc.c, Linux 6.18 (nr_pcp_alloc, nr_pcp_high, nr_pcp_free).
/// </remarks>
[StructLayout(LayoutKind.Sequential)]
internal struct PerCpuPages
{
    /// <summary>Number of lists, with the two for huge pages.</summary>
    public const int ListCount = 14;

    /// <summary>CONFIG_PCP_BATCH_SCALE_MAX: a run of refills or frees may grow to batch × 2⁵.</summary>
    public const int BatchScaleMax = 5;

    public int Count;
    public int High;
    public int HighMin;
    public int HighMax;
    public int Batch;
    public PcpFlags Flags;
    public int AllocFactor;
    public int FreeCount;

    // Statistics of the zone on this CPU, in frames (vmstat) or allocations (numa_*).
    public long PgAlloc;
    public long PgFree;
    public long NumaHit;
    public long NumaMiss;
    public long NumaForeign;
    public long NumaLocal;
    public long NumaOther;

    private Lists _lists;

    public static bool IsPcpOrder(int order) => order <= PageOrder.Costly || order == PageOrder.Pageblock;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int ListIndex(int order, Migratetype type)
    {
        if (order == PageOrder.Pageblock)
            return type == Migratetype.Movable ? 13 : 12;

        // HighAtomic blocks are kept with the movable ones; their pageblock says where they go in the end.
        int column = type.IsMergeable() ? (int)type : (int)Migratetype.Movable;
        return (3 * order) + column;
    }

    public static int OrderOfList(int index) => index >= 12 ? PageOrder.Pageblock : index / 3;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe ListHead* ListOf(PerCpuPages* pcp, int index) => (ListHead*)&pcp->_lists + index;

    public static unsafe void Init(PerCpuPages* pcp)
    {
        *pcp = default;
        pcp->Batch = 1; // the boot pageset: everything passes straight through
        for (int list = 0; list < ListCount; list++)
            ListHead.Init(ListOf(pcp, list));
    }

    /// <summary>The statistics, for a state.</summary>
    public readonly long[] Counters => [PgAlloc, PgFree, NumaHit, NumaMiss, NumaForeign, NumaLocal, NumaOther];

    /// <summary>Sets the statistics.</summary>
    public void RestoreCounters(ReadOnlySpan<long> counters)
    {
        (PgAlloc, PgFree) = (counters[0], counters[1]);
        (NumaHit, NumaMiss, NumaForeign) = (counters[2], counters[3], counters[4]);
        (NumaLocal, NumaOther) = (counters[5], counters[6]);
    }

    /// <summary>How many blocks the next refill takes; tunes High and AllocFactor on the way (nr_pcp_alloc).</summary>
    public int RefillCount(int order, bool zoneBelowHigh)
    {
        High = Clamp(High, HighMin, HighMax);
        if (High < Batch)
            return 1;

        int count = order != 0 ? Batch : Batch << AllocFactor;
        if (HighMin != HighMax && !zoneBelowHigh)
            High = Math.Min(High + count, HighMax);

        if (order == 0)
        {
            int most = Math.Max(High - Count - Batch, Batch);
            if (count <= most && AllocFactor < BatchScaleMax)
                AllocFactor++; // doubles with every refill that no free came between
            count = Math.Min(count, most);
        }

        return count > 1 ? Math.Max(count >> order, 2) : count;
    }

    /// <summary>The length beyond which a free drains; tunes High on the way (nr_pcp_high).</summary>
    public int FreeLimit(bool freeHigh, ZoneFlags zone)
    {
        int high = High = Clamp(High, HighMin, HighMax);
        if (high == 0)
            return 0;

        if (freeHigh)
        {
            High = Math.Max(high - (Batch << BatchScaleMax), HighMin);
            return 0;
        }

        if ((zone & ZoneFlags.ReclaimActive) != 0)
        {
            High = Math.Max(high - Math.Max(FreeCount, Batch), HighMin);
            return Math.Min(4 * Batch, High);
        }

        if (HighMin == HighMax)
            return high;

        if ((zone & ZoneFlags.BelowHigh) != 0)
        {
            High = Math.Max(high - Math.Max(FreeCount, Batch), HighMin);
            return Math.Max(Count, HighMin);
        }

        if (Count >= high)
        {
            int need = FreeCount + Batch;
            if (High < need)
                High = Clamp(need, HighMin, HighMax);
        }

        return high;
    }

    /// <summary>How many frames a drain gives back (nr_pcp_free).</summary>
    public readonly int DrainCount(int limit, bool freeHigh)
    {
        if (freeHigh)
            return Math.Min(Count, Batch << BatchScaleMax);
        if (limit < Batch)
            return 1;
        return Math.Min(Math.Max(FreeCount, Batch), limit - Batch);
    }

    /// <summary>
    /// The kernel's clamp(): in a tiny zone the lower limit may be the larger one, and then the upper wins.
    /// </summary>
    private static int Clamp(int value, int low, int high) => Math.Min(Math.Max(value, low), high);

    [InlineArray(ListCount * 2)]
    private struct Lists
    {
        private nint _first;
    }
}

/// <summary>pcp->flags (include/linux/mmzone.h, Linux 6.18).</summary>
[Flags]
internal enum PcpFlags
{
    None = 0,

    /// <summary>The last free was of order 1 to 3.</summary>
    PrevFreeHighOrder = 1,

    /// <summary>The CPU's data cache slice is large: keep a batch before draining high orders.</summary>
    FreeHighBatch = 2,
}
