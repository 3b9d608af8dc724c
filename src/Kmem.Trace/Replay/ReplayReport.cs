namespace Kmem.Tracing;

/// <summary>What happened in a replay. Plain data.</summary>
/// <remarks>
/// Every event is counted once: <see cref="Events"/> = <see cref="Allocs"/> + <see cref="Frees"/> +
/// <see cref="UnknownFrees"/> + <see cref="NullFrees"/> + <see cref="FreesOfFailedAllocs"/> +
/// <see cref="TracedFailures"/> + <see cref="SlabPagesRecognised"/> + <see cref="LargeKmallocPagesRecognised"/> +
/// <see cref="SlabPageFrees"/> + <see cref="VmapAllocs"/> + <see cref="VmapFrees"/> + <see cref="VmapPurges"/> +
/// <see cref="SkippedEvents"/>. (An event that ends as a misuse report is in
/// <see cref="ViolationTexts"/> instead.)
/// </remarks>
public sealed record ReplayReport
{
    /// <summary>Events in the trace, those that are not replayed included.</summary>
    public long Events { get; init; }

    /// <summary>Lines of the trace, comments and damaged lines included.</summary>
    public long Lines { get; init; }

    /// <summary>Lines that could not be understood; they are skipped.</summary>
    public long DamagedLines { get; init; }

    /// <summary>The first 20 of them.</summary>
    public IReadOnlyList<TraceDamage> Damage { get; init; } = [];

    /// <summary>Events that the kernel says it lost, where it tells the number.</summary>
    public long LostEvents { get; init; }

    /// <summary>How often a name in the GFP flags was unknown; it is then ignored.</summary>
    public long UnknownGfpCount { get; init; }

    /// <summary>The first 20 distinct unknown names in GFP flags.</summary>
    public IReadOnlyList<string> UnknownGfpNames { get; init; } = [];

    /// <summary>
    /// Allocations replayed: <see cref="KmallocAllocs"/> + <see cref="CacheAllocs"/> + <see cref="PageAllocs"/>.
    /// </summary>
    public long Allocs => KmallocAllocs + CacheAllocs + PageAllocs;

    /// <summary>Frees replayed: <see cref="ObjectFrees"/> + <see cref="PageFrees"/>.</summary>
    public long Frees => ObjectFrees + PageFrees;

    /// <summary>kmalloc events replayed, failed ones included.</summary>
    public long KmallocAllocs { get; init; }

    /// <summary>kmem_cache_alloc events replayed, failed ones included.</summary>
    public long CacheAllocs { get; init; }

    /// <summary>
    /// mm_page_alloc events replayed, failed ones included; not those that got memory for slabs or kmalloc.
    /// </summary>
    public long PageAllocs { get; init; }

    /// <summary>Objects freed by kfree and kmem_cache_free events.</summary>
    public long ObjectFrees { get; init; }

    /// <summary>mm_page_free events replayed.</summary>
    public long PageFrees { get; init; }

    /// <summary>
    /// Frees of what was allocated before the recording began, or in a way that is not traced (bulk).
    /// </summary>
    public long UnknownFrees { get; init; }

    /// <summary>kfree of NULL or of what kmalloc(0) returns: nothing to do.</summary>
    public long NullFrees { get; init; }

    /// <summary>Frees of what the recorded kernel had got and this machine had not.</summary>
    public long FreesOfFailedAllocs { get; init; }

    /// <summary>Allocations that failed here, though the recorded kernel had memory.</summary>
    public long FailedAllocs { get; init; }

    /// <summary>Allocations that failed in the recorded kernel; they are not replayed.</summary>
    public long TracedFailures { get; init; }

    /// <summary>
    /// Addresses that were allocated again, or whose slab was given back, without a free in between: it was lost, or is
    /// not traced (kfree_rcu, bulk frees). The old object or block is freed then.
    /// </summary>
    public long MissedFrees { get; init; }

    /// <summary>
    /// mm_page_alloc events of the recorded kernel's slabs; this machine's SLUB asks for its own pages.
    /// </summary>
    public long SlabPagesRecognised { get; init; }

