using System.Globalization;

namespace Kmem;

/// <summary>
/// The number of a page frame: physical address divided by the page size (4096). Not an address, not a count.
/// </summary>
/// <param name="Value">The frame number.</param>
public readonly record struct Pfn(ulong Value) : IComparable<Pfn>
{
    /// <summary>Bits of the offset within a page (PAGE_SHIFT).</summary>
    public const int PageShift = 12;

    /// <summary>Bytes of a page (PAGE_SIZE).</summary>
    public const int PageSize = 1 << PageShift;

    /// <summary>What a failed allocation returns: no frame has this number.</summary>
    public static readonly Pfn None = new(ulong.MaxValue);

    /// <summary>False for <see cref="None"/>.</summary>
    public bool IsValid => Value != ulong.MaxValue;

    /// <summary>The physical address of the frame's first byte.</summary>
    public PhysAddr Address => new(Value << PageShift);

    /// <summary>The frame that contains a physical address (PFN_DOWN).</summary>
    /// <param name="address">Any physical address.</param>
    /// <returns>The frame.</returns>
    public static Pfn Containing(PhysAddr address) => new(address.Value >> PageShift);

    /// <summary>The first frame that starts at or above a physical address (PFN_UP).</summary>
    /// <param name="address">Any physical address.</param>
    /// <returns>The frame.</returns>
    public static Pfn AtOrAbove(PhysAddr address) => new((address.Value + PageSize - 1) >> PageShift);

    /// <inheritdoc/>
    public int CompareTo(Pfn other) => Value.CompareTo(other.Value);

    /// <summary>The number in hexadecimal, as the kernel's trace prints it.</summary>
    /// <returns>For example <c>0x102a4c</c>.</returns>
    public override string ToString() =>
        IsValid ? string.Create(CultureInfo.InvariantCulture, $"0x{Value:x}") : "none";

    /// <summary>The frame <paramref name="count"/> frames further up.</summary>
    /// <param name="pfn">A frame.</param>
    /// <param name="count">Frames to add.</param>
    /// <returns>The sum.</returns>
    public static Pfn operator +(Pfn pfn, ulong count) => new(pfn.Value + count);

    /// <summary>Frames from <paramref name="right"/> up to <paramref name="left"/>.</summary>
    /// <param name="left">The higher frame.</param>
    /// <param name="right">The lower frame.</param>
    /// <returns>The number of frames between them.</returns>
    public static ulong operator -(Pfn left, Pfn right) => left.Value - right.Value;

    /// <summary>Order of frame numbers.</summary>
    /// <param name="left">A frame.</param>
    /// <param name="right">A frame.</param>
    /// <returns>Whether left is below right.</returns>
    public static bool operator <(Pfn left, Pfn right) => left.Value < right.Value;

    /// <summary>Order of frame numbers.</summary>
    /// <param name="left">A frame.</param>
    /// <param name="right">A frame.</param>
    /// <returns>Whether left is above right.</returns>
    public static bool operator >(Pfn left, Pfn right) => left.Value > right.Value;

    /// <summary>Order of frame numbers.</summary>
    /// <param name="left">A frame.</param>
    /// <param name="right">A frame.</param>
    /// <returns>Whether left is not above right.</returns>
    public static bool operator <=(Pfn left, Pfn right) => left.Value <= right.Value;

    /// <summary>Order of frame numbers.</summary>
    /// <param name="left">A frame.</param>
    /// <param name="right">A frame.</param>
    /// <returns>Whether left is not below right.</returns>
    public static bool operator >=(Pfn left, Pfn right) => left.Value >= right.Value;
}
