using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// Complete states of a real kernel and the requests between them: every frame, zone event and object address comes out
/// as it did there, and so does the state at the end.
/// </summary>
public sealed class StatePredictionTests
{
    [Theory]
    [InlineData("00-slab", 152, 48, 12954, false)]
    [InlineData("00-slab", 152, 48, 12954, true)]
    [InlineData("01-page", 10740, 1885, 0, false)]
    [InlineData("03-fork", 5259, 0, 8662, false)]
    [InlineData("03-fork", 5259, 0, 8662, true)]
    [InlineData("09-tvm", 2517, 0, 1075, false)]
    public void Every_result_of_a_recorded_phase_is_exact(
        string phase, int pages, int zoneEvents, int objects, bool inSteps)
    {
        StatePrediction prediction = StatePrediction.Run(Folder(phase), inSteps);

        Assert.Null(prediction.First);
        Assert.Equal((pages, pages), (prediction.PageAllocs, prediction.PageAllocsExact));
        Assert.Equal((zoneEvents, zoneEvents), (prediction.ZoneEvents, prediction.ZoneEventsExact));
        Assert.Equal((objects, objects), (prediction.SlabAllocs, prediction.SlabAllocsExact));
        Assert.Equal(prediction.VmapAllocs, prediction.VmapAllocsExact);
        Assert.Empty(prediction.Differences);
    }

    [Fact]
    public void The_comparison_of_states_sees_differences()
    {
        MachineState before = MachineState.Read(Path.Combine(Folder("00-slab"), "state-t0.json.gz"));
        MachineState after = MachineState.Read(Path.Combine(Folder("00-slab"), "state-t1.json.gz"));

        Assert.NotEmpty(StateComparison.Compare(before, after));
        Assert.Empty(StateComparison.Compare(before, before));
    }

    /// <summary>No event says so, but an interrupt that found the idle task does.</summary>
    [Theory]
    [InlineData("57", 65807, -1)]
    [InlineData("0", 65806, 0)]
    public void A_cpu_that_went_idle_has_folded_its_counts(string task, long global, int difference)
    {
        string interrupt = $"999999\t9.9\t0\t..s..\t{task}\tCALL\tput_cpu_partial\t0\t0\t0\t0";
        string[] lines = [.. PhaseLines.Read("02-vm"), interrupt];

        StatePrediction prediction = PhaseLines.Predict("02-vm", lines);

        Assert.True(prediction.IsExact);
        ZoneState zone = prediction.EndState.Zones.First(its => its.Name == "DMA32");
        Assert.Equal((global, difference), (zone.VmStatNrFreePages, zone.Zonestat[0].NrFreePagesDiff));
    }

    [Theory]
    [InlineData("00-slab")]
    [InlineData("03-fork")]
    public void A_state_that_was_read_is_written_equal(string phase)
    {
        MachineState state = MachineState.Read(Path.Combine(Folder(phase), "state-t0.json.gz"));
        using Machine machine = Machine.FromState(state, new MachineOptions { Profile = KernelProfile.Linux618 });

        Assert.Empty(StateComparison.Compare(state, machine.WriteState()));
    }

    [Fact]
    public void A_wrong_answer_is_noticed()
    {
        // The same requests from another starting point: the two recordings follow each other, but are not the same.
        string folder = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}");
        Directory.CreateDirectory(folder);
        try
        {
            File.Copy(Path.Combine(Folder("01-page"), "state-t1.json.gz"), Path.Combine(folder, "state-t0.json.gz"));
            File.Copy(Path.Combine(Folder("01-page"), "state-t1.json.gz"), Path.Combine(folder, "state-t1.json.gz"));
            string[] lines =
            [
                "seq\tts\tcpu\tctx\tpid\tev\targs",
                "1\t1.0\t0\t.....\t1\tPA\t1\t0\t1\tcca\tpcp",
            ];
            File.WriteAllLines(Path.Combine(folder, "events.tsv.gz"), lines);

            StatePrediction prediction = StatePrediction.Run(folder);

            Assert.Equal(0, prediction.PageAllocsExact);
            Assert.Contains("PA 1 0 1 cca pcp: came frame ", prediction.First, StringComparison.Ordinal);
            Assert.NotEmpty(prediction.Differences);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Theory]
    [InlineData("01-page")]
    [InlineData("00-slab")]
    public void After_a_wrong_answer_it_goes_on_from_the_right_one(string phase)
    {
        // One line of the recording is left out, so the machine's state is not the kernel's from there on.
        string folder = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}");
        Directory.CreateDirectory(folder);
        try
        {
            File.Copy(Path.Combine(Folder(phase), "state-t0.json.gz"), Path.Combine(folder, "state-t0.json.gz"));
            File.Copy(Path.Combine(Folder(phase), "state-t1.json.gz"), Path.Combine(folder, "state-t1.json.gz"));
            string[] lines = TestData.ReadGzip($"boot-1cpu/{phase}/events.tsv.gz").Split('\n');
            int left = Array.FindIndex(lines, 500, line => line.Contains("\tPF\t") || line.Contains("\tKF\t"));
            File.WriteAllLines(Path.Combine(folder, "events.tsv.gz"), lines.Where((line, i) => i != left && line.Length > 0));

            StatePrediction prediction = StatePrediction.Run(folder);

            Assert.NotNull(prediction.First);
            Assert.InRange(prediction.PageAllocsExact, prediction.PageAllocs * 9 / 10, prediction.PageAllocs);
            Assert.InRange(prediction.SlabAllocsExact, prediction.SlabAllocs * 9 / 10, prediction.SlabAllocs);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static string Folder(string phase) => Path.GetDirectoryName(TestData.PathOf($"boot-1cpu/{phase}/state-t0.json.gz"))!;
}
