using System.Globalization;
using System.IO.Compression;
using System.Text;
using Kmem.Tracing;

namespace Kmem.Benchmarks;

/// <summary>
/// A trace of any length from the two short recordings in the repository: both again and again, each followed by frees
/// of what it leaves allocated, so that every repetition starts alike. The text is made while it is read.
/// </summary>
internal sealed class LongTrace
{
    private static readonly string[] s_recordings =
        ["samples/traces/git/trace.txt.gz", "tests/data/traces/gcc/trace.txt.gz"];

    private readonly byte[] _header =
        "# tracer: nop\n#\n# entries-in-buffer/entries-written: 1/1   #P:2\n#\n"u8.ToArray();
    private readonly byte[] _body;

    public LongTrace()
    {
        DirectoryInfo root = new(AppContext.BaseDirectory);
        while (!File.Exists(Path.Combine(root.FullName, "Kmem.slnx")))
            root = root.Parent ?? throw new DirectoryNotFoundException("no Kmem.slnx above the benchmark");

        using var body = new MemoryStream();
        foreach (string recording in s_recordings)
        {
            byte[] text = Gunzip(Path.Combine(root.FullName, recording));
            body.Write(text);
            body.Write(Encoding.ASCII.GetBytes(ClosingFrees(text)));
        }

        _body = body.ToArray();
        EventsPerRound = Count(_body);
    }

    /// <summary>Events in one repetition.</summary>
    public long EventsPerRound { get; }

    /// <summary>Bytes of one repetition.</summary>
    public int BytesPerRound => _body.Length;

    public FtraceReader Open(int rounds) => FtraceReader.Open(new Repeated(_header, _body, rounds), "long trace");

    /// <summary>The same, packed by gzip.</summary>
    public byte[] Pack(int rounds)
    {
        using var packed = new MemoryStream();
        using (var gzip = new GZipStream(packed, CompressionLevel.Optimal))
        using (var text = new Repeated(_header, _body, rounds))
            text.CopyTo(gzip);
        return packed.ToArray();
    }

    private static string ClosingFrees(byte[] text)
    {
        var objects = new Dictionary<ulong, string>();
        var blocks = new Dictionary<ulong, string>();
        using FtraceReader reader = FtraceReader.Open(new MemoryStream(text), "recording");
        TraceEvent e = default;
        while (reader.TryRead(ref e))
        {
            string frame = string.Create(
                CultureInfo.InvariantCulture, $"{"closing",16}-{e.Pid,-7} [{e.Cpu:d3}] .....  9999.000000: ");
            switch (e.Kind)
            {
                case TraceEventKind.Kmalloc:
                    objects[e.Ptr] = $"{frame}kfree: call_site=closing+0x0/0x0 ptr={e.Ptr:x16}\n";
                    break;
                case TraceEventKind.KmemCacheAlloc:
                    objects[e.Ptr] = $"{frame}kmem_cache_free: call_site=closing+0x0/0x0 ptr={e.Ptr:x16} "
                        + $"name={reader.Names[e.Name]}\n";
                    break;
                case TraceEventKind.PageAlloc:
                    blocks[e.Pfn] = $"{frame}mm_page_free: page={e.Page:x16} pfn=0x{e.Pfn:x} order={e.Order}\n";
                    break;
                case TraceEventKind.Kfree or TraceEventKind.KmemCacheFree:
                    objects.Remove(e.Ptr);
                    break;
                case TraceEventKind.PageFree:
                    blocks.Remove(e.Pfn);
                    break;
            }
        }

        return string.Concat(objects.OrderBy(pair => pair.Key).Concat(blocks.OrderBy(pair => pair.Key))
            .Select(pair => pair.Value));
    }

    private static long Count(byte[] text)
    {
        using FtraceReader reader = FtraceReader.Open(new MemoryStream(text), "recordings");
        TraceEvent e = default;
        while (reader.TryRead(ref e))
        {
        }

        return reader.Events;
    }

    private static byte[] Gunzip(string path)
    {
        using var gzip = new GZipStream(File.OpenRead(path), CompressionMode.Decompress);
        using var text = new MemoryStream();
        gzip.CopyTo(text);
        return text.ToArray();
    }

    /// <summary>A head once, then a body so many times.</summary>
    private sealed class Repeated(byte[] head, byte[] body, int rounds) : Stream
    {
        private byte[] _part = head;
        private int _at;
        private int _left = rounds;

        public override bool CanRead => true;

        public override bool CanSeek => false;

        public override bool CanWrite => false;

        public override long Length => throw new NotSupportedException();

        public override long Position
        {
            get => throw new NotSupportedException();
            set => throw new NotSupportedException();
        }

        public override int Read(Span<byte> buffer)
        {
            if (_at == _part.Length)
            {
                if (_left-- <= 0)
                    return 0;
                _part = body;
                _at = 0;
            }

            int count = Math.Min(buffer.Length, _part.Length - _at);
            _part.AsSpan(_at, count).CopyTo(buffer);
            _at += count;
            return count;
        }

        public override int Read(byte[] buffer, int offset, int count) => Read(buffer.AsSpan(offset, count));

        public override void Flush()
        {
        }

        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

        public override void SetLength(long value) => throw new NotSupportedException();

        public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();
    }
}
