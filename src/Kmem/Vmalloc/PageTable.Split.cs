namespace Kmem;

/// <content>Large leaves made small, so that a part of what they map can have other rights.</content>
internal abstract partial class PageTable
{
    /// <summary>
    /// Makes an address the beginning of a leaf, if it is mapped: a large leaf that contains it gives way to a table of
    /// 512 smaller ones with the same frames, rights and caching. What is mapped where does not change at any moment
    /// (split_large_page, arch/x86/mm/pat/set_memory.c, Linux 6.18).
    /// </summary>
    /// <param name="va">The address, a multiple of 4096.</param>
    /// <param name="gfp">How tables are allocated.</param>
    /// <returns>False if there was no memory for a table: what was split before stays so.</returns>
    public bool SplitAt(ulong va, Gfp gfp)
    {
        while (FindLeaf(va, out Leaf leaf) && (va & (leaf.Bytes - 1)) != 0)
        {
            if (!Split(leaf, gfp))
                return false;
        }

        return true;
    }

    private unsafe bool Split(in Leaf leaf, Gfp gfp)
    {
        ulong fresh = AllocTable(gfp);
        if (fresh == NoTable)
            return false;

        ulong* at = EntryAt(leaf.Table, leaf.Index);
        ulong old;
        do
        {
            SimPoint.Here();
            old = Volatile.Read(ref *at);
            if (!PageTableEntry.IsLeaf(old, leaf.Level))
            {
                FreeTable(fresh);   // somebody was faster
                return true;
            }

            ulong flags = PageTableEntry.SmallFlagsOf(old, leaf.Level);
            ulong pfn = PageTableEntry.PfnOf(old, leaf.Level);
            int step = PageTableEntry.ShiftOf(leaf.Level - 1) - Pfn.PageShift;
            for (int i = 0; i < EntriesPerTable; i++)
                Write(fresh, i, PageTableEntry.Leaf(pfn + ((ulong)i << step), flags, leaf.Level - 1));
        }
        while (Interlocked.CompareExchange(ref *at, (fresh << Pfn.PageShift) | PageTableEntry.Table, old) != old);

        // One address must not be cached by two leaves of different size.
        Tlb?.FlushAll();
        AfterSplit(leaf.Va, leaf.Level);
        return true;
    }

    private bool FindLeaf(ulong va, out Leaf leaf)
    {
        ulong table = RootPfn;
        for (int level = Levels; level >= PteLevel; level--)
        {
            int index = PageTableEntry.IndexOf(level, va);
            ulong entry = Read(table, index);
            if (PageTableEntry.IsLeaf(entry, level))
            {
                leaf = new Leaf(table, index, level, va);
                return true;
            }

            if ((entry & PageTableEntry.Present) == 0 || PageTableEntry.IsBad(entry, level))
                break;
            table = PageTableEntry.PfnOf(entry, level);
        }

        leaf = default;
        return false;
    }

    /// <summary>
    /// Sets and clears flags of a range's leaves, present or not. The range cuts through none of them, and all exist.
    /// </summary>
    protected void SetLeafFlags(ulong va, ulong pages, ulong set, ulong clear)
    {
        ulong last = va + ((pages << Pfn.PageShift) - 1);
        while (true)
        {
            ulong table = RootPfn;
            int level = Levels;
            ulong entry = Read(table, PageTableEntry.IndexOf(level, va));
            while (level > PteLevel && (level > PageTableEntry.PudLevel || (entry & PageTableEntry.PageSize) == 0))
            {
                Bug.On(entry == 0, "a leaf is not there");
                table = PageTableEntry.PfnOf(entry, level);
                level--;
                entry = Read(table, PageTableEntry.IndexOf(level, va));
            }

            Write(table, PageTableEntry.IndexOf(level, va), (entry | set) & ~clear);
            ulong end = va | ((1UL << PageTableEntry.ShiftOf(level)) - 1);
            if (end >= last)
                return;
            va = end + 1;
        }
    }

    /// <summary>Where a leaf is, and an address that it maps.</summary>
    private readonly record struct Leaf(ulong Table, int Index, int Level, ulong Va)
    {
        public ulong Bytes => 1UL << PageTableEntry.ShiftOf(Level);
    }
}
