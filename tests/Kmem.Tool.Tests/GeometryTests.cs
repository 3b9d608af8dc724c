using System.Text.Json.Nodes;
using Kmem.Tool.Output;

namespace Kmem.Tool.Tests;

public sealed class GeometryTests
{
    [Fact]
    public async Task EveryCacheOfTheRecordedKernelIsEqualWithTheOffsetThatSysfsHides()
    {
        Outcome outcome = await Tool.Run(
            "geometry", "--table", Tool.GeometryTsv, "--cpus", "2", "--freeptr", "vm_area_struct=0", "--json");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        JsonNode json = JsonNode.Parse(outcome.Output)!;
        Assert.Equal((235, 235), ((int)json["rows"]!, (int)json["equal"]!));
        Assert.Empty(json["different"]!.AsArray());
        Assert.Null(json["note"]);
    }

    [Fact]
    public async Task TheOffsetMayBeAColumnOfAGzipTable()
    {
        string[] lines = await File.ReadAllLinesAsync(Tool.GeometryTsv, TestContext.Current.CancellationToken);
        string text = string.Join('\n', lines.Select((line, i) => line + (i == 0 ? "\tfreeptr_offset"
            : line.StartsWith("vm_area_struct\t", StringComparison.Ordinal) ? "\t0" : "\t")));
        using var table = new TemporaryFile(Tool.Gzip(text));
        Outcome outcome = await Tool.Run("geometry", "--table", table.Path, "--cpus", "2");
        Assert.Equal(
            new Outcome(0, "All 235 caches of the table come out equal, computed for 2 CPUs." + Environment.NewLine, ""),
            outcome);
    }

    [Fact]
    public async Task TheOffsetThatLinuxChoseIsAssumedAndSaid()
    {
        Outcome outcome = await Tool.Run("geometry", "--table", Tool.GeometryTsv, "--cpus", "2", "--json");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        JsonNode json = JsonNode.Parse(outcome.Output)!;
        Assert.Equal((235, 235), ((int)json["rows"]!, (int)json["equal"]!));
        Assert.Equal("vm_area_struct", (string)Assert.Single(json["assumed"]!.AsArray())!);
    }

    [Fact]
    public async Task AMissingOffsetIsADifferenceAndIsExplained()
    {
        string text = await File.ReadAllTextAsync(Tool.GeometryTsv, TestContext.Current.CancellationToken);
        using var table = new TemporaryFile(text.Replace("\nvm_area_struct\t", "\nmy_area\t", StringComparison.Ordinal));
        Outcome outcome = await Tool.Run("geometry", "--table", table.Path, "--cpus", "2", "--json");
        Assert.Equal((1, ""), (outcome.Exit, outcome.Error));
        JsonNode json = JsonNode.Parse(outcome.Output)!;
        Assert.Equal(234, (int)json["equal"]!);
        Assert.Equal("slab_size objs_per_slab cpu_partial",
            string.Join(' ', json["different"]!.AsArray().Select(it => (string)it!["field"]!)));
        Assert.All(json["different"]!.AsArray(), it => Assert.Equal("my_area", (string)it!["name"]!));
        Assert.Equal((192, 256), ((int)json["different"]![0]!["expected"]!, (int)json["different"]![0]!["computed"]!));
        Assert.Equal("my_area", (string)Assert.Single(json["explained"]!.AsArray())!);
        Assert.Contains("--freeptr my_area=0", (string)json["note"]!, StringComparison.Ordinal);
    }

    [Fact]
    public async Task OnlyWhatAnOffsetExplainsIsCalledExplained()
    {
        const string header = "name\tobject_size\talign\thwcache_align\tdestroy_by_rcu\tctor\tslab_size\torder\tobjs_per_slab";
        using var table = new TemporaryFile(header
            + "\nfits\t192\t64\t1\t1\t0\t192\t0\t21"
            + "\nwrong\t192\t64\t1\t1\t0\t200\t0\t20"
            + "\nplain\t192\t64\t1\t0\t0\t256\t0\t16"
            + "\nbad\t64\t24\t0\t0\t0\t64\t0\t64");
        Outcome outcome = await Tool.Run("geometry", "--table", table.Path, "--cpus", "2");
        Assert.Equal(1, outcome.Exit);
        string text = outcome.Output.ReplaceLineEndings(" ");
        Assert.Contains("add --freeptr fits=0, or", text, StringComparison.Ordinal);
        Assert.Contains("alignment 24", text, StringComparison.Ordinal);
        Assert.Contains("0 of 4 caches of the table come out equal, computed for 2 CPUs; 4 differ, 1 of them only",
            text, StringComparison.Ordinal);
    }

