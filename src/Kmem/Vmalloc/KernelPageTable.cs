namespace Kmem;

/// <summary>How address spaces learn of new top-level entries of the kernel's tables.</summary>
public enum KernelTableSync
{
    /// <summary>
    /// Before 5.8: the first access through a stale root faults, and the fault handler copies the entry.
    /// </summary>
    OnFault,

    /// <summary>5.8: whoever creates a top-level entry copies it into every root at once.</summary>
    OnMap,

    /// <summary>
    /// 5.9 and later: the entries of the vmalloc range exist from boot on; others are copied at once (6.17).
    /// </summary>
    Preallocated,
}

/// <summary>
/// The kernel's own page tables (<c>init_mm.pgd</c>, swapper_pg_dir): the reference that the upper half of every
/// address space shares from the second level down.
/// <code>
///   init_mm root   [ 0 … 255 │ 256 … 272 │ 273 ……………… 511 ]
///                                             │  same entries, so same tables below
///   Mm root        [ user    │  private  │ 273 ……………… 511 ]
/// </code>
/// </summary>
/// <remarks>arch/x86/mm/init_64.c, arch/x86/mm/pgtable.c, arch/x86/mm/fault.c, Linux 5.7 to 6.18.</remarks>
internal sealed class KernelPageTable : PageTable
{
    /// <summary>
    /// pgd_index(PAGE_OFFSET), with four levels and with five: from here on roots have the same entries.
    /// </summary>
    public const int FirstSharedSlot = 273;

    private const int LastVmallocSlot = 465;

    private readonly Lock _pgdLock = new();     // the list of roots, and copying between them
    private readonly List<Mm> _spaces = [];
    private readonly int _firstVmallocSlot;
    private readonly long[] _directMapLeaves = new long[PageTableEntry.PudLevel + 1];
    private AddressMap? _addresses;
    private ulong _directMapLast;
    private long _vmallocFaults;
    private long _syncCalls;
    private long _syncedEntries;

    /// <summary>Creates the tables.</summary>
    /// <param name="pages">Where tables come from.</param>
    /// <param name="map">The machine's RAM.</param>
    /// <param name="levels">4 or 5.</param>
    /// <param name="sync">How address spaces are kept in step.</param>
    /// <exception cref="KernelBugException">There was no memory for the first tables; all is given back.</exception>
    public KernelPageTable(
        PageAllocator pages, MemMap map, int levels, KernelTableSync sync = KernelTableSync.Preallocated)
        : base(pages, map, levels, Gfp.Kernel)
    {
        Sync = sync;
        _firstVmallocSlot = levels == 5 ? 416 : 402;
        if (sync == KernelTableSync.Preallocated)
            Preallocate();
    }

    /// <summary>Takes over the tables of a restored machine: entries preallocated.</summary>
    public KernelPageTable(PageAllocator pages, MemMap map, int levels, ulong root, IReadOnlyList<ulong[]> tables)
        : base(pages, map, levels, root, tables)
    {
        Sync = KernelTableSync.Preallocated;
        _firstVmallocSlot = levels == 5 ? 416 : 402;
    }

    public KernelTableSync Sync { get; }

    /// <summary>Entries copied by the fault handler.</summary>
    public long VmallocFaults => Volatile.Read(ref _vmallocFaults);

    /// <summary>Calls of arch_sync_kernel_mappings.</summary>
    public long SyncCalls => Volatile.Read(ref _syncCalls);

    /// <summary>Entries copied into other roots by those calls.</summary>
    public long SyncedEntries => Volatile.Read(ref _syncedEntries);

    /// <summary>Number of address spaces on the list (pgd_list).</summary>
    public int AddressSpaces
    {
        get
        {
            lock (_pgdLock)
                return _spaces.Count;
        }
    }

    /// <summary>Leaves of a level, 1 to 3, in the direct map.</summary>
    public long DirectMapLeaves(int level) => Volatile.Read(ref _directMapLeaves[level]);

