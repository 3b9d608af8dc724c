using System.Runtime.CompilerServices;

namespace Kmem.Tracing;

/// <summary>
/// Where the recorded kernel maps its physical memory: it ties an object's address to a page frame, and so an object to
/// the page event of its slab.
/// <code>
///   frame number = (address − base) / 4096
/// </code>
/// The base is a constant of a boot, and a multiple of 1 GiB even where it is random. It is taken to be the usual one
/// until two allocations, each right after the page event of its slab, agree on another.
/// </summary>
internal struct DirectMap()
{
    private const ulong UsualBase = 0xffff_8880_0000_0000;      // page_offset_base on x86-64, 4 levels, no KASLR
    private const ulong BaseStep = 1UL << 30;
    private const int KernelByteShift = 56;

    private ulong _base = UsualBase;
    private ulong _candidate;

    /// <summary>An object was seen in the block of a page event that came right before.</summary>
    public bool IsVerified { get; private set; }

    /// <summary>
    /// Whether this can be an address at all: hashed pointers have only 32 bits, kernel addresses begin with 0xff.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsAddress(ulong pointer) => pointer >> KernelByteShift == 0xff;

    /// <summary>The frame of an address; some number without meaning if the address is not in the direct map.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly ulong PfnOf(ulong address) => (address - _base) >> Pfn.PageShift;

    /// <summary>The address of a frame.</summary>
    public readonly ulong AddressOf(ulong pfn) => _base + (pfn << Pfn.PageShift);

    /// <summary>
    /// An object was allocated after a block: if it can lie in that block, that tells the base. By chance that happens
    /// once in 2¹⁸ pairs, so a base that is not the usual one needs a second witness.
    /// </summary>
    public void Witness(ulong address, ulong pfn, int order)
    {
        ulong difference = address - (pfn << Pfn.PageShift);
        ulong candidate = difference & ~(BaseStep - 1);
        if (difference - candidate >= (ulong)Pfn.PageSize << order || !IsAddress(candidate))
            return;

        if (candidate == _base || candidate == _candidate)
        {
            _base = candidate;
            IsVerified = true;
        }

        _candidate = candidate;
    }
}
