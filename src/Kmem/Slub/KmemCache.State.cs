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
        _slabs.SetPlaces(slab, order, _place);
        _debug?.InitSlab(slab, objects, order);
        for (int i = 0; i < objects; i++)
            MarkLive(ObjectAt(slab, i));
        LinkFree(slab, freelist);
        for (int i = 0; i < objects && _debug != null; i++)
        {
            if (IsLive(ObjectAt(slab, i)))
                _debug.InitObject((byte*)ObjectAt(slab, i), active: true);
        }

        int first = freelist.Length > 0 ? freelist[0] : SlabState.NoFreeObject;
        slab->SlabState = new SlabState(first, inUse, objects, frozen).Word;
        _nodes[NodeOf(slab)].CountSlab(1, objects);
        _slabs.AccountPages(slab, 1L << order, Flags);
    }

    /// <summary>
    /// Sets what a CPU holds: its current slab with the CPU's own free list, and its chain, first slab first.
    /// </summary>
    internal unsafe void RestoreCpu(int cpu, ulong? slabPfn, ReadOnlySpan<int> freelist, IReadOnlyList<ulong> partial)
    {
        KmemCacheCpu* c = CpuAt(cpu);
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
    internal unsafe void RestoreNode(int node, IReadOnlyList<ulong> partial, ulong descriptor)
    {
        _nodes[node].Descriptor = descriptor == 0 ? 0 : (nint)_slabs.PointerOf(descriptor);
        _nodes[node].Lock.Acquire();
        foreach (ulong pfn in partial)
            _nodes[node].AddLocked(_slabs.Map.PageOf(pfn), tail: true);
        _nodes[node].Lock.Release();
    }

    /// <summary>Writes a sheaf into the kmalloc block that it is; its objects are free.</summary>
    internal unsafe nint RestoreSheaf(ulong kernelAddress, ReadOnlySpan<ulong> objects, int capacity)
    {
        var sheaf = (Sheaf*)_slabs.PointerOf(kernelAddress);
        *sheaf = default;
        sheaf->Capacity = Math.Max(capacity > 0 ? capacity : _sheafCapacity, objects.Length);
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
        CpuAt(cpu)->Install((Sheaf*)main);
        CpuAt(cpu)->Spare = (Sheaf*)spare;
        CpuAt(cpu)->RcuFree = (Sheaf*)rcuFree;
    }

    internal unsafe void RestoreInBarn(int node, nint sheaf, bool full)
    {
        if (full)
            _nodes[node].Barn!.PutFull((Sheaf*)sheaf);
        else
            _nodes[node].Barn!.PutEmpty((Sheaf*)sheaf);
    }

    /// <summary>
    /// Fails if what a CPU takes for its sheaves is none: mistakes about the blocks that sheaves lie in may have
    /// overwritten them.
    /// </summary>
    internal unsafe void CheckSheavesOf(int cpu)
    {
        const int MostObjects = 1 << 12;
        KmemCacheCpu* c = StateOf(cpu);
        foreach (nint at in (ReadOnlySpan<nint>)[(nint)c->Main, (nint)c->Spare, (nint)c->RcuFree])
        {
            var sheaf = (Sheaf*)at;
            if (_sheafCapacity == 0 || sheaf == null)
                continue;

            Bug.On(sheaf->Capacity is <= 0 or > MostObjects, "a sheaf without a size");
            Bug.On(sheaf->Size < 0 || sheaf->Size > sheaf->Capacity, "a sheaf with more objects than room");
            foreach (nint obj in Sheaf.Objects(sheaf))
            {
                Page* slab = _slabs.SlabOf((void*)obj);
                Bug.On(slab == null || _slabs.CacheOf(slab) != this, "a sheaf with something that is no object");
            }
        }
    }

    /// <summary>Opens the locks that this thread held when its operation broke off.</summary>
    internal void BreakLocks()
    {
        foreach (KmemCacheNode node in _nodes)
        {
            node.Lock.Break();
            node.Barn?.BreakLock();
        }
    }

    /// <summary>
    /// Makes a free object one in use, wherever it is: a request that found nothing should have got it.
    /// </summary>
    /// <returns>False if it is not a free object of this cache: nothing was changed.</returns>
    internal unsafe bool Claim(void* wanted)
    {
        Page* slab = _slabs.SlabOf(wanted);
        if (slab == null || _slabs.CacheOf(slab) != this || IsLive(wanted) || !TryUnlink(slab, wanted))
            return false;

        MarkLive(wanted);
        return true;
    }

    /// <summary>
    /// Makes it so that a request got another object than it did: that one leaves its free list or sheaf, the one that
    /// was handed out goes back.
    /// </summary>
    /// <returns>False if the wanted object is not a free object of this cache: nothing was changed.</returns>
    internal unsafe bool Exchange(void* taken, void* wanted)
    {
        if (!Claim(wanted))
            return false;

        FreeCore(_slabs.SlabOf(taken), taken);
        return true;
    }

    private unsafe bool TryUnlink(Page* slab, void* obj)
    {
        foreach (nint sheaf in AllSheaves())
        {
            int at = Sheaf.Objects((Sheaf*)sheaf).IndexOf((nint)obj);
            if (at < 0)
                continue;

            Sheaf.Objects((Sheaf*)sheaf)[(at + 1)..].CopyTo(Sheaf.Objects((Sheaf*)sheaf)[at..]);
            ((Sheaf*)sheaf)->Size--;
            for (int cpu = 0; cpu < _cpus.Count; cpu++)
            {
                if (CpuAt(cpu)->Main == (Sheaf*)sheaf)
                    CpuAt(cpu)->Install((Sheaf*)sheaf);
            }

            return true;
        }

        for (int cpu = 0; cpu < _cpus.Count; cpu++)
        {
            KmemCacheCpu* c = CpuAt(cpu);
            if (c->Slab != slab)
                continue;
            if (c->Freelist == obj)
            {
                c->Freelist = FreePointer(obj);
                return true;
            }

            if (TryUnlinkAfter(c->Freelist, obj))
                return true;
        }

        SlabState state = SlabState.Read(slab);
        if (!state.HasFree)
            return false;

        void* first = ObjectAt(slab, state.FreeIndex);
        void* next = first == obj ? FreePointer(obj) : first;
        if (first != obj && !TryUnlinkAfter(first, obj))
            return false;

        int head = next == null ? SlabState.NoFreeObject : IndexOf(slab, next);
        SlabState.TryChange(slab, state, state.With(head, state.InUse + 1, state.Frozen));
        if (next == null && !state.Frozen)
            TakeOffLists(slab);
        return true;
    }

    /// <summary>
    /// Gives up a slab that the recorded kernel freed at this moment, wherever it is here. One that waits for the end
    /// of a grace period is on no list any more.
    /// </summary>
    internal unsafe void Forget(Page* slab)
    {
        bool held = SlabState.Read(slab) is { HasFree: true } && (slab->Flags & PageFlags.SlabOnPartialList) != 0;
        for (int cpu = 0; cpu < _cpus.Count; cpu++)
        {
            KmemCacheCpu* c = CpuAt(cpu);
            if (c->Slab == slab)
            {
                c->Slab = null;
                c->Freelist = null;
                held = true;
            }

            ulong steps = 0;
            for (Page* link = c->Partial; link != null && !held; link = link->CpuPartialNext)
            {
                held = link == slab;
                Bug.On(++steps > _slabs.Map.EndPfn, "a chain of partial slabs goes in a circle");
            }
        }

        if (held)
        {
            TakeOffLists(slab);
            CountNewSlab(slab, -1);
        }

        for (int i = 0; i < SlabState.Read(slab).Objects; i++)
            TryMarkFree(ObjectAt(slab, i));
        ReleasePages(slab);
    }

    /// <summary>A slab that became full belongs on no list.</summary>
    private unsafe void TakeOffLists(Page* slab)
    {
        if ((slab->Flags & PageFlags.SlabOnPartialList) != 0)
        {
            KmemCacheNode node = _nodes[NodeOf(slab)];
            node.Lock.Acquire();
            node.RemoveLocked(slab);
            node.Lock.Release();
            return;
        }

        for (int cpu = 0; cpu < _cpus.Count; cpu++)
        {
            KmemCacheCpu* c = CpuAt(cpu);
            var chain = new List<nint>();
            for (Page* link = c->Partial; link != null; link = link->CpuPartialNext)
            {
                chain.Add((nint)link);
                Bug.On(chain.Count > (long)_slabs.Map.EndPfn, "a chain of partial slabs goes in a circle");
            }

            if (!chain.Remove((nint)slab))
                continue;

            c->Partial = null;
            for (int i = chain.Count - 1; i >= 0; i--)
                PushCpuPartial(c, (Page*)chain[i]);
        }
    }

    private unsafe bool TryUnlinkAfter(void* first, void* obj)
    {
        int steps = 0;
        for (void* before = first; before != null; before = FreePointer(before))
        {
            Bug.On(++steps > Geometry.ObjectsPerSlab, "a free list goes in a circle");
            if (FreePointer(before) == obj)
            {
                SetFreePointer(before, FreePointer(obj));
                return true;
            }
        }

        return false;
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