    /// <summary>
    /// Maps all memory at its place in the direct map, with leaves as large as frames and length allow
    /// (kernel_physical_mapping_init, arch/x86/mm/init_64.c). Once, at boot.
    /// </summary>
    /// <param name="addresses">Where the direct map begins.</param>
    /// <param name="isPresent">Whether a pageblock has memory.</param>
    /// <param name="endPfn">Where memory ends.</param>
    /// <returns>False if there was no memory for a table.</returns>
    public bool MapDirect(AddressMap addresses, Func<ulong, bool> isPresent, ulong endPfn)
    {
        Bug.On(_addresses != null, "the direct map is there already");
        _addresses = addresses;
        _directMapLast = addresses.DirectMap + (endPfn << Pfn.PageShift) - 1;
        for (ulong pfn = 0; pfn < endPfn;)
        {
            ulong start = pfn;
            while (pfn < endPfn && isPresent(pfn))
                pfn = Math.Min(endPfn, (pfn | (PageOrder.PageblockPages - 1)) + 1);
            if (pfn == start)
            {
                pfn = (pfn | (PageOrder.PageblockPages - 1)) + 1;
                continue;
            }

            ulong va = addresses.DirectMap + (start << Pfn.PageShift);
            const int MaxShift = 30;
            if (!Map(va, start, pfn - start, PageProt.Kernel, CacheMode.WriteBack, MaxShift, Gfp.Kernel))
                return false;
        }

        foreach (PageTableRow row in Rows())
        {
            if (IsInDirectMap(row.Va) && PageTableEntry.IsLeaf(row.Entry, row.Level))
                _directMapLeaves[row.Level]++;
        }

        return true;
    }

    /// <summary>
    /// Changes what may be done through the direct map's addresses of frames, and has all CPUs forget the old rights
    /// (set_memory_ro and the like, applied to the alias in the direct map).
    /// </summary>
    /// <param name="pfn">First frame.</param>
    /// <param name="pages">Number of frames.</param>
    /// <param name="prot">The new rights.</param>
    /// <returns>False if there was no memory to split a large leaf: nothing has changed.</returns>
    public bool ProtectDirect(ulong pfn, ulong pages, PageProt prot)
    {
        Bug.On(_addresses == null, "there is no direct map");
        ulong va = _addresses.DirectMap + (pfn << Pfn.PageShift);
        if (!Protect(va, pages, prot))
            return false;
        Tlb?.FlushRange(va, va + (pages << Pfn.PageShift));
        return true;
    }

    /// <summary>
    /// Takes frames out of the direct map: their entries stay and are not present, and nobody is told
    /// (set_direct_map_invalid_noflush).
    /// </summary>
    /// <returns>False if there was no memory to split a large leaf: nothing has changed.</returns>
    public bool InvalidateDirect(ulong pfn, ulong pages)
    {
        Bug.On(_addresses == null, "there is no direct map");
        ulong va = _addresses.DirectMap + (pfn << Pfn.PageShift);
        if (!SplitAt(va, Gfp.Kernel) || !SplitAt(va + (pages << Pfn.PageShift), Gfp.Kernel))
            return false;
        SetLeafFlags(va, pages, set: 0, clear: PageTableEntry.Present | PageTableEntry.Writable);
        return true;
    }

    /// <summary>Puts frames back (set_direct_map_default_noflush); nobody may write there yet.</summary>
    public void RestoreDirect(ulong pfn, ulong pages)
    {
        Bug.On(_addresses == null, "there is no direct map");
        SetLeafFlags(_addresses.DirectMap + (pfn << Pfn.PageShift), pages, set: PageTableEntry.Present, clear: 0);
    }

