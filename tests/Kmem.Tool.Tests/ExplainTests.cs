using System.Text.Json.Nodes;

namespace Kmem.Tool.Tests;

/// <summary><c>kmem explain</c>: what it prints, what it answers with, and what it refuses.</summary>
public sealed class ExplainTests
{
    private static string Recording => Path.Combine(Tool.Repository, "tests/data/boot-1cpu/02-vm");

    [Fact]
    public async Task APointerOfARecordingIsExplained()
    {
        Outcome outcome = await Tool.Run("explain", "ffff888100dee000", Tool.SampleTrace, "--at", "1000");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        string text = outcome.Output.ReplaceLineEndings(" ");
        foreach (string part in (string[])["recorded     0xffff888100dee000", "after event 1000", "names_cache",
            "Life", "new slab",
            "getname_flags.part.0", "Decision of event 3", "served", "MIN"])
        {
            Assert.Contains(part, text, StringComparison.Ordinal);
        }

        JsonNode json = await Json(0, "ffff888100dee000", Tool.SampleTrace, "--at", "1000");
        Assert.Equal("0xffff888100dee000", (string?)json["recorded"]);
        Assert.Equal(1000, (long)json["atEvent"]!);
        Assert.Equal("names_cache", (string?)json["slab"]!["cache"]);
        foreach (string field in (string[])["address", "region", "kind", "zone", "pageblock", "page", "object",
            "life", "decision",
            "sentence", "mapping", "area", "table", "freeBlock", "pcp", "lifeOmitted"])
        {
            Assert.True(json.AsObject().ContainsKey(field), field);
        }
    }

    [Fact]
    public async Task OursAndTheRecordingsCanBeToldApart()
    {
        JsonNode json = await Json(0, "ffff888100dee000", Tool.SampleTrace, "--at", "1000", "--own");
        Assert.Null((string?)json["recorded"]);
        Assert.Equal("0xffff888100dee000", (string?)json["address"]);
    }

    [Theory]
    [InlineData(0, "ffff888002e0a080", "kmalloc-128")]
    [InlineData(0, "0xffffc90000000010", "vmallocPage")]
    [InlineData(1, "0xffffc90000004000", "guardPage")]
    [InlineData(1, "0x1000", "nothing")]
    public async Task ARecordedStateIsExplained(int exit, string address, string part)
    {
        Outcome outcome = await Tool.Run("explain", address, "--state", Recording, "--json");
        Assert.Equal((exit, ""), (outcome.Exit, outcome.Error));
        Assert.Contains(part, outcome.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AStateThatReplayWroteIsExplained()
    {
        using var state = new TemporaryFile("");
        Assert.Equal(0, (await Tool.Run("replay", Tool.SampleTrace, "--state", state.Path)).Exit);
        Outcome outcome = await Tool.Run("explain", "ffff888100040000", "--state", state.Path);
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        Assert.Contains("zone         Normal", outcome.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AFailureIsFoundAndExplained()
    {
        JsonNode json = await Json(1, "--failure", Tool.SampleTrace, "--ram", "8M");
        Assert.False((bool)json["wouldSucceed"]!);
        Assert.Equal("failed", (string?)json["decision"]!["slowPath"]!.AsArray()[^1]);
        Outcome text = await Tool.Run("explain", "--failure", Tool.SampleTrace, "--ram", "8M");
        Assert.Contains("What keeps blocks from being free", text.Output, StringComparison.Ordinal);
        Assert.Contains("slow path", text.Output, StringComparison.Ordinal);

        Outcome none = await Tool.Run("explain", "--failure", Tool.SampleTrace);
        Assert.Equal((0, "None of the 44331 events fails here."), (none.Exit, none.Output.Trim()));
        Assert.Equal("{}", (await Tool.Run("explain", "--failure", Tool.SampleTrace, "--json")).Output.Trim());
    }

    [Fact]
    public async Task ARequestIsExplained()
    {
        JsonNode json = await Json(0, "--order", "9", "--gfp", "GFP_ATOMIC", Tool.SampleTrace, "--ram", "512M");
        Assert.Equal(("GFP_ATOMIC", 9, true), ((string?)json["gfp"], (int)json["order"]!, (bool)json["wouldSucceed"]!));
        Assert.Equal(1, (await Tool.Run("explain", "--order", "10", Tool.SampleTrace, "--ram", "8M")).Exit);
        Assert.Equal(0, (await Tool.Run("explain", "--order", "0", "--state", Recording)).Exit);
    }

    [Theory]
    [InlineData("", "expected ADDRESS and TRACE")]
    [InlineData("ffff888100dee000", "expected ADDRESS and TRACE")]
    [InlineData("hello TRACE", "'hello', expected up to 16 hexadecimal digits")]
    [InlineData("ffff888100dee000 TRACE --at 0", "--at is '0'")]
    [InlineData("ffff888100dee000 TRACE --at 99999999", "has only 44331 events")]
    [InlineData("ffff888100dee000 /no/such/file", "no such file")]
    [InlineData("ffff888100dee000 --state /no/such/state", "not a recorded state")]
    [InlineData("ffff888100dee000 --state /tmp --at 5", "--at is for a recording")]
    [InlineData("ffff888100dee000 TRACE --state /tmp", "no recording beside --state")]
    [InlineData("--order 11 TRACE", "from 0 to 10")]
    [InlineData("--order 3 --failure TRACE", "exclude each other")]
    [InlineData("--order 3 --gfp GFP_NONSENSE TRACE", "--gfp is 'GFP_NONSENSE'")]
    [InlineData("--order 3 --gfp __GFP_DMA|__GFP_DMA32 TRACE", "exclude each other")]
    [InlineData("--gfp GFP_KERNEL ffff888100dee000 TRACE", "--order, too")]
    [InlineData("--failure --state /tmp", "--failure needs a recording")]
    [InlineData("--order 3 ffff888100dee000 TRACE", "no address beside --order")]
    [InlineData("--order 3 TRACE --profile nonsense", "--profile is 'nonsense'")]
    public async Task WrongUseIsOneLine(string line, string part)
    {
        string[] words = line.Replace("TRACE", Tool.SampleTrace, StringComparison.Ordinal)
            .Split(' ', StringSplitOptions.RemoveEmptyEntries);
        Outcome outcome = await Tool.Run(["explain", .. words]);
        Assert.Equal((2, ""), (outcome.Exit, outcome.Output));
        Assert.Contains(part, outcome.Error, StringComparison.Ordinal);
        Assert.Single(outcome.Error.TrimEnd().Split('\n'));
    }

    private static async Task<JsonNode> Json(int exit, params string[] args)
    {
        Outcome outcome = await Tool.Run(["explain", .. args, "--json"]);
        Assert.Equal((exit, ""), (outcome.Exit, outcome.Error));
        return JsonNode.Parse(outcome.Output)!;
    }
}
