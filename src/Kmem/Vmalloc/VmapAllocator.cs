using System.Globalization;
using System.Numerics;

namespace Kmem;

/// <summary>What a <see cref="VmapAllocator"/> is made for.</summary>
internal sealed record VmapOptions
{
    /// <summary>VMALLOC_START of x86-64 with four levels of page tables.</summary>
    public const ulong DefaultStart = 0xffff_c900_0000_0000;

    /// <summary>VMALLOC_END there: the last byte, not the one after it.</summary>
    public const ulong DefaultEnd = 0xffff_e8ff_ffff_ffff;

    public ulong Start { get; init; } = DefaultStart;

    public ulong End { get; init; } = DefaultEnd;

    /// <summary>Number of vmap nodes; null for one per CPU, at most 128.</summary>
    public int? Nodes { get; init; }

    /// <summary>Areas that exist before the allocator, in order of address.</summary>
    public IReadOnlyList<VmapAreaState> EarlyAreas { get; init; } = [];

    /// <summary>A state to begin with, whose objects are live in the slab already; null: all is free.</summary>
    public VmapState? State { get; init; }

    /// <summary>The objects are requests of a recording, and the trees consist of copies; without a
    /// <see cref="State"/> nothing is taken from the machine at all.</summary>
    public bool IsReplay { get; init; }
}

/// <summary>
/// Gives out ranges of kernel addresses (mm/vmalloc.c, Linux 6.18). It maps nothing: that is its user's part.
/// <code>
///              pool of this CPU's node ─────────┐ hit: the newest area of that size
///   Alloc ─▶                                    ├─▶ busy tree of node(address)
///              free tree, lowest match ─────────┘           │
///                 ▲            ▲                            │ FreeNoflush
///                 │ decay      │ too large, no node id      ▼
///                 └── pools ◀──┴──────── purge ◀───── lazy tree of the area's node
/// </code>
/// Freed addresses stay lazy until enough pages have gathered; then one flush makes all of them reusable.
/// </summary>
/// <remarks>
/// Thread-safe. <see cref="Alloc"/> may sleep. Objects of type <see cref="VmapArea"/> come from the slab cache
/// <c>vmap_area</c>; the order in which they are taken and given back is the kernel's.
/// </remarks>
internal sealed partial class VmapAllocator : IDisposable
{
    /// <summary>
    /// Lower end of all address space that is managed: vmalloc, modules and the rest are ranges in it.
    /// </summary>
    public const ulong SpaceStart = 1;

    /// <summary>Upper end of it.</summary>
    public const ulong SpaceEnd = ulong.MaxValue;

    /// <summary>So many bytes of addresses go to one node, the next to the next one.</summary>
    public const int ZoneBytes = 1 << ZoneShift;

    private const int MaxNodes = 128;
    private const int ZoneShift = 16;
    private const ulong LazyBytesPerStep = 32 << 20;

    private readonly SlabAllocator _slabs;
    private readonly CpuSet _cpus;
    private readonly VmapObjects _objects;
    private readonly VmapNode[] _nodes;
    private readonly FreeVmapTree _free;
    private readonly FreeVmapTree _decaying;        // private to a decay: areas melt here before they reach _free
    private readonly nint[] _spare;                 // ne_fit_preload_node of each CPU
    private readonly Lock _purgeLock = new();
    private readonly RateLimit _failures = new("alloc_vmap_area", TimeSpan.FromSeconds(5), 10);
    private SpinLock _freeLock = new(LockRank.VmapFree);

    /// <summary>Opens all locks after an operation broke off. Nobody else may be at work.</summary>
    public void BreakLocks()
    {
        _freeLock.Break();
        foreach (VmapNode node in Nodes)
            node.BreakLocks();
    }
    private long _lazyPages;
    private int _drainPending;

