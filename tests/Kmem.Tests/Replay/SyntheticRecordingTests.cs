using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// Recordings of our own machine with several CPUs, whose operations stop in the middle while others act: the replay
/// has to come to the same results and the same state.
/// </summary>
public sealed class SyntheticRecordingTests
{
    private const ulong MiB = 1 << 20;

    [Theory]
    [InlineData(1, 1, 2048, 5000, 0)]
    [InlineData(2, 2, 2048, 5000, 0)]
    [InlineData(3, 2, 2048, 5000, 3)]
    [InlineData(4, 4, 8192, 5000, 3)]
    public void Every_result_of_several_cpus_is_exact(int seed, int cpus, int mib, int operations, int mayPause)
    {
        var options = new MachineOptions { Profile = KernelProfile.Linux618, Cpus = cpus, RamBytes = (ulong)mib * MiB };

        StatePrediction prediction = Predict(options, seed, operations, mayPause, out SyntheticRecording recording);

        AssertExact(prediction);
        Assert.True(prediction.VmapAllocs == 0 || prediction.VmapAllocs > 10);
        Assert.True(mayPause == 0 || recording.Pauses > 10, $"{recording.Pauses} pauses");
    }

    [Theory]
    [InlineData(8, 1, 48, 5000, 0)]
    [InlineData(2, 1, 64, 6000, 0)]
    [InlineData(6, 2, 48, 6000, 3)]
    [InlineData(11, 2, 64, 4000, 0)]
    [InlineData(7, 4, 64, 5000, 2)]
    public void Every_result_is_exact_where_requests_fail(int seed, int cpus, int mib, int operations, int mayPause)
    {
        var options = new MachineOptions { Cpus = cpus, RamBytes = (ulong)mib * MiB };

        StatePrediction prediction = Predict(options, seed, operations, mayPause, out SyntheticRecording recording);

        AssertExact(prediction);
        Assert.True(recording.Failures > 50, $"{recording.Failures} requests failed");
        Assert.True(mayPause == 0 || recording.Pauses > 10, $"{recording.Pauses} pauses");
    }

    private static void AssertExact(StatePrediction prediction)
    {
        Assert.Null(prediction.First);
        Assert.Empty(prediction.Differences);
        Assert.Equal(0, prediction.UnknownEvents);
        Assert.True(prediction.IsExact);
        Assert.True(prediction.PageAllocs > 100 && prediction.SlabAllocs > 1000 && prediction.ZoneEvents > 100);
    }

    private static StatePrediction Predict(
        MachineOptions options, int seed, int operations, int mayPause, out SyntheticRecording made)
    {
        string folder = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}");
        Directory.CreateDirectory(folder);
        try
        {
            using var recording = new SyntheticRecording(options, seed, mayPause);
            recording.Warm(operations / 4);
            recording.Record(folder, operations);
            made = recording;
            return StatePrediction.Run(folder);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }
}
