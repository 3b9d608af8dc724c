using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>What is refused, and how it is reported.</content>
internal sealed partial class PageAllocator
{
    private static readonly long s_warnInterval = TimeSpan.FromSeconds(10).Ticks;
    private long _lastFailureReport = long.MinValue / 2;
    private int _warnedOrder;

    /// <summary>Number of allocations that failed, reported or not.</summary>
    public long FailedAllocations => Volatile.Read(ref _failedAllocations);

    /// <summary>Number of allocations that found no zone above LOW.</summary>
    public long SlowPaths => Volatile.Read(ref _slowPaths);

    /// <summary>
    /// Hears of slow paths, fallbacks and failures of requests that may sleep, without any lock; or null.
    /// </summary>
    public IRareEvents? Rare { get; set; }

    /// <summary>Requests that are to fail; null, and nobody is asked, until somebody wants it.</summary>
    public FaultInjection? Faults
    {
        get => _faults;
        set
        {
            _faults = value;
            AskFirst();
        }
    }

    private void AskFirst() =>
        _unaskedOrders = _faults == null && _trace is not { WantsDecisions: true } ? (uint)PageOrder.Count : 0;

    private FaultInjection? _faults;

    // Orders below this are served without asking whether there is any such order, whether the request is to fail, or
    // whether somebody wants to know how it is decided.
    private uint _unaskedOrders = PageOrder.Count;

    private long _failedAllocations;
    private long _slowPaths;

    /// <summary>Who may sleep holds no lock, so listeners may do what they like; the others are only counted.</summary>
    private static bool MayTell(Gfp gfp) => (gfp & Gfp.DirectReclaim) != 0;

    /// <summary>Fallbacks happen under a zone's lock, where nobody may be told.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void TellFallbacks(ZonePages pages)
    {
        long total = pages.Buddy.Fallbacks;
        long before = pages.ToldFallbacks;
        if (total != before && Interlocked.CompareExchange(ref pages.ToldFallbacks, total, before) == before)
            Rare?.Fallback(pages.Zone.NodeId, pages.Zone.Type, total - before);
    }

    /// <summary>might_alloc(): a request that may sleep, where sleeping is forbidden, is refused.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void CheckContext(Gfp gfp, CpuTask* task)
    {
        if ((gfp & Gfp.DirectReclaim) != 0 && !task->MaySleep)
            ThrowAtomicSleep(gfp, task);
    }

