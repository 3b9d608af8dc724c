namespace Kmem;

/// <summary>
/// Makes large blocks of scattered free frames by moving pages. Two scanners in a zone go towards each other:
/// <code>
///   zone start                                                              zone end
///   │ ●○●○ │ ○●○○ │ …                                     … │ ○○●○ │ ○●○○ │
///   migrate scanner ──▶  pages that may be moved   free frames  ◀── free scanner
///   │ ○○○○ │ ○○○○ │ …        ● moves from here to there      … │ ●●●● │ ●●●○ │
/// </code>
/// </summary>
/// <remarks>
/// mm/compaction.c, Linux 6.18: compact_zone, isolate_migratepages, isolate_freepages, compact_finished. The kernel's
/// fast searches through the free lists and the capture of freed blocks are not here: they find the same blocks sooner.
/// </remarks>
internal sealed class Compactor
{
    /// <summary>Pages that are moved at once (COMPACT_CLUSTER_MAX).</summary>
    private const int Cluster = 32;

    /// <summary>vm.extfrag_threshold: below it a costly request fails for lack of memory, not of blocks.</summary>
    private const int ExtfragThreshold = 500;

    private readonly PageAllocator _pages;
    private readonly CpuSet _cpus;
    private readonly MemMap _map;
    private readonly PageblockMap _blocks;
    private readonly KernelLog _log;
    private readonly ReclaimCounters _counters;
    private readonly Dictionary<int, CompactMemory> _memory;

    public Compactor(
        PageAllocator pages, CpuSet cpus, MemMap map, PageblockMap blocks, KernelLog log, ReclaimCounters counters)
    {
        _pages = pages;
        _cpus = cpus;
        _map = map;
        _blocks = blocks;
        _log = log;
        _counters = counters;
        _memory = pages.Zones.ToDictionary(zone => zone.Zone.Index, _ => new CompactMemory());
        Movable = new MovablePages(pages, map);
    }

    public MovablePages Movable { get; }

    /// <summary>For a request that found frames but no block (try_to_compact_pages).</summary>
    public CompactResult Direct(int order, Gfp gfp, CompactPriority priority, Zone[] zones)
    {
        if ((gfp & Gfp.IO) == 0 || order == 0 || !Movable.HasOwners)
            return CompactResult.Skipped;

        Interlocked.Increment(ref _counters.CompactStall);
        var best = CompactResult.Skipped;
        foreach (Zone zone in zones)
        {
            ZonePages pages = _pages.ZoneOf(zone.StartPfn);
            CompactResult result = OneZone(pages, order, gfp, priority);
            best = (CompactResult)Math.Max((int)best, (int)result);
            if (result == CompactResult.Success)
                break;
        }

        Interlocked.Increment(ref best == CompactResult.Success ? ref _counters.CompactSuccess : ref _counters.CompactFail);
        return best;
    }

    /// <summary>All zones from end to end (a write to vm.compact_memory).</summary>
    public CompactionReport All()
    {
        var total = default(CompactionReport);
        _pages.DrainAll();
        foreach (ZonePages zone in _pages.Zones)
        {
            var control = new CompactControl(zone, CompactControl.WholeZone, Migratetype.Movable, CompactPriority.SyncFull);
            lock (_memory[zone.Zone.Index].Gate)
                Run(control);
            CompactionReport report = control.Report;
            total = new CompactionReport(
                total.Scanned + report.Scanned,
                total.Moved + report.Moved,
                total.Failed + report.Failed,
                total.FreeScanned + report.FreeScanned);
        }

        _pages.DrainAll();
        return total;
    }

    /// <summary>
    /// Whether compaction could bring a block: enough frames, and fragmented ones (compaction_suitable).
    /// </summary>
    public bool IsSuitable(ZonePages pages, int order, ZoneType highest)
    {
        Zone zone = pages.Zone;
        bool costly = order > PageOrder.Costly;
        long mark = zone.Mark(costly ? WatermarkLevel.Low : WatermarkLevel.Min) + (2L << order);
        if (!pages.WatermarkOk(0, mark, highest, 0, zone.FreePages))
            return false;
        if (!costly)
            return true;
        int index = Fragmentation.ExtfragIndex(pages.Buddy.NrFree, order);
        return index == -1000 || index > ExtfragThreshold;
    }

    /// <summary>What kcompactd does after kswapd has made room.</summary>
    public void Background(Node node, int order, ZoneType highest)
    {
        if (order == 0 || !Movable.HasOwners)
            return;
        foreach (ZonePages zone in _pages.Zones)
        {
            if (zone.Zone.NodeId == node.Id && zone.Zone.Type <= highest)
                OneZone(zone, order, Gfp.Kernel, CompactPriority.SyncLight);
        }
    }

