namespace Kmem;

/// <summary>
/// Answers why a request for pages fails, and what would have to be freed. Looks at every frame of the request's zones:
/// <code>
///   order 3, one candidate:   |f f s s|f L L f|       f free or on a CPU's list    s slab with 2 live objects
///                              └─ 3 objects, 4 frames ─┘   L large kmalloc block
/// </code>
/// Candidates are ranked by the number of objects, then by the frames in use.
/// </summary>
internal sealed class RequestExplainer(
    PageAllocator pages, SlabAllocator slabs, PageblockMap blocks, MemMap map, EventMemory? memory)
{
    private const int MostBlocks = 8;
    private const int MostPins = 16;

    public RequestExplanation Explain(Gfp gfp, int order, int node)
    {
        gfp = pages.ScopedFlags(gfp);
        Migratetype type = pages.TypeOf(gfp);
        IReadOnlyList<ZonePages> zones = pages.ZonesFor(gfp, node);
        ZoneLack[] lacks = [.. zones.Select(zone => LackOf(zone, gfp, order, type))];
        bool succeeds = lacks.Any(zone => zone.AboveLow || zone.AboveMin);
        long never = 0;
        PinnedBlock[] pinned = [];
        if (!succeeds)
        {
            Dictionary<ulong, int> onCpuLists = OnCpuLists(zones);
            var candidates = new List<Candidate>();
            for (int i = 0; i < zones.Count; i++)
                never += Collect(zones[i], OrderToFree(order, lacks[i]), lacks[i].MissingFrames, onCpuLists,
                    candidates);
            candidates.Sort();
            pinned = [.. candidates.Take(MostBlocks).Select(Detail)];
        }

        var explanation = new RequestExplanation
        {
            Order = order,
            Gfp = gfp,
            Type = type,
            AtEvent = memory?.Moment?.Event ?? 0,
            WouldSucceed = succeeds,
            Zones = lacks,
            Pinned = pinned,
            NeverFree = never,
            Decision = memory?.Failures.LastOrDefault(it => it.Order == order
                && (it.Gfp & ~Gfp.NoWarn) == (gfp & ~Gfp.NoWarn)),
            Sentence = "",
        };
        return explanation with { Sentence = ExplanationText.Of(explanation) };
    }

    /// <summary>A block of this order, freed, is what is asked for, and is enough to stay above the
    /// watermark.</summary>
    private static int OrderToFree(int order, ZoneLack zone)
    {
        while (order < PageOrder.Max && 1L << order < zone.MissingFrames)
            order++;
        return order;
    }

    private static unsafe ZoneLack LackOf(ZonePages pages, Gfp gfp, int order, Migratetype type)
    {
        Zone zone = pages.Zone;
        long reserve = zone.LowmemReserve[(int)gfp.HighestZone()];
        long min = zone.Mark(WatermarkLevel.Min);
        int largest = PageOrder.Max;
        while (largest >= 0 && !HasUsable(pages, largest, type))
            largest--;
        return new ZoneLack(
            zone.NodeId,
            zone.Name,
            zone.FreePagesExact,
            min,
            zone.Mark(WatermarkLevel.Low),
            reserve,
            PageAllocator.WouldServe(pages, gfp, order, WatermarkLevel.Low),
            PageAllocator.WouldServe(pages, gfp, order, WatermarkLevel.Min),
            Math.Max(0, min + reserve + (1L << order) - zone.FreePagesExact),
            largest,
            [.. Enumerable.Range(0, PageOrder.Count).Select(pages.Buddy.NrFree)],
            pages.PcpCount,
            Fragmentation.ExtfragIndex(pages.Buddy.NrFree, order) / 1000.0,
            Fragmentation.UnusableIndex(pages.Buddy.NrFree, order) / 1000.0);
    }

    private static unsafe bool HasUsable(ZonePages pages, int order, Migratetype type)
    {
        if (!ListHead.IsEmpty(pages.Buddy.ListOf(order, type)))
            return true;

        return type.IsMergeable() && Enumerable.Range(0, Migratetypes.FallbackCount)
            .Any(rank => HasBlocks(pages, order, Migratetypes.Fallback(type, rank)));
    }

    private static unsafe bool HasBlocks(ZonePages pages, int order, Migratetype type) =>
        !ListHead.IsEmpty(pages.Buddy.ListOf(order, type));

    /// <summary>The blocks on CPUs' lists: they are given back before a request fails.</summary>
    private unsafe Dictionary<ulong, int> OnCpuLists(IReadOnlyList<ZonePages> zones)
    {
        var orders = new Dictionary<ulong, int>();
        foreach (ZonePages zone in zones)
        {
            for (int cpu = 0; cpu < zone.Zone.CpuCount; cpu++)
            {
                for (int list = 0; list < PerCpuPages.ListCount; list++)
                {
                    ListHead* head = PerCpuPages.ListOf(zone.PcpOf(cpu), list);
                    for (ListHead* node = head->Next; node != head; node = node->Next)
                        orders[map.PfnOf(Page.FromLru(node))] = PerCpuPages.OrderOfList(list);
                }
            }
        }

        return orders;
    }

    /// <summary>Counts each block of the order; those that can never be free are only counted.</summary>
    private long Collect(
        ZonePages pages, int order, long missing, Dictionary<ulong, int> onCpuLists, List<Candidate> candidates)
    {
        Zone zone = pages.Zone;
        ulong size = 1UL << order;
        long never = 0;
        for (ulong first = (zone.StartPfn + size - 1) & ~(size - 1); first + size <= zone.EndPfn; first += size)
        {
            Candidate? candidate = CountBlock(zone, first, order, onCpuLists);
            if (candidate == null)
            {
                never++;
                continue;
            }

            // What lacks is memory: a block that is free already gives back nothing.
            if (missing > 0 && candidate.FramesInUse < Math.Min(missing, PageOrder.MaxBlockPages / 2))
                continue;
            candidates.Add(candidate);
            if (candidates.Count > 4096)
            {
                candidates.Sort();
                candidates.RemoveRange(MostBlocks, candidates.Count - MostBlocks);
            }
        }

        return never;
    }

    private unsafe Candidate? CountBlock(Zone zone, ulong first, int blockOrder, Dictionary<ulong, int> onCpuLists)
    {
        ulong size = 1UL << blockOrder;
        if (!pages.HasMemory(zone, first))
            return null;

        int free = 0;
        long objects = 0;
        for (ulong pfn = first; pfn < first + size;)
        {
            (FrameUse use, ulong start, int order) = UseOf(pfn, onCpuLists);
            if (use == FrameUse.Fixed)
                return null;

            ulong next = start + (1UL << order);
            ulong until = Math.Min(next, first + size);
            if (use == FrameUse.Free)
                free += (int)(until - pfn);
            else
                objects += ObjectsOf(map.PageOf(start));
            pfn = until;
        }

        return new Candidate(first, blockOrder, zone, free, (int)size - free, objects);
    }

    /// <summary>What a frame is for, and the block that it is part of.</summary>
    private unsafe (FrameUse Use, ulong Start, int Order) UseOf(ulong pfn, Dictionary<ulong, int> onCpuLists)
    {
        for (int order = 0; order <= PageOrder.Max; order++)
        {
            ulong start = pfn & ~((1UL << order) - 1);
            Page* page = map.PageOf(start);
            if (page->Type == PageType.Buddy && (int)page->Private >= order)
                return (FrameUse.Free, start, (int)page->Private);
            if (page->AllocatedOrderPlusOne > order)
                return (FrameUse.InUse, start, page->AllocatedOrderPlusOne - 1);
            if (onCpuLists.TryGetValue(start, out int listed) && listed >= order)
                return (FrameUse.Free, start, listed);
        }

        return (FrameUse.Fixed, pfn, 0);
    }

    /// <summary>How many things have to be freed so that a block in use is free; an empty slab that is kept is
    /// one.</summary>
    private unsafe long ObjectsOf(Page* head) =>
        head->Type == PageType.Slab ? Math.Max(1, slabs.CacheOf(head).CountLiveIn(head)) : 1;

    private unsafe PinnedBlock Detail(Candidate candidate)
    {
        var pins = new List<Pin>();
        Dictionary<ulong, int> none = [];
        ulong end = candidate.First + (1UL << candidate.Order);
        for (ulong pfn = candidate.First; pfn < end && pins.Count < MostPins;)
        {
            (FrameUse use, ulong start, int size) = UseOf(pfn, none);
            if (use == FrameUse.InUse)
                AddPins(pins, map.PageOf(start), size);
            pfn = use == FrameUse.Fixed ? pfn + 1 : start + (1UL << size);
        }

        return new PinnedBlock(
            new Pfn(candidate.First),
            candidate.Order,
            candidate.Zone.NodeId,
            candidate.Zone.Name,
            blocks.TypeOf(candidate.First),
            candidate.FramesFree,
            candidate.FramesInUse,
            candidate.Objects,
            pins);
    }

    private unsafe void AddPins(List<Pin> pins, Page* head, int order)
    {
        long bytes = (long)Pfn.PageSize << order;
        if (head->Type != PageType.Slab)
        {
            (PinKind kind, string what) = head->Type switch
            {
                PageType.LargeKmalloc => (PinKind.LargeKmalloc, "large kmalloc block"),
                PageType.Table => (PinKind.PageTable, "page table"),
                _ => (PinKind.Pages, "pages"),
            };
            pins.Add(PinAt(kind, map.AddressOf(head), bytes, what));
            return;
        }

        KmemCache cache = slabs.CacheOf(head);
        int before = pins.Count;
        for (int i = 0; i < SlabState.Read(head).Objects && pins.Count < MostPins; i++)
        {
            void* obj = cache.ObjectOf(head, i);
            if (cache.IsLive(obj))
                pins.Add(PinAt(PinKind.SlabObject, obj, cache.ObjectSize, cache.Name));
        }

        if (pins.Count == before && before < MostPins)
            pins.Add(PinAt(PinKind.EmptySlab, map.AddressOf(head), bytes, cache.Name));
    }

    private unsafe Pin PinAt(PinKind kind, void* start, long bytes, string what)
    {
        ulong address = slabs.KernelAddress(start);
        LifeEvent? born = memory?.BirthOf(address, isObject: kind is PinKind.SlabObject or PinKind.LargeKmalloc);
        return new Pin(kind, new VirtAddr(address), bytes, what, born?.Event ?? 0, born?.CallSite);
    }

    private enum FrameUse
    {
        Free,
        InUse,
        Fixed,
    }

    private sealed record Candidate(ulong First, int Order, Zone Zone, int FramesFree, int FramesInUse, long Objects)
        : IComparable<Candidate>
    {
        public int CompareTo(Candidate? other) => other == null ? 1
            : (Objects, FramesInUse, First).CompareTo((other.Objects, other.FramesInUse, other.First));
    }
}
