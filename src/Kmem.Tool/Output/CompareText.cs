using System.Globalization;
using Kmem.Tool.Commands;
using Kmem.Tracing;
using Spectre.Console;

namespace Kmem.Tool.Output;

/// <summary>
/// The text of <c>kmem compare</c>: a letter for each machine, a column for each letter, and the differences in words.
/// </summary>
internal static class CompareText
{
    private const int MaxCaches = 10;

    internal static void Write(IAnsiConsole console, CompareJson result)
    {
        IReadOnlyList<ComparedJson> all = result.Settings;
        console.Paragraph($"{result.Trace}, {N(all[0].Events)} events, on");
        for (int i = 0; i < all.Count; i++)
        {
            ComparedJson it = all[i];
            console.Paragraph($"  {Letter(i)}  {it.Profile}, {it.Cpus} CPUs, {ByteSize.Format(it.RamBytes)}"
                + (it.With.Length == 0 ? ", as recorded" : $", with {it.With}"));
        }

        WriteNumbers(console, all);
        WriteCaches(console, all);
        console.WriteLine();
        for (int i = 1; i < all.Count; i++) console.Paragraph(Sentence(all[0], all[i], Letter(i)));
    }

    private static void WriteNumbers(IAnsiConsole console, IReadOnlyList<ComparedJson> all)
    {
        Table table = Screen.Table(["", .. Enumerable.Range(0, all.Count).Select(i => $">{Letter(i)}")]);
        void Row(string what, Func<ComparedJson, string> of) => table.Row([what, .. all.Select(of)]);

        Row("failed allocations", it => N(it.FailedAllocs));
        Row("broken rules", it => N(it.Violations));
        Row("memory in use, at most", it => Bytes(it.Work.PeakUsedBytes));
        Row("  at the end", it => Bytes(it.Work.UsedBytes));
        Row("slabs, at most", it => Bytes(it.Work.PeakSlabBytes));
        Row("  at the end", it => Bytes(it.Work.SlabBytes));
        Row("  free slots in them", it => Bytes(it.FreeSlotBytes));
        Row("  lost in used slots", it => Bytes(it.WasteBytes));
        Row("free pages on CPUs' lists", it => Bytes(it.Work.PcpBytes));
        Row("2 MiB blocks cut, at most", it => N(it.Work.PeakCutBlocks));
        Row("  at the end", it => N(it.Work.CutBlocks));
        Row("  would do, side by side", it => N(it.Work.BlocksNeeded));
        console.Write(table);
    }

    /// <summary>The caches whose slabs differ the most.</summary>
    private static void WriteCaches(IAnsiConsole console, IReadOnlyList<ComparedJson> all)
    {
        long Slabs(ComparedJson machine, string cache) =>
            machine.Caches.FirstOrDefault(it => it.Name == cache)?.SlabBytes ?? 0;
        long Spread(string cache) => all.Max(it => Slabs(it, cache)) - all.Min(it => Slabs(it, cache));

        string[] differ =
        [
            .. all.SelectMany(it => it.Caches).Select(it => it.Name).Distinct(StringComparer.Ordinal)
                .Where(name => Spread(name) > 0).OrderByDescending(Spread).ThenBy(name => name, StringComparer.Ordinal),
        ];
        if (differ.Length == 0) return;

        Table table = Screen.Table(["slabs of", .. Enumerable.Range(0, all.Count).Select(i => $">{Letter(i)}")]);
        foreach (string cache in differ.Take(MaxCaches))
            table.Row([cache, .. all.Select(it => Bytes(Slabs(it, cache)))]);
        console.Write(table);
        if (differ.Length > MaxCaches)
            console.Paragraph($"{MaxCaches} of {differ.Length} caches whose slabs differ, the most different first.");
    }

    private static string Sentence(ComparedJson recorded, ComparedJson other, string letter)
    {
        var differences = new List<string>();
        void Compare(string what, long before, long after, Func<long, string> text)
        {
            if (before == after) return;
            double percent = before == 0 ? 0 : 100.0 * (after - before) / before;
            string part = before == 0 ? "" : string.Create(CultureInfo.InvariantCulture, $" ({percent:+0.#;-0.#;0} %)");
            differences.Add($"{what} {text(before)} became {text(after)}{part}");
        }

        Compare("failed allocations", recorded.FailedAllocs, other.FailedAllocs, N);
        Compare("broken rules", recorded.Violations, other.Violations, N);
        Compare("memory at the peak", recorded.Work.PeakUsedBytes, other.Work.PeakUsedBytes, Bytes);
        Compare("2 MiB blocks cut at the peak", recorded.Work.PeakCutBlocks, other.Work.PeakCutBlocks, N);
        return differences.Count == 0
            ? $"{letter}: nothing that A did not do as well."
            : $"{letter}, compared with A: {string.Join("; ", differences)}.";
    }

    private static string Letter(int index) => ((char)('A' + index)).ToString();

    private static string Bytes(long bytes) => ByteSize.Format((ulong)Math.Max(0, bytes));

    private static string N(long number) => number.ToString("N0", CultureInfo.InvariantCulture);
}
