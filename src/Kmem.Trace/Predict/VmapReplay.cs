namespace Kmem.Tracing;

/// <summary>What a recording does not show and a replay has to assume.</summary>
/// <param name="Order">
/// The shape of the free tree at the snapshot: in which order to insert its blocks, numbered by address, to get it.
/// </param>
/// <param name="NodeIds">vmap node of areas older than the trace, where it is not the default 0.</param>
internal sealed record VmapHypothesis(IReadOnlyList<int> Order, IReadOnlyDictionary<ulong, int> NodeIds);

/// <summary>An assumed node id that a recorded address contradicts.</summary>
/// <param name="Start">The area.</param>
/// <param name="NodeId">The id to assume instead.</param>
internal readonly record struct VmapContradiction(ulong Start, int NodeId);

/// <summary>A wrong answer.</summary>
/// <param name="Index">Of the event.</param>
/// <param name="Predicted">The answer; null: none.</param>
internal readonly record struct VmapMiss(int Index, ulong? Predicted);

/// <summary>
/// Replays a recording on an allocator and compares each address that it would choose with the kernel's. After each
/// event the allocator is brought to the real address, so one wrong answer does not lead to others.
/// </summary>
internal sealed class VmapReplay
{
    /// <summary>A thread that yields between taking an address and its event is back after this time.</summary>
    private const ulong YieldWindowNs = 2_000_000;

    private readonly Machine _machine;
    private readonly VmapAllocator _vmap;
    private readonly VmapRecording _recording;
    private readonly VmapSnapshot _snapshot;
    private readonly HashSet<ulong> _assumed = [];      // areas of an assumed node id
    private readonly int[] _earliest;
    private readonly int[] _latest;
    private readonly HashSet<int> _done = [];           // events that were found to belong before others
    private VmapPurge _purge;
    private int _purgeSteps;                            // taken: first Detach of each node, then Reclaim of each
    private VmapPredictionResult _result = new();

    public VmapReplay(Machine machine, VmapAllocator vmap, VmapRecording recording, VmapSnapshot snapshot)
    {
        _machine = machine;
        _vmap = vmap;
        _recording = recording;
        _snapshot = snapshot;
        (_earliest, _latest) = recording.FindPurgeWindows(snapshot.LazyCount);
    }

    /// <summary>What the last wrong answer says against an assumed node id, if anything.</summary>
    public VmapContradiction? Contradiction { get; private set; }

    /// <summary>The events whose answers were foretold wrongly, ascending.</summary>
    public List<VmapMiss> Misses { get; } = [];

    /// <summary>Events replayed since this was made.</summary>
    public long EventsReplayed { get; private set; }

    /// <summary>Replays events from the snapshot on.</summary>
    /// <param name="hypothesis">What to assume.</param>
    /// <param name="last">Ends after the event of this index,</param>
    /// <param name="known">or after the first wrong answer behind this index,</param>
    /// <param name="mostMisses">or when there are more wrong answers than this.</param>
    public VmapPredictionResult Run(
        VmapHypothesis hypothesis, int last = int.MaxValue, int known = int.MaxValue, int mostMisses = int.MaxValue)
    {
        Misses.Clear();
        _vmap.Restore(_snapshot.Build(hypothesis, _vmap.Nodes.Count, _assumed));
        _result = new VmapPredictionResult();
        Contradiction = null;
        _done.Clear();
        StartPurge();
        int nextPurge = NextPurge(0);
        for (int i = 0; i < _recording.Events.Count; i++)
        {
            VmapEvent e = _recording.Events[i];
            if (nextPurge >= 0 && _latest[nextPurge] == i)
                AdvancePurge(_vmap.Nodes.Count);
            switch (e.Kind)
            {
                case TraceEventKind.AllocVmapArea:
                    if (!_done.Remove(i))
                        Alloc(e, i, mayBePurging: nextPurge >= 0 && _earliest[nextPurge] <= i);
                    break;
                case TraceEventKind.FreeVmapAreaNoflush:
                    Free(e);
                    break;
                default:
                    AdvancePurge(2 * _vmap.Nodes.Count);
                    StartPurge();
                    nextPurge = NextPurge(i + 1);
                    break;
            }

            EventsReplayed++;
            if (i >= last || Misses.Count > mostMisses || (Misses.Count > 0 && Misses[^1].Index > known))
                break;
        }

        return _result;
    }

    private int NextPurge(int from) =>
        _recording.Events.FindIndex(from, e => e.Kind == TraceEventKind.PurgeVmapAreaLazy);

    private void Alloc(in VmapEvent e, int index, bool mayBePurging)
    {
        if (!e.AfterSnapshot && HasSnapshot(e.Start))
            return;

        bool exact = IsPredicted(e, out ulong? predicted)
            || (mayBePurging && TryEarlierPurge(e))
            || (predicted is { } wrong && TryLaterAlloc(e, index, wrong));
        if (e.AfterSnapshot)
            Count(e, exact, predicted);
        if (exact)
        {
            AllocExact(e);
        }
        else
        {
            Misses.Add(new VmapMiss(index, predicted));
            Suspect(e, predicted);
            Correct(e);
        }
    }

