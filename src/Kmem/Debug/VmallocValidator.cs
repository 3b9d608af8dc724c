namespace Kmem;

/// <summary>Checks the areas of vmalloc against their pages. Reads only; nobody may be at work.</summary>
internal static class VmallocValidator
{
    public static unsafe IReadOnlyList<BrokenRule> Run(VmallocAllocator vmalloc, MemMap map)
    {
        var broken = new List<BrokenRule>(VmapValidator.Run(vmalloc.Vmap));
        long pages = 0;
        (int Areas, ulong Pages) kept = (0, 0);
        var owners = new HashSet<nint>();
        foreach (VmapNode node in vmalloc.Vmap.Nodes)
        {
            node.ForEachBusy(entry =>
            {
                var area = (VmapArea*)entry;
                if (area->Vm == null)
                    return;

                CheckArea(area, vmalloc.Tables, map, owners, broken);
                if ((area->Vm->Flags & VmFlags.MapPutPages) == 0)
                    pages += area->Vm->PageCount;
                if ((area->Vm->Flags & VmFlags.Kept) != 0)
                    kept = (kept.Areas + 1, kept.Pages + area->Vm->PageCount);
            });
        }

        if (pages != vmalloc.PageCount)
            broken.Add(new BrokenRule("VMALLOC-04", $"{pages} pages in areas, counted {vmalloc.PageCount}"));
        if (kept != vmalloc.Kept)
            broken.Add(
                new BrokenRule("VMALLOC-07", $"{kept} areas and pages are marked as kept, counted {vmalloc.Kept}"));
        broken.AddRange(VmallocKindsValidator.Run(vmalloc, map));
        broken.AddRange(PageTableValidator.Run(vmalloc.Tables, map));
        return broken;
    }

    private static unsafe void CheckArea(
        VmapArea* area, KernelPageTable tables, MemMap map, HashSet<nint> owners, List<BrokenRule> broken)
    {
        VmStruct* vm = area->Vm;
        string where = $"area 0x{area->Start:x}";
        if (vm->Address != area->Start || vm->Size != area->Size)
            broken.Add(new BrokenRule("VMALLOC-01", $"{where}: its vm_struct is about 0x{vm->Address:x} + {vm->Size}"));
        if ((vm->Flags & VmFlags.Uninitialized) != 0)
            broken.Add(new BrokenRule("VMALLOC-02", $"{where}: nobody builds it, and it is not complete"));
        if ((vm->Flags & (VmFlags.NoGuard | VmFlags.Percpu)) == 0 && tables.Translate(area->End - 1).IsValid)
            broken.Add(new BrokenRule("VMALLOC-06", $"{where}: its guard page is mapped"));
        for (uint i = 0; i < vm->PageCount; i++)
        {
            Page* page = vm->Pages[i];
            if (page->RefCount < 1 || page->Type != PageType.None || !owners.Add((nint)page))
                broken.Add(new BrokenRule("VMALLOC-03", $"{where}: frame 0x{map.PfnOf(page):x} is free or used twice"));
            if (tables.Translate(vm->Address + ((ulong)i << Pfn.PageShift)).Value != map.PfnOf(page))
                broken.Add(new BrokenRule("VMALLOC-05", $"{where}: page {i} is not mapped to its frame"));
        }
    }
}
