namespace Kmem.Tool.Tests;

public sealed class HelpTests
{
    [Fact]
    public async Task VersionIsOneLine()
    {
        Outcome outcome = await Tool.Run("--version");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        Assert.Matches(@"^kmem \d+\.\d+\.\d+\S*\r?\n$", outcome.Output);
    }

    [Theory]
    [InlineData("--help", "replay", "geometry", "Examples:", "kmem replay samples/traces/git/trace.txt.gz", "Exit code:")]
    [InlineData("replay --help", "--profile <NAME>", "--ram <SIZE>", "pagetypeinfo", "Examples:")]
    [InlineData("geometry -h --nonsense", "--freeptr", "--table", "Examples:")]
    public async Task HelpShowsTheUseByExamples(string line, params string[] parts)
    {
        Outcome outcome = await Tool.Run(line.Split(' '));
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        Assert.All(parts, part => Assert.Contains(part, outcome.Output, StringComparison.Ordinal));
    }

    [Fact]
    public async Task AFullDiskUnderTheOutputIsOneLine()
    {
        var error = new StringWriter();
        int exit = await Program.RunAsync(["geometry", "--size", "8", "--json"], new FullDisk(), error);
        Assert.Equal((2, "kmem: the output cannot be written: No space left on device" + Environment.NewLine),
            (exit, error.ToString()));
    }

    [Fact]
    public async Task EveryExampleParses()
    {
        // Parsed, not run: one of them is a soak of an hour.
        string help = (await Tool.Run("--help")).Output;
        string[] examples = [.. help.Split('\n').Select(line => line.Trim())
            .Where(line => line.StartsWith("kmem ", StringComparison.Ordinal) && !line.StartsWith("kmem [", StringComparison.Ordinal))];
        Assert.NotEmpty(examples);
        Assert.All(examples, example =>
        {
            string line = example.Split(" < ")[0].Split(" > ")[0];
            Assert.Empty(Program.Parse([.. line.Split(' ').Skip(1)]).Errors);
        });
    }

    private sealed class FullDisk : StringWriter
    {
        public override void WriteLine(string? value) => throw new IOException("No space left on device");
    }
}
