using System.Runtime.CompilerServices;
using System.Text;

namespace Kmem;

/// <summary>
/// Walks all of a machine's structures and checks the numbered rules of <c>rules/</c>. Reads only; nobody may be at
/// work.
/// </summary>
internal sealed class Validator(PageAllocator pages, SlabAllocator slabs, PageblockMap blocks, MemMap map)
{
    /// <summary>After this many findings the walk of a structure has told enough.</summary>
    private const int Most = 100;

    /// <summary>From this size on, of a large free block only one descriptor in each host page is looked at.</summary>
    private const ulong LargeMachineFrames = 4UL << 20;
    private const ulong DescriptorsPerHostPage = 64;

    private readonly List<BrokenRule> _broken = [];
    private readonly Dictionary<nint, List<nint>> _slabs = [];
    private readonly Dictionary<nint, int> _keptBack = []; // by slab

    public IReadOnlyList<BrokenRule> Run()
    {
        foreach (ZonePages zone in pages.Zones)
        {
            CheckFreeLists(zone);
            CheckPcpLists(zone);
            CheckCounters(zone);
        }

        CollectSlabs();
        CollectQuarantine();
        foreach (KmemCache cache in slabs.Caches)
            CheckCache(cache);
        foreach (string damaged in slabs.Kfence?.Damaged() ?? [])
            Expect(false, "KFENCE-01", $"{damaged}: a byte beside it was changed");
        return _broken;
    }

    private void Expect(bool holds, string id, [InterpolatedStringHandlerArgument("holds")] ref Detail detail)
    {
        if (!holds && _broken.Count < Most)
            _broken.Add(new BrokenRule(id, detail.ToString()));
    }

    /// <summary>One walk over all frames, for all caches.</summary>
    private unsafe void CollectSlabs() => slabs.ForEachSlab(slab =>
    {
        nint tag = ((Page*)slab)->SlabCache;
        if (!_slabs.TryGetValue(tag, out List<nint>? its))
            _slabs[tag] = its = [];
        its.Add(slab);
    });

    /// <summary>Objects in quarantine are neither live nor on a free list: they count with those on a CPU.</summary>
    private unsafe void CollectQuarantine()
    {
        foreach (nint obj in slabs.Quarantine?.List() ?? [])
        {
            Page* slab = slabs.SlabOf((void*)obj);
            Expect(
                slab != null && !slabs.CacheOf(slab).IsLive((void*)obj),
                "SHEAF-02",
                $"0x{obj:x} in quarantine is not a free object of a slab");
            if (slab != null)
                _keptBack[(nint)slab] = _keptBack.GetValueOrDefault((nint)slab) + 1;
        }
    }

    private unsafe void CheckFreeLists(ZonePages zone)
    {
        Buddy buddy = zone.Buddy;
        string name = zone.Zone.Name;
        for (int order = 0; order <= PageOrder.Max; order++)
        {
            long counted = 0;
            for (int type = 0; type < Buddy.Types; type++)
            {
                ListHead* list = buddy.ListOf(order, (Migratetype)type);
                for (ListHead* node = list->Next; node != list; node = node->Next, counted++)
                {
                    Expect(node->Next->Prev == node, "BUDDY-05", $"{name} order {order}: links do not match");
                    Page* page = Page.FromLru(node);
                    ulong pfn = map.PfnOf(page);
                    CheckFreeBlock(zone, page, pfn, order, (Migratetype)type);
                    if (_broken.Count >= Most || counted > (long)zone.Zone.Spanned)
                        return;
                }
            }

            Expect(
                counted == buddy.NrFree(order),
                "BUDDY-03",
                $"{name} order {order}: {counted} blocks on the lists, nr_free says {buddy.NrFree(order)}");
        }
    }

