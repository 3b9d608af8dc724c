namespace Kmem;

/// <summary>
/// What an allocation may do to succeed and where its memory may come from: the "get free pages" flags.
/// Use a composite (<see cref="Kernel"/> in ordinary code, <see cref="Atomic"/> where sleeping is forbidden) and add
/// modifiers with <c>|</c>.
/// </summary>
/// <remarks>
/// <c>gfp_t</c>, <c>include/linux/gfp_types.h</c>, Linux 6.18; values of a build without hardware memory tags and
/// without lockdep.
/// <code>
/// bits  0.. 3  which zone:       DMA, HIGHMEM, DMA32, MOVABLE
/// bit       4  RECLAIMABLE (with MOVABLE: the migrate type)
/// bits  5.. 7  rights:           HIGH, IO, FS
/// bit       8  ZERO              (bit 9 is unused)
/// bits 10..11  reclaim:          DIRECT_RECLAIM, KSWAPD_RECLAIM
/// bits 12..13  WRITE, NOWARN
/// bits 14..16  how hard to try:  RETRY_MAYFAIL, NOFAIL, NORETRY
/// bits 17..19  MEMALLOC, COMP, NOMEMALLOC
/// bits 20..21  which nodes:      HARDWALL, THISNODE
/// bits 22..24  ACCOUNT, ZEROTAGS, NO_OBJ_EXT
/// </code>
/// Names of the kernel: <c>__GFP_X</c> for a bit, <c>GFP_X</c> for a composite;
/// <see cref="GfpNames.ToKernelString"/> writes them.
/// </remarks>
[Flags]
public enum Gfp : uint
{
    /// <summary>No flag: no zone restriction, no right to reclaim, not even to wake kswapd.</summary>
    None = 0,

    /// <summary>Only the lowest zone, the first 16 MiB (<c>__GFP_DMA</c>, <c>GFP_DMA</c>).</summary>
    Dma = 0x1,

    /// <summary>High memory is allowed (<c>__GFP_HIGHMEM</c>); on 64-bit machines that is zone Normal.</summary>
    HighMem = 0x2,

    /// <summary>Only memory below 4 GiB (<c>__GFP_DMA32</c>, <c>GFP_DMA32</c>). An error for slab objects.</summary>
    Dma32 = 0x4,

    /// <summary>
    /// The page can be migrated (<c>__GFP_MOVABLE</c>); together with <see cref="HighMem"/> zone Movable is allowed.
    /// </summary>
    Movable = 0x8,

    /// <summary>The page belongs to a cache that a shrinker can empty (<c>__GFP_RECLAIMABLE</c>).</summary>
    Reclaimable = 0x10,

    /// <summary>High priority: half of the MIN reserve may be used (<c>__GFP_HIGH</c>).</summary>
    High = 0x20,

    /// <summary>Physical input and output may be started; compaction needs it too (<c>__GFP_IO</c>).</summary>
    IO = 0x40,

    /// <summary>Reclaim may call into file systems (<c>__GFP_FS</c>).</summary>
    FS = 0x80,

    /// <summary>Return zeroed memory (<c>__GFP_ZERO</c>).</summary>
    Zero = 0x100,

    /// <summary>The caller may reclaim itself, that is, sleep (<c>__GFP_DIRECT_RECLAIM</c>).</summary>
    DirectReclaim = 0x400,

    /// <summary>kswapd may be woken (<c>__GFP_KSWAPD_RECLAIM</c>).</summary>
    KswapdReclaim = 0x800,

    /// <summary>The page will be dirtied: spread over nodes within their dirty limits (<c>__GFP_WRITE</c>).</summary>
    Write = 0x1000,

    /// <summary>No report when the allocation fails (<c>__GFP_NOWARN</c>).</summary>
    NoWarn = 0x2000,

    /// <summary>Try hard, but fail rather than kill a task (<c>__GFP_RETRY_MAYFAIL</c>).</summary>
    RetryMayFail = 0x4000,

    /// <summary>Never fail; the caller must be able to sleep, order at most 1 (<c>__GFP_NOFAIL</c>).</summary>
    NoFail = 0x8000,

    /// <summary>One light attempt, no task is killed (<c>__GFP_NORETRY</c>).</summary>
    NoRetry = 0x10000,

    /// <summary>Full access to the reserves (<c>__GFP_MEMALLOC</c>).</summary>
    MemAlloc = 0x20000,

    /// <summary>A block of more than one page becomes a compound page (<c>__GFP_COMP</c>).</summary>
    Comp = 0x40000,

    /// <summary>No access to the reserves; wins over <see cref="MemAlloc"/> (<c>__GFP_NOMEMALLOC</c>).</summary>
    NoMemAlloc = 0x80000,

