using System.Text;

namespace Kmem;

/// <summary>Writes a machine's state in the form that <see cref="StateReader"/> takes. Nobody may be at work.</summary>
internal static class StateWriter
{
    /// <summary>The state of a machine.</summary>
    public static MachineState Write(MachineParts machine)
    {
        // Deferred frees of vmalloc are done first, and give frames and objects back.
        VmapState? vmap = machine.VmallocIfUsed?.Capture() ?? machine.VmapSpace?.Capture();
        Dictionary<nint, List<SlabRow>> slabs = WriteSlabs(machine);
        return new()
        {
            NrCpu = machine.Cpus,
            MinFreeKbytes = machine.MinFreeKbytes,
            TotalreservePages = ZoneLayout.TotalReserve(machine.NodeList),
            Zones = machine.Pages.Zones.Select(pages => WriteZone(pages, machine)).ToArray(),
            Caches = machine.Slabs.Caches.Select(cache => WriteCache(cache, machine)).ToArray(),
            KmallocCaches = WriteKmalloc(machine.KmallocCaches),
            Slabs = machine.Slabs.Caches
                .SelectMany(cache => slabs.GetValueOrDefault(SlabAllocator.TagOf(cache.Id), [])).ToArray(),
            LruPages = WriteLru(machine),
            Vmap = vmap,
            Own = WriteOwn(machine),
        };
    }

    private static string?[][] WriteKmalloc(KmallocAllocator kmalloc) =>
        Enumerable.Range(0, KmallocClasses.TypeCount)
            .Select(type => Enumerable.Range(0, KmallocClasses.Count)
                .Select(index => kmalloc.CacheAt((KmallocType)type, index)?.Name).ToArray())
            .ToArray();

    private static unsafe List<ulong[]> WriteLru(MachineParts machine)
    {
        var runs = new List<ulong[]>();
        for (ulong pfn = 0; pfn < machine.Map.EndPfn; pfn++)
        {
            if (machine.Pages.PresentZoneOf(pfn) == null)
            {
                pfn |= PageOrder.PageblockPages - 1;
                continue;
            }

            Page* page = machine.Map.PageOf(pfn);
            if ((page->Flags & PageFlags.Lru) == 0)
                continue;
            if (runs.Count > 0 && runs[^1][0] + runs[^1][1] == pfn)
                runs[^1][1]++;
            else
                runs.Add([pfn, 1]);
        }

        return runs;
    }

    private static OwnState WriteOwn(MachineParts machine) => new()
    {
        Blocks = WriteBlocks(machine),
        Aliases = machine.Slabs.AliasNames.Select(alias => new[] { alias.Name, alias.Cache.Name }).ToArray(),
        Random = machine.Slabs.RandomState,
        WatermarkBoostFactor = machine.Pages.Zones.First().Buddy.WatermarkBoostFactor,
        PcpCounters = WriteCounters(machine),
        PfMemAllocSlabs = WriteReserveSlabs(machine),
        Tables = machine.VmallocIfUsed is { } vmalloc
            ? new PageTableState(vmalloc.Tables.RootPfn, vmalloc.Tables.Capture())
            : null,
    };

    private static unsafe List<long[]> WriteCounters(MachineParts machine)
    {
        var rows = new List<long[]>();
        foreach (ZonePages zone in machine.Pages.Zones)
        {
            for (int cpu = 0; cpu < zone.Zone.CpuCount; cpu++)
                rows.Add(zone.PcpOf(cpu)->Counters);
        }

        return rows;
    }

    private static unsafe List<ulong> WriteReserveSlabs(MachineParts machine)
    {
        var slabs = new List<ulong>();
        machine.Slabs.ForEachSlab(page =>
        {
            if ((((Page*)page)->Flags & PageFlags.SlabPfMemAlloc) != 0)
                slabs.Add(machine.Map.PfnOf((Page*)page));
        });
        return slabs;
    }

    /// <summary>Blocks in use that are no slabs; equal ones side by side make one row.</summary>
    private static unsafe List<ulong[]> WriteBlocks(MachineParts machine)
    {
        const ulong FlagBits = (1UL << 56) - 1;     // the top byte holds the order
        var rows = new List<ulong[]>();
        machine.Slabs.ForEachBlockInUse(block =>
        {
            var page = (Page*)block;
            if (page->Type == PageType.Slab)
                return;

            ulong pfn = machine.Map.PfnOf(page);
            ulong order = page->AllocatedOrderPlusOne - 1UL;
            ulong[] row = [pfn, order, (ulong)page->Flags & FlagBits, (ulong)page->Type, (ulong)page->RefCount, 1];
            if (rows.Count > 0 && rows[^1][0] + (rows[^1][5] << (int)order) == pfn
                && row.AsSpan(1, 4).SequenceEqual(rows[^1].AsSpan(1, 4)))
            {
                rows[^1][5]++;
            }
            else
            {
                rows.Add(row);
            }
        });
        return rows;
    }

