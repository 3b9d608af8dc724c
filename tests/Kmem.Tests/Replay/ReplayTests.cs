using System.Globalization;
using System.Text;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>Small traces written by hand, every number worked out.</summary>
public sealed class ReplayTests
{
    private const ulong A = 0xffff_8881_0000_1000, B = 0xffff_8881_0000_2000, C = 0xffff_8881_0000_3000;

    [Fact]
    public void EveryNumberOfALittleTrace()
    {
        // Line 4 is the first event. Frames 0x200 to 0x207 are a large kmalloc's own, and are at L.
        const ulong L = TraceWriter.DirectMap + (0x200 << 12);
        var trace = new TraceWriter(cpus: 2);
        trace.Kmalloc(A, 100, 128, site: "first+0x1/0x2");
        trace.Kmalloc(B, 100, 128, "GFP_KERNEL_ACCOUNT", accounted: true, site: "second+0x1/0x2");
        trace.Cpu = 1;
        trace.CacheAlloc("thing", C, 600, 640, site: "second+0x1/0x2");
        trace.CacheAlloc("thing", C + 640, 600, 640, site: "second+0x1/0x2");
        trace.PageAlloc(0x100, 2, "GFP_HIGHUSER_MOVABLE|__GFP_COMP");
        trace.Kfree(A).Kfree(0).Kfree(16).Kfree(0xffff_8881_dead_0000);
        trace.Line("this is no event");
        trace.CacheFree("thing", C).CacheFree("thing", 0xffff_8881_dead_0000);
        trace.PageFree(0x300, 0);
        trace.PageAlloc(0, 10).Kmalloc(0, 100, 128, "GFP_ATOMIC");
        trace.PageAlloc(0x200, 3, "GFP_KERNEL|__GFP_COMP").Kmalloc(L, 20000, 32768, site: "third+0x1/0x2");
        trace.Event("mm_page_free_batched: page=ffffea0000004000 pfn=0x100 order=0");
        trace.Event("tracing_mark_write: half way");
        trace.Line("CPU:1 [LOST 7 EVENTS]");

        using ReplayResult result = trace.Run();
        TraceWriter.CheckWhole(result);
        ReplayReport r = result.Report;
        Assert.Equal((18, 23, 1, 7), (r.Events, r.Lines, r.DamagedLines, r.LostEvents));
        Assert.Equal(13, Assert.Single(r.Damage).Line);
        Assert.Equal((6, 3, 2, 1), (r.Allocs, r.KmallocAllocs, r.CacheAllocs, r.PageAllocs));
        Assert.Equal((2, 2, 0), (r.Frees, r.ObjectFrees, r.PageFrees));
        Assert.Equal((3, 2, 2, 0), (r.UnknownFrees, r.NullFrees, r.TracedFailures, r.MissedFrees));
        Assert.Equal((0, 1, 0), (r.SlabPagesRecognised, r.LargeKmallocPagesRecognised, r.SlabPageFrees));
        Assert.Equal((2, 0, 0, 0), (r.SkippedEvents, r.FoldedCpuEvents, r.FailedAllocs, r.FreesOfFailedAllocs));
        Assert.Equal((5, 5, 3, 3, 2, 2), (
            r.BytesAllocChecked, r.BytesAllocEqual, r.KmallocChecked, r.KmallocEqual, r.CacheChecked, r.CacheEqual));
        Assert.Equal((3, 128 + 640 + 32768, 4), (r.LiveObjects, r.LiveBytes, r.LivePages));
        Assert.Equal((2, 1UL << 30), (r.Cpus, r.RamBytes));

        Assert.Equal(
            [
                new CacheReport
                {
                    Name = "kmalloc-large-32k", ObjectSize = 32768, SlotSize = 32768, ObjectsPerSlab = 1, Order = 3,
                    Allocs = 1, Frees = 0, LiveObjects = 1, PeakObjects = 1, Slabs = 1,
                    RequestedBytes = 20000, InternalWasteBytes = 12768, FreeSlotBytes = 0, Checked = 1, Equal = 1,
                },
                new CacheReport
                {
                    Name = "thing", ObjectSize = 600, SlotSize = 640, ObjectsPerSlab = 12, Order = 1,
                    Allocs = 2, Frees = 1, LiveObjects = 1, PeakObjects = 2, Slabs = 1,
                    RequestedBytes = 600, InternalWasteBytes = 40, FreeSlotBytes = 11 * 640, Checked = 2, Equal = 2,
                },
                new CacheReport
                {
                    Name = "kmalloc-cg-128", ObjectSize = 128, SlotSize = 128, ObjectsPerSlab = 32, Order = 0,
                    Allocs = 1, Frees = 0, LiveObjects = 1, PeakObjects = 1, Slabs = 1,
                    RequestedBytes = 100, InternalWasteBytes = 28, FreeSlotBytes = 31 * 128, Checked = 1, Equal = 1,
                },
                new CacheReport
                {
                    Name = "kmalloc-128", ObjectSize = 128, SlotSize = 128, ObjectsPerSlab = 32, Order = 0,
                    Allocs = 1, Frees = 1, LiveObjects = 0, PeakObjects = 1, Slabs = 1,
                    RequestedBytes = 0, InternalWasteBytes = 0, FreeSlotBytes = 32 * 128, Checked = 1, Equal = 1,
                },
            ],
            r.Caches);
        Assert.Equal(
            [
                new CallSiteReport
                {
                    Name = "third+0x1/0x2", LiveObjects = 1, LiveBytes = 32768, Allocs = 1, TotalBytes = 32768,
                },
                new CallSiteReport
                {
                    Name = "second+0x1/0x2", LiveObjects = 2, LiveBytes = 768, Allocs = 3, TotalBytes = 1408,
                },
                new CallSiteReport
                {
                    Name = "first+0x1/0x2", LiveObjects = 0, LiveBytes = 0, Allocs = 1, TotalBytes = 128,
                },
            ],
            r.CallSites);
    }

