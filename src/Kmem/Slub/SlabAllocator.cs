using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Runtime.CompilerServices;
using System.Text;

namespace Kmem;

/// <summary>Settings that hold for all caches of a machine.</summary>
internal sealed record SlabOptions
{
    public bool Merge { get; init; } = true;

    public bool FreelistRandom { get; init; }

    public bool FreelistHardened { get; init; }

    /// <summary>What is done for every object besides; null for nothing.</summary>
    public Hardening? Hardening { get; init; }

    public bool MemoryCgroups { get; init; } = true;

    public int CacheLineSize { get; init; } = 64;

    /// <summary>Every cache has sheaves, as in Linux 7.0, and every CPU gets its own at first use.</summary>
    public bool SheavesEverywhere { get; init; }

    public ulong Seed { get; init; } = 1;

    /// <summary>Which caches are debugged.</summary>
    public SlubDebugSetting Debug { get; init; } = SlubDebugSetting.None;

    /// <summary>The addresses that reports and tracepoints show.</summary>
    public AddressMap Addresses { get; init; } = AddressMap.FourLevels;
}

/// <summary>
/// All caches of a machine: creation, merging, destruction; and the way from any address back to slab and cache.
/// </summary>
/// <remarks>mm/slab_common.c and mm/slub.c, Linux 6.18.</remarks>
internal sealed partial class SlabAllocator : IDisposable
{
    private const int KmemCacheNodeSize = 72;
    private const int KmemCacheSize = 224;
    private const int TagShift = 4;
    /// <summary>Places for caches in a CPU's area; the first one is nobody's.</summary>
    private const int MaxCaches = 16384;

    /// <summary>What each CPU needs for all caches that there can be; used as it is touched.</summary>
    public const ulong CpuAreaBytes = (ulong)MaxCaches * KmemCacheCpu.SizeInBytes;

    private const string SheafCacheName = "slab_sheaf-";
    private const int BootRefCount = -1;   // nobody joins them

    // A sheaf of 4, 12, 28 or 60 objects with its header.
    private static ReadOnlySpan<int> SheafSizes => [128, 256, 512, 1024];

    private bool _asksFaults;
    private readonly Lock _mutex = new();          // slab_mutex: the list of caches
    private readonly List<KmemCache> _caches = []; // oldest first
    private readonly List<(string Name, KmemCache Cache)> _aliases = [];
    private readonly int[] _nodeOfCpu;
    private readonly SparseMemory _places;
    private ITrace? _trace;
    private KmemCache?[] _byId = new KmemCache?[256];
    private KmemCache? _bootNode;
    private KmemCache? _bootCache;
    private ulong _random;
    private long _released;             // frames of slabs, since the last call of ManyReleased
    private int _lastId;

    public unsafe SlabAllocator(PageAllocator pages, MemMap map, CpuSet cpus, int[] nodeOfCpu, KernelLog log, SlabOptions options)
    {
        Pages = pages;
        Map = map;
        Cpus = cpus;
        Log = log;
        Options = options;
        _nodeOfCpu = nodeOfCpu;
        _random = Math.Max(1, options.Seed * 0x9e37_79b9_7f4a_7c15); // the multiplier is odd: no two seeds meet
        Live = new LiveObjects(map.EndPfn << Pfn.PageShift);
        _places = SparseMemory.Create(map.EndPfn * sizeof(uint), "map of slabs");
        PlacesOfFrames = new PlaceMap((nuint)map.RamBase, (nuint)(map.EndPfn << Pfn.PageShift), (uint*)_places.Base);
        if (options.Hardening is { QuarantineBytes: > 0 } hardening)
        {
            Quarantine = new Quarantine(this, hardening.QuarantineBytes);
            Pages.FreeKeptBack = FreeKeptBack;
        }

        Trace = null;
        foreach (string complaint in options.Debug.Complaints)
            log.Write(complaint);
    }

    public PageAllocator Pages { get; }

    public AddressMap Addresses => Options.Addresses;

    public MemMap Map { get; }

    public CpuSet Cpus { get; }

    public KernelLog Log { get; }

    public SlabOptions Options { get; }