    /// <summary>mm_page_alloc events that a kmalloc of more than 8 KiB caused.</summary>
    public long LargeKmallocPagesRecognised { get; init; }

    /// <summary>mm_page_free events of such pages.</summary>
    public long SlabPageFrees { get; init; }

    /// <summary>
    /// Events that are not replayed: announcements (batched frees, zone_locked, drains, extfrag), markers, other
    /// tracepoints; and allocations that no machine can carry out (no address printed, impossible sizes).
    /// </summary>
    public long SkippedEvents { get; init; }

    /// <summary>
    /// Areas of the vmalloc space that were given out, at their recorded addresses (alloc_vmap_area).
    /// </summary>
    public long VmapAllocs { get; init; }

    /// <summary>
    /// Those whose address this machine would have chosen by itself, from what the recording had told up to there.
    /// Areas older than the recording are not known, so few are in a recording that begins in a running system; see
    /// <see cref="VmapPrediction"/> for one with a list of them.
    /// </summary>
    public long VmapAllocsForetold { get; init; }

    /// <summary>Areas freed that were given out before in the recording (free_vmap_area_noflush).</summary>
    public long VmapFrees { get; init; }

    /// <summary>Purges of lazily freed areas (purge_vmap_area_lazy).</summary>
    public long VmapPurges { get; init; }

    /// <summary>Events of CPUs that the machine does not have.</summary>
    public long FoldedCpuEvents { get; init; }

    /// <summary>
    /// Object allocations whose traced bytes_alloc was compared with the size of the slot they got here.
    /// </summary>
    public long BytesAllocChecked => KmallocChecked + CacheChecked;

    /// <summary>Those that were equal.</summary>
    public long BytesAllocEqual => KmallocEqual + CacheEqual;

    /// <summary>The part of <see cref="BytesAllocChecked"/> that came from kmalloc.</summary>
    public long KmallocChecked { get; init; }

    /// <summary>Those that were equal.</summary>
    public long KmallocEqual { get; init; }

    /// <summary>The part of <see cref="BytesAllocChecked"/> that came from caches.</summary>
    public long CacheChecked { get; init; }

    /// <summary>Those that were equal.</summary>
    public long CacheEqual { get; init; }

    /// <summary>The first 20 differences between the recorded kernel and this machine.</summary>
    public IReadOnlyList<ReplayMismatch> Mismatches { get; init; } = [];

    /// <summary>Objects allocated in the recording and not freed.</summary>
    public long LiveObjects { get; init; }

    /// <summary>Bytes that they occupy: whole slots, or whole blocks for large ones.</summary>
    public long LiveBytes { get; init; }

    /// <summary>Page frames that page events allocated and that are not freed; not those of slabs.</summary>
    public long LivePages { get; init; }

    /// <summary>Broken invariants of the machine after the last event, and misuse reported on the way.</summary>
    public long Violations { get; init; }

    /// <summary>The first of them in words.</summary>
    public IReadOnlyList<string> ViolationTexts { get; init; } = [];

    /// <summary>Events per second of <see cref="Elapsed"/>, reading included.</summary>
    public double EventsPerSecond { get; init; }

    /// <summary>Time from the first event to the last, without booting and validating the machine.</summary>
    public TimeSpan Elapsed { get; init; }

    /// <summary>Name of the profile.</summary>
    public string Profile { get; init; } = string.Empty;

    /// <summary>CPUs of the machine.</summary>
    public int Cpus { get; init; }

    /// <summary>Bytes of RAM of the machine.</summary>
    public ulong RamBytes { get; init; }

    /// <summary>The caches that were used, and large kmalloc blocks by size; most live memory first.</summary>
    public IReadOnlyList<CacheReport> Caches { get; init; } = [];

    /// <summary>The populated zones.</summary>
    public IReadOnlyList<ZoneReport> Zones { get; init; } = [];

