namespace Kmem;

/// <summary>The parts of a machine that an explanation looks at.</summary>
internal sealed record ExplainedParts(
    PageAllocator Pages, SlabAllocator Slabs, PageblockMap Blocks, MemMap Map, CpuSet Cpus)
{
    /// <summary>Its vmalloc, if it has one.</summary>
    public VmallocAllocator? Vmalloc { get; init; }

    /// <summary>The vmalloc space: its own, or that of the kernel whose state it is in.</summary>
    public VmapAllocator? Space { get; init; }

    /// <summary>What it remembers.</summary>
    public EventMemory? Memory { get; init; }

    /// <summary>A way through page tables that are not the machine's own.</summary>
    public Func<ulong, PageWalk>? Walk { get; init; }

    /// <summary>What a frame is used for, in words.</summary>
    public required Func<Pfn, PageFrameInfo?> Describe { get; init; }
}

/// <summary>
/// Finds out everything about an address: from the address to a frame, from the frame to the block, the slab or the
/// area that it belongs to, and from there to its story.
/// </summary>
/// <remarks>
/// Reads only. Lists are walked under their locks, CPUs' parts while the CPU is taken from its owner, and links within
/// slabs are not trusted: others may be at work, and then each value shows some moment.
/// </remarks>
internal sealed class Explainer(ExplainedParts parts)
{
    private const int MostEvents = 32;
    private const ulong TableEntries = 512;

    private readonly PageAllocator _pages = parts.Pages;
    private readonly MemMap _map = parts.Map;
    private readonly AddressMap _addresses = parts.Slabs.Addresses;
    private readonly SlabExplainer _slabs = new(parts.Slabs, parts.Map, parts.Cpus);

    public Explanation Explain(ulong address)
    {
        Explanation explanation = new()
        {
            Address = new VirtAddr(address),
            AtEvent = parts.Memory?.Until ?? parts.Memory?.Moment?.Event ?? 0,
            Region = RegionOf(address),
            Kind = AddressKind.Nothing,
            Sentence = "",
        };
        explanation = Locate(explanation, out ulong? pfn);
        if (pfn is { } frame && _pages.PresentZoneOf(frame) is { } zone)
            explanation = ExplainFrame(explanation, frame, zone);
        explanation = WithStory(explanation);
        return explanation with { Sentence = ExplanationText.Of(explanation) };
    }

    private string RegionOf(ulong address) =>
        !_addresses.IsCanonical(address) ? "not canonical"
        : address - _addresses.DirectMap < _map.EndPfn << Pfn.PageShift ? "direct map"
        : address >= _addresses.VmallocStart && address <= _addresses.VmallocEnd ? "vmalloc space"
        : address - _addresses.Vmemmap < _map.EndPfn * Page.SizeInBytes ? "page descriptors"
        : "elsewhere";

    /// <summary>From the address to a frame, if there is one behind it.</summary>
    private Explanation Locate(Explanation explanation, out ulong? pfn)
    {
        ulong address = explanation.Address.Value;
        pfn = null;
        if (explanation.Region == "not canonical")
            return explanation;

        if (explanation.Region == "page descriptors")
        {
            pfn = (address - _addresses.Vmemmap) / Page.SizeInBytes;
            return explanation;
        }

        if (WalkOf(address) is { } walk)
        {
            explanation = explanation with { Mapping = MappingOf(walk) };
            if (walk.IsMapped)
                pfn = walk.Pfn.Value;
        }

        if (explanation.Region == "direct map")
        {
            pfn = (address - _addresses.DirectMap) >> Pfn.PageShift;
            return explanation;
        }

        return parts.Space == null ? explanation : WithArea(explanation, address, mapped: pfn != null);
    }

    private PageWalk? WalkOf(ulong address)
    {
        if (parts.Walk != null)
            return RegionOf(address) == "vmalloc space" ? parts.Walk(address) : null; // no more is recorded
        return parts.Vmalloc?.Tables.Walk(address);
    }

