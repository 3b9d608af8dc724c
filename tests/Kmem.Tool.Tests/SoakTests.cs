using System.Text.Json.Nodes;

namespace Kmem.Tool.Tests;

/// <summary><c>kmem soak</c>, for a second.</summary>
public sealed class SoakTests
{
    [Theory]
    [InlineData("native")]
    [InlineData("linux-6.18")]
    public async Task NothingIsLost(string profile)
    {
        Outcome run = await Tool.Run(
            "soak", "--seconds", "1", "--threads", "3", "--ram", "256M", "--profile", profile, "--seed", "7", "--json");
        JsonNode json = JsonNode.Parse(run.Output)!;
        Assert.Equal((0, ""), (run.Exit, run.Error));
        Assert.True((bool)json["passed"]!);
        Assert.Equal(profile, (string?)json["profile"]);
        Assert.Equal(0, (int)json["leftObjects"]!);
        Assert.Empty(json["brokenRules"]!.AsArray());
        Assert.True((long)json["operations"]! > 1000);
        Assert.True((long)json["remoteFrees"]! > 100);
        Assert.True((long)json["threadsStarted"]! > 3);
        Assert.True((long)json["residentPeak"]! > (long)json["residentEnd"]!);
    }

    [Theory]
    [InlineData("--seconds 0", "--seconds is '0', expected a number from 1 to 604800")]
    [InlineData("--threads many", "--threads is 'many'")]
    [InlineData("--profile linux-1.0", "--profile is 'linux-1.0', expected linux-6.18, native")]
    public async Task WrongValuesAreNamed(string line, string message)
    {
        Outcome run = await Tool.Run(["soak", .. line.Split(' ')]);
        Assert.Equal(2, run.Exit);
        Assert.Contains(message, run.Error, StringComparison.Ordinal);
    }
}
