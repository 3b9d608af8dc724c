using System.CommandLine;
using System.CommandLine.Parsing;
using Kmem.Tool.Output;
using Kmem.Tracing;

namespace Kmem.Tool.Commands;

/// <summary>
/// <c>kmem walk</c>: the way of an address through the page tables, of a machine booted for it or of a recorded kernel.
/// </summary>
internal sealed class WalkCommand : Command, IHasExamples
{
    private const ulong DefaultSize = 64 << 10;
    private const ulong DefaultRam = 1UL << 30;

    private readonly Argument<ulong?> _address = new("ADDRESS")
    {
        Description = "A kernel address in hexadecimal; the start of the first area if not given",
        Arity = ArgumentArity.ZeroOrOne,
        CustomParser = ParseAddress,
    };

    private readonly Option<string?> _state = new("--state")
    {
        Description = "Folder of a recorded kernel with state-t1.json.gz and pagetables-t1.tsv.gz, instead of a machine",
        HelpName = "DIR",
    };

    private readonly Option<ulong[]> _allocate = new("--allocate")
    {
        Description = "Before: vmalloc of this size; may be given more than once (default 64KiB)",
        HelpName = "SIZE",
        CustomParser = ParseSizes,
    };

    private readonly Option<bool> _huge = OptionValues.Switch(
        "--huge", "Allocate from blocks of 2 MiB where a size is that large");

    private readonly Option<ulong?> _ram = OptionValues.Size(
        "--ram", 16 << 20, 64UL << 40, "Memory of the machine (default 1 GiB)");

    private readonly Option<int?> _cpus = OptionValues.Number("--cpus", 1, 8192, "CPUs of the machine (default 1)");

    private readonly Option<int?> _levels = OptionValues.Number(
        "--levels", 4, 5, "Levels of its page tables (default 4)");

    private readonly Option<bool> _dump = OptionValues.Switch(
        "--dump", "Print all of its page tables instead, range by range");

    private readonly Option<bool> _json = OptionValues.Switch("--json", "Print JSON");

    public WalkCommand()
        : base("walk", "Walks the page tables from an address to its frame.")
    {
        Add(_address);
        Add(_state);
        foreach (Option option in OptionsOfAMachine()) Add(option);
        Add(_json);
        Validators.Add(result =>
        {
            bool state = result.GetResult(_state) is not null;
            Option? other = OptionsOfAMachine().FirstOrDefault(it => result.GetResult(it) is { Implicit: false });
            if (state && other is not null)
                result.AddError($"{other.Name} is for a machine of our own; --state is a recorded kernel");
            bool dump = result.GetResult(_dump) is { Implicit: false };
            bool json = result.GetResult(_json) is { Implicit: false };
            if (dump && (json || result.GetResult(_address) is { Tokens.Count: > 0 }))
                result.AddError("--dump prints all tables as text; it excludes ADDRESS and --json");
        });
        SetAction((parsed, cancel) => Task.Run(() => Run(parsed), cancel));
    }

    public IReadOnlyList<(string CommandLine, string Does)> Examples { get; } =
    [
        ("walk --allocate 64KiB", "16 pages from vmalloc, and the way to the first"),
        ("walk 0xffffc90000002abc --allocate 64KiB", "the way of any address; exit 1 if nothing is mapped there"),
        ("walk ffffc90000000000 --state tests/data/boot-1cpu/02-vm", "the same in the memory of a recorded kernel"),
    ];

    private IEnumerable<Option> OptionsOfAMachine() => [_allocate, _huge, _ram, _cpus, _levels, _dump];

