namespace Kmem;

/// <summary>/proc/slabinfo, version 2.1: one row for each slab cache, newest first.</summary>
/// <remarks>
/// <code>
/// slabinfo - version: 2.1
/// # name            &lt;active_objs&gt; &lt;num_objs&gt; &lt;objsize&gt; … : tunables … : slabdata …
/// kmalloc-96          1310   1344     96   42    1 : tunables    0    0    0 : slabdata     32     32      0
/// </code>
/// Kernel: <c>slab_show</c>, <c>cache_show</c>, mm/slab_common.c, Linux 6.18. Not thread safe.
/// </remarks>
public sealed class SlabInfoText
{
    private const string Kind = "/proc/slabinfo";
    private const string Version = "slabinfo - version: 2.1";

    private const string Columns =
        "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>" +
        " : tunables <limit> <batchcount> <sharedfactor>" +
        " : slabdata <active_slabs> <num_slabs> <sharedavail>";

    /// <summary>The rows in the text's order.</summary>
    public List<SlabInfoRow> Rows { get; init; } = [];

    /// <summary>The first row with this cache name; null if there is none.</summary>
    public SlabInfoRow? Find(string name) => Rows.Find(row => row.Name == name);

    /// <summary>Reads the text of /proc/slabinfo.</summary>
    /// <exception cref="ProcFormatException">A line breaks a rule of the format, or the version is not 2.1.</exception>
    public static SlabInfoText Parse(string text) => Parse(new StringReader(text));

    /// <inheritdoc cref="Parse(string)"/>
    public static SlabInfoText Parse(TextReader text)
    {
        var reader = new ProcTextReader(Kind, text);
        if (reader.Line?.TrimEnd() != Version) throw reader.Error($"\"{Version}\" expected");
        reader.Advance();
        if (reader.Line?.StartsWith("# name", StringComparison.Ordinal) != true)
            throw reader.Error("the line of column names expected");
        reader.Advance();

        var info = new SlabInfoText();
        for (; reader.Line is not null; reader.Advance()) info.Rows.Add(ParseRow(reader, reader.Line));
        return info;
    }

    /// <summary>Writes the text as the kernel does, byte for byte.</summary>
    public string Render()
    {
        var text = new ProcTextWriter();
        text.Line(Version).Line(Columns);
        foreach (SlabInfoRow row in Rows)
        {
            text.Left(row.Name, 17).Text(" ").Number(row.ActiveObjs, 6).Text(" ").Number(row.NumObjs, 6);
            text.Text(" ").Number(row.ObjSize, 6).Text(" ").Number(row.ObjPerSlab, 4);
            text.Text(" ").Number(row.PagesPerSlab, 4);
            text.Text(" : tunables ").Number(row.Limit, 4).Text(" ").Number(row.BatchCount, 4);
            text.Text(" ").Number(row.SharedFactor, 4);
            text.Text(" : slabdata ").Number(row.ActiveSlabs, 6).Text(" ").Number(row.NumSlabs, 6);
            text.Text(" ").Number(row.SharedAvail, 6).Line();
        }
        return text.ToString();
    }

    /// <summary>The same as <see cref="Render"/>.</summary>
    public override string ToString() => Render();

    /// <summary>
    /// Reads the row from both ends: cache names may hold blanks and colons (memory-cgroup copies on old kernels are
    /// called "dentry(42:some group)"), the numbers behind them do not.
    /// </summary>
    private static SlabInfoRow ParseRow(ProcTextReader reader, string line)
    {
        int tunables = line.LastIndexOf(" : tunables ", StringComparison.Ordinal);
        if (tunables < 0) throw reader.Error("\" : tunables \" expected");
        int name = StartOfLastWords(line.AsSpan(0, tunables), 5);
        if (name <= 0 || line.AsSpan(0, name).Trim().IsEmpty) throw reader.Error("a name and five numbers expected");

        var fields = new LineCursor(reader, line.AsSpan(name));
        var row = new SlabInfoRow
        {
            Name = line[..name].Trim(),
            ActiveObjs = fields.ULong("active_objs"),
            NumObjs = fields.ULong("num_objs"),
            ObjSize = fields.UInt("objsize"),
            ObjPerSlab = fields.UInt("objperslab"),
            PagesPerSlab = fields.UInt("pagesperslab"),
        };
        fields.Expect(": tunables ");
        row = row with
        {
            Limit = fields.UInt("limit"),
            BatchCount = fields.UInt("batchcount"),
            SharedFactor = fields.UInt("sharedfactor"),
        };
        fields.Expect(": slabdata ");
        row = row with
        {
            ActiveSlabs = fields.ULong("active_slabs"),
            NumSlabs = fields.ULong("num_slabs"),
            SharedAvail = fields.ULong("sharedavail"),
        };
        fields.End();
        return row;
    }

    /// <summary>Where the last <paramref name="count"/> words begin; 0 if there are fewer.</summary>
    private static int StartOfLastWords(ReadOnlySpan<char> text, int count)
    {
        int at = text.Length;
        for (; count > 0 && at > 0; count--)
        {
            while (at > 0 && char.IsWhiteSpace(text[at - 1])) at--;
            while (at > 0 && !char.IsWhiteSpace(text[at - 1])) at--;
        }
        return at;
    }
}

/// <summary>One cache in /proc/slabinfo. Kernel: <c>struct slabinfo</c>, mm/slab.h, Linux 6.18.</summary>
public sealed record SlabInfoRow
{
    /// <summary>The cache's name. Aliases have no row of their own.</summary>
    public required string Name { get; init; }

    /// <summary>Objects in use: all but the free ones on the nodes' partial lists, so that objects that wait in CPU
    /// slabs and sheaves count as used.</summary>
    public ulong ActiveObjs { get; init; }

    /// <summary>Objects that the cache's slabs have room for.</summary>
    public ulong NumObjs { get; init; }

    /// <summary>Bytes of one slot, metadata and alignment included.</summary>
    public uint ObjSize { get; init; }

    /// <summary>Objects in a slab of the preferred order.</summary>
    public uint ObjPerSlab { get; init; }

    /// <summary>Pages of a slab of the preferred order.</summary>
    public uint PagesPerSlab { get; init; }

    /// <summary>Tunable of the former SLAB allocator; 0 with SLUB.</summary>
    public uint Limit { get; init; }

    /// <summary>Tunable of the former SLAB allocator; 0 with SLUB.</summary>
    public uint BatchCount { get; init; }

    /// <summary>Tunable of the former SLAB allocator; 0 with SLUB.</summary>
    public uint SharedFactor { get; init; }

    /// <summary>Slabs; SLUB prints the same number as <see cref="NumSlabs"/>.</summary>
    public ulong ActiveSlabs { get; init; }

    /// <summary>Slabs.</summary>
    public ulong NumSlabs { get; init; }

    /// <summary>Of the former SLAB allocator; 0 with SLUB.</summary>
    public ulong SharedAvail { get; init; }
}
