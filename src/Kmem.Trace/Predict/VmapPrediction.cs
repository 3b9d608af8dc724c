namespace Kmem.Tracing;

/// <summary>
/// Predicts each address that a real kernel chose for its vmalloc areas, from one /proc/vmallocinfo text and the trace
/// that follows it.
/// </summary>
/// <remarks>
/// <para>
/// Four things are not visible in the two files. They are guessed, and corrected as soon as an answer of the kernel
/// contradicts the guess: the replay goes back to the snapshot with a guess that agrees with all answers up to there,
/// and on from there.
/// </para>
/// <list type="bullet">
/// <item>the shape of the free tree at the snapshot; it matters only for alignments above a page;</item>
/// <item>the vmap node of each area older than the trace; the first time that it is used again shows it;</item>
/// <item>when the steps of a purge took effect, at most 1.5 ms before its event;</item>
/// <item>which of two allocations came first when a thread yielded between taking an address and its event.</item>
/// </list>
/// <para>
/// So there are two counts. <see cref="VmapPredictionResult.ExactInAdvance"/> counts an answer only if the guess of
/// that moment, made from earlier answers, foretold it; <see cref="VmapPredictionResult.Exact"/> counts with the last
/// guess from the snapshot on. The last two things on the list are inferred from the answer itself in both.
/// </para>
/// <para>The pools must be empty at the snapshot (writing 2 to /proc/sys/vm/drop_caches empties them).</para>
/// </remarks>
public static class VmapPrediction
{
    /// <summary>Effort: so many events are replayed at most in search of a better shape, about 1 µs each.</summary>
    private const long EventsToReplay = 6_000_000;

    /// <summary>So many shapes are tried for one contradiction before it is left as it is.</summary>
    private const int ShapesForEach = 150;

    /// <summary>Replays a recording.</summary>
    /// <param name="areas">
    /// /proc/vmallocinfo with real addresses, read between the trace's markers SNAP_BEGIN and SNAP_END.
    /// </param>
    /// <param name="trace">The trace, with the events of <c>vmalloc:*</c>.</param>
    /// <returns>How many addresses came out as in the kernel, under the best assumptions found.</returns>
    /// <exception cref="ProcFormatException">The text of the areas breaks a rule of its format.</exception>
    /// <exception cref="InvalidDataException">The text has no areas, or its addresses are hidden.</exception>
    /// <exception cref="TraceFormatException">The trace is none, or has no markers.</exception>
    public static VmapPredictionResult Run(TextReader areas, FtraceReader trace)
    {
        ArgumentNullException.ThrowIfNull(areas);
        ArgumentNullException.ThrowIfNull(trace);
        VmallocInfoText text = VmallocInfoText.Parse(areas);
        VmapRecording recording = VmapRecording.Read(trace);
        var snapshot = new VmapSnapshot(text, recording);

        using Machine machine = Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            Cpus = recording.Cpus,
            RamBytes = 1UL << 30,
        });
        using var vmap = new VmapAllocator(
            machine.Slabs,
            new VmapOptions { Start = recording.Range.Start, End = recording.Range.End })
        {
            DrainScheduler = static () => { },
        };
        return new Search(new VmapReplay(machine, vmap, recording, snapshot), recording, snapshot).Run();
    }

    /// <summary>Goes through the recording, correcting its guess at each contradiction.</summary>
    private sealed class Search(VmapReplay replay, VmapRecording recording, VmapSnapshot snapshot)
    {
        private readonly Random _random = new(1);
        private readonly List<VmapMismatch> _surprises = [];
        private readonly HashSet<VmapContradiction> _seen = [];

        // At boot blocks are inserted in order of address.
        private int[] _order = Enumerable.Range(0, snapshot.FreeBlockCount).ToArray();
        private Dictionary<ulong, int> _ids = [];
        private int _tried = 1;

        public VmapPredictionResult Run()
        {
            int[] first = _order;
            VmapPredictionResult result = replay.Run(new VmapHypothesis(_order, _ids), known: -1);
            for (int known = -1; replay.Misses.Count > 0 && replay.Misses[^1].Index > known;)
            {
                VmapMiss miss = replay.Misses[^1];
                VmapEvent e = recording.Events[miss.Index];
                if (e.AfterSnapshot)
                {
                    _surprises.Add(new VmapMismatch(
                        e.Line, e.Cpu, e.Request.Size, e.Request.Align, e.Start, miss.Predicted));
                }

                known = miss.Index;
                if (!CorrectNodeId(known, replay.Misses.Count) && e.Request.Align > Pfn.PageSize)
                    CorrectShape(miss, e, replay.Misses.Count);
                result = replay.Run(new VmapHypothesis(_order, _ids), known: known);
            }

            int aligned = _surprises.Count(it => it.Align <= Pfn.PageSize);
            result.ExactInAdvance = result.Allocs - _surprises.Count;
            result.PageAlignedExactInAdvance = result.PageAligned - aligned;
            result.NodeIdsInferred = _ids.Count;
            result.ShapesTried = _tried;
            result.ExactWithFirstShape =
                _tried == 1 ? result.Exact : replay.Run(new VmapHypothesis(first, _ids)).Exact;
            return result;
        }

        /// <summary>
        /// Assumes another node id if the last wrong answer asks for it and nothing before speaks against it.
        /// </summary>
        private bool CorrectNodeId(int last, int misses)
        {
            if (replay.Contradiction is not { } wrong || !_seen.Add(wrong))
                return false;

            var ids = new Dictionary<ulong, int>(_ids) { [wrong.Start] = wrong.NodeId };
            replay.Run(new VmapHypothesis(_order, ids), last, mostMisses: misses - 1);
            bool better = replay.Misses.Count < misses;
            if (better)
                _ids = ids;
            return better;
        }

        /// <summary>Looks for a shape with which the answer is right, and all before it that were.</summary>
        private void CorrectShape(VmapMiss miss, VmapEvent e, int misses)
        {
            int near = snapshot.BlockAt(e.Start);
            int alsoNear = miss.Predicted is { } predicted ? snapshot.BlockAt(predicted) : near;
            int best = misses;
            for (int i = 0; i < ShapesForEach && best == misses; i++)
            {
                if (replay.EventsReplayed >= EventsToReplay)
                    return;

                _tried++;
                int[] guess = (int[])_order.Clone();
                ShuffleNeighbours(guess, (i & 1) == 0 ? near : alsoNear, _random);
                replay.Run(new VmapHypothesis(guess, _ids), miss.Index, mostMisses: best);
                if (replay.Misses.Count <= best)
                    (best, _order) = (replay.Misses.Count, guess);
            }
        }
    }

    /// <summary>
    /// Changes the shape of a part of the tree: blocks that are near each other in memory change places in the order.
    /// </summary>
    private static void ShuffleNeighbours(int[] order, int near, Random random)
    {
        int count = Math.Min(order.Length, random.Next(2, 60));
        int first = Math.Clamp(near - random.Next(count), 0, order.Length - count);
        int[] places = Enumerable.Range(0, order.Length)
            .Where(at => order[at] >= first && order[at] < first + count).ToArray();
        int[] blocks = places.Select(at => order[at]).ToArray();
        random.Shuffle(blocks);
        for (int i = 0; i < places.Length; i++)
            order[places[i]] = blocks[i];
    }
}

