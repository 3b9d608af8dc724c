namespace Kmem.Tool.Output;

/// <summary>A table of caches compared with the formulas, and what explains the differences.</summary>
/// <param name="Cpus">CPUs that the formulas were given.</param>
/// <param name="Comparison">The comparison as it is.</param>
/// <param name="Explained">
/// Caches that differ only because a word of input is missing: with an explicit free-pointer offset they are equal.
/// </param>
/// <param name="Assumed">Caches for which the offset was assumed that Linux 6.18 gives them.</param>
internal sealed record GeometryReport(
    int Cpus, GeometryComparison Comparison, IReadOnlyList<string> Explained, IReadOnlyList<string> Assumed)
{
    /// <summary>Names of the caches that differ, in the order of the table.</summary>
    internal IReadOnlyList<string> DifferentCaches { get; } =
        [.. Comparison.Different.Select(it => it.Name).Distinct(StringComparer.Ordinal)];

    /// <summary>Says how the differences come about, as far as that can be known; <c>null</c> if it cannot.</summary>
    internal string? Note => Explained.Count == 0
        ? null
        : $"{string.Join(", ", Explained)}: freed objects stay readable under RCU, so the free pointer goes behind the "
            + "object unless the creator chose an offset inside it. sysfs does not show that offset. The kernel's slots "
            + "have no room behind the object, so an offset was chosen, and with any valid one the "
            + (Explained.Count == 1 ? "row is" : "rows are")
            + $" equal: add {string.Join(' ', Explained.Select(name => $"--freeptr {name}=0"))}, or a column "
            + "freeptr_offset.";

    /// <summary>Compares a table, then asks of each difference whether a free-pointer offset explains it.</summary>
    /// <exception cref="ArgumentException">
    /// <paramref name="offsets"/> names a cache that is not in the table.
    /// </exception>
    internal static GeometryReport Compare(GeometryTable table, int cpus, IReadOnlyDictionary<string, int> offsets)
    {
        var all = new Dictionary<string, int>(table.AssumedFreePointerOffsets(), StringComparer.Ordinal);
        string[] assumptions = [.. all.Keys.Where(name => !offsets.ContainsKey(name))];
        foreach ((string name, int offset) in offsets) all[name] = offset;
        offsets = all;
        GeometryComparison comparison = table.Compare(cpus, offsets);
        string[] candidates = [.. comparison.Different
            .Where(it => it.Error is null && !offsets.ContainsKey(it.Name))
            .Select(it => it.Name).Distinct(StringComparer.Ordinal)];
        if (candidates.Length == 0) return new GeometryReport(cpus, comparison, [], assumptions);

        // A cache that may not have such an offset (no RCU, a constructor) is refused here, and so stays different.
        var assumed = new Dictionary<string, int>(offsets, StringComparer.Ordinal);
        foreach (string name in candidates) assumed[name] = 0;
        HashSet<string> still = [.. table.Compare(cpus, assumed).Different.Select(it => it.Name)];
        return new GeometryReport(
            cpus, comparison, [.. candidates.Where(name => !still.Contains(name))], assumptions);
    }
}

/// <summary>One cache: what was asked for and what came out.</summary>
internal sealed record CacheLayout(SlabGeometryRequest Request, SlabGeometry Geometry)
{
    internal int SlabBytes => 4096 << Geometry.Order;

    internal double WastePercent => 100.0 * Geometry.WastePerSlab / SlabBytes;

    /// <summary>The name in sysfs if the cache may share its slabs; <c>null</c> if it keeps its own name.</summary>
    internal string? SysfsName => IsShared ? SlabGeometry.SysfsName(Geometry.Flags, Geometry.Size) : null;

    // Debug metadata, RCU and constructors each make the slots of a cache unlike those of any other.
    private bool IsShared => !Request.HasConstructor
        && (Geometry.Flags & (SlabFlags.RedZone | SlabFlags.Poison | SlabFlags.StoreUser | SlabFlags.TypesafeByRcu)) == 0;
}
