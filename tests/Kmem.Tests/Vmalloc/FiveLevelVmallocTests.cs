namespace Kmem.Tests;

/// <summary>All that vmalloc can do, with five levels of page tables; and what is different there.</summary>
public sealed class FiveLevelVmallocTests : VmallocTests
{
    protected override int Levels => 5;

    [Fact]
    public void OnlyFourAndFiveLevelsExist()
    {
        Assert.Throws<ArgumentException>(() => Machine.Boot(
            new MachineOptions { Profile = KernelProfile.Linux618, PageTableLevels = 3 }));
        Assert.Throws<ArgumentException>(() => Machine.Boot(
            new MachineOptions { Profile = KernelProfile.Linux618, PageTableLevels = 6 }));
    }

    /// <summary>12.5 PiB less a byte, rounded down, and the direct map at its own place.</summary>
    [Fact]
    public unsafe void TheAddressMapIsThatOfFiveLevels()
    {
        Assert.SkipUnless(HostMemory.IsLinux && HostInfo.PageBytes == 4096, "vmalloc needs Linux with 4 KiB pages");
        using Machine machine = Machine.Boot(
            new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64UL << 20, PageTableLevels = 5 });
        Assert.Equal((12800UL << 30) - 1, machine.Proc.ReadMemInfo().Find("VmallocTotal")!.Value);
        void* area = machine.Vmalloc(4096);
        Assert.Equal((12800UL << 30) - 1, machine.Proc.ReadMemInfo().Find("VmallocTotal")!.Value);
        Assert.StartsWith("0xffa0000000000000-", machine.Proc.VmallocInfo(), StringComparison.Ordinal);
        Pfn frame = machine.VmallocToPage(area);
        void* direct = machine.AddressOf(frame);
        Assert.Equal(0xff11_0000_0000_0000 + (frame.Value << 12), machine.KernelAddressOf(direct).Value);
    }

    /// <summary>
    /// What fits nowhere in the process fails without a trace, whatever the address space could hold.
    /// </summary>
    [Fact]
    public unsafe void AnAddressWithoutAPointerIsNoMemory()
    {
        Assert.SkipUnless(HostMemory.IsLinux && HostInfo.PageBytes == 4096, "vmalloc needs Linux with 4 KiB pages");
        using Machine machine = Machine.Boot(
            new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64UL << 20, PageTableLevels = 5 });
        machine.Vfree(machine.Vmalloc(4096));
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        var far = new VmallocRequest(4096, Gfp.Kernel | Gfp.NoWarn, VmCaller.Vmalloc) { Align = 1UL << 50 };
        Assert.True(vmalloc.Alloc(far) == null);
        Assert.True(vmalloc.PointerOf(0xffb0_0000_0000_0000) == null);
        Assert.Equal(0, vmalloc.PageCount);
        Assert.Empty(machine.Validate());
    }
}
