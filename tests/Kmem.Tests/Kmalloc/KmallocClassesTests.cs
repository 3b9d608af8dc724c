namespace Kmem.Tests;

public sealed class KmallocClassesTests
{
    // Largest request of each class, ascending, and the class's index.
    private static readonly (int Size, int Index)[] s_classes =
    [
        (8, 3), (16, 4), (32, 5), (64, 6), (96, 1), (128, 7), (192, 2), (256, 8), (512, 9), (1024, 10), (2048, 11),
        (4096, 12), (8192, 13),
    ];

    [Fact]
    public void EverySizeGoesToTheSmallestClassThatHoldsIt()
    {
        for (int size = 1; size <= KmallocClasses.MaxCacheSize; size++)
        {
            (int classSize, int index) = s_classes.First(c => c.Size >= size);
            Assert.True(KmallocClasses.IsCached((nuint)size));
            Assert.Equal(index, KmallocClasses.IndexOf((nuint)size));
            Assert.Equal(classSize, KmallocClasses.SizeOf(index));
            Assert.Equal((nuint)classSize, KmallocClasses.SizeRoundup((nuint)size));
        }
    }

    [Fact]
    public void NothingElseHasAClass()
    {
        foreach (nuint size in (nuint[])[0, 8193, (nuint)1 << 32, nuint.MaxValue])
        {
            Assert.False(KmallocClasses.IsCached(size));
            Assert.True(KmallocClasses.IndexOf(size) >= KmallocClasses.Count);
        }
    }

    [Fact]
    public void LargeSizesRoundUpToBlocksOfPages()
    {
        Assert.Equal(4 << 20, KmallocClasses.MaxSize);
        Assert.Equal((nuint)16384, KmallocClasses.SizeRoundup(8193));
        Assert.Equal((nuint)16384, KmallocClasses.SizeRoundup(16384));
        Assert.Equal((nuint)131072, KmallocClasses.SizeRoundup(65537));
        Assert.Equal((nuint)(4 << 20), KmallocClasses.SizeRoundup((2 << 20) + 1));
        Assert.Equal((nuint)(4 << 20), KmallocClasses.SizeRoundup(4 << 20));
        Assert.Equal((nuint)((4 << 20) + 1), KmallocClasses.SizeRoundup((4 << 20) + 1));
        Assert.Equal((nuint)0, KmallocClasses.SizeRoundup(0));
        Assert.Equal(nuint.MaxValue, KmallocClasses.SizeRoundup(nuint.MaxValue));
    }

    [Theory]
    [InlineData(Gfp.Kernel, KmallocType.Normal)]
    [InlineData(Gfp.Atomic | Gfp.Zero, KmallocType.Normal)]
    [InlineData(Gfp.Kernel | Gfp.Reclaimable, KmallocType.Reclaim)]
    [InlineData(Gfp.KernelAccount, KmallocType.Cgroup)]
    [InlineData(Gfp.KernelAccount | Gfp.Reclaimable, KmallocType.Reclaim)]
    [InlineData(Gfp.KernelAccount | Gfp.Reclaimable | Gfp.Dma, KmallocType.Dma)]
    internal void TypeFollowsTheFlags(Gfp gfp, KmallocType type) => Assert.Equal(type, KmallocClasses.TypeOf(gfp));

    [Fact]
    public void FlagsOfTypesThatAreNotConfiguredMeanNothing()
    {
        const Gfp noCgroups = KmallocClasses.TypeBits & ~Gfp.Account;
        Assert.Equal(KmallocType.Normal, KmallocClasses.TypeOf(Gfp.KernelAccount, noCgroups));
        Assert.Equal(KmallocType.Dma, KmallocClasses.TypeOf(Gfp.KernelAccount | Gfp.Dma, noCgroups));
        const Gfp noDmaZone = KmallocClasses.TypeBits & ~Gfp.Dma;
        Assert.Equal(KmallocType.Cgroup, KmallocClasses.TypeOf(Gfp.Account | Gfp.Dma, noDmaZone));
    }

    [Fact]
    public void NamesCannotBeMadeForNoClass()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => KmallocClasses.NameOf(KmallocType.Normal, 0));
        Assert.Throws<ArgumentOutOfRangeException>(() => KmallocClasses.NameOf(KmallocType.Normal, 14));
        Assert.Throws<ArgumentOutOfRangeException>(() => KmallocClasses.NameOf((KmallocType)4, 3));
    }

    [Fact]
    public void NamesAndAlignmentsAreThoseOfTheRecordedKernel()
    {
        var recorded = File.ReadLines(TestData.PathOf("live-2cpu/slab-geometry.tsv"))
            .Skip(1).Select(line => line.Split('\t'))
            .Where(fields => fields[0].Contains("kmalloc-", StringComparison.Ordinal))
            .ToDictionary(fields => fields[0], fields => (Size: fields[1], Align: fields[2]), StringComparer.Ordinal);
        Assert.Equal(52, recorded.Count);

        foreach (KmallocType type in Enum.GetValues<KmallocType>())
        {
            foreach (byte index in KmallocClasses.CreationOrder)
            {
                int size = KmallocClasses.SizeOf(index);
                Assert.True(recorded.Remove(KmallocClasses.NameOf(type, index), out (string Size, string Align) row));
                Assert.Equal(row.Size, size.ToString());
                Assert.Equal(row.Align, SlabGeometry.KmallocAlignmentOf(size).ToString());
            }
        }
        Assert.Empty(recorded);
    }

    [Fact]
    public void CachesAreCreatedInTheOrderAndWithTheFlagsOfTheRecordedKernel()
    {
        // This kernel has no memory cgroups; its list shows the newest cache first.
        string[][] rows = [.. File.ReadLines(TestData.PathOf("boot-1cpu/caches.tsv"))
            .Skip(1).Select(line => line.Split('\t'))
            .Where(fields => fields[0].Contains("kmalloc-", StringComparison.Ordinal)).Reverse()];
        Assert.Equal(39, rows.Length);

        int i = 0;
        foreach (KmallocType type in (KmallocType[])[KmallocType.Normal, KmallocType.Reclaim, KmallocType.Dma])
        {
            foreach (byte index in KmallocClasses.CreationOrder)
            {
                Assert.Equal(KmallocClasses.NameOf(type, index), rows[i][0]);
                SlabFlags flags = KmallocClasses.CreationFlags(type, memcg: false) | SlabFlagMask.CmpxchgDouble;
                Assert.Equal((uint)flags, uint.Parse(rows[i][3]));
                i++;
            }
        }
    }

    [Theory]
    [InlineData(KmallocType.Normal, SlabFlags.Kmalloc | SlabFlags.NoMerge)]
    [InlineData(KmallocType.Cgroup, SlabFlags.Kmalloc | SlabFlags.Account)]
    internal void CgroupsKeepChargedAndOtherObjectsApart(KmallocType type, SlabFlags flags) =>
        Assert.Equal(flags, KmallocClasses.CreationFlags(type, memcg: true));
}
