using static Kmem.Tests.VmallocMachine;

namespace Kmem.Tests;

/// <summary>
/// Every VM_* flag that 6.18 has, by value, and what it does here. 4.15 had those of s_in415; values it did not
/// know were free then.
/// </summary>
public sealed class VmFlagsTests
{
    private const int Page = Pfn.PageSize;

    /// <summary>Flag, value in 6.18, and the check of what it means.</summary>
    private static readonly (VmFlags Flag, ulong Value, Action<Machine> Check)[] s_flags =
    [
        (VmFlags.IoRemap, 0x1, ShowsADevice),
        (VmFlags.Alloc, 0x2, OwnsItsPages),
        (VmFlags.Map, 0x4, ShowsPagesOfOthers),
        (VmFlags.UserMap, 0x8, MayBeShownToAProcess),
        (VmFlags.DmaCoherent, 0x10, MayBeShownToAProcessToo),
        (VmFlags.Uninitialized, 0x20, IsSkippedByReaders),
        (VmFlags.NoGuard, 0x40, HasNoGuardPage),
        (VmFlags.Kasan, 0x80, HasShadow),
        (VmFlags.FlushResetPerms, 0x100, FlushesWhenFreed),
        (VmFlags.MapPutPages, 0x200, FreesThePagesItWasGiven),
        (VmFlags.AllowHugeVmap, 0x400, TakesLargePages),
        (VmFlags.DeferKmemleak, 0x800, IsAcceptedAndKept),
        (VmFlags.Sparse, 0x1000, IsNotFreedByVfree),
    ];

    private static readonly VmFlags[] s_in415 =
    [
        VmFlags.IoRemap, VmFlags.Alloc, VmFlags.Map, VmFlags.UserMap, VmFlags.Uninitialized, VmFlags.NoGuard, VmFlags.Kasan,
    ];

    public static TheoryData<string> All => [.. s_flags.Select(row => row.Flag.ToString())];

    [Fact]
    public void The_flags_have_the_kernels_values_and_none_is_missing()
    {
        Assert.All(s_flags, row => Assert.Equal(row.Value, (ulong)row.Flag));
        IEnumerable<VmFlags> kernels = Enum.GetValues<VmFlags>().Where(flag => (ulong)flag is > 0 and < 1UL << 32);
        Assert.Equal(kernels.Order(), s_flags.Select(row => row.Flag).Order());
        Assert.Equal(0xefUL, s_in415.Aggregate(0UL, (sum, flag) => sum | (ulong)flag));
    }

    [Theory]
    [MemberData(nameof(All))]
    public void The_flag_does_what_it_means(string flag)
    {
        using Machine machine = Boot(cpus: 1, change: options => options with { KasanModuleShadow = true });
        s_flags.Single(row => row.Flag.ToString() == flag).Check(machine);
        AssertWhole(machine);
    }

    /// <summary>Bits 13 to 19 are free, 20 to 32 are the architectures', and Kmem's own are not for callers.</summary>
    [Theory]
    [InlineData(0x2000UL)]
    [InlineData(1UL << 20)]
    [InlineData(1UL << 32)]
    [InlineData(1UL << 60)]
    internal unsafe void Reserved_flags_are_refused(ulong flag)
    {
        using Machine machine = Boot();
        VmallocAllocator vmalloc = Vmallocs(machine);
        AssertRefused(machine, () => vmalloc.Alloc(Request((VmFlags)flag)), "are reserved", $"0x{flag:x}");
        AssertRefused(machine, () => vmalloc.Map([new Pfn(0x2000)], (VmFlags)flag, PageProt.Kernel), "are reserved");
        Assert.Equal(0, vmalloc.PageCount);
    }

    [Fact]
    public unsafe void Vmap_refuses_to_reset_rights_and_keeps_its_guard_page()
    {
        using Machine machine = Boot();
        using var probe = new MemoryProbe();
        VmallocAllocator vmalloc = Vmallocs(machine);
        Pfn[] frames = AllocPages(machine, 2);
        Assert.True(vmalloc.Map(frames, VmFlags.FlushResetPerms, PageProt.Kernel) == null);
        Assert.Contains("vmap refuses VM_FLUSH_RESET_PERMS", machine.Dmesg.ToString(), StringComparison.Ordinal);
        var area = (byte*)vmalloc.Map(frames, VmFlags.NoGuard, PageProt.Kernel);
        Assert.Contains("vmap ignores VM_NO_GUARD", machine.Dmesg.ToString(), StringComparison.Ordinal);
        Assert.Equal("12288 Vmap vmap", InfoLine(machine, area));
        Assert.Equal("--", probe.Access(area + (2 * Page)));
        machine.Vunmap(area);
        AssertWhole(machine);
    }

