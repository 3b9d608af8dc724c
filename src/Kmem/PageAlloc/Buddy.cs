using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// The free blocks of one zone: for each order 0 … 10 and each migrate type a list. A block of order n is 2ⁿ frames at
/// a multiple of 2ⁿ; its first descriptor has type Buddy and the order.
/// <code>
///   take(order 1) out of an order-3 block:           free(order 1) merges back while the buddy is free:
///   |0 1 2 3 4 5 6 7|                                 buddy(pfn, o) = pfn ^ (1 &lt;&lt; o)
///   |taken| o1 |  order 2  |   upper halves to the    merged(pfn, o) = pfn &amp; buddy(pfn, o)
///                              heads of their lists
/// </code>
/// All members ending in <c>Locked</c> need <see cref="Lock"/>.
/// </summary>
/// <remarks>mm/page_alloc.c, Linux 6.18: __free_one_page, __rmqueue_smallest, expand.</remarks>
internal sealed partial class Buddy : IDisposable
{
    /// <summary>Lists of an order, one per migrate type.</summary>
    public const int Types = Migratetypes.Count;

    private readonly MemMap _map;
    private readonly PageblockMap _blocks;
    private readonly unsafe ListHead* _lists;
    private readonly unsafe long* _nrFree;
    private Func<ulong>? _random; // where a freed block goes in its list; null for the kernel's choice

    /// <summary>Protects the lists and the zone's counters. A field, not a property: a lock is never copied.</summary>
    public SpinLock Lock = new(LockRank.Zone);

    public unsafe Buddy(Zone zone, MemMap map, PageblockMap blocks)
    {
        Zone = zone;
        _map = map;
        _blocks = blocks;
        _lists = (ListHead*)NativeMemory.AlignedAlloc((nuint)(sizeof(ListHead) * Types * PageOrder.Count), 64);
        _nrFree = (long*)NativeMemory.AllocZeroed(PageOrder.Count, sizeof(long));
        for (int list = 0; list < Types * PageOrder.Count; list++)
            ListHead.Init(_lists + list);
    }

    public Zone Zone { get; }

    public ITrace? Trace { get; set; }

    /// <summary>Blocks of another migrate type that were taken; changes under the zone's lock.</summary>
    public long Fallbacks { get; private set; }

    /// <summary>
    /// Blocks that were split for a smaller one, and the last of them; changes under the zone's lock.
    /// </summary>
    public BlockCount Splits;

    /// <summary>
    /// Blocks that came back and merged, and what the last of them became; changes under the zone's lock.
    /// </summary>
    public BlockCount Merges;

    /// <summary>Number of free blocks of an order, all types.</summary>
    public unsafe long NrFree(int order) => Volatile.Read(ref _nrFree[order]);

    /// <summary>The head of a free list; walk it only with the lock held.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe ListHead* ListOf(int order, Migratetype type) => _lists + (order * Types) + (int)type;

    /// <summary>
    /// Puts a block back and merges it with its buddies as far as they are free. The position in the list follows the
    /// kernel: the head, unless the caller or the chance of a further merge asks for the tail.
    /// </summary>
    public unsafe void FreeOneLocked(Page* page, int order, Migratetype type, FreeFlags flags, int cpu)
    {
        ulong pfn = _map.PfnOf(page);
        Bug.OnVm((pfn & ((1UL << order) - 1)) != 0, "misaligned block");
        AccountLocked(1L << order, type, cpu);
        int given = order;
        while (order < PageOrder.Max)
        {
            ulong buddyPfn = pfn ^ (1UL << order);
            Page* buddy = _map.PageOf(buddyPfn);
            if (!IsFreeBlock(buddy, buddyPfn, order))
                break;

            if (order >= PageOrder.Pageblock)
            {
                // Whole pageblocks meet: their types may differ, and some types never mix.
                Migratetype buddyType = _blocks.TypeOf(buddyPfn);
                if (buddyType != type && (!type.IsMergeable() || !buddyType.IsMergeable()))
                    break;
                RemoveLocked(buddy, order);
                if (buddyType != type)
                    _blocks.SetType(buddyPfn, type);
            }
            else
            {
                RemoveLocked(buddy, order);
            }

            pfn &= buddyPfn;
            order++;
        }

        if (order > given)
            Merges.Add(pfn, given, order);
        bool tail = (flags & FreeFlags.ToTail) != 0
            || (_random == null ? IsMergeLikely(pfn, order) : (_random() & 1) != 0);
        AddLocked(_map.PageOf(pfn), order, type, tail);
    }

