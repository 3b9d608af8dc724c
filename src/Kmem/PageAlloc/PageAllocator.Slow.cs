using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>The slow path: what happens when no zone is above LOW (__alloc_pages_slowpath, Linux 6.18).</content>
internal sealed partial class PageAllocator
{
    /// <summary>Rounds of reclaim without progress before the allocator stops trying.</summary>
    private const int MaxReclaimRetries = 16;
    private const int MaxCompactRetries = 16;

    /// <summary>Rounds of reclaim with progress that others took away, before the killer is asked.</summary>
    private const int MaxProgressRetries = 256;

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe Page* AllocSlow(in AllocRequest request, CpuTask* task)
    {
        Gfp gfp = request.Gfp;
        int order = request.Order;
        bool noFail = (gfp & Gfp.NoFail) != 0;
        WarnBadNoFail(request, task);
        Interlocked.Increment(ref _slowPaths);
        _trace?.SlowPathStep(SlowStep.Entered);
        if (MayTell(gfp))
            Rare?.SlowPath(order, gfp);

        AllocFlags flags = SlowFlags(gfp, order);
        if (request.First < request.Zones.Length)
        {
            Page* page = TryHard(request, flags, task);
            if (page != null)
                return page;

            while (noFail && (gfp & Gfp.DirectReclaim) != 0)
            {
                // Never null: dip into the reserve, or wait for others to free.
                page = Walk(request, AllocFlags.WatermarkMin | AllocFlags.MinReserve, task);
                if (page == null && !Hooks.MayWait)
                    break;
                if (page == null)
                {
                    SimPoint.Wait();
                    Thread.Sleep(0);
                    page = TryHard(request, flags, task);
                }

                if (page != null)
                    return page;
            }
        }

        _trace?.SlowPathStep(SlowStep.Failed);
        ReportFailure(request);
        return null;
    }

    /// <summary>From the first attempt at MIN to the end of all retries.</summary>
    private unsafe Page* TryHard(in AllocRequest request, AllocFlags flags, CpuTask* task)
    {
        Gfp gfp = request.Gfp;
        int order = request.Order;
        bool canReclaim = (gfp & Gfp.DirectReclaim) != 0;
        bool costly = order > PageOrder.Costly;
        WakeKswapds(request, flags);
        _trace?.SlowPathStep(SlowStep.TriedAtMin);
        Page* page = Walk(request, flags, task);
        if (page != null)
            return page;

        var retry = new RetryState { Priority = CompactPriority.SyncLight };
        AllocFlags reserve = ReserveFlags(gfp, task);
        if (canReclaim && MayCompact(gfp) && (costly || (order > 0 && request.Migratetype != Migratetype.Movable))
            && reserve == 0)
        {
            retry.Priority = CompactPriority.Async;
            page = Compact(request, flags, ref retry, task);
            if (page != null)
                return page;
            bool opportunistic = costly && (gfp & Gfp.NoRetry) != 0;
            if (opportunistic && retry.Result is CompactResult.Skipped or CompactResult.Deferred)
                return null;
            if (!opportunistic)
                retry.Priority = CompactPriority.SyncLight; // DEF_COMPACT_PRIORITY
        }

        while (true)
        {
            WakeKswapds(request, flags);
            reserve = ReserveFlags(gfp, task);
            if (reserve != 0)
                flags = reserve | (flags & AllocFlags.Kswapd);

            page = Walk(request, flags, task);
            if (page != null || !canReclaim || (task->Flags & TaskFlags.MemAlloc) != 0)
                return page;

            page = Reclaim(request, flags, ref retry, task);
            if (page == null && order > 0 && MayCompact(gfp))
                page = Compact(request, flags, ref retry, task);
            page = page != null ? page : AfterKeptBack(request, flags, task);
            if (page != null)
                return page;

            if ((gfp & Gfp.NoRetry) != 0
                || (costly && (!MayCompact(gfp) || (gfp & Gfp.RetryMayFail) == 0)))
            {
                return null;
            }

            if (ShouldRetryReclaim(request, flags, ref retry) || ShouldRetryCompact(request, ref retry))
                continue;

            page = MayOom(request, task, out bool progress);
            if (page != null || !progress)
                return page;
            retry.NoProgress = 0;
            retry.ProgressRounds = 0;
        }
    }

