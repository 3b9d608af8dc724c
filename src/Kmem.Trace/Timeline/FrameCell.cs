using System.Runtime.InteropServices;

namespace Kmem.Tracing;

/// <summary>What a page frame is used for, as the explorer shows it. The numbers are part of its protocol.</summary>
internal enum FrameKind : byte
{
    Hole,
    Reserved,
    Free,
    Pcp,
    Slab,
    Large,
    PageTable,
    Vmalloc,
    Movable,
    Unmovable,
    Reclaimable,
    Other,
}

internal static class FrameKinds
{
    public const int Count = 12;

    public static string Name(FrameKind kind) => kind switch
    {
        FrameKind.PageTable => "pageTable",
        _ => kind.ToString().ToLowerInvariant(),
    };

    public static string Label(FrameKind kind) => kind switch
    {
        FrameKind.Hole => "no memory",
        FrameKind.Reserved => "reserved at boot",
        FrameKind.Free => "free block",
        FrameKind.Pcp => "on a CPU's list",
        FrameKind.Slab => "slab",
        FrameKind.Large => "large kmalloc",
        FrameKind.PageTable => "page table",
        FrameKind.Vmalloc => "vmalloc",
        FrameKind.Movable => "movable pages",
        FrameKind.Unmovable => "unmovable pages",
        FrameKind.Reclaimable => "reclaimable pages",
        _ => "other",
    };

    /// <summary>The frame was given out, and its owner decides when it comes back.</summary>
    public static bool IsInUse(FrameKind kind) => kind >= FrameKind.Slab;

    /// <summary>In use, and nothing can move it away.</summary>
    public static bool Pins(FrameKind kind) => IsInUse(kind)
        && kind is not (FrameKind.Movable or FrameKind.Reclaimable);

    /// <summary>What a block that nothing else is known about is taken for.</summary>
    public static FrameKind OfType(Migratetype type) => type switch
    {
        Migratetype.Movable => FrameKind.Movable,
        Migratetype.Reclaimable => FrameKind.Reclaimable,
        _ => FrameKind.Unmovable,
    };
}

/// <summary>One frame at one moment. All frames of a block have the same, except for <see cref="InUse"/>.</summary>
/// <remarks>Blocks begin at multiples of their size, so a frame's block is found from its order.</remarks>
[StructLayout(LayoutKind.Sequential)]
internal struct FrameCell : IEquatable<FrameCell>
{
    public FrameKind Kind;
    public byte Order;

    /// <summary>The cache of a slab (its number in the machine + 1), the CPU of a frame on a list.</summary>
    public ushort Owner;

    /// <summary>Objects of the slab that are given out; kept in the first frame's cell only.</summary>
    public ushort InUse;

    /// <summary>Objects of the slab.</summary>
    public ushort Objects;

    /// <summary>The moment from which on it is in use; 0: before the recording.</summary>
    public uint Born;

    /// <summary>Whose call it was.</summary>
    public int Site;

    public readonly ulong HeadOf(ulong pfn) => pfn & ~((1UL << Order) - 1);

    public readonly bool Equals(FrameCell other) =>
        Kind == other.Kind && Order == other.Order && Owner == other.Owner && InUse == other.InUse
        && Objects == other.Objects && Born == other.Born && Site == other.Site;

    public override readonly bool Equals(object? obj) => obj is FrameCell other && Equals(other);

    public override readonly int GetHashCode() => HashCode.Combine(Kind, Order, Owner, InUse, Born, Site);
}