    private int Run(ParseResult parsed)
    {
        if (parsed.GetValue(_state) is { } folder)
            return WalkRecording(parsed, folder);

        var options = new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            RamBytes = parsed.GetValue(_ram) ?? DefaultRam,
            Cpus = parsed.GetValue(_cpus) ?? 1,
            PageTableLevels = parsed.GetValue(_levels) ?? 4,
        };
        try
        {
            using Machine machine = Machine.Boot(options);
            List<VirtAddr> starts = Allocate(machine, parsed);
            if (parsed.GetValue(_dump))
            {
                parsed.InvocationConfiguration.Output.Write(machine.DumpPageTables());
                return ExitCode.Fine;
            }

            VmallocInfoText info = machine.Proc.ReadVmallocInfo();
            var areas = info.Rows.OrderBy(row => row.Start)
                .Select(row => new WalkArea(row.Start, row.End, AreaText(row))).ToList();
            VirtAddr address = parsed.GetValue(_address) is { } given ? new VirtAddr(given) : starts[0];
            return Answer(parsed, new WalkReport(machine, Walk(() => machine.WalkPageTables(address)), areas));
        }
        catch (Exception e) when (e is PlatformException or NotSupportedException or OutOfMemoryException)
        {
            string ram = ByteSize.Format(options.RamBytes);
            throw new ToolException($"a machine of {ram} cannot be built here: {e.Message}", e);
        }
    }

    private int WalkRecording(ParseResult parsed, string folder)
    {
        RecordedKernel kernel;
        try
        {
            kernel = RecordedKernel.Read(folder);
        }
        catch (Exception e) when (e is IOException or InvalidDataException or UnauthorizedAccessException)
        {
            throw new ToolException($"{folder}: not a recorded kernel with its page tables: {e.Message}", e);
        }

        using (kernel)
        {
            List<WalkArea> areas =
                [.. kernel.Areas.Select(area => new WalkArea(area.Start.Value, area.End.Value, "busy"))];
            ulong? address = parsed.GetValue(_address) ?? areas.FirstOrDefault()?.Start
                ?? throw new ToolException($"{folder}: there is no area in it; which ADDRESS is meant?");
            PageWalk walk = Walk(() => kernel.Walk(new VirtAddr(address.Value)));
            return Answer(parsed, new WalkReport(kernel.Machine, walk, areas));
        }
    }

    private static int Answer(ParseResult parsed, WalkReport report)
    {
        TextWriter output = parsed.InvocationConfiguration.Output;
        if (parsed.GetValue<bool>("--json"))
            Json.Write(output, WalkJson.Of(report), JsonTypes.Readable.WalkJson);
        else
            Screen.Draw(output, console => WalkText.Write(console, report));
        return report.Walk.IsMapped ? ExitCode.Fine : ExitCode.Found;
    }

    private static PageWalk Walk(Func<PageWalk> walk)
    {
        try
        {
            return walk();
        }
        catch (ArgumentException e)
        {
            throw new ToolException(e.Message.Split(" (Parameter", 2)[0], e);
        }
    }

    private unsafe List<VirtAddr> Allocate(Machine machine, ParseResult parsed)
    {
        var starts = new List<VirtAddr>();
        ulong[] sizes = parsed.GetValue(_allocate) is { Length: > 0 } given ? given : [DefaultSize];
        foreach (ulong size in sizes)
        {
            void* area = parsed.GetValue(_huge)
                ? machine.VmallocHuge((nuint)size, Gfp.Kernel)
                : machine.Vmalloc((nuint)size);
            if (area == null)
            {
                string ram = ByteSize.Format(machine.Options.RamBytes);
                throw new ToolException(
                    $"--allocate {ByteSize.Format(size)} failed: the machine has {ram}"
                    + " (--ram), and this process as many mappings as vm.max_map_count allows");
            }

            starts.Add(machine.KernelAddressOf(area));
        }

        return starts;
    }

    private static string AreaText(VmallocInfoRow row)
    {
        string line = new VmallocInfoText { Rows = [row] }.Render().Trim();
        return string.Join(' ', line.Split(' ', StringSplitOptions.RemoveEmptyEntries).Skip(2));
    }

    private static ulong? ParseAddress(ArgumentResult result)
    {
        if (result.Tokens.Count == 0)
            return null;
        string text = result.Tokens[^1].Value;
        if (HexAddress.TryParse(text, out ulong address))
            return address;
        result.AddError(HexAddress.Rule(text));
        return null;
    }

    private static ulong[] ParseSizes(ArgumentResult result)
    {
        var sizes = new List<ulong>();
        foreach (Token token in result.Tokens)
        {
            if (ByteSize.TryParse(token.Value, out ulong bytes) && bytes > 0)
                sizes.Add(bytes);
            else
                result.AddError($"--allocate is '{token.Value}', expected a size such as 64KiB, 4M or plain bytes");
        }

        return [.. sizes];
    }
}
