namespace Kmem.Tracing;

/// <summary>
/// The vmalloc events of a recording, on the address space of the machine that replays it. The objects that describe
/// areas are requests of the recording themselves: whoever allocates addresses has taken its objects just before, and
/// what is given up here goes back at its own event.
/// <code>
///   KA vmap_area ─▶ objects of the context ─▶ VA      purge, exact fit ─▶ Released ─▶ KC vmap_area
/// </code>
/// </summary>
internal sealed class VmapSteps : IVmapTrace
{
    private readonly Machine _machine;
    private readonly VmapAllocator _vmap;
    private readonly List<ulong> _kernelNodes;          // addresses of the kernel's vmap nodes, ascending
    private readonly List<RecordedEvent> _events;
    private readonly LaterMentions _later;
    private StatePrediction.ContextState? _context;
    private StatePrediction.ContextState? _purging;     // whoever began the last purge; there is one at a time
    private bool _correcting;                           // what is given up now is needed again at once
    private int _at;
    private (ulong Start, ulong Pages, ulong Max) _freed;
    private (ulong Start, ulong End, uint Count) _purged;

    public VmapSteps(Machine machine, VmapAllocator vmap, List<RecordedEvent> events, LaterMentions later)
    {
        _events = events;
        _later = later;
        _kernelNodes = [.. events
            .Where(e => e.Name == "CALL" && e.Args.Length > 1 && e.Args[0] == "decay_va_pool_node")
            .Select(e => e.HexOrNone(1)).OfType<ulong>().Distinct().Order()];
        _machine = machine;
        _vmap = vmap;
        vmap.DrainScheduler = static () => { };         // the recording says when
        vmap.Trace = this;
        vmap.Objects.Source = TakeObject;
        vmap.Objects.Sink = obj =>
        {
            if (_correcting)
                _context!.VmapObjects.Add(obj);
            else
                Released.Add(obj);
        };
    }

    /// <summary>The cache that the objects come from.</summary>
    public KmemCache Cache => _vmap.Objects.Cache;

    /// <summary>Objects that no area uses any more and that are not back in the slab yet.</summary>
    public HashSet<ulong> Released { get; } = [];

    public long Allocs { get; private set; }

    public long AllocsExact { get; private set; }

    /// <summary>Begins with the kernel's own count of lazy pages.</summary>
    public void Start(VmapState state) => _vmap.CorrectLazyPages(state.LazyPages);

    /// <summary>Executes VA, VF, VP or a step of a purge.</summary>
    /// <param name="e">The event.</param>
    /// <param name="at">Its index.</param>
    /// <param name="context">Who does it.</param>
    /// <param name="differ">Told what came out otherwise.</param>
    public void Execute(
        RecordedEvent e, int at, StatePrediction.ContextState context, Action<RecordedEvent, string> differ)
    {
        _context = context;
        _at = at;
        switch (e.Name)
        {
            case "VA":
                Alloc(e, differ);
                break;
            case "VF":
                Free(e, differ);
                break;
            case "VP":
                EndPurge(e, differ);
                break;
            default:
                Step(e, context);
                break;
        }

        _context = null;
    }

    void IVmapTrace.AllocVmapArea(ulong address, in VmapRequest request, bool failed)
    {
    }

    void IVmapTrace.PurgeVmapAreaLazy(ulong start, ulong end, uint purged) => _purged = (start, end, purged);

    void IVmapTrace.FreeVmapAreaNoflush(ulong start, ulong lazyPages, ulong lazyMax) =>
        _freed = (start, lazyPages, lazyMax);

    private unsafe void Alloc(RecordedEvent e, Action<RecordedEvent, string> differ)
    {
        var request = new VmapRequest(e.Number(1), e.Number(2), e.Hex(3), e.Hex(4)) { Flags = FlagsOf(_context!) };
        bool failed = e.Args[5] != "0";
        Allocs++;
        if (failed)
        {
            // It goes on with a purge, which is in the recording, and then tries again: that is another event.
            VmapError expected = _vmap.Peek(request, e.Cpu, out ulong found);
            AllocsExact += expected != VmapError.None ? 1 : 0;
            if (expected == VmapError.None)
            {
                differ(e, $"{found:x}");
                if (_later.Of(found, _at) == LaterMention.Used)
                {
                    _vmap.Alloc(request, null, out _);      // it cannot have failed: it is freed later on
                    _context!.LastKmallocSite = null;
                    return;
                }
            }

            if (_context!.VmapObjects.Count > 1 && _vmap.GiveSpare(e.Cpu, _context.VmapObjects[1]))
                _context.VmapObjects.RemoveAt(1);
            return;
        }

        _context!.LastKmallocSite = null;
        VmapArea* area = _vmap.Alloc(request, null, out VmapError error);
        bool exact = area != null && area->Start == e.Hex(0);
        AllocsExact += exact ? 1 : 0;
        if (exact)
            return;

        differ(e, area == null ? error.ToString() : $"{area->Start:x}");
        PlaceHere here = _vmap.Find(e.Hex(0)) == null ? PlaceHere.Free : PlaceHere.Taken;
        BetterAnswer better = _later.Weigh(e.Hex(0), area == null ? null : area->Start, _at, here);
        if (better == BetterAnswer.Own || (area != null && IsUndecided(e.Hex(0), area->Start) && FitsNext()))
            return;

        _correcting = true;
        if (area != null && (better == BetterAnswer.Recorded || _context.VmapObjects.Count == 0))
            _vmap.FreeNow(area);
        _vmap.TakeAt(e.Hex(0), request, e.Cpu);
        _correcting = false;
    }

