namespace Kmem.Tracing;

/// <summary>What a time line is made of.</summary>
internal sealed record TimelineOptions
{
    public ReplayOptions Replay { get; init; } = new();

    /// <summary>Events after these are not read; about 200 bytes of memory each.</summary>
    public int MaxEvents { get; init; } = 8_000_000;
}

/// <summary>
/// A recording, replayed once, with everything that changed at each event: any moment can be shown without replaying.
/// <code>
///   moment    0 ──── 1 ──── 2 ──── … ──── n        moment t: t events have happened
///   event       [0]    [1]    [2]                  each: changes of frames, objects, ticks; readable both ways
/// </code>
/// A <see cref="TimelineCursor"/> walks the changes; a <see cref="MomentMachine"/> has the allocators themselves at a
/// moment.
/// </summary>
/// <remarks>Immutable once it is read; any number of threads may look at it.</remarks>
internal sealed class Timeline : IDisposable
{
    private const long RememberedEvents = 1 << 22;

    private readonly GrowingList<StoredEvent> _events = new();
    private readonly GrowingList<Starts> _starts = new();
    private readonly FtraceReader _reader;
    private readonly TimelineOptions _options;
    private readonly Lock _copying = new();
    private readonly Dictionary<int, string> _cacheNames = [];
    private readonly List<VmapRange> _ranges = [];      // where areas of the vmalloc space may lie
    private EventRecorder _recorder = null!;

    private Timeline(FtraceReader reader, TimelineOptions options, int cpus)
    {
        _reader = reader;
        _options = options;
        MachineOptions = new MachineOptions
        {
            Profile = options.Replay.Profile,
            Cpus = options.Replay.Cpus ?? cpus,
            RamBytes = options.Replay.RamBytes,
            Seed = options.Replay.Seed,
            DecaySeconds = 0,       // nothing happens but what the recording says
        };
    }

    /// <summary>What the machine at every moment is booted with.</summary>
    public MachineOptions MachineOptions { get; }

    /// <summary>Number of events; also the last moment.</summary>
    public int Events => _events.Count;

    /// <summary>The recording goes on after the last event here.</summary>
    public bool IsCut { get; private set; }

    public StringTable CallSites => _reader.CallSites;

    public StringTable Names => _reader.Names;

    public StringTable EventNames => _reader.EventNames;

    /// <summary>The frames before the first event.</summary>
    public FrameMap Start { get; private set; } = null!;

    /// <summary>The machine after the last event.</summary>
    public MomentMachine Machines { get; private set; } = null!;

    // Machines that remember what happened: one that only goes on, and one for what it does not know any more.
    private MomentMachine _remembering = null!;
    private MomentMachine _again = null!;

    public ReadOnlySpan<Tick> Ticks => _recorder.Ticks.All;

    public ReadOnlySpan<ObjectChange> Objects => _recorder.Objects.All;

    public ReadOnlySpan<FrameChange> Frames => _recorder.Frames.All;

    /// <summary>The name of a cache by the number that frames and objects have; null if there is none.</summary>
    public string? CacheName(int number) => _cacheNames.GetValueOrDefault(number);

    /// <summary>Reads a recording and replays it.</summary>
    /// <param name="reader">A reader that nobody has read events from; must not be read from afterwards.</param>
    /// <param name="options">What to replay on, and how much.</param>
    /// <param name="progress">Called now and then with the number of events so far; or null.</param>
    /// <exception cref="TraceFormatException">The input is no trace.</exception>
    /// <exception cref="IOException">The input cannot be read any further.</exception>
    /// <exception cref="PlatformException">The host refused the machine's memory.</exception>
    public static Timeline Read(FtraceReader reader, TimelineOptions options, Action<long>? progress = null)
    {
        var start = TraceStart.Read(reader);
        var timeline = new Timeline(reader, options, start.Cpus);
        timeline.ReadEvents(start.Events, progress);
        timeline.Record(progress);
        return timeline;
    }

    public ref readonly StoredEvent EventAt(int number) => ref _events[number];

    /// <summary>An event as a replay takes it.</summary>
    internal TraceEvent TraceEventAt(int number) => _events[number].ToTraceEvent(_ranges);

    public ReadOnlySpan<Tick> TicksOf(int from, int to) =>
        _recorder.Ticks.Range(_starts[from].Tick, _starts[to].Tick);

    /// <summary>As <see cref="TicksOf"/>, for who keeps it a while.</summary>
    public ReadOnlyMemory<Tick> TickMemoryOf(int from, int to) =>
        _recorder.Ticks.Memory(_starts[from].Tick, _starts[to].Tick);

    public ReadOnlySpan<ObjectChange> ObjectsOf(int from, int to) =>
        _recorder.Objects.Range(_starts[from].Object, _starts[to].Object);

    public ReadOnlySpan<FrameChange> FramesOf(int from, int to) =>
        _recorder.Frames.Range(_starts[from].Frame, _starts[to].Frame);

