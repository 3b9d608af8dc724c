using System.Diagnostics;
using System.Globalization;
using System.Net.Sockets;
using System.Text.Json.Nodes;

namespace Kmem.Tool.Tests;

/// <summary><c>kmem serve</c> and <c>kmem export</c>.</summary>
public sealed class ServeTests
{
    private static CancellationToken Cancel => TestContext.Current.CancellationToken;

    [Fact]
    public async Task ARecordingIsServedUntilControlC()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "signals of Unix");
        using Process process = Tool.Start("serve", Tool.SampleTrace, "--port", "0", "--ram", "1G", "--limit", "5000");
        Uri url = await UrlOf(process);
        using var client = new HttpClient { BaseAddress = url };
        JsonNode info = JsonNode.Parse(await client.GetStringAsync("/api/info", Cancel))!;
        Assert.Equal(("trace", 5000), ((string)info["source"]!, (int)info["events"]!));
        Assert.Equal("trace.txt.gz", (string)info["name"]!);
        string page = await client.GetStringAsync("/", Cancel);
        Assert.Contains("<script type=\"module\"", page, StringComparison.Ordinal);

        using Process kill = Process.Start("kill", ["-INT", $"{process.Id}"]);
        await process.WaitForExitAsync(Cancel);
        Assert.Equal((0, ""), (process.ExitCode, await process.StandardError.ReadToEndAsync(Cancel)));
    }

    [Fact]
    public async Task WithoutATraceAMachineIsAtWork()
    {
        using Process process = Tool.Start("serve", "--port", "0", "--ram", "128M");
        try
        {
            Uri url = await UrlOf(process);
            using var client = new HttpClient { BaseAddress = url };
            JsonNode first = JsonNode.Parse(await client.GetStringAsync("/api/machine", Cancel))!;
            await Task.Delay(500, Cancel);
            JsonNode later = JsonNode.Parse(await client.GetStringAsync("/api/machine", Cancel))!;
            Assert.False(JsonNode.DeepEquals(first["frames"], later["frames"]), "nothing has changed");
        }
        finally
        {
            process.Kill();
        }
    }

    [Fact]
    public async Task ARecordedStateIsServed()
    {
        using Process process = Tool.Start(
            "serve", "--port", "0", "--state", Path.Combine(Tool.Repository, "tests/data/boot-1cpu/02-vm"));
        try
        {
            using var client = new HttpClient { BaseAddress = await UrlOf(process) };
            JsonNode info = JsonNode.Parse(await client.GetStringAsync("/api/info", Cancel))!;
            Assert.Equal("state", (string)info["source"]!);
            JsonNode slabs = JsonNode.Parse(await client.GetStringAsync("/api/slabs", Cancel))!;
            Assert.Single(slabs["caches"]!.AsArray(), row => (string)row!["name"]! == "kmem_cache"
                && (int)row["active"]! > 0);
            JsonNode space = JsonNode.Parse(await client.GetStringAsync("/api/virtual", Cancel))!;
            Assert.NotEmpty(space["areas"]!.AsArray());
        }
        finally
        {
            process.Kill();
        }
    }

    [Fact]
    public async Task APortInUseIsWrongUse()
    {
        using var taken = new TcpListener(System.Net.IPAddress.Loopback, 0);
        taken.Start();
        string port = ((System.Net.IPEndPoint)taken.LocalEndpoint).Port.ToString(CultureInfo.InvariantCulture);
        Outcome outcome = await Tool.Run("serve", Tool.SampleTrace, "--port", port, "--limit", "10", "--ram", "64M");
        Assert.Equal((2, ""), (outcome.Exit, outcome.Output));
        Assert.StartsWith($"kmem: cannot listen on 127.0.0.1 port {port}: ", outcome.Error, StringComparison.Ordinal);
        Assert.Single(outcome.Error.TrimEnd().Split('\n'));
    }

    [Theory]
    [InlineData("--host is 'everywhere', expected an IP address", "serve", "--host", "everywhere")]
    [InlineData("--state is a state; it excludes TRACE", "serve", "x.txt", "--state", "y")]
    [InlineData("no such file", "serve", "nowhere.txt")]
    [InlineData("has neither state-t1.json.gz nor state-t0.json.gz", "serve", "--state", ".")]
    [InlineData("no such file", "export", "nowhere.txt", "-o", "x.html")]
    public async Task WrongUseIsOneLine(string says, params string[] args)
    {
        Outcome outcome = await Tool.Run(args);
        Assert.Equal((2, ""), (outcome.Exit, outcome.Output));
        Assert.Contains(says, outcome.Error, StringComparison.Ordinal);
        Assert.Single(outcome.Error.TrimEnd().Split('\n'));
    }

    [Fact]
    public async Task AnExportIsOneFileThatNeedsNoOther()
    {
        string path = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():N}.html");
        try
        {
            Outcome outcome = await Tool.Run(
                "export", Tool.SampleTrace, "-o", path, "--from", "100", "--to", "2100", "--ram", "1G", "--slabs", "2");
            Assert.Equal((0, ""), (outcome.Exit, outcome.Error));
            Assert.Contains("2000 events", outcome.Output, StringComparison.Ordinal);
            string page = await File.ReadAllTextAsync(path, Cancel);
            Assert.Contains("window.KMEM_EXPORT", page, StringComparison.Ordinal);
            Assert.DoesNotContain("src=\"", page, StringComparison.Ordinal);
            Assert.DoesNotContain("<link rel=\"stylesheet\"", page, StringComparison.Ordinal);
            Assert.DoesNotContain("from './", page, StringComparison.Ordinal);
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public async Task AnImpossibleExportSaysWhy()
    {
        Outcome outcome = await Tool.Run(
            "export", Tool.SampleTrace, "-o", "never.html", "--from", "50", "--to", "20", "--limit", "100", "--ram",
                "64M");
        Assert.Equal(2, outcome.Exit);
        Assert.Contains("the moments 50 to 20 are not within 0 to 100", outcome.Error, StringComparison.Ordinal);
        Assert.False(File.Exists("never.html"));
    }

    private static async Task<Uri> UrlOf(Process process)
    {
        string? line = await process.StandardOutput.ReadLineAsync(Cancel).AsTask().WaitAsync(TimeSpan.FromSeconds(90),
            Cancel);
        Assert.NotNull(line);
        return new Uri(line[line.IndexOf("http://", StringComparison.Ordinal)..]);
    }
}
