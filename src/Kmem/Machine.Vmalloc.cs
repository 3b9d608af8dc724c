using System.Runtime.InteropServices;

namespace Kmem;

/// <content>vmalloc: memory of scattered frames at contiguous addresses; and kvmalloc, which takes what it can
/// get.</content>
public sealed partial class Machine
{
    private readonly Lock _vmallocGate = new();
    private VmallocAllocator? _vmalloc;

    /// <summary>The vmalloc of this machine, made at its first use; null until then.</summary>
    internal VmallocAllocator? VmallocIfUsed => Volatile.Read(ref _vmalloc);

    /// <summary>
    /// Allocates memory whose frames need not be contiguous (vmalloc, mm/vmalloc.c, Linux 6.18). Behind it lies a guard
    /// page: touching that ends the process.
    /// </summary>
    /// <param name="size">Bytes; rounded up to whole pages. More than all memory fails, and so does 0.</param>
    /// <returns>
    /// An address at the start of a page, with undefined content; null if there is not enough memory, address space, or
    /// mappings of the host (vm.max_map_count). A <c>vmalloc error</c> line in <see cref="Dmesg"/> says why, at most
    /// once in ten seconds.
    /// </returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">
    /// The RAM cannot be mapped a second time: <see cref="MachineOptions.PortableMemory"/>, or a host that is not Linux
    /// with 4 KiB pages.
    /// </exception>
    /// <exception cref="PlatformException">First use: the host has no range of addresses for the window.</exception>
    /// <exception cref="OutOfMemoryException">First use: there is no memory for the first page tables.</exception>
    public unsafe void* Vmalloc(nuint size) => Vmallocs.Alloc(new VmallocRequest(size, Gfp.Kernel, VmCaller.Vmalloc));

