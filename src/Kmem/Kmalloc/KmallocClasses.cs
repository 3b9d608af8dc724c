using System.Globalization;
using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// The sets of kmalloc caches; each has one cache per size class (<c>enum kmalloc_cache_type</c>,
/// <c>include/linux/slab.h</c>, Linux 6.18).
/// </summary>
internal enum KmallocType : byte
{
    /// <summary>Ordinary objects, "kmalloc-*".</summary>
    Normal = 0,

    /// <summary>Objects that a shrinker can free, "kmalloc-rcl-*".</summary>
    Reclaim = 1,

    /// <summary>Objects in zone DMA, "dma-kmalloc-*".</summary>
    Dma = 2,

    /// <summary>Objects charged to a memory cgroup, "kmalloc-cg-*".</summary>
    Cgroup = 3,
}

/// <summary>
/// The size classes of kmalloc: which request goes to which cache (<c>include/linux/slab.h</c>,
/// <c>mm/slab_common.c</c>, Linux 6.18).
/// </summary>
/// <remarks>
/// <code>
/// index     0   1    2   3   4   5   6    7    8    9     10    11    12    13
/// class     -  96  192   8  16  32  64  128  256  512   1024  2048  4096  8192     larger: whole pages
/// </code>
/// From 3 on the index is the class size's logarithm; the two classes that are no powers of two took the free low ones.
/// </remarks>
internal static class KmallocClasses
{
    /// <summary>Size of the index space: entries of a bucket set; index 0 is no class.</summary>
    internal const int Count = 14;

    /// <summary>How many types there are.</summary>
    internal const int TypeCount = 4;

    /// <summary>The first index that is a logarithm (<c>KMALLOC_SHIFT_LOW</c>).</summary>
    internal const int FirstPowerIndex = 3;

    /// <summary>Bytes of the smallest class (<c>KMALLOC_MIN_SIZE</c>).</summary>
    internal const int MinSize = 8;

    /// <summary>Bytes of the largest class (<c>KMALLOC_MAX_CACHE_SIZE</c>); larger requests get whole pages.</summary>
    internal const int MaxCacheSize = 8192;

    /// <summary>Bytes of the largest request that can succeed, 4 MiB (<c>KMALLOC_MAX_SIZE</c>).</summary>
    internal const int MaxSize = 1 << (PageOrder.Max + 12);

    /// <summary>The flags that select another type than Normal, where all types are configured.</summary>
    internal const Gfp TypeBits = Gfp.Dma | Gfp.Reclaimable | Gfp.Account;

    private const int TableMaxSize = 192;
    private const ulong PageSize = 4096;

    // The class of (size - 1) / 8 for sizes up to 192.
    private static ReadOnlySpan<byte> SmallIndex =>
    [
        3, 4, 5, 5, 6, 6, 6, 6,
        1, 1, 1, 1, 7, 7, 7, 7,
        2, 2, 2, 2, 2, 2, 2, 2,
    ];

