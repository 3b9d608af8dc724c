using System.Buffers.Text;
using System.Text;

namespace Kmem.Tracing;

/// <summary>
/// Reads the text of an ftrace buffer (<c>/sys/kernel/tracing/trace</c>, Linux 4.x to 6.18), plain or gzip, event by
/// event, in bounded memory.
/// </summary>
/// <remarks>
/// <para>
/// Lines that are damaged are skipped and counted; only an input that is no trace at all is an error. Lines that begin
/// with <c>#</c> are comments, lines of a stack trace (<c> =&gt; function</c>) are passed over.
/// </para>
/// <para>One thread at a time. Reading allocates nothing per line, except the text of a marker.</para>
/// <code>
///   using var reader = FtraceReader.Open("trace.txt.gz");
///   TraceEvent e = default;
///   while (reader.TryRead(ref e))
///       if (e.Kind == TraceEventKind.KmemCacheAlloc) Console.WriteLine(reader.Names[e.Name]);
/// </code>
/// </remarks>
public sealed class FtraceReader : IDisposable
{
    private const int MaxDamageKept = 20;
    private const int ExcerptLength = 100;

    /// <summary>Without one line that looks like a trace after so much text, the input is something else.</summary>
    private const int PatienceLines = 1000, PatienceBytes = 64 << 10;

    private readonly TraceInput _input;
    private readonly LineReader _lines;
    private readonly EventParser _events = new();
    private readonly List<TraceDamage> _damage = [];
    private FtraceFrame _frame = new();
    private bool _isTrace;          // a header or a line of a trace was seen
    private bool _ended;
    private int _strangeLines;      // while !_isTrace

    private FtraceReader(Stream stream, string name)
    {
        _input = new TraceInput(stream, name);
        _lines = new LineReader(_input);
    }

    /// <summary>Names of slab caches; <see cref="TraceEvent.Name"/> is a number in it.</summary>
    public StringTable Names => _events.Names;

    /// <summary>Callers, as printed: <c>symbol+0xoffset/0xlength [module]</c>, or a bare address.</summary>
    public StringTable CallSites => _events.CallSites;

    /// <summary>Names of events of kind <see cref="TraceEventKind.Other"/>.</summary>
    public StringTable EventNames => _events.EventNames;

    /// <summary>Lines read, comments and damaged lines included.</summary>
    public long Lines => _lines.Line;

    /// <summary>Events delivered.</summary>
    public long Events { get; private set; }

    /// <summary>Events that the kernel says it lost, where it tells the number.</summary>
    public long LostEvents { get; private set; }

    /// <summary>Places where the kernel says that it lost events.</summary>
    public long LostLines { get; private set; }

    /// <summary>Lines that could not be understood, plus one if the compressed data is damaged.</summary>
    public long DamagedCount { get; private set; }

    /// <summary>The first 20 damaged lines.</summary>
    public IReadOnlyList<TraceDamage> Damage => _damage;

    /// <summary>How often a name in the GFP flags was unknown (it is then left out of the flags).</summary>
    public long UnknownGfpCount => _events.Gfp.UnknownCount;

    /// <summary>The first 20 distinct unknown names in GFP flags.</summary>
    public IReadOnlyList<string> UnknownGfpNames => _events.Gfp.UnknownNames;

    /// <summary>Number of CPUs that the header names (<c>#P:2</c>); 0 until it was read, or if there is none.</summary>
    public int HeaderCpus { get; private set; }

    /// <summary>Bytes taken from the input so far, before decompression: for a display of progress.</summary>
    public long InputPosition => _input.RawPosition;

    /// <summary>Opens a file, or standard input.</summary>
    /// <param name="path">Path of the file; <c>-</c> is standard input.</param>
    /// <returns>A reader; dispose it to close the file.</returns>
    /// <exception cref="IOException">The file cannot be opened; also for lack of permission.</exception>
    public static FtraceReader Open(string path)
    {
        ArgumentNullException.ThrowIfNull(path);
        if (path == "-")
            return new FtraceReader(Console.OpenStandardInput(), "standard input");

        try
        {
            var options = new FileStreamOptions { BufferSize = 0, Options = FileOptions.SequentialScan };
            return new FtraceReader(new FileStream(path, options), path);
        }
        catch (Exception e) when (e is UnauthorizedAccessException or ArgumentException or NotSupportedException)
        {
            throw new IOException($"{path}: {e.Message}", e);
        }
    }

    /// <summary>Reads from a stream, which may deliver its bytes in pieces of any size.</summary>
    /// <param name="stream">The text, plain or gzip; the reader disposes it.</param>
    /// <param name="name">What to call it in messages.</param>
    /// <returns>A reader, which has not read anything yet.</returns>
    public static FtraceReader Open(Stream stream, string name)
    {
        ArgumentNullException.ThrowIfNull(stream);
        ArgumentNullException.ThrowIfNull(name);
        return new FtraceReader(stream, name);
    }

