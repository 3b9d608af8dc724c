using System.Globalization;
using System.IO.Compression;

namespace Kmem.Tracing;

/// <summary>One line of a recording made together with complete states: what happened, in the order of its effect.</summary>
/// <param name="Seq">Position in the raw trace.</param>
/// <param name="Cpu">The CPU.</param>
/// <param name="Context">Who did it: contexts of one CPU nest.</param>
/// <param name="Name">Two or three letters, or CALL.</param>
/// <param name="Args">The fields after the name.</param>
internal sealed record RecordedEvent(long Seq, int Cpu, string Context, string Name, string[] Args)
{
    public ulong Number(int index) => ulong.Parse(Args[index], CultureInfo.InvariantCulture);

    public int Int(int index) => int.Parse(Args[index], CultureInfo.InvariantCulture);

    public ulong Hex(int index) => ulong.Parse(Args[index], NumberStyles.HexNumber, CultureInfo.InvariantCulture);

    public Gfp Gfp(int index) => (Gfp)Hex(index);

    public override string ToString() => $"{Seq} {Name} {string.Join(' ', Args)}";
}

/// <summary>Reads the tab-separated lines of an events file, plain or gzip.</summary>
internal static class RecordedEvents
{
    /// <exception cref="InvalidDataException">A line is not an event; the message names file and line.</exception>
    public static List<RecordedEvent> Read(string path) => Read(path, out _);

    /// <param name="path">The file.</param>
    /// <param name="lines">How many lines it has, those that carry on the one before included.</param>
    /// <exception cref="InvalidDataException">A line is not an event; the message names file and line.</exception>
    public static List<RecordedEvent> Read(string path, out long lines)
    {
        using FileStream file = File.OpenRead(path);
        bool gzip = file.ReadByte() == 0x1f && file.ReadByte() == 0x8b;
        file.Position = 0;
        using var reader = new StreamReader(gzip ? new GZipStream(file, CompressionMode.Decompress) : file);
        var events = new List<RecordedEvent>();
        long number = 0;
        lines = 0;
        while (reader.ReadLine() is { } line)
        {
            number++;
            if (number == 1 && line.StartsWith("seq", StringComparison.Ordinal))
                continue;

            lines++;
            string[] fields = line.Split('\t');
            if (fields[0] == "+" || (fields.Length > 5 && fields[5] == "+"))
            {
                Append(events, fields);
                continue;
            }

            if (fields.Length < 6 || !long.TryParse(fields[0], CultureInfo.InvariantCulture, out long seq)
                || !int.TryParse(fields[2], CultureInfo.InvariantCulture, out int cpu))
            {
                throw new InvalidDataException($"{path}, line {number}: not an event: expected seq, ts, cpu, ctx, pid, ev");
            }

            events.Add(new RecordedEvent(seq, cpu, ContextOf(fields[3], fields[4]), fields[5], fields[6..]));
        }

        return events;
    }

    /// <summary>Hard and soft interrupts have a context per CPU, tasks one each.</summary>
    private static string ContextOf(string flags, string pid) =>
        flags.Contains('h', StringComparison.Ordinal) || flags.Contains('H', StringComparison.Ordinal) ? "hardirq"
        : flags.Contains('s', StringComparison.Ordinal) ? "softirq"
        : pid;

    /// <summary>A "+" line carries on the list of pointers of the line before.</summary>
    private static void Append(List<RecordedEvent> events, string[] fields)
    {
        RecordedEvent last = events[^1];
        string[] more = fields[(fields[0] == "+" ? 1 : 6)..];
        events[^1] = last with { Args = [.. last.Args, .. more] };
    }
}
