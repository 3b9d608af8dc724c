namespace Kmem.Tests;

/// <summary>Lists and fallbacks, with every position worked out by hand from the rules.</summary>
public sealed class FallbackTests
{
    private const int Cpu = 0;

    [Fact]
    [Trait("rule", "BUDDY-10")]
    [Trait("rule", "BUDDY-11")]
    public unsafe void A_take_keeps_the_lowest_part_and_puts_the_upper_halves_at_the_heads()
    {
        using var zone = new BareZone(0, 2048);
        zone.HandOver(0, 16);
        zone.HandOver(64, 96);
        Assert.Equal((ulong?)0, zone.PfnOf(zone.TakeBlock(1, Migratetype.Movable, Cpu)));
        Assert.Equal([2], zone.Free(1, Migratetype.Movable));
        Assert.Equal([4], zone.Free(2, Migratetype.Movable));
        Assert.Equal([8], zone.Free(3, Migratetype.Movable));
        Assert.Equal([64], zone.Free(5, Migratetype.Movable));
        Assert.Equal([RecordingTrace.Taken(0, 1, Migratetype.Movable, refill: true)], zone.Trace.Events);

        // The smallest sufficient block is split, and its rest goes before what is there.
        Assert.Equal((ulong?)8, zone.PfnOf(zone.TakeBlock(3, Migratetype.Movable, Cpu)));
        Assert.Equal((ulong?)64, zone.PfnOf(zone.TakeBlock(3, Migratetype.Movable, Cpu)));
        Assert.Equal([72], zone.Free(3, Migratetype.Movable));
        Assert.Equal([80], zone.Free(4, Migratetype.Movable));
        Assert.Equal((ulong?)4, zone.PfnOf(zone.TakeBlock(2, Migratetype.Movable, Cpu)));
        Assert.Equal((ulong?)72, zone.PfnOf(zone.TakeBlock(2, Migratetype.Movable, Cpu)));
        Assert.Equal([76], zone.Free(2, Migratetype.Movable));
    }

    [Fact]
    [Trait("rule", "BUDDY-12")]
    public unsafe void A_freed_block_goes_to_the_head_unless_a_further_merge_is_likely()
    {
        using var zone = new BareZone(0, 2048);
        Release(zone, 100, 0);
        Release(zone, 102, 0);
        Assert.Equal([102, 100], zone.Free(0, Migratetype.Movable));

        // 104 has the free order-1 block 106 as the buddy of its parent: the tail. 108 has none: the head.
        Release(zone, 106, 1);
        Release(zone, 104, 0);
        Assert.Equal([102, 100, 104], zone.Free(0, Migratetype.Movable));
        Release(zone, 109, 0);
        Assert.Equal([109, 102, 100, 104], zone.Free(0, Migratetype.Movable));

        // Asked for, the tail it is.
        zone.Pages.GiveToBuddy(zone.PageOf(200), 0, FreeFlags.ToTail, Cpu);
        Assert.Equal([109, 102, 100, 104, 200], zone.Free(0, Migratetype.Movable));

        // Freeing 105 merges 104–105 with 106–107.
        Release(zone, 105, 0);
        Assert.Equal([109, 102, 100, 200], zone.Free(0, Migratetype.Movable));
        Assert.Empty(zone.Free(1, Migratetype.Movable));
        Assert.Equal([104], zone.Free(2, Migratetype.Movable));
    }

    [Fact]
    [Trait("rule", "BUDDY-12")]
    public unsafe void Orders_nine_and_ten_always_go_to_the_head()
    {
        using var zone = new BareZone(0, 4096);
        Release(zone, 1024, 10);
        Release(zone, 3072, 10);
        Release(zone, 512, 9);      // its parent's buddy 1024 is free with order 10, but that does not count
        Assert.Equal([3072, 1024], zone.Free(10, Migratetype.Movable));
        Release(zone, 2048, 9);
        Assert.Equal([2048, 512], zone.Free(9, Migratetype.Movable));
    }

    [Theory]
    [InlineData(Migratetype.Movable, Migratetype.Unmovable)]
    [InlineData(Migratetype.Reclaimable, Migratetype.Movable)]
    [Trait("rule", "BUDDY-13")]
    public unsafe void A_merge_of_two_pageblocks_takes_the_type_of_the_one_freed_last(
        Migratetype first, Migratetype second)
    {
        using var zone = new BareZone(0, 1024);
        zone.Blocks.SetType(0, first);
        zone.Blocks.SetType(512, second);
        Release(zone, 0, 9);
        Assert.Equal([0], zone.Free(9, first));
        Release(zone, 512, 9);
        Assert.Equal([0], zone.Free(10, second));
        Assert.Equal(second, zone.Blocks.TypeOf(0));
        Assert.Equal(second, zone.Blocks.TypeOf(512));
    }

