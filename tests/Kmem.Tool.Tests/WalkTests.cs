using System.Globalization;
using System.Text.Json.Nodes;

namespace Kmem.Tool.Tests;

/// <summary><c>kmem walk</c>: what it prints is checked against itself, as a person with a calculator would.</summary>
public sealed class WalkTests
{
    private static string Recording => Path.Combine(Tool.Repository, "tests/data/boot-1cpu/02-vm");

    /// <summary>
    /// Each entry leads to the next table, the index is the address's, the leaf to the physical address.
    /// </summary>
    [Theory]
    [InlineData("", "vmalloc() Area", 4)]
    [InlineData("0xffffc90000002abc --allocate 64KiB", "vmalloc() Area", 4)]
    [InlineData("ffffc90000002abc", "vmalloc() Area", 4)]
    [InlineData("0xffffc90000003123 --allocate 4M --huge --cpus 3 --ram 256M", "vmalloc() Area", 3)]
    [InlineData("0xffff888000001234", "Low Kernel Mapping", 2)]
    [InlineData("0xff11000000001234 --levels 5", "Low Kernel Mapping", 3)]
    [InlineData("0xffa0000000002000 --levels 5 --allocate 12K", "vmalloc() Area", 5)]
    public async Task TheStepsAreAChain(string line, string region, int steps)
    {
        SkipWithoutWindows();
        if (line.Contains("--huge", StringComparison.Ordinal))
            line = line.Replace("0xffffc90000003123", "0xffffc90000203123", StringComparison.Ordinal);
        JsonNode json = await Json(0, [.. line.Split(' ', StringSplitOptions.RemoveEmptyEntries)]);
        Assert.Equal(region, (string?)json["region"]);
        Assert.True((bool)json["mapped"]!);
        JsonArray chain = json["steps"]!.AsArray();
        Assert.Equal(steps, chain.Count);
        ulong address = Hex(json["address"]);
        int levels = line.Contains("--levels 5", StringComparison.Ordinal) ? 5 : 4;
        for (int i = 0; i < chain.Count; i++)
        {
            int shift = 12 + (9 * (levels - 1 - i));
            ulong entry = Hex(chain[i]!["entry"]);
            Assert.Equal((address >> shift) & 511, (ulong)(int)chain[i]!["index"]!);
            Assert.Equal(1UL, entry & 1);
            ulong target = entry & 0x000f_ffff_ffff_f000;
            if (i + 1 < chain.Count)
                Assert.Equal(target, Hex(chain[i + 1]!["table"]));
            else
                Assert.Equal(target | (address & ((1UL << shift) - 1)), Hex(json["physical"]));
        }

        ulong directMap = levels == 5 ? 0xff11_0000_0000_0000 : 0xffff_8880_0000_0000;
        Assert.Equal(directMap + Hex(json["physical"]), Hex(json["directMap"]));
    }

    [Theory]
    [InlineData("0xffffc90000010000", "pte", "guard page")]
    [InlineData("0xffffc90000200000", "pmd", "entry 1 is empty")]
    [InlineData("0xffffc90040000000", "pud", "entry 1 is empty")]
    [InlineData("0xffffea0000000000", "pgd", "entry 468 is empty")]
    [InlineData("7fff00000000", "pgd", "entry 255 is empty")]
    public async Task WhereNothingIsMappedTheWalkTellsWhereItStops(string address, string level, string why)
    {
        SkipWithoutWindows();
        Outcome outcome = await Tool.Run("walk", address);
        Assert.Equal((1, ""), (outcome.Exit, outcome.Error));
        string text = outcome.Output.ReplaceLineEndings(" ");
        Assert.Contains($"the walk stops at the {level}, entry", text, StringComparison.Ordinal);
        Assert.Contains(why, text, StringComparison.Ordinal);
        JsonNode json = await Json(1, address);
        Assert.Equal(level, (string?)json["steps"]!.AsArray()[^1]!["level"]);
        Assert.False((bool)json["mapped"]!);
    }

    [Theory]
    [InlineData("0x0000800000000000", "63 to 47")]
    [InlineData("0xffff7fffffffffff", "63 to 47")]
    [InlineData("0x0100000000000000 --levels 5", "63 to 56")]
    [InlineData("12345678901234567", "hexadecimal digits")]
    [InlineData("hello", "hexadecimal digits")]
    [InlineData("0x1000 --allocate 0", "expected a size")]
    [InlineData("0x1000 --allocate 5G", "--ram")]
    [InlineData("0x1000 --levels 3", "from 4 to 5")]
    [InlineData("0x1000 --dump", "--dump")]
    [InlineData("--state /no/such/folder", "not a recorded kernel")]
    [InlineData("--state /tmp --levels 5", "--state")]
    public async Task WrongUseIsOneLine(string line, string part)
    {
        SkipWithoutWindows();
        Outcome outcome = await Tool.Run(["walk", .. line.Split(' ')]);
        Assert.Equal((2, ""), (outcome.Exit, outcome.Output));
        Assert.Contains(part, outcome.Error, StringComparison.Ordinal);
        Assert.Single(outcome.Error.TrimEnd().Split('\n'));
    }

