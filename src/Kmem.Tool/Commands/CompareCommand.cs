using System.CommandLine;
using Kmem.Tool.Output;
using Kmem.Tracing;

namespace Kmem.Tool.Commands;

/// <summary>
/// <c>kmem compare</c>: replays one recording on several machines, and tells what another setting would have done.
/// </summary>
internal sealed class CompareCommand : Command, IHasExamples
{
    private const int MaxSettings = 7;

    /// <summary>Events between two looks at the machine: peaks may be missed by what so many events do.</summary>
    private const int LookEvery = 100;

    private readonly Argument<string> _trace = new("TRACE") { Description = "Recording: ftrace text, may be gzip" };

    private readonly Option<ReplaySettings[]> _with = new("--with")
    {
        Description = "A machine to compare the recording's own with, as NAME=VALUE,...; may be given "
            + $"{MaxSettings} times. Names: {ReplaySettings.Names}",
        HelpName = "SETTINGS",
        Required = true,
        CustomParser = result =>
        {
            var settings = new List<ReplaySettings>();
            foreach (var token in result.Tokens)
            {
                if (ReplaySettings.Parse(token.Value, out string? wrong) is { } one)
                    settings.Add(one);
                else
                    result.AddError($"--with is '{token.Value}': {wrong}");
            }

            if (settings.Count > MaxSettings)
                result.AddError($"--with is given {settings.Count} times, expected at most {MaxSettings}");
            return [.. settings];
        },
    };

    private readonly Option<bool> _json = OptionValues.Switch("--json", "Print JSON");

    public CompareCommand()
        : base("compare", "Replays a recording on several machines, and tells what another setting would have done.")
    {
        Add(_trace);
        Add(_with);
        Add(_json);
        SetAction((parsed, cancel) => Task.Run(() => Run(parsed, cancel), CancellationToken.None));
    }

    public IReadOnlyList<(string CommandLine, string Does)> Examples { get; } =
    [
        ("compare samples/traces/git/trace.txt.gz --with ram=64M --with cpus=8,slab_debug=FZP",
            "a small machine, and one with more CPUs and slab debugging"),
        ("compare trace.txt --with percpu_pagelist_high_fraction=8 --with min_free_kbytes=65536,cpus=1 --json",
            "for a script"),
    ];

    private int Run(ParseResult parsed, CancellationToken cancel)
    {
        string path = parsed.GetValue(_trace)!;
        if (path == "-")
            throw new ToolException(
                "TRACE is '-', but a recording that is compared is read several times: expected a file");

        var outcomes = new List<ComparedJson>();
        foreach (ReplaySettings settings in (ReplaySettings[])[ReplaySettings.Recorded, .. parsed.GetValue(_with)!])
        {
            var meter = new WorkMeter();
            ReplayOptions options = settings.Options with { Sample = meter.Look, SampleEvery = LookEvery };
            using ReplayResult result = ReplayInput.Run(parsed, path, options, cancel);
            outcomes.Add(ComparedJson.Of(settings.Text, result.Report, meter.Numbers));
        }

        var json = new CompareJson(InputFile.NameOf(path), outcomes);
        TextWriter output = parsed.InvocationConfiguration.Output;
        if (parsed.GetValue(_json))
            Json.Write(output, json, JsonTypes.Readable.CompareJson);
        else
            Screen.Draw(output, console => CompareText.Write(console, json));
        return outcomes.Any(it => it.Violations > 0 || it.FailedAllocs > 0) ? ExitCode.Found : ExitCode.Fine;
    }
}
