using System.Globalization;

namespace Kmem.Tests;

/// <summary>How much shrinkers are asked for, by whom, and what their answers do.</summary>
public sealed class ShrinkerTests
{
    [Theory]
    [InlineData(1 << 20, 12, 2, 0, "128*4")]                // 2^20 >> 12 = 256, × 4 / 2 = 512
    [InlineData(1 << 20, 11, 2, 0, "128*8")]
    [InlineData(1 << 20, 12, 1, 0, "128*8")]                // cheaper objects: twice as many
    [InlineData(1 << 20, 12, 4, 0, "128*2")]
    [InlineData(1 << 20, 12, 4, 100, "100*2")]              // 256 in batches of 100: the rest is put off
    [InlineData(1000, 12, 2, 0, "")]                        // less than a batch, and not all there is
    [InlineData(1000, 2, 2, 0, "128*3")]                    // 500: three batches
    [InlineData(1000, 0, 2, 0, "128*15")]                   // 2000, twice what there is: then 80 are left
    [InlineData(50, 0, 2, 0, "100*1")]                      // 100 < 128, but more than all of it
    [InlineData(1000, 12, 0, 0, "128*3")]                   // free to make anew: half of them, at any priority
    [InlineData(0, 0, 2, 0, "")]
    [Trait("rule", "SHRINK-01")]
    public void The_kernels_arithmetic_says_how_much_is_scanned(
        long freeable, int priority, int seeks, long batch, string expected)
    {
        using Machine machine = Boot();
        var scans = new List<long>();
        using Shrinker shrinker = machine.RegisterShrinker(
            "counted",
            _ => freeable,
            control =>
            {
                scans.Add(control.ToScan);
                return 1;
            },
            seeks,
            batch);
        Shrink(shrinker, 0, priority);
        string[] got = [.. scans.GroupBy(size => size).Select(
            group => string.Create(CultureInfo.InvariantCulture, $"{group.Key}*{group.Count()}"))];
        Assert.Equal(expected, string.Join(' ', got));
    }

    [Fact]
    [Trait("rule", "SHRINK-02")]
    public void What_was_not_scanned_is_remembered_as_in_a_model()
    {
        using Machine machine = Boot();
        for (int seed = 1; seed <= 200; seed++)
        {
            var random = new Random(seed);
            int seeks = random.Next(4);
            long batch = random.Next(3) * 50;
            long freeable = 0;
            long stopAfter = long.MaxValue;
            long examined = 0;
            long calls = 0;
            using Shrinker shrinker = machine.RegisterShrinker(
                "model",
                _ => freeable,
                control =>
                {
                    if (calls++ >= stopAfter)
                        return Shrinker.Stop;
                    control.Scanned += examined;
                    return control.ToScan / 2;
                },
                seeks,
                batch);
            long deferred = 0;
            for (int step = 0; step < 30; step++)
            {
                freeable = random.Next(10) == 0 ? Shrinker.Empty : random.NextInt64(5000);
                stopAfter = random.Next(3) == 0 ? random.Next(3) : long.MaxValue;
                examined = random.Next(4) == 0 ? random.Next(20) : 0;
                calls = 0;
                int priority = random.Next(13);
                long freed = Shrink(shrinker, 0, priority);
                long expected = Model(ref deferred, freeable, priority, seeks, batch, stopAfter, examined);
                Assert.True(
                    (freed, shrinker.Deferred()) == (expected, deferred),
                    $"seed {seed}, step {step}: {freed} freed and {shrinker.Deferred()} deferred, "
                    + $"the model has {expected} and {deferred}");
            }
        }
    }

    [Fact]
    [Trait("rule", "SHRINK-03")]
    public void Nodes_are_told_apart_only_by_those_who_ask_for_it()
    {
        using Machine machine = Boot(nodes: 2);
        var seen = new List<(string, int)>();
        long Count(ShrinkControl control, string who)
        {
            seen.Add((who, control.Node));
            return 0;
        }

        using Shrinker plain = machine.RegisterShrinker("plain", control => Count(control, "plain"), _ => 0);
        using Shrinker aware = machine.RegisterShrinker(
            "aware", control => Count(control, "aware"), _ => 0, flags: ShrinkerFlags.NumaAware);
        Assert.Equal([plain, aware], machine.Shrinkers);
        Assert.Equal(0UL, machine.ReclaimMemory(1));
        Assert.Equal([("plain", 0), ("aware", 0), ("plain", 0), ("aware", 1)], seen[..4]);
        Assert.Equal(13 * 4, seen.Count);
    }

