using System.Globalization;

namespace Kmem.Tracing;

/// <summary>Where two states of a machine differ, list by list and field by field.</summary>
internal static class StateComparison
{
    public static IReadOnlyList<string> Compare(MachineState expected, MachineState came)
    {
        var differences = new List<string>();
        foreach (ZoneState zone in expected.Zones.Where(zone => zone.Present > 0))
        {
            ZoneState? other = came.Zones.FirstOrDefault(its => its.Index == zone.Index && its.Node == zone.Node);
            if (other == null)
                differences.Add($"zone {zone.Name} is missing");
            else
                CompareZone(zone, other, differences);
        }

        foreach (CacheState cache in expected.Caches)
        {
            CacheState? other = came.Caches.FirstOrDefault(its => its.Name == cache.Name);
            if (other == null)
                differences.Add($"cache {cache.Name} is missing");
            else
                CompareCache(cache, other, differences);
        }

        CompareSlabs(expected, came, differences);
        if (expected.Vmap is { } vmap)
            CompareVmap(vmap, came.Vmap, differences);
        return differences;
    }

    private static void Expect<T>(T expected, T came, string what, List<string> differences)
    {
        if (!EqualityComparer<T>.Default.Equals(expected, came))
            differences.Add($"{what}: expected {Short(expected)}, came {Short(came)}");
    }

    private static string Short<T>(T value)
    {
        string text = value?.ToString() ?? "nothing";
        return text.Length <= 120 ? text : text[..120] + "…";
    }

    private static void CompareZone(ZoneState expected, ZoneState came, List<string> differences)
    {
        string name = expected.Node == 0 ? $"zone {expected.Name}" : $"node {expected.Node} zone {expected.Name}";
        Expect(string.Join(' ', expected.Watermark), string.Join(' ', came.Watermark), $"{name} watermarks", differences);
        Expect(expected.WatermarkBoost, came.WatermarkBoost, $"{name} boost", differences);
        Expect(expected.NrReservedHighatomic, came.NrReservedHighatomic, $"{name} reserved highatomic", differences);
        Expect(expected.NrFreeHighatomic, came.NrFreeHighatomic, $"{name} free highatomic", differences);
        Expect(expected.Flags, came.Flags, $"{name} flags", differences);
        Expect(expected.PageblockMt, came.PageblockMt, $"{name} pageblock types", differences);

        // When a CPU goes idle its difference is folded, which no event shows: the sum is what both agree on.
        Expect(Free(expected), Free(came), $"{name} free pages", differences);
        for (int order = 0; order < expected.FreeArea.Count; order++)
        {
            for (int type = 0; type < expected.FreeArea[order].Lists.Count; type++)
            {
                ExpectList(
                    expected.FreeArea[order].Lists[type],
                    came.FreeArea[order].Lists.ElementAtOrDefault(type),
                    $"{name} free list of order {order}, type {type}",
                    differences);
            }
        }

        for (int cpu = 0; cpu < expected.Pcp.Count; cpu++)
            ComparePcp(expected.Pcp[cpu], came.Pcp[cpu], $"{name} cpu {cpu}", differences);
    }

    private static long Free(ZoneState zone) => zone.VmStatNrFreePages + zone.Zonestat.Sum(stat => stat.NrFreePagesDiff);

    private static void ComparePcp(PcpState expected, PcpState came, string name, List<string> differences)
    {
        Expect(expected.Count, came.Count, $"{name} pcp count", differences);
        Expect(expected.High, came.High, $"{name} pcp high", differences);
        Expect(expected.Flags, came.Flags, $"{name} pcp flags", differences);
        Expect(expected.AllocFactor, came.AllocFactor, $"{name} pcp alloc_factor", differences);
        Expect(expected.FreeCount, came.FreeCount, $"{name} pcp free_count", differences);
        for (int list = 0; list < expected.Lists.Count; list++)
            ExpectList(expected.Lists[list], came.Lists.ElementAtOrDefault(list), $"{name} pcp list {list}", differences);
    }

    private static void CompareCache(CacheState expected, CacheState came, List<string> differences)
    {
        string name = $"cache {expected.Name}";
        for (int cpu = 0; cpu < expected.Cpu.Count; cpu++)
        {
            CacheCpuState its = expected.Cpu[cpu];
            CacheCpuState other = came.Cpu[cpu];
            Expect(its.Slab, other.Slab, $"{name} cpu {cpu} slab", differences);
            ExpectList(its.Freelist, other.Freelist, $"{name} cpu {cpu} freelist", differences);
            ExpectList(its.Partial, other.Partial, $"{name} cpu {cpu} partial", differences);
            if (its.Sheaves == null)
                continue;

            Expect(Text(its.Sheaves.Main), Text(other.Sheaves?.Main), $"{name} cpu {cpu} main sheaf", differences);
            Expect(Text(its.Sheaves.Spare), Text(other.Sheaves?.Spare), $"{name} cpu {cpu} spare sheaf", differences);
            Expect(Text(its.Sheaves.RcuFree), Text(other.Sheaves?.RcuFree), $"{name} cpu {cpu} rcu sheaf", differences);
        }

        CompareNode(expected.Node, expected.Barn, came.Node, came.Barn, name, differences);
        for (int node = 1; node <= (expected.OtherNodes?.Count ?? 0); node++)
        {
            CacheNodeState its = expected.OtherNodes![node - 1];
            CacheNodeState? other = came.OtherNodes?.ElementAtOrDefault(node - 1);
            if (other == null)
                differences.Add($"{name} has no part of node {node}");
            else
                CompareNode(its, its.Barn, other, other.Barn, $"{name} node {node}", differences);
        }
    }