    private static unsafe ZoneState WriteZone(ZonePages pages, MachineParts machine)
    {
        Zone zone = pages.Zone;
        (long global, _) = zone.FreePagesParts(0);
        var types = new StringBuilder();
        var skips = new StringBuilder();
        ulong first = zone.StartPfn >> PageOrder.Pageblock;
        for (ulong pfn = first << PageOrder.Pageblock; pfn < zone.EndPfn; pfn += PageOrder.PageblockPages)
        {
            types.Append(machine.Blocks.IsPresent(pfn) ? (char)('0' + (int)machine.Blocks.TypeOf(pfn)) : '-');
            skips.Append(machine.Blocks.SkipOf(pfn) ? '1' : '0');
        }

        return new ZoneState
        {
            Index = (int)zone.Type,
            Node = zone.NodeId,
            Name = zone.Name,
            StartPfn = zone.StartPfn,
            Spanned = zone.Spanned,
            Present = zone.Present,
            Managed = zone.Managed,
            Watermark = [zone.Watermarks.Min, zone.Watermarks.Low, zone.Watermarks.High, zone.Watermarks.Promo],
            WatermarkBoost = zone.Boost,
            LowmemReserve = zone.LowmemReserve,
            NrReservedHighatomic = zone.ReservedHighAtomic,
            NrFreeHighatomic = zone.FreeHighAtomic,
            Flags = (int)zone.Flags,
            PercpuDriftMark = zone.PercpuDriftMark,
            VmStatNrFreePages = global,
            FreeArea = Enumerable.Range(0, PageOrder.Count).Select(order => new FreeAreaState(
                order,
                pages.Buddy.NrFree(order),
                Enumerable.Range(0, 4)
                    .Select(type => Frames(pages.Buddy.ListOf(order, (Migratetype)type), machine)).ToArray())).ToArray(),
            PageblockFirst = first,
            PageblockMt = types.ToString(),
            PageblockSkip = skips.ToString(),
            Pcp = Enumerable.Range(0, zone.CpuCount).Select(cpu => WritePcp(pages.PcpOf(cpu), cpu, machine)).ToArray(),
            Zonestat = Enumerable.Range(0, zone.CpuCount)
                .Select(cpu => new ZoneStatState(cpu, zone.FreePagesParts(cpu).Diff, zone.StatThreshold)).ToArray(),
        };
    }

    private static unsafe PcpState WritePcp(PerCpuPages* pcp, int cpu, MachineParts machine)
    {
        var lists = new ulong[PerCpuPages.ListCount][];
        for (int list = 0; list < lists.Length; list++)
            lists[list] = Frames(PerCpuPages.ListOf(pcp, list), machine);
        return new PcpState
        {
            Cpu = cpu,
            Count = pcp->Count,
            High = pcp->High,
            HighMin = pcp->HighMin,
            HighMax = pcp->HighMax,
            Batch = pcp->Batch,
            Flags = (int)pcp->Flags,
            AllocFactor = pcp->AllocFactor,
            FreeCount = pcp->FreeCount,
            Lists = lists,
        };
    }

    private static unsafe ulong[] Frames(ListHead* list, MachineParts machine)
    {
        var frames = new List<ulong>();
        for (ListHead* node = list->Next; node != list; node = node->Next)
        {
            frames.Add(machine.Map.PfnOf(Page.FromLru(node)));
            Bug.On((ulong)frames.Count > machine.Map.EndPfn, "a list of frames goes in a circle");
        }

        return [.. frames];
    }

    private static unsafe CacheState WriteCache(KmemCache cache, MachineParts machine)
    {
        SlabGeometry shape = cache.Geometry;
        KmemCacheNode node = cache.Nodes[0];
        return new CacheState
        {
            Name = cache.Name,
            Addr = AddressOrZero(cache.Descriptor, machine),
            Size = shape.Size,
            ObjectSize = cache.ObjectSize,
            Inuse = shape.Inuse,
            Offset = shape.FreePointerOffset,
            Align = shape.Align,
            Flags = (uint)(shape.Flags | SlabFlagMask.CmpxchgDouble),
            Order = shape.Order,
            Objects = shape.ObjectsPerSlab,
            MinOrder = shape.MinOrder,
            MinObjects = shape.MinObjects,
            Allocflags = (uint)shape.AllocFlags,
            MinPartial = cache.MinPartial,
            CpuPartial = cache.CpuPartial,
            CpuPartialSlabs = cache.CpuPartialSlabs,
            SheafCapacity = cache.SheafCapacity,
            Refcount = cache.RefCount,
            Ctor = cache.HasConstructor,
            UserOffset = cache.UserOffset,
            UserSize = cache.UserSize,
            Cpu = Enumerable.Range(0, machine.Slabs.Cpus.Count).Select(cpu => WriteCpu(cache, cpu, machine)).ToArray(),
            Node = WriteNode(node, machine),
            Barn = WriteBarn(node, machine),
            OtherNodes = cache.Nodes.Count == 1 ? null : cache.Nodes.Skip(1)
                .Select(other => WriteNode(other, machine) with { Barn = WriteBarn(other, machine) }).ToArray(),
        };
    }