    [Fact]
    [Trait("rule", "SHRINK-03")]
    public void What_one_node_deferred_is_not_asked_of_another()
    {
        using Machine machine = Boot(nodes: 2);
        using Shrinker shrinker = machine.RegisterShrinker(
            "aware", _ => 10_000, _ => Shrinker.Stop, flags: ShrinkerFlags.NumaAware);
        Shrink(shrinker, 1, 4);
        Assert.Equal(0, shrinker.Deferred(0));
        Assert.Equal((10_000 >> 4) * 2, shrinker.Deferred(1));
        Assert.Equal(1, shrinker.Report.Stops);
    }

    [Fact]
    [Trait("rule", "SHRINK-04")]
    public void A_callback_that_throws_stops_and_is_reported_and_the_request_goes_on()
    {
        using Machine machine = Boot();
        using Shrinker bad = machine.RegisterShrinker(
            "bad", _ => 1 << 20, _ => throw new InvalidDataException("broken index"));
        using var good = new EvictingCache(machine, 2048);
        for (ulong key = 0; key < 2 * machine.Options.RamBytes / 2048; key++)
            Assert.True(good.TryInsert(key));
        Assert.True(bad.Report.Errors > 0);
        Assert.Contains(
            "WARNING: shrinker bad: InvalidDataException: broken index", machine.Dmesg.Lines, StringComparer.Ordinal);
        Assert.Equal(3, machine.Dmesg.Lines.Count(line => line.Contains("broken index", StringComparison.Ordinal)));
        good.CheckAll();
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "SHRINK-04")]
    public void A_scan_that_says_it_looked_at_nothing_does_not_loop_for_ever()
    {
        using Machine machine = Boot();
        long calls = 0;
        using Shrinker shrinker = machine.RegisterShrinker("lazy", _ => 300, control =>
        {
            calls++;
            control.Scanned = -5;
            return 0;
        });
        Shrink(shrinker, 0, 0);
        Assert.InRange(calls, 1, 600);
    }

    [Fact]
    [Trait("rule", "RECLAIM-04")]
    public void Whoever_is_in_a_shrinkers_way_is_waited_for()
    {
        using Machine machine = Boot();
        List<Pfn> held = Exhaust(machine);
        int stops = 0;
        using Shrinker shrinker = machine.RegisterShrinker(
            "busy",
            _ => 100,
            _ =>
            {
                // The lock is free in the fifth round.
                if (++stops <= 4 * 13)
                    return Shrinker.Stop;
                for (int i = 0; i < 100; i++)
                {
                    machine.FreePage(held[^1]);
                    held.RemoveAt(held.Count - 1);
                }

                return 100;
            },
            batch: 1);
        Pfn page = machine.AllocPage(Gfp.Kernel);
        Assert.True(page.IsValid);
        machine.FreePage(page);
        held.ForEach(machine.FreePage);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "RECLAIM-04")]
    public void Somebody_who_is_always_in_the_way_is_not_waited_for_for_ever()
    {
        using Machine machine = Boot();
        List<Pfn> held = Exhaust(machine);
        using Shrinker shrinker = machine.RegisterShrinker("stuck", _ => 100, _ => Shrinker.Stop, batch: 1);
        Assert.False(machine.AllocPage(Gfp.Kernel | Gfp.NoWarn).IsValid);
        Assert.InRange(shrinker.Report.Calls, 13, 13 * 40);
        held.ForEach(machine.FreePage);
    }

    [Fact]
    [Trait("rule", "SHRINK-05")]
    public void Unregistering_waits_for_callbacks_and_from_within_one_is_refused()
    {
        using Machine machine = Boot();
        using var inside = new ManualResetEventSlim();
        using var goOn = new ManualResetEventSlim();
        Shrinker slow = machine.RegisterShrinker("slow", _ => 1000, _ =>
        {
            inside.Set();
            goOn.Wait();
            return 0;
        });
        var scanner = new Thread(() => slow.ScanObjects(10));
        scanner.Start();
        inside.Wait(TestContext.Current.CancellationToken);
        var closer = new Thread(slow.Dispose);
        closer.Start();
        Assert.False(closer.Join(50), "Dispose returned while a callback was running");
        Assert.Equal(0, slow.ScanObjects(10));
        goOn.Set();
        Assert.True(closer.Join(10_000));
        Assert.True(scanner.Join(10_000));
        Assert.Empty(machine.Shrinkers);
        slow.Dispose();

        Shrinker? suicidal = null;
        suicidal = machine.RegisterShrinker("suicidal", _ => 1, _ =>
        {
            suicidal!.Dispose();
            return 1;
        });
        suicidal.ScanObjects(1);
        Assert.Contains(
            "BUG: shrinker suicidal is unregistered by its own callback", machine.Dmesg.Lines, StringComparer.Ordinal);
        suicidal.Dispose();
        Assert.Empty(machine.Shrinkers);
    }

    [Fact]
    [Trait("rule", "RECLAIM-02")]
    public unsafe void Only_those_who_may_wait_reclaim_and_reclaim_does_not_recurse()
    {
        using Machine machine = Boot();
        List<Pfn> held = Exhaust(machine);
        var gfps = new List<Gfp>();
        int depth = 0;
        using Shrinker shrinker = machine.RegisterShrinker(
            "watch",
            control =>
            {
                Assert.Equal(0, depth);
                depth++;
                gfps.Add(control.Gfp);

                // May take the last frames, and must not come back here.
                Pfn reserve = machine.AllocPage(Gfp.Kernel | Gfp.NoWarn);
                Assert.True(reserve.IsValid);
                machine.FreePage(reserve);
                Assert.False(machine.AllocPages(Gfp.Kernel | Gfp.NoWarn, 10).IsValid); // not in the reserve either
                depth--;
                return 0;
            },
            _ => 0);

        Assert.False(machine.AllocPage(Gfp.NoWait | Gfp.NoWarn).IsValid);
        Pfn atomic = machine.AllocPage(Gfp.Atomic | Gfp.NoWarn);
        using (machine.MemallocNoReclaim())
        {
            Pfn reserve = machine.AllocPage(Gfp.Kernel | Gfp.NoWarn);
            Assert.True(reserve.IsValid);
            machine.FreePage(reserve);
        }

        Assert.Empty(gfps);
        Assert.False(machine.AllocPage(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn).IsValid);
        Assert.NotEmpty(gfps);
        gfps.Clear();
        using (machine.MemallocNoFs())
            machine.AllocPage(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn);
        Assert.All(gfps, gfp => Assert.Equal(Gfp.None, gfp & Gfp.FS));
        Assert.All(gfps, gfp => Assert.Equal(Gfp.IO, gfp & Gfp.IO));
        Assert.Equal(0, shrinker.Report.Errors);

        machine.FreePage(atomic);
        held.ForEach(machine.FreePage);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "RECLAIM-03")]
    public void Direct_reclaim_gets_more_urgent_until_a_cluster_has_come_back()
    {
        using Machine machine = Boot();
        List<Pfn> held = Exhaust(machine);
        var totals = new List<long>();
        const long Freeable = 1 << 16;
        using Shrinker shrinker = machine.RegisterShrinker(
            "late",
            _ =>
            {
                totals.Add(0);
                return Freeable;
            },
            control =>
            {
                totals[^1] += control.ToScan;
                if (totals.Count < 9 || totals[^1] > ScanControl.Cluster)
                    return 0;

                // The ninth call, at priority 4, finds what was asked for.
                machine.FreePage(held[^1]);
                held.RemoveAt(held.Count - 1);
                return 1;
            },
            batch: 1);
        Pfn page = machine.AllocPage(Gfp.Kernel);
        Assert.True(page.IsValid);
        Assert.Equal(
            Enumerable.Range(0, 9).Select(i => (Freeable >> (12 - i)) * 2), totals);
        held.Add(page);
        held.ForEach(machine.FreePage);
        Assert.Equal(1UL, machine.Proc.ReadVmStat().Stats.Find("allocstall_normal"));
        Assert.Equal((ulong)totals.Sum(), machine.Proc.ReadVmStat().Stats.Find("slabs_scanned"));
        Assert.Empty(machine.Validate());
    }

    internal static List<Pfn> Exhaust(Machine machine)
    {
        var held = new List<Pfn>();
        while (machine.AllocPage(Gfp.Kernel | Gfp.NoWarn) is { IsValid: true } page)
            held.Add(page);
        return held;
    }

    private static long Shrink(Shrinker shrinker, int node, int priority) => shrinker.Shrink(
        new ScanControl(ReclaimActor.Direct, Gfp.Kernel, 0, ScanControl.Cluster) { Priority = priority }, node);

    private static Machine Boot(int nodes = 1) => Machine.Boot(new MachineOptions
    {
        Profile = KernelProfile.Linux618,
        RamBytes = 32UL << 20,
        Cpus = nodes,
        Nodes = nodes,
    });

    /// <summary>do_shrink_slab, from the fact sheet, without batches being anything but a loop.</summary>
    private static long Model(
        ref long deferred, long freeable, int priority, int seeks, long batch, long stopAfter, long examined)
    {
        if (freeable <= 0)
            return 0;
        long before = deferred;
        long delta = seeks == 0 ? freeable / 2 : (freeable >> priority) * 4 / seeks;
        long total = Math.Min((before >> priority) + delta, freeable * 2);
        long size = batch == 0 ? 128 : batch;
        long scanned = 0;
        long freed = 0;
        for (long call = 0; (total >= size || total >= freeable) && call < stopAfter; call++)
        {
            long asked = Math.Min(size, total);
            freed += asked / 2;
            total -= asked + examined;
            scanned += asked + examined;
        }

        deferred = Math.Clamp(before + delta - scanned, 0, 2 * freeable);
        return freed;
    }
}