    [Fact]
    public void EachEventRunsOnItsCpu()
    {
        var trace = new TraceWriter(cpus: 3);
        for (int cpu = 0; cpu < 3; cpu++)
        {
            trace.Cpu = cpu;
            trace.CacheAlloc("thing", A + (ulong)(cpu * 64), 64, 64).PageAlloc(0x100 + (ulong)cpu);
        }

        using ReplayResult result = trace.Run();
        TraceWriter.CheckWhole(result);
        KmemCache things = result.Machine.Caches.Single(cache => cache.Name == "thing");
        Assert.Equal(3, things.SlabCount);          // each CPU has a slab of its own
        ZonePages normal = result.Machine.Pages.Zones.Last();
        for (int cpu = 0; cpu < 3; cpu++)
            Assert.True(PcpCount(normal, cpu) > 0, $"CPU {cpu} has filled its page list");
    }

    [Fact]
    public void AnAddressGivenOutTwiceWasFreedInBetween()
    {
        using ReplayResult result = new TraceWriter()
            .Kmalloc(A, 100, 128).Kmalloc(A, 10, 16).Kfree(A).Kfree(A)
            .PageAlloc(0x100).PageAlloc(0x100).PageFree(0x100).PageFree(0x100)
            .Run();
        TraceWriter.CheckWhole(result);
        ReplayReport r = result.Report;
        Assert.Equal((2, 1, 1, 2), (r.MissedFrees, r.ObjectFrees, r.PageFrees, r.UnknownFrees));
        Assert.Equal((0, 0), (r.LiveObjects, r.LivePages));
    }

    [Fact]
    public void BlocksThatOverlapWereFreedInBetween()
    {
        using ReplayResult result = new TraceWriter()
            .PageAlloc(0x100, 2).PageAlloc(0x101)               // the block of four is gone
            .PageAlloc(0x203).PageAlloc(0x200).PageAlloc(0x200, 2)
            .Run();
        TraceWriter.CheckWhole(result);
        Assert.Equal((3, 5), (result.Report.MissedFrees, result.Report.LivePages));
    }

