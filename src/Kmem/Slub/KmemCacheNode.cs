using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// A cache's slabs on one node: the list of the partly used ones, and counts (struct kmem_cache_node).
/// </summary>
internal sealed class KmemCacheNode
{
    private readonly unsafe ListHead* _partial;
    private readonly unsafe ListHead* _full;
    private long _newSlabs;
    private long _freedSlabs;
    private long _slabs;
    private long _objects;

    /// <summary>list_lock. A field, not a property: a lock is never copied.</summary>
    public SpinLock Lock = new(LockRank.NodeList);

    public unsafe KmemCacheNode()
    {
        _partial = (ListHead*)NativeMemory.Alloc((nuint)sizeof(ListHead));
        ListHead.Init(_partial);
        _full = (ListHead*)NativeMemory.Alloc((nuint)sizeof(ListHead));
        ListHead.Init(_full);
    }

    /// <summary>Partial slabs in list order; the next one to be used is the first.</summary>
    public unsafe ListHead* Partial => _partial;

    public int NrPartial { get; private set; }

    /// <summary>Slabs without a free object; kept only by debugged caches that remember their users.</summary>
    public unsafe ListHead* Full => _full;

    public long NrSlabs => Volatile.Read(ref _slabs);

    public long TotalObjects => Volatile.Read(ref _objects);

    /// <summary>The node's sheaves, if the cache has them.</summary>
    public Barn? Barn { get; init; }

    /// <summary>The object of kmem_cache_node that stands for this node's part of the cache.</summary>
    public nint Descriptor { get; set; }

    /// <summary>Slabs that came since the cache was made.</summary>
    public long NewSlabs => Volatile.Read(ref _newSlabs);

    /// <summary>Slabs that were given back since then.</summary>
    public long FreedSlabs => Volatile.Read(ref _freedSlabs);

    public void CountSlab(int slabs, int objects)
    {
        Interlocked.Add(ref _slabs, slabs);
        Interlocked.Add(ref slabs > 0 ? ref _newSlabs : ref _freedSlabs, Math.Abs(slabs));
        Interlocked.Add(ref _objects, objects);
    }

    public unsafe void AddLocked(Page* slab, bool tail)
    {
        Lock.AssertHeld();
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
        Lock.AssertHeld();
        Bug.OnVm((slab->Flags & PageFlags.SlabOnPartialList) == 0, "slab is not on the partial list");
        NrPartial--;
        slab->Flags &= ~PageFlags.SlabOnPartialList;
        ListHead.Remove(&slab->SlabList);
    }

    public unsafe void AddFullLocked(Page* slab)
    {
        Lock.AssertHeld();
        Bug.OnVm((slab->Flags & PageFlags.SlabOnFullList) != 0, "slab is on the full list already");
        slab->Flags |= PageFlags.SlabOnFullList;
        ListHead.AddHead(_full, &slab->SlabList);
    }

    /// <summary>Takes a slab off whichever list it is on.</summary>
    public unsafe void UnlistLocked(Page* slab)
    {
        Lock.AssertHeld();
        if ((slab->Flags & PageFlags.SlabOnPartialList) != 0)
        {
            RemoveLocked(slab);
        }
        else if ((slab->Flags & PageFlags.SlabOnFullList) != 0)
        {
            slab->Flags &= ~PageFlags.SlabOnFullList;
            ListHead.Remove(&slab->SlabList);
        }
    }

    /// <summary>All slabs that are on a list, the partial ones first.</summary>
    public unsafe List<nint> ListedLocked()
    {
        Lock.AssertHeld();
        var slabs = new List<nint>();
        for (ListHead* entry = _partial->Next; entry != _partial; entry = entry->Next)
            slabs.Add((nint)Page.FromSlabList(entry));
        for (ListHead* entry = _full->Next; entry != _full; entry = entry->Next)
            slabs.Add((nint)Page.FromSlabList(entry));
        return slabs;
    }

    /// <summary>
    /// Free objects on the partial list; walks at most 10000 slabs, then extrapolates as the kernel does.
    /// </summary>
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

    unsafe ~KmemCacheNode()
    {
        NativeMemory.Free(_partial);
        NativeMemory.Free(_full);
    }
}

/// <summary>A cache's state on one CPU; touched only inside a section of that CPU.
/// <code>
///                     Low          Top          High
///   Main ▸ | header | object | … | object | room |     the sheaf's own count is right only when it is not the main one
/// </code>
/// </summary>
/// <remarks>
/// It lies in the CPU's area at a place that is the same on every CPU (128 bytes × the cache's id), and all that an
/// allocation or a free from a sheaf needs is in its first cache line. All zero is a cache that has nothing here.
/// </remarks>
[StructLayout(LayoutKind.Sequential, Size = SizeInBytes)]
internal struct KmemCacheCpu
{
    public const int SizeInBytes = 128;

