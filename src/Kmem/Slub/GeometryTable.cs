using System.Globalization;

namespace Kmem;

/// <summary>A field in which a computed cache differs from the table.</summary>
/// <param name="Name">The cache's name.</param>
/// <param name="Field">The column.</param>
/// <param name="Expected">The number in the table.</param>
/// <param name="Computed">The computed number; <c>null</c> if no such cache can exist.</param>
/// <param name="Error">Why no such cache can exist; <c>null</c> if it can.</param>
public sealed record GeometryDifference(string Name, string Field, int Expected, int? Computed, string? Error);

/// <summary>The outcome of comparing a table with the formulas.</summary>
/// <param name="Rows">Rows in the table.</param>
/// <param name="Equal">Rows of which every result is equal.</param>
/// <param name="Different">Every field that is not, in the order of the table.</param>
public sealed record GeometryComparison(int Rows, int Equal, IReadOnlyList<GeometryDifference> Different);

/// <summary>
/// A table of slab caches as a kernel shows them in sysfs, one per line, tab separated, with the names of the columns
/// in the first line; compared with what <see cref="SlabGeometry"/> computes from its inputs.
/// </summary>
/// <remarks>
/// <code>
/// inputs, required   name object_size align hwcache_align destroy_by_rcu ctor
///         optional   reclaim_account cache_dma red_zone poison store_user sanity_checks trace freeptr_offset
/// results, required  slab_size order objs_per_slab
///          optional  min_partial cpu_partial
/// </code>
/// Columns may stand in any order; unknown ones are ignored, absent optional inputs mean 0. The flags are 0 or 1.
/// <para>
/// sysfs does not show the free-pointer offset that a cache's creator may have chosen, and without it such a cache
/// (<c>vm_area_struct</c>) comes out one word too large. It is given in column <c>freeptr_offset</c>, empty for none,
/// or to <see cref="Compare"/>. Any valid offset gives the same sizes; Linux 6.18 uses 0 for <c>vm_area_struct</c>.
/// </para>
/// <para>
/// The rows hold results after merging: object_size is the largest of the caches that share the slabs, and align is
/// the calculated alignment, not the requested one. Neither changes the outcome, because the calculation is
/// idempotent and a cache joins only where its slot has the same size.
/// </para>
/// </remarks>
public sealed class GeometryTable
{
    private static readonly string[] s_required =
    [
        "name", "object_size", "align", "hwcache_align", "destroy_by_rcu", "ctor",
        "slab_size", "order", "objs_per_slab",
    ];

    private static readonly (string Column, SlabFlags Flag)[] s_flagColumns =
    [
        ("hwcache_align", SlabFlags.HwcacheAlign),
        ("reclaim_account", SlabFlags.ReclaimAccount),
        ("cache_dma", SlabFlags.CacheDma),
        ("destroy_by_rcu", SlabFlags.TypesafeByRcu),
        ("red_zone", SlabFlags.RedZone),
        ("poison", SlabFlags.Poison),
        ("store_user", SlabFlags.StoreUser),
        ("sanity_checks", SlabFlags.ConsistencyChecks),
        ("trace", SlabFlags.Trace),
    ];

    private static readonly (string Column, Func<SlabGeometry, int> Value)[] s_resultColumns =
    [
        ("slab_size", g => g.Size),
        ("order", g => g.Order),
        ("objs_per_slab", g => g.ObjectsPerSlab),
        ("min_partial", g => g.MinPartial),
        ("cpu_partial", g => g.CpuPartial),
    ];

    /// <summary>
    /// Caches that Linux 6.18 creates with a free-pointer offset of their own, which sysfs does not show: the VMA cache
    /// keeps the pointer in the first word (kernel/fork.c).
    /// </summary>
    public static IReadOnlyDictionary<string, int> KnownFreePointerOffsets { get; } =
        new Dictionary<string, int>(StringComparer.Ordinal) { ["vm_area_struct"] = 0 };

    private readonly List<Row> _rows;

    private GeometryTable(List<Row> rows) => _rows = rows;

    /// <summary>How many caches the table has.</summary>
    public int Count => _rows.Count;

    /// <summary>Reads a table.</summary>
    /// <param name="reader">The text; read to its end, not closed.</param>
    /// <exception cref="FormatException">
    /// A required column is missing, a column appears twice, a line is too short, or a field is not a number in its
    /// range; the message names the line and the column.
    /// </exception>
    public static GeometryTable Read(TextReader reader)
    {
        ArgumentNullException.ThrowIfNull(reader);
        Dictionary<string, int> columns = ReadHeader(reader.ReadLine());

        var rows = new List<Row>();
        int lineNumber = 1;
        while (reader.ReadLine() is { } line)
        {
            lineNumber++;
            if (string.IsNullOrWhiteSpace(line)) continue;
            rows.Add(ReadRow(new LineReader(columns, line.Split('\t'), lineNumber)));
        }
        return new GeometryTable(rows);
    }

    /// <summary>Computes every row and compares it with the table.</summary>
    /// <param name="cpus">CPUs of the machine that the table comes from.</param>
    /// <param name="freePointerOffsets">
    /// Free-pointer offsets in bytes by cache name, on top of those in the table; <c>null</c> for none.
    /// </param>
    /// <exception cref="ArgumentException">
    /// <paramref name="freePointerOffsets"/> names a cache that is not in the table.
    /// </exception>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="cpus"/> is not positive.</exception>
    public GeometryComparison Compare(int cpus, IReadOnlyDictionary<string, int>? freePointerOffsets = null)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(cpus);
        foreach (string name in freePointerOffsets?.Keys ?? [])
        {
            if (!_rows.Exists(row => string.Equals(row.Name, name, StringComparison.Ordinal)))
                throw new ArgumentException($"The table has no cache named {name}.", nameof(freePointerOffsets));
        }

