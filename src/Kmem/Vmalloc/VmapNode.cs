using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// One of the shards of the address space (<c>struct vmap_node</c>, mm/vmalloc.c, Linux 6.9 to 6.18): the busy areas
/// whose start falls to it, the lazily freed ones, and pools of areas by size for reuse.
/// <code>
///   address / 64 KiB:   … | 0 | 1 | 2 | 3 | 0 | 1 | 2 | 3 | …     the node of an area that starts there
///
///   pool[size in pages − 1]:  taken at the front ◀─ [newest] … [oldest]     pushed at the front by a purge
/// </code>
/// </summary>
internal sealed class VmapNode : IDisposable
{
    /// <summary>Number of pools: areas of up to 256 pages, guard page included.</summary>
    public const int MaxPoolPages = 256;

    private unsafe VmapNodeLists* _lists;
    private SpinLock _poolLock = new(LockRank.VmapPool);
    private SpinLock _busyLock = new(LockRank.VmapBusy);
    private SpinLock _lazyLock = new(LockRank.VmapLazy);

    /// <summary>Opens the locks that this thread held when its operation broke off.</summary>
    public void BreakLocks()
    {
        _poolLock.Break();
        _busyLock.Break();
        _lazyLock.Break();
    }

    public unsafe VmapNode(int id)
    {
        Id = id;

        // Native memory, because list entries point to the lists' ends.
        _lists = (VmapNodeLists*)NativeMemory.AlignedAlloc((nuint)sizeof(VmapNodeLists), 64);
        Clear();
    }

    public int Id { get; }

    /// <summary>A full purge is under way: nothing is put into the pools.</summary>
    public bool SkipPopulate { get; set; }

    /// <summary>Areas found by the last purge and not yet processed, by address.</summary>
    public unsafe VmapTree* Purging => &_lists->Purging;

    public unsafe VmapTree* Busy => &_lists->Busy;

    public unsafe VmapTree* Lazy => &_lists->Lazy;

    public unsafe void Dispose()
    {
        NativeMemory.AlignedFree(_lists);
        _lists = null;
    }

    /// <summary>Empties everything; the objects have been dealt with.</summary>
    public unsafe void Clear()
    {
        VmapTree.Init(Busy);
        VmapTree.Init(Lazy);
        VmapTree.Init(Purging);
        for (int i = 0; i < MaxPoolPages; i++)
        {
            ListHead.Init(&_lists->PoolAt(i)->List);
            _lists->PoolAt(i)->Length = 0;
        }
    }

    public unsafe bool InsertBusy(VmapArea* area)
    {
        _busyLock.Acquire();
        bool done = VmapTree.Insert<NoAugment>(Busy, area);
        _busyLock.Release();
        return done;
    }

    /// <summary>The busy area that contains an address, or null.</summary>
    public unsafe VmapArea* FindBusy(ulong address, bool unlink)
    {
        _busyLock.Acquire();
        VmapArea* area = VmapTree.Find(Busy, address);
        if (area != null && unlink)
            RemoveBusyLocked(area);
        _busyLock.Release();
        return area;
    }

    /// <summary>
    /// Takes the area that starts at an address out of the busy tree, in one step with looking at its flags: of two
    /// threads that free it, one gets null.
    /// </summary>
    /// <param name="start">Its first byte.</param>
    /// <param name="refuse">An area with one of these flags is left alone; one without a vm_struct is, too.</param>
    /// <param name="mark">If not none: the area gets these flags and stays.</param>
    /// <param name="need">It must have all of these.</param>
    public unsafe VmapArea* TakeBusy(ulong start, VmFlags refuse, VmFlags mark, VmFlags need = VmFlags.None)
    {
        _busyLock.Acquire();
        VmapArea* area = VmapTree.Find(Busy, start);
        if (area != null && (area->Start != start || area->Vm == null || (area->Vm->Flags & refuse) != 0
            || (area->Vm->Flags & need) != need))
        {
            area = null;
        }

        if (area != null && mark != VmFlags.None)
            area->Vm->Flags |= mark;
        else if (area != null)
            RemoveBusyLocked(area);
        _busyLock.Release();
        return area;
    }

