namespace Kmem.Tests;

/// <summary>
/// Refills, drains and the tuning between them, computed by hand for batch 7, high_min 28, high_max 100.
/// </summary>
public sealed class PerCpuPagesTests
{
    private const int Cpu = 0;

    [Fact]
    [Trait("rule", "PCP-04")]
    public unsafe void A_refill_hands_out_ascending_frames_of_one_split_block()
    {
        using BareZone zone = Tuned();
        for (ulong expected = 0; expected < 100; expected++)
            Assert.Equal((ulong?)expected, zone.PfnOf(Take(zone, 0)));
    }

    [Fact]
    [Trait("rule", "PCP-05")]
    public unsafe void Refills_double_until_the_limit_is_reached()
    {
        using BareZone zone = Tuned();
        PerCpuPages* pcp = zone.Pages.PcpOf(Cpu);
        (int Got, int High, int Factor)[] expected =
            [(7, 35, 1), (14, 49, 2), (28, 77, 3), (56, 100, 4), (93, 100, 4), (93, 100, 4)];
        foreach ((int got, int high, int factor) in expected)
        {
            Assert.Equal(0, pcp->Count);
            zone.Trace.Events.Clear();
            Take(zone, 0);
            Assert.Equal(got, zone.Trace.Events.Count);
            Assert.Equal((got - 1, high, factor), (pcp->Count, pcp->High, pcp->AllocFactor));
            while (pcp->Count > 0)
                Take(zone, 0);
        }
    }

    [Fact]
    [Trait("rule", "PCP-05")]
    public unsafe void Below_the_high_mark_the_lists_do_not_grow()
    {
        using BareZone zone = Tuned();
        zone.Zone.SetFlag(ZoneFlags.BelowHigh);
        PerCpuPages* pcp = zone.Pages.PcpOf(Cpu);
        foreach (int got in new[] { 7, 14, 21, 21 })        // high stays 28: 28 − 0 − 7 = 21 at most
        {
            zone.Trace.Events.Clear();
            Take(zone, 0);
            Assert.Equal(got, zone.Trace.Events.Count);
            Assert.Equal(28, pcp->High);
            while (pcp->Count > 0)
                Take(zone, 0);
        }
    }

    [Theory]
    [InlineData(1, 3)]      // 7 >> 1
    [InlineData(2, 2)]      // at least two
    [InlineData(3, 2)]
    [InlineData(9, 2)]
    [Trait("rule", "PCP-05")]
    public unsafe void Higher_orders_refill_fewer_blocks(int order, int blocks)
    {
        using BareZone zone = Tuned();
        zone.Trace.Events.Clear();
        Take(zone, order);
        Assert.Equal(blocks, zone.Trace.Events.Count);
        Assert.Equal((blocks - 1) << order, zone.Pages.PcpOf(Cpu)->Count);
        Assert.Equal(35, zone.Pages.PcpOf(Cpu)->High);
        Assert.Equal(0, zone.Pages.PcpOf(Cpu)->AllocFactor);
    }

    [Theory]
    [InlineData(4)]
    [InlineData(8)]
    [InlineData(10)]
    [Trait("rule", "PCP-06")]
    public unsafe void Other_orders_go_past_the_lists(int order)
    {
        using BareZone zone = Tuned();
        Page* page = Take(zone, order);
        Assert.Equal(0, zone.Pages.PcpOf(Cpu)->Count);
        Give(zone, page, order);
        Assert.Equal(0, zone.Pages.PcpOf(Cpu)->Count);
        Assert.Equal(0, zone.Pages.PcpOf(Cpu)->High);
        Assert.Equal(4096, zone.Zone.FreePages);
    }

    [Fact]
    [Trait("rule", "PCP-07")]
    public unsafe void The_hundredth_free_drains_the_ninety_three_oldest()
    {
        using BareZone zone = Tuned();
        PerCpuPages* pcp = zone.Pages.PcpOf(Cpu);
        nint[] pages = TakeUntilEmpty(zone, 198);       // 7 + 14 + 28 + 56 + 93
        Assert.Equal((0, 100, 4), (pcp->Count, pcp->High, pcp->AllocFactor));
        zone.Trace.Events.Clear();
        for (int i = 0; i < 99; i++)
            Give(zone, (Page*)pages[i], 0);
        Assert.Empty(zone.Trace.Events);
        Assert.Equal((99, 99, 0), (pcp->Count, pcp->FreeCount, pcp->AllocFactor));
        Give(zone, (Page*)pages[99], 0);
        Assert.Equal(7, pcp->Count);
        Assert.Equal(
            [.. Enumerable.Range(0, 93).Select(i => RecordingTrace.Drained((ulong)i, 0, Migratetype.Movable))],
            zone.Trace.Events.ToArray());

        // The youngest is handed out again first.
        Assert.Equal((ulong?)99, zone.PfnOf(Take(zone, 0)));
        Assert.Equal(50, pcp->FreeCount);
    }

