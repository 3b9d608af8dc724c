namespace Kmem.Tests;

/// <summary>Sparse areas, memory for devices, and processes that see memory of the kernel.</summary>
public sealed class MappingTests
{
    private const int Page = 4096;
    private const ulong User = 0x7f00_0000_0000;

    private static Machine Boot(ulong ram = 64UL << 20, int levels = 4)
    {
        Assert.SkipUnless(HostMemory.IsLinux && HostInfo.PageBytes == Page, "vmalloc needs Linux with 4 KiB pages");
        return Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            Cpus = 2,
            RamBytes = ram,
            PageTableLevels = levels,
        });
    }

    [Theory]
    [InlineData(4)]
    [InlineData(5)]
    public unsafe void ASparseAreaIsMappedPieceByPiece(int levels)
    {
        using Machine machine = Boot(levels: levels);
        using var probe = new MemoryProbe();
        var area = (byte*)machine.GetVmArea((nuint)1 << 40);
        Assert.True(area != null);
        Assert.Equal("--", probe.Access(area));
        Pfn[] frames = Enumerable.Range(0, 6).Select(_ => machine.AllocPage(Gfp.Kernel)).ToArray();
        nuint far = ((nuint)1 << 40) - (3 * Page);
        Assert.Equal(VmapError.None, machine.VmAreaMapPages(area, far, frames.AsSpan(0, 3)));
        Assert.Equal(VmapError.None, machine.VmAreaMapPages(area, 5 * Page, frames.AsSpan(3)));
        *(int*)(area + far + Page) = 4711;
        Assert.Equal(4711, *(int*)machine.AddressOf(frames[1]));
        Assert.Equal(frames[5], machine.VmallocToPage(area + (7 * Page)));
        Assert.Equal("--", probe.Access(area + (4 * Page)));
        Assert.Contains(" GetVmArea sparse\n", machine.Proc.VmallocInfo(), StringComparison.Ordinal);

        Assert.Equal(VmapError.Busy, machine.VmAreaMapPages(area, 4 * Page, frames.AsSpan(0, 2)));
        Assert.Equal(VmapError.OutOfRange, machine.VmAreaMapPages(area, far, frames.AsSpan(0, 4)));
        Assert.Equal(VmapError.OutOfRange, machine.VmAreaUnmapPages(area, far + (4 * Page), 1));
        Assert.Equal(VmapError.Invalid, machine.VmAreaMapPages(area, 1, frames.AsSpan(0, 1)));
        Assert.Equal(VmapError.Invalid, machine.VmAreaMapPages(area + Page, 0, frames.AsSpan(0, 1)));
        Assert.Equal(VmapError.Invalid, machine.VmAreaMapPages(machine.Vmalloc(Page), 0, frames.AsSpan(0, 1)));
        Assert.Equal(VmapError.TooBig, machine.VmAreaUnmapPages(area, 0, 1 << 20));
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.VmAreaMapPages(area, 0, [new Pfn(1 << 30)]));
        Assert.False(machine.VmallocToPage(area + (4 * Page)).IsValid);

        // Unmapping takes effect at once, not at the next purge.
        Assert.Equal("rw", probe.Access(area + (5 * Page)));
        Assert.Equal(VmapError.None, machine.VmAreaUnmapPages(area, 0, 7));
        Assert.Equal("--", probe.Access(area + (5 * Page)));
        Assert.Equal("rw", probe.Access(area + (7 * Page)));
        Assert.Equal(VmapError.None, machine.VmAreaMapPages(area, 6 * Page, frames.AsSpan(0, 1)));
        Assert.Throws<KernelBugException>(() => machine.Vfree(area));
        Assert.Throws<KernelBugException>(() => machine.Vunmap(area));
        Assert.Throws<KernelBugException>(() => machine.FreeVmArea(area + Page));
        machine.FreeVmArea(area);
        machine.FreeVmArea(null);
        Assert.Throws<KernelBugException>(() => machine.FreeVmArea(area));
        machine.VmUnmapAliases();
        Assert.Equal("--", probe.Access(area + far + Page));
        foreach (Pfn frame in frames)
            machine.FreePage(frame);
        Assert.Empty(machine.Validate());
    }

    /// <summary>A device without IOMMU gets one block below its mask; a low mask means a low zone.</summary>
    [Theory]
    [InlineData(0xff_ffffUL, "DMA")]
    [InlineData(0xffff_ffffUL, "DMA32")]
    [InlineData(0x7fff_ffffUL, "DMA32")]
    [InlineData(ulong.MaxValue, "Normal")]
    public unsafe void TheMaskDecidesTheZone(ulong mask, string zone)
    {
        using Machine machine = Boot(ram: 6UL << 30);
        var device = new DmaDevice { CoherentMask = mask };
        var memory = (byte*)machine.DmaAllocCoherent(device, (5 * Page) + 1, out DmaAddress address);
        Assert.True(memory != null);
        Assert.Equal(address.Value, machine.PhysicalAddressOf(memory).Value);
        Assert.Equal(zone, machine.DescribeFrame(machine.PfnOf(memory))!.Zone);
        Assert.True(address.Value + (6 * Page) - 1 <= mask);
        Assert.Equal(0UL, address.Value % (8 * Page));
        Assert.Equal(-1, new Span<byte>(memory, 6 * Page).IndexOfAnyExcept((byte)0));
        for (ulong page = 0; page < 6; page++)
            Assert.Equal(
                machine.PfnOf(memory) + page, device.Translate(new DmaAddress(address.Value + (page * Page) + 9)));
        Assert.Equal(Pfn.None, device.Translate(new DmaAddress(address.Value + (6 * Page))));
        Assert.DoesNotContain("dma-coherent", machine.Proc.VmallocInfo(), StringComparison.Ordinal);
        machine.DmaFreeCoherent(device, memory);
        Assert.Throws<KernelBugException>(() => machine.DmaFreeCoherent(device, memory));
        Assert.Equal(0, device.Buffers);
        Assert.Empty(machine.Validate());
    }

    /// <summary>A mask that lies within a zone: what comes too high is given back, and a lower zone is asked.</summary>
    [Fact]
    public unsafe void AMaskWithinAZoneIsKept()
    {
        using Machine machine = Boot(ram: 1UL << 30);
        var device = new DmaDevice { CoherentMask = (64UL << 20) - 1 };
        List<nint> all = [];
        for (void* p; (p = machine.DmaAllocCoherent(device, 1 << 20, out DmaAddress at, Gfp.Kernel | Gfp.NoWarn)) != null;)
        {
            Assert.True(at.Value + (1 << 20) <= 64UL << 20);
            all.Add((nint)p);
        }

        Assert.NotEmpty(all);
        foreach (nint p in all)
            machine.DmaFreeCoherent(device, (void*)p);
        Assert.Empty(machine.Validate());
    }

    /// <summary>Behind an IOMMU scattered frames look contiguous to both sides.</summary>
    [Fact]
    public unsafe void AnIommuMakesScatteredFramesContiguous()
    {
        using Machine machine = Boot();
        var device = new DmaDevice { HasIommu = true, CoherentMask = 0x1ff_ffff };
        var other = (byte*)machine.DmaAllocCoherent(device, Page, out DmaAddress first);
        var memory = (byte*)machine.DmaAllocCoherent(device, 3000 * Page, out DmaAddress address);
        Assert.True(other != null && memory != null);
        Assert.True(machine.IsVmallocAddr(memory));
        Assert.Equal(0x1ff_f000UL, first.Value);
        Assert.Equal(0x100_0000UL, address.Value);
        for (int page = 0; page < 3000; page++)
        {
            Pfn frame = device.Translate(new DmaAddress(address.Value + ((ulong)page * Page)));
            Assert.Equal(machine.VmallocToPage(memory + ((long)page * Page)), frame);
            *(int*)(memory + ((long)page * Page)) = page + 1;
            Assert.Equal(page + 1, *(int*)machine.AddressOf(frame));
        }

        Assert.Contains(" DmaAllocCoherent dma-coherent\n", machine.Proc.VmallocInfo(), StringComparison.Ordinal);
        void* below = machine.DmaAllocCoherent(device, 2000 * Page, out DmaAddress third);
        Assert.Equal((0x80_0000UL, true), (third.Value, below != null));
        Assert.True(machine.DmaAllocCoherent(device, 2000 * Page, out _) == null, "no addresses below the mask left");
        Assert.Throws<KernelBugException>(() => machine.Vfree(memory));
        Assert.Throws<KernelBugException>(() => machine.Vunmap(memory));
        using (machine.HardIrq())
        {
            Assert.Throws<KernelBugException>(() => machine.DmaFreeCoherent(device, memory));
            Assert.True(machine.DmaAllocCoherent(device, Page, out _, Gfp.Atomic) == null);
        }

        machine.DmaFreeCoherent(device, memory);
        machine.DmaFreeCoherent(device, other);
        machine.DmaFreeCoherent(device, below);
        machine.DmaFreeCoherent(device, null);
        machine.VmUnmapAliases();
        Assert.Empty(machine.Validate());
    }

    [Theory]
    [InlineData(false, CacheMode.UncachedMinus)]
    [InlineData(true, CacheMode.WriteCombining)]
    public unsafe void ADeviceThatSeesNoCachesGetsAnUncachedMapping(bool writeCombine, CacheMode mode)
    {
        using Machine machine = Boot();
        var device = new DmaDevice { IsCoherent = false, WriteCombine = writeCombine };
        var memory = (byte*)machine.DmaAllocCoherent(device, 4 * Page, out DmaAddress address);
        PageWalk walk = machine.WalkPageTables(machine.KernelAddressOf(memory + Page));
        Assert.Equal(mode, walk.CacheMode);
        Assert.Equal(address.Value + Page, walk.PhysicalAddress.Value);
        Assert.Equal(CacheMode.WriteBack, machine.WalkPageTables(machine.KernelAddressOf(machine.AddressOf(walk.Pfn))).CacheMode);
        machine.DmaFreeCoherent(device, memory);
        Assert.Empty(machine.Validate());
    }

    /// <summary>
    /// A process sees the frames of an area in its own tables, and keeps them when the area is freed.
    /// </summary>
    [Theory]
    [InlineData(4)]
    [InlineData(5)]
    public unsafe void AProcessSeesAnArea(int levels)
    {
        using Machine machine = Boot(levels: levels);
        var area = (byte*)machine.VmallocUser(8 * Page);
        using AddressSpace process = machine.CreateAddressSpace();
        using AddressSpace other = machine.CreateAddressSpace();
        Assert.NotEqual(process.Root, other.Root);
        Assert.Equal(VmapError.None, process.RemapVmallocRange(new VirtAddr(User), 5 * Page, area, firstPage: 2));
        Assert.Equal([new UserMapping(new VirtAddr(User), 5 * Page, machine.KernelAddressOf(area + (2 * Page)))], process.Mappings);
        Assert.Equal(levels, process.PageTablePages);
        for (int i = 0; i < 5; i++)
        {
            PageWalk walk = process.Walk(new VirtAddr(User + (ulong)(i * Page) + 17));
            Assert.Equal(levels, walk.Steps.Count);
            Assert.Equal(process.Root, new Pfn(walk.Steps[0].TablePfn).Address);
            Assert.Equal(machine.VmallocToPage(area + ((i + 2) * Page)), walk.Pfn);
            Assert.Equal(PageProt.Read | PageProt.Write | PageProt.User, walk.Prot);
            PageWalk kernel = process.Walk(machine.KernelAddressOf(area + ((i + 2) * Page) + 17));
            Assert.Equal(walk.PhysicalAddress, kernel.PhysicalAddress);
            Assert.False((kernel.Prot & PageProt.User) != 0);
        }

        Assert.False(other.Walk(new VirtAddr(User)).IsMapped);
        Assert.True(other.Walk(machine.KernelAddressOf(area)).IsMapped);
        Assert.Equal(
            (ulong)(machine.VmallocIfUsed!.Tables.TablePages + process.PageTablePages + other.PageTablePages) * 4,
            machine.Proc.ReadMemInfo().Find("PageTables"));

        Pfn kept = process.Walk(new VirtAddr(User)).Pfn;
        *(int*)(area + (2 * Page)) = 99;
        machine.Vfree(area);
        machine.VmUnmapAliases();
        Assert.Equal(99, *(int*)machine.AddressOf(process.Walk(new VirtAddr(User)).Pfn));
        Assert.Equal(1, machine.DescribeFrame(kept)!.References);
        Assert.True(process.Unmap(new VirtAddr(User)));
        Assert.False(process.Unmap(new VirtAddr(User)));
        Assert.Equal(0, machine.DescribeFrame(kept)!.References);
        process.Dispose();
        Assert.Throws<ObjectDisposedException>(() => process.Walk(new VirtAddr(User)));
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void WhatMayNotBeShownIsRefused()
    {
        using Machine machine = Boot();
        using AddressSpace process = machine.CreateAddressSpace();
        void* area = machine.VmallocUser(8 * Page);
        VmapError Remap(ulong start, nuint bytes, void* what, ulong page) =>
            process.RemapVmallocRange(new VirtAddr(start), bytes, what, page);

        Assert.Equal(VmapError.Invalid, Remap(User + 1, Page, area, 0));
        Assert.Equal(VmapError.Invalid, Remap(User, 0, area, 0));
        Assert.Equal(VmapError.Invalid, Remap(User, Page + 1, area, 0));
        Assert.Equal(VmapError.Invalid, Remap(User, 9 * Page, area, 0));
        Assert.Equal(VmapError.Invalid, Remap(User, Page, area, 8));
        Assert.Equal(VmapError.Invalid, Remap(User, Page, area, ulong.MaxValue));
        Assert.Equal(VmapError.Invalid, Remap(User, Page, area, 1UL << 52));
        Assert.Equal(VmapError.Invalid, Remap(0xffff_c900_0000_0000, Page, area, 0));
        Assert.Equal(VmapError.Invalid, Remap((1UL << 47) - Page, Page, area, 0));
        Assert.Equal(VmapError.Invalid, Remap(User, Page, (byte*)area + Page, 0));
        Assert.Equal(VmapError.Invalid, Remap(User, Page, machine.Vmalloc(8 * Page), 0));
        Assert.Equal(VmapError.Invalid, Remap(User, Page, machine.Kmalloc(Page, Gfp.Kernel), 0));
        Assert.Equal(VmapError.None, Remap(User, 2 * Page, area, 0));
        Assert.Equal(VmapError.Busy, Remap(User + Page, 2 * Page, area, 0));
        Assert.False(process.Walk(new VirtAddr(User + (2 * Page))).IsMapped);

        // Memory of a device may be shown if its frames are single ones.
        var device = new DmaDevice { HasIommu = true };
        void* shared = machine.DmaAllocCoherent(device, 4 * Page, out _);
        Assert.Equal(VmapError.None, Remap(User + (16 * Page), 4 * Page, shared, 0));
        machine.DmaFreeCoherent(device, shared);
        var plain = new DmaDevice { IsCoherent = false };
        void* block = machine.DmaAllocCoherent(plain, 4 * Page, out _);
        Assert.Equal(VmapError.Invalid, Remap(User + (32 * Page), 4 * Page, block, 0));
        Assert.Equal(2, process.Mappings.Count);
        Assert.Empty(machine.Validate());
    }

    /// <summary>A machine ends its processes with it.</summary>
    [Fact]
    public unsafe void AMachineClosesItsProcesses()
    {
        AddressSpace process;
        using (Machine machine = Boot())
        {
            process = machine.CreateAddressSpace();
            process.RemapVmallocRange(new VirtAddr(User), Page, machine.VmallocUser(Page));
        }

        process.Dispose();
        Assert.Throws<ObjectDisposedException>(() => process.Walk(new VirtAddr(User)));
    }
}
