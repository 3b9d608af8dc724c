using System.Globalization;

namespace Kmem.Tracing;

/// <summary>
/// Given the complete allocator state of a real kernel at one instant and the requests that followed, predicts every page
/// frame and every object address, and the state at the end.
/// </summary>
/// <remarks>
/// The requests run through the same allocators that programs use. What the recording tells besides requests is when
/// things took effect: slab pages are taken at their own events, because interrupts may come between the request for an
/// object and the pages it needs.
/// </remarks>
public sealed class StatePrediction
{
    private readonly Machine _machine;
    private readonly ZoneEventCheck _zones = new();
    private readonly Dictionary<string, KmemCache> _caches = new(StringComparer.Ordinal);
    private readonly Dictionary<string, string> _cacheByAddress = new(StringComparer.Ordinal);
    private readonly Dictionary<string, ContextState> _contexts = new(StringComparer.Ordinal);
    private readonly HashSet<nint> _pagesToFree = [];
    private readonly List<RecordedEvent> _events;
    private ContextState _current = new();
    private RecordedEvent? _event;
    private int _position;
    private bool _inSteps;

    private StatePrediction(Machine machine, MachineState state, List<RecordedEvent> events)
    {
        _machine = machine;
        _events = events;
        machine.Trace = _zones;
        foreach (KmemCache cache in machine.Slabs.Caches)
            _caches[cache.Name] = cache;
        foreach (CacheState cache in state.Caches)
            _cacheByAddress[cache.Addr.Replace("0x", "", StringComparison.Ordinal)] = cache.Name;
        machine.Slabs.PageSource = TakeSlabPage;
        machine.Slabs.PageSink = (page, _) => _pagesToFree.Add(page);
        Func<nuint, Gfp, nint> source = machine.Slabs.AllocMetadata;
        machine.Slabs.AllocMetadata = (size, gfp) => CheckSheafBlock(source(size, gfp & ~Gfp.Zero));
        machine.Slabs.Rcu.ReadLock(); // grace periods end when the recording says so
    }

    /// <summary>Lines of the recording.</summary>
    public long Events { get; private set; }

    /// <summary>Page blocks that the kernel gave out.</summary>
    public long PageAllocs { get; private set; }

    /// <summary>Of these, the ones with the frame that came out here, too.</summary>
    public long PageAllocsExact { get; private set; }

    /// <summary>Blocks that left a free list, drains of per-CPU lists, and fallbacks.</summary>
    public long ZoneEvents => _zones.Expected;

    /// <summary>Of these, the equal ones.</summary>
    public long ZoneEventsExact => _zones.Exact;

    /// <summary>Objects that the kernel gave out of slabs and sheaves.</summary>
    public long SlabAllocs { get; private set; }

    /// <summary>Of these, the ones with the address that came out here, too.</summary>
    public long SlabAllocsExact { get; private set; }

    /// <summary>Areas of the vmalloc space that the kernel gave out.</summary>
    public long VmapAllocs { get; private set; }

    /// <summary>Of these, the ones with the address that came out here, too.</summary>
    public long VmapAllocsExact { get; private set; }

    /// <summary>Differences between the kernel's state at the end and the machine's.</summary>
    public long StateDifferences => Differences.Count;

    /// <summary>Whether every result and the whole state at the end are the kernel's.</summary>
    public bool IsExact => First == null && StateDifferences == 0
        && PageAllocsExact == PageAllocs && ZoneEventsExact == ZoneEvents
        && SlabAllocsExact == SlabAllocs && VmapAllocsExact == VmapAllocs;

    /// <summary>What differs at the end, in words.</summary>
    public IReadOnlyList<string> Differences { get; private set; } = [];

    /// <summary>The first event that differs: what was expected, and what came; null if none does.</summary>
    public string? First { get; private set; }

    /// <summary>Runs a recording: <c>state-t0.json.gz</c>, <c>events.tsv.gz</c> and <c>state-t1.json.gz</c> of a folder.</summary>
    /// <param name="folder">The folder.</param>
    /// <returns>The counts.</returns>
    /// <exception cref="InvalidDataException">A file is not what it should be; the message names it.</exception>
    /// <exception cref="IOException">A file cannot be read.</exception>
    public static StatePrediction Run(string folder) => Run(folder, inSteps: false);

