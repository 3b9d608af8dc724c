using static Kmem.Tests.VmallocMachine;

namespace Kmem.Tests;

/// <summary>ioremap and its kin: devices, cache modes, large leaves, and what is refused.</summary>
public sealed class IoremapTests
{
    private const int Page = Pfn.PageSize;
    private const ulong MiB = 1UL << 20;
    private static readonly PhysAddr s_bar = new(0xfe00_0000);

    [Fact]
    public unsafe void A_device_and_its_driver_see_the_same_bytes()
    {
        using Machine machine = Boot();
        DeviceMemory device = machine.AddDevice(s_bar, MiB, "nic");
        var registers = (byte*)machine.Ioremap(s_bar, (nuint)MiB);

        *(uint*)(registers + 0x100) = 0xcafe;
        Assert.Equal(0xcafeu, *(uint*)(device.Pointer + 0x100));
        device.Pointer[MiB - 1] = 7;
        Assert.Equal(7, registers[MiB - 1]);
        Assert.Equal(0UL, machine.VmallocIfUsed!.AddressOf(registers) % MiB);
        Assert.Equal("1052672 Ioremap phys=0x00000000fe000000 ioremap", InfoLine(machine, registers));
        using (var probe = new MemoryProbe())
            Assert.Equal("--", probe.Access(registers + MiB));
        Assert.Equal(Pfn.Containing(s_bar), machine.VmallocToPage(registers));
        AssertWhole(machine);

        Assert.Throws<InvalidOperationException>(device.Dispose);
        machine.Iounmap(registers);
        using (var probe = new MemoryProbe())
            Assert.Equal("--", probe.Access(registers));
        device.Dispose();
        device.Dispose();
        Assert.Equal(0, machine.VmallocIfUsed!.MemoryTypes.Count);
        AssertWhole(machine);
    }

    [Theory]
    [InlineData(0x123, 1, 1)]
    [InlineData(0xfff, 1, 1)]
    [InlineData(0xfff, 2, 2)]
    [InlineData(0, 4096, 1)]
    [InlineData(0x800, 4096, 2)]
    [InlineData(0x3010, 9000, 3)]
    public unsafe void The_offset_within_the_page_is_kept(int offset, int size, int pages)
    {
        using Machine machine = Boot();
        DeviceMemory device = machine.AddDevice(s_bar, MiB, "nic");
        device.Pointer[offset] = 99;
        var at = (byte*)machine.Ioremap(new PhysAddr(s_bar.Value + (ulong)offset), (nuint)size);

        Assert.Equal(99, *at);
        Assert.Equal(offset % Page, (int)((ulong)at % Page));
        var page = (byte*)((ulong)at & ~0xfffUL);
        string phys = $"phys=0x{s_bar.Value + ((ulong)offset & ~0xfffUL):x16}";
        Assert.Equal($"{(pages + 1) * Page} Ioremap {phys} ioremap", InfoLine(machine, page));
        machine.Iounmap(at);
        AssertWhole(machine);
    }

