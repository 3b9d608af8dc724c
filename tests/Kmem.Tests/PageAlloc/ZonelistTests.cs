namespace Kmem.Tests;

/// <summary>In which order zones are tried.</summary>
public sealed class ZonelistTests
{
    [Fact]
    [Trait("rule", "ZONELIST-01")]
    public void Nodes_follow_by_distance_and_the_next_one_comes_before_the_one_below()
    {
        // A ring 0–1–2–3.
        Assert.Equal(
            [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]],
            Orders((a, b) => ((b - a + 4) % 4) switch { 0 => 10, 2 => 30, _ => 20 }));
    }

    [Fact]
    [Trait("rule", "ZONELIST-01")]
    public void Nodes_at_equal_distance_share_the_load()
    {
        // 0 and 1 are equally near to 2 and 3: who is loaded less comes first.
        Assert.Equal(
            [[0, 2, 3, 1], [1, 3, 2, 0], [2, 0, 1, 3], [3, 1, 0, 2]],
            Orders((a, b) => a == b ? 10 : (a < 2) == (b < 2) ? 40 : 20));
        Assert.Equal(
            [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]],
            Orders((a, b) => a == b ? 10 : 20));
    }

    [Fact]
    [Trait("rule", "ZONELIST-01")]
    public void Nodes_without_a_cpu_come_first()
    {
        // CPUs on nodes 0 and 1 only: 20 + 1 for those with, 20 for those without, one more for lower numbers.
        using BarePages machine = FourNodes((a, b) => a == b ? 10 : 20, cpus: 2);
        Assert.Equal([[0], [1], [], []], machine.Nodes.Select(node => node.Cpus.ToArray()));
        Assert.Equal([[0, 2, 3, 1], [1, 3, 2, 0], [2, 3, 0, 1], [3, 2, 0, 1]], NodeOrders(machine));
    }

    [Fact]
    [Trait("rule", "ZONELIST-02")]
    public void Within_a_node_the_highest_zone_is_first()
    {
        MachineOptions options = BarePages.Options((1024, 8192), (0x100000, 0x100000 + 8192));
        options.MemoryMap!.AddMemory((0x100000UL + 8192) << 12, (0x100000UL + 16384) << 12, node: 1);
        using var machine = new BarePages(options with { MovableBytes = 8 << 20 });
        Assert.Equal(
            [
                (0, ZoneType.Movable), (0, ZoneType.Normal), (0, ZoneType.Dma32), (0, ZoneType.Dma),
                (1, ZoneType.Movable), (1, ZoneType.Normal),
            ],
            machine.Nodes[0].Fallback.Zones.Select(zone => (zone.NodeId, zone.Type)));
        Assert.Equal(
            [
                (1, ZoneType.Movable), (1, ZoneType.Normal),
                (0, ZoneType.Movable), (0, ZoneType.Normal), (0, ZoneType.Dma32), (0, ZoneType.Dma),
            ],
            machine.Nodes[1].Fallback.Zones.Select(zone => (zone.NodeId, zone.Type)));
        Assert.Equal(
            [ZoneType.Movable, ZoneType.Normal], machine.Nodes[1].NoFallback.Zones.Select(zone => zone.Type));
    }

    [Theory]
    [InlineData(Gfp.Kernel, new[] { ZoneType.Normal, ZoneType.Dma32, ZoneType.Dma })]
    [InlineData(Gfp.Kernel | Gfp.Movable, new[] { ZoneType.Normal, ZoneType.Dma32, ZoneType.Dma })]
    [InlineData(Gfp.HighUser, new[] { ZoneType.Normal, ZoneType.Dma32, ZoneType.Dma })]
    [InlineData(Gfp.Kernel | Gfp.Dma32, new[] { ZoneType.Dma32, ZoneType.Dma })]
    [InlineData(Gfp.Kernel | Gfp.Dma, new[] { ZoneType.Dma })]
    [InlineData(
        Gfp.HighUserMovable, new[] { ZoneType.Movable, ZoneType.Normal, ZoneType.Dma32, ZoneType.Dma })]
    [Trait("rule", "ZONELIST-02")]
    [Trait("rule", "PAGE-02")]
    public void A_request_uses_its_zones_from_the_highest_down(Gfp gfp, ZoneType[] zones)
    {
        // Two nodes, so that the other one's higher zones come after this one's lower zones.
        MachineOptions options = BarePages.Options((1024, 8192), (0x100000, 0x100000 + 4096));
        options.MemoryMap!.AddMemory((0x100000UL + 4096) << 12, (0x100000UL + 8192) << 12, node: 1);
        using BarePages machine = new BarePages(options with { MovableBytes = 8 << 20 }).WithoutReserves();
        var seen = new List<(int Node, ZoneType Zone)>();
        foreach (ulong pfn in machine.Exhaust(gfp | Gfp.NoRetry | Gfp.NoWarn | Gfp.MemAlloc, 9))
        {
            (int, ZoneType) place = (machine.NodeOf(pfn), machine.ZoneTypeOf(pfn));
            if (seen.Count == 0 || seen[^1] != place)
                seen.Add(place);
        }

        IEnumerable<(int, ZoneType)> local = zones.Select(zone => (0, zone));
        IEnumerable<(int, ZoneType)> remote = zones.Where(zone => zone >= ZoneType.Normal).Select(zone => (1, zone));
        Assert.Equal(local.Concat(remote), seen);
    }

    [Fact]
    [Trait("rule", "ZONELIST-03")]
    public void Mixing_at_home_is_avoided_while_another_zone_has_whole_pageblocks()
    {
        using var machine = new BarePages((4096, 8192), (0x100000, 0x100000 + 4096));
        machine.WithoutCaching();
        FragmentNormal(machine, 0x100000, 4096);
        ulong first = machine.Alloc(Gfp.Kernel)!.Value;
        Assert.Equal(ZoneType.Dma32, machine.ZoneTypeOf(first));
        Assert.Equal(10, Assert.Single(machine.Trace.Fallbacks).FallbackOrder);

        // When DMA32 has none either, the second pass mixes in the preferred zone.
        machine.Exhaust(Gfp.Kernel | Gfp.Dma32 | Gfp.MemAlloc, 0);
        machine.Trace.Fallbacks.Clear();
        ulong second = machine.Alloc(Gfp.Kernel)!.Value;
        Assert.Equal(ZoneType.Normal, machine.ZoneTypeOf(second));
        Assert.Equal(8, Assert.Single(machine.Trace.Fallbacks).FallbackOrder);
    }

    [Fact]
    [Trait("rule", "ZONELIST-03")]
    public void Mixing_at_home_is_better_than_going_to_another_node()
    {
        MachineOptions options = BarePages.Options((4096, 8192), (0x100000, 0x100000 + 4096));
        options.MemoryMap!.AddMemory((0x100000UL + 4096) << 12, (0x100000UL + 8192) << 12, node: 1);
        using BarePages machine = new BarePages(options).WithoutCaching();
        FragmentNormal(machine, 0x100000, 4096);
        machine.Exhaust(Gfp.Kernel | Gfp.Dma32 | Gfp.MemAlloc | Gfp.ThisNode, 0);
        ulong pfn = machine.Alloc(Gfp.Kernel, 0, node: 0)!.Value;
        Assert.Equal((0, ZoneType.Normal), (machine.NodeOf(pfn), machine.ZoneTypeOf(pfn)));
    }

    [Fact]
    [Trait("rule", "ZONELIST-03")]
    public void Without_a_normal_zone_types_mix_at_once()
    {
        using var machine = new BarePages((1024, 4096), (4096, 8192));
        machine.WithoutCaching();
        FragmentNormal(machine, 4096, 4096);
        ulong pfn = machine.Alloc(Gfp.Kernel)!.Value;
        Assert.Equal(ZoneType.Dma32, machine.ZoneTypeOf(pfn));      // DMA has whole pageblocks, and keeps them
    }

    [Fact]
    [Trait("rule", "ZONELIST-04")]
    public void Nodes_that_reclaim_are_passed_over_at_first()
    {
        using BarePages machine = FourNodes((a, b) => a == b ? 10 : 20, cpus: 4);
        machine.Nodes[0].KswapdAwake = true;
        Assert.Equal(1, machine.NodeOf(machine.Alloc(Gfp.Kernel, 0, node: 0)!.Value));
        foreach (Node node in machine.Nodes)
            node.KswapdAwake = true;
        Assert.Equal(0, machine.NodeOf(machine.Alloc(Gfp.Kernel, 0, node: 0)!.Value));
        Assert.Equal(0, machine.NodeOf(machine.Alloc(Gfp.Kernel | Gfp.ThisNode, 0, node: 0)!.Value));
    }

    [Fact]
    [Trait("rule", "ZONELIST-04")]
    public void This_node_means_this_node()
    {
        using BarePages machine = FourNodes((a, b) => a == b ? 10 : 20, cpus: 4).WithoutCaching();
        List<ulong> all = machine.Exhaust(Gfp.Kernel | Gfp.ThisNode | Gfp.NoWarn | Gfp.MemAlloc);
        Assert.Equal(2048, all.Count);
        Assert.All(all, pfn => Assert.Equal(0, machine.NodeOf(pfn)));
        Assert.NotNull(machine.Alloc(Gfp.Kernel));
        Assert.Equal(0, machine.Hooks.Ooms);
    }

    private static int[][] Orders(Func<int, int, int> distance)
    {
        using BarePages machine = FourNodes(distance, cpus: 4);
        return NodeOrders(machine);
    }

    private static int[][] NodeOrders(BarePages machine) =>
        [.. machine.Nodes.Select(node => node.Fallback.Zones.Select(zone => zone.NodeId).ToArray())];

    private static BarePages FourNodes(Func<int, int, int> distance, int cpus)
    {
        var map = new BootMemoryMap();
        for (int node = 0; node < 4; node++)
        {
            ulong start = (4096UL + ((ulong)node * 2048)) << 12;
            map.AddMemory(start, start + (2048 << 12), node);
        }

        return new BarePages(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            MemoryMap = map,
            Cpus = cpus,
            NodeDistance = distance,
            MinFreeKbytes = 0,
        });
    }

    /// <summary>Leaves only movable blocks of order 8 free in a zone, one in each pageblock.</summary>
    private static void FragmentNormal(BarePages machine, ulong start, ulong frames)
    {
        foreach (ulong pfn in machine.Exhaust(Gfp.Kernel | Gfp.Movable | Gfp.MemAlloc, 8))
        {
            if (pfn >= start && pfn < start + frames ? pfn % 512 == 0 : true)
                machine.Free(pfn, 8);
        }

        machine.Trace.Fallbacks.Clear();
    }
}
