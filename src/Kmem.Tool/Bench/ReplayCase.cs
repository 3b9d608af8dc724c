using System.IO.Compression;
using System.Runtime.CompilerServices;
using Kmem.Tracing;

namespace Kmem.Tool.Bench;

/// <summary>
/// <c>replay</c>: the recording of a git session, read from ftrace text and replayed; times are per event.
/// </summary>
internal sealed class ReplayCase(string name) : Case(name)
{
    private readonly byte[] _text = Sample();
    private TimeSpan _elapsed;
    private long _events;

    internal override double? MeasuredNanoseconds => _elapsed.TotalNanoseconds / _events;

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        _elapsed = TimeSpan.Zero;
        _events = 0;
        do
        {
            using FtraceReader reader = FtraceReader.Open(new MemoryStream(_text), "sample");
            using ReplayResult result = Replay.Run(reader, new ReplayOptions { RamBytes = 4UL << 30 });
            ReplayReport report = result.Report;
            if (report.Violations > 0 || report.FailedAllocs > 0)
                throw new InvalidOperationException("the replay of the sample found something: see 'kmem replay'");
            _elapsed += report.Elapsed;
            _events += report.Events;
        }
        while (_events < operations);
        return _events;
    }

    private static byte[] Sample()
    {
        using Stream packed = typeof(ReplayCase).Assembly.GetManifestResourceStream("sample-trace.txt.gz")!;
        using var gzip = new GZipStream(packed, CompressionMode.Decompress);
        using var text = new MemoryStream();
        gzip.CopyTo(text);
        return text.ToArray();
    }
}
