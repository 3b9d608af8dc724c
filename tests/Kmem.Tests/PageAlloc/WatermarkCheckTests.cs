namespace Kmem.Tests;

/// <summary>How far down each kind of request may take a zone: exact numbers of frames that remain free.</summary>
public sealed class WatermarkCheckTests
{
    private const long Min = 256;

    [Fact]
    [Trait("rule", "WMARK-01")]
    [Trait("rule", "WMARK-02")]
    public void Each_right_ends_at_its_part_of_the_minimum()
    {
        using BarePages machine = WithMin();
        Zone zone = machine.Zone(ZoneType.Dma32).Zone;
        Assert.Equal(new Watermarks(256, 320, 384, 448), zone.Watermarks);
        (Gfp Gfp, long Left)[] expected =
        [
            (Gfp.Kernel | Gfp.NoRetry, 256),
            (Gfp.NoWait, 256),
            (Gfp.Kernel | Gfp.MemAlloc | Gfp.NoMemAlloc | Gfp.NoRetry, 256),    // NOMEMALLOC wins
            (Gfp.Kernel | Gfp.High | Gfp.NoRetry, 128),
            (Gfp.Atomic | Gfp.NoMemAlloc, 128),
            (Gfp.Atomic, 96),                                   // 256 − 128 − 32
            (Gfp.Kernel | Gfp.MemAlloc, 0),
        ];
        var all = new List<ulong>();
        foreach ((Gfp gfp, long left) in expected)
        {
            all.AddRange(machine.Exhaust(gfp | Gfp.NoWarn));
            Assert.True(left == zone.FreePages, $"{gfp}: {zone.FreePages} frames are left, not {left}");
        }

        // And upwards again: a request succeeds as soon as one frame more is free.
        foreach ((Gfp gfp, long left) in expected)
        {
            while (zone.FreePages > left)
                all.Add(machine.Alloc(Gfp.Kernel | Gfp.MemAlloc)!.Value);
            while (zone.FreePages < left)
                Release(machine, all);
            Assert.Null(machine.Alloc(gfp | Gfp.NoWarn));
            Release(machine, all);
            ulong? pfn = machine.Alloc(gfp | Gfp.NoWarn);
            Assert.True(pfn != null, $"{gfp} fails with {left + 1} frames free");
            all.Add(pfn.Value);
        }
    }

    [Fact]
    [Trait("rule", "WMARK-02")]
    public unsafe void Contexts_with_reserve_rights_use_the_last_frame()
    {
        using BarePages machine = WithMin();
        Zone zone = machine.Zone(ZoneType.Dma32).Zone;
        CpuTask* task = machine.Cpus.Current;
        machine.Exhaust(Gfp.Atomic);
        Assert.Equal(96, zone.FreePages);
        using (ContextScope.Flag(task, TaskFlags.MemAlloc))
        {
            using (ContextScope.Count(task, CpuTask.HardirqOffset))
                Assert.Null(machine.Alloc(Gfp.Atomic | Gfp.NoWarn));        // the interrupted task's rights do not count
            using (ContextScope.Count(task, CpuTask.SoftirqDisableOffset))
                Assert.Null(machine.Alloc(Gfp.Atomic | Gfp.NoWarn));
            using (ContextScope.Count(task, CpuTask.SoftirqOffset))
                Assert.NotNull(machine.Alloc(Gfp.Atomic | Gfp.NoWarn));     // those of a served softirq do
            ulong pfn = machine.Alloc(Gfp.Kernel | Gfp.NoWarn)!.Value;
            Assert.True((machine.PageOf(pfn)->Flags & PageFlags.PfMemAlloc) != 0);
            Assert.Equal(94, machine.Exhaust(Gfp.Kernel | Gfp.NoWarn).Count);
            Assert.Empty(machine.Hooks.Reclaims);                           // such a task never reclaims
        }

        Assert.Equal(0, zone.FreePages);
    }

    [Fact]
    [Trait("rule", "WMARK-02")]
    public unsafe void Only_pages_taken_without_a_watermark_are_marked()
    {
        using BarePages machine = WithMin();
        ulong pfn = machine.Alloc(Gfp.Atomic)!.Value;
        Assert.True((machine.PageOf(pfn)->Flags & PageFlags.PfMemAlloc) == 0);
    }

    [Theory]
    [InlineData(0, 385)]
    [InlineData(1, 386)]        // free − (2^order − 1) must be above the mark
    [InlineData(4, 400)]
    [InlineData(10, 1408)]
    [Trait("rule", "WMARK-03")]
    public unsafe void A_mark_must_be_exceeded_by_the_whole_block(int order, long enough)
    {
        using BarePages machine = WithMin();
        ZonePages zone = machine.Zone(ZoneType.Dma32);
        Assert.False(zone.WatermarkOk(order, 384, ZoneType.Normal, AllocFlags.WatermarkMin, enough - 1));
        Assert.True(zone.WatermarkOk(order, 384, ZoneType.Normal, AllocFlags.WatermarkMin, enough));
        zone.Zone.LowmemReserve[(int)ZoneType.Normal] = 10;
        Assert.False(zone.WatermarkOk(order, 384, ZoneType.Normal, AllocFlags.WatermarkMin, enough + 9));
        Assert.True(zone.WatermarkOk(order, 384, ZoneType.Normal, AllocFlags.WatermarkMin, enough + 10));
        Assert.True(zone.WatermarkOk(order, 384, ZoneType.Dma32, AllocFlags.WatermarkMin, enough));
    }

