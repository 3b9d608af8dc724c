namespace Kmem;

/// <summary>
/// A tree of page tables in the machine's RAM, in the format of x86-64: what CR3 would point to.
/// <code>
///   va  63…48/57 (sign) │ 56…48 │ 47…39 │ 38…30 │ 29…21 │ 20…12 │ 11…0
///                          pgd     p4d     pud     pmd     pte    offset
///                           │       │       │       │       │
///        root ─▶ table 5 ───┘  ┌▶ 4 ┘  ┌▶ 3 ┘  ┌▶ 2 ┘  ┌▶ 1 ┘─▶ frame
///                    └─────────┘  └────┘  └─┬──┘  └─┬──┘
///                                     1 GiB leaf  2 MiB leaf
/// </code>
/// With four levels the table of level 4 is the root, is called pgd, and there is no p4d.
/// </summary>
/// <remarks>
/// <para>
/// Thread-safe for calls on different ranges: tables are hung in with a compare-and-swap; PTEs are written plainly,
/// because whoever maps a range owns its addresses. Frames that are not the machine's RAM (devices) may be mapped.
/// </para>
/// <para>mm/vmalloc.c and mm/memory.c, Linux 6.18: vmap_range_noflush, vunmap_range_noflush, vmalloc_to_page.</para>
/// </remarks>
internal abstract partial class PageTable : IDisposable
{
    protected const int EntriesPerTable = 512;

    /// <summary>The frame number of a table that could not be had.</summary>
    protected const ulong NoTable = ulong.MaxValue;

    private const int PteLevel = PageTableEntry.PteLevel;
    private readonly PageAllocator _pages;
    private readonly MemMap _map;
    private long _tablePages;
    private bool _disposed;

    protected PageTable(PageAllocator pages, MemMap map, int levels, Gfp rootGfp)
    {
        if (levels is not (4 or 5))
            throw new ArgumentOutOfRangeException(nameof(levels), levels, "x86-64 has 4 or 5 levels");
        _pages = pages;
        _map = map;
        Levels = levels;
        RootPfn = AllocTable(rootGfp);
        if (RootPfn == NoTable)
            _pages.ThrowBug("BUG: no memory for the root of an address space");
    }

    /// <summary>Takes over tables that are in the frames of a restored machine.</summary>
    protected PageTable(PageAllocator pages, MemMap map, int levels, ulong rootPfn, IReadOnlyList<ulong[]> tables)
    {
        _pages = pages;
        _map = map;
        Levels = levels;
        RootPfn = rootPfn;
        foreach (ulong[] table in tables)
        {
            for (int i = 1; i + 1 < table.Length; i += 2)
                Write(table[0], (int)table[i], table[i + 1]);
        }

        _tablePages = tables.Count;
    }

    public int Levels { get; }

    /// <summary>The frame of the root: CR3 shifted right by 12.</summary>
    public ulong RootPfn { get; }

    /// <summary>
    /// Tables that this tree owns, root included; those that it shares with another tree do not count.
    /// </summary>
    public long TablePages => Volatile.Read(ref _tablePages);

    /// <summary>
    /// What the last <see cref="Map"/>, <see cref="Unmap"/> or <see cref="Protect"/> changed. Means something only
    /// while one thread works.
    /// </summary>
    public PageTableModification LastModified { get; private set; }

    /// <summary>The processors that use these tables; null if nobody asks what they have cached.</summary>
    public TlbModel? Tlb { get; set; }

    protected PageAllocator Pages => _pages;

    /// <summary>The lowest address that is not user space: the upper half begins here.</summary>
    protected ulong KernelHalf => ~0UL << (Levels == 5 ? 56 : 47);

