namespace Kmem.Tests;

/// <summary>Free blocks that are given back to the host while others go on allocating.</summary>
public sealed class PageReportingTests
{
    [Fact]
    [Trait("rule", "BUDDY-08")]
    public void A_block_comes_back_to_the_list_of_the_type_its_pageblock_has_then()
    {
        // All in use but the first quarter and the upper half of the first pageblock.
        using BarePages machine = new BarePages((4096, 8192)).WithoutReserves();
        machine.Exhaust(Gfp.Kernel | Gfp.Movable | Gfp.NoWarn, 7);
        machine.Free(4096, 7);
        machine.Free(4352, 7);
        machine.Free(4480, 7);
        ZonePages zone = machine.Zone(ZoneType.Dma32);
        machine.Pages.ReportFree(8, (pfn, frames) =>
        {
            // Meanwhile the rest of the pageblock is claimed.
            Assert.Equal((4352UL, 256UL), (pfn, frames));
            Assert.Equal(4096UL, machine.Alloc(Gfp.Kernel | Gfp.Reclaimable, 7));
            return true;
        });
        Assert.Equal(Migratetype.Reclaimable, machine.TypeOf(4352));
        Assert.Equal([4352], machine.FreeList(zone, 8, Migratetype.Reclaimable));
        Assert.Empty(machine.FreeList(zone, 8, Migratetype.Movable));
    }

    [Fact]
    [Trait("rule", "ZONE-04")]
    public void A_block_is_not_lost_when_the_host_refuses()
    {
        using var machine = new BarePages((4096, 8192));
        ZonePages zone = machine.Zone(ZoneType.Dma32);
        Assert.Equal(0UL, machine.Pages.ReportFree(9, (_, _) => false));
        Assert.Throws<InvalidOperationException>(
            () => machine.Pages.ReportFree(9, (_, _) => throw new InvalidOperationException()));
        Assert.Equal(4, zone.Buddy.NrFree(10));
        Assert.Equal(4096, zone.Zone.FreePagesExact);
        Assert.Equal(4096UL, machine.Pages.ReportFree(9, (_, _) => true));
        Assert.Equal(0UL, machine.Pages.ReportFree(9, (_, _) => true));
        Assert.Equal([4096, 5120, 6144, 7168], machine.FreeList(zone, 10, Migratetype.Movable).Order().ToArray());
    }
}
