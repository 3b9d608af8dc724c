namespace Kmem;

/// <summary>A range of a process's addresses that shows memory of the kernel (<c>struct vm_area_struct</c>).</summary>
/// <param name="Start">First address.</param>
/// <param name="Bytes">Its length.</param>
/// <param name="Kernel">The kernel's address of its first byte.</param>
public readonly record struct UserMapping(VirtAddr Start, ulong Bytes, VirtAddr Kernel);

/// <summary>
/// The address space of a process: a page table root of its own, in whose upper half the kernel's entries are, and in
/// whose lower half memory of the kernel can be shown.
/// <code>
///   user addresses    [ 0x7f0000000000: page 0 | page 1 ]          root ─▶ own tables ─┐
///                                                                                      ├─▶ the same frames
///   kernel addresses  [ 0xffffc90000000000: page 0 | page 1 ]      root ─▶ shared ─────┘
/// </code>
/// </summary>
/// <remarks>
/// <c>struct mm_struct</c> and remap_vmalloc_range, mm/vmalloc.c, Linux 6.18. Thread-safe. To be disposed before its
/// machine, or with it.
/// </remarks>
public sealed class AddressSpace : IDisposable
{
    private readonly VmallocAllocator _vmalloc;
    private readonly Mm _mm;
    private readonly Action<AddressSpace> _onClose;
    private readonly Lock _lock = new();
    private readonly SortedList<ulong, UserMapping> _mappings = [];
    private bool _closed;

    internal AddressSpace(VmallocAllocator vmalloc, Mm mm, Action<AddressSpace> onClose)
    {
        _vmalloc = vmalloc;
        _mm = mm;
        _onClose = onClose;
    }

    /// <summary>The physical address of the root: what a processor's CR3 would hold.</summary>
    public PhysAddr Root => new Pfn(_mm.RootPfn).Address;

    /// <summary>Frames of its own tables; those of the kernel's half are shared and not counted.</summary>
    public long PageTablePages => _mm.TablePages;

    /// <summary>What it shows, in order of address.</summary>
    public IReadOnlyList<UserMapping> Mappings
    {
        get
        {
            SimPoint.Gate(_lock);
            lock (_lock)
                return [.. _mappings.Values];
        }
    }

    /// <summary>
    /// Shows an area of the kernel, or a part of it, at addresses of the process (remap_vmalloc_range). The pages get
    /// one more reference each: the area may be freed while they are shown. The mapping cannot grow and is in no core
    /// dump (VM_DONTEXPAND, VM_DONTDUMP).
    /// </summary>
    /// <param name="start">Where, a multiple of 4096 in the lower half.</param>
    /// <param name="bytes">How much, whole pages.</param>
    /// <param name="area">
    /// The start of an area made for this: by <see cref="Machine.VmallocUser"/>, or scattered memory of a device.
    /// </param>
    /// <param name="firstPage">The first page of the area to be shown (pgoff).</param>
    /// <returns>
    /// <see cref="VmapError.Invalid"/> if something is not aligned, not all of it is in the area, or the area is of
    /// another kind; <see cref="VmapError.Busy"/> if addresses are in use; <see cref="VmapError.NoMemory"/>. Then
    /// nothing is shown.
    /// </returns>
    /// <exception cref="ObjectDisposedException">The process has ended.</exception>
    public unsafe VmapError RemapVmallocRange(VirtAddr start, nuint bytes, void* area, ulong firstPage = 0)
    {
        SimPoint.Gate(_lock);
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_closed, this);
            ulong last = start.Value + (bytes - 1);
            bool inUserHalf = bytes != 0 && last >= start.Value && last < UserEnd;
            if (!inUserHalf || firstPage > ulong.MaxValue >> Pfn.PageShift)
                return VmapError.Invalid;
            if (_mappings.Values.Any(it => it.Start.Value <= last && start.Value < it.Start.Value + it.Bytes))
                return VmapError.Busy;

            ulong offset = firstPage << Pfn.PageShift;
            VmapError error = _vmalloc.RemapToUser(_mm, start.Value, bytes, area, offset);
            if (error == VmapError.None)
            {
                var kernel = new VirtAddr(_vmalloc.AddressOf(area) + offset);
                _mappings.Add(start.Value, new UserMapping(start, bytes, kernel));
            }

            return error;
        }
    }

    /// <summary>Ends a mapping (munmap). The last reference to a page frees it.</summary>
    /// <param name="start">Where it starts.</param>
    /// <returns>False if none starts there.</returns>
    public bool Unmap(VirtAddr start)
    {
        SimPoint.Gate(_lock);
        lock (_lock)
        {
            if (!_mappings.Remove(start.Value, out UserMapping mapping))
                return false;
            _vmalloc.UnmapFromUser(_mm, start.Value, mapping.Bytes);
            return true;
        }
    }

    /// <summary>
    /// Goes through this process's page tables as a processor would: its own addresses, and the kernel's.
    /// </summary>
    /// <param name="address">Any address.</param>
    /// <returns>Each entry on the way.</returns>
    /// <exception cref="ObjectDisposedException">The process has ended.</exception>
    public PageWalk Walk(VirtAddr address)
    {
        SimPoint.Gate(_lock);
        lock (_lock)
        {
            ObjectDisposedException.ThrowIf(_closed, this);
            return _mm.Access(address.Value);
        }
    }

    /// <summary>Ends the process: its mappings, and its own page tables.</summary>
    public void Dispose()
    {
        SimPoint.Gate(_lock);
        lock (_lock)
        {
            if (_closed)
                return;
            _closed = true;
            foreach (UserMapping mapping in _mappings.Values)
                _vmalloc.UnmapFromUser(_mm, mapping.Start.Value, mapping.Bytes);
            _mappings.Clear();
            _mm.Dispose();
        }

        _onClose(this);
    }

    /// <summary>
    /// One past the last address of the lower half, less the page that the kernel keeps free (TASK_SIZE).
    /// </summary>
    private ulong UserEnd => (1UL << (_mm.Levels == 5 ? 56 : 47)) - Pfn.PageSize;
}