    private unsafe void CheckFreeBlock(ZonePages zone, Page* page, ulong pfn, int order, Migratetype type)
    {
        string where = $"{zone.Zone.Name} pfn 0x{pfn:x} order {order}";
        Expect((pfn & ((1UL << order) - 1)) == 0, "BUDDY-01", $"{where}: not a multiple of its size");
        Expect(
            pfn >= zone.Zone.StartPfn && pfn + (1UL << order) <= zone.Zone.EndPfn,
            "BUDDY-06",
            $"{where}: not within its zone");
        Expect(
            page->Type == PageType.Buddy && page->Private == (ulong)order,
            "BUDDY-04",
            $"{where}: descriptor says type {page->Type}, order {page->Private}");
        Expect(page->RefCount == 0, "BUDDY-07", $"{where}: {page->RefCount} references to a free page");
        for (ulong frame = pfn; frame < pfn + (1UL << order); frame += PageOrder.PageblockPages)
        {
            Expect(
                blocks.TypeOf(frame) == type,
                "BUDDY-08",
                $"{where}: on the list of {type}, but the pageblock of 0x{frame:x} is {blocks.TypeOf(frame)}");
        }

        ulong buddyPfn = pfn ^ (1UL << order);
        bool mayMerge = order < PageOrder.Max && zone.Buddy.IsFreeBlock(map.PageOf(buddyPfn), buddyPfn, order);
        bool sameKind = blocks.TypeOf(buddyPfn) == type
            || (type.IsMergeable() && blocks.TypeOf(buddyPfn).IsMergeable());
        Expect(!mayMerge || !sameKind, "BUDDY-02", $"{where}: its buddy 0x{buddyPfn:x} is free, too");
        ulong step = map.EndPfn > LargeMachineFrames && order > 6 ? DescriptorsPerHostPage : 1;
        for (ulong i = 1; i < 1UL << order; i += step)
        {
            Page* tail = page + i;
            if (tail->Type != PageType.None || tail->RefCount != 0)
            {
                Expect(false, "BUDDY-09", $"{where}: frame 0x{pfn + i:x} inside it is in use or a block of its own");
                return;
            }
        }
    }

    private unsafe void CheckPcpLists(ZonePages zone)
    {
        for (int cpu = 0; cpu < zone.Zone.CpuCount; cpu++)
        {
            PerCpuPages* pcp = zone.PcpOf(cpu);
            long counted = 0;
            for (int index = 0; index < PerCpuPages.ListCount; index++)
            {
                ListHead* list = PerCpuPages.ListOf(pcp, index);
                for (ListHead* node = list->Next; node != list; node = node->Next)
                {
                    Page* page = Page.FromLru(node);
                    ulong pfn = map.PfnOf(page);
                    counted += 1L << PerCpuPages.OrderOfList(index);
                    Expect(
                        page->Type == PageType.None && page->RefCount == 0,
                        "PCP-02",
                        $"{zone.Zone.Name} cpu {cpu}: pfn 0x{pfn:x} on a list is of type {page->Type} or referenced");
                    Expect(
                        blocks.ZoneOf(pfn) == zone.Zone.Index,
                        "PCP-03",
                        $"{zone.Zone.Name} cpu {cpu}: pfn 0x{pfn:x} belongs to another zone");
                    if (counted > (long)zone.Zone.Managed)
                        break;
                }
            }

            Expect(
                counted == pcp->Count,
                "PCP-01",
                $"{zone.Zone.Name} cpu {cpu}: {counted} frames on the lists, count says {pcp->Count}");
        }
    }

    private unsafe void CheckCounters(ZonePages zone)
    {
        long free = 0;
        long highAtomic = 0;
        long inBlocks = 0;
        for (int order = 0; order <= PageOrder.Max; order++)
        {
            for (int type = 0; type < Buddy.Types; type++)
            {
                long frames = (long)ListHead.Count(zone.Buddy.ListOf(order, (Migratetype)type)) << order;
                free += (Migratetype)type == Migratetype.Isolate ? 0 : frames;
                highAtomic += (Migratetype)type == Migratetype.HighAtomic ? frames : 0;
                inBlocks += order >= PageOrder.Pageblock ? frames : 0;
            }
        }

        string name = zone.Zone.Name;
        Expect(
            free == zone.Zone.FreePagesExact, "ZONE-01", $"{name}: {free} frames free, counted {zone.Zone.FreePagesExact}");
        Expect(
            highAtomic == zone.Zone.FreeHighAtomic,
            "ZONE-02",
            $"{name}: {highAtomic} HighAtomic frames free, counted {zone.Zone.FreeHighAtomic}");
        Expect(
            inBlocks == zone.Zone.FreePagesInBlocks,
            "ZONE-03",
            $"{name}: {inBlocks} frames in free pageblocks, counted {zone.Zone.FreePagesInBlocks}");
        long used = CountUsed(zone.Zone);
        long all = free + zone.PcpCount + used;
        Expect(
            all == (long)zone.Zone.Managed,
            "ZONE-04",
            $"{name}: {free} free + {zone.PcpCount} on per-CPU lists + {used} in use = {all}, managed {zone.Zone.Managed}");
        CheckSizes(zone.Zone);
    }

