namespace Kmem;

/// <summary>How a slab cache behaves; given when the cache is created.</summary>
/// <remarks>
/// <c>SLAB_*</c>, <c>include/linux/slab.h</c>, Linux 6.18. The kernel numbers these bits by its configuration. The
/// values of <see cref="Kmalloc"/>, <see cref="HwcacheAlign"/>, <see cref="CacheDma"/>, <see cref="Panic"/>,
/// <see cref="TypesafeByRcu"/>, <see cref="NoMerge"/>, <see cref="NoUserFlags"/> and <see cref="ReclaimAccount"/>
/// are those seen in running kernels; the others are bits that those kernels leave free.
/// <code>
/// bits  0.. 2  debugging:  CONSISTENCY_CHECKS, RED_ZONE, POISON
/// bit       3  KMALLOC
/// bits  4.. 6  placement:  HWCACHE_ALIGN, CACHE_DMA, CACHE_DMA32
/// bit       7  STORE_USER
/// bits  8.. 9  PANIC, TYPESAFE_BY_RCU
/// bits 10..11  TRACE, NOLEAKTRACE
/// bits 12..14  NO_MERGE, NO_USER_FLAGS, RECLAIM_ACCOUNT
/// bits 15..16  internal:   object body is poisoned, double-word compare-and-swap
/// bits 17..19  DEBUG_OBJECTS, FAILSLAB, ACCOUNT
/// </code>
/// </remarks>
[Flags]
public enum SlabFlags : uint
{
    /// <summary>No flag.</summary>
    None = 0,

    /// <summary>
    /// Check structures on every allocation and free, debug letter F (<c>SLAB_CONSISTENCY_CHECKS</c>).
    /// </summary>
    ConsistencyChecks = 0x1,

    /// <summary>Guard bytes on both sides of each object, debug letter Z (<c>SLAB_RED_ZONE</c>).</summary>
    RedZone = 0x2,

    /// <summary>Fill free objects with a pattern and check it, debug letter P (<c>SLAB_POISON</c>).</summary>
    Poison = 0x4,

    /// <summary>A cache that serves kmalloc (<c>SLAB_KMALLOC</c>).</summary>
    Kmalloc = 0x8,

    /// <summary>
    /// Align objects to cache lines, or to the part of a line that suffices (<c>SLAB_HWCACHE_ALIGN</c>).
    /// </summary>
    HwcacheAlign = 0x10,

    /// <summary>Slabs from zone DMA (<c>SLAB_CACHE_DMA</c>).</summary>
    CacheDma = 0x20,

    /// <summary>Slabs from below 4 GiB (<c>SLAB_CACHE_DMA32</c>).</summary>
    CacheDma32 = 0x40,

    /// <summary>Remember who allocated and freed each object, debug letter U (<c>SLAB_STORE_USER</c>).</summary>
    StoreUser = 0x80,

    /// <summary>Failure to create the cache is fatal (<c>SLAB_PANIC</c>).</summary>
    Panic = 0x100,

    /// <summary>
    /// Pages of freed objects stay slabs of this cache for an RCU grace period; the objects themselves are reused at
    /// once (<c>SLAB_TYPESAFE_BY_RCU</c>).
    /// </summary>
    TypesafeByRcu = 0x200,

    /// <summary>Log every operation, debug letter T (<c>SLAB_TRACE</c>).</summary>
    Trace = 0x400,

    /// <summary>The leak detector ignores the objects (<c>SLAB_NOLEAKTRACE</c>).</summary>
    NoLeakTrace = 0x800,

    /// <summary>Never share slabs with a cache of the same shape (<c>SLAB_NO_MERGE</c>).</summary>
    NoMerge = 0x1000,

    /// <summary>The slab_debug option does not apply to this cache (<c>SLAB_NO_USER_FLAGS</c>).</summary>
    NoUserFlags = 0x2000,

    /// <summary>Objects can be reclaimed by a shrinker: count the slabs so (<c>SLAB_RECLAIM_ACCOUNT</c>).</summary>
    ReclaimAccount = 0x4000,

    /// <summary>Track the life of the objects with the object debugger (<c>SLAB_DEBUG_OBJECTS</c>).</summary>
    DebugObjects = 0x20000,

    /// <summary>Takes part in fault injection, debug letter A (<c>SLAB_FAILSLAB</c>).</summary>
    FailSlab = 0x40000,

    /// <summary>Charge the objects to the memory cgroup (<c>SLAB_ACCOUNT</c>).</summary>
    Account = 0x80000,
}

/// <summary>Groups of slab flags, and the two that only the allocator sets (<c>mm/slab.h</c>, Linux 6.18).</summary>
internal static class SlabFlagMask
{
    /// <summary>The body of free objects is poisoned: POISON, and neither RCU nor constructor.</summary>
    internal const SlabFlags ObjectPoison = (SlabFlags)0x8000;

    /// <summary>Freelist and counters are changed by one 16-byte compare-and-swap; always set on x86-64.</summary>
    internal const SlabFlags CmpxchgDouble = (SlabFlags)0x10000;

    /// <summary>Any of these makes a debug cache: no per-CPU slabs (<c>SLAB_DEBUG_FLAGS</c>).</summary>
    internal const SlabFlags Debug = SlabFlags.ConsistencyChecks | SlabFlags.RedZone | SlabFlags.Poison
        | SlabFlags.StoreUser | SlabFlags.Trace;

    /// <summary>Those debug flags that make slots larger (<c>DEBUG_METADATA_FLAGS</c>).</summary>
    internal const SlabFlags DebugMetadata = SlabFlags.RedZone | SlabFlags.Poison | SlabFlags.StoreUser;

    /// <summary>A cache with any of these never shares slabs (<c>SLAB_NEVER_MERGE</c>).</summary>
    internal const SlabFlags NeverMerge = SlabFlags.RedZone | SlabFlags.Poison | SlabFlags.StoreUser
        | SlabFlags.Trace | SlabFlags.TypesafeByRcu | SlabFlags.NoLeakTrace | SlabFlags.FailSlab | SlabFlags.NoMerge;

    /// <summary>Caches that share slabs agree in these (<c>SLAB_MERGE_SAME</c>).</summary>
    internal const SlabFlags MergeSame = SlabFlags.ReclaimAccount | SlabFlags.CacheDma | SlabFlags.CacheDma32
        | SlabFlags.Account;

    /// <summary>What a caller may ask for; anything else is -EINVAL (<c>SLAB_FLAGS_PERMITTED</c>).</summary>
    internal const SlabFlags Permitted = SlabFlags.HwcacheAlign | SlabFlags.CacheDma | SlabFlags.CacheDma32
        | SlabFlags.Panic | SlabFlags.TypesafeByRcu | SlabFlags.DebugObjects | SlabFlags.NoLeakTrace
        | SlabFlags.ReclaimAccount | SlabFlags.Account | SlabFlags.NoUserFlags | SlabFlags.Kmalloc
        | SlabFlags.NoMerge | Debug;
}
