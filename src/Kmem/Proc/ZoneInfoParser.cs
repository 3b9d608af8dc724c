namespace Kmem;

/// <summary>Reads one record of /proc/zoneinfo; the picture is at <see cref="ZoneInfoText"/>.</summary>
internal static class ZoneInfoParser
{
    public static ZoneInfoRecord Parse(ProcTextReader reader)
    {
        LineCursor fields = reader.Fields("a zone");
        (int node, string zone) = ZoneLine.Parse(ref fields);
        fields.End();
        reader.Advance();

        ProcStats? nodeStats = null;
        if (reader.Line?.Trim() == "per-node stats")
        {
            reader.Advance();
            nodeStats = [];
            while (!At(reader, "pages free")) nodeStats.Add(Stat(reader));
        }

        // The initialiser's order is the order of the lines.
        var record = new ZoneInfoRecord
        {
            Node = node,
            Zone = zone,
            NodeStats = nodeStats,
            Free = Labelled(reader, "pages free"),
            Boost = LabelledIfThere(reader, "boost"),
            Min = Labelled(reader, "min"),
            Low = Labelled(reader, "low"),
            High = Labelled(reader, "high"),
            Promo = LabelledIfThere(reader, "promo"),
            Spanned = Labelled(reader, "spanned"),
            Present = Labelled(reader, "present"),
            Managed = Labelled(reader, "managed"),
            Cma = LabelledIfThere(reader, "cma"),
            Protection = Protection(reader),
        };
        return record.IsPopulated ? Populated(reader, record) : record;
    }

    private static ZoneInfoRecord Populated(ProcTextReader reader, ZoneInfoRecord record)
    {
        ProcStats zoneStats = [], numaStats = [];
        while (!At(reader, "pagesets"))
        {
            ProcStat stat = Stat(reader);
            bool numa = numaStats.Count > 0 || stat.Name.StartsWith("numa_", StringComparison.Ordinal);
            (numa ? numaStats : zoneStats).Add(stat);
        }
        reader.Advance();

        var pagesets = new List<ZonePageset>();
        while (At(reader, "cpu:")) pagesets.Add(Pageset(reader));
        return record with
        {
            ZoneStats = zoneStats,
            NumaStats = numaStats,
            Pagesets = pagesets,
            NodeUnreclaimable = LabelledInt(reader, "node_unreclaimable:"),
            StartPfn = Labelled(reader, "start_pfn:"),
        };
    }

    private static ZonePageset Pageset(ProcTextReader reader) => new()
    {
        Cpu = LabelledInt(reader, "cpu:"),
        Count = LabelledInt(reader, "count:"),
        High = LabelledInt(reader, "high:"),
        Batch = LabelledInt(reader, "batch:"),
        HighMin = At(reader, "high_min:") ? LabelledInt(reader, "high_min:") : null,
        HighMax = At(reader, "high_max:") ? LabelledInt(reader, "high_max:") : null,
        StatThreshold = At(reader, "vm stats threshold:") ? LabelledInt(reader, "vm stats threshold:") : null,
    };

    private static ProcStat Stat(ProcTextReader reader)
    {
        LineCursor fields = reader.Fields("a counter");
        string name = fields.Word("the counter's name").ToString();
        ulong value = fields.ULong("the counter's value");
        fields.End();
        reader.Advance();
        return new ProcStat(name, value);
    }

    private static List<long> Protection(ProcTextReader reader)
    {
        LineCursor fields = reader.Fields("\"protection:\"");
        fields.Expect("protection:");
        fields.Expect("(");
        var pages = new List<long>();
        do pages.Add(fields.Long("a number of pages"));
        while (fields.TryTake(","));
        fields.Expect(")");
        fields.End();
        reader.Advance();
        return pages;
    }

    /// <summary>Whether the line in view begins with this label, as a whole word.</summary>
    private static bool At(ProcTextReader reader, string label)
    {
        ReadOnlySpan<char> line = reader.Line.AsSpan().Trim();
        return line.StartsWith(label, StringComparison.Ordinal)
            && (line.Length == label.Length || label[^1] == ':' || char.IsWhiteSpace(line[label.Length]));
    }

    private static ulong? LabelledIfThere(ProcTextReader reader, string label) =>
        At(reader, label) ? Labelled(reader, label) : null;

    private static ulong Labelled(ProcTextReader reader, string label)
    {
        LineCursor fields = reader.Fields($"\"{label}\"");
        fields.Expect(label);
        ulong value = fields.ULong("its value");
        fields.End();
        reader.Advance();
        return value;
    }

    private static int LabelledInt(ProcTextReader reader, string label)
    {
        LineCursor fields = reader.Fields($"\"{label}\"");
        fields.Expect(label);
        int value = fields.Int("its value");
        fields.End();
        reader.Advance();
        return value;
    }
}
