using System.IO.Compression;
using BenchmarkDotNet.Attributes;
using Kmem.Tracing;

namespace Kmem.Benchmarks;

/// <summary>The ftrace reader alone, on the sample in the repository: 44 331 events of 167 bytes on average.</summary>
[MemoryDiagnoser]
public class ReaderBenchmarks
{
    /// <summary>Events in the sample; times are per event.</summary>
    public const int Events = 44331;

    private byte[] _gzip = [];
    private byte[] _text = [];

    [GlobalSetup]
    public void Setup()
    {
        DirectoryInfo root = new(AppContext.BaseDirectory);
        while (!File.Exists(Path.Combine(root.FullName, "Kmem.slnx")))
            root = root.Parent ?? throw new DirectoryNotFoundException("no Kmem.slnx above the benchmark");
        _gzip = File.ReadAllBytes(Path.Combine(root.FullName, "samples/traces/git/trace.txt.gz"));

        using var gzip = new GZipStream(new MemoryStream(_gzip), CompressionMode.Decompress);
        using var text = new MemoryStream();
        gzip.CopyTo(text);
        _text = text.ToArray();
    }

    [Benchmark(OperationsPerInvoke = Events)]
    public ulong Text() => Read(_text);

    [Benchmark(OperationsPerInvoke = Events)]
    public ulong Gzip() => Read(_gzip);

    private static ulong Read(byte[] bytes)
    {
        using FtraceReader reader = FtraceReader.Open(new MemoryStream(bytes), "sample");
        TraceEvent e = default;
        ulong sum = 0;
        while (reader.TryRead(ref e))
            sum += e.Ptr;
        return reader.Events == Events ? sum : throw new InvalidDataException("the sample has changed");
    }
}
