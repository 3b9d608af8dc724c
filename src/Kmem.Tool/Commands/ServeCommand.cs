using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Security.Cryptography;
using Kmem.Tool.Output;
using Kmem.Tracing;

namespace Kmem.Tool.Commands;

/// <summary><c>kmem serve</c>: the explorer in the browser, for a recording, a recorded state, or a machine at
/// work.</summary>
internal sealed class ServeCommand : Command, IHasExamples
{
    private const int MostEvents = 50_000_000;
    private const int TokenBytes = 16;

    private readonly Argument<string?> _trace = new("TRACE")
    {
        Description = "Recording to show, ftrace text, may be gzip; a machine at work if not given",
        Arity = ArgumentArity.ZeroOrOne,
    };

    private readonly Option<string?> _state = new("--state")
    {
        Description = "Show a recorded state of a kernel instead: a folder with state-t1.json.gz, or such a file",
        HelpName = "PATH",
    };

    private readonly Option<int?> _port =
        OptionValues.Number("--port", 0, IPEndPoint.MaxPort, "TCP port; 0 for any (default 7070)");

    private readonly Option<string?> _host = new("--host")
    {
        Description = "Address to listen on (default 127.0.0.1); another than loopback asks visitors for a token",
        HelpName = "ADDRESS",
    };

    private readonly RecordingOptions _recording = new();

    public ServeCommand()
        : base("serve", "Shows memory in the browser: a recording at any moment, or a machine at work.")
    {
        Add(_trace);
        Add(_state);
        Add(_port);
        Add(_host);
        _recording.AddTo(this);
        Validators.Add(result =>
        {
            if (result.GetResult(_state) is not null && result.GetResult(_trace) is { Tokens.Count: > 0 })
                result.AddError("--state is a state; it excludes TRACE");
            if (result.GetResult(_host) is { Tokens.Count: > 0 } host
                && !IPAddress.TryParse(host.Tokens[^1].Value, out _))
                result.AddError($"--host is '{host.Tokens[^1].Value}', expected an IP address");
        });
        SetAction((parsed, cancel) => RunAsync(parsed, cancel));
    }

    public IReadOnlyList<(string CommandLine, string Does)> Examples { get; } =
    [
        ("serve samples/traces/git/trace.txt.gz", "the recording at any moment, forwards and backwards"),
        ("serve --port 0", "a machine at work, on any free port"),
        ("serve --state tests/data/boot-1cpu/02-vm", "a recorded state of a kernel"),
    ];

    private async Task<int> RunAsync(ParseResult parsed, CancellationToken cancel)
    {
        const int DefaultPort = 7070;
        IPAddress host = parsed.GetValue(_host) is { } text ? IPAddress.Parse(text) : IPAddress.Loopback;
        var options = new ExplorerOptions
        {
            Port = parsed.GetValue(_port) ?? DefaultPort,
            Host = host,
            Token = IPAddress.IsLoopback(host)
                ? null : Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(TokenBytes)),
        };
        ExplorerSource source = await Task.Run(() => Open(parsed, cancel), cancel);
        KmemExplorer explorer;
        try
        {
            explorer = KmemExplorer.Start(source, options);
        }
        catch (Exception e) when (e is IOException or SocketException)
        {
            source.Dispose();
            throw new ToolException(
                $"cannot listen on {options.Host} port {options.Port}: {(e.InnerException ?? e).Message} "
                + "(--port 0 takes a free one)", e);
        }

        await using (explorer)
        {
            TextWriter output = parsed.InvocationConfiguration.Output;
            await output.WriteLineAsync($"{source.Name} is at {explorer.Url}");
            await output.WriteLineAsync("Ctrl-C ends.");
            await output.FlushAsync(CancellationToken.None);
            try
            {
                await Task.Delay(Timeout.Infinite, cancel);
            }
            catch (OperationCanceledException)
            {
                // Ctrl-C is how this ends.
            }
        }

