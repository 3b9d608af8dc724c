namespace Kmem.Tests;

/// <summary>The reserve of pageblocks for high-order requests that cannot wait.</summary>
public sealed class HighAtomicTests
{
    [Fact]
    [Trait("rule", "HIGHATOMIC-01")]
    [Trait("rule", "ZONE-02")]
    public void A_high_order_atomic_request_below_low_reserves_its_pageblock()
    {
        using BarePages machine = BelowLow(60_000);
        Zone zone = machine.Zone(ZoneType.Dma32).Zone;
        ulong pfn = machine.Alloc(Gfp.Atomic, 2)!.Value;
        Assert.Equal(Migratetype.HighAtomic, machine.TypeOf(pfn));
        Assert.Equal(512, zone.ReservedHighAtomic);
        Assert.Equal(508, zone.FreeHighAtomic);

        // 1 % of 60000 frames, rounded up to whole pageblocks, is 1024: two pageblocks and no more. The other requests
        // are served from ordinary blocks through the per-CPU lists, and leave the reserve alone.
        for (int i = 0; i < 2000; i++)
            Assert.NotNull(machine.Alloc(Gfp.Atomic, 2));
        Assert.Equal(1024, zone.ReservedHighAtomic);
        Assert.Equal(2 * 508, zone.FreeHighAtomic);
    }

    [Theory]
    [InlineData(Gfp.Atomic, 0)]                     // order 0
    [InlineData(Gfp.NoWait, 2)]                     // no high priority
    [InlineData(Gfp.Kernel | Gfp.High, 2)]          // may wait
    [InlineData(Gfp.Atomic | Gfp.NoMemAlloc, 2)]    // not from reserves
    [Trait("rule", "HIGHATOMIC-01")]
    public void Others_reserve_nothing(Gfp gfp, int order)
    {
        using BarePages machine = BelowLow(60_000);
        Assert.NotNull(machine.Alloc(gfp, order));
        Assert.Equal(0, machine.Zone(ZoneType.Dma32).Zone.ReservedHighAtomic);
    }

    [Fact]
    [Trait("rule", "HIGHATOMIC-01")]
    public void Nothing_is_reserved_above_low_or_in_small_zones()
    {
        using (BarePages machine = BelowLow(51_199))
        {
            Assert.NotNull(machine.Alloc(Gfp.Atomic, 2));
            Assert.Equal(0, machine.Zone(ZoneType.Dma32).Zone.ReservedHighAtomic);
        }

        using var rich = new BarePages((4096, 4096 + 60_000));
        Assert.NotNull(rich.Alloc(Gfp.Atomic, 2));
        Assert.Equal(0, rich.Zone(ZoneType.Dma32).Zone.ReservedHighAtomic);
    }

    [Fact]
    [Trait("rule", "HIGHATOMIC-02")]
    public void The_reserve_serves_whom_it_is_for_and_last_who_cannot_wait()
    {
        using BarePages machine = BelowLow(60_000);
        Zone zone = machine.Zone(ZoneType.Dma32).Zone;
        ulong pfn = machine.Alloc(Gfp.Atomic, 4)!.Value;
        zone.Watermarks = default;
        List<ulong> ordinary = machine.Exhaust(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn);
        Assert.DoesNotContain(ordinary, frame => (frame & ~511UL) == (pfn & ~511UL));
        Assert.Equal(496, zone.FreeHighAtomic);
        Assert.Equal(496, zone.FreePages);

        // Only the reserve has blocks of order 4 now; order 0 without a right to wait may use it, too.
        Assert.Null(machine.Alloc(Gfp.NoWait, 4));
        Assert.Equal(pfn & ~511UL, machine.Alloc(Gfp.Atomic, 4)!.Value & ~511UL);
        Assert.Equal(pfn & ~511UL, machine.Alloc(Gfp.NoWait, 0)!.Value & ~511UL);
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.High | Gfp.NoRetry | Gfp.NoWarn));
    }

    [Fact]
    [Trait("rule", "HIGHATOMIC-03")]
    public void One_pageblock_stays_unless_all_else_failed()
    {
        using BarePages machine = BelowLow(60_000);
        Zone zone = machine.Zone(ZoneType.Dma32).Zone;
        ulong first = machine.Alloc(Gfp.Atomic, 4)!.Value;
        ulong second = first;
        while (zone.ReservedHighAtomic < 1024)
            second = machine.Alloc(Gfp.Atomic, 4)!.Value;
        machine.Free(second, 4);
        machine.Free(first, 4);
        zone.Watermarks = default;
        zone.LowmemReserve.AsSpan().Clear();
        machine.Exhaust(Gfp.Kernel | Gfp.Reclaimable | Gfp.NoRetry | Gfp.NoWarn);
        Assert.Equal(1024, zone.ReservedHighAtomic);

        // Progress that was not enough gives up one pageblock of two, but not the last.
        machine.Hooks.OnReclaim = () => 1;
        Assert.NotNull(machine.Alloc(Gfp.Kernel | Gfp.Reclaimable | Gfp.NoRetry | Gfp.NoWarn));
        Assert.Equal(512, zone.ReservedHighAtomic);
        machine.Exhaust(Gfp.Kernel | Gfp.Reclaimable | Gfp.NoRetry | Gfp.NoWarn);
        Assert.Equal(512, zone.ReservedHighAtomic);

        // Without NORETRY the last one goes before the killer is called.
        machine.Hooks.OnReclaim = () => 0;
        ulong last = machine.Alloc(Gfp.Kernel | Gfp.Reclaimable | Gfp.NoWarn)!.Value;
        Assert.Equal(0, zone.ReservedHighAtomic);
        Assert.Equal(0, zone.FreeHighAtomic);
        Assert.Equal(0, machine.Hooks.Ooms);
        Assert.Equal(Migratetype.Reclaimable, machine.TypeOf(last));
    }

    [Fact]
    [Trait("rule", "HIGHATOMIC-01")]
    public void Whole_pageblocks_can_be_reserve_too()
    {
        using BarePages machine = BelowLow(60_000);
        Zone zone = machine.Zone(ZoneType.Dma32).Zone;
        ulong pfn = machine.Alloc(Gfp.Atomic, 10)!.Value;
        Assert.Equal(1024, zone.ReservedHighAtomic);
        Assert.Equal(0, zone.FreeHighAtomic);
        Assert.Equal(Migratetype.HighAtomic, machine.TypeOf(pfn + 512));
        machine.Free(pfn, 10);
        Assert.Equal(1024, zone.FreeHighAtomic);
        Assert.Equal([pfn], machine.FreeList(machine.Zone(ZoneType.Dma32), 10, Migratetype.HighAtomic));
        Assert.True(machine.Zone(ZoneType.Dma32).Buddy.UnreserveHighAtomic(Migratetype.Movable, force: false, cpu: 0));
        Assert.Equal((0, 0), (zone.ReservedHighAtomic, zone.FreeHighAtomic));
        Assert.Equal(Migratetype.Movable, machine.TypeOf(pfn + 512));
    }

    /// <summary>A zone that is above MIN and below LOW.</summary>
    private static BarePages BelowLow(ulong frames)
    {
        BarePages machine = new BarePages(
            BarePages.Options((4096, 4096 + frames)) with { WatermarkBoostFactor = 0 }).WithoutReserves();
        machine.Zone(ZoneType.Dma32).Zone.Watermarks = new Watermarks(0, 100_000, 100_001, 100_002);
        return machine;
    }
}
