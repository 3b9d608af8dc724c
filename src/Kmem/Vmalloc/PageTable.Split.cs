namespace Kmem;

/// <content>Large leaves made small, so that a part of what they map can have other rights.</content>
internal abstract partial class PageTable
{
    /// <summary>
    /// Makes an address the beginning of a leaf: a large leaf that contains it gives way to a table of smaller ones
    /// that say the same (split_large_page, arch/x86/mm/pat/set_memory.c, Linux 6.18). Nothing changes for whoever
    /// uses the mapping.
    /// </summary>
    /// <returns>False if there was no memory for a table: what was split before stays so.</returns>
    public unsafe bool SplitAt(ulong va, Gfp gfp)
    {
        ulong table = RootPfn;
        for (int level = Levels; level > PteLevel; level--)
        {
            int index = PageTableEntry.IndexOf(level, va);
            ulong entry = Read(table, index);
            if ((entry & PageTableEntry.Present) == 0)
                return true;

            ulong span = 1UL << PageTableEntry.ShiftOf(level);
            if (PageTableEntry.IsLeaf(entry, level))
            {
                if ((va & (span - 1)) == 0)
                    return true;

                ulong fresh = AllocTable(gfp);
                if (fresh == NoTable)
                    return false;

                FillFromLeaf(fresh, entry, level);
                ulong pointer = (fresh << Pfn.PageShift) | PageTableEntry.Table;
                if (Interlocked.CompareExchange(ref *EntryAt(table, index), pointer, entry) != entry)
                {
                    FreeTable(fresh);   // somebody was faster: look again
                    level++;
                    continue;
                }

                Tlb?.FlushRange(va & ~(span - 1), (va & ~(span - 1)) + span);
                entry = pointer;
            }

            table = PageTableEntry.PfnOf(entry, level);
        }

        return true;
    }

    private void FillFromLeaf(ulong table, ulong leaf, int level)
    {
        ulong pfn = PageTableEntry.PfnOf(leaf, level);
        ulong step = 1UL << (PageTableEntry.ShiftOf(level - 1) - Pfn.PageShift);
        ulong flags = PageTableEntry.FlagsOf(
            PageTableEntry.ProtOf(leaf), PageTableEntry.CacheModeOf(leaf, level));
        for (int index = 0; index < EntriesPerTable; index++)
            Write(table, index, PageTableEntry.Leaf(pfn + ((ulong)index * step), flags, level - 1));
    }
}