    [Fact]
    public void ABlockCanBeFreedInParts()
    {
        var trace = new TraceWriter().PageAlloc(0x200, 9, "GFP_TRANSHUGE");
        for (ulong i = 0; i < 500; i++)
            trace.PageFree(0x200 + i);
        using (ReplayResult part = trace.Run())
        {
            TraceWriter.CheckWhole(part);
            Assert.Equal((500, 12, 0), (part.Report.PageFrees, part.Report.LivePages, part.Report.UnknownFrees));
        }

        trace.PageFree(0x200 + 500, 2).PageFree(0x200 + 504, 3);
        using ReplayResult whole = trace.Run();
        TraceWriter.CheckWhole(whole);
        Assert.Equal((502, 0, 0), (whole.Report.PageFrees, whole.Report.LivePages, whole.Report.UnknownFrees));
    }

    [Fact]
    public void SeveralBlocksCanBeFreedAsOne()
    {
        using ReplayResult result = new TraceWriter()
            .PageAlloc(0x200).PageAlloc(0x201).PageAlloc(0x203).PageFree(0x200, 2)
            .Run();
        TraceWriter.CheckWhole(result);
        Assert.Equal((1, 0, 0), (result.Report.PageFrees, result.Report.LivePages, result.Report.UnknownFrees));
    }

    [Fact]
    public void TheFirstEventOfACacheDecidesItsSlot()
    {
        using ReplayResult result = new TraceWriter()
            .CacheAlloc("thing", A, 600, 640).CacheAlloc("thing", A + 1024, 600, 704).CacheAlloc("odd", B, 600, 601)
            .Kmalloc(C, 100, 100)
            .Run();
        TraceWriter.CheckWhole(result);
        ReplayReport r = result.Report;
        Assert.Equal((4, 1), (r.BytesAllocChecked, r.BytesAllocEqual));
        Assert.Equal(
            [
                new ReplayMismatch(5, "bytes_alloc of thing, 600 bytes", 704, 640),
                new ReplayMismatch(6, "bytes_alloc of odd, 600 bytes", 601, 600),
                new ReplayMismatch(7, "bytes_alloc of kmalloc, 100 bytes", 100, 128),
            ],
            r.Mismatches);
    }

    [Fact]
    public void TheSlotOfEveryRealCacheIsFound()
    {
        string[] lines = File.ReadAllLines(TestData.PathOf("live-2cpu/slab-geometry.tsv"));
        List<string> header = [.. lines[0].Split('\t')];
        var trace = new TraceWriter(cpus: 2);
        var expected = new List<(string, long, long, long)>();
        foreach (string[] row in lines.Skip(1).Select(line => line.Split('\t')))
        {
            long Field(string name) => long.Parse(row[header.IndexOf(name)]);
            string name = "its " + row[0];
            trace.CacheAlloc(name, A + ((ulong)expected.Count << 16), Field("object_size"), Field("slab_size"));
            expected.Add((name, Field("slab_size"), Field("objs_per_slab"), Field("order")));
        }

        using ReplayResult result = trace.Run();
        TraceWriter.CheckWhole(result);
        Assert.Equal((235, 235), (result.Report.CacheChecked, result.Report.CacheEqual));
        Assert.Equal(
            expected.Order(),
            result.Report.Caches
                .Select(cache => (cache.Name, cache.SlotSize, cache.ObjectsPerSlab, (long)cache.Order)).Order());
    }

