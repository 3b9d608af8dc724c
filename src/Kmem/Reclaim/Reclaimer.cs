using System.Diagnostics.CodeAnalysis;

namespace Kmem;

/// <summary>
/// What a machine does when memory is short, from the moment on that somebody registered something to reclaim. Until
/// then the page allocator has the base class, which does nothing, and so behaves exactly as before.
/// <code>
///   slow path ─▶ WakeKswapd                          no zone above LOW
///             ─▶ DirectReclaim ─▶ for p = 12 … 0:    no zone above MIN
///                                   each node: LRU pages (size &gt;&gt; p), then all shrinkers at p
///                                   until 32 frames are back
///             ─▶ DirectCompact                       frames enough, but no block
///             ─▶ OutOfMemory                         the report, and the policy's answer
/// </code>
/// </summary>
/// <remarks>mm/vmscan.c, Linux 6.18: try_to_free_pages, shrink_node, shrink_slab.</remarks>
internal sealed partial class Reclaimer : ReclaimHooks
{
    private readonly PageAllocator _pages;
    private readonly SlabAllocator _slabs;
    private readonly CpuSet _cpus;
    private readonly Lock _lists = new();

    // The last reclaim of this thread was in somebody's way, see ReclaimableFrames.
    [ThreadStatic]
    private static bool t_stopped;

    private Shrinker[] _shrinkers = [];
    private ILru[] _lrus = [];

    public Reclaimer(
        PageAllocator pages, SlabAllocator slabs, CpuSet cpus, MemMap map, PageblockMap blocks, KernelLog log)
    {
        _pages = pages;
        _slabs = slabs;
        _cpus = cpus;
        Log = log;
        Compactor = new Compactor(pages, cpus, map, blocks, log, Counters);
        _kswapds = [.. pages.Nodes.Select(node => new Kswapd(this, pages, node, cpus.Count))];
    }

    public KernelLog Log { get; }

    public ReclaimCounters Counters { get; } = new();

    public Compactor Compactor { get; }

    public int Nodes => _pages.Nodes.Count;

    /// <summary>In the order of their registration, which is the order in which they are called.</summary>
    public IReadOnlyList<Shrinker> Shrinkers => Volatile.Read(ref _shrinkers);

    /// <summary>This thread.</summary>
    public unsafe CpuTask* Task => _cpus.Current;

    public override bool RetriesOnProgress => true;

    /// <summary>Adds a shrinker at the end of the list (shrinker_register).</summary>
    public Shrinker Register(ShrinkerSettings settings)
    {
        var shrinker = new Shrinker(this, settings);
        lock (_lists)
            Volatile.Write(ref _shrinkers, [.. _shrinkers, shrinker]);
        return shrinker;
    }

    public void Unregister(Shrinker shrinker)
    {
        lock (_lists)
            Volatile.Write(ref _shrinkers, [.. _shrinkers.Where(other => other != shrinker)]);
    }

    public void Add(ILru lru)
    {
        lock (_lists)
            Volatile.Write(ref _lrus, [.. _lrus, lru]);
    }

    public void Remove(ILru lru)
    {
        lock (_lists)
            Volatile.Write(ref _lrus, [.. _lrus.Where(other => other != lru)]);
    }

    /// <summary>
    /// Pages that could go. A shrinker that has objects and said Stop is as good as that: whoever holds its lock will
    /// let it go.
    /// </summary>
    public override long ReclaimableFrames(Node node)
    {
        long frames = t_stopped ? (long)node.PresentPages : 0;
        foreach (ILru lru in Volatile.Read(ref _lrus))
            frames += lru.Evictable(node.Id);
        return frames;
    }

    /// <inheritdoc/>
    public override long DirectReclaim(int order, Gfp gfp, Zone[] zones)
    {
        if (zones.Length == 0)
            return 0;

        Throttle(gfp, zones);
        Interlocked.Increment(ref Counters.AllocStall[(int)gfp.HighestZone()]);
        var scan = new ScanControl(ReclaimActor.Direct, gfp, order, ScanControl.Cluster);
        for (; scan.Priority >= 0; scan.Priority--)
        {
            bool compactionReady = ShrinkZones(zones, scan);
            if (scan.Reclaimed >= scan.Target)
                break;
            if (compactionReady)
                return Math.Max(1, scan.Reclaimed);
        }

        t_stopped = scan.Stopped && scan.Reclaimed == 0;
        if (t_stopped)
            Pause.For(1); // reclaim_throttle
        return scan.Reclaimed;
    }

    /// <summary>
    /// Reclaims without being short of memory, from all nodes (a write to memory.reclaim of the root, or node/reclaim).
    /// </summary>
    /// <returns>Frames that came back; fewer than asked for if there is no more.</returns>
    public unsafe long Proactive(long frames, Gfp gfp)
    {
        CpuTask* task = Task;
        _pages.CheckContext(gfp, task);
        TaskFlags before = task->Flags;
        task->Flags |= TaskFlags.MemAlloc;
        try
        {
            var scan = new ScanControl(ReclaimActor.Proactive, gfp, 0, frames);
            while (ProactiveRound(scan) && scan.Reclaimed < frames)
            {
            }

            return scan.Reclaimed;
        }
        finally
        {
            task->Flags = before;
        }
    }