    [Fact]
    [Trait("rule", "PCP-07")]
    public unsafe void A_run_of_high_order_frees_drains_everything()
    {
        using BareZone zone = Tuned();
        PerCpuPages* pcp = zone.Pages.PcpOf(Cpu);
        nint[] pages = [.. Enumerable.Range(0, 5).Select(_ => (nint)Take(zone, 3))];
        Assert.Equal((8, 49), (pcp->Count, pcp->High));
        foreach ((int count, int freeCount) in new[] { (16, 8), (24, 16), (32, 24) })
        {
            Give(zone, (Page*)pages[(count / 8) - 2], 3);
            Assert.Equal((count, freeCount, 49), (pcp->Count, pcp->FreeCount, pcp->High));
        }

        // 24 freed before this one are not less than 7 + 28 / 2, and the last one was of high order, too.
        Give(zone, (Page*)pages[3], 3);
        Assert.Equal((0, 32, 28), (pcp->Count, pcp->FreeCount, pcp->High));
        Give(zone, (Page*)pages[4], 3);
        Assert.Equal(0, pcp->Count);
        Assert.Equal(4096, zone.Zone.FreePages);
    }

    [Fact]
    [Trait("rule", "PCP-07")]
    public unsafe void A_single_frame_between_breaks_the_run()
    {
        using BareZone zone = Tuned();
        PerCpuPages* pcp = zone.Pages.PcpOf(Cpu);
        nint[] pages = [.. Enumerable.Range(0, 4).Select(_ => (nint)Take(zone, 3))];
        nint single = (nint)Take(zone, 0);
        int before = pcp->Count;
        for (int i = 0; i < 3; i++)
            Give(zone, (Page*)pages[i], 3);
        Give(zone, (Page*)single, 0);
        Give(zone, (Page*)pages[3], 3);
        Assert.Equal(before + 33, pcp->Count);
    }

    [Fact]
    [Trait("rule", "PCP-07")]
    public unsafe void While_kswapd_works_the_lists_shrink_to_four_batches()
    {
        using BareZone zone = Tuned();
        PerCpuPages* pcp = zone.Pages.PcpOf(Cpu);
        nint[] pages = TakeUntilEmpty(zone, 198);
        zone.Zone.SetFlag(ZoneFlags.ReclaimActive);
        for (int i = 0; i < 27; i++)
            Give(zone, (Page*)pages[i], 0);
        Assert.Equal(27, pcp->Count);
        Assert.Equal(28, pcp->High);        // 100 less 7 a free while few were freed: at high_min soon
        Give(zone, (Page*)pages[27], 0);
        Assert.Equal(28 - 21, pcp->Count);  // limit 28: no more than 28 − 7 at once
    }

    [Fact]
    [Trait("rule", "PCP-07")]
    [Trait("rule", "WMARK-05")]
    public unsafe void Below_the_high_mark_every_free_from_high_min_on_drains()
    {
        using BareZone zone = Tuned();
        PerCpuPages* pcp = zone.Pages.PcpOf(Cpu);
        zone.Zone.Watermarks = new Watermarks(0, 0, 4096 - 100, 0);
        nint[] pages = TakeUntilEmpty(zone, 198);
        zone.Zone.SetFlag(ZoneFlags.BelowHigh);
        for (int i = 0; i < 27; i++)
            Give(zone, (Page*)pages[i], 0);
        Assert.Equal(27, pcp->Count);
        Give(zone, (Page*)pages[27], 0);
        Assert.Equal(7, pcp->Count);        // min(max(28, 7), 28 − 7) = 21 drained
        Assert.True((zone.Zone.Flags & ZoneFlags.BelowHigh) != 0);

        // Once a drain leaves more than HIGH free frames, the flag goes.
        int given = 28;
        while ((zone.Zone.Flags & ZoneFlags.BelowHigh) != 0)
        {
            Assert.True(zone.Zone.FreePages <= 4096 - 100);
            Give(zone, (Page*)pages[given++], 0);
        }

        Assert.True(zone.Zone.FreePages > 4096 - 100);
    }

