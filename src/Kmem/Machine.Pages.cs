namespace Kmem;

/// <content>Page frames.</content>
public sealed partial class Machine
{
    /// <summary>
    /// Allocates 2^order contiguous page frames at a multiple of 2^order (alloc_pages, mm/page_alloc.c, Linux 6.18).
    /// </summary>
    /// <param name="gfp">What may be done to get them, and from which zones.</param>
    /// <param name="order">0 to 10: 4 KiB to 4 MiB.</param>
    /// <param name="node">Preferred node, or -1 for the CPU's own.</param>
    /// <returns>The first frame, with one reference; <see cref="Pfn.None"/> if there is no memory.</returns>
    /// <exception cref="KernelBugException">
    /// The request may sleep and this context may not, or it names zones or migrate types that exclude each other.
    /// </exception>
    public unsafe Pfn AllocPages(Gfp gfp, int order, int node = -1)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(order);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(node, Nodes);
        return PfnOrNone(_pages.Alloc(gfp, order, node));
    }

    /// <summary>Allocates one frame (alloc_page).</summary>
    /// <param name="gfp">Flags.</param>
    /// <returns>The frame, or <see cref="Pfn.None"/>.</returns>
    public Pfn AllocPage(Gfp gfp) => AllocPages(gfp, 0);

    /// <summary>Drops a reference to a block; the last one frees it (__free_pages).</summary>
    /// <param name="pfn">The first frame; <see cref="Pfn.None"/> is ignored.</param>
    /// <param name="order">The order it was allocated with.</param>
    /// <exception cref="KernelBugException">
    /// The block is free already, was allocated with another order, or belongs to a slab. Nothing was changed.
    /// </exception>
    public void FreePages(Pfn pfn, int order)
    {
        if (pfn.IsValid)
            _pages.Free(pfn.Value, order);
    }

    /// <summary>Frees one frame.</summary>
    /// <param name="pfn">The frame; <see cref="Pfn.None"/> is ignored.</param>
    public void FreePage(Pfn pfn) => FreePages(pfn, 0);

    /// <summary>Counts one more reference to an allocated block (get_page).</summary>
    /// <param name="pfn">Its first frame.</param>
    public void GetPage(Pfn pfn)
    {
        if (pfn.Value >= _map.EndPfn)
            throw new ArgumentOutOfRangeException(nameof(pfn), pfn, "no such page frame");
        _pages.Get(pfn.Value);
    }

    /// <summary>Turns a block into single frames that are freed one by one (split_page).</summary>
    /// <param name="pfn">The first frame of a block allocated without <see cref="Gfp.Comp"/>.</param>
    /// <param name="order">Its order.</param>
    public void SplitPages(Pfn pfn, int order) => _pages.Split(pfn.Value, order);

    /// <summary>
    /// Allocates as many contiguous frames as a size needs, no more (alloc_pages_exact).
    /// </summary>
    /// <param name="size">Bytes, up to 4 MiB.</param>
    /// <param name="gfp">Flags, without <see cref="Gfp.Comp"/> and <see cref="Gfp.HighMem"/>.</param>
    /// <returns>The address of the first byte, or null.</returns>
    public unsafe void* AllocPagesExact(nuint size, Gfp gfp)
    {
        Page* page = _pages.AllocExact(size, gfp);
        return page == null ? null : _map.AddressOf(page);
    }

    /// <summary>Frees what <see cref="AllocPagesExact"/> gave out (free_pages_exact).</summary>
    /// <param name="address">The address, or null.</param>
    /// <param name="size">The same size.</param>
    public unsafe void FreePagesExact(void* address, nuint size)
    {
        if (address != null)
            _pages.FreeExact(PfnOf(address).Value, size);
    }

    /// <summary>
    /// Fills the entries that are <see cref="Pfn.None"/> with single frames, cheaper than one by one
    /// (alloc_pages_bulk).
    /// </summary>
    /// <param name="gfp">Flags.</param>
    /// <param name="pages">Entries that are filled already are left alone.</param>
    /// <param name="node">Preferred node, or -1.</param>
    /// <returns>Filled entries from the start of the array; fewer than its length if memory ran short.</returns>
    public int AllocPagesBulk(Gfp gfp, Span<Pfn> pages, int node = -1)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(node, Nodes);
        return _pages.AllocBulk(gfp, node, pages);
    }

    /// <summary>Allocates 2^order frames and returns their address (__get_free_pages).</summary>
    /// <param name="gfp">Flags; <see cref="Gfp.HighMem"/> is dropped.</param>
    /// <param name="order">0 to 10.</param>
    /// <returns>The address, or null.</returns>
    public unsafe void* GetFreePages(Gfp gfp, int order)
    {
        Pfn pfn = AllocPages(gfp & ~Gfp.HighMem, order);
        return pfn.IsValid ? AddressOf(pfn) : null;
    }

    /// <summary>Frees what <see cref="GetFreePages"/> gave out (free_pages).</summary>
    /// <param name="address">The address, or null.</param>
    /// <param name="order">Its order.</param>
    public unsafe void FreePages(void* address, int order)
    {
        if (address != null)
            FreePages(PfnOf(address), order);
    }

    /// <summary>Where a frame's memory lies in this process (page_address).</summary>
    /// <param name="pfn">A frame of the machine.</param>
    /// <returns>The address of its first byte.</returns>
    /// <exception cref="ArgumentOutOfRangeException">The machine has no such frame.</exception>
    public unsafe void* AddressOf(Pfn pfn)
    {
        if (pfn.Value >= _map.EndPfn)
            throw new ArgumentOutOfRangeException(nameof(pfn), pfn, "no such page frame");
        return _map.AddressOf(_map.PageOf(pfn.Value));
    }

    /// <summary>The frame that a pointer into the machine's RAM lies in (virt_to_page).</summary>
    /// <param name="address">A pointer.</param>
    /// <returns>The frame.</returns>
    /// <exception cref="ArgumentException">The pointer is not in the machine's RAM.</exception>
    public unsafe Pfn PfnOf(void* address) => Pfn.Containing(PhysicalAddressOf(address));

    /// <summary>The physical address behind a pointer: the pointer less a constant (virt_to_phys).</summary>
    /// <param name="address">A pointer into the machine's RAM.</param>
    /// <returns>The physical address.</returns>
    /// <exception cref="ArgumentException">The pointer is not in the machine's RAM.</exception>
    public unsafe PhysAddr PhysicalAddressOf(void* address)
    {
        if (!_map.Contains(address))
            throw new ArgumentException($"0x{(ulong)address:x} is not in this machine's RAM", nameof(address));
        return new PhysAddr((ulong)((byte*)address - _map.RamBase));
    }

    /// <summary>
    /// The address that the kernel would print for a pointer: its place in the direct map, or in the vmalloc space.
    /// </summary>
    /// <param name="address">A pointer into the machine's RAM, or into memory from vmalloc.</param>
    /// <returns>An address from 0xffff888000000000 up; from 0xffffc90000000000 up for vmalloc. With
    /// five levels of page tables (<see cref="MachineOptions.PageTableLevels"/>) from 0xff11000000000000 and
    /// 0xffa0000000000000 up.</returns>
    /// <exception cref="ArgumentException">The pointer is not in the machine's RAM.</exception>
    public unsafe VirtAddr KernelAddressOf(void* address) =>
        VmallocIfUsed is { } vmalloc && vmalloc.Contains(address)
            ? new VirtAddr(vmalloc.AddressOf(address))
            : new VirtAddr(_slabs.Addresses.DirectMap + PhysicalAddressOf(address).Value);

    /// <summary>Gives the frames on all CPUs' lists back to the buddy system (drain_all_pages).</summary>
    public void DrainAllPages() => _pages.DrainAll();

    private unsafe Pfn PfnOrNone(Page* page) => page == null ? Pfn.None : new Pfn(_map.PfnOf(page));
}
