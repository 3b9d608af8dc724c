namespace Kmem;

/// <content>Bringing a cache into a given state.</content>
public sealed partial class KmemCache
{
    /// <summary>Makes frames a slab of this cache with a given free list; all other objects are live.</summary>
    internal unsafe void RestoreSlab(
        ulong pfn, int order, int inUse, int objects, bool frozen, ReadOnlySpan<int> freelist)
    {
        Page* slab = _slabs.Map.PageOf(pfn);
        _slabs.Pages.RestoreAllocated(slab, order, compound: true);
        slab->SlabCache = SlabAllocator.TagOf(Id);
        slab->Type = PageType.Slab;
        for (int i = 0; i < objects; i++)
            MarkLive(ObjectAt(slab, i));
        LinkFree(slab, freelist);
        int first = freelist.Length > 0 ? freelist[0] : SlabState.NoFreeObject;
        slab->SlabState = new SlabState(first, inUse, objects, frozen).Word;
        _nodes[NodeOf(slab)].CountSlab(1, objects);
        _slabs.AccountPages(slab, 1L << order, Flags);
    }

    /// <summary>Sets what a CPU holds: its current slab with the CPU's own free list, and its chain, first slab first.</summary>
    internal unsafe void RestoreCpu(int cpu, ulong? slabPfn, ReadOnlySpan<int> freelist, IReadOnlyList<ulong> partial)
    {
        KmemCacheCpu* c = _cpu + cpu;
        if (slabPfn is { } pfn)
        {
            c->Slab = _slabs.Map.PageOf(pfn);
            LinkFree(c->Slab, freelist);
            c->Freelist = freelist.Length > 0 ? ObjectAt(c->Slab, freelist[0]) : null;
        }

        for (int i = partial.Count - 1; i >= 0; i--)
            PushCpuPartial(c, _slabs.Map.PageOf(partial[i]));
    }

    /// <summary>Sets a node's partial list, first slab first.</summary>
    internal unsafe void RestoreNode(int node, IReadOnlyList<ulong> partial)
    {
        foreach (ulong pfn in partial)
            _nodes[node].AddLocked(_slabs.Map.PageOf(pfn), tail: true);
    }

    /// <summary>Writes a sheaf into the kmalloc block that it is; its objects are free.</summary>
    internal unsafe nint RestoreSheaf(ulong kernelAddress, ReadOnlySpan<ulong> objects)
    {
        var sheaf = (Sheaf*)_slabs.PointerOf(kernelAddress);
        *sheaf = default;
        sheaf->Capacity = Math.Max(_sheafCapacity, objects.Length);
        foreach (ulong address in objects)
        {
            void* obj = _slabs.PointerOf(address);
            TryMarkFree(obj);
            Sheaf.Push(sheaf, obj);
        }

        return (nint)sheaf;
    }

    internal unsafe void RestoreSheavesOf(int cpu, nint main, nint spare, nint rcuFree)
    {
        (_cpu + cpu)->Main = (Sheaf*)main;
        (_cpu + cpu)->Spare = (Sheaf*)spare;
        (_cpu + cpu)->RcuFree = (Sheaf*)rcuFree;
    }

    internal unsafe void RestoreInBarn(nint sheaf, bool full)
    {
        if (full)
            _nodes[0].Barn!.PutFull((Sheaf*)sheaf);
        else
            _nodes[0].Barn!.PutEmpty((Sheaf*)sheaf);
    }

    private unsafe void LinkFree(Page* slab, ReadOnlySpan<int> freelist)
    {
        for (int i = 0; i < freelist.Length; i++)
        {
            void* obj = ObjectAt(slab, freelist[i]);
            TryMarkFree(obj);
            SetFreePointer(obj, i + 1 < freelist.Length ? ObjectAt(slab, freelist[i + 1]) : null);
        }
    }
}
