namespace Kmem;

/// <content>
/// The HighAtomic reserve: pageblocks set aside for high-order requests that cannot sleep, made by such requests and
/// taken back before the allocator gives up on anybody else.
/// </content>
internal sealed partial class Buddy
{
    /// <summary>
    /// Turns the pageblock of a block just given to a high-order atomic request into reserve, up to 1 % of the zone
    /// (reserve_highatomic_pageblock).
    /// </summary>
    public unsafe void ReserveHighAtomic(Page* page, int order, int cpu)
    {
        if (Zone.Managed / 100 < PageOrder.PageblockPages)
            return;

        ulong limit = RoundUpToPageblock(Zone.Managed / 100);
        if ((ulong)Zone.ReservedHighAtomic >= limit)
            return;

        Lock.Acquire();
        ulong pfn = _map.PfnOf(page);
        Migratetype type = _blocks.TypeOf(pfn);
        if ((ulong)Zone.ReservedHighAtomic < limit && type.IsMergeable())
        {
            if (order >= PageOrder.Pageblock)
            {
                for (ulong block = pfn; block < pfn + (1UL << order); block += PageOrder.PageblockPages)
                    _blocks.SetType(block, Migratetype.HighAtomic);
                Zone.ReservedHighAtomic += 1L << order;
            }
            else if (Zone.SpansPageblockOf(pfn))
            {
                MovePageblockLocked(pfn, type, Migratetype.HighAtomic, cpu);
                Zone.ReservedHighAtomic += PageOrder.PageblockPages;
            }
        }

        Lock.Release();
    }

    /// <summary>
    /// Gives one reserved pageblock to a type (unreserve_highatomic_pageblock). Unless forced, the last one stays.
    /// </summary>
    /// <returns>Whether a pageblock with free frames was given back.</returns>
    public unsafe bool UnreserveHighAtomic(Migratetype to, bool force, int cpu)
    {
        if (!force && Zone.ReservedHighAtomic <= PageOrder.PageblockPages)
            return false;

        Lock.Acquire();
        for (int order = 0; order <= PageOrder.Max; order++)
        {
            ListHead* list = ListOf(order, Migratetype.HighAtomic);
            if (ListHead.IsEmpty(list))
                continue;

            Page* page = Page.FromLru(list->Next);
            ulong pfn = _map.PfnOf(page);
            long pages = Math.Max(PageOrder.PageblockPages, 1L << order);
            Zone.ReservedHighAtomic = Math.Max(0, Zone.ReservedHighAtomic - pages);
            if (order < PageOrder.Pageblock)
            {
                MovePageblockLocked(pfn, Migratetype.HighAtomic, to, cpu);
            }
            else
            {
                ListHead.Remove(&page->Lru);
                ListHead.AddTail(ListOf(order, to), &page->Lru);
                AccountLocked(-(1L << order), Migratetype.HighAtomic, cpu);
                AccountLocked(1L << order, to, cpu);
                for (ulong block = pfn; block < pfn + (1UL << order); block += PageOrder.PageblockPages)
                    _blocks.SetType(block, to);
            }

            Lock.Release();
            return true;
        }

        Lock.Release();
        return false;
    }

    private static ulong RoundUpToPageblock(ulong pages) =>
        (pages + PageOrder.PageblockPages - 1) & ~(ulong)(PageOrder.PageblockPages - 1);
}
