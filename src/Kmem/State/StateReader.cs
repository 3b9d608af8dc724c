namespace Kmem;

/// <summary>
/// Puts a <see cref="MachineState"/> into the parts of a machine that has no free frame and no cache yet.
/// </summary>
internal static class StateReader
{
    /// <summary>The frame after the last one of any zone.</summary>
    public static ulong EndPfn(MachineState state) => state.Zones.Max(zone => zone.StartPfn + zone.Spanned);

    /// <summary>The nodes with the zones of the state; absent zones are empty.</summary>
    public static Node[] LayOut(MachineState state, Func<int, int, int> distance, PageblockMap blocks)
    {
        int count = state.Zones.Max(zone => zone.Node) + 1;
        var nodes = new Node[count];
        for (int id = 0; id < count; id++)
        {
            int[] cpus = Enumerable.Range(0, state.NrCpu)
                .Where(cpu => ZoneLayout.NodeOfCpu(cpu, state.NrCpu, count) == id).ToArray();
            nodes[id] = new Node(id, cpus);
            for (int type = 0; type < ZoneTypes.Count; type++)
                LayOutZone(Find(state, id, type) ?? new ZoneState(), nodes[id], (ZoneType)type, state.NrCpu, blocks);
        }

        Zonelist.BuildAll(nodes, distance);
        return nodes;
    }

    public static void Restore(MachineState state, MachineParts machine)
    {
        foreach (ZonePages zone in machine.Pages.Zones)
            RestoreZone(Find(state, zone.Zone.NodeId, (int)zone.Zone.Type)!, zone, machine.Map);
        foreach (ulong[] run in state.LruPages)
            RestoreLru(run[0], run[1], machine.Map);
        RestoreCaches(state, machine.Slabs, machine.KmallocCaches);
        machine.Pages.ConfigureRestored(state.Own?.WatermarkBoostFactor ?? machine.WatermarkBoostFactor);
        if (state.Own is { } own)
            RestoreOwn(own, machine);
    }

    private static ZoneState? Find(MachineState state, int node, int type) =>
        state.Zones.FirstOrDefault(zone => zone.Node == node && zone.Index == type);

    private static void LayOutZone(ZoneState its, Node node, ZoneType type, int cpus, PageblockMap blocks)
    {
        int index = (node.Id * ZoneTypes.Count) + (int)type;
        node.Zones[(int)type] = new Zone(index, node.Id, type, its.StartPfn, its.Spanned, its.Present, cpus);
        for (int i = 0; i < its.PageblockMt.Length; i++)
        {
            if (its.PageblockMt[i] == '-' && node.Id > 0)
                continue;   // another node's memory, perhaps

            ulong pfn = (its.PageblockFirst + (ulong)i) << PageOrder.Pageblock;
            blocks.SetZone(pfn, index);
            if (its.PageblockMt[i] == '-')
                continue;

            blocks.SetPresent(pfn);
            blocks.SetType(pfn, (Migratetype)(its.PageblockMt[i] - '0'));
            if (i < its.PageblockSkip.Length)
                blocks.SetSkip(pfn, its.PageblockSkip[i] == '1');
        }
    }