    /// <summary>The 50 callers that hold the most live bytes.</summary>
    public IReadOnlyList<CallSiteReport> CallSites { get; init; } = [];
}

/// <summary>A difference between the recorded kernel and this machine.</summary>
/// <param name="Line">Line of the trace.</param>
/// <param name="What">What was compared.</param>
/// <param name="Expected">What the kernel did.</param>
/// <param name="Got">What this machine did.</param>
public sealed record ReplayMismatch(long Line, string What, ulong Expected, ulong Got);

/// <summary>One cache after a replay.</summary>
public sealed record CacheReport
{
    /// <summary>Name in the trace; <c>kmalloc-large-16k</c> and so on for kmalloc blocks beyond the caches.</summary>
    public string Name { get; init; } = string.Empty;

    /// <summary>Bytes of an object.</summary>
    public long ObjectSize { get; init; }

    /// <summary>Bytes from one object to the next.</summary>
    public long SlotSize { get; init; }

    /// <summary>Objects in a slab.</summary>
    public long ObjectsPerSlab { get; init; }

    /// <summary>Order of a slab's pages.</summary>
    public int Order { get; init; }

    /// <summary>Allocations, failed ones not counted.</summary>
    public long Allocs { get; init; }

    /// <summary>Frees, those inferred because the trace has none included.</summary>
    public long Frees { get; init; }

    /// <summary>Objects in use at the end.</summary>
    public long LiveObjects { get; init; }

    /// <summary>Most objects in use at a time.</summary>
    public long PeakObjects { get; init; }

    /// <summary>Slabs at the end, empty ones that are kept included.</summary>
    public long Slabs { get; init; }

    /// <summary>Bytes asked for by the live objects' callers.</summary>
    public long RequestedBytes { get; init; }

    /// <summary>Bytes in the live objects' slots that nobody asked for.</summary>
    public long InternalWasteBytes { get; init; }

    /// <summary>Bytes in slots that are free.</summary>
    public long FreeSlotBytes { get; init; }

    /// <summary>Allocations whose traced bytes_alloc was compared.</summary>
    public long Checked { get; init; }

    /// <summary>Those that were equal.</summary>
    public long Equal { get; init; }
}

/// <summary>One zone after a replay.</summary>
public sealed record ZoneReport
{
    /// <summary>Node number.</summary>
    public int Node { get; init; }

    /// <summary>For example <c>Normal</c>.</summary>
    public string Name { get; init; } = string.Empty;

    /// <summary>Frames that the page allocator manages.</summary>
    public long Managed { get; init; }

    /// <summary>Frames on the free lists.</summary>
    public long Free { get; init; }

    /// <summary>Free blocks of each order, 0 to 10.</summary>
    public IReadOnlyList<long> FreeBlocks { get; init; } = [];

    /// <summary>Frames on the per-CPU lists.</summary>
    public long PcpFrames { get; init; }

    /// <summary>
    /// By order, why an allocation would fail: towards 0 for lack of memory, towards 1 because it is cut up; −1 if it
    /// would not fail (extfrag_index).
    /// </summary>
    public IReadOnlyList<double> ExtfragIndex { get; init; } = [];

    /// <summary>
    /// By order, the part of free memory in blocks that are too small for it, 0 to 1 (unusable_index).
    /// </summary>
    public IReadOnlyList<double> UnusableIndex { get; init; } = [];
}

/// <summary>One caller after a replay.</summary>
public sealed record CallSiteReport
{
    /// <summary>As printed in the trace: <c>symbol+0xoffset/0xlength</c>; <c>(unknown)</c> if it was not.</summary>
    public string Name { get; init; } = string.Empty;

    /// <summary>Objects that it allocated and that are not freed.</summary>
    public long LiveObjects { get; init; }

    /// <summary>Bytes that they occupy.</summary>
    public long LiveBytes { get; init; }

    /// <summary>Allocations, failed ones not counted.</summary>
    public long Allocs { get; init; }

    /// <summary>Bytes of all its allocations, slots as above.</summary>
    public long TotalBytes { get; init; }
}
