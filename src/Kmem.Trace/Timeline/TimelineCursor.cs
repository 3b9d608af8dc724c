namespace Kmem.Tracing;

/// <summary>One moment of a <see cref="Timeline"/>: its frames, and what is counted. Moves by the changes in
/// between.</summary>
internal sealed class TimelineCursor
{
    private readonly Timeline _timeline;
    private readonly long[] _counters = new long[Enum.GetValues<TickKind>().Length];
    private int[] _active = new int[256];

    internal TimelineCursor(Timeline timeline, FrameMap map)
    {
        _timeline = timeline;
        Map = map;
        for (ulong pfn = 0; pfn < map.Frames; pfn++)
        {
            ref readonly FrameCell cell = ref map.At(pfn);
            if (cell.Kind == FrameKind.Slab)
                Count(cell.Owner, cell.InUse);
            else if (cell.Kind is FrameKind.Free && cell.HeadOf(pfn) == pfn)
                pfn += (1UL << cell.Order) - 1;
        }
    }

    /// <summary>How many events have happened.</summary>
    public int Moment { get; private set; }

    /// <summary>The frames, to be read.</summary>
    public FrameMap Map { get; }

    public long Counter(TickKind kind) => _counters[(int)kind];

    /// <summary>Objects of a cache that are given out; 0: large blocks.</summary>
    public int Active(int cache) => cache < _active.Length ? _active[cache] : 0;

    /// <summary>Goes to a moment, 0 … number of events. Costs the changes in between, some ten nanoseconds
    /// each.</summary>
    public void MoveTo(int moment)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(moment);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(moment, _timeline.Events);
        while (Moment < moment)
            Forward();
        while (Moment > moment)
            Back();
    }

    private void Forward()
    {
        int n = Moment++;
        foreach (ref readonly ObjectChange change in _timeline.ObjectsOf(n, n + 1))
            Apply(change, change.Sign);
        foreach (ref readonly FrameChange change in _timeline.FramesOf(n, n + 1))
            Apply(change, change.From, change.To);
        foreach (ref readonly Tick tick in _timeline.TicksOf(n, n + 1))
            _counters[(int)tick.Kind] += tick.Count;
        CountEvent(n, 1);
    }

    private void Back()
    {
        int n = --Moment;
        CountEvent(n, -1);
        foreach (ref readonly Tick tick in _timeline.TicksOf(n, n + 1))
            _counters[(int)tick.Kind] -= tick.Count;
        ReadOnlySpan<FrameChange> frames = _timeline.FramesOf(n, n + 1);
        for (int i = frames.Length - 1; i >= 0; i--)
            Apply(frames[i], frames[i].To, frames[i].From);
        ReadOnlySpan<ObjectChange> objects = _timeline.ObjectsOf(n, n + 1);
        for (int i = objects.Length - 1; i >= 0; i--)
            Apply(objects[i], -objects[i].Sign);
    }

    private void CountEvent(int n, int sign)
    {
        ref readonly StoredEvent e = ref _timeline.EventAt(n);
        if (e.Result != EventResult.Ok)
            return;

        if (e.Kind == TraceEventKind.PageAlloc)
            _counters[(int)TickKind.PageAlloc] += sign;
        else if (e.Kind == TraceEventKind.PageFree)
            _counters[(int)TickKind.PageFree] += sign;
    }

    private void Apply(in ObjectChange change, int sign)
    {
        Count(change.Cache, sign);
        _counters[(int)(change.Sign > 0 ? TickKind.ObjectAlloc : TickKind.ObjectFree)] += change.Sign * sign;
        Map.AddObject(change.Offset >> Pfn.PageShift, sign);
    }

    private void Count(int cache, int objects)
    {
        if (cache >= _active.Length)
            Array.Resize(ref _active, Math.Max(cache + 1, _active.Length * 2));
        _active[cache] += objects;
    }

    private void Apply(in FrameChange change, in FrameCell from, in FrameCell to)
    {
        if (change.Count == 0)
            Map.SetType(change.Pfn, (Migratetype)to.Order);
        else
            Map.Change(change.Pfn, change.Count, from, to);
    }
}
