namespace Kmem.Tests;

/// <summary>What boot gives to the buddy system, block by block; the blocks were cut by hand.</summary>
public sealed class BootHandOverTests
{
    [Fact]
    [Trait("rule", "BOOT-01")]
    [Trait("rule", "BOOT-02")]
    public void Ranges_are_cut_into_the_largest_aligned_blocks_lowest_first()
    {
        MachineOptions options = BarePages.Options((3, 2500));
        options.MemoryMap!.Reserve(1100 << 12, 1110 << 12);
        using var machine = new BarePages(options);
        ZonePages zone = machine.Zone(ZoneType.Dma);
        ulong[][] expected =
        [
            [3],
            [1110],
            [4, 1096, 2496],
            [8, 1088, 1112],
            [16],
            [32, 1120],
            [64, 1024, 2432],
            [128, 1152, 2304],
            [256, 1280, 2048],
            [512, 1536],
            [],
        ];
        for (int order = 0; order <= PageOrder.Max; order++)
            Assert.Equal(expected[order], machine.FreeList(zone, order, Migratetype.Movable));
        Assert.Equal(2497UL, zone.Zone.Present);
        Assert.Equal(2487UL, zone.Zone.Managed);
        Assert.Equal(2487, zone.Zone.FreePages);
        Assert.Equal(1024, zone.Zone.FreePagesInBlocks);
    }

    [Fact]
    [Trait("rule", "BOOT-01")]
    [Trait("rule", "BOOT-03")]
    public void Largest_blocks_are_in_order_and_stop_at_zone_borders()
    {
        using var machine = new BarePages((1024, 8 * 1024));
        Assert.Equal([1024, 2048, 3072], machine.FreeList(machine.Zone(ZoneType.Dma), 10, Migratetype.Movable));
        Assert.Equal(
            [4096, 5120, 6144, 7168], machine.FreeList(machine.Zone(ZoneType.Dma32), 10, Migratetype.Movable));
        for (int order = 0; order < PageOrder.Max; order++)
        {
            Assert.Equal(0, machine.Zone(ZoneType.Dma).Buddy.NrFree(order));
            Assert.Equal(0, machine.Zone(ZoneType.Dma32).Buddy.NrFree(order));
        }
    }

    [Fact]
    [Trait("rule", "BOOT-01")]
    public void Frame_zero_starts_a_block_of_the_largest_order()
    {
        using var machine = new BarePages((0, 1024 + 8));
        ZonePages zone = machine.Zone(ZoneType.Dma);
        Assert.Equal([0], machine.FreeList(zone, 10, Migratetype.Movable));
        Assert.Equal([1024], machine.FreeList(zone, 3, Migratetype.Movable));
    }

    [Fact]
    [Trait("rule", "BOOT-02")]
    public void Parts_of_frames_are_not_given_out()
    {
        var map = new BootMemoryMap();
        map.AddMemory((16 << 12) + 1, (33 << 12) - 1);      // frames 17 … 31 are whole
        map.Reserve((20 << 12) + 5, (20 << 12) + 6);        // one byte takes frame 20
        using var machine = new BarePages(new MachineOptions { Profile = KernelProfile.Linux618, MemoryMap = map, Cpus = 1, MinFreeKbytes = 0 });
        ZonePages zone = machine.Zone(ZoneType.Dma);
        Assert.Equal([17, 21], machine.FreeList(zone, 0, Migratetype.Movable));
        Assert.Equal([18, 22], machine.FreeList(zone, 1, Migratetype.Movable));
        Assert.Equal([24], machine.FreeList(zone, 3, Migratetype.Movable));
        Assert.Equal(14UL, zone.Zone.Managed);
        Assert.Equal(15UL, zone.Zone.Present);
    }

    [Theory]
    [InlineData(1, 0)]
    [InlineData(0, 1)]
    [Trait("rule", "BOOT-03")]
    public void Nodes_may_interleave(int outer, int inner)
    {
        // One node's span covers the memory of the other.
        var map = new BootMemoryMap();
        map.AddMemory(4096 << 12, 5120 << 12, outer);
        map.AddMemory(5120 << 12, 6144 << 12, inner);
        map.AddMemory(7168 << 12, 8192 << 12, outer);
        using var machine = new BarePages(new MachineOptions { Profile = KernelProfile.Linux618, MemoryMap = map, Cpus = 2, MinFreeKbytes = 0 });
        Assert.Equal([5120], machine.FreeList(machine.Zone(ZoneType.Dma32, inner), 10, Migratetype.Movable));
        Assert.Equal([4096, 7168], machine.FreeList(machine.Zone(ZoneType.Dma32, outer), 10, Migratetype.Movable));
        Assert.Equal(4096UL, machine.Zone(ZoneType.Dma32, outer).Zone.Spanned);
        Assert.Equal(2048UL, machine.Zone(ZoneType.Dma32, outer).Zone.Present);
        ulong own = machine.Alloc(Gfp.Kernel | Gfp.ThisNode | Gfp.MemAlloc, 10, inner)!.Value;
        Assert.Equal(5120UL, own);
        Assert.Null(machine.Alloc(Gfp.Kernel | Gfp.ThisNode | Gfp.MemAlloc, 0, inner));
    }

    [Fact]
    [Trait("rule", "BOOT-03")]
    public void A_hundred_nodes_have_a_hundred_zones()
    {
        var map = new BootMemoryMap();
        for (int node = 0; node < 100; node++)
        {
            ulong start = (4096UL + ((ulong)node * 512)) << 12;
            map.AddMemory(start, start + (512 << 12), node);
        }

        using var machine = new BarePages(new MachineOptions { Profile = KernelProfile.Linux618, MemoryMap = map, Cpus = 4, MinFreeKbytes = 0 });
        for (int node = 0; node < 100; node++)
        {
            ZonePages zone = machine.Zone(ZoneType.Dma32, node);
            Assert.Equal([4096UL + ((ulong)node * 512)], machine.FreeList(zone, 9, Migratetype.Movable));
            Assert.Equal(
                (ulong?)(4096UL + ((ulong)node * 512)),
                machine.Alloc(Gfp.Kernel | Gfp.ThisNode | Gfp.MemAlloc, 0, node));
        }
    }

    [Fact]
    [Trait("rule", "BOOT-04")]
    public void Movable_memory_is_the_top_of_each_node()
    {
        MachineOptions options = BarePages.Options((4096, 4096 + (16 * 1024))) with { MovableBytes = 20UL << 20 };
        using var machine = new BarePages(options);
        Zone movable = machine.Zone(ZoneType.Movable).Zone;
        Assert.Equal(15UL * 1024, movable.StartPfn);        // 20 MiB are five blocks of 1024 frames
        Assert.Equal(5UL * 1024, movable.Managed);
        Assert.Equal(11UL * 1024, machine.Zone(ZoneType.Dma32).Zone.Managed);
        Assert.All(machine.Exhaust(Gfp.Kernel | Gfp.NoRetry, 10), pfn => Assert.True(pfn < movable.StartPfn));
        Assert.Equal((ulong?)(15 * 1024), machine.Alloc(Gfp.HighUserMovable | Gfp.NoRetry | Gfp.MemAlloc, 10));
    }
}
