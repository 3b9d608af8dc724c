using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// <c>mem_map</c>: one <see cref="Page"/> for each frame number from 0 to the end of physical memory, holes included,
/// so that number, descriptor and address turn into each other by arithmetic. Host memory is used only for descriptors
/// that were written.
/// </summary>
internal sealed class MemMap : IDisposable
{
    private readonly SparseMemory _descriptors;

    /// <summary>Creates the descriptors of frames 0 … <paramref name="endPfn"/> − 1, all zero.</summary>
    public unsafe MemMap(ulong endPfn, byte* ramBase)
    {
        // Whole largest blocks: looking at the buddy of any frame stays inside the array.
        EndPfn = endPfn;
        ulong frames = (endPfn + PageOrder.MaxBlockPages - 1) & ~(ulong)(PageOrder.MaxBlockPages - 1);
        _descriptors = SparseMemory.Create(frames * Page.SizeInBytes, "page descriptors");
        Base = (Page*)_descriptors.Base;
        RamBase = ramBase;
        Bug.On(sizeof(Page) != Page.SizeInBytes);
    }

    public unsafe Page* Base { get; }

    /// <summary>Host address of physical address 0 (the direct map).</summary>
    public unsafe byte* RamBase { get; }

    /// <summary>The frame number after the last one.</summary>
    public ulong EndPfn { get; }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe Page* PageOf(ulong pfn) => Base + pfn;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe ulong PfnOf(Page* page) => (ulong)((byte*)page - (byte*)Base) >> Page.SizeShift;

    /// <summary>Host address of a page's first byte (page_address).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe byte* AddressOf(Page* page) => RamBase + (PfnOf(page) << Pfn.PageShift);

    /// <summary>
    /// The page that holds a host address of the direct map; the address must lie in it (virt_to_page).
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe Page* PageAt(void* address) => Base + ((ulong)((byte*)address - RamBase) >> Pfn.PageShift);

    /// <summary>Whether a host address lies in the direct map.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe bool Contains(void* address) => (ulong)((byte*)address - RamBase) < EndPfn << Pfn.PageShift;

    public void Dispose() => _descriptors.Dispose();
}