    /// <summary>Number of object changes before a moment.</summary>
    public int ObjectsBefore(int t) => _starts[t].Object;

    /// <summary>The event that an object change belongs to.</summary>
    public int EventOfObject(int index)
    {
        int low = 0;
        int high = Events;
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (_starts[middle + 1].Object <= index)
                low = middle + 1;
            else
                high = middle;
        }

        return low;
    }

    /// <summary>A view of the frames at a moment, to be moved about. Each is used by one thread at a time.</summary>
    public TimelineCursor Open()
    {
        lock (_copying)
            return new TimelineCursor(this, Start.Copy());
    }

    /// <summary>
    /// Explains by a machine at a moment and by what is remembered. The first time the recording is replayed to there;
    /// what lies before is then answered from the same memory, and by a machine that remembers nothing and is faster.
    /// Why a block lies where it does is forgotten when its frames are used again: then it is replayed once more.
    /// </summary>
    /// <param name="moment">0 … number of events.</param>
    /// <param name="question">Explains; must not change anything.</param>
    public Explanation Explain(int moment, Func<Machine, EventMemory?, Explanation> question)
    {
        Explanation? found = null;
        bool isBehind = _remembering.TryAskBehind(moment, memory =>
        {
            memory.Until = moment;
            try
            {
                found = Machines.Ask(moment, machine => question(machine, memory));
            }
            finally
            {
                memory.Until = null;
            }
        });
        if (!isBehind)
            return _remembering.Ask(moment, machine => question(machine, null));

        bool forgotten = found!.Decision == null && found.Life.Any(it => it.Kind == LifeEventKind.PagesAllocated);
        return forgotten ? _again.Ask(moment, machine => question(machine, null)) : found;
    }

    /// <summary>Prepares for <see cref="Explain"/> at any moment.</summary>
    public void RememberAll()
    {
        try
        {
            _remembering.Ask(Events, _ => true);
        }
        catch (Exception e) when (e is PlatformException or OutOfMemoryException or ObjectDisposedException)
        {
            // It was only to save time: whoever asks hears of it.
        }
    }

    /// <summary>A machine before the first event, and what replays the recording on it.</summary>
    /// <param name="remembered">Events that the machine remembers; 0: none, and it is faster.</param>
    internal (Machine Machine, ReplayEngine Engine) Boot(long remembered = 0)
    {
        Machine machine = Machine.Boot(MachineOptions);
        EventMemory? memory = null;
        if (remembered > 0)
        {
            memory = machine.Remember(remembered);
            memory.NameOfCallSite = site => CallSites[site];
        }

        return (machine, new ReplayEngine(machine, _reader, progress: null) { Memory = memory });
    }

    public void Dispose()
    {
        Machines.Dispose();
        _remembering.Dispose();
        _again.Dispose();
        _reader.Dispose();
    }

    private void ReadEvents(IReadOnlyList<TraceEvent> first, Action<long>? progress)
    {
        const int Mask = 0xffff;
        foreach (TraceEvent e in first)
            _events.Add(StoredEvent.Of(e, _ranges));
        TraceEvent next = default;
        while (_reader.TryRead(ref next))
        {
            if (_events.Count >= _options.MaxEvents)
            {
                IsCut = true;
                break;
            }

            _events.Add(StoredEvent.Of(next, _ranges));
            if ((_events.Count & Mask) == 0)
                progress?.Invoke(_events.Count);
        }
    }

    private void Record(Action<long>? progress)
    {
        const int Mask = 0xffff;
        (Machine machine, ReplayEngine engine) = Boot();
        int before = machine.CpuSet.Pin(0);
        try
        {
            Start = new FrameScan(machine).Read();
            _recorder = new EventRecorder(machine, Start.Copy());
            for (int n = 0; n < _events.Count; n++)
            {
                _starts.Add(Here());
                ref StoredEvent stored = ref _events[n];
                TraceEvent e = stored.ToTraceEvent(_ranges);
                _recorder.Begin(n, e.CallSite, engine.CpuOf(e));
                stored.Result = engine.StepOne(e);
                _recorder.End();
                if ((n & Mask) == Mask)
                    progress?.Invoke(n);
            }

            _starts.Add(Here());
            _recorder.Detach();
        }
        catch
        {
            machine.Dispose();
            throw;
        }
        finally
        {
            machine.CpuSet.Pin(before);
        }

        foreach (KmemCache cache in machine.Slabs.Caches)
            _cacheNames[cache.Id + 1] = cache.Name;
        Machines = new MomentMachine(this, machine, engine);
        _remembering = new MomentMachine(this, most: 1, RememberedEvents);
        _again = new MomentMachine(this, most: 1, RememberedEvents);
    }

    private Starts Here() => new(_recorder.Frames.Count, _recorder.Objects.Count, _recorder.Ticks.Count);

    /// <summary>Where an event's changes begin.</summary>
    private readonly record struct Starts(int Frame, int Object, int Tick);
}
