using CsCheck;

namespace Kmem.Tests;

/// <summary>The address space allocator against a sorted list of ranges, and its rules one by one.</summary>
public sealed class VmapAllocatorTests
{
    private const ulong Start = VmapOptions.DefaultStart;
    private const ulong End = VmapOptions.DefaultEnd;
    private const ulong Module = 0xffff_ffff_a000_0000;

    /// <summary>
    /// Without lazily freed areas in the way, up to page alignment, the answer is the lowest hole: a model of a few
    /// lines.
    /// </summary>
    [Fact]
    public void OneNodeIsFirstFit() =>
        Gen.Select(Gen.Int[1, 40], Gen.Int[0, 9]).List[1, 120].Sample(steps =>
        {
            using var space = new Space(cpus: 1);
            var model = new SortedDictionary<ulong, ulong>();
            foreach ((int pages, int action) in steps)
            {
                if (action < 6 || model.Count == 0)
                {
                    ulong size = (ulong)pages << Pfn.PageShift;
                    ulong expected = FirstFit(model, size);
                    Assert.Equal(expected, space.Alloc(size));
                    model.Add(expected, size);
                }
                else
                {
                    ulong victim = model.Keys.ElementAt(pages * 7 % model.Count);
                    model.Remove(victim);
                    space.Free(victim);
                    space.Vmap.PurgeLazy(full: false);
                }

                Assert.Empty(VmapValidator.Run(space.Vmap));
            }
        });

    /// <summary>
    /// Several CPUs, alignments, lazy areas, pools, purges of both kinds: nothing is lost, nothing overlaps.
    /// </summary>
    [Fact]
    public void RandomOperationsLoseNothing() =>
        Gen.Select(Gen.Int[1, 300], Gen.Int[0, 99], Gen.Int[0, 3]).List[1, 200].Sample(steps =>
        {
            using var space = new Space(cpus: 3);
            var live = new SortedDictionary<ulong, ulong>();
            foreach ((int pages, int action, int cpu) in steps)
            {
                using CpuBinding binding = space.Machine.RunOn(cpu % 3);
                ulong size = (ulong)pages << Pfn.PageShift;
                ulong align = 1UL << (action % 10 < 7 ? 0 : 12 + (action % 7));
                if (action < 55)
                    AddLive(live, space.Alloc(size, align), size, align);
                else if (action < 92 && live.Count > 0)
                    space.Free(TakeAny(live, pages));
                else if (action < 96)
                    space.Vmap.PurgeLazy(full: false);
                else if (action < 98)
                    space.Vmap.ShrinkPools();
                else
                    space.Vmap.ReclaimAndPurge();
            }

            Assert.Empty(VmapValidator.Run(space.Vmap));
            Assert.Equal(live.Keys, space.BusyStarts());
            foreach (ulong start in live.Keys)
                space.Free(start);
            space.Vmap.PurgeLazy(full: true);
            Assert.Single(space.Vmap.Capture().Free);
            Assert.Equal((0L, 0UL), (space.Vmap.CountPooled(), space.Vmap.LazyPages));
            Assert.Empty(VmapValidator.Run(space.Vmap));
        });

    [Fact]
    public void AStateReadBackBehavesAsTheOriginal() =>
        Gen.Select(Gen.Int[1, 30], Gen.Int[0, 9]).List[10, 100].Sample(steps =>
        {
            using var a = new Space(cpus: 2);
            var live = new SortedDictionary<ulong, ulong>();
            Drive(a, live, steps);
            using var b = new Space(cpus: 2);
            b.Vmap.Restore(a.Vmap.Capture());
            Assert.Empty(VmapValidator.Run(b.Vmap));

            var copy = new SortedDictionary<ulong, ulong>(live);
            Drive(a, live, steps);
            Drive(b, copy, steps);
            Assert.Equal(live, copy);
            Assert.Equal(a.Shape(), b.Shape());
        });

    [Fact]
    public void ThreadsKeepTheirAreasApart()
    {
        using var space = new Space(cpus: 2);
        Parallel.For(0, 4, thread =>
        {
            var random = new Random(thread);
            var mine = new SortedDictionary<ulong, ulong>();
            for (int i = 0; i < 3000; i++)
            {
                ulong size = (ulong)random.Next(1, 400) << Pfn.PageShift;
                if (mine.Count < 20 || random.Next(2) == 0)
                    AddLive(mine, space.Alloc(size, i % 5 == 0 ? 16384u : 1u), size, 1);
                else
                    space.Free(TakeAny(mine, random.Next(1000)));
            }

            foreach (ulong start in mine.Keys)
                space.Free(start);
        });

        Assert.Empty(space.BusyStarts());
        Assert.Empty(VmapValidator.Run(space.Vmap));
        space.Vmap.PurgeLazy(full: true);
        Assert.Single(space.Vmap.Capture().Free);
    }

