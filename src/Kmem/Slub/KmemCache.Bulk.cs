using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>Many objects in one call.</content>
public sealed partial class KmemCache
{
    /// <summary>How far a free of many looks for objects of the same slab before it gives up on a chain.</summary>
    private const int BulkLookAhead = 3;

    /// <summary>
    /// Allocates as many objects as there are entries: all or none (kmem_cache_alloc_bulk). Entry i is what the i-th of
    /// as many single allocations would have returned.
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
        if (_route != 0)
        {
            if (_route < 0)
                return AllocBulkChecked(gfp, objects);
            filled = AllocBulkFromSheaves(task, objects);
        }

        bool complete = false;
        try
        {
            complete = TryFill(task, gfp, objects, ref filled);
        }
        finally
        {
            // Out of memory, or the constructor threw, or a free list turned out to be corrupt: nothing is lost.
            if (!complete)
            {
                FreeToSlabs(objects[..filled]);
                objects[..filled].Clear();
            }
        }

        if (!complete)
            return 0;

        MarkLive(objects);
        if ((gfp & Gfp.Zero) != 0 || _slabs.Trace != null)
            FinishBulk(gfp, objects);
        return filled;
    }

    private unsafe void FinishBulk(Gfp gfp, Span<nint> objects)
    {
        foreach (nint obj in objects)
        {
            if ((gfp & Gfp.Zero) != 0)
                new Span<byte>((void*)obj, _objectSize).Clear();
            if (_slabs.Trace != null)
                TraceAlloc((void*)obj, (nuint)_objectSize, gfp, -1, traceAsKmalloc: false);
        }
    }

    private unsafe void MarkLive(Span<nint> objects)
    {
        byte* live = _live; // in locals: a store of a byte might change any field
        int shift = _liveShift;
        foreach (nint obj in objects)
            live[(nuint)obj >> shift] = (byte)LiveObjects.Mark((nuint)obj);
    }

    /// <summary>Marks live objects of this cache as free.</summary>
    /// <returns>How many, up to the first that is none.</returns>
    private unsafe int TryMarkFree(Span<nint> objects)
    {
        byte* live = _live;
        int shift = _liveShift;
        nuint place = _place;
        SlabAllocator.PlaceMap places = _slabs.PlacesOfFrames;
        for (int i = 0; i < objects.Length; i++)
        {
            var obj = (nuint)objects[i];
            byte* mark = live + (obj >> shift);
            if (places.Of(obj) != place || place == 0 || *mark != LiveObjects.Mark(obj))
                return i;
            *mark = 0;
        }

        return objects.Length;
    }

    private unsafe bool TryFill(CpuTask* task, Gfp gfp, Span<nint> objects, ref int filled)
    {
        while (filled < objects.Length)
        {
            int got = AllocManyFromSlabs(task, gfp, objects[filled..]);
            if (got == 0)
                return false;

            filled += got;
        }

        return true;
    }

    /// <summary>
    /// What this CPU's free list has, in its order; if that is nothing, one object from further away. None is marked as
    /// live.
    /// </summary>
    /// <returns>How many; 0 if memory ran out.</returns>
    private unsafe int AllocManyFromSlabs(CpuTask* task, Gfp gfp, Span<nint> objects)
    {
        int count = 0;
        KmemCacheCpu* c = CpuAt(_cpus.Enter(task));
        for (void* obj = c->Freelist; obj != null && count < objects.Length; obj = c->Freelist)
        {
            void* next = FreePointer(obj);
            if (!IsSameSlabOrNull(obj, next))
                break; // the way of a single object reports it

            c->Freelist = next;
            objects[count++] = (nint)obj;
        }

        _cpus.Leave(task);
        if (count == 0)
        {
            objects[0] = (nint)AllocFromSlabs(task, gfp, -1);
            count = objects[0] == 0 ? 0 : 1;
        }

        return count;
    }

    /// <summary>Block copies out of full sheaves, as long as there are any; each block in array order.</summary>
    private unsafe int AllocBulkFromSheaves(CpuTask* task, Span<nint> objects)
    {
        int filled = 0;
        while (filled < objects.Length)
        {
            int cpu = _cpus.Enter(task);
            KmemCacheCpu* c = CpuAt(cpu);
            if (c->Top == c->Low)
            {
                if (c->Spare != null && c->Spare->Size > 0)
                {
                    SwapSheaves(c);
                }
                else
                {
                    Barn barn = BarnOf(cpu);
                    Sheaf* full = c->Main == null ? barn.TakeFull() : barn.ExchangeForFull(c->Settle());
                    if (full == null)
                    {
                        _cpus.Leave(task);
                        break;
                    }

                    c->Install(full);
                }
            }

            int count = Math.Min(objects.Length - filled, c->MainSize);
            c->Top -= count;
            new Span<nint>(c->Top, count).CopyTo(objects[filled..]);
            filled += count;
            _cpus.Leave(task);
        }

        return filled;
    }

    /// <summary>Frees many objects of this cache, those of one slab in one step (kmem_cache_free_bulk).</summary>
    /// <param name="objects">Addresses, none of them null; their order is changed.</param>
    /// <exception cref="KernelBugException">
    /// One of them is not an allocated object. The others may or may not have been freed; none is lost.
    /// </exception>
    public unsafe void FreeBulk(Span<nint> objects)
    {
        if (_sheafCapacity == 0 || _route < 0)
            _slabs.FreeBulk(this, objects);
        else
            FreeBulkToSheaves(objects);
    }

    /// <summary>Appends to main sheaves as long as there is room; the rest goes to the slabs.</summary>
    private unsafe void FreeBulkToSheaves(Span<nint> objects)
    {
        while (objects.Length > 0)
        {
            int good = TryMarkFree(objects);
            AppendToSheaves(objects[..good]);
            if (good == objects.Length)
                return;

            // What came before is free already. This one is of another cache, or a mistake that throws.
            var other = (void*)objects[good];
            Page* slab = _slabs.SlabOf(other);
            if (slab == null)
            {
                Free(other);
                objects = objects[(good + 1)..];
                continue;
            }

            KmemCache owner = _slabs.CacheOf(slab);
            if (owner == this || !owner.IsLive(other))
                _slabs.ThrowBadFree(owner, slab, other);
            _slabs.WarnWrongCache(this, owner, other);
            owner.FreeCore(slab, other);
            objects = objects[(good + 1)..];
        }
    }

    /// <summary>Objects that are marked as free: in their order to main sheaves, the rest to the slabs.</summary>
    private unsafe void AppendToSheaves(Span<nint> objects)
    {
        if (_nodes.Length > 1)
            objects = FreeRemote(objects);
        CpuTask* task = _cpus.Current;
        while (objects.Length > 0)
        {
            int cpu = _cpus.Enter(task);
            KmemCacheCpu* c = CpuAt(cpu);
            if (c->Top == c->High && !TryMakeRoom(c, BarnOf(cpu)))
            {
                _cpus.Leave(task);
                FreeToSlabs(objects);
                return;
            }

            int count = Math.Min(objects.Length, c->MainRoom);
            objects[..count].CopyTo(new Span<nint>(c->Top, count));
            c->Top += count;
            objects = objects[count..];
            _cpus.Leave(task);
        }
    }

    /// <summary>Objects of other nodes go to their slabs, some at a time: sheaves hold local ones only.</summary>
    /// <returns>The others, in their order.</returns>
    private unsafe Span<nint> FreeRemote(Span<nint> objects)
    {
        int local = _slabs.NodeOfCpu(_cpus.CurrentCpu);
        int kept = 0;
        int count = 0;
        Span<nint> remote = stackalloc nint[FlushBatch];
        foreach (nint obj in objects)
        {
            if (NodeOf(_slabs.SlabOf((void*)obj)) == local)
                objects[kept++] = obj;
            else
                remote[count++] = obj;

            if (count == FlushBatch)
            {
                FreeToSlabs(remote);
                count = 0;
            }
        }

        FreeToSlabs(remote[..count]);
        return objects[..kept];
    }

    /// <summary>Room in the main sheaf without allocating or flushing.</summary>
    private static unsafe bool TryMakeRoom(KmemCacheCpu* c, Barn barn)
    {
        if (c->Spare != null && !c->Spare->IsFull)
        {
            SwapSheaves(c);
            return true;
        }

        Sheaf* empty = c->Spare == null || c->Main == null
            ? barn.TakeEmpty() : barn.ExchangeForEmpty(c->Settle(), out _);
        if (empty == null)
            return false;
        if (c->Spare == null)
            c->Spare = c->Settle();
        c->Install(empty);
        return true;
    }

    /// <summary>
    /// Takes the last object of an array and all others of its slab that are near enough, links them and frees the
    /// chain (build_detached_freelist). With the free hooks the chain ends up reversed: the last array entry is its
    /// head.
    /// </summary>
    /// <returns>How many entries at the start of the array are still to be freed.</returns>
    internal unsafe int FreeChainFromEnd(Span<nint> objects, Page* slab)
    {
        int left = objects.Length - 1;
        void* head = (void*)objects[left];
        if (_route < 0)
        {
            FreeChecked(slab, head);
            return left;
        }

        if (!TryMarkFree(head))
            _slabs.ThrowBadFree(this, slab, head);

        void* tail = head;
        int count = 1;
        int misses = BulkLookAhead;
        int same = left;
        for (int i = left - 1; i >= 0; i--)
        {
            if (_slabs.SlabOf((void*)objects[i]) == slab && TryMarkFree((void*)objects[i]))
            {
                SetFreePointer(tail, (void*)objects[i]);
                tail = (void*)objects[i];
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

    private unsafe void FreeChain(Page* slab, void* head, void* tail, int count)
    {
        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        KmemCacheCpu* c = CpuAt(cpu);
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
