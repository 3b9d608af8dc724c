namespace Kmem.Tests;

/// <summary>The state of a cache, read out of the machine into lists.</summary>
internal static class SlabView
{
    public static unsafe nint CurrentSlab(KmemCache cache, int cpu) => (nint)cache.StateOf(cpu)->Slab;

    /// <summary>The CPU's free objects, next one first.</summary>
    public static unsafe List<nint> Freelist(KmemCache cache, int cpu) => Walk(cache, cache.StateOf(cpu)->Freelist);

    /// <summary>The chain of partial slabs of a CPU, head first.</summary>
    public static unsafe List<nint> Chain(KmemCache cache, int cpu)
    {
        var slabs = new List<nint>();
        for (Page* slab = cache.StateOf(cpu)->Partial; slab != null; slab = slab->CpuPartialNext)
            slabs.Add((nint)slab);
        return slabs;
    }

    /// <summary>The partial list of a node, first one first.</summary>
    public static unsafe List<nint> Partial(KmemCache cache, int node)
    {
        var slabs = new List<nint>();
        ListHead* list = cache.Nodes[node].Partial;
        for (ListHead* entry = list->Next; entry != list; entry = entry->Next)
            slabs.Add((nint)Page.FromSlabList(entry));
        return slabs;
    }

    /// <summary>The slab's own free objects, first one first.</summary>
    public static unsafe List<nint> Own(KmemCache cache, nint slab)
    {
        SlabState state = SlabState.Read((Page*)slab);
        return Walk(cache, state.HasFree ? cache.ObjectOf((Page*)slab, state.FreeIndex) : null);
    }

    public static unsafe SlabState State(nint slab) => SlabState.Read((Page*)slab);

    public static unsafe nint SlabOf(Machine machine, void* obj) => (nint)machine.Slabs.SlabOf(obj);

    public static unsafe nint AddressOf(Machine machine, nint slab) => (nint)machine.Map.AddressOf((Page*)slab);

    private static unsafe List<nint> Walk(KmemCache cache, void* first)
    {
        var objects = new List<nint>();
        for (void* obj = first; obj != null; obj = cache.NextFree(obj))
            objects.Add((nint)obj);
        return objects;
    }
}