    private static unsafe void RestoreZone(ZoneState state, ZonePages pages, MemMap map)
    {
        Zone zone = pages.Zone;
        zone.Managed = state.Managed;
        zone.Watermarks = new Watermarks(state.Watermark[0], state.Watermark[1], state.Watermark[2], state.Watermark[3]);
        zone.Boost = state.WatermarkBoost;
        state.LowmemReserve.CopyTo(zone.LowmemReserve, 0);
        for (int type = state.LowmemReserve.Length; type < ZoneTypes.Count; type++)
            zone.LowmemReserve[type] = state.LowmemReserve[^1];
        zone.SetFlag((ZoneFlags)state.Flags);
        zone.PercpuDriftMark = state.PercpuDriftMark;
        zone.ReservedHighAtomic = state.NrReservedHighatomic;
        zone.FreeHighAtomic = state.NrFreeHighatomic;
        foreach (FreeAreaState area in state.FreeArea)
        {
            for (int type = 0; type < area.Lists.Count; type++)
            {
                foreach (ulong pfn in area.Lists[type])
                    pages.Buddy.Restore(pfn, area.Order, (Migratetype)type);
            }
        }

        foreach (PcpState pcp in state.Pcp)
            RestorePcp(pcp, pages.PcpOf(pcp.Cpu), map);
        foreach (ZoneStatState stat in state.Zonestat)
        {
            zone.RestoreFreePages(state.VmStatNrFreePages, stat.Cpu, stat.NrFreePagesDiff);
            zone.StatThreshold = stat.StatThreshold;
        }
    }

    private static unsafe void RestorePcp(PcpState state, PerCpuPages* pcp, MemMap map)
    {
        pcp->Count = state.Count;
        pcp->High = state.High;
        pcp->HighMin = state.HighMin;
        pcp->HighMax = state.HighMax;
        pcp->Batch = state.Batch;
        pcp->Flags = (PcpFlags)state.Flags;
        pcp->AllocFactor = state.AllocFactor;
        pcp->FreeCount = state.FreeCount;
        for (int list = 0; list < state.Lists.Count; list++)
        {
            foreach (ulong pfn in state.Lists[list])
                ListHead.AddTail(PerCpuPages.ListOf(pcp, list), &map.PageOf(pfn)->Lru);
        }
    }

    private static unsafe void RestoreLru(ulong pfn, ulong count, MemMap map)
    {
        for (ulong i = 0; i < count; i++)
            map.PageOf(pfn + i)->Flags |= PageFlags.Lru;
    }

    private static void RestoreCaches(MachineState state, SlabAllocator slabs, KmallocAllocator kmalloc)
    {
        var byName = new Dictionary<string, KmemCache>(StringComparer.Ordinal);
        foreach (CacheState its in state.Caches.Reverse())
            byName[its.Name] = RestoreCache(its, slabs);
        slabs.RestoreBootCaches();

        for (int type = 0; type < state.KmallocCaches.Count; type++)
        {
            for (int index = 0; index < state.KmallocCaches[type].Count; index++)
            {
                if (state.KmallocCaches[type][index] is not { } name)
                    continue;
                kmalloc.Restore((KmallocType)type, index, byName[name]);
                if (type == (int)KmallocType.Normal)
                    kmalloc.Restore(KmallocType.Cgroup, index, byName[name]);
            }
        }

        if (slabs.Options.SheavesEverywhere)
            kmalloc.LearnSteps();

        foreach (SlabRow row in state.Slabs)
            byName[row.Cache].RestoreSlab(row.Pfn, row.Order, row.InUse, row.Objects, row.Frozen, row.Free);
        foreach (CacheState its in state.Caches)
        {
            KmemCache cache = byName[its.Name];
            for (int cpu = 0; cpu < its.Cpu.Count; cpu++)
                cache.RestoreCpu(cpu, its.Cpu[cpu].Slab, its.Cpu[cpu].Freelist.ToArray(), its.Cpu[cpu].Partial);
            RestoreNode(cache, 0, its.Node, its.Barn);
            for (int node = 1; node <= (its.OtherNodes?.Count ?? 0); node++)
                RestoreNode(cache, node, its.OtherNodes![node - 1], its.OtherNodes[node - 1].Barn);
            if (its.SheafCapacity > 0)
                RestoreSheaves(its, cache);
        }
    }

