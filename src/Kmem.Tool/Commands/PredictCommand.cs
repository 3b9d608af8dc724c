using System.CommandLine;
using Kmem.Tool.Output;
using Kmem.Tracing;

namespace Kmem.Tool.Commands;

/// <summary><c>kmem predict</c>: what a real kernel would answer, compared with what it answered.</summary>
internal sealed class PredictCommand : Command, IHasExamples
{
    public PredictCommand()
        : base("predict", "Predicts a real kernel's answers, and compares them with the recorded ones.")
    {
        Add(new PredictStateCommand());
        Add(new PredictVmapCommand());
    }

    public IReadOnlyList<(string CommandLine, string Does)> Examples { get; } =
    [
        ("predict state tests/data/boot-1cpu/00-slab", "every page and object address of a recorded phase"),
        ("predict vmap --areas vmallocinfo.txt.gz --trace trace.txt.gz", "every address that vmalloc chose"),
    ];
}

/// <summary>
/// <c>kmem predict state</c>: from a complete state, every result of what followed, and the state at the end.
/// </summary>
internal sealed class PredictStateCommand : Command
{
    private readonly Argument<string> _folder = new("DIR")
    {
        Description = "Folder with state-t0.json.gz, events.tsv.gz and state-t1.json.gz",
    };

    private readonly Option<string?> _writeState = new("--write-state")
    {
        Description = "Write the machine's state after the last event, in the form of the recorded ones; gzip if named .gz",
        HelpName = "FILE",
    };

    private readonly Option<bool> _json = OptionValues.Switch("--json", "Print JSON");

    public PredictStateCommand()
        : base("state", "Replays the requests that followed a complete state of a real kernel.")
    {
        Add(_folder);
        Add(_writeState);
        Add(_json);
        SetAction((parsed, cancel) => Task.Run(() => Run(parsed), cancel));
    }

    private int Run(ParseResult parsed)
    {
        string folder = parsed.GetValue(_folder)!;
        StatePrediction prediction;
        try
        {
            prediction = StatePrediction.Run(folder);
        }
        catch (Exception e) when (e is IOException or InvalidDataException or UnauthorizedAccessException
            or PlatformException or OutOfMemoryException)
        {
            throw new ToolException($"{folder}: not a recorded phase: {e.Message}", e);
        }

        if (parsed.GetValue(_writeState) is { } path)
            OutputFile.Write(path, prediction.SaveEndState);

        TextWriter output = parsed.InvocationConfiguration.Output;
        if (parsed.GetValue(_json))
            Json.Write(output, StatePredictionJson.Of(prediction), JsonTypes.Readable.StatePredictionJson);
        else
            Screen.Draw(output, console => PredictionText.Write(console, prediction));
        return prediction.IsExact ? ExitCode.Fine : ExitCode.Found;
    }
}

/// <summary><c>kmem predict vmap</c>: each address that the kernel chose for an area.</summary>
internal sealed class PredictVmapCommand : Command
{
    private readonly Option<string> _areas = new("--areas")
    {
        Description = "/proc/vmallocinfo with real addresses, read between the markers SNAP_BEGIN and SNAP_END of the trace",
        HelpName = "FILE",
        Required = true,
    };

    private readonly Option<string> _trace = new("--trace")
    {
        Description = "ftrace text with the events of vmalloc:*, may be gzip",
        HelpName = "FILE",
        Required = true,
    };

    private readonly Option<bool> _json = OptionValues.Switch("--json", "Print JSON");

    public PredictVmapCommand()
        : base("vmap", "Predicts the address of every vmalloc area of a recording.")
    {
        Add(_areas);
        Add(_trace);
        Add(_json);
        SetAction((parsed, cancel) => Task.Run(() => Run(parsed), cancel));
    }

    private int Run(ParseResult parsed)
    {
        string areas = parsed.GetValue(_areas)!;
        string trace = parsed.GetValue(_trace)!;
        VmapPredictionResult result;
        try
        {
            using FtraceReader reader = FtraceReader.Open(InputFile.Open(trace), InputFile.NameOf(trace));
            result = VmapPrediction.Run(new StringReader(InputFile.ReadText(areas)), reader);
        }
        catch (Exception e) when (e is TraceFormatException or IOException)
        {
            throw new ToolException(e.Message, e);
        }
        catch (Exception e) when (e is InvalidDataException or FormatException)
        {
            throw new ToolException($"{InputFile.NameOf(areas)}: {e.Message}", e);
        }

        TextWriter output = parsed.InvocationConfiguration.Output;
        if (parsed.GetValue(_json))
            Json.Write(output, result, JsonTypes.Readable.VmapPredictionResult);
        else
            Screen.Draw(output, console => PredictionText.Write(console, result));
        return result.Exact == result.Allocs ? ExitCode.Fine : ExitCode.Found;
    }
}
