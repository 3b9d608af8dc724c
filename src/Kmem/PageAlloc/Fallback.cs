namespace Kmem;

/// <summary>
/// Where the search in a zone starts; remembered during one refill of a per-CPU list (enum rmqueue_mode, Linux 6.18).
/// </summary>
internal enum SearchMode
{
    Normal,
    Claim,
    Steal,
}

/// <content>
/// Taking from another migrate type when the own lists are empty: <i>claim</i> a whole pageblock (largest block first,
/// so that the mixing ends there), or <i>steal</i> single blocks (smallest first).
/// </content>
internal sealed partial class Buddy
{
    /// <summary>
    /// Frames of a pageblock that must be free or alike before the whole block changes its type: half.
    /// </summary>
    private const int ClaimThreshold = PageOrder.PageblockPages / 2;

    /// <summary>vm.watermark_boost_factor: in 1/10000 of the high watermark.</summary>
    public int WatermarkBoostFactor { get; set; } = 15000;

    /// <summary>Too little memory to keep types apart: every block counts as worth claiming.</summary>
    public bool GroupingDisabled { get; set; }

    /// <summary>The attempts of one request, in order (__rmqueue).</summary>
    public unsafe Page* RmqueueLocked(int order, Migratetype type, AllocFlags flags, ref SearchMode mode, int cpu)
    {
        Page* page;
        if (mode == SearchMode.Normal)
        {
            page = TakeLocked(order, type, cpu);
            if (page != null)
                return page;
        }

        if (mode <= SearchMode.Claim)
        {
            page = ClaimLocked(order, type, flags, cpu);
            if (page != null)
            {
                mode = SearchMode.Normal;
                return page;
            }
        }

        if ((flags & AllocFlags.NoFragment) != 0)
            return null;

        page = StealLocked(order, type, cpu);
        if (page != null)
            mode = SearchMode.Steal;
        return page;
    }

    /// <summary>
    /// Moves every free block of a pageblock to the lists of another type, ascending, each to the tail, and sets the
    /// pageblock's type (move_freepages_block). The pageblock must lie within the zone.
    /// </summary>
    public unsafe void MovePageblockLocked(ulong pfn, Migratetype from, Migratetype to, int cpu)
    {
        Lock.AssertHeld();
        ulong start = pfn & ~(ulong)(PageOrder.PageblockPages - 1);
        ulong end = start + PageOrder.PageblockPages;
        for (ulong frame = start; frame < end;)
        {
            Page* page = _map.PageOf(frame);
            if (page->Type != PageType.Buddy)
            {
                frame++;
                continue;
            }

            int order = (int)page->Private;
            ListHead.Remove(&page->Lru);
            ListHead.AddTail(ListOf(order, to), &page->Lru);
            AccountLocked(-(1L << order), from, cpu);
            AccountLocked(1L << order, to, cpu);
            frame += 1UL << order;
        }

        _blocks.SetType(start, to);
    }

    private unsafe Page* ClaimLocked(int order, Migratetype wanted, AllocFlags flags, int cpu)
    {
        int lowest = (flags & AllocFlags.NoFragment) != 0 && order < PageOrder.Pageblock ? PageOrder.Pageblock : order;
        for (int current = PageOrder.Max; current >= lowest; current--)
        {
            if (!IsWorthClaiming(current, wanted))
                break;

            if (!FirstFallbackLocked(current, wanted, out Migratetype fallback))
                continue;

            Page* found = Page.FromLru(ListOf(current, fallback)->Next);
            Page* page = current >= PageOrder.Pageblock
                ? ClaimWholeLocked(found, order, current, wanted, fallback, cpu)
                : ClaimPartlyLocked(found, order, wanted, fallback, flags, cpu);
            if (page != null)
            {
                TraceFallback(page, order, current, wanted, fallback);
                return page;
            }
        }

        return null;
    }

    private unsafe Page* StealLocked(int order, Migratetype wanted, int cpu)
    {
        for (int current = order; current <= PageOrder.Max; current++)
        {
            if (!FirstFallbackLocked(current, wanted, out Migratetype fallback))
                continue;

            Page* page = Page.FromLru(ListOf(current, fallback)->Next);
            RemoveLocked(page, current);
            ExpandLocked(page, order, current, fallback);
            AccountLocked(-(1L << order), fallback, cpu);
            TraceFallback(page, order, current, wanted, fallback);
            return page;
        }

        return null;
    }

