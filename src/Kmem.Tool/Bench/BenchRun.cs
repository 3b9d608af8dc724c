namespace Kmem.Tool.Bench;

/// <summary>What is to be measured.</summary>
/// <param name="Workloads">Which workloads.</param>
/// <param name="Against">Which peers; those that are not installed are left out.</param>
/// <param name="Effort">How long.</param>
/// <param name="Passes">Over how many processes the time of each allocator is divided.</param>
/// <param name="UseC">Whether the loops in C run as well.</param>
internal sealed record BenchPlan(
    IReadOnlyList<Workload> Workloads, IReadOnlyCollection<string> Against, Effort Effort, int Passes, bool UseC)
{
    /// <summary>Profiles that take part besides the native one, where workloads share a process.</summary>
    internal IReadOnlyList<KernelProfile> Profiles { get; init; } = [];
}

/// <summary>What one workload gave.</summary>
internal sealed record WorkloadResult(Workload Workload, IReadOnlyList<CaseResult> Cases);

/// <summary>All that a run gave.</summary>
/// <param name="Workloads">Results, in the order of the plan.</param>
/// <param name="Versions">Versions of peers and of the C compiler.</param>
/// <param name="Missing">Peers that were asked for and are not installed.</param>
internal sealed record BenchResult(
    IReadOnlyList<WorkloadResult> Workloads, IReadOnlyDictionary<string, string> Versions,
    IReadOnlyList<string> Missing);

/// <summary>
/// Runs a plan: every workload in processes of its own, one for the allocators that can live together, one for each
/// that must be there from the start, and one for each where resident memory is looked at.
/// </summary>
internal static class BenchRun
{
    /// <param name="plan">What to do.</param>
    /// <param name="progress">Called with the share that is done and what comes next.</param>
    /// <param name="cancel">Ends it.</param>
    internal static async Task<BenchResult> RunAsync(
        BenchPlan plan, Action<double, string> progress, CancellationToken cancel)
    {
        using CLoops? c = plan.UseC && plan.Workloads.Any(it => it.HasC) ? await CLoops.TryCompileAsync(cancel) : null;
        var versions = new SortedDictionary<string, string>(StringComparer.Ordinal);
        if (c is not null) versions["cc"] = c.Compiler;

        List<WorkloadResult> results = [];
        for (int i = 0; i < plan.Workloads.Count; i++)
        {
            Workload workload = plan.Workloads[i];
            var rounds = new Dictionary<string, CaseResult>(StringComparer.Ordinal);
            for (int pass = 0; pass < plan.Passes; pass++)
            {
                progress((i + ((double)pass / plan.Passes)) / plan.Workloads.Count, workload.Name);
                await foreach (CaseResult result in MeasureAsync(workload, plan, c, cancel))
                {
                    bool first = !rounds.TryGetValue(result.Allocator, out CaseResult? before);
                    rounds[result.Allocator] = first ? result : Merge(before!, result);
                    if (result.Version is { } version) versions[result.Allocator] = version;
                }
            }
            results.Add(new WorkloadResult(workload, [.. rounds.Values]));
        }

        HashSet<string> seen = [.. results.SelectMany(it => it.Cases).Select(it => it.Allocator)];
        HashSet<string> wanted = [.. plan.Workloads.SelectMany(it => it.Peers)];
        return new BenchResult(results, versions,
            [.. plan.Against.Where(it => wanted.Contains(it) && !seen.Contains(it))]);
    }

    private static async IAsyncEnumerable<CaseResult> MeasureAsync(
        Workload workload, BenchPlan plan, CLoops? c,
        [System.Runtime.CompilerServices.EnumeratorCancellation] CancellationToken cancel)
    {
        Effort effort = plan.Effort with { Seconds = plan.Effort.Seconds / plan.Passes };
        string[] peers = [.. workload.Peers.Where(plan.Against.Contains)];
        IEnumerable<string> profiles = workload.OwnProcess || !workload.Own.Contains("kmem")
            ? [] : plan.Profiles.Select(it => CaseFactory.ProfilePrefix + it.Name);
        string[] together = [.. workload.Own, .. profiles, .. peers.Where(it => !NativeLibraryPeer.NeedsPreload(it))];
        IEnumerable<string[]> groups = workload.OwnProcess ? together.Select(it => new[] { it }) : [together];
        foreach (string[] group in groups)
        {
            foreach (CaseResult it in await ChildProcess.MeasureAsync(workload, group, effort, null, cancel))
                yield return it;
        }
        foreach (string peer in peers.Where(NativeLibraryPeer.NeedsPreload))
        {
            string file = NativeLibraryPeer.FilesOf(peer)[0];
            foreach (CaseResult it in await ChildProcess.MeasureAsync(workload, [peer], effort, file, cancel))
                yield return it;
        }
        if (c is null || !workload.HasC) yield break;

        foreach (string peer in peers.Where(it => NativeLibraryPeer.Names.Contains(it, StringComparer.Ordinal)))
        {
            if (await c.MeasureAsync(workload, peer, effort.Seconds, cancel) is { } result) yield return result;
        }
    }

    // Of several lives of an allocator the one with the least memory counts, as of several rounds the fastest.
    private static CaseResult Merge(CaseResult a, CaseResult b) => a with
    {
        Rounds = [.. a.Rounds, .. b.Rounds],
        Footprint = a.Footprint is null || b.Footprint?.Resident < a.Footprint.Resident ? b.Footprint : a.Footprint,
        Error = a.Error ?? b.Error,
    };
}
