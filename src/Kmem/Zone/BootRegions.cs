namespace Kmem;

/// <summary>A range of physical memory, in bytes.</summary>
/// <param name="Start">The first byte's physical address.</param>
/// <param name="End">The address behind the last byte.</param>
/// <param name="Node">The NUMA node; 0 for reserved ranges, whose node nobody asks for.</param>
public readonly record struct BootRegion(ulong Start, ulong End, int Node)
{
    /// <summary>Bytes.</summary>
    public ulong Length => End - Start;
}

/// <summary>A run of whole page frames.</summary>
/// <param name="Start">The first frame's number.</param>
/// <param name="End">The number behind the last frame.</param>
/// <param name="Node">The NUMA node.</param>
public readonly record struct BootPages(ulong Start, ulong End, int Node)
{
    /// <summary>Frames.</summary>
    public ulong Count => End - Start;
}

/// <summary>
/// Operations on a sorted list of regions that neither overlap nor touch, unless their nodes differ. They return new
/// lists, so that a caller can look at a result before it takes it.
/// </summary>
internal static class BootRegions
{
    /// <summary>Adds the parts of <paramref name="added"/> that no region covers yet: where ranges overlap, the older
    /// one keeps its node. Kernel: memblock_add_range, mm/memblock.c, Linux 6.18.</summary>
    public static List<BootRegion> Add(List<BootRegion> regions, BootRegion added)
    {
        var result = new List<BootRegion>(regions.Count + 1);
        ulong from = added.Start;                      // what lies below is settled
        foreach (BootRegion region in regions)
        {
            if (from < region.Start && from < added.End)
                Append(result, added with { Start = from, End = Math.Min(region.Start, added.End) });
            Append(result, region);
            from = Math.Max(from, region.End);
        }
        if (from < added.End) Append(result, added with { Start = from });
        return result;
    }

    /// <summary>Cuts a range out. Kernel: memblock_remove_range, mm/memblock.c, Linux 6.18.</summary>
    public static List<BootRegion> Remove(List<BootRegion> regions, ulong start, ulong end)
    {
        var result = new List<BootRegion>(regions.Count + 1);
        if (start >= end) end = start;
        foreach (BootRegion region in regions)
        {
            if (region.Start < start) Append(result, region with { End = Math.Min(region.End, start) });
            if (region.End > end) Append(result, region with { Start = Math.Max(region.Start, end) });
        }
        return result;
    }

    /// <summary>Gives the memory between two borders to the node of that number: below the first border node 0.
    /// </summary>
    public static List<BootRegion> CutIntoNodes(List<BootRegion> regions, ReadOnlySpan<ulong> borders)
    {
        var result = new List<BootRegion>(regions.Count + borders.Length);
        foreach (BootRegion region in regions)
        {
            ulong from = region.Start;
            for (int node = 0; node < borders.Length; node++)
            {
                ulong to = Math.Min(borders[node], region.End);
                if (from >= to) continue;
                Append(result, new BootRegion(from, to, node));
                from = to;
            }
            if (from < region.End) Append(result, new BootRegion(from, region.End, borders.Length));
        }
        return result;
    }

    /// <summary>What of <paramref name="regions"/> no region of <paramref name="holes"/> covers, ascending, each part
    /// inside one region. Kernel: for_each_free_mem_range, include/linux/memblock.h, Linux 6.18.</summary>
    public static IEnumerable<BootRegion> Without(List<BootRegion> regions, List<BootRegion> holes)
    {
        int next = 0;
        foreach (BootRegion region in regions)
        {
            ulong from = region.Start;
            while (next < holes.Count && holes[next].End <= from) next++;
            for (int i = next; i < holes.Count && holes[i].Start < region.End; i++)
            {
                if (from < holes[i].Start) yield return region with { Start = from, End = holes[i].Start };
                from = holes[i].End;
            }
            if (from < region.End) yield return region with { Start = from };
        }
    }

    /// <summary>The index of the region that holds this address; −1 if none does.</summary>
    public static int IndexOf(List<BootRegion> regions, ulong address)
    {
        int low = 0, high = regions.Count - 1;
        while (low <= high)
        {
            int middle = (low + high) >>> 1;
            if (address < regions[middle].Start) high = middle - 1;
            else if (address >= regions[middle].End) low = middle + 1;
            else return middle;
        }
        return -1;
    }

    private static void Append(List<BootRegion> regions, BootRegion region)
    {
        if (regions.Count > 0 && regions[^1].End == region.Start && regions[^1].Node == region.Node)
            regions[^1] = regions[^1] with { End = region.End };
        else
            regions.Add(region);
    }
}
