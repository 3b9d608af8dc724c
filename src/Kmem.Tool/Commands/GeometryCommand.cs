using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using Kmem.Tool.Output;

namespace Kmem.Tool.Commands;

/// <summary>
/// <c>kmem geometry</c>: how SLUB lays out a cache, computed for one cache (<c>--size</c>) or for every row of a
/// kernel's table and compared with it (<c>--table</c>).
/// </summary>
internal sealed class GeometryCommand : Command, IHasExamples
{
    private const int MaxObjectSize = 4 << 20;

    private readonly Option<string?> _table = new("--table")
    {
        Description = "Table of caches as sysfs shows them, tab separated, may be gzip; - is standard input",
        HelpName = "FILE",
    };

    private readonly Option<int?> _size = OptionValues.Number("--size", 1, MaxObjectSize, "Bytes of an object");

    private readonly Option<int?> _cpus = OptionValues.Number("--cpus", 1, 8192,
        "CPUs of the machine; with --size, those of this machine if not given");

    private readonly Option<string[]> _freePointer = new("--freeptr")
    {
        Description = "Offset of the free pointer that the creator chose: NAME=OFFSET with --table, OFFSET with --size",
        HelpName = "[NAME=]OFFSET",
    };

    private readonly Option<int?> _align = OptionValues.PowerOfTwo("--align", 1, MaxObjectSize, "Requested alignment");

    private readonly Option<int?> _cacheLine = OptionValues.PowerOfTwo("--cache-line", 8, 4096,
        "Bytes of a CPU cache line (default 64)");

    private readonly Option<int?> _minOrder = OptionValues.Number("--min-order", 0, PageOrder.Max,
        "Lowest preferred order, slab_min_order (default 0)");

    private readonly Option<int?> _maxOrder = OptionValues.Number("--max-order", 0, PageOrder.Max,
        "Highest preferred order, slab_max_order (default 3)");

    private readonly Option<int?> _minObjects = OptionValues.Number("--min-objects", 0, 32767,
        "Objects a slab should hold, slab_min_objects (default 0: by the number of CPUs)");

    private readonly Option<bool> _constructor = OptionValues.Switch("--ctor", "Objects have a constructor");

    private readonly Option<bool> _json = OptionValues.Switch("--json", "Print JSON");

    private readonly (Option<bool> Option, SlabFlags Flag)[] _flags =
    [
        (OptionValues.Switch("--hwcache-align", "Align to cache lines"), SlabFlags.HwcacheAlign),
        (OptionValues.Switch("--reclaim-account", "Objects can be reclaimed"), SlabFlags.ReclaimAccount),
        (OptionValues.Switch("--account", "Charge objects to the memory cgroup"), SlabFlags.Account),
        (OptionValues.Switch("--typesafe-by-rcu", "Slabs live until an RCU grace period ends"), SlabFlags.TypesafeByRcu),
        (OptionValues.Switch("--dma", "Slabs from zone DMA"), SlabFlags.CacheDma),
        (OptionValues.Switch("--red-zone", "Debug: guard bytes on both sides"), SlabFlags.RedZone),
        (OptionValues.Switch("--poison", "Debug: a pattern in free objects"), SlabFlags.Poison),
        (OptionValues.Switch("--store-user", "Debug: who allocated and freed"), SlabFlags.StoreUser),
        (OptionValues.Switch("--consistency-checks", "Debug: check every operation"), SlabFlags.ConsistencyChecks),
    ];

    public GeometryCommand()
        : base("geometry", "Computes how SLUB lays out a cache, or compares a kernel's table of caches with that.")
    {
        Add(_table);
        foreach (Option option in OptionsOfOneCache()) Add(option);
        Add(_cpus);
        Add(_freePointer);
        Add(_json);
        Validators.Add(CheckMode);
        SetAction((parsed, cancel) => Task.Run(() => Run(parsed), cancel));
    }

    public IReadOnlyList<(string CommandLine, string Does)> Examples { get; } =
    [
        ("geometry --size 600 --hwcache-align --cpus 2", "one cache: slot, order, objects, waste"),
        ("geometry --table slab-geometry.tsv --cpus 2 --freeptr vm_area_struct=0",
            "every cache of a kernel; exit 1 if one differs"),
    ];

    private IEnumerable<Option> OptionsOfOneCache() =>
    [
        _size, _align, .. _flags.Select(it => it.Option), _constructor, _cacheLine, _minOrder, _maxOrder, _minObjects,
    ];

