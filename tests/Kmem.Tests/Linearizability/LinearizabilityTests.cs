namespace Kmem.Tests;

/// <summary>
/// Short histories of concurrent requests and frees, each checked against the sequential specification of an allocator
/// (<see cref="History"/>): nothing is handed out twice without a free between, and a request fails only at an instant
/// when enough is taken.
/// </summary>
public sealed class LinearizabilityTests
{
    private const int OperationsOfThread = 10;

    private static int Histories =>
        int.TryParse(Environment.GetEnvironmentVariable("KMEM_HISTORIES"), out int wanted) ? wanted : 60;

    [Fact]
    public void The_checker_knows_right_from_wrong()
    {
        Operation take = new(false, 7, 1, 4);
        Assert.True(History.IsLinearizable([take, new(true, 7, 3, 6), new(false, 7, 5, 8)], 1));
        Assert.False(History.IsLinearizable([take, new(false, 7, 5, 8)], 1));                           // twice
        Assert.False(History.IsLinearizable([take, new(false, 7, 5, 8), new(true, 7, 9, 10)], 1));      // freed too late
        Assert.True(History.IsLinearizable([take, new(false, 7, 5, 8), new(true, 7, 6, 10)], 1));
        Assert.False(History.IsLinearizable([new(true, 7, 1, 2), new(false, 7, 3, 4)], 1));             // never taken
        Assert.True(History.IsLinearizable([take, new(false, 0, 3, 5)], 1));                            // full meanwhile
        Assert.False(History.IsLinearizable([new(false, 0, 1, 2), take with { Called = 3 }], 1));       // not full yet
        Assert.False(History.IsLinearizable([take, new(true, 7, 5, 6), new(false, 0, 7, 8)], 1));       // not full any more
    }

    /// <summary>
    /// Frames of a machine that has few left. As many as could be taken before are there; a request may fail when those
    /// taken and those out of sight at some time, on CPUs' lists or in their counters, are as many together.
    /// </summary>
    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void Frames_of_a_machine_with_few_left(int cpus)
    {
        int failed = 0;
        int tight = 0;
        for (int seed = 0; seed < Histories; seed++)
        {
            using Machine machine = Boot(cpus, seed);
            int left = LeaveFew(machine, 3 * cpus);
            var history = new History();
            var shelf = new ulong[16];
            long mostOnLists = 0;
            Outcome outcome = Simulate(seed, cpus, machine, random =>
            {
                mostOnLists = Math.Max(mostOnLists, OutOfSight(machine));
                Step(random, history, shelf, () => Frame(machine), frame => machine.FreePage(new Pfn(frame - 1)));
                mostOnLists = Math.Max(mostOnLists, OutOfSight(machine));
            });
            Assert.Null(outcome.Error);
            failed += history.Operations.Count(operation => operation.Item == 0);
            tight += mostOnLists < left ? 1 : 0;
            Assert.True(
                History.IsLinearizable(history.Operations, Math.Max(0, left - (int)mostOnLists)),
                $"seed {seed}, {left} left, {mostOnLists} on lists: {string.Join('\n', history.Operations)}");
        }

        Figures.Add("linearizability", "simulated histories", Histories);
        Assert.True(failed > 0, "no request failed: the limit was never tried");
        TestContext.Current.TestOutputHelper?.WriteLine($"{failed} requests failed; the limit was above 0 in {tight} histories");
    }

    [Theory]
    [InlineData("kernel")]
    [InlineData("native")]
    public void Objects_of_simulated_cpus(string profile)
    {
        for (int seed = 0; seed < Histories; seed++)
        {
            using Machine machine = Boot(3, seed, profile);
            KmemCache cache = machine.CreateCache("objects", 2000, flags: SlabFlags.NoMerge, sheafCapacity: 3);
            var history = new History();
            var shelf = new ulong[4];
            Outcome outcome = Simulate(seed, 3, machine, random => Step(
                random, history, shelf, () => Object(cache), obj => Free(cache, obj)));
            Assert.Null(outcome.Error);
            Assert.True(
                History.IsLinearizable(history.Operations, int.MaxValue),
                $"seed {seed}: {string.Join('\n', history.Operations)}");
        }

        Figures.Add("linearizability", "simulated histories", Histories);
    }

