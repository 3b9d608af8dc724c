using System.Collections.Concurrent;

namespace Kmem.Tests;

public class VmallocTests
{
    private const int Page = Pfn.PageSize;

    /// <summary>Of the page tables of the machines tested.</summary>
    protected virtual int Levels => 4;

    private Machine Boot(int cpus = 2, ulong ramBytes = 64UL << 20, int nodes = 1)
    {
        Assert.SkipUnless(HostMemory.IsLinux && HostInfo.PageBytes == Page, "vmalloc needs Linux with 4 KiB pages");
        return Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            Cpus = cpus,
            RamBytes = ramBytes,
            Nodes = nodes,
            PageTableLevels = Levels,
        });
    }

    private static void AssertWhole(Machine machine) => Assert.Empty(machine.Validate());

    private static ulong FreeKilobytes(Machine machine)
    {
        machine.DrainAllPages();
        return machine.Proc.ReadMemInfo().Find("MemFree")!.Value;
    }

    [Theory]
    [InlineData(1)]
    [InlineData(Page)]
    [InlineData(Page + 1)]
    [InlineData(100 * Page)]
    [InlineData(101 * Page)]
    [InlineData(512 * Page)]
    [InlineData(513 * Page)]
    [InlineData(5000 * Page + 7)]
    public unsafe void TheSameBytesAreInTheAreaAndInTheDirectMap(int size)
    {
        using Machine machine = Boot();
        var area = (byte*)machine.Vmalloc((nuint)size);
        Assert.True(area != null);
        Assert.Equal(0UL, (ulong)area % Page);
        Assert.True(machine.IsVmallocAddr(area));

        int pages = (size + Page - 1) / Page;
        var frames = new HashSet<Pfn>();
        for (int i = 0; i < pages; i++)
        {
            byte* inArea = area + ((long)i * Page);
            Pfn frame = machine.VmallocToPage(inArea + 17);
            Assert.True(frames.Add(frame), "one frame lies behind two pages");
            var direct = (byte*)machine.AddressOf(frame);
            *(int*)inArea = ~i;
            *(int*)(direct + 2000) = i;
            Assert.Equal(~i, *(int*)direct);
            Assert.Equal(i, *(int*)(inArea + 2000));
        }

        AssertWhole(machine);
        machine.Vfree(area);
        AssertWhole(machine);
        Assert.Equal(Pfn.None, machine.VmallocToPage(area));
    }

    [Fact]
    public unsafe void ThePageBehindAnAreaFaultsAndAfterAPurgeAllOfItDoes()
    {
        using Machine machine = Boot();
        using var probe = new MemoryProbe();
        var first = (byte*)machine.Vmalloc(3 * Page);
        var second = (byte*)machine.Vmalloc(Page);

        Assert.Equal("rw", probe.Access(first));
        Assert.Equal("rw", probe.Access(first + (3 * Page) - 1));
        Assert.Equal("--", probe.Access(first + (3 * Page)));
        Assert.Equal("--", probe.Access(first + (4 * Page) - 1));
        Assert.Equal("rw", probe.Access(second));

        machine.Vfree(first);
        machine.VmUnmapAliases();
        Assert.Equal("--", probe.Access(first));
        Assert.Equal("--", probe.Access(first + (3 * Page) - 1));
        Assert.Equal("rw", probe.Access(second));
        machine.Vfree(second);
    }

    [Fact]
    public unsafe void EverythingComesBackAfterFreeAndPurge()
    {
        using Machine machine = Boot();
        machine.Vfree(machine.Vmalloc(1000 * Page));
        machine.VmUnmapAliases();
        ulong before = FreeKilobytes(machine);
        int maps = machine.VmallocIfUsed!.MapCount;

        var areas = new List<nint>();
        for (int size = 1; size < 300; size += 7)
            areas.Add((nint)machine.Vmalloc((nuint)(size * Page)));
        areas.Add((nint)machine.Vmalloc(1000 * Page));
        Assert.DoesNotContain(0, areas);
        Assert.True(FreeKilobytes(machine) < before - 4000);
        foreach (nint area in areas)
            machine.Vfree((void*)area);
        machine.VmUnmapAliases();
        machine.VmallocIfUsed!.Vmap.ShrinkPools();

        Assert.Equal(0, machine.VmallocIfUsed!.PageCount);
        Assert.Equal(maps, machine.VmallocIfUsed!.MapCount);
        foreach (KmemCache cache in machine.Slabs.Caches)
            cache.Shrink();
        Assert.InRange(FreeKilobytes(machine), before - 256, before + 256);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void TheStructuresShowInSlabinfo()
    {
        using Machine machine = Boot();
        var areas = Enumerable.Range(0, 200).Select(_ => (nint)machine.Vmalloc(2 * Page)).ToList();

        SlabInfoRow row = Assert.Single(machine.Proc.ReadSlabInfo().Rows, row => row.Name == "vmap_area");
        Assert.Equal(72u, row.ObjSize);
        Assert.True(row.ActiveObjs >= 200);
        areas.ForEach(area => machine.Vfree((void*)area));
    }

    [Fact]
    public unsafe void VzallocIsClearedAlsoInFramesUsedBefore()
    {
        using Machine machine = Boot();
        var dirty = (byte*)machine.Vmalloc(2000 * Page);
        new Span<byte>(dirty, 2000 * Page).Fill(0xa5);
        machine.Vfree(dirty);
        var clean = (byte*)machine.Vzalloc(2000 * Page);

        Assert.Equal(-1, new Span<byte>(clean, 2000 * Page).IndexOfAnyExcept((byte)0));
    }

    [Fact]
    public unsafe void SizesWithoutSenseFail()
    {
        using Machine machine = Boot();
        Assert.True(machine.Vmalloc(0) == null);
        Assert.True(machine.Vmalloc(nuint.MaxValue) == null);
        Assert.True(machine.Vmalloc(nuint.MaxValue - Page + 2) == null);
        Assert.True(machine.Vmalloc((nuint)1 << 45) == null);
        Assert.Contains(machine.Dmesg.Lines, line => line.StartsWith(
            $"vmalloc error: size {nuint.MaxValue}, exceeds total pages, mode:0xcc0(GFP_KERNEL)",
            StringComparison.Ordinal));
        long lines = machine.Dmesg.TotalLines;
        Assert.True(machine.Vmalloc((nuint)1 << 45, Gfp.Kernel | Gfp.NoWarn) == null);
        Assert.Equal(lines, machine.Dmesg.TotalLines);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void OutOfMemoryHalfWayIsUndone()
    {
        using Machine machine = Boot();
        machine.Vfree(machine.Vmalloc(Page));
        ulong before = FreeKilobytes(machine);

        // All that is free, reserves and page array included: the pages run out in the middle.
        Assert.True(machine.Vmalloc((nuint)(before << 10), Gfp.Kernel | Gfp.NoRetry) == null);

        Assert.Contains("failed to allocate pages", machine.Dmesg.ToString(), StringComparison.Ordinal);
        Assert.Equal(0, machine.VmallocIfUsed!.PageCount);
        machine.VmUnmapAliases();
        Assert.InRange(FreeKilobytes(machine), before - 256, before + 256);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void UsedUpBudgetOfMappingsFailsTheCallAndNothingElse()
    {
        using Machine machine = Boot();
        using var vmalloc = new VmallocAllocator(machine.Slabs, machine.KmallocCaches, machine.Ram, new MapBudget(60));
        Scatter(machine);
        var request = new VmallocRequest(20 * Page, Gfp.Kernel, VmCaller.Vmalloc);
        var areas = new List<nint>();
        while (vmalloc.Alloc(request) is var area && area != null)
            areas.Add((nint)area);

        Assert.InRange(areas.Count, 1, 28);
        Assert.Contains("failed to map pages", machine.Dmesg.Lines[^1], StringComparison.Ordinal);
        Assert.Equal(20 * areas.Count, vmalloc.PageCount);
        Assert.Empty(VmallocValidator.Run(vmalloc, machine.Map));

        // What was freed counts until a purge, and the next request purges when it has to.
        foreach (nint area in areas)
            vmalloc.Free((void*)area);
        Assert.True(vmalloc.Alloc(request) != null);
        Assert.Empty(VmallocValidator.Run(vmalloc, machine.Map));
    }

    [Fact]
    public unsafe void RefusalsOfTheHostFailTheCallAndNothingElse()
    {
        using Machine machine = Boot();
        using var probe = new MemoryProbe();
        Scatter(machine);
        var keep = (byte*)machine.Vmalloc(10 * Page);
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        new Span<byte>(keep, 10 * Page).Fill(7);
        for (int n = 1; n < 12; n++)
        {
            vmalloc.Window.FailHostCall(n);
            var area = (byte*)machine.Vmalloc(10 * Page);
            vmalloc.Window.FailHostCall(0);
            if (area != null)
            {
                // One refusal is survived: after the purge the second try worked.
                new Span<byte>(area, 10 * Page).Fill((byte)n);
                machine.Vfree(area);
            }

            vmalloc.Window.FailHostCall(1);
            machine.VmUnmapAliases();
            vmalloc.Window.FailHostCall(0);
            AssertWhole(machine);
        }

        Assert.Equal(-1, new Span<byte>(keep, 10 * Page).IndexOfAnyExcept((byte)7));
        Assert.Equal("--", probe.Access(keep + (10 * Page)));
        machine.Vfree(keep);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void FreesOfWhatIsNoAreaAreRefused()
    {
        using Machine machine = Boot();
        byte foreign = 0;
        void* before = machine.Kmalloc(Page, Gfp.Kernel);
        Assert.Throws<KernelBugException>(() => machine.Vfree(before));
        machine.Vfree(null);
        var area = (byte*)machine.Vmalloc(3 * Page);
        var interior = (nint)(area + Page);
        var unaligned = (nint)(area + 1);
        var guard = (nint)(area + (3 * Page));
        var stack = (nint)((ulong)&foreign & ~(ulong)(Page - 1));

        AssertRefused(machine, () => machine.Vfree((void*)interior), "nonexistent vm area", "lies inside");
        AssertRefused(machine, () => machine.Vfree((void*)guard), "nonexistent vm area", "lies inside");
        AssertRefused(machine, () => machine.Vfree((void*)unaligned), "bad address", "not page aligned");
        AssertRefused(machine, () => machine.Vfree((void*)stack), "nonexistent vm area", "not memory of this machine");
        AssertRefused(machine, () => machine.Vfree(before), "nonexistent vm area", "use kfree");
        AssertRefused(machine, () => machine.Kfree((void*)interior), "Not a kmalloc allocation", "use vfree");
        AssertRefused(machine, () => machine.Kfree(area), "Not a kmalloc allocation", "use vfree");
        AssertRefused(
            machine, () => machine.Vrealloc((void*)interior, 5, Gfp.Kernel), "vrealloc() nonexistent", "inside");
        area[0] = 1;
        machine.Vfree(area);
        AssertRefused(machine, () => machine.Vfree(area), "nonexistent vm area", "free already");
        machine.VmUnmapAliases();
        AssertRefused(machine, () => machine.Vfree(area), "nonexistent vm area", "free already");
        machine.Kfree(before);
    }

    [Fact]
    public unsafe void WhereSleepingIsForbiddenVmallocIsRefusedAndVfreeWaits()
    {
        using Machine machine = Boot();
        var first = (byte*)machine.Vmalloc(600 * Page);
        var second = (byte*)machine.Vmalloc(Page);
        using (machine.HardIrq())
        {
            Assert.Throws<KernelBugException>(() => machine.Vmalloc(Page));
            Assert.Throws<KernelBugException>(() => machine.Vmalloc(Page, Gfp.Atomic));
            Assert.Throws<KernelBugException>(machine.VmUnmapAliases);
            machine.Vfree(first);
            machine.Vfree(second);
            Assert.Throws<KernelBugException>(() => machine.Vfree(first));
            Assert.Equal(603, machine.VmallocIfUsed!.PageCount);
        }

        Assert.Throws<KernelBugException>(() => machine.Vfree(second));
        Assert.Equal(0, machine.VmallocIfUsed!.PageCount);
        using (machine.Atomic())
            Assert.Throws<KernelBugException>(() => machine.Vfree(first));
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void ReallocStaysWhileItsPagesReach()
    {
        using Machine machine = Boot();
        var area = (byte*)machine.Vrealloc(null, 3 * Page, Gfp.Kernel | Gfp.Zero);
        new Span<byte>(area, 3 * Page).Fill(9);

        Assert.True(machine.Vrealloc(area, Page, Gfp.Kernel | Gfp.Zero) == area);
        Assert.True(machine.Vrealloc(area, 3 * Page, Gfp.Kernel | Gfp.Zero) == area);
        Assert.Equal(-1, new Span<byte>(area, Page).IndexOfAnyExcept((byte)9));
        Assert.Equal(-1, new Span<byte>(area + Page, 2 * Page).IndexOfAnyExcept((byte)0));

        var larger = (byte*)machine.Vrealloc(area, 50 * Page, Gfp.Kernel | Gfp.Zero);
        Assert.True(larger != area);
        Assert.Equal(Page, new Span<byte>(larger, 50 * Page).IndexOfAnyExcept((byte)9));
        Assert.Equal(-1, new Span<byte>(larger + Page, 49 * Page).IndexOfAnyExcept((byte)0));
        Assert.True(machine.Vrealloc(larger, (nuint)1 << 40, Gfp.Kernel) == null);
        Assert.Equal(9, larger[Page - 1]);
        Assert.True(machine.Vrealloc(larger, 0, Gfp.Kernel) == null);
        Assert.Equal(0, machine.VmallocIfUsed!.PageCount);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void KvmallocTakesWhatThereIs()
    {
        using Machine machine = Boot();
        void* small = machine.Kvmalloc(100, Gfp.Kernel);
        void* contiguous = machine.Kvzalloc(64 * Page, Gfp.Kernel);
        Assert.False(machine.IsVmallocAddr(small));
        Assert.False(machine.IsVmallocAddr(contiguous));
        void* large = machine.Kvmalloc(8 << 20, Gfp.Kernel);       // more than a block can have
        Assert.True(machine.IsVmallocAddr(large));
        Assert.True(machine.Kvmalloc(8 << 20, Gfp.Atomic) == null);
        Assert.True(machine.Kvmalloc((nuint)1 << 31, Gfp.Kernel) == null);
        Assert.Throws<KernelBugException>(() => machine.Kvcalloc(nuint.MaxValue / 2, 3, Gfp.Kernel));

        *(long*)small = 0x1234;
        var moved = (long*)machine.Kvrealloc(small, 8 << 20, Gfp.Kernel);
        Assert.True(machine.IsVmallocAddr(moved));
        Assert.Equal(0x1234, *moved);
        Assert.True(machine.Kvrealloc(moved, 200, Gfp.Kernel) == moved);
        machine.Kvfree(moved);
        machine.Kvfree(contiguous);
        machine.Kvfree(large);
        machine.Kvfree(null);
        Assert.Equal(0, machine.VmallocIfUsed!.PageCount);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void VmallocinfoTellsAboutEachArea()
    {
        using Machine machine = Boot(nodes: 2, ramBytes: 128UL << 20);
        Assert.Equal("", machine.Proc.VmallocInfo());
        machine.Vmalloc(4 * Page);
        void* freed = machine.Vmalloc(2 * Page);
        machine.Vzalloc(600 * Page);
        machine.Kvmalloc(5 << 20, Gfp.Kernel);
        machine.Vmalloc(Page, Gfp.Kernel | Gfp.ThisNode, node: 1);
        machine.Vfree(freed);

        string text = machine.Proc.VmallocInfo();
        Assert.Equal(text, VmallocInfoText.Parse(text).Render());
        Assert.Contains(
            Levels == 5
                ? "0xffa0000000000000-0xffa0000000005000   20480 Vmalloc pages=4 vmalloc N0=4\n"
                : "0xffffc90000000000-0xffffc90000005000   20480 Vmalloc pages=4 vmalloc N0=4\n",
            text,
            StringComparison.Ordinal);
        Assert.Contains(" Vzalloc pages=600 vmalloc vpages N", text, StringComparison.Ordinal);
        Assert.Contains(" Kvmalloc pages=1536 vmalloc vpages N", text, StringComparison.Ordinal);
        Assert.Contains(" Vmalloc pages=1 vmalloc N1=1\n", text, StringComparison.Ordinal);
        Assert.EndsWith("   12288 unpurged vm_area\n", text, StringComparison.Ordinal);
        Assert.Equal((ulong)(4 + 600 + 2 + 1536 + 3 + 1) * 4, machine.Proc.ReadMemInfo().Find("VmallocUsed"));
        Assert.Contains("VmallocChunk:          0 kB\n", machine.Proc.MemInfo(), StringComparison.Ordinal);
    }

    [Fact]
    public unsafe void PortableMemorySaysThatItCannot()
    {
        using Machine machine = Machine.Boot(
            new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64UL << 20, PortableMemory = true });
        NotSupportedException refused = Assert.Throws<NotSupportedException>(() => machine.Vmalloc(Page));
        Assert.Contains("mapped", refused.Message, StringComparison.Ordinal);
        Assert.True(machine.Kvmalloc(8 << 20, Gfp.Kernel) == null);
        Assert.False(machine.IsVmallocAddr((void*)0x1000));
        AssertWhole(machine);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [Trait("rule", "VMALLOC-01")]
    [Trait("rule", "VMALLOC-02")]
    [Trait("rule", "VMALLOC-04")]
    [Trait("rule", "VMALLOC-05")]
    [Trait("rule", "VMALLOC-06")]
    public unsafe void RandomUseAgreesWithAModel(int seed)
    {
        using Machine machine = Boot();
        var random = new Random(seed);
        var model = new List<(nint Area, int Pages, int Stamp)>();
        for (int step = 0; step < 1500; step++)
        {
            if (model.Count < 40 && random.Next(2) == 0)
            {
                int pages = random.Next(20) == 0 ? random.Next(1, 700) : random.Next(1, 20);
                var area = (byte*)machine.Vmalloc((nuint)(pages * Page - random.Next(Page)));
                Assert.True(area != null, $"seed {seed} step {step}");
                for (int i = 0; i < pages; i++)
                    *(long*)(area + ((long)i * Page)) = ((long)step << 32) + i;
                model.Add(((nint)area, pages, step));
            }
            else if (model.Count > 0)
            {
                int index = random.Next(model.Count);
                (nint area, int pages, int stamp) = model[index];
                for (int i = 0; i < pages; i++)
                {
                    void* at = (byte*)area + ((long)i * Page);
                    long direct = *(long*)machine.AddressOf(machine.VmallocToPage(at));
                    Assert.True(
                        *(long*)at == ((long)stamp << 32) + i && direct == *(long*)at,
                        $"seed {seed} step {step} page {i}");
                }

                model.RemoveAt(index);
                if (random.Next(10) == 0)
                {
                    using (machine.SoftIrq())
                        machine.Vfree((void*)area);
                }
                else
                {
                    machine.Vfree((void*)area);
                }
            }

            if (step % 100 == 0)
                machine.VmUnmapAliases();
            if (step % 300 == 0)
                AssertWhole(machine);
        }

        model.ForEach(entry => machine.Vfree((void*)entry.Area));
        machine.VmUnmapAliases();
        Assert.Equal(0, machine.VmallocIfUsed!.PageCount);
        AssertWhole(machine);
    }

    [Fact]
    public async Task ThreadsAllocateFreeAndHandOver()
    {
        const int Threads = 4;
        using Machine machine = Boot(cpus: Threads, ramBytes: 256UL << 20);
        using var handedOver = new BlockingCollection<(nint Area, int Pages, long Stamp)>(64);
        await Task.WhenAll(Enumerable.Range(0, Threads).Select(thread => Task.Factory.StartNew(
            () => AllocateAndHandOver(machine, handedOver, thread),
            TestContext.Current.CancellationToken,
            TaskCreationOptions.LongRunning,
            TaskScheduler.Default)));

        machine.VmUnmapAliases();
        Assert.Equal(0, machine.VmallocIfUsed!.PageCount);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void OfManyThreadsThatFreeOneAreaOneMay()
    {
        using Machine machine = Boot(cpus: 4);
        for (int round = 0; round < 50; round++)
        {
            int refused = 0;
            var contested = (nint)machine.Vmalloc(Page);
            Parallel.For(0, 4, new ParallelOptions { MaxDegreeOfParallelism = 4 }, _ =>
            {
                try
                {
                    machine.Vfree((void*)contested);
                }
                catch (KernelBugException)
                {
                    Interlocked.Increment(ref refused);
                }
            });
            Assert.Equal(3, refused);
        }

        AssertWhole(machine);
    }

    [Fact]
    public unsafe void AddressesAreTheKernelsFirstOnes()
    {
        using Machine machine = Boot(cpus: 1);
        void* first = machine.Vmalloc(2 * Page);
        void* second = machine.Vmalloc(Page);

        Assert.Equal(Levels == 5 ? "ffa0000000000000" : "ffffc90000000000", machine.KernelAddressOf(first).ToString());
        Assert.Equal(Levels == 5 ? "ffa0000000003000" : "ffffc90000003000", machine.KernelAddressOf(second).ToString());
    }

    [Fact]
    public unsafe void LargeMemoryComesInLargeBlocksIfItMay()
    {
        using Machine machine = Boot();
        var huge = (byte*)machine.VmallocHuge((3 << 20) + 1, Gfp.Kernel);
        KernelPageTable tables = machine.VmallocIfUsed!.Tables;
        ulong va = machine.KernelAddressOf(huge).Value;

        Assert.Equal(0UL, va % (2 << 20));
        Assert.Equal(2UL << 20, tables.Walk(va).LeafBytes);
        Assert.Equal(2UL << 20, tables.Walk(va + (4 << 20) - 1).LeafBytes);
        Assert.False(tables.Walk(va + (4 << 20)).IsMapped);
        huge[(4 << 20) - 1] = 77;
        Pfn last = machine.VmallocToPage(huge + (4 << 20) - 1);
        Assert.Equal(77, ((byte*)machine.AddressOf(last))[Page - 1]);
        Assert.Contains(
            "4198400 VmallocHuge pages=1024 vmalloc vpages N0=1024",
            machine.Proc.VmallocInfo(),
            StringComparison.Ordinal);
        AssertWhole(machine);
        machine.Vfree(huge);

        // Without a free block of that size it is made of small pages, silently.
        Scatter(machine, all: 15000);
        long lines = machine.Dmesg.TotalLines;
        void* small = machine.VmallocHuge(3 << 20, Gfp.Kernel);
        Assert.Equal(4096UL, tables.Walk(machine.KernelAddressOf(small).Value).LeafBytes);
        Assert.Equal(lines, machine.Dmesg.TotalLines);
        machine.Vfree(small);
        Assert.Equal(0, machine.VmallocIfUsed!.PageCount);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void TheTablesLeadToEachFrameAndToNoneAfterAFree()
    {
        using Machine machine = Boot();
        Scatter(machine);
        var area = (byte*)machine.Vmalloc(40 * Page);
        KernelPageTable tables = machine.VmallocIfUsed!.Tables;
        for (int i = 0; i < 40; i++)
        {
            PageWalk walk = tables.Walk(machine.KernelAddressOf(area + ((long)i * Page)).Value + 5);
            area[((long)i * Page) + 5] = (byte)(i + 1);
            Assert.Equal(Levels, walk.Steps.Count);
            Assert.Equal(PageProt.Kernel, walk.Prot);
            Assert.Equal((ulong)Page, walk.LeafBytes);
            Assert.Equal((byte)(i + 1), ((byte*)machine.AddressOf(walk.Pfn))[walk.Offset]);
        }

        Assert.False(tables.Walk(machine.KernelAddressOf(area + (40 * Page)).Value).IsMapped);
        ulong start = machine.KernelAddressOf(area).Value;
        machine.Vfree(area);
        Assert.False(tables.Walk(start).IsMapped);
    }

    [Fact]
    public unsafe void VmapShowsFramesInTheOrderGiven()
    {
        using Machine machine = Boot();
        using var probe = new MemoryProbe();
        Pfn[] frames = Enumerable.Range(0, 600).Select(_ => machine.AllocPage(Gfp.Kernel)).ToArray();
        Array.Reverse(frames);
        frames[7] = frames[3];
        for (int i = 0; i < frames.Length; i++)
            *(int*)machine.AddressOf(frames[i]) = i;

        var area = (byte*)machine.Vmap(frames);
        var readOnly = (byte*)machine.Vmap(frames.AsSpan(0, 2), readOnly: true);
        Assert.Equal(7, *(int*)(area + (3 * Page)));
        Assert.Equal(599, *(int*)(area + (599 * Page)));
        Assert.Equal("r-", probe.Access(readOnly));
        Assert.Equal("--", probe.Access(area + (600 * Page)));
        Assert.Contains(" Vmap vmap\n", machine.Proc.VmallocInfo(), StringComparison.Ordinal);
        Assert.Equal(0, machine.VmallocIfUsed!.PageCount);
        void* allocated = machine.Vmalloc(Page);
        AssertRefused(machine, () => machine.Vunmap(allocated), "vunmap() nonexistent", "another kind");
        AssertRefused(machine, () => machine.Vunmap(area + Page), "vunmap() nonexistent", "inside");
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.Vmap([new Pfn(1 << 30)]));
        Assert.True(machine.Vmap([]) == null);

        machine.Vunmap(area);
        machine.Vunmap(readOnly);
        machine.Vunmap(null);
        AssertRefused(machine, () => machine.Vunmap(area), "vunmap() nonexistent", "free already");
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void VmapMayTakeTheFrames()
    {
        using Machine machine = Boot();
        machine.Vfree(machine.Vmalloc(Page));
        ulong before = FreeKilobytes(machine);
        Pfn[] frames = Enumerable.Range(0, 50).Select(_ => machine.AllocPage(Gfp.Kernel)).ToArray();
        void* area = machine.Vmap(frames, readOnly: true, putPages: true);

        Assert.Contains(" Vmap pages=50 vmap N0=50\n", machine.Proc.VmallocInfo(), StringComparison.Ordinal);
        AssertRefused(machine, () => machine.Vunmap(area), "vunmap() nonexistent");
        AssertWhole(machine);
        using (machine.HardIrq())
            machine.Vfree(area);
        machine.VmUnmapAliases();
        Assert.InRange(FreeKilobytes(machine), before - 64, before + 64);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void AProcessSeesTheMemoryThatWasMadeForIt()
    {
        using Machine machine = Boot();
        var area = (byte*)machine.VmallocUser(8 * Page);
        void* ordinary = machine.Vmalloc(8 * Page);
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        using var process = new Mm(vmalloc.Tables, machine.Pages, machine.Map);
        const ulong User = 0x7f00_0000_0000;

        Assert.Equal(VmapError.None, vmalloc.RemapToUser(process, User, 5 * Page, area, 2 * Page));
        for (int i = 0; i < 5; i++)
        {
            PageWalk walk = process.Walk(User + (ulong)(i * Page));
            Assert.Equal(machine.VmallocToPage(area + ((i + 2) * Page)), walk.Pfn);
            Assert.Equal(PageProt.Read | PageProt.Write | PageProt.User, walk.Prot);
        }

        Assert.Equal(VmapError.Invalid, vmalloc.RemapToUser(process, User + 1, Page, area, 0));
        Assert.Equal(VmapError.Invalid, vmalloc.RemapToUser(process, User, 9 * Page, area, 0));
        Assert.Equal(VmapError.Invalid, vmalloc.RemapToUser(process, User, 8 * Page, area, Page));
        Assert.Equal(VmapError.Invalid, vmalloc.RemapToUser(process, User, Page, area, ~0UL - Page + 1));
        Assert.Equal(VmapError.Invalid, vmalloc.RemapToUser(process, User, Page, ordinary, 0));
        Assert.Equal(VmapError.Busy, vmalloc.RemapToUser(process, User - Page, 2 * Page, area, 0));
        Assert.False(process.Walk(User - Page).IsMapped);

        // The process keeps its pages when the kernel frees the area.
        Pfn kept = process.Walk(User).Pfn;
        machine.Vfree(area);
        Assert.Equal(kept, process.Walk(User).Pfn);
        Assert.Equal(1, machine.Map.PageOf(kept.Value)->RefCount);
        vmalloc.UnmapFromUser(process, User, 5 * Page);
        Assert.False(process.Walk(User).IsMapped);
        Assert.Equal(0, machine.Map.PageOf(kept.Value)->RefCount);
        AssertWhole(machine);
    }

    [Fact]
    [Trait("rule", "VMALLOC-03")]
    public unsafe void AFrameFreedBehindVmallocsBackIsReportedAndNothingElseIsLost()
    {
        using Machine machine = Boot();
        var area = (byte*)machine.Vmalloc(10 * Page);
        machine.FreePage(machine.VmallocToPage(area + (4 * Page)));

        Assert.Throws<KernelBugException>(() => machine.Vfree(area));
        Assert.Equal(0, machine.VmallocIfUsed!.PageCount);
        AssertWhole(machine);
    }

    /// <summary>Leaves free pages that are no neighbours, so that each costs a mapping.</summary>
    private static void Scatter(Machine machine, int all = 4000)
    {
        List<Pfn> pages = Enumerable.Range(0, all)
            .Select(_ => machine.AllocPage(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn)).ToList();
        foreach (Pfn pfn in pages.Where(pfn => pfn.IsValid && pfn.Value % 2 == 0))
            machine.FreePage(pfn);
    }

    private static unsafe void AllocateAndHandOver(
        Machine machine, BlockingCollection<(nint Area, int Pages, long Stamp)> handedOver, int thread)
    {
        var random = new Random(thread);
        for (int i = 0; i < 400; i++)
        {
            int pages = random.Next(1, 40);
            long stamp = ((long)thread << 40) + ((long)i << 16);
            var area = (byte*)machine.Vmalloc((nuint)(pages * Page));
            Assert.True(area != null);
            for (int p = 0; p < pages; p++)
                *(long*)(area + ((long)p * Page)) = stamp + p;
            handedOver.Add(((nint)area, pages, stamp), TestContext.Current.CancellationToken);
            (nint other, int otherPages, long otherStamp) = handedOver.Take(TestContext.Current.CancellationToken);
            for (int p = 0; p < otherPages; p++)
                Assert.Equal(otherStamp + p, *(long*)((byte*)other + ((long)p * Page)));

            machine.Vfree((void*)other);
            if (i % 50 == 0)
                machine.VmUnmapAliases();
        }
    }

    private static void AssertRefused(Machine machine, Action misuse, params string[] words)
    {
        KernelBugException bug = Assert.Throws<KernelBugException>(misuse);
        Assert.All(words, word => Assert.Contains(word, bug.Message, StringComparison.Ordinal));
        Assert.Contains(bug.Message, machine.Dmesg.ToString(), StringComparison.Ordinal);
        AssertWhole(machine);
    }
}
