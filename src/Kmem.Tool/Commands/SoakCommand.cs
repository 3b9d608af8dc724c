using System.CommandLine;
using System.Globalization;
using Kmem.Tool.Output;
using Kmem.Tool.Soak;
using Spectre.Console;

namespace Kmem.Tool.Commands;

/// <summary>
/// <c>kmem soak</c>: threads use a machine hard for minutes; what is left, broken or wrong in the end is told.
/// </summary>
internal sealed class SoakCommand : Command, IHasExamples
{
    private readonly Option<int?> _seconds = OptionValues.Number("--seconds", 1, 7 * 86400, "How long (default 120)");

    private readonly Option<int?> _threads = OptionValues.Number(
        "--threads", 1, 512, "Threads at work at a time (default twice the processors)");

    private readonly Option<ulong?> _ram = OptionValues.Size("--ram", 64 << 20, 1UL << 40, "Memory of the machine (default 1 GiB)");

    private readonly Option<string?> _profile = OptionValues.OneOf(
        "--profile", "NAME", $"Whose rules the machine follows (default {KernelProfile.Native.Name})",
        [.. KernelProfile.All.Select(profile => profile.Name)]);

    private readonly Option<int?> _seed = OptionValues.Number("--seed", 0, int.MaxValue, "Of the random choices (default 1)");

    private readonly Option<bool> _json = OptionValues.Switch("--json", "Print JSON");

    public SoakCommand()
        : base("soak", "Uses a machine hard with many threads and checks that nothing is lost.")
    {
        Add(_seconds);
        Add(_threads);
        Add(_ram);
        Add(_profile);
        Add(_seed);
        Add(_json);
        SetAction((parsed, cancel) => Task.Run(() => Run(parsed, cancel), CancellationToken.None));
    }

    public IReadOnlyList<(string CommandLine, string Does)> Examples { get; } =
    [
        ("soak", "two minutes; exit 1 if anything is left, broken or wrong"),
        ("soak --seconds 3600 --threads 16 --profile linux-6.18", "an hour by the kernel's rules"),
    ];

    private int Run(ParseResult parsed, CancellationToken cancel)
    {
        var options = new SoakOptions(
            parsed.GetValue(_seconds) ?? 120,
            parsed.GetValue(_threads) ?? (2 * Environment.ProcessorCount),
            parsed.GetValue(_ram) ?? 1UL << 30,
            KernelProfile.Find(parsed.GetValue(_profile) ?? KernelProfile.Native.Name)!,
            parsed.GetValue(_seed) ?? 1);
        SoakResult result;
        try
        {
            using var run = new SoakRun(options);
            result = Watch(run, options, parsed.InvocationConfiguration.Error, cancel);
        }
        catch (Exception e) when (e is PlatformException or OutOfMemoryException)
        {
            throw new ToolException(
                $"a machine of {ByteSize.Format(options.RamBytes)} cannot be built here: {e.Message}", e);
        }

        if (parsed.GetValue(_json))
            Json.Write(parsed.InvocationConfiguration.Output, result, JsonTypes.Readable.SoakResult);
        else
            Screen.Draw(parsed.InvocationConfiguration.Output, console => Draw(console, result));
        return result.Passed ? ExitCode.Fine : ExitCode.Found;
    }

    /// <summary>Shows on a terminal how far it is; gone when it is done.</summary>
    private static SoakResult Watch(SoakRun run, SoakOptions options, TextWriter error, CancellationToken cancel)
    {
        if (!Screen.IsTerminal(error))
            return run.Run(cancel);

        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(error) });
        return new Progress(console)
            .AutoClear(true)
            .Columns(new TaskDescriptionColumn(), new ProgressBarColumn(), new RemainingTimeColumn())
            .Start(context =>
            {
                ProgressTask task = context.AddTask("Soaking", maxValue: options.Seconds);
                using var look = new Timer(
                    _ =>
                    {
                        task.Value = Math.Min(options.Seconds, task.ElapsedTime?.TotalSeconds ?? 0);
                        task.Description = string.Create(CultureInfo.InvariantCulture, $"Soaking, {run.Operations:N0} operations");
                    },
                    null, 100, 100);
                return run.Run(cancel);
            });
    }

    private static void Draw(IAnsiConsole console, SoakResult r)
    {
        console.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"{r.Operations:N0} operations of {r.Threads} threads in {r.Seconds:N0} s on {r.Profile}, seed {r.Seed}; "
            + $"{r.ThreadsStarted:N0} threads came and went"));
        console.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"{r.BytesChecked:N0} bytes verified, {r.RemoteFrees:N0} blocks freed by another thread, {r.Refused:N0} requests refused"));
        console.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"resident: {Mib(r.ResidentStart)} at the start, {Mib(r.ResidentPeak)} at most, {Mib(r.ResidentEnd)} in the end"));
        console.WriteLine($"{r.LeftObjects} objects left, {r.BrokenRules.Count} rules broken");
        foreach (string rule in r.BrokenRules.Take(10))
            console.WriteLine("  " + rule);
        if (r.Failure != null)
            console.WriteLine("failed: " + r.Failure);
        console.WriteLine(r.Passed ? "passed" : "not passed");
    }

    private static string Mib(ulong bytes) => string.Create(CultureInfo.InvariantCulture, $"{bytes / 1048576.0:N1} MiB");
}
