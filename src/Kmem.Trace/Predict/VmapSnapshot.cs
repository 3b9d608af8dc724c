namespace Kmem.Tracing;

/// <summary>
/// The areas of a recording's snapshot (/proc/vmallocinfo), and the allocator states that are possible with them: the
/// text shows neither the shape of the free tree nor the vmap node that an area came from.
/// </summary>
internal sealed class VmapSnapshot
{
    private const ulong LowestKernelAddress = 0xff00_0000_0000_0000;
    private const string PercpuCaller = "pcpu_get_vm_areas";

    private readonly VmapRecording _recording;
    private readonly List<VmallocInfoRow> _rows;

    /// <summary>Takes over the rows.</summary>
    /// <exception cref="InvalidDataException">The addresses are hidden, or there are no areas.</exception>
    public VmapSnapshot(VmallocInfoText areas, VmapRecording recording)
    {
        _recording = recording;
        _rows = [];

        // An area that was freed while the text was written may be there twice, the second time as it is in the end.
        var starts = new HashSet<ulong>();
        foreach (VmallocInfoRow row in Enumerable.Reverse(areas.Rows))
        {
            if (row.Start < LowestKernelAddress || row.End <= row.Start)
            {
                throw new InvalidDataException(
                    "the addresses in vmallocinfo are hidden: it must be read with kptr_restrict=1");
            }

            if (starts.Add(row.Start))
                _rows.Add(row);
        }

        if (_rows.Count == 0)
            throw new InvalidDataException("vmallocinfo has no areas");
        _rows.Sort((a, b) => a.Start.CompareTo(b.Start));
        for (int i = 1; i < _rows.Count; i++)
        {
            if (_rows[i].Start < _rows[i - 1].End)
                throw new InvalidDataException($"the areas at 0x{_rows[i].Start:x} in vmallocinfo overlap");
        }
    }

    /// <summary>Areas that were lazily free at the snapshot.</summary>
    public int LazyCount => _rows.Count(row => row.Kind == VmallocInfoKind.Unpurged);

    /// <summary>Free blocks between the areas.</summary>
    public int FreeBlockCount => FreeBlocks().Count;

    /// <summary>The number of the free block at an address, or of the next one below it.</summary>
    public int BlockAt(ulong address) => Math.Max(0, FreeBlocks().FindLastIndex(block => block.Start <= address));

    /// <summary>The state of one hypothesis.</summary>
    /// <param name="hypothesis">What to assume.</param>
    /// <param name="nodes">Number of vmap nodes.</param>
    /// <param name="assumed">Filled with the areas whose node id is an assumption.</param>
    public VmapState Build(VmapHypothesis hypothesis, int nodes, HashSet<ulong> assumed)
    {
        assumed.Clear();
        VmapNodeState[] states = Enumerable.Range(0, nodes).Select(_ => new VmapNodeState()).ToArray();
        foreach (VmallocInfoRow row in _rows)
        {
            int id = NodeIdOf(row, hypothesis, nodes, assumed);
            int tree = (int)((row.Start >> 16) % (ulong)nodes);
            var area = new VmapAreaState(row.Start, row.End, VmapArea.FlagsOf(VmapAreaFlags.None, id));
            if (row.Kind == VmallocInfoKind.Unpurged)
                states[id >= 0 ? id : tree].Lazy.Add(area);
            else
                states[tree].Busy.Add(area);
        }

        List<VmapBlockState> blocks = FreeBlocks();
        return new VmapState
        {
            Free = hypothesis.Order.Select(i => blocks[i]).ToList(),
            ShapeKnown = false,
            Nodes = states,
            Spare = new ulong[_recording.Cpus],
        };
    }

    private int NodeIdOf(VmallocInfoRow row, VmapHypothesis hypothesis, int nodes, HashSet<ulong> assumed)
    {
        bool tagged = nodes > 1
            && row.Start >= _recording.Range.Start
            && row.End - 1 <= _recording.Range.End
            && row.Caller?.StartsWith(PercpuCaller, StringComparison.Ordinal) != true;
        if (!tagged)
            return -1;
        if (_recording.CpuOfEarlier.TryGetValue(row.Start, out int cpu))
            return cpu % nodes;

        assumed.Add(row.Start);
        return hypothesis.NodeIds.GetValueOrDefault(row.Start);
    }

    private List<VmapBlockState> FreeBlocks()
    {
        var blocks = new List<VmapBlockState>();
        ulong from = VmapAllocator.SpaceStart;
        foreach (VmallocInfoRow row in _rows)
        {
            if (row.Start > from)
                blocks.Add(new VmapBlockState(from, row.Start));
            from = row.End;
        }

        blocks.Add(new VmapBlockState(from, VmapAllocator.SpaceEnd));
        return blocks;
    }
}
