using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// Called once for every object of a new slab, with the object's address; see <see cref="Machine.CreateCache"/>.
/// </summary>
/// <param name="obj">The object; <see cref="KmemCache.ObjectSize"/> bytes may be written.</param>
/// <remarks>Runs without locks. It may allocate from other caches, not from its own.</remarks>
public unsafe delegate void SlabConstructor(void* obj);

/// <summary>
/// A cache of equal objects (<c>struct kmem_cache</c>). An object comes from the first of these places that has one:
/// <code>
///   this CPU's free list ─▶ this CPU's slab ─▶ this CPU's partial slabs ─▶ the node's partial list ─▶ a new slab
///     (one load, test,       (objects freed      (no lock)                   (list lock)               (page
///      store)                 by other CPUs)                                                            allocator)
/// </code>
/// and goes back to this CPU's free list if its slab is the current one, else to its slab. Objects may be allocated and
/// freed on any thread.
/// </summary>
/// <remarks>mm/slub.c, Linux 6.18: slab_alloc_node, slab_free. Created by <see cref="Machine.CreateCache"/>.</remarks>
public sealed partial class KmemCache
{
    private readonly SlabAllocator _slabs;
    private readonly CpuSet _cpus;
    private readonly KmemCacheNode[] _nodes;
    private readonly unsafe byte* _ram;
    private readonly unsafe byte* _live;   // at address 0 >> _liveShift
    private readonly int _liveShift;
    private readonly int _freePointerOffset;
    private readonly int _leftPad;
    private readonly ulong _slabMask;      // bits that two addresses of one slab have in common
    private readonly ulong _secret;        // of the free pointers; 0 if they are stored plainly
    private readonly bool _encodesLinks;
    private readonly SlabConstructor? _constructor;
    private nuint _place;                  // of this cache in every CPU's area; 0, where nothing is, when it is gone
    private bool _closed;

    internal unsafe KmemCache(SlabAllocator slabs, int id, string name, in SlabGeometry geometry, CacheTraits traits)
    {
        _slabs = slabs;
        _cpus = slabs.Cpus;
        _ram = slabs.Map.RamBase;
        Id = id;
        Name = name;
        Geometry = geometry;
        _objectSize = geometry.ObjectSize;
        _inuse = geometry.Inuse;
        _constructor = traits.Constructor;
        _debug = (geometry.Flags & SlabFlagMask.Debug) == 0 ? null : new SlabDebug(this, slabs);
        _sheafCapacity = _debug == null ? traits.SheafCapacity : 0;
        _objectsPerLine = slabs.Options.CacheLineSize / geometry.Size;
        _hardening = _debug == null && !traits.IsPrivate ? slabs.Options.Hardening : null;
        _clears = traits.Constructor == null && (geometry.Flags & SlabFlags.TypesafeByRcu) == 0;
        _plainRoute = _debug != null || _hardening != null ? -1 : Math.Sign(_sheafCapacity);
        _route = slabs.IsWatched && !traits.IsPrivate ? -1 : _plainRoute;
        IsPrivate = traits.IsPrivate;
        UserOffset = traits.UserOffset;
        UserSize = traits.UserSize;
        MinPartial = geometry.MinPartial;
        CpuPartial = geometry.CpuPartial;
        CpuPartialSlabs = geometry.CpuPartialSlabs;
        _freePointerOffset = geometry.FreePointerOffset;
        _leftPad = geometry.RedLeftPad;
        _slabMask = ~(((ulong)Pfn.PageSize << geometry.Order) - 1);
        _liveShift = LiveObjects.ShiftFor(geometry.Size);
        _live = slabs.Live.MapFor(geometry.Size) - ((ulong)_ram >> _liveShift);
        _encodesLinks = slabs.Options.FreelistHardened;
        _secret = _encodesLinks ? slabs.NextRandom() : 0;
        _sequence = slabs.Options.FreelistRandom ? RandomSequence(geometry.ObjectsPerSlab) : null;
        _place = (nuint)(id + 1) * KmemCacheCpu.SizeInBytes;
        for (int cpu = 0; cpu < _cpus.Count; cpu++)
            *CpuAt(cpu) = new KmemCacheCpu { Live = _live, LiveShift = _liveShift };
        _nodes = new KmemCacheNode[slabs.Pages.Nodes.Count];
        for (int node = 0; node < _nodes.Length; node++)
        {
            int sheafBytes = slabs.Options.SheavesEverywhere ? _sheafCapacity * geometry.Size : 0;
            _nodes[node] = new KmemCacheNode { Barn = _sheafCapacity > 0 ? new Barn(sheafBytes) : null };
        }
    }

