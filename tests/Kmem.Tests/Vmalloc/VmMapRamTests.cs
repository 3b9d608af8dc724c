using static Kmem.Tests.VmallocMachine;

namespace Kmem.Tests;

/// <summary>vm_map_ram: slots of blocks, areas of their own, lazy unmapping, retirement.</summary>
public sealed class VmMapRamTests
{
    private const int Page = Pfn.PageSize;
    [Fact]
    public unsafe void Both_addresses_show_the_same_bytes()
    {
        using Machine machine = Boot();
        Pfn[] frames = AllocPages(machine, 100);
        foreach (int count in new[] { 1, 2, 3, 31, 64, 65, 100 })
        {
            var area = (byte*)machine.VmMapRam(frames.AsSpan(0, count));
            for (int i = 0; i < count; i++)
            {
                *(int*)(area + ((long)i * Page)) = i + count;
                Assert.Equal(i + count, *(int*)machine.AddressOf(frames[i]));
                Assert.Equal(frames[i], machine.VmallocToPage(area + ((long)i * Page)));
            }

            AssertWhole(machine);
            machine.VmUnmapRam(area, count);
            Assert.Equal(Pfn.None, machine.VmallocToPage(area));
        }

        AssertWhole(machine);
    }

    /// <summary>
    /// The block that the recording of a real kernel has: flag word 3, aligned to its 4 MiB, no guard.
    /// </summary>
    [Fact]
    public unsafe void Small_mappings_are_cut_from_a_block_and_never_reused()
    {
        using Machine machine = Boot(cpus: 1);
        Pfn[] frames = AllocPages(machine, 64);
        var at = new List<ulong>();
        foreach (int count in new[] { 1, 3, 1, 64, 5 })
        {
            void* area = machine.VmMapRam(frames.AsSpan(0, count));
            at.Add(machine.VmallocIfUsed!.AddressOf(area));
            if (count != 3)
                machine.VmUnmapRam(area, count);
        }

        ulong block = at[0];
        Assert.Equal(0UL, block % VmapBlocks.BlockBytes);
        Assert.Equal([0UL, 1, 5, 6, 70], at.Select(va => (va - block) / Page));
        VmapArea* found = machine.VmallocIfUsed!.Vmap.Find(block);
        Assert.Equal(3UL, found->Flags);
        Assert.Equal(VmapBlocks.BlockBytes, found->Size);
        Assert.True(found->Vm == null);
        Assert.Contains(
            $"0x{block:x16}-0x{block + VmapBlocks.BlockBytes:x16} 4194304 vm_map_ram\n",
            machine.Proc.VmallocInfo(),
            StringComparison.Ordinal);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void The_flag_word_names_the_vmap_node()
    {
        using Machine machine = Boot(cpus: 2);
        Pfn[] frames = AllocPages(machine, 1);
        using (machine.RunOn(1))
        {
            void* area = machine.VmMapRam(frames);
            ulong va = machine.VmallocIfUsed!.AddressOf(area);
            Assert.Equal(0x203UL, machine.VmallocIfUsed.Vmap.Find(va)->Flags);
        }
    }

    [Fact]
    public unsafe void Many_pages_are_an_area_of_their_own_without_a_guard_page()
    {
        using Machine machine = Boot(cpus: 1);
        Pfn[] frames = AllocPages(machine, 65);
        void* area = machine.VmMapRam(frames);
        ulong va = machine.VmallocIfUsed!.AddressOf(area);

        Assert.Equal(1UL, machine.VmallocIfUsed.Vmap.Find(va)->Flags);
        Assert.Equal("266240 vm_map_ram", InfoLine(machine, area));
        machine.VmUnmapRam(area, 65);
        Assert.Contains($"0x{va:x16}-0x{va + (65 * Page):x16}  266240 unpurged vm_area\n", machine.Proc.VmallocInfo(), StringComparison.Ordinal);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void A_block_that_is_used_up_goes_and_comes_back_after_a_purge()
    {
        using Machine machine = Boot(cpus: 1);
        Pfn[] frames = AllocPages(machine, 64);
        var areas = Enumerable.Range(0, 16).Select(_ => (nint)machine.VmMapRam(frames)).ToArray();
        ulong block = machine.VmallocIfUsed!.AddressOf((void*)areas[0]);
        Assert.Empty(machine.VmallocIfUsed.Blocks.QueueOf(0));
        Assert.Single(machine.VmallocIfUsed.Blocks.All);
        using (var probe = new MemoryProbe())
        {
            foreach (nint area in areas)
                machine.VmUnmapRam((void*)area, 64);

            // Not before the flush are the addresses gone: that is what makes unmapping cheap.
            Assert.Equal("rw", probe.Access((byte*)areas[3]));
            Assert.Empty(machine.VmallocIfUsed.Blocks.All);
            Assert.True(machine.VmallocIfUsed.Vmap.Find(block) == null);
            machine.VmUnmapAliases();
            Assert.Equal("--", probe.Access((byte*)areas[3]));
        }

        void* again = machine.VmMapRam(frames);
        Assert.Equal(block, machine.VmallocIfUsed.AddressOf(again));
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Unmapped_pages_of_a_block_in_use_fault_after_vm_unmap_aliases_and_only_they()
    {
        using Machine machine = Boot(cpus: 1);
        using var probe = new MemoryProbe();
        Pfn[] frames = AllocPages(machine, 4);
        var areas = Enumerable.Range(0, 10).Select(_ => (nint)machine.VmMapRam(frames)).ToArray();
        foreach (int i in new[] { 2, 3, 7 })
            machine.VmUnmapRam((void*)areas[i], 4);
        machine.VmUnmapAliases();

        for (int i = 0; i < areas.Length; i++)
            Assert.Equal(i is 2 or 3 or 7 ? "--" : "rw", probe.Access((byte*)areas[i]));
        AssertWhole(machine);
    }

    /// <summary>
    /// Less than a quarter left and nothing in use: vm_unmap_aliases retires the block; else it waits.
    /// </summary>
    [Theory]
    [InlineData(12, false)]
    [InlineData(13, true)]
    public unsafe void A_fragmented_block_is_retired_when_little_is_left(int slots, bool retired)
    {
        using Machine machine = Boot(cpus: 1);
        Pfn[] frames = AllocPages(machine, 64);
        var areas = Enumerable.Range(0, slots).Select(_ => (nint)machine.VmMapRam(frames)).ToArray();
        foreach (nint area in areas)
            machine.VmUnmapRam((void*)area, 64);
        machine.VmUnmapAliases();

        Assert.Equal(retired ? 0 : 1, machine.VmallocIfUsed!.Blocks.All.Count());
        Assert.Equal(retired ? 0 : 1, machine.VmallocIfUsed.Blocks.QueueOf(0).Count);
        AssertWhole(machine);

        // When addresses run out every block without users goes.
        machine.VmallocIfUsed.Vmap.ReclaimAndPurge();
        Assert.Empty(machine.VmallocIfUsed.Blocks.All);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Each_cpu_has_its_own_blocks_and_any_may_unmap()
    {
        using Machine machine = Boot(cpus: 2);
        Pfn[] frames = AllocPages(machine, 8);
        void* zero, one;
        using (machine.RunOn(0))
            zero = machine.VmMapRam(frames);
        using (machine.RunOn(1))
            one = machine.VmMapRam(frames);
        Assert.NotEqual((nint)zero / (nint)VmapBlocks.BlockBytes, (nint)one / (nint)VmapBlocks.BlockBytes);
        Assert.Single(machine.VmallocIfUsed!.Blocks.QueueOf(0));
        Assert.Single(machine.VmallocIfUsed.Blocks.QueueOf(1));
        using (machine.RunOn(1))
            machine.VmUnmapRam(zero, 8);
        using (machine.RunOn(0))
            machine.VmUnmapRam(one, 8);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Misuse_is_refused_and_changes_nothing()
    {
        using Machine machine = Boot(cpus: 1);
        Pfn[] frames = AllocPages(machine, 70);
        var small = (byte*)machine.VmMapRam(frames.AsSpan(0, 5));
        var large = (byte*)machine.VmMapRam(frames);
        void* allocated = machine.Vmalloc(70 * Page);
        AssertRefused(machine, () => machine.VmUnmapRam(small, 4), "vm_unmap_ram() 4 pages", "5 pages were mapped");
        AssertRefused(machine, () => machine.VmUnmapRam(small + Page, 4), "no mapping starts there");
        AssertRefused(machine, () => machine.VmUnmapRam(small + 1, 5), "bad address");
        AssertRefused(machine, () => machine.VmUnmapRam(small, 0), "no number of pages");
        AssertRefused(machine, () => machine.VmUnmapRam(small, 70), "no such mapping");
        AssertRefused(machine, () => machine.VmUnmapRam(large, 69), "no such mapping");
        AssertRefused(machine, () => machine.VmUnmapRam(large, 5), "no block of vm_map_ram");
        AssertRefused(machine, () => machine.VmUnmapRam(allocated, 70), "no such mapping");
        AssertRefused(machine, () => machine.Vfree(small), "vfree() nonexistent");
        AssertRefused(machine, () => machine.Vfree(large), "vfree() nonexistent", "vm_unmap_ram");
        AssertRefused(machine, () => machine.Vunmap(large), "vunmap() nonexistent");
        Assert.True(machine.VmMapRam([]) == null);
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.VmMapRam([new Pfn(1 << 30)]));
        using (machine.Atomic())
        {
            Assert.Throws<KernelBugException>(() => machine.VmMapRam(frames));
            Assert.Throws<KernelBugException>(() => machine.VmUnmapRam(small, 5));
        }

        machine.VmUnmapRam(small, 5);
        machine.VmUnmapRam(large, 70);
        AssertRefused(machine, () => machine.VmUnmapRam(small, 5), "unmapped already");
        AssertRefused(machine, () => machine.VmUnmapRam(large, 70), "unmapped already");
        machine.Vfree(allocated);
        AssertWhole(machine);
    }

    [Theory]
    [InlineData(3)]
    [InlineData(70)]
    public unsafe void Without_mappings_nothing_is_left_behind(int count)
    {
        using Machine machine = Boot(cpus: 1);
        using var vmalloc = new VmallocAllocator(machine.Slabs, machine.KmallocCaches, machine.Ram, new MapBudget(400));
        Pfn[] frames = AllocPages(machine, 2 * count).Where((_, i) => i % 2 == 0).ToArray();
        var areas = new List<nint>();
        for (void* area = vmalloc.MapRam(frames); area != null; area = vmalloc.MapRam(frames))
            areas.Add((nint)area);

        Assert.InRange(areas.Count, 2, 400);
        Assert.Empty(VmallocValidator.Run(vmalloc, machine.Map));
        areas.ForEach(area => vmalloc.UnmapRam((void*)area, count));
        void* again = vmalloc.MapRam(frames);
        Assert.True(again != null, "mappings of freed areas are given back when they are short");
        vmalloc.UnmapRam(again, count);
        Assert.Empty(VmallocValidator.Run(vmalloc, machine.Map));
    }
}
