using Spectre.Console;

namespace Kmem.Tool.Output;

/// <summary>The text of <c>kmem geometry --table</c>: what differs, why, and one sentence.</summary>
internal static class GeometryText
{
    internal static void Write(IAnsiConsole console, GeometryReport report)
    {
        GeometryComparison comparison = report.Comparison;
        if (comparison.Different.Count > 0)
        {
            Table table = Screen.Table("cache", "field", ">table", ">computed", "");
            foreach (GeometryDifference it in comparison.Different)
                table.Row(it.Name, it.Field, $"{it.Expected}", it.Computed is { } n ? $"{n}" : "none", it.Error ?? "");
            console.Write(table);
        }
        if (report.Note is { } note)
        {
            console.Paragraph(note);
            console.WriteLine();
        }

        if (report.Assumed.Count > 0)
        {
            console.Paragraph(
                $"{string.Join(", ", report.Assumed)}: taken with the free-pointer offset that Linux 6.18 gives it, which "
                + "sysfs does not show; --freeptr or a column freeptr_offset says otherwise.");
            console.WriteLine();
        }

        string cpus = report.Cpus == 1 ? "1 CPU" : $"{report.Cpus} CPUs";
        string differ = report.DifferentCaches.Count == 1 ? "1 differs" : $"{report.DifferentCaches.Count} differ";
        bool all = report.Explained.Count == report.DifferentCaches.Count;
        string ofThem = all ? "" : $"{report.Explained.Count} of them ";
        console.Paragraph(comparison.Different.Count == 0
            ? $"All {comparison.Rows} caches of the table come out equal, computed for {cpus}."
            : $"{comparison.Equal} of {comparison.Rows} caches of the table come out equal, computed for {cpus}; {differ}"
                + (report.Explained.Count > 0
                    ? $", {ofThem}only for want of a free-pointer offset."
                    : "."));
    }
}
