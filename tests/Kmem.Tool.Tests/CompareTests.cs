using System.Text.Json.Nodes;

namespace Kmem.Tool.Tests;

/// <summary>The command <c>compare</c>: one recording, several machines.</summary>
public sealed class CompareTests
{
    [Fact]
    public async Task EachSettingIsAMachineOfItsOwn()
    {
        Outcome outcome = await Tool.Run("compare", Tool.SampleTrace, "--json",
            "--with", "ram=64M", "--with", "profile=native,cpus=4", "--with", "slab_debug=Z");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        JsonArray settings = JsonNode.Parse(outcome.Output)!["settings"]!.AsArray();
        Assert.Equal("|ram=64M|profile=native,cpus=4|slab_debug=Z", string.Join('|', settings.Select(it => (string)it!["with"]!)));
        Assert.Equal([16L << 30, 64 << 20, 16L << 30, 16L << 30], settings.Select(it => (long)it!["ramBytes"]!));
        Assert.Equal([2, 2, 4, 2], settings.Select(it => (int)it!["cpus"]!));
        Assert.Equal("native", (string)settings[2]!["profile"]!);
        Assert.All(settings, it => Assert.Equal((44331, 0, 0),
            ((int)it!["events"]!, (int)it["failedAllocs"]!, (int)it["violations"]!)));

        static long Number(JsonNode setting, string name) => (long)setting["work"]![name]!;
        Assert.All(settings, it =>
        {
            Assert.InRange(Number(it!, "slabBytes"), 1, Number(it!, "usedBytes"));
            Assert.InRange(Number(it!, "usedBytes"), 1, Number(it!, "peakUsedBytes"));
            Assert.InRange(Number(it!, "blocksNeeded"), 1, Number(it!, "cutBlocks"));
            Assert.InRange(Number(it!, "cutBlocks"), 1, Number(it!, "peakCutBlocks"));
        });

        // Red zones make the slots of a debugged cache larger; the size of RAM does not.
        static long Slot(JsonNode setting) =>
            (long)setting["caches"]!.AsArray().First(it => (string)it!["name"]! == "dentry")!["slotSize"]!;
        Assert.Equal(Slot(settings[0]!), Slot(settings[1]!));
        Assert.True(Slot(settings[3]!) > Slot(settings[0]!));
    }

    [Fact]
    public async Task AMachineThatIsTooSmallFails()
    {
        Outcome outcome = await Tool.Run("compare", Tool.SampleTrace, "--with", "ram=6M");
        Assert.Equal((1, ""), (outcome.Exit, outcome.Error));
        Assert.Matches(@"(?m)^ *failed allocations +0 +[\d,]+$", outcome.Output);
        Assert.Matches(@"B, compared with A: failed allocations 0 became [1-9]", outcome.Output);
        Assert.All(outcome.Output.Split('\n'), line => Assert.InRange(line.Length, 0, 100));
    }

    [Fact]
    public async Task TheSameMachineDoesTheSame()
    {
        Outcome outcome = await Tool.Run("compare", Tool.SampleTrace, "--with", "cpus=2,ram=16G");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        Assert.EndsWith("B: nothing that A did not do as well.", outcome.Output.TrimEnd(), StringComparison.Ordinal);
        Assert.DoesNotContain("slabs of", outcome.Output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("ram=1X", "ram is '1X', expected a size from 2M to 4T")]
    [InlineData("cpus=2,memory=4G", "no setting is named 'memory'; there are profile, ram, cpus")]
    [InlineData("slab_debug=Q", "slab_debug is 'Q', expected letters of F Z P U, or -")]
    [InlineData("percpu_pagelist_high_fraction=3", "is '3', expected 0, or a number from 8")]
    [InlineData("thp", "thp is '', expected on or off")]
    [InlineData("", "no setting is named ''")]
    [InlineData("ram=64M,movablecore=1T", "")]
    [InlineData("ram=64M,nodes=64", "a machine of 64 MiB cannot be built so: node 1 of 64 would have no memory")]
    [InlineData("ram=16M,min_free_kbytes=1000000", "")]
    public async Task AWrongSettingIsNamed(string setting, string rule)
    {
        Outcome outcome = await Tool.Run("compare", Tool.SampleTrace, "--with", setting);
        if (rule.Length == 0)
        {
            // An odd machine: it may be refused, or be of no use, but not break the tool.
            Assert.InRange(outcome.Exit, 0, 2);
            Assert.Equal(outcome.Exit == 2, outcome.Error.StartsWith("kmem: ", StringComparison.Ordinal));
            return;
        }

        Assert.Equal((2, ""), (outcome.Exit, outcome.Output));
        Assert.Contains(rule, outcome.Error, StringComparison.Ordinal);
        Assert.Single(outcome.Error.TrimEnd().Split('\n'));
    }

    [Fact]
    public async Task StandardInputCannotBeReadTwice()
    {
        Outcome outcome = await Tool.Run("compare", "-", "--with", "cpus=1");
        Assert.Equal(2, outcome.Exit);
        Assert.Contains("read several times", outcome.Error, StringComparison.Ordinal);
        Assert.Equal(2, (await Tool.Run("compare", Tool.SampleTrace)).Exit);
    }
}
