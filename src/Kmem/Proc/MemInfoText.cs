namespace Kmem;

/// <summary>/proc/meminfo: the system's memory in kB, one labelled line each.</summary>
/// <remarks>
/// <code>
/// MemTotal:         507904 kB
/// VmallocTotal:   34359738367 kB
/// HugePages_Total:       0
/// </code>
/// Which lines there are depends on the kernel's configuration; unknown labels are kept where they stand.
/// Kernel: <c>meminfo_proc_show</c>, fs/proc/meminfo.c, Linux 6.18. Not thread safe.
/// </remarks>
public sealed class MemInfoText
{
    private const string Kind = "/proc/meminfo";

    /// <summary>The lines in the text's order.</summary>
    public List<MemInfoLine> Lines { get; init; } = [];

    /// <summary>The value of the first line with this label (no colon); null if there is none.</summary>
    public ulong? Find(string label) => Lines.Find(line => line.Label == label)?.Value;

    /// <summary>Reads the text of /proc/meminfo.</summary>
    /// <exception cref="ProcFormatException">A line breaks a rule of the format, or there is none.</exception>
    public static MemInfoText Parse(string text) => Parse(new StringReader(text));

    /// <inheritdoc cref="Parse(string)"/>
    public static MemInfoText Parse(TextReader text)
    {
        var reader = new ProcTextReader(Kind, text);
        reader.RejectEmpty();
        var info = new MemInfoText();
        for (; reader.Line is not null; reader.Advance())
        {
            LineCursor fields = reader.Fields("a label");
            string label = fields.Until(':', "the label").ToString();
            if (label.Length == 0) throw reader.Error("the label is missing");
            ulong value = fields.ULong("the value");
            bool isKilobytes = fields.TryTake("kB");
            fields.End();
            info.Lines.Add(new MemInfoLine(label, value, isKilobytes));
        }
        return info;
    }

    /// <summary>Writes the text as the kernel does, byte for byte.</summary>
    public string Render()
    {
        var text = new ProcTextWriter();
        foreach (MemInfoLine line in Lines)
        {
            // Both columns end at the 24th character until the value outgrows its width; then the rules differ.
            bool narrow = IsNarrow(line.Label);
            text.Left(line.Label + ":", narrow ? 19 : 16).Number(line.Value, narrow ? 5 : 8);
            text.Line(line.IsKilobytes ? " kB" : "");
        }
        return text.ToString();
    }

    /// <summary>The same as <see cref="Render"/>.</summary>
    public override string ToString() => Render();

    /// <summary>Lines that other subsystems print by themselves, with a longer label and a shorter number.</summary>
    private static bool IsNarrow(string label) =>
        label.StartsWith("HugePages_", StringComparison.Ordinal) || label is "HardwareCorrupted" or "EarlyMemtestBad";
}

/// <summary>One line of /proc/meminfo.</summary>
/// <param name="Label">The label without its colon, for instance "MemTotal".</param>
/// <param name="Value">Kilobytes (1024 bytes), or a plain count.</param>
/// <param name="IsKilobytes">False for plain counts: the HugePages_ lines.</param>
public sealed record MemInfoLine(string Label, ulong Value, bool IsKilobytes = true);