    /// <summary>
    /// Takes an area of vm_map_ram that is no block out of the busy tree, if one of so many pages starts there.
    /// </summary>
    public unsafe VmapArea* TakeRam(ulong start, ulong pages)
    {
        _busyLock.Acquire();
        VmapArea* area = VmapTree.Find(Busy, start);
        const ulong Kind = (ulong)(VmapAreaFlags.Ram | VmapAreaFlags.Block);
        bool fits = area != null && area->Start == start && area->Pages == pages
            && (area->Flags & Kind) == (ulong)VmapAreaFlags.Ram;
        if (fits)
            RemoveBusyLocked(area);
        else
            area = null;
        _busyLock.Release();
        return area;
    }

    /// <summary>
    /// Calls with each busy area (a VmapArea*) by address. The lock is held: no allocation, no sleeping.
    /// </summary>
    public unsafe void ForEachBusy(Action<nint> visit)
    {
        _busyLock.Acquire();
        for (VmapArea* area = VmapTree.First(Busy); area != null; area = VmapTree.Next(Busy, area))
            visit((nint)area);
        _busyLock.Release();
    }

    /// <summary>The bounds of the lazily free areas by address.</summary>
    public unsafe List<VmapRange> LazyRanges()
    {
        var ranges = new List<VmapRange>();
        _lazyLock.Acquire();
        for (VmapArea* area = VmapTree.First(Lazy); area != null; area = VmapTree.Next(Lazy, area))
            ranges.Add(new VmapRange(area->Start, area->End));
        _lazyLock.Release();
        return ranges;
    }

    /// <summary>
    /// The bounds of the lowest busy area that ends above an address. Bounds and not the area: without the lock it may
    /// be gone.
    /// </summary>
    public unsafe VmapRange? FindBusyFrom(ulong address)
    {
        _busyLock.Acquire();
        VmapArea* area = VmapTree.FindFrom(Busy, address);
        VmapRange? range = area == null ? null : new VmapRange(area->Start, area->End);
        _busyLock.Release();
        return range;
    }

    public unsafe bool InsertLazy(VmapArea* area)
    {
        _lazyLock.Acquire();
        bool done = VmapTree.Insert<NoAugment>(Lazy, area);
        _lazyLock.Release();
        return done;
    }

    /// <summary>Moves all lazy areas to <see cref="Purging"/> and tells the bounds; false if there are none.</summary>
    public unsafe bool DetachLazy(ref ulong start, ref ulong end)
    {
        if (VmapTree.First(Lazy) == null)
            return false;

        _lazyLock.Acquire();
        VmapArea* area = VmapTree.First(Lazy);
        if (area != null)
        {
            start = Math.Min(start, area->Start);
            end = Math.Max(end, VmapArea.FromList(Lazy->List.Prev)->End);
            Move(Lazy, Purging);
        }

        _lazyLock.Release();
        return area != null;
    }

    /// <summary>Takes the front area of its size's pool if its alignment suits; else moves that to the back.</summary>
    public unsafe VmapArea* TakeFromPool(in VmapRequest request)
    {
        VmapPool* pool = PoolFor(request.Size);
        if (pool == null || Volatile.Read(ref pool->Length) == 0)
            return null;

        _poolLock.Acquire();
        VmapArea* area = TakeFrontLocked(pool, request);
        _poolLock.Release();
        return area;
    }

    /// <summary>The area that <see cref="TakeFromPool"/> would return now, or null.</summary>
    public unsafe VmapArea* PeekPool(in VmapRequest request)
    {
        VmapPool* pool = PoolFor(request.Size);
        if (pool == null || ListHead.IsEmpty(&pool->List))
            return null;

        VmapArea* area = VmapArea.FromList(pool->List.Next);
        return (area->Start & (request.Align - 1)) == 0 ? area : null;
    }

    /// <summary>Puts an area at the front of its size's pool; false if it is too large for any.</summary>
    public unsafe bool PutIntoPool(VmapArea* area)
    {
        VmapPool* pool = PoolFor(area->Size);
        if (pool == null)
            return false;

        _poolLock.Acquire();
        ListHead.AddHead(&pool->List, &area->List);
        Volatile.Write(ref pool->Length, pool->Length + 1);
        _poolLock.Release();
        return true;
    }

