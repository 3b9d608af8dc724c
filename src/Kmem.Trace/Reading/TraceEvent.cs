using System.Runtime.InteropServices;

namespace Kmem.Tracing;

/// <summary>The tracepoint behind a line (include/trace/events/kmem.h and vmalloc.h, Linux 6.18).</summary>
public enum TraceEventKind : byte
{
    /// <summary>No event: what a default <see cref="TraceEvent"/> holds.</summary>
    None,

    /// <summary><c>kmalloc</c>; also <c>kmalloc_node</c> of older kernels.</summary>
    Kmalloc,

    /// <summary><c>kmem_cache_alloc</c>; also <c>kmem_cache_alloc_node</c> of older kernels.</summary>
    KmemCacheAlloc,

    /// <summary><c>kfree</c>.</summary>
    Kfree,

    /// <summary><c>kmem_cache_free</c>.</summary>
    KmemCacheFree,

    /// <summary><c>mm_page_alloc</c>: a page allocation, successful or not.</summary>
    PageAlloc,

    /// <summary><c>mm_page_free</c>: a block is given back.</summary>
    PageFree,

    /// <summary>
    /// <c>mm_page_free_batched</c>: one folio of a batch; a <see cref="PageFree"/> of it came before.
    /// </summary>
    PageFreeBatched,

    /// <summary><c>mm_page_alloc_zone_locked</c>: a block left a free list under the zone lock.</summary>
    PageAllocZoneLocked,

    /// <summary><c>mm_page_pcpu_drain</c>: a block went from a per-CPU list to the buddy system.</summary>
    PagePcpuDrain,

    /// <summary><c>mm_page_alloc_extfrag</c>: an allocation was served from another migratetype.</summary>
    PageAllocExtfrag,

    /// <summary><c>alloc_vmap_area</c>.</summary>
    AllocVmapArea,

    /// <summary><c>purge_vmap_area_lazy</c>.</summary>
    PurgeVmapAreaLazy,

    /// <summary><c>free_vmap_area_noflush</c>.</summary>
    FreeVmapAreaNoflush,

    /// <summary><c>tracing_mark_write</c>: text that a program wrote into the trace.</summary>
    Marker,

    /// <summary>A well-formed line of an event that the reader does not take apart.</summary>
    Other,
}

/// <summary>
/// One line of a trace, taken apart. Which properties have a meaning depends on <see cref="Kind"/>; the others are 0
/// (<see cref="Node"/>: −1).
/// </summary>
/// <remarks>
/// Meant to be one variable that <see cref="FtraceReader.TryRead"/> fills again and again; texts are numbers into the
/// reader's string tables, so that reading allocates nothing.
/// </remarks>
[StructLayout(LayoutKind.Auto)]
public struct TraceEvent
{
    private const int ContextShift = 16, PreemptShift = 24, MigrateShift = 32, ReschedShift = 8;

    /// <summary>The five state characters of a line without a state column: all dots.</summary>
    internal const ulong NoState = 0x2e_2e2e_2e2e;

    /// <summary>The tracepoint.</summary>
    public TraceEventKind Kind { readonly get; internal set; }

    /// <summary>Line number in the (decompressed) text, from 1; comment lines count.</summary>
    public long Line { readonly get; internal set; }

    /// <summary>Time stamp in ns of the trace clock; ticks if the clock does not count time.</summary>
    public ulong TimestampNs { readonly get; internal set; }

    /// <summary>The CPU that the event happened on.</summary>
    public int Cpu { readonly get; internal set; }

    /// <summary>The thread that was running; 0 is the idle task.</summary>
    public int Pid { readonly get; internal set; }

    /// <summary>Process id, if the trace has that column; 0 if not, or if the kernel did not know it.</summary>
    public int Tgid { readonly get; internal set; }

    /// <summary>
    /// The state characters as printed, one byte each, the first in the lowest byte: interrupts, need-resched, context,
    /// preempt depth, migrate-disable depth. Columns that the trace does not have are dots.
    /// </summary>
    public ulong State { readonly get; internal set; }

    /// <summary>Interrupts were off.</summary>
    public readonly bool IrqsOff => (byte)State is (byte)'d' or (byte)'D';

    /// <summary>Bottom halves were off.</summary>
    public readonly bool BhOff => (byte)State is (byte)'b' or (byte)'D';

    /// <summary>A reschedule was pending.</summary>
    public readonly bool NeedResched => (byte)(State >> ReschedShift) != (byte)'.';

    /// <summary>The event happened in a hard interrupt handler, on top of a softirq or not; not in an NMI.</summary>
    public readonly bool IsHardIrq => (byte)(State >> ContextShift) is (byte)'h' or (byte)'H';

    /// <summary>The event happened in a softirq that no hard interrupt had interrupted.</summary>
    public readonly bool IsSoftIrq => (byte)(State >> ContextShift) is (byte)'s';

    /// <summary>The event happened in a non-maskable interrupt.</summary>
    public readonly bool IsNmi => (byte)(State >> ContextShift) is (byte)'z' or (byte)'Z';

