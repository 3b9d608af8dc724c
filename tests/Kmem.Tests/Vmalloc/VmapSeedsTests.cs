using System.Globalization;
using System.Text;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// Recordings like those of real kernels, made of an allocator of our own in the middle of its life: a listing of the
/// areas, and the events after it. The shape of the free tree is what long work has made of it, and is not told.
/// </summary>
public sealed class VmapSeedsTests
{
    [Fact]
    public void Recordings_of_other_seeds_are_predicted_as_well()
    {
        int seeds = int.TryParse(Environment.GetEnvironmentVariable("KMEM_VMAP_SEEDS"), out int wanted) ? wanted : 2;
        const int Requests = 1500;
        for (int seed = 1; seed <= seeds; seed++)
        {
            int cpus = 2 - (seed % 5 == 0 ? 1 : 0) + (seed % 7 == 0 ? 2 : 0);
            (string areas, string trace) = Record(seed, cpus, Requests);
            using FtraceReader reader = FtraceReader.Open(new MemoryStream(Encoding.UTF8.GetBytes(trace)), "the trace");

            VmapPredictionResult it = VmapPrediction.Run(new StringReader(areas), reader);

            string what = $"seed {seed}, {cpus} CPUs: {it.ExactInAdvance} in advance, {it.Exact} of {it.Allocs}; "
                + $"page-aligned {it.PageAlignedExactInAdvance}, {it.PageAlignedExact} of {it.PageAligned}; "
                + $"first shape {it.ExactWithFirstShape}, {it.ShapesTried} shapes";
            TestContext.Current.TestOutputHelper?.WriteLine(what);
            Assert.True(it.Allocs > Requests / 3, what);
            Assert.True(it.Exact >= it.Allocs * 98 / 100, what);
            Assert.True(it.PageAlignedExact >= it.PageAligned * 98 / 100, what);
        }
    }

    private static (string Areas, string Trace) Record(int seed, int cpus, int requests)
    {
        using Machine machine = Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            Cpus = cpus,
            RamBytes = 1UL << 30,
        });
        bool drain = false;
        using var vmap = new VmapAllocator(machine.Slabs, new VmapOptions()) { DrainScheduler = () => drain = true };
        var random = new Random(seed);
        var trace = new TraceLines();
        List<ulong> live = [];

        // Long before the recording: what nobody has seen.
        for (int i = 0; i < 20_000; i++)
            Step();
        vmap.PurgeLazy(full: false);
        vmap.ShrinkPools();
        string areas = List(vmap);
        trace.Add("tracing_mark_write: SNAP_BEGIN 0");
        trace.Add("tracing_mark_write: SNAP_END 0");
        vmap.Trace = trace;
        for (int i = 0; i < requests * 2; i++)
            Step();
        return (areas, trace.Text.ToString());

        unsafe void Step()
        {
            trace.Cpu = random.Next(cpus);
            machine.CpuSet.Pin(trace.Cpu);
            if (drain)
            {
                drain = false;
                vmap.PurgeLazy(full: false);
            }

            if (live.Count > 0 && random.Next(700) < live.Count)
            {
                int at = random.Next(4) == 0
                    ? random.Next(live.Count)
                    : live.Count - 1 - random.Next(Math.Min(live.Count, 20));
                vmap.FreeNoflush(vmap.Unlink(live[at]));
                live.RemoveAt(at);
                return;
            }

            (int pages, ulong align) = random.Next(10) switch
            {
                < 3 => (5, 16384UL),
                < 6 => (random.Next(2, 40), 4096UL),
                < 9 => (random.Next(2, 8), 1UL),
                _ => (random.Next(2, 300), 1UL),
            };
            VmapArea* area = vmap.Alloc(
                new VmapRequest((ulong)pages * Pfn.PageSize, align, vmap.Start, vmap.End), null, out _);
            Assert.True(area != null);
            live.Add(area->Start);
        }
    }

    private static string List(VmapAllocator vmap)
    {
        var text = new StringBuilder();
        VmapState state = vmap.Capture();
        foreach (VmapAreaState area in state.Nodes.SelectMany(node => node.Busy))
        {
            text.Append(
                CultureInfo.InvariantCulture,
                $"0x{area.Start:x16}-0x{area.End:x16} {area.End - area.Start,7} test+0x1/0x2 vmalloc\n");
        }

        return text.ToString();
    }

    private sealed class TraceLines : IVmapTrace
    {
        private int _ticks;

        public int Cpu { get; set; }

        public StringBuilder Text { get; } = new();

        public void Add(string what)
        {
            // So far apart that nothing can have happened at the same moment.
            _ticks += 5000;
            Text.Append(
                CultureInfo.InvariantCulture,
                $"  sh-1 [{Cpu:000}] ..... {1 + (_ticks / 1_000_000)}.{_ticks % 1_000_000:000000}: {what}\n");
        }

        public void AllocVmapArea(ulong address, in VmapRequest request, bool failed) => Add(
            $"alloc_vmap_area: va_start: {address} size={request.Size} align={request.Align} "
            + $"vstart=0x{request.RangeStart:x} vend=0x{request.RangeEnd:x} failed={(failed ? 1 : 0)}");

        public void FreeVmapAreaNoflush(ulong start, ulong lazyPages, ulong lazyMax) =>
            Add($"free_vmap_area_noflush: va_start=0x{start:x} nr_lazy={lazyPages} nr_lazy_max={lazyMax}");

        public void PurgeVmapAreaLazy(ulong start, ulong end, uint purged) =>
            Add($"purge_vmap_area_lazy: start=0x{start:x} end=0x{end:x} num_purged={purged}");
    }
}
