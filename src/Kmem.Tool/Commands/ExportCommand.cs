using System.CommandLine;
using System.Globalization;

namespace Kmem.Tool.Commands;

/// <summary><c>kmem export</c>: a recording as one HTML file that plays without a server.</summary>
internal sealed class ExportCommand : Command, IHasExamples
{
    private const int MostEvents = 8_000_000;

    private readonly Argument<string> _trace = new("TRACE") { Description = "Recording, ftrace text, may be gzip" };

    private readonly Option<string> _output = new("--output", "-o")
    {
        Description = "The file to write",
        HelpName = "FILE.html",
        Required = true,
    };

    private readonly Option<int?> _from =
        OptionValues.Number("--from", 0, MostEvents, "First moment: so many events have happened (default 0)");

    private readonly Option<int?> _to = OptionValues.Number("--to", 0, MostEvents, "Last moment (default: the end)");

    private readonly Option<int?> _deep =
        OptionValues.Number("--slabs", 2, 1000, "Moments with lists in order: of CPUs, slabs, the free tree (default 25)");

    private readonly RecordingOptions _recording = new();

    public ExportCommand()
        : base("export", "Writes the explorer with a recording into one HTML file that plays without a server.")
    {
        Add(_trace);
        Add(_output);
        Add(_from);
        Add(_to);
        Add(_deep);
        _recording.AddTo(this);
        SetAction((parsed, cancel) => Task.Run(() => Run(parsed, cancel), cancel));
    }

    public IReadOnlyList<(string CommandLine, string Does)> Examples { get; } =
    [
        ("export samples/traces/git/trace.txt.gz -o git.html", "the whole recording"),
        ("export samples/traces/git/trace.txt.gz -o part.html --from 1000 --to 3000", "2000 events of it"),
    ];

    private int Run(ParseResult parsed, CancellationToken cancel)
    {
        string path = parsed.GetValue(_output)!;
        using TraceSource source = _recording.Read(parsed, parsed.GetValue(_trace)!, MostEvents, cancel);
        byte[] page;
        try
        {
            page = ExplorerExport.Write(source, new ExportOptions
            {
                From = parsed.GetValue(_from) ?? 0,
                To = parsed.GetValue(_to),
                DeepMoments = parsed.GetValue(_deep) ?? new ExportOptions().DeepMoments,
            });
        }
        catch (QueryException e)
        {
            throw new ToolException(e.Message, e);
        }

        OutputFile.Write(path, it => File.WriteAllBytes(it, page));
        int events = (parsed.GetValue(_to) ?? source.Now) - (parsed.GetValue(_from) ?? 0);
        parsed.InvocationConfiguration.Output.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
                $"{path}: {page.Length >> 10} KiB, {events} events"));
        return ExitCode.Fine;
    }
}
