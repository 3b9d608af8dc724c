namespace Kmem;

/// <summary>/proc/vmstat: the system's memory counters and events, <c>name value</c> per line.</summary>
/// <remarks>Order: zone items, NUMA items, node items, dirty limits, memmap items, events; last <c>nr_unstable 0</c>.
/// Kernel: <c>vmstat_show</c>, mm/vmstat.c, Linux 6.18. Not thread safe.</remarks>
public sealed class VmStatText
{
    private const string Kind = "/proc/vmstat";

    /// <summary>The counters in the text's order.</summary>
    public ProcStats Stats { get; init; } = [];

    /// <summary>Reads the text of /proc/vmstat.</summary>
    /// <exception cref="ProcFormatException">A line is not a name and a number, or there is none.</exception>
    public static VmStatText Parse(string text) => Parse(new StringReader(text));

    /// <inheritdoc cref="Parse(string)"/>
    public static VmStatText Parse(TextReader text)
    {
        var reader = new ProcTextReader(Kind, text);
        reader.RejectEmpty();
        var info = new VmStatText();
        for (; reader.Line is not null; reader.Advance())
        {
            LineCursor fields = reader.Fields("a counter");
            string name = fields.Word("the counter's name").ToString();
            info.Stats.Add(name, fields.ULong("the counter's value"));
            fields.End();
        }
        return info;
    }

    /// <summary>Writes the text as the kernel does, byte for byte.</summary>
    public string Render()
    {
        var text = new ProcTextWriter();
        foreach (ProcStat stat in Stats) text.Text(stat.Name).Text(" ").Number(stat.Value).Line();
        return text.ToString();
    }

    /// <summary>The same as <see cref="Render"/>.</summary>
    public override string ToString() => Render();
}