    /// <summary>
    /// Maps a physically contiguous run at addresses where nothing is mapped, with the largest leaves that addresses,
    /// length and <paramref name="maxShift"/> allow (vmap_range_noflush).
    /// </summary>
    /// <param name="va">First address, a multiple of 4096.</param>
    /// <param name="pfn">First frame.</param>
    /// <param name="pages">Number of frames.</param>
    /// <param name="prot">What may be done through the mapping.</param>
    /// <param name="mode">How it is cached.</param>
    /// <param name="maxShift">12 for 4 KiB pages only, 21 for 2 MiB leaves as well, 30 for 1 GiB leaves too.</param>
    /// <param name="gfp">How tables are allocated. The kernel takes GFP_KERNEL whatever the caller's mask was.</param>
    /// <returns>
    /// False if there was no memory for a table: part of the range may be mapped, the caller unmaps all of it.
    /// </returns>
    /// <exception cref="KernelBugException">
    /// The range is not canonical, or something is mapped in it: then nothing has changed.
    /// </exception>
    public bool Map(ulong va, ulong pfn, ulong pages, PageProt prot, CacheMode mode, int maxShift, Gfp gfp)
    {
        LastModified = PageTableModification.None;
        if (pages == 0)
            return true;

        ulong last = LastOf(va, pages);
        Bug.On(pfn + pages > 1UL << 40, "physical address beyond 52 bits");
        var request = new MapRequest(va, pfn, PageTableEntry.FlagsOf(prot, mode), maxShift, gfp);
        MapOutcome outcome = MapLevel(RootPfn, Levels, va, last, ref request);
        AfterMap(va, last, request.Modified);
        if (outcome == MapOutcome.Busy)
        {
            if (request.Conflict != va)
                Unmap(va, (request.Conflict - va) >> Pfn.PageShift);
            _pages.ThrowBug($"BUG: mapping over a mapping: {Walk(request.Conflict)} at 0x{request.Conflict:x}");
        }

        LastModified = request.Modified;
        return outcome == MapOutcome.Done;
    }

    /// <summary>
    /// Clears the leaves of a range, as far as there are any, and keeps the tables (vunmap_range_noflush). Processors
    /// may go on using what they have cached until they are flushed.
    /// </summary>
    /// <param name="va">First address, a multiple of 4096.</param>
    /// <param name="pages">Number of pages.</param>
    /// <exception cref="KernelBugException">
    /// The range is not canonical or cuts through a large leaf: nothing has changed.
    /// </exception>
    public void Unmap(ulong va, ulong pages)
    {
        LastModified = PageTableModification.None;
        if (pages == 0)
            return;

        ulong last = LastOf(va, pages);
        RefuseCut(va, last, "unmapping");
        PageTableModification modified = PageTableModification.None;
        ForEachLeaf(RootPfn, Levels, va, last, static (entry, _) => 0, ref modified);
        LastModified = modified;
    }

    /// <summary>
    /// Changes what may be done through the mappings of a range; frames and caching stay (set_memory_ro and the like).
    /// Pages that are not mapped stay so. Large leaves that the range cuts through are split first. Processors may go
    /// on using what they have cached until they are flushed.
    /// </summary>
    /// <param name="va">First address, a multiple of 4096.</param>
    /// <param name="pages">Number of pages.</param>
    /// <param name="prot">The new rights.</param>
    /// <returns>False if there was no memory to split a leaf: no right has changed.</returns>
    /// <exception cref="KernelBugException">The range is not canonical: nothing has changed.</exception>
    public bool Protect(ulong va, ulong pages, PageProt prot)
    {
        LastModified = PageTableModification.None;
        if (pages == 0)
            return true;

        ulong last = LastOf(va, pages);
        ulong flags = PageTableEntry.FlagsOf(prot, CacheMode.WriteBack);
        if (!SplitAt(va, Gfp.Kernel) || (last != ulong.MaxValue && !SplitAt(last + 1, Gfp.Kernel)))
            return false;
        PageTableModification modified = PageTableModification.None;
        ForEachLeaf(
            RootPfn,
            Levels,
            va,
            last,
            (entry, level) => PageTableEntry.Leaf(
                PageTableEntry.PfnOf(entry, level),
                flags | PageTableEntry.CacheBits(PageTableEntry.CacheModeOf(entry, level)),
                level),
            ref modified);
        LastModified = modified;
        return true;
    }

    /// <summary>Goes the way that a processor would go, and tells each step.</summary>
    public PageWalk Walk(ulong va)
    {
        var steps = new List<PageWalkStep>(Levels);
        ulong table = RootPfn;
        for (int level = Levels; ; level--)
        {
            int index = PageTableEntry.IndexOf(level, va);
            var step = new PageWalkStep(level, NameOf(level), table, index, Read(table, index));
            steps.Add(step);
            if (!IsCanonical(va) || !step.Present || step.Leaf || step.Bad)
                return new PageWalk(va, steps);
            table = PageTableEntry.PfnOf(step.Entry, level);
        }
    }

