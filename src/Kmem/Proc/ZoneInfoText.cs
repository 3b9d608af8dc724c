namespace Kmem;

/// <summary>/proc/zoneinfo: a record for each zone of each online node, counts in pages.</summary>
/// <remarks>
/// <code>
/// Node 0, zone   Normal
///   per-node stats                      only in the node's first populated zone
///       nr_inactive_anon 0
///   pages free     98213                the watermark block
///         min      712
///         protection: (0, 0, 0, 0)      an unpopulated zone ends here
///       nr_free_pages 98213
///       numa_hit     51877
///   pagesets
///     cpu: 0
///               count:    207
///   vm stats threshold: 12
///   node_unreclaimable:  0
///   start_pfn:           1048576
/// </code>
/// Kernel: <c>zoneinfo_show_print</c>, mm/vmstat.c, Linux 6.18; the values that older kernels lack are null.
/// Not thread safe.
/// </remarks>
public sealed class ZoneInfoText
{
    private const string Kind = "/proc/zoneinfo";

    /// <summary>The records in the text's order.</summary>
    public List<ZoneInfoRecord> Zones { get; init; } = [];

    /// <summary>The record of this zone; null if there is none.</summary>
    public ZoneInfoRecord? Find(int node, string zone) => Zones.Find(z => z.Node == node && z.Zone == zone);

    /// <summary>Reads the text of /proc/zoneinfo.</summary>
    /// <exception cref="ProcFormatException">A line breaks a rule of the format, or there is none.</exception>
    public static ZoneInfoText Parse(string text) => Parse(new StringReader(text));

    /// <inheritdoc cref="Parse(string)"/>
    public static ZoneInfoText Parse(TextReader text)
    {
        var reader = new ProcTextReader(Kind, text);
        reader.RejectEmpty();
        var info = new ZoneInfoText();
        while (reader.Line is not null) info.Zones.Add(ZoneInfoParser.Parse(reader));
        return info;
    }

    /// <summary>Writes the text as the kernel does, byte for byte.</summary>
    public string Render()
    {
        var text = new ProcTextWriter();
        foreach (ZoneInfoRecord zone in Zones)
        {
            ZoneLine.Write(text, zone.Node, zone.Zone).Line();
            if (zone.NodeStats is not null)
            {
                text.Line("  per-node stats");
                RenderStats(text, zone.NodeStats);
            }
            RenderWatermarks(text, zone);
            if (zone.IsPopulated) RenderPopulated(text, zone);
        }
        return text.ToString();
    }

    /// <summary>The same as <see cref="Render"/>.</summary>
    public override string ToString() => Render();

    private static void RenderWatermarks(ProcTextWriter text, ZoneInfoRecord zone)
    {
        text.Left("  pages free", 17).Number(zone.Free).Line();
        Row("boost", zone.Boost);
        Row("min", zone.Min);
        Row("low", zone.Low);
        Row("high", zone.High);
        Row("promo", zone.Promo);
        Row("spanned", zone.Spanned);
        Row("present", zone.Present);
        Row("managed", zone.Managed);
        Row("cma", zone.Cma);
        text.Text("        protection: (");
        for (int i = 0; i < zone.Protection.Count; i++) text.Text(i == 0 ? "" : ", ").Number(zone.Protection[i]);
        text.Line(")");

        void Row(string label, ulong? value)
        {
            if (value is ulong pages) text.Text("        ").Left(label, 9).Number(pages).Line();
        }
    }

    private static void RenderPopulated(ProcTextWriter text, ZoneInfoRecord zone)
    {
        RenderStats(text, zone.ZoneStats);
        RenderStats(text, zone.NumaStats);
        text.Line("  pagesets");
        foreach (ZonePageset set in zone.Pagesets)
        {
            int width = set.HighMin is null ? 7 : 10;  // the longer labels of Linux 6.7 moved the column
            text.Text("    cpu: ").Number(set.Cpu).Line();
            Row("count:", set.Count, width);
            Row("high:", set.High, width);
            Row("batch:", set.Batch, width);
            Row("high_min:", set.HighMin, width);
            Row("high_max:", set.HighMax, width);
            if (set.StatThreshold is int threshold) text.Text("  vm stats threshold: ").Number(threshold).Line();
        }
        text.Left("  node_unreclaimable:", 23).Number(zone.NodeUnreclaimable).Line();
        text.Left("  start_pfn:", 23).Number(zone.StartPfn).Line();

        void Row(string label, int? value, int width)
        {
            if (value is int pages) text.Text("              ").Left(label, width).Number(pages).Line();
        }
    }