    /// <summary>Creates the slab cache and the allocator over it.</summary>
    public VmapAllocator(SlabAllocator slabs, VmapOptions options)
    {
        _slabs = slabs;
        _cpus = slabs.Cpus;
        Start = options.Start;
        End = options.End;
        int nodes = Math.Clamp(options.State?.Nodes.Length ?? options.Nodes ?? _cpus.Count, 1, MaxNodes);
        LazyMax = (ulong)(BitOperations.Log2((uint)_cpus.Count) + 1) * (LazyBytesPerStep >> Pfn.PageShift);
        _objects = new VmapObjects(
            slabs,
            options.State is { } known ? CacheOf(known) : options.IsReplay ? null : CreateCache(),
            options.IsReplay);
        _nodes = Enumerable.Range(0, nodes).Select(id => new VmapNode(id)).ToArray();
        _free = new FreeVmapTree(_objects);
        _decaying = new FreeVmapTree(_objects);
        _spare = new nint[_cpus.Count];
        if (options.State is { } state)
            Restore(state, RestoredObject);
        else
            Boot(options.EarlyAreas);
    }

    /// <summary>VMALLOC_START.</summary>
    public ulong Start { get; }

    /// <summary>VMALLOC_END: the last byte.</summary>
    public ulong End { get; }

    /// <summary>Pages that are lazily free, those in the pools not included.</summary>
    public ulong LazyPages => (ulong)Volatile.Read(ref _lazyPages);

    /// <summary>Above this many lazy pages a drain is started (lazy_max_pages).</summary>
    public ulong LazyMax { get; }

    public IReadOnlyList<VmapNode> Nodes => _nodes;

    public FreeVmapTree Free => _free;

    public VmapObjects Objects => _objects;

    public IVmapTrace? Trace { get; set; }

    public IVmapBackend? Backend { get; set; }

    /// <summary>
    /// Starts a drain; null: the machine has no thread of its own for it, so who frees too much drains, or who
    /// allocates next if freeing happened where sleeping is forbidden. A replay puts in nothing-to-do: its trace says
    /// when.
    /// </summary>
    public Action? DrainScheduler { get; set; }

    /// <summary>Asked for address space when even a purge has not helped; returns how much they freed.</summary>
    public Func<ulong>? PurgeNotifier { get; set; }

    public void Dispose()
    {
        foreach (VmapNode node in _nodes)
            node.Dispose();
        _free.Dispose();
        _decaying.Dispose();
        _objects.Dispose();
    }

    /// <summary>Allocates a range of addresses (alloc_vmap_area).</summary>
    /// <param name="request">What is wanted.</param>
    /// <param name="vm">What will lie behind it; its address and size are filled in. May be null.</param>
    /// <param name="error">Why there is none.</param>
    /// <returns>The area, in the busy tree; or null.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    public unsafe VmapArea* Alloc(in VmapRequest request, VmStruct* vm, out VmapError error)
    {
        error = VmapError.Invalid;
        if (!request.IsValid)
            return null;

        _slabs.Pages.CheckContext(Gfp.Kernel, _cpus.Current);
        DrainIfPending();

        int cpu = _cpus.CurrentCpu;
        int nodeId = PoolNodeFor(request, cpu);
        VmapArea* area = nodeId >= 0 ? _nodes[nodeId].TakeFromPool(request) : null;
        if (area != null)
        {
            error = VmapError.None;
            Trace?.AllocVmapArea(area->Start, request, failed: false);
        }
        else
        {
            Gfp gfp = request.Gfp & GfpMask.Reclaim;
            area = _objects.Alloc(gfp, request.Node);
            if (area == null)
            {
                error = VmapError.NoMemory;
                return null;
            }

            error = FindRoom(request, gfp, cpu, out area->Start);
            if (error != VmapError.None)
            {
                _objects.Free(area);
                return null;
            }

            area->End = area->Start + request.Size;
        }

        area->Flags = VmapArea.FlagsOf(request.Flags, nodeId);
        area->Vm = vm;
        if (vm != null)
        {
            vm->Address = area->Start;
            vm->Size = request.Size;
        }

        bool inserted = NodeOf(area->Start).InsertBusy(area);
        Bug.On(!inserted, "an area was given out twice");
        return area;
    }

