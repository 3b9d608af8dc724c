using System.IO.Compression;
using System.Text;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>What the tests of the ftrace reader share: inputs, and events as text that can be compared.</summary>
internal static class TraceText
{
    public const string Header = "# tracer: nop\n#\n# entries-in-buffer/entries-written: 3/3   #P:4\n#\n";

    /// <summary>The columns before the text of an event.</summary>
    public const string Frame = "            demo-871     [002] d.h3.   412.000731: ";

    public static readonly string[] Recorded =
    [
        SamplePath(), TestData.PathOf("traces/gcc/trace.txt.gz"),
        TestData.PathOf("vmap/r3/trace.txt.gz"), TestData.PathOf("vmap/r4/trace.txt.gz"),
    ];

    public static string SamplePath() =>
        Path.GetFullPath(Path.Combine(TestData.PathOf("."), "../../samples/traces/git/trace.txt.gz"));

    public static FtraceReader Open(string text) => Open(Encoding.UTF8.GetBytes(text));

    public static FtraceReader Open(byte[] bytes) => FtraceReader.Open(new MemoryStream(bytes), "test input");

    /// <summary>Reads the only event of a text with one event.</summary>
    public static TraceEvent One(string text, out FtraceReader reader)
    {
        reader = Open(text);
        TraceEvent e = default;
        Assert.True(reader.TryRead(ref e), "no event; damage: " + string.Join("; ", reader.Damage));
        TraceEvent next = default;
        Assert.False(reader.TryRead(ref next));
        Assert.Equal(0, reader.DamagedCount);
        return e;
    }

    /// <summary>The event whose text is given, after the usual columns.</summary>
    public static TraceEvent Event(string text, out FtraceReader reader) => One(Frame + text + "\n", out reader);

    public static List<string> ReadAll(FtraceReader reader)
    {
        var all = new List<string>();
        TraceEvent e = default;
        while (reader.TryRead(ref e))
            all.Add(Describe(reader, e));
        return all;
    }

    /// <summary>Everything in an event except its line number; numbers of names are replaced by the names.</summary>
    public static string Describe(FtraceReader reader, in TraceEvent e) =>
        $"{e.Kind} cpu={e.Cpu} t={e.TimestampNs} pid={e.Pid} tgid={e.Tgid} state={e.State:x} "
        + $"ptr={e.Ptr:x}/{e.PtrHidden} page={e.Page:x} pfn={e.Pfn:x} order={e.Order} mt={e.Migratetype} "
        + $"req={e.BytesReq} alloc={e.BytesAlloc} "
        + $"gfp={e.GfpFlags:x} node={e.Node} acc={e.Accounted} site={reader.CallSites[e.CallSite]} "
        + $"name={reader.Names[e.Name]} event={reader.EventNames[e.EventName]} refill={e.PercpuRefill} "
        + $"fb={e.FallbackOrder},{e.PageblockOrder},{e.FallbackMigratetype},{e.Fragmenting},{e.ChangeOwnership} "
        + $"va={e.VmapStart:x}-{e.VmapEnd:x},{e.VmapSize},{e.VmapAlign},{e.VmapRangeStart:x}-{e.VmapRangeEnd:x},"
        + $"{e.VmapFailed} purged={e.VmapPurged} lazy={e.VmapLazyPages}/{e.VmapLazyMax} text={e.Text}";

    public static byte[] Gzip(byte[] bytes)
    {
        var packed = new MemoryStream();
        using (var gzip = new GZipStream(packed, CompressionLevel.Fastest))
            gzip.Write(bytes);
        return packed.ToArray();
    }

    public static byte[] Gunzip(string path)
    {
        using var gzip = new GZipStream(File.OpenRead(path), CompressionMode.Decompress);
        var text = new MemoryStream();
        gzip.CopyTo(text);
        return text.ToArray();
    }

    /// <summary>A stream that cannot seek and delivers at most so many bytes at a time, as pipes do.</summary>
    internal sealed class Trickle(byte[] bytes, int piece) : Stream
    {
        private int _at;

        public bool Disposed { get; private set; }

        public override bool CanRead => true;

        public override bool CanSeek => false;

        public override bool CanWrite => false;

        public override long Length => throw new NotSupportedException();

        public override long Position
        {
            get => throw new NotSupportedException();
            set => throw new NotSupportedException();
        }

        public override int Read(byte[] buffer, int offset, int count)
        {
            int n = Math.Min(Math.Min(piece, count), bytes.Length - _at);
            bytes.AsSpan(_at, n).CopyTo(buffer.AsSpan(offset));
            _at += n;
            return n;
        }

        public override void Flush()
        {
        }

        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

        public override void SetLength(long value) => throw new NotSupportedException();

        public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();

        protected override void Dispose(bool disposing)
        {
            Disposed = true;
            base.Dispose(disposing);
        }
    }
}
