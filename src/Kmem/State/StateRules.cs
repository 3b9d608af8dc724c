namespace Kmem;

/// <summary>
/// What must hold for a state before a machine is made from it: frames, objects and addresses are written to without
/// further checks.
/// </summary>
internal static class StateRules
{
    private const int MostCpus = 8192;
    private const int MostNodes = 1024;
    private const ulong MostFrames = 1UL << 36;     // 256 TiB of RAM
    private const int MostObjects = 32767;

    /// <summary>The first rule that a state breaks, in words; null if all hold.</summary>
    public static string? FirstBroken(MachineState state)
    {
        try
        {
            CheckZones(state);
            var names = state.Caches.Select(cache => cache.Name).ToHashSet(StringComparer.Ordinal);
            Require(names.Count == state.Caches.Count, "two caches have the same name");
            ulong end = StateReader.EndPfn(state);
            foreach (ulong[] run in state.LruPages)
                Require(run.Length == 2 && run[0] <= end && run[1] <= end - run[0], "lru_pages: a run is not within the zones");
            Dictionary<ulong, SlabRow> slabs = CheckSlabs(state, names, end);
            foreach (CacheState cache in state.Caches)
                CheckCache(cache, state, slabs, end);
            foreach (string? name in state.KmallocCaches.SelectMany(row => row))
                Require(name == null || names.Contains(name), $"kmalloc_caches: there is no cache {name}");
            Require(
                state.KmallocCaches.Count <= KmallocClasses.TypeCount
                && state.KmallocCaches.All(row => row.Count <= KmallocClasses.Count),
                "kmalloc_caches: more types or sizes than there are");
            CheckVmap(state);
            if (state.Own is { } own)
                CheckOwn(own, names, state, end);
            return null;
        }
        catch (BrokenStateException broken)
        {
            return broken.Message;
        }
        catch (Exception missing) when (missing is NullReferenceException or ArgumentNullException)
        {
            return "a member that every state has is missing";     // absent ones are null after reading
        }
    }

    private static void CheckZones(MachineState state)
    {
        Require(state.NrCpu is >= 1 and <= MostCpus, $"nr_cpu is {state.NrCpu}, expected 1 to {MostCpus}");
        Require(state.Zones.Any(zone => zone.Present > 0), "zones: none has memory");
        foreach (ZoneState zone in state.Zones)
        {
            string name = $"zone {zone.Name}";
            Require(zone.Index is >= 0 and < ZoneTypes.Count, $"{name}: index {zone.Index} is no type of zone");
            Require(zone.Node is >= 0 and < MostNodes, $"{name}: there is no node {zone.Node}");
            Require(zone.StartPfn < MostFrames && zone.Spanned < MostFrames, $"{name}: too large");
            Require(zone.Present <= zone.Spanned, $"{name}: more present than spanned");
            if (zone.Present > 0)
                CheckZone(zone, name, state.NrCpu);
        }

        int different = state.Zones.Select(zone => (zone.Node, zone.Index)).Distinct().Count();
        Require(different == state.Zones.Count, "zones: two are the same");
    }

    private static void CheckZone(ZoneState zone, string name, int cpus)
    {
        ulong end = zone.StartPfn + zone.Spanned;
        Require(zone.Watermark.Length == 4, $"{name}: watermark has {zone.Watermark.Length} values, expected 4");
        Require(
            zone.LowmemReserve.Length is >= 1 and <= ZoneTypes.Count,
            $"{name}: lowmem_reserve has {zone.LowmemReserve.Length} values");
        Require(zone.Pcp.Count == cpus, $"{name}: pcp of {zone.Pcp.Count} CPUs, expected {cpus}");
        Require(zone.Zonestat.Count == cpus, $"{name}: zonestat of {zone.Zonestat.Count} CPUs, expected {cpus}");
        Require(
            zone.PageblockMt.All(type => type is '-' or (>= '0' and <= '5')), $"{name}: pageblock_mt: unknown type");
        ulong covered = (zone.PageblockFirst + (ulong)zone.PageblockMt.Length) << PageOrder.Pageblock;
        Require(
            zone.PageblockFirst <= zone.StartPfn >> PageOrder.Pageblock && covered >= end
            && covered < end + (2 * PageOrder.PageblockPages),
            $"{name}: pageblock_mt does not cover the zone");
        foreach (FreeAreaState area in zone.FreeArea)
        {
            Require(area.Order is >= 0 and <= PageOrder.Max, $"{name}: no order {area.Order}");
            Require(area.Lists.Count <= Buddy.Types, $"{name}: free lists of {area.Lists.Count} types");
            int blocks = area.Lists.Sum(list => list.Length);
            Require(blocks == area.NrFree, $"{name}: order {area.Order}: nr_free is {area.NrFree}, the lists have {blocks}");
            CheckFrames(area.Lists, area.Order, zone, $"{name}: order {area.Order}");
        }

        for (int cpu = 0; cpu < cpus; cpu++)
        {
            PcpState pcp = zone.Pcp[cpu];
            Require(pcp.Cpu == cpu && zone.Zonestat[cpu].Cpu == cpu, $"{name}: CPU {cpu} is not where it should be");
            Require(pcp.Lists.Count <= PerCpuPages.ListCount, $"{name}: pcp of CPU {cpu}: {pcp.Lists.Count} lists");
            int count = 0;
            for (int list = 0; list < pcp.Lists.Count; list++)
            {
                int order = PerCpuPages.OrderOfList(list);
                count += pcp.Lists[list].Length << order;
                CheckFrames([pcp.Lists[list]], order, zone, $"{name}: pcp list {list} of CPU {cpu}");
            }

            Require(
                count == pcp.Count, $"{name}: pcp of CPU {cpu}: count is {pcp.Count}, the lists have {count} frames");
        }
    }