    private CompactResult OneZone(ZonePages zone, int order, Gfp gfp, CompactPriority priority)
    {
        CompactMemory memory = _memory[zone.Zone.Index];

        // A busy zone is somebody else's work: it may serve us, too. Callbacks may also lead back here.
        if (memory.Gate.IsHeldByCurrentThread || !memory.Gate.TryEnter())
            return CompactResult.Deferred;

        try
        {
            if (priority > CompactPriority.SyncFull && memory.IsDeferred(order))
                return CompactResult.Deferred;
            if (!IsSuitable(zone, order, gfp.HighestZone()))
                return CompactResult.Skipped;

            var control = new CompactControl(zone, order, gfp.ToMigratetype(), priority);
            CompactResult result = Run(control);
            if (result == CompactResult.Success)
                memory.Reset(order);
            else if (priority != CompactPriority.Async)
                memory.Defer(order);
            return result;
        }
        finally
        {
            memory.Gate.Exit();
        }
    }

    /// <summary>Moves pages until there is a block, or the scanners meet. The zone's gate is held.</summary>
    private CompactResult Run(CompactControl control)
    {
        Begin(control);
        bool movedInBlock = false;
        CompactResult result;
        try
        {
            while (true)
            {
                if ((control.MigratePfn & (PageOrder.PageblockPages - 1)) == 0 || control.MigratePfn >= control.FreePfn)
                {
                    if (movedInBlock)
                        _pages.DrainCpu(_cpus.CurrentCpu);      // what was freed merges now
                    movedInBlock = false;
                    if (IsFinished(control, out result))
                        break;
                }

                movedInBlock |= Step(control);
            }
        }
        finally
        {
            GiveBack(control);
            _pages.DrainCpu(_cpus.CurrentCpu);
            Interlocked.Add(ref _counters.CompactMigrateScanned, control.Scanned);
            Interlocked.Add(ref _counters.CompactFreeScanned, control.FreeScanned);
            Interlocked.Add(ref _counters.PgMigrateSuccess, control.Moved);
            Interlocked.Add(ref _counters.PgMigrateFail, control.Failed);
        }

        End(control, result);
        return result;
    }

    private void Begin(CompactControl control)
    {
        Zone zone = control.Zone.Zone;
        CompactMemory memory = _memory[zone.Index];
        ulong start = zone.StartPfn;
        ulong end = (zone.EndPfn + PageOrder.PageblockPages - 1) & ~(ulong)(PageOrder.PageblockPages - 1);
        bool hasMemory = memory.MigratePfn > start && memory.MigratePfn < memory.FreePfn && memory.FreePfn <= end;
        control.FromTheEnds = control.Order == CompactControl.WholeZone || !hasMemory;
        control.MigratePfn = control.FromTheEnds ? start : memory.MigratePfn;
        control.FreePfn = control.FromTheEnds ? end : memory.FreePfn;
        if (!memory.ForgetSkips)
            return;

        memory.ForgetSkips = false;
        for (ulong pfn = start; pfn < end; pfn += PageOrder.PageblockPages)
            _blocks.SetSkip(pfn, false);
    }

    private void End(CompactControl control, CompactResult result)
    {
        CompactMemory memory = _memory[control.Zone.Zone.Index];
        bool met = result == CompactResult.Complete;
        memory.ForgetSkips |= met && control.FromTheEnds;
        memory.MigratePfn = met ? 0 : control.MigratePfn;
        memory.FreePfn = met ? 0 : control.FreePfn;
    }

    /// <summary>At the border of a pageblock: is there a block, or nothing left to do (compact_finished)?</summary>
    private static bool IsFinished(CompactControl control, out CompactResult result)
    {
        result = CompactResult.Complete;
        if (control.MigratePfn >= control.FreePfn)
            return true;
        if (control.Order == CompactControl.WholeZone)
            return false;

        Buddy buddy = control.Zone.Buddy;
        buddy.Lock.Acquire();
        bool found = buddy.HasBlockLocked(control.Order, control.Wanted);
        buddy.Lock.Release();
        result = CompactResult.Success;
        return found;
    }

    /// <summary>Up to a cluster of one pageblock's pages.</summary>
    /// <returns>Whether any was moved.</returns>
    private unsafe bool Step(CompactControl control)
    {
        ulong block = control.MigratePfn & ~(ulong)(PageOrder.PageblockPages - 1);
        ulong next = block + PageOrder.PageblockPages;
        ulong end = Math.Min(next, Math.Min(control.FreePfn, control.Zone.Zone.EndPfn));
        bool fresh = control.MigratePfn <= Math.Max(block, control.Zone.Zone.StartPfn);
        if (!IsSource(control, block))
        {
            control.MigratePfn = next;
            return false;
        }

        var found = new List<(nint Page, IMovablePages Owner)>(Cluster);
        ulong pfn = control.MigratePfn;
        for (; pfn < end && found.Count < Cluster; pfn++)
        {
            Page* page = _map.PageOf(pfn);
            control.Scanned++;
            if (MovablePages.IsOffered(page) && Movable.TryIsolate(page, _log) is { } owner)
                found.Add(((nint)page, owner));
        }

        control.MigratePfn = pfn >= end ? next : pfn;
        Interlocked.Add(ref _counters.CompactIsolated, found.Count);
        if (fresh && pfn >= end && found.Count == 0)
            _blocks.SetSkip(block, true);

        long before = control.Moved;
        foreach ((nint page, IMovablePages owner) in found)
            MoveOne(control, (Page*)page, owner);
        return control.Moved > before;
    }