    /// <summary>gfp_to_alloc_flags.</summary>
    private static AllocFlags SlowFlags(Gfp gfp, int order)
    {
        AllocFlags flags = AllocFlags.WatermarkMin | AllocFlags.CpuSet
            | ((gfp & Gfp.High) != 0 ? AllocFlags.MinReserve : 0)
            | ((gfp & Gfp.KswapdReclaim) != 0 ? AllocFlags.Kswapd : 0);
        if ((gfp & Gfp.DirectReclaim) != 0)
            return flags;

        if ((gfp & Gfp.NoMemAlloc) == 0)
        {
            flags |= AllocFlags.NonBlock;
            if (order > 0 && (flags & AllocFlags.MinReserve) != 0)
                flags |= AllocFlags.HighAtomic;
        }

        if ((flags & AllocFlags.MinReserve) != 0)
            flags &= ~AllocFlags.CpuSet;
        return flags;
    }

    /// <summary>Who may ignore the watermarks (__gfp_pfmemalloc_flags).</summary>
    public static unsafe bool HasFullReserve(Gfp gfp, CpuTask* task) => ReserveFlags(gfp, task) != 0;

    private static unsafe AllocFlags ReserveFlags(Gfp gfp, CpuTask* task)
    {
        if ((gfp & Gfp.NoMemAlloc) != 0)
            return 0;
        if ((gfp & Gfp.MemAlloc) != 0)
            return AllocFlags.NoWatermarks;
        bool maysUseTask = task->InServingSoftirq || !task->InInterrupt;
        return maysUseTask && (task->Flags & TaskFlags.MemAlloc) != 0 ? AllocFlags.NoWatermarks : 0;
    }

    private static bool MayCompact(Gfp gfp) => (gfp & Gfp.IO) != 0;

    private void WakeKswapds(in AllocRequest request, AllocFlags flags)
    {
        if ((flags & AllocFlags.Kswapd) == 0)
            return;

        _trace?.SlowPathStep(SlowStep.WokeKswapd);
        int last = -1;
        for (int i = request.First; i < request.Zones.Length; i++)
        {
            int node = request.Zones[i].NodeId;
            if (node == last || request.Zones[i].Type > request.Highest)
                continue;

            Hooks.WakeKswapd(_nodes[node], request.Order, request.Highest);
            last = node;
        }
    }

    /// <summary>
    /// Direct reclaim, then the free lists again; if that is not enough, what the reserve and the per-CPU lists of all
    /// CPUs hold. (The kernel looks there only after progress; a machine with nothing to reclaim would fail with memory
    /// idle on other CPUs' lists, so Kmem always looks.)
    /// </summary>
    private unsafe Page* Reclaim(in AllocRequest request, AllocFlags flags, ref RetryState retry, CpuTask* task)
    {
        TaskFlags before = task->Flags;
        task->Flags |= TaskFlags.MemAlloc;
        LockOrder.AssertNoneHeld();
        _trace?.SlowPathStep(SlowStep.Reclaimed);
        try
        {
            retry.Progress = (FreeSpare?.Invoke() ?? 0)
                + Hooks.DirectReclaim(request.Order, request.Gfp, request.Zones);
        }
        finally
        {
            task->Flags = before;
        }

        Page* page = retry.Progress > 0 ? Walk(request, flags, task) : null;
        if (page != null || (retry.Progress == 0 && (retry.Drained || !Hooks.DrainsOnFailure)))
            return page;

        if (retry.Progress > 0)
            Unreserve(request, force: false);
        _trace?.SlowPathStep(SlowStep.DrainedCpuLists);
        DrainAll();
        retry.Drained = true;
        return Walk(request, flags, task);
    }

    /// <summary>
    /// Memory is not out while freed objects are kept back: those of a hardened machine's quarantine go to their slabs,
    /// and slabs that are empty then to the free lists.
    /// </summary>
    private unsafe Page* AfterKeptBack(in AllocRequest request, AllocFlags flags, CpuTask* task)
    {
        if (FreeKeptBack == null || (task->Flags & TaskFlags.WantsObject) != 0)
            return null;

        TaskFlags before = task->Flags;
        task->Flags |= TaskFlags.MemAlloc;
        LockOrder.AssertNoneHeld();
        bool freed;
        try
        {
            freed = FreeKeptBack();
        }
        finally
        {
            task->Flags = before;
        }

        if (!freed)
            return null;

        DrainAll(); // single frames merge to blocks
        return Walk(request, flags, task);
    }

