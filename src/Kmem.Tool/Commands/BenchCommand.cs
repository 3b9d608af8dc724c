using System.CommandLine;
using System.CommandLine.Parsing;
using System.Text.Json;
using Kmem.Tool.Bench;
using Kmem.Tool.Output;
using Spectre.Console;

namespace Kmem.Tool.Commands;

/// <summary>
/// <c>kmem bench</c>: Kmem beside the other allocators of this machine, on the workloads of the field, with a goal for
/// each.
/// </summary>
internal sealed class BenchCommand : Command, IHasExamples
{
    private const double DefaultSeconds = 1;
    private const double QuickSeconds = 0.02;

    private readonly Option<string[]> _only = Words("--only", "Only these workloads", Workloads.Names);

    private readonly Option<string[]> _against = Words(
        "--against", "Only these peers (default: all that are installed)", Workloads.Peers);

    private readonly Option<string[]> _profiles = Words(
        "--profile", "Measure these profiles, too", KernelProfile.All.Select(profile => profile.Name));

    private readonly Option<double?> _seconds = OptionValues.Decimal("--seconds", 0.001, 3600,
        "How long each allocator is measured on each workload (default 1)");

    private readonly Option<bool> _quick = OptionValues.Switch("--quick",
        "Only see whether it works: short rounds and small working sets, which say little");

    private readonly Option<bool> _noC = OptionValues.Switch("--no-c", "Do not compile and run the same loops in C");

    private readonly Option<bool> _strict = OptionValues.Switch("--strict", "Exit with 1 if a goal is missed");

    private readonly Option<bool> _json = OptionValues.Switch("--json", "Print JSON");

    public BenchCommand()
        : base("bench", "Measures Kmem beside the other allocators of this machine.")
    {
        Add(_only);
        Add(_against);
        Add(_profiles);
        Add(_seconds);
        Add(_quick);
        Add(_noC);
        Add(_strict);
        Add(_json);
        SetAction((parsed, cancel) => RunAsync(parsed, cancel));
    }

    public IReadOnlyList<(string CommandLine, string Does)> Examples { get; } =
    [
        ("bench", "all workloads beside all peers that are installed; takes some minutes"),
        ("bench --only pair64 rsize --against mimalloc tcmalloc", "two workloads, two peers"),
        ("bench --only pair64 rand100 --profile hardened linux-6.18", "what other profiles cost"),
        ("bench --json > bench.json", "for a script: ns by allocator, ratio, goal, reached"),
    ];

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancel)
    {
        BenchPlan plan = PlanOf(parsed);
        BenchJson json = BenchJson.Of(await RunAsync(plan, parsed.InvocationConfiguration.Error, cancel));
        TextWriter output = parsed.InvocationConfiguration.Output;
        if (parsed.GetValue(_json)) Json.Write(output, json, JsonTypes.Readable.BenchJson);
        else Screen.Draw(output, console => BenchText.Write(console, json));

        bool failed = json.Workloads.Any(it => it.Errors.Count > 0);
        bool missed = parsed.GetValue(_strict) && json.Workloads.Any(it => it.Reached == false);
        return failed || missed ? ExitCode.Found : ExitCode.Fine;
    }

    private BenchPlan PlanOf(ParseResult parsed)
    {
        bool quick = parsed.GetValue(_quick);
        double seconds = parsed.GetValue(_seconds) ?? (quick ? QuickSeconds : DefaultSeconds);
        string[] only = parsed.GetValue(_only) ?? [];
        string[] against = parsed.GetValue(_against) ?? [];
        return new BenchPlan(
            [.. Workloads.All.Where(it => only.Length == 0 || only.Contains(it.Name, StringComparer.Ordinal))],
            against.Length == 0 ? [.. Workloads.Peers] : against,
            new Effort(seconds, WarmUps: quick ? 2 : 6, Small: quick),
            Passes: quick ? 1 : 2,
            UseC: !parsed.GetValue(_noC))
        {
            Profiles = [.. (parsed.GetValue(_profiles) ?? []).Select(name => KernelProfile.Find(name)!)],
        };
    }

    private static async Task<BenchResult> RunAsync(BenchPlan plan, TextWriter error, CancellationToken cancel)
    {
        if (!Screen.IsTerminal(error)) return await BenchRun.RunAsync(plan, (_, _) => { }, cancel);

        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(error) });
        return await new Progress(console)
            .AutoClear(true)
            .Columns(
                new TaskDescriptionColumn(), new ProgressBarColumn(), new PercentageColumn(), new RemainingTimeColumn())
            .StartAsync(async context =>
            {
                ProgressTask task = context.AddTask("Measuring", maxValue: 1);
                return await BenchRun.RunAsync(
                    plan,
                    (done, what) =>
                    {
                        task.Value = done;
                        task.Description = $"Measuring {what}";
                    },
                    cancel);
            });
    }

    private static Option<string[]> Words(string name, string help, IEnumerable<string> known)
    {
        string[] words = [.. known];
        var option = new Option<string[]>(name)
        {
            Description = $"{help}: {string.Join(", ", words)}",
            HelpName = "NAME",
            AllowMultipleArgumentsPerToken = true,
        };
        option.CompletionSources.Add(words);
        option.Validators.Add(result =>
        {
            foreach (Token token in result.Tokens)
            {
                if (!words.Contains(token.Value, StringComparer.Ordinal))
                    result.AddError($"{name} is '{token.Value}', expected {string.Join(", ", words)}");
            }
        });
        return option;
    }
}

/// <summary>The hidden command by which <c>kmem bench</c> measures in a process of its own.</summary>
internal sealed class BenchChildCommand : Command
{
    private readonly Argument<string> _request = new("REQUEST");

    public BenchChildCommand()
        : base(ChildProcess.Command, "Measures for 'kmem bench'.")
    {
        Hidden = true;
        Add(_request);
        SetAction(Run);
    }

    private int Run(ParseResult parsed)
    {
        ChildRequest request;
        try
        {
            request = JsonSerializer.Deserialize(parsed.GetValue(_request)!, JsonTypes.Readable.ChildRequest)!;
        }
        catch (JsonException e)
        {
            throw new ToolException($"{ChildProcess.Command} is for 'kmem bench' only: {e.Message}", e);
        }

        CaseResult[] results = [.. Measurer.Run(Workloads.Find(request.Workload), request.Allocators, request.Effort)];
        Json.Write(parsed.InvocationConfiguration.Output, results, JsonTypes.Readable.CaseResultArray);
        return ExitCode.Fine;
    }
}
