using System.Globalization;
using Kmem.Tool.Commands;
using Kmem.Tracing;
using Spectre.Console;

namespace Kmem.Tool.Output;

/// <summary>
/// The text of <c>kmem replay</c>: what happened, whether the slots are the kernel's, the caches, the free blocks, the
/// callers that hold the most, and one sentence.
/// </summary>
internal static class ReplayText
{
    private const int MaxDamageShown = 10;

    internal static void Write(IAnsiConsole console, ReplayReport report, int top)
    {
        console.WriteLine($"{N(report.Events)} events on {report.Profile}, "
            + $"{Count(report.Cpus, "CPU")}, {ByteSize.Format(report.RamBytes)} of RAM, "
            + $"in {F(report.Elapsed.TotalSeconds, "0.00")} s: {Rate(report.EventsPerSecond)} a second");
        WriteEvents(console, report);
        WriteDamage(console, report);
        WriteSlots(console, report);
        WriteCaches(console, report, top);
        WriteZones(console, report);
        WriteCallSites(console, report, top);
        WriteViolations(console, report);
        console.WriteLine();
        console.Paragraph(Sentence(report));
    }

    /// <summary>The outcome in plain words.</summary>
    internal static string Sentence(ReplayReport report)
    {
        var troubles = new List<string>();
        long differ = report.BytesAllocChecked - report.BytesAllocEqual;
        if (differ > 0)
            troubles.Add(
                $"{N(differ)} of {N(report.BytesAllocChecked)} requests got a slot of another size than the kernel's");
        if (report.FailedAllocs > 0)
            troubles.Add($"{Count(report.FailedAllocs, "allocation")} failed that the kernel could serve");
        if (report.Violations > 0) troubles.Add($"{Count(report.Violations, "rule")} of the allocator broken");
        if (troubles.Count > 0) return $"This needs a look: {string.Join(", ", troubles)}.";

        string skipped = report.DamagedLines == 0 ? "" : $" {Count(report.DamagedLines, "damaged line")} skipped.";
        string compared = report.BytesAllocChecked == 0
            ? "No request named a slot size to compare with"
            : $"All {N(report.BytesAllocChecked)} requests that name a slot size got the kernel's";
        return $"{compared}; no allocation failed, no rule was broken, and at the end "
            + $"{Count(report.LiveObjects, "object")} ({Bytes(report.LiveBytes)}) and {Count(report.LivePages, "page")} "
            + $"of the recording were in use.{skipped}";
    }

    private static void WriteEvents(IAnsiConsole console, ReplayReport report)
    {
        Table table = Screen.Table("what happened", ">events", "");
        table.Row("allocations", N(report.Allocs),
            $"kmalloc {N(report.KmallocAllocs)}, caches {N(report.CacheAllocs)}, pages {N(report.PageAllocs)}");
        table.Row("frees", N(report.Frees), $"objects {N(report.ObjectFrees)}, pages {N(report.PageFrees)}");
        table.Row("failed here", N(report.FailedAllocs), "though the recorded kernel had memory");
        void Optional(string what, long count, string meaning)
        {
            if (count > 0) table.Row(what, N(count), meaning);
        }

        Optional("failed there", report.TracedFailures, "in the recorded kernel; not replayed");
        Optional("unknown frees", report.UnknownFrees, "of what was allocated before the recording, or untraced");
        Optional("frees of nothing", report.NullFrees, "kfree of NULL or of kmalloc(0)");
        Optional("frees of failures", report.FreesOfFailedAllocs, "of what the kernel had got and this machine had not");
        Optional("missed frees", report.MissedFrees, "an address was given out again with no free before: freed then");
        Optional("slab pages", report.SlabPagesRecognised, "the recorded slabs' own; this machine's SLUB asks for its own");
        Optional("large kmalloc pages", report.LargeKmallocPagesRecognised, "behind a kmalloc of more than 8 KiB");
        Optional("frees of such pages", report.SlabPageFrees, "likewise");
        Optional("vmalloc areas", report.VmapAllocs + report.VmapFrees,
            $"given out {N(report.VmapAllocs)}, freed {N(report.VmapFrees)}; {Count(report.VmapPurges, "purge")}");
        Optional("not replayed", report.SkippedEvents, "announcements, markers, other tracepoints");
        Optional("other CPUs", report.FoldedCpuEvents, "events of CPUs that this machine does not have, on one that it has");
        Optional("lost", report.LostEvents, "the kernel says that it lost these");
        Optional("damaged lines", report.DamagedLines, "skipped");
        Optional("unknown GFP names", report.UnknownGfpCount, string.Join(", ", report.UnknownGfpNames));
        console.Write(table);
    }

    private static void WriteDamage(IAnsiConsole console, ReplayReport report)
    {
        if (report.DamagedLines == 0) return;
        console.Heading("Damaged lines");
        foreach (TraceDamage damage in report.Damage.Take(MaxDamageShown))
            console.Paragraph(
                $"  line {N(damage.Line)}: {damage.Reason}{(damage.Excerpt.Length > 0 ? $": {damage.Excerpt}" : "")}");
        long more = report.DamagedLines - Math.Min(report.Damage.Count, MaxDamageShown);
        if (more > 0) console.WriteLine($"  and {N(more)} more");
    }