    /// <param name="folder">The folder.</param>
    /// <param name="inSteps">Let every operation that needs slabs wait in the middle, whether others act or not.</param>
    internal static StatePrediction Run(string folder, bool inSteps)
    {
        MachineState before = MachineState.Read(Path.Combine(folder, "state-t0.json.gz"));
        MachineState after = MachineState.Read(Path.Combine(folder, "state-t1.json.gz"));
        List<RecordedEvent> events = RecordedEvents.Read(Path.Combine(folder, "events.tsv.gz"), out long lines);
        KernelProfile profile = KernelProfile.Linux618 with { MemoryCgroups = false };
        using Machine machine = Machine.FromState(before, new MachineOptions { Profile = profile });
        var prediction = new StatePrediction(machine, before, events) { _inSteps = inSteps };
        for (prediction._position = 0; prediction._position < events.Count; prediction._position++)
            prediction.Execute(events[prediction._position]);
        prediction.Events = lines;
        prediction.Differences = StateComparison.Compare(after, machine.WriteState(after));
        if (prediction._zones.First is { } first)
            prediction.First ??= $"zone event: expected {first.Expected}, came {first.Came}";
        prediction.PredictAreas(folder);
        return prediction;
    }

    /// <summary>
    /// The vmalloc space on a machine of its own: its area objects are in the recording as allocations like others, too, and
    /// would be taken twice.
    /// </summary>
    private void PredictAreas(string folder)
    {
        VmapStatePrediction areas = VmapStatePrediction.Run(folder, _events);
        VmapAllocs = areas.Allocs;
        VmapAllocsExact = areas.AllocsExact;
        First ??= areas.Differences.FirstOrDefault(difference => !difference.StartsWith("end,", StringComparison.Ordinal));
        Differences = [.. Differences, .. areas.Differences];
    }

    private void Execute(RecordedEvent recorded)
    {
        _event = recorded;
        _machine.CpuSet.Pin(recorded.Cpu);
        _current = ContextOf(recorded);
        if (_current.Fiber is { } fiber && ReferenceEquals(_current.Operation, recorded))
        {
            // It was begun when it asked for a slab; now it takes effect.
            while (!fiber.IsDone)
                fiber.Resume();
            fiber.Dispose();
            _current.Fiber = null;
            return;
        }

        switch (recorded.Name)
        {
            case "PA":
                AllocPages(recorded);
                break;
            case "PF":
                FreePages(recorded);
                break;
            case "PZ" or "PD" or "PX":
                _zones.Expect($"{recorded.Name} {string.Join(' ', recorded.Args)}");
                break;
            case "LI":
                MarkLru(recorded);
                break;
            case "CALL":
                Call(recorded);
                break;
            default:
                Operate(recorded);
                break;
        }
    }

    /// <summary>The operations on caches.</summary>
    private void Operate(RecordedEvent recorded)
    {
        switch (recorded.Name)
        {
            case "KA":
                AllocObject(recorded);
                break;
            case "KM":
                Kmalloc(recorded);
                break;
            case "KC":
                FreeObject(recorded.Hex(1));
                break;
            case "KF":
                Kfree(recorded.Hex(0));
                break;
            case "KFB":
                FreeBulk(recorded);
                break;
            case "KAB":
                AllocBulk(recorded);
                break;
            case "SP" or "SR" or "SK":
                SheafEvent(recorded);
                break;
        }
    }

    /// <summary>
    /// A cache needs a slab. If somebody else acts before the operation is done, it begins now and waits in the middle, as it
    /// did in the kernel; else it runs in one piece when its own event comes.
    /// </summary>
    private void WantSlab(RecordedEvent recorded)
    {
        ContextState context = _current;
        context.WantsSlab = true;
        if (context.Fiber == null)
        {
            RecordedEvent? operation = FindOperation(context, out bool alone);
            if (operation == null || alone)
                return;

            context.Operation = operation;
            int cpu = recorded.Cpu;
            context.Fiber = new Fiber(() =>
            {
                _machine.CpuSet.Pin(cpu);
                Operate(operation);
            });
        }

        // Up to the moment where it asks for the pages.
        if (!context.Fiber.IsDone)
            context.Fiber.Resume();
    }