    /// <summary>Whether a pageblock is worth looking at for pages to move (suitable_migration_source).</summary>
    private bool IsSource(CompactControl control, ulong block)
    {
        if (!_pages.HasMemory(control.Zone.Zone, block) || (!control.IgnoresSkip && _blocks.SkipOf(block)))
            return false;
        return control.Priority != CompactPriority.Async || _blocks.TypeOf(block) == control.Wanted;
    }

    private unsafe void MoveOne(CompactControl control, Page* page, IMovablePages owner)
    {
        ulong? target = TakeFree(control);
        if (target == null)
        {
            Movable.PutBack(page, owner, _log);
            control.MigratePfn = control.FreePfn;       // nowhere to go: the end
            return;
        }

        if (Movable.Move(page, _map.PageOf(target.Value), owner, _log))
        {
            control.Moved++;
            _pages.Free(_map.PfnOf(page), 0);
            return;
        }

        control.Failed++;
        Movable.PutBack(page, owner, _log);
        control.Free[0].Insert(0, target.Value);
    }

    /// <summary>A frame to move to: from the smallest block in hand, whose other parts stay in hand.</summary>
    private ulong? TakeFree(CompactControl control)
    {
        int order = SmallestInHand(control);
        if (order < 0)
        {
            IsolateFree(control);
            order = SmallestInHand(control);
        }

        if (order < 0)
            return null;

        ulong pfn = control.Free[order][0];
        control.Free[order].RemoveAt(0);
        while (order > 0)
        {
            order--;
            control.Free[order].Insert(0, pfn + (1UL << order));
        }

        return pfn;
    }

    private static int SmallestInHand(CompactControl control) => Array.FindIndex(control.Free, list => list.Count > 0);

    /// <summary>
    /// Free blocks from the end of the zone down, pageblock by pageblock, as long as that is above where pages come
    /// from (isolate_freepages).
    /// </summary>
    private unsafe void IsolateFree(CompactControl control)
    {
        Zone zone = control.Zone.Zone;
        int cpu = _cpus.CurrentCpu;
        while (SmallestInHand(control) < 0)
        {
            ulong block = control.FreePfn - PageOrder.PageblockPages;
            if (control.FreePfn < PageOrder.PageblockPages || block < control.MigratePfn || block < zone.StartPfn)
                return;

            control.FreePfn = block;
            if (!_pages.HasMemory(zone, block) || _blocks.TypeOf(block) != Migratetype.Movable)
                continue;
            control.Zone.Buddy.Lock.Acquire();
            IsolateBlockLocked(control, block, Math.Min(block + PageOrder.PageblockPages, zone.EndPfn), cpu);
            control.Zone.Buddy.Lock.Release();
        }
    }

    private unsafe void IsolateBlockLocked(CompactControl control, ulong start, ulong end, int cpu)
    {
        ZonePages zone = control.Zone;
        int largest = control.Order == CompactControl.WholeZone ? PageOrder.Max : control.Order - 1;
        for (ulong pfn = start; pfn < end;)
        {
            Page* page = _map.PageOf(pfn);
            control.FreeScanned++;
            if (page->Type != PageType.Buddy)
            {
                pfn++;
                continue;
            }

            // A block that is as large as what is wanted is not cut up; nor is the reserve used.
            int order = (int)page->Private;
            long mark = zone.Zone.Watermarks.Min + (1L << order);
            if (order <= largest && order < PageOrder.Pageblock
                && zone.WatermarkOk(0, mark, ZoneType.Dma, 0, zone.Zone.FreePages))
            {
                zone.Buddy.IsolateLocked(page, order, cpu);
                control.Free[order].Add(pfn);
            }

            pfn += 1UL << order;
        }
    }

    /// <summary>What was isolated and not needed is free again, small blocks first.</summary>
    private unsafe void GiveBack(CompactControl control)
    {
        for (int order = 0; order < control.Free.Length; order++)
        {
            foreach (ulong pfn in control.Free[order])
                _pages.FreeFrozen(_map.PageOf(pfn), order);
        }
    }
}