    [Theory]
    [InlineData(200, 200, 8, SlabFlags.None)]
    [InlineData(200, 256, 64, SlabFlags.HwcacheAlign)]
    [InlineData(96, 104, 8, SlabFlags.TypesafeByRcu)]
    [InlineData(192, 256, 64, SlabFlags.HwcacheAlign | SlabFlags.TypesafeByRcu)]
    [InlineData(600, 608, 8, SlabFlags.TypesafeByRcu)]
    [InlineData(601, 608, 8, SlabFlags.None)]
    [InlineData(40, 48, 8, SlabFlags.TypesafeByRcu)]
    [InlineData(600, 1024, 512, SlabFlags.None)]
    [InlineData(4096, 4608, 512, SlabFlags.TypesafeByRcu)]
    [InlineData(600, 8192, 8, SlabFlags.None)]              // by no rule: the plain way, and a mismatch
    public void TheFirstWayOfCreationThatGivesTheSlotIsTaken(int size, int slot, int align, SlabFlags flags)
    {
        using ReplayResult result = new TraceWriter().CacheAlloc("thing", A, size, slot).Run();
        TraceWriter.CheckWhole(result);
        KmemCache cache = result.Machine.Caches.Single(cache => cache.Name == "thing");
        Assert.Equal((size, align), (cache.ObjectSize, cache.Geometry.Align));
        Assert.Equal(flags, cache.Flags & (SlabFlags.HwcacheAlign | SlabFlags.TypesafeByRcu));
        Assert.Equal(cache.SlotSize == slot ? 1 : 0, result.Report.CacheEqual);
        Assert.Equal(slot != 8192, cache.SlotSize == slot);
    }

    [Fact]
    public void KernelsThatPrintNoNamesGetACachePerShape()
    {
        static string Alloc(ulong ptr, int req, int alloc) =>
            $"kmem_cache_alloc: call_site=c+0x1/0x2 ptr={ptr:x16} bytes_req={req} bytes_alloc={alloc} "
            + "gfp_flags=GFP_KERNEL";
        using ReplayResult result = new TraceWriter()
            .Event(Alloc(A, 192, 192)).Event(Alloc(B, 192, 192)).Event(Alloc(C, 192, 256))
            .Event($"kmem_cache_free: call_site=f+0x1/0x2 ptr={A:x16}")
            .Run();
        TraceWriter.CheckShape(result);
        Assert.Equal((3, 3, 1), (result.Report.CacheChecked, result.Report.CacheEqual, result.Report.ObjectFrees));
        Assert.Equal(
            [("unnamed-192", 256, 1), ("unnamed-192", 192, 1)],
            result.Report.Caches.Select(cache => (cache.Name, cache.SlotSize, cache.LiveObjects)));
    }

    [Fact]
    public void ACacheOfReclaimableSlabsIsToldByItsFirstSlab()
    {
        const string Slab = "GFP_KERNEL|__GFP_RECLAIMABLE|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP";
        using ReplayResult result = new TraceWriter()
            .PageAlloc(0x400, 0, Slab).CacheAlloc("told by its slab", TraceWriter.DirectMap + 0x400_000, 192, 192)
            .CacheAlloc("told by its flags", A, 192, 192, "GFP_KERNEL|__GFP_RECLAIMABLE")
            .PageAlloc(0x401, 0, "GFP_KERNEL|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP").CacheAlloc("ordinary", B, 192, 192)
            .Run();
        TraceWriter.CheckWhole(result);
        Assert.Equal(
            "told by its flags, told by its slab",
            string.Join(", ", result.Machine.Caches
                .Where(cache => (cache.Flags & SlabFlags.ReclaimAccount) != 0
                    && !cache.Name.StartsWith("kmalloc", StringComparison.Ordinal))
                .Select(cache => cache.Name).Order(StringComparer.Ordinal)));
    }

    [Fact]
    public void WithoutAHeaderTheEventsTellHowManyCpusThereAre()
    {
        string[] lines = new TraceWriter { Cpu = 5 }.Kmalloc(A, 100, 128).Kfree(A).ToString().Split('\n');
        using ReplayResult result = TraceWriter.Run(Encoding.ASCII.GetBytes(string.Join('\n', lines[^3..])));
        TraceWriter.CheckWhole(result);
        Assert.Equal((6, 0, 2, 0), (
            result.Report.Cpus, result.Report.FoldedCpuEvents, result.Report.Events, result.Report.LiveObjects));
    }