    [Fact]
    [Trait("rule", "BUDDY-13")]
    public unsafe void A_block_of_two_types_freed_whole_gets_the_upper_one()
    {
        using var zone = new BareZone(0, 1024);
        zone.Blocks.SetType(0, Migratetype.Unmovable);
        zone.Blocks.SetType(512, Migratetype.Reclaimable);
        zone.Pages.GiveToBuddy(zone.PageOf(0), 10, FreeFlags.None, Cpu);
        Assert.Equal([0], zone.Free(10, Migratetype.Reclaimable));
        Assert.Equal(Migratetype.Reclaimable, zone.Blocks.TypeOf(0));
    }

    [Fact]
    [Trait("rule", "BUDDY-14")]
    public unsafe void Reserve_and_isolated_pageblocks_do_not_merge_with_others()
    {
        foreach (Migratetype apart in new[] { Migratetype.HighAtomic, Migratetype.Isolate })
        {
            using var zone = new BareZone(0, 1024);
            zone.Blocks.SetType(512, apart);
            zone.Pages.GiveToBuddy(zone.PageOf(0), 10, FreeFlags.None, Cpu);
            Assert.Equal([0], zone.Free(9, Migratetype.Movable));
            Assert.Equal([512], zone.Free(9, apart));
            Assert.Empty(zone.Free(10, Migratetype.Movable));
            Assert.Equal(apart == Migratetype.Isolate ? 512 : 1024, zone.Zone.FreePagesExact);
        }
    }

    [Fact]
    [Trait("rule", "FALLBACK-01")]
    public unsafe void The_first_unmovable_request_claims_a_whole_largest_block()
    {
        using var zone = new BareZone(0, 4096);
        zone.HandOver(0, 4096);
        var mode = SearchMode.Normal;
        Page* page = zone.Rmqueue(0, Migratetype.Unmovable, AllocFlags.Kswapd, ref mode, Cpu);
        Assert.Equal((ulong?)0, zone.PfnOf(page));
        Assert.Equal(SearchMode.Normal, mode);
        Assert.Equal(Migratetype.Unmovable, zone.Blocks.TypeOf(0));
        Assert.Equal(Migratetype.Unmovable, zone.Blocks.TypeOf(512));
        Assert.Equal(Migratetype.Movable, zone.Blocks.TypeOf(1024));
        for (int order = 0; order < 10; order++)
            Assert.Equal([1UL << order], zone.Free(order, Migratetype.Unmovable));

        // No zone_locked event, and no boost: the block was a pageblock.
        Assert.Equal(
            [RecordingTrace.Fallback(0, 0, 10, Migratetype.Unmovable, Migratetype.Movable, ownership: true)],
            zone.Trace.Events);
        Assert.Equal(0, zone.Zone.Boost);
    }

    [Fact]
    [Trait("rule", "FALLBACK-02")]
    [Trait("rule", "WMARK-06")]
    public unsafe void Half_a_pageblock_is_enough_to_claim_it()
    {
        using var zone = Fragmented(out List<ulong> held);

        // Frames 0 … 255 of the pageblock are free in blocks of order 4; the rest is in use, and not alike.
        zone.Zone.Watermarks = new Watermarks(1, 2, 1000, 4);
        var mode = SearchMode.Normal;
        ulong block = held[0] & ~511UL;
        for (ulong pfn = block + 256; pfn < block + 512; pfn++)
            zone.PageOf(pfn)->Flags |= PageFlags.Lru;
        for (ulong pfn = block; pfn < block + 256; pfn += 16)
            Release(zone, pfn, 4);
        zone.Trace.Events.Clear();
        Page* page = zone.Rmqueue(4, Migratetype.Unmovable, AllocFlags.Kswapd, ref mode, Cpu);
        Assert.Equal((ulong?)block, zone.PfnOf(page));
        Assert.Equal(Migratetype.Unmovable, zone.Blocks.TypeOf(block));
        Assert.Equal(512, zone.Zone.Boost);
        Assert.True((zone.Zone.Flags & ZoneFlags.BoostedWatermark) != 0);
        Assert.Equal(
            [
                RecordingTrace.Taken(block, 4, Migratetype.Unmovable, refill: false),
                RecordingTrace.Fallback(block, 4, 8, Migratetype.Unmovable, Migratetype.Movable, ownership: true),
            ],
            zone.Trace.Events);
    }