    /// <summary>The same with real threads, where the hardware decides the order.</summary>
    [Theory]
    [InlineData("kernel")]
    [InlineData("native")]
    public void Objects_of_real_threads(string profile)
    {
        using Machine machine = Boot(3, 1, profile);
        KmemCache cache = machine.CreateCache("objects", 2000, flags: SlabFlags.NoMerge, sheafCapacity: 3);
        for (int seed = 0; seed < Histories; seed++)
        {
            var history = new History();
            var shelf = new ulong[4];
            using var start = new Barrier(3);
            var crew = new Crew();
            crew.Add(3, index =>
            {
                var random = new Random((seed * 64) + index);
                start.SignalAndWait();
                for (int i = 0; i < OperationsOfThread; i++)
                    Step(random, history, shelf, () => Object(cache), obj => Free(cache, obj));
            });
            crew.Run();
            Assert.True(
                History.IsLinearizable(history.Operations, int.MaxValue),
                $"seed {seed}: {string.Join('\n', history.Operations)}");
            foreach (ulong obj in shelf.Where(obj => obj != 0))
                Free(cache, obj);
        }

        Figures.Add("linearizability", "histories of real threads", Histories);
        Assert.Equal(0, cache.LiveCount);
        Assert.Empty(machine.Validate());
    }

    /// <summary>
    /// Frames on CPUs' lists, and those by which the zones' counts are behind, because a CPU has them to itself.
    /// </summary>
    private static long OutOfSight(Machine machine) => machine.Pages.Zones.Sum(
        zone => zone.PcpCount + Enumerable.Range(0, machine.Cpus).Sum(cpu => Math.Abs((long)zone.Zone.FreePagesParts(cpu).Diff)));

    private static Machine Boot(int cpus, int seed, string profile = "kernel") => Machine.Boot(new MachineOptions
    {
        Profile = profile == "native" ? KernelProfile.Native : KernelProfile.Linux618,
        Cpus = cpus,
        RamBytes = 16 << 20,
        DecaySeconds = 0,
        Seed = (ulong)seed + 1,
    });

    /// <summary>Takes one, and puts it into a place; what was there is given back.</summary>
    private static void Step(Random random, History history, ulong[] shelf, Func<ulong> alloc, Action<ulong> free)
    {
        ulong item = random.Next(3) == 0 ? 0 : history.Take(alloc);
        ulong before = Interlocked.Exchange(ref shelf[random.Next(shelf.Length)], item);
        if (before != 0)
            history.Give(before, () => free(before));
    }

    private static Outcome Simulate(int seed, int cpus, Machine machine, Action<Random> step)
    {
        var work = new List<Action[]>();
        for (int cpu = 0; cpu < cpus; cpu++)
        {
            var random = new Random((seed * 64) + cpu);
            int on = cpu;
            work.Add([() =>
            {
                using CpuBinding binding = machine.RunOn(on);
                for (int i = 0; i < OperationsOfThread; i++)
                    step(random);
            }]);
        }

        var order = new Random(seed);
        return VirtualCpus.Run(work, Enumerable.Range(0, 8).Select(_ => new Preemption(order.Next(1, 600), order.Next(8))));
    }

    /// <summary>A frame's number and one, so that 0 is none.</summary>
    private static ulong Frame(Machine machine)
    {
        Pfn frame = machine.AllocPage(Gfp.NoWait | Gfp.NoWarn);
        return frame.IsValid ? frame.Value + 1 : 0;
    }

    private static unsafe ulong Object(KmemCache cache) => (ulong)cache.Alloc(Gfp.Kernel);

    private static unsafe void Free(KmemCache cache, ulong obj) => cache.Free((void*)obj);

    /// <summary>Takes all frames that a request can get, and gives back so many that a few can be had again.</summary>
    /// <returns>How many.</returns>
    private static int LeaveFew(Machine machine, int few)
    {
        List<Pfn> taken = TakeAll(machine);
        int left = 0;
        while (left < few)
        {
            machine.FreePage(taken[^1]);
            taken.RemoveAt(taken.Count - 1);
            machine.DrainAllPages();
            List<Pfn> probe = TakeAll(machine);
            left = probe.Count;
            probe.ForEach(machine.FreePage);
            machine.DrainAllPages();
        }

        return left;
    }

    private static List<Pfn> TakeAll(Machine machine)
    {
        var taken = new List<Pfn>();
        for (ulong frame = Frame(machine); frame != 0; frame = Frame(machine))
            taken.Add(new Pfn(frame - 1));
        return taken;
    }
}
