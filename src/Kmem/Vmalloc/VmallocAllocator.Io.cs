using System.Globalization;

namespace Kmem;

/// <content>ioremap: physical addresses that are no RAM, at addresses of the vmalloc space.</content>
internal sealed partial class VmallocAllocator
{
    /// <summary>Types of the ranges that are mapped.</summary>
    public MemoryTypes MemoryTypes { get; } = new();

    /// <summary>What answers at physical addresses; set before the first ioremap.</summary>
    public PhysicalMap? Physical { get; set; }

    /// <summary>Large leaves may be used (no nohugeiomap).</summary>
    public bool HugeIoRemap { get; set; } = true;

    /// <summary>Maps physical addresses (__ioremap_caller, arch/x86/mm/ioremap.c, Linux 6.18).</summary>
    /// <returns>
    /// The address of the first byte; null for a range that makes no sense or is RAM, for a type that others forbid, or
    /// if addresses, tables or mappings ran out. The log says which.
    /// </returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    public unsafe void* IoRemap(ulong address, ulong size, CacheMode mode, VmCaller caller)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        PhysicalMap physical = Physical!;
        ulong last = address + (size - 1);
        if (size == 0 || last < address)
        {
            _slabs.WarnOnce("ioremap range", $"WARNING: ioremap of {size} bytes at 0x{address:x}: no such range");
            return null;
        }

        if (last >> PhysicalMap.AddressBits != 0)
        {
            _slabs.Log.Write($"ioremap: invalid physical address {last:x}");
            return null;
        }

        ulong pfn = address >> Pfn.PageShift;
        ulong pages = (last >> Pfn.PageShift) - pfn + 1;
        if (physical.RamIn(pfn, pages).Any)
        {
            _slabs.Log.Write(string.Create(
                CultureInfo.InvariantCulture, $"WARNING: ioremap on RAM at 0x{address:x16} - 0x{last:x16}"));
            return null;
        }

        void* mapped = MapTyped(pfn, pages, mode, new VmallocRequest((nuint)(pages * PageSize), Gfp.Kernel, caller)
        {
            Flags = VmFlags.IoRemap,
        });
        return mapped == null ? null : (byte*)mapped + (address & (PageSize - 1));
    }

    /// <summary>Ends what <see cref="IoRemap"/> began (iounmap). Pointers into the direct map are left alone.</summary>
    /// <exception cref="KernelBugException">No ioremap begins in that page. Nothing was changed.</exception>
    public unsafe void IoUnmap(void* pointer)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        if (pointer == null || _slabs.Map.Contains(pointer))
            return;

        var page = (void*)((ulong)pointer & ~(PageSize - 1));
        ulong va = AreaStart(page, "iounmap");
        const VmFlags Refuse = VmFlags.Uninitialized | VmFlags.Deferred;
        VmapArea* area = Vmap.NodeOf(va).TakeBusy(va, Refuse, VmFlags.None, VmFlags.IoRemap);
        if (area == null)
            ThrowNoArea(page, "iounmap");

        ulong pfn = area->Vm->PhysicalAddress >> Pfn.PageShift;
        ulong pages = MappedSize(area->Vm) >> Pfn.PageShift;

        // A device that goes must not be reachable through addresses that are lazily free. Once they are, they may be
        // somebody else's at any moment.
        Hide(va, pages * PageSize);
        Release(area);
        Physical!.Pin(pfn, pages, -1);
        Bug.On(!MemoryTypes.Free(pfn << Pfn.PageShift, (pfn + pages) << Pfn.PageShift), "a memory type is gone");
    }

    private unsafe void* MapTyped(ulong pfn, ulong pages, CacheMode wanted, in VmallocRequest request)
    {
        ulong start = pfn << Pfn.PageShift;
        ulong end = (pfn + pages) << Pfn.PageShift;
        string? refused = MemoryTypes.Reserve(start, end, wanted, out CacheMode mode);
        if (refused != null)
        {
            _slabs.Log.Write(refused);
            return null;
        }

        Physical!.Pin(pfn, pages, 1);
        VmStruct* vm = Reserve(request, VmFlags.IoRemap | VmFlags.Uninitialized, Pfn.PageShift);
        if (vm != null)
        {
            vm->PhysicalAddress = start;
            if (ShowDevice(vm, pfn, pages, mode))
            {
                Publish(vm);
                return PointerOf(vm->Address);
            }

            Undo(vm);
        }

        Physical.Pin(pfn, pages, -1);
        MemoryTypes.Free(start, end);
        return null;
    }

    /// <summary>ioremap_page_range, and the same in the window.</summary>
    private unsafe bool ShowDevice(VmStruct* vm, ulong pfn, ulong pages, CacheMode mode)
    {
        int maxShift = HugeIoRemap ? IoRemapMaxOrder : Pfn.PageShift;
        if (!Tables.Map(vm->Address, pfn, pages, PageProt.Kernel, mode, maxShift, Gfp.Kernel))
            return false;
        if (Volatile.Read(ref _unmapRefused) != 0
            && WindowAt(vm->Address).Unmap(vm->Address, vm->Size) != WindowResult.Done)
        {
            return false;
        }


        for (ulong done = 0; done < pages;)
        {
            PhysicalMap.Piece piece = Physical!.PieceAt(pfn + done, pages - done);
            PageProt prot = piece.Writable ? PageProt.Kernel : PageProt.KernelReadOnly;
            if (!ShowRun(vm->Address + (done * PageSize), piece.SourcePfn, piece.Pages, prot, piece.Source))
                return false;
            done += piece.Pages;
        }

        return true;
    }
}
