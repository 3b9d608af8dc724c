using System.Globalization;

namespace Kmem.Tracing;

/// <summary>
/// Given the complete allocator state of a real kernel at one instant and the requests that followed, predicts every
/// page frame and every object address, and the state at the end.
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
    private readonly Dictionary<ulong, KmemCache> _cacheByAddress = [];
    private readonly Dictionary<(int Cpu, string Task), ContextState> _contexts = [];
    private readonly HashSet<nint> _pagesToFree = [];
    private readonly HashSet<nint> _sheavesToFree = [];
    private readonly HashSet<nint> _sheavesGone = [];
    private readonly Dictionary<RecordedEvent, RecordedEvent> _freeWithSheaf = new(ReferenceEqualityComparer.Instance);
    private readonly List<RecordedEvent> _events;
    private readonly ContextChains _chains;
    private readonly LaterMentions _later;
    private readonly int[] _deferred;       // at a zone event: the request or free before it that waits for it; else -1
    private readonly string[] _tasks;       // who was seen last on each CPU
    private readonly VmapSteps? _vmap;
    private ContextState _current = new();
    private RecordedEvent? _event;
    private int _position;
    private bool _inSteps;

    private StatePrediction(Machine machine, List<RecordedEvent> events)
    {
        _machine = machine;
        _events = events;
        _chains = new ContextChains(events);
        _later = new LaterMentions(events);
        _deferred = new int[events.Count];
        Array.Fill(_deferred, -1);
        _tasks = new string[machine.Cpus];
        machine.Trace = _zones;
        machine.Pages.Hooks = new RecordedReclaim();
        foreach (KmemCache cache in machine.Slabs.Caches)
        {
            _caches[cache.Name] = cache;
            unsafe
            {
                _cacheByAddress[machine.Slabs.KernelAddress((void*)cache.Descriptor)] = cache;
            }
        }

        foreach (ZonePages zone in machine.Pages.Zones)
            zone.DrainLimit = LimitDrain;
        machine.Slabs.PageSource = TakeSlabPage;
        machine.Slabs.PageSink = (page, _) => _pagesToFree.Add(page);
        Func<nuint, Gfp, nint> source = machine.Slabs.AllocMetadata;
        machine.Slabs.AllocMetadata = (size, gfp) => CheckSheafBlock(source(size, gfp & ~Gfp.Zero));
        machine.Slabs.FreeMetadata = block =>
        {
            // Its own event follows; or it came before, because the operation is logged at its end.
            if (_sheavesGone.Remove(block))
                FreeSheafBlock(block);
            else
                _sheavesToFree.Add(block);
        };
        machine.Slabs.Rcu.ReadLock(); // grace periods end when the recording says so
        if (machine.VmapSpace is { } vmap)
            _vmap = new VmapSteps(machine, vmap, events, _later);
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
    public long VmapAllocs => _vmap?.Allocs ?? 0;

    /// <summary>Of these, the ones with the address that came out here, too.</summary>
    public long VmapAllocsExact => _vmap?.AllocsExact ?? 0;

    /// <summary>Differences between the kernel's state at the end and the machine's.</summary>
    public long StateDifferences => Differences.Count;

    /// <summary>Whether every result and the whole state at the end are the kernel's.</summary>
    public bool IsExact => First == null && StateDifferences == 0
        && PageAllocsExact == PageAllocs && ZoneEventsExact == ZoneEvents
        && SlabAllocsExact == SlabAllocs && VmapAllocsExact == VmapAllocs;

    /// <summary>Lines of a kind that is not known: they were passed over, and may explain differences.</summary>
    public long UnknownEvents { get; private set; }

    /// <summary>The first of them; null if there are none.</summary>
    public string? FirstUnknown { get; private set; }

    /// <summary>What differs at the end, in words.</summary>
    public IReadOnlyList<string> Differences { get; private set; } = [];

    /// <summary>The first event that differs: what was expected, and what came; null if none does.</summary>
    public string? First { get; private set; }

    /// <summary>
    /// Runs a recording: <c>state-t0.json.gz</c>, <c>events.tsv.gz</c> and <c>state-t1.json.gz</c> of a folder.
    /// </summary>
    /// <param name="folder">The folder.</param>
    /// <returns>The counts.</returns>
    /// <exception cref="InvalidDataException">A file is not what it should be; the message names it.</exception>
    /// <exception cref="IOException">A file cannot be read.</exception>
    public static StatePrediction Run(string folder) => Run(folder, inSteps: false);

    /// <param name="folder">The folder.</param>
    /// <param name="inSteps">
    /// Let every operation that needs slabs wait in the middle, whether others act or not.
    /// </param>
    internal static StatePrediction Run(string folder, bool inSteps)
    {
        MachineState before = MachineState.Read(Path.Combine(folder, "state-t0.json.gz"));
        MachineState after = MachineState.Read(Path.Combine(folder, "state-t1.json.gz"));
        string events = Path.Combine(folder, "events.tsv.gz");
        List<RecordedEvent> recorded = RecordedEvents.Read(events, out long lines);
        KernelProfile profile = KernelProfile.Linux618 with { MemoryCgroups = false };
        using Machine machine = Machine.FromState(before, new MachineOptions { Profile = profile });
        var prediction = new StatePrediction(machine, recorded) { _inSteps = inSteps, Events = lines };
        if (before.Vmap is { } vmap)
            prediction._vmap?.Start(vmap);
        try
        {
            prediction.ExecuteAll(machine.Cpus);
        }
        catch (FormatException error)
        {
            prediction.AbandonFibers();
            throw new InvalidDataException(
                $"{events}, line {prediction._event?.Line}: '{prediction._event}' cannot be read: {error.Message}", error);
        }

        // A recording does not say whose the blocks in use are, and a kernel may free them in pieces.
        try
        {
            prediction.EndState = machine.WriteState() with { Own = null };
            prediction.Differences = StateComparison.Compare(after, prediction.EndState);
        }
        catch (Exception error) when (prediction.First != null && error is not OutOfMemoryException)
        {
            prediction.Differences = [$"the machine's lists are damaged after the mistakes: {error.Message}"];
        }
        finally
        {
            prediction.AbandonFibers();
        }

        if (prediction._zones.First is { } first)
            prediction.First ??= $"zone event: expected {first.Expected}, came {first.Came}";
        return prediction;
    }

    /// <summary>Writes the machine's own state after the last event, in the form of the recorded ones.</summary>
    /// <param name="path">The file; gzip if the name ends in .gz.</param>
    /// <exception cref="IOException">The file cannot be written.</exception>
    public void SaveEndState(string path)
    {
        ArgumentNullException.ThrowIfNull(path);
        EndState.Write(path);
    }

    /// <summary>The machine's own state after the last event.</summary>
    internal MachineState EndState { get; private set; } = new();

    private void ExecuteAll(int cpus)
    {
        for (_position = 0; _position < _events.Count; _position++)
        {
            RecordedEvent recorded = _events[_position];
            _event = recorded;
            if ((uint)recorded.Cpu >= (uint)cpus)
                throw new FormatException($"the state has no CPU {recorded.Cpu}");
            if (!recorded.IsDone)
                ExecuteInOrder(recorded);
        }

        _zones.Finish();
    }

    /// <summary>
    /// A request stands where it looked at the list of its CPU, and so does a free; what it does in the zone, under the
    /// zone's lock, comes at the zone events. If others act in between, that is the moment that counts: nobody else
    /// sees the list.
    /// <code>
    ///   CPU 0   PA ─ ─ ─ ─ ─ ─ PZ PZ PZ         the refill is done at the first PZ
    ///   CPU 1      PA PZ PZ PZ
    /// </code>
    /// </summary>
    private void ExecuteInOrder(RecordedEvent recorded)
    {
        FoldIfIdle(recorded);
        int at = _position;
        int next = _chains.Next(at);
        if (next >= 0 && _chains.IsDisturbed(at) && BelongsTo(recorded, next))
        {
            _deferred[next] = at;
            return;
        }

        if (_deferred[at] is >= 0 and var first)
            ExecuteAt(first);
        if (recorded.Name is "PZ" or "PX" && FindTaker(at) is >= 0 and var taker && !_chains.IsUndisturbed(at, taker))
        {
            ExecuteAt(taker);
            _events[taker].IsDone = true;
        }

        ExecuteOrGoOn(recorded);
    }

    /// <summary>
    /// Whether the next zone event of a context is one of a request, or of a free, that needs the zone here, too.
    /// </summary>
    private unsafe bool BelongsTo(RecordedEvent recorded, int next)
    {
        RecordedEvent zoneEvent = _events[next];
        if (recorded.Name == "PF" && recorded.Args[2] != "buddy" && zoneEvent.Name == "PD")
        {
            ulong pfn = recorded.Frame(0, _machine.Map.EndPfn);
            return pfn != RecordedEvent.NoFrame && _machine.Pages.PresentZoneOf(pfn) is { } its
                && its.WouldDrain(recorded.Cpu, recorded.Int(1));
        }

        if (recorded.Name != "PA" || recorded.Args[4] == "buddy" || zoneEvent.Name is not ("PZ" or "PX")
            || zoneEvent.Args[1] != recorded.Args[1] || FindTaker(next) >= 0)
        {
            return false;
        }

        int order = recorded.Int(1);
        int list = PerCpuPages.ListIndex(order, recorded.Gfp(3).ToMigratetype());
        ulong from = zoneEvent.Frame(0, _machine.Map.EndPfn);
        return PerCpuPages.IsPcpOrder(order) && from != RecordedEvent.NoFrame
            && _machine.Pages.PresentZoneOf(from) is { } zone && !zone.HasOnList(recorded.Cpu, list);
    }

    /// <summary>Executes an event at the place of another one of its context.</summary>
    private void ExecuteAt(int at)
    {
        (int position, RecordedEvent? recorded) = (_position, _event);
        (_position, _event) = (at, _events[at]);
        ExecuteOrGoOn(_event);
        (_position, _event) = (position, recorded);
    }

    /// <summary>
    /// The request straight to the buddy system that took this block: its zone events stand before it, a block that was
    /// taken and a fallback at most. -1 if it is none.
    /// </summary>
    private int FindTaker(int at)
    {
        int next = _chains.Next(at);
        if (_events[at].Name == "PZ" && next >= 0 && _events[next] is { Name: "PX" } fallback
            && fallback.Args[0] == _events[at].Args[0])
        {
            next = _chains.Next(next);
        }

        return next >= 0 && _events[next] is { Name: "PA", IsDone: false } request && request.Args[4] == "buddy"
            && request.Args[1] == _events[at].Args[1]
            ? next
            : -1;
    }

    /// <summary>
    /// No event says that a CPU went idle, which folds what it counted into the zones' counts; but who was interrupted
    /// is in every line.
    /// </summary>
    private void FoldIfIdle(RecordedEvent recorded)
    {
        string before = _tasks[recorded.Cpu];
        _tasks[recorded.Cpu] = recorded.Task;
        if (recorded.Task != RecordedEvent.IdleTask || before == recorded.Task)
            return;

        foreach (ZonePages zone in _machine.Pages.Zones)
            zone.Fold(recorded.Cpu);
    }

    /// <summary>
    /// After a mistake the machine may find its own lists damaged, or not find what the recording speaks of. Then the
    /// event counts as wrong, and it goes on from the recorded answer as far as possible. Only a line that is none ends
    /// the replay.
    /// </summary>
    private void ExecuteOrGoOn(RecordedEvent recorded)
    {
        (long pages, long objects) = (PageAllocs, SlabAllocs);
        try
        {
            Execute(recorded);
        }
        catch (Exception error) when (error is not OutOfMemoryException and not FormatException
            && error.InnerException is not FormatException)
        {
            _machine.BreakLocks();
            Differ(recorded, error.InnerException?.Message ?? error.Message);
            if (recorded.Name == "PA" && PageAllocs == pages)
                PageAllocs++;
            if (recorded.Name is "KA" or "KM" && SlabAllocs == objects)
                SlabAllocs++;
            if (ReferenceEquals(_current.Operation, recorded))
                _current.Fiber = null;
            Settle();
        }
        catch (InvalidOperationException error) when (error.InnerException is FormatException inner)
        {
            throw new FormatException(inner.Message, error);
        }
    }

    /// <summary>After an operation broke off: whatever it had entered or locked is left.</summary>
    private void Settle()
    {
        _current.SlabPages.Clear();
        _current.SlabAttempts = 0;
        _current.BulkLeft = 0;
        _current.Sheaf = 0;
    }

    private void AbandonFibers()
    {
        foreach (ContextState context in _contexts.Values)
        {
            if (context.Fiber is { IsDone: false } fiber)
                fiber.Abandon();
        }
    }

    private void Execute(RecordedEvent recorded)
    {
        _machine.CpuSet.Pin(recorded.Cpu);
        _current = ContextOf(recorded);
        _zones.Enter(recorded.ContextKey);
        _current.HasDrained &= recorded.Name is "PD" or "PA";
        try
        {
            ExecuteIn(recorded);
        }
        finally
        {
            _current.HasDrained &= recorded.Name == "PD";
            if (recorded.Name is not ("PA" or "PZ" or "PX"))
                _current.LastBlock = default;
            if (recorded.Name is not ("PF" or "PD"))
                _current.LastFreed = null;
        }
    }

    private void ExecuteIn(RecordedEvent recorded)
    {
        if (_current.Fiber is { } fiber && ReferenceEquals(_current.Operation, recorded))
        {
            // It was begun when it asked for a slab; now it takes effect, where its task runs now.
            fiber.Cpu = recorded.Cpu;
            while (!fiber.IsDone)
                fiber.Resume();
            fiber.Dispose();
            _current.Fiber = null;
            _current.DropFailedAttempts();
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
            case "PZ" or "PX":
                _zones.Expect(recorded);
                break;
            case "PD":
                DrainForeign(recorded);
                _zones.Expect(recorded);
                break;
            case "LI":
                MarkLru(recorded);
                break;
            case "CALL":
                Call(recorded);
                break;
            default:
                Operate(recorded);
                if (recorded.Name is "KAB" or "SP" or "SR" or "SK" or "KC" or "KFB")
                    _current.DropFailedAttempts();
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
            case "KC" when FindSheafBlock(recorded) is { } sheaf:
                _freeWithSheaf.Add(sheaf, recorded);
                break;
            case "KC":
                FreeObject(recorded.Hex(1));
                break;
            case "KF":
                Kfree(recorded, recorded.Hex(0));
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
            case "VA" or "VF" or "VP":
                _vmap?.Execute(recorded, _position, _current, Differ);
                break;
            case "SF":
                break;      // implied by others
            default:
                UnknownEvents++;
                FirstUnknown ??= $"line {recorded.Line}: {recorded.Name}";
                break;
        }
    }

    /// <summary>
    /// A cache needs a slab. If somebody else acts before the operation is done, it begins now and waits in the middle,
    /// as it did in the kernel; else it runs in one piece when its own event comes.
    /// </summary>
    private void WantSlab(RecordedEvent recorded)
    {
        ContextState context = _current;
        context.SlabAttempts = 2;
        if (context.Fiber == null)
        {
            RecordedEvent? operation = FindOperation(out bool alone);
            if (operation == null || alone)
                return;

            context.Operation = operation;
            var fiber = new Fiber(() => Operate(operation))
            {
                Cpu = recorded.Cpu,
                Entered = cpu => _machine.CpuSet.Pin(cpu),
                Failed = _machine.BreakLocks,
            };
            context.Fiber = fiber;
        }

        // Up to the moment where it asks for the pages.
        if (!context.Fiber.IsDone)
            context.Fiber.Resume();
    }

    /// <summary>
    /// The next operation of a context that may need slabs, and whether only this context acts until then.
    /// </summary>
    private RecordedEvent? FindOperation(out bool alone)
    {
        int next = _chains.NextOperation(_position);
        alone = !_inSteps && _chains.IsUndisturbed(_position, next);
        return next < 0 ? null : _events[next];
    }

    /// <summary>
    /// A free is logged when it begins. If it needs a new sheaf, that and the pages for it come after it; then it is
    /// done when all of them are there.
    /// </summary>
    private RecordedEvent? FindSheafBlock(RecordedEvent free)
    {
        if (!_caches.TryGetValue(free.Args[0], out KmemCache? cache) || cache.SheafCapacity == 0)
            return null;

        for (int i = _chains.Next(_position); i >= 0; i = _chains.Next(i))
        {
            RecordedEvent next = _events[i];
            if (next.Name is "PZ" or "PX" or "PD" or "PA")
                continue;
            if (next.Name == "CALL" && (next.Args[0] is "alloc_empty_sheaf" or "__alloc_empty_sheaf"
                or "allocate_slab" or "__pcs_replace_full_main"))
            {
                continue;
            }

            return next.IsSheafBlock ? next : null;
        }

        return null;
    }

    /// <summary>Interrupts and the idle task are a CPU's own; other tasks may move to another CPU.</summary>
    private ContextState ContextOf(RecordedEvent recorded)
    {
        if (!_contexts.TryGetValue(recorded.ContextKey, out ContextState? context))
            _contexts[recorded.ContextKey] = context = new ContextState();
        return context;
    }

    /// <summary>
    /// A drain that nothing which happened here explains: somebody, perhaps on another CPU, emptied a CPU's lists of
    /// the zone (drain_all_pages), or a list was found too long for a reason that is in no event (kswapd at work). The
    /// recording shows it by its pages only; which list it was, the first of them tells.
    /// </summary>
    private void DrainForeign(RecordedEvent recorded)
    {
        ulong pfn = recorded.Number(0);
        if (_zones.HasUnmatched || pfn >= _machine.Map.EndPfn || _machine.Pages.PresentZoneOf(pfn) is not { } zone)
            return;

        for (int cpu = 0; cpu < _machine.Cpus; cpu++)
        {
            int list = zone.ListToDrain(cpu, pfn);
            if (list < 0)
                continue;

            int frames = FramesOfDrain(_position, zone);
            if (_current.LastFreed != zone || cpu != recorded.Cpu || !zone.BeginReclaim(cpu, frames))
            {
                if (frames >= zone.CountOf(cpu))
                    BeginReclaimed();
            }

            _machine.Pages.DrainSome(zone, cpu, list, frames);
            return;
        }
    }

    /// <summary>Whole lists were emptied: the request that comes next has tried before, and tries again now.</summary>
    private void BeginReclaimed()
    {
        int after = _chains.Skip(_position, "PD", _events);
        if (_current.HasDrained || after < 0 || _events[after] is not { Name: "PA" } request)
            return;

        _current.HasDrained = true;
        _machine.Pages.BeginReclaimed(request.Gfp(3) & ~Gfp.Zero, request.Int(1));
    }

    /// <summary>
    /// Frames of a zone that a recorded run of drains gives back; a single line of another zone is a wrong one.
    /// </summary>
    private int FramesOfDrain(int first, ZonePages zone)
    {
        int frames = 0;
        for (int i = first; i >= 0 && _events[i].Name == "PD"; i = _chains.Next(i))
        {
            if (!IsOf(i))
            {
                int next = _chains.Next(i);
                if (next < 0 || _events[next].Name != "PD" || !IsOf(next))
                    break;
            }

            frames += 1 << Math.Clamp(_events[i].Int(1), 0, PageOrder.Max);
        }

        return frames;

        bool IsOf(int at) => _events[at].Frame(0, _machine.Map.EndPfn) is not RecordedEvent.NoFrame and var pfn
            && _machine.Pages.PresentZoneOf(pfn) == zone;
    }

    /// <summary>
    /// A list here is too long, and the kernel's was not: counts as a mistake, and it goes on with what the kernel did.
    /// </summary>
    private int LimitDrain(ZonePages zone, int frames)
    {
        if (_event!.Name != "PF")
            return frames;

        int recorded = FramesOfDrain(_chains.Next(_position), zone);
        if (recorded >= frames)
            return frames;

        Differ(_event, $"a drain of {frames} frames, where the kernel drained {recorded}");
        if ((zone.Zone.Flags & ZoneFlags.ReclaimActive) != 0)
        {
            // kswapd has ended, which no event shows; then it has taken back what it saw of the boost.
            zone.Zone.ClearFlag(ZoneFlags.ReclaimActive);
            zone.Zone.Boost = 0;
        }

        return recorded;
    }

    private unsafe void AllocPages(RecordedEvent recorded)
    {
        ulong expected = recorded.Frame(0, _machine.Map.EndPfn);
        if (expected == 0 && _machine.Pages.Zones.First().Zone.StartPfn > 0)
            expected = RecordedEvent.NoFrame;       // the kernel's text of a failed request says pfn=0
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
            page = _current.HasDrained
                ? _machine.Pages.AllocReclaimed(gfp, order)
                : _machine.Pages.AllocFrozen(gfp, order, -1, BypassPcp(via, order));
        }

        PageAllocs++;
        ulong came = page == null ? RecordedEvent.NoFrame : _machine.Map.PfnOf(page);
        Compare(came == expected, () => page == null ? "no frame" : $"frame {came}");
        PageAllocsExact += came == expected ? 1 : 0;
        if (came != expected)
        {
            NoteZone(page, expected);
            page = Correct(page, expected, order, (gfp & Gfp.Comp) != 0);
        }

        if (_current.SlabAttempts > 0)
        {
            // If there is no block of the preferred order, a smaller one is tried, once.
            _current.SlabPages.Enqueue(((nint)page, order));
            _current.SlabAttempts = page == null ? _current.SlabAttempts - 1 : 0;
        }
        else
        {
            _current.LastBlock = ((nint)page, order);
        }
    }

    /// <summary>
    /// Another zone than the kernel's was good enough: that is decided by its boost, which kswapd lowers, and by counts
    /// that are not folded yet. Neither is in an event, so the one that could explain it is taken for done.
    /// </summary>
    private unsafe void NoteZone(Page* came, ulong expected)
    {
        ZonePages? wanted = expected == RecordedEvent.NoFrame ? null : _machine.Pages.PresentZoneOf(expected);
        ZonePages? ours = came == null ? null : _machine.Pages.ZoneOf(_machine.Map.PfnOf(came));
        if (wanted == ours)
            return;

        for (int cpu = 0; cpu < _machine.Cpus; cpu++)
        {
            wanted?.Fold(cpu);
            ours?.Fold(cpu);
        }

        if (wanted != null && (ours == null || ours.Zone.Type < wanted.Zone.Type))
            wanted.Zone.Boost = 0;
    }

    /// <summary>
    /// After a wrong answer: the recorded block is taken, and the other one given back, unless the rest of the
    /// recording speaks against that.
    /// </summary>
    private unsafe Page* Correct(Page* came, ulong expected, int order, bool compound)
    {
        ulong? recorded = expected == RecordedEvent.NoFrame ? null : expected;
        PlaceHere here = recorded is not { } place ? PlaceHere.Taken
            : _machine.Pages.PresentZoneOf(place)?.IsOnPcp(place, order) == true ? PlaceHere.Near
            : _machine.Pages.IsAnyFree(place, order) ? PlaceHere.Free
            : PlaceHere.Taken;
        BetterAnswer better = _later.Weigh(recorded, came == null ? null : _machine.Map.PfnOf(came), _position, here);
        if (better == BetterAnswer.Own)
            return came;
        if (better == BetterAnswer.Both)
            came = null;
        if (expected == RecordedEvent.NoFrame)
        {
            _machine.Pages.FreeFrozen(came, order);
            return null;
        }

        Page* page = _machine.Map.PageOf(expected);
        FreeForgottenSlab(Page.HeadOf(page));
        if (came != null)
            _machine.Pages.Exchange(_machine.Map.PfnOf(came), expected, order);
        else
            _machine.Pages.Claim(expected, order, compound);
        return page;
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
        ulong pfn = recorded.Frame(0, _machine.Map.EndPfn);
        Page* page = _machine.Map.PageOf(pfn == RecordedEvent.NoFrame ? throw new KeyNotFoundException("no such frame") : pfn);
        int order = recorded.Int(1);
        Page* slab = Page.HeadOf(page);
        if (!_pagesToFree.Remove((nint)page) && slab->Type == PageType.Slab)
        {
            // A discarded slab whose readers are done: it goes back now.
            _machine.Slabs.CacheOf(slab).Forget(slab);
            _pagesToFree.Remove((nint)slab);
        }

        if (_machine.Pages.IsAnyFree(pfn, order))
        {
            // It is free already: an earlier mistake. The kernel's answer is the one that counts.
            Compare(false, () => "a free of a block that is free");
            return;
        }

        Page* head = Page.HeadOf(page);
        if (head->IsHead && (head != page || PageAllocator.CompoundOrder(head) != order))
            _machine.Pages.DissolveForeign(head);   // a split huge page goes back in pieces

        page->Flags &= ~PageFlags.Lru;
        page->Type = PageType.None;
        page->RefCount = 0;
        ZonePages zone = _machine.Pages.ZoneOf(pfn);
        bool bypasses = BypassPcp(recorded.Args[2], order);
        bool reclaimed = (zone.Zone.Flags & ZoneFlags.ReclaimActive) != 0;
        int high = zone.HighOf(recorded.Cpu);
        _machine.Pages.FreeFrozen(page, order, bypasses);
        if (reclaimed && (zone.Zone.Flags & ZoneFlags.ReclaimActive) == 0)
            zone.SetHigh(recorded.Cpu, high);       // it was lowered as if kswapd was still at work
        _current.LastFreed = bypasses || !PerCpuPages.IsPcpOrder(order) ? null : zone;
    }

    private static bool BypassPcp(string via, int order) => via == "buddy" && PerCpuPages.IsPcpOrder(order);

    private unsafe void MarkLru(RecordedEvent recorded)
    {
        ulong pfn = recorded.Frame(0, _machine.Map.EndPfn);
        if (pfn != RecordedEvent.NoFrame)
            _machine.Map.PageOf(pfn)->Flags |= PageFlags.Lru;
    }

    private unsafe void AllocObject(RecordedEvent recorded)
    {
        KmemCache cache = CacheNamed(recorded.Args[0]);
        Gfp gfp = recorded.Gfp(3) & ~Gfp.Zero;
        nint sheaf = _current.Sheaf;
        _current.Sheaf = 0;
        void* obj = sheaf != 0 ? cache.AllocFromPrefilled(gfp, (Sheaf*)sheaf) : cache.Alloc(gfp);
        CheckObject(recorded.Hex(1), obj);
        if (cache == _vmap?.Cache && recorded.Hex(1) != 0)
            _current.VmapObjects.Add(recorded.Hex(1));
    }

    private unsafe void Kmalloc(RecordedEvent recorded)
    {
        nuint size = (nuint)recorded.Number(1);
        _current.LastKmallocSite = recorded.Args[4];
        if (recorded.IsSheafBlock)
        {
            // The operation that needs the sheaf asks for it itself; it is logged when it is done.
            SlabAllocs++;
            SlabAllocsExact += recorded.Hex(0) == 0 ? 1 : 0;    // it shows in what follows
            _current.ExpectedSheaf = recorded.Hex(0);
            if (_freeWithSheaf.Remove(recorded, out RecordedEvent? free))
                FreeObject(free.Hex(1));
            return;
        }

        if (size > KmallocClasses.MaxCacheSize)
        {
            // The pages were taken at their own event.
            ulong pfn = (recorded.Hex(0) - AddressMap.PageOffset) >> Pfn.PageShift; // beyond the end if it failed
            if (pfn < _machine.Map.EndPfn && _machine.Map.PageOf(pfn) is var page
                && page->Type == PageType.None && page->AllocatedOrderPlusOne != 0)
            {
                page->Type = PageType.LargeKmalloc;
            }

            return;
        }

        CheckObject(recorded.Hex(0), _machine.Kmalloc(size, recorded.Gfp(3) & ~Gfp.Zero));
    }

    private unsafe nint CheckSheafBlock(nint block)
    {
        ulong came = block == 0 ? 0 : _machine.Slabs.KernelAddress((void*)block);
        SlabAllocsExact += came == _current.ExpectedSheaf && came != 0 ? 1 : 0;
        Compare(came == _current.ExpectedSheaf, () => $"new sheaf {came:x16}");
        return block;
    }

    private unsafe void CheckObject(ulong expected, void* obj)
    {
        ulong came = obj == null ? 0 : _machine.Slabs.KernelAddress(obj);
        SlabAllocs++;
        SlabAllocsExact += came == expected ? 1 : 0;
        Compare(came == expected, () => $"object {came:x16}");
        if (came != expected)
            CorrectObject(expected, obj);
        _current.DropFailedAttempts();
        Compare(_current.SlabPages.Count == 0, () => "a slab page that this allocation did not need");
        _current.SlabPages.Clear();
        if (_current.Fiber == null || Fiber.Current != null)
            _current.SlabAttempts = 0;
    }

    /// <summary>
    /// After a wrong answer: the recorded object is taken, and the other one given back, unless the rest of the
    /// recording speaks against that.
    /// </summary>
    private unsafe void CorrectObject(ulong expected, void* came)
    {
        bool isFree = _machine.Slabs.SlabOf(Pointer(expected)) != null && !IsLive((nint)Pointer(expected));
        BetterAnswer better = _later.Weigh(
            expected == 0 ? null : expected,
            came == null ? null : _machine.Slabs.KernelAddress(came),
            _position,
            isFree ? PlaceHere.Near : PlaceHere.Taken);
        if (better == BetterAnswer.Own)
            return;
        if (better == BetterAnswer.Both)
            came = null;

        void* wanted = Pointer(expected);
        Page* slab = _machine.Slabs.SlabOf(came != null ? came : wanted);
        if (slab == null)
            return;

        KmemCache cache = _machine.Slabs.CacheOf(slab);
        if (came == null)
            cache.Claim(wanted);
        else if (expected == 0)
            cache.Free(came);
        else if (!cache.Exchange(came, wanted))
            cache.Free(came);       // the recorded one is in use: a line is missing, or one too many
    }

    private unsafe void FreeObject(ulong address)
    {
        void* obj = Pointer(address);
        Page* slab = _machine.Slabs.SlabOf(obj);
        if (slab == null)
            return;

        KmemCache cache = _machine.Slabs.CacheOf(slab);
        if (!cache.IsLive(obj))
        {
            Compare(false, () => "a free of an object that is free");
            return;
        }

        if (cache == _vmap?.Cache)
            PrepareVmapFree(address);
        Checked(cache).Free(obj);
    }

    /// <summary>
    /// The object of an area goes back. If the area is still in the tree, this is part of an allocation of addresses
    /// that is logged later: it took effect before, so it is done now.
    /// </summary>
    private void PrepareVmapFree(ulong obj)
    {
        if (_current.VmapObjects.Remove(obj) || _vmap!.Released.Remove(obj))
            return;

        int at = _chains.NextArea(_position);
        if (at >= 0 && !_events[at].IsDone)
        {
            _events[at].IsDone = true;
            _vmap.Execute(_events[at], at, _current, Differ);
        }

        if (!_vmap.Released.Remove(obj))
            Compare(false, () => "an area that is still in use here");
    }

    /// <summary>A large block goes back with its page event.</summary>
    private unsafe void Kfree(RecordedEvent recorded, ulong address)
    {
        void* obj = Pointer(address);
        Page* slab = _machine.Slabs.SlabOf(obj);
        if (slab == null)
            return;

        bool isSheaf = recorded.Args.Length > 1 && recorded.Args[1].Contains("sheaf", StringComparison.Ordinal);
        if (isSheaf && !_sheavesToFree.Remove((nint)obj))
            _sheavesGone.Add((nint)obj);
        else if (_machine.Slabs.CacheOf(slab).IsLive(obj))
            _machine.Kfree(obj);
        else
            Compare(false, () => "a free of an object that is free");
    }

    private unsafe void FreeBulk(RecordedEvent recorded)
    {
        nint[] objects = recorded.Args.Skip(2)
            .Select(text => ulong.Parse(text, NumberStyles.HexNumber, CultureInfo.InvariantCulture))
            .Take(recorded.Int(1))
            .Select(address => (nint)Pointer(address))
            .Where(IsLive)
            .ToArray();
        Compare(objects.Length == recorded.Int(1) || recorded.Args[0] == "-", () => "a free of an object that is free");
        if (recorded.Args[0] == "-")
            _machine.Slabs.FreeBulk(null, objects);
        else
            CacheNamed(recorded.Args[0]).FreeBulk(objects);
    }

    private unsafe void AllocBulk(RecordedEvent recorded)
    {
        var objects = new nint[recorded.Int(2)];
        int got = CacheNamed(recorded.Args[0]).AllocBulk(recorded.Gfp(1) & ~Gfp.Zero, objects);
        Compare((got > 0) == (recorded.Int(3) > 0), () => $"{got} objects");
        for (int i = 0; i < recorded.Int(3); i++)
            CheckObject(recorded.Hex(4 + i), (void*)objects[i]);
    }

    private unsafe void SheafEvent(RecordedEvent recorded)
    {
        switch (recorded.Name)
        {
            case "SP":
                Sheaf* filled = CacheNamed(recorded.Args[0]).PrefillSheaf(recorded.Gfp(1), recorded.Int(2));
                CheckSheaf(recorded.Hex(3), filled);
                break;
            case "SR":
                Sheaf* sheaf = SheafAt(recorded.Hex(2), CacheNamed(recorded.Args[0]));
                if (sheaf != null)
                    CacheNamed(recorded.Args[0]).RefillSheaf(recorded.Gfp(1), ref sheaf, recorded.Int(3));
                break;
            case "SK":
                FreeRcu(recorded);
                break;
        }
    }

    /// <summary>
    /// An object for a sheaf that waits for a grace period. The kernel may refuse it because it was interrupted there,
    /// which is in no event: a refusal is obeyed.
    /// </summary>
    private unsafe void FreeRcu(RecordedEvent recorded)
    {
        if (recorded.Args[2] != "1")
            return;

        void* obj = Pointer(recorded.Hex(1));
        if (!IsLive((nint)obj))
            Compare(false, () => "a free of an object that is free");
        else
            Compare(CacheNamed(recorded.Args[0]).FreeRcu(_machine.Slabs.SlabOf(obj), obj), () => "a refusal");
    }

    private unsafe void CheckSheaf(ulong expected, Sheaf* sheaf)
    {
        ulong came = sheaf == null ? 0 : _machine.Slabs.KernelAddress(sheaf);
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
                _current.Sheaf = (nint)SheafAt(recorded.Hex(3), CacheAt(recorded.Args[1]));
                break;
            case "kmem_cache_return_sheaf":
                KmemCache owner = CacheAt(recorded.Args[1]);
                Sheaf* returned = SheafAt(recorded.Hex(3), owner);
                if (returned != null)
                    owner.ReturnSheaf(recorded.Gfp(2), returned);
                break;
            case "rcu_free_sheaf":
                // The argument is the RCU head within the sheaf, at its start.
                Sheaf* sheaf = SheafAt(recorded.Hex(1), null);
                if (sheaf != null && sheaf->Size > 0)
                    _machine.Slabs.CacheOf(_machine.Slabs.SlabOf(Sheaf.ObjectsOf(sheaf)[0])).FinishRcuSheaf(sheaf);
                break;
            case "__purge_vmap_area_lazy" or "decay_va_pool_node" or "purge_vmap_node":
                _vmap?.Execute(recorded, _position, _current, Differ);
                break;
        }
    }

    private KmemCache CacheAt(string address) =>
        ulong.TryParse(address, NumberStyles.HexNumber, CultureInfo.InvariantCulture, out ulong at)
        && _cacheByAddress.TryGetValue(at, out KmemCache? cache)
            ? Checked(cache)
            : throw new KeyNotFoundException($"the state has no cache at {address}");

    private KmemCache CacheNamed(string name) =>
        _caches.TryGetValue(name, out KmemCache? cache)
            ? Checked(cache)
            : throw new KeyNotFoundException($"the state has no cache {name}");

    /// <summary>Only after a mistake there is something to check.</summary>
    private KmemCache Checked(KmemCache cache)
    {
        if (First != null)
            cache.CheckSheavesOf(_event!.Cpu);
        return cache;
    }

    /// <summary>
    /// An address of the direct map; any other one, such as vmalloc's, becomes one that no slab contains.
    /// </summary>
    private unsafe void* Pointer(ulong address) =>
        address >= AddressMap.PageOffset && address - AddressMap.PageOffset < _machine.Map.EndPfn << Pfn.PageShift
            ? _machine.Slabs.PointerOf(address)
            : null;

    /// <summary>The sheaf at an address; null, and a mistake, if there is none here.</summary>
    private unsafe Sheaf* SheafAt(ulong address, KmemCache? cache)
    {
        const int MostObjects = 1 << 12;
        var sheaf = (Sheaf*)Pointer(address);
        bool found = sheaf != null && sheaf->Capacity is > 0 and <= MostObjects && sheaf->Size >= 0
            && sheaf->Size <= sheaf->Capacity;
        for (int i = 0; found && i < sheaf->Size; i++)
        {
            Page* slab = _machine.Slabs.SlabOf(Sheaf.ObjectsOf(sheaf)[i]);
            KmemCache? owner = slab == null ? null : _machine.Slabs.CacheOf(slab);
            found = owner != null && owner.SheafCapacity > 0 && (cache == null || owner == cache);
        }

        Compare(found, () => $"no sheaf at {address:x}");
        return found ? sheaf : null;
    }

    private unsafe void FreeSheafBlock(nint block)
    {
        if (IsLive(block))
            _machine.Kfree((void*)block);
    }

    private unsafe bool IsLive(nint pointer)
    {
        Page* slab = _machine.Slabs.SlabOf((void*)pointer);
        return slab != null && _machine.Slabs.CacheOf(slab).IsLive((void*)pointer);
    }

    /// <summary>Called by a cache that needs a slab: the page was taken at its event, a moment ago.</summary>
    private unsafe nint TakeSlabPage(Gfp gfp, int order, int node)
    {
        ContextState context = _current;
        if (Fiber.Current is { } fiber && context.SlabPages.Count == 0)
        {
            // Taken at the event of the pages; what follows takes effect when the context acts again.
            fiber.Pause();
        }

        if (context.SlabPages.TryPeek(out (nint Page, int Order) taken))
        {
            // A smaller one is for the next attempt: the recording may leave out those that failed.
            if (taken.Order < order)
                return 0;

            context.SlabPages.Dequeue();
            return taken.Page;
        }

        Compare(false, () => "a slab page that the kernel did not need");
        (nint Page, int Order) last = context.LastBlock;
        context.LastBlock = default;
        return last.Page != 0 && last.Order == order && ((Page*)last.Page)->IsHead == (order > 0)
            ? last.Page     // the line is missing that says what it was for
            : (nint)_machine.Pages.AllocFrozen(gfp, order, node);
    }

    private void Compare(bool equal, Func<string> came)
    {
        if (!equal)
            Differ(_event!, came());
    }

    private void Differ(RecordedEvent recorded, string came) =>
        First ??= $"line {recorded.Line}: {recorded}: came {came}";

    /// <summary>What a task or interrupt is in the middle of.</summary>
    internal sealed class ContextState
    {
        /// <summary>Objects for areas that were taken from the slab and are not used yet, oldest first.</summary>
        public List<ulong> VmapObjects { get; } = [];

        /// <summary>Where it last called kmalloc since it got addresses; null if it did not.</summary>
        public string? LastKmallocSite { get; set; }

        /// <summary>The purge that it is at work on.</summary>
        public VmapPurge? Purge { get; set; }

        /// <summary>Pages taken for slabs, and of which order; null for an attempt that failed.</summary>
        public Queue<(nint Page, int Order)> SlabPages { get; } = new();

        /// <summary>An operation that failed for want of pages may not be in the recording at all.</summary>
        public void DropFailedAttempts()
        {
            while (SlabPages.TryPeek(out (nint Page, int Order) taken) && taken.Page == 0)
                SlabPages.Dequeue();
        }

        /// <summary>The block that it got just before, and that nothing is known about.</summary>
        public (nint Page, int Order) LastBlock { get; set; }

        /// <summary>The zone whose per-CPU list it has just put a block on.</summary>
        public ZonePages? LastFreed { get; set; }

        /// <summary>How many of its next page requests may be for a slab.</summary>
        public int SlabAttempts { get; set; }

        /// <summary>The operation in the middle of which the context is, if others act meanwhile.</summary>
        public Fiber? Fiber { get; set; }

        public RecordedEvent? Operation { get; set; }

        /// <summary>The request that it is at has emptied the per-CPU lists of all CPUs.</summary>
        public bool HasDrained { get; set; }

        public nint Sheaf { get; set; }

        public ulong ExpectedSheaf { get; set; }

        public ZonePages? BulkZone { get; set; }

        public int BulkCount { get; set; }

        public int BulkLeft { get; set; }
    }
}