    private static ExplainedMapping MappingOf(PageWalk walk) => new(
        walk.IsMapped,
        [.. walk.Steps.Select(step => new ExplainedStep(
            step.Name,
            step.TablePfn == Pfn.None.Value ? null : new PhysAddr(step.TablePfn << Pfn.PageShift),
            step.Index,
            new VirtAddr(step.Entry),
            step.FlagNames()))],
        walk.IsMapped ? walk.PhysicalAddress : null,
        walk.LeafBytes,
        walk.Prot.ToString(),
        walk.CacheMode.ToString());

    /// <summary>The area that an address of the vmalloc space lies in.</summary>
    private unsafe Explanation WithArea(Explanation explanation, ulong address, bool mapped)
    {
        ExplainedArea? found = null;
        bool guarded = true;
        foreach (VmapNode node in parts.Space!.Nodes)
        {
            node.ForEachBusy(at =>
            {
                var area = (VmapArea*)at;
                if (address < area->Start || address >= area->End)
                    return;

                found = Describe(area, (address - area->Start) >> Pfn.PageShift);
                guarded = parts.Vmalloc == null || area->Vm == null || (area->Vm->Flags & VmFlags.NoGuard) == 0;
            });
            foreach (VmapRange lazy in found == null ? node.LazyRanges() : [])
            {
                if (address >= lazy.Start && address < lazy.End)
                {
                    found = new ExplainedArea(
                        new VirtAddr(lazy.Start), new VirtAddr(lazy.End), UnknownCaller, 0,
                        (long)((address - lazy.Start) >> Pfn.PageShift), "freed, not purged yet");
                }
            }
        }

        if (found == null)
            return explanation;

        bool isLast = address >= found.End.Value - Pfn.PageSize;
        return explanation with
        {
            Area = found,
            Kind = !mapped && isLast && guarded && found.State == Busy ? AddressKind.GuardPage : explanation.Kind,
        };
    }

    private const string Busy = "busy";
    private const string UnknownCaller = "unknown";

    /// <summary>An area that is in use; its lock is held.</summary>
    private unsafe ExplainedArea Describe(VmapArea* area, ulong page)
    {
        // The vm_struct of a recorded kernel is not in this memory.
        bool own = parts.Vmalloc != null && area->Vm != null;
        return new ExplainedArea(
            new VirtAddr(area->Start),
            new VirtAddr(area->End),
            own && area->Vm->Caller != VmCaller.None ? area->Vm->Caller.ToString() : UnknownCaller,
            own ? area->Vm->PageCount : 0,
            (long)page,
            Busy);
    }

    private unsafe Explanation ExplainFrame(Explanation explanation, ulong pfn, ZonePages zone)
    {
        Page* page = _map.PageOf(pfn);
        Page* head = Page.HeadOf(page);
        (ulong first, int order, bool free) = BlockOf(pfn);
        string[] flags = FlagsOf(page);
        ulong start = _addresses.DirectMap + (pfn << Pfn.PageShift);
        explanation = explanation with
        {
            Zone = ZoneOf(zone),
            Pageblock = PageblockOf(zone, pfn),
            Page = new ExplainedPage(
                new Pfn(pfn),
                new VirtAddr(start),
                new VirtAddr(_addresses.Vmemmap + (pfn * Page.SizeInBytes)),
                order < 0 ? 0 : order,
                new Pfn(order < 0 ? pfn : first),
                _map.PageOf(order < 0 ? pfn : first)->RefCount,
                flags),
        };
        if (free)
            return explanation with { Kind = AddressKind.FreeBlock, FreeBlock = FreeBlockOf(zone, first, order) };
        if (head->Type == PageType.Slab)
            return _slabs.Explain(explanation, head, InDirectMap(explanation, pfn));
        if (head->Type == PageType.LargeKmalloc)
            return _slabs.ExplainLarge(explanation, head, InDirectMap(explanation, pfn));
        if (head->Type == PageType.Table)
            return explanation with { Kind = AddressKind.PageTable, Table = TableOf(pfn) };
        if (order < 0 && explanation.Area == null)
        {
            return PcpEntryOf(zone, pfn) is { } entry
                ? explanation with { Kind = AddressKind.PcpList, Pcp = entry }
                : explanation with { Kind = AddressKind.Reserved };
        }

        explanation = explanation.Area == null ? WithAreaOfFrame(explanation, page) : explanation;
        return explanation with
        {
            Kind = explanation.Area == null ? AddressKind.Pages : AddressKind.VmallocPage,
        };
    }

