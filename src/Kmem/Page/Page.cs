using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// <c>struct page</c>: the 64-byte descriptor of one page frame. Which fields mean something depends on what the frame
/// is used for:
/// <code>
///   offset   free block / per-CPU list     in use                      slab (head page)
///    0       Flags ─────────────────────────────────────────────────────────────────────────
///    8       Lru.Next                      tail: head address | 1      SlabCache
///   16       Lru.Prev                      –                           SlabList.Next (or CpuPartialNext)
///   24       –                             Mapping                     SlabList.Prev (or CpuPartialSlabs)
///   32       –                             Index                       –
///   40       Private = order of the block  Private                     SlabState (see SlabState)
///   48       Type, RefCount ────────────────────────────────────────────────────────────────
///   56       –                             –                           –
/// </code>
/// All zero is a valid descriptor: a frame that nobody has used yet. That is why a machine of 64 GiB boots without
/// touching its gigabyte of descriptors.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = SizeInBytes)]
[System.Diagnostics.DebuggerDisplay("{DebuggerText,nq}")]
internal struct Page
{
    public const int SizeInBytes = 64;
    public const int SizeShift = 6;

    [FieldOffset(0)]
    public PageFlags Flags;

    /// <summary>
    /// Order + 1 of the allocated block that starts here, 0 if none does: makes a wrong order in a free visible.
    /// </summary>
    [FieldOffset(7)]
    public byte AllocatedOrderPlusOne;

    [FieldOffset(8)]
    public ListHead Lru;

    [FieldOffset(8)]
    public ulong CompoundHead;

    [FieldOffset(8)]
    public nint SlabCache;

    [FieldOffset(16)]
    public ListHead SlabList;

    [FieldOffset(16)]
    public unsafe Page* CpuPartialNext;

    [FieldOffset(24)]
    public int CpuPartialSlabs;

    [FieldOffset(24)]
    public ulong Mapping;

    [FieldOffset(32)]
    public ulong Index;

    [FieldOffset(40)]
    public ulong Private;

    [FieldOffset(40)]
    public ulong SlabState;

    [FieldOffset(48)]
    public PageType Type;

    [FieldOffset(52)]
    public int RefCount;

    [FieldOffset(56)]
    public ulong MemcgData;

    private readonly string DebuggerText => Type switch
    {
        PageType.Buddy => $"free block of order {Private}",
        _ when IsTail => "tail of a compound block",
        PageType.None => AllocatedOrderPlusOne == 0
            ? $"no block starts here, references {RefCount}, {Flags}"
            : $"block of order {AllocatedOrderPlusOne - 1}, references {RefCount}, {Flags}",
        _ => $"{Type}, order {AllocatedOrderPlusOne - 1}, {Flags}",
    };

    /// <summary>A tail page of a compound block.</summary>
    public readonly bool IsTail => (CompoundHead & 1) != 0 && Type == PageType.None;

    /// <summary>The head page of a compound block.</summary>
    public readonly bool IsHead => (Flags & PageFlags.Head) != 0;

    /// <summary>
    /// The page itself, or the head of the compound block that it is a tail of. The word is read once: whoever only
    /// looks at a machine at work may see the block end in between.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Page* HeadOf(Page* page)
    {
        ulong head = Volatile.Read(ref page->CompoundHead);
        return (head & 1) != 0 && page->Type == PageType.None ? (Page*)(head - 1) : page;
    }

    /// <summary>The page that embeds the list node at <see cref="Lru"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Page* FromLru(ListHead* node) => (Page*)((byte*)node - 8);

    /// <summary>The page that embeds the list node at <see cref="SlabList"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe Page* FromSlabList(ListHead* node) => (Page*)((byte*)node - 16);
}

/// <summary>Page flags, with the bit numbers of Linux 6.18 on a 64-bit machine with an MMU (enum pageflags).</summary>
[Flags]
internal enum PageFlags : ulong
{
    None = 0,
    Locked = 1UL << 0,
    Writeback = 1UL << 1,
    Referenced = 1UL << 2,

    /// <summary>On a free block: its memory was given back to the host (PG_reported).</summary>
    Reported = 1UL << 3,
    Dirty = 1UL << 4,

    /// <summary>On an LRU list: counts as movable when a pageblock is considered for claiming.</summary>
    Lru = 1UL << 5,
    Head = 1UL << 6,

    /// <summary>On a slab: came from the emergency reserve (reuse of "active").</summary>
    SlabPfMemAlloc = 1UL << 8,

    /// <summary>On a slab: on its node's partial list (reuse of "workingset").</summary>
    SlabOnPartialList = 1UL << 9,
    Reserved = 1UL << 13,
    Private = 1UL << 14,
    Unevictable = 1UL << 18,

    /// <summary>Given out from the reserves without a watermark (page_is_pfmemalloc); not a kernel bit.</summary>
    PfMemAlloc = 1UL << 40,

    /// <summary>On a slab: a free list was found corrupt and given up; not a kernel bit.</summary>
    SlabCorrupt = 1UL << 41,

    /// <summary>On a slab of a cache that remembers its users: on its node's list of full slabs; not a kernel
    /// bit.</summary>
    SlabOnFullList = 1UL << 42,

    /// <summary>Flags that must not be set on a page that is freed (PAGE_FLAGS_CHECK_AT_FREE).</summary>
    CheckAtFree = Locked | Writeback | Lru | Reserved | Private | Unevictable,
}

/// <summary>
/// Page types, in the top byte as in the kernel. No type is 0 here and 0xffffffff in the kernel: descriptors start
/// zeroed.
/// </summary>
internal enum PageType : uint
{
    None = 0,
    Buddy = 0xf0_000000,
    Offline = 0xf1_000000,
    Table = 0xf2_000000,
    Guard = 0xf3_000000,
    Slab = 0xf5_000000,
    LargeKmalloc = 0xf8_000000,
}
