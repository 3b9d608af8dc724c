using System.Diagnostics;
using Kmem.Tracing;

namespace Kmem;

/// <summary>A machine as it is: at work, or in a recorded state. All connections look at one picture of its
/// frames.</summary>
internal sealed class MachineSource : ExplorerSource
{
    private static readonly TimeSpan s_fresh = TimeSpan.FromMilliseconds(50);

    private readonly Machine _machine;
    private readonly IDisposable? _owned;
    private readonly bool _isAtWork;
    private readonly FrameScan _scan;
    private readonly FrameMap _map;
    private readonly LiveTicker _ticker = new();
    private readonly Lock _lock = new();
    private long _looked;
    private int _moment;

    /// <param name="machine">The machine.</param>
    /// <param name="isAtWork">False for a recorded state, in which nothing changes.</param>
    /// <param name="owned">Disposed with the source; null if the machine is somebody else's.</param>
    public MachineSource(Machine machine, bool isAtWork, IDisposable? owned = null)
    {
        _machine = machine;
        _isAtWork = isAtWork;
        _owned = owned;
        Shape = new MachineShape(machine);
        _scan = new FrameScan(machine);
        _map = _scan.Read();
        _looked = Stopwatch.GetTimestamp();
        if (isAtWork)
            _ticker.Look(machine, 0);
    }

    public override string Kind => _isAtWork ? "live" : "state";

    public override int Now => Volatile.Read(ref _moment);

    public override MachineShape Shape { get; }

    public override FrameSource OpenFrames() => new LiveFrames(this);

    public override T AskFrames<T>(int moment, Func<FrameSource, T> question)
    {
        lock (_lock)
        {
            Look();
            return question(new LiveFrames(this));
        }
    }

    public override T Ask<T>(int moment, Func<Machine, T> question)
    {
        T? answer = default;
        if (!_machine.TryObserve(machine => answer = question(machine)))
            throw Gone();
        return answer!;
    }

    public override ReadOnlyMemory<Tick> TicksBetween(int one, int other)
    {
        lock (_lock)
            return _ticker.Between(Math.Min(one, other), Math.Max(one, other));
    }

    public override IReadOnlyDictionary<string, long> CountersNow() => _isAtWork
        ? Ask(Now, LiveTicker.CountersOf) : base.CountersNow();

    public override void Dispose() => _owned?.Dispose();

    /// <summary>Reads the frames again, unless that was done a moment ago.</summary>
    private void Look()
    {
        if (!_isAtWork || Stopwatch.GetElapsedTime(_looked) < s_fresh)
            return;

        if (!_machine.TryObserve(machine =>
        {
            _scan.Update(_map);
            _ticker.Look(machine, _moment + 1);
        }))
        {
            throw Gone();
        }

        _looked = Stopwatch.GetTimestamp();
        _moment++;
    }

    private sealed class LiveFrames(MachineSource source) : FrameSource
    {
        public override FrameMap Map => source._map;

        public override int Moment => source.Now;

        public override void MoveTo(int moment)
        {
            lock (source._lock)
                source.Look();
        }

        public override ReadOnlyMemory<byte> Update(FrameView view)
        {
            lock (source._lock)
                return view.Update(source._map, (uint)source._moment);
        }
    }
}
