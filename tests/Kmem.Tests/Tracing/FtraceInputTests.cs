using System.Text;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>Streams, compression, long lines, lost events, and inputs that are no trace.</summary>
public sealed class FtraceInputTests
{
    private const string Free = TraceText.Frame + "kfree: call_site=f+0x1/0x2 ptr=0000000000000007\n";

    [Theory]
    [InlineData(1)]
    [InlineData(7)]
    [InlineData(4096)]
    public void PiecesOfAnySizeReadTheSame(int piece)
    {
        byte[] text = TraceText.Gunzip(TraceText.SamplePath())[..200_000];
        List<string> expected = TraceText.ReadAll(TraceText.Open(text));
        Assert.True(expected.Count > 1000);

        byte[] gzip = TraceText.Gzip(text);
        int half = text.Length / 2;
        byte[] members = [.. TraceText.Gzip(text[..half]), .. TraceText.Gzip(text[half..])];
        foreach (byte[] bytes in (byte[][])[text, gzip, members])
        {
            var stream = new TraceText.Trickle(bytes, piece);
            using (FtraceReader r = FtraceReader.Open(stream, "trickle"))
            {
                Assert.Equal(expected, TraceText.ReadAll(r));
                Assert.Equal(bytes.Length, r.InputPosition);
            }

            Assert.True(stream.Disposed);
        }
    }

