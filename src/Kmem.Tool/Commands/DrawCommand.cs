using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using Kmem.Tool.Drawing;
using Kmem.Tracing;

namespace Kmem.Tool.Commands;

/// <summary><c>kmem draw</c>: SVG pictures of a machine, after a small program, a recording, or in a recorded
/// state.</summary>
internal sealed class DrawCommand : Command, IHasExamples
{
    private const string DefaultScript = "kmalloc 100 x 20; free 3-19/2; vmalloc 64K";
    private const ulong DefaultRam = 256UL << 20;
    private const int EventsPerSample = 200;

    /// <summary>Events looked through for an object that is free at the moment drawn.</summary>
    private const long Remembered = 1 << 22;

    private static readonly string[] s_subjects = ["buddy", "slab", "walk", "areas", "lanes", "fragmentation"];

    private readonly Argument<string> _what = new("WHAT")
    {
        Description = "buddy: frames and free blocks; slab: objects and free lists; walk: through the page tables;"
            + " areas: the vmalloc space and its tree; lanes: what each CPU keeps; fragmentation: over time",
        CustomParser = ParseWhat,
    };

    private readonly Argument<string?> _trace = new("TRACE")
    {
        Description = "Recording to replay (ftrace text, may be gzip); without one, what --do says is done",
        Arity = ArgumentArity.ZeroOrOne,
    };

    private readonly Option<string?> _script = new("--do")
    {
        Description = $"What the machine does before: steps with semicolons between them (default '{DefaultScript}')",
        HelpName = "STEPS",
    };

    private readonly Option<string?> _output = new("--output", "-o")
    {
        Description = "The file to write; - is standard output",
        HelpName = "FILE",
        Required = true,
    };

    private readonly Option<string?> _address = new("--address")
    {
        Description = "What to draw: an address, or #N for the N-th allocation of --do (default: the newest live one)",
        HelpName = "ADDRESS",
    };

    private readonly Option<string?> _cache = new("--cache")
    {
        Description = "For lanes: the cache (default: that of the newest kmalloc)",
        HelpName = "NAME",
    };

    private readonly Option<int?> _blocks = OptionValues.Number("--blocks", 1, 8,
        "For buddy: pageblocks drawn (default 1)");

    private readonly Option<int?> _at = OptionValues.Number("--at", 1, int.MaxValue,
        "After so many events of the recording");

    private readonly Option<string?> _state = new("--state")
    {
        Description = "A recorded state instead: a folder with state-t1.json.gz, or a file of 'kmem replay --state'",
        HelpName = "PATH",
    };

    private readonly Option<KernelProfile?> _profile = OptionValues.Profile();

    private readonly Option<ulong?> _ram = OptionValues.Size("--ram", 2UL << 20, 4UL << 40,
        "RAM of the machine (default 256M, with a recording 16G)");

    private readonly Option<int?> _cpus = OptionValues.Number("--cpus", 1, 1024,
        "CPUs of the machine (default 1, or those of the recording)");

    public DrawCommand()
        : base("draw", "Draws a picture of a machine as SVG.")
    {
        Add(_what);
        Add(_trace);
        foreach (Option option in (Option[])[_output, _script, _address, _cache, _blocks, _at, _state, _profile, _ram,
            _cpus])
            Add(option);
        Validators.Add(Check);
        SetAction((parsed, cancel) => Task.Run(() => Run(parsed, cancel), CancellationToken.None));
    }

    public IReadOnlyList<(string CommandLine, string Does)> Examples { get; } =
    [
        ("draw slab -o slab.svg", "a slab with its free list, after a few kmallocs and kfrees"),
        ("draw buddy samples/traces/git/trace.txt.gz --blocks 2 -o buddy.svg", "frames at the end of a recording"),
        ("draw fragmentation samples/traces/git/trace.txt.gz --ram 64M -o over-time.svg",
            "free memory, cut up over time"),
    ];

    private void Check(CommandResult result)
    {
        bool trace = result.GetResult(_trace) is { Tokens.Count: > 0 };
        bool script = result.GetResult(_script) is not null;
        bool state = result.GetResult(_state) is not null;
        if ((trace && script) || (trace && state) || (script && state))
            result.AddError("a picture is of one thing: TRACE, --do and --state exclude each other");
        else if (result.GetResult(_at) is not null && !trace)
            result.AddError("--at is for a recording: give TRACE, too");
        else if (state && (result.GetResult(_profile) ?? result.GetResult(_ram) ?? result.GetResult(_cpus)) is not null)
            result.AddError("--state is a machine already: --profile, --ram and --cpus are for others");
    }

    private int Run(ParseResult parsed, CancellationToken cancel)
    {
        string svg;
        try
        {
            svg = parsed.GetValue(_state) is { } state ? OfState(parsed, state)
                : parsed.GetValue(_trace) is { } trace ? OfTrace(parsed, trace, cancel)
                : OfScript(parsed);
        }
        catch (ArgumentException e)
        {
            throw new ToolException(e.Message.Split(" (Parameter", 2)[0], e);
        }
        catch (Exception e) when (e is PlatformException or NotSupportedException or OutOfMemoryException)
        {
            throw new ToolException($"the machine to draw cannot be built here: {e.Message}", e);
        }

        if (parsed.GetValue(_output) is "-" or null)
            parsed.InvocationConfiguration.Output.Write(svg);
        else
            OutputFile.Write(parsed.GetValue(_output)!, path => File.WriteAllText(path, svg));
        return ExitCode.Fine;
    }

