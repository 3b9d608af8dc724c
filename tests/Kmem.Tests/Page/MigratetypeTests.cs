namespace Kmem.Tests;

public sealed class MigratetypeTests
{
    [Theory]
    [InlineData(Migratetype.Unmovable, Migratetype.Reclaimable, Migratetype.Movable)]
    [InlineData(Migratetype.Movable, Migratetype.Reclaimable, Migratetype.Unmovable)]
    [InlineData(Migratetype.Reclaimable, Migratetype.Unmovable, Migratetype.Movable)]
    public void FallbacksFollowTheTable(Migratetype wanted, Migratetype first, Migratetype second)
    {
        Assert.Equal(first, Migratetypes.Fallback(wanted, 0));
        Assert.Equal(second, Migratetypes.Fallback(wanted, 1));
    }

    [Theory]
    [InlineData(-1)]
    [InlineData(2)]
    public void ThereAreTwoFallbacks(int rank) =>
        Assert.Throws<ArgumentOutOfRangeException>(() => Migratetypes.Fallback(Migratetype.Unmovable, rank));

    [Fact]
    public void NamesAreThoseOfPagetypeinfo()
    {
        string[] names = new string[Migratetypes.Count];
        for (int i = 0; i < names.Length; i++) names[i] = ((Migratetype)i).Name();
        Assert.Equal(["Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate"], names);
        Assert.Throws<ArgumentOutOfRangeException>(() => ((Migratetype)Migratetypes.Count).Name());
    }

    [Fact]
    public void ZoneNamesAreThoseOfZoneinfo()
    {
        string[] names = new string[ZoneTypes.Count];
        for (int i = 0; i < names.Length; i++) names[i] = ((ZoneType)i).Name();
        Assert.Equal(["DMA", "DMA32", "Normal", "Movable", "Device"], names);
        Assert.Throws<ArgumentOutOfRangeException>(() => ((ZoneType)ZoneTypes.Count).Name());
    }
}
