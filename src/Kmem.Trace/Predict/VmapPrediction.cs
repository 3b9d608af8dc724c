namespace Kmem.Tracing;

/// <summary>
/// Predicts each address that a real kernel chose for its vmalloc areas, from one /proc/vmallocinfo text and the trace
/// that follows it.
/// </summary>
/// <remarks>
/// <para>
/// Four things are not visible in the two files and are inferred, by
/// replaying the recording under different assumptions and keeping those under which most addresses come out right:
/// </para>
/// <list type="bullet">
/// <item>the shape of the free tree at the snapshot; it matters only for alignments above a page;</item>
/// <item>the vmap node of each area older than the trace; the first time that it is used again shows it;</item>
/// <item>when the steps of a purge took effect, at most 1.5 ms before its event;</item>
/// <item>which of two allocations came first when a thread yielded between taking an address and its event.</item>
/// </list>
/// <para>The pools must be empty at the snapshot (writing 2 to /proc/sys/vm/drop_caches empties them).</para>
/// </remarks>
public static class VmapPrediction
{
    private const int MostContradictions = 1000;

    /// <summary>
    /// Effort of the search for a shape of the free tree, if the first guess is not right throughout: so many events
    /// are replayed (about 1 µs each), a quarter of them with shapes at random, the others with small changes to the
    /// best one.
    /// </summary>
    private const int EventsToReplay = 6_000_000;
    private const int FewestShapes = 16;
    private const int MostShapes = 400;

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
            Profile = KernelProfile.Linux618, Cpus = recording.Cpus, RamBytes = 1UL << 30,
        });
        using var vmap = new VmapAllocator(
            machine.Slabs,
            new VmapOptions { Start = recording.Range.Start, End = recording.Range.End })
        {
            DrainScheduler = static () => { },
        };
        return Search(new VmapReplay(machine, vmap, recording, snapshot), recording, snapshot.FreeBlockCount);
    }

    private static VmapPredictionResult Search(VmapReplay replay, VmapRecording recording, int blocks)
    {
        // At boot blocks are inserted in order of address.
        int[] order = Enumerable.Range(0, blocks).ToArray();
        var ids = new Dictionary<ulong, int>();
        VmapPredictionResult best = InferNodeIds(replay, order, ids);
        int first = best.Exact;
        int most = Math.Clamp(EventsToReplay / Math.Max(1, recording.Events.Count), FewestShapes, MostShapes);
        var random = new Random(1);
        int tried = 1;
        for (; tried < most && best.Exact < best.Allocs; tried++)
        {
            int[] guess = (int[])order.Clone();
            if (tried < most / 4)
                random.Shuffle(guess);
            else
                ShuffleNeighbours(guess, random);

            VmapPredictionResult result = replay.Run(new VmapHypothesis(guess, ids));
            if (result.Exact >= best.Exact)
                (best, order) = (result, guess);
        }

        best.NodeIdsInferred = ids.Count;
        best.ShapesTried = tried;
        best.ExactWithFirstShape = first;
        return best;
    }

    /// <summary>
    /// Changes the shape of a part of the tree: blocks that are near each other in memory change places in the order.
    /// </summary>
    private static void ShuffleNeighbours(int[] order, Random random)
    {
        int count = Math.Min(order.Length, random.Next(2, 40));
        int first = random.Next(order.Length - count + 1);
        int[] places = Enumerable.Range(0, order.Length)
            .Where(at => order[at] >= first && order[at] < first + count).ToArray();
        int[] blocks = places.Select(at => order[at]).ToArray();
        random.Shuffle(blocks);
        for (int i = 0; i < places.Length; i++)
            order[places[i]] = blocks[i];
    }

    /// <summary>Changes assumed node ids as long as an address contradicts one.</summary>
    private static VmapPredictionResult InferNodeIds(VmapReplay replay, int[] order, Dictionary<ulong, int> ids)
    {
        var seen = new HashSet<VmapContradiction>();
        VmapPredictionResult result = replay.Run(new VmapHypothesis(order, ids));
        while (replay.Contradiction is { } wrong && seen.Add(wrong) && seen.Count <= MostContradictions)
        {
            ids[wrong.Start] = wrong.NodeId;
            result = replay.Run(new VmapHypothesis(order, ids));
        }

        return result;
    }
}

/// <summary>How well the addresses of a recording were predicted.</summary>
public sealed class VmapPredictionResult
{
    private const int MostMismatches = 20;
    private readonly List<VmapMismatch> _mismatches = [];

    /// <summary>Successful allocations after the snapshot.</summary>
    public int Allocs { get; internal set; }

    /// <summary>How many of them got the address that was predicted.</summary>
    public int Exact { get; internal set; }

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
