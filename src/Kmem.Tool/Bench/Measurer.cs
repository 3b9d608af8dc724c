using System.Diagnostics;

namespace Kmem.Tool.Bench;

/// <summary>How long to measure.</summary>
/// <param name="Seconds">For each allocator.</param>
/// <param name="WarmUps">Pauses in which the compiler reaches its last tier.</param>
/// <param name="Small">Small working sets: a look whether it works.</param>
internal sealed record Effort(double Seconds, int WarmUps, bool Small);

/// <summary>What one allocator did in one process.</summary>
/// <param name="Allocator">Its name.</param>
/// <param name="Rounds">Nanoseconds per operation of every round.</param>
/// <param name="Footprint">Resident memory, if it was looked at.</param>
/// <param name="Version">Version of the library, if it tells.</param>
/// <param name="Error">What went wrong: nothing else counts then.</param>
internal sealed record CaseResult(
    string Allocator, double[] Rounds, Footprint? Footprint, string? Version, string? Error);

/// <summary>
/// Measures some allocators on one workload in this process. Rounds are short, and the allocators take turns, so that
/// whatever else the host does disturbs all alike, and the best round of each is one that was not disturbed.
/// </summary>
internal static class Measurer
{
    private const int WarmUpCalls = 40;
    private const int LongestCalibration = 20;

    private static readonly TimeSpan s_leastWarmUp = TimeSpan.FromMilliseconds(20);
    private static readonly TimeSpan s_pause = TimeSpan.FromMilliseconds(120);

    /// <summary>Measures; allocators that are not installed are left out.</summary>
    internal static List<CaseResult> Run(Workload workload, IReadOnlyList<string> allocators, Effort effort)
    {
        if (!workload.OwnProcess) return RunTogether(workload, allocators, effort);

        List<CaseResult> results = [];
        foreach (string allocator in allocators)
        {
            if (RunAlone(workload, allocator, effort) is { } result) results.Add(result);
        }
        return results;
    }

    private static List<CaseResult> RunTogether(Workload workload, IReadOnlyList<string> allocators, Effort effort)
    {
        var host = new Lazy<KmemHost>(() => new KmemHost());
        var factory = new CaseFactory(host, effort.Small);
        List<Contestant> contestants = [.. allocators
            .Select(it => factory.Create(workload, it)).OfType<Case>().Select(it => new Contestant(it))];
        WarmUp(contestants, effort, workload.RoundTime);
        foreach (Contestant it in contestants) it.Try(() => it.Operations = Calibrate(it.Case, workload.RoundTime));

        long end = Stopwatch.GetTimestamp() + (long)(effort.Seconds * contestants.Count * Stopwatch.Frequency);
        do
        {
            foreach (Contestant it in contestants) it.Try(() => it.Rounds.Add(Time(it.Case, it.Operations)));
        }
        while (Stopwatch.GetTimestamp() < end);

        foreach (Contestant it in contestants) it.Try(it.Case.Dispose);
        string? broken = host.IsValueCreated ? Broken(host.Value) : null;
        if (host.IsValueCreated) host.Value.Dispose();
        foreach (KmemHost other in factory.Others)
        {
            broken ??= Broken(other);
            other.Dispose();
        }
        return contestants.ConvertAll(it => it.Result(IsOwn(it.Case.Allocator) ? broken : null, null));
    }

    private static CaseResult? RunAlone(Workload workload, string allocator, Effort effort)
    {
        if (!Rehearse(workload, allocator, effort)) return null;

        Collect();
        long before = ProcessMemory.Resident().All;

        var host = new Lazy<KmemHost>(() => new KmemHost());
        var factory = new CaseFactory(host, effort.Small);
        var contestant = new Contestant(factory.Create(workload, allocator)!);
        Footprint? footprint = null;
        contestant.Try(() => footprint = Live(workload, contestant, factory, effort, before));
        contestant.Try(contestant.Case.Dispose);
        string? broken = host.IsValueCreated ? Broken(host.Value) : null;
        if (host.IsValueCreated) host.Value.Dispose();
        return contestant.Result(broken, footprint);
    }

    // The rounds of a case, and the most memory that it had at the end of one; or what it saw itself.
    private static Footprint Live(
        Workload workload, Contestant contestant, CaseFactory factory, Effort effort, long before)
    {
        Case it = contestant.Case;
        contestant.Operations = workload.Kind == GoalKind.Resident ? 1 : Calibrate(it, workload.RoundTime);
        Collect();
        if (workload.Kind == GoalKind.Growth) before = factory.Resident(it.Allocator);
        long most = 0;
        long end = Stopwatch.GetTimestamp() + (long)(effort.Seconds * Stopwatch.Frequency);
        do
        {
            contestant.Rounds.Add(Time(it, contestant.Operations));
            Collect();
            most = Math.Max(most, factory.Resident(it.Allocator));
        }
        while (Stopwatch.GetTimestamp() < end);

        it.Finish();
        return it.Footprint is not { } seen ? new Footprint(0, most - before) : seen with
        {
            Resident = seen.Resident - before,
            AfterFree = seen.AfterFree - before,
            AfterTrim = seen.AfterTrim - before,
        };
    }