    /// <summary>The next operation of a context that may need slabs, and whether only this context acts until then.</summary>
    private RecordedEvent? FindOperation(ContextState context, out bool alone)
    {
        alone = !_inSteps;
        for (int i = _position + 1; i < _events.Count; i++)
        {
            RecordedEvent next = _events[i];
            if (ContextOf(next) != context)
                alone = false;
            else if (next.Name is "KA" or "KM" or "KAB" or "SP" or "SR")
                return next;
        }

        return null;
    }

    private ContextState ContextOf(RecordedEvent recorded)
    {
        string key = recorded.Context.Length > 4 ? $"{recorded.Context}{recorded.Cpu}" : recorded.Context;
        if (!_contexts.TryGetValue(key, out ContextState? context))
            _contexts[key] = context = new ContextState();
        return context;
    }

    private unsafe void AllocPages(RecordedEvent recorded)
    {
        ulong expected = recorded.Number(0);
        int order = recorded.Int(1);
        Gfp gfp = recorded.Gfp(3) & ~Gfp.Zero; // nobody looks at the content
        string via = recorded.Args[4];
        if (via == "pcp")
            _zones.StartAgain();
        Page* page;
        if (via.StartsWith("bulk", StringComparison.Ordinal))
        {
            page = TakeBulk(int.Parse(via.AsSpan(4), CultureInfo.InvariantCulture), gfp);
        }
        else
        {
            _current.BulkLeft = 0;
            page = _machine.Pages.AllocFrozen(gfp, order, -1, BypassPcp(via, order));
        }

        PageAllocs++;
        ulong came = page == null ? 0 : _machine.Map.PfnOf(page);
        Compare(came == expected, () => page == null ? "no frame" : $"frame {came}");
        PageAllocsExact += came == expected ? 1 : 0;
        if (came != expected && page != null)
        {
            page = _machine.Map.PageOf(expected);
            FreeForgottenSlab(Page.HeadOf(page));
            _machine.Pages.Exchange(came, expected, order);
        }

        if (_current.WantsSlab)
        {
            _current.SlabPages.Enqueue((nint)page);
            _current.WantsSlab = false;
        }
    }

    /// <summary>The kernel gives out the pages of what is a slab here: it must have freed that slab.</summary>
    private unsafe void FreeForgottenSlab(Page* head)
    {
        if (head->Type != PageType.Slab)
            return;

        int order = PageAllocator.CompoundOrder(head);
        _machine.Slabs.CacheOf(head).Forget(head);
        _pagesToFree.Remove((nint)head);
        _machine.Pages.FreeFrozen(head, order);
    }

    /// <summary>One page of a bulk request; the zone is chosen before the first one.</summary>
    private unsafe Page* TakeBulk(int count, Gfp gfp)
    {
        if (_current.BulkLeft == 0 || _current.BulkCount != count)
        {
            _current.BulkCount = count;
            _current.BulkLeft = count;
            _current.BulkZone = count == 1 ? null : _machine.Pages.BeginBulk(gfp, -1, count);
        }

        _current.BulkLeft--;
        Page* page = _current.BulkZone == null ? null : _machine.Pages.TakeBulk(_current.BulkZone, gfp, -1);
        return page != null ? page : _machine.Pages.AllocFrozen(gfp, 0, -1);
    }

    private unsafe void FreePages(RecordedEvent recorded)
    {
        _zones.StartAgain();
        Page* page = _machine.Map.PageOf(recorded.Number(0));
        int order = recorded.Int(1);
        if (!_pagesToFree.Remove((nint)page) && page->Type == PageType.Slab)
        {
            // A discarded slab whose readers are done: it goes back now.
            _machine.Slabs.CacheOf(page).Forget(page);
            _pagesToFree.Remove((nint)page);
        }

        page->Flags &= ~PageFlags.Lru;
        page->Type = PageType.None;
        page->RefCount = 0;
        _machine.Pages.FreeFrozen(page, order, BypassPcp(recorded.Args[2], order));
    }

