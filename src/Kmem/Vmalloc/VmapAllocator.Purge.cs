namespace Kmem;

/// <summary>A purge under way.</summary>
internal struct VmapPurge
{
    /// <summary>Bounds of what was found; ~0 and 0 while nothing was.</summary>
    public ulong Start;
    public ulong End;

    /// <summary>The pools are emptied and not filled.</summary>
    public bool Full;

    /// <summary>Areas reclaimed so far.</summary>
    public uint Purged;

    public static VmapPurge Begin(bool full) => new() { Start = ulong.MaxValue, Full = full };
}

/// <content>
/// Making lazily freed addresses usable again. A purge consists of steps, each of which takes effect at one instant:
/// <code>
///   for each node:  Detach   pools decay, lazy areas are set aside
///   once:           Flush    nothing is reachable through them any more
///   for each node:  Reclaim  they go to the node's pools or to the free tree
///   once:           End      the tracepoint
/// </code>
/// </content>
internal sealed partial class VmapAllocator
{
    /// <summary>
    /// Purges all lazy areas (__purge_vmap_area_lazy). May sleep.
    /// </summary>
    /// <param name="full">Also empties the pools, and leaves them empty.</param>
    /// <returns>Whether there was anything to purge.</returns>
    public bool PurgeLazy(bool full)
    {
        SimPoint.Gate(_purgeLock);
        lock (_purgeLock)
        {
            VmapPurge purge = VmapPurge.Begin(full);
            return PurgeLocked(ref purge);
        }
    }

    /// <summary>What a failed allocation does (reclaim_and_purge_vmap_areas).</summary>
    public void ReclaimAndPurge()
    {
        SimPoint.Gate(_purgeLock);
        lock (_purgeLock)
        {
            VmapPurge purge = VmapPurge.Begin(full: true);
            ulong start = ulong.MaxValue;
            ulong end = 0;
            Backend?.PurgeFragmentedBlocks(force: true, ref start, ref end);
            PurgeLocked(ref purge);
        }
    }

    /// <summary>After this no freed address of the vmalloc space reaches anything (vm_unmap_aliases).</summary>
    /// <param name="start">Further addresses to flush: ~0 for none.</param>
    /// <param name="end">Their end: 0 for none.</param>
    public void UnmapAliases(ulong start = ulong.MaxValue, ulong end = 0)
    {
        SimPoint.Gate(_purgeLock);
        lock (_purgeLock)
        {
            bool flush = end > start;
            flush |= Backend?.PurgeFragmentedBlocks(force: false, ref start, ref end) == true;
            VmapPurge purge = VmapPurge.Begin(full: false);
            purge.Start = start;
            purge.End = end;
            if (!PurgeLocked(ref purge) && flush)
                Backend?.Flush(start, end, []);
        }
    }

    /// <summary>Number of areas in pools (the vmap-node shrinker's count).</summary>
    public long CountPooled() => _nodes.Sum(node => node.CountPooled());

    /// <summary>Empties all pools into the free tree (the vmap-node shrinker's scan; drop_caches).</summary>
    public void ShrinkPools()
    {
        SimPoint.Gate(_purgeLock);
        lock (_purgeLock)
        {
            foreach (VmapNode node in _nodes)
                DecayPools(node, all: true);
        }
    }

    /// <summary>One node's first step. The purge lock is held, or nobody else is at work.</summary>
    /// <returns>Whether the node had lazy areas.</returns>
    internal bool Detach(VmapNode node, ref VmapPurge purge)
    {
        DecayPools(node, purge.Full);
        node.SkipPopulate = purge.Full;
        return node.DetachLazy(ref purge.Start, ref purge.End);
    }

    /// <summary>One node's second step: areas of a known node go to its pools, the others to the free tree.</summary>
    internal unsafe void Reclaim(VmapNode node, ref VmapPurge purge)
    {
        long pages = 0;
        VmapTree* found = node.Purging;
        for (VmapArea* area = VmapTree.First(found); area != null;)
        {
            VmapArea* next = VmapTree.Next(found, area);
            pages += (long)area->Pages;
            purge.Purged++;
            if (area->NodeId >= 0 && area->NodeId < _nodes.Length && !node.SkipPopulate)
            {
                ListHead.Remove(&area->List);
                if (!node.PutIntoPool(area))
                    ListHead.AddTail(next == null ? &found->List : &next->List, &area->List);
            }

            area = next;
        }

        Interlocked.Add(ref _lazyPages, -pages);

        // Downwards: of two areas that touch, the upper one is in the tree when the lower one comes.
        _freeLock.Acquire();
        while (!ListHead.IsEmpty(&found->List))
        {
            VmapArea* last = VmapArea.FromList(found->List.Prev);
            ListHead.Remove(&last->List);
            MergeLocked(last);
        }

        _freeLock.Release();
        VmapTree.Init(found);
    }

    /// <summary>The last step.</summary>
    internal void EndPurge(in VmapPurge purge) => Trace?.PurgeVmapAreaLazy(purge.Start, purge.End, purge.Purged);

    private bool PurgeLocked(ref VmapPurge purge)
    {
        bool any = false;
        foreach (VmapNode node in _nodes)
            any |= Detach(node, ref purge);

        if (any)
        {
            Backend?.Flush(purge.Start, purge.End, DetachedRanges());

            // The kernel spreads this over CPUs when there is much of it; each node's work is the same then.
            foreach (VmapNode node in _nodes)
                Reclaim(node, ref purge);
        }

        EndPurge(purge);
        return any;
    }

    private unsafe List<VmapRange> DetachedRanges()
    {
        var ranges = new List<VmapRange>();
        foreach (VmapNode node in _nodes)
        {
            VmapTree* found = node.Purging;
            for (VmapArea* area = VmapTree.First(found); area != null; area = VmapTree.Next(found, area))
                ranges.Add(new VmapRange(area->Start, area->End));
        }

        return ranges;
    }

    /// <summary>
    /// Decay of a node's pools: what is removed melts together first and then goes to the free tree, lowest address
    /// first.
    /// </summary>
    internal unsafe void DecayPools(VmapNode node, bool all)
    {
        for (int i = 0; i < VmapNode.MaxPoolPages; i++)
            node.DecayPool(i, all, _decaying);
        if (_decaying.First == null)
            return;

        _freeLock.Acquire();
        for (VmapArea* area = _decaying.First; area != null;)
        {
            VmapArea* next = _decaying.Next(area);
            ListHead.Remove(&area->List);
            MergeLocked(area);
            area = next;
        }

        _freeLock.Release();
        _decaying.Clear();
    }

    private unsafe void ScheduleDrain()
    {
        if (DrainScheduler is { } schedule)
            schedule();
        else if (_cpus.Current->MaySleep && !_purgeLock.IsHeldByCurrentThread)
            PurgeLazy(full: false);
        else
            Volatile.Write(ref _drainPending, 1);
    }

    private void DrainIfPending()
    {
        if (Volatile.Read(ref _drainPending) != 0 && Interlocked.Exchange(ref _drainPending, 0) != 0)
            PurgeLazy(full: false);
    }
}