    /// <summary>The name given when the cache was created; the first one's, if others were merged into it.</summary>
    public string Name { get; }

    /// <summary>Bytes that a user may write; the largest, if several were merged.</summary>
    public int ObjectSize => _objectSize;

    /// <summary>Bytes from one object to the next.</summary>
    public int SlotSize => Geometry.Size;

    /// <summary>How an object lies in its slot and how many make a slab.</summary>
    public SlabGeometry Geometry { get; }

    /// <summary>The flags it was created with.</summary>
    public SlabFlags Flags => Geometry.Flags;

    /// <summary>Further users merged into this cache.</summary>
    public int Aliases => Math.Max(0, RefCount - 1);

    /// <summary>First byte of the object that may be copied to and from user space.</summary>
    public int UserOffset { get; }

    /// <summary>How many bytes may be copied to and from user space; 0 for none.</summary>
    public int UserSize { get; }

    /// <summary>Objects given out and not freed. Exact when no other thread is at work.</summary>
    public long LiveCount => CountLive();

    /// <summary>Slabs on all nodes.</summary>
    public long SlabCount => _nodes.Sum(node => node.NrSlabs);

    /// <summary>Slots in all slabs, used or free.</summary>
    public long TotalObjects => _nodes.Sum(node => node.TotalObjects);

    internal int Id { get; }

    /// <summary>As <see cref="SlabAllocator.FastId"/>, within reach.</summary>
    internal int FastId { get; set; } = -1;

    /// <summary>Where the cache's state lies in each CPU's area, in bytes from its start.</summary>
    internal nuint Place => _place;

    internal int RefCount { get; set; } = 1;

    /// <summary>The object of kmem_cache that stands for this cache.</summary>
    internal nint Descriptor { get; set; }

    /// <summary>Its objects are the allocator's own: no user has ever got one, so none may free one.</summary>
    internal bool IsPrivate { get; init; }

    /// <summary>One of the kmalloc caches: the machine cannot do without it.</summary>
    internal bool IsBuiltIn { get; set; }

    /// <summary>Destroyed, or just being destroyed.</summary>
    internal bool IsClosed => Volatile.Read(ref _closed);

    internal bool HasConstructor => _constructor != null;

    internal int MinPartial { get; set; }

    internal int CpuPartial { get; private set; }

    internal int CpuPartialSlabs { get; private set; }

    internal IReadOnlyList<KmemCacheNode> Nodes => _nodes;

    private int _objectSize;
    private int _inuse;

    /// <summary>Allocates an object (kmem_cache_alloc).</summary>
    /// <param name="gfp">What may be done to get it; <see cref="Gfp.Zero"/> clears it.</param>
    /// <returns>
    /// The object's address, aligned as the cache promises, or null if there is no memory. Its content is undefined, or
    /// as the constructor left it.
    /// </returns>
    /// <exception cref="KernelBugException">The request may sleep and this context may not.</exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void* Alloc(Gfp gfp)
    {
        CpuTask* task = CpuSet.Here;
        if (CpuTask.Allows(task, gfp, FastId))
        {
            void* obj = KmemCacheCpu.TryPop(task, _place);
            if (obj != null)
            {
                if ((gfp & Gfp.Zero) != 0)
                    NativeMemory.Clear(obj, (nuint)_objectSize);
                return obj;
            }
        }

        return AllocOutOfLine(gfp);
    }