    /// <summary>Nesting depth of disabled preemption, 0 to 15.</summary>
    public readonly int PreemptDepth => Depth(PreemptShift);

    /// <summary>Nesting depth of disabled migration, 0 to 15.</summary>
    public readonly int MigrateDisableDepth => Depth(MigrateShift);

    /// <summary>
    /// The object's address, possibly hashed by the kernel (then equal for its allocation and its free); 0 for a failed
    /// allocation or <c>kfree(NULL)</c>. Meaningless if <see cref="PtrHidden"/>.
    /// </summary>
    public ulong Ptr { readonly get; internal set; }

    /// <summary>
    /// The kernel printed <c>(____ptrval____)</c> or the like instead of <see cref="Ptr"/> or <see cref="Page"/>.
    /// </summary>
    public bool PtrHidden { readonly get; internal set; }

    /// <summary>The address of the <c>struct page</c>, possibly hashed; 0 if the allocation failed.</summary>
    public ulong Page { readonly get; internal set; }

    /// <summary>Page frame number of the block's first page.</summary>
    public ulong Pfn { readonly get; internal set; }

    /// <summary>Order of the block; of an extfrag event the order that was asked for.</summary>
    public int Order { readonly get; internal set; }

    /// <summary>Migratetype; of an extfrag event the one that was asked for.</summary>
    public int Migratetype { readonly get; internal set; }

    /// <summary>Bytes asked for.</summary>
    public ulong BytesReq { readonly get; internal set; }

    /// <summary>Bytes given: the size of the slot, or of the pages of a large allocation.</summary>
    public ulong BytesAlloc { readonly get; internal set; }

    /// <summary>GFP flags with the bit values of Linux 6.18, whatever kernel printed the names.</summary>
    public uint GfpFlags { readonly get; internal set; }

    /// <summary>The NUMA node asked for; −1 none.</summary>
    public int Node { readonly get; internal set; }

    /// <summary>The request, or its cache, is charged to a memory cgroup.</summary>
    public bool Accounted { readonly get; internal set; }

    /// <summary>Number of the caller's name in <see cref="FtraceReader.CallSites"/>; 0 none.</summary>
    public int CallSite { readonly get; internal set; }

    /// <summary>Number of the cache's name in <see cref="FtraceReader.Names"/>; 0 none.</summary>
    public int Name { readonly get; internal set; }

    /// <summary>
    /// Number of the event's name in <see cref="FtraceReader.EventNames"/>, for <see cref="TraceEventKind.Other"/>
    /// only; 0 if the line has none.
    /// </summary>
    public int EventName { readonly get; internal set; }

    /// <summary>The order and migratetype may be kept in per-CPU lists (zone-locked allocation).</summary>
    public bool PercpuRefill { readonly get; internal set; }

    /// <summary>Order of the block that was found in the other migratetype (extfrag).</summary>
    public int FallbackOrder { readonly get; internal set; }

    /// <summary>Order of a pageblock (extfrag).</summary>
    public int PageblockOrder { readonly get; internal set; }

    /// <summary>The migratetype that the block was taken from (extfrag).</summary>
    public int FallbackMigratetype { readonly get; internal set; }

    /// <summary>The block found is smaller than a pageblock (extfrag).</summary>
    public bool Fragmenting { readonly get; internal set; }

    /// <summary>The pageblock changes its migratetype (extfrag).</summary>
    public bool ChangeOwnership { readonly get; internal set; }

    /// <summary>Start address of the area allocated or freed; of a purge the start of the range.</summary>
    public ulong VmapStart { readonly get; internal set; }

    /// <summary>End (exclusive) of the purged range.</summary>
    public ulong VmapEnd { readonly get; internal set; }

    /// <summary>Size in bytes of the area asked for, guard page included.</summary>
    public ulong VmapSize { readonly get; internal set; }

    /// <summary>Alignment in bytes asked for.</summary>
    public ulong VmapAlign { readonly get; internal set; }

    /// <summary>Lowest address allowed.</summary>
    public ulong VmapRangeStart { readonly get; internal set; }

    /// <summary>Highest address allowed.</summary>
    public ulong VmapRangeEnd { readonly get; internal set; }

    /// <summary>The kernel found no room: <see cref="VmapStart"/> is no address.</summary>
    public bool VmapFailed { readonly get; internal set; }

    /// <summary>Number of areas purged.</summary>
    public uint VmapPurged { readonly get; internal set; }

    /// <summary>Pages waiting to be purged, those of this area included.</summary>
    public ulong VmapLazyPages { readonly get; internal set; }

    /// <summary>Number of lazy pages from which a purge starts.</summary>
    public ulong VmapLazyMax { readonly get; internal set; }

    /// <summary>What a marker says; null for every other kind.</summary>
    public string? Text { readonly get; internal set; }

    private readonly int Depth(int shift)
    {
        byte c = (byte)(State >> shift);
        return char.IsAsciiDigit((char)c) ? c & 15 : char.IsAsciiHexDigit((char)c) ? (c & 15) + 9 : 0;
    }
}
