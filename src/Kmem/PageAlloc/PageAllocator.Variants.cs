namespace Kmem;

/// <content>The other ways to ask for frames: exact sizes, many at once, references, splitting.</content>
internal sealed partial class PageAllocator
{
    /// <summary>Counts one more reference to a block (get_page).</summary>
    public unsafe void Get(ulong pfn)
    {
        Page* page = CheckedForFree(pfn, Math.Max(0, _map.PageOf(pfn)->AllocatedOrderPlusOne - 1));
        Interlocked.Increment(ref page->RefCount);
    }

    /// <summary>
    /// Turns a block that is not compound into single frames, each to be freed alone (split_page).
    /// </summary>
    public unsafe void Split(ulong pfn, int order)
    {
        Page* page = CheckedForFree(pfn, order);
        if (page->IsHead)
            ThrowBadFree(pfn, order, "a compound block cannot be split");

        for (long i = 0; i < 1L << order; i++)
        {
            page[i].RefCount = 1;
            page[i].AllocatedOrderPlusOne = 1;
        }
    }

    /// <summary>
    /// Allocates exactly as many contiguous frames as a size needs: a block of the next power of two, split, with the
    /// tail frames given back at once (alloc_pages_exact).
    /// </summary>
    /// <returns>The first page, or null.</returns>
    public unsafe Page* AllocExact(nuint bytes, Gfp gfp)
    {
        if ((gfp & (Gfp.Comp | Gfp.HighMem)) != 0)
        {
            _log.Write("WARNING: alloc_pages_exact: __GFP_COMP and __GFP_HIGHMEM are dropped");
            gfp &= ~(Gfp.Comp | Gfp.HighMem);
        }

        if (bytes == 0 || bytes > (nuint)PageOrder.MaxBlockPages * Pfn.PageSize)
            return null;

        int order = PageOrder.ForSize(bytes);
        Page* page = Alloc(gfp, order, -1);
        if (page == null)
            return null;

        Split(_map.PfnOf(page), order);
        long used = (long)((bytes + Pfn.PageSize - 1) >> Pfn.PageShift);
        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        for (long i = used; i < 1L << order; i++)
        {
            page[i].RefCount = 0;
            PrepareFree(page + i, 0);
            ZonePages zone = ZoneOf(_map.PfnOf(page + i));
            zone.PcpOf(cpu)->PgFree++;
            zone.GiveToBuddy(page + i, 0, FreeFlags.ToTail, cpu);
        }

        _cpus.Leave(task);
        return page;
    }

    /// <summary>Frees what <see cref="AllocExact"/> gave out for the same size (free_pages_exact).</summary>
    public void FreeExact(ulong pfn, nuint bytes)
    {
        ulong frames = (bytes + Pfn.PageSize - 1) >> Pfn.PageShift;
        for (ulong i = 0; i < frames; i++)
            Free(pfn + i, 0);
    }

    /// <summary>
    /// Fills the empty (<see cref="Pfn.None"/>) entries with single frames from one zone's per-CPU list, refilling it
    /// as often as needed (alloc_pages_bulk). No mm_page_alloc events, no mark on the lists' tuning.
    /// </summary>
    /// <returns>Number of filled entries from the start; may be fewer than asked.</returns>
    public unsafe int AllocBulk(Gfp gfp, int node, Span<Pfn> pages)
    {
        int filled = 0;
        while (filled < pages.Length && pages[filled].IsValid)
            filled++;
        int missing = 0;
        foreach (Pfn entry in pages)
            missing += entry.IsValid ? 0 : 1;
        if (missing == 0)
            return filled;

        if (missing > 1 && _faults != null && _faults.FailsPages(gfp, 0))
            return filled;

        ZonePages? zone = missing == 1 ? null : BeginBulk(gfp, node, pages.Length);
        for (int i = 0; zone != null && i < pages.Length; i++)
        {
            if (pages[i].IsValid)
                continue;

            Page* page = TakeBulk(zone, gfp, node);
            if (page == null)
                break;
            pages[i] = new Pfn(_map.PfnOf(page));
            missing = 0;
            _trace?.PageOfBulk(pages[i], gfp);
        }

        // Nothing that way: one page the ordinary way, and the caller asks again.
        if (missing > 0)
        {
            Page* single = Alloc(gfp, 0, node);
            if (single != null)
                pages[pages.IndexOf(Pfn.None)] = new Pfn(_map.PfnOf(single));
        }

        int end = pages.IndexOf(Pfn.None);
        return end < 0 ? pages.Length : end;
    }