    private static void CheckFrames(IEnumerable<ulong[]> lists, int order, ZoneState zone, string what)
    {
        foreach (ulong pfn in lists.SelectMany(list => list))
        {
            Require(
                pfn >= zone.StartPfn && pfn - zone.StartPfn < zone.Spanned
                && 1UL << order <= zone.Spanned - (pfn - zone.StartPfn)
                && (pfn & ((1UL << order) - 1)) == 0,
                $"{what}: frame {pfn} cannot be on this list");
        }
    }

    private static Dictionary<ulong, SlabRow> CheckSlabs(MachineState state, HashSet<string> names, ulong end)
    {
        Dictionary<string, CacheState> caches = state.Caches.ToDictionary(cache => cache.Name, StringComparer.Ordinal);
        var slabs = new Dictionary<ulong, SlabRow>();
        foreach (SlabRow row in state.Slabs)
        {
            string what = $"slab {row.Pfn}";
            Require(names.Contains(row.Cache), $"{what}: there is no cache {row.Cache}");
            Require(
                row.Order is >= 0 and <= PageOrder.Max && row.Pfn < end && 1UL << row.Order <= end - row.Pfn,
                $"{what}: no such frames");
            Require(row.Objects is > 0 and <= MostObjects, $"{what}: {row.Objects} objects");
            Require(
                (long)row.Objects * caches[row.Cache].Size <= (long)Pfn.PageSize << row.Order,
                $"{what}: {row.Objects} objects do not fit");
            Require(row.InUse >= 0 && row.InUse <= row.Objects, $"{what}: {row.InUse} in use");
            CheckIndices(row.Free, row.Objects, what);
            Require(slabs.TryAdd(row.Pfn, row), $"{what}: is there twice");
        }

        return slabs;
    }

    private static void CheckIndices(IReadOnlyList<int> free, int objects, string what)
    {
        Require(free.Count <= objects, $"{what}: {free.Count} free of {objects} objects");
        Require(free.All(index => index >= 0 && index < objects), $"{what}: a free object has no such index");
        Require(free.Distinct().Count() == free.Count, $"{what}: an object is free twice");
    }

    private static void CheckCache(CacheState cache, MachineState state, Dictionary<ulong, SlabRow> slabs, ulong end)
    {
        string name = $"cache {cache.Name}";
        Require(
            cache.Size is > 0 and <= (1 << 22) && cache.ObjectSize is > 0 && cache.ObjectSize <= cache.Size
            && cache.Offset >= 0 && cache.Offset + sizeof(ulong) <= cache.Size,
            $"{name}: size, object_size or offset make no sense");
        Require(cache.Order is >= 0 and <= PageOrder.Max && cache.Objects is > 0 and <= MostObjects, $"{name}: no such slabs");
        Require(cache.Cpu.Count == state.NrCpu, $"{name}: parts of {cache.Cpu.Count} CPUs, expected {state.NrCpu}");
        int nodes = state.Zones.Max(zone => zone.Node);
        Require(
            (cache.OtherNodes?.Count ?? 0) == nodes, $"{name}: parts of {cache.OtherNodes?.Count ?? 0} other nodes");
        foreach (CacheCpuState cpu in cache.Cpu)
        {
            if (cpu.Slab is { } pfn)
                CheckIndices(cpu.Freelist, OwnSlab(pfn).Objects, $"{name}: current slab {pfn}");
            foreach (ulong partial in cpu.Partial)
                OwnSlab(partial);

            // Where every cache has sheaves, a CPU gets its own at first use.
            Require(
                cache.SheafCapacity == 0 || cpu.Sheaves?.Main != null || state.Caches.Any(other => SlabAllocator.GivesSheaves(other.Name)),
                $"{name}: a CPU has no main sheaf");
            foreach (SheafState? sheaf in (ReadOnlySpan<SheafState?>)[cpu.Sheaves?.Main, cpu.Sheaves?.Spare, cpu.Sheaves?.RcuFree])
                CheckSheaf(sheaf, name, end);
        }

        foreach (CacheNodeState node in (IReadOnlyList<CacheNodeState>)[cache.Node, .. cache.OtherNodes ?? []])
        {
            foreach (ulong partial in node.Partial)
                OwnSlab(partial);
            CheckBarn(node.Barn, name, end);
        }

        CheckBarn(cache.Barn, name, end);
        foreach (SheafState sheaf in cache.DetachedSheaves ?? [])
            CheckSheaf(sheaf, name, end);

        SlabRow OwnSlab(ulong pfn)
        {
            Require(
                slabs.TryGetValue(pfn, out SlabRow? row) && row.Cache == cache.Name,
                $"{name}: frame {pfn} is no slab of it");
            return slabs[pfn];
        }
    }

