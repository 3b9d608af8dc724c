using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// One range of kernel addresses (<c>struct vmap_area</c>, include/linux/vmalloc.h, Linux 6.18): free, busy, lazily
/// freed or in a pool. The object comes from the slab cache <c>vmap_area</c> and has the kernel's layout:
/// <code>
///   off  0  Start          first byte
///   off  8  End            one past the last byte, guard page included
///   off 16  Node           in exactly one tree: free, busy or lazy
///   off 40  List           address order of that tree; or the list of a pool or of a purge
///   off 56  SubtreeMax     free tree: the largest block of the subtree
///           Vm             busy: the vm_struct, or null
///   off 64  Flags          bits 0–1 who uses it (VmapAreaFlags), bits 8–… vmap node it belongs to plus 1; 0 none
/// </code>
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = SizeInBytes)]
internal struct VmapArea
{
    public const int SizeInBytes = 72;
    private const int NodeOffset = 16;
    private const int ListOffset = 40;
    private const int NodeIdShift = 8;

    [FieldOffset(0)]
    public ulong Start;

    [FieldOffset(8)]
    public ulong End;

    [FieldOffset(NodeOffset)]
    public RbNode Node;

    [FieldOffset(ListOffset)]
    public ListHead List;

    [FieldOffset(56)]
    public ulong SubtreeMax;

    [FieldOffset(56)]
    public unsafe VmStruct* Vm;

    [FieldOffset(64)]
    public ulong Flags;

    public readonly ulong Size => End - Start;

    public readonly ulong Pages => (End - Start) >> Pfn.PageShift;

    /// <summary>The vmap node whose pools it came from or goes to; -1 for none.</summary>
    public readonly int NodeId => (int)(Flags >> NodeIdShift) - 1;

    /// <summary>The flag word of an area of a vmap node.</summary>
    public static ulong FlagsOf(VmapAreaFlags flags, int nodeId) => (ulong)flags | ((ulong)(nodeId + 1) << NodeIdShift);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe VmapArea* FromNode(RbNode* node) => (VmapArea*)((byte*)node - NodeOffset);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe VmapArea* FromList(ListHead* entry) => (VmapArea*)((byte*)entry - ListOffset);
}

/// <summary>Who uses a busy area that has no vm_struct.</summary>
[Flags]
internal enum VmapAreaFlags : uint
{
    None = 0,

    /// <summary>vm_map_ram (VMAP_RAM).</summary>
    Ram = 1,

    /// <summary>A block that vm_map_ram cuts into small pieces (VMAP_BLOCK).</summary>
    Block = 2,
}

/// <summary>The kernel's error numbers that operations on areas of the vmalloc space can answer with.</summary>
public enum VmapError
{
    /// <summary>All went well.</summary>
    None = 0,

    /// <summary>No free block is large enough (−ENOENT).</summary>
    NoBlock = -2,

    /// <summary>More pages than the machine has (−E2BIG).</summary>
    TooBig = -7,

    /// <summary>
    /// No memory for what describes the area, for page tables, or no mappings of the host left (−ENOMEM).
    /// </summary>
    NoMemory = -12,

    /// <summary>No room, also after purging; or something is mapped there already (−EBUSY).</summary>
    Busy = -16,

    /// <summary>The request makes no sense, or the area is not of a kind that allows it (−EINVAL).</summary>
    Invalid = -22,

    /// <summary>It would lie outside the range or the area (−ERANGE).</summary>
    OutOfRange = -34,
}

/// <summary>A request for addresses (the arguments of <c>alloc_vmap_area</c>).</summary>
/// <param name="Size">Bytes, a multiple of a page, guard page included.</param>
/// <param name="Align">Bytes, a power of two.</param>
/// <param name="RangeStart">Lowest address allowed.</param>
/// <param name="RangeEnd">
/// End of the range allowed, as the kernel's callers give it: VMALLOC_END is the last byte.
/// </param>
internal readonly record struct VmapRequest(ulong Size, ulong Align, ulong RangeStart, ulong RangeEnd)
{
    /// <summary>How to allocate the objects that describe areas.</summary>
    public Gfp Gfp { get; init; } = Gfp.Kernel;

    /// <summary>NUMA node for those objects; -1 for the CPU's own.</summary>
    public int Node { get; init; } = -1;

    public VmapAreaFlags Flags { get; init; }

    /// <summary>Size and alignment have a form that can be served at all.</summary>
    public bool IsValid =>
        Size != 0 && (Size & (Pfn.PageSize - 1)) == 0 && Align != 0 && (Align & (Align - 1)) == 0;
}

/// <summary>A half-open range of addresses.</summary>
internal readonly record struct VmapRange(ulong Start, ulong End);
