namespace Kmem.Tests;

/// <summary>The rules of the kinds of areas, each broken on purpose in a live machine.</summary>
public sealed class BrokenVmallocKindsRuleTests
{
    [Fact]
    [Trait("rule", "VMRAM-01")]
    public unsafe void Wrong_number_of_dirty_pages() => Breaks("VMRAM-01", static (machine, _, patch) =>
    {
        VmapBlock* block = machine.VmallocIfUsed!.Blocks.All.First().State;
        patch.Set(&block->Dirty, block->Dirty + 1);
    });

    [Fact]
    [Trait("rule", "VMRAM-02")]
    public unsafe void Block_whose_area_is_of_another_kind() => Breaks("VMRAM-02", static (machine, _, patch) =>
    {
        VmapArea* area = machine.VmallocIfUsed!.Blocks.All.First().State->Area;
        patch.Set(&area->Flags, area->Flags & ~(ulong)VmapAreaFlags.Block);
    });

    [Fact]
    [Trait("rule", "IOREMAP-01")]
    public unsafe void Ioremap_that_says_another_address() => Breaks("IOREMAP-01", static (machine, device, patch) =>
    {
        VmStruct* vm = machine.VmallocIfUsed!.Vmap.Find(device)->Vm;
        patch.Set(&vm->PhysicalAddress, vm->PhysicalAddress + Pfn.PageSize);
    });

    [Fact]
    [Trait("rule", "DIRECT-01")]
    public unsafe void Free_frame_without_the_right_to_write() => Breaks("DIRECT-01", static (machine, _, patch) =>
    {
        // The frame is at work in a slab or a per-CPU list; none of its users runs until the patch is undone.
        ulong free = 0;
        for (ulong pfn = 0x2000; free == 0; pfn++)
        {
            if (machine.Map.PageOf(pfn)->Type == PageType.Buddy)
                free = pfn;
        }

        patch.Do(
            () =>
            {
                machine.VmallocIfUsed!.Tables.ProtectDirect(free, 1, PageProt.KernelReadOnly);
                machine.VmallocIfUsed!.DirectMap.Set(free, 1, WindowProtection.ReadOnly);
            },
            () =>
            {
                machine.VmallocIfUsed!.Tables.ProtectDirect(free, 1, PageProt.Kernel);
                machine.VmallocIfUsed!.DirectMap.Set(free, 1, WindowProtection.ReadWrite);
            });
    });

    [Fact]
    [Trait("rule", "DIRECT-02")]
    public void Rights_taken_in_the_host_only() => Breaks("DIRECT-02", static (machine, _, patch) =>
    {
        ulong pfn = machine.VmallocIfUsed!.DirectMap.Changed()[0];
        patch.Do(
            () => machine.VmallocIfUsed!.Tables.ProtectDirect(pfn, 1, PageProt.Kernel),
            () => machine.VmallocIfUsed!.Tables.ProtectDirect(pfn, 1, PageProt.KernelReadOnly));
    });

    private static unsafe void Breaks(string rule, Action<Machine, ulong, LivePatch> damage)
    {
        using Machine machine = VmallocMachine.Boot(cpus: 1);
        Pfn[] frames = VmallocMachine.AllocPages(machine, 4);
        void* ram = machine.VmMapRam(frames);
        void* device = machine.Ioremap(new PhysAddr(0xfe00_0000), 3 * Pfn.PageSize);
        void* readOnly = machine.Vmalloc(Pfn.PageSize);
        Assert.True(machine.SetMemoryRo(readOnly, 1));
        Assert.Empty(machine.Validate());

        var patch = new LivePatch();
        damage(machine, machine.VmallocIfUsed!.AddressOf(device), patch);
        string[] broken = [.. machine.Validate().Select(found => found.Id).Distinct(StringComparer.Ordinal)];
        patch.Undo();
        Assert.Equal([rule], broken);
        Assert.Empty(machine.Validate());
        machine.VmUnmapRam(ram, 4);
        machine.Iounmap(device);
        Assert.True(machine.SetMemoryRw(readOnly, 1));
        machine.Vfree(readOnly);
        Assert.Empty(machine.Validate());
    }
}