    /// <summary>Slots of the PAT: bits 3, 4 and 7 of a PTE, 3, 4 and 12 of a large leaf.</summary>
    [Theory]
    [InlineData("Ioremap", 0x10, 0x10)]
    [InlineData("IoremapUc", 0x18, 0x18)]
    [InlineData("IoremapWc", 0x08, 0x08)]
    [InlineData("IoremapWt", 0x98, 0x1018)]
    [InlineData("IoremapCache", 0, 0)]
    public unsafe void The_cache_mode_is_in_the_entries(string call, ulong small, ulong large)
    {
        using Machine machine = Boot();
        var at = new PhysAddr(0x10_0000_0000);
        void* one = Map(machine, call, at, Page);
        void* two = Map(machine, call, new PhysAddr(at.Value + (4 * MiB)), (nuint)(2 * MiB));

        Assert.Equal(0x8000000000000163 | small | at.Value, Walk(machine, one).Steps[^1].Entry);
        PageWalkStep leaf = Walk(machine, two).Steps[^1];
        Assert.Equal("pmd", leaf.Name);
        Assert.Equal(0x80000000000001e3 | large | (at.Value + (4 * MiB)), leaf.Entry);
        Assert.Equal($"8192 {call} phys=0x{at.Value:x16} ioremap", InfoLine(machine, one));
        machine.Iounmap(one);
        machine.Iounmap(two);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void A_gigabyte_is_one_leaf_unless_large_leaves_are_off()
    {
        using Machine machine = Boot();
        var at = new PhysAddr(64UL << 30);
        void* huge = machine.Ioremap(at, 1 << 30);
        PageWalk walk = Walk(machine, huge);
        Assert.Equal("pud", walk.Steps[^1].Name);
        Assert.Equal(0UL, walk.Address % (1UL << 30));

        // 2 MiB further on the physical address no longer fits 1 GiB leaves.
        void* shifted = machine.Ioremap(new PhysAddr(at.Value + (2 * MiB) + (1UL << 30)), 1 << 30);
        Assert.Equal("pmd", Walk(machine, shifted).Steps[^1].Name);
        machine.VmallocIfUsed!.HugeIoRemap = false;
        void* small = machine.Ioremap(new PhysAddr(at.Value + (8UL << 30)), (nuint)(2 * MiB));
        Assert.Equal("pte", Walk(machine, small).Steps[^1].Name);
        foreach (nint area in new[] { (nint)huge, (nint)shifted, (nint)small })
            machine.Iounmap((void*)area);
        AssertWhole(machine);
    }

    [Theory]
    [InlineData(1UL, 12)]
    [InlineData(4096UL, 12)]
    [InlineData(4097UL, 13)]
    [InlineData(1UL << 20, 20)]
    [InlineData((1UL << 20) + 1, 21)]
    [InlineData(1UL << 30, 30)]
    [InlineData(5UL << 30, 30)]
    public void Areas_are_as_aligned_as_they_are_large(ulong bytes, int shift) =>
        Assert.Equal(1UL << shift, VmallocAllocator.NaturalAlign(bytes));

    [Fact]
    public unsafe void Where_nothing_is_all_ones_are_read_and_nothing_can_be_written()
    {
        using Machine machine = Boot();
        using var probe = new MemoryProbe();
        machine.AddDevice(new PhysAddr(s_bar.Value + (16 * Page)), 4 * Page, "in the middle");
        var area = (byte*)machine.Ioremap(s_bar, 64 * Page);

        Assert.Equal(0xffffffffffffffffUL, *(ulong*)area);
        Assert.Equal(255, area[(16 * Page) - 1]);
        Assert.Equal(0, area[16 * Page]);
        Assert.Equal(255, area[20 * Page]);
        Assert.Equal("r-", probe.Access(area));
        Assert.Equal("rw", probe.Access(area + (16 * Page)));
        Assert.Equal("r-", probe.Access(area + (64 * Page) - 1));
        machine.Iounmap(area);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Ram_is_refused_and_reserved_ram_is_not()
    {
        using Machine machine = Boot();
        Pfn page = machine.AllocPage(Gfp.Kernel);
        Assert.True(machine.Ioremap(page.Address, Page) == null);
        Assert.Contains(machine.Dmesg.Lines, line => line.StartsWith(
            $"WARNING: ioremap on RAM at 0x{page.Address.Value:x16} - 0x{page.Address.Value + 4095:x16}",
            StringComparison.Ordinal));
        Assert.True(machine.Ioremap(new PhysAddr(64 * MiB - Page), 2 * Page) == null);

        // The first MiB belongs to the firmware: its frames are there, and nobody allocates them.
        var bios = (byte*)machine.IoremapCache(new PhysAddr(0x9_0000), Page);
        *bios = 0x55;
        Assert.Equal(0x55, *(byte*)machine.AddressOf(new Pfn(0x90)));
        machine.Iounmap(bios);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Ranges_without_sense_are_refused()
    {
        using Machine machine = Boot();
        Assert.True(machine.Ioremap(s_bar, 0) == null);
        Assert.True(machine.Ioremap(new PhysAddr(ulong.MaxValue - 100), 4096) == null);
        Assert.True(machine.Ioremap(new PhysAddr(1UL << 46), 4096) == null);
        Assert.True(machine.Ioremap(new PhysAddr((1UL << 46) - 4096), 4097) == null);
        Assert.Contains(
            machine.Dmesg.Lines, line => line.Contains("invalid physical address", StringComparison.Ordinal));
        Assert.Throws<ArgumentException>(() => machine.AddDevice(new PhysAddr(2 * MiB), MiB, "in RAM"));
        Assert.Throws<ArgumentException>(() => machine.AddDevice(new PhysAddr(s_bar.Value + 1), MiB, "crooked"));
        Assert.Throws<ArgumentException>(() => machine.AddDevice(new PhysAddr(1UL << 46), MiB, "too high"));
        machine.AddDevice(s_bar, MiB, "first");
        ArgumentException second = Assert.Throws<ArgumentException>(
            () => machine.AddDevice(new PhysAddr(s_bar.Value + MiB - Page), MiB, "second"));
        Assert.Contains("fe000000-fe0fffff : first", second.Message, StringComparison.Ordinal);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void One_range_has_one_cache_mode()
    {
        using Machine machine = Boot();
        void* first = machine.IoremapWc(s_bar, 4 * Page);

        // Adopted: who asked for uncached-minus can live with combining, write-through cannot.
        void* second = machine.Ioremap(new PhysAddr(s_bar.Value + Page), Page);
        Assert.Equal(CacheMode.WriteCombining, Walk(machine, second).CacheMode);
        Assert.True(machine.IoremapWt(s_bar, Page) == null);
        Assert.Contains(machine.Dmesg.Lines, line => line.Contains(
            "requested write-through, got write-combining", StringComparison.Ordinal));

        void* other = machine.IoremapUc(new PhysAddr(s_bar.Value + (4 * Page)), Page);
        Assert.True(machine.Ioremap(s_bar, 8 * Page) == null);
        Assert.Contains(
            machine.Dmesg.Lines, line => line.Contains("conflicting memory types", StringComparison.Ordinal));
        machine.Iounmap(first);
        machine.Iounmap(second);
        machine.Iounmap(other);
        void* free = machine.IoremapWt(s_bar, Page);
        Assert.Equal(CacheMode.WriteThrough, Walk(machine, free).CacheMode);
        machine.Iounmap(free);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Iounmap_takes_what_ioremap_gave_and_nothing_else()
    {
        using Machine machine = Boot();
        var area = (byte*)machine.Ioremap(new PhysAddr(s_bar.Value + 0x10), 3 * Page);
        void* allocated = machine.Vmalloc(Page);
        int local = 0;
        void* foreign = &local;
        AssertRefused(machine, () => machine.Iounmap(area + Page), "iounmap() nonexistent", "inside");
        AssertRefused(machine, () => machine.Iounmap(allocated), "iounmap() nonexistent", "use vfree");
        AssertRefused(machine, () => machine.Iounmap(foreign), "iounmap() nonexistent", "not memory of this machine");
        AssertRefused(machine, () => machine.Vfree(area - 0x10), "vfree() nonexistent", "use iounmap");
        AssertRefused(machine, () => machine.Vunmap(area - 0x10), "vunmap() nonexistent", "use iounmap");
        using (machine.Atomic())
            Assert.Throws<KernelBugException>(() => machine.Iounmap(area));

        machine.Iounmap(null);
        machine.Iounmap(machine.AddressOf(machine.AllocPage(Gfp.Kernel)));
        machine.Iounmap(area + 5);
        AssertRefused(machine, () => machine.Iounmap(area), "iounmap() nonexistent", "free already");
        machine.Vfree(allocated);
    }

    [Fact]
    public unsafe void Memremap_gives_ram_its_own_address()
    {
        using Machine machine = Boot();
        Pfn page = machine.AllocPage(Gfp.Kernel);
        void* ram = machine.Memremap(new PhysAddr(page.Address.Value + 8), 100);
        Assert.Equal((nint)machine.AddressOf(page) + 8, (nint)ram);
        machine.Memunmap(ram);

        machine.AddDevice(new PhysAddr(64 * MiB), MiB, "dax");
        Assert.True(machine.Memremap(new PhysAddr((64 * MiB) - Page), 2 * Page) == null);
        Assert.Contains(machine.Dmesg.Lines, line => line.Contains("mixed range", StringComparison.Ordinal));
        var device = (byte*)machine.Memremap(new PhysAddr(64 * MiB), (nuint)MiB);
        device[5] = 1;
        Assert.Equal(CacheMode.WriteBack, Walk(machine, device).CacheMode);
        machine.Memunmap(device);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void When_the_host_refuses_nothing_is_left_behind()
    {
        using Machine machine = Boot();
        DeviceMemory device = machine.AddDevice(s_bar, 4 * MiB, "nic");
        using var vmalloc = new VmallocAllocator(machine.Slabs, machine.KmallocCaches, machine.Ram, new MapBudget(60))
        {
            Physical = machine.Physical,
        };
        var areas = new List<nint>();
        for (; ; )
        {
            var at = new PhysAddr(s_bar.Value + (ulong)(areas.Count * 2 * Page));
            void* area = vmalloc.IoRemap(at.Value, Page, CacheMode.Uncached, VmCaller.Ioremap);
            if (area == null)
                break;
            areas.Add((nint)area);
        }

        Assert.InRange(areas.Count, 10, 60);
        Assert.Equal(areas.Count, vmalloc.MemoryTypes.Count);
        Assert.Equal(areas.Count, device.Mappings);
        Assert.Empty(VmallocValidator.Run(vmalloc, machine.Map));
        areas.ForEach(area => vmalloc.IoUnmap((void*)area));
        vmalloc.Window.FailHostCall(1);
        void* retried = vmalloc.IoRemap(s_bar.Value, Page, CacheMode.Uncached, VmCaller.Ioremap);
        Assert.True(retried != null, "a refusal is tried again after a purge");
        vmalloc.IoUnmap(retried);
        Assert.Equal((0, 0), (vmalloc.MemoryTypes.Count, device.Mappings));
        Assert.Empty(VmallocValidator.Run(vmalloc, machine.Map));
    }

    private static unsafe void* Map(Machine machine, string call, PhysAddr at, nuint size) => call switch
    {
        "Ioremap" => machine.Ioremap(at, size),
        "IoremapUc" => machine.IoremapUc(at, size),
        "IoremapWc" => machine.IoremapWc(at, size),
        "IoremapWt" => machine.IoremapWt(at, size),
        _ => machine.IoremapCache(at, size),
    };
}
