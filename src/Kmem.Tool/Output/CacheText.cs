using System.Globalization;
using Spectre.Console;

namespace Kmem.Tool.Output;

/// <summary>The text of <c>kmem geometry --size</c>: the numbers, then a picture of a slab and of a slot.</summary>
internal static class CacheText
{
    internal static void Write(IAnsiConsole console, CacheLayout cache)
    {
        console.Write(Numbers(cache));
        foreach (string line in SlabPicture.Draw(cache.Geometry)) console.WriteLine(line);
        console.WriteLine();
        console.Paragraph(Sentence(cache));
    }

    private static Table Numbers(CacheLayout cache)
    {
        SlabGeometry g = cache.Geometry;
        Table table = Screen.Table("cache", ">value", "");
        table.Row("object_size", $"{g.ObjectSize}", "bytes of an object");
        table.Row("slab_size", $"{g.Size}", "bytes of a slot: from one object to the next");
        table.Row("align", $"{g.Align}", "bytes, of every object");
        table.Row("inuse", $"{g.Inuse}", "bytes from the object to SLUB's own data");
        table.Row("free pointer", $"{g.FreePointerOffset}",
            "bytes from the object, " + (g.FreePointerOutside ? "behind it" : "inside it while it is free"));
        if (g.RedLeftPad > 0) table.Row("left red zone", $"{g.RedLeftPad}", "bytes before the object");
        table.Row("order", $"{g.Order}", $"a slab has {cache.SlabBytes} bytes");
        table.Row("objs_per_slab", $"{g.ObjectsPerSlab}", "slots of a slab");
        table.Row("waste", $"{g.WastePerSlab}", $"bytes at the end of a slab, {Percent(cache.WastePercent)} %");
        table.Row("min order", $"{g.MinOrder}", $"if memory is short; then {Count(g.MinObjects, "slot")} in a slab");
        table.Row("min_partial", $"{g.MinPartial}", "slabs a node keeps though they are empty");
        table.Row("cpu_partial", $"{g.CpuPartial}",
            $"free objects in a CPU's partial slabs, taken as {Count(g.CpuPartialSlabs, "slab")}");
        table.Row("sysfs name", "", cache.SysfsName ?? "its own: never shares slabs with another cache");
        return table;
    }

    private static string Sentence(CacheLayout cache)
    {
        SlabGeometry g = cache.Geometry;
        int overhead = cache.SlabBytes - (g.ObjectsPerSlab * g.ObjectSize);
        string slab = g.Order == 0 ? "one page" : $"{1 << g.Order} pages";
        return $"On {Count(cache.Request.Cpus, "CPU")}, a slab of {slab} holds {Count(g.ObjectsPerSlab, "object")} "
            + $"of {g.ObjectSize} bytes; "
            + $"{Percent(100.0 * overhead / cache.SlabBytes)} % of it holds no object.";
    }

    private static string Count(int count, string what) => count == 1 ? $"1 {what}" : $"{count} {what}s";

    private static string Percent(double value) => value.ToString("0.0", CultureInfo.InvariantCulture);
}
