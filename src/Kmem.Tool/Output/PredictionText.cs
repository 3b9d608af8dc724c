using Kmem.Tracing;
using Spectre.Console;

namespace Kmem.Tool.Output;

/// <summary>JSON of <c>kmem predict state</c>.</summary>
internal sealed record StatePredictionJson(
    long Events, long PageAllocs, long PageAllocsExact, long ZoneEvents, long ZoneEventsExact, long SlabAllocs,
    long SlabAllocsExact, long VmapAllocs, long VmapAllocsExact, long StateDifferences,
    IReadOnlyList<string> Differences, string? First, long UnknownEvents, string? FirstUnknown)
{
    private const int MostDifferences = 100;

    internal static StatePredictionJson Of(StatePrediction it) => new(
        it.Events, it.PageAllocs, it.PageAllocsExact, it.ZoneEvents, it.ZoneEventsExact, it.SlabAllocs,
        it.SlabAllocsExact, it.VmapAllocs, it.VmapAllocsExact, it.StateDifferences,
        [.. it.Differences.Take(MostDifferences)], it.First, it.UnknownEvents, it.FirstUnknown);
}

/// <summary>The text of <c>kmem predict</c>: how many answers are the kernel's, and what differs first.</summary>
internal static class PredictionText
{
    private const int MostDifferences = 10;

    internal static void Write(IAnsiConsole console, StatePrediction it)
    {
        Table table = Screen.Table("what the kernel gave out", ">results", ">exact", ">share");
        Row(table, "page blocks", it.PageAllocs, it.PageAllocsExact);
        Row(table, "blocks that left or entered free lists", it.ZoneEvents, it.ZoneEventsExact);
        Row(table, "objects of slabs and sheaves", it.SlabAllocs, it.SlabAllocsExact);
        Row(table, "vmalloc addresses", it.VmapAllocs, it.VmapAllocsExact);
        console.Write(table);
        if (it.First is { } first)
            console.Paragraph($"The first difference: {first}");
        foreach (string difference in it.Differences.Take(MostDifferences))
            console.Paragraph($"At the end: {difference}");

        if (it.UnknownEvents > 0)
            console.Paragraph(
                $"{it.UnknownEvents:n0} events of an unknown kind were passed over, the first in {it.FirstUnknown}.");

        console.WriteLine();
        console.Paragraph(it.IsExact
            ? $"All results of {it.Events:n0} events are the kernel's, and so is the whole state at the end."
            : $"{it.Events:n0} events; {it.StateDifferences:n0} differences in the state at the end.");
    }

    internal static void Write(IAnsiConsole console, VmapPredictionResult it)
    {
        Table table = Screen.Table("addresses", ">chosen", ">predicted", ">share");
        Row(table, "all areas", it.Allocs, it.Exact);
        Row(table, "at most page-aligned", it.PageAligned, it.PageAlignedExact);
        Row(table, "all, each from earlier answers alone", it.Allocs, it.ExactInAdvance);
        Row(table, "all, with the first guess of the tree's shape", it.Allocs, it.ExactWithFirstShape);
        console.Write(table);
        foreach (VmapMismatch wrong in it.Mismatches.Take(MostDifferences))
        {
            string predicted = wrong.Predicted is { } address ? $"0x{address:x}" : "nothing";
            console.Paragraph(
                $"line {wrong.Line}: {wrong.Size} bytes aligned to {wrong.Align}: the kernel chose 0x{wrong.Kernel:x}, "
                + $"predicted was {predicted}");
        }

        console.WriteLine();
        console.Paragraph(it.Exact == it.Allocs
            ? $"All {it.Allocs:n0} addresses are the kernel's."
            : $"{it.Exact:n0} of {it.Allocs:n0} addresses are the kernel's. The shape of the free tree before the snapshot is "
                + $"not in the recording; {it.ShapesTried} were tried.");
    }

    private static void Row(Table table, string what, long results, long exact)
    {
        string share = results == 0 ? "-" : $"{100.0 * exact / results:0.##} %";
        table.Row(what, $"{results:n0}", $"{exact:n0}", share);
    }
}