    /// <summary>
    /// Puts the free blocks of each list in random order; from now on freed ones go to either end by chance
    /// (__shuffle_zone and shuffle_pick_tail, mm/shuffle.c, Linux 6.18, there for the largest blocks only).
    /// </summary>
    public unsafe void Shuffle(Func<ulong> random)
    {
        Lock.Acquire();
        _random = random;
        for (int list = 0; list < Types * PageOrder.Count; list++)
        {
            ListHead* head = _lists + list;
            var blocks = new List<nint>();
            for (ListHead* entry = head->Next; entry != head; entry = entry->Next)
                blocks.Add((nint)entry);
            ListHead.Init(head);
            for (int left = blocks.Count; left > 0; left--)
            {
                int taken = (int)(random() % (ulong)left);
                ListHead.AddTail(head, (ListHead*)blocks[taken]);
                blocks[taken] = blocks[left - 1];
            }
        }

        Lock.Release();
    }

    /// <summary>
    /// Frees a block that may be larger than a pageblock: in pageblock-sized pieces, each with the type of its own
    /// pageblock (split_large_buddy).
    /// </summary>
    public unsafe void FreeLocked(Page* page, int order, FreeFlags flags, int cpu)
    {
        ulong pfn = _map.PfnOf(page);
        int pieceOrder = Math.Min(order, PageOrder.Pageblock);
        ulong end = pfn + (1UL << order);
        for (; pfn < end; pfn += 1UL << pieceOrder)
            FreeOneLocked(_map.PageOf(pfn), pieceOrder, _blocks.TypeOf(pfn), flags, cpu);
    }

    /// <summary>
    /// Takes a block from the lists of one type: the smallest sufficient one, its lowest part; what is split off goes
    /// to the heads of the lower lists.
    /// </summary>
    /// <returns>The block, unlinked, or null.</returns>
    public unsafe Page* TakeLocked(int order, Migratetype type, int cpu)
    {
        for (int current = order; current <= PageOrder.Max; current++)
        {
            ListHead* list = ListOf(current, type);
            if (ListHead.IsEmpty(list))
                continue;

            Page* page = Page.FromLru(list->Next);
            RemoveLocked(page, current);
            if (current > order)
                Splits.Add(_map.PfnOf(page), order, current);
            ExpandLocked(page, order, current, type);
            AccountLocked(-(1L << order), type, cpu);
            if (Trace != null)
                TraceTaken(page, order, current, type);
            return page;
        }

        return null;
    }

    private unsafe void TraceTaken(Page* page, int order, int found, Migratetype type)
    {
        var pfn = new Pfn(_map.PfnOf(page));
        Trace!.MmPageAllocZoneLocked(pfn, order, type, PerCpuPages.IsPcpOrder(order) && type.IsMergeable());
        Trace.BlockFound(pfn, order, found, type);
    }

    /// <summary>Appends a free block to its list; counters are set by <see cref="Zone"/>.Restore.</summary>
    public unsafe void Restore(ulong pfn, int order, Migratetype type)
    {
        Lock.Acquire();
        AddLocked(_map.PageOf(pfn), order, type, tail: true);
        Lock.Release();
    }

