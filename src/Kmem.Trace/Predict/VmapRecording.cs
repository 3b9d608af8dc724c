namespace Kmem.Tracing;

/// <summary>One vmalloc event of a recording.</summary>
/// <param name="Kind">Which.</param>
/// <param name="Line">Line number in the trace.</param>
/// <param name="TimestampNs">When, in nanoseconds.</param>
/// <param name="Cpu">On which CPU.</param>
/// <param name="Start">Address allocated or freed.</param>
internal readonly record struct VmapEvent(TraceEventKind Kind, long Line, ulong TimestampNs, int Cpu, ulong Start)
{
    /// <summary>What an allocation asked for.</summary>
    public VmapRequest Request { get; init; }

    /// <summary>Areas that a purge took.</summary>
    public uint Purged { get; init; }

    /// <summary>The snapshot was complete when this happened: from here on addresses are predicted.</summary>
    public bool AfterSnapshot { get; init; }
}

/// <summary>
/// The vmalloc events of a trace from the beginning of its snapshot on, and what the events before tell about areas in
/// the snapshot.
/// </summary>
internal sealed class VmapRecording
{
    private const string BeginMarker = "SNAP_BEGIN";
    private const string EndMarker = "SNAP_END";

    /// <summary>A purge takes effect at most so long before its event.</summary>
    private const ulong PurgeWindowNs = 1_500_000;

    public List<VmapEvent> Events { get; } = [];

    /// <summary>The CPU that allocated an area before the snapshot.</summary>
    public Dictionary<ulong, int> CpuOfEarlier { get; } = [];

    public int Cpus { get; private set; } = 1;

    /// <summary>VMALLOC_START and VMALLOC_END of the recorded machine.</summary>
    public (ulong Start, ulong End) Range { get; private set; } = (VmapOptions.DefaultStart, VmapOptions.DefaultEnd);

    /// <summary>Reads a trace.</summary>
    /// <exception cref="TraceFormatException">It is no trace, or lacks the markers of the snapshot.</exception>
    public static VmapRecording Read(FtraceReader trace)
    {
        var recording = new VmapRecording();
        bool begun = false;
        bool ended = false;
        TraceEvent e = default;
        while (trace.TryRead(ref e))
        {
            recording.Cpus = Math.Max(recording.Cpus, e.Cpu + 1);
            if (e.Kind == TraceEventKind.Marker)
            {
                begun |= e.Text?.StartsWith(BeginMarker, StringComparison.Ordinal) == true;
                ended |= begun && e.Text?.StartsWith(EndMarker, StringComparison.Ordinal) == true;
            }
            else if (e.Kind is TraceEventKind.AllocVmapArea && e.VmapFailed)
            {
                continue;       // the purge that follows has its own event
            }
            else if (begun)
            {
                recording.Add(e, ended);
            }
            else if (e.Kind == TraceEventKind.AllocVmapArea)
            {
                recording.CpuOfEarlier[e.VmapStart] = e.Cpu;
            }
        }

        if (!ended)
            throw new TraceFormatException($"the trace has no markers {BeginMarker} and {EndMarker} around a snapshot");

        recording.Cpus = Math.Max(recording.Cpus, trace.HeaderCpus);
        if (recording.Cpus > CpuSet.MaxCpus)
            throw new TraceFormatException($"the trace speaks of {recording.Cpus} CPUs, of at most {CpuSet.MaxCpus}");
        return recording;
    }

    /// <summary>
    /// For each event, the purge (its index in <see cref="Events"/>) whose steps may take effect before it; -1 none. A
    /// purge sets aside the oldest lazy areas and tells how many: not before the last of them was freed, not after the
    /// next one.
    /// </summary>
    public (int[] EarliestOf, int[] LatestOf) FindPurgeWindows(int lazyAtStart)
    {
        var earliest = new int[Events.Count];
        var latest = new int[Events.Count];
        var frees = new Queue<int>(Enumerable.Repeat(-1, lazyAtStart));     // indices of frees that no purge has taken
        for (int i = 0; i < Events.Count; i++)
        {
            earliest[i] = latest[i] = i;
            if (Events[i].Kind == TraceEventKind.FreeVmapAreaNoflush)
                frees.Enqueue(i);
            if (Events[i].Kind != TraceEventKind.PurgeVmapAreaLazy)
                continue;

            int last = -1;
            for (uint taken = 0; taken < Events[i].Purged && frees.Count > 0; taken++)
                last = frees.Dequeue();
            latest[i] = frees.Count > 0 ? frees.Peek() : i;
            int from = i;
            while (from > last + 1 && Events[i].TimestampNs - Events[from - 1].TimestampNs <= PurgeWindowNs)
                from--;
            earliest[i] = Math.Min(from, latest[i]);
        }

        return (earliest, latest);
    }

    private void Add(in TraceEvent e, bool afterSnapshot)
    {
        if (e.Kind is not (TraceEventKind.AllocVmapArea or TraceEventKind.FreeVmapAreaNoflush
            or TraceEventKind.PurgeVmapAreaLazy))
            return;

        var request = new VmapRequest(e.VmapSize, e.VmapAlign, e.VmapRangeStart, e.VmapRangeEnd);
        Events.Add(new VmapEvent(e.Kind, e.Line, e.TimestampNs, e.Cpu, e.VmapStart)
        {
            Request = request,
            Purged = e.VmapPurged,
            AfterSnapshot = afterSnapshot,
        });
        if (e.Kind == TraceEventKind.AllocVmapArea && IsWholeRange(request.RangeStart, request.RangeEnd))
            Range = (request.RangeStart, request.RangeEnd);
    }

    /// <summary>The vmalloc range is 32 TiB long, or 12800 TiB with five levels, wherever it begins.</summary>
    public static bool IsWholeRange(ulong start, ulong last) => last - start + 1 is 32UL << 40 or 12800UL << 40;
}
