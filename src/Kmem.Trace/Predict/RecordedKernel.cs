using System.Globalization;
using System.IO.Compression;
using System.Text.Json;

namespace Kmem.Tracing;

/// <summary>
/// A real kernel at one instant, from a recording of its complete state: frames, areas of the vmalloc space, and the
/// page tables that map them, entry by entry as they were in its memory.
/// </summary>
public sealed class RecordedKernel : IDisposable
{
    private readonly Dictionary<(int Level, ulong Page), ulong> _entries = [];
    private readonly int _levels;

    private RecordedKernel(Machine machine, IReadOnlyList<(VirtAddr Start, VirtAddr End)> areas, string tables)
    {
        Machine = machine;
        Areas = areas;
        foreach (string line in tables.TrimEnd('\n').Split('\n').Skip(1))
        {
            string[] fields = line.Split('\t');
            int level = int.Parse(fields[0], NumberStyles.None, CultureInfo.InvariantCulture);
            ulong va = ulong.Parse(fields[1], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);
            _entries[(level, PageOf(va, level))] =
                ulong.Parse(fields[2], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);
            _levels = Math.Max(_levels, level);
        }

        if (_levels is not (4 or 5))
            throw new InvalidDataException($"page tables of {_levels} levels");
    }

    /// <summary>Its frames and caches, at work again.</summary>
    public Machine Machine { get; }

    /// <summary>Its busy areas, guard pages included, in order of address.</summary>
    public IReadOnlyList<(VirtAddr Start, VirtAddr End)> Areas { get; }

    /// <summary>Reads a recorded phase: its end, or its beginning if there are no tables of its end.</summary>
    /// <param name="folder">The folder with <c>state-t1.json.gz</c> and <c>pagetables-t1.tsv.gz</c>.</param>
    /// <returns>The kernel.</returns>
    /// <exception cref="IOException">A file is missing or cannot be read.</exception>
    /// <exception cref="InvalidDataException">A file is not what its name says.</exception>
    public static RecordedKernel Read(string folder)
    {
        string moment = File.Exists(Path.Combine(folder, "pagetables-t1.tsv.gz")) ? "t1" : "t0";
        string tables = ReadText(Path.Combine(folder, $"pagetables-{moment}.tsv.gz"));
        string statePath = Path.Combine(folder, $"state-{moment}.json.gz");
        MachineState state = MachineState.Read(statePath);
        KernelProfile profile = KernelProfile.Linux618 with { MemoryCgroups = false };
        Machine machine = Machine.FromState(state, new MachineOptions { Profile = profile });
        try
        {
            using JsonDocument json = JsonDocument.Parse(ReadText(statePath));
            VmapState vmap = VmapStateReader.Read(json.RootElement.GetProperty("vmap"));
            (VirtAddr, VirtAddr)[] areas = [.. vmap.Nodes.SelectMany(node => node.Busy).OrderBy(area => area.Start)
                .Select(area => (new VirtAddr(area.Start), new VirtAddr(area.End)))];
            return new RecordedKernel(machine, areas, tables);
        }
        catch (Exception e)
        {
            machine.Dispose();
            if (e is FormatException or OverflowException or IndexOutOfRangeException or KeyNotFoundException
                or InvalidOperationException or JsonException)
            {
                throw new InvalidDataException($"{folder}: {e.Message}", e);
            }

            throw;
        }
    }

    /// <summary>
    /// Goes through its page tables. Where its root was is not recorded: the first step has no table frame.
    /// </summary>
    /// <param name="address">Any address; only the vmalloc space is recorded.</param>
    /// <returns>Each entry on the way.</returns>
    /// <exception cref="ArgumentException">The address is not canonical.</exception>
    public PageWalk Walk(VirtAddr address)
    {
        if (!AddressMap.For(_levels).IsCanonical(address.Value))
            throw new ArgumentException($"0x{address} is not canonical", nameof(address));

        var steps = new List<PageWalkStep>(_levels);
        ulong table = Pfn.None.Value;
        for (int level = _levels; ; level--)
        {
            string name = level == _levels ? "pgd" : level switch { 1 => "pte", 2 => "pmd", 3 => "pud", _ => "p4d" };
            ulong entry = _entries.GetValueOrDefault((level, PageOf(address.Value, level)));
            var step = new PageWalkStep(level, name, table, PageTableEntry.IndexOf(level, address.Value), entry);
            steps.Add(step);
            if (!step.Present || step.Leaf || step.Bad || level == 1)
                return new PageWalk(address.Value, steps);
            table = step.Target.Value;
        }
    }

    /// <summary>Explains an address, by the kernel's own page tables.</summary>
    /// <param name="address">A kernel's address.</param>
    /// <returns>As <see cref="Machine.Explain(VirtAddr)"/>; recordings of a state tell no life stories.</returns>
    public Explanation Explain(VirtAddr address) =>
        Machine.ExplainWith(address, va => Walk(new VirtAddr(va)));

    /// <inheritdoc/>
    public void Dispose() => Machine.Dispose();

    private static ulong PageOf(ulong va, int level) => va >> PageTableEntry.ShiftOf(level);

    private static string ReadText(string path)
    {
        using var text = new StreamReader(new GZipStream(File.OpenRead(path), CompressionMode.Decompress));
        return text.ReadToEnd();
    }
}
