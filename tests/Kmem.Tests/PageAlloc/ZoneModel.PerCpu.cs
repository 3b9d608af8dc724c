namespace Kmem.Tests;

/// <content>The per-CPU lists in front of the model's free lists.</content>
internal sealed partial class ZoneModel
{
    /// <summary>CONFIG_PCP_BATCH_SCALE_MAX.</summary>
    private const int Scale = 5;

    private readonly CpuLists[] _cpus;

    public bool BelowHigh { get; set; }

    public bool ReclaimActive { get; set; }

    public CpuLists Cpu(int cpu) => _cpus[cpu];

    /// <summary>rmqueue, one zone's part.</summary>
    public ulong? Alloc(int order, Migratetype type, AllocFlags flags, int cpu)
    {
        if (order is <= 3 or 9)
        {
            CpuLists pcp = _cpus[cpu];
            pcp.FreeCount >>= 1;
            List<ulong> list = pcp.Blocks[IndexOf(order, type)];
            if (list.Count == 0)
                Refill(pcp, list, order, type, flags, cpu);
            if (list.Count > 0)
            {
                ulong first = list[0];
                list.RemoveAt(0);
                pcp.Count -= 1 << order;
                return first;
            }
        }

        int mode = 0;
        ulong? pfn = flags.HasFlag(AllocFlags.HighAtomic) ? Take(order, Migratetype.HighAtomic, cpu) : null;
        pfn ??= Rmqueue(order, type, flags, ref mode, cpu);
        if (pfn == null && (flags & (AllocFlags.Oom | AllocFlags.NonBlock)) != 0)
            pfn = Take(order, Migratetype.HighAtomic, cpu);
        return pfn;
    }

    /// <summary>free_frozen_page_commit.</summary>
    public void FreePage(ulong pfn, int order, int cpu)
    {
        Migratetype type = TypeOf(pfn);
        if (order is not (<= 3 or 9) || type == Migratetype.Isolate)
        {
            FreeToBuddy(pfn, order, toTail: false, cpu);
            return;
        }

        CpuLists pcp = _cpus[cpu];
        int index = IndexOf(order, type);
        pcp.AllocFactor >>= 1;
        pcp.Blocks[index].Insert(0, pfn);
        pcp.Count += 1 << order;
        bool freeHigh = false;
        if (order is >= 1 and <= 3)
        {
            freeHigh = pcp.FreeCount >= pcp.Batch + (pcp.HighMin / 2)
                && pcp.PreviousWasHigh
                && (!pcp.KeepsBatch || pcp.Count >= pcp.Batch);
            pcp.PreviousWasHigh = true;
        }
        else
        {
            pcp.PreviousWasHigh = false;
        }

        if (pcp.FreeCount < pcp.Batch << Scale)
            pcp.FreeCount += 1 << order;
        int limit = Limit(pcp, freeHigh);
        if (pcp.Count < limit)
            return;

        int drain = freeHigh ? Math.Min(pcp.Count, pcp.Batch << Scale)
            : limit < pcp.Batch ? 1
            : Math.Min(Math.Max(pcp.FreeCount, pcp.Batch), limit - pcp.Batch);
        BulkFree(pcp, drain, index, cpu);
        if (BelowHigh && Math.Max(0, FreePages) - FreeHighAtomic > HighMark + Boost)
            BelowHigh = false;
    }

    public void DrainCpu(int cpu)
    {
        CpuLists pcp = _cpus[cpu];
        while (pcp.Count > 0)
            BulkFree(pcp, Math.Min(pcp.Count, pcp.Batch << Scale), 0, cpu);
    }

    public void Decay(int cpu)
    {
        CpuLists pcp = _cpus[cpu];
        if (pcp.High > pcp.HighMin)
        {
            int[] candidates = [pcp.Count - (pcp.Batch << Scale), pcp.High - (pcp.High / 8), pcp.HighMin];
            pcp.High = candidates.Max();
        }

        if (pcp.Count > pcp.High)
            BulkFree(pcp, pcp.Count - pcp.High, 0, cpu);
    }

