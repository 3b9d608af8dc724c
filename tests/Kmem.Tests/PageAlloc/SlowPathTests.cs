namespace Kmem.Tests;

/// <summary>
/// What the allocator does when memory is short: whom it calls, how often it tries, when it gives up.
/// </summary>
public sealed class SlowPathTests
{
    [Theory]
    [InlineData(Gfp.Kernel, 0, 1, 0, 1)]
    [InlineData(Gfp.Kernel, 3, 1, 2, 1)]                    // small orders: reclaim, compaction, OOM
    [InlineData(Gfp.Kernel | Gfp.Movable, 3, 1, 1, 1)]      // no compaction first for small movable requests
    [InlineData(Gfp.Kernel | Gfp.NoRetry, 0, 1, 0, 0)]
    [InlineData(Gfp.Kernel | Gfp.NoRetry, 3, 1, 2, 0)]
    [InlineData(Gfp.Kernel | Gfp.RetryMayFail, 0, 1, 0, 0)]
    [InlineData(Gfp.Kernel, 4, 1, 2, 0)]                    // costly: one round, no OOM
    [InlineData(Gfp.Kernel | Gfp.RetryMayFail, 4, 1, 2, 0)]
    [InlineData(Gfp.Kernel | Gfp.NoRetry, 4, 0, 1, 0)]      // compaction skipped: back at once
    [InlineData(Gfp.NoIO, 3, 1, 0, 1)]                      // compaction needs __GFP_IO
    [InlineData(Gfp.NoIO, 4, 1, 0, 0)]
    [InlineData(Gfp.NoWait, 0, 0, 0, 0)]
    [InlineData(Gfp.Atomic, 3, 0, 0, 0)]
    [InlineData(Gfp.None, 0, 0, 0, 0)]
    [InlineData(Gfp.Kernel | Gfp.ThisNode, 0, 1, 0, 0)]
    [InlineData(Gfp.Kernel | Gfp.Dma32, 0, 1, 0, 0)]        // highest zone below Normal: no OOM kill
    [Trait("rule", "SLOW-01")]
    [Trait("rule", "SLOW-02")]
    public void Each_kind_of_request_goes_as_far_as_its_flags_say(
        Gfp gfp, int order, int reclaims, int compactions, int ooms)
    {
        using BarePages machine = Empty();
        Assert.Null(machine.Alloc(gfp | Gfp.NoWarn, order));
        Assert.Equal(reclaims, machine.Hooks.Reclaims.Count);
        Assert.All(machine.Hooks.Reclaims, call => Assert.Equal((order, gfp | Gfp.NoWarn), call));
        Assert.Equal(compactions, machine.Hooks.Compactions.Count);
        Assert.Equal(ooms, machine.Hooks.Ooms);

        // kswapd is woken at the entry, and once more in the loop unless that is never reached.
        bool loops = !((gfp & Gfp.NoRetry) != 0 && order > 3);
        Assert.Equal((gfp & Gfp.KswapdReclaim) == 0 ? 0 : loops ? 2 : 1, machine.Hooks.Wakes.Count);
        Assert.Equal((Pfn.None, order), (machine.Trace.Allocations[^1].Pfn, machine.Trace.Allocations[^1].Order));
    }

