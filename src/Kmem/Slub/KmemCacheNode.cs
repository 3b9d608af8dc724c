using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>A cache's slabs on one node: the list of the partly used ones, and counts (struct kmem_cache_node).</summary>
internal sealed class KmemCacheNode
{
    private readonly unsafe ListHead* _partial;
    private long _slabs;
    private long _objects;

    /// <summary>list_lock. A field, not a property: a lock is never copied.</summary>
    public SpinLock Lock = new(LockRank.NodeList);

    public unsafe KmemCacheNode()
    {
        _partial = (ListHead*)NativeMemory.Alloc((nuint)sizeof(ListHead));
        ListHead.Init(_partial);
    }

    /// <summary>Partial slabs in list order; the next one to be used is the first.</summary>
    public unsafe ListHead* Partial => _partial;

    public int NrPartial { get; private set; }

    public long NrSlabs => Volatile.Read(ref _slabs);

    public long TotalObjects => Volatile.Read(ref _objects);

    /// <summary>The node's sheaves, if the cache has them.</summary>
    public Barn? Barn { get; init; }

    /// <summary>The object of kmem_cache_node that stands for this node's part of the cache.</summary>
    public nint Descriptor { get; set; }

    public void CountSlab(int slabs, int objects)
    {
        Interlocked.Add(ref _slabs, slabs);
        Interlocked.Add(ref _objects, objects);
    }

    public unsafe void AddLocked(Page* slab, bool tail)
    {
        Bug.OnVm((slab->Flags & PageFlags.SlabOnPartialList) != 0, "slab is on the partial list already");
        NrPartial++;
        slab->Flags |= PageFlags.SlabOnPartialList;
        if (tail)
            ListHead.AddTail(_partial, &slab->SlabList);
        else
            ListHead.AddHead(_partial, &slab->SlabList);
    }

    public unsafe void RemoveLocked(Page* slab)
    {
        Bug.OnVm((slab->Flags & PageFlags.SlabOnPartialList) == 0, "slab is not on the partial list");
        NrPartial--;
        slab->Flags &= ~PageFlags.SlabOnPartialList;
        ListHead.Remove(&slab->SlabList);
    }

    /// <summary>Free objects on the partial list; walks at most 10000 slabs, then extrapolates as the kernel does.</summary>
    public unsafe long CountPartialFree()
    {
        const int ExactUpTo = 10000;
        Lock.Acquire();
        long free = 0;
        if (NrPartial <= ExactUpTo)
        {
            for (ListHead* node = _partial->Next; node != _partial; node = node->Next)
                free += SlabState.Read(Page.FromSlabList(node)).Free;
        }
        else
        {
            ListHead* first = _partial->Next;
            ListHead* last = _partial->Prev;
            for (int i = 0; i < ExactUpTo / 2; i++, first = first->Next, last = last->Prev)
                free += SlabState.Read(Page.FromSlabList(first)).Free + SlabState.Read(Page.FromSlabList(last)).Free;
            free = Math.Min(free * NrPartial / ExactUpTo, TotalObjects);
        }

        Lock.Release();
        return free;
    }

    unsafe ~KmemCacheNode() => NativeMemory.Free(_partial);
}

/// <summary>A cache's state on one CPU (struct kmem_cache_cpu); touched only inside a section of that CPU.</summary>
[StructLayout(LayoutKind.Sequential, Size = 64)]
internal struct KmemCacheCpu
{
    /// <summary>Free objects of <see cref="Slab"/> that belong to this CPU, linked through their free pointers.</summary>
    public unsafe void* Freelist;

    /// <summary>The current slab (frozen), or null.</summary>
    public unsafe Page* Slab;

    /// <summary>Chain of partial slabs kept for this CPU, through CpuPartialNext; the first one knows the length.</summary>
    public unsafe Page* Partial;

    /// <summary>The sheaf that objects are popped from and pushed to; only in caches with sheaves.</summary>
    public unsafe Sheaf* Main;

    /// <summary>An empty or full sheaf, or null.</summary>
    public unsafe Sheaf* Spare;

    /// <summary>The sheaf that collects objects to be freed after a grace period, or null.</summary>
    public unsafe Sheaf* RcuFree;
}
