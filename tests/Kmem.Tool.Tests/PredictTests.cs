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

    [Theory]
    [InlineData("end.json")]
    [InlineData("end.json.gz")]
    public async Task TheStateAtTheEndIsWritten(string name)
    {
        string path = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}-{name}");
        try
        {
            Outcome outcome = await Tool.Run(
                "predict", "state", Path.Combine(Data, "boot-1cpu", "03-fork"), "--write-state", path, "--json");

            Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
            using Machine machine = Machine.LoadState(path);
            Assert.Equal(1, machine.Cpus);
            byte[] start = File.ReadAllBytes(path)[..2];
            Assert.Equal(name.EndsWith(".gz", StringComparison.Ordinal), start is [0x1f, 0x8b]);
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

        Outcome outcome = await Tool.Run(
            "predict", "state", Path.Combine(Data, "boot-1cpu", "00-slab"), "--write-state", path);

        Assert.Equal(2, outcome.Exit);
        Assert.Contains($"{path}: cannot be written", outcome.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task ARecordingThatDiffersIsFound()
    {
        string folder = Directory.CreateTempSubdirectory("kmem-").FullName;
        try
        {
            string phase = Path.Combine(Data, "boot-1cpu", "00-slab");
            File.Copy(Path.Combine(phase, "state-t0.json.gz"), Path.Combine(folder, "state-t0.json.gz"));
            File.Copy(Path.Combine(phase, "state-t1.json.gz"), Path.Combine(folder, "state-t1.json.gz"));
            await File.WriteAllTextAsync(
                Path.Combine(folder, "events.tsv.gz"),
                "seq\tts\tcpu\tctx\tpid\tev\targs\n1\t1.0\t0\t.....\t1\tPA\t1\t0\t1\tcca\tpcp\n",
                TestContext.Current.CancellationToken);

            Outcome outcome = await Tool.Run("predict", "state", folder, "--json");

            JsonNode json = JsonNode.Parse(outcome.Output)!;
            Assert.Equal((1, 1, 0), (outcome.Exit, (int)json["pageAllocs"]!, (int)json["pageAllocsExact"]!));
            Assert.StartsWith(
                "line 2: 1 PA 1 0 1 cca pcp: came frame", (string)json["first"]!, StringComparison.Ordinal);
            Assert.NotEqual(0, (int)json["stateDifferences"]!);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
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
