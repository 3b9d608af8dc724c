namespace Kmem;

/// <content>Areas that are reserved first and filled bit by bit.</content>
internal sealed partial class VmallocAllocator
{
    /// <summary>
    /// Reserves addresses for pages that are mapped later, in parts (get_vm_area with VM_SPARSE, mm/vmalloc.c, Linux 6.18).
    /// </summary>
    /// <returns>The area, all of it faulting; null if there are no addresses or no memory for its description.</returns>
    public unsafe VmStruct* ReserveSparse(nuint bytes)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        if (bytes == 0)
            return null;

        var request = new VmallocRequest(bytes, Gfp.Kernel, VmCaller.Vmap);
        VmStruct* vm = Reserve(request, VmFlags.Sparse | VmFlags.Uninitialized, Pfn.PageShift);
        if (vm == null)
            return null;

        if (Volatile.Read(ref _unmapRefused) != 0
            && _window.Unmap(vm->Address - Vmap.Start, vm->Size) != WindowResult.Done)
        {
            Undo(vm);
            return null;
        }

        Publish(vm);
        return vm;
    }

    /// <summary>Maps a run of neighbouring frames at a part of a sparse area that is empty so far (vm_area_map_pages).</summary>
    /// <returns>False if page tables or mappings ran out; then nothing was mapped.</returns>
    public unsafe bool MapSparse(VmStruct* vm, ulong offset, Pfn first, uint pages)
    {
        Bug.On((vm->Flags & VmFlags.Sparse) == 0, "not a sparse area");
        ulong bytes = pages * PageSize;
        Bug.On(offset % PageSize != 0 || offset > MappedSize(vm) || bytes > MappedSize(vm) - offset, "outside the area");

        ulong va = vm->Address + offset;
        if (Tables.Map(va, first.Value, pages, PageProt.Kernel, CacheMode.WriteBack, Pfn.PageShift, Gfp.Kernel)
            && ShowRun(va, first.Value, pages, PageProt.Kernel))
        {
            return true;
        }

        Tables.Unmap(va, pages);
        return false;
    }

    /// <summary>Makes a part of a sparse area fault again, at once; the frames stay their owner's (vm_area_unmap_pages).</summary>
    public unsafe void UnmapSparse(VmStruct* vm, ulong offset, ulong bytes)
    {
        Tables.Unmap(vm->Address + offset, bytes >> Pfn.PageShift);
        Unshow(new VmapRange(vm->Address + offset, vm->Address + offset + bytes));
    }

    /// <summary>Gives the addresses of a sparse area back; nothing may be mapped there any more (free_vm_area).</summary>
    public unsafe void FreeSparse(VmStruct* vm)
    {
        VmapArea* area = Vmap.NodeOf(vm->Address).TakeBusy(vm->Address, VmFlags.None, VmFlags.None);
        Bug.On(area == null || area->Vm != vm, "a sparse area is gone");
        Release(area);
    }
}
