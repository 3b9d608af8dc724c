namespace Kmem;

/// <content>Frames mapped into an area one run at a time, by whoever reserved the addresses.</content>
internal sealed partial class VmallocAllocator
{
    /// <summary>Maps frames side by side where nothing is mapped: in the tables and in the window.</summary>
    /// <returns>False if tables or mappings ran out; then nothing is mapped.</returns>
    internal bool MapFrames(ulong va, ReadOnlySpan<Pfn> frames, PageProt prot, CacheMode mode = CacheMode.WriteBack)
    {
        ulong bytes = (ulong)frames.Length << Pfn.PageShift;
        if (Volatile.Read(ref _unmapRefused) != 0 && _window.Unmap(va, bytes) != WindowResult.Done)
            return false;

        for (int i = 0; i < frames.Length;)
        {
            int run = 1;
            while (i + run < frames.Length && frames[i + run].Value == frames[i].Value + (ulong)run)
                run++;

            ulong at = va + ((ulong)i << Pfn.PageShift);
            if (!Tables.Map(at, frames[i].Value, (ulong)run, prot, mode, Pfn.PageShift, Gfp.Kernel)
                || !ShowRun(at, frames[i].Value, (uint)run, prot))
            {
                UnmapFrames(va, (ulong)frames.Length);
                return false;
            }

            i += run;
        }

        return true;
    }

    /// <summary>Ends mappings at once: tables, processors and window forget them (vunmap_range).</summary>
    internal void UnmapFrames(ulong va, ulong pages)
    {
        ulong end = va + (pages << Pfn.PageShift);
        Tables.Unmap(va, pages);
        Tables.Tlb?.FlushRange(va, end);
        Unshow(new VmapRange(va, end));
    }

    /// <summary>Areas at a common base for per-CPU chunks (pcpu_get_vm_areas).</summary>
    /// <returns>
    /// The vm_structs (VmStruct*), in the order of the offsets; null if there is no room or no memory.
    /// </returns>
    internal unsafe VmStruct*[]? ReserveCongruent(ReadOnlySpan<ulong> offsets, ReadOnlySpan<ulong> sizes, ulong align)
    {
        nint NewVm()
        {
            var vm = (VmStruct*)_kmalloc.AllocOwn(VmStruct.SizeInBytes, Gfp.Kernel | Gfp.Zero, -1);
            if (vm != null)
            {
                vm->Flags = VmFlags.Alloc | VmFlags.Percpu;
                vm->Caller = VmCaller.AllocPercpu;
            }

            return (nint)vm;
        }

        return Vmap.AllocCongruent(offsets, sizes, align, NewVm, vm => _kmalloc.Free((void*)vm));
    }

    /// <summary>Ends <see cref="ReserveCongruent"/>; nothing is mapped there any more (pcpu_free_vm_areas).</summary>
    internal unsafe void FreeCongruent(VmStruct*[] vms)
    {
        foreach (VmStruct* vm in vms)
        {
            VmapArea* area = Vmap.Unlink(vm->Address);
            Bug.On(area == null || area->Vm != vm, "a per-CPU area is gone");
            Vmap.FreeNoflush(area);
            _kmalloc.Free(vm);
        }
    }