    /// <summary>Obey the cpuset (<c>__GFP_HARDWALL</c>).</summary>
    HardWall = 0x100000,

    /// <summary>Only the given node, no fallback to others (<c>__GFP_THISNODE</c>).</summary>
    ThisNode = 0x200000,

    /// <summary>Charge the memory to the memory cgroup (<c>__GFP_ACCOUNT</c>).</summary>
    Account = 0x400000,

    /// <summary>Zero the memory tags together with the memory (<c>__GFP_ZEROTAGS</c>).</summary>
    ZeroTags = 0x800000,

    /// <summary>No extension data for the slab's objects (<c>__GFP_NO_OBJ_EXT</c>).</summary>
    NoObjExt = 0x1000000,

    /// <summary>Both kinds of reclaim (<c>__GFP_RECLAIM</c>).</summary>
    Reclaim = DirectReclaim | KswapdReclaim,

    /// <summary>Cannot sleep, may use part of the reserves (<c>GFP_ATOMIC</c>).</summary>
    Atomic = High | KswapdReclaim,

    /// <summary>The ordinary request of kernel code; may sleep (<c>GFP_KERNEL</c>).</summary>
    Kernel = Reclaim | IO | FS,

    /// <summary><see cref="Kernel"/>, charged to the memory cgroup (<c>GFP_KERNEL_ACCOUNT</c>).</summary>
    KernelAccount = Kernel | Account,

    /// <summary>Cannot sleep, no reserves, a failure is expected and not reported (<c>GFP_NOWAIT</c>).</summary>
    NoWait = KswapdReclaim | NoWarn,

    /// <summary>May sleep, but no input or output may be started (<c>GFP_NOIO</c>).</summary>
    NoIO = Reclaim,

    /// <summary>May sleep, but reclaim must not call into file systems (<c>GFP_NOFS</c>).</summary>
    NoFS = Reclaim | IO,

    /// <summary>Memory for user space that the kernel uses too (<c>GFP_USER</c>).</summary>
    User = Kernel | HardWall,

    /// <summary>Memory for user space that need not be directly addressable (<c>GFP_HIGHUSER</c>).</summary>
    HighUser = User | HighMem,

    /// <summary><see cref="HighUser"/> that can be migrated: anonymous memory (<c>GFP_HIGHUSER_MOVABLE</c>).</summary>
    HighUserMovable = HighUser | Movable,

    /// <summary>A huge page, if one is free (<c>GFP_TRANSHUGE_LIGHT</c>).</summary>
    TransHugeLight = (HighUserMovable | Comp | NoMemAlloc | NoWarn) & ~Reclaim,

    /// <summary>A huge page, with direct reclaim and compaction (<c>GFP_TRANSHUGE</c>).</summary>
    TransHuge = TransHugeLight | DirectReclaim,
}

/// <summary>Groups of flags that the allocators use among themselves (<c>mm/internal.h</c>, Linux 6.18).</summary>
internal static class GfpMask
{
    /// <summary>How many bits a <see cref="Gfp"/> has, the unused bit 9 included (<c>__GFP_BITS_SHIFT</c>).</summary>
    internal const int BitCount = 25;

    /// <summary>All valid bits (<c>__GFP_BITS_MASK</c>).</summary>
    internal const Gfp Bits = (Gfp)((1u << BitCount) - 1);

    /// <summary>How hard to try; slab passes these down to the page allocator (<c>GFP_RECLAIM_MASK</c>).</summary>
    internal const Gfp Reclaim = Gfp.Reclaim | Gfp.High | Gfp.IO | Gfp.FS | Gfp.NoWarn | Gfp.RetryMayFail
        | Gfp.NoFail | Gfp.NoRetry | Gfp.MemAlloc | Gfp.NoMemAlloc;

    /// <summary>Where to look; slab passes these down too (<c>GFP_CONSTRAINT_MASK</c>).</summary>
    internal const Gfp Constraint = Gfp.HardWall | Gfp.ThisNode;

    /// <summary>Errors in a request for slab objects: reported, then dropped (<c>GFP_SLAB_BUG_MASK</c>).</summary>
    internal const Gfp SlabBug = Gfp.Dma32 | Gfp.HighMem | ~Bits;

    /// <summary>What is allowed until interrupts are on: nothing that sleeps (<c>GFP_BOOT_MASK</c>).</summary>
    internal const Gfp Boot = Bits & ~(Gfp.Reclaim | Gfp.IO | Gfp.FS);

    /// <summary>The bits that select a zone (<c>GFP_ZONEMASK</c>).</summary>
    internal const Gfp Zone = Gfp.Dma | Gfp.HighMem | Gfp.Dma32 | Gfp.Movable;

