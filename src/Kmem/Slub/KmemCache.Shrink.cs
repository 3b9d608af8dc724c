using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Text;

namespace Kmem;

/// <content>Flush, shrink, destroy, and counting.</content>
public sealed partial class KmemCache
{
    /// <summary>Slabs with up to this many free objects are sorted by a shrink (SHRINK_PROMOTE_MAX).</summary>
    private const int ShrinkPromoteMax = 32;

    /// <summary>
    /// Gives back all empty slabs and sorts the partial ones so that nearly full slabs are used first
    /// (kmem_cache_shrink).
    /// </summary>
    /// <returns>Whether any slab remains.</returns>
    public bool Shrink()
    {
        _slabs.Quarantine?.Flush(this);
        FlushAll();
        foreach (KmemCacheNode node in _nodes)
        {
            if (node.Barn != null)
                EmptyBarn(this, node.Barn);
        }

        if (_slabs.Options.SheavesEverywhere)
            FlushAll(); // what was in sheaves brought slabs to this CPU's chain
        foreach (KmemCacheNode node in _nodes)
            ShrinkNode(node);

        return SlabCount > 0;
    }

    /// <summary>
    /// Ends the cache (kmem_cache_destroy). If others were merged into it, only this user leaves. If objects are still
    /// in use, they are listed in the log, the cache stays as it was, and its memory is kept.
    /// </summary>
    /// <exception cref="KernelBugException">
    /// Objects are still allocated; or it was destroyed before; or it is one of the machine's own caches.
    /// </exception>
    public void Destroy() => _slabs.Destroy(this);

    /// <summary>Moves all that CPUs hold of this cache to the nodes' lists (flush_all).</summary>
    internal unsafe void FlushAll()
    {
        for (int cpu = 0; cpu < _cpus.Count; cpu++)
        {
            // A closing cache is waited for on every CPU: whoever was inside a section is through it afterwards.
            KmemCacheCpu* c = CpuAt(cpu);
            if (_sheafCapacity > 0)
                FlushSheavesOf(cpu);
            if (c->Slab == null && c->Partial == null && !IsClosed)
                continue;

            _cpus.AcquireRemote(cpu);
            Page* slab = c->Slab;
            void* freelist = c->Freelist;
            Page* chain = c->Partial;
            c->Slab = null;
            c->Freelist = null;
            c->Partial = null;
            _cpus.ReleaseRemote(cpu);

            if (slab != null)
                Deactivate(slab, freelist);
            if (chain != null)
                DrainPartialChain(chain);
        }
    }

    /// <summary>
    /// Writes a new limit for the CPUs' chains (sysfs cpu_partial): recomputed in slabs, and all CPUs flushed.
    /// </summary>
    internal void SetCpuPartial(int objects)
    {
        CpuPartial = objects;
        CpuPartialSlabs = ((2 * objects) + Geometry.ObjectsPerSlab - 1) / Geometry.ObjectsPerSlab;
        FlushAll();
    }

    /// <summary>A further user with this size joins (the alias path of kmem_cache_create).</summary>
    internal void Join(int objectSize)
    {
        RefCount++;
        _objectSize = Math.Max(_objectSize, objectSize);
        _inuse = Math.Max(_inuse, (objectSize + 7) & ~7);
    }

    /// <summary>Current slabs and chained slabs of one CPU; a glance, exact when nobody is at work.</summary>
    internal unsafe (int CpuSlabs, int PartialSlabs) CpuSlabsOf(int cpu)
    {
        KmemCacheCpu* c = CpuAt(cpu);
        Page* partial = c->Partial;
        return (c->Slab != null ? 1 : 0, partial == null ? 0 : partial->CpuPartialSlabs);
    }

    /// <summary>The cache's state on a CPU, for checks and state dumps; nobody may be at work there.</summary>
    internal unsafe KmemCacheCpu* StateOf(int cpu)
    {
        CpuAt(cpu)->Settle();
        return CpuAt(cpu);
    }

    /// <summary>Address of an object's link word turned into the next free object, for checks.</summary>
    internal unsafe void* NextFree(void* obj) => FreePointer(obj);

    internal unsafe void* ObjectOf(Page* slab, int index) => ObjectAt(slab, index);

    /// <summary>Frees the CPUs' main sheaves; the cache is empty and goes away.</summary>
    internal unsafe void FreeMainSheaves()
    {
        for (int cpu = 0; cpu < _cpus.Count && _sheafCapacity > 0; cpu++)
        {
            _cpus.AcquireRemote(cpu);
            Sheaf* main = CpuAt(cpu)->Settle();
            CpuAt(cpu)->Install(null);
            _cpus.ReleaseRemote(cpu);
            if (main != null)
                FreeSheaf(main);
        }
    }