    private bool IsUndecided(ulong recorded, ulong own) =>
        _later.Of(recorded, _at) == LaterMention.None && _later.Of(own, _at) == LaterMention.None;

    /// <summary>
    /// Neither of two answers is in the recording again: then the next request tells, if our own one leads to its
    /// address, and no purge has changed the free space until then.
    /// </summary>
    private bool FitsNext()
    {
        for (int i = _at + 1; i < _events.Count; i++)
        {
            RecordedEvent next = _events[i];
            if (next.Name == "CALL" && next.Args[0] is "__purge_vmap_area_lazy" or "decay_va_pool_node")
                return false;
            if (next.Name == "VA" && !next.IsDone && next.Args[5] == "0")
            {
                var request = new VmapRequest(next.Number(1), next.Number(2), next.Hex(3), next.Hex(4));
                return _vmap.Peek(request, next.Cpu, out ulong found) == VmapError.None && found == next.Hex(0);
            }
        }

        return false;
    }

    /// <summary>
    /// What the area is for: the event does not say, but what its task did before. An area of vmalloc has a vm_struct,
    /// a block of vm_map_ram has its own descriptor, and a large vm_map_ram has neither.
    /// </summary>
    private static VmapAreaFlags FlagsOf(StatePrediction.ContextState context) => context.LastKmallocSite switch
    {
        null => VmapAreaFlags.Ram,
        { } site when site.StartsWith("vm_map_ram", StringComparison.Ordinal)
            || site.StartsWith("new_vmap_block", StringComparison.Ordinal) => VmapAreaFlags.Ram | VmapAreaFlags.Block,
        _ => VmapAreaFlags.None,
    };

    private unsafe void Free(RecordedEvent e, Action<RecordedEvent, string> differ)
    {
        VmapArea* area = _vmap.Unlink(e.Hex(0));
        if (area == null)
        {
            differ(e, "no busy area");
            return;
        }

        _vmap.FreeNoflush(area);
        (ulong, ulong, ulong) expected = (e.Hex(0), e.Number(1), e.Number(2));
        if (_freed == expected)
            return;

        differ(e, _freed.ToString());
        _vmap.CorrectLazyPages(expected.Item2);
    }

    private void EndPurge(RecordedEvent e, Action<RecordedEvent, string> differ)
    {
        if (_context!.Purge is not { } purge)
            return;

        _vmap.EndPurge(purge);
        _context.Purge = null;
        (ulong, ulong, uint) expected = (e.Hex(0), e.Hex(1), (uint)e.Number(2));
        if (_purged != expected)
            differ(e, _purged.ToString());
    }

    private void Step(RecordedEvent e, StatePrediction.ContextState context)
    {
        ulong argument = e.Hex(1);
        switch (e.Args[0])
        {
            case "__purge_vmap_area_lazy":
                VmapPurge begun = VmapPurge.Begin(full: e.Hex(3) != 0);
                begun.Start = argument;
                begun.End = e.Hex(2);
                context.Purge = begun;
                _purging = context;
                break;
            case "decay_va_pool_node":
                VmapNode node = _vmap.Nodes[_kernelNodes.IndexOf(argument)];
                if (context.Purge is { } purge)
                {
                    _vmap.Detach(node, ref purge);
                    context.Purge = purge;
                }
                else
                {
                    _vmap.DecayPools(node, all: e.Hex(2) != 0);     // the shrinker's part: no purge
                }

                break;
            case "purge_vmap_node":
                Reclaim(argument, context);
                break;
        }
    }

    /// <summary>
    /// The argument points to the work item inside a node. Another task may do this for the one that purges.
    /// </summary>
    private void Reclaim(ulong work, StatePrediction.ContextState context)
    {
        int index = _kernelNodes.FindLastIndex(node => node <= work);
        StatePrediction.ContextState owner = context.Purge != null ? context : _purging ?? context;
        if (index < 0 || owner.Purge is not { } purge)
            return;

        _vmap.Reclaim(_vmap.Nodes[index], ref purge);
        owner.Purge = purge;
    }

    /// <summary>0 if the recording has no request for it: an earlier mistake, which shows at the end.</summary>
    private ulong TakeObject()
    {
        if (_context!.VmapObjects.Count == 0)
            return 0;

        ulong obj = _context.VmapObjects[0];
        _context.VmapObjects.RemoveAt(0);
        return obj;
    }
}
