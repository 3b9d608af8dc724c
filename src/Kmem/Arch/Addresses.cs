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

/// <summary>The address map of x86-64 with four levels of page tables (Documentation/arch/x86/x86_64/mm.rst).</summary>
internal static class AddressMap
{
    /// <summary>Start of the direct map: virtual = PageOffset + physical.</summary>
    public const ulong PageOffset = 0xffff_8880_0000_0000;

    /// <summary>Start of the array of page descriptors as the kernel numbers them.</summary>
    public const ulong VmemmapBase = 0xffff_ea00_0000_0000;
}
