namespace Kmem.Tests;

/// <summary>Each rule of page tables and per-CPU pages, broken on purpose in a live machine.</summary>
public sealed class BrokenPageTableRuleTests
{
    [Fact]
    [Trait("rule", "PT-01")]
    public unsafe void Entry_that_leads_to_an_ordinary_frame() => Breaks("PT-01", static (machine, patch) =>
    {
        // An address far from all areas: only the table below the root is there.
        PageWalkStep root = machine.VmallocIfUsed!.Tables.Walk(0xffff_e000_0000_0000).Steps[0];
        Pfn frame = machine.AllocPage(Gfp.Kernel | Gfp.Zero);
        patch.Set(EntryOf(machine, root), (frame.Value << 12) | PageTableEntry.Table);
    });

    [Fact]
    [Trait("rule", "PT-02")]
    public unsafe void Table_that_is_no_longer_reached() => Breaks("PT-02", static (machine, patch) =>
    {
        PageWalkStep root = machine.VmallocIfUsed!.Tables.Walk(0xffff_e000_0000_0000).Steps[0];
        patch.Set(EntryOf(machine, root), 0UL);
    });

    [Fact]
    [Trait("rule", "PERCPU-01")]
    public unsafe void Two_cpus_with_one_page() => Breaks("PERCPU-01", static (machine, patch) =>
    {
        KernelPageTable tables = machine.VmallocIfUsed!.Tables;
        (ulong address, Pfn _) = machine.PercpuIfUsed!.MappedPages().First();
        PageWalkStep first = tables.Walk(address).Steps[^1];
        PageWalkStep second = tables.Walk(address + machine.PercpuIfUsed!.UnitOffset(1)).Steps[^1];
        patch.Set(EntryOf(machine, second), first.Entry);
    });

    private static unsafe ulong* EntryOf(Machine machine, PageWalkStep step) =>
        (ulong*)(machine.Map.RamBase + step.EntryAddress.Value);

    private static void Breaks(string rule, Action<Machine, LivePatch> damage)
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "vmalloc needs frames mapped at a second address");
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 2 });
        PercpuPointer percpu = machine.AllocPercpu(100, 8);
        Assert.False(percpu.IsNull);
        Assert.Empty(machine.Validate());
        var patch = new LivePatch();
        damage(machine, patch);
        string[] broken = [.. machine.Validate().Select(found => found.Id).Distinct(StringComparer.Ordinal)];
        patch.Undo();
        Assert.Equal([rule], broken);
        Assert.Empty(machine.Validate());
        machine.FreePercpu(percpu);
    }
}
