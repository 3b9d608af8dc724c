namespace Kmem;

/// <content>Areas into which others map: sparse ones, those for devices, and processes.</content>
public sealed partial class Machine
{
    private readonly Lock _spacesGate = new();
    private readonly HashSet<AddressSpace> _spaces = [];
    private DmaAllocator? _dma;

    /// <summary>
    /// Reserves addresses into which frames are mapped piecemeal (get_vm_area with VM_SPARSE, mm/vmalloc.c, Linux
    /// 6.18). Nothing is mapped: touching it ends the process.
    /// </summary>
    /// <param name="size">Bytes; rounded up to pages. May be far more than there is memory.</param>
    /// <returns>The first address; null if there is no room.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">No vmalloc space here: see <see cref="Vmalloc(nuint)"/>.</exception>
    public unsafe void* GetVmArea(nuint size) => Vmallocs.ReserveSparse(size);

    /// <summary>Maps frames into a part of a sparse area (vm_area_map_pages).</summary>
    /// <param name="area">What <see cref="GetVmArea"/> returned.</param>
    /// <param name="offset">Where in it, in bytes, a multiple of 4096.</param>
    /// <param name="frames">The frames; they stay yours, and must be kept until they are unmapped.</param>
    /// <returns>
    /// <see cref="VmapError.Invalid"/>: no sparse area starts there; <see cref="VmapError.OutOfRange"/>: not all of it
    /// is in the area; <see cref="VmapError.TooBig"/>: more pages than memory; <see cref="VmapError.Busy"/>: something
    /// is mapped there; <see cref="VmapError.NoMemory"/>. Then nothing was mapped.
    /// </returns>
    /// <exception cref="ArgumentException">The machine has no such frame.</exception>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    public unsafe VmapError VmAreaMapPages(void* area, nuint offset, ReadOnlySpan<Pfn> frames)
    {
        foreach (Pfn frame in frames)
        {
            if (frame.Value >= _map.EndPfn)
                throw new ArgumentOutOfRangeException(nameof(frames), frame, "no such page frame");
        }

        return Vmallocs.MapSparse(area, offset, frames);
    }

    /// <summary>Ends mappings in a part of a sparse area; from here on it faults (vm_area_unmap_pages).</summary>
    /// <param name="area">What <see cref="GetVmArea"/> returned.</param>
    /// <param name="offset">Where in it, in bytes, a multiple of 4096.</param>
    /// <param name="pages">How many pages; those that are not mapped stay so.</param>
    /// <returns>As <see cref="VmAreaMapPages"/>.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    public unsafe VmapError VmAreaUnmapPages(void* area, nuint offset, ulong pages) =>
        Vmallocs.UnmapSparse(area, offset, pages);

    /// <summary>
    /// Gives a sparse area back, with whatever is still mapped in it (free_vm_area). Null is allowed.
    /// </summary>
    /// <param name="area">What <see cref="GetVmArea"/> returned.</param>
    /// <exception cref="KernelBugException">No sparse area starts there, or this context may not sleep.</exception>
    public unsafe void FreeVmArea(void* area)
    {
        if (area != null)
            Vmallocs.FreeSparse(area);
    }

    /// <summary>
    /// Allocates cleared memory that a device and the CPU use at the same time (dma_alloc_coherent,
    /// kernel/dma/mapping.c, Linux 6.18): below the device's mask, and contiguous unless an IOMMU makes it look so.
    /// </summary>
    /// <param name="device">Who will use it.</param>
    /// <param name="size">Bytes; rounded up to pages. Without an IOMMU at most 4 MiB.</param>
    /// <param name="address">The device's address of it.</param>
    /// <param name="gfp">Flags; those that may not sleep only get memory that needs no mapping of its own.</param>
    /// <returns>
    /// The CPU's pointer: into the direct map, or into the vmalloc space if frames are scattered or must not be cached.
    /// Null if there is no memory that the device can reach.
    /// </returns>
    /// <exception cref="KernelBugException">The request may sleep and this context may not.</exception>
    /// <exception cref="NotSupportedException">It has to be mapped, and there is no vmalloc space here.</exception>
    public unsafe void* DmaAllocCoherent(
        DmaDevice device, nuint size, out DmaAddress address, Gfp gfp = Gfp.Kernel)
    {
        ArgumentNullException.ThrowIfNull(device);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(device.Node, Nodes, nameof(device));
        CheckContext(gfp);
        return Dma.Alloc(device, size, gfp, out address);
    }

    /// <summary>Frees memory from <see cref="DmaAllocCoherent"/> (dma_free_coherent). Null is allowed.</summary>
    /// <param name="device">The device that it was allocated for.</param>
    /// <param name="pointer">The CPU's pointer.</param>
    /// <exception cref="KernelBugException">
    /// The device has no such memory, or it has a mapping of its own and this context may not sleep.
    /// </exception>
    public unsafe void DmaFreeCoherent(DmaDevice device, void* pointer)
    {
        ArgumentNullException.ThrowIfNull(device);
        Dma.Free(device, pointer);
    }

    /// <summary>Begins a process: an address space with nothing of its own in it (mm_alloc, pgd_alloc).</summary>
    /// <returns>The address space.</returns>
    /// <exception cref="OutOfMemoryException">There is no memory for the root of its page tables.</exception>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">No vmalloc space here: see <see cref="Vmalloc(nuint)"/>.</exception>
    public AddressSpace CreateAddressSpace()
    {
        CheckContext(Gfp.Kernel);
        VmallocAllocator vmalloc = Vmallocs;
        Mm mm;
        try
        {
            mm = new Mm(vmalloc.Tables, _pages, _map);
        }
        catch (KernelBugException bug)
        {
            throw new OutOfMemoryException("no memory for the root of an address space", bug);
        }

        var space = new AddressSpace(vmalloc, mm, Forget);
        SimPoint.Gate(_spacesGate);
        lock (_spacesGate)
            _spaces.Add(space);
        return space;
    }

    private DmaAllocator Dma => _dma ??= new DmaAllocator(_pages, _map, () => Vmallocs);

    private void Forget(AddressSpace space)
    {
        SimPoint.Gate(_spacesGate);
        lock (_spacesGate)
            _spaces.Remove(space);
    }

    private void CloseAddressSpaces()
    {
        AddressSpace[] open;
        SimPoint.Gate(_spacesGate);
        lock (_spacesGate)
            open = [.. _spaces];
        foreach (AddressSpace space in open)
            space.Dispose();
    }
}