    /// <summary>
    /// Decay of one size (decay_va_pool_node): removes a quarter of the pool from the front, or all of it, and hands
    /// the areas over one by one. Meanwhile other CPUs see an empty pool.
    /// </summary>
    public unsafe void DecayPool(int index, bool all, FreeVmapTree into)
    {
        VmapPool* pool = _lists->PoolAt(index);
        if (Volatile.Read(ref pool->Length) == 0)
            return;

        ListHead taken;
        _poolLock.Acquire();
        MoveList(&pool->List, &taken);
        int length = pool->Length;
        Volatile.Write(ref pool->Length, 0);
        _poolLock.Release();

        int remove = all ? length : length / 4;
        for (int i = 0; i < remove; i++)
        {
            VmapArea* area = VmapArea.FromList(taken.Next);
            ListHead.Remove(&area->List);
            Bug.On(!into.Merge(area), "an area is in a pool twice");
        }

        if (length == remove)
            return;

        // Only a purge fills pools, and decay is a part of it, so nothing was added meanwhile.
        _poolLock.Acquire();
        Bug.On(!ListHead.IsEmpty(&pool->List), "a pool was filled while it decayed");
        MoveList(&taken, &pool->List);
        Volatile.Write(ref pool->Length, length - remove);
        _poolLock.Release();
    }

    /// <summary>Areas in the pools.</summary>
    public unsafe long CountPooled()
    {
        long count = 0;
        for (int i = 0; i < MaxPoolPages; i++)
            count += Volatile.Read(ref _lists->PoolAt(i)->Length);
        return count;
    }

    /// <summary>The pool of areas of a number of pages, 1 to 256; for reports and checks.</summary>
    public unsafe VmapPool* PoolOfPages(int pages) => _lists->PoolAt(pages - 1);

    private unsafe void RemoveBusyLocked(VmapArea* area)
    {
        _busyLock.AssertHeld();
        VmapTree.Remove<NoAugment>(Busy, area);
    }

    private unsafe VmapArea* TakeFrontLocked(VmapPool* pool, in VmapRequest request)
    {
        _poolLock.AssertHeld();
        if (ListHead.IsEmpty(&pool->List))
            return null;

        VmapArea* area = VmapArea.FromList(pool->List.Next);
        Bug.On(area->Size != request.Size, "an area is in the pool of another size");
        ListHead.Remove(&area->List);
        if ((area->Start & (request.Align - 1)) == 0)
        {
            Volatile.Write(ref pool->Length, pool->Length - 1);
            return area;
        }

        ListHead.AddTail(&pool->List, &area->List);
        return null;
    }

    private unsafe VmapPool* PoolFor(ulong size)
    {
        ulong index = (size - 1) >> Pfn.PageShift;
        return index < MaxPoolPages ? _lists->PoolAt((int)index) : null;
    }

    private static unsafe void Move(VmapTree* from, VmapTree* to)
    {
        Bug.On(!ListHead.IsEmpty(&to->List), "a purge begins before the last one ended");
        MoveList(&from->List, &to->List);
        to->Root = from->Root;
        from->Root = null;
    }

    private static unsafe void MoveList(ListHead* from, ListHead* to)
    {
        ListHead.Init(to);
        if (ListHead.IsEmpty(from))
            return;

        *to = *from;
        to->Next->Prev = to;
        to->Prev->Next = to;
        ListHead.Init(from);
    }
}

/// <summary>Areas of one size that wait for reuse, newest first (<c>struct vmap_pool</c>).</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct VmapPool
{
    public ListHead List;
    public int Length;
}

/// <summary>The trees and lists of a <see cref="VmapNode"/>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct VmapNodeLists
{
    public VmapTree Busy;
    public VmapTree Lazy;
    public VmapTree Purging;
    private PoolArray _pools;

    public unsafe VmapPool* PoolAt(int index)
    {
        fixed (PoolArray* first = &_pools)
            return (VmapPool*)first + index;
    }

    [System.Runtime.CompilerServices.InlineArray(VmapNode.MaxPoolPages)]
    private struct PoolArray
    {
        private VmapPool _first;
    }
}
