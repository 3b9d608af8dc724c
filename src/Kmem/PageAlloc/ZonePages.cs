using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// One zone as the page allocator uses it: the per-CPU lists in front, the buddy system behind. Everything here runs in
/// a section of the CPU given, except what says otherwise.
/// </summary>
/// <remarks>
/// mm/page_alloc.c, Linux 6.18: rmqueue, rmqueue_pcplist, free_frozen_page_commit, free_pcppages_bulk.
/// </remarks>
internal sealed class ZonePages : IDisposable
{
    private readonly MemMap _map;
    private readonly PageblockMap _blocks;
    private readonly unsafe byte* _pcps;
    private readonly int _pcpStride;

    public unsafe ZonePages(Zone zone, MemMap map, PageblockMap blocks)
    {
        Zone = zone;
        Buddy = new Buddy(zone, map, blocks);
        _map = map;
        _blocks = blocks;
        _pcpStride = (sizeof(PerCpuPages) + 127) & ~127;
        _pcps = (byte*)NativeMemory.AlignedAlloc((nuint)(_pcpStride * zone.CpuCount), 128);
        for (int cpu = 0; cpu < zone.CpuCount; cpu++)
            PerCpuPages.Init(PcpOf(cpu));
    }

    public Zone Zone { get; }

    public Buddy Buddy { get; }

    public ITrace? Trace { get; set; }

    /// <summary>How many of <see cref="Buddy.Fallbacks"/> have been told to listeners.</summary>
    public long ToldFallbacks;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe PerCpuPages* PcpOf(int cpu) => (PerCpuPages*)(_pcps + (cpu * _pcpStride));

    /// <summary>
    /// Takes a block: from the CPU's list if the order has one, refilling it if it is empty, else from the buddy
    /// system.
    /// </summary>
    /// <returns>The block, unprepared, or null.</returns>
    public unsafe Page* Take(int order, Migratetype type, AllocFlags flags, int cpu, bool bypassPcp = false)
    {
        if (PerCpuPages.IsPcpOrder(order) && !bypassPcp)
        {
            PerCpuPages* pcp = PcpOf(cpu);
            pcp->FreeCount >>= 1;
            Page* page = PopOrRefill(pcp, order, type, flags, cpu);
            if (page != null)
                return page;
        }

        return TakeFromBuddy(order, type, flags, cpu);
    }

    /// <summary>
    /// Takes one block of a bulk request: like <see cref="Take"/>, but the list only, and without the mark that it
    /// leaves on FreeCount.
    /// </summary>
    public unsafe Page* TakeBulk(Migratetype type, AllocFlags flags, int cpu) =>
        PopOrRefill(PcpOf(cpu), 0, type, flags, cpu);

    /// <summary>Gives a block back: onto the CPU's list if its order has one, which may then drain.</summary>
    public unsafe void Give(Page* page, int order, int cpu, bool bypassPcp = false)
    {
        Migratetype type = _blocks.TypeOf(_map.PfnOf(page));
        if (!PerCpuPages.IsPcpOrder(order) || type == Migratetype.Isolate || bypassPcp)
        {
            GiveToBuddy(page, order, FreeFlags.None, cpu);
            return;
        }

        Push(PcpOf(cpu), page, order, PerCpuPages.ListIndex(order, type), cpu);
    }

    /// <summary>Undoes a <see cref="Take"/>: the block is the next one of its list again. A correction.</summary>
    public unsafe void PutBack(Page* page, int order, int cpu)
    {
        Migratetype type = _blocks.TypeOf(_map.PfnOf(page));
        if (!PerCpuPages.IsPcpOrder(order) || type == Migratetype.Isolate)
        {
            GiveToBuddy(page, order, FreeFlags.None, cpu);
            return;
        }

        ListHead.AddHead(PerCpuPages.ListOf(PcpOf(cpu), PerCpuPages.ListIndex(order, type)), &page->Lru);
        PcpOf(cpu)->Count += 1 << order;
    }