    [Fact]
    public async Task OneCacheAsJson()
    {
        Outcome outcome = await Tool.Run("geometry", "--size", "600", "--hwcache-align", "--cpus", "2", "--json");
        JsonNode json = JsonNode.Parse(outcome.Output)!;
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        Assert.Equal((640, 600, 64), ((int)json["size"]!, (int)json["objectSize"]!, (int)json["align"]!));
        Assert.Equal((1, 12, 512), ((int)json["order"]!, (int)json["objects"]!, (int)json["waste"]!));
        Assert.Equal((52, 9), ((int)json["cpuPartial"]!, (int)json["cpuPartialSlabs"]!));
        Assert.Equal(":0000640", (string)json["sysfsName"]!);
    }

    [Theory]
    [InlineData("--typesafe-by-rcu", 208, null)]
    [InlineData("--typesafe-by-rcu --freeptr 16", 200, null)]
    [InlineData("--ctor", 208, null)]
    [InlineData("--dma", 200, ":d-0000200")]
    [InlineData("--reclaim-account --account", 200, ":aA-0000200")]
    [InlineData("--red-zone --poison --store-user --consistency-checks", 296, null)]
    [InlineData("--align 128", 256, ":0000256")]
    [InlineData("--hwcache-align --cache-line 32", 224, ":0000224")]
    public async Task EveryInputCounts(string options, int size, string? sysfsName)
    {
        Outcome outcome = await Tool.Run(["geometry", "--size", "200", "--cpus", "2", "--json", .. options.Split(' ')]);
        JsonNode json = JsonNode.Parse(outcome.Output)!;
        Assert.Equal((size, sysfsName), ((int)json["size"]!, (string?)json["sysfsName"]));
    }

    [Theory]
    [InlineData("--cpus 2", 0)]
    [InlineData("--cpus 64", 1)]
    [InlineData("--cpus 2 --min-order 1", 1)]
    [InlineData("--cpus 64 --max-order 0", 0)]
    [InlineData("--cpus 2 --min-objects 40", 2)]
    public async Task TheMachineDecidesTheOrder(string options, int order)
    {
        Outcome outcome = await Tool.Run(["geometry", "--size", "256", "--json", .. options.Split(' ')]);
        Assert.Equal(order, (int)JsonNode.Parse(outcome.Output)!["order"]!);
    }

    [Fact]
    public async Task OneCacheAsPicture()
    {
        Outcome outcome = await Tool.Run("geometry", "--size", "600", "--hwcache-align", "--cpus", "2");
        Assert.Contains("""
            slab  8192 bytes = 12 x 640 + 512
                  +--------+--------+-- --+---------+-------+
                  | slot 0 | slot 1 | ... | slot 11 | waste |
                  +--------+--------+-- --+---------+-------+

            slot  640 bytes, a letter is 10
                  ooooooooooooooooooooooooooooofoooooooooooooooooooooooooooooo....
                  o    0 - 599  object
                  .  600 - 639  padding
                  f  296 - 303  free pointer, while the object is free

            On 2 CPUs, a slab of 2 pages holds 12 objects of 600 bytes; 12.1 % of it holds no object.
            """.ReplaceLineEndings(), outcome.Output, StringComparison.Ordinal);
    }

    [Fact]
    public void ThePartsOfASlotLeaveNoGap()
    {
        SlabFlags[] flags = [SlabFlags.RedZone, SlabFlags.Poison, SlabFlags.StoreUser, SlabFlags.TypesafeByRcu, SlabFlags.HwcacheAlign];
        for (int set = 0; set < 1 << flags.Length; set++)
        {
            SlabFlags chosen = flags.Where((_, i) => (set & (1 << i)) != 0).Aggregate(SlabFlags.None, (all, one) => all | one);
            foreach (int size in (int[])[1, 7, 8, 24, 100, 192, 1000, 4096, 100_000])
            {
                SlabGeometry geometry = SlabGeometry.Compute(new SlabGeometryRequest(size, 0, chosen, 2));
                List<SlabPicture.Part> parts = [.. SlabPicture.PartsOf(geometry)];
                Assert.Single(parts, part => part.Letter == 'f');
                if (!geometry.FreePointerOutside) parts.RemoveAt(parts.Count - 1);
                Assert.Equal(0, parts[0].Start);
                Assert.Equal(geometry.Size, parts[^1].End);
                Assert.All(parts.Skip(1).Zip(parts), pair => Assert.Equal(pair.Second.End, pair.First.Start));
                Assert.All(SlabPicture.Draw(geometry), line => Assert.InRange(line.Length, 0, 100));
            }
        }
    }
}