    /// <summary>The frame behind an address of a real kernel, as its own tables had it.</summary>
    [Fact]
    public async Task ARecordedKernelIsWalkedInItsOwnTables()
    {
        JsonNode json = await Json(0, "ffffc90000000000", "--state", Recording);
        Assert.Equal("0x800000001f401163", (string?)json["steps"]!.AsArray()[^1]!["entry"]);
        Assert.Equal("0x1f401000", (string?)json["physical"]);
        Assert.Equal("0xffff88801f401000", (string?)json["directMap"]);
        Assert.Equal("PGD 2400067 P4D 2400067 PUD 2515067 PMD 2516067 PTE 800000001f401163", (string?)json["oops"]);
        Assert.Equal("0xffffc90000005000", (string?)json["area"]!["end"]);
        Assert.Null(json["steps"]!.AsArray()[0]!["table"]);
        await Json(1, "ffffc90000004000", "--state", Recording);
    }

    /// <summary>A damaged recording is one line, whatever is wrong with it.</summary>
    [Theory]
    [InlineData("")]
    [InlineData("level\tva\tentry\n")]
    [InlineData("level\tva\tentry\n4\tffffc90000000000\n")]
    [InlineData("level\tva\tentry\nfour\tffffc90000000000\t1\n")]
    [InlineData("level\tva\tentry\n4\tffffc9000000000000\t1\n")]
    [InlineData("level\tva\tentry\n9\tffffc90000000000\t1\n")]
    public async Task DamagedTablesAreRefused(string tables)
    {
        string folder = Directory.CreateTempSubdirectory("kmem-walk").FullName;
        try
        {
            File.Copy(Path.Combine(Recording, "state-t1.json.gz"), Path.Combine(folder, "state-t1.json.gz"));
            await File.WriteAllBytesAsync(
                Path.Combine(folder, "pagetables-t1.tsv.gz"), Tool.Gzip(tables), TestContext.Current.CancellationToken);
            Outcome outcome = await Tool.Run("walk", "--state", folder);
            Assert.Equal((2, ""), (outcome.Exit, outcome.Output));
            Assert.Contains("not a recorded kernel with its page tables", outcome.Error, StringComparison.Ordinal);
            Assert.Single(outcome.Error.TrimEnd().Split('\n'));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Fact]
    public async Task TheDumpHasTheKernelsRegions()
    {
        SkipWithoutWindows();
        Outcome outcome = await Tool.Run("walk", "--dump", "--ram", "64M");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        Assert.Contains("---[ Low Kernel Mapping ]---", outcome.Output, StringComparison.Ordinal);
        Assert.Contains(
            "0xffff888000000000-0xffff888004000000          64M     RW         PSE     GLB NX pmd",
            outcome.Output,
            StringComparison.Ordinal);
        Assert.Contains(
            "0xffffc90000000000-0xffffc90000010000          64K     RW                 GLB NX pte",
            outcome.Output,
            StringComparison.Ordinal);
    }

    /// <summary>What the README shows is what comes out, to the last digit.</summary>
    [Fact]
    public async Task TheReadmeShowsWhatIsPrinted()
    {
        SkipWithoutWindows();
        const string Command = "$ dotnet run -c Release --project src/Kmem.Tool -- ";
        string readme = File.ReadAllText(Path.Combine(Tool.Repository, "README.md")).ReplaceLineEndings("\n");
        int start = readme.IndexOf(Command + "walk", StringComparison.Ordinal);
        Assert.True(start > 0);
        string[] lines = readme[start..readme.IndexOf("\n```", start, StringComparison.Ordinal)].Split('\n');
        Outcome outcome = await Tool.Run(lines[0][Command.Length..].Split(' '));
        Assert.Equal(lines[1..], outcome.Output.ReplaceLineEndings("\n").TrimEnd('\n').Split('\n'));
    }

    private static async Task<JsonNode> Json(int exit, params string[] args)
    {
        Outcome outcome = await Tool.Run(["walk", .. args, "--json"]);
        Assert.Equal((exit, ""), (outcome.Exit, outcome.Error));
        return JsonNode.Parse(outcome.Output)!;
    }

    private static ulong Hex(JsonNode? node) =>
        ulong.Parse(((string)node!)[2..], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);

    private static void SkipWithoutWindows() => Assert.SkipUnless(
        OperatingSystem.IsLinux() && Environment.SystemPageSize == 4096, "vmalloc needs Linux with 4 KiB pages");
}
