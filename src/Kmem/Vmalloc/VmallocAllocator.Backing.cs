namespace Kmem;

/// <content>What lies behind an area: getting its pages, showing them in the window, and giving all of it
/// back.</content>
internal sealed partial class VmallocAllocator
{
    private const int BulkPages = 100;              // at most so many pages per call of the bulk allocator
    private const ulong LargestKmallocArray = PageSize;

    private long _flushes;
    private long _areasPurged;

    /// <summary>Flushes of addresses on all CPUs, and the freed areas that they were for.</summary>
    public (long Flushes, long Areas) Purged => (Volatile.Read(ref _flushes), Volatile.Read(ref _areasPurged));

    /// <inheritdoc/>
    public void Flush(ulong start, ulong end, IReadOnlyList<VmapRange> areas)
    {
        Interlocked.Increment(ref _flushes);
        Interlocked.Add(ref _areasPurged, areas.Count);

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

        if (start < end)
            Tables.Tlb?.FlushRange(start, end);
    }

    /// <inheritdoc/>
    public bool PurgeFragmentedBlocks(bool force, ref ulong start, ref ulong end)
    {
        DropKept();
        return Blocks.PurgeFragmented(force, ref start, ref end);
    }

    /// <summary>Pages for an area, and the window over them (__vmalloc_area_node).</summary>
    /// <returns>Null if all went well; else what failed. What has been done stays for <see cref="Undo"/>.</returns>
    private unsafe string? Populate(VmStruct* vm, in VmallocRequest request)
    {
        var count = (uint)(MappedSize(vm) >> Pfn.PageShift);
        if (!AllocPageArray(vm, request, count))
            return $"failed to allocated page array size {count * sizeof(Page*)}";

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

        while (!Show(vm, count, request.Prot, request.Gfp))
        {
            if ((request.Gfp & Gfp.NoFail) == 0)
                return "failed to map pages";
            Thread.Sleep(1);
        }

        return null;
    }

    private unsafe bool AllocPageArray(VmStruct* vm, in VmallocRequest request, uint count)
    {
        nuint bytes = count * (nuint)sizeof(Page*);
        Gfp nested = (request.Gfp & GfpMask.Reclaim) | Gfp.Zero;
        vm->Pages = bytes > LargestKmallocArray
            ? (Page**)AllocCore(new VmallocRequest(bytes, nested, request.Caller) { Node = request.Node })
            : (Page**)_kmalloc.AllocOwn(bytes, nested, request.Node);
        return vm->Pages != null;
    }

    /// <summary>Fills the page array as far as there are pages (vm_area_alloc_pages).</summary>
    private unsafe void TakePages(VmStruct* vm, uint count, in VmallocRequest request)
    {
        Gfp gfp = request.Gfp | Gfp.NoWarn;
        if ((gfp & (Gfp.Dma | Gfp.Dma32)) == 0)
            gfp |= Gfp.HighMem;
        Span<Pfn> batch = stackalloc Pfn[BulkPages];
        MemMap map = _slabs.Map;
        if (_kept != null && vm->PageOrder == 0)
            TakeLargeBlocks(vm, count, gfp, request.Node);
        while (vm->PageOrder == 0 && vm->PageCount < count)
        {
            Span<Pfn> wanted = batch[..(int)Math.Min(BulkPages, count - vm->PageCount)];
            wanted.Fill(Pfn.None);
            int got = _pages.AllocBulk(gfp & ~Gfp.NoFail, request.Node, wanted);
            for (int i = 0; i < got; i++)
                vm->Pages[vm->PageCount++] = map.PageOf(wanted[i].Value);
            if (got < wanted.Length)
                break;
        }

        var order = (int)vm->PageOrder;
        while (vm->PageCount < count)
        {
            Page* page = _pages.Alloc(order > 0 ? gfp & ~Gfp.NoFail : gfp, order, request.Node);
            if (page == null)
                return;

            // A large block becomes single frames at once: each is freed on its own.
            if (order > 0)
                _pages.Split(map.PfnOf(page), order);
            for (int i = 0; i < 1 << order; i++)
                vm->Pages[vm->PageCount++] = page + i;
        }
    }

    /// <summary>
    /// Maps an area's pages in the kernel's page tables and in the window, each run of neighbouring frames by one call.
    /// </summary>
    /// <returns>False if tables or mappings ran out; then nothing is mapped.</returns>
    private unsafe bool Show(VmStruct* vm, uint count, PageProt prot, Gfp gfp)
    {
        ulong bytes = vm->Size;
        bool mayBeStale = Volatile.Read(ref _unmapRefused) != 0;
        if (mayBeStale && WindowAt(vm->Address).Unmap(vm->Address, bytes) != WindowResult.Done)
            return false;

        // Tables are always allocated as for GFP_KERNEL, but under the caller's limits on I/O.
        Gfp tableGfp = (Gfp.Kernel & ~(Gfp.IO | Gfp.FS)) | (gfp & (Gfp.IO | Gfp.FS));
        int maxShift = vm->PageOrder > 0 ? HugeShift : Pfn.PageShift;
        for (uint i = 0; i < count;)
        {
            uint run = 1;
            while (i + run < count && vm->Pages[i + run] == vm->Pages[i] + run)
                run++;

            ulong va = vm->Address + (i * PageSize);
            ulong pfn = _slabs.Map.PfnOf(vm->Pages[i]);
            if (!Tables.Map(va, pfn, run, prot, CacheMode.WriteBack, maxShift, tableGfp)
                || !ShowRun(va, pfn, run, prot, populate: _kept != null && count <= LargestPopulated))
            {
                Tables.Unmap(vm->Address, count);
                Unshow(new VmapRange(vm->Address, vm->Address + bytes));
                return false;
            }

            i += run;
        }

        return true;
    }

    /// <summary>
    /// One mapping of the window. When the budget of mappings is used up, those of freed areas are given back first.
    /// A source other than the machine's RAM is a device's memory, with frames numbered from 0.
    /// </summary>
    private bool ShowRun(
        ulong va, ulong pfn, ulong pages, PageProt prot, Ram? source = null, bool populate = false)
    {
        KernelWindow window = WindowAt(va);
        WindowProtection access = HostRights(prot);
        if (window.Map(va, pfn, pages, access, source, populate) == WindowResult.Done)
            return true;

        Vmap.UnmapAliases();
        return window.Map(va, pfn, pages, access, source, populate) == WindowResult.Done;
    }

    /// <summary>
    /// Makes addresses fault. Should the host refuse, whoever gets these addresses next tries again before using them.
    /// </summary>
    private void Unshow(VmapRange range)
    {
        if (WindowAt(range.Start).Unmap(range.Start, range.End - range.Start) != WindowResult.Done)
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
        bool resetRights = (vm->Flags & VmFlags.FlushResetPerms) != 0;
        List<FrameRun> changed = ChangedRights(vm);
        FreeShadow(vm);
        Tables.Unmap(area->Start, MappedSize(vm) >> Pfn.PageShift);
        Vmap.FreeNoflush(area);
        if (resetRights || changed.Count > 0)
            ResetRights(vm, changed);
        KernelBugException? misuse = null;
        for (uint i = 0; i < vm->PageCount; i++)
        {
            try
            {
                FreePage(vm->Pages[i]);
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