    public LiveObjects Live { get; }

    public Rcu Rcu { get; } = new();

    /// <summary>Freed objects that are kept back; null where none are.</summary>
    public Quarantine? Quarantine { get; }

    /// <summary>Stacks of the users of debugged caches.</summary>
    public StackDepot Stacks { get; } = new();

    /// <summary>Whether slab debugging has found anything since boot.</summary>
    public bool IsTainted { get; set; }

    public ITrace? Trace
    {
        get => _trace;
        set
        {
            _trace = value;
            Reroute();
        }
    }

    /// <summary>Puts some objects between guard pages; null if the machine does not.</summary>
    public Kfence? Kfence { get; set; }

    /// <summary>Every object takes the ways with checks, because somebody wants to see it.</summary>
    public bool IsWatched => Watch != null || _asksFaults || Kfence is { IsOpen: true };

    /// <summary>Told of every object; null if nobody wants to know. Set before there are caches.</summary>
    public IAllocationWatch? Watch { get; set; }

    /// <summary>Every request for an object asks the fault injection from here on.</summary>
    public void AskFaults()
    {
        _asksFaults = true;
        Reroute();
    }

    /// <summary>Told when <see cref="FastId"/> has changed.</summary>
    public Action FastIdChanged { get; set; } = () => { };

    /// <summary>Opens or closes the fast paths, for all caches, as those who watch want it. Takes no lock.</summary>
    public void Reroute()
    {
        bool isFast = _trace == null && Options is { SheavesEverywhere: true, Hardening: null } && !IsWatched;
        FastId = isFast && Pages.Nodes.Count == 1 ? Cpus.Id : -1;
        foreach (KmemCache? cache in Volatile.Read(ref _byId))
        {
            if (cache == null)
                continue;

            cache.FastId = FastId;
            cache.Watch(IsWatched);
        }

        FastIdChanged();
    }

    /// <summary>Says whose memory an address outside the RAM is, for reports; null: unknown.</summary>
    public Func<nint, string?>? DescribeForeign { get; set; }

    /// <summary>
    /// Where slabs' pages come from if not from the page allocator: a replay knows when they were taken.
    /// </summary>
    public Func<Gfp, int, int, nint>? PageSource { get; set; }

    /// <summary>Where slabs' pages go if not to the page allocator.</summary>
    public Action<nint, int>? PageSink { get; set; }

    /// <summary>
    /// Called each time when slabs of 4 MiB have gone, where a thread may sleep; null if nobody cares.
    /// </summary>
    public Action? ManyReleased { get; set; }

    /// <summary>Where sheaves come from: kmalloc, which is built on this class.</summary>
    public Func<nuint, Gfp, nint> AllocMetadata { get; set; } = (_, _) => 0;

    /// <summary>Where they go.</summary>
    public Action<nint> FreeMetadata { get; set; } = _ => { };

    /// <summary>A copy of the list of caches, newest first, as /proc/slabinfo shows it.</summary>
    public IReadOnlyList<KmemCache> Caches
    {
        get
        {
            SimPoint.Gate(_mutex);
            lock (_mutex)
                return _caches.AsEnumerable().Reverse().ToArray();
        }
    }

    /// <summary>
    /// Creates the caches that the descriptors of all caches come from, these two included (kmem_cache_init).
    /// </summary>
    public void Start()
    {
        var plain = new CacheTraits(IsPlain: true);
        _bootNode = CreateBoot("kmem_cache_node", KmemCacheNodeSize, 0, SlabFlags.HwcacheAlign, plain);
        _bootCache = CreateBoot(
            "kmem_cache", KmemCacheSize + (8 * Pages.Nodes.Count), 0, SlabFlags.HwcacheAlign, plain);
        _bootNode.RefCount = _bootCache.RefCount = BootRefCount; // nobody joins them, nobody destroys them
        _bootNode.SkipsKfence = _bootCache.SkipsKfence = true; // the machine reads none of these: nothing to catch
        Describe(_bootNode);
        Describe(_bootCache);
        if (Options.SheavesEverywhere)
            StartSheafCaches(plain with { IsPrivate = true });
    }