    /// <summary>A free block that is a pageblock or more: its pageblocks change hands, no questions asked.</summary>
    private unsafe Page* ClaimWholeLocked(
        Page* page, int order, int current, Migratetype wanted, Migratetype fallback, int cpu)
    {
        RemoveLocked(page, current);
        AccountLocked(-(1L << current), fallback, cpu);
        ulong pfn = _map.PfnOf(page);
        for (ulong block = pfn; block < pfn + (1UL << current); block += PageOrder.PageblockPages)
            _blocks.SetType(block, wanted);
        ExpandLocked(page, order, current, wanted);
        AccountLocked((1L << current) - (1L << order), wanted, cpu);
        return page;
    }

    /// <summary>
    /// A smaller block: the pageblock changes its type if at least half of it is free or used compatibly. Either way
    /// the watermarks are raised for a while, so that reclaim makes room before types mix further.
    /// </summary>
    private unsafe Page* ClaimPartlyLocked(
        Page* found, int order, Migratetype wanted, Migratetype fallback, AllocFlags flags, int cpu)
    {
        if (BoostWatermark() && (flags & AllocFlags.Kswapd) != 0)
            Zone.SetFlag(ZoneFlags.BoostedWatermark);

        ulong pfn = _map.PfnOf(found);
        if (!Zone.SpansPageblockOf(pfn))
            return null;

        CountPageblockLocked(pfn, out int free, out int movable);
        int alike = wanted == Migratetype.Movable ? movable
            : fallback == Migratetype.Movable ? PageOrder.PageblockPages - free - movable
            : 0;
        if (free + alike < ClaimThreshold && !GroupingDisabled)
            return null;

        MovePageblockLocked(pfn, _blocks.TypeOf(pfn), wanted, cpu);
        return TakeLocked(order, wanted, cpu);
    }

    private unsafe void CountPageblockLocked(ulong pfn, out int free, out int movable)
    {
        free = 0;
        movable = 0;
        ulong start = pfn & ~(ulong)(PageOrder.PageblockPages - 1);
        for (ulong frame = start; frame < start + PageOrder.PageblockPages;)
        {
            Page* page = _map.PageOf(frame);
            if (page->Type == PageType.Buddy)
            {
                free += 1 << (int)page->Private;
                frame += 1UL << (int)page->Private;
                continue;
            }

            if ((Page.HeadOf(page)->Flags & PageFlags.Lru) != 0)
                movable++;
            frame++;
        }
    }

    private bool IsWorthClaiming(int order, Migratetype wanted) =>
        order >= PageOrder.Pageblock / 2 || wanted != Migratetype.Movable || GroupingDisabled;

    private unsafe bool FirstFallbackLocked(int order, Migratetype wanted, out Migratetype fallback)
    {
        for (int rank = 0; rank < Migratetypes.FallbackCount; rank++)
        {
            Migratetype candidate = Migratetypes.Fallback(wanted, rank);
            if (!ListHead.IsEmpty(ListOf(order, candidate)))
            {
                fallback = candidate;
                return true;
            }
        }

        fallback = default;
        return false;
    }

    /// <summary>Raises the boost by a pageblock, up to a share of the high watermark (boost_watermark).</summary>
    private bool BoostWatermark()
    {
        if (WatermarkBoostFactor == 0 || Zone.Managed < 4 * PageOrder.PageblockPages)
            return false;

        long most = Zone.Watermarks.High * WatermarkBoostFactor / 10000;
        if (most == 0)
            return false;

        most = Math.Max(PageOrder.PageblockPages, most);
        Zone.Boost = Math.Min(Zone.Boost + PageOrder.PageblockPages, most);
        return true;
    }

    private unsafe void TraceFallback(Page* page, int order, int current, Migratetype wanted, Migratetype fallback)
    {
        Fallbacks++;
        if (Trace == null)
            return;

        ulong pfn = _map.PfnOf(page);
        Trace.MmPageAllocExtfrag(new ExtfragEvent(
            new Pfn(pfn), order, current, wanted, fallback, ChangeOwnership: _blocks.TypeOf(pfn) == wanted));
    }
}