    public unsafe void GiveToBuddy(Page* page, int order, FreeFlags flags, int cpu)
    {
        Buddy.Lock.Acquire();
        Buddy.FreeLocked(page, order, flags, cpu);
        Buddy.Lock.Release();
    }

    /// <summary>
    /// Empties one CPU's lists (drain_pages_zone). <paramref name="cpu"/> is entered or taken remotely.
    /// </summary>
    /// <param name="cpu">Whose lists.</param>
    /// <param name="executingCpu">Whose counter differences the frames are booked on.</param>
    public unsafe void Drain(int cpu, int executingCpu)
    {
        PerCpuPages* pcp = PcpOf(cpu);
        while (pcp->Count > 0)
            BulkFree(pcp, Math.Min(pcp->Count, pcp->Batch << PerCpuPages.BatchScaleMax), 0, executingCpu);
    }

    /// <summary>
    /// Gives back so many frames of one CPU's lists, as <see cref="Drain"/> does, beginning with one list.
    /// </summary>
    public unsafe void DrainSome(int cpu, int list, int frames, int executingCpu) =>
        BulkFree(PcpOf(cpu), frames, list, executingCpu);

    /// <summary>
    /// A replay's say in how many frames a list that grew too long gives back, where the recording shows it; null
    /// otherwise.
    /// </summary>
    public Func<ZonePages, int, int>? DrainLimit { get; set; }

    /// <summary>Whether a CPU has a block on one of its lists.</summary>
    public unsafe bool HasOnList(int cpu, int list) => !ListHead.IsEmpty(PerCpuPages.ListOf(PcpOf(cpu), list));

    /// <summary>
    /// Whether one more block makes a CPU's lists too long; high orders may go sooner, when many come.
    /// </summary>
    public unsafe bool WouldDrain(int cpu, int order)
    {
        if (order is >= 1 and <= PageOrder.Costly)
            return true;

        PerCpuPages after = *PcpOf(cpu);    // only its numbers are looked at
        after.Count += 1 << order;
        return PerCpuPages.IsPcpOrder(order) && after.Count >= after.FreeLimit(freeHigh: false, Zone.Flags);
    }

    /// <summary>The length that a CPU's lists are tuned to.</summary>
    public unsafe int HighOf(int cpu) => PcpOf(cpu)->High;

    /// <summary>Undoes a wrong step of the tuning. A correction.</summary>
    public unsafe void SetHigh(int cpu, int high) => PcpOf(cpu)->High = high;

    /// <summary>
    /// After a free whose lists were not found too long, and were drained all the same: if that is what happens while
    /// kswapd is at work on the zone, it has begun, which no event shows.
    /// </summary>
    /// <returns>Whether this explains a drain of so many frames; then the zone is marked.</returns>
    public unsafe bool BeginReclaim(int cpu, int drained)
    {
        PerCpuPages* pcp = PcpOf(cpu);
        if ((Zone.Flags & ZoneFlags.ReclaimActive) != 0)
            return false;

        int high = pcp->High;
        int limit = pcp->FreeLimit(freeHigh: false, ZoneFlags.ReclaimActive);
        if (pcp->Count >= limit && pcp->DrainCount(limit, freeHigh: false) == drained)
        {
            Zone.SetFlag(ZoneFlags.ReclaimActive);
            return true;
        }

        pcp->High = high;
        return false;
    }

    /// <summary>How often a CPU's list was filled from the buddy system; changes under the zone's lock.</summary>
    public BlockCount Refills;

    /// <summary>How often CPUs' lists gave frames back; changes under the zone's lock.</summary>
    public BlockCount Drains;

    /// <summary>The list of one CPU that would give this frame back next; -1 if none would.</summary>
    public unsafe int ListToDrain(int cpu, ulong pfn)
    {
        for (int list = 0; list < PerCpuPages.ListCount; list++)
        {
            ListHead* head = PerCpuPages.ListOf(PcpOf(cpu), list);
            if (!ListHead.IsEmpty(head) && _map.PfnOf(Page.FromLru(head->Prev)) == pfn)
                return list;
        }

        return -1;
    }

