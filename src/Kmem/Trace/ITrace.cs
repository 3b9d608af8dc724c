namespace Kmem;

/// <summary>
/// Receives the machine's tracepoints: the kernel's <c>kmem:*</c> events, with the same fields
/// (include/trace/events/kmem.h, Linux 6.18). A machine without a receiver pays one predictable test for each.
/// </summary>
/// <remarks>
/// Called on the thread that allocates, in part while a zone is locked: an implementation must not allocate from the
/// same machine, must not throw, and must be quick.
/// </remarks>
internal interface ITrace
{
    void Kmalloc(ulong address, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node);

    void Kfree(ulong address);

    void KmemCacheAlloc(ulong address, string cache, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node);

    void KmemCacheFree(ulong address, string cache);

    /// <summary>Each page allocation; a failed one has <see cref="Pfn.None"/>.</summary>
    void MmPageAlloc(Pfn pfn, int order, Gfp gfp, Migratetype migratetype);

    /// <summary>Each block freed, before it goes to a per-CPU list or to the buddy system.</summary>
    void MmPageFree(Pfn pfn, int order);

    /// <summary>A block left a free list. The zone is locked.</summary>
    void MmPageAllocZoneLocked(Pfn pfn, int order, Migratetype migratetype, bool percpuRefill);

    /// <summary>A block went from a per-CPU list back to the free lists. The zone is locked.</summary>
    void MmPagePcpuDrain(Pfn pfn, int order, Migratetype migratetype);

    /// <summary>A block of another migrate type was taken. The zone is locked.</summary>
    void MmPageAllocExtfrag(in ExtfragEvent fallback);

    /// <summary>
    /// Whether the receiver wants to hear how decisions come about: the members below. They are no tracepoints of the
    /// kernel, and are called on slow paths only, or where a receiver is known to be there.
    /// </summary>
    bool WantsDecisions => false;

    /// <summary>A request for pages begins; it ends with <see cref="MmPageAlloc"/>.</summary>
    void RequestBegins(int order, Gfp gfp, Migratetype migratetype, IReadOnlyList<ZoneVerdict> zones)
    {
    }

    /// <summary>A zone had nothing for the request that is on its way.</summary>
    void ZoneRefused(int node, ZoneType zone, ZoneResult result)
    {
    }

    /// <summary>After <see cref="MmPageAllocZoneLocked"/>: the order of the free block that it was cut from.</summary>
    void BlockFound(Pfn pfn, int order, int foundOrder, Migratetype migratetype)
    {
    }

    /// <summary>The slow path does something.</summary>
    void SlowPathStep(SlowStep step)
    {
    }

    /// <summary>A request to a cache got beyond the CPU's free list. The last call before the object's event
    /// holds.</summary>
    void ObjectFrom(ObjectSource source)
    {
    }

    /// <summary>A frame of a bulk request, for which the kernel has no tracepoint.</summary>
    void PageOfBulk(Pfn pfn, Gfp gfp)
    {
    }
}

/// <summary>The fields of mm_page_alloc_extfrag.</summary>
internal readonly record struct ExtfragEvent(
    Pfn Pfn,
    int AllocOrder,
    int FallbackOrder,
    Migratetype AllocMigratetype,
    Migratetype FallbackMigratetype,
    bool ChangeOwnership)
{
    /// <summary>The block found was smaller than a pageblock.</summary>
    public bool Fragmenting => FallbackOrder < PageOrder.Pageblock;
}