    /// <summary>Reads the next event.</summary>
    /// <param name="e">Receives the event; all of it is overwritten.</param>
    /// <returns>False at the end of the trace; <paramref name="e"/> is then empty.</returns>
    /// <exception cref="TraceFormatException">The input is no trace.</exception>
    /// <exception cref="IOException">The input cannot be read any further.</exception>
    public bool TryRead(ref TraceEvent e)
    {
        while (_lines.TryNext(out ReadOnlySpan<byte> line))
        {
            e = default;
            e.Node = -1;
            int text = _frame.Parse(line, ref e);
            if (text >= 0 && !_lines.IsCut)
            {
                _isTrace = true;
                string? reason = _events.Parse(line[text..], ref e);
                if (reason is null)
                {
                    e.Line = _lines.Line;
                    Events++;
                    return true;
                }

                AddDamage(reason, line);
            }
            else
            {
                NoEvent(line, text >= 0);
            }
        }

        e = default;
        AtEnd();
        return false;
    }

    /// <summary>Closes the input.</summary>
    public void Dispose() => _input.Dispose();

    private void NoEvent(ReadOnlySpan<byte> line, bool hasFrame)
    {
        if (_lines.IsCut)
        {
            _isTrace |= hasFrame;
            Strange(line, "the line is too long");
        }
        else if (line.StartsWith((byte)'#'))
        {
            Comment(line);
        }
        else if (line.StartsWith("CPU:"u8) && IsLost(line))
        {
            _isTrace = true;
            LostLines++;
        }
        else if (!line.TrimStart(" \t"u8).IsEmpty && !line.StartsWith(" => "u8))
        {
            Strange(line, line.Contains((byte)0) ? "NUL bytes" : "no columns TASK-PID [CPU] TIME: at the beginning");
        }
    }

    private void Comment(ReadOnlySpan<byte> line)
    {
        if (line.StartsWith("# tracer: "u8))
            _isTrace = true;

        int cpus = line.IndexOf("#P:"u8);
        if (cpus >= 0 && Utf8Parser.TryParse(line[(cpus + 3)..], out int count, out _) && count > 0)
            HeaderCpus = count;
    }

    /// <summary><c>CPU:2 [LOST 123 EVENTS]</c>, or without the number where the kernel does not know it.</summary>
    private bool IsLost(ReadOnlySpan<byte> line)
    {
        var f = new FieldCursor(line);
        if (!f.Skip("CPU:"u8) || !f.Decimal(out _) || !f.Skip(" [LOST "u8))
            return false;
        if (f.Rest.StartsWith("EVENTS]"u8))
            return true;
        if (!f.Decimal(out ulong count) || !f.Skip(" EVENTS]"u8))
            return false;

        LostEvents += (long)Math.Min(count, (ulong)(long.MaxValue - LostEvents));
        return true;
    }

    /// <summary>A line that is none of a trace: damage, unless so far nothing looked like a trace.</summary>
    private void Strange(ReadOnlySpan<byte> line, string reason)
    {
        AddDamage(reason, line);
        if (_isTrace)
            return;

        if (line.Contains((byte)0))
            throw NotATrace("it is binary");
        if (++_strangeLines >= PatienceLines || _lines.Position >= PatienceBytes)
            throw NotATrace($"none of the first {_lines.Line} lines looks like that");
    }

    private void AtEnd()
    {
        if (_ended)
            return;

        _ended = true;
        if (_input.Damage is InvalidDataException damage)
        {
            if (Events == 0)
                throw NotATrace("the gzip data is damaged or cut off before the first event", damage);
            AddDamage($"the gzip data is damaged or cut off here: {damage.Message}", default, _lines.Line + 1);
        }
        else if (_lines.Line == 0)
        {
            throw NotATrace("it is empty");
        }
        else if (!_isTrace)
        {
            throw NotATrace("it holds no event and no header of a trace");
        }
    }

    private void AddDamage(string reason, ReadOnlySpan<byte> line) => AddDamage(reason, line, _lines.Line);

    private void AddDamage(string reason, ReadOnlySpan<byte> line, long number)
    {
        DamagedCount++;
        if (_damage.Count < MaxDamageKept)
            _damage.Add(new TraceDamage(number, reason, Excerpt(line)));
    }

    private static string Excerpt(ReadOnlySpan<byte> line)
    {
        string text = Encoding.UTF8.GetString(line[..Math.Min(line.Length, ExcerptLength)]);
        return string.Create(text.Length, text, static (chars, text) =>
        {
            for (int i = 0; i < chars.Length; i++)
                chars[i] = char.IsControl(text[i]) || text[i] == '\ufffd' ? '?' : text[i];
        });
    }

    private TraceFormatException NotATrace(string found, Exception? inner = null) => new(
        $"{_input.Name}: expected ftrace text, plain or gzip, with lines like "
        + $"'bash-871 [002] ..... 412.000731: kfree: …', but {found}.",
        inner);
}
