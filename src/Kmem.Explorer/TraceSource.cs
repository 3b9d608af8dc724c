using Kmem.Tracing;

namespace Kmem;

/// <summary>A recording: every moment can be gone to.</summary>
internal sealed class TraceSource : ExplorerSource
{
    private const int MostIdle = 3;

    private readonly Timeline _timeline;
    private const int MostExpected = 2_000_000;
    private int _expected;
    private readonly Lock _lock = new();
    private readonly List<CursorFrames> _idle = [];     // for questions; each is asked by one thread at a time

    public TraceSource(Timeline timeline)
    {
        _timeline = timeline;
        Shape = timeline.Machines.Ask(timeline.Events, machine => new MachineShape(machine));
    }

    public override string Kind => "trace";

    /// <summary>The recording goes on after the last event that is shown.</summary>
    public bool IsCut => _timeline.IsCut;

    public override Timeline Timeline => _timeline;

    public override int Now => _timeline.Events;

    public override MachineShape Shape { get; }

    public override StringTable CallSites => _timeline.CallSites;

    /// <summary>Reads a recording; see <see cref="Timeline.Read"/>.</summary>
    public static TraceSource Read(
        FtraceReader reader, ReplayOptions replay, int maxEvents, string name, Action<long>? progress = null) =>
        new(Timeline.Read(reader, new TimelineOptions { Replay = replay, MaxEvents = maxEvents }, progress))
        {
            Name =
            name
        };

    public override FrameSource OpenFrames() => new CursorFrames(_timeline.Open());

    public override T AskFrames<T>(int moment, Func<FrameSource, T> question)
    {
        CursorFrames frames = Rent(moment);
        try
        {
            frames.MoveTo(moment);
            return question(frames);
        }
        finally
        {
            lock (_lock)
            {
                if (_idle.Count < MostIdle)
                    _idle.Add(frames);
            }
        }
    }

    public override T Ask<T>(int moment, Func<Machine, T> question) => _timeline.Machines.Ask(moment, question);

    public override Explanation Explain(int moment, Func<Machine, EventMemory?, Explanation> question) =>
        _timeline.Explain(moment, question);

    public override void Expect()
    {
        // It costs about 200 bytes an event.
        if (_timeline.Events <= MostExpected && Interlocked.Exchange(ref _expected, 1) == 0)
            _ = Task.Run(_timeline.RememberAll);
    }

    public override ReadOnlyMemory<Tick> TicksBetween(int one, int other) =>
        _timeline.TickMemoryOf(Math.Min(one, other), Math.Max(one, other));

    public override void Dispose() => _timeline.Dispose();

    private CursorFrames Rent(int moment)
    {
        lock (_lock)
        {
            CursorFrames? nearest = _idle.MinBy(it => Math.Abs((long)it.Moment - moment));
            if (nearest != null)
            {
                _idle.Remove(nearest);
                return nearest;
            }
        }

        return new CursorFrames(_timeline.Open());
    }

    private sealed class CursorFrames(TimelineCursor cursor) : FrameSource
    {
        public override FrameMap Map => cursor.Map;

        public override TimelineCursor Cursor => cursor;

        public override int Moment => cursor.Moment;

        public override void MoveTo(int moment) => cursor.MoveTo(moment);

        public override ReadOnlyMemory<byte> Update(FrameView view) => view.Update(cursor.Map, (uint)cursor.Moment);
    }
}
