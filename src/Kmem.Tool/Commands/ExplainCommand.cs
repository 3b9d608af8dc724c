using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using Kmem.Tool.Output;
using Kmem.Tracing;

namespace Kmem.Tool.Commands;

/// <summary>
/// <c>kmem explain</c>: everything about an address, or why a request for pages fails, at a moment of a recording or in
/// a recorded state.
/// </summary>
internal sealed class ExplainCommand : Command, IHasExamples
{
    private const long Remembered = 1 << 22;

    private readonly Argument<string[]> _words = new("ADDRESS TRACE")
    {
        Description = "A kernel address in hexadecimal, and a recording (ftrace text, may be gzip; - is standard input)"
            + "; only the recording with --order or --failure, only the address with --state",
        Arity = new ArgumentArity(0, 2),
    };

    private readonly Option<long?> _at = new("--at")
    {
        Description = "After so many events of the recording (default: at its end)",
        HelpName = "EVENT",
        CustomParser = ParseEvent,
    };

    private readonly Option<bool> _own = OptionValues.Switch(
        "--own", "ADDRESS is one of the replaying machine, whatever the recording has there");

    private readonly Option<int?> _order = OptionValues.Number(
        "--order", 0, PageOrder.Max, "Instead of an address: a request for 2^N frames, and what it would find");

    private readonly Option<Gfp?> _gfp = new("--gfp")
    {
        Description = "Flags of that request in the kernel's words (default GFP_KERNEL)",
        HelpName = "FLAGS",
        CustomParser = ParseGfp,
    };

    private readonly Option<bool> _failure = OptionValues.Switch(
        "--failure", "Instead of an address: the first request of the recording that fails here, and why");

    private readonly Option<string?> _state = new("--state")
    {
        Description = "A recorded state instead of a recording: a folder with state-t1.json.gz, or a file that"
            + " 'kmem replay --state' wrote",
        HelpName = "PATH",
    };

    private readonly Option<KernelProfile?> _profile = OptionValues.Profile();

    private readonly Option<ulong?> _ram = OptionValues.Size("--ram", 2UL << 20, 4UL << 40,
        "RAM of the replaying machine (default 16G); costs nothing until it is used");

    private readonly Option<bool> _json = OptionValues.Switch("--json", "Print JSON");

    public ExplainCommand()
        : base("explain", "Tells everything about an address, or why a request for pages fails.")
    {
        Add(_words);
        foreach (Option option in (Option[])[_at, _own, _order, _gfp, _failure, _state, _profile, _ram, _json])
            Add(option);
        Validators.Add(Check);
        SetAction((parsed, cancel) => Task.Run(() => Run(parsed, cancel), CancellationToken.None));
    }

    public IReadOnlyList<(string CommandLine, string Does)> Examples { get; } =
    [
        ("explain ffff888100dee000 samples/traces/git/trace.txt.gz --at 1000",
            "what a pointer of the recording is after 1000 events; exit 1 if it is no memory"),
        ("explain --order 9 --gfp GFP_KERNEL samples/traces/git/trace.txt.gz --ram 512M",
            "whether 2 MiB in one piece could be had at the end, and what is in the way"),
        ("explain --failure trace.txt --ram 256M", "the first request that fails with so little memory"),
        ("explain ffff888002e0a080 --state tests/data/boot-1cpu/02-vm", "an address of a recorded kernel"),
    ];

    private bool AsksForAddress(ParseResult parsed) =>
        parsed.GetValue(_order) is null && !parsed.GetValue(_failure);

    private void Check(CommandResult result)
    {
        bool order = result.GetResult(_order) is not null;
        bool failure = result.GetResult(_failure) is { Implicit: false };
        bool state = result.GetResult(_state) is not null;
        int words = result.GetResult(_words)?.Tokens.Count ?? 0;
        if (order && failure)
            result.AddError("--order and --failure exclude each other");
        else if (result.GetResult(_gfp) is not null && !order)
            result.AddError("--gfp is for a request: give its --order, too");
        else if (state && failure)
            result.AddError("--failure needs a recording; --state is one moment");
        else if (state && OptionsOfAReplay().FirstOrDefault(it =>
            result.GetResult(it) is { Implicit: false }) is { } other)
            result.AddError($"{other.Name} is for a recording; --state is one moment");
        else if (words != (order || failure ? 0 : 1) + (state ? 0 : 1))
            result.AddError(Expected(order || failure, state));
    }

    private IEnumerable<Option> OptionsOfAReplay() => [_at, _own, _profile, _ram];

    private static string Expected(bool request, bool state) =>
        (request, state) switch
        {
            (false, false) => "expected ADDRESS and TRACE, such as 'kmem explain ffff888100dee000 trace.txt'",
            (false, true) => "expected ADDRESS, and no recording beside --state",
            (true, false) => "expected TRACE, and no address beside --order or --failure",
            (true, true) => "expected neither address nor recording beside --order and --state",
        };

