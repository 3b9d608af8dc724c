using System.Diagnostics;
using System.Text.RegularExpressions;

namespace Kmem.Explorer.Browser.Tests;

/// <summary><c>kmem serve</c> as a child process, as a user starts it.</summary>
public sealed partial class Server : IDisposable
{
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(60);

    private readonly Process _process;
    private bool _disposed;

    private Server(Process process, string url) => (_process, Url) = (process, url);

    /// <summary>Where the page is; ends in a slash.</summary>
    public string Url { get; }

    /// <summary>A recording of a compiler at work.</summary>
    public static string Recording { get; } = Path.Combine(FindRepository(), "tests/data/traces/gcc/trace.txt.gz");

    /// <summary>Starts it and waits for the line that says where it is.</summary>
    public static async Task<Server> Start(params string[] args)
    {
        var start = new ProcessStartInfo("dotnet")
        {
            RedirectStandardOutput = true,
            RedirectStandardInput = true,
            UseShellExecute = false,
        };
        start.ArgumentList.Add(Path.Combine(AppContext.BaseDirectory, "Kmem.Tool.dll"));
        start.ArgumentList.Add("serve");
        foreach (string arg in args)
            start.ArgumentList.Add(arg);
        Process process = Process.Start(start)!;
        using var patience = new CancellationTokenSource(s_patience);
        while (await process.StandardOutput.ReadLineAsync(patience.Token) is { } line)
        {
            Match match = Address().Match(line);
            if (!match.Success)
                continue;
            _ = process.StandardOutput.ReadToEndAsync(CancellationToken.None);
            return new Server(process, match.Value.TrimEnd('/') + "/");
        }

        throw new InvalidOperationException($"kmem serve {string.Join(' ', args)} ended without saying where it is");
    }

    public void Dispose()
    {
        if (_disposed)
            return;
        _disposed = true;
        if (!_process.HasExited)
            _process.Kill();
        _process.WaitForExit();
        _process.Dispose();
    }

    private static string FindRepository()
    {
        for (DirectoryInfo? at = new(AppContext.BaseDirectory); at != null; at = at.Parent)
        {
            if (File.Exists(Path.Combine(at.FullName, "Kmem.slnx")))
                return at.FullName;
        }

        throw new InvalidOperationException("not inside the repository");
    }

    [GeneratedRegex("http://[^ ]+")]
    private static partial Regex Address();
}