    [Fact]
    public void AFileIsReadByPath()
    {
        string path = Path.GetTempFileName();
        try
        {
            File.WriteAllText(path, TraceText.Header + Free);
            using (FtraceReader r = FtraceReader.Open(path))
                Assert.Single(TraceText.ReadAll(r));
            File.WriteAllBytes(path, TraceText.Gzip(Encoding.UTF8.GetBytes(TraceText.Header + Free)));
            using (FtraceReader r = FtraceReader.Open(path))
                Assert.Single(TraceText.ReadAll(r));
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public void AFileThatCannotBeOpenedIsAnIOException()
    {
        Assert.ThrowsAny<IOException>(() => FtraceReader.Open("/no/such/file"));
        Assert.ThrowsAny<IOException>(() => FtraceReader.Open(Path.GetTempPath()));
        Assert.ThrowsAny<IOException>(() => FtraceReader.Open(string.Empty));
    }

    [Theory]
    [InlineData("\n", true)]
    [InlineData("\r\n", true)]
    [InlineData("\n", false)]
    public void LineEnds(string end, bool atEnd)
    {
        string text = (TraceText.Header + Free + Free).Replace("\n", end, StringComparison.Ordinal);
        using FtraceReader r = TraceText.Open(atEnd ? text : text.TrimEnd());
        TraceEvent e = default;
        Assert.True(r.TryRead(ref e));
        Assert.True(r.TryRead(ref e));
        Assert.Equal((7UL, 6), (e.Ptr, e.Line));
        Assert.False(r.TryRead(ref e));
        Assert.Equal((0, 4, 6), (r.DamagedCount, r.HeaderCpus, r.Lines));
    }

    [Fact]
    public void CommentsStackTracesAndBlankLinesAreNoDamage()
    {
        using FtraceReader r = TraceText.Open(
            TraceText.Header + "##### CPU 1 buffer started ####\n\n" + Free
            + TraceText.Frame + "<stack trace>\n => kfree\n => do_syscall_64+0x1/0x2\n   \n" + Free);
        Assert.Equal(3, TraceText.ReadAll(r).Count);
        Assert.Equal(0, r.DamagedCount);
    }

    [Fact]
    public void LostEventsAreCounted()
    {
        using FtraceReader r = TraceText.Open(
            Free + "CPU:2 [LOST 123 EVENTS]\n" + Free + "CPU:11 [LOST EVENTS]\nCPU:0 [LOST 7 EVENTS]\n"
            + "CPU:0 [LOST many EVENTS]\n");
        Assert.Equal(2, TraceText.ReadAll(r).Count);
        Assert.Equal((130, 3, 1), (r.LostEvents, r.LostLines, r.DamagedCount));
    }

    [Fact]
    public void ATraceWithoutEventsIsEmptyNotWrong()
    {
        using FtraceReader r = TraceText.Open(TraceText.Header);
        Assert.Empty(TraceText.ReadAll(r));
        Assert.Equal(4, r.HeaderCpus);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(1_000_000)]
    public void ALineThatIsTooLongIsSkipped(int beyond)
    {
        string tooLong = TraceText.Frame + "tracing_mark_write: ";
        tooLong += new string('x', LineReader.MaxLine + beyond - tooLong.Length);
        string text = TraceText.Header + Free + tooLong + "\n" + Free;
        foreach (Stream stream in (Stream[])
            [new MemoryStream(Encoding.UTF8.GetBytes(text)), new TraceText.Trickle(Encoding.UTF8.GetBytes(text), 999)])
        {
            using FtraceReader r = FtraceReader.Open(stream, "long line");
            TraceEvent e = default, last = default;
            while (r.TryRead(ref e))
                last = e;
            Assert.Equal((7, 7, 7UL), (last.Line, r.Lines, last.Ptr));
            Assert.Equal(beyond == 0 ? 3 : 2, r.Events);
            Assert.Equal(beyond == 0 ? [] : [6L], r.Damage.Select(d => d.Line));
        }
    }

    [Fact]
    public void OnlyTheFirstDamagedLinesAreKept()
    {
        using FtraceReader r = TraceText.Open(
            Free + string.Concat(Enumerable.Range(0, 5000).Select(i => $"nonsense {i}\n")) + Free);
        Assert.Equal(2, TraceText.ReadAll(r).Count);
        Assert.Equal((5000, 20), (r.DamagedCount, r.Damage.Count));
        Assert.Equal(new TraceDamage(2, r.Damage[0].Reason, "nonsense 0"), r.Damage[0]);
    }

    public static TheoryData<string, byte[]> NotTraces => new()
    {
        { "empty", [] },
        { "gzip data is damaged", TraceText.Gzip("x"u8.ToArray())[..12] },
        { "gzip data is damaged", [0x1f, 0x8b, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] },
        { "gzip data is damaged", [0x1f, 0x8b] },
        { "no event", "hello\nworld\n"u8.ToArray() },
        { "no event", "# a comment\n\n"u8.ToArray() },
        { "no event", "\n"u8.ToArray() },
        { "first 1000 lines", Encoding.UTF8.GetBytes(string.Concat(Enumerable.Repeat("a line\n", 5000))) },
        { "first 1 lines", Encoding.UTF8.GetBytes(new string('x', 1 << 20)) },
        { "first 66 lines", Encoding.UTF8.GetBytes(string.Concat(Enumerable.Repeat(new string('y', 999) + "\n", 99))) },
        { "binary", [0x7f, (byte)'E', (byte)'L', (byte)'F', 0, 1, 2, 0, 0, (byte)'\n', 7] },
        { "trace-cmd report", [0x17, 0x08, 0x44, .. "tracing6"u8] },
        { "perf script", "PERFILE2abcdefgh"u8.ToArray() },
        { "zstd", [0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4] },
        { "xz", [0xfd, .. "7zXZ"u8, 0, 0, 4] },
        { "bzip2", "BZh91AY&SY"u8.ToArray() },
    };

    [Theory]
    [MemberData(nameof(NotTraces))]
    public void WhatIsNoTraceSaysSo(string found, byte[] bytes)
    {
        using FtraceReader r = FtraceReader.Open(new TraceText.Trickle(bytes, 4096), "the-input");
        var error = Assert.Throws<TraceFormatException>(() => TraceText.ReadAll(r));
        Assert.Contains(found, error.Message, StringComparison.Ordinal);
        Assert.StartsWith("the-input: expected ftrace text", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void EventsBeforeDamagedGzipDataAreKept()
    {
        byte[] text = TraceText.Gunzip(TraceText.SamplePath())[..2_000_000];
        List<string> all = TraceText.ReadAll(TraceText.Open(text));
        byte[] gzip = TraceText.Gzip(text);
        foreach (double at in (double[])[0.2, 0.5, 0.9])
        {
            using FtraceReader r = TraceText.Open(gzip[..(int)(gzip.Length * at)]);
            List<string> read = TraceText.ReadAll(r);
            Assert.InRange(read.Count, all.Count * (at - 0.15), all.Count - 1);
            Assert.Equal(all[..read.Count], read);
            Assert.Equal(1, r.DamagedCount);
            Assert.Equal(r.Lines + 1, r.Damage[0].Line);
            Assert.Contains("gzip", r.Damage[0].Reason, StringComparison.Ordinal);
        }
    }

    /// <summary>Cut at every byte, header and trailer included, with one member and with two.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void NoCutOfAGzipFileGoesUnnoticed(bool twoMembers)
    {
        byte[] text = Encoding.UTF8.GetBytes(TraceText.Header + string.Concat(Enumerable.Repeat(Free, 5)));
        byte[] gzip = TraceText.Gzip(text);
        int first = twoMembers ? gzip.Length : 0;       // a whole member before the one that is cut
        gzip = [.. gzip[..first], .. gzip];
        for (int length = first + 1; length < gzip.Length; length++)
        {
            using FtraceReader r = TraceText.Open(gzip[..length]);
            try
            {
                int read = TraceText.ReadAll(r).Count;
                Assert.InRange(read, twoMembers ? 5 : 1, twoMembers ? 10 : 5);
                Assert.Equal((length, 1), (length, r.DamagedCount));
            }
            catch (TraceFormatException) when (!twoMembers)
            {
                Assert.Equal((length, 0), (length, r.Events));
            }
        }
    }

    /// <summary>Tapes and copies of blocks pad a file with zeros; that is no damage.</summary>
    [Fact]
    public void PaddingAfterGzipDataIsPassedOver()
    {
        byte[] gzip = TraceText.Gzip(Encoding.UTF8.GetBytes(Free));
        using FtraceReader r = TraceText.Open([.. gzip, .. new byte[512]]);
        Assert.Single(TraceText.ReadAll(r));
        Assert.Equal(0, r.DamagedCount);
    }

    [Fact]
    public void ReadErrorsPassThrough()
    {
        using FtraceReader r = FtraceReader.Open(new FailingStream(), "failing");
        TraceEvent e = default;
        Assert.True(r.TryRead(ref e));
        Assert.Throws<IOException>(() =>
        {
            TraceEvent next = default;
            r.TryRead(ref next);
        });
    }

    /// <summary>48 MiB of text with some damage must not allocate more than 1 MiB of it did.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void LongInputsNeedNoMoreMemory(bool gzip)
    {
        byte[] block = TraceText.Gunzip(TraceText.SamplePath())[..1_000_000];
        block = block[..(block.AsSpan().LastIndexOf((byte)'\n') + 1)];
        byte[] bytes = gzip ? TraceText.Gzip(block) : block;
        using FtraceReader r = FtraceReader.Open(new RepeatingStream(bytes, 48), "long");

        TraceEvent e = default;
        long lines = block.Count((byte)'\n');
        while (r.Lines < lines)
            Assert.True(r.TryRead(ref e));
        int names = r.Names.Count;
        long before = GC.GetAllocatedBytesForCurrentThread();
        while (r.TryRead(ref e))
        {
        }

        long allocated = GC.GetAllocatedBytesForCurrentThread() - before;
        Assert.Equal(48 * lines, r.Lines);
        Assert.Equal(names, r.Names.Count);

        // A collection on another thread ends this one's allocation buffer, which then counts whole.
        Assert.InRange(allocated, 0, 64 << 10);
    }

    private sealed class FailingStream() : MemoryStream(Encoding.UTF8.GetBytes(Free))
    {
        public override int Read(Span<byte> buffer) =>
            base.Read(buffer) is var n and > 0 ? n : throw new IOException("the disk is gone");
    }

    private sealed class RepeatingStream(byte[] block, int times) : MemoryStream
    {
        private long _at;

        public override int Read(Span<byte> buffer)
        {
            int offset = (int)(_at % block.Length);
            int n = _at == (long)block.Length * times ? 0 : Math.Min(buffer.Length, block.Length - offset);
            block.AsSpan(offset, n).CopyTo(buffer);
            _at += n;
            return n;
        }

        public override int Read(byte[] buffer, int offset, int count) => Read(buffer.AsSpan(offset, count));
    }
}
