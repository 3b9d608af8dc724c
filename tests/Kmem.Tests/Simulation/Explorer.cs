using System.Diagnostics;
using System.Globalization;

namespace Kmem.Tests;

/// <summary>Work for CPUs on a machine of its own, and what has to be true afterwards.</summary>
internal interface ISimulated : IDisposable
{
    /// <summary>For each CPU its stages.</summary>
    IReadOnlyList<Action[]> Work { get; }

    /// <summary>All CPUs have ended; throws if anything is not as it should be.</summary>
    void Check();
}

/// <summary>
/// Runs a piece of work in many orders. One number, the seed, names both the work and the order: seed / 16 seeds the
/// work, and of the 16 orders of each work the first has no preemption at all, the others one to six at random places.
/// What fails is shrunk to the fewest preemptions that still make it fail.
/// </summary>
/// <remarks>
/// <c>KMEM_SIM_SECONDS</c> sets how long each exploration goes on (else a number of runs decides), <c>KMEM_SIM_SEED</c>
/// where it begins. To see one run again: that seed, and <c>KMEM_SIM_SECONDS=0</c>.
/// </remarks>
internal sealed class Explorer(string name, Func<int, ISimulated> create)
{
    private const int OrdersPerWork = 16;
    private const int MostPreemptions = 6;

    private readonly HashSet<ulong> _seen = [];
    private long _runs;
    private long _steps;
    private long _switches;

    /// <summary>A planted error: locks of this rank keep nobody out.</summary>
    public LockRank? Open { get; init; }

    public int Interleavings => _seen.Count;

    /// <summary>Explores; fails the test with the seed and the shortest order if a run fails.</summary>
    public void MustHold(int runs)
    {
        if (Explore(runs) is { } failure)
            Assert.Fail(failure.ToString());
    }

    /// <summary>The first failure, shrunk; null if there is none.</summary>
    public Failure? Explore(int runs)
    {
        int seed = Setting("KMEM_SIM_SEED") is { } first ? (int)first : 0;
        double? seconds = Open == null ? Setting("KMEM_SIM_SECONDS") : null;
        var clock = Stopwatch.StartNew();
        Failure? failure = null;
        long stepsOfWork = 0;
        int begin = seed;
        do
        {
            if (seed % OrdersPerWork == 0 || seed == begin)
                stepsOfWork = RunOnce(seed, []).Steps;
            Preemption[] order = OrderOf(seed, stepsOfWork);
            Outcome outcome = RunOnce(seed, order);
            if (outcome.Error != null)
                failure = Shrink(seed, order, outcome);
            seed++;
        }
        while (failure == null && (seconds is { } limit ? clock.Elapsed.TotalSeconds < limit : seed - begin < runs));

        Figures.Add("simulation", "runs", _runs);
        Figures.Add("simulation", "interleavings", _seen.Count);
        Figures.Add("simulation", "steps", _steps);
        Figures.Add("simulation", "switches", _switches);
        TestContext.Current.TestOutputHelper?.WriteLine(
            $"{name}: {_runs} runs, {_seen.Count} interleavings, {_steps} steps, {_switches} switches, "
            + $"seeds {begin} to {seed - 1}, {clock.Elapsed.TotalSeconds:F1} s");
        return failure;
    }

    /// <summary>One run, with a machine of its own.</summary>
    public Outcome RunOnce(int seed, IReadOnlyList<Preemption> order)
    {
        ISimulated simulated = create(seed / OrdersPerWork);
        Outcome outcome = VirtualCpus.Run(simulated.Work, order, Open);
        if (outcome.Error == null)
        {
            try
            {
                simulated.Check();
            }
            catch (Exception error)
            {
                outcome = outcome with { Error = error };
            }
        }

        // A machine whose CPUs broke off in the middle is left to the collector.
        if (outcome.Error == null)
            simulated.Dispose();
        _runs++;
        _steps += outcome.Steps;
        _switches += outcome.Switches;
        _seen.Add((outcome.Hash * 31) + (ulong)(seed / OrdersPerWork));
        return outcome;
    }

    /// <summary>
    /// Where the run of a seed switches, given the number of steps that its work has without any switch.
    /// </summary>
    public static Preemption[] OrderOf(int seed, long steps)
    {
        if (seed % OrdersPerWork == 0)
            return [];

        var random = new Random(seed);
        var order = new Preemption[1 + random.Next(MostPreemptions)];
        for (int i = 0; i < order.Length; i++)
            order[i] = new Preemption(1 + random.NextInt64(Math.Max(steps, 1)), random.Next(16));
        return order;
    }

    private Failure Shrink(int seed, Preemption[] order, Outcome outcome)
    {
        List<Preemption> needed = [.. order.OrderBy(preemption => preemption.Step)];
        for (int i = needed.Count - 1; i >= 0; i--)
        {
            List<Preemption> fewer = [.. needed.Where((_, at) => at != i)];
            Outcome without = RunOnce(seed, fewer);
            if (without.Error == null)
                continue;

            needed = fewer;
            outcome = without;
        }

        return new Failure(name, seed, needed, outcome.Preempted, outcome.Error!);
    }

    private static double? Setting(string variable) =>
        double.TryParse(Environment.GetEnvironmentVariable(variable), CultureInfo.InvariantCulture, out double value)
            ? value : null;
}

/// <summary>A run that failed, with as few preemptions as it takes.</summary>
internal sealed record Failure(
    string Name, int Seed, IReadOnlyList<Preemption> Order, IReadOnlyList<string> Preempted, Exception Error)
{
    public override string ToString() =>
        $"{Name} fails with seed {Seed} (to see it again: KMEM_SIM_SEED={Seed} KMEM_SIM_SECONDS=0), "
        + $"{Order.Count} preemptions:\n  {string.Join("\n  ", Preempted)}\n{Error}";
}
