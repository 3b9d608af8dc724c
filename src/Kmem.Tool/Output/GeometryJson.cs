namespace Kmem.Tool.Output;

/// <summary>JSON of <c>kmem geometry --table</c>.</summary>
internal sealed record GeometryTableJson(
    int Rows, int Equal, int Cpus, IReadOnlyList<DifferenceJson> Different, IReadOnlyList<string> Explained,
    IReadOnlyList<string> Assumed, string? Note)
{
    internal static GeometryTableJson Of(GeometryReport report) => new(
        report.Comparison.Rows,
        report.Comparison.Equal,
        report.Cpus,
        [.. report.Comparison.Different.Select(it =>
            new DifferenceJson(it.Name, it.Field, it.Expected, it.Computed, it.Error))],
        report.Explained,
        report.Assumed,
        report.Note);
}

/// <summary>One field in which a row differs.</summary>
internal sealed record DifferenceJson(string Name, string Field, int Expected, int? Computed, string? Error);

/// <summary>JSON of <c>kmem geometry --size</c>; sizes and offsets in bytes.</summary>
internal sealed record CacheJson(
    int Size, int ObjectSize, int Align, int Inuse, int FreePointerOffset, bool FreePointerOutside, int RedLeftPad,
    int Order, int SlabBytes, int Objects, int Waste, double WastePercent, int MinOrder, int MinObjects,
    int MinPartial, int CpuPartial, int CpuPartialSlabs, string? SysfsName, int Cpus)
{
    internal static CacheJson Of(CacheLayout cache)
    {
        SlabGeometry g = cache.Geometry;
        return new CacheJson(
            g.Size, g.ObjectSize, g.Align, g.Inuse, g.FreePointerOffset, g.FreePointerOutside, g.RedLeftPad,
            g.Order, cache.SlabBytes, g.ObjectsPerSlab, g.WastePerSlab, Math.Round(cache.WastePercent, 3),
            g.MinOrder, g.MinObjects, g.MinPartial, g.CpuPartial, g.CpuPartialSlabs, cache.SysfsName,
            cache.Request.Cpus);
    }
}
