namespace Kmem;

/// <summary>/proc/buddyinfo: for each populated zone the number of free blocks of each order.</summary>
/// <remarks>
/// <code>
/// Node 0, zone   Normal    912    377   1042     18      9      4      2      1      0      1     57
/// </code>
/// Kernel: <c>frag_show_print</c>, mm/vmstat.c, Linux 6.18. Not thread safe.
/// </remarks>
public sealed class BuddyInfoText
{
    private const string Kind = "/proc/buddyinfo";

    /// <summary>The zones in the text's order.</summary>
    public List<BuddyInfoRow> Rows { get; init; } = [];

    /// <summary>Reads the text of /proc/buddyinfo.</summary>
    /// <exception cref="ProcFormatException">A line breaks a rule of the format, or there is none.</exception>
    public static BuddyInfoText Parse(string text) => Parse(new StringReader(text));

    /// <inheritdoc cref="Parse(string)"/>
    public static BuddyInfoText Parse(TextReader text)
    {
        var reader = new ProcTextReader(Kind, text);
        reader.RejectEmpty();
        var info = new BuddyInfoText();
        for (; reader.Line is not null; reader.Advance())
        {
            LineCursor fields = reader.Fields("a zone");
            (int node, string zone) = ZoneLine.Parse(ref fields);
            List<ulong> free = ZoneLine.ParseCounts(ref fields, "a number of free blocks");
            if (free.Count == 0) throw reader.Error("a number of free blocks per order expected");
            if (info.Rows.Count > 0 && free.Count != info.Rows[0].FreeBlocks.Count)
                throw reader.Error($"{info.Rows[0].FreeBlocks.Count} orders expected, as in the first line");
            info.Rows.Add(new BuddyInfoRow(node, zone, free));
        }
        return info;
    }

    /// <summary>Writes the text as the kernel does, byte for byte; each line ends with a blank.</summary>
    public string Render()
    {
        var text = new ProcTextWriter();
        foreach (BuddyInfoRow row in Rows)
        {
            ZoneLine.Write(text, row.Node, row.Zone).Text(" ");
            foreach (ulong count in row.FreeBlocks) text.Number(count, 6).Text(" ");
            text.Line();
        }
        return text.ToString();
    }

    /// <summary>The same as <see cref="Render"/>.</summary>
    public override string ToString() => Render();
}

/// <summary>One zone in /proc/buddyinfo.</summary>
/// <param name="Node">The node's number.</param>
/// <param name="Zone">The zone's name, for instance "DMA32".</param>
/// <param name="FreeBlocks">Free blocks (not pages) of each order, from order 0 on; pages that wait in per-CPU lists
/// are not counted.</param>
public sealed record BuddyInfoRow(int Node, string Zone, IReadOnlyList<ulong> FreeBlocks)
{
    /// <summary>Free pages: the blocks of each order times 2^order.</summary>
    public ulong FreePages
    {
        get
        {
            ulong pages = 0;
            for (int order = 0; order < FreeBlocks.Count; order++) pages += FreeBlocks[order] << order;
            return pages;
        }
    }
}
