using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>Many objects in one call.</content>
public sealed partial class KmemCache
{
    /// <summary>How far a free of many looks for objects of the same slab before it gives up on a chain.</summary>
    private const int BulkLookAhead = 3;

    /// <summary>
    /// Allocates as many objects as there are entries: all or none (kmem_cache_alloc_bulk). Entry i is what the i-th of as
    /// many single allocations would have returned.
    /// </summary>
    /// <param name="gfp">What may be done to get them.</param>
    /// <param name="objects">Filled with addresses; cleared on failure.</param>
    /// <returns>The number of entries, or 0 if memory ran out.</returns>
    /// <exception cref="KernelBugException">The request may sleep and this context may not.</exception>
    public unsafe int AllocBulk(Gfp gfp, Span<nint> objects)
    {
        CpuTask* task = _cpus.Current;
        _slabs.Pages.CheckContext(gfp, task);
        int filled = 0;
        bool complete = false;
        try
        {
            complete = TryFill(task, gfp, objects, ref filled);
        }
        finally
        {
            // Out of memory, or the constructor threw, or a free list turned out to be corrupt.
            if (!complete)
                TakeBack(objects, filled);
        }

        for (int i = 0; i < filled; i++)
        {
            if ((gfp & Gfp.Zero) != 0)
                new Span<byte>((void*)objects[i], _objectSize).Clear();
            if (_slabs.Trace != null)
                TraceAlloc((void*)objects[i], (nuint)_objectSize, gfp, -1, traceAsKmalloc: false);
        }

        return complete ? filled : 0;
    }

    /// <summary>Frees many objects of this cache, those of one slab in one step (kmem_cache_free_bulk).</summary>
    /// <param name="objects">Addresses, none of them null; their order is changed.</param>
    /// <exception cref="KernelBugException">
    /// One of them is not an allocated object. The others may or may not have been freed; none is lost.
    /// </exception>
    public unsafe void FreeBulk(Span<nint> objects) => _slabs.FreeBulk(this, objects);

    /// <summary>
    /// Takes the last object of an array and all others of its slab that are near enough, links them and frees the chain
    /// (build_detached_freelist).
    /// </summary>
    /// <param name="objects">Addresses; those that are taken go to the end.</param>
    /// <param name="slab">The slab of the last one.</param>
    /// <param name="withHooks">
    /// The free hooks reverse a chain, so that the last array entry is its head. Undoing an allocation has no hooks.
    /// </param>
    /// <returns>How many entries at the start of the array are still to be freed.</returns>
    internal unsafe int FreeChainFromEnd(Span<nint> objects, Page* slab, bool withHooks = true)
    {
        int left = objects.Length - 1;
        void* head = (void*)objects[left];
        if (!TryMarkFree(head))
            _slabs.ThrowBadFree(this, slab, head);

        void* tail = head;
        int count = 1;
        int misses = BulkLookAhead;
        int same = left;
        for (int i = left - 1; i >= 0; i--)
        {
            void* obj = (void*)objects[i];
            if (_slabs.SlabOf(obj) == slab && TryMarkFree(obj))
            {
                if (withHooks)
                {
                    SetFreePointer(tail, obj);
                    tail = obj;
                }
                else
                {
                    SetFreePointer(obj, head);
                    head = obj;
                }

                count++;
                same--;
                if (i != same)
                    (objects[i], objects[same]) = (objects[same], objects[i]);
            }
            else if (--misses == 0)
            {
                break;
            }
        }

        FreeChain(slab, head, tail, count);
        return same;
    }

    private unsafe bool TryFill(CpuTask* task, Gfp gfp, Span<nint> objects, ref int filled)
    {
        while (filled < objects.Length)
        {
            int cpu = _cpus.Enter(task);
            KmemCacheCpu* c = _cpu + cpu;
            void* obj = c->Freelist;
            while (obj != null && filled < objects.Length)
            {
                void* next = FreePointer(obj);
                if (!IsSameSlabOrNull(obj, next))
                    ThrowCorruptFreelist(task, c, obj, next);
                c->Freelist = next;
                MarkLive(obj);
                objects[filled++] = (nint)obj;
                obj = next;
            }

            if (filled == objects.Length)
            {
                _cpus.Leave(task);
                break;
            }

            obj = AllocSlow(task, cpu, gfp, -1);
            if (obj == null)
                return false;

            objects[filled++] = (nint)obj;
        }

        return true;
    }

    private unsafe void TakeBack(Span<nint> objects, int filled)
    {
        Span<nint> left = objects[..filled];
        while (left.Length > 0)
            left = left[..FreeChainFromEnd(left, _slabs.SlabOf((void*)left[^1]), withHooks: false)];
        objects[..filled].Clear();
    }

    private unsafe void FreeChain(Page* slab, void* head, void* tail, int count)
    {
        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        KmemCacheCpu* c = _cpu + cpu;
        if (c->Slab == slab)
        {
            SetFreePointer(tail, c->Freelist);
            c->Freelist = head;
            _cpus.Leave(task);
        }
        else
        {
            FreeSlow(task, cpu, slab, head, tail, count);
        }
    }
}
