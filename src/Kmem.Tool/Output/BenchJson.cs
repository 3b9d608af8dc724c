using Kmem.Tool.Bench;

namespace Kmem.Tool.Output;

/// <summary>JSON of <c>kmem bench</c>.</summary>
internal sealed record BenchJson(
    MachineFacts Machine, IReadOnlyDictionary<string, string> Versions, IReadOnlyList<string> Missing,
    IReadOnlyList<WorkloadJson> Workloads, IReadOnlyList<string> Notes)
{
    /// <summary>What the numbers do not show.</summary>
    internal static IReadOnlyList<string> WhatIsNotShown { get; } =
    [
        "ns is the best of many short rounds in turn, medianNs their median: what is possible, and what was usual "
            + "while the host did other things. Compare within one run only.",
        "Peers are called in the cheapest way that C# has, without leaving the garbage collector's mode; an ordinary "
            + "P/Invoke costs about a nanosecond more. c-… is the same loop in C.",
        "ArrayPool is shown, but is not a bar of a goal: its arrays are on the GC heap, and it does not hold many.",
        "The loops are small and their memory is in the cache. They say nothing of the misses of a large program, of "
            + "machines with many cores or several nodes, of latency in the worst case, or of fragmentation in weeks.",
    ];

    internal static BenchJson Of(BenchResult result) => new(
        MachineFacts.Read(), result.Versions, result.Missing, [.. result.Workloads.Select(WorkloadJson.Of)],
        WhatIsNotShown);
}

/// <summary>One workload: times by allocator, and whether the goal was reached.</summary>
/// <param name="Name">Its name.</param>
/// <param name="What">What it does.</param>
/// <param name="Ns">Nanoseconds per operation, the best round.</param>
/// <param name="MedianNs">The median of all rounds.</param>
/// <param name="ResidentBytes">Resident memory while it ran.</param>
/// <param name="AfterFreeBytes">Resident a while after all was freed.</param>
/// <param name="AfterTrimBytes">Resident after the allocator was asked to give back what it can.</param>
/// <param name="LiveBytes">Bytes that were allocated when resident memory was looked at.</param>
/// <param name="Judged">The allocator of Kmem that the goal is about.</param>
/// <param name="Best">The best peer; null if no peer took part.</param>
/// <param name="Ratio">What was measured, as a part of the best peer or of the limit; null if it could not be.</param>
/// <param name="Goal">The largest ratio that reaches the goal.</param>
/// <param name="GoalText">The goal in words.</param>
/// <param name="Reached">Whether it was reached; null without a ratio.</param>
/// <param name="EventsPerSecond">Events per second of a replay.</param>
/// <param name="Errors">What went wrong; such an allocator has no numbers.</param>
internal sealed record WorkloadJson(
    string Name, string What, IReadOnlyDictionary<string, double> Ns, IReadOnlyDictionary<string, double> MedianNs,
    IReadOnlyDictionary<string, long>? ResidentBytes, IReadOnlyDictionary<string, long>? AfterFreeBytes,
    IReadOnlyDictionary<string, long>? AfterTrimBytes, long? LiveBytes, string Judged, string? Best, double? Ratio,
    double Goal, string GoalText, bool? Reached, double? EventsPerSecond, IReadOnlyList<string> Errors)
{
    internal static WorkloadJson Of(WorkloadResult result)
    {
        Workload workload = result.Workload;
        CaseResult[] good = [.. result.Cases.Where(it => it.Error is null && it.Rounds.Length > 0)];
        Dictionary<string, double> ns = Times(good, rounds => rounds.Min());
        Dictionary<string, long>? resident = Bytes(good, it => it.Footprint?.Resident);
        (string? best, double? ratio) = Judge(workload, ns, resident);
        return new WorkloadJson(
            workload.Name, workload.What, ns,
            Times(good, Median),
            resident, Bytes(good, it => it.Footprint?.AfterFree), Bytes(good, it => it.Footprint?.AfterTrim),
            good.Select(it => it.Footprint?.Live).FirstOrDefault(it => it > 0), workload.Judged, best, ratio,
            workload.Goal, workload.GoalText, ratio is { } r ? IsReached(workload, r) : null,
            Rate(workload, ns),
            [.. result.Cases.Where(it => it.Error is not null).Select(it => $"{it.Allocator}: {it.Error}")]);
    }

    private static (string? Best, double? Ratio) Judge(
        Workload workload, Dictionary<string, double> ns, Dictionary<string, long>? resident)
    {
        Dictionary<string, double> measure = workload.Kind is GoalKind.Time or GoalKind.Rate
            ? ns
            : resident?.ToDictionary(it => it.Key, it => (double)it.Value, StringComparer.Ordinal) ?? [];
        string? best = measure.Keys.Where(it => IsBar(workload, it)).MinBy(it => measure[it]);
        double? limit = workload.Limit > 0 ? workload.Limit : best is null ? null : measure[best];
        bool judged = measure.TryGetValue(workload.Judged, out double own);
        return (best, judged && limit is { } one ? Math.Round(Math.Max(0, own) / one, 3) : null);
    }

    private static bool IsBar(Workload workload, string allocator) => workload.Bar is { } bar
        ? bar.Contains(allocator, StringComparer.Ordinal)
        : allocator != "ArrayPool" && !allocator.StartsWith("kmem", StringComparison.Ordinal);

    // "Ahead" is less; everything else says "at most".
    private static bool IsReached(Workload workload, double ratio) =>
        workload is { Kind: GoalKind.Time, Goal: 1 } ? ratio < 1 : ratio <= workload.Goal;

    private static Dictionary<string, long>? Bytes(CaseResult[] cases, Func<CaseResult, long?> bytes)
    {
        Dictionary<string, long> all = cases.Where(it => bytes(it) is not null)
            .ToDictionary(it => it.Allocator, it => bytes(it)!.Value, StringComparer.Ordinal);
        return all.Count == 0 ? null : all;
    }

    private static Dictionary<string, double> Times(CaseResult[] cases, Func<double[], double> pick) =>
        cases.ToDictionary(it => it.Allocator, it => Round(pick(it.Rounds)), StringComparer.Ordinal);

    private static double? Rate(Workload workload, Dictionary<string, double> ns) =>
        workload.Kind == GoalKind.Rate && ns.TryGetValue(workload.Judged, out double each) ? Math.Round(1e9 / each) : null;

    private static double Median(double[] values)
    {
        double[] sorted = [.. values.Order()];
        return sorted[sorted.Length / 2];
    }

    private static double Round(double ns) => Math.Round(ns, ns < 100 ? 2 : 0);
}
