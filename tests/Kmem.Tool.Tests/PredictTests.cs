using System.Text.Json.Nodes;

namespace Kmem.Tool.Tests;

public sealed class PredictTests
{
    private static string Data => Path.Combine(Path.GetDirectoryName(Tool.GeometryTsv)!, "..");

    [Fact]
    public async Task AStateAsJson()
    {
        Outcome outcome = await Tool.Run("predict", "state", Path.Combine(Data, "boot-1cpu", "02-vm"), "--json");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        JsonNode json = JsonNode.Parse(outcome.Output)!;
        foreach ((string what, int count) in new[]
            { ("pageAllocs", 20009), ("zoneEvents", 3627), ("slabAllocs", 4791), ("vmapAllocs", 1597) })
        {
            Assert.Equal(count, (int)json[what]!);
            Assert.Equal(count, (int)json[what + "Exact"]!);
        }

        Assert.Equal(53279, (int)json["events"]!);
        Assert.Equal(0, (int)json["stateDifferences"]!);
        Assert.Null(json["first"]);
    }

    [Fact]
    public async Task AFolderWithoutARecordingIsWrongUse()
    {
        Outcome outcome = await Tool.Run("predict", "state", Path.GetTempPath());
        Assert.Equal(2, outcome.Exit);
        Assert.Contains("not a recorded phase", outcome.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AddressesOfVmalloc()
    {
        string folder = Path.Combine(Data, "vmap", "r3");
        string[] files = Directory.GetFiles(folder);
        Outcome outcome = await Tool.Run(
            "predict", "vmap", "--areas", files.Single(name => name.Contains("vmallocinfo", StringComparison.Ordinal)),
            "--trace", files.Single(name => name.Contains("trace", StringComparison.Ordinal)), "--json");
        JsonNode json = JsonNode.Parse(outcome.Output)!;
        Assert.Equal((0, 3716, 3716), (outcome.Exit, (int)json["allocs"]!, (int)json["exact"]!));
        Assert.Equal((3716, 3716), ((int)json["pageAligned"]!, (int)json["pageAlignedExact"]!));
    }
}