    /// <summary>
    /// Puts a block in use in the place of a free one of the same order, or of a part of a larger free one, which
    /// becomes the one in use.
    /// </summary>
    /// <returns>False if the other block is not free.</returns>
    public unsafe bool TryExchange(Page* page, Page* other, int order, int cpu)
    {
        if (!TryClaim(other, order, cpu))
            return false;

        Lock.Acquire();
        FreeOneLocked(page, order, _blocks.TypeOf(_map.PfnOf(page)), FreeFlags.None, cpu);
        Lock.Release();
        return true;
    }

    /// <summary>Takes a given block out of the free ones, or out of a larger free one that it is a part of.</summary>
    public unsafe bool TryClaim(Page* other, int order, int cpu)
    {
        ulong wanted = _map.PfnOf(other);
        Lock.Acquire();
        for (int current = order; current <= PageOrder.Max; current++)
        {
            ulong start = wanted & ~((1UL << current) - 1);
            Page* head = _map.PageOf(start);
            if (!IsFreeBlock(head, start, current))
                continue;

            Migratetype type = _blocks.TypeOf(start);
            RemoveLocked(head, current);
            AccountLocked(-(1L << order), type, cpu);
            for (int part = current - 1; part >= order; part--)
            {
                // The half without the wanted block stays free.
                ulong half = wanted & ~((1UL << part) - 1);
                AddLocked(_map.PageOf(half ^ (1UL << part)), part, type, tail: false);
            }

            Lock.Release();
            return true;
        }

        Lock.Release();
        return false;
    }

    /// <summary>
    /// Takes a free block of this order as a place to move pages to (__isolate_free_page, mm/page_alloc.c, Linux 6.18).
    /// A large one makes its pageblocks Movable: that is what will be in them.
    /// </summary>
    public unsafe void IsolateLocked(Page* page, int order, int cpu)
    {
        ulong pfn = _map.PfnOf(page);
        RemoveLocked(page, order);
        AccountLocked(-(1L << order), _blocks.TypeOf(pfn), cpu);
        if (order < PageOrder.Pageblock - 1)
            return;

        ulong end = pfn + (1UL << order);
        for (ulong block = pfn & ~(ulong)(PageOrder.PageblockPages - 1); block < end; block += PageOrder.PageblockPages)
        {
            Migratetype type = _blocks.TypeOf(block);
            if (type.IsMergeable() && Zone.SpansPageblockOf(block))
                MovePageblockLocked(block, type, Migratetype.Movable, cpu);
        }
    }

    /// <summary>
    /// Whether a request of this order and type would find a block without stealing: of its type, or one whose
    /// pageblock it may claim (compact_finished).
    /// </summary>
    public unsafe bool HasBlockLocked(int order, Migratetype type)
    {
        for (int current = order; current <= PageOrder.Max; current++)
        {
            if (!ListHead.IsEmpty(ListOf(current, type))
                || (IsWorthClaiming(current, type) && FirstFallbackLocked(current, type, out _)))
            {
                return true;
            }
        }

        return false;
    }

    /// <summary>Whether a free block of exactly this order starts at this frame of this zone.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe bool IsFreeBlock(Page* page, ulong pfn, int order) =>
        page->Type == PageType.Buddy && page->Private == (ulong)order && _blocks.ZoneOf(pfn) == Zone.Index;

    /// <summary>
    /// Gives the memory of free blocks of at least <paramref name="minOrder"/> back to the host, once for each block
    /// until it is used again (free page reporting). The zone is locked block by block, not for the whole walk.
    /// </summary>
    /// <returns>Frames given back.</returns>
    public unsafe ulong Report(int minOrder, Func<ulong, ulong, bool> release, int cpu)
    {
        ulong reported = 0;
        for (int order = PageOrder.Max; order >= minOrder; order--)
        {
            for (int type = 0; type < Types; type++)
            {
                while (true)
                {
                    Lock.Acquire();
                    Page* page = FirstUnreportedLocked(order, (Migratetype)type);
                    if (page != null)
                    {
                        // Off the lists while the host works on it, so that nobody gets a block that is being emptied.
                        RemoveLocked(page, order);
                        AccountLocked(-(1L << order), (Migratetype)type, cpu);
                    }

                    Lock.Release();
                    if (page == null)
                        break;

                    if (!ReleaseOne(page, order, release, cpu))
                        return reported;
                    reported += 1UL << order;
                }
            }
        }

        return reported;
    }