    private void CheckSizes(Zone zone)
    {
        Expect(
            zone.Managed <= zone.Present && zone.Present <= zone.Spanned,
            "ZONE-05",
            $"{zone.Name}: managed {zone.Managed}, present {zone.Present}, spanned {zone.Spanned}");
        long reserved = 0;
        for (ulong pfn = zone.StartPfn; pfn < zone.EndPfn; pfn = (pfn | (PageOrder.PageblockPages - 1)) + 1)
        {
            if (blocks.ZoneOf(pfn) == zone.Index && blocks.TypeOf(pfn) == Migratetype.HighAtomic)
                reserved += PageOrder.PageblockPages;
        }

        Expect(
            reserved == zone.ReservedHighAtomic,
            "ZONE-06",
            $"{zone.Name}: {reserved} frames in HighAtomic pageblocks, counted {zone.ReservedHighAtomic}");
    }

    /// <summary>Frames of blocks that are allocated: their heads know the order.</summary>
    private unsafe long CountUsed(Zone zone)
    {
        long used = 0;
        for (ulong pfn = zone.StartPfn; pfn < zone.EndPfn;)
        {
            if (!pages.HasMemory(zone, pfn))
            {
                pfn = (pfn | (PageOrder.PageblockPages - 1)) + 1;
                continue;
            }

            Page* page = map.PageOf(pfn);
            int order = page->Type == PageType.Buddy ? (int)page->Private
                : page->AllocatedOrderPlusOne > 0 ? page->AllocatedOrderPlusOne - 1
                : 0;
            if (page->Type != PageType.Buddy && page->AllocatedOrderPlusOne > 0)
                used += 1L << order;
            pfn += 1UL << order;
        }

        return used;
    }

    private unsafe void CheckCache(KmemCache cache)
    {
        var onLists = new HashSet<nint>();
        long listed = 0;
        foreach (KmemCacheNode node in cache.Nodes)
        {
            for (ListHead* entry = node.Partial->Next; entry != node.Partial; entry = entry->Next)
            {
                Page* slab = Page.FromSlabList(entry);
                listed++;
                Expect(onLists.Add((nint)slab), "SLUB-01", $"{cache.Name}: a slab is on the partial list twice");
                Expect(
                    (slab->Flags & PageFlags.SlabOnPartialList) != 0,
                    "SLUB-02",
                    $"{cache.Name}: slab 0x{map.PfnOf(slab):x} on the partial list does not say so");
                Expect(
                    SlabState.Read(slab).HasFree && !SlabState.Read(slab).Frozen,
                    "SLUB-03",
                    $"{cache.Name}: slab 0x{map.PfnOf(slab):x} on the partial list is full or frozen");
            }

            Expect(
                listed == node.NrPartial, "SLUB-04", $"{cache.Name}: {listed} partial slabs, counted {node.NrPartial}");
            listed = 0;
        }

        Dictionary<nint, int> cpuFree = FreeOnCpus(cache, onLists);
        CountInSheaves(cache, cpuFree);
        long slabCount = 0;
        long objects = 0;
        foreach (nint slab in _slabs.GetValueOrDefault(SlabAllocator.TagOf(cache.Id), []))
        {
            slabCount++;
            objects += SlabState.Read((Page*)slab).Objects;
            int cached = cpuFree.GetValueOrDefault(slab) + _keptBack.GetValueOrDefault(slab);
            CheckSlab(cache, (Page*)slab, cached, onLists.Contains(slab));
        }

        if ((cache.Flags & SlabFlags.TypesafeByRcu) == 0 || slabs.Rcu.Pending == 0)
        {
            Expect(slabCount == cache.SlabCount, "SLUB-05", $"{cache.Name}: {slabCount} slabs, counted {cache.SlabCount}");
            Expect(
                objects == cache.TotalObjects, "SLUB-06", $"{cache.Name}: {objects} objects, counted {cache.TotalObjects}");
        }
    }

    /// <summary>
    /// How many objects of each current slab are on its CPU's free list; the chains join the known slabs.
    /// </summary>
    private unsafe Dictionary<nint, int> FreeOnCpus(KmemCache cache, HashSet<nint> onLists)
    {
        var free = new Dictionary<nint, int>();
        for (int cpu = 0; cpu < slabs.Cpus.Count; cpu++)
        {
            KmemCacheCpu* c = cache.StateOf(cpu);
            Expect(c->Slab != null || c->Freelist == null, "SLUB-07", $"{cache.Name} cpu {cpu}: free list without a slab");
            if (c->Slab != null)
            {
                Expect(
                    SlabState.Read(c->Slab).Frozen, "SLUB-08", $"{cache.Name} cpu {cpu}: the current slab is not frozen");
                free[(nint)c->Slab] = CountList(cache, c->Slab, c->Freelist, $"cpu {cpu}");
            }

            int length = 0;
            for (Page* slab = c->Partial; slab != null; slab = slab->CpuPartialNext)
            {
                length++;
                Expect(onLists.Add((nint)slab), "SLUB-01", $"{cache.Name}: a slab is on two lists");
                if (length > 1_000_000)
                    break;
            }

            int said = c->Partial == null ? 0 : c->Partial->CpuPartialSlabs;
            Expect(length == said, "SLUB-09", $"{cache.Name} cpu {cpu}: {length} slabs chained, the head says {said}");
        }

        return free;
    }