    private static void RenderStats(ProcTextWriter text, ProcStats stats)
    {
        foreach (ProcStat stat in stats) text.Text("      ").Left(stat.Name, 12).Text(" ").Number(stat.Value).Line();
    }
}

/// <summary>One zone in /proc/zoneinfo; counts in pages.</summary>
public sealed record ZoneInfoRecord
{
    /// <summary>The node's number.</summary>
    public required int Node { get; init; }

    /// <summary>The zone's name, for instance "Normal".</summary>
    public required string Zone { get; init; }

    /// <summary>The node's counters; only in its first populated zone, else null.</summary>
    public ProcStats? NodeStats { get; init; }

    /// <summary>Free pages of the buddy system ("pages free").</summary>
    public ulong Free { get; init; }

    /// <summary>Watermark boost; null on kernels that do not print it.</summary>
    public ulong? Boost { get; init; }

    /// <summary>Watermark min.</summary>
    public ulong Min { get; init; }

    /// <summary>Watermark low.</summary>
    public ulong Low { get; init; }

    /// <summary>Watermark high.</summary>
    public ulong High { get; init; }

    /// <summary>Watermark promo; null on kernels that do not print it.</summary>
    public ulong? Promo { get; init; }

    /// <summary>From the first page to the last, holes included.</summary>
    public ulong Spanned { get; init; }

    /// <summary>Without holes.</summary>
    public ulong Present { get; init; }

    /// <summary>Ever given to the buddy system.</summary>
    public ulong Managed { get; init; }

    /// <summary>Reserved for the contiguous memory allocator; null on kernels that do not print it.</summary>
    public ulong? Cma { get; init; }

    /// <summary>lowmem_reserve: pages kept from requests that could use each higher zone type.</summary>
    public IReadOnlyList<long> Protection { get; init; } = [];

    /// <summary>The zone has memory. Everything below is printed for such zones only.</summary>
    public bool IsPopulated => Present != 0;

    /// <summary>The zone's counters.</summary>
    public ProcStats ZoneStats { get; init; } = [];

    /// <summary>The zone's NUMA counters, <c>numa_hit</c> …; empty on kernels without NUMA.</summary>
    public ProcStats NumaStats { get; init; } = [];

    /// <summary>The per-CPU page lists of the online CPUs.</summary>
    public List<ZonePageset> Pagesets { get; init; } = [];

    /// <summary>1 when kswapd gave the node up (16 failures in a row), else 0.</summary>
    public int NodeUnreclaimable { get; init; }

    /// <summary>The number of the zone's first page frame.</summary>
    public ulong StartPfn { get; init; }
}

/// <summary>One CPU's page lists of a zone in /proc/zoneinfo. Kernel: <c>struct per_cpu_pages</c>,
/// include/linux/mmzone.h, Linux 6.18.</summary>
public sealed record ZonePageset
{
    /// <summary>The CPU's number.</summary>
    public required int Cpu { get; init; }

    /// <summary>Pages on the lists.</summary>
    public int Count { get; init; }

    /// <summary>Pages from which on the lists are drained.</summary>
    public int High { get; init; }

    /// <summary>Pages moved at a time.</summary>
    public int Batch { get; init; }

    /// <summary>The least that <see cref="High"/> adapts to; null before Linux 6.7.</summary>
    public int? HighMin { get; init; }

    /// <summary>The most that <see cref="High"/> adapts to; null before Linux 6.7.</summary>
    public int? HighMax { get; init; }

    /// <summary>How far this CPU's counters may drift from the zone's; null on kernels for one CPU only.</summary>
    public int? StatThreshold { get; init; }
}