    private bool Unreserve(in AllocRequest request, bool force)
    {
        int cpu = _cpus.CurrentCpu;
        for (int i = request.First; i < request.Zones.Length; i++)
        {
            Zone zone = request.Zones[i];
            if (zone.Type <= request.Highest
                && _zones[zone.Index]!.Buddy.UnreserveHighAtomic(request.Migratetype, force, cpu))
            {
                _trace?.SlowPathStep(SlowStep.UnreservedHighAtomic);
                return true;
            }
        }

        return false;
    }

    private unsafe Page* Compact(in AllocRequest request, AllocFlags flags, ref RetryState retry, CpuTask* task)
    {
        TaskFlags before = task->Flags;
        task->Flags |= TaskFlags.MemAlloc;
        LockOrder.AssertNoneHeld();
        _trace?.SlowPathStep(SlowStep.Compacted);
        try
        {
            retry.Result = Hooks.DirectCompact(request.Order, request.Gfp, retry.Priority, request.Zones);
        }
        finally
        {
            task->Flags = before;
        }

        return retry.Result == CompactResult.Skipped ? null : Walk(request, flags, task);
    }

    /// <summary>Whether another round of reclaim could help (should_reclaim_retry).</summary>
    private bool ShouldRetryReclaim(in AllocRequest request, AllocFlags flags, ref RetryState retry)
    {
        retry.NoProgress = retry.Progress > 0 && request.Order <= PageOrder.Costly ? 0 : retry.NoProgress + 1;
        if (retry.NoProgress == 0 && Hooks.RetriesOnProgress && ++retry.ProgressRounds <= MaxProgressRetries)
            return true;
        if (retry.NoProgress <= MaxReclaimRetries)
        {
            for (int i = request.First; i < request.Zones.Length; i++)
            {
                Zone zone = request.Zones[i];
                long reclaimable = Hooks.ReclaimableFrames(_nodes[zone.NodeId]);
                if (reclaimable > 0
                    && zone.Type <= request.Highest
                    && _zones[zone.Index]!.WatermarkOk(
                        request.Order,
                        zone.Mark(WatermarkLevel.Min),
                        request.Highest,
                        flags,
                        zone.FreePagesExact + reclaimable))
                {
                    SimPoint.Wait();
                    Thread.Yield();
                    return true;
                }
            }
        }

        return Unreserve(request, force: true);
    }

    /// <summary>Whether compaction deserves another try, or a stronger one (should_compact_retry).</summary>
    private static bool ShouldRetryCompact(in AllocRequest request, ref RetryState retry)
    {
        bool costly = request.Order > PageOrder.Costly;
        if (request.Order == 0 || retry.Progress == 0 || !MayCompact(request.Gfp)
            || retry.Result is CompactResult.Skipped or CompactResult.Deferred)
        {
            return false;
        }

        retry.CompactRetries++;
        if (retry.Result == CompactResult.Success
            && retry.CompactRetries <= (costly ? MaxCompactRetries / 4 : MaxCompactRetries))
        {
            return true;
        }

        CompactPriority strongest = costly ? CompactPriority.SyncLight : CompactPriority.SyncFull;
        if (retry.Priority <= strongest)
            return false;

        retry.Priority--;
        retry.CompactRetries = 0;
        return true;
    }

    /// <summary>The last resort (__alloc_pages_may_oom).</summary>
    private unsafe Page* MayOom(in AllocRequest request, CpuTask* task, out bool progress)
    {
        progress = false;
        _trace?.SlowPathStep(SlowStep.TriedBeforeOom);
        Page* page = Walk(request, AllocFlags.WatermarkHigh | AllocFlags.CpuSet, task);
        if (page != null)
            return page;

        if (request.Order > PageOrder.Costly
            || (request.Gfp & (Gfp.RetryMayFail | Gfp.ThisNode)) != 0
            || request.Highest < ZoneType.Normal)
        {
            return null;
        }

        _trace?.SlowPathStep(SlowStep.OutOfMemory);
        progress = Hooks.OutOfMemory(request.Order, request.Gfp);
        return progress && (request.Gfp & Gfp.NoFail) != 0
            ? Walk(request, AllocFlags.NoWatermarks | AllocFlags.CpuSet, task)
            : null;
    }

    private struct RetryState
    {
        public long Progress;
        public int NoProgress;
        public int ProgressRounds;
        public int CompactRetries;
        public CompactPriority Priority;
        public CompactResult Result;
        public bool Drained;
    }
}
