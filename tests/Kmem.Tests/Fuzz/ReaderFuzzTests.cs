using System.IO.Compression;
using System.Text;
using Kmem.Tracing;
using static Kmem.Tests.Fuzzer;

namespace Kmem.Tests;

/// <summary>
/// Readers of what comes from outside, fed with real samples that were damaged at random: a seed each. They refuse with
/// their own exception or understand, in bounded time and memory. The readers of /proc and of trace lines have tests of
/// their own with more kinds of damage. <c>KMEM_FUZZ_ROUNDS</c> sets how many inputs each reader gets.
/// </summary>
public sealed class ReaderFuzzTests
{
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

    [Fact]
    public void Names_of_flags()
    {
        Texts("GFP names", "GFP_KERNEL|__GFP_ZERO|__GFP_COMP|0x100cca", 3000, text =>
        {
            bool known = GfpNames.TryParse(text, out Gfp gfp);
            Assert.Equal(known, GfpNames.TryParse(Encoding.UTF8.GetBytes(text), out Gfp same));
            Assert.Equal(gfp, same);
            Assert.True(!known || (GfpNames.TryParse(gfp.ToKernelString(), out Gfp again) && again == gfp), text);
        });
    }

    /// <summary>What the environment of a program may say about its shared machine, and names of profiles.</summary>
    [Fact]
    public void Settings_of_programs()
    {
        Texts("KMEM_SHARED_FRACTION", "0.25", 3000,
            text => Assert.True(Machine.ParseFraction(text) is null or (> 0 and <= 1), text));
        Texts("names of profiles", "linux-6.18", 1000, text => KernelProfile.Find(text));
    }

    /// <summary>Files of recorded events, as bytes: what is no line, and what is no gzip.</summary>
    [Fact]
    public void Recorded_events()
    {
        string path = Temporary();
        try
        {
            byte[] packed = File.ReadAllBytes(TestData.PathOf("boot-1cpu/00-slab/events.tsv.gz"));
            string[] lines = TestData.ReadGzip("boot-1cpu/00-slab/events.tsv.gz").Split('\n');
            byte[] plain = Encoding.UTF8.GetBytes(string.Join('\n', lines.Take(200)));
            Fuzz("recorded events", plain, 300, ReadEvents, typeof(InvalidDataException));
            Fuzz("packed events", packed, 60, ReadEvents, typeof(InvalidDataException));
        }
        finally
        {
            File.Delete(path);
        }

        void ReadEvents(byte[] input)
        {
            File.WriteAllBytes(path, input);
            RecordedEvents.Read(path);
        }
    }

    /// <summary>The page tables of a recorded kernel, beside its state, and walks through what came of them.</summary>
    [Fact]
    public void Recorded_page_tables()
    {
        string folder = Temporary();
        Directory.CreateDirectory(folder);
        try
        {
            File.Copy(TestData.PathOf("boot-1cpu/02-vm/state-t1.json.gz"), Path.Combine(folder, "state-t1.json.gz"));
            string tables = TestData.ReadGzip("boot-1cpu/02-vm/pagetables-t1.tsv.gz");
            byte[] head = Encoding.UTF8.GetBytes(string.Join('\n', tables.Split('\n').Take(100)));
            Fuzz("recorded page tables", head, 12, input =>
            {
                using (var file = new GZipStream(
                    File.Create(Path.Combine(folder, "pagetables-t1.tsv.gz")), CompressionLevel.Fastest))
                {
                    file.Write(input);
                }

                using RecordedKernel kernel = RecordedKernel.Read(folder);
                kernel.Walk(new VirtAddr(0xffff_c900_0000_0000));
            }, typeof(InvalidDataException));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    /// <summary>
    /// A whole replay of a damaged trace: its reader skips what it cannot read, and the machine stays whole.
    /// </summary>
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
}
