using System.Globalization;

namespace Kmem;

/// <content>What lies behind an area: getting its pages, showing them in the window, and giving all of it back.</content>
internal sealed partial class VmallocAllocator
{
    private const int BulkPages = 100;              // at most so many pages per call of the bulk allocator
    private const ulong LargestKmallocArray = PageSize;

    /// <inheritdoc/>
    public void Flush(ulong start, ulong end, IReadOnlyList<VmapRange> areas)
    {
        // Areas that touch are unmapped by one call: that is what purging late is good for.
        var sorted = new List<VmapRange>(areas);
        sorted.Sort((a, b) => a.Start.CompareTo(b.Start));
        for (int i = 0; i < sorted.Count;)
        {
            VmapRange run = sorted[i];
            for (i++; i < sorted.Count && sorted[i].Start == run.End; i++)
                run = run with { End = sorted[i].End };
            Unshow(run);
        }
    }

    /// <inheritdoc/>
    public bool PurgeFragmentedBlocks(bool force, ref ulong start, ref ulong end) => false;

    /// <summary>Pages for an area, and the window over them (__vmalloc_area_node).</summary>
    /// <returns>Null if all went well; else what failed. What has been done stays for <see cref="Undo"/>.</returns>
    private unsafe string? Populate(VmStruct* vm, in VmallocRequest request)
    {
        var count = (uint)(MappedSize(vm) >> Pfn.PageShift);
        nuint bytes = count * (nuint)sizeof(Page*);
        Gfp nested = (request.Gfp & GfpMask.Reclaim) | Gfp.Zero;
        vm->Pages = bytes > LargestKmallocArray
            ? (Page**)AllocCore(new VmallocRequest(bytes, nested, request.Caller) { Node = request.Node })
            : (Page**)_kmalloc.Alloc(bytes, nested, request.Node);
        if (vm->Pages == null)
            return string.Create(CultureInfo.InvariantCulture, $"failed to allocated page array size {bytes}");

        try
        {
            TakePages(vm, count, request);
        }
        finally
        {
            Interlocked.Add(ref _pageCount, vm->PageCount);
        }

        if (vm->PageCount != count)
            return "failed to allocate pages";

        while (!Show(vm->Address, vm->Pages, count, vm->Size))
        {
            if ((request.Gfp & Gfp.NoFail) == 0)
                return "failed to map pages";
            Thread.Sleep(1);
        }

        return null;
    }

    /// <summary>Fills the page array as far as there are pages (vm_area_alloc_pages).</summary>
    private unsafe void TakePages(VmStruct* vm, uint count, in VmallocRequest request)
    {
        Gfp gfp = request.Gfp | Gfp.NoWarn;
        if ((gfp & (Gfp.Dma | Gfp.Dma32)) == 0)
            gfp |= Gfp.HighMem;
        Span<Pfn> batch = stackalloc Pfn[BulkPages];
        MemMap map = _slabs.Map;
        while (vm->PageCount < count)
        {
            Span<Pfn> wanted = batch[..(int)Math.Min(BulkPages, count - vm->PageCount)];
            wanted.Fill(Pfn.None);
            int got = _pages.AllocBulk(gfp & ~Gfp.NoFail, request.Node, wanted);
            for (int i = 0; i < got; i++)
                vm->Pages[vm->PageCount++] = map.PageOf(wanted[i].Value);
            if (got < wanted.Length)
                break;
        }

        while (vm->PageCount < count)
        {
            Page* page = _pages.Alloc(gfp, 0, request.Node);
            if (page == null)
                return;
            vm->Pages[vm->PageCount++] = page;
        }
    }

    /// <summary>
    /// Maps pages at an address, each run of neighbouring frames by one call. When the budget of mappings is used up,
    /// those of freed areas are given back first.
    /// </summary>
    /// <returns>False if that was not enough; part of the pages may be mapped then.</returns>
    private unsafe bool Show(ulong address, Page** pages, uint count, ulong areaBytes)
    {
        ulong offset = address - Vmap.Start;
        if (Volatile.Read(ref _unmapRefused) != 0 && _window.Unmap(offset, areaBytes) != WindowResult.Done)
            return false;

        for (uint i = 0; i < count;)
        {
            uint run = 1;
            while (i + run < count && pages[i + run] == pages[i] + run)
                run++;

            ulong at = offset + (i * PageSize);
            ulong frame = _slabs.Map.PfnOf(pages[i]) * PageSize;
            ulong bytes = run * PageSize;
            if (_window.Map(at, frame, bytes, WindowProtection.ReadWrite) != WindowResult.Done)
            {
                Vmap.PurgeLazy(full: false);
                if (_window.Map(at, frame, bytes, WindowProtection.ReadWrite) != WindowResult.Done)
                {
                    Unshow(new VmapRange(address, address + areaBytes));
                    return false;
                }
            }

            i += run;
        }

        return true;
    }

    /// <summary>
    /// Makes addresses fault. Should the host refuse, whoever gets these addresses next tries again before using them.
    /// </summary>
    private void Unshow(VmapRange range)
    {
        if (_window.Unmap(range.Start - Vmap.Start, range.End - range.Start) != WindowResult.Done)
            Volatile.Write(ref _unmapRefused, 1);
    }

    /// <summary>Gives back an area that failed half-way.</summary>
    private unsafe void Undo(VmStruct* vm)
    {
        VmapArea* area = Vmap.NodeOf(vm->Address).TakeBusy(vm->Address, VmFlags.None, VmFlags.None);
        Bug.On(area == null, "an area that is being built is gone");
        Unshow(new VmapRange(area->Start, area->End));
        Release(area);
    }

    /// <summary>
    /// Frees an unlinked area in the kernel's order: the addresses lazily, the pages in array order, the array, the
    /// vm_struct.
    /// </summary>
    private unsafe void Release(VmapArea* area)
    {
        VmStruct* vm = area->Vm;
        Vmap.FreeNoflush(area);
        KernelBugException? misuse = null;
        for (uint i = 0; i < vm->PageCount; i++)
        {
            try
            {
                _pages.Free(_slabs.Map.PfnOf(vm->Pages[i]), 0);
            }
            catch (KernelBugException bug)
            {
                // Somebody freed this frame behind our back. The others are not to be lost for that.
                misuse ??= bug;
            }
        }

        if ((vm->Flags & VmFlags.MapPutPages) == 0)
            Interlocked.Add(ref _pageCount, -(long)vm->PageCount);
        FreePageArray(vm);
        _kmalloc.Free(vm);
        if (misuse != null)
            throw new KernelBugException(misuse.Message, misuse);
    }

    private unsafe void FreePageArray(VmStruct* vm)
    {
        if (!Contains(vm->Pages))
        {
            _kmalloc.Free(vm->Pages);
            return;
        }

        ulong va = AddressOf(vm->Pages);
        VmapArea* area = Vmap.NodeOf(va).TakeBusy(va, VmFlags.None, VmFlags.None);
        Bug.On(area == null, "the page array of an area is gone");
        Release(area);
    }
}
