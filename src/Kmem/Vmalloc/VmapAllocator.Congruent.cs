namespace Kmem;

/// <content>
/// Several areas at the same distances wherever they are: what per-CPU chunks are made of.
/// <code>
///   offsets        0            o1                 o2
///                  ├ area 0 ┤   ├── area 1 ──┤     ├ area 2 ┤
///   one chunk    base         base + o1          base + o2
///   another   base'         base' + o1         base' + o2          from VMALLOC_END downwards
/// </code>
/// So one number, the offset, leads from an address in one area to the address in another, in every chunk.
/// </content>
internal sealed partial class VmapAllocator
{
    /// <summary>
    /// Allocates areas at a common base, as high as there is room for all of them (pcpu_get_vm_areas). No guard pages.
    /// </summary>
    /// <param name="offsets">
    /// Of each area from the base; multiples of <paramref name="align"/>, without overlap.
    /// </param>
    /// <param name="sizes">Bytes of each area; multiples of <paramref name="align"/>, not 0.</param>
    /// <param name="align">Of the base; a power of two, at least a page.</param>
    /// <param name="newVm">Makes a vm_struct (a VmStruct*); 0 if it cannot.</param>
    /// <param name="freeVm">Frees one.</param>
    /// <returns>Where the vm_structs are, address and size filled in; null if there is no room or no memory.</returns>
    /// <exception cref="KernelBugException">The shape makes no sense.</exception>
    public unsafe VmStruct*[]? AllocCongruent(
        ReadOnlySpan<ulong> offsets, ReadOnlySpan<ulong> sizes, ulong align, Func<nint> newVm, Action<nint> freeVm)
    {
        CheckCongruent(offsets, sizes, align);
        DrainIfPending();
        var areas = new VmapArea*[offsets.Length];
        var vms = new VmStruct*[offsets.Length];
        bool complete = true;
        for (int i = 0; i < areas.Length && complete; i++)
        {
            areas[i] = (VmapArea*)_objects.Alloc(Gfp.Kernel | Gfp.Zero);
            vms[i] = areas[i] == null ? null : (VmStruct*)newVm();
            complete = vms[i] != null;
        }

        if (!complete || !PlaceCongruent(offsets, sizes, align, areas))
        {
            for (int i = 0; i < areas.Length; i++)
            {
                if (areas[i] != null)
                    _objects.Free(areas[i]);
                if (vms[i] != null)
                    freeVm((nint)vms[i]);
            }

            return null;
        }

        for (int i = 0; i < areas.Length; i++)
        {
            vms[i]->Address = areas[i]->Start;
            vms[i]->Size = areas[i]->Size;
            areas[i]->Vm = vms[i];
            bool inserted = NodeOf(areas[i]->Start).InsertBusy(areas[i]);
            Bug.On(!inserted, "an area was given out twice");
        }

        return vms;
    }

    private static void CheckCongruent(ReadOnlySpan<ulong> offsets, ReadOnlySpan<ulong> sizes, ulong align)
    {
        Bug.On(align < Pfn.PageSize || (align & (align - 1)) != 0, "congruent areas need an alignment of whole pages");
        Bug.On(offsets.Length == 0 || offsets.Length != sizes.Length, "congruent areas without offsets or sizes");
        for (int i = 0; i < offsets.Length; i++)
        {
            Bug.On(((offsets[i] | sizes[i]) & (align - 1)) != 0 || sizes[i] == 0, "a congruent area is not aligned");
            for (int j = 0; j < i; j++)
            {
                bool apart = offsets[i] + sizes[i] <= offsets[j] || offsets[j] + sizes[j] <= offsets[i];
                Bug.On(!apart, "congruent areas overlap");
            }
        }
    }

    /// <summary>Takes the addresses from the free tree; after one full purge if there is no room before.</summary>
    private unsafe bool PlaceCongruent(
        ReadOnlySpan<ulong> offsets, ReadOnlySpan<ulong> sizes, ulong align, VmapArea*[] areas)
    {
        for (int attempt = 0; ; attempt++)
        {
            int cpu = _cpus.CurrentCpu;
            _freeLock.Acquire();
            bool placed = FindCongruentBase(offsets, sizes, align, out ulong start)
                && CutCongruent(offsets, sizes, start, cpu, areas);
            _freeLock.Release();
            if (placed || attempt == 1)
                return placed;
            ReclaimAndPurge();
        }
    }

    /// <summary>
    /// The highest base at which each area lies in one free block. Going round the areas from the highest down, an area
    /// that does not fit moves the base down to where it just does, and everything before it has to be looked at again.
    /// </summary>
    private unsafe bool FindCongruentBase(
        ReadOnlySpan<ulong> offsets, ReadOnlySpan<ulong> sizes, ulong align, out ulong start)
    {
        int area = 0;
        for (int i = 1; i < offsets.Length; i++)
        {
            if (offsets[i] > offsets[area])
                area = i;
        }

        int terminal = area;
        VmapArea* block = _free.FindAtOrBelow(End & ~(align - 1));
        bool found = MoveBelow(ref block, align, offsets[area] + sizes[area], out start);
        while (found)
        {
            ulong end = offsets[area] + sizes[area];
            if (block == null)
                return false;

            if (start + end > block->End)
            {
                found = MoveBelow(ref block, align, end, out start);
                terminal = area;
                continue;
            }

            if (start + offsets[area] < block->Start)
            {
                block = _free.Previous(block);
                found = MoveBelow(ref block, align, end, out start);
                terminal = area;
                continue;
            }

            area = (area + offsets.Length - 1) % offsets.Length;
            if (area == terminal)
                return true;
            block = _free.FindAtOrBelow(start + offsets[area] + sizes[area]);
        }

        return false;
    }

    /// <summary>
    /// The base for an area that ends at the aligned end of a block, or of the next lower one that has room before its.
    /// </summary>
    private unsafe bool MoveBelow(ref VmapArea* block, ulong align, ulong areaEnd, out ulong start)
    {
        ulong last = End & ~(align - 1);
        start = 0;
        for (; block != null; block = _free.Previous(block))
        {
            ulong top = Math.Min(block->End & ~(align - 1), last);
            if (block->Start >= top)
                continue;
            if (top < Start || top - Start < areaEnd)
                return false;
            start = top - areaEnd;
            return true;
        }

        return false;
    }

    private unsafe bool CutCongruent(
        ReadOnlySpan<ulong> offsets, ReadOnlySpan<ulong> sizes, ulong start, int cpu, VmapArea*[] areas)
    {
        for (int i = 0; i < areas.Length; i++)
        {
            VmapArea* block = _free.FindAtOrBelow(start + offsets[i]);
            areas[i]->Start = start + offsets[i];
            areas[i]->End = areas[i]->Start + sizes[i];
            if (_free.Cut(block, areas[i]->Start, sizes[i], ref _spare[cpu]) == VmapError.None)
                continue;

            // What was taken goes back with objects of its own: those of the areas are still needed.
            while (--i >= 0)
            {
                var returned = (VmapArea*)_objects.Alloc(Gfp.NoWait);
                if (returned == null)
                    continue;
                returned->Start = areas[i]->Start;
                returned->End = areas[i]->End;
                MergeLocked(returned);
            }

            return false;
        }

        return true;
    }
}
