using System.Globalization;
using System.Text.Json;

namespace Kmem;

/// <summary>
/// Reads the <c>vmap</c> object of a recorded kernel state (<c>state-t0.json</c>): the free tree with its shape, busy
/// and lazy areas, pools, spare objects.
/// </summary>
internal static class VmapStateReader
{
    /// <summary>Reads it.</summary>
    /// <param name="vmap">The object.</param>
    /// <returns>The state; objects carry the addresses that the kernel had them at.</returns>
    /// <exception cref="FormatException">A number is not what it should be.</exception>
    /// <exception cref="KeyNotFoundException">A member is missing.</exception>
    /// <exception cref="InvalidOperationException">A member is of another kind.</exception>
    public static VmapState Read(JsonElement vmap) => new()
    {
        Free = vmap.GetProperty("free").EnumerateArray().Select(ReadBlock).ToList(),
        Nodes = vmap.GetProperty("nodes").EnumerateArray().Select(ReadNode).ToArray(),
        Spare = vmap.GetProperty("ne_fit_preload_node").EnumerateArray().Select(Hex).ToArray(),
        LazyPages = vmap.GetProperty("lazy_nr").GetUInt64(),
    };

    private static VmapBlockState ReadBlock(JsonElement e) => new(
        Hex(e[1]),
        Hex(e[2]),
        e[3].ValueKind == JsonValueKind.Null ? null : Hex(e[3]),
        e[4].GetInt32() == 1,
        Hex(e[5]),
        Hex(e[0]));

    private static VmapNodeState ReadNode(JsonElement e) => new()
    {
        Busy = e.GetProperty("busy").EnumerateArray().Select(ReadArea).ToList(),
        Lazy = e.GetProperty("lazy").EnumerateArray().Select(ReadArea).ToList(),
        Pools = new SortedDictionary<int, List<VmapAreaState>>(e.GetProperty("pool").EnumerateObject().ToDictionary(
            pool => int.Parse(pool.Name, NumberStyles.None, CultureInfo.InvariantCulture),
            pool => pool.Value.EnumerateArray().Select(ReadArea).ToList())),
    };

    private static VmapAreaState ReadArea(JsonElement e) =>
        new(Hex(e[1]), Hex(e[2]), e.GetArrayLength() > 3 ? Hex(e[3]) : 0, Object: Hex(e[0]))
        {
            Struct = e.GetArrayLength() > 7 ? ReadStruct(e) : null,
        };

    private static VmStructState ReadStruct(JsonElement e)
    {
        var vm = new VmStructState(Hex(e[4]), Hex(e[5]), Hex(e[6]), e[7].GetUInt32());
        return e.GetArrayLength() < 15 ? vm : vm with
        {
            Object = Hex(e[8]),
            PageArray = Hex(e[9]),
            PageOrder = e[10].GetUInt32(),
            PhysicalAddress = Hex(e[11]),
            Caller = e[12].GetUInt64(),
            RequestedSize = e[13].GetUInt64(),
            Pages = e[14].EnumerateArray().Select(pfn => pfn.GetUInt64()).ToArray(),
        };
    }

    private static ulong Hex(JsonElement e)
    {
        ReadOnlySpan<char> text = e.GetString();
        return ulong.Parse(
            text.StartsWith("0x", StringComparison.Ordinal) ? text[2..] : text,
            NumberStyles.AllowHexSpecifier,
            CultureInfo.InvariantCulture);
    }
}