    /// <summary>
    /// Copies the kernel's top-level entries of a range into every address space that lacks them (sync_global_pgds).
    /// Before 5.8 those who must not fault called it themselves (vmalloc_sync_mappings).
    /// </summary>
    /// <param name="start">First address.</param>
    /// <param name="last">Last address.</param>
    public void SyncMappings(ulong start, ulong last)
    {
        Interlocked.Increment(ref _syncCalls);
        int end = PageTableEntry.IndexOf(Levels, last);
        for (int slot = PageTableEntry.IndexOf(Levels, start); slot <= end; slot++)
        {
            ulong entry = Read(RootPfn, slot);
            if (entry == 0 || slot < FirstSharedSlot)
                continue;
            lock (_pgdLock)
            {
                foreach (Mm space in _spaces)
                {
                    if (CopyTo(space, slot, entry))
                        Interlocked.Increment(ref _syncedEntries);
                }
            }
        }
    }

    /// <summary>Fills a new root's upper half and lists it (pgd_ctor).</summary>
    internal void Join(Mm space)
    {
        // Under the lock: an entry that appears meanwhile is copied here, or synchronised by who made it.
        lock (_pgdLock)
        {
            for (int slot = FirstSharedSlot; slot < EntriesPerTable; slot++)
                space.SetRootEntry(slot, Read(RootPfn, slot));
            _spaces.Add(space);
        }
    }

    internal void Leave(Mm space)
    {
        lock (_pgdLock)
            _spaces.Remove(space);
    }

    /// <summary>
    /// The fault handler's part for the vmalloc range (vmalloc_fault, Linux 5.7): an address space met an empty entry
    /// that the kernel has meanwhile filled.
    /// </summary>
    /// <returns>Whether the access should be tried again.</returns>
    internal bool HandleFault(Mm space, ulong va)
    {
        int slot = PageTableEntry.IndexOf(Levels, va);
        if (Sync != KernelTableSync.OnFault || va < KernelHalf || slot < _firstVmallocSlot || slot > LastVmallocSlot)
            return false;
        ulong entry = Read(RootPfn, slot);
        if (entry == 0)
            return false;
        lock (_pgdLock)
        {
            if (!CopyTo(space, slot, entry))
                return false;
        }

        Interlocked.Increment(ref _vmallocFaults);
        return true;
    }

    protected override void AfterMap(ulong va, ulong last, PageTableModification modified)
    {
        PageTableModification top = Levels == 5 ? PageTableModification.Pgd : PageTableModification.P4d;
        if ((modified & top) != 0 && Sync != KernelTableSync.OnFault)
            SyncMappings(va, last);
    }

    protected override void AfterSplit(ulong va, int level)
    {
        if (!IsInDirectMap(va))
            return;
        Interlocked.Decrement(ref _directMapLeaves[level]);
        Interlocked.Add(ref _directMapLeaves[level - 1], EntriesPerTable);
    }

    protected override void Close()
    {
        Bug.On(AddressSpaces != 0, "the kernel's tables go while address spaces share them");
        FreeTablesUnder(RootPfn, Levels, 0, EntriesPerTable - 1);
        FreeTable(RootPfn);
    }

    /// <summary>preallocate_vmalloc_pages: one table below each top-level entry of the vmalloc range.</summary>
    private void Preallocate()
    {
        PageTableModification ignored = PageTableModification.None;
        for (int slot = _firstVmallocSlot; slot <= LastVmallocSlot; slot++)
        {
            if (Descend(RootPfn, slot, Levels, Gfp.Kernel, ref ignored) != NoTable)
                continue;
            string what = Levels == 5 ? "p4d" : "pud";
            Dispose();
            Pages.ThrowBug($"Kernel panic: Failed to pre-allocate {what} pages for vmalloc area");
        }
    }

    private bool IsInDirectMap(ulong va) => _addresses != null && va >= _addresses.DirectMap && va <= _directMapLast;

    private bool CopyTo(Mm space, int slot, ulong entry)
    {
        ulong there = space.RootEntry(slot);
        if (there == entry)
            return false;
        if (there != 0)
            Pages.ThrowBug($"BUG: root 0x{space.RootPfn:x} has {there:x16} in slot {slot}, the kernel {entry:x16}");
        space.SetRootEntry(slot, entry);
        return true;
    }
}