    /// <summary>Behind the last object of the main sheaf.</summary>
    public unsafe void** Top;

    /// <summary>First place of the main sheaf; <see cref="Top"/> is there when it is empty.</summary>
    public unsafe void** Low;

    /// <summary>Behind the last place of the main sheaf; <see cref="Top"/> is there when it is full.</summary>
    public unsafe void** High;

    /// <summary>The map of live objects, so that address &gt;&gt; <see cref="LiveShift"/> is an index.</summary>
    public unsafe byte* Live;

    public int LiveShift;

    private readonly int _reserved;

    /// <summary>The sheaf that objects are popped from and pushed to, or null; only in caches with sheaves.</summary>
    public unsafe Sheaf* Main;

    /// <summary>An empty or full sheaf, or null.</summary>
    public unsafe Sheaf* Spare;

    /// <summary>The sheaf that collects objects to be freed after a grace period, or null.</summary>
    public unsafe Sheaf* RcuFree;

    /// <summary>
    /// Free objects of <see cref="Slab"/> that belong to this CPU, linked through their free pointers.
    /// </summary>
    public unsafe void* Freelist;

    /// <summary>The current slab (frozen), or null.</summary>
    public unsafe Page* Slab;

    /// <summary>
    /// Chain of partial slabs kept for this CPU, through CpuPartialNext; the first one knows the length.
    /// </summary>
    public unsafe Page* Partial;

    /// <summary>
    /// The whole of most allocations: pops an object of the main sheaf of the CPU that this thread owns and marks it as
    /// live.
    /// </summary>
    /// <param name="task">This thread, on this machine.</param>
    /// <param name="place">The cache's place in the CPU's area, in bytes.</param>
    /// <returns>The object; null if the sheaf is empty, or this thread owns no CPU at the moment.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe void* TryPop(CpuTask* task, nuint place)
    {
        // A section as CpuSet.Enter and Leave make it, for the case that needs no lock. Who owns no CPU finds nothing.
        Volatile.Write(ref task->Busy, 1);
        SimPoint.Here();
        var c = (KmemCacheCpu*)(Volatile.Read(ref *(nuint*)&task->Area) + place);
        SimPoint.Here();
        void** top = c->Top;
        void* obj = null;
        if (top != c->Low)
        {
            top--;
            c->Top = top;
            obj = *top;
            c->Live[(nuint)obj >> c->LiveShift] = (byte)LiveObjects.Mark((nuint)obj);
        }

        Volatile.Write(ref task->Busy, 0);
        SimPoint.Here();
        return obj;
    }

    /// <summary>The whole of most frees: checks that an object is live, and pushes it to the main sheaf.</summary>
    /// <returns>
    /// False, and nothing is changed, if it is not live, or there is no room, or this thread owns no CPU.
    /// </returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe bool TryPush(CpuTask* task, nuint place, void* obj)
    {
        Volatile.Write(ref task->Busy, 1);
        SimPoint.Here();
        var c = (KmemCacheCpu*)(Volatile.Read(ref *(nuint*)&task->Area) + place);
        SimPoint.Here();
        void** top = c->Top;
        if (top != c->High)
        {
            byte* mark = c->Live + ((nuint)obj >> c->LiveShift);
            if (*mark == LiveObjects.Mark((nuint)obj))
            {
                *mark = 0;
                *top = obj;
                c->Top = top + 1;
                Volatile.Write(ref task->Busy, 0);
                return true;
            }
        }

        Volatile.Write(ref task->Busy, 0);
        SimPoint.Here();
        return false;
    }

    /// <summary>Objects in the main sheaf.</summary>
    public readonly unsafe int MainSize => (int)(Top - Low);

    /// <summary>Places left in the main sheaf; 0 if there is none.</summary>
    public readonly unsafe int MainRoom => (int)(High - Top);

    /// <summary>Makes a sheaf, or none, the main one. The former one must have been taken before.</summary>
    public unsafe void Install(Sheaf* main)
    {
        Main = main;
        Low = main == null ? null : Sheaf.ObjectsOf(main);
        Top = main == null ? null : Low + main->Size;
        High = main == null ? null : Low + main->Capacity;
    }

    /// <summary>The main sheaf, its count put right; it stays the main one.</summary>
    public readonly unsafe Sheaf* Settle()
    {
        if (Main != null)
            Main->Size = MainSize;
        return Main;
    }
}