    private void CheckMode(CommandResult result)
    {
        bool table = result.GetResult(_table) is not null;
        bool size = result.GetResult(_size) is not null;
        if (table == size)
        {
            result.AddError(table ? "--table and --size exclude each other" : "expected --table FILE or --size N");
        }
        else if (table && OptionsOfOneCache().FirstOrDefault(it => result.GetResult(it) is { Implicit: false }) is { } it)
        {
            result.AddError($"{it.Name} goes with --size; with --table it is a column of the table");
        }
        else if (table && result.GetResult(_cpus) is null)
        {
            result.AddError("--table needs --cpus N, the CPUs of the machine that the table comes from");
        }
    }

    private int Run(ParseResult parsed) =>
        parsed.GetValue(_table) is { } path ? CompareTable(parsed, path) : ComputeOne(parsed);

    private int CompareTable(ParseResult parsed, string path)
    {
        int cpus = parsed.GetValue(_cpus)!.Value;
        GeometryReport report;
        try
        {
            var table = GeometryTable.Read(new StringReader(InputFile.ReadText(path)));
            report = GeometryReport.Compare(table, cpus, NamedOffsets(parsed.GetValue(_freePointer) ?? []));
        }
        catch (FormatException e)
        {
            throw new ToolException($"{InputFile.NameOf(path)}: expected a table of slab caches: {e.Message}", e);
        }
        catch (ArgumentException e)
        {
            throw new ToolException($"--freeptr: {e.Message.Split(" (Parameter", 2)[0].TrimEnd('.')}", e);
        }

        TextWriter output = parsed.InvocationConfiguration.Output;
        if (parsed.GetValue(_json)) Json.Write(output, GeometryTableJson.Of(report), JsonTypes.Readable.GeometryTableJson);
        else Screen.Draw(output, console => GeometryText.Write(console, report));
        return report.Comparison.Different.Count == 0 ? ExitCode.Fine : ExitCode.Found;
    }

    private int ComputeOne(ParseResult parsed)
    {
        SlabFlags flags = SlabFlags.None;
        foreach ((Option<bool> option, SlabFlags flag) in _flags)
        {
            if (parsed.GetValue(option)) flags |= flag;
        }
        int cpus = parsed.GetValue(_cpus) ?? Environment.ProcessorCount;
        var defaults = new SlabGeometryRequest(parsed.GetValue(_size)!.Value, parsed.GetValue(_align) ?? 0, flags, cpus);
        SlabGeometryRequest request = defaults with
        {
            HasConstructor = parsed.GetValue(_constructor),
            FreePointerOffset = SingleOffset(parsed.GetValue(_freePointer) ?? []),
            CacheLineSize = parsed.GetValue(_cacheLine) ?? defaults.CacheLineSize,
            SlabMinOrder = parsed.GetValue(_minOrder) ?? defaults.SlabMinOrder,
            SlabMaxOrder = parsed.GetValue(_maxOrder) ?? defaults.SlabMaxOrder,
            SlabMinObjects = parsed.GetValue(_minObjects) ?? defaults.SlabMinObjects,
        };

        SlabGeometry geometry;
        try
        {
            geometry = SlabGeometry.Compute(request);
        }
        catch (ArgumentException e)
        {
            throw new ToolException(e.Message.TrimEnd('.'), e);
        }

        var cache = new CacheLayout(request, geometry);
        TextWriter output = parsed.InvocationConfiguration.Output;
        if (parsed.GetValue(_json)) Json.Write(output, CacheJson.Of(cache), JsonTypes.Readable.CacheJson);
        else Screen.Draw(output, console => CacheText.Write(console, cache));
        return ExitCode.Fine;
    }

    private static Dictionary<string, int> NamedOffsets(string[] words)
    {
        var offsets = new Dictionary<string, int>(StringComparer.Ordinal);
        foreach (string word in words)
        {
            int equals = word.LastIndexOf('=');
            if (equals <= 0 || !TryOffset(word[(equals + 1)..], out int offset))
                throw new ToolException($"--freeptr is '{word}', expected NAME=OFFSET, such as vm_area_struct=0");
            if (!offsets.TryAdd(word[..equals], offset))
                throw new ToolException($"--freeptr names {word[..equals]} twice");
        }
        return offsets;
    }

    private static int? SingleOffset(string[] words) => words switch
    {
        [] => null,
        [string word] when TryOffset(word, out int offset) => offset,
        [string word] => throw new ToolException($"--freeptr is '{word}', expected an offset in bytes, such as 0"),
        _ => throw new ToolException("--freeptr is given twice; one cache has one free pointer"),
    };

    private static bool TryOffset(string text, out int offset) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out offset);
}
