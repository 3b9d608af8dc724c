using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>The slow paths of allocation and free (___slab_alloc, __slab_free, Linux 6.18).</content>
public sealed partial class KmemCache
{
    /// <summary>
    /// The CPU's free list is empty, or a node was named. Entered inside a section, left outside.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void* AllocSlow(CpuTask* task, int cpu, Gfp gfp, int node)
    {
        if (_debug != null)
        {
            _cpus.Leave(task);
            return AllocDebugObject(task, gfp, node, (nuint)_objectSize);
        }

        KmemCacheCpu* c = CpuAt(cpu);
        void* freelist;
        do
        {
            freelist = TakeFromCurrentSlab(task, ref cpu, ref c, gfp, node);
            if (freelist == null && c->Slab == null)
                freelist = TakeFromCpuPartial(task, ref cpu, ref c, gfp, node);
        }
        while (freelist == null && c->Slab != null); // another thread of this CPU brought a slab while we were outside

        if (freelist == null)
        {
            if (IsClosed)
                ThrowClosed(task);

            // A named node is first tried strictly and without effort, then like any other request.
            if (node >= 0 && (gfp & Gfp.ThisNode) == 0)
                freelist = TakeFromNodeOrNew(task, ref cpu, ref c, Gfp.NoWait | Gfp.ThisNode, node, gfp);
            if (freelist == null)
                freelist = TakeFromNodeOrNew(task, ref cpu, ref c, gfp, node, gfp);
        }

        if (freelist == null)
        {
            _cpus.Leave(task);
            _slabs.ReportOutOfMemory(this, gfp, node);
            return null;
        }

        if (!_slabs.Map.Contains(freelist))
            ThrowCorruptFreelist(task, c, freelist, freelist);
        void* rest = FreePointer(freelist);
        if (!IsSameSlabOrNull(freelist, rest))
            ThrowCorruptFreelist(task, c, freelist, rest);
        c->Freelist = rest;
        _cpus.Leave(task);
        return freelist;
    }

    /// <summary>Steps 1 to 4: the current slab, if it fits the request, and what other CPUs freed into it.</summary>
    private unsafe void* TakeFromCurrentSlab(CpuTask* task, ref int cpu, ref KmemCacheCpu* c, Gfp gfp, int node)
    {
        if (c->Slab == null)
            return null;

        bool wrongNode = node >= 0 && NodeOf(c->Slab) != node && _slabs.Pages.Nodes[node].HasMemory;
        if (wrongNode || !MayUse(c->Slab, gfp, task))
        {
            DeactivateCurrent(task, ref cpu, ref c);
            return null;
        }

        if (c->Freelist != null)
            return c->Freelist;

        while (true)
        {
            SlabState state = SlabState.Read(c->Slab);
            SlabState next = state.With(SlabState.NoFreeObject, state.Objects, frozen: state.HasFree);
            if (!SlabState.TryChange(c->Slab, state, next))
                continue;

            if (state.HasFree)
            {
                _slabs.Trace?.ObjectFrom(ObjectSource.CpuSlab);
                return ObjectAt(c->Slab, state.FreeIndex);
            }

            c->Slab = null; // full: on no list from here on, its next free brings it back
            return null;
        }
    }

    /// <summary>
    /// Step 5: the CPU's chain of partial slabs. Null, too, if the CPU has got a current slab meanwhile.
    /// </summary>
    private unsafe void* TakeFromCpuPartial(CpuTask* task, ref int cpu, ref KmemCacheCpu* c, Gfp gfp, int node)
    {
        while (c->Slab == null)
        {
            Page* slab = c->Partial;
            if (slab == null)
                return null;

            c->Partial = slab->CpuPartialNext;
            if ((node < 0 || NodeOf(slab) == node) && MayUse(slab, gfp, task))
            {
                c->Slab = slab;
                _slabs.Trace?.ObjectFrom(ObjectSource.CpuPartial);
                return Freeze(slab);
            }

            slab->CpuPartialNext = null;
            _cpus.Leave(task);
            DrainPartialChain(slab);
            cpu = _cpus.Enter(task);
            c = CpuAt(cpu);
        }

        return null;
    }