    /// <summary>As <see cref="Walk"/>, with the help of the page fault handler if it comes to that.</summary>
    public virtual PageWalk Access(ulong va) => Walk(va);

    /// <summary>The frame behind an address, or <see cref="Pfn.None"/>: <see cref="Walk"/> without a report.</summary>
    public Pfn Translate(ulong va)
    {
        ulong table = RootPfn;
        for (int level = IsCanonical(va) ? Levels : 0; level >= PteLevel; level--)
        {
            ulong entry = Read(table, PageTableEntry.IndexOf(level, va));
            if (PageTableEntry.IsLeaf(entry, level))
            {
                ulong offset = va & ((1UL << PageTableEntry.ShiftOf(level)) - 1);
                return new Pfn(PageTableEntry.PfnOf(entry, level) + (offset >> Pfn.PageShift));
            }

            if ((entry & PageTableEntry.Present) == 0 || PageTableEntry.IsBad(entry, level))
                return Pfn.None;
            table = PageTableEntry.PfnOf(entry, level);
        }

        return Pfn.None;
    }

    /// <summary>
    /// What a processor notes in the entries on the way: A in all of them, D in the leaf after a write.
    /// </summary>
    public unsafe void MarkUsed(PageWalk walk, bool write)
    {
        foreach (PageWalkStep step in walk.Steps)
        {
            ulong bits = PageTableEntry.Accessed | (write && step.Leaf ? PageTableEntry.Dirty : 0);
            if ((step.Entry & bits) != bits)
                Interlocked.Or(ref *EntryAt(step.TablePfn, step.Index), bits);
        }
    }

    /// <summary>The name of a level's entries; the root is always "pgd".</summary>
    public string NameOf(int level) => level == Levels ? "pgd" : level switch
    {
        1 => "pte",
        2 => "pmd",
        3 => "pud",
        _ => "p4d",
    };

    /// <summary>Gives all tables back. What they map stays its owner's.</summary>
    public void Dispose()
    {
        if (_disposed)
            return;
        _disposed = true;
        Close();
    }

    /// <summary>Frees the tables that this tree owns.</summary>
    protected abstract void Close();

    /// <summary>Whether mappings in the half of this address are this tree's own business.</summary>
    protected virtual bool Owns(ulong va) => true;

    /// <summary>A range was mapped, if only in part.</summary>
    protected virtual void AfterMap(ulong va, ulong last, PageTableModification modified)
    {
    }

    /// <summary>The large leaf of a level over an address became a table.</summary>
    protected virtual void AfterSplit(ulong va, int level)
    {
    }

    protected unsafe ulong Read(ulong table, int index) => Volatile.Read(ref *EntryAt(table, index));

    protected unsafe void Write(ulong table, int index, ulong entry) =>
        Volatile.Write(ref *EntryAt(table, index), entry);

    /// <summary>The table under an entry, hung in now if there was none.</summary>
    /// <returns>Its frame; <see cref="NoTable"/> if there was no memory for it or the entry is a leaf.</returns>
    protected unsafe ulong Descend(ulong table, int index, int level, Gfp gfp, ref PageTableModification modified)
    {
        ulong* at = EntryAt(table, index);
        ulong entry = Volatile.Read(ref *at);
        if (entry == 0)
        {
            ulong fresh = AllocTable(gfp);
            if (fresh == NoTable)
                return NoTable;
            ulong mine = (fresh << Pfn.PageShift) | PageTableEntry.Table;
            SimPoint.Here();
            entry = Interlocked.CompareExchange(ref *at, mine, 0);
            if (entry == 0)
            {
                modified |= ModificationOf(level);
                return fresh;
            }

            FreeTable(fresh);   // somebody was faster
        }

        if (PageTableEntry.IsBad(entry, level))
            _pages.ThrowBug($"BUG: bad {NameOf(level)} entry {entry:x16}");
        return PageTableEntry.IsLeaf(entry, level) ? NoTable : PageTableEntry.PfnOf(entry, level);
    }