    [Fact]
    [Trait("rule", "FALLBACK-02")]
    [Trait("rule", "FALLBACK-03")]
    public unsafe void A_pageblock_that_others_use_is_robbed_of_one_block()
    {
        using var zone = Fragmented(out List<ulong> held);
        ulong block = held[0] & ~511UL;

        // All of it on an LRU list, less than half free: not alike for an unmovable request.
        for (ulong pfn = block; pfn < block + 512; pfn++)
            zone.PageOf(pfn)->Flags |= PageFlags.Lru;
        for (ulong pfn = block; pfn < block + 240; pfn += 16)
            Release(zone, pfn, 4);
        zone.Zone.Watermarks = new Watermarks(1, 2, 1000, 4);
        zone.Trace.Events.Clear();
        var mode = SearchMode.Normal;
        Page* page = zone.Rmqueue(0, Migratetype.Unmovable, AllocFlags.Kswapd, ref mode, Cpu);

        // Free: 128 + 64 + 32 + 16. Claiming looked at one candidate of each order and raised the boost each time up to
        // 1500; stealing then took the smallest.
        Assert.Equal((ulong?)(block + 224), zone.PfnOf(page));
        Assert.Equal(SearchMode.Steal, mode);
        Assert.Equal(Migratetype.Movable, zone.Blocks.TypeOf(block));
        Assert.Equal(1500, zone.Zone.Boost);
        Assert.Equal(
            [RecordingTrace.Fallback(block + 224, 0, 4, Migratetype.Unmovable, Migratetype.Movable, ownership: false)],
            zone.Trace.Events);
        Assert.Equal([block + 225], zone.Free(0, Migratetype.Movable));

        // After a steal a refill goes on stealing, even past lists of its own.
        Release(zone, held[^1], 4);
        Lists.MovePageblock(zone.Pages, held[^1], Migratetype.Movable, Migratetype.Unmovable);
        page = zone.Rmqueue(0, Migratetype.Unmovable, AllocFlags.Kswapd, ref mode, Cpu);
        Assert.Equal((ulong?)(block + 225), zone.PfnOf(page));
        mode = SearchMode.Normal;
        page = zone.Rmqueue(0, Migratetype.Unmovable, AllocFlags.Kswapd, ref mode, Cpu);
        Assert.Equal((ulong?)held[^1], zone.PfnOf(page));
    }

    [Fact]
    [Trait("rule", "FALLBACK-02")]
    public unsafe void Movable_frames_are_alike_for_a_movable_request()
    {
        using var zone = Fragmented(out List<ulong> held);
        ulong block = held[0] & ~511UL;
        zone.Blocks.SetType(block, Migratetype.Unmovable);
        for (ulong pfn = block + 16; pfn < block + 512; pfn++)
            zone.PageOf(pfn)->Flags |= PageFlags.Lru;
        Release(zone, block, 4);
        var mode = SearchMode.Normal;
        Page* page = zone.Rmqueue(2, Migratetype.Movable, AllocFlags.Kswapd, ref mode, Cpu);
        Assert.Equal((ulong?)block, zone.PfnOf(page));
        Assert.Equal(Migratetype.Movable, zone.Blocks.TypeOf(block));
    }

    [Fact]
    [Trait("rule", "FALLBACK-04")]
    public unsafe void Movable_requests_do_not_claim_for_small_blocks()
    {
        using var zone = Fragmented(out List<ulong> held);
        ulong block = held[0] & ~511UL;
        zone.Blocks.SetType(block, Migratetype.Unmovable);
        for (ulong pfn = block + 8; pfn < block + 512; pfn++)
            zone.PageOf(pfn)->Flags |= PageFlags.Lru;
        Release(zone, block, 3);
        var mode = SearchMode.Normal;
        Page* page = zone.Rmqueue(0, Migratetype.Movable, AllocFlags.Kswapd, ref mode, Cpu);
        Assert.Equal((ulong?)block, zone.PfnOf(page));
        Assert.Equal(Migratetype.Unmovable, zone.Blocks.TypeOf(block));     // stolen: the type stays
        Assert.Equal(0, zone.Zone.Boost);
    }

