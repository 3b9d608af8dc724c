namespace Kmem.Tests;

public sealed class GeometryTableTests
{
    private const string Header =
        "name\tobject_size\talign\thwcache_align\tdestroy_by_rcu\tctor\tslab_size\torder\tobjs_per_slab";

    [Fact]
    public void EveryCacheOfTheTwoCpuKernelComesOut()
    {
        GeometryTable table = ReadFile("live-2cpu/slab-geometry.tsv");
        Assert.Equal(235, table.Count);

        GeometryComparison result = table.Compare(2, new Dictionary<string, int>(StringComparer.Ordinal)
        {
            ["vm_area_struct"] = 0,         // Linux 6.18 keeps the free pointer in the first word of a VMA
        });
        Assert.Equal((235, 235), (result.Rows, result.Equal));
        Assert.Empty(result.Different);
    }

    [Fact]
    public void OnlyTheHiddenFreePointerMakesADifference()
    {
        GeometryComparison result = ReadFile("live-2cpu/slab-geometry.tsv").Compare(2);
        Assert.Equal((235, 234), (result.Rows, result.Equal));
        Assert.Equal(
            [
                new GeometryDifference("vm_area_struct", "slab_size", 192, 256, null),
                new GeometryDifference("vm_area_struct", "objs_per_slab", 21, 16, null),
                new GeometryDifference("vm_area_struct", "cpu_partial", 120, 52, null),
            ],
            result.Different);
    }

    [Fact]
    public void AnotherCpuCountIsNoticed()
    {
        GeometryComparison result = ReadFile("live-2cpu/slab-geometry.tsv").Compare(8);
        Assert.True(result.Equal < result.Rows - 1);
        Assert.Contains(result.Different, d => d is { Name: "kmalloc-256", Field: "order", Expected: 0, Computed: 1 });
    }

    [Fact]
    public void SharedCachesBearTheNameOfTheirShape()
    {
        string[] lines = File.ReadAllLines(TestData.PathOf("live-2cpu/slab-geometry.tsv"));
        string[] header = lines[0].Split('\t');
        var shared = new HashSet<string>(StringComparer.Ordinal);
        foreach (string line in lines.Skip(1))
        {
            string[] fields = line.Split('\t');
            if (fields[0][0] != ':') continue;

            SlabFlags flags = SlabFlags.None;
            if (fields[Array.IndexOf(header, "reclaim_account")] == "1") flags |= SlabFlags.ReclaimAccount;
            if (fields[Array.IndexOf(header, "cache_dma")] == "1") flags |= SlabFlags.CacheDma;
            if (fields[0].Contains('A')) flags |= SlabFlags.Account;    // sysfs shows it nowhere else
            int size = int.Parse(fields[Array.IndexOf(header, "slab_size")]);
            Assert.Equal(fields[0], SlabGeometry.SysfsName(flags, size));
            shared.Add(fields[0]);
        }

        string[] targets = [.. File.ReadLines(TestData.PathOf("live-2cpu/slab-aliases.tsv"))
            .Skip(1).Select(line => line.Split('\t')[1]).Distinct(StringComparer.Ordinal)];
        Assert.Equal(shared.Order(StringComparer.Ordinal), targets.Order(StringComparer.Ordinal));
    }

    [Fact]
    public void ColumnsMayStandInAnyOrderAndOthersAreIgnored()
    {
        const string text = """
            objs_per_slab	colour	order	slab_size	ctor	destroy_by_rcu	hwcache_align	align	object_size	name
            12	blue	1	640	0	0	1	0	600	inode

            """;
        GeometryComparison result = Read(text).Compare(2);
        Assert.Equal((1, 1), (result.Rows, result.Equal));
    }

    [Fact]
    public void FreePointerOffsetMayComeFromTheTable()
    {
        const string text = Header + "\tfreeptr_offset\n"
            + "inside\t192\t64\t1\t1\t0\t192\t0\t21\t40\n"
            + "behind\t192\t64\t1\t1\t0\t256\t0\t16\t\n"
            + "short\t192\t64\t1\t1\t0\t256\t0\t16\n";
        GeometryComparison result = Read(text).Compare(2);
        Assert.Equal((3, 3), (result.Rows, result.Equal));
    }

