namespace Kmem.Tracing;

/// <content>
/// Events of the vmalloc space. They happen beside the machine: the objects that describe areas are events of their
/// own, and so are the pages, of which an area is told here:
/// <code>
///   alloc_vmap_area of a task ─▶ mm_page_alloc with the flags of vmalloc's pages, by the same task ─▶ behind that area
/// </code>
/// </content>
internal sealed partial class ReplayEngine
{
    /// <summary>What vmalloc adds to its caller's flags, as only it does.</summary>
    private const Gfp VmallocPageFlags = Gfp.HighMem | Gfp.NoWarn;

    private readonly Dictionary<int, RecordedArea> _filling = [];       // by task
    private long _vmapAllocs;
    private long _vmapForetold;
    private long _vmapFrees;
    private long _vmapPurges;

    private void VmapEvent(in TraceEvent e, int cpu)
    {
        switch (e.Kind)
        {
            case TraceEventKind.AllocVmapArea:
                VmapAlloc(e, cpu);
                break;
            case TraceEventKind.FreeVmapAreaNoflush:
                if (SpaceOf(e).Free(e.VmapStart, e.VmapLazyPages, cpu))
                    _vmapFrees++;
                else
                    _unknownFrees++;
                break;
            default:
                SpaceOf(e).Purge();
                _vmapPurges++;
                break;
        }
    }

    private void VmapAlloc(in TraceEvent e, int cpu)
    {
        _filling.Remove(e.Pid);
        if (e.VmapFailed)
        {
            _tracedFailures++;      // it purges, which is another event, and tries again
            return;
        }

        var request = new VmapRequest(e.VmapSize, e.VmapAlign, e.VmapRangeStart, e.VmapRangeEnd);
        bool inReach = request.IsValid && (e.VmapStart & (Pfn.PageSize - 1)) == 0
            && e.VmapStart + e.VmapSize > e.VmapStart;
        if (!inReach || SpaceOf(e).Alloc(e.VmapStart, request, cpu, _events, out bool foretold) is not { } area)
        {
            _skipped++;
            return;
        }

        _vmapAllocs++;
        _vmapForetold += foretold ? 1 : 0;
        _filling[e.Pid] = area;
    }

    /// <summary>Pages that were given out: behind the area that their task is filling, if they are vmalloc's.</summary>
    private void TellArea(in TraceEvent e, Pfn ours)
    {
        if (_filling.Count == 0 || ((Gfp)e.GfpFlags & (VmallocPageFlags | Gfp.Movable)) != VmallocPageFlags)
            return;
        if (_filling.TryGetValue(e.Pid, out RecordedArea? area) && !area.Map(ours.Value, 1UL << e.Order))
            _filling.Remove(e.Pid);
    }

    /// <summary>
    /// The recorded kernel's space; the first request for an address anywhere in it tells where it is.
    /// </summary>
    private RecordedSpace SpaceOf(in TraceEvent e)
    {
        if (_machine.Recorded is { } space)
            return space;

        bool whole = e.Kind == TraceEventKind.AllocVmapArea
            && VmapRecording.IsWholeRange(e.VmapRangeStart, e.VmapRangeEnd);
        return whole ? _machine.Follow(e.VmapRangeStart, e.VmapRangeEnd)
            : _machine.Follow(_machine.Slabs.Addresses.VmallocStart, _machine.Slabs.Addresses.VmallocEnd);
    }
}
