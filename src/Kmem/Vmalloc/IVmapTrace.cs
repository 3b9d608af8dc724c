namespace Kmem;

/// <summary>
/// Receives the tracepoints of the address space allocator, with the kernel's fields (include/trace/events/vmalloc.h,
/// Linux 6.18). Called without locks, on the thread at work; must not throw and must be quick.
/// </summary>
internal interface IVmapTrace
{
    /// <summary>Each request; of a failed one the address is the negative error number.</summary>
    void AllocVmapArea(ulong address, in VmapRequest request, bool failed);

    /// <summary>A purge ended; one that found nothing has start ~0 and end 0.</summary>
    void PurgeVmapAreaLazy(ulong start, ulong end, uint purged);

    /// <summary>An area became lazily free.</summary>
    void FreeVmapAreaNoflush(ulong start, ulong lazyPages, ulong lazyMax);
}