    private static int IndexOf(int order, Migratetype type)
    {
        if (order == 9)
            return type == Migratetype.Movable ? 13 : 12;
        return (3 * order) + (type >= Migratetype.HighAtomic ? 1 : (int)type);
    }

    private void Refill(CpuLists pcp, List<ulong> list, int order, Migratetype type, AllocFlags flags, int cpu)
    {
        int wanted = RefillCount(pcp, order);
        int mode = 0;
        for (int got = 0; got < wanted; got++)
        {
            if (Rmqueue(order, type, flags, ref mode, cpu) is not { } pfn)
                return;
            list.Add(pfn);
            pcp.Count += 1 << order;
        }
    }

    private int RefillCount(CpuLists pcp, int order)
    {
        pcp.High = Math.Max(pcp.HighMin, Math.Min(pcp.High, pcp.HighMax));
        if (pcp.High < pcp.Batch)
            return 1;

        int n = order > 0 ? pcp.Batch : pcp.Batch << pcp.AllocFactor;
        if (pcp.HighMin != pcp.HighMax && !BelowHigh)
            pcp.High = Math.Min(pcp.High + n, pcp.HighMax);
        if (order == 0)
        {
            int most = Math.Max(pcp.High - pcp.Count - pcp.Batch, pcp.Batch);
            if (n <= most && pcp.AllocFactor < Scale)
                pcp.AllocFactor++;
            n = Math.Min(n, most);
        }

        if (n > 1)
            n = Math.Max(n >> order, 2);
        return n;
    }

    private int Limit(CpuLists pcp, bool freeHigh)
    {
        int h = pcp.High = Math.Max(pcp.HighMin, Math.Min(pcp.High, pcp.HighMax));
        if (h == 0)
            return 0;
        if (freeHigh)
        {
            pcp.High = Math.Max(h - (pcp.Batch << Scale), pcp.HighMin);
            return 0;
        }

        int lowered = Math.Max(h - Math.Max(pcp.FreeCount, pcp.Batch), pcp.HighMin);
        if (ReclaimActive)
        {
            pcp.High = lowered;
            return Math.Min(4 * pcp.Batch, pcp.High);
        }

        if (pcp.HighMin == pcp.HighMax)
            return h;
        if (BelowHigh)
        {
            pcp.High = lowered;
            return Math.Max(pcp.Count, pcp.HighMin);
        }

        int need = pcp.FreeCount + pcp.Batch;
        if (pcp.Count >= h && pcp.High < need)
            pcp.High = Math.Max(pcp.HighMin, Math.Min(need, pcp.HighMax));
        return h;
    }

    private void BulkFree(CpuLists pcp, int frames, int index, int cpu)
    {
        frames = Math.Min(frames, pcp.Count);
        while (frames > 0)
        {
            while (pcp.Blocks[index].Count == 0)
                index = (index + 1) % pcp.Blocks.Length;

            int order = index >= 12 ? 9 : index / 3;
            List<ulong> list = pcp.Blocks[index];
            while (frames > 0 && list.Count > 0)
            {
                ulong pfn = list[^1];
                list.RemoveAt(list.Count - 1);
                Migratetype type = TypeOf(pfn);
                frames -= 1 << order;
                pcp.Count -= 1 << order;
                FreeOne(pfn, order, type, toTail: false, cpu);
                Events.Add(RecordingTrace.Drained(pfn, order, type));
            }
        }
    }

    /// <summary>One CPU's lists and the numbers that tune them.</summary>
    internal sealed class CpuLists
    {
        public List<ulong>[] Blocks { get; } = [.. Enumerable.Range(0, 14).Select(_ => new List<ulong>())];

        public int Count { get; set; }

        public int High { get; set; }

        public int HighMin { get; set; }

        public int HighMax { get; set; }

        public int Batch { get; set; } = 1;

        public int AllocFactor { get; set; }

        public int FreeCount { get; set; }

        public bool PreviousWasHigh { get; set; }

        public bool KeepsBatch { get; set; }
    }
}