    private static void CheckBarn(BarnState? barn, string name, ulong end)
    {
        foreach (SheafState sheaf in (IReadOnlyList<SheafState>)[.. barn?.Full ?? [], .. barn?.Empty ?? []])
            CheckSheaf(sheaf, name, end);
    }

    private static void CheckSheaf(SheafState? sheaf, string name, ulong end)
    {
        if (sheaf == null)
            return;

        Require(IsRam(sheaf.Addr, end), $"{name}: a sheaf at 0x{sheaf.Addr:x} is not in RAM");
        Require(sheaf.Size == sheaf.Objects.Length, $"{name}: a sheaf of {sheaf.Size} lists {sheaf.Objects.Length} objects");
        Require(sheaf.Objects.All(obj => IsRam(obj, end)), $"{name}: an object in a sheaf is not in RAM");
    }

    private static bool IsRam(ulong address, ulong end) =>
        address >= AddressMap.PageOffset && address - AddressMap.PageOffset < end << Pfn.PageShift && (address & 7) == 0;

    private static void CheckVmap(MachineState state)
    {
        if (state.Vmap is not { } vmap)
            return;

        ulong end = StateReader.EndPfn(state);
        Require(vmap.Spare.Length == state.NrCpu, $"vmap: ne_fit_preload_node has {vmap.Spare.Length} CPUs, expected {state.NrCpu}");
        Require(vmap.Nodes.Length is > 0 and <= 128, $"vmap: {vmap.Nodes.Length} nodes");
        Require(vmap.Free.All(block => IsRam(block.Object, end)), "vmap: the object of a free block is not in RAM");
        Require(vmap.Free.All(block => block.Start < block.End), "vmap: a free block ends before it starts");
        foreach (VmapNodeState node in vmap.Nodes)
        {
            foreach (VmapAreaState area in node.Busy.Concat(node.Lazy).Concat(node.Pools.Values.SelectMany(pool => pool)))
            {
                Require(IsRam(area.Object, end), $"vmap: the object of the area at 0x{area.Start:x} is not in RAM");
                Require(area.Start < area.End, $"vmap: the area at 0x{area.Start:x} ends before it starts");
            }
        }

        Require(vmap.Spare.All(spare => spare == 0 || IsRam(spare, end)), "vmap: a spare object is not in RAM");
    }

    private static void CheckOwn(OwnState own, HashSet<string> names, MachineState state, ulong end)
    {
        foreach (ulong[] row in own.Blocks)
        {
            Require(row.Length == 6 && row[1] <= PageOrder.Max, "own.blocks: a row is not [pfn, order, flags, type, references, count]");
            Require(row[0] <= end && row[5] <= (end - row[0]) >> (int)row[1], $"own.blocks: no frames at {row[0]}");
        }

        Require(own.Aliases.All(alias => alias.Length == 2 && names.Contains(alias[1])), "own.aliases: of a cache that is not there");
        Require(own.PfMemAllocSlabs.All(pfn => pfn < end), "own.pf_mem_alloc_slabs: no such frame");
        int zones = state.Zones.Count(zone => zone.Present > 0);
        Require(
            own.PcpCounters.Count == zones * state.NrCpu && own.PcpCounters.All(row => row.Length == 7),
            "own.pcp_counters: not seven for each CPU of each zone");
        foreach (ulong[] table in own.Tables?.Tables ?? [])
        {
            Require(table.Length % 2 == 1 && table[0] < end, "own.tables: a table is no frame with pairs");
            for (int i = 1; i < table.Length; i += 2)
                Require(table[i] < 512, "own.tables: no such entry");
        }

        Require(own.Tables == null || own.Tables.Root < end, "own.tables: the root is no frame");
        foreach (VmStructState vm in (state.Vmap?.Nodes ?? []).SelectMany(node => node.Busy).Select(area => area.Struct).OfType<VmStructState>())
        {
            Require(
                own.Tables == null || IsRam(vm.Object, end), $"vmap: the vm_struct of 0x{vm.Address:x} is not in RAM");
            Require(vm.Pages.All(pfn => pfn < end), $"vmap: the area at 0x{vm.Address:x} has a page that is no frame");
        }
    }

    private static void Require(bool holds, string rule)
    {
        if (!holds)
            throw new BrokenStateException(rule);
    }

    private sealed class BrokenStateException(string rule) : Exception(rule);
}
