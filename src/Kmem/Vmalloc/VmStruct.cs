using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// What lies behind a busy area (<c>struct vm_struct</c>, include/linux/vmalloc.h, Linux 6.18), from kzalloc, in the
/// kernel's layout. <see cref="Size"/> includes the guard page unless <see cref="VmFlags.NoGuard"/>.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = SizeInBytes)]
internal struct VmStruct
{
    public const int SizeInBytes = 72;

    [FieldOffset(0)]
    public unsafe VmStruct* Next;

    /// <summary>The kernel's address of the first byte.</summary>
    [FieldOffset(8)]
    public ulong Address;

    [FieldOffset(16)]
    public ulong Size;

    [FieldOffset(24)]
    public VmFlags Flags;

    /// <summary>The page descriptors, one per 4 KiB page.</summary>
    [FieldOffset(32)]
    public unsafe Page** Pages;

    /// <summary>0, or 9 if the pages were taken 2 MiB at a time.</summary>
    [FieldOffset(40)]
    public uint PageOrder;

    [FieldOffset(44)]
    public uint PageCount;

    /// <summary>Physical address of an ioremap.</summary>
    [FieldOffset(48)]
    public ulong PhysicalAddress;

    /// <summary>Who is shown in vmallocinfo.</summary>
    [FieldOffset(56)]
    public VmCaller Caller;

    /// <summary>Bytes the caller asked for.</summary>
    [FieldOffset(64)]
    public ulong RequestedSize;
}

/// <summary>What a <see cref="VmStruct"/> is (VM_*, include/linux/vmalloc.h, Linux 6.18).</summary>
[Flags]
internal enum VmFlags : ulong
{
    None = 0,

    /// <summary>ioremap and the like (VM_IOREMAP).</summary>
    IoRemap = 0x1,

    /// <summary>The vmalloc family (VM_ALLOC).</summary>
    Alloc = 0x2,

    /// <summary>vmap of given pages (VM_MAP).</summary>
    Map = 0x4,

    /// <summary>May be mapped into a process (VM_USERMAP).</summary>
    UserMap = 0x8,

    /// <summary>Coherent DMA memory (VM_DMA_COHERENT).</summary>
    DmaCoherent = 0x10,

    /// <summary>Reserved, not populated yet: readers skip it (VM_UNINITIALIZED).</summary>
    Uninitialized = 0x20,

    /// <summary>No guard page behind the area (VM_NO_GUARD).</summary>
    NoGuard = 0x40,

    /// <summary>Shadow memory of a module was allocated (VM_KASAN).</summary>
    Kasan = 0x80,

    /// <summary>Freeing restores the direct map's permissions and flushes (VM_FLUSH_RESET_PERMS).</summary>
    FlushResetPerms = 0x100,

    /// <summary>vfree puts the pages that vmap was given (VM_MAP_PUT_PAGES).</summary>
    MapPutPages = 0x200,

    /// <summary>2 MiB mappings are allowed (VM_ALLOW_HUGE_VMAP).</summary>
    AllowHugeVmap = 0x400,

    /// <summary>The leak detector is told later (VM_DEFER_KMEMLEAK).</summary>
    DeferKmemleak = 0x800,

    /// <summary>Pages are mapped piecemeal (VM_SPARSE).</summary>
    Sparse = 0x1000,

    /// <summary>Not the kernel's: a per-CPU chunk, without a guard page; only its allocator frees it.</summary>
    Percpu = 1UL << 62,

    /// <summary>
    /// Not the kernel's: a stack, or memory of modules. Whoever made it keeps lists of it and frees it; vfree does not.
    /// </summary>
    Owned = 1UL << 61,

    /// <summary>Not the kernel's: freed, and kept with all it has for the next request of its size.</summary>
    Kept = 1UL << 60,

    /// <summary>Not the kernel's: the rights of its pages were changed.</summary>
    RightsChanged = 1UL << 59,

    /// <summary>
    /// Not the kernel's: handed to vfree where sleeping is forbidden, and waiting. Found again, it is a double free.
    /// </summary>
    Deferred = 1UL << 63,
}

/// <summary>The public call that made an area; its name stands where the kernel prints a symbol.</summary>
internal enum VmCaller : ulong
{
    None = 0,
    Vmalloc,
    Vzalloc,
    Vrealloc,
    Kvmalloc,
    Vmap,
    Ioremap,
    IoremapUc,
    IoremapWc,
    IoremapWt,
    IoremapCache,
    Memremap,
    AllocThreadStack,
    ExecmemAlloc,
    KasanAllocModuleShadow,
    VmallocHuge,
    VmallocUser,
    Vmalloc32,
    AllocPercpu,
    DmaAllocCoherent,
    GetVmArea,
}