    /// <summary>The pointer of this process to the byte that is explained; for a descriptor to the frame's
    /// first.</summary>
    private unsafe byte* InDirectMap(Explanation explanation, ulong pfn)
    {
        bool descriptor = explanation.Region == "page descriptors";
        return _map.RamBase + (pfn << Pfn.PageShift)
            + (descriptor ? 0 : (long)(explanation.Address.Value & (Pfn.PageSize - 1)));
    }

    /// <summary>The block that a frame is part of; order -1 if it is part of none.</summary>
    private unsafe (ulong First, int Order, bool Free) BlockOf(ulong pfn)
    {
        for (int order = 0; order <= PageOrder.Max; order++)
        {
            ulong first = pfn & ~((1UL << order) - 1);
            Page* page = _map.PageOf(first);
            if (page->Type == PageType.Buddy && (int)page->Private >= order)
                return (first, (int)page->Private, true);
            if (page->AllocatedOrderPlusOne > order)
                return (first, page->AllocatedOrderPlusOne - 1, false);
        }

        return (pfn, -1, false);
    }

    private static unsafe string[] FlagsOf(Page* page)
    {
        PageFlags flags = page->Flags & (PageFlags)0xff_ffff;
        return flags == PageFlags.None ? [] : flags.ToString().ToLowerInvariant().Split(", ");
    }

    private static ExplainedZone ZoneOf(ZonePages pages)
    {
        Zone zone = pages.Zone;
        return new ExplainedZone(
            zone.NodeId,
            zone.Name,
            new Pfn(zone.StartPfn),
            zone.Spanned,
            (long)zone.Managed,
            zone.FreePagesExact,
            pages.PcpCount,
            zone.Mark(WatermarkLevel.Min),
            zone.Mark(WatermarkLevel.Low),
            zone.Mark(WatermarkLevel.High),
            zone.Boost,
            [.. Enumerable.Range(0, PageOrder.Count).Select(pages.Buddy.NrFree)]);
    }

    private ExplainedPageblock PageblockOf(ZonePages zone, ulong pfn)
    {
        ulong start = pfn & ~(ulong)(PageOrder.PageblockPages - 1);
        int free = 0;
        int used = 0;
        int listed = 0;
        for (ulong frame = start; frame < start + PageOrder.PageblockPages && frame < _map.EndPfn;)
        {
            (ulong first, int order, bool isFree) = BlockOf(frame);
            ulong next = order < 0 ? frame + 1 : Math.Min(first + (1UL << order), start + PageOrder.PageblockPages);
            if (isFree)
                free += (int)(next - frame);
            else if (order >= 0)
                used += (int)(next - frame);
            frame = next;
        }

        ForEachListed(zone, (_, first, order, _) =>
        {
            if (first >= start && first < start + PageOrder.PageblockPages)
                listed += 1 << order;
        });
        return new ExplainedPageblock(
            new Pfn(start), parts.Blocks.TypeOf(pfn), free, listed, used,
                PageOrder.PageblockPages - free - used - listed);
    }

    private unsafe ExplainedFreeBlock FreeBlockOf(ZonePages zone, ulong first, int order)
    {
        Migratetype type = parts.Blocks.TypeOf(first);
        int position = 0;
        zone.Buddy.Lock.Acquire();
        ListHead* list = zone.Buddy.ListOf(order, type);
        ListHead* node = list->Next;
        for (; node != list && _map.PfnOf(Page.FromLru(node)) != first; node = node->Next)
            position++;
        bool isListed = node != list;
        zone.Buddy.Lock.Release();
        ulong buddy = first ^ (1UL << order);
        string use = order == PageOrder.Max ? "no larger order"
            : parts.Describe(new Pfn(buddy)) is { } info ? $"{info.Use}, order {info.Order}"
            : "a hole";
        return new ExplainedFreeBlock(
            new Pfn(first), order, type, isListed ? position : -1, new Pfn(buddy), use);
    }

