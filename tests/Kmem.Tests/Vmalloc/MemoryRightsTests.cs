using static Kmem.Tests.VmallocMachine;

namespace Kmem.Tests;

/// <summary>set_memory_ro and its kin: entries, window, direct map; and the way back when memory is freed.</summary>
public sealed class MemoryRightsTests
{
    private const int Page = Pfn.PageSize;

    [Fact]
    public unsafe void Rights_change_in_the_entries_in_the_window_and_in_the_direct_map()
    {
        using Machine machine = Boot();
        using var probe = new MemoryProbe();
        var area = (byte*)machine.Vmalloc(6 * Page);
        var direct = (byte*)machine.AddressOf(machine.VmallocToPage(area + (2 * Page)));
        Assert.True(machine.SetMemoryRo(area + (2 * Page), 3));

        Assert.Equal(0x8000000000000121UL, FlagsAt(machine, area + (2 * Page)));
        Assert.Equal(0x8000000000000163UL, FlagsAt(machine, area + Page));
        Assert.Equal("rw", probe.Access(area + Page));
        Assert.Equal("r-", probe.Access(area + (2 * Page)));
        Assert.Equal("r-", probe.Access(area + (4 * Page)));
        Assert.Equal("rw", probe.Access(area + (5 * Page)));
        Assert.Equal("r-", probe.Access(direct));
        AssertWhole(machine);

        Assert.True(machine.SetMemoryX(area + (2 * Page), 1));
        Assert.Equal(0x121UL, FlagsAt(machine, area + (2 * Page)));
        Assert.True(machine.SetMemoryNx(area + (2 * Page), 1));
        Assert.True(machine.SetMemoryRw(area + (2 * Page), 3));
        Assert.Equal(0x8000000000000163UL, FlagsAt(machine, area + (2 * Page)));
        Assert.Equal("rw", probe.Access(area + (2 * Page)));
        Assert.Equal("rw", probe.Access(direct));
        Assert.True(machine.SetMemoryRox(area, 6));
        Assert.Equal(0x121UL, FlagsAt(machine, area + (5 * Page)));
        Assert.True(machine.SetMemoryRw(area, 6));
        Assert.Equal(0x163UL, FlagsAt(machine, area));
        Assert.Equal(0, machine.VmallocIfUsed!.DirectMap.ChangedFrames);
        machine.Vfree(area);
        AssertWhole(machine);
    }

    [Fact]
    [Trait("rule", "RIGHTS-01")]
    public unsafe void Freed_read_only_memory_can_be_written_by_its_next_owner()
    {
        using Machine machine = Boot(cpus: 1);
        using var probe = new MemoryProbe();
        VmallocAllocator vmalloc = Vmallocs(machine);
        foreach (bool reset in new[] { true, false })
        {
            var request = new VmallocRequest(10 * Page, Gfp.Kernel, VmCaller.Vmalloc)
            {
                Flags = reset ? VmFlags.FlushResetPerms : VmFlags.None,
            };
            var area = (byte*)vmalloc.Alloc(request);
            Pfn[] frames = Enumerable.Range(
                0, 10).Select(i => machine.VmallocToPage(area + ((long)i * Page))).ToArray();
            Assert.True(machine.SetMemoryRox(area + Page, 7));
            long warnings = machine.Dmesg.TotalLines;
            machine.Vfree(area);

            // VM_FLUSH_RESET_PERMS forces a purge; without it the rights come back all the same, with a complaint.
            Assert.Equal("--", probe.Access(area));
            Assert.Equal(0UL, vmalloc.Vmap.LazyPages);
            Assert.All(frames, frame => Assert.Equal("rw", probe.Access((byte*)machine.AddressOf(frame))));
            Assert.All(frames, frame => Assert.True(vmalloc.DirectAllowsWriting(frame.Value)));
            Assert.Equal(reset ? 0 : 1, machine.Dmesg.TotalLines - warnings);
            AssertWhole(machine);
        }

        Assert.Contains("set_memory_rw() is missing", machine.Dmesg.ToString(), StringComparison.Ordinal);
    }

    [Fact]
    public unsafe void The_flush_covers_the_area_and_its_frames_in_the_direct_map()
    {
        using Machine machine = Boot(cpus: 1);
        VmallocAllocator vmalloc = Vmallocs(machine);
        var trace = new PurgeTrace();
        vmalloc.Vmap.Trace = trace;
        void* area = vmalloc.Alloc(new VmallocRequest(Page, Gfp.Kernel, VmCaller.Vmalloc)
        {
            Flags = VmFlags.FlushResetPerms,
        });
        ulong va = vmalloc.AddressOf(area);
        ulong direct = AddressMap.PageOffset + machine.VmallocToPage(area).Address.Value;
        machine.Vfree(area);

        Assert.Equal((direct, va + (2 * Page), 1u), Assert.Single(trace.Purges));
    }