    private static unsafe void ShowsADevice(Machine machine)
    {
        void* area = machine.Ioremap(new PhysAddr(0xfe00_0000), 3 * Page);
        Assert.Equal(VmFlags.IoRemap, FlagsOf(machine, area));
        Assert.Equal(0UL, machine.VmallocIfUsed!.AddressOf(area) % (4 * Page));
        AssertRefused(machine, () => machine.Vfree(area), "iounmap");
        machine.Iounmap(area);
    }

    private static unsafe void OwnsItsPages(Machine machine)
    {
        void* area = machine.Vmalloc(3 * Page);
        Assert.Equal(VmFlags.Alloc, FlagsOf(machine, area));
        Assert.Equal("16384 Vmalloc pages=3 vmalloc N0=3", InfoLine(machine, area));
        Pfn frame = machine.VmallocToPage(area);
        machine.Vfree(area);
        Assert.Equal(0, machine.Map.PageOf(frame.Value)->RefCount);
    }

    private static unsafe void ShowsPagesOfOthers(Machine machine)
    {
        Pfn[] frames = AllocPages(machine, 3);
        void* area = machine.Vmap(frames);
        Assert.Equal(VmFlags.Map, FlagsOf(machine, area));
        Assert.Equal("16384 Vmap vmap", InfoLine(machine, area));
        machine.Vunmap(area);
        Assert.Equal(1, machine.Map.PageOf(frames[0].Value)->RefCount);
    }

    private static unsafe void MayBeShownToAProcess(Machine machine)
    {
        void* area = machine.VmallocUser(2 * Page);
        Assert.Equal(VmFlags.Alloc | VmFlags.UserMap, FlagsOf(machine, area));
        Assert.EndsWith("vmalloc user N0=2", InfoLine(machine, area), StringComparison.Ordinal);
        ShowToAProcess(machine, area, VmapError.None);
        void* ordinary = machine.Vmalloc(2 * Page);
        ShowToAProcess(machine, ordinary, VmapError.Invalid);
        machine.Vfree(area);
        machine.Vfree(ordinary);
    }

    private static unsafe void MayBeShownToAProcessToo(Machine machine)
    {
        void* area = machine.Vmalloc(2 * Page);
        VmStruct* vm = StructOf(machine, area);
        vm->Flags |= VmFlags.DmaCoherent;
        Assert.EndsWith("vmalloc dma-coherent N0=2", InfoLine(machine, area), StringComparison.Ordinal);
        ShowToAProcess(machine, area, VmapError.None);
        vm->Flags &= ~VmFlags.DmaCoherent;
        machine.Vfree(area);
    }

    private static unsafe void IsSkippedByReaders(Machine machine)
    {
        void* area = machine.Vmalloc(2 * Page);
        VmStruct* vm = StructOf(machine, area);
        vm->Flags |= VmFlags.Uninitialized;
        Assert.DoesNotContain($"0x{vm->Address:x16}-", machine.Proc.VmallocInfo(), StringComparison.Ordinal);
        Assert.Throws<KernelBugException>(() => machine.Vfree(area));
        Assert.Throws<KernelBugException>(() => machine.SetMemoryRo(area, 1));
        vm->Flags &= ~VmFlags.Uninitialized;
        Assert.Contains($"0x{vm->Address:x16}-", machine.Proc.VmallocInfo(), StringComparison.Ordinal);
        machine.Vfree(area);
    }

    private static unsafe void HasNoGuardPage(Machine machine)
    {
        using var probe = new MemoryProbe();
        VmallocAllocator vmalloc = Vmallocs(machine);
        var area = (byte*)vmalloc.Alloc(Request(VmFlags.NoGuard));
        var next = (byte*)vmalloc.Alloc(Request(VmFlags.NoGuard));
        Assert.Equal("12288 Vmalloc pages=3 vmalloc N0=3", InfoLine(machine, area));
        Assert.Equal((nint)area + (3 * Page), (nint)next);
        Assert.Equal("rw", probe.Access(area + (3 * Page)));
        machine.Vfree(area);
        machine.Vfree(next);
    }