    private ExplainedPcpEntry? PcpEntryOf(ZonePages zone, ulong pfn)
    {
        ExplainedPcpEntry? found = null;
        int position = 0;
        int last = -1;
        var lengths = new Dictionary<int, int>();
        int foundOn = -1;
        ForEachListed(zone, (cpu, first, order, list) =>
        {
            int key = (cpu * PerCpuPages.ListCount) + list;
            position = key == last ? position + 1 : 0;
            last = key;
            lengths[key] = position + 1;
            if (pfn >= first && pfn < first + (1UL << order))
            {
                foundOn = key;
                found = new ExplainedPcpEntry(cpu, new Pfn(first), order, TypeOfList(list), position, 0);
            }
        });
        return found == null ? null : found with { Length = lengths[foundOn] };
    }

    private static Migratetype TypeOfList(int list) =>
        list == 13 ? Migratetype.Movable : list == 12 ? Migratetype.Unmovable : (Migratetype)(list % 3);

    private unsafe void ForEachListed(ZonePages zone, Action<int, ulong, int, int> visit)
    {
        for (int cpu = 0; cpu < zone.Zone.CpuCount; cpu++)
        {
            if (zone.CountOf(cpu) == 0)
                continue;

            parts.Cpus.AcquireRemote(cpu);
            for (int list = 0; list < PerCpuPages.ListCount; list++)
            {
                ListHead* head = PerCpuPages.ListOf(zone.PcpOf(cpu), list);
                for (ListHead* node = head->Next; node != head; node = node->Next)
                    visit(cpu, _map.PfnOf(Page.FromLru(node)), PerCpuPages.OrderOfList(list), list);
            }

            parts.Cpus.ReleaseRemote(cpu);
        }
    }

    private unsafe ExplainedTable? TableOf(ulong pfn)
    {
        if (parts.Vmalloc?.Tables is not { } tables)
            return null;

        var entries = (ulong*)(_map.RamBase + (pfn << Pfn.PageShift));
        int present = 0;
        for (ulong i = 0; i < TableEntries; i++)
            present += (entries[i] & PageTableEntry.Present) != 0 ? 1 : 0;
        if (pfn == tables.RootPfn)
            return new ExplainedTable(tables.NameOf(tables.Levels), tables.Levels, new VirtAddr(0), present);

        foreach (PageTableRow row in tables.Rows())
        {
            if (!PageTableEntry.IsLeaf(row.Entry, row.Level) && PageTableEntry.PfnOf(row.Entry, row.Level) == pfn)
                return new ExplainedTable(tables.NameOf(row.Level - 1), row.Level - 1, new VirtAddr(row.Va), present);
        }

        return null;
    }

    /// <summary>The area whose page a frame is: seen from the direct map nothing leads there but a search.</summary>
    private unsafe Explanation WithAreaOfFrame(Explanation explanation, Page* page)
    {
        if (parts.Vmalloc == null)
            return explanation;

        ExplainedArea? found = null;
        foreach (VmapNode node in parts.Vmalloc.Vmap.Nodes)
        {
            node.ForEachBusy(at =>
            {
                VmStruct* vm = ((VmapArea*)at)->Vm;
                for (uint i = 0; vm != null && vm->Pages != null && i < vm->PageCount && found == null; i++)
                {
                    if (vm->Pages[i] == page)
                        found = Describe((VmapArea*)at, i);
                }
            });
        }

        return found == null ? explanation : explanation with { Area = found };
    }

    private Explanation WithStory(Explanation explanation)
    {
        if (parts.Memory is not { } memory)
            return explanation;

        ulong start = explanation.Area is { } area && explanation.Region == "vmalloc space" ? area.Start.Value
            : explanation.Object?.Start.Value ?? 0;
        ulong firstByte = 0;
        ulong bytes = 0;
        if (explanation.Page is { } page)
        {
            firstByte = _addresses.DirectMap + page.BlockFirst.Address.Value;
            bytes = (ulong)Pfn.PageSize << page.Order;
        }

        (List<LifeEvent> life, long omitted) = memory.StoryOf(start, firstByte, bytes, MostEvents);
        return explanation with
        {
            Life = life,
            LifeOmitted = omitted,
            Decision = explanation.Page == null ? null : memory.DecisionOf(explanation.Page.BlockFirst.Value),
        };
    }
}