    private static ReadOnlySpan<ushort> Sizes =>
        [0, 96, 192, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

    /// <summary>
    /// What the native profile has between the kernel's classes and above them: four to a doubling, so that rounding up
    /// costs a tenth of the memory and not a quarter. No kernel has these.
    /// </summary>
    internal static ReadOnlySpan<ushort> BetweenSizes =>
    [
        48, 80, 112, 160, 224, 320, 384, 448, 640, 768, 896, 1280, 1536, 1792, 2560, 3072, 3584, 5120, 6144, 7168,
        10240, 12288, 14336, 16384, 20480, 24576, 28672, 32768,
    ];

    /// <summary>
    /// Bytes of the largest class of the native profile: blocks of up to eight pages are objects there, too.
    /// </summary>
    internal const int MaxNativeCacheSize = 32768;

    /// <summary>
    /// The largest slabs of those classes that the kernel does not have at all: with eight pages, only one object would
    /// fit into a slab, or two.
    /// </summary>
    internal const int NativeSlabOrder = 5;

    /// <summary>The indices in the order in which the caches of one type are created.</summary>
    internal static ReadOnlySpan<byte> CreationOrder => [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];

    /// <summary>Whether a cache serves this size: 1 to 8192 bytes. One test for both ends.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static bool IsCached(nuint size) => size - 1 < MaxCacheSize;

    /// <summary>
    /// The index of the smallest class that holds <paramref name="size"/> bytes (<c>kmalloc_index</c>). The caller
    /// has checked <see cref="IsCached"/>; other sizes give an index of no class.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static int IndexOf(nuint size)
    {
        nuint last = size - 1;
        if (last < TableMaxSize)
        {
            // SAFETY: last / 8 is below 192 / 8 = 24, the length of the table.
            return Unsafe.Add(ref MemoryMarshal.GetReference(SmallIndex), last >> 3);
        }
        return 64 - BitOperations.LeadingZeroCount((ulong)last);
    }

    /// <summary>Bytes of the class with this index, 1 to 13.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static int SizeOf(int index) => Sizes[index];

    /// <summary>
    /// The type that serves a request (<c>kmalloc_type</c>). <paramref name="configured"/> holds those of
    /// <see cref="TypeBits"/> whose types exist: without memory cgroups or a DMA zone their flags mean nothing.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static KmallocType TypeOf(Gfp gfp, Gfp configured = TypeBits)
    {
        gfp &= configured;
        return gfp == Gfp.None ? KmallocType.Normal : SpecialTypeOf(gfp);
    }

    /// <summary>The name of a cache, such as "kmalloc-1k" or "dma-kmalloc-96".</summary>
    /// <param name="type">The set.</param>
    /// <param name="index">The class, 1 to 13.</param>
    internal static string NameOf(KmallocType type, int index)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(index, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(index, Count);
        string prefix = type switch
        {
            KmallocType.Normal => "kmalloc-",
            KmallocType.Reclaim => "kmalloc-rcl-",
            KmallocType.Dma => "dma-kmalloc-",
            KmallocType.Cgroup => "kmalloc-cg-",
            _ => throw new ArgumentOutOfRangeException(nameof(type)),
        };
        int size = SizeOf(index);
        return size < 1024
            ? string.Create(CultureInfo.InvariantCulture, $"{prefix}{size}")
            : string.Create(CultureInfo.InvariantCulture, $"{prefix}{size / 1024}k");
    }

    /// <summary>The name of a cache that no kernel has, such as "kmalloc-1280".</summary>
    internal static string NameOf(ushort betweenSize) => string.Create(CultureInfo.InvariantCulture, $"kmalloc-{betweenSize}");

    /// <summary>The flags with which a type's caches are created (<c>new_kmalloc_cache</c>).</summary>
    /// <param name="type">The set.</param>
    /// <param name="memcg">
    /// Whether memory cgroups are configured; then Normal caches are not shared, lest charged objects end up there.
    /// </param>
    internal static SlabFlags CreationFlags(KmallocType type, bool memcg) => SlabFlags.Kmalloc | type switch
    {
        KmallocType.Normal => memcg ? SlabFlags.NoMerge : SlabFlags.None,
        KmallocType.Reclaim => SlabFlags.ReclaimAccount,
        KmallocType.Dma => SlabFlags.CacheDma,
        KmallocType.Cgroup => SlabFlags.Account,
        _ => throw new ArgumentOutOfRangeException(nameof(type)),
    };

    /// <summary>
    /// The bytes that a request of this size may use in fact (<c>kmalloc_size_roundup</c>): ask for that much in the
    /// first place to use the slack. 0 and sizes above 4 MiB stay as they are.
    /// </summary>
    internal static nuint SizeRoundup(nuint size)
    {
        if (IsCached(size)) return (nuint)SizeOf(IndexOf(size));
        if (size == 0 || size > MaxSize) return size;
        return (nuint)(PageSize << PageOrder.ForSize(size));
    }

    private static KmallocType SpecialTypeOf(Gfp gfp)
    {
        if ((gfp & Gfp.Dma) != Gfp.None) return KmallocType.Dma;
        return (gfp & Gfp.Reclaimable) != Gfp.None ? KmallocType.Reclaim : KmallocType.Cgroup;
    }
}
