using System.Globalization;
using System.Text;
using System.Text.Json;

namespace Kmem;

/// <summary>Writes a machine's state in the form that <see cref="StateReader"/> takes. Nobody may be at work.</summary>
internal static class StateWriter
{
    /// <summary>The state of a machine.</summary>
    /// <param name="machine">What the machine is made of.</param>
    /// <param name="names">
    /// A state of the same machine, for what a machine does not keep: the addresses of cache descriptors, and which
    /// frames are on LRU lists.
    /// </param>
    public static MachineState Write(MachineParts machine, MachineState? names = null) => new()
    {
        NrCpu = machine.Slabs.Cpus.Count,
        MinFreeKbytes = machine.MinFreeKbytes,
        TotalreservePages = ZoneLayout.TotalReserve(machine.Pages.Nodes),
        Zones = machine.Pages.Nodes[0].Zones.Where(zone => zone.IsPopulated)
            .Select(zone => WriteZone(machine.Pages.Zones.First(pages => pages.Zone == zone), machine))
            .ToArray(),
        Caches = machine.Slabs.Caches.Select(cache => WriteCache(cache, machine, names)).ToArray(),
        KmallocCaches = names?.KmallocCaches ?? [],
        Slabs = machine.Slabs.Caches.SelectMany(cache => WriteSlabs(cache, machine)).ToArray(),
        LruPages = names?.LruPages ?? [],
    };

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
        var lists = new string[PerCpuPages.ListCount];
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

    private static unsafe string Frames(ListHead* list, MachineParts machine)
    {
        var text = new StringBuilder();
        for (ListHead* node = list->Next; node != list; node = node->Next)
        {
            if (text.Length > 0)
                text.Append(' ');
            text.Append(machine.Slabs.Map.PfnOf(Page.FromLru(node)).ToString(CultureInfo.InvariantCulture));
        }

        return text.ToString();
    }

    private static unsafe CacheState WriteCache(KmemCache cache, MachineParts machine, MachineState? names)
    {
        SlabGeometry shape = cache.Geometry;
        KmemCacheNode node = cache.Nodes[0];
        return new CacheState
        {
            Name = cache.Name,
            Addr = names?.Caches.FirstOrDefault(its => its.Name == cache.Name)?.Addr ?? "0x0",
            Size = shape.Size,
            ObjectSize = cache.ObjectSize,
            Inuse = shape.Inuse,
            Offset = shape.FreePointerOffset,
            Align = shape.Align,
            Flags = $"0x{(uint)shape.Flags:x}",
            Order = shape.Order,
            Objects = shape.ObjectsPerSlab,
            MinOrder = shape.MinOrder,
            MinObjects = shape.MinObjects,
            Allocflags = $"0x{(uint)shape.AllocFlags:x}",
            MinPartial = cache.MinPartial,
            CpuPartial = cache.CpuPartial,
            CpuPartialSlabs = cache.CpuPartialSlabs,
            SheafCapacity = cache.SheafCapacity,
            Refcount = cache.RefCount,
            Cpu = Enumerable.Range(0, machine.Slabs.Cpus.Count).Select(cpu => WriteCpu(cache, cpu, machine)).ToArray(),
            Node = new CacheNodeState
            {
                NrPartial = node.NrPartial,
                Partial = Slabs(node.Partial, machine),
                NrSlabs = node.NrSlabs,
                TotalObjects = node.TotalObjects,
            },
            Barn = node.Barn == null ? null : new BarnState
            {
                Full = node.Barn.List(full: true).Select(sheaf => WriteSheaf(sheaf, machine)!).ToArray(),
                Empty = node.Barn.List(full: false).Select(sheaf => WriteSheaf(sheaf, machine)!).ToArray(),
            },
        };
    }

    private static unsafe CacheCpuState WriteCpu(KmemCache cache, int cpu, MachineParts machine)
    {
        KmemCacheCpu* c = cache.StateOf(cpu);
        var partial = new List<ulong>();
        for (Page* slab = c->Partial; slab != null; slab = slab->CpuPartialNext)
            partial.Add(machine.Slabs.Map.PfnOf(slab));
        return new CacheCpuState
        {
            Slab = c->Slab == null ? null : machine.Slabs.Map.PfnOf(c->Slab),
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

    private static unsafe SheafState? WriteSheaf(nint sheaf, MachineParts machine) => sheaf == 0 ? null : new SheafState
    {
        Addr = Address((void*)sheaf, machine),
        Size = ((Sheaf*)sheaf)->Size,
        Objects = Sheaf.Objects((Sheaf*)sheaf).ToArray().Select(obj => Address((void*)obj, machine)).ToArray(),
    };

    private static unsafe string Address(void* pointer, MachineParts machine) =>
        $"0x{machine.Slabs.KernelAddress(pointer):x16}";

    private static unsafe List<ulong> Slabs(ListHead* list, MachineParts machine)
    {
        var slabs = new List<ulong>();
        for (ListHead* node = list->Next; node != list; node = node->Next)
            slabs.Add(machine.Slabs.Map.PfnOf(Page.FromSlabList(node)));
        return slabs;
    }

    private static unsafe int[] Indices(KmemCache cache, Page* slab, void* first, MachineParts machine)
    {
        var indices = new List<int>();
        byte* start = machine.Slabs.Map.AddressOf(slab);
        for (void* obj = first; obj != null; obj = cache.NextFree(obj))
            indices.Add((int)(((byte*)obj - start) / cache.SlotSize));
        return [.. indices];
    }

    private static unsafe List<JsonElement[]> WriteSlabs(KmemCache cache, MachineParts machine)
    {
        var slabs = new List<JsonElement[]>();
        machine.Slabs.ForEachSlab(cache, page =>
        {
            var slab = (Page*)page;
            SlabState state = SlabState.Read(slab);
            void* first = state.HasFree ? cache.ObjectOf(slab, state.FreeIndex) : null;
            bool onList = (slab->Flags & PageFlags.SlabOnPartialList) != 0;
            string row = $"[{machine.Slabs.Map.PfnOf(slab)},{PageAllocator.CompoundOrder(slab)},"
                + $"{JsonSerializer.Serialize(cache.Name, MachineStateJson.Default.String)},{state.InUse},{state.Objects},"
                + $"{(state.Frozen ? 1 : 0)},{(onList ? 1 : 0)},[{string.Join(',', Indices(cache, slab, first, machine))}]]";
            slabs.Add(JsonSerializer.Deserialize(row, MachineStateJson.Default.JsonElementArray)!);
        });
        return slabs;
    }
}

/// <summary>What a machine's state is spread over.</summary>
/// <param name="Pages">Free lists and per-CPU lists.</param>
/// <param name="Slabs">Caches.</param>
/// <param name="Blocks">Pageblocks.</param>
/// <param name="MinFreeKbytes">vm.min_free_kbytes.</param>
internal sealed record MachineParts(PageAllocator Pages, SlabAllocator Slabs, PageblockMap Blocks, int MinFreeKbytes);
