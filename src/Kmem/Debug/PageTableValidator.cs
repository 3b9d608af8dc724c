namespace Kmem;

/// <summary>
/// Checks page tables and what is mapped through them for each CPU. Reads only; nobody may be at work.
/// </summary>
internal static class PageTableValidator
{
    public static unsafe IReadOnlyList<BrokenRule> Run(KernelPageTable tables, MemMap map)
    {
        var broken = new List<BrokenRule>();
        var seen = new HashSet<ulong> { tables.RootPfn };
        foreach (PageTableRow row in tables.Rows())
        {
            if (PageTableEntry.IsLeaf(row.Entry, row.Level))
                continue;
            ulong pfn = PageTableEntry.PfnOf(row.Entry, row.Level);
            Page* page = pfn < map.EndPfn ? map.PageOf(pfn) : null;
            if (page == null || page->Type != PageType.Table || page->RefCount != 1 || !seen.Add(pfn))
            {
                broken.Add(new BrokenRule(
                    "PT-01", $"the {tables.NameOf(row.Level)} entry at 0x{row.Va:x} leads to frame 0x{pfn:x}: no table"));
            }
        }

        if (broken.Count == 0 && seen.Count != tables.TablePages)
            broken.Add(new BrokenRule("PT-02", $"{seen.Count} tables, counted {tables.TablePages}"));
        return broken;
    }

    public static unsafe IReadOnlyList<BrokenRule> Run(PercpuAllocator percpu, KernelPageTable tables, MemMap map)
    {
        var broken = new List<BrokenRule>();
        var owners = new HashSet<Pfn>();
        foreach ((ulong address, Pfn frame) in percpu.MappedPages())
        {
            Page* page = map.PageOf(frame.Value);
            bool owned = page->RefCount == 1 && page->Type == PageType.None && owners.Add(frame);
            if (!owned || tables.Translate(address) != frame)
                broken.Add(new BrokenRule("PERCPU-01", $"0x{address:x} should be frame {frame}, in use by it alone"));
        }

        return broken;
    }
}