    private static void CompareNode(
        CacheNodeState expected, BarnState? barn, CacheNodeState came, BarnState? other, string name, List<string> differences)
    {
        ExpectList(expected.Partial, came.Partial, $"{name} partial list", differences);
        Expect(expected.NrSlabs, came.NrSlabs, $"{name} slabs", differences);
        Expect(expected.TotalObjects, came.TotalObjects, $"{name} objects", differences);
        if (barn == null)
            return;
        Expect(Text(barn.Full), Text(other?.Full), $"{name} full sheaves", differences);
        Expect(Text(barn.Empty), Text(other?.Empty), $"{name} empty sheaves", differences);
    }

    private static string Text(SheafState? sheaf) =>
        sheaf == null ? "" : $"{sheaf.Addr:x}:{string.Join(',', sheaf.Objects.Select(obj => obj.ToString("x", CultureInfo.InvariantCulture)))}";

    private static string Text(IReadOnlyList<SheafState>? sheaves) =>
        string.Join(' ', (sheaves ?? []).Select(Text));

    private static void CompareSlabs(MachineState expected, MachineState came, List<string> differences)
    {
        Dictionary<ulong, SlabRow> right = came.Slabs.ToDictionary(slab => slab.Pfn);
        foreach (SlabRow its in expected.Slabs)
        {
            if (!right.Remove(its.Pfn, out SlabRow? other))
                differences.Add($"slab 0x{its.Pfn:x}: expected {Short(its)}, came nothing");
            else if (!(its with { Free = other.Free }).Equals(other) || !its.Free.AsSpan().SequenceEqual(other.Free))
                differences.Add($"slab 0x{its.Pfn:x}: expected {Short(its)}, came {Short(other)}");
        }

        foreach (SlabRow slab in right.Values)
            differences.Add($"slab 0x{slab.Pfn:x}: {Short(slab)} is not there in the kernel");
    }

    private static void CompareVmap(VmapState expected, VmapState? came, List<string> differences)
    {
        if (came == null)
        {
            differences.Add("vmap is missing");
            return;
        }

        ExpectList(expected.Free, came.Free, "vmap free tree", differences);
        for (int node = 0; node < expected.Nodes.Length && node < came.Nodes.Length; node++)
        {
            VmapNodeState its = expected.Nodes[node];
            VmapNodeState other = came.Nodes[node];
            ExpectList(Plain(its.Busy), Plain(other.Busy), $"vmap busy {node}", differences);
            ExpectList(Plain(its.Lazy), Plain(other.Lazy), $"vmap lazy {node}", differences);
            foreach (int pages in its.Pools.Keys.Union(other.Pools.Keys).Order())
            {
                ExpectList(
                    Plain(its.Pools.GetValueOrDefault(pages, [])),
                    Plain(other.Pools.GetValueOrDefault(pages, [])),
                    $"vmap pool {node}/{pages}",
                    differences);
            }
        }

        Expect(expected.Nodes.Length, came.Nodes.Length, "vmap nodes", differences);
        ExpectList(expected.Spare, came.Spare, "vmap spare objects", differences);
        Expect(expected.LazyPages, came.LazyPages, "vmap lazy pages", differences);
    }

    /// <summary>What both sides know of an area: its place, flags and object; a replay has no vm_structs.</summary>
    private static VmapAreaState[] Plain(List<VmapAreaState> areas) =>
        areas.Select(area => area with { Vm = 0, Struct = null }).ToArray();

    /// <summary>Where two lists first differ says more than their beginnings.</summary>
    private static void ExpectList<T>(
        IReadOnlyList<T> expected, IReadOnlyList<T>? came, string what, List<string> differences)
    {
        came ??= [];
        int at = 0;
        while (at < expected.Count && at < came.Count && EqualityComparer<T>.Default.Equals(expected[at], came[at]))
            at++;
        if (at == expected.Count && at == came.Count)
            return;

        string left = at < expected.Count ? Short(expected[at]) : "the end";
        string right = at < came.Count ? Short(came[at]) : "the end";
        differences.Add($"{what} [{at}]: expected {left}, came {right}");
    }
}