    /// <summary>All priorities once, or as far as it takes.</summary>
    /// <returns>Whether anything came back.</returns>
    private bool ProactiveRound(ScanControl scan)
    {
        long before = scan.Reclaimed;
        for (scan.Priority = ScanControl.DefaultPriority; scan.Priority >= 0; scan.Priority--)
        {
            foreach (Node node in _pages.Nodes)
                ShrinkNode(node, scan);
            if (scan.Reclaimed >= scan.Target)
                return true;
        }

        return scan.Reclaimed > before;
    }

    /// <summary>One pass over a node: pages first, then shrinkers, at one priority (shrink_node).</summary>
    public unsafe void ShrinkNode(Node node, ScanControl scan)
    {
        long before = Task->Reclaimed;
        if (scan.MaySwap)
        {
            foreach (ILru lru in Volatile.Read(ref _lrus))
                ShrinkLru(lru, node, scan, Task->Reclaimed - before);
        }

        foreach (Shrinker shrinker in Volatile.Read(ref _shrinkers))
            shrinker.Shrink(scan, node.Id);

        // What came back while this thread was at it: whole slabs count, single objects of busy slabs do not.
        long reclaimed = Math.Max(0, Task->Reclaimed - before);
        scan.Reclaimed += reclaimed;
        if (reclaimed > 0)
            node.KswapdFailures = 0;
    }

    /// <summary>kcompactd's turn: kswapd has made room and goes to sleep.</summary>
    public unsafe void CompactInBackground(Node node, int order, ZoneType highest)
    {
        CpuTask* task = Task;
        TaskFlags before = task->Flags;
        task->Flags |= TaskFlags.MemAlloc;
        Compactor.Background(node, order, highest);
        task->Flags = before;
    }

    /// <inheritdoc/>
    public override CompactResult DirectCompact(int order, Gfp gfp, CompactPriority priority, Zone[] zones) =>
        Compactor.Direct(order, gfp, priority, zones);

    /// <summary>Compacts all zones from end to end.</summary>
    public unsafe CompactionReport CompactAll()
    {
        CpuTask* task = Task;
        _pages.CheckContext(Gfp.Kernel, task);
        TaskFlags before = task->Flags;
        task->Flags |= TaskFlags.MemAlloc;
        try
        {
            return Compactor.All();
        }
        finally
        {
            task->Flags = before;
        }
    }

    /// <summary>Writes a report to the log and throws it.</summary>
    [DoesNotReturn]
    public void ThrowBug(string report) => _pages.ThrowBug(report);

    /// <summary>
    /// Each node of the list once, but for zones in which compaction can already bring a costly block.
    /// </summary>
    /// <returns>Whether there was such a zone.</returns>
    private bool ShrinkZones(Zone[] zones, ScanControl scan)
    {
        bool compactionReady = false;
        int last = -1;
        foreach (Zone zone in zones)
        {
            if (scan.Order > PageOrder.Costly
                && Compactor.Movable.HasOwners
                && Compactor.IsSuitable(_pages.ZoneOf(zone.StartPfn), scan.Order, scan.Gfp.HighestZone()))
            {
                compactionReady = true;
                continue;
            }

            // The zones of a node follow each other in the list: each node once.
            if (zone.NodeId == last)
                continue;
            last = zone.NodeId;
            ShrinkNode(_pages.Nodes[zone.NodeId], scan);
        }

        return compactionReady;
    }

    /// <summary>
    /// The part of a list that the priority says, in clusters, until the target is reached (shrink_lruvec).
    /// </summary>
    private void ShrinkLru(ILru lru, Node node, ScanControl scan, long reclaimedHere)
    {
        long wanted = lru.Evictable(node.Id) >> scan.Priority;
        long reclaimed = reclaimedHere;
        while (wanted > 0 && scan.Reclaimed + reclaimed < scan.Target)
        {
            (long scanned, long freed) = lru.Shrink(node.Id, Math.Min(wanted, ScanControl.Cluster), scan.Gfp);
            reclaimed += freed;
            scan.Scanned += scanned;
            Interlocked.Add(ref ScanCounter(scan.Actor), scanned);
            Interlocked.Add(ref StealCounter(scan.Actor), freed);
            if (scanned == 0)
                return;
            wanted -= scanned;
        }
    }

    private ref long ScanCounter(ReclaimActor actor)
    {
        if (actor == ReclaimActor.Kswapd)
            return ref Counters.PgScanKswapd;
        if (actor == ReclaimActor.Proactive)
            return ref Counters.PgScanProactive;
        return ref Counters.PgScanDirect;
    }

    private ref long StealCounter(ReclaimActor actor)
    {
        if (actor == ReclaimActor.Kswapd)
            return ref Counters.PgStealKswapd;
        if (actor == ReclaimActor.Proactive)
            return ref Counters.PgStealProactive;
        return ref Counters.PgStealDirect;
    }
}
