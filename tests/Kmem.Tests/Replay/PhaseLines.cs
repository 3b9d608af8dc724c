using System.IO.Compression;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>The lines of a recorded phase, to be changed and predicted again.</summary>
internal static class PhaseLines
{
    public static string[] Read(string phase) =>
        TestData.ReadGzip($"boot-1cpu/{phase}/events.tsv.gz").TrimEnd('\n').Split('\n');

    /// <summary>Where the lines of one kind are.</summary>
    public static int[] Of(string[] lines, string kind) =>
        [.. Enumerable.Range(1, lines.Length - 1)
            .Where(i => lines[i].Contains($"\t{kind}\t", StringComparison.Ordinal))];

    /// <summary>Answers that differ, of every kind that is counted.</summary>
    public static long Wrong(StatePrediction it) =>
        it.PageAllocs - it.PageAllocsExact + it.ZoneEvents - it.ZoneEventsExact
        + it.SlabAllocs - it.SlabAllocsExact + it.VmapAllocs - it.VmapAllocsExact;

    public static StatePrediction Predict(string phase, IEnumerable<string> lines) => Predict(
        TestData.PathOf($"boot-1cpu/{phase}/state-t0.json.gz"),
        TestData.PathOf($"boot-1cpu/{phase}/state-t1.json.gz"),
        lines);

    public static StatePrediction Predict(string before, string after, IEnumerable<string> lines)
    {
        string folder = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}");
        Directory.CreateDirectory(folder);
        try
        {
            File.Copy(before, Path.Combine(folder, "state-t0.json.gz"));
            File.Copy(after, Path.Combine(folder, "state-t1.json.gz"));
            using (var packed = new StreamWriter(new GZipStream(
                File.Create(Path.Combine(folder, "events.tsv.gz")), CompressionLevel.Fastest)))
            {
                foreach (string line in lines)
                    packed.WriteLine(line);
            }

            return StatePrediction.Run(folder);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }
}