    [Fact]
    [Trait("rule", "PCP-08")]
    public unsafe void Lists_that_grew_decay_by_an_eighth_a_second()
    {
        using BareZone zone = Tuned();
        PerCpuPages* pcp = zone.Pages.PcpOf(Cpu);
        nint[] pages = TakeUntilEmpty(zone, 198);
        for (int i = 0; i < 40; i++)
            Give(zone, (Page*)pages[i], 0);
        (int High, int Count)[] expected =
        [
            (88, 40), (77, 40), (68, 40), (60, 40), (53, 40), (47, 40), (42, 40), (37, 37), (33, 33), (29, 29),
            (28, 28), (28, 28),
        ];
        foreach ((int high, int count) in expected)
        {
            zone.Pages.Decay(Cpu);
            Assert.Equal((high, count), (pcp->High, pcp->Count));
        }
    }

    [Fact]
    [Trait("rule", "PCP-08")]
    public unsafe void A_drain_gives_everything_back_and_merges_it()
    {
        using BareZone zone = Tuned();
        foreach (nint page in TakeUntilEmpty(zone, 198))
            Give(zone, (Page*)page, 0);
        nint block = (nint)Take(zone, 9);
        Give(zone, (Page*)block, 9);
        Assert.NotEqual(4096, zone.Zone.FreePages);
        zone.Pages.Drain(Cpu, Cpu);
        Assert.Equal(0, zone.Pages.PcpOf(Cpu)->Count);
        Assert.Equal(4096, zone.Zone.FreePages);
        Assert.Equal(4, zone.Buddy.NrFree(10));
    }

    [Fact]
    [Trait("rule", "PCP-09")]
    public unsafe void A_frame_goes_to_the_list_of_its_pageblock_and_drains_by_the_type_it_then_has()
    {
        using BareZone zone = Tuned();
        Page* page = Take(zone, 0);
        zone.Blocks.SetType(0, Migratetype.HighAtomic);
        Give(zone, page, 0);
        Assert.Equal([0, 1, 2, 3, 4, 5, 6], zone.PerCpu(Cpu, PerCpuPages.ListIndex(0, Migratetype.Movable)));
        Assert.Equal(1, PerCpuPages.ListIndex(0, Migratetype.HighAtomic));
        zone.Blocks.SetType(0, Migratetype.Reclaimable);
        zone.Trace.Events.Clear();
        zone.Pages.Drain(Cpu, Cpu);
        Assert.All(
            zone.Trace.Events, text => Assert.EndsWith("order 0 Reclaimable", text, StringComparison.Ordinal));
    }

    [Fact]
    [Trait("rule", "PCP-09")]
    public unsafe void Isolated_frames_go_past_the_lists()
    {
        using BareZone zone = Tuned();
        Page* page = Take(zone, 0);
        int count = zone.Pages.PcpOf(Cpu)->Count;
        zone.Blocks.SetType(0, Migratetype.Isolate);
        Give(zone, page, 0);
        Assert.Equal(count, zone.Pages.PcpOf(Cpu)->Count);
        Assert.Equal([0], zone.Free(0, Migratetype.Isolate));
    }

    /// <summary>Four largest blocks, all Movable.</summary>
    private static unsafe BareZone Tuned()
    {
        var zone = new BareZone(0, 4096);
        zone.HandOver(0, 4096);
        PerCpuPages* pcp = zone.Pages.PcpOf(Cpu);
        (pcp->Batch, pcp->HighMin, pcp->HighMax) = (7, 28, 100);
        return zone;
    }

    private static unsafe Page* Take(BareZone zone, int order) => zone.Take(order, Migratetype.Movable);

    private static unsafe void Give(BareZone zone, Page* page, int order) => zone.Give(page, order);

    private static unsafe nint[] TakeUntilEmpty(BareZone zone, int count)
    {
        var pages = new nint[count];
        for (int i = 0; i < count; i++)
            pages[i] = (nint)Take(zone, 0);
        Assert.Equal(0, zone.Pages.PcpOf(Cpu)->Count);
        return pages;
    }
}
