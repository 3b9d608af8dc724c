using System.Diagnostics;
using BenchmarkDotNet.Attributes;
using Kmem.Tracing;

namespace Kmem.Benchmarks;

/// <summary>
/// Reading and replaying a trace, on one core: times are per event. The two parts of the work are measured alone, too.
/// </summary>
public class ReplayBenchmarks
{
    private const int Rounds = 10;

    private readonly LongTrace _trace = new();
    private byte[] _packed = [];

    [GlobalSetup]
    public void Setup()
    {
        _packed = _trace.Pack(Rounds);
        if (_trace.EventsPerRound != EventsPerRound)
            throw new InvalidDataException($"the recordings have changed: {_trace.EventsPerRound} events a round");
    }

    /// <summary>Events of one repetition of the mix; see <see cref="LongTrace"/>.</summary>
    public const int EventsPerRound = 136050;

    [Benchmark(OperationsPerInvoke = EventsPerRound * Rounds)]
    public long ReplayText() => RunReplay(_trace.Open(Rounds));

    [Benchmark(OperationsPerInvoke = EventsPerRound * Rounds)]
    public long ReplayGzip() => RunReplay(FtraceReader.Open(new MemoryStream(_packed), "packed trace"));

    [Benchmark(OperationsPerInvoke = EventsPerRound * Rounds)]
    public ulong ReadText()
    {
        using FtraceReader reader = _trace.Open(Rounds);
        TraceEvent e = default;
        ulong sum = 0;
        while (reader.TryRead(ref e))
            sum += e.Ptr;
        return sum;
    }

    /// <summary>
    /// A quick look without statistics: <c>replay [rounds] [runs]</c> prints events per second of each run, plain text
    /// and gzip, and of the reader alone.
    /// </summary>
    public static int Look(string[] args)
    {
        int rounds = args.Length > 0 ? int.Parse(args[0]) : 20;
        int runs = args.Length > 1 ? int.Parse(args[1]) : 5;
        var trace = new LongTrace();
        byte[] packed = trace.Pack(rounds);
        Console.WriteLine(
            $"{trace.EventsPerRound * rounds:n0} events, {(long)trace.BytesPerRound * rounds / 1e6:n0} MB of text");
        for (int run = 0; run < runs; run++)
        {
            double text = Measure(trace.Open(rounds), replay: true);
            double gzip = Measure(FtraceReader.Open(new MemoryStream(packed), "packed trace"), replay: true);
            double read = Measure(trace.Open(rounds), replay: false);
            Console.WriteLine($"replay text {text:f2} M/s   gzip {gzip:f2} M/s   read text only {read:f2} M/s");
        }

        return 0;
    }

    private static double Measure(FtraceReader reader, bool replay)
    {
        long start = Stopwatch.GetTimestamp();
        long events = replay ? RunReplay(reader) : RunReader(reader);
        return events / Stopwatch.GetElapsedTime(start).TotalSeconds / 1e6;
    }

    private static long RunReplay(FtraceReader reader)
    {
        using (reader)
        using (ReplayResult result = Replay.Run(reader, new ReplayOptions()))
        {
            ReplayReport report = result.Report;
            if (report.Violations != 0 || report.FailedAllocs != 0 || report.LiveObjects != 0)
                throw new InvalidDataException($"{report.LiveObjects} objects left, {report.Violations} violations");
            return report.Events;
        }
    }

    private static long RunReader(FtraceReader reader)
    {
        using (reader)
        {
            TraceEvent e = default;
            while (reader.TryRead(ref e))
            {
            }

            return reader.Events;
        }
    }
}
