namespace Kmem;

/// <summary>
/// Where the objects that describe areas come from and go to: a slab cache; or, in a replay, the requests to that cache
/// which stand in the recording themselves.
/// </summary>
/// <param name="cache">The cache <c>vmap_area</c>, or the one that it was merged into.</param>
internal sealed class VmapObjects(KmemCache cache)
{
    public KmemCache Cache => cache;

    /// <summary>Gives out an object that was taken from the cache before; null: take it now.</summary>
    public Func<Gfp, nint>? Source { get; set; }

    /// <summary>Takes an object that goes back to the cache later; null: give it back now.</summary>
    public Action<nint>? Sink { get; set; }

    public unsafe VmapArea* Alloc(Gfp gfp, int node = -1) =>
        Source is { } source ? (VmapArea*)source(gfp) : (VmapArea*)cache.Alloc(gfp, node);

    /// <summary>Null is allowed.</summary>
    public unsafe void Free(VmapArea* area)
    {
        if (area == null)
            return;
        if (Sink is { } sink)
            sink((nint)area);
        else
            cache.Free(area);
    }
}