        var different = new List<GeometryDifference>();
        int equal = 0;
        foreach (Row row in _rows)
        {
            int before = different.Count;
            int? offset = freePointerOffsets is not null && freePointerOffsets.TryGetValue(row.Name, out int given)
                ? given
                : row.FreePointerOffset;
            CompareRow(row, cpus, offset, different);
            if (different.Count == before) equal++;
        }
        return new GeometryComparison(_rows.Count, equal, different);
    }

    /// <summary>
    /// The <see cref="KnownFreePointerOffsets"/> of caches in this table that name none themselves and can have one.
    /// </summary>
    public IReadOnlyDictionary<string, int> AssumedFreePointerOffsets() => _rows
        .Where(row => row.FreePointerOffset is null && !row.HasConstructor
            && (row.Flags & SlabFlags.TypesafeByRcu) != 0 && KnownFreePointerOffsets.ContainsKey(row.Name))
        .DistinctBy(row => row.Name, StringComparer.Ordinal)
        .ToDictionary(row => row.Name, row => KnownFreePointerOffsets[row.Name], StringComparer.Ordinal);

    private readonly record struct Row(
        string Name, int ObjectSize, int Align, SlabFlags Flags, bool HasConstructor, int? FreePointerOffset,
        int?[] Results);

    private static void CompareRow(in Row row, int cpus, int? freePointerOffset, List<GeometryDifference> different)
    {
        SlabGeometry geometry;
        try
        {
            geometry = SlabGeometry.Compute(new SlabGeometryRequest(row.ObjectSize, row.Align, row.Flags, cpus)
            {
                HasConstructor = row.HasConstructor,
                FreePointerOffset = freePointerOffset,
            });
        }
        catch (ArgumentException e)
        {
            different.Add(new GeometryDifference(row.Name, s_resultColumns[0].Column, row.Results[0] ?? 0, null,
                e.Message));
            return;
        }

        for (int i = 0; i < s_resultColumns.Length; i++)
        {
            if (row.Results[i] is not { } expected) continue;
            int computed = s_resultColumns[i].Value(geometry);
            if (computed == expected) continue;
            different.Add(new GeometryDifference(row.Name, s_resultColumns[i].Column, expected, computed, null));
        }
    }

    private static Dictionary<string, int> ReadHeader(string? line)
    {
        if (line is null) throw new FormatException("Line 1: the table is empty, its column names are missing.");

        var columns = new Dictionary<string, int>(StringComparer.Ordinal);
        string[] names = line.TrimStart('\uFEFF').Split('\t');
        for (int i = 0; i < names.Length; i++)
        {
            string name = names[i].Trim();
            if (name.Length > 0 && !columns.TryAdd(name, i))
                throw new FormatException($"Line 1: column {name} appears twice.");
        }
        foreach (string name in s_required)
        {
            if (!columns.ContainsKey(name)) throw new FormatException($"Line 1: column {name} is missing.");
        }
        return columns;
    }

    private static Row ReadRow(LineReader line)
    {
        string name = line.Text("name");
        if (name.Length == 0) throw line.Error("name", "is empty");

        SlabFlags flags = IsKmallocName(name) ? SlabFlags.Kmalloc : SlabFlags.None;
        foreach ((string column, SlabFlags flag) in s_flagColumns)
        {
            if (line.Flag(column)) flags |= flag;
        }
        var results = new int?[s_resultColumns.Length];
        for (int i = 0; i < results.Length; i++) results[i] = line.OptionalNumber(s_resultColumns[i].Column);
        return new Row(name, line.Number("object_size"), line.Number("align"), flags, line.Flag("ctor"),
            line.OptionalNumber("freeptr_offset"), results);
    }

    // sysfs does not show the flag KMALLOC; only caches with user tracking differ by it.
    private static bool IsKmallocName(string name) =>
        name.StartsWith("kmalloc-", StringComparison.Ordinal)
        || name.StartsWith("dma-kmalloc-", StringComparison.Ordinal);

    /// <summary>The fields of one line by the names of their columns.</summary>
    private readonly record struct LineReader(Dictionary<string, int> Columns, string[] Fields, int LineNumber)
    {
        /// <summary>The field; empty if an optional column is absent or the line ends before it.</summary>
        public string Text(string column)
        {
            if (Columns.TryGetValue(column, out int index) && index < Fields.Length) return Fields[index].Trim();
            return IsRequired(column) ? throw Error(column, "is missing") : "";
        }

        public int Number(string column) => OptionalNumber(column) ?? throw Error(column, "is empty");

        /// <summary>The field's number; <c>null</c> if it is empty and its column is optional.</summary>
        public int? OptionalNumber(string column)
        {
            string text = Text(column);
            if (text.Length == 0) return IsRequired(column) ? throw Error(column, "is empty") : null;
            return int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int number)
                ? number
                : throw Error(column, $"is '{text}', not a number from 0 to {int.MaxValue}");
        }

        public bool Flag(string column) => (OptionalNumber(column) ?? 0) switch
        {
            0 => false,
            1 => true,
            int other => throw Error(column, $"is {other}, not 0 or 1"),
        };

        public FormatException Error(string column, string what) => new($"Line {LineNumber}: column {column} {what}.");

        private static bool IsRequired(string column) => Array.IndexOf(s_required, column) >= 0;
    }
}
