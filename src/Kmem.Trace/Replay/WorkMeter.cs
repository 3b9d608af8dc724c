namespace Kmem.Tracing;

/// <summary>What a replay took from a machine: the numbers by which two settings are compared. Plain data.</summary>
/// <remarks>
/// Counted from the booted machine on: what its boot took is in none of the numbers. Bytes are of RAM unless they say
/// otherwise; frames on the CPUs' lists count as free, but not as part of a free block.
/// </remarks>
public sealed record WorkNumbers
{
    /// <summary>Bytes in use at the end: slabs, pages, page tables.</summary>
    public long UsedBytes { get; init; }

    /// <summary>The most that was in use at a time.</summary>
    public long PeakUsedBytes { get; init; }

    /// <summary>Bytes of all slabs at the end, empty ones that are kept included.</summary>
    public long SlabBytes { get; init; }

    /// <summary>The most bytes of slabs at a time.</summary>
    public long PeakSlabBytes { get; init; }

    /// <summary>Bytes on the CPUs' lists of free pages at the end.</summary>
    public long PcpBytes { get; init; }

    /// <summary>Blocks of 2 MiB that are not free as a whole at the end, and were after boot.</summary>
    public long CutBlocks { get; init; }

    /// <summary>The most such blocks at a time.</summary>
    public long PeakCutBlocks { get; init; }

    /// <summary>Blocks of 2 MiB that <see cref="UsedBytes"/> would fill if they lay side by side.</summary>
    public long BlocksNeeded { get; init; }
}

/// <summary>
/// Watches what a replay takes from its machine: <see cref="Look"/> is a <see cref="ReplayOptions.Sample"/>.
/// </summary>
public sealed class WorkMeter
{
    private const int BlockOrder = 9;

    private bool _begun;
    private Moment _atBoot;
    private Moment _now;
    private long _peakUsed;
    private long _peakSlabs;
    private long _peakCut;

    /// <summary>The numbers so far; the peaks are those of the moments looked at.</summary>
    public WorkNumbers Numbers => new()
    {
        UsedBytes = Bytes(Used(_now)),
        PeakUsedBytes = Bytes(_peakUsed),
        SlabBytes = Bytes(_now.Slabs - _atBoot.Slabs),
        PeakSlabBytes = Bytes(_peakSlabs),
        PcpBytes = Bytes(_now.Pcp),
        CutBlocks = Cut(_now),
        PeakCutBlocks = _peakCut,
        BlocksNeeded = (Used(_now) + (1 << BlockOrder) - 1) >> BlockOrder,
    };

    /// <summary>Looks at the machine; the first time it is as booted. No other thread may be at work on it.</summary>
    /// <param name="machine">The same machine each time.</param>
    /// <param name="events">Events so far; not used.</param>
    public void Look(Machine machine, long events)
    {
        ArgumentNullException.ThrowIfNull(machine);
        _now = Moment.Of(machine);
        if (!_begun)
        {
            _begun = true;
            _atBoot = _now;
        }

        _peakUsed = Math.Max(_peakUsed, Used(_now));
        _peakSlabs = Math.Max(_peakSlabs, _now.Slabs - _atBoot.Slabs);
        _peakCut = Math.Max(_peakCut, Cut(_now));
    }

    private static long Bytes(long frames) => frames * Pfn.PageSize;

    private long Used(Moment moment) => _atBoot.Free + _atBoot.Pcp - moment.Free - moment.Pcp;

    private long Cut(Moment moment) => Math.Max(0, _atBoot.WholeBlocks - moment.WholeBlocks);

    /// <summary>Frames and blocks of all zones at one moment.</summary>
    private readonly record struct Moment(long Free, long Pcp, long Slabs, long WholeBlocks)
    {
        public static Moment Of(Machine machine)
        {
            long free = 0, pcp = 0, blocks = 0;
            foreach (ZonePages zone in machine.Pages.Zones)
            {
                free += zone.Zone.FreePagesExact;
                pcp += zone.PcpCount;
                for (int order = BlockOrder; order <= PageOrder.Max; order++)
                    blocks += zone.Buddy.NrFree(order) << (order - BlockOrder);
            }

            long slabs = machine.Pages.Nodes.Sum(node => node.SlabReclaimablePages + node.SlabUnreclaimablePages);
            return new Moment(free, pcp, slabs, blocks);
        }
    }
}