    /// <summary>Objects in sheaves are neither live nor on a free list: they count with those on a CPU.</summary>
    private unsafe void CountInSheaves(KmemCache cache, Dictionary<nint, int> free)
    {
        foreach (nint sheaf in cache.AllSheaves())
        {
            foreach (nint obj in Sheaf.Objects((Sheaf*)sheaf))
            {
                Page* slab = slabs.SlabOf((void*)obj);
                Expect(
                    slab != null && slabs.CacheOf(slab) == cache && !cache.IsLive((void*)obj),
                    "SHEAF-01",
                    $"{cache.Name}: 0x{obj:x} in a sheaf is not a free object of the cache");
                free[(nint)slab] = free.GetValueOrDefault((nint)slab) + 1;
            }
        }
    }

    private unsafe void CheckSlab(KmemCache cache, Page* slab, int onCpu, bool onList)
    {
        SlabState state = SlabState.Read(slab);
        string where = $"{cache.Name} slab 0x{map.PfnOf(slab):x}";
        void* first = state.HasFree ? cache.ObjectOf(slab, state.FreeIndex) : null;
        int free = CountList(cache, slab, first, where);
        Expect(
            free == state.Objects - state.InUse,
            "SLUB-10",
            $"{where}: {free} objects on its free list, but {state.Objects} less {state.InUse} in use");
        int live = cache.CountLiveIn(slab);
        int found = live + free + onCpu;

        // A corrupt list was reported when it was found; a sheaf that waits for readers is on no list.
        bool maybeFewer = (slab->Flags & PageFlags.SlabCorrupt) != 0
            || (cache.SheafCapacity > 0 && slabs.Rcu.Pending > 0);
        Expect(
            maybeFewer ? found <= state.Objects : found == state.Objects,
            "SLUB-11",
            $"{where}: {live} live + {free} free + {onCpu} on a CPU are not {state.Objects} objects");
        bool waitsForReaders = state.InUse == 0
            && (cache.Flags & SlabFlags.TypesafeByRcu) != 0 && slabs.Rcu.Pending > 0;
        Expect(
            onList || !state.HasFree || state.Frozen || waitsForReaders,
            "SLUB-12",
            $"{where}: has free objects and is on no list");
    }

    private unsafe int CountList(KmemCache cache, Page* slab, void* first, string where)
    {
        int objects = SlabState.Read(slab).Objects;
        byte* start = map.AddressOf(slab);
        byte* end = start + ((long)objects * cache.SlotSize);
        int count = 0;
        for (void* obj = first; obj != null; obj = cache.NextFree(obj))
        {
            bool valid = obj >= start && obj < end
                && ((byte*)obj - start - cache.Geometry.RedLeftPad) % cache.SlotSize == 0;
            Expect(valid, "SLUB-13", $"{cache.Name} {where}: the free list leads to 0x{(ulong)obj:x}, which is no object");
            if (!valid)
                return count;

            Expect(!cache.IsLive(obj), "SLUB-14", $"{cache.Name} {where}: an allocated object is on the free list");
            if (++count > objects)
            {
                Expect(false, "SLUB-15", $"{cache.Name} {where}: the free list runs in a circle");
                return count;
            }
        }

        return count;
    }

    /// <summary>The words of a finding; put together only if there is one.</summary>
    [InterpolatedStringHandler]
    private readonly ref struct Detail
    {
        private readonly StringBuilder? _text;

        public Detail(int literalLength, int formattedCount, bool holds, out bool enabled)
        {
            enabled = !holds;
            _text = holds ? null : new StringBuilder(literalLength + (8 * formattedCount));
        }

        public void AppendLiteral(string text) => _text!.Append(text);

        public void AppendFormatted<T>(T value) => _text!.Append(value);

        public void AppendFormatted<T>(T value, string? format)
            where T : IFormattable => _text!.Append(value.ToString(format, formatProvider: null));

        public override string ToString() => _text?.ToString() ?? "";
    }
}
