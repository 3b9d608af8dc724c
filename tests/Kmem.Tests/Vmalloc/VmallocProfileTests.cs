using static Kmem.Tests.VmallocMachine;

namespace Kmem.Tests;

/// <summary>What a profile decides about the vmalloc space, and what the statistics show of it.</summary>
public sealed class VmallocProfileTests
{
    private const int Page = Pfn.PageSize;

    /// <summary>
    /// Three kernels, one program: a process is begun, the kernel allocates, the process looks. The areas lie far from
    /// each other, so that their top-level entries are new.
    /// </summary>
    [Theory]
    [InlineData(KernelTableSync.OnFault, 1, 0, 0)]
    [InlineData(KernelTableSync.OnMap, 0, 1, 2)]
    [InlineData(KernelTableSync.Preallocated, 0, 0, 0)]
    public unsafe void Processes_learn_of_new_entries_as_the_profile_says(
        KernelTableSync sync, int faults, int syncs, int copied)
    {
        using Machine machine = Boot(change: options => options with
        {
            Profile = KernelProfile.Linux618 with { TableSync = sync },
        });
        using AddressSpace first = machine.CreateAddressSpace();
        using AddressSpace second = machine.CreateAddressSpace();
        VmallocStatistics before = machine.VmallocStatistics;
        void* area = machine.Vmalloc(4 * Page);
        var address = new VirtAddr(machine.VmallocIfUsed!.AddressOf(area));
        Assert.Equal(machine.VmallocToPage(area), first.Walk(address).Pfn);
        Assert.Equal(machine.VmallocToPage(area), first.Walk(address).Pfn);

        VmallocStatistics after = machine.VmallocStatistics;
        Assert.Equal(faults, after.VmallocFaults - before.VmallocFaults);
        Assert.Equal((syncs, copied), (after.SyncCalls - before.SyncCalls, after.SyncedEntries - before.SyncedEntries));
        Assert.Equal(machine.VmallocToPage(area), second.Walk(address).Pfn);
        Assert.Equal(2 * faults, machine.VmallocStatistics.VmallocFaults);
        machine.Vfree(area);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void One_flush_serves_many_freed_areas()
    {
        using Machine machine = Boot();
        for (int i = 0; i < 100; i++)
            machine.Vfree(machine.Vmalloc(3 * Page));
        VmallocStatistics lazy = machine.VmallocStatistics;
        Assert.Equal((400UL, 0L, 0L), (lazy.LazyPages, lazy.AreasPurged, lazy.Flushes));

        machine.VmUnmapAliases();
        VmallocStatistics purged = machine.VmallocStatistics;
        Assert.Equal((0UL, 100L, 1L, 99L), (purged.LazyPages, purged.AreasPurged, purged.Flushes, purged.FlushesSaved));
        Assert.Equal(100, purged.PooledAreas);
    }

    /// <summary>
    /// While rights are given back, a frame is nowhere: neither in the area nor, between the first step and the flush,
    /// in the direct map (set_direct_map_invalid_noflush).
    /// </summary>
    [Fact]
    public unsafe void Frames_are_absent_from_the_direct_map_while_their_rights_are_reset()
    {
        using Machine machine = Boot(cpus: 1);
        using var probe = new MemoryProbe();
        void* warm = machine.Vmalloc(Page);
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        var request = new VmallocRequest(4 * Page, Gfp.Kernel, VmCaller.Vmalloc) { Flags = VmFlags.FlushResetPerms };
        var area = (byte*)vmalloc.Alloc(request);
        Pfn frame = machine.VmallocToPage(area);
        var direct = (byte*)machine.AddressOf(frame);
        ulong address = AddressMap.PageOffset + frame.Address.Value;
        Assert.True(machine.SetMemoryRo(area, 4));
        var seen = new List<(bool Mapped, string Host)>();
        vmalloc.Vmap.Trace = new AtPurge(() => seen.Add((vmalloc.Tables.Walk(address).IsMapped, probe.Access(direct))));
        machine.Vfree(area);

        Assert.Equal((false, "--"), Assert.Single(seen));
        Assert.True(vmalloc.Tables.Walk(address).IsMapped);
        Assert.True(vmalloc.DirectAllowsWriting(frame.Value));
        Assert.Equal("rw", probe.Access(direct));
        machine.Vfree(warm);
        AssertWhole(machine);
    }

    /// <summary>
    /// Memory is the limit, and nothing before it: 5 GiB, of which the host gives only what is touched.
    /// </summary>
    [Theory]
    [InlineData("linux-6.18")]
    [InlineData("native")]
    public unsafe void An_area_may_be_larger_than_four_gigabytes(string profile)
    {
        using Machine machine = Boot(ramBytes: 7UL << 30, change: options => options with
        {
            Profile = KernelProfile.Find(profile)!,
            DecaySeconds = 0,
        });
        ulong size = 5UL << 30;
        var area = (byte*)machine.VmallocHuge((nuint)size, Gfp.Kernel);
        Assert.True(area != null);
        foreach (ulong at in new[] { 0UL, 1UL << 31, (1UL << 32) - 1, 1UL << 32, size - 1 })
        {
            area[at] = (byte)(at % 251 + 1);
            var direct = (byte*)machine.AddressOf(machine.VmallocToPage(area + at));
            Assert.Equal((byte)(at % 251 + 1), direct[at % Page]);
        }

        var pages = (long)(size >> Pfn.PageShift);

        // The page array is an area, too.
        Assert.InRange(machine.VmallocIfUsed!.PageCount, pages, pages + (pages / 400));
        Assert.StartsWith(
            $"{size + Page} VmallocHuge pages={size >> Pfn.PageShift} vmalloc", InfoLine(
                machine, area), StringComparison.Ordinal);
        Assert.True(machine.Vmalloc((nuint)size) == null, "more than all memory");
        machine.Vfree(area);
        Assert.Equal(0, machine.VmallocIfUsed!.PageCount);
    }

    private sealed class AtPurge(Action look) : IVmapTrace
    {
        public void AllocVmapArea(ulong address, in VmapRequest request, bool failed)
        {
        }

        public void PurgeVmapAreaLazy(ulong start, ulong end, uint purged) => look();

        public void FreeVmapAreaNoflush(ulong start, ulong lazyPages, ulong lazyMax)
        {
        }
    }
}