    /// <summary>The address that <see cref="Alloc"/> would choose now on a CPU, changing nothing.</summary>
    public unsafe VmapError Peek(in VmapRequest request, int cpu, out ulong start)
    {
        start = 0;
        if (!request.IsValid)
            return VmapError.Invalid;

        int nodeId = PoolNodeFor(request, cpu);
        VmapArea* pooled = nodeId >= 0 ? _nodes[nodeId].PeekPool(request) : null;
        if (pooled != null)
        {
            start = pooled->Start;
            return VmapError.None;
        }

        _freeLock.Acquire();
        VmapArea* block = _free.FindLowest(request);
        VmapError error = block == null ? VmapError.NoBlock : FreeVmapTree.Place(block, request, out start);
        _freeLock.Release();
        return error;
    }

    /// <summary>
    /// The busy area that contains an address, or null (find_vmap_area). It stays valid as long as its user does not
    /// free it.
    /// </summary>
    public unsafe VmapArea* Find(ulong address) => Find(address, unlink: false);

    /// <summary>
    /// As <see cref="Find(ulong)"/>, and takes the area out of its busy tree (find_unlink_vmap_area).
    /// </summary>
    public unsafe VmapArea* Unlink(ulong address) => Find(address, unlink: true);

    /// <summary>
    /// The bounds of the lowest busy area that ends above an address, over all nodes; null at the end. For walks: the
    /// area itself may be freed meanwhile.
    /// </summary>
    public VmapRange? FindNext(ulong address)
    {
        VmapRange? best = null;
        foreach (VmapNode node in _nodes)
        {
            if (node.FindBusyFrom(address) is { } range && (best == null || range.Start < best.Value.Start))
                best = range;
        }

        return best;
    }

    /// <summary>
    /// Frees an unlinked area lazily: its addresses stay unused until a purge (free_vmap_area_noflush). Never sleeps.
    /// </summary>
    public unsafe void FreeNoflush(VmapArea* area)
    {
        ulong start = area->Start;
        var lazy = (ulong)Interlocked.Add(ref _lazyPages, (long)area->Pages);
        int id = area->NodeId;
        VmapNode node = id >= 0 && id < _nodes.Length ? _nodes[id] : NodeOf(start);
        bool inserted = node.InsertLazy(area);
        Bug.On(!inserted, "an area was freed twice");
        Trace?.FreeVmapAreaNoflush(start, lazy, LazyMax);
        if (lazy > LazyMax)
            ScheduleDrain();
    }

    /// <summary>
    /// Frees a busy area at once (free_vmap_area): for one whose addresses nobody used yet.
    /// </summary>
    public unsafe void FreeNow(VmapArea* area)
    {
        VmapArea* unlinked = NodeOf(area->Start).FindBusy(area->Start, unlink: true);
        Bug.On(unlinked != area, "an area that is not busy is freed");
        _freeLock.Acquire();
        MergeLocked(area);
        _freeLock.Release();
    }

    /// <summary>The vmap node whose busy tree holds areas that start at an address.</summary>
    public VmapNode NodeOf(ulong address) => _nodes[NodeIdOf(address)];

    private int NodeIdOf(ulong address) => (int)((address >> ZoneShift) % (ulong)_nodes.Length);

    /// <summary>The node whose pools serve a request and whose id the area gets; -1 for none.</summary>
    private int PoolNodeFor(in VmapRequest request, int cpu) =>
        _nodes.Length > 1 && request.RangeStart == Start && request.RangeEnd == End ? cpu % _nodes.Length : -1;

    private unsafe VmapArea* Find(ulong address, bool unlink)
    {
        // An area lies in the tree of its start, which may be several zones below the address.
        int first = NodeIdOf(address);
        for (int i = 0; i < _nodes.Length; i++)
        {
            int id = (first - i + _nodes.Length) % _nodes.Length;
            VmapArea* area = _nodes[id].FindBusy(address, unlink);
            if (area != null)
                return area;
        }

        return null;
    }