    /// <summary>
    /// Where kmalloc's own caches have sheaves, these cannot be kmalloc blocks: caches without sheaves give them.
    /// </summary>
    private unsafe void StartSheafCaches(CacheTraits plain)
    {
        var caches = new KmemCache[SheafSizes.Length];
        for (int i = 0; i < caches.Length; i++)
        {
            caches[i] = CreateBoot(SheafCacheName + SheafSizes[i], SheafSizes[i], SheafSizes[i], SlabFlags.NoMerge, plain);
            caches[i].RefCount = BootRefCount;
            Describe(caches[i]);
        }

        TakeSheavesFrom(caches);
    }

    /// <summary>
    /// Whether a cache of this name is one that sheaves come from in machines where every cache has them.
    /// </summary>
    public static bool GivesSheaves(string name) => name.StartsWith(SheafCacheName, StringComparison.Ordinal);

    /// <summary>
    /// Sheaves come from these caches, the smallest first, and larger ones from where they came before.
    /// </summary>
    private unsafe void TakeSheavesFrom(KmemCache[] caches)
    {
        Func<nuint, Gfp, nint> other = AllocMetadata;
        Action<nint> otherFree = FreeMetadata;
        AllocMetadata = (size, gfp) =>
            Array.Find(caches, cache => (nuint)cache.ObjectSize >= size) is { } cache
                ? (nint)cache.Alloc(gfp)
                : other(size, gfp);
        FreeMetadata = block =>
        {
            Page* slab = SlabOf((void*)block);
            if (slab != null && CacheOf(slab) is { IsPrivate: true } cache)
                cache.FreeCore(slab, (void*)block);
            else
                otherFree(block);
        };
    }

    /// <summary>Puts a cache of known shape into the list, as the newest one.</summary>
    public KmemCache Restore(string name, in SlabGeometry geometry, int refCount, in CacheTraits traits)
    {
        SimPoint.Gate(_mutex);
        lock (_mutex)
        {
            int id = FreeId();
            bool isPrivate = Options.SheavesEverywhere && GivesSheaves(name);
            var cache = new KmemCache(this, id, name, geometry, traits with { IsPrivate = isPrivate })
            {
                RefCount = refCount,
                FastId = FastId,
            };
            _byId[id] = cache;
            _caches.Add(cache);
            return cache;
        }
    }

    /// <summary>Finds the caches that descriptors and sheaves come from among those restored.</summary>
    public void RestoreBootCaches()
    {
        SimPoint.Gate(_mutex);
        lock (_mutex)
        {
            _bootNode = _caches.Find(cache => cache.Name == "kmem_cache_node");
            _bootCache = _caches.Find(cache => cache.Name == "kmem_cache");
            KmemCache[] sheaves = _caches.Where(cache => cache.IsPrivate).OrderBy(cache => cache.ObjectSize).ToArray();
            if (sheaves.Length > 0)
                TakeSheavesFrom(sheaves);
        }
    }

    /// <summary>Sets which names were merged into which caches: [name, cache].</summary>
    public void RestoreAliases(IEnumerable<string[]> aliases)
    {
        SimPoint.Gate(_mutex);
        lock (_mutex)
            _aliases.AddRange(aliases.Select(alias => (alias[0], _caches.First(cache => cache.Name == alias[1]))));
    }

    /// <summary>Where the machine's random numbers stand.</summary>
    public ulong RandomState
    {
        get => Volatile.Read(ref _random);
        set => Volatile.Write(ref _random, value);
    }

    public static nint TagOf(int id) => (id + 1) << TagShift;

    /// <summary>What <see cref="PlaceOf"/> knows, for loops and for who cannot afford to ask here.</summary>
    public PlaceMap PlacesOfFrames { get; }

    /// <summary>
    /// The <see cref="CpuSet.Id"/> of the machine if the inlined fast paths may be taken: there are sheaves, one node,
    /// and nobody traces. Else something that no task has.
    /// </summary>
    public int FastId { get; private set; } = -1;