    /// <summary>The zone that a bulk request is served from, or null: single pages then.</summary>
    public unsafe ZonePages? BeginBulk(Gfp gfp, int node, int wanted)
    {
        CpuTask* task = _cpus.Current;
        gfp = ApplyScopes(gfp, task->Flags);
        CheckContext(gfp, task);
        if (!gfp.HasValidZone() || !gfp.HasValidMobility())
            ThrowBadGfp(gfp);
        return FindBulkZone(new AllocRequest(gfp, 0, ZonelistFor(gfp, node), GroupingDisabled), wanted);
    }

    /// <summary>One frame of a bulk request, from the zone's per-CPU list.</summary>
    public unsafe Page* TakeBulk(ZonePages zone, Gfp gfp, int node)
    {
        CpuTask* task = _cpus.Current;
        gfp = ApplyScopes(gfp, task->Flags);
        var request = new AllocRequest(gfp, 0, ZonelistFor(gfp, node), GroupingDisabled);
        int cpu = _cpus.Enter(task);
        Page* page = zone.TakeBulk(request.Migratetype, AllocFlags.WatermarkLow, cpu);
        if (page != null)
            CountAllocation(zone, request, cpu);
        _cpus.Leave(task);
        if (page == null)
            return null;

        Prepare(page, request, AllocFlags.WatermarkLow);
        page->RefCount = 1;
        return page;
    }

    /// <summary>The first zone of the preferred node that has the whole request above LOW.</summary>
    private ZonePages? FindBulkZone(in AllocRequest request, int wanted)
    {
        for (int i = request.First; i < request.Zones.Length; i++)
        {
            Zone zone = request.Zones[i];
            if (zone.NodeId != request.Zones[request.First].NodeId)
                break;

            ZonePages pages = _zones[zone.Index]!;
            ZoneType highest = request.Zones[request.First].Type;
            if (pages.WatermarkFast(0, zone.Mark(WatermarkLevel.Low) + wanted, highest, AllocFlags.WatermarkLow))
                return pages;
        }

        return null;
    }

    /// <summary>
    /// Takes a given block, of the largest order, if it is free and its zone has plenty left: for who wants blocks side
    /// by side. Its reference count stays 0, and it is compound.
    /// </summary>
    public unsafe Page* TryClaimLargest(ulong pfn)
    {
        const int Order = PageOrder.Max;
        if (PresentZoneOf(pfn) is not { } zone || !IsPlentiful(zone, pfn))
            return null;

        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        Page* page = _map.PageOf(pfn);
        bool taken = zone.Buddy.TryClaim(page, Order, cpu);
        if (taken)
            RestoreAllocated(page, Order, compound: true);
        _cpus.Leave(task);
        return taken ? page : null;
    }

    /// <summary>
    /// Whether a block of the largest order is free, and an eighth of its zone besides. Only a glance.
    /// </summary>
    public unsafe bool IsLargestFree(ulong pfn) =>
        PresentZoneOf(pfn) is { } zone && IsPlentiful(zone, pfn)
        && zone.Buddy.IsFreeBlock(_map.PageOf(pfn), pfn, PageOrder.Max);

    private bool IsPlentiful(ZonePages zone, ulong pfn) => zone.Zone.Type is ZoneType.Normal or ZoneType.Dma32
        && zone.Zone.FreePages - (1L << PageOrder.Max) > (long)zone.Zone.Managed / 8
        && _blocks.TypeOf(pfn).IsMergeable();
}