    /// <summary>Frees the tables under the entries first … last of a table, and clears the entries.</summary>
    protected void FreeTablesUnder(ulong table, int level, int first, int last)
    {
        for (int index = first; index <= last; index++)
        {
            ulong entry = Read(table, index);
            if (entry == 0)
                continue;
            Write(table, index, 0);
            if (PageTableEntry.IsLeaf(entry, level) || PageTableEntry.IsBad(entry, level))
                continue;
            ulong below = PageTableEntry.PfnOf(entry, level);
            if (level - 1 > PteLevel)
                FreeTablesUnder(below, level - 1, 0, EntriesPerTable - 1);
            FreeTable(below);
        }
    }

    protected unsafe void FreeTable(ulong pfn)
    {
        Page* page = _map.PageOf(pfn);
        Bug.On(page->Type != PageType.Table);
        page->Type = PageType.None;
        Count(pfn, -1);
        _pages.Free(pfn, 0);
    }

    private static PageTableModification ModificationOf(int level) => (PageTableModification)(1 << (5 - level));

    /// <summary>Last address that an entry of a level covers, as far as the range goes.</summary>
    private static ulong EntryEnd(ulong va, ulong last, int level) =>
        Math.Min(last, va | ((1UL << PageTableEntry.ShiftOf(level)) - 1));

    private unsafe ulong* EntryAt(ulong table, int index)
    {
        Bug.OnVm(table >= _map.EndPfn, "a table is not in RAM");

        // SAFETY: tables are whole frames of the machine's RAM, and index is 0 … 511.
        return (ulong*)(_map.RamBase + (table << Pfn.PageShift)) + index;
    }

    private unsafe ulong AllocTable(Gfp gfp)
    {
        Page* page = _pages.Alloc((gfp & ~Gfp.HighMem) | Gfp.Zero, 0, -1);
        if (page == null)
            return NoTable;
        page->Type = PageType.Table;
        ulong pfn = _map.PfnOf(page);
        Count(pfn, 1);
        return pfn;
    }

    /// <summary>Here, and for the node's NR_PAGETABLE.</summary>
    private void Count(ulong pfn, int tables)
    {
        Interlocked.Add(ref _tablePages, tables);
        _pages.Nodes[_pages.ZoneOf(pfn).Zone.NodeId].AddPageTablePages(tables);
    }

    private bool IsCanonical(ulong va) => va >= KernelHalf || va < ~KernelHalf + 1;

    /// <summary>The last byte of a range; refuses ranges that wrap, leave their half or are not aligned.</summary>
    private ulong LastOf(ulong va, ulong pages)
    {
        ulong last = va + ((pages << Pfn.PageShift) - 1);
        bool good = (va & (Pfn.PageSize - 1)) == 0 && pages <= 1UL << (64 - Pfn.PageShift - 1) && last > va
            && IsCanonical(va) && IsCanonical(last) && (va >= KernelHalf) == (last >= KernelHalf) && Owns(va);
        if (!good)
            _pages.ThrowBug($"BUG: no range for page tables: {pages} pages at 0x{va:x}");
        return last;
    }

    private MapOutcome MapLevel(ulong table, int level, ulong va, ulong last, ref MapRequest request)
    {
        if (level == PteLevel)
            return MapPtes(table, va, last, ref request);

        for (; ; )
        {
            ulong end = EntryEnd(va, last, level);
            int index = PageTableEntry.IndexOf(level, va);
            MapOutcome outcome = TryLeaf(table, index, level, va, end, ref request);
            if (outcome == MapOutcome.Descend)
            {
                ulong below = Descend(table, index, level, request.Gfp, ref request.Modified);
                if (below != NoTable)
                    outcome = MapLevel(below, level - 1, va, end, ref request);
                else if (Read(table, index) == 0)
                    outcome = MapOutcome.NoMemory;
                else
                    outcome = request.Refuse(va);
            }

            if (outcome != MapOutcome.Done || end == last)
                return outcome;
            va = end + 1;
        }
    }

    private MapOutcome MapPtes(ulong table, ulong va, ulong last, ref MapRequest request)
    {
        request.Modified |= PageTableModification.Pte;
        int end = PageTableEntry.IndexOf(PteLevel, last);
        for (int index = PageTableEntry.IndexOf(PteLevel, va); index <= end; index++, va += Pfn.PageSize)
        {
            if (Read(table, index) != 0)
                return request.Refuse(va);
            Write(table, index, PageTableEntry.Leaf(request.PfnAt(va), request.Flags, PteLevel));
        }

        return MapOutcome.Done;
    }