    [Theory]
    [InlineData((int)AllocFlags.MinReserve, 192)]
    [InlineData((int)(AllocFlags.MinReserve | AllocFlags.NonBlock), 144)]
    [InlineData((int)AllocFlags.NonBlock, 384)]
    [InlineData((int)AllocFlags.Oom, 192)]
    [InlineData((int)(AllocFlags.Oom | AllocFlags.MinReserve), 96)]
    [InlineData((int)(AllocFlags.Oom | AllocFlags.MinReserve | AllocFlags.NonBlock), 72)]
    [Trait("rule", "WMARK-02")]
    public unsafe void Reserve_rights_halve_what_is_left_of_the_mark(int flags, long mark)
    {
        using BarePages machine = WithMin();
        ZonePages zone = machine.Zone(ZoneType.Dma32);
        Assert.False(zone.WatermarkOk(0, 384, ZoneType.Normal, (AllocFlags)flags, mark));
        Assert.True(zone.WatermarkOk(0, 384, ZoneType.Normal, (AllocFlags)flags, mark + 1));
    }

    [Fact]
    [Trait("rule", "WMARK-03")]
    public void A_block_of_the_order_must_be_on_a_list_that_the_request_may_use()
    {
        // Half of the frames free, but none beside another.
        using BarePages machine = WithMin();
        List<ulong> frames = machine.Exhaust(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn);
        foreach (ulong pfn in frames.Where(pfn => pfn % 2 == 0))
            machine.Free(pfn);
        Assert.True(machine.Zone(ZoneType.Dma32).Zone.FreePages > 8000);
        Assert.NotNull(machine.Alloc(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn));

        // Order-1 blocks are only among the last 256 frames: usable when they are not HighAtomic.
        Assert.NotNull(machine.Alloc(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn, 1));
        ZonePages zone = machine.Zone(ZoneType.Dma32);
        for (int order = 1; order <= 10; order++)
        {
            for (Migratetype type = 0; type <= Migratetype.Reclaimable; type++)
            {
                foreach (ulong pfn in machine.FreeList(zone, order, type))
                    Lists.MovePageblock(zone, pfn, type, Migratetype.HighAtomic);
            }
        }

        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn, 1));
        Assert.Null(machine.Alloc(Gfp.NoWait, 1));              // for order > 0 only HIGHATOMIC sees them
        Assert.NotNull(machine.Alloc(Gfp.Atomic | Gfp.NoWarn, 1));
    }

    [Fact]
    [Trait("rule", "WMARK-04")]
    public void Lower_zones_keep_frames_for_those_who_have_no_choice()
    {
        // DMA 3072, DMA32 65536, Normal 8192 frames: 65536 / 256 = 256, 73728 / 256 = 288, 8192 / 256 = 32.
        using var machine = new BarePages((1024, 4096), (4096, 4096 + 65536), (0x100000, 0x100000 + 8192));
        machine.WithoutCaching();
        Zone dma = machine.Zone(ZoneType.Dma).Zone;
        Zone dma32 = machine.Zone(ZoneType.Dma32).Zone;
        Zone normal = machine.Zone(ZoneType.Normal).Zone;
        Assert.Equal([0, 256, 288, 288, 288], dma.LowmemReserve);
        Assert.Equal([0, 0, 32, 32, 32], dma32.LowmemReserve);
        Assert.Equal([0, 0, 0, 0, 0], normal.LowmemReserve);
        Assert.Equal(0, dma.Watermarks.Min);

        machine.Exhaust(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn);
        Assert.Equal((288, 32, 0), (dma.FreePages, dma32.FreePages, normal.FreePages));
        machine.Exhaust(Gfp.Kernel | Gfp.Dma32 | Gfp.NoRetry | Gfp.NoWarn);
        Assert.Equal((256, 0), (dma.FreePages, dma32.FreePages));
        machine.Exhaust(Gfp.Kernel | Gfp.Dma | Gfp.NoRetry | Gfp.NoWarn);
        Assert.Equal(0, dma.FreePages);
    }

    [Fact]
    [Trait("rule", "WMARK-04")]
    public void The_index_is_the_highest_zone_asked_for_even_if_it_is_empty()
    {
        MachineOptions options = BarePages.Options((1024, 4096), (4096, 4096 + 65536)) with
        {
            MovableBytes = 64 << 20,
            WatermarkBoostFactor = 0,       // the fallback at the end would raise the marks
        };
        using BarePages machine = new BarePages(options).WithoutCaching();
        Zone dma32 = machine.Zone(ZoneType.Dma32).Zone;
        Assert.Equal([0, 0, 0, 64, 64], dma32.LowmemReserve);       // 16384 / 256
        machine.Exhaust(Gfp.HighUserMovable | Gfp.NoRetry | Gfp.NoWarn);
        Assert.Equal(32, machine.Zone(ZoneType.Movable).Zone.FreePages);        // MIN of any zone Movable this small
        Assert.Equal(64, dma32.FreePages);
        machine.Exhaust(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn);     // could not have used Movable
        Assert.Equal(0, dma32.FreePages);
    }

    [Fact]
    [Trait("rule", "WMARK-05")]
    public void A_zone_that_fails_at_high_is_marked_and_still_serves_above_low()
    {
        using BarePages machine = WithMin();
        Zone zone = machine.Zone(ZoneType.Dma32).Zone;
        while (zone.FreePages > 384)
        {
            Assert.Equal(ZoneFlags.None, zone.Flags & ZoneFlags.BelowHigh);
            Assert.NotNull(machine.Alloc(Gfp.Kernel));
        }

        Assert.NotNull(machine.Alloc(Gfp.Kernel));
        Assert.Equal(ZoneFlags.BelowHigh, zone.Flags & ZoneFlags.BelowHigh);
        Assert.Empty(machine.Hooks.Wakes);
        while (zone.FreePages > 320)
            Assert.NotNull(machine.Alloc(Gfp.Kernel));
        Assert.Empty(machine.Hooks.Wakes);

        // At LOW the fast path fails: kswapd is woken (at entry and again in the loop's first round, had it failed).
        Assert.NotNull(machine.Alloc(Gfp.Kernel));
        Assert.Equal([(0, 0, ZoneType.Normal)], machine.Hooks.Wakes);
        Assert.NotNull(machine.Alloc(Gfp.Kernel & ~Gfp.KswapdReclaim));
        Assert.Single(machine.Hooks.Wakes);
    }

    [Fact]
    [Trait("rule", "WMARK-06")]
    public void The_boost_raises_every_mark_but_not_the_last_resort_of_high_priority()
    {
        using BarePages machine = WithMin();
        Zone zone = machine.Zone(ZoneType.Dma32).Zone;
        zone.Boost = 1000;
        machine.Exhaust(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn);
        Assert.Equal(1256, zone.FreePages);
        machine.Exhaust(Gfp.NoWait);
        Assert.Equal(1256, zone.FreePages);
        machine.Exhaust(Gfp.Kernel | Gfp.High | Gfp.NoRetry | Gfp.NoWarn);
        Assert.Equal(128, zone.FreePages);
        machine.Exhaust(Gfp.Atomic | Gfp.NoWarn);
        Assert.Equal(96, zone.FreePages);
    }

    [Fact]
    [Trait("rule", "WMARK-06")]
    public void A_claim_of_a_small_block_wakes_kswapd_once()
    {
        using BarePages machine = WithMin();
        ZonePages zone = machine.Zone(ZoneType.Dma32);
        List<ulong> held = machine.Exhaust(Gfp.Kernel | Gfp.Movable | Gfp.MemAlloc, 4);
        foreach (ulong pfn in held.Where(pfn => pfn % 32 == 0))
            machine.Free(pfn, 4);
        zone.Zone.ClearFlag(ZoneFlags.BelowHigh);
        machine.Hooks.Forget();
        Assert.NotNull(machine.Alloc(Gfp.Kernel, 0));
        Assert.Equal(512, zone.Zone.Boost);
        Assert.Equal([(0, 0, ZoneType.Dma32)], machine.Hooks.Wakes);
        Assert.Equal(ZoneFlags.None, zone.Zone.Flags & ZoneFlags.BoostedWatermark);
        Assert.NotNull(machine.Alloc(Gfp.Kernel, 0));
        Assert.Single(machine.Hooks.Wakes);
    }

    [Fact]
    [Trait("rule", "WMARK-07")]
    public void Frames_of_the_reserve_do_not_count_for_requests_without_rights()
    {
        using BarePages machine = WithMin();
        ZonePages zone = machine.Zone(ZoneType.Dma32);
        zone.Zone.FreeHighAtomic = 1000;
        machine.Exhaust(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn);
        Assert.Equal(1256, zone.Zone.FreePages);
        machine.Exhaust(Gfp.NoWait);
        Assert.Equal(256, zone.Zone.FreePages);
        zone.Zone.FreeHighAtomic = 0;
    }

    /// <summary>16384 frames of DMA32; MIN 256, gap 64.</summary>
    private static BarePages WithMin() =>
        new BarePages(BarePages.Options((4096, 4096 + 16384)) with { MinFreeKbytes = 1024 }).WithoutCaching();

    private static void Release(BarePages machine, List<ulong> blocks)
    {
        machine.Free(blocks[^1]);
        blocks.RemoveAt(blocks.Count - 1);
    }
}