    /// <summary>Reserves addresses into which pages are mapped piecemeal (get_vm_area with VM_SPARSE).</summary>
    /// <returns>The first address; null if there is no room or no memory.</returns>
    internal unsafe void* ReserveSparse(nuint size)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        if (size == 0)
            return null;
        VmStruct* vm = Reserve(
            new VmallocRequest(size, Gfp.Kernel, VmCaller.GetVmArea), VmFlags.Sparse, Pfn.PageShift);
        if (vm == null)
            return null;
        void* pointer = PointerOf(vm->Address);
        if (pointer == null)
            Undo(vm);
        return pointer;
    }

    /// <summary>Maps frames into a part of a sparse area (vm_area_map_pages).</summary>
    internal unsafe VmapError MapSparse(void* pointer, nuint offset, ReadOnlySpan<Pfn> frames)
    {
        VmapError error = CheckSparse(pointer, offset, (ulong)frames.Length, out ulong va);
        if (error != VmapError.None)
            return error;
        for (int i = 0; i < frames.Length; i++)
        {
            if (Tables.Translate(va + ((ulong)i << Pfn.PageShift)).IsValid)
                return VmapError.Busy;
        }

        return MapFrames(va, frames, PageProt.Kernel) ? VmapError.None : VmapError.NoMemory;
    }

    /// <summary>Ends mappings in a part of a sparse area, at once (vm_area_unmap_pages).</summary>
    internal unsafe VmapError UnmapSparse(void* pointer, nuint offset, ulong pages)
    {
        VmapError error = CheckSparse(pointer, offset, pages, out ulong va);
        if (error != VmapError.None)
            return error;

        ResetRights(va, pages << Pfn.PageShift);
        UnmapFrames(va, pages);
        return error;
    }

    /// <summary>Gives a sparse area back with all its mappings; the frames stay their owner's (free_vm_area).</summary>
    internal unsafe void FreeSparse(void* pointer)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        if (pointer != null)
            Release(TakeKind(pointer, VmFlags.Sparse, "free_vm_area"));
    }

    /// <summary>Shows a device's frames side by side (dma_common_pages_remap).</summary>
    /// <returns>The address; null if addresses, tables or mappings ran out.</returns>
    internal unsafe void* MapDma(ReadOnlySpan<Pfn> frames, CacheMode mode)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        nuint bytes = (nuint)frames.Length * (nuint)PageSize;
        VmStruct* vm = Reserve(
            new VmallocRequest(bytes, Gfp.Kernel, VmCaller.DmaAllocCoherent),
            VmFlags.DmaCoherent | VmFlags.Uninitialized,
            Pfn.PageShift);
        if (vm == null)
            return null;
        if (!MapFrames(vm->Address, frames, PageProt.Kernel, mode))
        {
            Undo(vm);
            return null;
        }

        Publish(vm);
        return PointerOf(vm->Address);
    }

    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    internal unsafe void RequireSleep() => _pages.CheckContext(Gfp.Kernel, _cpus.Current);

    /// <summary>Ends <see cref="MapDma"/> (dma_common_free_remap).</summary>
    internal unsafe void UnmapDma(void* pointer)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        Release(TakeKind(pointer, VmFlags.DmaCoherent, "dma_free_coherent"));
    }

    /// <summary>Unlinks an area that must be of one kind.</summary>
    private unsafe VmapArea* TakeKind(void* pointer, VmFlags kind, string operation)
    {
        ulong va = AreaStart(pointer, operation);
        VmapArea* area = Vmap.Find(va);
        if (area == null || area->Start != va || area->Vm == null || (area->Vm->Flags & kind) == 0)
            ThrowNoArea(pointer, operation);
        area = Vmap.NodeOf(va).TakeBusy(va, VmFlags.Uninitialized, VmFlags.None);
        if (area == null)
            ThrowNoArea(pointer, operation);
        return area;
    }

    private unsafe VmapError CheckSparse(void* pointer, nuint offset, ulong pages, out ulong va)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        va = 0;
        if (!Contains(pointer) || (offset & (nuint)(PageSize - 1)) != 0)
            return VmapError.Invalid;
        VmapArea* area = Vmap.Find(AddressOf(pointer));
        if (area == null || area->Vm == null || area->Start != AddressOf(pointer)
            || (area->Vm->Flags & VmFlags.Sparse) == 0)
        {
            return VmapError.Invalid;
        }

        if (pages > _totalRam)
            return VmapError.TooBig;
        ulong size = MappedSize(area->Vm);
        if (offset > size || pages << Pfn.PageShift > size - offset)
            return VmapError.OutOfRange;
        va = area->Start + offset;
        return VmapError.None;
    }
}
