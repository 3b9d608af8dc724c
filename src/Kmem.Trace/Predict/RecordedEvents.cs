using System.Globalization;
using System.IO.Compression;

namespace Kmem.Tracing;

/// <summary>
/// One line of a recording made together with complete states: what happened, in the order of its effect.
/// </summary>
/// <param name="Seq">Position in the raw trace.</param>
/// <param name="Cpu">The CPU.</param>
/// <param name="Context">Who did it: contexts of one CPU nest.</param>
/// <param name="Name">Two or three letters, or CALL.</param>
/// <param name="Args">The fields after the name.</param>
internal sealed record RecordedEvent(long Seq, int Cpu, string Context, string Name, string[] Args)
{
    /// <summary>What stands for the frame of a request that failed.</summary>
    public const ulong NoFrame = ulong.MaxValue;

    public const string HardIrq = "hardirq";
    public const string SoftIrq = "softirq";
    public const string IdleTask = "0";

    /// <summary>Line of the file, from 1.</summary>
    public long Line { get; init; }

    /// <summary>Its effect came about earlier already.</summary>
    public bool IsDone { get; set; }

    /// <summary>The task that acts, or that is interrupted.</summary>
    public string Task { get; init; } = "";

    /// <summary>Interrupts stay on their CPU, and every CPU has an idle task of number 0.</summary>
    public bool IsCpuBound => Context is HardIrq or SoftIrq or IdleTask;

    /// <summary>Who did it, across CPUs.</summary>
    public (int Cpu, string Task) ContextKey => (IsCpuBound ? Cpu : -1, Context);

    /// <summary>A new sheaf: a part of another operation, which is logged later.</summary>
    public bool IsSheafBlock => Name == "KM" && (Args[4].StartsWith("alloc_empty_sheaf", StringComparison.Ordinal)
        || Args[4].StartsWith("__alloc_empty_sheaf", StringComparison.Ordinal));

    public ulong Number(int index) =>
        ulong.TryParse(Args[index], NumberStyles.None, CultureInfo.InvariantCulture, out ulong value)
            ? value
            : throw new FormatException($"field {index + 1} is '{Args[index]}', expected a number");

    public int Int(int index) =>
        int.TryParse(Args[index], NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out int value)
            ? value
            : throw new FormatException($"field {index + 1} is '{Args[index]}', expected a number");

    /// <summary>
    /// A frame; one that the machine does not have, as after a failed request, is <see cref="NoFrame"/>.
    /// </summary>
    public ulong Frame(int index, ulong endPfn) =>
        Args[index].StartsWith('-') ? NoFrame
        : Number(index) is var pfn && pfn < endPfn ? pfn
        : NoFrame;

    public ulong Hex(int index) =>
        ulong.TryParse(
            Args[index].AsSpan(Args[index].StartsWith("0x", StringComparison.Ordinal) ? 2 : 0),
            NumberStyles.HexNumber,
            CultureInfo.InvariantCulture,
            out ulong value)
            ? value
            : throw new FormatException($"field {index + 1} is '{Args[index]}', expected a hexadecimal number");

    /// <summary>A number; null if the field is none.</summary>
    public ulong? NumberOrNone(int index) =>
        ulong.TryParse(Args[index], NumberStyles.None, CultureInfo.InvariantCulture, out ulong value) ? value : null;

    /// <summary>A hexadecimal number; null if the field is none, or 0.</summary>
    public ulong? HexOrNone(int index) =>
        ulong.TryParse(Args[index], NumberStyles.HexNumber, CultureInfo.InvariantCulture, out ulong value) && value != 0
            ? value
            : null;

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
        while (ReadLine(reader, path, number) is { } line)
        {
            number++;
            if (number == 1 && line.StartsWith("seq", StringComparison.Ordinal))
                continue;

            lines++;
            string[] fields = line.Split('\t');
            if (fields[0] == "+" || (fields.Length > 5 && fields[5] == "+"))
            {
                if (events.Count == 0)
                    throw new InvalidDataException($"{path}, line {number}: a line goes on that did not begin");
                Append(events, fields);
                continue;
            }

            if (fields.Length < 6 || !long.TryParse(fields[0], CultureInfo.InvariantCulture, out long seq)
                || !int.TryParse(fields[2], CultureInfo.InvariantCulture, out int cpu))
            {
                throw new InvalidDataException(
                    $"{path}, line {number}: not an event: expected seq, ts, cpu, ctx, pid, ev");
            }

            var recorded = new RecordedEvent(seq, cpu, ContextOf(fields[3], fields[4]), fields[5], fields[6..])
            {
                Line = number,
                Task = fields[4],
            };
            if (FieldsOf(recorded.Name) is var least && recorded.Args.Length < least)
            {
                throw new InvalidDataException(
                    $"{path}, line {number}: {recorded.Name} has {recorded.Args.Length} fields, expected {least}");
            }

            events.Add(recorded);
        }

        return events;
    }

    private static string? ReadLine(StreamReader reader, string path, long before)
    {
        try
        {
            return reader.ReadLine();
        }
        catch (InvalidDataException error)
        {
            throw new InvalidDataException($"{path}, after line {before}: {error.Message}", error);
        }
    }

    /// <summary>Hard and soft interrupts have a context per CPU, tasks one each.</summary>
    private static string ContextOf(string flags, string pid) =>
        flags.Contains('h', StringComparison.Ordinal) || flags.Contains('H', StringComparison.Ordinal)
            ? RecordedEvent.HardIrq
        : flags.Contains('s', StringComparison.Ordinal) ? RecordedEvent.SoftIrq
        : pid;

    /// <summary>How many fields a kind of event has at least, those that nobody reads left out.</summary>
    private static int FieldsOf(string name) => name switch
    {
        "PA" => 5,
        "PF" or "PD" => 3,
        "PZ" => 4,
        "PX" => 6,
        "LI" or "KF" or "CALL" => 1,
        "KA" => 4,
        "KM" => 5,
        "KC" or "KFB" => 2,
        "KAB" or "SP" => 4,
        "SR" => 5,
        "SK" or "VF" or "VP" => 3,
        "VA" => 6,
        _ => 0,
    };

    /// <summary>A "+" line carries on the list of pointers of the line before.</summary>
    private static void Append(List<RecordedEvent> events, string[] fields)
    {
        RecordedEvent last = events[^1];
        string[] more = fields[(fields[0] == "+" ? 1 : 6)..];
        events[^1] = last with { Args = [.. last.Args, .. more] };
    }
}
