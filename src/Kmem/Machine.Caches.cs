namespace Kmem;

/// <content>Slab caches.</content>
public sealed partial class Machine
{
    /// <summary>All caches, newest first, as /proc/slabinfo lists them.</summary>
    public IReadOnlyList<KmemCache> Caches => _slabs.Caches;

    /// <summary>
    /// Creates a cache of equal objects (kmem_cache_create_usercopy, mm/slab_common.c, Linux 6.18), or joins an
    /// existing one of the same shape unless flags or a constructor forbid it.
    /// </summary>
    /// <param name="name">For slabinfo and reports.</param>
    /// <param name="size">Bytes of an object, 1 to 4 MiB.</param>
    /// <param name="align">Alignment in bytes, a power of two; 0 for none beyond 8.</param>
    /// <param name="flags">How it behaves.</param>
    /// <param name="constructor">Called once per object of a new slab, not per allocation; or null.</param>
    /// <param name="userOffset">Start of the bytes that user copies may touch.</param>
    /// <param name="userSize">Bytes that user copies may touch; 0 for none.</param>
    /// <param name="freePointerOffset">
    /// Where in the object the free pointer lies, for <see cref="SlabFlags.TypesafeByRcu"/> caches that know a place
    /// which readers do not look at; null lets the cache decide.
    /// </param>
    /// <param name="sheafCapacity">
    /// Objects in a sheaf, the per-CPU array in front of the slabs; 0 for none. Such a cache is never merged.
    /// </param>
    /// <returns>The cache. Several users of one shape get the same cache; each destroys it once.</returns>
    /// <exception cref="ArgumentException">
    /// Size, alignment, flags or window are impossible; the message says which.
    /// </exception>
    /// <exception cref="OutOfMemoryException">The CPUs' sheaves could not be allocated.</exception>
    public KmemCache CreateCache(
        string name,
        int size,
        int align = 0,
        SlabFlags flags = SlabFlags.None,
        SlabConstructor? constructor = null,
        int userOffset = 0,
        int userSize = 0,
        int? freePointerOffset = null,
        int sheafCapacity = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(sheafCapacity);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(sheafCapacity, 1024);
        var traits = new CacheTraits(constructor, userOffset, userSize, sheafCapacity);
        return _slabs.Create(name, size, align, flags, traits, freePointerOffset);
    }

    /// <summary>Gives back the empty slabs of all caches.</summary>
    public void ShrinkCaches() => _slabs.ShrinkAll();
}