    private int Run(ParseResult parsed, CancellationToken cancel)
    {
        string[] words = parsed.GetValue(_words) ?? [];
        VirtAddr? address = AsksForAddress(parsed) ? ParseAddress(words[0]) : null;
        if (parsed.GetValue(_state) is { } state)
            return ExplainState(parsed, state, address);

        using ReplayResult replay = ReplayInput.Run(parsed, words[^1], new ReplayOptions
        {
            Profile = parsed.GetValue(_profile) ?? KernelProfile.Linux618,
            RamBytes = parsed.GetValue(_ram) ?? new ReplayOptions().RamBytes,
            StopAfter = parsed.GetValue(_at),
            StopAtFailure = parsed.GetValue(_failure),
            RememberEvents = Remembered,
        }, cancel);
        if (parsed.GetValue(_at) is { } at && replay.Events < at && !parsed.GetValue(_failure))
            throw new ToolException($"--at is {at}, but {InputFile.NameOf(words[^1])} has only {replay.Events} events");

        if (address is { } wanted)
            return Answer(parsed, replay.Explain(wanted, parsed.GetValue(_own)));
        if (!parsed.GetValue(_failure))
            return Answer(parsed, ExplainRequest(parsed, replay.Machine));
        return replay.LastFailure is { } failure
            ? Answer(parsed, failure)
            : NoFailure(parsed, replay);
    }

    private int NoFailure(ParseResult parsed, ReplayResult replay)
    {
        TextWriter output = parsed.InvocationConfiguration.Output;
        if (parsed.GetValue(_json))
            output.WriteLine("{}");
        else
            output.WriteLine($"None of the {replay.Events} events fails here.");
        return ExitCode.Fine;
    }

    private int ExplainState(ParseResult parsed, string path, VirtAddr? address)
    {
        try
        {
            if (Directory.Exists(path))
            {
                using RecordedKernel kernel = RecordedKernel.Read(path);
                return address is { } inKernel
                    ? Answer(parsed, kernel.Explain(inKernel))
                    : Answer(parsed, ExplainRequest(parsed, kernel.Machine));
            }

            using Machine machine = Machine.LoadState(path);
            return address is { } wanted
                ? Answer(parsed, machine.Explain(wanted))
                : Answer(parsed, ExplainRequest(parsed, machine));
        }
        catch (Exception e) when (e is IOException or InvalidDataException or UnauthorizedAccessException)
        {
            throw new ToolException($"{path}: not a recorded state: {e.Message}", e);
        }
        catch (PlatformException e)
        {
            throw new ToolException($"{path}: a machine in this state cannot be built here: {e.Message}", e);
        }
    }

    private RequestExplanation ExplainRequest(ParseResult parsed, Machine machine)
    {
        try
        {
            return machine.ExplainRequest(parsed.GetValue(_gfp) ?? Gfp.Kernel, parsed.GetValue(_order)!.Value);
        }
        catch (ArgumentException e)
        {
            throw new ToolException($"--gfp: {e.Message.Split(" (Parameter", 2)[0]}", e);
        }
    }

    private int Answer(ParseResult parsed, Explanation explanation)
    {
        TextWriter output = parsed.InvocationConfiguration.Output;
        if (parsed.GetValue(_json))
            output.WriteLine(explanation.ToJson());
        else
            Screen.Draw(output, console => ExplainText.Write(console, explanation));
        return explanation.Kind is AddressKind.Nothing or AddressKind.GuardPage ? ExitCode.Found : ExitCode.Fine;
    }

    private int Answer(ParseResult parsed, RequestExplanation explanation)
    {
        TextWriter output = parsed.InvocationConfiguration.Output;
        if (parsed.GetValue(_json))
            output.WriteLine(explanation.ToJson());
        else
            Screen.Draw(output, console => ExplainText.Write(console, explanation));
        return explanation.WouldSucceed ? ExitCode.Fine : ExitCode.Found;
    }

    private static VirtAddr ParseAddress(string text) => HexAddress.TryParse(text, out ulong address)
        ? new VirtAddr(address)
        : throw new ToolException(HexAddress.Rule(text));

    private static long? ParseEvent(ArgumentResult result)
    {
        string text = result.Tokens[^1].Value;
        if (long.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out long number) && number > 0)
            return number;
        result.AddError($"--at is '{text}', expected the number of an event, from 1");
        return null;
    }

    private static Gfp? ParseGfp(ArgumentResult result)
    {
        string text = result.Tokens[^1].Value;
        if (GfpNames.TryParse(text, out Gfp gfp))
            return gfp;
        result.AddError($"--gfp is '{text}', expected flags such as GFP_KERNEL or GFP_ATOMIC|__GFP_COMP");
        return null;
    }
}
