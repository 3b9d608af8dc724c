using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>What the vmalloc family asks for (the arguments of <c>__vmalloc_node_range</c>).</summary>
/// <param name="Size">Bytes, of any value.</param>
/// <param name="Gfp">How to get the pages.</param>
/// <param name="Caller">For vmallocinfo.</param>
internal readonly record struct VmallocRequest(nuint Size, Gfp Gfp, VmCaller Caller)
{
    /// <summary>NUMA node for everything; -1 for the CPU's own.</summary>
    public int Node { get; init; } = -1;

    /// <summary>Bytes, a power of two.</summary>
    public ulong Align { get; init; } = 1;

    public VmFlags Flags { get; init; }

    /// <summary>Where the area may lie; null for the vmalloc space. As there, End is the last byte.</summary>
    public VmapRange? Range { get; init; }

    /// <summary>What may be done through the mapping.</summary>
    public PageProt Prot { get; init; } = PageProt.Kernel;
}

/// <summary>
/// vmalloc: memory whose addresses are contiguous and whose frames need not be (mm/vmalloc.c, Linux 6.18).
/// <code>
///   addresses (VmapAllocator)   [ page 0 | page 1 | page 2 | page 3 | guard ]        kernel addresses are numbers
///                                   |        |        |        |
///   window of this process      [  rw    |  rw    |  rw    |  rw    | fault ]        pointer = Base + (va − START)
///                                   |        \________/        |                     one host mapping per run
///   frames (page allocator)       0x1a3     0x2070 0x2071     0x88
/// </code>
/// An area is described by a vm_struct (kzalloc) with an array of its pages: from kmalloc, or above 512 pages itself
/// from vmalloc. Freeing gives the frames back at once; the addresses, and the window's mappings with them, follow in
/// bulk at the next purge.
/// </summary>
/// <remarks>Thread-safe. Everything but <see cref="Free"/> may sleep, and is refused where sleeping is
/// forbidden.</remarks>
internal sealed partial class VmallocAllocator : IVmapBackend, IDisposable
{
    private const ulong PageSize = Pfn.PageSize;
    private const int HugeShift = 21;
    private const ulong HugeSize = 1UL << HugeShift;
    private const VmFlags NotFreeable = VmFlags.Uninitialized | VmFlags.IoRemap | VmFlags.Sparse
        | VmFlags.Percpu | VmFlags.DmaCoherent | VmFlags.Owned | VmFlags.Kept;

    private readonly SlabAllocator _slabs;
    private readonly PageAllocator _pages;
    private readonly KmallocAllocator _kmalloc;
    private readonly CpuSet _cpus;
    private readonly KernelWindow _window;
    private readonly Ram _ram;
    private readonly MapBudget _budget;
    private readonly ulong _totalRam;
    private long _pageCount;
    private nint _deferred;             // areas to free, newest first; the link is each one's first word
    private int _unmapRefused;          // 1: the host refused to unmap something that was freed

    /// <summary>Reserves the window.</summary>
    /// <exception cref="NotSupportedException">This RAM, or this host, cannot show a frame at two
    /// addresses.</exception>
    /// <exception cref="PlatformException">The host has no address space left.</exception>
    public VmallocAllocator(SlabAllocator slabs, KmallocAllocator kmalloc, Ram ram, MapBudget? budget = null)
        : this(slabs, kmalloc, ram, new VmallocOptions { Budget = budget })
    {
    }

    /// <inheritdoc cref="VmallocAllocator(SlabAllocator, KmallocAllocator, Ram, MapBudget)"/>
    public VmallocAllocator(SlabAllocator slabs, KmallocAllocator kmalloc, Ram ram, VmallocOptions options)
        : this(slabs, kmalloc, ram, options, null, 0, null)
    {
    }

    /// <summary>Takes over what is in the memory of a restored machine, and shows it in a window of its own.</summary>
    public VmallocAllocator(
        SlabAllocator slabs,
        KmallocAllocator kmalloc,
        Ram ram,
        VmapState state,
        ulong root,
        IReadOnlyList<ulong[]> tables,
        VmallocOptions? options = null)
        : this(slabs, kmalloc, ram, options ?? new VmallocOptions(), state, root, tables)
    {
    }