    [Fact]
    [Trait("rule", "FALLBACK-05")]
    public unsafe void Without_fragmentation_only_whole_pageblocks_change_hands()
    {
        using var zone = Fragmented(out List<ulong> held);
        Release(zone, held[0], 4);
        var mode = SearchMode.Normal;
        Assert.True(zone.Rmqueue(0, Migratetype.Unmovable, AllocFlags.NoFragment, ref mode, Cpu) == null);
        Assert.Empty(zone.Trace.Fallbacks);

        foreach (ulong pfn in held.Skip(1).Where(pfn => pfn < (held[0] & ~511UL) + 512))
            Release(zone, pfn, 4);
        Assert.True(zone.Rmqueue(0, Migratetype.Unmovable, AllocFlags.NoFragment, ref mode, Cpu) != null);
        Assert.Equal(9, Assert.Single(zone.Trace.Fallbacks).FallbackOrder);
    }

    [Theory]
    [InlineData(Migratetype.Unmovable, Migratetype.Reclaimable, Migratetype.Movable)]
    [InlineData(Migratetype.Movable, Migratetype.Reclaimable, Migratetype.Unmovable)]
    [InlineData(Migratetype.Reclaimable, Migratetype.Unmovable, Migratetype.Movable)]
    [Trait("rule", "FALLBACK-06")]
    public unsafe void Fallbacks_are_tried_in_the_order_of_the_table(
        Migratetype wanted, Migratetype first, Migratetype second)
    {
        using var zone = new BareZone(0, 2048);
        zone.Blocks.SetType(512, second);
        zone.Blocks.SetType(1024, first);
        Release(zone, 512, 9);
        Release(zone, 1024, 9);
        var mode = SearchMode.Normal;
        Page* page = zone.Rmqueue(0, wanted, AllocFlags.Kswapd, ref mode, Cpu);
        Assert.Equal((ulong?)1024, zone.PfnOf(page));
        Assert.Equal(wanted, zone.Blocks.TypeOf(1024));
        Assert.Equal(second, zone.Blocks.TypeOf(512));
    }

    [Fact]
    [Trait("rule", "WMARK-06")]
    public unsafe void The_boost_ends_at_half_as_much_again_as_the_high_mark()
    {
        using var zone = new BareZone(0, 4096);
        zone.Zone.Managed = 2048;
        zone.Zone.Watermarks = new Watermarks(0, 0, 1000, 0);
        Assert.Equal([512, 1024, 1500, 1500], Boosts(zone, 4));
        zone.Zone.Watermarks = new Watermarks(0, 0, 10, 0);
        zone.Zone.Boost = 0;
        Assert.Equal([512, 512], Boosts(zone, 2));          // at least a pageblock
        zone.Zone.Boost = 0;
        zone.Zone.Managed = 2047;
        Assert.Equal([0], Boosts(zone, 1));                 // fewer than four pageblocks
        zone.Zone.Managed = 2048;
        zone.Buddy.WatermarkBoostFactor = 0;
        Assert.Equal([0], Boosts(zone, 1));
    }

    private static unsafe List<long> Boosts(BareZone zone, int attempts)
    {
        var boosts = new List<long>();
        for (int i = 0; i < attempts; i++)
        {
            // One free frame in a pageblock that is of no use to a reclaimable request.
            zone.Blocks.SetType(1024, Migratetype.Unmovable);
            Release(zone, 1024, 0);
            var mode = SearchMode.Normal;
            Page* page = zone.Rmqueue(0, Migratetype.Reclaimable, AllocFlags.WatermarkMin, ref mode, Cpu);
            Assert.Equal((ulong?)1024, zone.PfnOf(page));
            boosts.Add(zone.Zone.Boost);
        }

        return boosts;
    }

    /// <summary>A zone of which everything is in use, in movable blocks of order 4.</summary>
    private static unsafe BareZone Fragmented(out List<ulong> held)
    {
        var zone = new BareZone(0, 4096);
        zone.HandOver(0, 4096);
        held = [];
        while (zone.PfnOf(zone.TakeBlock(4, Migratetype.Movable, Cpu)) is { } pfn)
            held.Add(pfn);
        zone.Trace.Events.Clear();
        return zone;
    }

    private static unsafe void Release(BareZone zone, ulong pfn, int order)
    {
        for (ulong frame = pfn; frame < pfn + (1UL << order); frame++)
            zone.PageOf(frame)->Flags = PageFlags.None;
        zone.Pages.GiveToBuddy(zone.PageOf(pfn), order, FreeFlags.None, Cpu);
    }
}