    /// <summary>Steps 6 to 8: a slab from a node's partial list, or a new one, becomes the current slab.</summary>
    /// <param name="task">This thread.</param>
    /// <param name="cpu">The CPU entered; may change while the page allocator works.</param>
    /// <param name="c">The cache's state on it.</param>
    /// <param name="gfp">The flags for this attempt.</param>
    /// <param name="node">The node wanted, or -1.</param>
    /// <param name="original">The caller's flags, which decide about slabs from the reserve.</param>
    private unsafe void* TakeFromNodeOrNew(
        CpuTask* task, ref int cpu, ref KmemCacheCpu* c, Gfp gfp, int node, Gfp original)
    {
        Page* slab = GetPartial(c, cpu, gfp, node, original, task, out void* freelist);
        _slabs.Trace?.ObjectFrom(slab == null ? ObjectSource.NewSlab : ObjectSource.NodePartial);
        if (slab == null)
        {
            // The page allocator may sleep, reclaim and run foreign code: not inside the section.
            _cpus.Leave(task);
            slab = NewSlab(gfp, node, out freelist);
            cpu = _cpus.Enter(task);
            c = CpuAt(cpu);
            if (slab == null)
                return null;

            if (IsClosed)
                ThrowClosed(task, slab);

            CountNewSlab(slab);
        }

        while (c->Slab != null)
            DeactivateCurrent(task, ref cpu, ref c);
        c->Slab = slab;
        return freelist;
    }

    /// <summary>Takes the current slab away with its free list and gives it back to its node.</summary>
    private unsafe void DeactivateCurrent(CpuTask* task, ref int cpu, ref KmemCacheCpu* c)
    {
        Page* slab = c->Slab;
        void* freelist = c->Freelist;
        c->Slab = null;
        c->Freelist = null;
        _cpus.Leave(task);
        Deactivate(slab, freelist);
        cpu = _cpus.Enter(task);
        c = CpuAt(cpu);
    }

    /// <summary>
    /// A slab stops being current: what is left of the CPU's list goes in front of the slab's own, and the slab onto
    /// the node's list, unless it is full or superfluous (deactivate_slab). Outside a section.
    /// </summary>
    private unsafe void Deactivate(Page* slab, void* freelist)
    {
        void* tail = null;
        int count = 0;
        int objects = SlabState.Read(slab).Objects;
        for (void* obj = freelist; obj != null && count < objects; obj = NextChecked(slab, obj))
        {
            tail = obj;
            count++;
        }

        SlabState state;
        SlabState next;
        do
        {
            state = SlabState.Read(slab);
            if (tail != null)
                SetFreePointer(tail, state.HasFree ? ObjectAt(slab, state.FreeIndex) : null);
            int head = tail != null ? IndexOf(slab, freelist) : state.FreeIndex;
            next = state.With(head, state.InUse - count, frozen: false);
        }
        while (!SlabState.TryChange(slab, state, next));

        KmemCacheNode node = _nodes[NodeOf(slab)];
        if (next.InUse == 0 && node.NrPartial >= MinPartial)
        {
            Discard(slab);
        }
        else if (next.HasFree)
        {
            node.Lock.Acquire();
            node.AddLocked(slab, tail: state.HasFree); // freed into from elsewhere: use it later
            node.Lock.Release();
        }
    }

    /// <summary>
    /// Takes the first suitable slab of a node's partial list and moves a few more to the CPU's chain; then other nodes
    /// (get_partial).
    /// </summary>
    private unsafe Page* GetPartial(
        KmemCacheCpu* c, int cpu, Gfp gfp, int node, Gfp original, CpuTask* task, out void* freelist)
    {
        int wanted = node >= 0 ? node : _slabs.NodeOfCpu(cpu);
        Page* slab = GetPartialFrom(_nodes[wanted], c, original, task, out freelist);
        if (slab != null || _nodes.Length == 1 || (node >= 0 && (gfp & Gfp.ThisNode) != 0))
            return slab;

        // Do not always run to other nodes: with the default ratio, in 1000 of 1024 cases.
        if (RemoteNodeDefragRatio == 0 || _slabs.NextRandom() % 1024 > (ulong)RemoteNodeDefragRatio)
            return null;

        int last = -1;
        foreach (Zone zone in _slabs.Pages.Nodes[wanted].Fallback.Zones)
        {
            if (zone.NodeId == last)
                continue;

            last = zone.NodeId;
            if (_nodes[last].NrPartial <= MinPartial)
                continue;
            slab = GetPartialFrom(_nodes[last], c, original, task, out freelist);
            if (slab != null)
                return slab;
        }

        return null;
    }

