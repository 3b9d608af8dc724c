using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// kmalloc: memory of any size. Up to 8 KiB from one of thirteen caches (8, 16, 32, 64, 96, 128, 192, 256 … 8192
/// bytes), of the set that the flags name; above that whole blocks of pages. The native profile has more caches, up to
/// 32 KiB.
/// <code>
///   size ─▶ class (table up to 192, then log2) ─┐
///   gfp  ─▶ type (normal, reclaimable, DMA,     ├─▶ KmemCache.AllocCore
///           accounted)                         ─┘
/// </code>
/// </summary>
/// <remarks>include/linux/slab.h, mm/slab_common.c, mm/slub.c, Linux 6.18.</remarks>
internal sealed class KmallocAllocator
{
    /// <summary>What a request for nothing returns: an address that nobody may touch (ZERO_SIZE_PTR).</summary>
    public const nuint ZeroSizePointer = 16;

    private const nuint HistoricLimit = 128 * 1024;

    /// <summary>Two sizes in the same step of this many bytes are of the same class.</summary>
    private const int SizeStep = 8;

    private const int MostSteps = KmallocClasses.MaxNativeCacheSize / SizeStep;

    /// <summary>Flags whose caches the fast path does not know.</summary>
    private const Gfp SpecialTypes = Gfp.Dma | Gfp.Reclaimable;

    private readonly SlabAllocator _slabs;
    private readonly KmemCache[] _caches;
    private readonly nuint _limit;

    // For each size in steps of 8 bytes the place, in bytes, of the ordinary cache in a CPU's area. The array is
    // pinned.
    private readonly uint[] _places = GC.AllocateArray<uint>(MostSteps + 1, pinned: true);
    private readonly unsafe uint* _placeOfSize;

    // The same as caches, as far as there are any; empty where there are only the kernel's classes.
    private KmemCache[] _steps = [];

    // What the fast paths need of the slab allocator, within reach.
    private readonly SlabAllocator.PlaceMap _placeOfFrame;
    private int _fastId;

    public KmallocAllocator(SlabAllocator slabs, bool historicLimit)
    {
        _slabs = slabs;
        _limit = historicLimit ? HistoricLimit : KmallocClasses.MaxSize;
        _caches = new KmemCache[KmallocClasses.TypeCount * KmallocClasses.Count];
        unsafe
        {
            _placeOfFrame = slabs.PlacesOfFrames;
            _fastId = slabs.FastId;
            slabs.FastIdChanged = () => _fastId = slabs.FastId;
            _placeOfSize = (uint*)Unsafe.AsPointer(ref MemoryMarshal.GetArrayDataReference(_places));

            // Sheaves are kmalloc blocks, and show as such in traces and in slabinfo.
            slabs.AllocMetadata = (size, gfp) => (nint)Alloc(size, gfp);
            slabs.FreeMetadata = block => Free((void*)block);
        }
    }

    /// <summary>Creates all the caches (create_kmalloc_caches).</summary>
    public void Start()
    {
        bool memcg = _slabs.Options.MemoryCgroups;
        for (KmallocType type = 0; (int)type < KmallocClasses.TypeCount; type++)
        {
            foreach (byte index in KmallocClasses.CreationOrder)
            {
                // Without cgroups nobody is charged, and one set serves both.
                _caches[Slot(type, index)] = type == KmallocType.Cgroup && !memcg
                    ? _caches[Slot(KmallocType.Normal, index)]
                    : Create(type, index, memcg);
            }
        }

        if (_slabs.Options.SheavesEverywhere)
        {
            foreach (ushort size in KmallocClasses.BetweenSizes)
                Create(KmallocClasses.NameOf(size), size, KmallocClasses.CreationFlags(KmallocType.Normal, memcg));
            LearnSteps();
        }
    }