        return ExitCode.Fine;
    }

    private ExplorerSource Open(ParseResult parsed, CancellationToken cancel)
    {
        if (parsed.GetValue(_trace) is { } trace)
            return _recording.Read(parsed, trace, MostEvents, cancel);
        if (parsed.GetValue(_state) is { } state)
            return OpenState(state);

        var demo = new DemoMachine(_recording.RamOf(parsed), _recording.CpusOf(parsed), _recording.ProfileOf(parsed));
        return new MachineSource(demo.Machine, isAtWork: true, demo) { Name = "a machine at work" };
    }

    /// <summary>A state with the page tables of that moment.</summary>
    private static MachineSource OpenKernel(string path)
    {
        try
        {
            RecordedKernel kernel = RecordedKernel.Read(path);
            return new MachineSource(kernel.Machine, isAtWork: false, kernel)
            {
                Name = Path.GetFileName(Path.TrimEndingDirectorySeparator(path)),
                RecordedTables = kernel.Walk,
            };
        }
        catch (Exception e) when (e is IOException or InvalidDataException or UnauthorizedAccessException)
        {
            throw new ToolException($"{path}: not a recorded state: {e.Message}", e);
        }
    }

    private static MachineSource OpenState(string path)
    {
        if (Directory.Exists(path) && Directory.EnumerateFiles(path, "pagetables-t?.tsv.gz").Any())
            return OpenKernel(path);

        string file = !Directory.Exists(path) ? path
            : new[] { "state-t1.json.gz", "state-t0.json.gz" }.Select(name => Path.Combine(path, name)).FirstOrDefault(
                File.Exists)
                ?? throw new ToolException($"{path}: has neither state-t1.json.gz nor state-t0.json.gz");
        try
        {
            Machine machine = Machine.LoadState(file, new MachineOptions { Profile = KernelProfile.Linux618 });
            return new MachineSource(machine, isAtWork: false, machine) { Name = Path.GetFileName(path) };
        }
        catch (Exception e) when (e is IOException or InvalidDataException or UnauthorizedAccessException)
        {
            throw new ToolException($"{path}: not a recorded state: {e.Message}", e);
        }
    }
}

/// <summary>Options of commands that read a recording into a time line.</summary>
internal sealed class RecordingOptions
{
    private readonly Option<string?> _profile = OptionValues.OneOf(
        "--profile", "NAME", "Whose rules the machine follows (default linux-6.18)",
            [.. KernelProfile.All.Select(it => it.Name)]);

    private readonly Option<int?> _cpus =
        OptionValues.Number("--cpus", 1, 1024, "CPUs of the machine (default: the recording's)");

    private readonly Option<ulong?> _ram =
        OptionValues.Size("--ram", 16 << 20, 1UL << 40, "Memory of the machine (default 16 GiB)");

    private readonly Option<int?> _limit = OptionValues.Number("--limit", 1, 50_000_000, "Read at most so many events");

    public void AddTo(Command command)
    {
        command.Add(_profile);
        command.Add(_cpus);
        command.Add(_ram);
        command.Add(_limit);
    }

    public ulong? RamOf(ParseResult parsed) => parsed.GetValue(_ram);

    public int? CpusOf(ParseResult parsed) => parsed.GetValue(_cpus);

    public KernelProfile? ProfileOf(ParseResult parsed) => parsed.GetValue(_profile) is { } name
        ? KernelProfile.Find(name) : null;

    /// <summary>Reads a recording, with progress on a terminal.</summary>
    public TraceSource Read(ParseResult parsed, string path, int most, CancellationToken cancel)
    {
        var defaults = new ReplayOptions();
        ReplayOptions replay = defaults with
        {
            Profile = ProfileOf(parsed) ?? defaults.Profile,
            Cpus = CpusOf(parsed),
            RamBytes = RamOf(parsed) ?? defaults.RamBytes,
        };
        string name = InputFile.NameOf(path);
        Stream stream = InputFile.Open(path);
        long? size = stream.CanSeek ? stream.Length : null;
        FtraceReader reader = FtraceReader.Open(stream, name);
        try
        {
            TraceSource source = ReplayProgress.Show(parsed.InvocationConfiguration.Error, name, reader, size, cancel,
                progress =>
                TraceSource.Read(reader, replay, parsed.GetValue(_limit) ?? most, Path.GetFileName(name), progress));
            if (source.IsCut && parsed.GetValue(_limit) is null)
            {
                parsed.InvocationConfiguration.Error.WriteLine(string.Create(
                    CultureInfo.InvariantCulture, $"kmem: {name}: only the first {source.Now} events are shown"));
            }

            return source;
        }
        catch (Exception e) when (e is TraceFormatException or PlatformException or IOException)
        {
            reader.Dispose();
            throw new ToolException(
                e is TraceFormatException ? e.Message
                : e is PlatformException
                    ? $"a machine of {ByteSize.Format(replay.RamBytes)} cannot be built here: {e.Message}"
                : $"{name}: cannot be read any further: {e.Message}",
                e);
        }
    }
}
