namespace Kmem.Tracing;

/// <summary>
/// SVG pictures of a machine as it is: for documents, and for who wants to see. They carry a title and a description,
/// fit light and dark pages, and the same machine gives the same text.
/// </summary>
/// <remarks>They read only; no other thread may be at work on the machine.</remarks>
public static class Pictures
{
    /// <summary>The frames of some pageblocks: free blocks with their orders, and what the rest is used for.</summary>
    /// <param name="machine">The machine.</param>
    /// <param name="near">A frame; the picture begins with its pageblock.</param>
    /// <param name="pageblocks">How many pageblocks, 1 to 8.</param>
    /// <returns>SVG text.</returns>
    /// <exception cref="ArgumentException">There is no memory at that frame, or so many pageblocks are not
    /// drawn.</exception>
    public static string Buddy(Machine machine, Pfn near, int pageblocks = 1)
    {
        ArgumentNullException.ThrowIfNull(machine);
        ArgumentOutOfRangeException.ThrowIfLessThan(pageblocks, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(pageblocks, 8);
        return BuddyPicture.Draw(machine, near, pageblocks);
    }

    /// <summary>The slab that an address lies in: its objects, and the free lists as arrows.</summary>
    /// <param name="machine">The machine.</param>
    /// <param name="address">An address in a slab.</param>
    /// <returns>SVG text.</returns>
    /// <exception cref="ArgumentException">The address is in no slab.</exception>
    public static string Slab(Machine machine, VirtAddr address)
    {
        ArgumentNullException.ThrowIfNull(machine);
        return SlabPicture.Draw(machine, address);
    }

    /// <summary>The way of an address through the page tables.</summary>
    /// <param name="walk">The way, from <see cref="Machine.WalkPageTables"/> or
    /// <see cref="RecordedKernel.Walk"/>.</param>
    /// <returns>SVG text.</returns>
    public static string Walk(PageWalk walk)
    {
        ArgumentNullException.ThrowIfNull(walk);
        return WalkPicture.Draw(walk);
    }

    /// <summary>The vmalloc space: busy areas, and the tree of free blocks with the largest block of each
    /// subtree.</summary>
    /// <param name="machine">The machine; its vmalloc must have been used.</param>
    /// <returns>SVG text.</returns>
    /// <exception cref="ArgumentException">The machine has no vmalloc space yet.</exception>
    public static string Areas(Machine machine)
    {
        ArgumentNullException.ThrowIfNull(machine);
        return AreasPicture.Draw(machine);
    }

    /// <summary>What each CPU keeps for itself of a cache and of pages, and what the node has behind it.</summary>
    /// <param name="machine">The machine.</param>
    /// <param name="cache">The cache's name, for example <c>kmalloc-128</c>.</param>
    /// <returns>SVG text.</returns>
    /// <exception cref="ArgumentException">There is no such cache.</exception>
    public static string Lanes(Machine machine, string cache)
    {
        ArgumentNullException.ThrowIfNull(machine);
        ArgumentNullException.ThrowIfNull(cache);
        return LanesPicture.Draw(machine, cache);
    }

    /// <summary>
    /// Where <see cref="Buddy"/> may begin if nobody says: in the zone with the most memory, where its allocations are.
    /// </summary>
    /// <param name="machine">The machine.</param>
    /// <returns>A frame: the first of the zone that is a slab's, or the first at all.</returns>
    public static Pfn MainZone(Machine machine)
    {
        ArgumentNullException.ThrowIfNull(machine);
        ulong? first = null;
        Zone zone = machine.Pages.Zones.MaxBy(it => it.Zone.Managed)!.Zone;
        machine.Slabs.ForEachSlab(slab => first ??= InZone(machine, zone, slab));
        return new Pfn(first ?? zone.StartPfn);
    }

    private static unsafe ulong? InZone(Machine machine, Zone zone, nint slab)
    {
        ulong pfn = machine.Map.PfnOf((Page*)slab);
        return pfn >= zone.StartPfn && pfn < zone.EndPfn ? pfn : null;
    }

    /// <summary>How free memory was cut up over time.</summary>
    /// <param name="history">What <see cref="FragmentationHistory.Add"/> noted.</param>
    /// <returns>SVG text.</returns>
    /// <exception cref="ArgumentException">Nothing was noted.</exception>
    public static string Fragmentation(FragmentationHistory history)
    {
        ArgumentNullException.ThrowIfNull(history);
        return FragmentationPicture.Draw(history);
    }
}
