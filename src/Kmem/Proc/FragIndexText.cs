namespace Kmem;

/// <summary>Which of the two files in debugfs' extfrag directory.</summary>
public enum FragIndexKind
{
    /// <summary><c>unusable_index</c>: the share of free memory in blocks too small for the order, 0.000 … 1.000.
    /// Kernel: <c>unusable_show_print</c>, mm/vmstat.c, Linux 6.18.</summary>
    UnusableIndex,

    /// <summary>
    /// <c>extfrag_index</c>: would an allocation fail for lack of memory (towards 0.000) or because of fragmentation
    /// (towards 1.000)? −1.000: it would not fail. Kernel: <c>extfrag_show_print</c>, mm/vmstat.c, Linux 6.18.
    /// </summary>
    ExtfragIndex,
}

/// <summary>/sys/kernel/debug/extfrag/unusable_index or …/extfrag_index: an index per zone and order.</summary>
/// <remarks>
/// <code>
/// Node 0, zone   Normal 0.000 0.013 0.025 0.089 0.091 0.093 0.095 0.097 0.099 0.099 0.107
/// Node 0, zone   Normal -1.000 -1.000 -1.000 -1.000 -1.000 -1.000 -1.000 -1.000 -1.000 -1.000 -1.000
/// </code>
/// Kernel: mm/vmstat.c, Linux 6.18. Not thread safe.
/// </remarks>
public sealed class FragIndexText(FragIndexKind kind)
{
    /// <summary>Which file this is.</summary>
    public FragIndexKind Kind { get; } = kind;

    /// <summary>The zones in the text's order.</summary>
    public List<FragIndexRow> Rows { get; init; } = [];

    /// <summary>Reads the text of one of the two files; they look alike, so the caller says which it is.</summary>
    /// <exception cref="ProcFormatException">A line breaks a rule of the format, or there is none.</exception>
    public static FragIndexText Parse(string text, FragIndexKind kind) => Parse(new StringReader(text), kind);

    /// <inheritdoc cref="Parse(string, FragIndexKind)"/>
    public static FragIndexText Parse(TextReader text, FragIndexKind kind)
    {
        string file = kind == FragIndexKind.UnusableIndex ? "extfrag/unusable_index" : "extfrag/extfrag_index";
        var reader = new ProcTextReader(file, text);
        reader.RejectEmpty();
        var info = new FragIndexText(kind);
        for (; reader.Line is not null; reader.Advance())
        {
            LineCursor fields = reader.Fields("a zone");
            (int node, string zone) = ZoneLine.Parse(ref fields);
            var thousandths = new List<int>();
            while (!fields.AtEnd) thousandths.Add(ParseIndex(reader, ref fields, kind));
            if (thousandths.Count == 0) throw reader.Error("an index per order expected");
            if (info.Rows.Count > 0 && thousandths.Count != info.Rows[0].Thousandths.Count)
                throw reader.Error($"{info.Rows[0].Thousandths.Count} orders expected, as in the first line");
            info.Rows.Add(new FragIndexRow(node, zone, thousandths));
        }
        return info;
    }

    /// <summary>Writes the text as the kernel does, byte for byte; each line ends with a blank.</summary>
    public string Render()
    {
        var text = new ProcTextWriter();
        int width = Kind == FragIndexKind.UnusableIndex ? 0 : 2;
        foreach (FragIndexRow row in Rows)
        {
            ZoneLine.Write(text, row.Node, row.Zone).Text(" ");
            foreach (int index in row.Thousandths)
            {
                int fraction = Math.Abs(index % 1000);
                text.Number(index / 1000, width).Text(fraction < 10 ? ".00" : fraction < 100 ? ".0" : ".");
                text.Number(fraction).Text(" ");
            }
            text.Line();
        }
        return text.ToString();
    }

    /// <summary>The same as <see cref="Render"/>.</summary>
    public override string ToString() => Render();

    /// <summary>Reads "0.107" or, only in extfrag_index, "-1.000": the kernel has no other negative value.</summary>
    private static int ParseIndex(ProcTextReader reader, ref LineCursor fields, FragIndexKind kind)
    {
        ReadOnlySpan<char> word = fields.Word("an index");
        if (kind == FragIndexKind.ExtfragIndex && word is "-1.000") return -1000;

        bool wellFormed = word.Length == 5 && word[0] is '0' or '1' && word[1] == '.'
            && char.IsAsciiDigit(word[2]) && char.IsAsciiDigit(word[3]) && char.IsAsciiDigit(word[4]);
        int value = wellFormed
            ? (1000 * (word[0] - '0')) + (100 * (word[2] - '0')) + (10 * (word[3] - '0')) + (word[4] - '0')
            : -1;
        if (value is >= 0 and <= 1000) return value;
        throw reader.Error(kind == FragIndexKind.UnusableIndex
            ? "an index from 0.000 to 1.000 expected"
            : "an index from 0.000 to 1.000, or -1.000, expected");
    }
}

/// <summary>One zone in an extfrag file.</summary>
/// <param name="Node">The node's number.</param>
/// <param name="Zone">The zone's name, for instance "Normal".</param>
/// <param name="Thousandths">The index of each order in thousandths, from order 0 on: 0 … 1000; −1000 only in
/// extfrag_index.</param>
public sealed record FragIndexRow(int Node, string Zone, IReadOnlyList<int> Thousandths);
