using System.Text.Json;

namespace Kmem.Tracing;

/// <summary>Where two states of a machine differ, list by list and field by field.</summary>
internal static class StateComparison
{
    public static IReadOnlyList<string> Compare(MachineState expected, MachineState came)
    {
        var differences = new List<string>();
        foreach (ZoneState zone in expected.Zones.Where(zone => zone.Present > 0))
        {
            ZoneState? other = came.Zones.FirstOrDefault(its => its.Index == zone.Index);
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
        string name = $"zone {expected.Name}";
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
                Expect(
                    expected.FreeArea[order].Lists[type],
                    came.FreeArea[order].Lists[type],
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
            Expect(expected.Lists[list], came.Lists[list], $"{name} pcp list {list}", differences);
    }

    private static void CompareCache(CacheState expected, CacheState came, List<string> differences)
    {
        string name = $"cache {expected.Name}";
        for (int cpu = 0; cpu < expected.Cpu.Count; cpu++)
        {
            CacheCpuState its = expected.Cpu[cpu];
            CacheCpuState other = came.Cpu[cpu];
            Expect(its.Slab, other.Slab, $"{name} cpu {cpu} slab", differences);
            Expect(string.Join(' ', its.Freelist), string.Join(' ', other.Freelist), $"{name} cpu {cpu} freelist", differences);
            Expect(string.Join(' ', its.Partial), string.Join(' ', other.Partial), $"{name} cpu {cpu} partial", differences);
            if (its.Sheaves == null)
                continue;

            Expect(Text(its.Sheaves.Main), Text(other.Sheaves?.Main), $"{name} cpu {cpu} main sheaf", differences);
            Expect(Text(its.Sheaves.Spare), Text(other.Sheaves?.Spare), $"{name} cpu {cpu} spare sheaf", differences);
            Expect(Text(its.Sheaves.RcuFree), Text(other.Sheaves?.RcuFree), $"{name} cpu {cpu} rcu sheaf", differences);
        }

        Expect(
            string.Join(' ', expected.Node.Partial), string.Join(' ', came.Node.Partial), $"{name} partial list", differences);
        Expect(expected.Node.NrSlabs, came.Node.NrSlabs, $"{name} slabs", differences);
        Expect(expected.Node.TotalObjects, came.Node.TotalObjects, $"{name} objects", differences);
        if (expected.Barn == null)
            return;
        Expect(Text(expected.Barn.Full), Text(came.Barn?.Full), $"{name} full sheaves", differences);
        Expect(Text(expected.Barn.Empty), Text(came.Barn?.Empty), $"{name} empty sheaves", differences);
    }

    private static string Text(SheafState? sheaf) =>
        sheaf == null ? "" : $"{sheaf.Addr}:{string.Join(',', sheaf.Objects)}";

    private static string Text(IReadOnlyList<SheafState>? sheaves) =>
        string.Join(' ', (sheaves ?? []).Select(Text));

    private static void CompareSlabs(MachineState expected, MachineState came, List<string> differences)
    {
        Dictionary<ulong, string> left = Index(expected);
        Dictionary<ulong, string> right = Index(came);
        foreach ((ulong pfn, string row) in left)
            Expect(row, right.GetValueOrDefault(pfn), $"slab 0x{pfn:x}", differences);
        foreach (ulong pfn in right.Keys.Where(pfn => !left.ContainsKey(pfn)))
            differences.Add($"slab 0x{pfn:x}: {right[pfn]} is not there in the kernel");
    }

    private static Dictionary<ulong, string> Index(MachineState state) =>
        state.Slabs.ToDictionary(slab => slab[0].GetUInt64(), slab => JsonSerializer.Serialize(slab, MachineStateJson.Default.JsonElementArray));
}