    private static bool BypassPcp(string via, int order) => via == "buddy" && PerCpuPages.IsPcpOrder(order);

    private unsafe void MarkLru(RecordedEvent recorded) =>
        _machine.Map.PageOf(recorded.Number(0))->Flags |= PageFlags.Lru;

    private unsafe void AllocObject(RecordedEvent recorded)
    {
        KmemCache cache = _caches[recorded.Args[0]];
        Gfp gfp = recorded.Gfp(3) & ~Gfp.Zero;
        nint sheaf = _current.Sheaf;
        _current.Sheaf = 0;
        void* obj = sheaf != 0 ? cache.AllocFromPrefilled(gfp, (Sheaf*)sheaf) : cache.Alloc(gfp);
        CheckObject(recorded.Hex(1), obj);
    }

    private unsafe void Kmalloc(RecordedEvent recorded)
    {
        nuint size = (nuint)recorded.Number(1);
        if (recorded.Args[4].StartsWith("alloc_empty_sheaf", StringComparison.Ordinal))
        {
            // The operation that needs the sheaf asks for it itself; it is logged when it is done.
            SlabAllocs++;
            _current.ExpectedSheaf = recorded.Hex(0);
            return;
        }

        if (size > KmallocClasses.MaxCacheSize)
        {
            // The pages were taken at their own event.
            ulong pfn = (recorded.Hex(0) - AddressMap.PageOffset) >> Pfn.PageShift;
            _machine.Map.PageOf(pfn)->Type = PageType.LargeKmalloc;
            return;
        }

        CheckObject(recorded.Hex(0), _machine.Kmalloc(size, recorded.Gfp(3) & ~Gfp.Zero));
    }

    private unsafe nint CheckSheafBlock(nint block)
    {
        ulong came = block == 0 ? 0 : _machine.Slabs.KernelAddress((void*)block);
        SlabAllocsExact += came == _current.ExpectedSheaf ? 1 : 0;
        Compare(came == _current.ExpectedSheaf, () => $"new sheaf {came:x16}");
        return block;
    }

    private unsafe void CheckObject(ulong expected, void* obj)
    {
        ulong came = obj == null ? 0 : _machine.Slabs.KernelAddress(obj);
        SlabAllocs++;
        SlabAllocsExact += came == expected ? 1 : 0;
        Compare(came == expected, () => $"object {came:x16}");
        if (came != expected && obj != null && _machine.Slabs.SlabOf(obj) is var slab && slab != null)
            _machine.Slabs.CacheOf(slab).Exchange(obj, _machine.Slabs.PointerOf(expected));
        if (_current.SlabPages.Count > 0)
            Compare(false, () => "a slab page that this allocation did not need");
    }

    private unsafe void FreeObject(ulong address)
    {
        void* obj = _machine.Slabs.PointerOf(address);
        Page* slab = _machine.Slabs.SlabOf(obj);
        if (slab != null)
            _machine.Slabs.CacheOf(slab).Free(obj);
    }

    /// <summary>A large block goes back with its page event.</summary>
    private unsafe void Kfree(ulong address)
    {
        void* obj = _machine.Slabs.PointerOf(address);
        if (address >= AddressMap.PageOffset && _machine.Slabs.SlabOf(obj) != null)
            _machine.Kfree(obj);
    }

    private unsafe void FreeBulk(RecordedEvent recorded)
    {
        nint[] objects = recorded.Args.Skip(2)
            .Select(text => ulong.Parse(text, NumberStyles.HexNumber, CultureInfo.InvariantCulture))
            .Take(recorded.Int(1))
            .Select(address => (nint)_machine.Slabs.PointerOf(address))
            .Where(pointer => _machine.Slabs.SlabOf((void*)pointer) != null)
            .ToArray();
        if (recorded.Args[0] == "-")
            _machine.Slabs.FreeBulk(null, objects);
        else
            _caches[recorded.Args[0]].FreeBulk(objects);
    }