    // The program's own heap is not looked at.
    private static void Collect()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
        GC.Collect();
    }

    // What is compiled and loaded for the case does not belong to the allocator's memory, so all of it is used once
    // before; with glibc for any library, as the code is the same and nothing of that library's memory is touched by
    // it.
    private static bool Rehearse(Workload workload, string allocator, Effort effort)
    {
        if (IsNative(allocator) && NativeLibraryPeer.TryLoad(allocator) is null) return false;

        var host = new Lazy<KmemHost>(() => new KmemHost());
        var factory = new CaseFactory(host, small: true);
        if (factory.Create(workload, IsNative(allocator) ? "glibc" : allocator) is { } it)
        {
            var contestant = new Contestant(it);
            // Of longer rounds: what is called seldom must be compiled well, too, before it is measured.
            WarmUp([contestant], effort, workload.RoundTime, most: long.MaxValue / 2);
            contestant.Try(it.Finish);
            contestant.Try(it.Dispose);
        }
        if (host.IsValueCreated) host.Value.Dispose();
        NativeLibraryPeer.TryLoad("glibc")?.Trim();
        return true;
    }

    private static void WarmUp(List<Contestant> contestants, Effort effort, TimeSpan roundTime, long most = 4096)
    {
        // The first call of a loop is compiled quickly and runs slowly; after thirty calls and a pause it is compiled
        // well.
        for (int i = 0; i < effort.WarmUps; i++)
        {
            foreach (Contestant it in contestants) it.Try(() => WarmUp(it.Case, roundTime, most));
            Thread.Sleep(s_pause);
        }
    }

    private static void WarmUp(Case it, TimeSpan roundTime, long most)
    {
        long operations = it.Least;
        double seconds = Math.Max(s_leastWarmUp.TotalSeconds, roundTime.TotalSeconds / 2);
        long end = Stopwatch.GetTimestamp() + (long)(seconds * Stopwatch.Frequency);
        for (int call = 0; call < WarmUpCalls && Stopwatch.GetTimestamp() < end; call++)
        {
            it.Round(operations);
            if (call > WarmUpCalls / 2) operations = Math.Max(it.Least, Math.Min(2 * operations, most));
        }
    }

    // As many operations as take the time of a round. Processor time counts, as far as it is less: where threads have
    // to wait for a processor, rounds must not become so short that starting threads is all they show.
    private static long Calibrate(Case it, TimeSpan roundTime)
    {
        long operations = it.Least;
        while (true)
        {
            TimeSpan before = Environment.CpuUsage.TotalTime;
            long start = Stopwatch.GetTimestamp();
            long done = it.Round(operations);
            TimeSpan took = Stopwatch.GetElapsedTime(start);
            TimeSpan worked = Environment.CpuUsage.TotalTime - before;
            TimeSpan least = took < worked ? took : worked;
            if (least > roundTime / 4) return Math.Max(it.Least, (long)(done * (roundTime / least)));
            if (took > LongestCalibration * roundTime) return Math.Max(it.Least, done);
            operations = 2 * Math.Max(operations, done);
        }
    }

    private static double Time(Case it, long operations)
    {
        long start = Stopwatch.GetTimestamp();
        long done = it.Round(operations);
        double took = Stopwatch.GetElapsedTime(start).TotalNanoseconds;
        return it.MeasuredNanoseconds ?? took / done;
    }

    private static string? Broken(KmemHost host)
    {
        if (host.CountOutstanding() is > 0 and var left) return $"{left} objects were not freed";
        IReadOnlyList<BrokenRule> broken = host.Machine.Validate();
        return broken.Count == 0 ? null : $"broken rule: {broken[0]}";
    }

    private static bool IsOwn(string allocator) => allocator.StartsWith("kmem", StringComparison.Ordinal);

    private static bool IsNative(string allocator) =>
        NativeLibraryPeer.Names.Contains(allocator, StringComparer.Ordinal);

    private static string? Version(string allocator) =>
        IsNative(allocator) ? NativeLibraryPeer.TryLoad(allocator)?.Version() : null;

    /// <summary>One case, and what came of it so far. After a failure it takes no further part.</summary>
    private sealed class Contestant(Case it)
    {
        private string? _error;

        internal Case Case => it;

        internal long Operations { get; set; } = 1;

        internal List<double> Rounds { get; } = [];

        internal void Try(Action action)
        {
            if (_error is not null) return;
            try
            {
                action();
            }
            catch (Exception e)
            {
                _error = e.Message;
            }
        }

        internal CaseResult Result(string? broken, Footprint? footprint) =>
            new(it.Allocator, [.. Rounds], footprint, Version(it.Allocator), _error ?? broken);
    }
}