    /// <summary>The bits that select a migrate type (<c>GFP_MOVABLE_MASK</c>).</summary>
    internal const Gfp Mobility = Gfp.Movable | Gfp.Reclaimable;

    /// <summary>
    /// The flags of an allocation made on behalf of another one, such as a stack record (<c>gfp_nested_mask</c>):
    /// it may sleep only if the outer one may, never touches reserves and fails in silence.
    /// </summary>
    internal static Gfp Nested(Gfp outer) =>
        (outer & (Gfp.Kernel | Gfp.Atomic)) | Gfp.NoRetry | Gfp.NoMemAlloc | Gfp.NoWarn;
}

/// <summary>Questions about <see cref="Gfp"/> flags.</summary>
public static class GfpExtensions
{
    // Four bits per selector combination; 0 where two zones are named at once.
    private const ulong ZoneTable =
        ((ulong)ZoneType.Normal << (4 * (int)Gfp.None))
        | ((ulong)ZoneType.Dma << (4 * (int)Gfp.Dma))
        | ((ulong)ZoneType.Normal << (4 * (int)Gfp.HighMem))
        | ((ulong)ZoneType.Dma32 << (4 * (int)Gfp.Dma32))
        | ((ulong)ZoneType.Normal << (4 * (int)Gfp.Movable))
        | ((ulong)ZoneType.Dma << (4 * (int)(Gfp.Movable | Gfp.Dma)))
        | ((ulong)ZoneType.Movable << (4 * (int)(Gfp.Movable | Gfp.HighMem)))
        | ((ulong)ZoneType.Dma32 << (4 * (int)(Gfp.Movable | Gfp.Dma32)));

    private const uint ValidSelectors =
        (1u << (int)Gfp.None) | (1u << (int)Gfp.Dma) | (1u << (int)Gfp.HighMem) | (1u << (int)Gfp.Dma32)
        | (1u << (int)Gfp.Movable) | (1u << (int)(Gfp.Movable | Gfp.Dma))
        | (1u << (int)(Gfp.Movable | Gfp.HighMem)) | (1u << (int)(Gfp.Movable | Gfp.Dma32));

    // Two bits per value of (flags & Mobility) >> 3; both flags at once is an error and reads as Unmovable.
    private const uint MobilityTable = ((uint)Migratetype.Movable << 2) | ((uint)Migratetype.Reclaimable << 4);

    /// <summary>
    /// Whether the allocation may sleep: <see cref="Gfp.DirectReclaim"/> is set
    /// (<c>gfpflags_allow_blocking</c>, <c>include/linux/gfp.h</c>, Linux 6.18).
    /// </summary>
    public static bool MayBlock(this Gfp gfp) => (gfp & Gfp.DirectReclaim) != Gfp.None;

    /// <summary>
    /// Whether the allocation may wait for a spinlock: some bit of <see cref="Gfp.Reclaim"/> is set
    /// (<c>gfpflags_allow_spinning</c>, <c>include/linux/gfp.h</c>, Linux 6.18).
    /// </summary>
    public static bool MaySpin(this Gfp gfp) => (gfp & Gfp.Reclaim) != Gfp.None;

    /// <summary>
    /// The highest zone the request may use (<c>gfp_zone</c>, <c>include/linux/gfp.h</c>, Linux 6.18). It is the
    /// index into lowmem_reserve even if the zone has no memory. Callers check
    /// <see cref="HasValidZone"/> first; for an invalid combination the answer is the lowest zone, which
    /// every selector allows.
    /// </summary>
    internal static ZoneType HighestZone(this Gfp gfp) =>
        (ZoneType)((ZoneTable >> (4 * (int)(gfp & GfpMask.Zone))) & 0xf);

    /// <summary>Whether at most one of DMA, HIGHMEM and DMA32 is set (a bug check with DEBUG_VM).</summary>
    internal static bool HasValidZone(this Gfp gfp) => ((ValidSelectors >> (int)(gfp & GfpMask.Zone)) & 1) != 0;

    /// <summary>
    /// The migrate type of the request (<c>gfp_migratetype</c>, <c>include/linux/gfp.h</c>, Linux 6.18).
    /// Callers check <see cref="HasValidMobility"/> first; both bits together read as Unmovable, the type that
    /// promises nothing.
    /// </summary>
    internal static Migratetype ToMigratetype(this Gfp gfp) =>
        (Migratetype)((MobilityTable >> ((int)(gfp & GfpMask.Mobility) >> 2)) & 3);

    /// <summary>Whether MOVABLE and RECLAIMABLE are not both set.</summary>
    internal static bool HasValidMobility(this Gfp gfp) => (gfp & GfpMask.Mobility) != GfpMask.Mobility;
}