    private static unsafe KmemCache RestoreCache(CacheState its, SlabAllocator slabs)
    {
        // Which constructor it was cannot be known; what it did is in the objects, and addresses do not depend on it.
        SlabConstructor? constructor = its.Ctor ? static _ => { } : null;
        var traits = new CacheTraits(constructor, its.UserOffset, its.UserSize, its.SheafCapacity);
        KmemCache cache = slabs.Restore(its.Name, GeometryOf(its), its.Refcount, traits);
        cache.Descriptor = its.Addr == 0 ? 0 : (nint)slabs.PointerOf(its.Addr);
        return cache;
    }

    private static unsafe void RestoreNode(KmemCache cache, int node, CacheNodeState state, BarnState? barn)
    {
        cache.RestoreNode(node, state.Partial, state.Addr);

        // Pushed at the head: from the last one to the first.
        foreach (SheafState sheaf in (barn?.Full ?? []).Reverse())
            cache.RestoreInBarn(node, Place(cache, sheaf), full: true);
        foreach (SheafState sheaf in (barn?.Empty ?? []).Reverse())
            cache.RestoreInBarn(node, Place(cache, sheaf), full: false);
    }

    /// <summary>What a recording does not have.</summary>
    private static unsafe void RestoreOwn(OwnState own, MachineParts machine)
    {
        foreach (ulong[] run in own.Blocks)
        {
            ulong pfn = run[0];
            for (ulong i = 0; i < run[5]; i++, pfn += 1UL << (int)run[1])
                RestoreBlock(pfn, run, machine);
        }

        foreach (ulong pfn in own.PfMemAllocSlabs)
            machine.Map.PageOf(pfn)->Flags |= PageFlags.SlabPfMemAlloc;
        machine.Slabs.RestoreAliases(own.Aliases);
        machine.Slabs.RandomState = own.Random;
        int row = 0;
        foreach (ZonePages zone in machine.Pages.Zones)
        {
            for (int cpu = 0; cpu < zone.Zone.CpuCount; cpu++)
                zone.PcpOf(cpu)->RestoreCounters(own.PcpCounters[row++]);
        }
    }

    private static unsafe void RestoreBlock(ulong pfn, ulong[] row, MachineParts machine)
    {
        Page* page = machine.Map.PageOf(pfn);
        var flags = (PageFlags)row[2];
        machine.Pages.RestoreAllocated(page, (int)row[1], compound: (flags & PageFlags.Head) != 0);
        page->Flags |= flags;
        page->Type = (PageType)row[3];
        page->RefCount = (int)row[4];
        if (page->Type == PageType.LargeKmalloc)
            machine.Slabs.AccountPages(page, 1L << (int)row[1], SlabFlags.None);
    }

    private static void RestoreSheaves(CacheState state, KmemCache cache)
    {
        for (int cpu = 0; cpu < state.Cpu.Count; cpu++)
        {
            CpuSheavesState? its = state.Cpu[cpu].Sheaves;
            cache.RestoreSheavesOf(cpu, Place(cache, its?.Main), Place(cache, its?.Spare), Place(cache, its?.RcuFree));
        }

        foreach (SheafState sheaf in state.DetachedSheaves ?? [])
            Place(cache, sheaf);
    }

    private static nint Place(KmemCache cache, SheafState? sheaf) =>
        sheaf == null ? 0 : cache.RestoreSheaf(sheaf.Addr, sheaf.Objects, sheaf.Capacity);

    private static SlabGeometry GeometryOf(CacheState state) => new()
    {
        Size = state.Size,
        ObjectSize = state.ObjectSize,
        Align = state.Align,
        Inuse = state.Inuse,
        FreePointerOffset = state.Offset,
        Order = state.Order,
        ObjectsPerSlab = state.Objects,
        MinOrder = state.MinOrder,
        MinObjects = state.MinObjects,
        MinPartial = state.MinPartial,
        CpuPartial = state.CpuPartial,
        CpuPartialSlabs = state.CpuPartialSlabs,
        Flags = (SlabFlags)state.Flags & ~SlabFlagMask.CmpxchgDouble,
        AllocFlags = (Gfp)state.Allocflags,
    };
}