    /// <summary>Takes addresses from the free tree; purges and tries again if there are none.</summary>
    private VmapError FindRoom(in VmapRequest request, Gfp gfp, int cpu, out ulong start)
    {
        bool purged = false;
        while (true)
        {
            VmapError error = TakeFromTree(request, gfp, cpu, out start);
            bool failed = error != VmapError.None;
            Trace?.AllocVmapArea(failed ? (ulong)(long)error : start, request, failed);
            if (!failed)
                return VmapError.None;

            if (!purged)
            {
                ReclaimAndPurge();
                purged = true;
                continue;
            }

            if (PurgeNotifier?.Invoke() > 0)
            {
                purged = false;
                continue;
            }

            if ((request.Gfp & Gfp.NoWarn) == 0 && _failures.Allows(_slabs.Log))
            {
                _slabs.Log.Write(string.Create(
                    CultureInfo.InvariantCulture,
                    $"vmalloc_node_range for size {request.Size} failed: "
                    + $"Address range restricted to 0x{request.RangeStart:x} - 0x{request.RangeEnd:x}"));
            }

            return VmapError.Busy;
        }
    }

    private unsafe VmapError TakeFromTree(in VmapRequest request, Gfp gfp, int cpu, out ulong start)
    {
        // A block may have to be split, and under the lock is no place to allocate an object for that.
        SimPoint.Here();
        nint spare = Volatile.Read(ref _spare[cpu]) == 0 ? (nint)_objects.Alloc(gfp, request.Node) : 0;
        start = 0;
        _freeLock.Acquire();
        if (spare != 0 && _spare[cpu] == 0)
            _spare[cpu] = spare;
        else if (spare != 0)
            _objects.Free((VmapArea*)spare);

        VmapError error = VmapError.NoBlock;
        VmapArea* block = _free.FindLowest(request);
        if (block != null)
        {
            error = FreeVmapTree.Place(block, request, out start);
            if (error == VmapError.None)
                error = _free.Cut(block, start, request.Size, ref _spare[cpu]);
        }

        _freeLock.Release();
        return error;
    }

    private unsafe void MergeLocked(VmapArea* area)
    {
        if (!_free.Merge(area))
        {
            _slabs.Log.Write(string.Create(
                CultureInfo.InvariantCulture,
                $"vmalloc bug: 0x{area->Start:x}-0x{area->End:x} overlaps with free address space; it is lost"));
        }
    }

    /// <summary>
    /// Everything but the early areas is free. Objects are taken as vmalloc_init takes them: busy ones first.
    /// </summary>
    private unsafe void Boot(IReadOnlyList<VmapAreaState> early)
    {
        foreach (VmapAreaState state in early)
        {
            VmapArea* area = NewObject(state.Start, state.End);
            area->Flags = state.Flags;
            area->Vm = (VmStruct*)state.Vm;
            bool inserted = NodeOf(area->Start).InsertBusy(area);
            Bug.On(!inserted, "two areas overlap at boot");
        }

        ulong from = SpaceStart;
        foreach (VmapAreaState state in early)
        {
            if (state.Start > from)
                _free.Add(NewObject(from, state.Start));
            from = state.End;
        }

        _free.Add(NewObject(from, SpaceEnd));
    }

    private KmemCache CreateCache() => _slabs.Create(
        "vmap_area",
        VmapArea.SizeInBytes,
        align: 0,
        SlabFlags.Panic,
        new CacheTraits(null, 0, 0),
        freePointerOffset: null);

    private unsafe VmapArea* NewObject(ulong start, ulong end)
    {
        VmapArea* area = _objects.Alloc(Gfp.NoWait | Gfp.Zero);
        if (area == null)
            throw new OutOfMemoryException("no memory for the areas of the vmalloc space");
        area->Start = start;
        area->End = end;
        return area;
    }
}
