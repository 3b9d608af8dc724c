using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// A sheaf of a cache in the hands of one method: objects are allocated from it and freed to it without asking which
/// thread and which CPU this is. The fastest way there is, for hot loops.
/// <code>
///   using CacheScope scope = cache.Enter(Gfp.Kernel);
///   void* obj = scope.Alloc();
///   scope.Free(obj);
/// </code>
/// </summary>
/// <remarks>
/// What it allocates is an ordinary object: any thread may free it, and objects from elsewhere may be freed here. Other
/// calls on the cache go on as usual meanwhile, and scopes nest. Disposing it gives the sheaf back with all it holds;
/// until then those objects are this method's, so <see cref="Machine.Validate"/> and <see cref="KmemCache.Destroy"/> do
/// not see them. Comparable to a prefilled sheaf (kmem_cache_prefill_sheaf, mm/slub.c, Linux 6.18).
/// </remarks>
public ref struct CacheScope
{
    private readonly KmemCache _cache;
    private readonly SlabAllocator.PlaceMap _placeOfFrame;
    private readonly nuint _place;
    private readonly unsafe byte* _live;
    private readonly int _liveShift;
    private readonly Gfp _gfp;
    private unsafe Sheaf* _sheaf;
    private unsafe void** _top;
    private unsafe void** _low;
    private unsafe void** _high;

    internal unsafe CacheScope(KmemCache cache, SlabAllocator.PlaceMap places, byte* live, int liveShift, Gfp gfp)
    {
        _cache = cache;
        _placeOfFrame = places;
        _place = cache.Place;
        _live = live;
        _liveShift = liveShift;
        _gfp = gfp;
        Use(cache.TakeSheaf(gfp));
    }

    /// <summary>Allocates an object, with the flags that the scope was entered with.</summary>
    /// <returns>
    /// The object, its content undefined or as the constructor left it; or null if there is no memory.
    /// </returns>
    /// <exception cref="KernelBugException">
    /// The scope was entered with flags that allow sleeping, the sheaf is empty, and this context may not sleep.
    /// </exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void* Alloc()
    {
        void** top = _top;
        if (top == _low)
            return AllocSlow();

        top--;
        _top = top;
        void* obj = *top;
        _live[(nuint)obj >> _liveShift] = (byte)LiveObjects.Mark((nuint)obj);
        return obj;
    }

    /// <summary>Frees an object of this cache. Null is allowed and ignored.</summary>
    /// <param name="obj">An object of the cache, wherever it was allocated.</param>
    /// <exception cref="KernelBugException">
    /// It is free already, or no object begins there, or it is not of this machine.
    /// </exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void Free(void* obj)
    {
        void** top = _top;
        if (top != _high && _placeOfFrame.Of((nuint)obj) == _place)
        {
            byte* mark = _live + ((nuint)obj >> _liveShift);
            if (*mark == LiveObjects.Mark((nuint)obj))
            {
                *mark = 0;
                *top = obj;
                _top = top + 1;
                return;
            }
        }

        FreeSlow(obj);
    }

    /// <summary>Gives the sheaf back. Twice is fine.</summary>
    public unsafe void Dispose()
    {
        Sheaf* sheaf = Settle();
        Use(null);
        if (sheaf != null)
            _cache.GiveSheaf(sheaf);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void* AllocSlow()
    {
        if (_sheaf == null)
            return _cache.Alloc(_gfp);

        Sheaf* full = _cache.ExchangeForFull(Settle(), _gfp);
        if (full == null)
            return _cache.Alloc(_gfp);

        Use(full);
        return Alloc();
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void FreeSlow(void* obj)
    {
        // Full, or no sheaf, or a bad pointer: the cache knows what to do. Half of what is here goes along, so that
        // this is not the way of every free.
        if (_sheaf != null && _top == _high)
        {
            int half = (int)(_high - _low) / 2;
            _cache.FreeMarked(new Span<nint>(_low + half, (int)(_high - _low) - half));
            _top = _low + half;
        }

        _cache.Free(obj);
    }

    private readonly unsafe Sheaf* Settle()
    {
        if (_sheaf != null)
            _sheaf->Size = (int)(_top - _low);
        return _sheaf;
    }

    private unsafe void Use(Sheaf* sheaf)
    {
        _sheaf = sheaf;
        _low = sheaf == null ? null : Sheaf.ObjectsOf(sheaf);
        _top = sheaf == null ? null : _low + sheaf->Size;
        _high = sheaf == null ? null : _low + sheaf->Capacity;
    }
}
