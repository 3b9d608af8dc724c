using System.Text.Json.Nodes;
using System.Text.RegularExpressions;

namespace Kmem.Tool.Tests;

/// <summary>Replays of the recording that ships as a sample, and of small texts.</summary>
public sealed partial class ReplayTests
{
    private const string Header = "# tracer: nop\n#\n# entries-in-buffer/entries-written: 3/3   #P:2\n";

    private const string Alloc = "  bash-7 [001] ..... 1.000001: kmalloc: call_site=here+0x1/0x9 ptr=ffff888100000000 "
        + "bytes_req=100 bytes_alloc=128 gfp_flags=GFP_KERNEL node=-1 accounted=false\n";

    private const string Free = "  bash-7 [000] ..... 1.000002: kfree: call_site=there+0x1/0x9 ptr=ffff888100000000\n";

    [Fact]
    public async Task TheSampleAgreesWithTheKernelInJson()
    {
        Outcome outcome = await Tool.Run("replay", Tool.SampleTrace, "--json");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        JsonNode json = JsonNode.Parse(outcome.Output)!;
        long Number(string name) => (long)json[name]!;
        Assert.Equal(44331, Number("events"));
        Assert.True(Number("bytesAllocChecked") > 15_000);
        Assert.Equal(Number("bytesAllocChecked"), Number("bytesAllocEqual"));
        Assert.Equal((0, 0), (Number("violations"), Number("failedAllocs")));
        Assert.True(Number("allocs") > Number("frees"));
        Assert.True(Number("unknownFrees") > 0);
        Assert.True((double)json["eventsPerSecond"]! > 0);
        Assert.True((double)json["elapsed"]! > 0);
        Assert.Equal((2, 16L << 30, "linux-6.18"), ((int)json["cpus"]!, Number("ramBytes"), (string)json["profile"]!));

        JsonArray caches = json["caches"]!.AsArray();
        Assert.Contains(caches, cache => (string)cache!["name"]! == "dentry" && (long)cache["liveObjects"]! > 0);
        Assert.Equal(Number("liveObjects"), caches.Sum(cache => (long)cache!["liveObjects"]!));
        Assert.Equal(11, json["zones"]![0]!["freeBlocks"]!.AsArray().Count);
        Assert.NotEmpty(json["callSites"]!.AsArray());
    }

    [Fact]
    public async Task TheSampleAgreesWithTheKernelInWords()
    {
        Outcome outcome = await Tool.Run("replay", Tool.SampleTrace, "--top", "4");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        Assert.StartsWith(
            "44,331 events on linux-6.18, 2 CPUs, 16 GiB of RAM", outcome.Output, StringComparison.Ordinal);
        Assert.Matches(@"kmalloc +(\d+) +\1 +100 %", outcome.Output.Replace(",", "", StringComparison.Ordinal));
        Assert.Contains("DMA32", outcome.Output, StringComparison.Ordinal);
        Assert.Contains("extfrag   ", outcome.Output, StringComparison.Ordinal);
        Assert.Matches(@"(?m)^4 of \d+ caches", outcome.Output);
        Assert.Matches(@"All [\d,]+ requests that name a slot size got the kernel's; no allocation failed",
            outcome.Output.ReplaceLineEndings(" "));
        Assert.All(outcome.Output.ReplaceLineEndings("\n").Split('\n'), line =>
        {
            Assert.InRange(line.Length, 0, 100);
            Assert.DoesNotContain('\e', line);
            Assert.Equal(line.TrimEnd(), line);
        });
    }

    [Fact]
    public async Task ARunIsDeterministic()
    {
        string[] args = ["replay", Tool.SampleTrace, "--ram", "512M", "--json"];
        string first = Speed().Replace((await Tool.Run(args)).Output, "");
        Assert.Equal(first, Speed().Replace((await Tool.Run(args)).Output, ""));
    }