    /// <summary>Whether some CPU's lists have exactly this block.</summary>
    public unsafe bool IsOnPcp(ulong pfn, int order)
    {
        ulong steps = 0;
        for (int cpu = 0; cpu < Zone.CpuCount; cpu++)
        {
            for (int list = 0; list < PerCpuPages.ListCount; list++)
            {
                ListHead* head = PerCpuPages.ListOf(PcpOf(cpu), list);
                if (PerCpuPages.OrderOfList(list) != order)
                    continue;
                for (ListHead* node = head->Next; node != head; node = node->Next)
                {
                    Bug.On(++steps > Zone.Spanned, "a CPU's list of pages goes in a circle");
                    if (_map.PfnOf(Page.FromLru(node)) == pfn)
                        return true;
                }
            }
        }

        return false;
    }

    /// <summary>
    /// Takes every block that overlaps a range off the CPUs' lists; what lies outside the range goes to the buddy
    /// system. A correction: O(frames on the lists).
    /// </summary>
    public unsafe void TakeFromPcps(ulong wanted, int order, int executingCpu)
    {
        ulong end = wanted + (1UL << order);
        ulong steps = 0;
        for (int cpu = 0; cpu < Zone.CpuCount; cpu++)
        {
            for (int list = 0; list < PerCpuPages.ListCount; list++)
            {
                int size = PerCpuPages.OrderOfList(list);
                ListHead* head = PerCpuPages.ListOf(PcpOf(cpu), list);
                for (ListHead* node = head->Next; node != head;)
                {
                    Bug.On(++steps > Zone.Spanned, "a CPU's list of pages goes in a circle");
                    Page* page = Page.FromLru(node);
                    node = node->Next;
                    ulong pfn = _map.PfnOf(page);
                    if (pfn >= end || pfn + (1UL << size) <= wanted)
                        continue;

                    ListHead.Remove(&page->Lru);
                    PcpOf(cpu)->Count -= 1 << size;
                    for (ulong frame = pfn; frame < pfn + (1UL << size); frame++)
                    {
                        if (frame < wanted || frame >= end)
                            GiveToBuddy(_map.PageOf(frame), 0, FreeFlags.None, executingCpu);
                    }
                }
            }
        }
    }

    /// <summary>The once-a-second work: lists that grew for a burst shrink again (decay_pcp_high).</summary>
    public unsafe void Decay(int cpu)
    {
        PerCpuPages* pcp = PcpOf(cpu);
        if (pcp->High > pcp->HighMin)
        {
            pcp->High = Math.Max(
                Math.Max(pcp->Count - (pcp->Batch << PerCpuPages.BatchScaleMax), pcp->High - (pcp->High >> 3)),
                pcp->HighMin);
        }

        int surplus = pcp->Count - pcp->High;
        if (surplus > 0)
            BulkFree(pcp, surplus, 0, cpu);
    }

    /// <summary>Adds what a CPU counted for itself to the zone's count.</summary>
    public void Fold(int cpu)
    {
        Buddy.Lock.Acquire();
        Zone.FoldLocked(cpu);
        Buddy.Lock.Release();
    }

    /// <summary>Whether <see cref="Decay"/> or <see cref="Fold"/> has anything to do on a CPU; a glance.</summary>
    public unsafe bool HasWork(int cpu) => PcpOf(cpu)->Count > 0 || Zone.FreePagesParts(cpu).Diff != 0;