    /// <summary>How eagerly slabs of other nodes are used, of 1024; sysfs shows a tenth.</summary>
    internal int RemoteNodeDefragRatio { get; set; } = 1000;

    /// <summary>How many partial slabs are compared before one of them is used.</summary>
    private const int PartialLookAhead = 16;

    private unsafe Page* GetPartialFrom(
        KmemCacheNode node, KmemCacheCpu* c, Gfp gfp, CpuTask* task, out void* freelist)
    {
        freelist = null;
        if (node.NrPartial == 0)
            return null;

        Page* taken = null;
        int extra = 0;
        node.Lock.Acquire();
        ListHead* list = node.Partial;
        if (_slabs.Options.SheavesEverywhere)
        {
            taken = FullestLocked(node, gfp, task);
            if (taken != null)
            {
                node.RemoveLocked(taken);
                freelist = Freeze(taken);
            }

            node.Lock.Release();
            return taken;
        }

        for (ListHead* entry = list->Next; entry != list;)
        {
            Page* slab = Page.FromSlabList(entry);
            entry = entry->Next;
            if (!MayUse(slab, gfp, task))
                continue;

            node.RemoveLocked(slab);
            if (taken == null)
            {
                taken = slab;
                freelist = Freeze(slab);
                if (CpuPartialSlabs == 0)
                    break;
            }
            else
            {
                PushCpuPartial(c, slab);
                if (++extra > CpuPartialSlabs / 2)
                    break;
            }
        }

        node.Lock.Release();
        return taken;
    }

    /// <summary>
    /// The slab with the fewest free objects among the first of the list: the others may become empty meanwhile. Those
    /// looked at go to the end, so that the next look is at others.
    /// </summary>
    private unsafe Page* FullestLocked(KmemCacheNode node, Gfp gfp, CpuTask* task)
    {
        Page* fullest = null;
        int fewest = int.MaxValue;
        ListHead* list = node.Partial;
        ListHead* entry = list->Next;
        for (int looked = 0; entry != list && looked < PartialLookAhead; looked++)
        {
            Page* slab = Page.FromSlabList(entry);
            entry = entry->Next;
            int free = SlabState.Read(slab).Free;
            if (free < fewest && MayUse(slab, gfp, task))
            {
                fewest = free;
                fullest = slab;
            }
        }

        return fullest;
    }

    /// <summary>A slab becomes current: all its objects count as in use, its own list is the CPU's now.</summary>
    private unsafe void* Freeze(Page* slab)
    {
        while (true)
        {
            SlabState state = SlabState.Read(slab);
            Bug.On(!state.HasFree || state.Frozen, "a partial slab has free objects and belongs to nobody");
            if (SlabState.TryChange(slab, state, state.With(SlabState.NoFreeObject, state.Objects, frozen: true)))
                return ObjectAt(slab, state.FreeIndex);
        }
    }

