namespace Kmem.Tracing;

/// <summary>
/// The allocators themselves at a moment of a <see cref="Timeline"/>, for the questions that frames alone do not
/// answer: the order of free lists, what is in sheaves, the bytes of an object. A machine is replayed forwards to the
/// moment; for one that lies behind, a second machine starts again from the beginning.
/// </summary>
/// <remarks>Replaying is deterministic, so all machines agree. One question at a time.</remarks>
internal sealed class MomentMachine : IDisposable
{
    private readonly Timeline _timeline;
    private readonly int _most;
    private readonly long _remembered;
    private readonly Lock _lock = new();
    private bool _disposed;
    private readonly List<Place> _places = [];      // the one used last comes last

    /// <param name="timeline">The recording.</param>
    /// <param name="most">Machines at a time.</param>
    /// <param name="remembered">Events that each remembers, so that it can tell life stories; 0: none.</param>
    internal MomentMachine(Timeline timeline, int most, long remembered)
    {
        _timeline = timeline;
        _most = most;
        _remembered = remembered;
    }

    /// <summary>Begins with a machine that has been replayed to the end.</summary>
    internal MomentMachine(Timeline timeline, Machine machine, ReplayEngine engine)
        : this(timeline, most: 2, remembered: 0)
    {
        _places.Add(new Place(machine, engine) { Moment = timeline.Events });
    }

    /// <summary>Asks the machine at a moment.</summary>
    /// <param name="moment">0 … number of events.</param>
    /// <param name="question">Runs alone, on a CPU of the machine; must not change anything.</param>
    public T Ask<T>(int moment, Func<Machine, T> question)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(moment);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(moment, _timeline.Events);
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            Place place = At(moment);
            int before = place.Machine.CpuSet.Pin(0);
            try
            {
                for (; place.Moment < moment; place.Moment++)
                    place.Engine.StepOne(_timeline.TraceEventAt(place.Moment));
                place.Machine.CpuSet.Pin(0);
                return question(place.Machine);
            }
            finally
            {
                place.Machine.CpuSet.Pin(before);
            }
        }
    }

    /// <summary>Asks the memory of a machine that is at a moment or has been there; false if none has.</summary>
    public bool TryAskBehind(int moment, Action<EventMemory> question)
    {
        lock (_lock)
        {
            if (_places.Find(place => place.Moment > moment) is not { Engine.Memory: { } memory })
                return false;

            question(memory);
            return true;
        }
    }

    public void Dispose()
    {
        lock (_lock)
        {
            _disposed = true;
            foreach (Place place in _places)
                place.Machine.Dispose();
            _places.Clear();
        }
    }

    /// <summary>The machine that has the shortest way; if there is none behind the moment, a new one.</summary>
    private Place At(int moment)
    {
        Place? best = null;
        foreach (Place place in _places)
        {
            if (place.Moment <= moment && (best == null || place.Moment > best.Moment))
                best = place;
        }

        if (best == null)
        {
            if (_places.Count == _most)
            {
                _places[0].Machine.Dispose();
                _places.RemoveAt(0);
            }

            (Machine machine, ReplayEngine engine) = _timeline.Boot(_remembered);
            best = new Place(machine, engine);
        }

        _places.Remove(best);
        _places.Add(best);
        return best;
    }

    private sealed class Place(Machine machine, ReplayEngine engine)
    {
        public Machine Machine { get; } = machine;

        public ReplayEngine Engine { get; } = engine;

        public int Moment { get; set; }
    }
}