    [Fact]
    [Trait("rule", "SLOW-03")]
    public void Without_progress_it_tries_sixteen_times_more()
    {
        using BarePages machine = Empty();
        machine.Hooks.Reclaimable = () => 1000;
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoWarn));
        Assert.Equal(17, machine.Hooks.Reclaims.Count);
        Assert.Equal(1, machine.Hooks.Ooms);

        machine.Hooks.Forget();
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.RetryMayFail | Gfp.NoWarn));
        Assert.Equal(17, machine.Hooks.Reclaims.Count);
        Assert.Equal(0, machine.Hooks.Ooms);

        machine.Hooks.Forget();
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn));
        Assert.Single(machine.Hooks.Reclaims);
    }

    [Fact]
    [Trait("rule", "SLOW-03")]
    public void Progress_on_small_orders_starts_the_count_again()
    {
        using BarePages machine = Empty();
        int rounds = 0;
        machine.Hooks.Reclaimable = () => 1000;
        machine.Hooks.OnReclaim = () => ++rounds % 10 == 0 && rounds <= 50 ? 1 : 0;
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoWarn));
        Assert.Equal(50 + 17, rounds);
    }

    [Fact]
    [Trait("rule", "SLOW-03")]
    public void What_reclaim_frees_is_used()
    {
        using BarePages machine = Empty(out List<ulong> held);
        machine.Hooks.OnReclaim = () =>
        {
            machine.Free(held[^1]);
            held.RemoveAt(held.Count - 1);
            return 1;
        };
        Assert.NotNull(machine.Alloc(Gfp.Kernel));
        Assert.Single(machine.Hooks.Reclaims);
        Assert.Equal(0, machine.Hooks.Ooms);
        Assert.Empty(machine.Log.Lines);
    }

    [Fact]
    [Trait("rule", "SLOW-04")]
    public void Compaction_gets_stronger_until_it_has_tried_everything()
    {
        using BarePages machine = Empty();
        machine.Hooks.OnCompact = () => CompactResult.Complete;
        machine.Hooks.OnReclaim = () => 1;
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoWarn, 2));
        Assert.Equal(
            [CompactPriority.Async, CompactPriority.SyncLight, CompactPriority.SyncFull],
            machine.Hooks.Compactions);

        machine.Hooks.Forget();
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.RetryMayFail | Gfp.NoWarn, 5));
        Assert.Equal([CompactPriority.Async, CompactPriority.SyncLight], machine.Hooks.Compactions);
    }

    [Fact]
    [Trait("rule", "SLOW-04")]
    public void Compaction_that_claims_success_is_believed_sixteen_times()
    {
        using BarePages machine = Empty();
        machine.Hooks.OnCompact = () => CompactResult.Success;
        machine.Hooks.OnReclaim = () => 1;
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn, 2));
        Assert.Equal(2, machine.Hooks.Compactions.Count);
        machine.Hooks.Forget();
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoWarn, 2));

        // One ahead of the loop; then 17 rounds at each priority, the last of them raising it.
        Assert.Equal(1 + (2 * 17), machine.Hooks.Compactions.Count);
        machine.Hooks.Forget();
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.RetryMayFail | Gfp.NoWarn, 5));
        Assert.Equal(1 + 5, machine.Hooks.Compactions.Count);
    }

    [Fact]
    [Trait("rule", "SLOW-05")]
    public void The_killer_is_asked_again_while_it_frees_something()
    {
        using BarePages machine = Empty(out List<ulong> held);
        machine.Hooks.OnOom = () =>
        {
            if (machine.Hooks.Ooms == 3)
                machine.Free(held[0]);
            return true;
        };
        Assert.Equal(held[0], machine.Alloc(Gfp.Kernel));
        Assert.Equal(3, machine.Hooks.Ooms);
    }

    [Fact]
    [Trait("rule", "SLOW-05")]
    public async Task A_request_that_must_not_fail_waits_for_somebody_to_free()
    {
        using BarePages machine = Empty(out List<ulong> held);
        Task<ulong?> waiting = Task.Run(() => machine.Alloc(Gfp.Kernel | Gfp.NoFail));
        await Task.Delay(50, TestContext.Current.CancellationToken);
        Assert.False(waiting.IsCompleted);
        machine.Free(held[7]);
        Assert.Equal(held[7], await waiting.WaitAsync(TimeSpan.FromSeconds(60), TestContext.Current.CancellationToken));
        Assert.Empty(machine.Log.Lines);
    }

    [Fact]
    [Trait("rule", "SLOW-05")]
    public void A_request_that_must_not_fail_uses_half_of_the_reserve()
    {
        using BarePages machine = new BarePages(
            BarePages.Options((4096, 8192)) with { MinFreeKbytes = 400 }).WithoutCaching();
        machine.Exhaust(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn);
        Zone zone = machine.Zone(ZoneType.Dma32).Zone;
        Assert.Equal(100, zone.FreePages);
        for (int left = 99; left >= 50; left--)
        {
            Assert.NotNull(machine.Alloc(Gfp.Kernel | Gfp.NoFail));
            Assert.Equal(left, zone.FreePages);
        }
    }

    [Fact]
    [Trait("rule", "SLOW-05")]
    public void Promises_that_cannot_be_kept_are_reported()
    {
        using BarePages machine = Empty();
        Assert.Null(machine.Alloc(Gfp.NoWait | Gfp.NoFail));
        Assert.Contains("__GFP_NOFAIL", Assert.Single(machine.Log.Lines), StringComparison.Ordinal);
    }

    [Fact]
    [Trait("rule", "SLOW-06")]
    public unsafe void A_failure_is_reported_as_the_kernel_does_once_in_ten_seconds()
    {
        using BarePages machine = Empty();
        long before = machine.Pages.FailedAllocations;
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoRetry | Gfp.Comp, 3));
        IReadOnlyList<string> lines = machine.Log.Lines;
        Assert.EndsWith(
            ": page allocation failure: order:3, mode:0x50cc0(GFP_KERNEL|__GFP_NORETRY|__GFP_COMP), "
            + "nodemask=(null),cpuset=/,mems_allowed=0",
            lines[0],
            StringComparison.Ordinal);
        Assert.Equal("Mem-Info:", lines[1]);
        Assert.Equal(
            "Node 0 DMA32 free:0kB boost:0kB min:0kB low:0kB high:0kB reserved_highatomic:0KB "
            + "free_highatomic:0KB present:16384kB managed:16384kB free_pcp:0kB",
            lines[2]);
        Assert.Equal("lowmem_reserve[]: 0 0 0 0 0", lines[3]);
        Assert.Equal(
            "Node 0 DMA32: 0*4kB 0*8kB 0*16kB 0*32kB 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB 0*4096kB = 0kB",
            lines[4]);
        Assert.Equal(5, lines.Count);

        for (int i = 0; i < 10; i++)
            Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoRetry));
        Assert.Equal(5, machine.Log.Lines.Count);
        Assert.Equal(before + 11, machine.Pages.FailedAllocations);
    }

    [Fact]
    [Trait("rule", "SLOW-06")]
    public void The_report_names_the_types_that_have_free_blocks()
    {
        using BarePages machine = Empty(out List<ulong> held);
        ZonePages zone = machine.Zone(ZoneType.Dma32);
        machine.Free(held[0]);          // 4096 … 4099: an order-2 and an order-0 block, of two types
        machine.Free(held[1]);
        machine.Free(held[2]);
        machine.Free(held[3]);
        machine.Free(held[512]);
        Lists.MovePageblock(zone, 4096, machine.TypeOf(4096), Migratetype.HighAtomic);
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoRetry, 3));
        Assert.Equal(
            "Node 0 DMA32: 1*4kB (U) 0*8kB 1*16kB (H) 0*32kB 0*64kB 0*128kB 0*256kB 0*512kB 0*1024kB 0*2048kB "
            + "0*4096kB = 20kB",
            machine.Log.Lines[^1].TrimEnd());
    }

    [Fact]
    [Trait("rule", "SLOW-06")]
    public void Silence_can_be_asked_for()
    {
        using BarePages machine = Empty();
        long before = machine.Pages.FailedAllocations;
        Assert.Null(machine.Alloc(Gfp.NoWait));
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoWarn));
        Assert.Empty(machine.Log.Lines);
        Assert.Equal(before + 2, machine.Pages.FailedAllocations);
    }

    [Fact]
    [Trait("rule", "SLOW-07")]
    public void Orders_above_ten_are_refused_with_one_warning()
    {
        using var machine = new BarePages((4096, 8192));
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoWarn, 11));
        Assert.Empty(machine.Log.Lines);
        Assert.Null(machine.Alloc(Gfp.Kernel, 11));
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoFail, 63));
        Assert.Single(machine.Log.Lines);
        Assert.Empty(machine.Trace.Allocations);
        Assert.Empty(machine.Hooks.Wakes);
    }

    [Fact]
    [Trait("rule", "SLOW-08")]
    public void Frames_on_other_cpus_lists_are_used_before_a_request_fails()
    {
        MachineOptions options = BarePages.Options((4096, 8192)) with { Cpus = 3, WatermarkBoostFactor = 0 };
        using var machine = new BarePages(options);
        machine.Cpus.Pin(1);
        List<ulong> held = machine.Exhaust(Gfp.Kernel | Gfp.MemAlloc | Gfp.NoWarn);
        Assert.Equal(4096, held.Count);
        machine.Free(held[0]);
        machine.Free(held[1]);
        machine.Cpus.Pin(2);
        Assert.Equal(2, machine.Zone(ZoneType.Dma32).PcpCount);
        Assert.NotNull(machine.Alloc(Gfp.Kernel | Gfp.MemAlloc));
    }

    private static BarePages Empty() => Empty(out _);

    /// <summary>A zone of 4096 frames, all of them in use, in the order of their numbers; no watermarks.</summary>
    private static BarePages Empty(out List<ulong> held)
    {
        BarePages machine = new BarePages(
            BarePages.Options((4096, 8192)) with { WatermarkBoostFactor = 0 }).WithoutReserves();
        held = machine.Exhaust(Gfp.Kernel | Gfp.MemAlloc | Gfp.NoWarn);
        held.Sort();
        Assert.Equal(4096, held.Count);
        machine.Hooks.Forget();
        machine.Trace.Allocations.Clear();
        Assert.Empty(machine.Log.Lines);
        return machine;
    }
}