    [Fact]
    public void ATraceWithoutEventsIsReplayed()
    {
        using ReplayResult result = new TraceWriter(cpus: 4).Run();
        TraceWriter.CheckWhole(result);
        Assert.Equal((0, 3, 4), (result.Report.Events, result.Report.Lines, result.Report.Cpus));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(-1)]
    [InlineData(100_000)]
    public void AnImpossibleNumberOfCpusIsAnError(int cpus) =>
        Assert.ThrowsAny<ArgumentException>(() => new TraceWriter().Kfree(0).Run(new ReplayOptions { Cpus = cpus }));

    [Fact]
    public void WhatIsNoTraceIsAnError() =>
        Assert.Throws<TraceFormatException>(() => TraceWriter.Run("no trace at all\n"u8.ToArray()));

    [Fact]
    public void ProgressIsReported()
    {
        var trace = new TraceWriter();
        for (int i = 0; i < 200_000; i++)
            trace.Kfree(0);
        var seen = new List<long>();
        using FtraceReader reader = TraceText.Open(trace.ToString());
        using ReplayResult result = Kmem.Tracing.Replay.Run(
            reader, new ReplayOptions { RamBytes = 1UL << 28 }, seen.Add);
        Assert.Equal([65536, 131072, 196608], seen);
        Assert.True(result.Report.EventsPerSecond > 0);
    }

    [Fact]
    public void ImpossibleRequestsAreCountedAndHarmNothing()
    {
        const string AllBits = "0xffffffff";
        const string Movable = "__GFP_MOVABLE|__GFP_RECLAIMABLE";
        const string Zones = "GFP_DMA|__GFP_HIGHMEM";
        var trace = new TraceWriter()
            .Kmalloc(A, 1 << 30, 1 << 30).Kmalloc(B, 5 << 20, 8 << 20).Kmalloc(16, 0, 0).Kmalloc(A + 8, 0, 8)
            .Kmalloc(C, 100, 128, AllBits).Kmalloc(C + 128, 100, 128, Movable)
            .Kmalloc(C + 0x10000, 20000, 32768, AllBits).Kmalloc(C + 0x20000, 20000, 32768, Movable)
            .CacheAlloc("nothing", A + 64, 0, 8).CacheAlloc("huge", A + 128, 5 << 20, 8 << 20)
            .CacheAlloc("largest", A + 192, 4 << 20, 4 << 20)
            .CacheAlloc("too large behind", A + 256, 4 << 20, (4 << 20) + 8)
            .CacheAlloc("flags", A + 320, 64, 64, AllBits)
            .PageAlloc(0x100, 11).PageFree(0x100, 11).PageAlloc(0x100, 63).PageFree(0x100, 63)
            .PageAlloc(0x000f_ffff_ffff_ffff).PageFree(0x000f_ffff_ffff_ffff)
            .PageAlloc(ulong.MaxValue).PageFree(ulong.MaxValue).PageFree(0)
            .PageAlloc(0x200, 0, AllBits).PageAlloc(0x201, 0, Movable).PageAlloc(0x202, 10, Zones)
            .Event("kmalloc: call_site=a+0x1/0x2 ptr=(____ptrval____) bytes_req=8 bytes_alloc=8 gfp_flags=GFP_KERNEL")
            .Event("kfree: call_site=a+0x1/0x2 ptr=(____ptrval____)")
            .Event($"kmalloc: call_site=a+0x1/0x2 ptr={C + 64:x16} bytes_req=18446744073709551615 bytes_alloc=8 "
                + "gfp_flags=none");
        using ReplayResult result = trace.Run();
        TraceWriter.CheckWhole(result);
        ReplayReport r = result.Report;
        Assert.Equal((0, 28), (r.DamagedLines, r.Events));
        Assert.Equal((3, 3), (r.FailedAllocs, r.PageAllocs));       // the failed: kmallocs beyond 4 MiB
        Assert.Equal(1, r.TracedFailures);
        Assert.Equal(1 + 1 + 1024, r.LivePages);
    }

