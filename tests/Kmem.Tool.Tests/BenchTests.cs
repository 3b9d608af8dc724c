using System.Text.Json.Nodes;

namespace Kmem.Tool.Tests;

/// <summary>The command <c>bench</c>, from outside. How fast anything is, is not a matter of tests.</summary>
public sealed class BenchTests
{
    [Fact]
    public async Task JsonHasTimesByAllocatorAndTheGoal()
    {
        Outcome outcome = await Tool.Run(
            "bench", "--quick", "--no-c", "--only", "pair64", "--against", "NativeMemory", "ArrayPool", "--json");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        JsonNode json = JsonNode.Parse(outcome.Output)!;
        Assert.All((string[])["cpu", "os", "runtime"], it => Assert.NotEmpty((string)json["machine"]![it]!));

        JsonNode workload = Assert.Single(json["workloads"]!.AsArray())!;
        Assert.Equal("pair64", (string)workload["name"]!);
        JsonObject ns = workload["ns"]!.AsObject();
        Assert.Equal("kmem kmem-cache kmem-scope NativeMemory ArrayPool", string.Join(' ', ns.Select(it => it.Key)));
        Assert.All(ns, it => Assert.InRange((double)it.Value!, 0.1, 1e6));
        Assert.All(ns, it => Assert.True((double)workload["medianNs"]![it.Key]! >= (double)it.Value!));

        // An array pool is not malloc: it is shown, and the goal is about the others.
        Assert.Equal("NativeMemory", (string)workload["best"]!);
        double ratio = (double)workload["ratio"]!;
        double expected = (double)ns["kmem"]! / (double)ns["NativeMemory"]!;
        Assert.InRange(ratio, 0.97 * expected, 1.03 * expected); // the times are rounded
        Assert.Equal(ratio <= (double)workload["goal"]!, (bool)workload["reached"]!);
    }

    [Fact]
    public async Task OtherProfilesTakePartWhenAsked()
    {
        Outcome outcome = await Tool.Run(
            "bench", "--quick", "--no-c", "--only", "rsize", "--against", "NativeMemory", "--profile", "hardened", "--json");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        JsonObject ns = JsonNode.Parse(outcome.Output)!["workloads"]![0]!["ns"]!.AsObject();
        Assert.Equal("kmem kmem-hardened NativeMemory", string.Join(' ', ns.Select(it => it.Key)));
        Outcome wrong = await Tool.Run("bench", "--profile", "harder");
        Assert.Equal(2, wrong.Exit);
    }

    [Fact]
    public async Task ResidentMemoryIsLookedAtInAProcessOfItsOwn()
    {
        Outcome outcome = await Tool.Run(
            "bench", "--quick", "--only", "footprint", "--against", "NativeMemory", "--json");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        JsonNode workload = JsonNode.Parse(outcome.Output)!["workloads"]![0]!;
        long live = (long)workload["liveBytes"]!;
        Assert.True(live > 100_000);
        foreach (string name in (string[])["kmem", "NativeMemory"])
        {
            // Of less than the live bytes nothing can be resident; a hundred times as much would be a defect, too.
            Assert.InRange((long)workload["residentBytes"]![name]!, live / 2, 100 * live);
            Assert.NotNull(workload["afterFreeBytes"]![name]);
            Assert.NotNull(workload["afterTrimBytes"]![name]);
        }
    }

    [Fact]
    public async Task WordsShowTheProcessorAndWhatTheNumbersDoNot()
    {
        Outcome outcome = await Tool.Run(
            "bench", "--quick", "--no-c", "--only", "rsize", "replay", "--against", "NativeMemory");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        Assert.Matches(
            @"(?m)^ *rsize +[\d.,]+ +[\d.,]+ +NativeMemory +[\d.,]+ +[\d.]+ +1 +(reached|missed)", outcome.Output);
        Assert.Matches(@"(?m)^ *[\d,]+ events per second", outcome.Output);
        Assert.Contains("They say nothing of", outcome.Output, StringComparison.Ordinal);
        Assert.Matches(@"goals? (was|were) reached", outcome.Output);
        Assert.All(outcome.Output.Split('\n'), line => Assert.InRange(line.Length, 0, 100));
    }

    [Fact]
    public async Task AMissingPeerIsNoError()
    {
        // jemalloc may be installed or not: either it has a number, or it is said to be missing.
        Outcome outcome = await Tool.Run(
            "bench", "--quick", "--no-c", "--only", "pair64c", "--against", "jemalloc", "--json");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        JsonNode json = JsonNode.Parse(outcome.Output)!;
        bool measured = json["workloads"]![0]!["ns"]!.AsObject().ContainsKey("jemalloc");
        bool missing = json["missing"]!.AsArray().Any(it => (string)it! == "jemalloc");
        Assert.True(measured ^ missing);
        Assert.Equal(measured, json["workloads"]![0]!["ratio"] is not null);
    }

    [Fact]
    public async Task TheLoopsInCAgreeOnTheirNames()
    {
        Outcome outcome = await Tool.Run(
            "bench", "--quick", "--only", "slots1000", "--against", "glibc", "NativeMemory", "--json");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        JsonNode json = JsonNode.Parse(outcome.Output)!;
        Assert.SkipWhen(json["versions"]!["cc"] is null, "no C compiler here");
        Assert.InRange((double)json["workloads"]![0]!["ns"]!["c-glibc"]!, 0.5, 1e5);
    }
}
