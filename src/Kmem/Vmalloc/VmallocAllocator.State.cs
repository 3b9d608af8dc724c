namespace Kmem;

/// <content>The areas as plain data: what their vm_structs and page arrays say, which lie in the machine's
/// RAM.</content>
internal sealed partial class VmallocAllocator
{
    /// <summary>The state of the addresses, each area with what lies behind it. Nobody may be at work.</summary>
    public VmapState Capture()
    {
        FreeDeferred();
        VmapState state = Vmap.Capture();
        foreach (VmapNodeState node in state.Nodes)
        {
            for (int i = 0; i < node.Busy.Count; i++)
                node.Busy[i] = node.Busy[i] with { Struct = StructOf(node.Busy[i].Vm), Vm = 0 };
            for (int i = 0; i < node.Lazy.Count; i++)
                node.Lazy[i] = node.Lazy[i] with { Vm = 0 };
            foreach (List<VmapAreaState> pool in node.Pools.Values)
            {
                for (int i = 0; i < pool.Count; i++)
                    pool[i] = pool[i] with { Vm = 0 };
            }
        }

        return state;
    }

    private unsafe VmStructState? StructOf(nint address)
    {
        var vm = (VmStruct*)address;
        if (vm == null)
            return null;

        ulong array = vm->Pages == null ? 0
            : Contains(vm->Pages) ? AddressOf(vm->Pages)
            : _slabs.KernelAddress(vm->Pages);
        var pages = new ulong[array == 0 ? 0 : MappedSize(vm) >> Pfn.PageShift];
        for (int i = 0; i < pages.Length; i++)
            pages[i] = _slabs.Map.PfnOf(vm->Pages[i]);
        return new VmStructState(vm->Address, vm->Size, (ulong)vm->Flags, vm->PageCount)
        {
            Object = _slabs.KernelAddress(vm),
            PageArray = array,
            PageOrder = vm->PageOrder,
            PhysicalAddress = vm->PhysicalAddress,
            Caller = (ulong)vm->Caller,
            RequestedSize = vm->RequestedSize,
            Pages = pages,
        };
    }

    /// <summary>Writes vm_structs and page arrays, and shows in the window what the tables map.</summary>
    private unsafe void RestoreAreas(VmapState state)
    {
        // Every window first: the array of a large area lies in another area.
        List<VmapAreaState> areas = state.Nodes
            .SelectMany(node => node.Busy).Where(area => area.Struct != null).ToList();
        foreach (VmapAreaState area in areas)
            ShowRestored(area.Struct!);
        foreach (VmapAreaState area in areas)
        {
            VmStructState its = area.Struct!;
            var vm = (VmStruct*)_slabs.PointerOf(its.Object);
            Page** array = its.PageArray == 0 ? null
                : _window.Holds(its.PageArray) ? (Page**)PointerOf(its.PageArray)
                : (Page**)_slabs.PointerOf(its.PageArray);
            *vm = new VmStruct
            {
                Address = its.Address,
                Size = its.Size,
                Flags = (VmFlags)its.Flags,
                PageOrder = its.PageOrder,
                PageCount = its.PageCount,
                PhysicalAddress = its.PhysicalAddress,
                Caller = (VmCaller)its.Caller,
                RequestedSize = its.RequestedSize,
                Pages = array,
            };
            for (int i = 0; i < its.Pages.Length; i++)
                array[i] = _slabs.Map.PageOf(its.Pages[i]);
            Vmap.Find(area.Start)->Vm = vm;
            if ((vm->Flags & VmFlags.MapPutPages) == 0)
                _pageCount += its.PageCount;
        }
    }

    private void ShowRestored(VmStructState its)
    {
        ulong end = its.Address + its.Size;
        for (ulong va = its.Address; va < end;)
        {
            Pfn first = Tables.Translate(va);
            if (!first.IsValid)
            {
                va += PageSize;
                continue;
            }

            bool writable = Tables.IsWritable(va);
            uint run = 1;
            while (va + (run * PageSize) < end
                && Tables.Translate(va + (run * PageSize)).Value == first.Value + run
                && Tables.IsWritable(va + (run * PageSize)) == writable)
            {
                run++;
            }

            PageProt prot = writable ? PageProt.Kernel : PageProt.Kernel & ~PageProt.Write;
            if (!ShowRun(va, first.Value, run, prot))
                throw new OutOfMemoryException("the host has no mappings left for the areas of a restored machine");
            va += run * PageSize;
        }
    }
}
