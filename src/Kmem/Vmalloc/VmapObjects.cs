using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// Where the objects that describe areas come from and go to: the slab cache <c>vmap_area</c>. In a replay those
/// requests are in the recording themselves; then the trees consist of copies outside the machine's RAM, each of which
/// knows the address of the object that it stands for, and a mistake about slabs cannot tear a tree.
/// </summary>
internal sealed class VmapObjects : IDisposable
{
    private readonly SlabAllocator _slabs;
    private readonly KmemCache? _cache;
    private readonly Dictionary<nint, ulong>? _copies;

    /// <param name="slabs">The caches.</param>
    /// <param name="cache">
    /// The cache <c>vmap_area</c>, or the one that it was merged into; null only for copies that stand for no objects.
    /// </param>
    /// <param name="copied">Whether the trees consist of copies.</param>
    public VmapObjects(SlabAllocator slabs, KmemCache? cache, bool copied)
    {
        Bug.On(cache == null && !copied, "areas without a cache for their objects");
        _slabs = slabs;
        _cache = cache;
        _copies = copied ? [] : null;
    }

    public KmemCache Cache => _cache ?? throw new InvalidOperationException("these areas have no cache");

    /// <summary>With copies: names the object, of those taken from the cache before, that is used now.</summary>
    public Func<ulong>? Source { get; set; }

    /// <summary>With copies: told which object is not used any more; it goes back to the cache later.</summary>
    public Action<ulong>? Sink { get; set; }

    /// <summary>Told when the cache has no object: the machine's own trace does not show that.</summary>
    public Action<Gfp>? Refused { get; set; }

    public unsafe VmapArea* Alloc(Gfp gfp, int node = -1)
    {
        if (_copies != null)
            return CopyOf(Source?.Invoke() ?? 0);

        var area = (VmapArea*)Cache.Alloc(gfp, node);
        if (area == null)
            Refused?.Invoke(gfp);
        else
            Cache.Disown(area);
        return area;
    }

    /// <summary>Null is allowed.</summary>
    public unsafe void Free(VmapArea* area)
    {
        if (area == null)
            return;
        if (_copies == null)
        {
            Cache.Free(area);
            return;
        }

        _copies.Remove((nint)area, out ulong address);
        NativeMemory.Free(area);
        Sink?.Invoke(address);
    }

    /// <summary>The object of a restored state, which is in use in the slab already.</summary>
    public unsafe nint Restored(ulong address) =>
        _copies == null ? (nint)_slabs.PointerOf(address) : (nint)CopyOf(address);

    /// <summary>The kernel's address of the object.</summary>
    public unsafe ulong AddressOf(VmapArea* area) =>
        _copies == null ? _slabs.KernelAddress(area) : _copies[(nint)area];

    public unsafe void Dispose()
    {
        foreach (nint copy in _copies?.Keys ?? Enumerable.Empty<nint>())
            NativeMemory.Free((void*)copy);
        _copies?.Clear();
    }

    private unsafe VmapArea* CopyOf(ulong address)
    {
        var copy = (VmapArea*)NativeMemory.AllocZeroed(VmapArea.SizeInBytes);
        _copies!.Add((nint)copy, address);
        return copy;
    }
}
