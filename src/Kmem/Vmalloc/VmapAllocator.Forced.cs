namespace Kmem;

/// <content>Following somebody else's decisions: a replay that is told another address than it chose.</content>
internal sealed partial class VmapAllocator
{
    /// <summary>
    /// Allocates exactly the range that a recording names, from wherever it is: a pool, free space, or what should not
    /// be free at all and is then taken from its owner. Nobody else may be at work.
    /// </summary>
    /// <param name="start">The address.</param>
    /// <param name="request">The request that the address answered.</param>
    /// <param name="cpu">The CPU of the request.</param>
    /// <returns>The area; null if it does not lie within the address space or there is no memory.</returns>
    public unsafe VmapArea* TakeAt(ulong start, in VmapRequest request, int cpu)
    {
        ulong end = start + request.Size;
        if (!request.IsValid || start < SpaceStart || end <= start)
            return null;

        VmapArea* area = TakePooled(start, end);
        if (area == null)
        {
            FreeOverlapping(start, end);
            area = _objects.Alloc(Gfp.Kernel);
            VmapArea* block = _free.FindAtOrBelow(start);
            if (area == null
                || block == null
                || block->Start > start
                || block->End < end
                || _free.Cut(block, start, request.Size, ref _spare[cpu]) != VmapError.None)
            {
                _objects.Free(area);
                return null;
            }

            area->Start = start;
            area->End = end;
        }

        area->Flags = VmapArea.FlagsOf(request.Flags, PoolNodeFor(request, cpu));
        area->Vm = null;
        bool inserted = NodeOf(start).InsertBusy(area);
        Bug.On(!inserted, "an area was given out twice");
        return area;
    }

    /// <summary>
    /// As <see cref="TakeAt"/>, where another address was foretold: the pool that had been asked first, and whose front
    /// area did not suit, has rotated all the same.
    /// </summary>
    public unsafe VmapArea* Follow(ulong start, in VmapRequest request, int cpu)
    {
        int pool = PoolNodeFor(request, cpu);
        if (pool >= 0 && _nodes[pool].PeekPool(request) == null)
            _nodes[pool].TakeFromPool(request);
        VmapArea* area = TakeAt(start, request, cpu);
        if (area != null)
            Trace?.AllocVmapArea(start, request, failed: false);
        return area;
    }

    /// <summary>Makes an object the spare one of a CPU, if that has none.</summary>
    public unsafe bool GiveSpare(int cpu, ulong obj)
    {
        if (_spare[cpu] != 0)
            return false;

        _spare[cpu] = _objects.Restored(obj);
        return true;
    }

    private unsafe VmapArea* TakePooled(ulong start, ulong end)
    {
        ulong pages = (end - start) >> Pfn.PageShift;
        if (pages > VmapNode.MaxPoolPages)
            return null;

        foreach (VmapNode node in _nodes)
        {
            VmapPool* pool = node.PoolOfPages((int)pages);
            for (ListHead* entry = pool->List.Next; entry != &pool->List; entry = entry->Next)
            {
                if (VmapArea.FromList(entry)->Start == start)
                {
                    ListHead.Remove(entry);
                    pool->Length--;
                    return VmapArea.FromList(entry);
                }
            }
        }

        return null;
    }

    private unsafe void FreeOverlapping(ulong start, ulong end)
    {
        foreach (VmapNode node in _nodes)
        {
            FreeOverlapping(node.Busy, start, end, isTree: true);
            long lazy = FreeOverlapping(node.Lazy, start, end, isTree: true)
                + FreeOverlapping(node.Purging, start, end, isTree: false);
            _lazyPages -= lazy;
            for (int pages = 1; pages <= VmapNode.MaxPoolPages; pages++)
            {
                VmapPool* pool = node.PoolOfPages(pages);
                for (ListHead* entry = pool->List.Next; entry != &pool->List;)
                {
                    VmapArea* area = VmapArea.FromList(entry);
                    entry = entry->Next;
                    if (area->Start < end && area->End > start)
                    {
                        ListHead.Remove(&area->List);
                        pool->Length--;
                        MergeLocked(area);
                    }
                }
            }
        }
    }

    /// <summary>Frees what overlaps a range; the lists of a purge under way have no tree any more.</summary>
    /// <returns>Pages freed.</returns>
    private unsafe long FreeOverlapping(VmapTree* tree, ulong start, ulong end, bool isTree)
    {
        long pages = 0;
        VmapArea* area = isTree ? VmapTree.FindFrom(tree, start) : VmapTree.First(tree);
        while (area != null && area->Start < end)
        {
            VmapArea* next = VmapTree.Next(tree, area);
            if (area->End > start)
            {
                pages += (long)area->Pages;
                if (isTree)
                    VmapTree.Remove<NoAugment>(tree, area);
                else
                    ListHead.Remove(&area->List);
                MergeLocked(area);
            }

            area = next;
        }

        return pages;
    }
}
