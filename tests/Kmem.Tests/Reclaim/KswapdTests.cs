using System.Diagnostics;

namespace Kmem.Tests;

/// <summary>Background reclaim: when it wakes, how far it goes, what it does with the boost.</summary>
public sealed class KswapdTests
{
    [Fact]
    [Trait("rule", "KSWAPD-01")]
    public void It_works_from_low_to_high()
    {
        using Machine machine = Boot();
        using var pool = new PagePool(machine);
        Zone[] zones = [.. machine.Pages.Zones.Select(pages => pages.Zone)];
        pool.FillUntil(() => machine.Pages.SlowPaths > 0);
        Assert.DoesNotContain(zones, zone => zone.FreePagesExact > zone.Mark(WatermarkLevel.Low) + Slack);
        Assert.Equal(0, pool.Given);

        ulong freed = machine.RunKswapd();
        Assert.True(freed > 0);
        Assert.Equal((long)(freed >> Pfn.PageShift), pool.Given);
        Assert.True(machine.ReclaimerIfUsed!.Kswapds[0].IsBalanced(0, ZoneType.Normal));
        Assert.Contains(zones, zone => zone.FreePagesExact > zone.Mark(WatermarkLevel.High));
        long reserve = zones.Sum(zone => zone.Mark(WatermarkLevel.High));
        Assert.InRange(zones.Sum(zone => zone.FreePagesExact), reserve / 4, 4 * reserve);
        Assert.Equal(1UL, machine.Proc.ReadVmStat().Stats.Find("pageoutrun"));

        // Nothing was asked since: nothing to do.
        Assert.Equal(0UL, machine.RunKswapd());
        Assert.DoesNotContain(zones, zone => (zone.Flags & ZoneFlags.ReclaimActive) != 0);
    }

    [Fact]
    [Trait("rule", "KSWAPD-02")]
    public void After_sixteen_vain_runs_a_node_is_hopeless_until_somebody_reclaims_something()
    {
        using Machine machine = Boot();
        using var pool = new PagePool(machine) { MayGive = false };
        pool.FillUntil(() => false);
        for (int i = 0; i < Kswapd.MaxFailures; i++)
        {
            Assert.False(machine.AllocPage(Gfp.NoWait | Gfp.NoWarn).IsValid);
            Assert.False(machine.ReclaimerIfUsed!.Kswapds[0].IsHopeless);
            Assert.Equal(0UL, machine.RunKswapd());
        }

        Assert.True(machine.ReclaimerIfUsed!.Kswapds[0].IsHopeless);
        Assert.Contains("node_unreclaimable:  1", machine.Proc.ZoneInfo(), StringComparison.Ordinal);
        pool.MayGive = true;
        Pfn page = machine.AllocPage(Gfp.Kernel);
        Assert.True(page.IsValid);
        machine.FreePage(page);
        Assert.False(machine.ReclaimerIfUsed!.Kswapds[0].IsHopeless);
        Assert.Contains("node_unreclaimable:  0", machine.Proc.ZoneInfo(), StringComparison.Ordinal);
    }

    [Fact]
    [Trait("rule", "KSWAPD-03")]
    public void The_boost_that_was_there_is_worked_off_and_no_more()
    {
        using Machine machine = Boot();
        using var pool = new PagePool(machine);
        pool.FillUntil(() => pool.Count == 8200);       // enough for the gentlest priority
        Zone zone = machine.Pages.Zones.Last().Zone;
        zone.Boost = 100;
        pool.OnGive = () => zone.Boost = 150;
        machine.ReclaimerIfUsed!.WakeKswapd(machine.NodeList[zone.NodeId], 0, zone.Type);
        machine.RunKswapd();
        Assert.InRange(pool.Given, 100, 120);
        Assert.Equal(50, zone.Boost);
        zone.Boost = 0;
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [Trait("rule", "KSWAPD-04")]
    public void As_a_thread_it_keeps_atomic_requests_alive(int nodes)
    {
        using Machine machine = Boot(nodes, thread: true);
        using var pool = new PagePool(machine);
        Assert.All(machine.ReclaimerIfUsed!.Kswapds, kswapd => Assert.True(kswapd.HasThread));
        int failed = 0;
        for (int i = 0; i < 30_000; i++)
        {
            // No reclaim of its own: all that it gets beyond the reserve, kswapd has brought.
            if (!pool.TryFill(Gfp.Atomic | Gfp.NoWarn))
            {
                failed++;
                Thread.Sleep(1);
            }
        }

        Assert.True(pool.Given > 10_000, $"{pool.Given} given, {failed} failed");
        ulong stalls = machine.Proc.ReadVmStat().Stats.Find("allocstall_normal")!.Value;
        Assert.Equal(0UL, stalls);

        // And when nobody asks any more, it sleeps.
        var clock = Stopwatch.StartNew();
        while (!machine.ReclaimerIfUsed.Kswapds.All(kswapd => kswapd.IsAsleep) && clock.Elapsed.TotalSeconds < 20)
            Thread.Sleep(10);
        Assert.All(machine.ReclaimerIfUsed.Kswapds, kswapd => Assert.True(kswapd.IsAsleep));
        pool.Dispose();
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void Threads_end_with_their_machine()
    {
        Machine machine = Boot(thread: true);
        Kswapd kswapd = machine.ReclaimerIfUsed!.Kswapds[0];
        machine.Dispose();
        Assert.False(kswapd.HasThread);
    }

    /// <summary>What CPUs may have on their own lists and counts.</summary>
    private const int Slack = 512;

    private static Machine Boot(int nodes = 1, bool thread = false) => Machine.Boot(new MachineOptions
    {
        Profile = KernelProfile.Linux618,
        RamBytes = 64UL << 20,
        Cpus = nodes,
        Nodes = nodes,
        Kswapd = thread,
    });

    /// <summary>Page frames that a shrinker gives back, oldest first.</summary>
    private sealed class PagePool : IDisposable
    {
        private readonly Machine _machine;
        private readonly Queue<Pfn> _frames = new();
        private readonly Shrinker _shrinker;
        private readonly Lock _gate = new();

        public PagePool(Machine machine)
        {
            _machine = machine;
            _shrinker = machine.RegisterShrinker("frames", _ => MayGive ? Count : 0, Give, batch: 1);
        }

        public bool MayGive { get; set; } = true;

        public long Given { get; private set; }

        public Action OnGive { get; set; } = () => { };

        public int Count
        {
            get
            {
                lock (_gate)
                    return _frames.Count;
            }
        }

        public bool TryFill(Gfp gfp)
        {
            Pfn frame = _machine.AllocPage(gfp);
            if (!frame.IsValid)
                return false;
            lock (_gate)
                _frames.Enqueue(frame);
            return true;
        }

        public void FillUntil(Func<bool> enough)
        {
            while (!enough() && TryFill(Gfp.NoWait | Gfp.NoWarn))
            {
            }
        }

        public void Dispose()
        {
            _shrinker.Dispose();
            while (_frames.TryDequeue(out Pfn frame))
                _machine.FreePage(frame);
        }

        private long Give(ShrinkControl control)
        {
            OnGive();
            lock (_gate)
            {
                long given = 0;
                for (; given < control.ToScan && _frames.TryDequeue(out Pfn frame); given++)
                    _machine.FreePage(frame);
                Given += given;
                return given;
            }
        }
    }
}