    /// <summary>
    /// The watermark check (__zone_watermark_ok): enough free frames above the mark and the reserve for the request's
    /// highest zone, and for order &gt; 0 a block of the order on a list that the request may use.
    /// </summary>
    public unsafe bool WatermarkOk(int order, long mark, ZoneType highest, AllocFlags flags, long free)
    {
        long min = mark;
        free -= (1L << order) - 1;
        if ((flags & AllocFlags.Reserves) == 0)
            free -= Zone.FreeHighAtomic;

        if ((flags & AllocFlags.Reserves) != 0)
        {
            if ((flags & AllocFlags.MinReserve) != 0)
            {
                min -= min / 2;
                if ((flags & AllocFlags.NonBlock) != 0)
                    min -= min / 4;
            }

            if ((flags & AllocFlags.Oom) != 0)
                min -= min / 2;
        }

        if (free <= min + Zone.LowmemReserve[(int)highest])
            return false;
        if (order == 0)
            return true;

        for (int current = order; current <= PageOrder.Max; current++)
        {
            if (Buddy.NrFree(current) == 0)
                continue;

            for (Migratetype type = 0; type < Migratetype.HighAtomic; type++)
            {
                if (!ListHead.IsEmpty(Buddy.ListOf(current, type)))
                    return true;
            }

            if ((flags & (AllocFlags.HighAtomic | AllocFlags.Oom)) != 0
                && !ListHead.IsEmpty(Buddy.ListOf(current, Migratetype.HighAtomic)))
            {
                return true;
            }
        }

        return false;
    }

    /// <summary>
    /// The same with the shortcut for single frames and the second chance against the unboosted minimum.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool WatermarkFast(int order, long mark, ZoneType highest, AllocFlags flags)
    {
        long free = Zone.FreePages;
        if (order == 0)
        {
            long usable = free;
            if ((flags & AllocFlags.Reserves) == 0)
                usable -= Math.Min(free, Zone.FreeHighAtomic);
            if (usable > mark + Zone.LowmemReserve[(int)highest])
                return true;
        }

        return WatermarkFastSlow(order, mark, highest, flags, free);
    }

    /// <summary>Frames on one CPU's lists.</summary>
    public unsafe int CountOf(int cpu) => PcpOf(cpu)->Count;

    /// <summary>Frames on all CPUs' lists.</summary>
    public unsafe long PcpCount
    {
        get
        {
            long count = 0;
            for (int cpu = 0; cpu < Zone.CpuCount; cpu++)
                count += PcpOf(cpu)->Count;
            return count;
        }
    }