    private static void WriteSlots(IAnsiConsole console, ReplayReport report)
    {
        Table table = Screen.Table("slot sizes", ">compared", ">as the kernel's", ">share");
        table.Row("kmalloc", N(report.KmallocChecked), N(report.KmallocEqual),
            Share(report.KmallocEqual, report.KmallocChecked));
        table.Row("caches", N(report.CacheChecked), N(report.CacheEqual), Share(report.CacheEqual, report.CacheChecked));
        console.Write(table);
        if (report.Mismatches.Count == 0) return;

        Table differences = Screen.Table(">line", "difference", ">kernel", ">here");
        foreach (ReplayMismatch it in report.Mismatches)
            differences.Row(N(it.Line), it.What, $"{it.Expected}", $"{it.Got}");
        console.Write(differences);
    }

    private static void WriteCaches(IAnsiConsole console, ReplayReport report, int top)
    {
        CacheReport[] shown = [.. report.Caches.Take(top)];
        if (shown.Length == 0) return;
        Table table = Screen.Table("cache", ">slot", ">live", ">peak", ">slabs", ">waste", ">free slots", ">equal");
        foreach (CacheReport it in shown)
        {
            table.Row(it.Name, N(it.SlotSize), N(it.LiveObjects), N(it.PeakObjects), N(it.Slabs),
                Bytes(it.InternalWasteBytes), Bytes(it.FreeSlotBytes), Share(it.Equal, it.Checked));
        }
        console.Write(table);
        console.Paragraph(Rest(shown.Length, report.Caches.Count, "cache")
            + "Waste: bytes in the live objects' slots that nobody asked for. "
            + "Equal: requests whose slot has the kernel's size.");
    }

    private static void WriteZones(IAnsiConsole console, ReplayReport report)
    {
        if (report.Zones.Count == 0) return;
        bool manyNodes = report.Zones.Any(zone => zone.Node != report.Zones[0].Node);
        Table table = Screen.Table(["zone", "", .. Enumerable.Range(0, PageOrder.Count).Select(order => $">{order}")]);
        for (int i = 0; i < table.Columns.Count; i++)
        {
            table.Columns[i].NoWrap = true;
            table.Columns[i].Padding = new Padding(i < 2 ? 1 : 0, 0, 0, 0);     // eleven orders, in 80 columns
        }
        foreach (ZoneReport zone in report.Zones)
        {
            string name = manyNodes ? $"{zone.Node} {zone.Name}" : zone.Name;
            table.Row([name, "blocks", .. zone.FreeBlocks.Select(count => $"{count}")]);
            table.Row(["", "extfrag", .. zone.ExtfragIndex.Select(i => i < 0 ? "-" : F(i, "0.00"))]);
            table.Row(["", "unusable", .. zone.UnusableIndex.Select(i => F(i, "0.00"))]);
        }
        console.Write(table);
        console.Paragraph("Blocks: free blocks of 2^order pages. Extfrag: why an allocation would fail, towards 0 for lack of "
            + "memory, towards 1 for fragmentation; - if it would not. Unusable: part of the free memory in smaller blocks. "
            + "Beside them, the CPUs' own lists hold "
            + $"{Count(report.Zones.Sum(zone => zone.PcpFrames), "page")}.");
    }

    private static void WriteCallSites(IAnsiConsole console, ReplayReport report, int top)
    {
        CallSiteReport[] shown = [.. report.CallSites.Where(it => it.LiveObjects > 0).Take(top)];
        if (shown.Length == 0) return;
        Table table = Screen.Table(">holds", ">objects", ">allocations", "caller");
        foreach (CallSiteReport it in shown)
            table.Row(Bytes(it.LiveBytes), N(it.LiveObjects), N(it.Allocs), it.Name);
        console.Write(table);
    }

    private static void WriteViolations(IAnsiConsole console, ReplayReport report)
    {
        if (report.Violations == 0) return;
        console.Heading("Broken rules");
        foreach (string text in report.ViolationTexts) console.Paragraph($"  {text}");
        long more = report.Violations - report.ViolationTexts.Count;
        if (more > 0) console.WriteLine($"  and {N(more)} more");
    }

    private static string Rest(int shown, int all, string what) =>
        shown == all ? "" : $"{shown} of {Count(all, what)}, those with the most live memory. ";

    private static string Bytes(long bytes) => ByteSize.Format((ulong)Math.Max(0, bytes));

    private static string Share(long part, long whole)
    {
        if (whole == 0) return "-";
        // Only what is all may be called 100 %.
        double percent = Math.Floor(1000.0 * part / whole) / 10;
        return part == whole ? "100 %" : $"{F(percent, "0.0")} %";
    }

    private static string Count(long count, string what) => count == 1 ? $"1 {what}" : $"{N(count)} {what}s";

    private static string N(long number) => number.ToString("N0", CultureInfo.InvariantCulture);

    private static string Rate(double perSecond) => perSecond >= 1e6
        ? $"{F(perSecond / 1e6, "0.0")} million"
        : N((long)(perSecond / 1000) * 1000);

    private static string F(double number, string format) => number.ToString(format, CultureInfo.InvariantCulture);
}
