using CsCheck;

namespace Kmem.Tests;

/// <summary>Per-CPU memory and the congruent areas under it.</summary>
public sealed class PercpuTests
{
    private const int Page = 4096;

    private static Machine Boot(int cpus, int nodes = 1, ulong ram = 256UL << 20, int levels = 4)
    {
        Assert.SkipUnless(HostMemory.IsLinux && HostInfo.PageBytes == Page, "vmalloc needs Linux with 4 KiB pages");
        return Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            Cpus = cpus,
            Nodes = nodes,
            RamBytes = ram,
            PageTableLevels = levels,
        });
    }

    /// <summary>The example of vmalloc.md, section 8.4: the last 2 MiB of the space stay unused.</summary>
    [Theory]
    [InlineData(4, 0xffffe8ffffc00000)]
    [InlineData(5, 0xffd1ffffffc00000)]
    public unsafe void TheFirstChunkIsAtTheEndOfTheSpace(int levels, ulong start)
    {
        using Machine machine = Boot(cpus: 2, levels: levels);
        PercpuPointer p = machine.AllocPercpu(8, 8);
        Assert.Equal(start, p.Value);
        Assert.Equal(start, machine.KernelAddressOf(machine.PerCpuPtr(p, 0)).Value);
        Assert.Equal(start + (1 << 20), machine.KernelAddressOf(machine.PerCpuPtr(p, 1)).Value);
        Assert.Contains(
            $"0x{start:x}-0x{start + (2 << 20):x} 2097152 AllocPercpu vmalloc\n",
            machine.Proc.VmallocInfo(),
            StringComparison.Ordinal);
        Assert.Contains("Percpu:                8 kB\n", machine.Proc.MemInfo(), StringComparison.Ordinal);
        Assert.Empty(machine.Validate());
    }

    /// <summary>
    /// Each CPU's copy is memory of its own, cleared, on its node, equally far from the others' in all chunks.
    /// </summary>
    [Fact]
    public unsafe void CopiesAreApartAndCongruent()
    {
        using Machine machine = Boot(cpus: 4, nodes: 2);
        List<PercpuPointer> all = [];
        while (machine.PercpuIfUsed is not { Chunks: 3 })
            all.Add(machine.AllocPercpu(100_000, 64));
        ulong[] offsets = new ulong[4];
        foreach (PercpuPointer p in all)
        {
            for (int cpu = 0; cpu < 4; cpu++)
            {
                var copy = (byte*)machine.PerCpuPtr(p, cpu);
                ulong distance = machine.KernelAddressOf(copy).Value - p.Value;
                offsets[cpu] = offsets[cpu] == 0 ? distance : offsets[cpu];
                Assert.Equal(offsets[cpu], distance);
                Assert.Equal(-1, new Span<byte>(copy, 100_000).IndexOfAnyExcept((byte)0));
                Assert.Equal(cpu / 2, machine.DescribeFrame(machine.VmallocToPage(copy))!.Node);
                new Span<byte>(copy, 100_000).Fill((byte)(cpu + 1));
            }
        }

        foreach (PercpuPointer p in all)
        {
            for (int cpu = 0; cpu < 4; cpu++)
                Assert.Equal(-1, new Span<byte>(machine.PerCpuPtr(p, cpu), 100_000).IndexOfAnyExcept((byte)(cpu + 1)));
        }

        Assert.Empty(machine.Validate());
        ulong percpu = machine.Proc.ReadMemInfo().Find("Percpu")!.Value;
        Assert.InRange(percpu, (ulong)all.Count * 390, ((ulong)all.Count * 400) + 48);
        foreach (PercpuPointer p in all)
            machine.FreePercpu(p);
        Assert.Equal(1, machine.PercpuIfUsed!.Chunks);
        Assert.Equal(4UL * 4 * 4, machine.Proc.ReadMemInfo().Find("Percpu"));
        machine.VmUnmapAliases();
        Assert.Empty(machine.Validate());
    }

    /// <summary>Random requests against a list: no two objects overlap, contents stay, all frames come back.</summary>
    [Fact]
    public unsafe void RandomUseAgreesWithAModel()
    {
        using Machine machine = Boot(cpus: 3);
        machine.FreePercpu(machine.AllocPercpu(1, 1));
        var random = new Random(7);
        var live = new List<(PercpuPointer P, int Size, byte Tag)>();
        for (int step = 0; step < 4000; step++)
        {
            if (live.Count == 0 || random.Next(100) < 55)
            {
                int size = random.Next(1, random.Next(1, 6000));
                int align = 1 << random.Next(13);
                PercpuPointer p = machine.AllocPercpu((nuint)size, (nuint)align);
                Assert.False(p.IsNull);
                Assert.Equal(0UL, p.Value & (ulong)(align - 1));
                var tag = (byte)random.Next(1, 256);
                for (int cpu = 0; cpu < 3; cpu++)
                {
                    var bytes = new Span<byte>(machine.PerCpuPtr(p, cpu), size);
                    Assert.Equal(-1, bytes.IndexOfAnyExcept((byte)0));
                    bytes.Fill((byte)(tag + cpu));
                }

                live.Add((p, size, tag));
                continue;
            }

            int at = random.Next(live.Count);
            (PercpuPointer gone, int length, byte mark) = live[at];
            live.RemoveAt(at);
            for (int cpu = 0; cpu < 3; cpu++)
                Assert.Equal(
                    -1, new Span<byte>(machine.PerCpuPtr(gone, cpu), length).IndexOfAnyExcept((byte)(mark + cpu)));
            machine.FreePercpu(gone);
        }

        Assert.Empty(machine.Validate());
        foreach ((PercpuPointer p, _, _) in live)
            machine.FreePercpu(p);
        Assert.Equal(4 * 3L, machine.PercpuIfUsed!.Pages);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void MisuseIsRefused()
    {
        using Machine machine = Boot(cpus: 2);
        machine.FreePercpu(PercpuPointer.Null);
        Assert.Throws<KernelBugException>(() => machine.FreePercpu(new PercpuPointer(0x1000)));
        PercpuPointer p = machine.AllocPercpu(16, 16);
        Assert.True(machine.AllocPercpu(0, 1).IsNull);
        Assert.True(machine.AllocPercpu(1 << 21, 1).IsNull);
        Assert.True(machine.AllocPercpu(8, 8192).IsNull);
        Assert.True(machine.AllocPercpu(8, 3).IsNull);
        Assert.Contains("illegal size (8) or align (3)", machine.Dmesg.ToString(), StringComparison.Ordinal);
        Assert.Throws<KernelBugException>(() => machine.FreePercpu(new PercpuPointer(p.Value + 4)));
        Assert.Throws<ArgumentOutOfRangeException>(() => (nint)machine.PerCpuPtr(p, 2));
        Assert.Throws<KernelBugException>(() => machine.Vfree(machine.PerCpuPtr(p, 0)));
        using (machine.HardIrq())
        {
            Assert.Throws<KernelBugException>(() => machine.AllocPercpu(8, 8));
            PercpuPointer quick = machine.AllocPercpu(8, 8, Gfp.Atomic);
            Assert.False(quick.IsNull);
            Assert.True(machine.AllocPercpu(3 * Page, 8, Gfp.Atomic | Gfp.NoWarn).IsNull);
            machine.FreePercpu(quick);
        }

        machine.FreePercpu(p);
        Assert.Throws<KernelBugException>(() => machine.FreePercpu(p));
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void OutOfMemoryIsUndone()
    {
        using Machine machine = Boot(cpus: 2, ram: 32UL << 20);
        machine.FreePercpu(machine.AllocPercpu(4, 4));
        List<PercpuPointer> all = [];
        for (PercpuPointer p; !(p = machine.AllocPercpu(1 << 20, 64, Gfp.Kernel | Gfp.NoWarn)).IsNull;)
            all.Add(p);
        Assert.InRange(all.Count, 5, 16);
        Assert.Empty(machine.Validate());
        foreach (PercpuPointer p in all)
            machine.FreePercpu(p);
        Assert.Equal(4 * 2L, machine.PercpuIfUsed!.Pages);
        Assert.Empty(machine.Validate());
    }

    /// <summary>The host refuses the n-th mapping: it is asked again after a purge, and nothing is lost.</summary>
    [Fact]
    public unsafe void ARefusalOfTheHostIsSurvived()
    {
        using Machine machine = Boot(cpus: 2);
        machine.FreePercpu(machine.AllocPercpu(4, 4));
        AddressWindow window = machine.VmallocIfUsed!.Window;
        for (int n = 1; n <= 24; n++)
        {
            window.FailHostCall(n);
            PercpuPointer p = machine.AllocPercpu(60_000, 8, Gfp.Kernel | Gfp.NoWarn);
            window.FailHostCall(0);
            Assert.False(p.IsNull);
            Assert.Empty(machine.Validate());
            machine.FreePercpu(p);
            Assert.Empty(machine.Validate());
        }

        PercpuPointer last = machine.AllocPercpu(60_000, 8);
        Assert.Equal(-1, new Span<byte>(machine.PerCpuPtr(last, 1), 60_000).IndexOfAnyExcept((byte)0));
        machine.FreePercpu(last);
    }

    /// <summary>Threads that allocate, write their mark into all copies and free again never meet.</summary>
    [Fact]
    public async Task ThreadsKeepTheirObjectsApart()
    {
        using Machine machine = Boot(cpus: 2);
        machine.FreePercpu(machine.AllocPercpu(4, 4));
        await Task.WhenAll(Enumerable.Range(1, 4).Select(worker => Task.Run(() => Work(machine, (byte)worker))));
        Assert.Empty(machine.Validate());
        Assert.Equal(4 * 2L, machine.PercpuIfUsed!.Pages);

        static unsafe void Work(Machine machine, byte mark)
        {
            var random = new Random(mark);
            var mine = new Queue<(PercpuPointer P, int Size)>();
            for (int i = 0; i < 1500; i++)
            {
                int size = random.Next(1, 3000);
                PercpuPointer p = machine.AllocPercpu((nuint)size, 8);
                Assert.False(p.IsNull);
                for (int cpu = 0; cpu < 2; cpu++)
                    new Span<byte>(machine.PerCpuPtr(p, cpu), size).Fill(mark);
                mine.Enqueue((p, size));
                while (mine.Count > (i == 1499 ? 0 : 20))
                {
                    (PercpuPointer old, int length) = mine.Dequeue();
                    for (int cpu = 0; cpu < 2; cpu++)
                        Assert.Equal(-1, new Span<byte>(machine.PerCpuPtr(old, cpu), length).IndexOfAnyExcept(mark));
                    machine.FreePercpu(old);
                }
            }
        }
    }

    /// <summary>
    /// Among random free blocks, the base is the highest one at which every area fits: what trying all of them finds.
    /// </summary>
    [Fact]
    public unsafe void TheHighestBaseIsFound() =>
        Gen.Select(
            Gen.Select(Gen.Int[0, 255], Gen.Int[1, 9]).List[0, 60],
            Gen.Select(Gen.Int[0, 3], Gen.Int[1, 4]).List[1, 4],
            Gen.Int[0, 2]).Sample((busy, shape, alignShift) =>
        {
            const ulong Start = 0xffff_c900_0000_0000;
            using Machine machine = Machine.Boot(
                new MachineOptions { Profile = KernelProfile.Linux618, Cpus = 1, RamBytes = 32UL << 20 });
            ulong align = (ulong)Page << alignShift;
            ulong last = Start + (256 * Page) - 1;
            var taken = new bool[256];
            foreach ((int page, int count) in busy)
                taken.AsSpan(page, Math.Min(count, 256 - page)).Fill(true);
            List<VmapAreaState> early = [];
            for (int page = 0; page < 256; page++)
            {
                if (taken[page])
                    early.Add(new VmapAreaState(Start + (ulong)(page * Page), Start + (ulong)((page + 1) * Page)));
            }

            using var vmap = new VmapAllocator(
                machine.Slabs, new VmapOptions { Start = Start, End = last, EarlyAreas = early });
            var offsets = new ulong[shape.Count];
            var sizes = new ulong[shape.Count];
            ulong at = 0;
            for (int i = 0; i < shape.Count; i++)
            {
                at += (ulong)shape[i].Item1 * align;
                (offsets[i], sizes[i]) = (at, (ulong)shape[i].Item2 * align);
                at += sizes[i];
            }

            // The last page is outside: the end is rounded down.
            ulong end = last & ~(align - 1);
            bool Free(ulong from, ulong to) =>
                from >= Start && to <= end && !taken.AsSpan(
                    (int)((from - Start) / Page), (int)((to - from) / Page)).Contains(true);
            ulong expected = 0;
            for (ulong candidate = end; candidate >= Start && expected == 0; candidate -= align)
            {
                if (Enumerable.Range(0, offsets.Length).All(i => Free(candidate + offsets[i], candidate + offsets[i] + sizes[i])))
                    expected = candidate;
            }

            var vms = (VmStruct*)System.Runtime.InteropServices.NativeMemory.AllocZeroed(8, (nuint)sizeof(VmStruct));
            int used = 0;
            VmStruct*[]? got = vmap.AllocCongruent(offsets, sizes, align, () => (nint)(vms + used++), _ => { });
            Assert.Equal(expected != 0, got != null);
            if (got != null)
            {
                for (int i = 0; i < got.Length; i++)
                {
                    Assert.Equal(expected + offsets[i], got[i]->Address);
                    VmapArea* area = vmap.Unlink(got[i]->Address);
                    Assert.Equal(expected + offsets[i] + sizes[i], area->End);
                    vmap.FreeNoflush(area);
                }

                vmap.PurgeLazy(full: true);
            }

            Assert.Empty(VmapValidator.Run(vmap));
            System.Runtime.InteropServices.NativeMemory.Free(vms);
        }, iter: 300);
}