    /// <summary>
    /// From here on no CPU gets another slab: a request that needs one is refused. What is on free lists still serves.
    /// </summary>
    internal void Close() => Volatile.Write(ref _closed, true);

    /// <summary>The cache was not destroyed after all.</summary>
    internal void Reopen() => Volatile.Write(ref _closed, false);

    /// <summary>
    /// The cache or the machine is gone: nothing can be allocated any more, and its place is somebody else's.
    /// </summary>
    internal unsafe void Abandon()
    {
        Close();
        for (int cpu = 0; cpu < _cpus.Count; cpu++)
            *CpuAt(cpu) = default;
        _place = 0;
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void ThrowClosed(CpuTask* task, Page* unusedSlab = null)
    {
        _cpus.Leave(task);
        if (unusedSlab != null)
            ReleasePages(unusedSlab);
        _slabs.Pages.ThrowBug($"BUG: kmem_cache_alloc({Name}): the cache is being destroyed, or is gone");
    }

    /// <summary>The objects still allocated, as the kernel lists them when a cache is destroyed too early.</summary>
    internal unsafe string LeftoverReport()
    {
        var text = new StringBuilder();
        text.Append(
            "=============================================================================\n"
            + $"BUG {Name} (Not tainted): Objects remaining on __kmem_cache_shutdown()\n"
            + "-----------------------------------------------------------------------------\n");
        const int Most = 64;
        int listed = 0;
        _slabs.ForEachSlab(this, slab =>
        {
            SlabState state = SlabState.Read((Page*)slab);
            text.Append($"Slab 0x{_slabs.KernelPageAddress((Page*)slab):x16} objects={state.Objects} used=")
                .Append(CountLiveIn((Page*)slab)).Append('\n');
            for (int i = 0; i < state.Objects && listed < Most; i++)
            {
                void* obj = ObjectAt((Page*)slab, i);
                if (!IsLive(obj))
                    continue;

                text.Append($"Object 0x{_slabs.KernelAddress(obj):x16} @offset={((long)i * SlotSize) + _leftPad}\n");
                if (_debug != null)
                    text.Append(_debug.TracksOf(obj));
                listed++;
            }
        });
        foreach (string guarded in _slabs.Kfence?.LiveOf(this) ?? [])
            text.Append(guarded).Append('\n');
        text.Append($"kmem_cache_destroy {Name}: Slab cache still has objects");
        return text.ToString();
    }

    internal unsafe int CountLiveIn(Page* slab)
    {
        int live = 0;
        int objects = SlabState.Read(slab).Objects;
        for (int i = 0; i < objects; i++)
        {
            if (IsLive(ObjectAt(slab, i)))
                live++;
        }

        return live;
    }

    private unsafe long CountLive()
    {
        long live = 0;
        _slabs.ForEachSlab(this, slab => live += CountLiveIn((Page*)slab));
        return live + (_slabs.Kfence?.LiveOf(this).Count ?? 0);
    }

    /// <summary>
    /// Slabs with few free objects come first, the fullest at the head; within one count the former order is reversed.
    /// Empty slabs go, whatever the minimum is.
    /// </summary>
    private unsafe void ShrinkNode(KmemCacheNode node)
    {
        var buckets = new List<nint>[ShrinkPromoteMax + 1];
        Page* discard = null;
        node.Lock.Acquire();
        for (ListHead* entry = node.Partial->Next; entry != node.Partial;)
        {
            Page* slab = Page.FromSlabList(entry);
            entry = entry->Next;
            int free = SlabState.Read(slab).Free;
            if (SlabState.Read(slab).InUse == 0)
            {
                node.RemoveLocked(slab);
                slab->CpuPartialNext = discard;
                discard = slab;
            }
            else if (free <= ShrinkPromoteMax)
            {
                (buckets[free] ??= []).Add((nint)slab);
            }
        }

        // From the emptiest bucket down, each slab to the head: the last one put there is the fullest.
        for (int free = ShrinkPromoteMax; free >= 1; free--)
        {
            foreach (nint slab in buckets[free] ?? [])
            {
                node.RemoveLocked((Page*)slab);
                node.AddLocked((Page*)slab, tail: false);
            }
        }

        node.Lock.Release();
        DiscardChain(discard);
    }
}