    public unsafe void Dispose()
    {
        Buddy.Dispose();
        Zone.Dispose();
        NativeMemory.AlignedFree(_pcps);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool WatermarkFastSlow(int order, long mark, ZoneType highest, AllocFlags flags, long free)
    {
        if (WatermarkOk(order, mark, highest, flags, free))
            return true;

        return order == 0
            && (flags & AllocFlags.MinReserve) != 0
            && (flags & AllocFlags.WatermarkMask) == AllocFlags.WatermarkMin
            && Zone.Boost != 0
            && WatermarkOk(order, Zone.Watermarks.Min, highest, flags, free);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe Page* PopOrRefill(PerCpuPages* pcp, int order, Migratetype type, AllocFlags flags, int cpu)
    {
        ListHead* list = PerCpuPages.ListOf(pcp, PerCpuPages.ListIndex(order, type));
        if (ListHead.IsEmpty(list) && !Refill(pcp, list, order, type, flags, cpu))
            return null;

        Page* page = Page.FromLru(list->Next);
        ListHead.Remove(&page->Lru);
        pcp->Count -= 1 << order;
        return page;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe bool Refill(
        PerCpuPages* pcp, ListHead* list, int order, Migratetype type, AllocFlags flags, int cpu)
    {
        int wanted = pcp->RefillCount(order, (Zone.Flags & ZoneFlags.BelowHigh) != 0);
        var mode = SearchMode.Normal;
        int got = 0;
        Buddy.Lock.Acquire();
        while (got < wanted)
        {
            Page* page = Buddy.RmqueueLocked(order, type, flags, ref mode, cpu);
            if (page == null)
                break;

            ListHead.AddTail(list, &page->Lru);
            got++;
        }

        if (got > 0)
            Refills.Add(0, order, order);
        Buddy.Lock.Release();
        pcp->Count += got << order;
        return got > 0;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe Page* TakeFromBuddy(int order, Migratetype type, AllocFlags flags, int cpu)
    {
        var mode = SearchMode.Normal;
        Page* page = null;
        Buddy.Lock.Acquire();
        if ((flags & AllocFlags.HighAtomic) != 0)
            page = Buddy.TakeLocked(order, Migratetype.HighAtomic, cpu);
        if (page == null)
            page = Buddy.RmqueueLocked(order, type, flags, ref mode, cpu);
        if (page == null && (flags & (AllocFlags.Oom | AllocFlags.NonBlock)) != 0)
            page = Buddy.TakeLocked(order, Migratetype.HighAtomic, cpu);
        Buddy.Lock.Release();
        return page;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe void Push(PerCpuPages* pcp, Page* page, int order, int index, int cpu)
    {
        pcp->AllocFactor >>= 1;
        ListHead.AddHead(PerCpuPages.ListOf(pcp, index), &page->Lru);
        pcp->Count += 1 << order;

        bool freeHigh = false;
        if (order is >= 1 and <= PageOrder.Costly)
        {
            freeHigh = pcp->FreeCount >= pcp->Batch + (pcp->HighMin / 2)
                && (pcp->Flags & PcpFlags.PrevFreeHighOrder) != 0
                && ((pcp->Flags & PcpFlags.FreeHighBatch) == 0 || pcp->Count >= pcp->Batch);
            pcp->Flags |= PcpFlags.PrevFreeHighOrder;
        }
        else
        {
            pcp->Flags &= ~PcpFlags.PrevFreeHighOrder;
        }

        if (pcp->FreeCount < pcp->Batch << PerCpuPages.BatchScaleMax)
            pcp->FreeCount += 1 << order;

        int limit = pcp->FreeLimit(freeHigh, Zone.Flags);
        if (pcp->Count >= limit)
            DrainSome(pcp, limit, freeHigh, index, cpu);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void DrainSome(PerCpuPages* pcp, int limit, bool freeHigh, int index, int cpu)
    {
        int frames = pcp->DrainCount(limit, freeHigh);
        BulkFree(pcp, DrainLimit == null ? frames : DrainLimit(this, frames), index, cpu);

        // The highest zone of this check is Movable, whatever zones the machine has.
        if ((Zone.Flags & ZoneFlags.BelowHigh) != 0
            && WatermarkOk(
                0, Zone.Mark(WatermarkLevel.High), ZoneType.Movable, AllocFlags.WatermarkMin, Zone.FreePages))
        {
            Zone.ClearFlag(ZoneFlags.BelowHigh);
        }
    }

    /// <summary>
    /// Gives frames back to the buddy system, oldest first, list by list from <paramref name="index"/> on, emptying a
    /// list before going on to the next (free_pcppages_bulk).
    /// </summary>
    private unsafe void BulkFree(PerCpuPages* pcp, int frames, int index, int cpu)
    {
        frames = Math.Min(frames, pcp->Count);
        Buddy.Lock.Acquire();
        if (frames > 0)
            Drains.Add(0, PerCpuPages.OrderOfList(index), 0);
        while (frames > 0)
        {
            ListHead* list = PerCpuPages.ListOf(pcp, index);
            for (int tried = 0; ListHead.IsEmpty(list); tried++)
            {
                Bug.On(tried >= PerCpuPages.ListCount, "a per-CPU list counts frames that it does not have");
                index = index + 1 == PerCpuPages.ListCount ? 0 : index + 1;
                list = PerCpuPages.ListOf(pcp, index);
            }

            int order = PerCpuPages.OrderOfList(index);
            do
            {
                Page* page = Page.FromLru(list->Prev);
                ulong pfn = _map.PfnOf(page);
                ListHead.Remove(&page->Lru);
                Migratetype type = _blocks.TypeOf(pfn); // may have changed since the frame was pushed
                frames -= 1 << order;
                pcp->Count -= 1 << order;
                Buddy.FreeOneLocked(page, order, type, FreeFlags.None, cpu);
                Trace?.MmPagePcpuDrain(new Pfn(pfn), order, type);
            }
            while (frames > 0 && !ListHead.IsEmpty(list));
        }

        Buddy.Lock.Release();
    }
}
