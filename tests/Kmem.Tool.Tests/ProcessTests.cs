using System.Diagnostics;
using System.Text.Json.Nodes;

namespace Kmem.Tool.Tests;

/// <summary>What only a process of its own shows: its streams, its exit code, signals.</summary>
public sealed class ProcessTests
{
    [Fact]
    public async Task ATraceFromAPipeIsReplayedAndTheReportHasNoEscapeCodes()
    {
        byte[] trace = await File.ReadAllBytesAsync(Tool.SampleTrace, TestContext.Current.CancellationToken);
        Outcome outcome = await Tool.RunChild(trace, "replay", "-");
        Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
        Assert.StartsWith("44,331 events", outcome.Output, StringComparison.Ordinal);
        Assert.DoesNotContain('\e', outcome.Output);
    }

    [Fact]
    public async Task OnlyJsonIsOnStandardOutput()
    {
        byte[] table = Tool.Gzip(await File.ReadAllBytesAsync(Tool.GeometryTsv, TestContext.Current.CancellationToken));
        Outcome outcome = await Tool.RunChild(table, "geometry", "--table", "-", "--cpus", "4", "--json");
        Assert.Equal((1, ""), (outcome.Exit, outcome.Error));
        Assert.Equal(235, (int)JsonNode.Parse(outcome.Output)!["rows"]!);
    }

    [Fact]
    public async Task WrongUseIsExitCode2AndOneLineOnStandardError()
    {
        Outcome outcome = await Tool.RunChild([], "replay", "-");
        Assert.Equal((2, ""), (outcome.Exit, outcome.Output));
        Assert.StartsWith("kmem: standard input: expected ftrace text", outcome.Error, StringComparison.Ordinal);
        Assert.Single(outcome.Error.TrimEnd().Split('\n'));
    }

    [Fact]
    public async Task ControlCEndsAReplayThatWaitsForInput()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "signals of Unix");
        using Process process = Tool.Start("replay", "-");
        // A line that it must have taken from the pipe tells that it is past its start: the pipe holds 64 KiB.
        byte[] line = "# tracer: nop\n"u8.ToArray();
        for (int written = 0; written < 256 << 10; written += line.Length)
            await process.StandardInput.BaseStream.WriteAsync(line, TestContext.Current.CancellationToken);

        using Process kill = Process.Start("kill", ["-INT", $"{process.Id}"]);
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        Assert.Equal((130, "", ""), (process.ExitCode, await process.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken),
            await process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken)));
    }
}