    [Fact]
    public void ManyEventsNeedNoMoreMemoryThanFew()
    {
        long few = Allocated(10_000);
        long many = Allocated(100_000);
        Assert.True(many - few < 100_000, $"{few} bytes for few events, {many} bytes for ten times as many");

        static long Allocated(int pairs)
        {
            var trace = new TraceWriter();
            for (int i = 0; i < pairs; i++)
            {
                ulong ptr = A + ((ulong)i * 4096);
                trace.Kmalloc(ptr, 100, 128).CacheAlloc("thing", ptr + 128, 64, 64).PageAlloc((ulong)i + 0x300_000);
                trace.Kfree(ptr).CacheFree("thing", ptr + 128).PageFree((ulong)i + 0x300_000);
            }

            byte[] text = Encoding.ASCII.GetBytes(trace.ToString());
            long before = GC.GetAllocatedBytesForCurrentThread();
            using ReplayResult result = TraceWriter.Run(text);
            long after = GC.GetAllocatedBytesForCurrentThread();
            Assert.Equal((pairs * 6L, 0), (result.Report.Events, result.Report.LiveObjects + result.Report.LivePages));
            return after - before;
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void AnyMixOfEventsLeavesTheMachineWhole(int seed)
    {
        string trace = RandomTrace(seed);
        var options = new ReplayOptions { RamBytes = 24UL << 20 };      // short enough to run out now and then
        byte[] text = Encoding.ASCII.GetBytes(trace);
        using ReplayResult result = TraceWriter.Run(text, options);
        TraceWriter.CheckWhole(result);
        ReplayReport r = result.Report;
        Assert.Equal(0, r.DamagedLines);
        Assert.All(
            new[]
            {
                r.KmallocAllocs, r.CacheAllocs, r.PageAllocs, r.ObjectFrees, r.PageFrees, r.UnknownFrees, r.MissedFrees,
                r.FailedAllocs, r.FreesOfFailedAllocs, r.SlabPagesRecognised, r.LargeKmallocPagesRecognised,
                r.SlabPageFrees, r.LiveObjects, r.LivePages,
            },
            count => Assert.NotEqual(0, count));
        using ReplayResult again = TraceWriter.Run(text, options);
        Assert.Equal(TraceWriter.Describe(result), TraceWriter.Describe(again));
    }

    /// <summary>
    /// Events in no sensible order over few addresses, objects inside the blocks of page events among them.
    /// </summary>
    private static string RandomTrace(int seed)
    {
        const int Frames = 2048;
        string[] flags =
        [
            "GFP_KERNEL", "GFP_ATOMIC", "GFP_KERNEL|__GFP_COMP", "GFP_HIGHUSER_MOVABLE|__GFP_COMP|__GFP_ZERO",
            "GFP_KERNEL|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP", "GFP_NOFS|__GFP_NOFAIL",
        ];
        int[] sizes = [8, 64, 96, 192, 1024, 4096, 8192];
        var random = new Random(seed);
        var trace = new TraceWriter();
        for (int i = 0; i < 20_000; i++)
        {
            trace.Cpu = random.Next(2);
            trace.Pid = 100 + random.Next(2);
            ulong ptr = TraceWriter.DirectMap + 0x1000_0000 + ((ulong)random.Next(Frames * 8) * 512);
            ulong pfn = 0x10000 + (ulong)random.Next(Frames);
            int order = Math.Min(random.Next(11), random.Next(11));
            int size = sizes[random.Next(sizes.Length)];
            string gfp = flags[random.Next(flags.Length)];
            _ = random.Next(10) switch
            {
                0 or 1 => trace.Kmalloc(ptr, size - random.Next(4), size, gfp),
                2 => trace.Kmalloc(ptr, 20000 << random.Next(4), 32768, gfp),
                3 or 4 => trace.CacheAlloc($"cache-{size}", ptr, size, size, gfp),
                5 or 6 => trace.Kfree(ptr),
                7 or 8 => trace.PageAlloc(pfn & ~((1UL << order) - 1), order, gfp),
                _ => trace.PageFree(pfn & ~((1UL << order) - 1), order),
            };
        }

        return trace.ToString();
    }

    private static unsafe int PcpCount(ZonePages zone, int cpu) => zone.PcpOf(cpu)->Count;
}