    private unsafe bool HasSnapshot(ulong start) => _vmap.Find(start) != null;

    private unsafe void AllocExact(in VmapEvent e)
    {
        _assumed.Remove(e.Start);
        using CpuBinding binding = _machine.RunOn(e.Cpu);
        VmapArea* area = _vmap.Alloc(e.Request, null, out _);
        Bug.On(area == null || area->Start != e.Start, "an allocation differs from what was foretold");
    }

    private bool IsPredicted(in VmapEvent e, out ulong? predicted)
    {
        VmapError error = _vmap.Peek(e.Request, e.Cpu, out ulong start);
        predicted = error == VmapError.None ? start : null;
        return predicted == e.Start;
    }

    /// <summary>
    /// The event of a purge comes at its end. Steps that took effect before this allocation are found by trying them.
    /// </summary>
    private bool TryEarlierPurge(in VmapEvent e)
    {
        Action goBack = Checkpoint();
        while (_purgeSteps < 2 * _vmap.Nodes.Count)
        {
            AdvancePurge(_purgeSteps + 1);
            if (IsPredicted(e, out _))
            {
                _result.PurgesPlacedEarly++;
                return true;
            }
        }

        goBack();
        return false;
    }

    /// <summary>
    /// An allocation may yield between taking its address and its event. If one of the next events names what was
    /// foretold for this one, it may have been the earlier of the two.
    /// </summary>
    private bool TryLaterAlloc(in VmapEvent e, int index, ulong predicted)
    {
        for (int i = index + 1; i < _recording.Events.Count; i++)
        {
            VmapEvent later = _recording.Events[i];
            if (later.TimestampNs - e.TimestampNs > YieldWindowNs)
                return false;

            bool inTheWay = later.Kind == TraceEventKind.AllocVmapArea
                && later.Start < predicted + e.Request.Size
                && later.Start + later.Request.Size > predicted;
            if (!inTheWay)
                continue;
            if (_done.Contains(i) || !later.AfterSnapshot || !IsPredicted(later, out _))
                return false;

            Action goBack = Checkpoint();
            AllocExact(later);
            if (IsPredicted(e, out _))
            {
                Count(later, exact: true, later.Start);
                _done.Add(i);
                _result.Reordered++;
                return true;
            }

            goBack();
            return false;
        }

        return false;
    }

    private Action Checkpoint()
    {
        VmapState state = _vmap.Capture();
        List<VmapAreaState>[] setAside = _vmap.Nodes.Select(_vmap.CapturePurging).ToArray();
        ulong[] assumed = _assumed.ToArray();
        (VmapPurge purge, int steps) = (_purge, _purgeSteps);
        return () =>
        {
            _vmap.Restore(state);
            for (int i = 0; i < setAside.Length; i++)
                _vmap.RestorePurging(_vmap.Nodes[i], setAside[i]);
            _assumed.UnionWith(assumed);
            (_purge, _purgeSteps) = (purge, steps);
        };
    }

    private void Count(in VmapEvent e, bool exact, ulong? predicted)
    {
        bool pageAligned = e.Request.Align <= Pfn.PageSize;
        _result.Allocs++;
        _result.Exact += exact ? 1 : 0;
        _result.PageAligned += pageAligned ? 1 : 0;
        _result.PageAlignedExact += pageAligned && exact ? 1 : 0;
        if (!exact)
            _result.AddMismatch(new VmapMismatch(e.Line, e.Cpu, e.Request.Size, e.Request.Align, e.Start, predicted));
    }

    /// <summary>
    /// Looks for an assumed node id behind a wrong answer: the area was taken from a pool and should not have been
    /// there, or is in another node's pool than it should be.
    /// </summary>
    private void Suspect(in VmapEvent e, ulong? predicted)
    {
        int id = e.Cpu % _vmap.Nodes.Count;
        Contradiction = null;
        if (_vmap.Nodes.Count == 1)
            return;
        if (_assumed.Contains(e.Start))
            Contradiction = new VmapContradiction(e.Start, id);
        else if (predicted is { } wrong && _assumed.Contains(wrong))
            Contradiction = new VmapContradiction(wrong, (id + 1) % _vmap.Nodes.Count);
    }

    private unsafe void Correct(in VmapEvent e)
    {
        _assumed.Remove(e.Start);
        _vmap.Follow(e.Start, e.Request, e.Cpu);
    }

    private unsafe void Free(in VmapEvent e)
    {
        VmapArea* area = _vmap.Find(e.Start);
        if (area == null || area->Start != e.Start)
        {
            if (e.AfterSnapshot)
                _result.UnknownFrees++;
            return;
        }

        _vmap.FreeNoflush(_vmap.Unlink(e.Start));
    }

    private void StartPurge()
    {
        _purge = VmapPurge.Begin(full: false);
        _purgeSteps = 0;
    }

    private void AdvancePurge(int steps)
    {
        int nodes = _vmap.Nodes.Count;
        for (; _purgeSteps < steps; _purgeSteps++)
        {
            VmapNode node = _vmap.Nodes[_purgeSteps % nodes];
            if (_purgeSteps < nodes)
                _vmap.Detach(node, ref _purge);
            else
                _vmap.Reclaim(node, ref _purge);
        }
    }
}
