using System.Numerics;

namespace Kmem.Tests;

public sealed class SlabFlagsTests
{
    [Theory]
    [InlineData(SlabFlags.Kmalloc, 0x8)]
    [InlineData(SlabFlags.HwcacheAlign, 0x10)]
    [InlineData(SlabFlags.CacheDma, 0x20)]
    [InlineData(SlabFlags.Panic, 0x100)]
    [InlineData(SlabFlags.TypesafeByRcu, 0x200)]
    [InlineData(SlabFlags.NoMerge, 0x1000)]
    [InlineData(SlabFlags.NoUserFlags, 0x2000)]
    [InlineData(SlabFlags.ReclaimAccount, 0x4000)]
    [InlineData(SlabFlagMask.CmpxchgDouble, 0x10000)]
    public void RecordedValuesAreKept(SlabFlags flag, uint value) => Assert.Equal(value, (uint)flag);

    [Fact]
    public void EveryFlagHasItsOwnBit()
    {
        uint seen = (uint)(SlabFlagMask.ObjectPoison | SlabFlagMask.CmpxchgDouble);
        foreach (SlabFlags flag in Enum.GetValues<SlabFlags>())
        {
            if (flag == SlabFlags.None) continue;
            Assert.True(BitOperations.IsPow2((uint)flag), flag.ToString());
            Assert.True((seen & (uint)flag) == 0, flag.ToString());
            seen |= (uint)flag;
        }
    }

    [Fact]
    public void FaultInjectionIsNotACallersChoiceAndChecksAloneDoNotForbidSharing()
    {
        Assert.Equal(SlabFlags.None, SlabFlagMask.Permitted & SlabFlags.FailSlab);
        Assert.Equal(SlabFlags.None, SlabFlagMask.NeverMerge & SlabFlags.ConsistencyChecks);
        Assert.Equal(SlabFlags.FailSlab, SlabFlagMask.NeverMerge & SlabFlags.FailSlab);
    }
}
