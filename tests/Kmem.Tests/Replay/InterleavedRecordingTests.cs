using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// Recordings of several CPUs in which one acts in the middle of another's request: a request stands where it looked at
/// the list of its CPU, and what it does in the zone comes at its zone events.
/// </summary>
public sealed class InterleavedRecordingTests
{
    private const int FirstArgument = 6;

    /// <summary>
    /// <code>X₀ Y₀ PA₁ PZ₁   becomes   PA₁ X₀ Y₀ PZ₁</code>
    /// CPU 1 came first to its list, and others were before it at the lock of the zone.
    /// </summary>
    [Theory]
    [InlineData(21, 2, 1024)]
    [InlineData(22, 4, 1024)]
    [InlineData(23, 2, 64)]
    public void The_lock_of_the_zone_decides(int seed, int cpus, int mib)
    {
        const int Lines = 40;
        int overtaken = 0;
        StatePrediction prediction = Predict(seed, cpus, mib, lines =>
        {
            for (int at = 2; at + 1 < lines.Count; at++)
            {
                if (!IsKind(lines, at, "PA") || Fields(lines[at])[^1] == "buddy" || !IsZoneEvent(lines, at + 1))
                    continue;

                int to = at;
                while (to > 1 && at - to < Lines && MayOvertake(lines[to - 1], CpuOf(lines[at])))
                    to--;
                overtaken += Enumerable.Range(to, at - to).Count(i => IsZoneEvent(lines, i));
                string request = lines[at];
                lines.RemoveAt(at);
                lines.Insert(to, request);
            }
        });

        Assert.True(overtaken > 0, "nothing was moved");
        Assert.Null(prediction.First);
        Assert.Empty(prediction.Differences);
        Assert.True(prediction.IsExact);
    }

    /// <summary>
    /// Blocks straight from the buddy system: their zone events stand before them, and others act in between.
    /// </summary>
    [Theory]
    [InlineData(24, 2, 1024)]
    [InlineData(25, 2, 64)]
    public void A_block_from_the_buddy_system_is_taken_at_its_zone_event(int seed, int cpus, int mib)
    {
        int moved = 0;
        StatePrediction prediction = Predict(seed, cpus, mib, lines =>
        {
            for (int at = 1; at + 2 < lines.Count; at++)
            {
                if (!IsKind(lines, at, "PA") || Fields(lines[at])[^1] != "buddy" || !IsZoneEvent(lines, at + 1))
                    continue;

                int end = at + 1;
                while (IsZoneEvent(lines, end))
                    end++;
                int next = end;
                string who = Who(lines[at]);
                while (next < lines.Count && next < end + 3 && lines[next][0] != '+' && Who(lines[next]) != who)
                    next++;
                if (next < lines.Count && lines[next][0] == '+')
                    continue;
                string request = lines[at];
                lines.Insert(next, request);
                lines.RemoveAt(at);
                moved += next - end;
                at = next;
            }
        });

        Assert.True(moved > 0, "nothing was moved");
        Assert.Null(prediction.First);
        Assert.Empty(prediction.Differences);
        Assert.True(prediction.IsExact);
    }

    private static StatePrediction Predict(int seed, int cpus, int mib, Action<List<string>> change)
    {
        const int Operations = 6000;
        string folder = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}");
        Directory.CreateDirectory(folder);
        try
        {
            var options = new MachineOptions { Cpus = cpus, RamBytes = (ulong)mib << 20 };
            using var recording = new SyntheticRecording(options, seed, mayPause: 0);
            recording.Warm(Operations / 4);
            recording.Record(folder, Operations);
            List<string> lines = [.. File.ReadAllLines(Path.Combine(folder, "events.tsv"))];
            change(lines);
            return PhaseLines.Predict(
                Path.Combine(folder, "state-t0.json.gz"), Path.Combine(folder, "state-t1.json.gz"), lines);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static string[] Fields(string line) => line.Split('\t');

    /// <summary>Not what its own CPU does, nor a drain, which may be of its list.</summary>
    private static bool MayOvertake(string line, string cpu) =>
        line[0] != '+' && Fields(line)[5] != "PD" && CpuOf(line) != cpu;

    private static string CpuOf(string line) => Fields(line)[2];

    private static bool IsKind(List<string> lines, int at, string kind) =>
        lines[at].Split('\t') is { Length: > FirstArgument } fields && fields[5] == kind;

    private static bool IsZoneEvent(List<string> lines, int at) =>
        at < lines.Count && (IsKind(lines, at, "PZ") || IsKind(lines, at, "PX"));

    /// <summary>Interrupts are a CPU's own, tasks have a number.</summary>
    private static string Who(string line) => string.Join(' ', Fields(line)[2..5]);
}