    /// <summary>
    /// The place, in bytes, of the cache that an address belongs to in each CPU's area; 0 if it belongs to none.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe nuint PlaceOf(void* address) => PlacesOfFrames.Of((nuint)address);

    /// <summary>
    /// For each frame the place of the cache whose slab it is part of, or 0: what a free needs to know, in four bytes,
    /// so that the fast path does not touch the descriptors.
    /// </summary>
    public readonly struct PlaceMap
    {
        private readonly nuint _ram;
        private readonly nuint _ramBytes;
        private readonly unsafe uint* _ofFrame;

        public unsafe PlaceMap(nuint ram, nuint ramBytes, uint* ofFrame)
        {
            _ram = ram;
            _ramBytes = ramBytes;
            _ofFrame = ofFrame;
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public unsafe nuint Of(nuint address)
        {
            nuint offset = address - _ram;
            return offset < _ramBytes ? _ofFrame[offset >> Pfn.PageShift] : 0;
        }
    }

    /// <summary>Notes that the frames of a slab belong to a cache, or to none any more.</summary>
    public unsafe void SetPlaces(Page* slab, int order, nuint place) =>
        new Span<uint>((uint*)_places.Base + Map.PfnOf(slab), 1 << order).Fill((uint)place);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe KmemCache CacheOf(Page* slab) => _byId[((int)slab->SlabCache >> TagShift) - 1]!;

    /// <summary>The same for somebody who looks on from outside: null if the slab has just gone.</summary>
    public unsafe KmemCache? TryCacheOf(Page* slab)
    {
        KmemCache?[] caches = Volatile.Read(ref _byId);
        uint id = (uint)((int)slab->SlabCache >> TagShift) - 1;
        return id < (uint)caches.Length ? caches[id] : null;
    }

    /// <summary>The slab that an address lies in, or null if it lies in none.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe Page* SlabOf(void* address)
    {
        if (!Map.Contains(address))
            return null;

        Page* page = Page.HeadOf(Map.PageAt(address));
        return page->Type == PageType.Slab ? page : null;
    }

    public unsafe int NodeOf(Page* page) => Pages.ZoneOf(Map.PfnOf(page)).Zone.NodeId;

    public int NodeOfCpu(int cpu) => _nodeOfCpu[cpu];

    /// <summary>The address that the kernel would print for a pointer into RAM.</summary>
    public unsafe ulong KernelAddress(void* address) =>
        Addresses.DirectMap + (ulong)((byte*)address - Map.RamBase);

    /// <summary>The other way round: the pointer to an address of the direct map.</summary>
    public unsafe void* PointerOf(ulong kernelAddress) => Map.RamBase + (kernelAddress - Addresses.DirectMap);

    public unsafe ulong KernelPageAddress(Page* page) =>
        Addresses.Vmemmap + (Map.PfnOf(page) * Page.SizeInBytes);

    public unsafe void AccountPages(Page* slab, long pages, SlabFlags flags) =>
        Pages.Nodes[Pages.Nodes.Count == 1 ? 0 : NodeOf(slab)]
            .AddSlabPages(pages, (flags & SlabFlags.ReclaimAccount) != 0);

    /// <summary>Counts frames of slabs that are given back. Threads that count at once may lose some.</summary>
    public unsafe void CountReleased(long frames)
    {
        if (ManyReleased is not { } told || (_released += frames) < ManyFrames || !Cpus.Current->MaySleep)
            return;

        _released = 0;
        told();
    }

    /// <summary>Pseudo-random numbers from the machine's seed (xorshift64*): same seed, same machine.</summary>
    public ulong NextRandom()
    {
        while (true)
        {
            ulong before = Volatile.Read(ref _random);
            ulong next = before;
            next ^= next >> 12;
            next ^= next << 25;
            next ^= next >> 27;
            if (Interlocked.CompareExchange(ref _random, next, before) == before)
                return next * 0x2545_F491_4F6C_DD1D;
        }
    }

    /// <summary>Creates a cache, or finds one that will do (kmem_cache_create).</summary>
    public KmemCache Create(string name, int size, int align, SlabFlags flags, CacheTraits traits, int? freePointerOffset)
    {
        ArgumentException.ThrowIfNullOrWhiteSpace(name);
        if ((flags & ~SlabFlagMask.Permitted) != 0)
            throw new ArgumentException(
                $"cache {name}: flags {flags & ~SlabFlagMask.Permitted} are not permitted", nameof(flags));
        if (traits.UserOffset < 0 || traits.UserSize < 0 || (long)traits.UserOffset + traits.UserSize > size)
        {
            throw new ArgumentException(
                $"cache {name}: user window {traits.UserOffset}+{traits.UserSize} is not within {size} bytes");
        }

        flags = Options.Debug.FlagsFor(name, flags);
        SimPoint.Gate(_mutex);
        lock (_mutex)
        {
            KmemCache? mergeable = freePointerOffset == null ? FindMergeable(size, align, flags, traits) : null;
            if (mergeable != null)
            {
                mergeable.Join(size);
                _aliases.Add((name, mergeable));
                return mergeable;
            }

            KmemCache cache = CreateBoot(name, size, align, flags, traits, freePointerOffset);
            Describe(cache);
            if (!cache.StartSheaves())
            {
                cache.Close();
                Forget(cache);
                _byId[cache.Id] = null;
                throw new OutOfMemoryException($"cache {name}: no memory for the sheaves of its CPUs");
            }

            return cache;
        }
    }

    /// <summary>Names that were merged into other caches, in order of creation.</summary>
    public IReadOnlyList<(string Name, KmemCache Cache)> AliasNames
    {
        get
        {
            SimPoint.Gate(_mutex);
            lock (_mutex)
                return _aliases.ToArray();
        }
    }

    public void Destroy(KmemCache cache)
    {
        if (cache.IsConstructing)
            Pages.ThrowBug($"BUG: kmem_cache_destroy({cache.Name}): called from the cache's own constructor");

        cache.FlushRcuSheaves();
        Rcu.Barrier();
        SimPoint.Gate(_mutex);
        lock (_mutex)
        {
            if (_byId[cache.Id] != cache || cache.IsClosed)
                Pages.ThrowBug($"BUG: kmem_cache_destroy({cache.Name}): the cache was destroyed before");
            if (cache.IsBuiltIn || cache.RefCount < 0)
                Pages.ThrowBug($"BUG: kmem_cache_destroy({cache.Name}): the machine needs this cache itself");

            if (cache.RefCount > 1)
            {
                cache.RefCount--;
                return;
            }

            cache.Close();
            cache.Shrink();
            if (cache.SheafCapacity > 0)
                cache.Shrink(); // flushing sheaves put slabs onto CPUs' chains again
            if (cache.SlabCount > 0 || Kfence?.LiveOf(cache).Count > 0)
            {
                cache.Reopen();
                Pages.ThrowBug(cache.LeftoverReport());
            }

            Forget(cache);
        }

        // Its last slabs may still wait for readers.
        Rcu.Barrier();
        SimPoint.Gate(_mutex);
        lock (_mutex)
            _byId[cache.Id] = null;
    }

    private void Forget(KmemCache cache)
    {
        cache.FreeMainSheaves();
        cache.Abandon();
        _caches.Remove(cache);
        _aliases.RemoveAll(alias => alias.Cache == cache);
        FreeDescriptors(cache);
    }

    /// <summary>
    /// Shrinks every cache; none is destroyed meanwhile, for a slab in transit would look like one in use.
    /// </summary>
    public void ShrinkAll()
    {
        Quarantine?.Flush(null);
        SimPoint.Gate(_mutex);
        lock (_mutex)
        {
            foreach (KmemCache cache in Enumerable.Reverse(_caches))
                cache.Shrink();
        }
    }

    /// <summary>
    /// The same for somebody who is out of memory: not if a cache is just being created or destroyed, perhaps by this
    /// very thread, because that may be waiting for memory, too.
    /// </summary>
    public void TryShrinkAll()
    {
        if (_mutex.IsHeldByCurrentThread || !_mutex.TryEnter())
            return;

        try
        {
            ShrinkAll();
        }
        finally
        {
            _mutex.Exit();
        }
    }

    /// <summary>Empties the quarantine for a request for pages.</summary>
    /// <returns>Whether there was anything in it.</returns>
    private bool FreeKeptBack()
    {
        if (Quarantine!.Flush(null) == 0)
            return false;

        TryShrinkAll();
        return true;
    }

    /// <summary>
    /// Calls back for every slab of a cache, in order of address. Nobody may be at work on the cache.
    /// </summary>
    public unsafe void ForEachSlab(KmemCache cache, Action<nint> visit)
    {
        nint tag = TagOf(cache.Id);
        ForEachSlab(slab =>
        {
            if (((Page*)slab)->SlabCache == tag)
                visit(slab);
        });
    }

    /// <summary>Calls back for every slab of every cache, in order of address. Nobody may be at work.</summary>
    public unsafe void ForEachSlab(Action<nint> visit) => ForEachBlockInUse(page =>
    {
        if (((Page*)page)->Type == PageType.Slab)
            visit(page);
    });

    /// <summary>Calls back for every block that was given out, in order of address. Nobody may be at work.</summary>
    public unsafe void ForEachBlockInUse(Action<nint> visit)
    {
        foreach (ZonePages pages in Pages.Zones)
        {
            for (ulong pfn = pages.Zone.StartPfn; pfn < pages.Zone.EndPfn;)
            {
                if (!Pages.HasMemory(pages.Zone, pfn))
                {
                    pfn = (pfn | (PageOrder.PageblockPages - 1)) + 1;
                    continue;
                }

                Page* page = Map.PageOf(pfn);
                if (page->Type != PageType.Buddy && page->AllocatedOrderPlusOne != 0)
                    visit((nint)page);

                // A replayed kernel frees other blocks in pieces: their size says nothing about what follows.
                int order = page->Type == PageType.Buddy ? (int)page->Private
                    : page->Type == PageType.Slab ? Math.Max(page->AllocatedOrderPlusOne - 1, 0)
                    : 0;
                pfn += 1UL << order;
            }
        }
    }

    /// <summary>kmem_cache_free_bulk, with a cache; and kfree_bulk, without one: any objects, large ones too.</summary>
    public unsafe void FreeBulk(KmemCache? cache, Span<nint> objects)
    {
        while (objects.Length > 0)
        {
            void* last = (void*)objects[^1];
            Page* slab = SlabOf(last);
            if (slab == null)
            {
                if (Kfence is { } kfence && kfence.TryFree(last, cache))
                {
                    objects = objects[..^1];
                    continue;
                }

                if (cache != null)
                    ThrowNotASlab(last, $"kmem_cache_free_bulk({cache.Name})");
                LargeFree(last);
                objects = objects[..^1];
                continue;
            }

            KmemCache owner = CacheOf(slab);
            if (owner.IsPrivate)
                ThrowPrivate(owner, last);
            if (cache != null && owner != cache)
                WarnWrongCache(cache, owner, last);
            objects = objects[..owner.FreeChainFromEnd(objects, slab)];
        }
    }

    public void Dispose()
    {
        foreach (KmemCache cache in _caches)
            cache.Abandon();
        _caches.Clear();
        Quarantine?.Dispose();
        Live.Dispose();
        _places.Dispose();
    }

    /// <summary>
    /// Where sheaves stand before all slabs, a slab need not last long: with fewer objects it is empty, and goes,
    /// sooner.
    /// </summary>
    private const int NativeSlabObjects = 8;

    private const long ManyFrames = (4 << 20) >> Pfn.PageShift;

    private KmemCache CreateBoot(
        string name, int size, int align, SlabFlags flags, CacheTraits traits, int? freePointerOffset = null)
    {
        flags = traits.IsPrivate ? flags : Options.Debug.FlagsFor(name, flags);
        var request = new SlabGeometryRequest(size, align, flags, Cpus.Count)
        {
            HasConstructor = traits.Constructor != null,
            FreePointerOffset = freePointerOffset,
            CacheLineSize = Options.CacheLineSize,
            NoHigherOrderDebug = Options.Debug.NoHigherOrders,
            SlabMaxOrder = traits.SlabOrder == 0 ? PageOrder.Costly : traits.SlabOrder,
            SlabMinObjects = Options.SheavesEverywhere ? NativeSlabObjects : 0,
        };
        SlabGeometry geometry = SlabGeometry.Compute(request);
        int id = FreeId();
        bool isDebugged = (geometry.Flags & SlabFlagMask.Debug) != 0;
        if (isDebugged)
            traits = traits with { SheafCapacity = 0 };
        else if (Options.SheavesEverywhere && traits is { SheafCapacity: 0, IsPlain: false })
            traits = traits with { SheafCapacity = Sheaf.DefaultCapacity(geometry.Size) };
        var cache = new KmemCache(this, id, name, geometry, traits);
        cache.FastId = FastId;
        _byId[id] = cache;
        _caches.Add(cache);
        return cache;
    }

    private int FreeId()
    {
        int id = Array.IndexOf(_byId, null, Math.Min(_lastId, _byId.Length - 1));
        if (id < 0)
            id = Array.IndexOf(_byId, null);
        if (id < 0)
        {
            // Readers index the array without a lock: they see the old one or the new one, both complete.
            var larger = new KmemCache?[_byId.Length * 2];
            _byId.CopyTo(larger, 0);
            id = _byId.Length;
            if (id + 1 >= MaxCaches)
                throw new InvalidOperationException($"a machine has room for {MaxCaches} caches");
            Volatile.Write(ref _byId, larger);
        }

        _lastId = id;
        return id;
    }

    /// <summary>
    /// Allocates the objects that stand for a cache in kmem_cache and kmem_cache_node, as the kernel does, and writes
    /// the cache's name into the first. The machine itself never reads them: its own descriptors are out of users'
    /// reach.
    /// </summary>
    private unsafe void Describe(KmemCache cache)
    {
        if (_bootCache == null || _bootNode == null)
            return;

        foreach (KmemCacheNode node in cache.Nodes)
            node.Descriptor = (nint)_bootNode.Alloc(Gfp.Kernel | Gfp.Zero);
        cache.Descriptor = (nint)_bootCache.Alloc(Gfp.Kernel | Gfp.Zero);
        if (cache.Descriptor != 0)
        {
            var text = new Span<byte>((void*)cache.Descriptor, _bootCache.ObjectSize);
            Encoding.UTF8.TryGetBytes(cache.Name, text, out _);
        }
    }

    private unsafe void FreeDescriptors(KmemCache cache)
    {
        foreach (KmemCacheNode node in cache.Nodes)
            _bootNode?.Free((void*)node.Descriptor);
        _bootCache?.Free((void*)cache.Descriptor);
    }

    /// <summary>The oldest cache that a new one may become an alias of (find_mergeable).</summary>
    private KmemCache? FindMergeable(int size, int align, SlabFlags flags, CacheTraits traits)
    {
        if (!Options.Merge || traits.Constructor != null || traits.UserSize != 0 || traits.SheafCapacity != 0 || (flags & SlabFlagMask.NeverMerge) != 0)
            return null;

        int aligned = SlabGeometry.AlignmentOf(flags, align, size, Options.CacheLineSize);
        int slot = RoundUp(RoundUp(size, 8), aligned);
        foreach (KmemCache candidate in _caches)
        {
            if (candidate.RefCount >= 0
                && IsMergeable(candidate)
                && candidate.SlotSize >= slot
                && candidate.SlotSize - slot < 8
                && (candidate.Flags & SlabFlagMask.MergeSame) == (flags & SlabFlagMask.MergeSame)
                && candidate.SlotSize % aligned == 0)
            {
                return candidate;
            }
        }

        return null;
    }

    /// <summary>Whether others may be merged into a cache; such caches have a ":" name in sysfs.</summary>
    public bool IsMergeable(KmemCache cache) =>
        Options.Merge && !cache.HasConstructor && cache.UserSize == 0 && cache.SheafCapacity == 0 && cache.RefCount >= 0
        && (cache.Flags & SlabFlagMask.NeverMerge) == 0;

    private static int RoundUp(int value, int multiple) => (value + multiple - 1) / multiple * multiple;
}