/// <summary>How well the addresses of a recording were predicted.</summary>
public sealed class VmapPredictionResult
{
    private const int MostMismatches = 20;
    private readonly List<VmapMismatch> _mismatches = [];

    /// <summary>Successful allocations after the snapshot.</summary>
    public int Allocs { get; internal set; }

    /// <summary>How many of them got the address that is predicted with all that the answers told.</summary>
    public int Exact { get; internal set; }

    /// <summary>How many were predicted from earlier answers alone.</summary>
    public int ExactInAdvance { get; internal set; }

    /// <summary>How many of the page-aligned ones were predicted from earlier answers alone.</summary>
    public int PageAlignedExactInAdvance { get; internal set; }

    /// <summary>Allocations that asked for no more than page alignment.</summary>
    public int PageAligned { get; internal set; }

    /// <summary>How many of those got the address that was predicted.</summary>
    public int PageAlignedExact { get; internal set; }

    /// <summary>Frees of areas that were not known to exist.</summary>
    public int UnknownFrees { get; internal set; }

    /// <summary>vmap nodes of old areas that were inferred from later addresses.</summary>
    public int NodeIdsInferred { get; internal set; }

    /// <summary>Shapes of the free tree that were tried.</summary>
    public int ShapesTried { get; internal set; }

    /// <summary>Purges found to have taken effect before their event.</summary>
    public int PurgesPlacedEarly { get; internal set; }

    /// <summary>Allocations found to have taken effect before one whose event is earlier.</summary>
    public int Reordered { get; internal set; }

    /// <summary>What <see cref="Exact"/> would be without a search for the shape of the free tree.</summary>
    public int ExactWithFirstShape { get; internal set; }

    /// <summary>The first 20 wrong predictions.</summary>
    public IReadOnlyList<VmapMismatch> Mismatches => _mismatches;

    internal void AddMismatch(VmapMismatch mismatch)
    {
        if (_mismatches.Count < MostMismatches)
            _mismatches.Add(mismatch);
    }
}

/// <summary>A wrong prediction.</summary>
/// <param name="Line">Line number in the trace.</param>
/// <param name="Cpu">CPU of the allocation.</param>
/// <param name="Size">Bytes asked for, guard page included.</param>
/// <param name="Align">Alignment asked for, in bytes.</param>
/// <param name="Kernel">The address that the kernel chose.</param>
/// <param name="Predicted">The address that was predicted; null: none.</param>
public sealed record VmapMismatch(long Line, int Cpu, ulong Size, ulong Align, ulong Kernel, ulong? Predicted);
