using System.Globalization;

namespace Kmem;

/// <summary>An address in the machine's physical memory, in bytes from its start.</summary>
/// <param name="Value">The address.</param>
public readonly record struct PhysAddr(ulong Value)
{
    /// <summary>The address in hexadecimal.</summary>
    /// <returns>For example <c>0x1000</c>.</returns>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"0x{Value:x}");
}

/// <summary>
/// An address as the kernel would print it, for example in the direct map at <c>0xffff888000000000</c>. A number, not a
/// pointer of this process: the machine translates between the two.
/// </summary>
/// <param name="Value">The address.</param>
public readonly record struct VirtAddr(ulong Value)
{
    /// <summary>The address as sixteen hexadecimal digits, as the kernel's reports print it.</summary>
    /// <returns>For example <c>ffff888000001000</c>.</returns>
    public override string ToString() => Value.ToString("x16", CultureInfo.InvariantCulture);
}

/// <summary>
/// Where things are in the kernel's half of the address space of x86-64, without randomisation:
/// <code>
///                     4 levels                5 levels
///   direct map        ffff888000000000        ff11000000000000      virtual = start + physical
///   vmalloc           ffffc90000000000        ffa0000000000000      32 TiB, 12.5 PiB
///   vmemmap           ffffea0000000000        ffd4000000000000      64 bytes for each page frame
/// </code>
/// </summary>
/// <remarks>Documentation/arch/x86/x86_64/mm.rst, Linux 6.18.</remarks>
internal sealed class AddressMap
{
    /// <summary>Start of the direct map with four levels, which is what recordings have.</summary>
    public const ulong PageOffset = 0xffff_8880_0000_0000;

    /// <summary>Start of the array of page descriptors with four levels.</summary>
    public const ulong VmemmapBase = 0xffff_ea00_0000_0000;

    /// <summary>The map with four levels of page tables.</summary>
    public static readonly AddressMap FourLevels = new(4)
    {
        DirectMap = PageOffset,
        VmallocStart = 0xffff_c900_0000_0000,
        VmallocEnd = 0xffff_e8ff_ffff_ffff,
        Vmemmap = VmemmapBase,
    };

    /// <summary>The map with five.</summary>
    public static readonly AddressMap FiveLevels = new(5)
    {
        DirectMap = 0xff11_0000_0000_0000,
        VmallocStart = 0xffa0_0000_0000_0000,
        VmallocEnd = 0xffd1_ffff_ffff_ffff,
        Vmemmap = 0xffd4_0000_0000_0000,
    };

    private AddressMap(int levels) => Levels = levels;

    /// <summary>Levels of page tables.</summary>
    public int Levels { get; }

    /// <summary>Start of the direct map (page_offset_base).</summary>
    public ulong DirectMap { get; private init; }

    /// <summary>VMALLOC_START.</summary>
    public ulong VmallocStart { get; private init; }

    /// <summary>VMALLOC_END: the last byte, not the one after it.</summary>
    public ulong VmallocEnd { get; private init; }

    /// <summary>Start of the array of page descriptors (vmemmap_base).</summary>
    public ulong Vmemmap { get; private init; }

    /// <summary>Whether bits 63 to 47, or 63 to 56, of an address are equal: others fault whatever is mapped.</summary>
    public bool IsCanonical(ulong va)
    {
        int unused = Levels == 5 ? 7 : 16;
        return (ulong)((long)(va << unused) >> unused) == va;
    }

    /// <summary>The map for a number of levels, 4 or 5.</summary>
    public static AddressMap For(int levels) => levels == 5 ? FiveLevels : FourLevels;
}
