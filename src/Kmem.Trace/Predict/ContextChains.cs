namespace Kmem.Tracing;

/// <summary>
/// For each event of a recording, what the same task or interrupt does next. Made in one pass from the end, so that no
/// question about the future costs more than a look.
/// </summary>
internal sealed class ContextChains
{
    private readonly int[] _next;
    private readonly int[] _nextOperation;
    private readonly int[] _nextArea;
    private readonly int[] _undisturbedUntil;

    public ContextChains(List<RecordedEvent> events)
    {
        int count = events.Count;
        (_next, _nextOperation, _nextArea, _undisturbedUntil) = (new int[count], new int[count], new int[count], new int[count]);
        var coming = new Dictionary<(int, string), (int Event, int Operation, int Area)>();
        for (int i = count - 1; i >= 0; i--)
        {
            RecordedEvent it = events[i];
            if (!coming.TryGetValue(it.ContextKey, out (int Event, int Operation, int Area) next))
                next = (-1, -1, -1);
            (_next[i], _nextOperation[i], _nextArea[i]) = next;
            _undisturbedUntil[i] = next.Event == i + 1 ? _undisturbedUntil[i + 1] : i;
            bool operates = it.Name is "KA" or "KAB" or "SP" or "SR" || (it.Name == "KM" && !it.IsSheafBlock);
            coming[it.ContextKey] = (i, operates ? i : next.Operation, it.Name == "VA" ? i : next.Area);
        }
    }

    /// <summary>The next event of the same context; -1 if there is none.</summary>
    public int Next(int at) => _next[at];

    /// <summary>The next event of the same context after a run of one kind; -1 if there is none.</summary>
    public int Skip(int at, string name, List<RecordedEvent> events)
    {
        while (at >= 0 && events[at].Name == name)
            at = _next[at];
        return at;
    }

    /// <summary>Whether others act before the same context does again.</summary>
    public bool IsDisturbed(int at) => _next[at] >= 0 && !IsUndisturbed(at, _next[at]);

    /// <summary>The next operation of the same context that may need slabs; -1 if there is none.</summary>
    public int NextOperation(int at) => _nextOperation[at];

    /// <summary>The next allocation of addresses by the same context; -1 if there is none.</summary>
    public int NextArea(int at) => _nextArea[at];

    /// <summary>Whether nobody else acts between two events of one context.</summary>
    public bool IsUndisturbed(int from, int to) => to >= 0 && to <= _undisturbedUntil[from];
}