    [Fact]
    public void TheDrainStartsAboveTheThreshold()
    {
        using var space = new Space(cpus: 1);
        Assert.Equal(8192UL, space.Vmap.LazyMax);
        ulong a = space.Alloc(8192 << Pfn.PageShift);
        ulong b = space.Alloc(Pfn.PageSize);
        ulong c = space.Alloc(Pfn.PageSize);
        space.Free(a);
        Assert.Equal(8192UL, space.Vmap.LazyPages);

        using (space.Machine.Atomic())
            space.Free(b);      // too much now, but no place to purge
        Assert.Equal(8193UL, space.Vmap.LazyPages);
        Assert.Equal(a, space.Alloc(Pfn.PageSize));
        Assert.Equal(0UL, space.Vmap.LazyPages);
        Assert.Equal(c, space.BusyStarts()[^1]);
    }

    [Fact]
    public void PoolsAreLifoPerCpuAndRotateOnAMiss()
    {
        using var space = new Space(cpus: 2);
        using CpuBinding cpu0 = space.Machine.RunOn(0);
        ulong size = 5 * Pfn.PageSize;
        ulong[] areas = Enumerable.Range(0, 4).Select(_ => space.Alloc(size)).ToArray();
        foreach (ulong area in areas)
            space.Free(area);
        space.Vmap.PurgeLazy(full: false);
        Assert.Equal(4, space.Vmap.CountPooled());

        using (space.Machine.RunOn(1))
            Assert.DoesNotContain(space.Alloc(size), areas);
        Assert.Equal(areas[3], space.Alloc(size));

        // 0xa000 at the front is not 64 KiB aligned: it goes to the back and the request misses.
        Assert.DoesNotContain(space.Alloc(size, align: 65536), areas);
        Assert.Equal(areas[1], space.Alloc(size));
        Assert.Equal(areas[0], space.Alloc(size));
        Assert.Equal(areas[2], space.Alloc(size));
        Assert.Equal(0, space.Vmap.CountPooled());
    }

    [Theory]
    [InlineData(3, 3)]      // fewer than four stay
    [InlineData(4, 3)]
    [InlineData(11, 9)]
    public void APartialDecayTakesAQuarter(int areas, int left)
    {
        using var space = new Space(cpus: 2);
        using CpuBinding cpu0 = space.Machine.RunOn(0);
        ulong[] starts = Enumerable.Range(0, areas).Select(_ => space.Alloc(2 * Pfn.PageSize)).ToArray();
        foreach (ulong start in starts)
            space.Free(start);
        space.Vmap.PurgeLazy(full: false);
        Assert.Equal(areas, space.Vmap.CountPooled());
        space.Vmap.PurgeLazy(full: false);
        Assert.Equal(left, space.Vmap.CountPooled());

        // What decayed are the newest, that is, the highest ones.
        Assert.Equal(starts[left - 1], space.Alloc(2 * Pfn.PageSize));
    }

    [Fact]
    public unsafe void AFullRangePurgesRetriesAndThenSaysSo()
    {
        using var space = new Space(cpus: 2);
        const ulong Size = 1UL << 20;
        var request = new VmapRequest(Size, 1, Module, Module + (4 * Size));
        for (ulong i = 0; i < 4; i++)
            Assert.Equal(Module + (i * Size), space.Vmap.Alloc(request, null, out _)->Start);

        int asked = 0;
        space.Vmap.PurgeNotifier = () => asked++ == 0 ? 1UL : 0UL;
        VmapRequest quiet = request with { Gfp = Gfp.Kernel | Gfp.NoWarn };
        Assert.True(space.Vmap.Alloc(quiet, null, out VmapError error) == null);
        Assert.Equal((VmapError.Busy, 2, 0L), (error, asked, space.Machine.Dmesg.TotalLines));
        Assert.True(space.Vmap.Alloc(request, null, out _) == null);
        Assert.Equal(
            "vmalloc_node_range for size 1048576 failed: "
            + "Address range restricted to 0xffffffffa0000000 - 0xffffffffa0400000",
            Assert.Single(space.Machine.Dmesg.Lines));

        space.Free(Module + Size);
        Assert.Equal(Module + Size, space.Vmap.Alloc(request, null, out error)->Start);
        Assert.Equal(VmapError.None, error);
        Assert.Empty(VmapValidator.Run(space.Vmap));
    }

    [Theory]
    [InlineData(0UL, 1UL)]
    [InlineData(4097UL, 1UL)]
    [InlineData(4096UL, 0UL)]
    [InlineData(4096UL, 3UL)]
    public unsafe void ImpossibleRequestsAreInvalid(ulong size, ulong align)
    {
        using var space = new Space(cpus: 1);
        Assert.True(space.Vmap.Alloc(new VmapRequest(size, align, Start, End), null, out VmapError error) == null);
        Assert.Equal(VmapError.Invalid, error);
    }

    [Fact]
    public unsafe void SizesAndAlignmentsBeyondTheSpaceFail()
    {
        using var space = new Space(cpus: 2);
        (ulong, ulong)[] tooMuch = [(1UL << 46, 1UL), (Pfn.PageSize, 1UL << 63), (~4095UL, 1UL << 40)];
        foreach ((ulong size, ulong align) in tooMuch)
        {
            Assert.True(space.Vmap.Alloc(new VmapRequest(size, align, Start, End), null, out VmapError error) == null);
            Assert.Equal(VmapError.Busy, error);
        }

        Assert.Empty(VmapValidator.Run(space.Vmap));
    }

