using System.IO.Compression;
using System.Text;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>A machine's state as a file: written, read, and the machine goes on as if nothing had happened.</summary>
public sealed unsafe class MachineStateTests
{
    [Theory]
    [InlineData(1, 1)]
    [InlineData(2, 1)]
    [InlineData(4, 2)]
    public void A_restored_machine_answers_as_the_original_does(int cpus, int nodes)
    {
        string path = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}.json.gz");
        try
        {
            var options = new MachineOptions { Profile = KernelProfile.Linux618, Cpus = cpus, Nodes = nodes, RamBytes = 512UL << 20 };
            using Machine original = Machine.Boot(options);
            var live = new List<(ulong Address, char Kind)>();
            Work(original, live, seed: 1, operations: 3000, out _);
            original.SaveState(path);
            using Machine restored = Machine.LoadState(path, options);

            Assert.Empty(StateComparison.Compare(original.WriteState(), restored.WriteState()));
            Assert.Empty(restored.Validate());
            var copy = new List<(ulong, char)>(live);
            Work(original, live, seed: 2, operations: 3000, out List<ulong> expected);
            Work(restored, copy, seed: 2, operations: 3000, out List<ulong> came);
            Assert.Equal(expected, came);
            Assert.Empty(StateComparison.Compare(original.WriteState(), restored.WriteState()));
            Assert.Empty(restored.Validate());
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Theory]
    [InlineData("{")]
    [InlineData("[]")]
    [InlineData("null")]
    [InlineData("{}")]
    [InlineData("{\"zones\": 3}")]
    [InlineData("{\"nr_cpu\": 2, \"zones\": [{\"name\": \"DMA\", \"spanned\": 512, \"present\": 512}]}")]
    public void What_is_no_state_is_refused_with_the_files_name(string text)
    {
        string path = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}.json");
        try
        {
            File.WriteAllText(path, text);
            Assert.StartsWith(path, Assert.Throws<InvalidDataException>(() => Machine.LoadState(path)).Message, StringComparison.Ordinal);
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Theory]
    [InlineData("state-t0.json.gz")]
    [InlineData("state-t1.json.gz")]
    [InlineData("events.tsv.gz")]
    public void A_truncated_file_is_refused(string name)
    {
        using var folder = new PhaseCopy("00-slab");
        byte[] whole = File.ReadAllBytes(folder.PathOf(name));
        File.WriteAllBytes(folder.PathOf(name), whole[..(whole.Length / 2)]);

        InvalidDataException error = Assert.Throws<InvalidDataException>(() => StatePrediction.Run(folder.Path));

        Assert.Contains(name, error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("1\t1.0\t0\t.....\t1\tPA\t1\t0", "PA has 2 fields, expected 5")]
    [InlineData("1\t1.0\t0\t.....\t1\tPA\tx\t0\t1\tcca\tpcp", "expected a number")]
    [InlineData("1\t1.0\t9\t.....\t1\tPF\t5\t0\tpcp", "no CPU 9")]
    [InlineData("+\tffff888000000000", "did not begin")]
    public void A_wrong_line_is_named(string line, string rule)
    {
        using var folder = new PhaseCopy("00-slab");
        folder.WriteEvents(line);

        InvalidDataException error = Assert.Throws<InvalidDataException>(() => StatePrediction.Run(folder.Path));

        Assert.Contains("line 2", error.Message, StringComparison.Ordinal);
        Assert.Contains(rule, error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("1\t1.0\t0\t.....\t1\tKA\tnobody\tffff888000100000\t8\tcc0", "no cache nobody")]
    [InlineData("1\t1.0\t0\t.....\t1\tPF\t99999999\t0\tpcp", "no such frame")]
    public void What_the_state_does_not_have_counts_as_a_difference(string line, string reason)
    {
        using var folder = new PhaseCopy("00-slab");
        folder.WriteEvents(line);

        StatePrediction prediction = StatePrediction.Run(folder.Path);

        Assert.Contains(reason, prediction.First, StringComparison.Ordinal);
        Assert.Equal(0, prediction.SlabAllocsExact);
    }

    [Theory]
    [InlineData("grace period")]
    [InlineData("random order")]
    [InlineData("5 levels")]
    [InlineData("changed rights")]
    [InlineData("devices")]
    [InlineData("vm_map_ram")]
    [InlineData("sparse")]
    [InlineData("per-CPU")]
    [InlineData("stacks")]
    [InlineData("address spaces")]
    public void What_a_state_has_no_place_for_is_refused_by_name(string what)
    {
        string path = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}.json");
        using Machine machine = Machine.Boot(new MachineOptions
        {
            RamBytes = 256UL << 20,
            SlabFreelistRandom = what == "random order",
            PageTableLevels = what == "5 levels" ? 5 : 4,
        });
        Assert.SkipWhen(AddressWindow.WhyUnsupported(machine.Ram) != null, "no address window on this host");
        machine.CpuSet.Pin(0);
        int reader = machine.Slabs.Rcu.ReadLock();
        using IDisposable? kept = Use(machine, what);

        string message = Assert.Throws<InvalidOperationException>(() => machine.SaveState(path)).Message;

        machine.Slabs.Rcu.ReadUnlock(reader);
        Assert.Contains(what, message, StringComparison.Ordinal);
        Assert.False(File.Exists(path));
    }

    private static IDisposable? Use(Machine machine, string what)
    {
        switch (what)
        {
            case "grace period":
                machine.Slabs.Rcu.Call(() => { });
                break;
            case "5 levels":
                machine.Vmalloc(5000);
                break;
            case "changed rights":
                machine.SetMemoryRo(machine.Vmalloc(4096), 1);
                break;
            case "devices":
                machine.AddDevice(new PhysAddr(0xfd00_0000), 1 << 20, "card");
                machine.Ioremap(new PhysAddr(0xfd00_0000), 8192);
                break;
            case "vm_map_ram":
                Span<Pfn> frames = [new Pfn(machine.Map.PfnOf(machine.Pages.Alloc(Gfp.Kernel, 0, -1)))];
                Assert.False(machine.VmMapRam(frames) == null);
                break;
            case "sparse":
                machine.GetVmArea(1 << 20);
                break;
            case "per-CPU":
                machine.AllocPercpu(64, 8);
                break;
            case "stacks":
                machine.AllocThreadStack();
                break;
            case "address spaces":
                return machine.CreateAddressSpace();
        }

        return null;
    }

    [Fact]
    public void An_unknown_kind_of_event_is_counted_and_passed_over()
    {
        using var folder = new PhaseCopy("00-slab");
        folder.WriteEvents("1\t1.0\t0\t.....\t1\tQQ\t1");

        StatePrediction prediction = StatePrediction.Run(folder.Path);

        Assert.Equal((1L, "line 2: QQ"), (prediction.UnknownEvents, prediction.FirstUnknown));
    }

    [Fact]
    public void The_state_after_a_replay_can_be_read_again()
    {
        using var folder = new PhaseCopy("03-fork");
        StatePrediction prediction = StatePrediction.Run(folder.Path);
        prediction.SaveEndState(folder.PathOf("end.json.gz"));

        Assert.Empty(StateComparison.Compare(
            MachineState.Read(folder.PathOf("state-t1.json.gz")), MachineState.Read(folder.PathOf("end.json.gz"))));
    }

    private static void Work(
        Machine machine, List<(ulong Address, char Kind)> live, int seed, int operations, out List<ulong> answers)
    {
        var random = new Random(seed);
        List<ulong> given = answers = [];
        bool mayMap = AddressWindow.WhyUnsupported(machine.Ram) == null;
        for (int i = 0; i < operations; i++)
        {
            machine.CpuSet.Pin(random.Next(machine.Cpus));
            int kind = random.Next(10);
            int size = random.Next(1, 20000);
            if (kind < 4 && live.Count > 0)
            {
                int at = random.Next(live.Count);
                (ulong address, char its) = live[at];
                live.RemoveAt(at);
                if (its == 'v')
                    machine.Vfree(machine.VmallocIfUsed!.PointerOf(address));
                else if (its == 'k')
                    machine.Kfree(machine.Slabs.PointerOf(address));
                else
                    machine.Pages.Free(address, 0);
            }
            else if (kind < 8)
            {
                Add(machine.Slabs.KernelAddress(machine.Kmalloc((nuint)size, Gfp.Kernel)), 'k');
            }
            else if (kind == 8 && mayMap)
            {
                void* area = machine.Vmalloc((nuint)size);
                Add(machine.VmallocIfUsed!.AddressOf(area), 'v');
            }
            else
            {
                Add(machine.Map.PfnOf(machine.Pages.Alloc(Gfp.Kernel | Gfp.Movable, 0, -1)), 'p');
            }

            if (mayMap && random.Next(400) == 0)
                machine.VmUnmapAliases();
        }

        void Add(ulong address, char kind)
        {
            live.Add((address, kind));
            given.Add(address);
        }
    }

    /// <summary>A recorded phase that a test may damage.</summary>
    private sealed class PhaseCopy : IDisposable
    {
        public PhaseCopy(string phase)
        {
            Path = System.IO.Path.Combine(System.IO.Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}");
            Directory.CreateDirectory(Path);
            foreach (string name in (string[])["state-t0.json.gz", "state-t1.json.gz", "events.tsv.gz"])
                File.Copy(TestData.PathOf($"boot-1cpu/{phase}/{name}"), PathOf(name));
        }

        public string Path { get; }

        public string PathOf(string name) => System.IO.Path.Combine(Path, name);

        public void WriteEvents(string line)
        {
            using var packed = new GZipStream(File.Create(PathOf("events.tsv.gz")), CompressionLevel.Fastest);
            packed.Write(Encoding.UTF8.GetBytes($"seq\tts\tcpu\tctx\tpid\tev\targs\n{line}\n"));
        }

        public void Dispose() => Directory.Delete(Path, recursive: true);
    }
}
