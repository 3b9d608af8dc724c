namespace Kmem;

/// <content>Showing an area to a process.</content>
internal sealed partial class VmallocAllocator
{
    /// <summary>
    /// Maps a part of an area into a process, page by page, each with a reference of its own
    /// (remap_vmalloc_range_partial, mm/vmalloc.c, Linux 6.18).
    /// </summary>
    /// <param name="process">Whose tables.</param>
    /// <param name="userAddress">Where; a multiple of a page.</param>
    /// <param name="bytes">How much; whole pages.</param>
    /// <param name="pointer">
    /// The area's start; it must be one of those made for this (VM_USERMAP, VM_DMA_COHERENT).
    /// </param>
    /// <param name="offset">First byte of the area to show; a multiple of a page.</param>
    /// <returns>Why not; then nothing is mapped that was not before.</returns>
    public unsafe VmapError RemapToUser(Mm process, ulong userAddress, ulong bytes, void* pointer, ulong offset)
    {
        if (((userAddress | bytes | offset | (ulong)pointer) & (PageSize - 1)) != 0 || !Contains(pointer))
            return VmapError.Invalid;

        ulong va = AddressOf(pointer);
        VmapArea* area = Vmap.Find(va);
        if (area == null || area->Start != va || area->Vm == null)
            return VmapError.Invalid;

        ulong size = MappedSize(area->Vm);
        bool allowed = (area->Vm->Flags & (VmFlags.UserMap | VmFlags.DmaCoherent)) != 0;
        if (!allowed || offset > size || bytes > size - offset)
            return VmapError.Invalid;

        for (ulong done = 0; done < bytes; done += PageSize)
        {
            VmapError error = InsertPage(process, userAddress + done, Tables.Translate(va + offset + done));
            if (error != VmapError.None)
            {
                UnmapFromUser(process, userAddress, done);
                return error;
            }
        }

        return VmapError.None;
    }

    /// <summary>Ends <see cref="RemapToUser"/>: the last reference to a page frees it.</summary>
    public void UnmapFromUser(Mm process, ulong userAddress, ulong bytes)
    {
        for (ulong done = 0; done < bytes; done += PageSize)
        {
            Pfn pfn = process.Translate(userAddress + done);
            if (!pfn.IsValid)
                continue;

            process.Unmap(userAddress + done, 1);
            _pages.Free(pfn.Value, 0);
        }
    }

    private unsafe VmapError InsertPage(Mm process, ulong userAddress, Pfn pfn)
    {
        const PageProt Shared = PageProt.Read | PageProt.Write | PageProt.User;
        if (!pfn.IsValid || _slabs.Map.PageOf(pfn.Value)->AllocatedOrderPlusOne != 1)
            return VmapError.Invalid;       // of a block that has one reference for all of it
        if (process.Translate(userAddress).IsValid)
            return VmapError.Busy;
        if (!process.Map(userAddress, pfn.Value, 1, Shared, CacheMode.WriteBack, Pfn.PageShift, Gfp.Kernel))
            return VmapError.NoMemory;

        _pages.Get(pfn.Value);
        return VmapError.None;
    }
}