    /// <summary>Allocates an object on a node (kmem_cache_alloc_node).</summary>
    /// <param name="gfp">
    /// As for <see cref="Alloc(Gfp)"/>; with <see cref="Gfp.ThisNode"/> only this node will do.
    /// </param>
    /// <param name="node">Node number, or -1 for the CPU's own.</param>
    /// <returns>The object, or null.</returns>
    public unsafe void* Alloc(Gfp gfp, int node)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(node, _nodes.Length);
        return AllocCore(gfp, Math.Max(node, -1), (nuint)_objectSize, traceAsKmalloc: false);
    }

    /// <summary>Frees an object of this cache (kmem_cache_free). Null is allowed and ignored.</summary>
    /// <param name="obj">
    /// What <see cref="Alloc(Gfp)"/> returned. An object of another cache is freed there, and reported in the log.
    /// </param>
    /// <exception cref="KernelBugException">
    /// The object is free already, or no object begins at this address, or it is not memory of this machine.
    /// </exception>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void Free(void* obj)
    {
        CpuTask* task = CpuSet.Here;
        if (task == null || task->MachineId != FastId
            || _slabs.PlaceOf(obj) != _place || !KmemCacheCpu.TryPush(task, _place, obj))
        {
            FreeOutOfLine(obj);
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void* AllocOutOfLine(Gfp gfp) => AllocCore(gfp, -1, (nuint)_objectSize, traceAsKmalloc: false);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void FreeOutOfLine(void* obj)
    {
        if (obj == null)
            return;

        Page* slab = _slabs.SlabOf(obj);
        if (slab == null)
        {
            if (_slabs.Kfence is { } kfence && kfence.TryFree(obj, this))
                return;
            _slabs.ThrowNotASlab(obj, $"kmem_cache_free({Name})");
        }

        KmemCache owner = _slabs.CacheOf(slab);
        if (owner.IsPrivate)
            _slabs.ThrowPrivate(owner, obj);
        if (owner != this)
            _slabs.WarnWrongCache(this, owner, obj);
        _slabs.Trace?.KmemCacheFree(_slabs.KernelAddress(obj), owner.Name);
        owner.FreeCore(slab, obj);
    }

    /// <summary>The cache's state on a CPU.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe KmemCacheCpu* CpuAt(int cpu) => (KmemCacheCpu*)(_cpus.AreaOf(cpu) + _place);

    /// <summary>The way of every allocation: kmalloc comes in here too.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal unsafe void* AllocCore(Gfp gfp, int node, nuint requested, bool traceAsKmalloc)
    {
        CpuTask* task = _cpus.Current;
        _slabs.Pages.CheckContext(gfp, task);
        void* obj = null;
        if (_route != 0)
        {
            if (_route < 0)
                return AllocChecked(task, gfp, node, requested, traceAsKmalloc);
            obj = AllocFromSheaf(task, gfp, node);
        }

        if (obj == null)
            obj = AllocFromSlabs(task, gfp, node);
        if (obj == null)
            return null;

        MarkLive(obj);
        if ((gfp & Gfp.Zero) != 0)
            new Span<byte>(obj, _objectSize).Clear();
        if (_slabs.Trace != null)
            TraceAlloc(obj, requested, gfp, node, traceAsKmalloc);
        return obj;
    }

    /// <summary>The way of every free of one object; the slab is the object's.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal unsafe void FreeCore(Page* slab, void* obj)
    {
        if (_route < 0)
        {
            FreeChecked(slab, obj);
            return;
        }

        if (!TryMarkFree(obj))
            _slabs.ThrowBadFree(this, slab, obj);

        CpuTask* task = _cpus.Current;
        if (_route != 0 && FreeToSheaf(task, slab, obj))
            return;

        int cpu = _cpus.Enter(task);
        KmemCacheCpu* c = CpuAt(cpu);
        if (c->Slab == slab)
        {
            SetFreePointer(obj, c->Freelist);
            c->Freelist = obj;
            _cpus.Leave(task);
            return;
        }

        FreeSlow(task, cpu, slab, obj, obj, 1);
    }

    /// <summary>One object from this CPU's slab or further away; not yet marked as live.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe void* AllocFromSlabs(CpuTask* task, Gfp gfp, int node)
    {
        int cpu = _cpus.Enter(task);
        KmemCacheCpu* c = CpuAt(cpu);
        void* obj = c->Freelist;
        if (obj == null || node >= 0)
            return AllocSlow(task, cpu, gfp, node);

        void* next = FreePointer(obj);
        if (!IsSameSlabOrNull(obj, next))
            ThrowCorruptFreelist(task, c, obj, next);
        c->Freelist = next;
        _cpus.Leave(task);
        return obj;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe bool IsSameSlabOrNull(void* obj, void* next) =>
        (((ulong)obj ^ (ulong)next) & _slabMask) == 0 || next == null;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe void* FreePointer(void* obj)
    {
        byte* word = (byte*)obj + _freePointerOffset;
        ulong stored = Unsafe.ReadUnaligned<ulong>(word);
        return _encodesLinks ? (void*)Encode(stored, word) : (void*)stored;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe void SetFreePointer(void* obj, void* next)
    {
        byte* word = (byte*)obj + _freePointerOffset;
        Unsafe.WriteUnaligned(word, _encodesLinks ? Encode((ulong)next, word) : (ulong)next);
    }

    /// <summary>
    /// pointer XOR secret XOR byte-swapped address of the word; its own inverse (freelist_ptr_encode).
    /// </summary>
    private unsafe ulong Encode(ulong pointer, byte* word) =>
        pointer ^ _secret ^ System.Buffers.Binary.BinaryPrimitives.ReverseEndianness((ulong)word);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe void MarkLive(void* obj)
    {
        _live[(nuint)obj >> _liveShift] = (byte)LiveObjects.Mark((nuint)obj);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe bool TryMarkFree(void* obj)
    {
        byte* mark = _live + ((nuint)obj >> _liveShift);
        if (*mark != LiveObjects.Mark((nuint)obj))
            return false;

        *mark = 0;
        return true;
    }

    /// <summary>Whether an allocated object begins at this address of one of the cache's slabs.</summary>
    internal unsafe bool IsLive(void* obj)
    {
        return _live[(nuint)obj >> _liveShift] == LiveObjects.Mark((nuint)obj);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void TraceAlloc(void* obj, nuint requested, Gfp gfp, int node, bool traceAsKmalloc)
    {
        ulong address = _slabs.KernelAddress(obj);
        if (traceAsKmalloc)
            _slabs.Trace!.Kmalloc(address, requested, (nuint)SlotSize, gfp, node);
        else
            _slabs.Trace!.KmemCacheAlloc(address, Name, requested, (nuint)SlotSize, gfp, node);
    }
}

/// <summary>What a cache has besides its geometry.</summary>
/// <param name="Constructor">Run once per object of a new slab, or null.</param>
/// <param name="UserOffset">Start of the part that user copies may touch.</param>
/// <param name="UserSize">Bytes that user copies may touch.</param>
/// <param name="SheafCapacity">
/// Objects in a sheaf; 0 for what the profile gives: none, or as many as suit the size.
/// </param>
/// <param name="IsPlain">Never has sheaves.</param>
/// <param name="IsPrivate">Its objects are the allocator's own.</param>
/// <param name="SlabOrder">The largest order of its slabs; 0 for the kernel's, 3.</param>
internal readonly record struct CacheTraits(
    SlabConstructor? Constructor = null,
    int UserOffset = 0,
    int UserSize = 0,
    int SheafCapacity = 0,
    bool IsPlain = false,
    bool IsPrivate = false,
    int SlabOrder = 0);