    [Fact]
    public void GivenFreePointerOffsetWinsOverTheTable()
    {
        string text = $"{Header}\tfreeptr_offset\nvma\t192\t64\t1\t1\t0\t192\t0\t21\t4\n";
        GeometryDifference difference = Assert.Single(Read(text).Compare(2).Different);
        Assert.Null(difference.Computed);
        Assert.Contains("free-pointer offset 4", difference.Error, StringComparison.Ordinal);

        Assert.Equal(1, Read(text).Compare(2, Offsets("vma", 8)).Equal);
        ArgumentException e = Assert.Throws<ArgumentException>(() => Read(text).Compare(2, Offsets("vna", 8)));
        Assert.Contains("vna", e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void DebugColumnsAreInputs()
    {
        string text = $"""
            {Header}	red_zone	poison	store_user	sanity_checks	cpu_partial
            kmalloc-64	64	64	0	0	0	256	0	16	1	1	1	1	0
            other	200	8	0	0	0	296	0	13	1	1	1	1	0
            checked	200	8	0	0	0	200	0	20	0	0	0	1	0
            """;
        Assert.Empty(Read(text).Compare(2).Different);
    }

    [Fact]
    public void ImpossibleCacheIsADifferenceNotAFailure()
    {
        GeometryComparison result = Read($"{Header}\nbad\t64\t24\t0\t0\t0\t64\t0\t64\ngood\t64\t8\t0\t0\t0\t64\t0\t64")
            .Compare(2);
        Assert.Equal((2, 1), (result.Rows, result.Equal));
        GeometryDifference difference = Assert.Single(result.Different);
        Assert.Equal(("bad", "slab_size", 64, null), (difference.Name, difference.Field, difference.Expected,
            difference.Computed));
        Assert.Contains("alignment 24", difference.Error, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("", "Line 1", "empty")]
    [InlineData("name\tobject_size\n", "Line 1", "align is missing")]
    [InlineData(Header + "\torder\n", "Line 1", "order appears twice")]
    [InlineData(Header + "\n\nx\tsixty\t8\t0\t0\t0\t64\t0\t64\n", "Line 3", "object_size is 'sixty'")]
    [InlineData(Header + "\nx\t-64\t8\t0\t0\t0\t64\t0\t64\n", "Line 2", "object_size is '-64'")]
    [InlineData(Header + "\nx\t64\t8\t0\t0\t0\t64\t0\t99999999999\n", "Line 2", "objs_per_slab is '99999999999'")]
    [InlineData(Header + "\nx\t64\t8\t2\t0\t0\t64\t0\t64\n", "Line 2", "hwcache_align is 2")]
    [InlineData(Header + "\nx\t64\t\t0\t0\t0\t64\t0\t64\n", "Line 2", "align is empty")]
    [InlineData(Header + "\nx\t64\t8\t0\t0\t0\t64\t0\n", "Line 2", "objs_per_slab is missing")]
    [InlineData(Header + "\n\t64\t8\t0\t0\t0\t64\t0\t64\n", "Line 2", "name is empty")]
    public void BrokenTablesNameLineAndColumn(string text, string where, string what)
    {
        FormatException e = Assert.Throws<FormatException>(() => Read(text));
        Assert.StartsWith(where, e.Message, StringComparison.Ordinal);
        Assert.Contains(what, e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void CutTablesFailOnlyWithTheirOwnException()
    {
        string text = File.ReadAllText(TestData.PathOf("live-2cpu/slab-geometry.tsv"))[..1200];
        int failures = 0;
        for (int length = 0; length <= text.Length; length++)
        {
            try
            {
                Read(text[..length]).Compare(2);
            }
            catch (FormatException e)
            {
                Assert.StartsWith("Line ", e.Message, StringComparison.Ordinal);
                failures++;
            }
        }
        Assert.InRange(failures, 1, text.Length - 1);
    }

    private static Dictionary<string, int> Offsets(string name, int offset) =>
        new(StringComparer.Ordinal) { [name] = offset };

    private static GeometryTable Read(string text) => GeometryTable.Read(new StringReader(text));

    private static GeometryTable ReadFile(string name)
    {
        using StreamReader reader = File.OpenText(TestData.PathOf(name));
        return GeometryTable.Read(reader);
    }
}