    [Fact]
    public void AllocatingWhereSleepingIsForbiddenIsABug()
    {
        using var space = new Space(cpus: 1);
        Assert.Throws<KernelBugException>(() =>
        {
            using ContextScope atomic = space.Machine.Atomic();
            space.Alloc(Pfn.PageSize);
        });
        Assert.Equal(Start, space.Alloc(Pfn.PageSize));
    }

    [Fact]
    public unsafe void AnAddressInsideAnAreaFindsItInAnyNode()
    {
        using var space = new Space(cpus: 3);
        ulong start = space.Alloc(100 * Pfn.PageSize);
        for (ulong page = 0; page < 100; page++)
            Assert.Equal(start, space.Vmap.Find(start + (page * Pfn.PageSize) + 8)->Start);
        Assert.True(space.Vmap.Find(start + (100 * Pfn.PageSize)) == null);
        Assert.Equal(new VmapRange(start, start + (100 * Pfn.PageSize)), space.Vmap.FindNext(start + 5));
        Assert.Null(space.Vmap.FindNext(start + (100 * Pfn.PageSize)));

        VmapArea* area = space.Vmap.Find(start);
        space.Vmap.FreeNow(area);
        Assert.True(space.Vmap.Find(start) == null);
        Assert.Equal(0UL, space.Vmap.LazyPages);
    }

    [Fact]
    public void WithoutMemoryForObjectsNothingChanges()
    {
        using var space = new Space(cpus: 1, ramBytes: 4 << 20);
        int count = 0;
        while (space.TryAlloc(2 * Pfn.PageSize))
            count++;
        Assert.True(count > 10000, $"only {count} areas");
        Assert.Empty(VmapValidator.Run(space.Vmap));
        foreach (ulong start in space.BusyStarts())
            space.Free(start);
        space.Vmap.PurgeLazy(full: true);
        Assert.Single(space.Vmap.Capture().Free);
    }

    private static ulong FirstFit(SortedDictionary<ulong, ulong> model, ulong size)
    {
        ulong from = Start;
        foreach ((ulong start, ulong length) in model)
        {
            if (start - from >= size)
                return from;
            from = start + length;
        }

        return from;
    }

    private static void AddLive(SortedDictionary<ulong, ulong> live, ulong start, ulong size, ulong align)
    {
        Assert.Equal(0UL, start & (align - 1));
        Assert.DoesNotContain(live, range => range.Key < start + size && range.Key + range.Value > start);
        live.Add(start, size);
    }

    private static ulong TakeAny(SortedDictionary<ulong, ulong> live, int which)
    {
        ulong start = live.Keys.ElementAt(which % live.Count);
        live.Remove(start);
        return start;
    }

    private static void Drive(Space space, SortedDictionary<ulong, ulong> live, List<(int Pages, int Action)> steps)
    {
        foreach ((int pages, int action) in steps)
        {
            using CpuBinding binding = space.Machine.RunOn(pages & 1);
            ulong size = (ulong)pages << Pfn.PageShift;
            if (action < 5 || live.Count == 0)
                AddLive(live, space.Alloc(size, action == 0 ? 32768u : 1u), size, 1);
            else if (action < 9)
                space.Free(TakeAny(live, pages));
            else
                space.Vmap.PurgeLazy(full: pages > 25);
        }
    }

    private sealed class Space : IDisposable
    {
        public Space(int cpus, ulong ramBytes = 64 << 20)
        {
            Machine = Machine.Boot(
                new MachineOptions { Profile = KernelProfile.Linux618, Cpus = cpus, RamBytes = ramBytes });
            Vmap = new VmapAllocator(Machine.Slabs, new VmapOptions());
        }

        public Machine Machine { get; }

        public VmapAllocator Vmap { get; }

        public unsafe ulong Alloc(ulong size, ulong align = 1)
        {
            VmapArea* area = Vmap.Alloc(new VmapRequest(size, align, Start, End), null, out VmapError error);
            Assert.Equal(VmapError.None, error);
            return area->Start;
        }

        public unsafe bool TryAlloc(ulong size)
        {
            var request = new VmapRequest(size, 1, Start, End) { Gfp = Gfp.Kernel | Gfp.NoWarn | Gfp.NoRetry };
            return Vmap.Alloc(request, null, out _) != null;
        }

        public unsafe void Free(ulong start)
        {
            VmapArea* area = Vmap.Unlink(start);
            Assert.True(area != null && area->Start == start, "the area is not busy");
            Vmap.FreeNoflush(area);
        }

        /// <summary>The free tree with parents and colours.</summary>
        public List<VmapBlockState> Shape() => Vmap.Capture().Free.ConvertAll(block => block with { Object = 0 });

        public List<ulong> BusyStarts()
        {
            var starts = new List<ulong>();
            for (VmapRange? at = Vmap.FindNext(0); at is { } range; at = Vmap.FindNext(range.End))
                starts.Add(range.Start);
            return starts;
        }

        public void Dispose()
        {
            Vmap.Dispose();
            Machine.Dispose();
        }
    }
}
