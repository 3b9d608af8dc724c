namespace Kmem;

/// <summary>The invariants of pages that may be moved and of swap areas. No other thread may be at work.</summary>
internal static class ReclaimValidator
{
    public static unsafe IReadOnlyList<BrokenRule> Run(
        Reclaimer reclaimer, PageAllocator pages, MemMap map, IEnumerable<SwapArea> areas)
    {
        var broken = new List<BrokenRule>();
        foreach (ZonePages zone in reclaimer.Compactor.Movable.HasOwners ? pages.Zones : [])
        {
            for (ulong pfn = zone.Zone.StartPfn; pfn < zone.Zone.EndPfn; pfn++)
            {
                if (!pages.HasMemory(zone.Zone, pfn))
                    pfn |= PageOrder.PageblockPages - 1;
                else if (MovablePages.IsMarked(map.PageOf(pfn)))
                    CheckMovable(reclaimer.Compactor.Movable, map.PageOf(pfn), pfn, broken);
            }
        }

        foreach (SwapArea area in areas)
            broken.AddRange(area.Faults().Select(found => Describe(found.Fault, found.Page)));
        return broken;
    }

    private static BrokenRule Describe(SwapFault fault, int page) => fault switch
    {
        SwapFault.Frame => new BrokenRule("SWAPAREA-01", $"page {page}: its frame belongs to another page"),
        SwapFault.List => new BrokenRule("SWAPAREA-02", $"page {page}: could go and is not listed, or the reverse"),
        SwapFault.Slot => new BrokenRule("SWAPAREA-03", $"page {page}: its slot is another page's, too"),
        _ => new BrokenRule("SWAPAREA-04", $"page {page}: its addresses do not show its frame"),
    };

    private static unsafe void CheckMovable(MovablePages movable, Page* page, ulong pfn, List<BrokenRule> broken)
    {
        (bool isWhole, bool isAtRest) = movable.Check(page);
        if (!isWhole)
            broken.Add(new BrokenRule("MOVABLE-01", $"frame 0x{pfn:x} may be moved, and is no single frame in use with an owner"));
        if (!isAtRest)
            broken.Add(new BrokenRule("MOVABLE-02", $"frame 0x{pfn:x} is isolated, and nobody moves it"));
    }
}
