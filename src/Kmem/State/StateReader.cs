using System.Globalization;
using System.Text.Json;

namespace Kmem;

/// <summary>Puts a <see cref="MachineState"/> into the parts of a machine that has no free frame and no cache yet.</summary>
internal static class StateReader
{
    /// <summary>The frame after the last one of any zone.</summary>
    public static ulong EndPfn(MachineState state) => state.Zones.Max(zone => zone.StartPfn + zone.Spanned);

    /// <summary>One node with the zones of the state; absent ones are empty.</summary>
    public static Node[] LayOut(MachineState state, PageblockMap blocks)
    {
        var node = new Node(0, Enumerable.Range(0, state.NrCpu).ToArray());
        for (int type = 0; type < ZoneTypes.Count; type++)
        {
            ZoneState its = state.Zones.FirstOrDefault(zone => zone.Index == type) ?? new ZoneState();
            node.Zones[type] = new Zone(type, 0, (ZoneType)type, its.StartPfn, its.Spanned, its.Present, state.NrCpu);
            for (int i = 0; i < its.PageblockMt.Length; i++)
            {
                ulong pfn = (its.PageblockFirst + (ulong)i) << PageOrder.Pageblock;
                blocks.SetZone(pfn, type);
                if (its.PageblockMt[i] == '-')
                    continue;

                blocks.SetPresent(pfn);
                blocks.SetType(pfn, (Migratetype)(its.PageblockMt[i] - '0'));
                if (i < its.PageblockSkip.Length)
                    blocks.SetSkip(pfn, its.PageblockSkip[i] == '1');
            }
        }

        Node[] nodes = [node];
        Zonelist.BuildAll(nodes, (_, _) => 10);
        return nodes;
    }

    public static void Restore(
        MachineState state,
        PageAllocator pages,
        SlabAllocator slabs,
        KmallocAllocator kmalloc,
        MemMap map)
    {
        foreach (ZonePages zone in pages.Zones)
            RestoreZone(state.Zones.First(its => its.Index == zone.Zone.Index), zone, map);
        foreach (ulong[] run in state.LruPages)
            RestoreLru(run[0], run[1], map);
        RestoreCaches(state, slabs, kmalloc);
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
                foreach (ulong pfn in Frames(area.Lists[type]))
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
            foreach (ulong pfn in Frames(state.Lists[list]))
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
        foreach (CacheState its in state.Caches)
            byName[its.Name] = slabs.Restore(its.Name, GeometryOf(its), its.Refcount, its.SheafCapacity);

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

        foreach (JsonElement[] slab in state.Slabs)
            RestoreSlab(slab, byName[slab[2].GetString()!]);
        foreach (CacheState its in state.Caches)
        {
            for (int cpu = 0; cpu < its.Cpu.Count; cpu++)
            {
                CacheCpuState here = its.Cpu[cpu];
                byName[its.Name].RestoreCpu(cpu, here.Slab, here.Freelist.ToArray(), here.Partial);
            }

            byName[its.Name].RestoreNode(0, its.Node.Partial);
            if (its.SheafCapacity > 0)
                RestoreSheaves(its, byName[its.Name]);
        }
    }

    private static void RestoreSlab(JsonElement[] slab, KmemCache cache) =>
        cache.RestoreSlab(
            slab[0].GetUInt64(),
            slab[1].GetInt32(),
            inUse: slab[3].GetInt32(),
            objects: slab[4].GetInt32(),
            frozen: slab[5].GetInt32() != 0,
            slab[7].EnumerateArray().Select(index => index.GetInt32()).ToArray());

    private static void RestoreSheaves(CacheState state, KmemCache cache)
    {
        for (int cpu = 0; cpu < state.Cpu.Count; cpu++)
        {
            CpuSheavesState? its = state.Cpu[cpu].Sheaves;
            cache.RestoreSheavesOf(cpu, Place(cache, its?.Main), Place(cache, its?.Spare), Place(cache, its?.RcuFree));
        }

        // Pushed at the head: from the last one to the first.
        foreach (SheafState sheaf in (state.Barn?.Full ?? []).Reverse())
            cache.RestoreInBarn(Place(cache, sheaf), full: true);
        foreach (SheafState sheaf in (state.Barn?.Empty ?? []).Reverse())
            cache.RestoreInBarn(Place(cache, sheaf), full: false);
        foreach (SheafState sheaf in state.DetachedSheaves ?? [])
            Place(cache, sheaf);
    }

    private static nint Place(KmemCache cache, SheafState? sheaf) =>
        sheaf == null ? 0 : cache.RestoreSheaf(Hex(sheaf.Addr), sheaf.Objects.Select(Hex).ToArray());

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
        Flags = (SlabFlags)Hex(state.Flags) & ~SlabFlagMask.CmpxchgDouble,
        AllocFlags = (Gfp)Hex(state.Allocflags),
    };

    private static IEnumerable<ulong> Frames(string list) =>
        list.Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(text => ulong.Parse(text, CultureInfo.InvariantCulture));

    private static ulong Hex(string text) =>
        ulong.Parse(
            text.AsSpan(text.StartsWith("0x", StringComparison.Ordinal) ? 2 : 0),
            NumberStyles.HexNumber,
            CultureInfo.InvariantCulture);
}