    /// <summary>Writes a report to the log and throws it.</summary>
    [DoesNotReturn]
    public void ThrowBug(string report)
    {
        _log.Write(report);
        throw new KernelBugException(report);
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void ThrowAtomicSleep(Gfp gfp, CpuTask* task)
    {
        uint count = task->PreemptCount;
        string context = (count & CpuTask.NmiMask) != 0 ? "NMI"
            : (count & CpuTask.HardirqMask) != 0 ? "hard interrupt"
            : (count & CpuTask.SoftirqOffset) != 0 ? "softirq"
            : (count & CpuTask.SoftirqMask) != 0 ? "bottom halves disabled"
            : (count & 0xff) != 0 ? "atomic section"
            : "interrupts off";
        int irqsOff = task->IrqsOff != 0 ? 1 : 0;
        ThrowBug(
            "BUG: sleeping function called from invalid context at might_alloc\n"
            + $"in_atomic(): {(count != 0 ? 1 : 0)}, irqs_disabled(): {irqsOff}, preempt_count: {count:x}, "
            + $"context: {context}\n"
            + $"gfp_mask=0x{(uint)gfp:x}({gfp.ToKernelString()}) may sleep; use GFP_ATOMIC or GFP_NOWAIT here");
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ThrowBadGfp(Gfp gfp) =>
        ThrowBug(
            $"BUG: gfp_mask=0x{(uint)gfp:x}({gfp.ToKernelString()}): "
            + (gfp.HasValidZone() ? "movable and reclaimable" : "its zone selectors") + " exclude each other");

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool IsRefused(int order, Gfp gfp, int node)
    {
        if ((uint)order > PageOrder.Max)
        {
            WarnOrderOnce(order, gfp);
            return true;
        }

        if (_faults != null && _faults.FailsPages(gfp, order))
            return true;

        if (_trace is { WantsDecisions: true } trace)
            TellBegin(trace, order, gfp, node);
        return false;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void WarnOrderOnce(int order, Gfp gfp)
    {
        if ((gfp & Gfp.NoWarn) == 0 && Interlocked.Exchange(ref _warnedOrder, 1) == 0)
            _log.Write($"WARNING: page allocation of order {order}: the largest is {PageOrder.Max}");
    }

    private unsafe void WarnBadNoFail(in AllocRequest request, CpuTask* task)
    {
        if ((request.Gfp & Gfp.NoFail) == 0)
            return;

        string? what = request.Order > 1 ? $"order {request.Order} > 1"
            : (request.Gfp & Gfp.DirectReclaim) == 0 ? "the request may not sleep"
            : (task->Flags & TaskFlags.MemAlloc) != 0 ? "the task is in a noreclaim scope"
            : null;
        if (what != null)
            _log.Write($"WARNING: __GFP_NOFAIL cannot be kept: {what}");
    }

    /// <summary>
    /// The page behind a frame number that somebody wants to free, if it is one that <see cref="Alloc"/> gave out.
    /// </summary>
    private unsafe Page* CheckedForFree(ulong pfn, int order)
    {
        if ((uint)order > PageOrder.Max)
            ThrowBadFree(pfn, order, $"order is not between 0 and {PageOrder.Max}");
        if (pfn >= _map.EndPfn || _blocks.ZoneOf(pfn) == PageblockMap.NoZone)
            ThrowBadFree(pfn, order, "no such page frame");

        Page* page = _map.PageOf(pfn);
        if (page->Type == PageType.Buddy || (page->RefCount <= 0 && page->Type == PageType.None && !page->IsTail))
            ThrowBadFree(pfn, order, "page is already free, or was never allocated");
        if (page->Type != PageType.None)
            ThrowBadFree(pfn, order, $"page belongs to {page->Type}, not to the caller");
        if (page->IsTail)
            ThrowBadFree(pfn, order, "page is the tail of a compound block");
        if (page->AllocatedOrderPlusOne != order + 1)
        {
            string was = page->AllocatedOrderPlusOne == 0
                ? "no block starts here"
                : $"the block was allocated with order {page->AllocatedOrderPlusOne - 1}";
            ThrowBadFree(pfn, order, was);
        }

        return page;
    }

    /// <summary>free_pages_prepare: undoes <see cref="Prepare"/>, and refuses pages that are still in use.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe void PrepareFree(Page* page, int order)
    {
        if ((page->Flags & PageFlags.CheckAtFree) != 0 || page->Mapping != 0)
            ReportBadPage(page, order);

        _trace?.MmPageFree(new Pfn(_map.PfnOf(page)), order);
        Watch?.PagesFreed(_map.PfnOf(page), order);
        if (page->IsHead)
            DissolveCompound(page, order);
        page->Flags = PageFlags.None;
        page->Type = PageType.None;
    }

    private unsafe void DissolveCompound(Page* head, int order)
    {
        if (CompoundOrder(head) != order)
            ThrowBadFree(_map.PfnOf(head), order, $"the compound block has order {CompoundOrder(head)}");

        for (long i = 1; i < 1L << order; i++)
        {
            head[i].CompoundHead = 0;
            head[i].Mapping = 0;
            head[i].Flags = PageFlags.None;
        }
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void ReportBadPage(Page* page, int order)
    {
        string reason = page->Mapping != 0 ? "non-NULL mapping" : "PAGE_FLAGS_CHECK_AT_FREE flag(s) set";
        ThrowBug(
            $"BUG: Bad page state in process {TaskName}  pfn:{_map.PfnOf(page):x5}\n"
            + $"page: refcount:{page->RefCount} mapping:{page->Mapping:x16} order:{order} flags: 0x{(ulong)page->Flags:x}"
            + $"({page->Flags & PageFlags.CheckAtFree})\n"
            + $"page dumped because: {reason}; the page is not put back");
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ThrowBadFree(ulong pfn, int order, string reason) =>
        ThrowBug($"BUG: Bad page state in process {TaskName}  pfn:{pfn:x5}\n"
            + $"__free_pages(order {order}): {reason}");

    /// <summary>This thread's name, for reports (current->comm).</summary>
    public static string TaskName
    {
        get
        {
            string? name = Thread.CurrentThread.Name;
            return string.IsNullOrEmpty(name) ? $"thread-{Environment.CurrentManagedThreadId}" : name;
        }
    }

    /// <summary>warn_alloc(): one report in ten seconds; silent with __GFP_NOWARN.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ReportFailure(in AllocRequest request)
    {
        Interlocked.Increment(ref _failedAllocations);
        if (MayTell(request.Gfp))
            Rare?.Failure(request.Order, request.Gfp);
        if ((request.Gfp & Gfp.NoWarn) != 0)
            return;

        long now = DateTime.UtcNow.Ticks;
        long last = Volatile.Read(ref _lastFailureReport);
        if (now - last < s_warnInterval || Interlocked.CompareExchange(ref _lastFailureReport, now, last) != last)
            return;

        string nodes = _nodes.Length == 1 ? "0" : $"0-{_nodes.Length - 1}";
        _log.Write(
            $"{TaskName}: page allocation failure: order:{request.Order}, "
            + $"mode:0x{(uint)request.Gfp:x}({request.Gfp.ToKernelString()}), "
            + $"nodemask=(null),cpuset=/,mems_allowed={nodes}\n"
            + MemorySummary.Of(this));
    }
}