    private VmallocAllocator(
        SlabAllocator slabs,
        KmallocAllocator kmalloc,
        Ram ram,
        VmallocOptions options,
        VmapState? state,
        ulong root,
        IReadOnlyList<ulong[]>? tables)
    {
        if (AddressWindow.WhyUnsupported(ram) is { } reason)
            throw new NotSupportedException("vmalloc needs frames mapped at a second address: " + reason);

        _slabs = slabs;
        _pages = slabs.Pages;
        _kmalloc = kmalloc;
        _cpus = slabs.Cpus;
        foreach (ZonePages zone in _pages.Zones)
            _totalRam += zone.Zone.Managed;
        _ram = ram;
        _budget = options.Budget ?? MapBudget.Process;
        if (options.KeepFreedAreas)
            _kept = new KeptAreas(Math.Min(_totalRam / KeptShareOfRam, MostKeptBytes >> Pfn.PageShift));
        DirectMap = new DirectMap(ram, _budget);
        AddressMap addresses = slabs.Addresses;
        _window = new KernelWindow(ram, addresses.VmallocStart, addresses.VmallocEnd, options.Budget);
        try
        {
            // A host with less room has a smaller vmalloc space; where it starts stays.
            var vmap = new VmapOptions { Start = _window.Start, End = _window.Last, State = state };
            if (state == null)
            {
                Tables = new KernelPageTable(_pages, slabs.Map, addresses.Levels, options.Sync);
                if (!Tables.MapDirect(addresses, _pages.IsPresent, slabs.Map.EndPfn))
                    _pages.ThrowBug("Kernel panic: no memory for the tables of the direct map");
                Vmap = new VmapAllocator(slabs, vmap);
            }
            else
            {
                Tables = new KernelPageTable(_pages, slabs.Map, addresses.Levels, root, tables!);
                Vmap = new VmapAllocator(slabs, vmap);
                RestoreAreas(state);
            }
        }
        catch
        {
            if (state == null)
                Tables?.Dispose();
            _window.Dispose();
            throw;
        }

        _windows = [_window];
        Blocks = new VmapBlocks(this);
        Stacks = new ThreadStacks(this);
        Vmap.Backend = this;
    }

    /// <summary>The addresses.</summary>
    public VmapAllocator Vmap { get; }

    /// <summary>The kernel's page tables: what is behind an address.</summary>
    public KernelPageTable Tables { get; }

    /// <summary>The window's mappings in the host.</summary>
    public int MapCount => Windows.Sum(window => window.MapCount);

    /// <summary>Pages that vmalloc itself allocated and has not freed (vmalloc_nr_pages).</summary>
    public long PageCount => Volatile.Read(ref _pageCount);

    /// <summary>For tests of the error path.</summary>
    public AddressWindow Window => _window.Low;

    public void Dispose()
    {
        Vmap.Dispose();
        Tables.Dispose();
        foreach (KernelWindow window in Windows)
            window.Dispose();
    }