    private string OfScript(ParseResult parsed)
    {
        var options = new MachineOptions
        {
            Profile = parsed.GetValue(_profile) ?? KernelProfile.Linux618,
            RamBytes = parsed.GetValue(_ram) ?? DefaultRam,
            Cpus = parsed.GetValue(_cpus) ?? 1,
        };
        using Machine machine = Machine.Boot(options);
        using Script script = Script.Parse(parsed.GetValue(_script) ?? DefaultScript);
        var history = new FragmentationHistory { Unit = "operations" };
        if (parsed.GetValue(_what) == "fragmentation")
            script.Observe = operations => history.Add(machine, operations);
        script.Run(machine);
        VirtAddr? address = parsed.GetValue(_address) is ['#', .. var number]
            ? int.TryParse(number, NumberStyles.None, CultureInfo.InvariantCulture, out int n)
                && script.At(n) is { Value: > 0 } at
                ? at
                : throw new ToolException($"--address is '#{number}', which is no allocation of --do")
            : Given(parsed) ?? script.Newest(parsed.GetValue(_what) is "walk" or "areas" ? "vmalloc" : "kmalloc");
        return Draw(parsed, machine, address, history, machine.WalkPageTables);
    }

    private string OfTrace(ParseResult parsed, string trace, CancellationToken cancel)
    {
        var history = new FragmentationHistory();
        bool overTime = parsed.GetValue(_what) == "fragmentation";
        VirtAddr? given = Given(parsed);
        var options = new ReplayOptions
        {
            Profile = parsed.GetValue(_profile) ?? KernelProfile.Linux618,
            RamBytes = parsed.GetValue(_ram) ?? new ReplayOptions().RamBytes,
            Cpus = parsed.GetValue(_cpus),
            StopAfter = parsed.GetValue(_at),
            Sample = overTime ? history.Add : null,
            SampleEvery = EventsPerSample,
            RememberEvents = given == null ? 0 : Remembered,
        };
        using ReplayResult replay = ReplayInput.Run(parsed, trace, options, cancel);
        VirtAddr? address = given is { } recorded ? replay.Explain(recorded).Address : null;
        return Draw(parsed, replay.Machine, address, history, replay.Machine.WalkPageTables);
    }

    private string OfState(ParseResult parsed, string path)
    {
        try
        {
            if (Directory.Exists(path))
            {
                using RecordedKernel kernel = RecordedKernel.Read(path);
                return Draw(parsed, kernel.Machine, Given(parsed), new FragmentationHistory(), kernel.Walk);
            }

            using Machine machine = Machine.LoadState(path);
            return Draw(parsed, machine, Given(parsed), new FragmentationHistory(), machine.WalkPageTables);
        }
        catch (Exception e) when (e is IOException or InvalidDataException or UnauthorizedAccessException)
        {
            throw new ToolException($"{path}: not a recorded state: {e.Message}", e);
        }
    }

    private VirtAddr? Given(ParseResult parsed) => parsed.GetValue(_address) is not { } text ? null
        : HexAddress.TryParse(text, out ulong address) ? new VirtAddr(address)
        : throw new ToolException(HexAddress.Rule(text));

    private string Draw(
        ParseResult parsed, Machine machine, VirtAddr? address, FragmentationHistory history,
        Func<VirtAddr, PageWalk> walk) =>
        parsed.GetValue(_what) switch
        {
            "buddy" => Pictures.Buddy(machine, FrameNear(machine, address), parsed.GetValue(_blocks) ?? 1),
            "slab" => Pictures.Slab(machine, Needed(address)),
            "walk" => Pictures.Walk(walk(Needed(address))),
            "areas" => Pictures.Areas(machine),
            "lanes" => Pictures.Lanes(machine, parsed.GetValue(_cache) ?? CacheAt(machine, address)),
            _ => Pictures.Fragmentation(history.Count > 0 ? history
                : throw new ToolException("fragmentation is drawn over time: of TRACE or --do, not of --state")),
        };

    private static string CacheAt(Machine machine, VirtAddr? address) =>
        (address is { } given ? machine.Explain(given).Slab?.Cache : null)
        ?? throw new ToolException("which --cache is meant?");

    private static VirtAddr Needed(VirtAddr? address) =>
        address ?? throw new ToolException("which --address is meant?");

    /// <summary>The frame of an address; without one, the first that the page allocator has in its largest
    /// zone.</summary>
    private static Pfn FrameNear(Machine machine, VirtAddr? address)
    {
        if (address is not { } given)
            return Pictures.MainZone(machine);
        return machine.Explain(given).Page is { } page
            ? page.Frame
            : throw new ToolException($"there is no memory behind 0x{given}");
    }

    private static string ParseWhat(ArgumentResult result)
    {
        string text = result.Tokens[^1].Value;
        if (!s_subjects.Contains(text, StringComparer.Ordinal))
            result.AddError($"WHAT is '{text}', expected {string.Join(", ", s_subjects)}");
        return text;
    }
}
