using System.Diagnostics;
using System.Text;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// Readers of what comes from outside, fed with real samples that were damaged at random: a seed each. They refuse with
/// their own exception or understand, in bounded time and memory. The readers of /proc and of trace lines have tests of
/// their own with more kinds of damage. <c>KMEM_FUZZ_ROUNDS</c> sets how many inputs each reader gets.
/// </summary>
public sealed class ReaderFuzzTests
{
    private const long MostBytes = 1L << 30;
    private static readonly TimeSpan s_longest = TimeSpan.FromSeconds(90);     // they take milliseconds; the machine may be busy

    [Fact]
    public void States_of_machines()
    {
        using Machine sample = SmallMachine();
        string path = Temporary();
        try
        {
            sample.SaveState(path);
            byte[] own = File.ReadAllBytes(path);
            Fuzz("states of machines", own, 300, input => LoadState(path, input), typeof(InvalidDataException));
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public void States_of_kernels()
    {
        string path = Temporary();
        byte[] recorded = Encoding.UTF8.GetBytes(TestData.ReadGzip("boot-1cpu/00-slab/state-t0.json.gz"));
        try
        {
            Fuzz("states of kernels", recorded, 60, input => LoadState(path, input), typeof(InvalidDataException));
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public void Areas_and_traces_of_the_vmalloc_space()
    {
        string areas = TestData.ReadGzip("vmap/r3/vmallocinfo.txt.gz");
        string[] lines = TestData.ReadGzip("vmap/r3/trace.txt.gz").Split('\n');
        byte[] trace = Encoding.UTF8.GetBytes(string.Join('\n', lines.Where((_, at) => at < 1500)));
        Type[] own = [typeof(InvalidDataException), typeof(ProcFormatException), typeof(TraceFormatException)];
        Fuzz("vmalloc areas", Encoding.UTF8.GetBytes(areas), 60, input => PredictVmap(input, trace), own);
        Fuzz("vmalloc traces", trace, 60, input => PredictVmap(Encoding.UTF8.GetBytes(areas), input), own);
    }

    [Fact]
    public void Tables_of_geometries() => Fuzz(
        "geometry tables",
        File.ReadAllBytes(TestData.PathOf("live-2cpu/slab-geometry.tsv")),
        800,
        input => GeometryTable.Read(new StringReader(Encoding.UTF8.GetString(input))).Compare(2),
        typeof(FormatException));

    [Fact]
    public void Images_of_modules()
    {
        var image = new ModuleImage("sample");
        image.Sections.Add(new ModuleSection(ModuleSectionKind.Text, 16, 200, new byte[100]));
        image.Sections.Add(new ModuleSection(ModuleSectionKind.Data, 16, 300, new byte[50]));
        image.Symbols.Add(new ModuleSymbol("entry", 0, 16));
        image.Relocations.Add(new ModuleRelocation(0, 8, ModuleRelocationType.Absolute64, 1, 4));
        using Machine machine = VmallocMachine.Boot(1);
        Fuzz("module images", image.ToArray(), 3000, input => machine.LoadModule(input).Dispose(),
            typeof(ModuleFormatException), typeof(OutOfMemoryException));
        VmallocMachine.AssertWhole(machine);
    }

    [Fact]
    public void Settings_of_debugging_and_fault_injection()
    {
        Fuzz("slab_debug settings", "FZPU,kmalloc-*;P,dentry;-,inode"u8.ToArray(), 3000,
            input => SlubDebugSetting.Parse(Encoding.UTF8.GetString(input)), typeof(ArgumentException));
        var log = new KernelLog();
        Fuzz("fault settings", "1,100,0,-1"u8.ToArray(), 3000,
            input => new FaultAttribute("failslab", 1, log).Apply(Encoding.UTF8.GetString(input)), typeof(ArgumentException));
    }

    /// <summary>A whole replay of a damaged trace: its reader skips what it cannot read, and the machine stays whole.</summary>
    [Fact]
    public void Replays_of_traces()
    {
        string[] lines = Encoding.UTF8.GetString(TraceText.Gunzip(TraceText.Recorded[0])).Split('\n');
        byte[] trace = Encoding.UTF8.GetBytes(string.Join('\n', lines.Take(3000)));
        Fuzz("replayed traces", trace, 40, input =>
        {
            using FtraceReader reader = FtraceReader.Open(new MemoryStream(input), "fuzz");
            using ReplayResult result = Kmem.Tracing.Replay.Run(reader, new ReplayOptions { RamBytes = 1UL << 30, Cpus = 4 });
            Assert.Empty(result.Machine.Validate());
        }, typeof(TraceFormatException), typeof(IOException));
    }

    private static unsafe Machine SmallMachine()
    {
        Machine machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, Cpus = 1, RamBytes = 8 << 20 });
        KmemCache cache = machine.CreateCache("sample", 100, flags: SlabFlags.NoMerge, sheafCapacity: 4);
        for (int i = 0; i < 60; i++)
        {
            void* obj = cache.Alloc(Gfp.Kernel);
            if (i % 3 == 0)
                cache.Free(obj);
        }

        machine.AllocPages(Gfp.Kernel, 2);
        return machine;
    }

    private static void LoadState(string path, byte[] input)
    {
        File.WriteAllBytes(path, input);
        using Machine machine = Machine.LoadState(path);
        machine.Validate();     // may find broken rules; must not break down over them
    }

    private static void PredictVmap(byte[] areas, byte[] trace)
    {
        using FtraceReader reader = FtraceReader.Open(new MemoryStream(trace), "fuzz");
        VmapPrediction.Run(new StringReader(Encoding.UTF8.GetString(areas)), reader);
    }

    private static string Temporary() => Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}.json");

    private static void Fuzz(string what, byte[] sample, int rounds, Action<byte[]> read, params Type[] own)
    {
        if (double.TryParse(Environment.GetEnvironmentVariable("KMEM_FUZZ_ROUNDS"), out double factor))
            rounds = (int)(rounds * factor);
        int refused = 0;
        for (int seed = 0; seed < rounds; seed++)
        {
            byte[] damaged = Damage(sample, new Random(seed));
            var watch = Stopwatch.StartNew();
            long before = GC.GetAllocatedBytesForCurrentThread();
            try
            {
                read(damaged);
            }
            catch (Exception error) when (own.Any(type => type.IsInstanceOfType(error)))
            {
                Assert.NotEmpty(error.Message);
                refused++;
            }
            catch (Exception error)
            {
                Assert.Fail($"{what}, seed {seed}: {error}");
            }

            Assert.True(watch.Elapsed < s_longest, $"{what}, seed {seed}: {watch.Elapsed}");
            long bytes = GC.GetAllocatedBytesForCurrentThread() - before;
            Assert.True(bytes < MostBytes, $"{what}, seed {seed}: {bytes} bytes");
        }

        Figures.Add("fuzzing", what, rounds);
        TestContext.Current.TestOutputHelper?.WriteLine($"{what}: {rounds} inputs, {refused} refused");
    }

    /// <summary>One to four accidents: bytes changed, cut, doubled, moved; numbers made extreme.</summary>
    private static byte[] Damage(byte[] sample, Random random)
    {
        List<byte> damaged = [.. sample];
        for (int i = random.Next(1, 5); i > 0 && damaged.Count > 0; i--)
        {
            int at = random.Next(damaged.Count);
            int length = Math.Min(random.Next(1, 20), damaged.Count - at);
            switch (random.Next(8))
            {
                case 0:
                    damaged[at] = (byte)random.Next(256);
                    break;
                case 1:
                    damaged.RemoveRange(at, length);
                    break;
                case 2:
                    damaged.InsertRange(random.Next(damaged.Count), damaged.GetRange(at, length));
                    break;
                case 3 when random.Next(4) == 0:
                    damaged.RemoveRange(at, damaged.Count - at);
                    break;
                default:
                    ChangeNumber(damaged, at, random);
                    break;
            }
        }

        return [.. damaged];
    }

    /// <summary>The next number of a text becomes another one, often an extreme one.</summary>
    private static void ChangeNumber(List<byte> text, int from, Random random)
    {
        int start = text.FindIndex(from, b => b is >= (byte)'0' and <= (byte)'9');
        if (start < 0)
            return;

        int end = text.FindIndex(start, b => b is < (byte)'0' or > (byte)'9');
        string[] numbers =
        [
            "0", "1", "-1", "7", "255", "4096", "2147483647", "2147483648", "4294967295", "9223372036854775807",
            "18446744073709551615", "99999999999999999999", random.Next(100_000).ToString(),
        ];
        text.RemoveRange(start, (end < 0 ? text.Count : end) - start);
        text.InsertRange(start, Encoding.ASCII.GetBytes(numbers[random.Next(numbers.Length)]));
    }
}