    /// <summary>The caches are there, those between the kernel's classes too: which one serves which size.</summary>
    public void LearnSteps()
    {
        Dictionary<string, KmemCache> byName = _slabs.Caches.Where(cache => (cache.Flags & SlabFlags.Kmalloc) != 0)
            .ToDictionary(cache => cache.Name, StringComparer.Ordinal);
        KmemCache[] ascending = KmallocClasses.BetweenSizes.ToArray()
            .Select(size => byName.GetValueOrDefault(KmallocClasses.NameOf(size)))
            .Concat(KmallocClasses.CreationOrder.ToArray().Select(index => CacheAt(KmallocType.Normal, index)))
            .OfType<KmemCache>().OrderBy(cache => cache.ObjectSize).ToArray();
        var steps = new KmemCache[(ascending[^1].ObjectSize / SizeStep) + 1];
        for (int step = 1; step < steps.Length; step++)
        {
            steps[step] = ascending.First(cache => cache.ObjectSize >= step * SizeStep);
            _places[step] = (uint)steps[step].Place;
        }

        _steps = steps;
    }

    /// <summary>Names the cache of a type and size class.</summary>
    public void Restore(KmallocType type, int index, KmemCache cache)
    {
        cache.IsBuiltIn = true;
        _caches[Slot(type, index)] = cache;
    }

    /// <summary>The cache of a type and size class; null if a restored machine has none.</summary>
    public KmemCache? CacheAt(KmallocType type, int index) => _caches[Slot(type, index)];

    public ITrace? Trace { get; set; }

    /// <summary>Bytes in live large blocks are counted by the nodes; small ones by their caches.</summary>
    /// <param name="size">1 byte at least, and no more than caches have.</param>
    /// <param name="gfp">The flags, which name the set.</param>
    public KmemCache CacheFor(nuint size, Gfp gfp)
    {
        nuint step = (size + (SizeStep - 1)) / SizeStep;
        return step < (nuint)_steps.Length && (gfp & SpecialTypes) == 0
            ? _steps[step]
            : _caches[Slot(KmallocClasses.TypeOf(gfp), KmallocClasses.IndexOf(size))];
    }

    /// <summary>From a sheaf of this CPU if it is as easy as that, else <see cref="Alloc"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void* AllocFast(nuint size, Gfp gfp)
    {
        int id = _fastId; // read first: it tests this for null
        CpuTask* task = CpuSet.Here;
        nuint slot = (size + (SizeStep - 1)) / SizeStep; // 0 for 0, and for what overflows: that place is empty
        if (CpuTask.Allows(task, gfp, id) && slot <= MostSteps
            && (gfp & SpecialTypes) == 0)
        {
            void* obj = KmemCacheCpu.TryPop(task, _placeOfSize[slot]);
            if (obj != null)
                return (gfp & Gfp.Zero) == 0 ? obj : Cleared(obj, size);
        }

        return AllocOutOfLine(size, gfp);
    }