    [Fact]
    public unsafe void Memory_of_large_leaves_is_split_where_rights_change()
    {
        using Machine machine = Boot(cpus: 1);
        var area = (byte*)machine.VmallocHuge(4 << 20, Gfp.Kernel);
        Assert.Equal("pmd", Walk(machine, area).Steps[^1].Name);
        area[(2 << 20) + 5] = 42;
        Assert.True(machine.SetMemoryRo(area + (2 << 20) + Page, 2));

        Assert.Equal("pmd", Walk(machine, area).Steps[^1].Name);
        Assert.Equal("pte", Walk(machine, area + (2 << 20)).Steps[^1].Name);
        Assert.Equal(0x8000000000000163UL, FlagsAt(machine, area + (2 << 20)));
        Assert.Equal(0x8000000000000121UL, FlagsAt(machine, area + (2 << 20) + Page));
        Assert.Equal(42, area[(2 << 20) + 5]);
        AssertWhole(machine);
        Assert.True(machine.SetMemoryRw(area + (2 << 20) + Page, 2));
        machine.Vfree(area);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Vmap_and_ioremap_can_be_made_read_only()
    {
        using Machine machine = Boot();
        using var probe = new MemoryProbe();
        Pfn[] frames = AllocPages(machine, 5);
        var mapped = (byte*)machine.Vmap(frames);
        DeviceMemory device = machine.AddDevice(new PhysAddr(0xfe00_0000), 2 * Page, "rom");
        var rom = (byte*)machine.Ioremap(device.Start, 2 * Page);
        Assert.True(machine.SetMemoryRo(mapped, 5));
        Assert.True(machine.SetMemoryRo(rom, 2));
        Assert.Equal("r-", probe.Access(mapped));
        Assert.Equal("r-", probe.Access((byte*)machine.AddressOf(frames[2])));
        Assert.Equal("r-", probe.Access(rom));
        Assert.Equal("rw", probe.Access(device.Pointer));
        Assert.Equal(CacheMode.UncachedMinus, Walk(machine, rom).CacheMode);

        // The frames outlive the mapping, with all rights.
        machine.Vunmap(mapped);
        Assert.All(frames, frame => Assert.Equal("rw", probe.Access((byte*)machine.AddressOf(frame))));
        machine.Iounmap(rom);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Frames_that_leave_a_sparse_area_have_all_rights()
    {
        using Machine machine = Boot();
        using var probe = new MemoryProbe();
        Pfn[] frames = AllocPages(machine, 4);
        var area = (byte*)machine.GetVmArea(8 * Page);
        Assert.Equal(VmapError.None, machine.VmAreaMapPages(area, 2 * Page, frames));
        Assert.True(machine.SetMemoryRo(area + (2 * Page), 4));
        Assert.Equal(VmapError.None, machine.VmAreaUnmapPages(area, 2 * Page, 2));

        Assert.Equal("rw", probe.Access((byte*)machine.AddressOf(frames[1])));
        Assert.Equal("r-", probe.Access((byte*)machine.AddressOf(frames[2])));
        Assert.Contains("set_memory_rw() is missing", machine.Dmesg.ToString(), StringComparison.Ordinal);
        machine.FreePage(frames[0]);
        machine.FreePage(frames[1]);
        AssertWhole(machine);
        machine.FreeVmArea(area);
        Assert.Equal("rw", probe.Access((byte*)machine.AddressOf(frames[2])));
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Stacks_are_always_writable()
    {
        using Machine machine = Boot();
        void* stack = machine.AllocThreadStack();
        AssertRefused(machine, () => machine.SetMemoryRo(stack, 4), "the rights of stacks and per-CPU memory");
        machine.FreeThreadStack(stack);
    }

    [Fact]
    public unsafe void What_is_no_memory_of_one_area_is_refused()
    {
        using Machine machine = Boot();
        var area = (byte*)machine.Vmalloc(4 * Page);
        void* direct = machine.AddressOf(machine.AllocPage(Gfp.Kernel));
        AssertRefused(
            machine, () => machine.SetMemoryRo(area, 5), "set_memory_ro() of 5 pages", "not pages of one area");
        AssertRefused(machine, () => machine.SetMemoryRo(area + (4 * Page), 1), "not pages of one area");
        AssertRefused(machine, () => machine.SetMemoryX(area + 8, 1), "set_memory_x() bad address");
        AssertRefused(machine, () => machine.SetMemoryRw(direct, 1), "direct map");
        AssertRefused(machine, () => machine.SetMemoryNx(area, int.MaxValue), "not pages of one area");
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.SetMemoryRo(area, -1));
        Assert.True(machine.SetMemoryRo(area, 0));
        using (machine.Atomic())
            Assert.Throws<KernelBugException>(() => machine.SetMemoryRo(area, 1));
        machine.Vfree(area);
        AssertRefused(machine, () => machine.SetMemoryRo(area, 1), "not pages of one area");
    }

    [Fact]
    public unsafe void Read_only_memory_is_not_freed_where_sleeping_is_forbidden()
    {
        using Machine machine = Boot();
        VmallocAllocator vmalloc = Vmallocs(machine);
        var plain = (byte*)machine.Vmalloc(Page);
        void* flagged = vmalloc.Alloc(new VmallocRequest(Page, Gfp.Kernel, VmCaller.Vmalloc)
        {
            Flags = VmFlags.FlushResetPerms,
        });
        Assert.True(machine.SetMemoryRo(plain, 1));
        using (machine.HardIrq())
        {
            Assert.Contains(
                "read-only memory", Assert.Throws<KernelBugException>(
                    () => machine.Vfree(plain)).Message, StringComparison.Ordinal);
            Assert.Contains(
                "VM_FLUSH_RESET_PERMS",
                Assert.Throws<KernelBugException>(() => machine.Vfree(flagged)).Message,
                StringComparison.Ordinal);
        }

        Assert.True(machine.SetMemoryRw(plain, 1));
        machine.Vfree(plain);
        machine.Vfree(flagged);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void When_the_host_refuses_no_right_has_changed()
    {
        using Machine machine = Boot(cpus: 1);
        using var probe = new MemoryProbe();
        var area = (byte*)machine.Vmalloc(8 * Page);
        for (int n = 1; n <= 2; n++)
        {
            // Refused once, it is tried again; so two in a row.
            machine.VmallocIfUsed!.DirectMap.FailNext = 2;
            Assert.False(machine.SetMemoryRo(area, 8));
            Assert.Equal("rw", probe.Access(area));
            Assert.Equal("rw", probe.Access((byte*)machine.AddressOf(machine.VmallocToPage(area))));
            Assert.Equal(0x8000000000000163UL, FlagsAt(machine, area));
            AssertWhole(machine);
        }

        machine.Vfree(area);
    }

    [Fact]
    public unsafe void Frames_whose_rights_the_host_keeps_are_not_given_to_anybody()
    {
        using Machine machine = Boot(cpus: 1);
        var area = (byte*)machine.Vmalloc(4 * Page);
        Pfn frame = machine.VmallocToPage(area);
        Assert.True(machine.SetMemoryRo(area, 1));
        machine.VmallocIfUsed!.DirectMap.FailNext = 3;      // once to take the rest away, twice to give all back
        machine.Vfree(area);

        Assert.Equal(1, machine.Map.PageOf(frame.Value)->RefCount);
        Assert.Contains("stay allocated", machine.Dmesg.ToString(), StringComparison.Ordinal);
        AssertWhole(machine);
    }

    private static VmallocAllocator Vmallocs(Machine machine)
    {
        machine.VmUnmapAliases();
        unsafe
        {
            machine.Vfree(machine.Vmalloc(Page));
        }

        machine.VmUnmapAliases();
        return machine.VmallocIfUsed!;
    }

    private static unsafe ulong FlagsAt(Machine machine, void* pointer) =>
        Walk(machine, pointer).Steps[^1].Entry & ~(PageTableEntry.FrameMask | PageTableEntry.Accessed) | 0x20;

    private sealed class PurgeTrace : IVmapTrace
    {
        public List<(ulong Start, ulong End, uint Purged)> Purges { get; } = [];

        public void AllocVmapArea(ulong address, in VmapRequest request, bool failed)
        {
        }

        public void PurgeVmapAreaLazy(ulong start, ulong end, uint purged) => Purges.Add((start, end, purged));

        public void FreeVmapAreaNoflush(ulong start, ulong lazyPages, ulong lazyMax)
        {
        }
    }
}
