namespace Kmem;

/// <summary>
/// Checks what is particular to a kind of area: blocks of vm_map_ram, devices, changed rights. Reads only; nobody may
/// be at work.
/// </summary>
internal static class VmallocKindsValidator
{
    private const ulong RamKind = (ulong)(VmapAreaFlags.Ram | VmapAreaFlags.Block);

    public static IReadOnlyList<BrokenRule> Run(VmallocAllocator vmalloc, MemMap map)
    {
        var broken = new List<BrokenRule>();
        CheckBlocks(vmalloc, broken);
        CheckDevices(vmalloc, broken);
        CheckDirectMap(vmalloc, map, broken);
        return broken;
    }

    private static unsafe void CheckBlocks(VmallocAllocator vmalloc, List<BrokenRule> broken)
    {
        var starts = new HashSet<ulong>();
        foreach (VmapBlocks.Block block in vmalloc.Blocks.All)
        {
            VmapBlock* state = block.State;
            string where = $"block 0x{block.Start:x}";
            ulong used = (ulong)state->CountUsed();
            starts.Add(block.Start);
            if (used + state->Free + state->Dirty != VmapBlocks.Bits)
            {
                broken.Add(new BrokenRule(
                    "VMRAM-01", $"{where}: {used} used, {state->Free} free and {state->Dirty} dirty pages"));
            }

            VmapArea* area = vmalloc.Vmap.Find(block.Start);
            if (area == null || area != state->Area || area->Start != block.Start
                || area->Size != VmapBlocks.BlockBytes || (area->Flags & RamKind) != RamKind)
            {
                broken.Add(new BrokenRule("VMRAM-02", $"{where}: its area is not busy, or is another one"));
            }
        }

        foreach (VmapNode node in vmalloc.Vmap.Nodes)
        {
            node.ForEachBusy(entry =>
            {
                var area = (VmapArea*)entry;
                if ((area->Flags & (ulong)VmapAreaFlags.Block) != 0 && !starts.Contains(area->Start))
                    broken.Add(new BrokenRule("VMRAM-02", $"area 0x{area->Start:x}: no block knows it"));
            });
        }
    }

    private static unsafe void CheckDevices(VmallocAllocator vmalloc, List<BrokenRule> broken)
    {
        foreach (VmapNode node in vmalloc.Vmap.Nodes)
        {
            node.ForEachBusy(entry =>
            {
                VmStruct* vm = ((VmapArea*)entry)->Vm;
                if (vm == null || (vm->Flags & VmFlags.IoRemap) == 0)
                    return;

                ulong pfn = vm->PhysicalAddress >> Pfn.PageShift;
                ulong pages = (vm->Size - Pfn.PageSize) >> Pfn.PageShift;
                for (ulong i = 0; i < pages; i++)
                {
                    if (vmalloc.Tables.Translate(vm->Address + (i << Pfn.PageShift)).Value != pfn + i)
                    {
                        broken.Add(
                            new BrokenRule("IOREMAP-01", $"area 0x{vm->Address:x}: page {i} is of another device"));
                        break;
                    }
                }
            });
        }
    }

    private static unsafe void CheckDirectMap(VmallocAllocator vmalloc, MemMap map, List<BrokenRule> broken)
    {
        foreach (ulong pfn in vmalloc.DirectMap.Changed())
        {
            if (map.PageOf(pfn)->RefCount < 1)
                broken.Add(new BrokenRule("DIRECT-01", $"frame 0x{pfn:x} is free and lacks rights"));
            if (vmalloc.DirectAllowsWriting(pfn))
                broken.Add(new BrokenRule("DIRECT-02", $"frame 0x{pfn:x} is writable in the page tables only"));
        }
    }
}