    public unsafe void Dispose()
    {
        NativeMemory.AlignedFree(_lists);
        NativeMemory.Free(_nrFree);
    }

    /// <summary>Releases a block that is off the lists, and puts it back whatever comes of it.</summary>
    private unsafe bool ReleaseOne(Page* page, int order, Func<ulong, ulong, bool> release, int cpu)
    {
        ulong pfn = _map.PfnOf(page);
        bool released = false;
        try
        {
            released = release(pfn, 1UL << order);
        }
        finally
        {
            Lock.Acquire();
            FreeOneLocked(page, order, _blocks.TypeOf(pfn), FreeFlags.ToTail, cpu); // the type may have changed
            if (released && page->Type == PageType.Buddy && page->Private == (ulong)order)
                page->Flags |= PageFlags.Reported;
            Lock.Release();
        }

        return released;
    }

    private unsafe Page* FirstUnreportedLocked(int order, Migratetype type)
    {
        // Reported blocks go to the tail, so the walk stops after the fresh ones at the head in the usual case.
        ListHead* list = ListOf(order, type);
        for (ListHead* node = list->Next; node != list; node = node->Next)
        {
            Page* page = Page.FromLru(node);
            if ((page->Flags & PageFlags.Reported) == 0)
                return page;
        }

        return null;
    }

    /// <summary>
    /// Whether the block could soon complete a merge two levels up: then it goes to the tail and stays free longer
    /// (buddy_merge_likely).
    /// </summary>
    private unsafe bool IsMergeLikely(ulong pfn, int order)
    {
        if (order >= PageOrder.Max - 1)
            return false;

        ulong parent = pfn & ~(1UL << order);
        ulong uncle = parent ^ (1UL << (order + 1));
        return IsFreeBlock(_map.PageOf(uncle), uncle, order + 1);
    }

    /// <summary>
    /// Splits a block of order <paramref name="high"/> down to <paramref name="low"/>, keeping the lower part.
    /// </summary>
    private unsafe void ExpandLocked(Page* page, int low, int high, Migratetype type)
    {
        while (high > low)
        {
            high--;
            AddLocked(page + (1L << high), high, type, tail: false);
        }
    }

    private unsafe void AddLocked(Page* page, int order, Migratetype type, bool tail)
    {
        Lock.AssertHeld();
        page->Type = PageType.Buddy;
        page->Private = (ulong)order;
        ListHead* list = ListOf(order, type);
        if (tail)
            ListHead.AddTail(list, &page->Lru);
        else
            ListHead.AddHead(list, &page->Lru);
        _nrFree[order]++;
        if (order >= PageOrder.Pageblock)
            Zone.FreePagesInBlocks += 1L << order;
    }

    private unsafe void RemoveLocked(Page* page, int order)
    {
        Lock.AssertHeld();
        Bug.OnVm(page->Type != PageType.Buddy || page->Private != (ulong)order, "not a free block of this order");
        ListHead.Remove(&page->Lru);
        page->Flags &= ~PageFlags.Reported;
        page->Type = PageType.None;
        page->Private = 0;
        _nrFree[order]--;
        if (order >= PageOrder.Pageblock)
            Zone.FreePagesInBlocks -= 1L << order;
    }

    /// <summary>Books free frames of a type. Isolated ones do not count as free.</summary>
    private void AccountLocked(long pages, Migratetype type, int cpu)
    {
        Lock.AssertHeld();
        if (type == Migratetype.Isolate)
            return;

        Zone.AddFreePagesLocked(pages, cpu);
        if (type == Migratetype.HighAtomic)
            Zone.FreeHighAtomic += pages;
    }
}