    private static unsafe void HasShadow(Machine machine)
    {
        Execmem execmem = machine.ModuleLoader.Execmem;
        void* area = execmem.Alloc(ExecmemType.Bpf, 3 * Page);
        Assert.NotEqual(VmFlags.None, FlagsOf(machine, area) & VmFlags.Kasan);
        Assert.Contains("KasanAllocModuleShadow", machine.Proc.VmallocInfo(), StringComparison.Ordinal);
        execmem.Free(area);
        Assert.DoesNotContain("KasanAllocModuleShadow", machine.Proc.VmallocInfo(), StringComparison.Ordinal);
    }

    private static unsafe void FlushesWhenFreed(Machine machine)
    {
        VmallocAllocator vmalloc = Vmallocs(machine);
        void* area = vmalloc.Alloc(Request(VmFlags.FlushResetPerms));
        Assert.True(machine.SetMemoryRo(area, 3));
        using (machine.HardIrq())
            Assert.Throws<KernelBugException>(() => machine.Vfree(area));
        machine.Vfree(area);
        Assert.Equal(0UL, vmalloc.Vmap.LazyPages);
        Assert.Equal(0, vmalloc.DirectMap.ChangedFrames);
    }

    private static unsafe void FreesThePagesItWasGiven(Machine machine)
    {
        Pfn[] frames = AllocPages(machine, 3);
        void* area = machine.Vmap(frames, putPages: true);
        Assert.Equal(VmFlags.Map | VmFlags.MapPutPages, FlagsOf(machine, area));
        Assert.Equal("16384 Vmap pages=3 vmap N0=3", InfoLine(machine, area));
        AssertRefused(machine, () => machine.Vunmap(area), "it owns its frames");
        machine.Vfree(area);
        Assert.All(frames, frame => Assert.Equal(0, machine.Map.PageOf(frame.Value)->RefCount));
    }

    private static unsafe void TakesLargePages(Machine machine)
    {
        void* large = machine.VmallocHuge(3 << 20, Gfp.Kernel);
        Assert.Equal(9u, StructOf(machine, large)->PageOrder);
        Assert.Equal("pmd", Walk(machine, large).Steps[^1].Name);
        void* small = machine.Vmalloc(3 << 20);
        Assert.Equal("pte", Walk(machine, small).Steps[^1].Name);
        machine.Vfree(large);
        machine.Vfree(small);
    }

    /// <summary>It puts off what the leak detector is told; Kmem has none that would be told at once.</summary>
    private static unsafe void IsAcceptedAndKept(Machine machine)
    {
        VmallocAllocator vmalloc = Vmallocs(machine);
        void* area = vmalloc.Alloc(Request(VmFlags.DeferKmemleak));
        Assert.Equal(VmFlags.Alloc | VmFlags.DeferKmemleak, FlagsOf(machine, area));
        machine.Vfree(area);
    }

    private static unsafe void IsNotFreedByVfree(Machine machine)
    {
        void* area = machine.GetVmArea(2 * Page);
        Assert.Equal(VmFlags.Sparse, FlagsOf(machine, area));
        Assert.Equal("12288 GetVmArea sparse", InfoLine(machine, area));
        AssertRefused(machine, () => machine.Vfree(area), "vfree() nonexistent");
        AssertRefused(machine, () => machine.SetMemoryRo(area, 1), "called for zero pte");
        machine.FreeVmArea(area);
    }

    private static unsafe void ShowToAProcess(Machine machine, void* area, VmapError expected)
    {
        using var process = new Mm(machine.VmallocIfUsed!.Tables, machine.Pages, machine.Map);
        Assert.Equal(expected, machine.VmallocIfUsed.RemapToUser(process, 0x7f00_0000_0000, 2 * Page, area, 0));
        machine.VmallocIfUsed.UnmapFromUser(process, 0x7f00_0000_0000, 2 * Page);
    }

    private static VmallocRequest Request(VmFlags flags) =>
        new(3 * Page, Gfp.Kernel, VmCaller.Vmalloc) { Flags = flags };

    private static unsafe VmallocAllocator Vmallocs(Machine machine)
    {
        machine.Vfree(machine.Vmalloc(Page));
        machine.VmUnmapAliases();
        return machine.VmallocIfUsed!;
    }

    private static unsafe VmStruct* StructOf(Machine machine, void* area) =>
        machine.VmallocIfUsed!.Vmap.Find(machine.VmallocIfUsed.AddressOf(area))->Vm;

    private static unsafe VmFlags FlagsOf(Machine machine, void* area) => StructOf(machine, area)->Flags;
}
