namespace Kmem.Tracing;

/// <summary>What a recording does not show and a replay has to assume.</summary>
/// <param name="Shape">Which shape the free tree had at the snapshot; see <see cref="VmapSnapshot"/>.</param>
/// <param name="NodeIds">vmap node of areas older than the trace, where it is not the default 0.</param>
internal sealed record VmapHypothesis(int Shape, IReadOnlyDictionary<ulong, int> NodeIds);

/// <summary>An assumed node id that a recorded address contradicts.</summary>
/// <param name="Start">The area.</param>
/// <param name="NodeId">The id to assume instead.</param>
internal readonly record struct VmapContradiction(ulong Start, int NodeId);

/// <summary>
/// Replays a recording on an allocator and compares each address that it would choose with the kernel's. After each event
/// the allocator is brought to the real address, so one wrong answer does not lead to others.
/// </summary>
internal sealed class VmapReplay
{
    private readonly Machine _machine;
    private readonly VmapAllocator _vmap;
    private readonly VmapRecording _recording;
    private readonly VmapSnapshot _snapshot;
    private readonly HashSet<ulong> _assumed = [];      // areas of an assumed node id
    private readonly int[] _earliest;
    private readonly int[] _latest;
    private VmapPurge _purge;
    private int _purgeSteps;                            // of the purge under way: first all nodes' Detach, then all Reclaim
    private VmapPredictionResult _result = new();

    public VmapReplay(Machine machine, VmapAllocator vmap, VmapRecording recording, VmapSnapshot snapshot)
    {
        _machine = machine;
        _vmap = vmap;
        _recording = recording;
        _snapshot = snapshot;
        (_earliest, _latest) = recording.FindPurgeWindows(snapshot.LazyCount);
    }

    /// <summary>The first address that speaks against an assumed node id.</summary>
    public VmapContradiction? Contradiction { get; private set; }

    /// <summary>Replays all events.</summary>
    public VmapPredictionResult Run(VmapHypothesis hypothesis)
    {
        _vmap.Restore(_snapshot.Build(hypothesis, _vmap.Nodes.Count, _assumed));
        _result = new VmapPredictionResult();
        Contradiction = null;
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
                    Alloc(e, mayBePurging: nextPurge >= 0 && _earliest[nextPurge] <= i);
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
        }

        return _result;
    }

    private int NextPurge(int from) =>
        _recording.Events.FindIndex(from, e => e.Kind == TraceEventKind.PurgeVmapAreaLazy);

    private unsafe void Alloc(in VmapEvent e, bool mayBePurging)
    {
        if (!e.AfterSnapshot && _vmap.Find(e.Start) != null)
            return;         // the snapshot has it already

        bool exact = IsPredicted(e, out ulong? predicted);
        if (!exact && mayBePurging)
            exact = TryEarlierPurge(e);
        if (e.AfterSnapshot)
            Count(e, exact, predicted);
        if (!exact)
        {
            Suspect(e, predicted);
            Correct(e);
            return;
        }

        _assumed.Remove(e.Start);
        using CpuBinding binding = _machine.RunOn(e.Cpu);
        VmapArea* area = _vmap.Alloc(e.Request, null, out VmapError error);
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
        VmapState before = _vmap.Capture();
        List<VmapAreaState>[] setAside = _vmap.Nodes.Select(VmapAllocator.CapturePurging).ToArray();
        (VmapPurge purge, int steps) = (_purge, _purgeSteps);
        while (_purgeSteps < 2 * _vmap.Nodes.Count)
        {
            AdvancePurge(_purgeSteps + 1);
            if (IsPredicted(e, out _))
            {
                _result.PurgesPlacedEarly++;
                return true;
            }
        }

        _vmap.Restore(before);
        for (int i = 0; i < setAside.Length; i++)
            _vmap.RestorePurging(_vmap.Nodes[i], setAside[i]);
        (_purge, _purgeSteps) = (purge, steps);
        return false;
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
    /// Looks for an assumed node id behind a wrong answer: the area was taken from a pool and should not have been there, or
    /// is in another node's pool than it should be.
    /// </summary>
    private void Suspect(in VmapEvent e, ulong? predicted)
    {
        int id = e.Cpu % _vmap.Nodes.Count;
        if (Contradiction != null || _vmap.Nodes.Count == 1)
            return;
        if (_assumed.Contains(e.Start))
            Contradiction = new VmapContradiction(e.Start, id);
        else if (predicted is { } wrong && _assumed.Contains(wrong))
            Contradiction = new VmapContradiction(wrong, (id + 1) % _vmap.Nodes.Count);
    }

    private unsafe void Correct(in VmapEvent e)
    {
        // A pool whose front area does not suit has rotated all the same.
        if (e.Request.RangeStart == _vmap.Start && e.Request.RangeEnd == _vmap.End)
        {
            VmapNode node = _vmap.Nodes[e.Cpu % _vmap.Nodes.Count];
            if (node.PeekPool(e.Request) == null)
                node.TakeFromPool(e.Request);
        }

        _assumed.Remove(e.Start);
        _vmap.TakeAt(e.Start, e.Request, e.Cpu);
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
