using System.Diagnostics;
using System.IO.Compression;
using System.Text;

namespace Kmem.Tool.Tests;

/// <summary>What a command line ended with.</summary>
internal sealed record Outcome(int Exit, string Output, string Error);

/// <summary>
/// Runs <c>kmem</c>: in this process where that shows the same, as a child where the process itself matters.
/// </summary>
internal static class Tool
{
    /// <summary>The root of the repository.</summary>
    internal static string Repository { get; } = FindRepository();

    internal static string SampleTrace { get; } = Path.Combine(Repository, "samples/traces/git/trace.txt.gz");

    internal static string GeometryTsv { get; } = Path.Combine(Repository, "tests/data/live-2cpu/slab-geometry.tsv");

    /// <summary>Runs in this process, where nothing is a terminal.</summary>
    internal static async Task<Outcome> Run(params string[] args)
    {
        var output = new StringWriter();
        var error = new StringWriter();
        int exit = await Program.RunAsync(args, output, error);
        return new Outcome(exit, output.ToString(), error.ToString());
    }

    /// <summary>Runs a child process with these bytes on its standard input.</summary>
    internal static async Task<Outcome> RunChild(byte[] input, params string[] args)
    {
        using Process process = Start(args);
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        Task<string> error = process.StandardError.ReadToEndAsync();
        try
        {
            await process.StandardInput.BaseStream.WriteAsync(input);
            process.StandardInput.Close();
        }
        catch (IOException)
        {
            // It ended without reading its input; the outcome says why.
        }
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        return new Outcome(process.ExitCode, await output, await error);
    }

    /// <summary>Starts a child process, all its streams redirected.</summary>
    internal static Process Start(params string[] args)
    {
        var start = new ProcessStartInfo(Environment.GetEnvironmentVariable("DOTNET_HOST_PATH") ?? "dotnet")
        {
            UseShellExecute = false,
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        start.ArgumentList.Add(Path.Combine(AppContext.BaseDirectory, "Kmem.Tool.dll"));
        foreach (string arg in args) start.ArgumentList.Add(arg);
        return Process.Start(start)!;
    }

    internal static byte[] Gzip(byte[] bytes)
    {
        var packed = new MemoryStream();
        using (var gzip = new GZipStream(packed, CompressionLevel.Fastest)) gzip.Write(bytes);
        return packed.ToArray();
    }

    internal static byte[] Gzip(string text) => Gzip(Encoding.UTF8.GetBytes(text));

    private static string FindRepository()
    {
        DirectoryInfo? at = new(AppContext.BaseDirectory);
        while (at is not null && !File.Exists(Path.Combine(at.FullName, "Kmem.slnx"))) at = at.Parent;
        return at?.FullName ?? throw new DirectoryNotFoundException("Kmem.slnx");
    }
}

/// <summary>A file that is gone after the test.</summary>
internal sealed class TemporaryFile : IDisposable
{
    internal TemporaryFile(byte[] content) => File.WriteAllBytes(Path, content);

    internal TemporaryFile(string content)
        : this(Encoding.UTF8.GetBytes(content))
    {
    }

    internal string Path { get; } = System.IO.Path.Combine(System.IO.Path.GetTempPath(), $"kmem-{Guid.NewGuid():N}");

    public void Dispose() => File.Delete(Path);
}