    private unsafe void AllocBulk(RecordedEvent recorded)
    {
        var objects = new nint[recorded.Int(2)];
        _caches[recorded.Args[0]].AllocBulk(recorded.Gfp(1) & ~Gfp.Zero, objects);
        for (int i = 0; i < objects.Length; i++)
            CheckObject(recorded.Hex(4 + i), (void*)objects[i]);
    }

    private unsafe void SheafEvent(RecordedEvent recorded)
    {
        switch (recorded.Name)
        {
            case "SP":
                Sheaf* filled = _caches[recorded.Args[0]].PrefillSheaf(recorded.Gfp(1), recorded.Int(2));
                CheckSheaf(recorded.Hex(3), filled);
                break;
            case "SR":
                var sheaf = (Sheaf*)_machine.Slabs.PointerOf(recorded.Hex(2));
                _caches[recorded.Args[0]].RefillSheaf(recorded.Gfp(1), ref sheaf, recorded.Int(3));
                break;
            case "SK" when recorded.Args[2] == "1":
                FreeRcu(recorded);
                break;
        }
    }

    private unsafe void FreeRcu(RecordedEvent recorded)
    {
        void* obj = _machine.Slabs.PointerOf(recorded.Hex(1));
        _caches[recorded.Args[0]].FreeRcu(_machine.Slabs.SlabOf(obj), obj);
    }

    private unsafe void CheckSheaf(ulong expected, Sheaf* sheaf)
    {
        ulong came = _machine.Slabs.KernelAddress(sheaf);
        Compare(came == expected, () => $"sheaf {came:x16}");
    }

    private unsafe void Call(RecordedEvent recorded)
    {
        switch (recorded.Args[0])
        {
            case "allocate_slab":
                WantSlab(recorded);
                break;
            case "kmem_cache_alloc_from_sheaf_noprof":
                _current.Sheaf = (nint)_machine.Slabs.PointerOf(recorded.Hex(3));
                break;
            case "kmem_cache_return_sheaf":
                CacheAt(recorded.Args[1]).ReturnSheaf(
                    recorded.Gfp(2), (Sheaf*)_machine.Slabs.PointerOf(recorded.Hex(3)));
                break;
            case "rcu_free_sheaf":
                // The argument is the RCU head within the sheaf, at its start.
                var sheaf = (Sheaf*)_machine.Slabs.PointerOf(recorded.Hex(1));
                if (sheaf->Size > 0)
                    _machine.Slabs.CacheOf(_machine.Slabs.SlabOf(Sheaf.ObjectsOf(sheaf)[0])).FinishRcuSheaf(sheaf);
                break;
        }
    }

    private KmemCache CacheAt(string address) => _caches[_cacheByAddress[address]];

    /// <summary>Called by a cache that needs a slab: the page was taken at its event, a moment ago.</summary>
    private unsafe nint TakeSlabPage(Gfp gfp, int order, int node)
    {
        ContextState context = _current;
        if (Fiber.Current is { } fiber)
        {
            // Taken at the event of the pages; what follows takes effect when the context acts again.
            fiber.Pause();
        }

        if (context.SlabPages.TryDequeue(out nint page))
            return page;

        Compare(false, () => "a slab page that the kernel did not need");
        return (nint)_machine.Pages.AllocFrozen(gfp, order, node);
    }

    private void Compare(bool equal, Func<string> came)
    {
        if (!equal && First == null)
            First = $"{_event}: came {came()}";
    }

    /// <summary>What a task or interrupt is in the middle of.</summary>
    private sealed class ContextState
    {
        public Queue<nint> SlabPages { get; } = new();

        public bool WantsSlab { get; set; }

        /// <summary>The operation in the middle of which the context is, if others act meanwhile.</summary>
        public Fiber? Fiber { get; set; }

        public RecordedEvent? Operation { get; set; }

        public nint Sheaf { get; set; }

        public ulong ExpectedSheaf { get; set; }

        public ZonePages? BulkZone { get; set; }

        public int BulkCount { get; set; }

        public int BulkLeft { get; set; }
    }
}
