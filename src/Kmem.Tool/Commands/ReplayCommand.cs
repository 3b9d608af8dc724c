using System.CommandLine;
using Kmem.Tool.Output;
using Kmem.Tracing;

namespace Kmem.Tool.Commands;

/// <summary>
/// <c>kmem replay</c>: replays a recording of a kernel's memory events on a machine of Kmem, and tells what happened.
/// </summary>
internal sealed class ReplayCommand : Command, IHasExamples
{
    /// <summary>The kernel's texts about the machine, by the names of the kernel's files.</summary>
    private static readonly (string Name, Func<ProcFs, string> Text)[] s_procTexts =
    [
        ("slabinfo", proc => proc.SlabInfo()),
        ("buddyinfo", proc => proc.BuddyInfo()),
        ("pagetypeinfo", proc => proc.PageTypeInfo()),
        ("zoneinfo", proc => proc.ZoneInfo()),
        ("meminfo", proc => proc.MemInfo()),
        ("vmstat", proc => proc.VmStat()),
        ("extfrag_index", proc => proc.ExtfragIndex()),
        ("unusable_index", proc => proc.UnusableIndex()),
    ];

    private readonly Argument<string> _trace = new("TRACE")
    {
        Description = "Recording: ftrace text, may be gzip; - is standard input",
    };

    private readonly Option<KernelProfile?> _profile = OptionValues.Profile();

    private readonly Option<int?> _cpus = OptionValues.Number("--cpus", 1, 1024,
        "CPUs of the machine (default: those of the recording)");

    private readonly Option<ulong?> _ram = OptionValues.Size("--ram", 2UL << 20, 4UL << 40,
        "RAM of the machine, such as 512M, 4G, 64GiB (default 16G); costs nothing until it is used");

    private readonly Option<string?> _proc = OptionValues.OneOf("--proc", "FILE",
        $"Print only this text of the kernel about the end: {string.Join(", ", s_procTexts.Select(it => it.Name))}",
        [.. s_procTexts.Select(it => it.Name)]);

    private readonly Option<int?> _top = OptionValues.Number("--top", 0, 1_000_000,
        "Rows of the tables of caches and callers (default 15)");

    private readonly Option<string?> _state = new("--state")
    {
        Description = "Write the machine's state at the end as JSON, in the form of recorded states; gzip if named .gz",
        HelpName = "FILE",
    };

    private readonly Option<bool> _json = OptionValues.Switch("--json", "Print JSON");

    public ReplayCommand()
        : base("replay", "Replays a recording of a kernel's memory events, and tells what happened.")
    {
        Add(_trace);
        Add(_profile);
        Add(_cpus);
        Add(_ram);
        Add(_proc);
        Add(_top);
        Add(_state);
        Add(_json);
        Validators.Add(result =>
        {
            if (result.GetResult(_proc) is not null && result.GetResult(_json) is { Implicit: false })
                result.AddError("--proc and --json exclude each other");
        });
        SetAction((parsed, cancel) => Task.Run(() => Run(parsed, cancel), CancellationToken.None));
    }

    public IReadOnlyList<(string CommandLine, string Does)> Examples { get; } =
    [
        ("replay samples/traces/git/trace.txt.gz", "replays the recording of a git session"),
        ("replay trace.txt --ram 4G --proc buddyinfo", "the free blocks at the end, as /proc/buddyinfo shows them"),
        ("replay - --json < /sys/kernel/tracing/trace", "this machine's own trace; for a script"),
    ];

    private int Run(ParseResult parsed, CancellationToken cancel)
    {
        string path = parsed.GetValue(_trace)!;
        using ReplayResult result = Replay(parsed, path, cancel);

        ReplayReport report = result.Report;
        if (parsed.GetValue(_state) is { } state)
            OutputFile.Write(state, result.Machine.SaveState);
        TextWriter output = parsed.InvocationConfiguration.Output;
        if (parsed.GetValue(_proc) is { } proc)
            output.Write(s_procTexts.First(it => it.Name == proc).Text(result.Machine.Proc));
        else if (parsed.GetValue(_json))
            Json.Write(output, report, JsonTypes.Readable.ReplayReport);
        else
            Screen.Draw(output, console => ReplayText.Write(console, report, parsed.GetValue(_top) ?? 15));
        return FoundSomething(report) ? ExitCode.Found : ExitCode.Fine;
    }

    private static bool FoundSomething(ReplayReport report) =>
        report.Violations > 0 || report.FailedAllocs > 0 || report.BytesAllocEqual != report.BytesAllocChecked;

    private ReplayResult Replay(ParseResult parsed, string path, CancellationToken cancel)
    {
        var defaults = new ReplayOptions();
        ReplayOptions options = defaults with
        {
            Profile = parsed.GetValue(_profile) ?? defaults.Profile,
            Cpus = parsed.GetValue(_cpus),
            RamBytes = parsed.GetValue(_ram) ?? defaults.RamBytes,
        };

        return ReplayInput.Run(parsed, path, options, cancel);
    }
}
