namespace Kmem;

/// <content>Corrections from outside: a replay that went wrong once goes on from the recorded answer.</content>
internal sealed partial class PageAllocator
{
    /// <summary>
    /// Gives back some frames of one CPU's lists of a zone, on behalf of the CPU that this thread runs on.
    /// </summary>
    public void DrainSome(ZonePages zone, int cpu, int list, int frames)
    {
        int executing = _cpus.CurrentCpu;
        _cpus.AcquireRemote(cpu);
        zone.DrainSome(cpu, list, frames, executing);
        _cpus.ReleaseRemote(cpu);
    }

    /// <summary>
    /// The first part of a request that is known to have emptied the per-CPU lists later on: it found no zone good
    /// enough, and took back a part of the reserve (__alloc_pages_direct_reclaim).
    /// </summary>
    public void BeginReclaimed(Gfp gfp, int order)
    {
        var request = new AllocRequest(gfp, order, ZonelistFor(gfp, -1), GroupingDisabled);
        AllocFlags flags = AllocFlags.WatermarkLow | (AllocFlags)(gfp & Gfp.KswapdReclaim);
        foreach (Zone zone in request.Zones)
            IsZoneGood(_zones[zone.Index]!, request, flags);    // notes which zones are below HIGH
        Unreserve(request, force: false);
    }

    /// <summary>The last attempt of such a request: after reclaim, at MIN, without another round.</summary>
    public unsafe Page* AllocReclaimed(Gfp gfp, int order)
    {
        CpuTask* task = _cpus.Current;
        var request = new AllocRequest(gfp, order, ZonelistFor(gfp, -1), GroupingDisabled);
        AllocFlags flags = SlowFlags(gfp, order);
        AllocFlags reserve = ReserveFlags(gfp, task);
        if (reserve != 0)
            flags = reserve | (flags & AllocFlags.Kswapd);
        Page* page = Walk(request, flags, task);
        _trace?.MmPageAlloc(page == null ? Pfn.None : new Pfn(_map.PfnOf(page)), order, gfp, request.Migratetype);
        return page;
    }

    /// <summary>
    /// Makes it so that a request got the block at <paramref name="wanted"/> instead of the one at
    /// <paramref name="taken"/>, which takes the other's place among the free ones as far as possible.
    /// </summary>
    /// <returns>
    /// False if the wanted block was not free here as a whole: the taken one is given back all the same.
    /// </returns>
    public unsafe bool Exchange(ulong taken, ulong wanted, int order)
    {
        Page* page = _map.PageOf(taken);
        Page* other = _map.PageOf(wanted);
        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        PageFlags kept = page->Flags & PageFlags.PfMemAlloc;
        bool compound = page->IsHead;
        if (compound)
            DissolveCompound(page, order);
        page->Flags = PageFlags.None;
        page->Type = PageType.None;
        page->RefCount = 0;

        // Blocks that overlap cannot change places; then, and if the other is not free, each goes its own way.
        bool apart = taken + (1UL << order) <= wanted || wanted + (1UL << order) <= taken;
        bool free = apart && (ZoneOf(wanted).Buddy.TryExchange(page, other, order, cpu) || TryExchangeOnList(page, other, order));
        if (!free)
        {
            ZoneOf(taken).PutBack(page, order, cpu);
            Evict(wanted, order, cpu);
        }

        RestoreAllocated(other, order, compound);
        other->Flags |= kept;
        _cpus.Leave(task);
        return free;
    }

    /// <summary>Takes a block that a recording gave out and that a request did not find here.</summary>
    public unsafe void Claim(ulong wanted, int order, bool compound)
    {
        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        Evict(wanted, order, cpu);
        RestoreAllocated(_map.PageOf(wanted), order, compound);
        _cpus.Leave(task);
    }

    /// <summary>Whether a block, or a part of it, is free, on the free lists or on some CPU's list.</summary>
    public unsafe bool IsAnyFree(ulong pfn, int order)
    {
        for (int larger = order; larger <= PageOrder.Max; larger++)
        {
            ulong start = pfn & ~((1UL << larger) - 1);
            Page* head = _map.PageOf(start);
            if (head->Type == PageType.Buddy && (int)head->Private >= larger)
                return true;
            if (IsOnList(head) && (larger == order || ZoneOf(pfn).IsOnPcp(start, larger)))
                return true;
        }

        for (ulong frame = pfn; frame < pfn + (1UL << order); frame++)
        {
            Page* page = _map.PageOf(frame);
            if (page->Type == PageType.Buddy || IsOnList(page))
                return true;
        }

        return false;
    }

    /// <summary>
    /// Makes a compound block one of single frames, each like the whole: a kernel may split it, and frees the pieces.
    /// </summary>
    public unsafe void DissolveForeign(Page* head)
    {
        int order = CompoundOrder(head);
        PageFlags lru = head->Flags & PageFlags.Lru;
        head->Flags &= ~PageFlags.Head;
        head->AllocatedOrderPlusOne = 1;
        for (long i = 1; i < 1L << order; i++)
        {
            head[i].CompoundHead = 0;
            head[i].Mapping = 0;
            head[i].Flags = lru;
        }
    }

    /// <summary>Takes every part of a block that is free off its list.</summary>
    private unsafe void Evict(ulong wanted, int order, int cpu)
    {
        ZonePages zone = ZoneOf(wanted);
        if (zone.Buddy.TryClaim(_map.PageOf(wanted), order, cpu))
            return;

        for (ulong pfn = wanted; pfn < wanted + (1UL << order); pfn++)
        {
            Page* page = _map.PageOf(pfn);
            if (page->Type == PageType.Buddy)
            {
                int free = (int)page->Private;
                zone.Buddy.TryClaim(page, free, cpu);
                pfn += (1UL << free) - 1;
            }
        }

        zone.TakeFromPcps(wanted, order, cpu);
    }

    /// <summary>A block on a per-CPU list has links and no owner.</summary>
    private static unsafe bool IsOnList(Page* page) =>
        page->Type == PageType.None && page->AllocatedOrderPlusOne == 0 && page->RefCount == 0
        && page->Lru.Next != null && (page->CompoundHead & 1) == 0;

    private unsafe bool TryExchangeOnList(Page* page, Page* other, int order)
    {
        if (!IsOnList(other))
            return false;

        // Only if it is a block of the same size, and of the same zone: counts stay as they are.
        ulong pfn = _map.PfnOf(other);
        if (ZoneOf(pfn) != ZoneOf(_map.PfnOf(page)) || !ZoneOf(pfn).IsOnPcp(pfn, order))
            return false;

        ListHead.AddHead(&other->Lru, &page->Lru);
        ListHead.Remove(&other->Lru);
        return true;
    }
}
