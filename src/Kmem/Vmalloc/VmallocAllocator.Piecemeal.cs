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
    /// <returns>The vm_structs (VmStruct*), in the order of the offsets; null if there is no room or no memory.</returns>
    internal unsafe VmStruct*[]? ReserveCongruent(ReadOnlySpan<ulong> offsets, ReadOnlySpan<ulong> sizes, ulong align)
    {
        nint NewVm()
        {
            var vm = (VmStruct*)_kmalloc.Alloc(VmStruct.SizeInBytes, Gfp.Kernel | Gfp.Zero, -1);
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
}
