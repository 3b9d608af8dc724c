namespace Kmem.Tests;

public sealed class GfpTests
{
    [Theory]
    [InlineData(Gfp.None, 0x0)]
    [InlineData(Gfp.Dma, 0x1)]
    [InlineData(Gfp.HighMem, 0x2)]
    [InlineData(Gfp.Dma32, 0x4)]
    [InlineData(Gfp.Movable, 0x8)]
    [InlineData(Gfp.Reclaimable, 0x10)]
    [InlineData(Gfp.High, 0x20)]
    [InlineData(Gfp.IO, 0x40)]
    [InlineData(Gfp.FS, 0x80)]
    [InlineData(Gfp.Zero, 0x100)]
    [InlineData(Gfp.DirectReclaim, 0x400)]
    [InlineData(Gfp.KswapdReclaim, 0x800)]
    [InlineData(Gfp.Write, 0x1000)]
    [InlineData(Gfp.NoWarn, 0x2000)]
    [InlineData(Gfp.RetryMayFail, 0x4000)]
    [InlineData(Gfp.NoFail, 0x8000)]
    [InlineData(Gfp.NoRetry, 0x10000)]
    [InlineData(Gfp.MemAlloc, 0x20000)]
    [InlineData(Gfp.Comp, 0x40000)]
    [InlineData(Gfp.NoMemAlloc, 0x80000)]
    [InlineData(Gfp.HardWall, 0x100000)]
    [InlineData(Gfp.ThisNode, 0x200000)]
    [InlineData(Gfp.Account, 0x400000)]
    [InlineData(Gfp.ZeroTags, 0x800000)]
    [InlineData(Gfp.NoObjExt, 0x1000000)]
    [InlineData(Gfp.Reclaim, 0xc00)]
    [InlineData(Gfp.Atomic, 0x820)]
    [InlineData(Gfp.Kernel, 0xcc0)]
    [InlineData(Gfp.KernelAccount, 0x400cc0)]
    [InlineData(Gfp.NoWait, 0x2800)]
    [InlineData(Gfp.NoFS, 0xc40)]
    [InlineData(Gfp.User, 0x100cc0)]
    [InlineData(Gfp.HighUser, 0x100cc2)]
    [InlineData(Gfp.HighUserMovable, 0x100cca)]
    [InlineData(Gfp.TransHugeLight, 0x1c20ca)]
    [InlineData(Gfp.TransHuge, 0x1c24ca)]
    public void ValuesAreThoseOfLinux618(Gfp gfp, uint value) => Assert.Equal(value, (uint)gfp);

    [Fact]
    public void NoIOIsReclaimWithoutItsRights() => Assert.Equal(0xc00u, (uint)Gfp.NoIO);

    [Fact]
    public void InternalMasksHaveTheBitsOfTheFactSheet()
    {
        Assert.Equal(0x1ffffffu, (uint)GfpMask.Bits);
        Assert.Equal(0xbece0u, (uint)GfpMask.Reclaim);
        Assert.Equal(0x300000u, (uint)GfpMask.Constraint);
        Assert.Equal(0xfe000006u, (uint)GfpMask.SlabBug);
        Assert.Equal(0x1fff33fu, (uint)GfpMask.Boot);
    }

    [Fact]
    public void NestedRequestSleepsOnlyIfTheOuterMayAndFailsInSilence()
    {
        const Gfp always = Gfp.NoRetry | Gfp.NoMemAlloc | Gfp.NoWarn;
        Assert.Equal(Gfp.Kernel | always, GfpMask.Nested(Gfp.KernelAccount | Gfp.Zero | Gfp.NoFail | Gfp.MemAlloc));
        Assert.Equal(Gfp.Atomic | always, GfpMask.Nested(Gfp.Atomic | Gfp.Zero));
        Assert.Equal(always, GfpMask.Nested(Gfp.HighMem | Gfp.Movable));
    }

    [Theory]
    [InlineData(Gfp.Kernel, true, true)]
    [InlineData(Gfp.NoIO, true, true)]
    [InlineData(Gfp.DirectReclaim, true, true)]
    [InlineData(Gfp.Atomic, false, true)]
    [InlineData(Gfp.NoWait, false, true)]
    [InlineData(Gfp.None, false, false)]
    [InlineData(Gfp.High | Gfp.Zero, false, false)]
    public void PredicatesFollowTheReclaimBits(Gfp gfp, bool mayBlock, bool maySpin)
    {
        Assert.Equal(mayBlock, gfp.MayBlock());
        Assert.Equal(maySpin, gfp.MaySpin());
    }

    [Fact]
    public void ZoneSelectorsFollowTheTable()
    {
        var zones = new Dictionary<uint, ZoneType>
        {
            [0x0] = ZoneType.Normal,
            [0x1] = ZoneType.Dma,
            [0x2] = ZoneType.Normal,
            [0x4] = ZoneType.Dma32,
            [0x8] = ZoneType.Normal,
            [0x9] = ZoneType.Dma,
            [0xa] = ZoneType.Movable,
            [0xc] = ZoneType.Dma32,
        };
        for (uint selector = 0; selector < 16; selector++)
        {
            Gfp gfp = (Gfp)selector | (Gfp.KernelAccount | Gfp.Zero);       // other bits have no say
            bool isValid = zones.TryGetValue(selector, out ZoneType zone);
            Assert.Equal(isValid, gfp.HasValidZone());
            Assert.Equal(isValid ? zone : ZoneType.Dma, gfp.HighestZone());
        }
    }

    [Theory]
    [InlineData(Gfp.Kernel, Migratetype.Unmovable, true)]
    [InlineData(Gfp.HighUserMovable, Migratetype.Movable, true)]
    [InlineData(Gfp.Kernel | Gfp.Reclaimable, Migratetype.Reclaimable, true)]
    [InlineData(Gfp.Movable | Gfp.Reclaimable, Migratetype.Unmovable, false)]
    public void MigratetypeFollowsTheMobilityBits(Gfp gfp, Migratetype type, bool isValid)
    {
        Assert.Equal(type, gfp.ToMigratetype());
        Assert.Equal(isValid, gfp.HasValidMobility());
    }
}
