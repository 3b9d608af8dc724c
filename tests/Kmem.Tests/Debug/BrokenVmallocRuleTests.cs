namespace Kmem.Tests;

/// <summary>Each rule of vmalloc areas and their pages, broken on purpose in a live machine.</summary>
public sealed class BrokenVmallocRuleTests
{
    [Fact]
    [Trait("rule", "VMALLOC-01")]
    public unsafe void Area_and_description_differ() => Breaks("VMALLOC-01", static (_, vm, patch) =>
        patch.Set(&vm->Size, vm->Size + 4096));

    [Fact]
    [Trait("rule", "VMALLOC-02")]
    public unsafe void Area_that_was_never_completed() => Breaks("VMALLOC-02", static (_, vm, patch) =>
        patch.Set(&vm->Flags, vm->Flags | VmFlags.Uninitialized));

    [Fact]
    [Trait("rule", "VMALLOC-03")]
    public unsafe void Page_without_a_reference() => Breaks("VMALLOC-03", static (_, vm, patch) =>
        patch.Set(&vm->Pages[1]->RefCount, 0));

    [Fact]
    [Trait("rule", "VMALLOC-04")]
    public unsafe void Wrong_number_of_pages() => Breaks("VMALLOC-04", static (_, vm, patch) =>
        patch.Set(&vm->PageCount, vm->PageCount - 1));

    [Fact]
    [Trait("rule", "VMALLOC-05")]
    public unsafe void Pages_mapped_in_another_order() => Breaks("VMALLOC-05", static (_, vm, patch) =>
    {
        var first = (nint)vm->Pages[0];
        patch.Set((nint*)vm->Pages, (nint)vm->Pages[1]);
        patch.Set((nint*)vm->Pages + 1, first);
    });

    [Fact]
    [Trait("rule", "VMALLOC-06")]
    public unsafe void Guard_page_that_is_mapped() => Breaks("VMALLOC-06", static (machine, vm, patch) =>
    {
        PageTable tables = machine.VmallocIfUsed!.Tables;
        ulong guard = vm->Address + vm->Size - 4096;
        PageWalkStep last = tables.Walk(guard - 4096).Steps[^1];
        patch.Set((ulong*)(machine.Map.RamBase + tables.Walk(guard).Steps[^1].EntryAddress.Value), last.Entry);
    });

    [Fact]
    [Trait("rule", "VMALLOC-07")]
    public unsafe void Area_of_an_owner_that_is_marked_as_kept() => Breaks("VMALLOC-07", static (_, vm, patch) =>
        patch.Set(&vm->Flags, vm->Flags | VmFlags.Kept));

    private static unsafe void Breaks(string rule, Damage damage)
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "vmalloc needs frames mapped at a second address");
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });
        void* first = machine.Vmalloc(10_000);
        void* second = machine.Vmalloc(20_000);
        Assert.True(first != null && second != null);
        VmStruct* vm = null;
        foreach (VmapNode node in machine.VmallocIfUsed!.Vmap.Nodes)
        {
            node.ForEachBusy(entry =>
            {
                VmStruct* found = ((VmapArea*)entry)->Vm;
                if (found != null && found->PageCount == 5)
                    vm = found;
            });
        }

        Assert.True(vm != null);
        Assert.Empty(machine.Validate());
        var patch = new LivePatch();
        damage(machine, vm, patch);
        string[] broken = [.. machine.Validate().Select(found => found.Id).Distinct(StringComparer.Ordinal)];
        patch.Undo();
        Assert.Equal([rule], broken);
        Assert.Empty(machine.Validate());
        machine.Vfree(first);
        machine.Vfree(second);
        Assert.Empty(machine.Validate());
    }

    private unsafe delegate void Damage(Machine machine, VmStruct* vm, LivePatch patch);
}