    [Theory]
    [InlineData("slabinfo", "slabinfo - version: 2.1")]
    [InlineData("buddyinfo", "Node 0, zone      DMA ")]
    [InlineData("pagetypeinfo", "Page block order: 9")]
    [InlineData("zoneinfo", "Node 0, zone      DMA")]
    [InlineData("meminfo", "MemTotal: ")]
    [InlineData("vmstat", "nr_free_pages ")]
    [InlineData("extfrag_index", "Node 0, zone      DMA -1.000")]
    [InlineData("unusable_index", "Node 0, zone      DMA 0.000")]
    public async Task ProcPrintsOnlyTheKernelsText(string name, string start)
    {
        using var trace = new TemporaryFile(Header + Alloc);
        Outcome outcome = await Tool.Run("replay", trace.Path, "--ram", "64M", "--proc", name);
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        Assert.StartsWith(start, outcome.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task ProcShowsTheStateAfterTheReplay()
    {
        Outcome outcome = await Tool.Run("replay", Tool.SampleTrace, "--ram", "1G", "--proc", "slabinfo");
        JsonNode json = JsonNode.Parse((await Tool.Run("replay", Tool.SampleTrace, "--ram", "1G", "--json")).Output)!;
        JsonNode dentry = json["caches"]!.AsArray().First(cache => (string)cache!["name"]! == "dentry")!;
        SlabInfoRow row = SlabInfoText.Parse(outcome.Output).Rows.First(row => row.Name == "dentry");
        Assert.Equal(((ulong)dentry["slabs"]!, (uint)dentry["slotSize"]!, (uint)dentry["objectsPerSlab"]!),
            (row.NumSlabs, row.ObjSize, row.ObjPerSlab));
    }

    [Fact]
    public async Task DamagedLinesAreNamedAndSkipped()
    {
        using var trace = new TemporaryFile(Header + Alloc + "what is [this]\n" + Free + "CPU:1 [LOST 12 EVENTS]\n");
        Outcome outcome = await Tool.Run("replay", trace.Path, "--ram", "64M");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        Assert.Contains("line 5: no columns", outcome.Output, StringComparison.Ordinal);
        Assert.Contains("[this]", outcome.Output, StringComparison.Ordinal);
        Assert.Matches(@"lost +12 ", outcome.Output);
        Assert.Contains("1 damaged line skipped.", outcome.Output.ReplaceLineEndings(" "), StringComparison.Ordinal);
    }

    [Fact]
    public async Task AnotherSlotSizeThanTheKernelsIsFound()
    {
        using var trace = new TemporaryFile(Header + Alloc.Replace("bytes_alloc=128", "bytes_alloc=192"));
        Outcome outcome = await Tool.Run("replay", trace.Path, "--ram", "64M");
        Assert.Equal((1, ""), (outcome.Exit, outcome.Error));
        Assert.Contains("This needs a look: 1 of 1 requests got a slot of another size than the kernel's.",
            outcome.Output, StringComparison.Ordinal);
        Assert.Matches(@"kmalloc +1 +0 +0\.0 %", outcome.Output);
    }

    [Fact]
    public async Task FailedAllocationsAreFound()
    {
        Outcome outcome = await Tool.Run("replay", Tool.SampleTrace, "--ram", "2M");
        Assert.Equal((1, ""), (outcome.Exit, outcome.Error));
        Assert.Matches(@"This needs a look: [\d,]+ allocations failed that the kernel could serve\.", outcome.Output);
    }

    [Fact]
    public async Task CpusThatTheMachineDoesNotHaveAreTold()
    {
        using var trace = new TemporaryFile(Header + Alloc + Free);
        Outcome outcome = await Tool.Run("replay", trace.Path, "--ram", "64M", "--cpus", "1");
        Assert.Equal(0, outcome.Exit);
        Assert.Matches(@"other CPUs +1 ", outcome.Output);
    }

    [GeneratedRegex("\"(eventsPerSecond|elapsed)\": [0-9.E+-]+,")]
    private static partial Regex Speed();

    [Fact]
    public async Task TheStateAtTheEndIsWritten()
    {
        string path = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}.json.gz");
        try
        {
            Outcome outcome = await Tool.Run("replay", Tool.SampleTrace, "--ram", "1G", "--state", path, "--json");

            Assert.Equal("", outcome.Error);
            using Machine machine = Machine.LoadState(path);
            Assert.Empty(machine.Validate());
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public async Task AStateThatCannotBeWrittenIsAnError()
    {
        string path = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}", "end.json");

        Outcome outcome = await Tool.Run("replay", Tool.SampleTrace, "--state", path);

        Assert.Equal(2, outcome.Exit);
        Assert.Contains($"{path}: cannot be written", outcome.Error, StringComparison.Ordinal);
    }
}