    /// <summary>
    /// Frees a chain of objects into a slab that is not this CPU's current one. Entered inside a section, left outside.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void FreeSlow(CpuTask* task, int cpu, Page* slab, void* head, void* tail, int count)
    {
        if (_debug != null)
        {
            _cpus.Leave(task);
            FreeChainDebug(slab, head, count);
            return;
        }

        KmemCacheNode node = _nodes[NodeOf(slab)];
        int headIndex = IndexOf(slab, head);
        bool locked = false;
        SlabState prior;
        SlabState next;
        while (true)
        {
            prior = SlabState.Read(slab);
            if (prior.InUse < count)
                ThrowTooManyFreed(task, node, locked);
            SetFreePointer(tail, prior.HasFree ? ObjectAt(slab, prior.FreeIndex) : null);
            next = prior.With(headIndex, prior.InUse - count, prior.Frozen);

            // The last object of a slab that may be on the node's list: the list must not change meanwhile.
            bool needLock = next.InUse == 0 && !prior.Frozen && prior.HasFree;
            if (needLock && !locked)
            {
                node.Lock.Acquire();
                locked = true;
                continue;
            }

            if (SlabState.TryChange(slab, prior, next))
                break;
        }

        Page* discard = null;
        if (locked)
        {
            bool onList = (slab->Flags & PageFlags.SlabOnPartialList) != 0;
            if (onList && next.InUse == 0 && !prior.Frozen && node.NrPartial >= MinPartial)
            {
                node.RemoveLocked(slab);
                discard = slab;
            }

            node.Lock.Release();
        }

        Page* drain = null;
        if (!prior.Frozen && !prior.HasFree)
            drain = PutCpuPartial(CpuAt(cpu), slab); // it was full and on no list: this CPU keeps it
        _cpus.Leave(task);

        if (drain != null)
            DrainPartialChain(drain);
        if (discard != null)
            Discard(discard);
    }

    /// <summary>Two threads freed one object at the same instant: neither saw the other's mark.</summary>
    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void ThrowTooManyFreed(CpuTask* task, KmemCacheNode node, bool locked)
    {
        if (locked)
            node.Lock.Release();
        _cpus.Leave(task);
        _slabs.Pages.ThrowBug($"BUG {Name}: Object already free: more objects freed than the slab has in use");
    }

    /// <summary>Puts a slab in front of the CPU's chain; a chain that is long enough is handed back whole.</summary>
    /// <returns>The former chain, to be drained, or null.</returns>
    private unsafe Page* PutCpuPartial(KmemCacheCpu* c, Page* slab)
    {
        Page* old = c->Partial;
        if (old != null && old->CpuPartialSlabs >= CpuPartialSlabs)
        {
            slab->CpuPartialNext = null;
            slab->CpuPartialSlabs = 1;
            c->Partial = slab;
            return old;
        }

        PushCpuPartial(c, slab);
        return null;
    }

    private static unsafe void PushCpuPartial(KmemCacheCpu* c, Page* slab)
    {
        Page* old = c->Partial;
        slab->CpuPartialSlabs = old == null ? 1 : old->CpuPartialSlabs + 1;
        slab->CpuPartialNext = old;
        c->Partial = slab;
    }

    /// <summary>
    /// Moves a chain of partial slabs to the tails of their nodes' lists. Empty ones beyond the minimum are freed after
    /// the walk, the last one met first (__put_partials). Outside a section.
    /// </summary>
    private unsafe void DrainPartialChain(Page* chain)
    {
        Page* discard = null;
        KmemCacheNode? node = null;
        while (chain != null)
        {
            Page* slab = chain;
            chain = slab->CpuPartialNext;
            KmemCacheNode its = _nodes[NodeOf(slab)];
            if (its != node)
            {
                node?.Lock.Release();
                node = its;
                node.Lock.Acquire();
            }

            if (SlabState.Read(slab).InUse == 0 && node.NrPartial >= MinPartial)
            {
                slab->CpuPartialNext = discard;
                discard = slab;
            }
            else
            {
                node.AddLocked(slab, tail: true);
            }
        }

        node?.Lock.Release();
        DiscardChain(discard);
    }

    private unsafe void DiscardChain(Page* discard)
    {
        while (discard != null)
        {
            Page* slab = discard;
            discard = slab->CpuPartialNext;
            Discard(slab);
        }
    }

    /// <summary>Slabs made with emergency memory serve only those who may use it (pfmemalloc_match).</summary>
    private unsafe bool MayUse(Page* slab, Gfp gfp, CpuTask* task) =>
        (slab->Flags & PageFlags.SlabPfMemAlloc) == 0 || PageAllocator.HasFullReserve(gfp, task);

    private unsafe int NodeOf(Page* slab) => _nodes.Length == 1 ? 0 : _slabs.NodeOf(slab);
}