    /// <summary>As <see cref="Vmalloc(nuint)"/>, with flags (__vmalloc).</summary>
    /// <param name="size">Bytes.</param>
    /// <param name="gfp">
    /// How to get the pages. Sleeping must be allowed in this context whatever the flags say. With
    /// <see cref="Gfp.NoFail"/> the call waits until there are addresses, pages and mappings of the host again; it
    /// fails only for a size of 0 or of more than all memory.
    /// </param>
    /// <param name="node">Preferred node, or -1 for the CPU's own.</param>
    /// <returns>The address, or null.</returns>
    /// <exception cref="KernelBugException">This context may not sleep, or the flags contradict each other.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* Vmalloc(nuint size, Gfp gfp, int node = -1)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(node, Nodes);
        return Vmallocs.Alloc(new VmallocRequest(size, gfp, VmCaller.Vmalloc) { Node = Math.Max(node, -1) });
    }

    /// <summary>As <see cref="Vmalloc(nuint)"/>, cleared (vzalloc).</summary>
    /// <param name="size">Bytes.</param>
    /// <returns>The address, or null.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* Vzalloc(nuint size) =>
        Vmallocs.Alloc(new VmallocRequest(size, Gfp.Kernel | Gfp.Zero, VmCaller.Vzalloc));

    /// <summary>
    /// As <see cref="Vmalloc(nuint)"/>, from blocks of 2 MiB if the size is at least that and there are such blocks
    /// (vmalloc_huge); then the size is rounded up to 2 MiB.
    /// </summary>
    /// <param name="size">Bytes.</param>
    /// <param name="gfp">Flags.</param>
    /// <returns>The address, or null.</returns>
    /// <exception cref="KernelBugException">This context may not sleep, or the flags contradict each other.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* VmallocHuge(nuint size, Gfp gfp) =>
        Vmallocs.Alloc(new VmallocRequest(size, gfp, VmCaller.VmallocHuge) { Flags = VmFlags.AllowHugeVmap });

    /// <summary>Allocates cleared memory that may be shown to a process (vmalloc_user).</summary>
    /// <param name="size">Bytes.</param>
    /// <returns>The address, or null.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* VmallocUser(nuint size) => Vmallocs.Alloc(
        new VmallocRequest(size, Gfp.Kernel | Gfp.Zero, VmCaller.VmallocUser)
        {
            Flags = VmFlags.UserMap,
            Align = Pfn.PageSize,
        });

    /// <summary>Allocates memory of frames below 4 GiB (vmalloc_32).</summary>
    /// <param name="size">Bytes.</param>
    /// <returns>The address, or null.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* Vmalloc32(nuint size) =>
        Vmallocs.Alloc(new VmallocRequest(size, Gfp.Kernel | Gfp.Dma32, VmCaller.Vmalloc32));

    /// <summary>Shows frames side by side at new addresses, with a guard page behind them (vmap).</summary>
    /// <param name="frames">Any frames of the machine, in any order, one of them more than once if you like.</param>
    /// <param name="readOnly">Whether writing through the new addresses ends the process (PAGE_KERNEL_RO).</param>
    /// <param name="putPages">
    /// The frames, each allocated alone and named once, become the area's, and <see cref="Vfree"/> frees them
    /// (VM_MAP_PUT_PAGES). Else <see cref="Vunmap"/> ends the mapping, and the frames have to be kept until then.
    /// </param>
    /// <returns>The address; null if frames is empty or addresses, tables or mappings ran out: the frames stay
    /// yours.</returns>
    /// <exception cref="ArgumentException">The machine has no such frame, or cannot free it alone.</exception>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* Vmap(ReadOnlySpan<Pfn> frames, bool readOnly = false, bool putPages = false)
    {
        foreach (Pfn frame in frames)
        {
            if (frame.Value >= _map.EndPfn)
                throw new ArgumentOutOfRangeException(nameof(frames), frame, "no such page frame");
            if (putPages && _map.PageOf(frame.Value)->AllocatedOrderPlusOne != 1)
                throw new ArgumentException($"frame {frame} was not allocated alone", nameof(frames));
        }

        return Vmallocs.Map(
            frames,
            putPages ? VmFlags.MapPutPages : VmFlags.None,
            readOnly ? PageProt.Kernel & ~PageProt.Write : PageProt.Kernel);
    }

    /// <summary>Ends a <see cref="Vmap"/> (vunmap). Null is allowed.</summary>
    /// <param name="pointer">What it returned.</param>
    /// <exception cref="KernelBugException">
    /// No such mapping starts there, it owns its frames, or this context may not sleep. Nothing was changed.
    /// </exception>
    public unsafe void Vunmap(void* pointer)
    {
        CheckContext(Gfp.Kernel);
        if (VmallocIfUsed is { } vmalloc)
            vmalloc.Unmap(pointer);
        else if (pointer != null)
            ThrowNoVmalloc(pointer, "vunmap");
    }

    /// <summary>
    /// Changes the size of memory from vmalloc (vrealloc). It stays where it is as far as its whole pages reach, and
    /// when it shrinks, which gives no memory back.
    /// </summary>
    /// <param name="pointer">What vmalloc returned, or null to allocate.</param>
    /// <param name="size">New size in bytes; 0 frees.</param>
    /// <param name="gfp">Flags; <see cref="Gfp.Zero"/> clears what is cut off and what is added.</param>
    /// <returns>The memory, perhaps elsewhere; null if it could not grow (the old memory is untouched), or for size
    /// 0.</returns>
    /// <exception cref="KernelBugException">No memory of vmalloc starts there, or this context may not
    /// sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* Vrealloc(void* pointer, nuint size, Gfp gfp) => Vmallocs.Realloc(pointer, size, gfp);

    /// <summary>
    /// Frees memory from vmalloc (vfree). The frames are free at once; the addresses are used again, and fault, only
    /// after a purge. In interrupt or atomic context it is put off to the next vmalloc or vfree of a context that may
    /// sleep, and the first bytes of the memory are overwritten.
    /// </summary>
    /// <param name="pointer">What vmalloc returned, or null. Any thread may free.</param>
    /// <exception cref="KernelBugException">
    /// It is free already, or no area starts there, or it is not memory from vmalloc. Nothing was changed.
    /// </exception>
    public unsafe void Vfree(void* pointer)
    {
        if (pointer == null)
            return;

        if (VmallocIfUsed is { } vmalloc)
            vmalloc.Free(pointer);
        else
            ThrowNoVmalloc(pointer, "vfree");
    }

    /// <summary>Whether a pointer lies in the vmalloc space, allocated or not (is_vmalloc_addr).</summary>
    /// <param name="pointer">Any pointer.</param>
    /// <returns>False for the machine's RAM and for foreign memory.</returns>
    public unsafe bool IsVmallocAddr(void* pointer) => VmallocIfUsed is { } vmalloc && vmalloc.Contains(pointer);

    /// <summary>
    /// The frame behind a pointer into memory from vmalloc (vmalloc_to_page): <see cref="AddressOf(Pfn)"/> shows the
    /// same bytes in the direct map.
    /// </summary>
    /// <param name="pointer">A pointer; its memory must not be freed meanwhile.</param>
    /// <returns>The frame, or <see cref="Pfn.None"/> where nothing is mapped.</returns>
    public unsafe Pfn VmallocToPage(void* pointer) => VmallocIfUsed is { } vmalloc ? vmalloc.PfnAt(pointer) : Pfn.None;

    /// <summary>
    /// Makes the addresses of freed memory fault and usable again (vm_unmap_aliases). Usually that waits until 32 MiB
    /// per doubling of the number of CPUs have gathered.
    /// </summary>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    public void VmUnmapAliases()
    {
        CheckContext(Gfp.Kernel);
        if (VmallocIfUsed is not { } vmalloc)
            return;

        vmalloc.FreeDeferred();
        vmalloc.Vmap.UnmapAliases();
    }

    /// <summary>
    /// Allocates contiguous memory if there is some, else memory from vmalloc if it is more than a page (kvmalloc,
    /// mm/slub.c, Linux 6.18).
    /// </summary>
    /// <param name="size">Bytes; vmalloc gives at most 2 GiB less 1.</param>
    /// <param name="gfp">Flags; those that may not sleep get contiguous memory or nothing.</param>
    /// <returns>The address, or null.</returns>
    /// <exception cref="KernelBugException">The request may sleep and this context may not.</exception>
    public unsafe void* Kvmalloc(nuint size, Gfp gfp)
    {
        CheckContext(gfp);
        void* block = _kmalloc.Alloc(size, size > Pfn.PageSize ? GfpForTrying(gfp) : gfp);
        if (block != null || size <= Pfn.PageSize || !gfp.MayBlock())
            return block;

        if (size > int.MaxValue)
        {
            if ((gfp & Gfp.NoWarn) == 0)
            {
                _slabs.WarnOnce(
                    "kvmalloc size", $"WARNING: kvmalloc of {size} bytes: the largest size is {int.MaxValue}");
            }

            return null;
        }

        if (_slabs.Runs is { } runs)
        {
            block = runs.Alloc(size, gfp);
            if (block != null)
                return block;
        }

        if (AddressWindow.WhyUnsupported(_ram) is { } reason)
        {
            _slabs.WarnOnce("kvmalloc window", $"WARNING: kvmalloc cannot fall back to vmalloc: {reason}");
            return null;
        }

        return Vmallocs.Alloc(new VmallocRequest(size, gfp, VmCaller.Kvmalloc) { Flags = VmFlags.AllowHugeVmap });
    }

    /// <summary>As <see cref="Kvmalloc"/>, cleared (kvzalloc).</summary>
    /// <param name="size">Bytes.</param>
    /// <param name="gfp">Flags.</param>
    /// <returns>The address, or null.</returns>
    /// <exception cref="KernelBugException">The request may sleep and this context may not.</exception>
    public unsafe void* Kvzalloc(nuint size, Gfp gfp) => Kvmalloc(size, gfp | Gfp.Zero);

    /// <summary>Allocates a cleared array as <see cref="Kvmalloc"/> does (kvcalloc).</summary>
    /// <param name="count">Elements.</param>
    /// <param name="size">Bytes of an element.</param>
    /// <param name="gfp">Flags.</param>
    /// <returns>The address, or null.</returns>
    /// <exception cref="KernelBugException">count × size does not fit into an address, or the request may sleep
    /// here.</exception>
    public unsafe void* Kvcalloc(nuint count, nuint size, Gfp gfp) => Kvzalloc(_kmalloc.Product(count, size), gfp);

    /// <summary>Frees what <see cref="Kvmalloc"/> and its relatives gave out, or kmalloc, or vmalloc
    /// (kvfree).</summary>
    /// <param name="pointer">An address, or null.</param>
    /// <exception cref="KernelBugException">It is free already, or no allocation starts there. Nothing was
    /// changed.</exception>
    public unsafe void Kvfree(void* pointer)
    {
        if (IsVmallocAddr(pointer))
            Vfree(pointer);
        else
            Kfree(pointer);
    }

    /// <summary>
    /// Changes the size of memory from <see cref="Kvmalloc"/> (kvrealloc); contiguous memory may move to vmalloc, but
    /// not back.
    /// </summary>
    /// <param name="pointer">The memory, or null to allocate.</param>
    /// <param name="size">New size in bytes.</param>
    /// <param name="gfp">Flags.</param>
    /// <returns>The memory, perhaps elsewhere; null if it could not grow, and then the old memory is
    /// untouched.</returns>
    /// <exception cref="KernelBugException">No allocation starts there, or the request may sleep here.</exception>
    public unsafe void* Kvrealloc(void* pointer, nuint size, Gfp gfp)
    {
        if (IsVmallocAddr(pointer))
            return Vrealloc(pointer, size, gfp);

        CheckContext(gfp);
        void* moved = _kmalloc.Realloc(pointer, size, size > Pfn.PageSize ? GfpForTrying(gfp) : gfp);
        if (moved != null)
            return moved;

        moved = Kvmalloc(size, gfp);
        if (moved != null && pointer != null)
        {
            NativeMemory.Copy(pointer, moved, Ksize(pointer));
            Kfree(pointer);
        }

        return moved;
    }

    private VmallocAllocator Vmallocs => Volatile.Read(ref _vmalloc) ?? CreateVmalloc();

    /// <summary>Contiguous memory is worth a look but no effort: there is vmalloc (kmalloc_gfp_adjust).</summary>
    private static Gfp GfpForTrying(Gfp gfp)
    {
        gfp = (gfp | Gfp.NoWarn) & ~Gfp.NoFail;
        return (gfp & Gfp.RetryMayFail) != 0 ? gfp : gfp & ~Gfp.DirectReclaim;
    }

    private unsafe void ThrowNoVmalloc(void* pointer, string operation) => _pages.ThrowBug(
        $"WARNING: Trying to {operation}() nonexistent vm area (0x{(ulong)pointer:x16}): there is none at all");

    private VmallocAllocator CreateVmalloc()
    {
        CheckContext(Gfp.Kernel);
        SimPoint.Gate(_vmallocGate);
        lock (_vmallocGate)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            if (_vmalloc is { } other)
                return other;

            VmallocAllocator vmalloc;
            try
            {
                vmalloc = new VmallocAllocator(_slabs, _kmalloc, _ram, VmallocOptionsOfProfile);
            }
            catch (KernelBugException bug)
            {
                throw new OutOfMemoryException("no memory for the page tables of the vmalloc space", bug);
            }

            PublishVmalloc(vmalloc);
            return vmalloc;
        }
    }

    private void PublishVmalloc(VmallocAllocator vmalloc)
    {
        vmalloc.Physical = Physical;
        if (Options.Profile.KeepFreedAreas)
            _pages.FreeSpare = () => vmalloc.DropKept() + (_slabs.Runs?.Drop() ?? 0);
        vmalloc.Vmap.Trace = _pages.Trace as IVmapTrace;
        _slabs.DescribeForeign = vmalloc.Describe;
        Proc.Vmalloc = vmalloc;
        Volatile.Write(ref _vmalloc, vmalloc);
    }
}