    /// <summary>To a sheaf of this CPU if it is as easy as that, else <see cref="Free"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void FreeFast(void* pointer)
    {
        int id = _fastId;
        CpuTask* task = CpuSet.Here;
        if (task == null || task->MachineId != id
            || !KmemCacheCpu.TryPush(task, _placeOfFrame.Of((nuint)pointer), pointer))
        {
            FreeOutOfLine(pointer);
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void* AllocOutOfLine(nuint size, Gfp gfp) => Alloc(size, gfp);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void FreeOutOfLine(void* pointer) => Free(pointer);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void* Cleared(void* obj, nuint size)
    {
        NativeMemory.Clear(obj, (nuint)CacheFor(size, Gfp.None).ObjectSize);
        return obj;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void* Alloc(nuint size, Gfp gfp, int node = -1) =>
        KmallocClasses.IsCached(size) || IsCachedHere(size, gfp)
            ? CacheFor(size, gfp).AllocCore(gfp, node, size, traceAsKmalloc: true)
            : AllocBlock(size, gfp, node);

    /// <summary>Whether a cache that no kernel has serves a size above the kernel's.</summary>
    private bool IsCachedHere(nuint size, Gfp gfp) =>
        size > KmallocClasses.MaxCacheSize && size <= KmallocClasses.MaxNativeCacheSize
        && (size + (SizeStep - 1)) / SizeStep < (nuint)_steps.Length && (gfp & SpecialTypes) == 0;

    /// <summary>For the use of other allocators: nobody is to look for whoever holds it.</summary>
    public unsafe void* AllocOwn(nuint size, Gfp gfp, int node = -1)
    {
        void* block = Alloc(size, gfp, node);
        if (block != null)
            _slabs.Watch?.Disown((nint)block);
        return block;
    }

    /// <summary>Allocates n × size bytes; a product beyond the address space is refused with a report.</summary>
    public unsafe void* AllocArray(nuint count, nuint size, Gfp gfp) => Alloc(Product(count, size), gfp);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void Free(void* pointer)
    {
        Trace?.Kfree(_slabs.Map.Contains(pointer) ? _slabs.KernelAddress(pointer) : (ulong)pointer);
        if ((nuint)pointer <= ZeroSizePointer)
        {
            // The kernel ignores what lies between, too; it is a field of a null structure, or worse.
            if (pointer != null && (nuint)pointer != ZeroSizePointer)
                _slabs.ThrowNotASlab(pointer, "kfree");
            return;
        }

        Page* slab = _slabs.SlabOf(pointer);
        if (slab == null)
        {
            if (_slabs.Kfence is not { } kfence || !kfence.TryFree(pointer, null))
                _slabs.LargeFree(pointer);
            return;
        }

        KmemCache cache = _slabs.CacheOf(slab);
        if (cache.IsPrivate)
            _slabs.ThrowPrivate(cache, pointer);
        cache.FreeCore(slab, pointer);
    }

    /// <summary>
    /// Frees after a grace period: through the cache's sheaves if it has them, else alone. (The kernel gathers up to
    /// 507 pointers on a page of their own first; here each is a callback, so that none waits for others.)
    /// </summary>
    public unsafe void FreeRcu(void* pointer)
    {
        Page* slab = _slabs.SlabOf(pointer);
        if (slab != null && _slabs.CacheOf(slab) is { SheafCapacity: > 0 } cache && cache.FreeRcu(slab, pointer))
            return;

        var block = (nint)pointer;
        _slabs.Rcu.Call(() => Free((void*)block));
    }

    /// <summary>Bytes that may be used at an address from <see cref="Alloc"/> (ksize).</summary>
    public unsafe nuint SizeOf(void* pointer, string operation = "ksize")
    {
        if ((nuint)pointer <= ZeroSizePointer)
            return 0;

        Page* slab = _slabs.SlabOf(pointer);
        if (slab != null)
        {
            KmemCache cache = _slabs.CacheOf(slab);
            if (cache.IsPrivate)
                _slabs.ThrowPrivate(cache, pointer);
            if (!cache.IsLive(pointer))
                _slabs.ThrowBadFree(cache, slab, pointer);
            if (cache.Debug is { } debug)
            {
                // Who asks may use all of it from now on: the red zone behind the requested bytes ends.
                debug.Resize(pointer, (nuint)cache.ObjectSize);
                return (nuint)debug.UsableSize;
            }

            // Readers under RCU may look at the free pointer's place, so it is not the user's to write.
            return (cache.Flags & SlabFlags.TypesafeByRcu) != 0 ? (nuint)cache.Geometry.Inuse : (nuint)cache.SlotSize;
        }

        if (_slabs.Kfence is { } kfence && kfence.Contains(pointer))
            return kfence.SizeOf(pointer, operation);

        Page* large = _slabs.LargeBlockAt(pointer);
        if (large == null)
            _slabs.ThrowNotASlab(pointer, operation);
        return SlabAllocator.LargeSize(large);
    }

    /// <summary>
    /// Bytes that a request of this size may use (kmalloc_size_roundup); too large a size comes back as it is.
    /// </summary>
    public static nuint SizeRoundup(nuint size) => KmallocClasses.SizeRoundup(size);

    /// <summary>
    /// Grows or shrinks: in place if the block is large enough (shrinking never moves), else a new block with the old
    /// content. On failure the old block is untouched.
    /// </summary>
    public unsafe void* Realloc(void* pointer, nuint size, Gfp gfp)
    {
        if (size == 0)
        {
            Free(pointer);
            return (void*)ZeroSizePointer;
        }

        if ((nuint)pointer <= ZeroSizePointer)
            return Alloc(size, gfp);

        SlabDebug? debug = DebugOf(pointer);
        nuint content = debug == null ? 0 : (nuint)debug.RequestedSize(pointer);
        nuint usable = UsableSize(pointer);
        if (size <= usable)
        {
            if ((gfp & Gfp.Zero) != 0)
                NativeMemory.Clear((byte*)pointer + size, usable - size);
            debug?.Resize(pointer, size);
            _slabs.Watch?.Resized((nint)pointer, size);
            if (_slabs.Kfence is { } kfence && kfence.Contains(pointer))
                kfence.Shrink(pointer, size);
            return pointer;
        }

        void* larger = Alloc(size, gfp);
        if (larger == null)
            return null;

        NativeMemory.Copy(pointer, larger, debug == null ? usable : content);
        Free(pointer);
        return larger;
    }

    public unsafe void FreeSensitive(void* pointer)
    {
        NativeMemory.Clear(pointer, (nuint)pointer <= ZeroSizePointer ? 0 : SizeOf(pointer));
        Free(pointer);
    }

    public unsafe void* Duplicate(ReadOnlySpan<byte> content, Gfp gfp)
    {
        void* copy = Alloc((nuint)content.Length, gfp);
        if (copy != null)
            content.CopyTo(new Span<byte>(copy, content.Length));
        return copy;
    }

    /// <summary>The product, or a report and an exception if it does not fit.</summary>
    public nuint Product(nuint count, nuint size)
    {
        UInt128 product = (UInt128)count * size;
        if (product > nuint.MaxValue)
            _slabs.Pages.ThrowBug($"BUG: array of {count} elements of {size} bytes: the size overflows");
        return (nuint)product;
    }

    private unsafe SlabDebug? DebugOf(void* pointer)
    {
        Page* slab = _slabs.SlabOf(pointer);
        return slab == null ? null : _slabs.CacheOf(slab).Debug;
    }

    /// <summary>object_size of the slot's cache, which krealloc may use; the whole block if it is large.</summary>
    private unsafe nuint UsableSize(void* pointer)
    {
        nuint size = SizeOf(pointer);
        Page* slab = _slabs.SlabOf(pointer);
        return slab == null ? size : (nuint)_slabs.CacheOf(slab).ObjectSize;
    }

    /// <summary>Whole pages, of whatever size they are: what the kernel does above 8 KiB.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public unsafe void* AllocBlock(nuint size, Gfp gfp, int node = -1)
    {
        if (size == 0)
            return (void*)ZeroSizePointer;

        if (size > _limit)
        {
            if ((gfp & Gfp.NoWarn) == 0)
                _slabs.WarnOnce("kmalloc size", $"WARNING: kmalloc of {size} bytes: the largest size is {_limit}");
            return null;
        }

        int order = PageOrder.ForSize(size);
        void* block = _slabs.LargeAlloc(order, size, gfp, node);
        if (block != null && Trace != null)
            Trace.Kmalloc(_slabs.KernelAddress(block), size, (nuint)Pfn.PageSize << order, gfp, node);
        return block;
    }

    private KmemCache Create(KmallocType type, int index, bool memcg) => Create(
        KmallocClasses.NameOf(type, index), KmallocClasses.SizeOf(index), KmallocClasses.CreationFlags(type, memcg));

    private KmemCache Create(string name, int size, SlabFlags flags)
    {
        KmemCache cache = _slabs.Create(
            name,
            size,
            SlabGeometry.KmallocAlignmentOf(size),
            flags,
            new CacheTraits(
                UserSize: size, SlabOrder: size > KmallocClasses.MaxCacheSize ? KmallocClasses.NativeSlabOrder : 0),
            freePointerOffset: null);
        cache.IsBuiltIn = true;
        return cache;
    }

    private static int Slot(KmallocType type, int index) => ((int)type * KmallocClasses.Count) + index;
}