    private static unsafe CacheNodeState WriteNode(KmemCacheNode node, MachineParts machine) => new()
    {
        NrPartial = node.NrPartial,
        Partial = Slabs(node.Partial, machine),
        NrSlabs = node.NrSlabs,
        TotalObjects = node.TotalObjects,
        Addr = AddressOrZero(node.Descriptor, machine),
    };

    private static BarnState? WriteBarn(KmemCacheNode node, MachineParts machine) => node.Barn == null ? null : new BarnState
    {
        Full = node.Barn.List(full: true).Select(sheaf => WriteSheaf(sheaf, machine)!).ToArray(),
        Empty = node.Barn.List(full: false).Select(sheaf => WriteSheaf(sheaf, machine)!).ToArray(),
    };

    private static unsafe CacheCpuState WriteCpu(KmemCache cache, int cpu, MachineParts machine)
    {
        KmemCacheCpu* c = cache.StateOf(cpu);
        var partial = new List<ulong>();
        for (Page* slab = c->Partial; slab != null; slab = slab->CpuPartialNext)
        {
            partial.Add(machine.Map.PfnOf(slab));
            Bug.On((ulong)partial.Count > machine.Map.EndPfn, "a chain of partial slabs goes in a circle");
        }

        return new CacheCpuState
        {
            Slab = c->Slab == null ? null : machine.Map.PfnOf(c->Slab),
            Freelist = c->Slab == null ? [] : Indices(cache, c->Slab, c->Freelist, machine),
            Partial = partial,
            PartialSlabs = partial.Count,
            Sheaves = cache.SheafCapacity == 0 ? null : new CpuSheavesState
            {
                Main = WriteSheaf((nint)c->Main, machine),
                Spare = WriteSheaf((nint)c->Spare, machine),
                RcuFree = WriteSheaf((nint)c->RcuFree, machine),
            },
        };
    }

    private static unsafe SheafState? WriteSheaf(nint sheaf, MachineParts machine)
    {
        if (sheaf == 0)
            return null;

        var it = (Sheaf*)sheaf;
        Bug.On(!machine.Map.Contains(it) || it->Size < 0 || it->Size > it->Capacity, "a sheaf is none");
        Bug.On(!machine.Map.Contains(Sheaf.ObjectsOf(it) + it->Size), "a sheaf ends outside RAM");
        return new SheafState
        {
            Addr = Address(it, machine),
            Size = it->Size,
            Capacity = (int)it->Capacity,
            Objects = Sheaf.Objects(it).ToArray().Select(obj => Address((void*)obj, machine)).ToArray(),
        };
    }

    private static unsafe ulong AddressOrZero(nint pointer, MachineParts machine) =>
        pointer == 0 ? 0 : Address((void*)pointer, machine);

    private static unsafe ulong Address(void* pointer, MachineParts machine) => machine.Slabs.KernelAddress(pointer);

    private static unsafe List<ulong> Slabs(ListHead* list, MachineParts machine)
    {
        var slabs = new List<ulong>();
        for (ListHead* node = list->Next; node != list; node = node->Next)
        {
            slabs.Add(machine.Map.PfnOf(Page.FromSlabList(node)));
            Bug.On((ulong)slabs.Count > machine.Map.EndPfn, "a partial list goes in a circle");
        }

        return slabs;
    }

    private static unsafe int[] Indices(KmemCache cache, Page* slab, void* first, MachineParts machine)
    {
        var indices = new List<int>();
        byte* start = machine.Map.AddressOf(slab);
        for (void* obj = first; obj != null; obj = cache.NextFree(obj))
        {
            indices.Add((int)(((byte*)obj - start) / cache.SlotSize));
            Bug.On(indices.Count > SlabState.Read(slab).Objects, "the free list of a slab goes in a circle");
        }

        return [.. indices];
    }

    /// <summary>All slabs in one walk, by the tag of their cache.</summary>
    private static unsafe Dictionary<nint, List<SlabRow>> WriteSlabs(MachineParts machine)
    {
        var slabs = new Dictionary<nint, List<SlabRow>>();
        machine.Slabs.ForEachSlab(page =>
        {
            var slab = (Page*)page;
            KmemCache cache = machine.Slabs.CacheOf(slab);
            SlabState state = SlabState.Read(slab);
            void* first = state.HasFree ? cache.ObjectOf(slab, state.FreeIndex) : null;
            if (!slabs.TryGetValue(slab->SlabCache, out List<SlabRow>? rows))
                slabs[slab->SlabCache] = rows = [];
            rows.Add(new SlabRow(
                machine.Map.PfnOf(slab),
                PageAllocator.CompoundOrder(slab),
                cache.Name,
                state.InUse,
                state.Objects,
                state.Frozen,
                (slab->Flags & PageFlags.SlabOnPartialList) != 0,
                Indices(cache, slab, first, machine)));
        });
        return slabs;
    }
}