    /// <summary>
    /// One large leaf instead of a table, if it fits. A table left over from earlier mappings gives way if nothing is
    /// mapped there (pud_free_pmd_page, pmd_free_pte_page).
    /// </summary>
    private MapOutcome TryLeaf(ulong table, int index, int level, ulong va, ulong end, ref MapRequest request)
    {
        int shift = PageTableEntry.ShiftOf(level);
        ulong span = 1UL << shift;
        ulong pfn = request.PfnAt(va);
        if (level > PageTableEntry.PudLevel || shift > request.MaxShift || end - va != span - 1
            || ((pfn << Pfn.PageShift) & (span - 1)) != 0)
            return MapOutcome.Descend;

        ulong old = Read(table, index);
        if (old != 0)
        {
            if (PageTableEntry.IsLeaf(old, level) || PageTableEntry.IsBad(old, level))
                return request.Refuse(va);
            ulong below = PageTableEntry.PfnOf(old, level);
            if (IsAnythingMapped(below, level - 1))
                return request.Refuse(va);

            Write(table, index, 0);
            Tlb?.FlushRange(va, va + Pfn.PageSize);     // also forgets the way through the old table
            if (level - 1 > PteLevel)
                FreeTablesUnder(below, level - 1, 0, EntriesPerTable - 1);
            FreeTable(below);
        }

        Write(table, index, PageTableEntry.Leaf(pfn, request.Flags, level));
        request.Modified |= ModificationOf(level);
        return MapOutcome.Done;
    }

    private bool IsAnythingMapped(ulong table, int level)
    {
        for (int index = 0; index < EntriesPerTable; index++)
        {
            ulong entry = Read(table, index);
            if (entry != 0 && (level == PteLevel || PageTableEntry.IsLeaf(entry, level)
                || IsAnythingMapped(PageTableEntry.PfnOf(entry, level), level - 1)))
                return true;
        }

        return false;
    }

    /// <summary>Replaces every leaf of a range by what <paramref name="change"/> makes of it; 0 clears it.</summary>
    private void ForEachLeaf(
        ulong table,
        int level,
        ulong va,
        ulong last,
        Func<ulong, int, ulong> change,
        ref PageTableModification modified)
    {
        for (; ; )
        {
            ulong end = EntryEnd(va, last, level);
            int index = PageTableEntry.IndexOf(level, va);
            ulong entry = Read(table, index);
            if (PageTableEntry.IsLeaf(entry, level))
            {
                Write(table, index, change(entry, level));
                modified |= ModificationOf(level);
            }
            else if (PageTableEntry.IsBad(entry, level))
            {
                _pages.ThrowBug($"BUG: bad {NameOf(level)} entry {entry:x16} at 0x{va:x}");
            }
            else if (entry != 0)
            {
                ForEachLeaf(PageTableEntry.PfnOf(entry, level), level - 1, va, end, change, ref modified);
            }

            if (end == last)
                return;
            va = end + 1;
        }
    }

    /// <summary>Only the ends of a range can lie inside a large leaf.</summary>
    private void RefuseCut(ulong va, ulong last, string what)
    {
        PageWalk first = Walk(va);
        PageWalk final = Walk(last);
        bool cut = (first.IsMapped && ((va & (first.LeafBytes - 1)) != 0 || last - va < first.LeafBytes - 1))
            || (final.IsMapped && (last & (final.LeafBytes - 1)) != final.LeafBytes - 1);
        if (cut)
            _pages.ThrowBug($"BUG: {what} a part of a large leaf: 0x{va:x}-0x{last:x}, {first}");
    }

    private enum MapOutcome
    {
        Done,
        Descend,
        NoMemory,
        Busy,
    }

    private struct MapRequest(ulong va, ulong pfn, ulong flags, int maxShift, Gfp gfp)
    {
        public readonly ulong Flags = flags;
        public readonly int MaxShift = maxShift;
        public readonly Gfp Gfp = gfp;
        public PageTableModification Modified;

        /// <summary>Up to here the range was mapped when something was in the way.</summary>
        public ulong Conflict;

        public readonly ulong PfnAt(ulong at) => pfn + ((at - va) >> Pfn.PageShift);

        public MapOutcome Refuse(ulong at)
        {
            Conflict = at;
            return MapOutcome.Busy;
        }
    }
}
