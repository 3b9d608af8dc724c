using System.Globalization;
using Kmem.Tool.Bench;
using Kmem.Tool.Commands;
using Spectre.Console;

namespace Kmem.Tool.Output;

/// <summary>The text of <c>kmem bench</c>: one line for each workload, then all numbers.</summary>
internal static class BenchText
{
    internal static void Write(IAnsiConsole console, BenchJson result)
    {
        MachineFacts machine = result.Machine;
        console.Paragraph($"{machine.Cpu}, {machine.Cores} CPUs; {machine.Os}; {machine.Runtime}");
        string versions = string.Join(", ", result.Versions.Select(it => $"{it.Key} {it.Value}"));
        if (versions.Length > 0) console.Paragraph(versions);
        if (result.Missing.Count > 0) console.Paragraph($"not installed: {string.Join(", ", result.Missing)}");

        console.Heading("Nanoseconds per operation, the best of many rounds");
        Table table = Screen.Table("workload", ">Kmem", ">best peer", "", ">NativeMemory", ">ratio", ">goal", "");
        foreach (WorkloadJson it in result.Workloads.Where(it => !ByMemory(it)))
        {
            table.Row(it.Name, Of(it.Ns, it.Judged), it.Best is { } best ? Of(it.Ns, best) : "", it.Best ?? "",
                Of(it.Ns, "NativeMemory"), Ratio(it.Ratio), Goal(it), Verdict(it));
        }
        console.Write(table);

        WorkloadJson[] memory = [.. result.Workloads.Where(it => it.ResidentBytes is not null)];
        if (memory.Length > 0) WriteMemory(console, memory);

        console.Heading("All numbers: best round (median of the rounds)");
        foreach (WorkloadJson it in result.Workloads)
        {
            console.Paragraph($"{it.Name}: {it.What}");
            console.Paragraph("  " + string.Join("; ", it.Ns.Select(pair =>
                $"{pair.Key} {Nanoseconds(pair.Value)} ({Nanoseconds(it.MedianNs[pair.Key])})")));
            if (it.EventsPerSecond is { } rate)
                console.Paragraph(string.Create(CultureInfo.InvariantCulture, $"  {rate:N0} events per second"));
            foreach (string error in it.Errors) console.Paragraph($"  FAILED {error}");
        }
        console.WriteLine();
        foreach (string note in result.Notes) console.Paragraph(note);
        console.WriteLine();
        WriteVerdict(console, result);
    }

    private static void WriteMemory(IAnsiConsole console, WorkloadJson[] workloads)
    {
        console.Heading("Resident memory above what was there before");
        Table table = Screen.Table("workload", ">Kmem", ">best peer", "", ">ratio", ">goal", "");
        foreach (WorkloadJson it in workloads)
        {
            string? best = it.ResidentBytes!.Where(pair => pair.Key != it.Judged).OrderBy(pair => pair.Value)
                .Select(pair => pair.Key).FirstOrDefault();
            bool judged = ByMemory(it);
            table.Row(it.Name, Bytes(it.ResidentBytes!, it.Judged), best is null ? "" : Bytes(it.ResidentBytes!, best),
                best ?? "", judged ? Ratio(it.Ratio) : "", judged ? Goal(it) : "", judged ? Verdict(it) : "");
        }
        console.Write(table);
        foreach (WorkloadJson it in workloads.Where(it => it.AfterFreeBytes is not null))
        {
            console.Paragraph($"{it.Name}, {ByteSize.Format((ulong)(it.LiveBytes ?? 0))} live. Resident then, after all "
                + "was freed, and after the allocator was asked to give back what it can:");
            foreach (string name in it.ResidentBytes!.Keys)
            {
                console.Paragraph($"  {name}: {Bytes(it.ResidentBytes!, name)}, {Bytes(it.AfterFreeBytes!, name)}, "
                    + Bytes(it.AfterTrimBytes!, name));
            }
        }
    }

    private static void WriteVerdict(IAnsiConsole console, BenchJson result)
    {
        WorkloadJson[] judged = [.. result.Workloads.Where(it => it.Reached is not null)];
        string[] missed = [.. judged.Where(it => it.Reached == false).Select(it => it.Name)];
        console.Paragraph(missed.Length == 0
            ? $"All {judged.Length} goals were reached."
            : $"{judged.Length - missed.Length} of {judged.Length} goals were reached; missed: "
                + $"{string.Join(", ", missed)}.");
    }

    private static bool ByMemory(WorkloadJson it) => it.Name is "footprint" or "mleak";

    private static string Of(IReadOnlyDictionary<string, double> ns, string name) =>
        ns.TryGetValue(name, out double value) ? Nanoseconds(value) : "";

    private static string Nanoseconds(double value) =>
        value.ToString(value < 100 ? "0.00" : "N0", CultureInfo.InvariantCulture);

    private static string Bytes(IReadOnlyDictionary<string, long> bytes, string name) =>
        bytes.TryGetValue(name, out long value) ? ByteSize.Format((ulong)Math.Max(0, value)) : "";

    private static string Ratio(double? ratio) => ratio?.ToString("0.00", CultureInfo.InvariantCulture) ?? "";

    private static string Goal(WorkloadJson it) => it.Goal.ToString("0.##", CultureInfo.InvariantCulture);

    private static string Verdict(WorkloadJson it) =>
        it.Errors.Count > 0 ? "FAILED" : it.Reached switch { true => "reached", false => "missed", null => "" };
}
