using System.Diagnostics;
using System.Text.Json;
using Kmem.Tool.Output;

namespace Kmem.Tool.Bench;

/// <summary>Runs this program again, to measure in a process that nothing else has used.</summary>
internal static class ChildProcess
{
    /// <summary>The hidden command that answers with JSON.</summary>
    internal const string Command = "bench-child";

    /// <summary>Measures in a child.</summary>
    /// <param name="workload">What.</param>
    /// <param name="allocators">Who.</param>
    /// <param name="effort">How long.</param>
    /// <param name="preload">A library to be there from the start; null for none.</param>
    /// <param name="cancel">Ends the child.</param>
    /// <returns>The results of those that are installed.</returns>
    internal static async Task<IReadOnlyList<CaseResult>> MeasureAsync(
        Workload workload, IEnumerable<string> allocators, Effort effort, string? preload, CancellationToken cancel)
    {
        ProcessStartInfo start = Self();
        start.ArgumentList.Add(Command);
        start.ArgumentList.Add(JsonSerializer.Serialize(
            new ChildRequest(workload.Name, [.. allocators], effort), JsonTypes.Readable.ChildRequest));
        // As programs run that do not choose otherwise; this tool itself has profiling of its methods switched off.
        start.Environment["DOTNET_TieredPGO"] = "1";
        start.Environment["DOTNET_gcServer"] = "0";
        // Threads are objects, too: the heap of the program must not grow by as much as is looked for (hexadecimal).
        if (workload.OwnProcess) start.Environment["DOTNET_GCgen0size"] = "400000";
        if (preload is not null) start.Environment["LD_PRELOAD"] = preload;

        (int exit, string output, string error) = await RunAsync(start, cancel);
        if (exit != 0)
            throw new ToolException($"the process that measures {workload.Name} ended with {exit}: {Reason(error)}");
        return JsonSerializer.Deserialize(output, JsonTypes.Readable.CaseResultArray)!;
    }

    /// <summary>Runs a program to its end.</summary>
    internal static async Task<(int Exit, string Output, string Error)> RunAsync(
        ProcessStartInfo start, CancellationToken cancel)
    {
        start.RedirectStandardInput = true;
        start.RedirectStandardOutput = true;
        start.RedirectStandardError = true;
        using Process process = Process.Start(start)!;
        process.StandardInput.Close();
        try
        {
            Task<string> output = process.StandardOutput.ReadToEndAsync(cancel);
            Task<string> error = process.StandardError.ReadToEndAsync(cancel);
            await process.WaitForExitAsync(cancel);
            return (process.ExitCode, await output, await error);
        }
        catch (OperationCanceledException)
        {
            process.Kill();
            throw;
        }
    }

    /// <summary>The line that says most: what .NET ended with, or the last, where linkers write the reason.</summary>
    internal static string Reason(string text)
    {
        string[] lines = text.Split('\n', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries);
        return lines.FirstOrDefault(it => it.StartsWith("Unhandled exception", StringComparison.Ordinal))
            ?? lines.LastOrDefault() ?? "it said nothing";
    }

    // The executable itself, or the host of .NET with the assembly, as when a test or "dotnet run" is the process.
    private static ProcessStartInfo Self()
    {
        string process = Environment.ProcessPath ?? "dotnet";
        string assembly = Path.Combine(AppContext.BaseDirectory, "Kmem.Tool.dll");
        string name = Path.GetFileName(process); // "Kmem.Tool.Tests" has no extension
        if (name.EndsWith(".exe", StringComparison.OrdinalIgnoreCase)) name = name[..^4];
        bool own = name is "kmem" or "Kmem.Tool" || !File.Exists(assembly);
        if (own) return new ProcessStartInfo(process);

        bool isHost = name == "dotnet";
        string host = isHost ? process : Environment.GetEnvironmentVariable("DOTNET_HOST_PATH") ?? "dotnet";
        return new ProcessStartInfo(host) { ArgumentList = { assembly } };
    }
}

/// <summary>What a child is asked for.</summary>
internal sealed record ChildRequest(string Workload, string[] Allocators, Effort Effort);
