using System.Diagnostics.CodeAnalysis;
using System.Numerics;

namespace Kmem;

/// <content>Which addresses an area may have, and the windows in which they can be touched.</content>
internal sealed partial class VmallocAllocator
{
    /// <summary>MODULES_VADDR of a kernel built with RANDOMIZE_BASE: text, and what must be near it.</summary>
    public const ulong ModulesStart = 0xffff_ffff_c000_0000;

    /// <summary>MODULES_END: the first address above.</summary>
    public const ulong ModulesEnd = 0xffff_ffff_ff00_0000;

    /// <summary>KASAN_SHADOW_OFFSET: shadow = address / 8 + this.</summary>
    public const ulong ShadowOffset = 0xdfff_fc00_0000_0000;

    private const int ShadowShift = 3;
    private const int IoRemapMaxOrder = 30;         // IOREMAP_MAX_ORDER of x86-64: PUD_SHIFT
    private const byte ShadowInit = 0xfe;           // KASAN_SHADOW_INIT: nothing may be touched yet

    /// <summary>The kernel's thirteen, and the three highest, which are Kmem's own marks.</summary>
    private const VmFlags KnownFlags = (VmFlags)(0x1fff | (7UL << 61));

    private readonly Lock _windowGate = new();
    private KernelWindow[] _windows = [];

    /// <summary>The addresses of modules, in the form of a request: End is the last byte.</summary>
    public static VmapRange ModuleRange => new(ModulesStart, ModulesEnd - 1);

    /// <summary>What the linear map allows.</summary>
    public DirectMap DirectMap { get; }

    /// <summary>The blocks of vm_map_ram.</summary>
    public VmapBlocks Blocks { get; }

    /// <summary>The kernel stacks.</summary>
    public ThreadStacks Stacks { get; }

    private KernelWindow[] Windows => Volatile.Read(ref _windows);

    /// <summary>
    /// Whether a pointer lies in the vmalloc space or in that of modules (is_vmalloc_or_module_addr).
    /// </summary>
    public unsafe bool ContainsOrModule(void* pointer) => WindowOf(pointer) != null;

    /// <summary>The alignment of an ioremap: its own size, at most 1 GiB.</summary>
    public static ulong NaturalAlign(ulong bytes)
    {
        int order = bytes <= 1 ? 0 : BitOperations.Log2(bytes - 1) + 1;
        return 1UL << Math.Clamp(order, Pfn.PageShift, IoRemapMaxOrder);
    }

    /// <summary>Reserves the pointers for the addresses of modules, and of their shadow if they have one.</summary>
    /// <exception cref="PlatformException">The host has no address space left.</exception>
    public void OpenModuleSpace(bool withShadow)
    {
        lock (_windowGate)
        {
            if (!Array.Exists(_windows, window => window.Holds(ModulesStart)))
                AddWindow(ModulesStart, ModulesEnd - 1);
            ulong shadow = ShadowOf(ModulesStart);
            if (withShadow && !Array.Exists(_windows, window => window.Holds(shadow)))
                AddWindow(shadow, ShadowOf(ModulesEnd) - 1);
        }
    }

    /// <summary>
    /// Gives the memory at an area's addresses its shadow, an area without a guard page at computed addresses, which
    /// goes when the area does (kasan_alloc_module_shadow, mm/kasan/shadow.c, Linux 6.18).
    /// </summary>
    public unsafe bool AllocShadow(void* pointer)
    {
        ulong va = AddressOf(pointer);
        VmStruct* vm = Vmap.Find(va)->Vm;
        ulong start = ShadowOf(va);
        ulong bytes = (ShadowOf(va + MappedSize(vm)) - start + PageSize - 1) & ~(PageSize - 1);
        var request = new VmallocRequest((nuint)bytes, Gfp.Kernel, VmCaller.KasanAllocModuleShadow)
        {
            Flags = VmFlags.NoGuard | VmFlags.Owned,
            Range = new VmapRange(start, start + bytes),
        };
        void* shadow = AllocCore(request);
        if (shadow == null)
            return false;

        new Span<byte>(shadow, (int)bytes).Fill(ShadowInit);
        vm->Flags |= VmFlags.Kasan;
        return true;
    }

    /// <summary>Grace periods.</summary>
    public Rcu Rcu => _slabs.Rcu;

    public unsafe void CheckMaySleep() => _pages.CheckContext(Gfp.Kernel, _cpus.Current);

    /// <summary>Whether sleeping is allowed in this context.</summary>
    public unsafe bool MaySleep => _cpus.Current->MaySleep;

    /// <summary>Whether a range is all of an area but its guard page.</summary>
    public unsafe bool IsWholeArea(ulong start, ulong end)
    {
        VmapArea* area = Vmap.Find(start);
        return area != null && area->Vm != null && area->Start == start && MappedSize(area->Vm) == end - start;
    }

    public static bool IsModuleAddress(ulong va) => va is >= ModulesStart and < ModulesEnd;

    [DoesNotReturn]
    public unsafe void ThrowNoExecmem(void* pointer) => _pages.ThrowBug(
        $"WARNING: Trying to execmem_free() 0x{Shown(pointer):x16}: nothing that is in use starts there");

    [DoesNotReturn]
    public unsafe void ThrowNoStack(void* pointer) => _pages.ThrowBug(
        $"WARNING: Trying to free_thread_stack() 0x{Shown(pointer):x16}: no stack in use starts there");

    private static ulong ShadowOf(ulong va) => (va >> ShadowShift) + ShadowOffset;

    private unsafe void FreeShadow(VmStruct* vm)
    {
        if ((vm->Flags & VmFlags.Kasan) == 0)
            return;

        ulong start = ShadowOf(vm->Address);
        VmapArea* area = Vmap.NodeOf(start).TakeBusy(start, VmFlags.None, VmFlags.None);
        Bug.On(area == null, "the shadow of an area is gone");
        Release(area);
    }

    private void AddWindow(ulong start, ulong last) =>
        Volatile.Write(ref _windows, [.. _windows, new KernelWindow(_ram, start, last, _budget)]);

    private unsafe KernelWindow? WindowOf(void* pointer)
    {
        foreach (KernelWindow window in Windows)
        {
            if (window.Contains(pointer))
                return window;
        }

        return null;
    }

    /// <summary>The window of an address; that of the vmalloc space if there is none.</summary>
    private KernelWindow WindowAt(ulong va)
    {
        foreach (KernelWindow window in Windows)
        {
            if (window.Holds(va))
                return window;
        }

        return _window;
    }

    private void RefuseReserved(VmFlags flags)
    {
        if ((flags & ~KnownFlags) != 0)
            _pages.ThrowBug($"WARNING: vm flags 0x{(ulong)flags:x}: 0x{(ulong)(flags & ~KnownFlags):x} are reserved");
    }

    /// <summary>What vmap makes of its flags: it always has a guard page, and cannot reset rights.</summary>
    private VmFlags FitForVmap(VmFlags flags)
    {
        if ((flags & VmFlags.FlushResetPerms) != 0)
            _slabs.WarnOnce("vmap reset", "WARNING: vmap refuses VM_FLUSH_RESET_PERMS");
        if ((flags & VmFlags.NoGuard) != 0)
            _slabs.WarnOnce("vmap guard", "WARNING: vmap ignores VM_NO_GUARD: the area gets its guard page");
        return flags & ~VmFlags.NoGuard;
    }
}