    /// <summary>Allocates an area (__vmalloc_node_range).</summary>
    /// <returns>Its address in this process, or null.</returns>
    /// <exception cref="KernelBugException">This context may not sleep, or the flags contradict each other.</exception>
    public unsafe void* Alloc(in VmallocRequest request)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        return AllocWatched(request);
    }

    /// <summary>
    /// Who watches wants to know of the areas of users, not of those that hold other areas' page arrays.
    /// </summary>
    private unsafe void* AllocWatched(in VmallocRequest request)
    {
        void* area = AllocCore(request);
        if (area != null && _slabs.Watch is { } watch)
        {
            watch.Allocated((nint)area, request.Size, AllocationKind.Area, "vmalloc");
            if (request.Caller is VmCaller.AllocThreadStack or VmCaller.ExecmemAlloc or VmCaller.DmaAllocCoherent)
                watch.Disown((nint)area);
        }

        return area;
    }

    /// <summary>Frees an area (vfree); where sleeping is forbidden, at the next call where it is not.</summary>
    /// <exception cref="KernelBugException">No area that vfree may free starts there. Nothing was changed.</exception>
    public unsafe void Free(void* pointer) => FreeCore(pointer, "vfree", VmFlags.None);

    /// <summary>As <see cref="Free"/>, for who made an <see cref="VmFlags.Owned"/> area.</summary>
    /// <exception cref="KernelBugException">No such area starts there. Nothing was changed.</exception>
    public unsafe void FreeOwned(void* pointer, string operation) => FreeCore(pointer, operation, VmFlags.Owned);

    /// <summary>Frees what was freed where sleeping is forbidden, newest first (delayed_vfree_work).</summary>
    public unsafe void FreeDeferred()
    {
        if (Volatile.Read(ref _deferred) == 0)
            return;

        nint next;
        for (nint at = Interlocked.Exchange(ref _deferred, 0); at != 0; at = next)
        {
            next = *(nint*)at;
            ulong va = AddressOf((void*)at);
            VmapArea* area = Vmap.NodeOf(va).TakeBusy(va, VmFlags.None, VmFlags.None, VmFlags.Deferred);
            Bug.On(area == null, "a deferred area is gone");
            Release(area);
        }
    }

    private unsafe void FreeCore(void* pointer, string operation, VmFlags need)
    {
        if (pointer == null)
            return;

        ulong va = AreaStart(pointer, operation);
        CpuTask* task = _cpus.Current;
        bool defer = !task->MaySleep;
        if (!defer)
            FreeDeferred();
        else
            RefuseUnwritable(pointer);
        if (!defer && _kept != null && TryKeep(va))
        {
            _slabs.Watch?.Freed((nint)pointer);
            return;
        }

        // Where sleeping is forbidden the memory itself becomes a list entry, which must be writable.
        VmFlags refuse = (NotFreeable & ~need) | VmFlags.Deferred | (defer ? VmFlags.FlushResetPerms : VmFlags.None);
        VmapArea* area = Vmap.NodeOf(va).TakeBusy(va, refuse, defer ? VmFlags.Deferred : VmFlags.None, need);
        if (area == null)
            ThrowNoArea(pointer, operation);
        _slabs.Watch?.Freed((nint)pointer);
        if (defer)
            PushDeferred(pointer);
        else
            Release(area);
    }

    /// <summary>
    /// Changes the size of an area (vrealloc): in place as far as its pages reach, else in a new area with the old
    /// content.
    /// </summary>
    /// <returns>The area; null if there is no memory, and then the old one is untouched, or if the size is 0.</returns>
    public unsafe void* Realloc(void* pointer, nuint size, Gfp gfp)
    {
        if (size == 0)
        {
            Free(pointer);
            return null;
        }

        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        if (pointer == null)
            return AllocWatched(new VmallocRequest(size, gfp, VmCaller.Vrealloc));

        VmStruct* vm = AllocatedAt(pointer, "vrealloc");
        var old = (nuint)vm->RequestedSize;
        if (size <= MappedSize(vm))
        {
            // What lies between the two sizes is cleared in both directions: nobody may find old content in it.
            if ((gfp & Gfp.Zero) != 0)
                NativeMemory.Clear((byte*)pointer + Math.Min(old, size), Math.Max(old, size) - Math.Min(old, size));
            vm->RequestedSize = size;
            _slabs.Watch?.Resized((nint)pointer, size);
            return pointer;
        }

        void* larger = AllocWatched(new VmallocRequest(size, gfp, VmCaller.Vrealloc));
        if (larger == null)
            return null;

        NativeMemory.Copy(pointer, larger, old);
        Free(pointer);
        return larger;
    }

    /// <summary>
    /// Shows frames that the caller has at new addresses (vmap). With <see cref="VmFlags.MapPutPages"/> they become the
    /// area's, and <see cref="Free"/> frees them; else <see cref="Unmap"/> ends it.
    /// </summary>
    /// <returns>The address; null if there are no addresses or no mappings left, and then the frames are the
    /// caller's.</returns>
    public unsafe void* Map(ReadOnlySpan<Pfn> frames, VmFlags flags, PageProt prot)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        flags = FitForVmap(flags);
        if (frames.IsEmpty || (ulong)frames.Length > _totalRam || (flags & VmFlags.FlushResetPerms) != 0)
            return null;

        nuint bytes = (nuint)frames.Length * (nuint)PageSize;
        var request = new VmallocRequest(bytes, Gfp.Kernel, VmCaller.Vmap) { Flags = flags };
        VmStruct* vm = Reserve(request, VmFlags.Map | VmFlags.Uninitialized | flags, Pfn.PageShift);
        if (vm == null)
            return null;

        uint count = 0;
        bool shown = AllocPageArray(vm, request, (uint)frames.Length);
        if (shown)
        {
            foreach (Pfn frame in frames)
                vm->Pages[count++] = _slabs.Map.PageOf(frame.Value);
            shown = Show(vm, count, prot, Gfp.Kernel);
        }

        if (!shown)
        {
            Undo(vm);
            return null;
        }

        if ((flags & VmFlags.MapPutPages) != 0)
        {
            vm->PageCount = count;
        }
        else
        {
            FreePageArray(vm);
            vm->Pages = null;
        }

        Publish(vm);
        return PointerOf(vm->Address);
    }

    /// <summary>Ends what <see cref="Map"/> began (vunmap); the frames stay their owner's.</summary>
    /// <exception cref="KernelBugException">No such area starts there, or this context may not sleep.</exception>
    public unsafe void Unmap(void* pointer)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        if (pointer == null)
            return;

        ulong va = AreaStart(pointer, "vunmap");
        const VmFlags Refuse = NotFreeable | VmFlags.Deferred | VmFlags.Alloc | VmFlags.MapPutPages;
        VmapArea* area = Vmap.NodeOf(va).TakeBusy(va, Refuse, VmFlags.None);
        if (area == null)
            ThrowNoArea(pointer, "vunmap");
        Release(area);
    }

    /// <summary>Whether a pointer lies in the window (is_vmalloc_addr, which leaves the very last byte out).</summary>
    public unsafe bool Contains(void* pointer) => _window.Contains(pointer);

    /// <summary>The kernel's address of a pointer into a window.</summary>
    public unsafe ulong AddressOf(void* pointer) => (WindowOf(pointer) ?? _window).AddressOf(pointer);

    /// <summary>The pointer for a kernel address of a space that has a window.</summary>
    public unsafe void* PointerOf(ulong address) => WindowAt(address).PointerOf(address);

    /// <summary>Bytes of an area without its guard page (get_vm_area_size).</summary>
    private static unsafe ulong MappedSize(VmStruct* vm) =>
        (vm->Flags & VmFlags.NoGuard) != 0 ? vm->Size : vm->Size - PageSize;

    private unsafe void* AllocCore(in VmallocRequest request)
    {
        if (request.Size == 0)
        {
            _slabs.WarnOnce("vmalloc size", "WARNING: vmalloc of 0 bytes");
            return null;
        }

        if (request.Size >> Pfn.PageShift > _totalRam)
        {
            Warn(request, "exceeds total pages");
            return null;
        }

        if (_kept != null)
        {
            void* kept = TakeKept(request);
            if (kept != null)
                return kept;
        }

        if ((request.Flags & VmFlags.AllowHugeVmap) != 0 && request.Size >= HugeSize)
        {
            void* huge = TryAlloc(request, HugeShift);
            if (huge != null)
                return huge;
        }

        return TryAlloc(request, Pfn.PageShift);
    }

    /// <summary>
    /// Allocates with pages of one size. Only the attempt with small pages complains: it is the last one.
    /// </summary>
    private unsafe void* TryAlloc(VmallocRequest request, int shift)
    {
        VmStruct* vm = Reserve(request, VmFlags.Alloc | VmFlags.Uninitialized | request.Flags, shift);
        while (vm == null && shift == Pfn.PageShift && (request.Gfp & Gfp.NoFail) != 0)
        {
            Warn(request, "vm_struct allocation failed. Retrying.");
            Thread.Sleep(1);
            vm = Reserve(request, VmFlags.Alloc | VmFlags.Uninitialized | request.Flags, shift);
        }

        string? failure = "vm_struct allocation failed";
        if (vm != null)
        {
            vm->PageOrder = (uint)(shift - Pfn.PageShift);
            try
            {
                failure = Populate(vm, request);
            }
            catch
            {
                Undo(vm);
                throw;
            }

            if (failure == null)
            {
                Publish(vm);
                return PointerOf(vm->Address);
            }

            Undo(vm);
        }

        if (shift == Pfn.PageShift)
            Warn(request, failure);
        return null;
    }

    /// <summary>Finds addresses and makes the vm_struct that describes them (__get_vm_area_node); null on
    /// failure.</summary>
    private unsafe VmStruct* Reserve(in VmallocRequest request, VmFlags flags, int shift)
    {
        RefuseReserved(flags);
        Gfp gfp = request.Gfp & GfpMask.Reclaim;
        var vm = (VmStruct*)_kmalloc.AllocOwn(VmStruct.SizeInBytes, gfp | Gfp.Zero, request.Node);
        if (vm == null)
            return null;

        vm->Flags = flags;
        vm->Caller = request.Caller;
        vm->RequestedSize = request.Size;
        ulong unit = 1UL << shift;
        ulong bytes = ((ulong)request.Size + unit - 1) & ~(unit - 1);
        ulong align = shift == Pfn.PageShift ? request.Align : Math.Max(request.Align, unit);
        if ((flags & VmFlags.IoRemap) != 0)
            align = NaturalAlign(bytes);
        ulong guard = (flags & VmFlags.NoGuard) != 0 ? 0 : PageSize;
        VmapRange within = request.Range ?? new VmapRange(Vmap.Start, Vmap.End);
        var range = new VmapRequest(bytes + guard, align, within.Start, within.End) { Gfp = gfp, Node = request.Node };
        if (Vmap.Alloc(range, vm, out _) != null)
            return vm;

        _kmalloc.Free(vm);
        return null;
    }

    /// <summary>Shows the area to readers: they skip it while it is half built.</summary>
    private static unsafe void Publish(VmStruct* vm) =>
        Interlocked.And(ref *(long*)&vm->Flags, ~(long)VmFlags.Uninitialized);

    private unsafe void PushDeferred(void* pointer)
    {
        // Written through the direct map: the area may be read-only.
        var link = (nint*)_slabs.Map.AddressOf(_slabs.Map.PageOf(PfnAt(pointer).Value));
        nint head;
        do
        {
            head = Volatile.Read(ref _deferred);
            *link = head;
        }
        while (Interlocked.CompareExchange(ref _deferred, (nint)pointer, head) != head);
    }
}
