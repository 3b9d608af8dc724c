using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>
/// Sheaves: per CPU a main one to pop from and push to, a spare one (empty or full), and one that collects objects
/// freed after a grace period; behind them the node's barn. Only for caches created with a sheaf capacity.
/// </content>
public sealed partial class KmemCache
{
    /// <summary>Objects that a main sheaf gives back to its slabs at a time (PCS_BATCH_MAX).</summary>
    private const int FlushBatch = 32;

    /// <summary>The largest sheaf whose objects are spread; a program may ask for any.</summary>
    private const int MostSpread = 128;

    private readonly int _sheafCapacity;
    private readonly int _objectsPerLine;

    /// <summary>Objects in a sheaf; 0 if the cache has no sheaves.</summary>
    public int SheafCapacity => _sheafCapacity;

    /// <summary>
    /// Gives every CPU its main sheaf, if the cache has sheaves; where all caches have them, a CPU gets one at first
    /// use.
    /// </summary>
    /// <returns>False if memory ran out; those already given stay.</returns>
    internal unsafe bool StartSheaves()
    {
        for (int cpu = 0; cpu < _cpus.Count && _sheafCapacity > 0 && !_slabs.Options.SheavesEverywhere; cpu++)
        {
            Sheaf* main = NewSheaf(Gfp.Kernel, _sheafCapacity);
            if (main == null)
                return false;
            CpuAt(cpu)->Install(main);
        }

        return true;
    }

    /// <summary>
    /// Takes a sheaf that holds at least a number of objects, so that as many allocations cannot fail
    /// (kmem_cache_prefill_sheaf).
    /// </summary>
    /// <returns>The sheaf, or null if memory ran out.</returns>
    internal unsafe Sheaf* PrefillSheaf(Gfp gfp, int count)
    {
        Sheaf* sheaf;
        if (count > _sheafCapacity)
        {
            sheaf = NewSheaf(gfp, count);
        }
        else
        {
            CpuTask* task = _cpus.Current;
            int cpu = _cpus.Enter(task);
            KmemCacheCpu* c = CpuAt(cpu);
            Barn barn = BarnOf(cpu);
            sheaf = c->Spare;
            c->Spare = null;
            if (sheaf == null)
                sheaf = barn.TakeFull();
            if (sheaf == null)
                sheaf = barn.TakeEmpty();
            _cpus.Leave(task);
            if (sheaf == null)
                sheaf = NewSheaf(gfp, _sheafCapacity);
        }

        if (sheaf != null && sheaf->Size < count && !FillOrFree(sheaf, gfp))
            return null;
        return sheaf;
    }

    /// <summary>Tops a prefilled sheaf up (kmem_cache_refill_sheaf).</summary>
    internal unsafe bool RefillSheaf(Gfp gfp, ref Sheaf* sheaf, int count)
    {
        if (sheaf->Size >= count)
            return true;
        if (sheaf->Capacity >= count)
            return Fill(sheaf, gfp);

        Sheaf* larger = PrefillSheaf(gfp, count);
        if (larger == null)
            return false;
        ReturnSheaf(gfp, sheaf);
        sheaf = larger;
        return true;
    }

    /// <summary>Takes an object of a prefilled sheaf; null when it is used up.</summary>
    internal unsafe void* AllocFromPrefilled(Gfp gfp, Sheaf* sheaf)
    {
        if (sheaf->Size == 0)
            return null;

        void* obj = Sheaf.Pop(sheaf);
        MarkLive(obj);
        if (_clears && _hardening is { InitOnFree: true })
            CheckUntouched(obj);
        if ((gfp & Gfp.Zero) != 0 || (_clears && _hardening is { InitOnAlloc: true }))
            new Span<byte>(obj, _objectSize).Clear();
        return obj;
    }

    /// <summary>Gives a prefilled sheaf back as it is (kmem_cache_return_sheaf).</summary>
    internal unsafe void ReturnSheaf(Gfp gfp, Sheaf* sheaf)
    {
        if (sheaf->Capacity != _sheafCapacity)
        {
            FreeSheaf(sheaf);
            return;
        }

        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        KmemCacheCpu* c = CpuAt(cpu);
        Barn barn = BarnOf(cpu);
        if (c->Spare == null)
        {
            c->Spare = sheaf;
            sheaf = null;
        }

        _cpus.Leave(task);
        if (sheaf == null)
            return;
        if (barn.FullCount >= barn.Limit)
            FreeSheaf(sheaf);
        else if (FillOrFree(sheaf, gfp))
            barn.PutFull(sheaf);
    }

    /// <summary>
    /// Takes a sheaf into one's own hands: allocations and frees that go through it look at nothing else. Without a
    /// sheaf (in a profile or for want of memory) the scope does what the cache does.
    /// </summary>
    /// <param name="gfp">For all allocations of the scope; <see cref="Gfp.Zero"/> is refused.</param>
    /// <returns>The scope; dispose it to give the sheaf back.</returns>
    /// <exception cref="KernelBugException">The request may sleep and this context may not.</exception>
    /// <exception cref="ArgumentException">The flags ask for cleared memory: clear it where it is needed.</exception>
    public unsafe CacheScope Enter(Gfp gfp)
    {
        if ((gfp & Gfp.Zero) != 0)
            throw new ArgumentException("a scope does not clear objects", nameof(gfp));

        _slabs.Pages.CheckContext(gfp, _cpus.Current);
        return new CacheScope(this, _slabs.PlacesOfFrames, _live, _liveShift, gfp);
    }

    /// <summary>
    /// A sheaf for a scope: this CPU's spare one, or one of the barn, or a new one; null if there is none.
    /// </summary>
    internal unsafe Sheaf* TakeSheaf(Gfp gfp)
    {
        if (_sheafCapacity == 0 || IsClosed || _slabs.FastId < 0)
            return null;

        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        KmemCacheCpu* c = CpuAt(cpu);
        Sheaf* sheaf = c->Spare;
        c->Spare = null;
        Barn barn = BarnOf(cpu);
        _cpus.Leave(task);
        if (sheaf == null)
            sheaf = barn.TakeFull();
        if (sheaf == null)
            sheaf = barn.TakeEmpty();
        return sheaf != null ? sheaf : NewSheaf(gfp, _sheafCapacity);
    }

    /// <summary>Gives a sheaf back, whatever it holds.</summary>
    internal unsafe void GiveSheaf(Sheaf* sheaf)
    {
        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        KmemCacheCpu* c = CpuAt(cpu);
        Barn barn = BarnOf(cpu);
        if (c->Spare == null && !IsClosed)
        {
            c->Spare = sheaf;
            sheaf = null;
        }

        _cpus.Leave(task);
        if (sheaf == null)
            return;
        if (sheaf->IsFull && barn.FullCount < barn.Limit && !IsClosed)
        {
            barn.PutFull(sheaf);
            return;
        }

        FreeMarked(Sheaf.Objects(sheaf));
        sheaf->Size = 0;
        if (barn.EmptyCount < barn.Limit && !IsClosed)
            barn.PutEmpty(sheaf);
        else
            FreeSheaf(sheaf);
    }

    /// <summary>
    /// A full sheaf for an empty one; null, and the empty one is still the caller's, if there is no memory.
    /// </summary>
    internal unsafe Sheaf* ExchangeForFull(Sheaf* empty, Gfp gfp)
    {
        CpuTask* task = _cpus.Current;
        _slabs.Pages.CheckContext(gfp, task);
        Sheaf* full = IsClosed ? null : BarnOf(_cpus.CurrentCpu).ExchangeForFull(empty);
        if (full != null)
            return full;
        return (gfp & Gfp.DirectReclaim) != 0 && !IsClosed && Fill(empty, gfp) ? empty : null;
    }

    /// <summary>
    /// Frees objects that are marked as free: to sheaves as long as there is room, else to their slabs.
    /// </summary>
    internal void FreeMarked(Span<nint> objects)
    {
        if (IsClosed)
            FreeToSlabs(objects);
        else
            AppendToSheaves(objects);
    }

    /// <summary>
    /// Puts an object aside until a grace period is over, with others of its kind. It is no longer live.
    /// </summary>
    /// <returns>False if there is no sheaf for it: the object is as before, and the caller finds another way.</returns>
    internal unsafe bool FreeRcu(Page* slab, void* obj)
    {
        if (_route < 0 || (_nodes.Length > 1 && NodeOf(slab) != _slabs.NodeOfCpu(_cpus.CurrentCpu)))
            return false;
        if (!TryMarkFree(obj))
            _slabs.ThrowBadFree(this, slab, obj);
        if (FreeRcuToSheaf(obj))
            return true;

        MarkLive(obj);
        return false;
    }

    /// <summary>The same for an object that is marked free already.</summary>
    internal unsafe bool FreeRcuToSheaf(void* obj)
    {
        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        KmemCacheCpu* c = CpuAt(cpu);
        Barn barn = BarnOf(cpu);
        if (c->RcuFree == null)
        {
            if (c->Spare != null && c->Spare->Size == 0)
            {
                c->RcuFree = c->Spare;
                c->Spare = null;
            }
            else
            {
                c->RcuFree = barn.TakeEmpty();
            }
        }

        if (c->RcuFree == null)
        {
            _cpus.Leave(task);
            Sheaf* empty = NewSheaf(Gfp.NoWait, _sheafCapacity);
            if (empty == null)
                return false;

            cpu = _cpus.Enter(task);
            c = CpuAt(cpu);
            if (c->RcuFree == null)
                c->RcuFree = empty;
            else
                BarnOf(cpu).PutEmpty(empty);
        }

        Sheaf* sheaf = c->RcuFree;
        Sheaf.Push(sheaf, obj);
        bool full = sheaf->IsFull;
        if (full)
        {
            sheaf->Node = _slabs.NodeOfCpu(cpu);
            c->RcuFree = null;
        }

        _cpus.Leave(task);
        if (full)
            _slabs.Rcu.Call(new RcuSheafFree(this, (nint)sheaf).Run);
        return true;
    }

    /// <summary>
    /// The grace period of a sheaf is over: it becomes a full one of its barn, unless that has enough.
    /// </summary>
    internal unsafe void FinishRcuSheaf(Sheaf* sheaf)
    {
        Barn barn = _nodes[sheaf->Node].Barn!;
        if (sheaf->IsFull && barn.FullCount < barn.Limit)
        {
            barn.PutFull(sheaf);
            return;
        }

        bool wasFull = sheaf->IsFull;
        Flush(sheaf);
        if (wasFull && barn.EmptyCount < barn.Limit)
            barn.PutEmpty(sheaf);
        else
            FreeSheaf(sheaf);
    }

    /// <summary>Pops an object of the CPU's main sheaf; null leaves it to the slabs.</summary>
    private unsafe void* AllocFromSheaf(CpuTask* task, Gfp gfp, int node)
    {
        int cpu = _cpus.Enter(task);
        KmemCacheCpu* c = CpuAt(cpu);
        if (node >= 0 && node != _slabs.NodeOfCpu(cpu))
        {
            _cpus.Leave(task);
            return null;
        }

        if (c->Top == c->Low && !RefillMain(task, ref c, cpu, gfp))
            return null;

        void* obj = c->Top[-1];
        if (node >= 0 && NodeOf(_slabs.SlabOf(obj)) != node)
            obj = null;
        else
            c->Top--;
        _cpus.Leave(task);
        return obj;
    }

    /// <summary>Makes the main sheaf non-empty. Entered inside a section; on failure left outside.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe bool RefillMain(CpuTask* task, ref KmemCacheCpu* c, int cpu, Gfp gfp)
    {
        if (IsClosed)
        {
            _cpus.Leave(task);
            return false;
        }

        if (c->Spare != null && c->Spare->Size > 0)
        {
            _slabs.Trace?.ObjectFrom(ObjectSource.SpareSheaf);
            SwapSheaves(c);
            return true;
        }

        Barn barn = BarnOf(cpu);
        Sheaf* sheaf = c->Main == null ? barn.TakeFull() : barn.ExchangeForFull(c->Settle());
        if (sheaf != null)
        {
            _slabs.Trace?.ObjectFrom(ObjectSource.Barn);
            c->Install(sheaf);
            return true;
        }

        if ((gfp & Gfp.DirectReclaim) != 0)
        {
            sheaf = c->Spare; // it is empty
            c->Spare = null;
            if (sheaf == null)
                sheaf = barn.TakeEmpty();
        }

        _cpus.Leave(task);
        if ((gfp & Gfp.DirectReclaim) == 0)
            return false;
        if (sheaf == null)
            sheaf = NewSheaf(gfp, _sheafCapacity);
        if (sheaf == null || !FillOrFree(sheaf, gfp))
            return false;

        cpu = _cpus.Enter(task);
        c = CpuAt(cpu);
        InstallFull(c, BarnOf(cpu), sheaf);
        return true;
    }

    private static unsafe void InstallFull(KmemCacheCpu* c, Barn barn, Sheaf* full)
    {
        if (c->MainSize == 0)
        {
            if (c->Main != null)
                barn.PutEmpty(c->Settle());
            c->Install(full);
        }
        else if (c->Spare == null)
        {
            c->Spare = full;
        }
        else if (c->Spare->Size == 0)
        {
            barn.PutEmpty(c->Spare);
            c->Spare = full;
        }
        else
        {
            barn.PutFull(full);
        }
    }

    /// <summary>Pushes a freed object to the CPU's main sheaf. It must belong to the CPU's node.</summary>
    /// <returns>
    /// False if the object belongs to another node, or this CPU has no sheaf and there is no memory for one.
    /// </returns>
    private unsafe bool FreeToSheaf(CpuTask* task, Page* slab, void* obj)
    {
        int cpu = _cpus.Enter(task);
        KmemCacheCpu* c = CpuAt(cpu);
        if (_nodes.Length > 1 && NodeOf(slab) != _slabs.NodeOfCpu(cpu))
        {
            _cpus.Leave(task);
            return false;
        }

        while (c->Top == c->High)
        {
            if (!MakeRoom(task, ref cpu, ref c))
                return false;
        }

        *c->Top++ = obj;
        _cpus.Leave(task);
        return true;
    }

    /// <summary>Replaces a full main sheaf. Entered and left inside a section, perhaps of another CPU.</summary>
    /// <returns>False if there is no sheaf at all: left outside.</returns>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe bool MakeRoom(CpuTask* task, ref int cpu, ref KmemCacheCpu* c)
    {
        Bug.On(c->Spare != null && c->Spare == c->Main, "a CPU has one sheaf twice");
        Barn barn = BarnOf(cpu);
        Sheaf* flushed = null;
        if (c->Spare == null)
        {
            Sheaf* empty = barn.TakeEmpty();
            if (empty != null)
            {
                c->Spare = c->Settle();
                c->Install(empty);
                return true;
            }
        }
        else if (!c->Spare->IsFull)
        {
            SwapSheaves(c);
            return true;
        }
        else
        {
            bool noRoom = false;
            Sheaf* empty = c->Main == null ? barn.TakeEmpty() : barn.ExchangeForEmpty(c->Settle(), out noRoom);
            if (empty != null)
            {
                c->Install(empty);
                return true;
            }

            if (noRoom)
            {
                flushed = c->Spare;
                c->Spare = null;
            }
        }

        _cpus.Leave(task);
        if (flushed != null)
        {
            Flush(flushed);
            Sheaf* surplus = barn.TakeSurplus();
            if (surplus != null)
                FreeSheaf(surplus);
        }
        else
        {
            flushed = NewSheaf(Gfp.NoWait, _sheafCapacity);
        }

        if (flushed == null && !FlushMain(task))
            return false;

        cpu = _cpus.Enter(task);
        c = CpuAt(cpu);
        if (flushed != null)
            InstallEmpty(c, BarnOf(cpu), flushed);
        return true;
    }

    private static unsafe void InstallEmpty(KmemCacheCpu* c, Barn barn, Sheaf* empty)
    {
        if (c->Spare == null)
        {
            c->Spare = c->Settle();
            c->Install(empty);
        }
        else if (c->MainRoom > 0)
        {
            barn.PutEmpty(empty);
        }
        else if (!c->Spare->IsFull)
        {
            SwapSheaves(c);
            barn.PutEmpty(empty);
        }
        else
        {
            if (c->Main != null)
                barn.PutFull(c->Settle());
            c->Install(empty);
        }
    }

    /// <summary>
    /// Empties this CPU's main sheaf in batches from its top, each kept in array order. Outside a section.
    /// </summary>
    /// <returns>False if there is none.</returns>
    private unsafe bool FlushMain(CpuTask* task)
    {
        Span<nint> batch = stackalloc nint[FlushBatch];
        int count;
        do
        {
            int cpu = _cpus.Enter(task);
            KmemCacheCpu* c = CpuAt(cpu);
            bool none = c->Main == null;
            count = Math.Min(FlushBatch, c->MainSize);
            c->Top -= count;
            new Span<nint>(c->Top, count).CopyTo(batch);
            _cpus.Leave(task);
            if (none)
                return false;
            FreeToSlabs(batch[..count]);
        }
        while (count == FlushBatch);
        return true;
    }

    /// <summary>Gives all objects of a sheaf back to their slabs. Outside a section.</summary>
    private unsafe void Flush(Sheaf* sheaf)
    {
        FreeToSlabs(Sheaf.Objects(sheaf));
        sheaf->Size = 0;
    }

    /// <summary>
    /// The bulk free without the free hooks: chains are not reversed, the match found last is the head. The objects are
    /// marked free already.
    /// </summary>
    private unsafe void FreeToSlabs(Span<nint> objects)
    {
        while (objects.Length > 0)
        {
            int left = objects.Length - 1;
            void* tail = (void*)objects[left];
            Page* slab = _slabs.SlabOf(tail);
            void* head = tail;
            int count = 1;
            int misses = BulkLookAhead;
            int same = left;
            for (int i = left - 1; i >= 0; i--)
            {
                if (_slabs.SlabOf((void*)objects[i]) == slab)
                {
                    SetFreePointer((void*)objects[i], head);
                    head = (void*)objects[i];
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
            objects = objects[..same];
        }
    }

    /// <summary>Fills a sheaf; if that fails, or a constructor throws, the sheaf is freed.</summary>
    private unsafe bool FillOrFree(Sheaf* sheaf, Gfp gfp)
    {
        bool filled = false;
        try
        {
            filled = Fill(sheaf, gfp);
        }
        finally
        {
            if (!filled)
                FreeSheaf(sheaf);
        }

        return filled;
    }

    /// <summary>Fills a sheaf to its capacity from the slabs; all or nothing. Outside a section.</summary>
    private unsafe bool Fill(Sheaf* sheaf, Gfp gfp)
    {
        int before = sheaf->Size;
        try
        {
            CpuTask* task = _cpus.Current;
            while (!sheaf->IsFull)
            {
                var room = new Span<nint>(Sheaf.ObjectsOf(sheaf) + sheaf->Size, (int)sheaf->Capacity - sheaf->Size);
                int got = AllocManyFromSlabs(task, gfp | Gfp.NoMemAlloc, room);
                if (got == 0)
                    return false;

                sheaf->Size += got;
            }

            if (_slabs.Options.SheavesEverywhere && _objectsPerLine > 1)
                SpreadOverLines(Sheaf.Objects(sheaf));
            return true;
        }
        finally
        {
            if (!sheaf->IsFull)
            {
                FreeToSlabs(Sheaf.Objects(sheaf)[before..]);
                sheaf->Size = before;
            }
        }
    }

    /// <summary>
    /// Objects of one cache line are not to leave a sheaf one after another: the next one is often for another thread,
    /// and two threads that write to one line wait for each other.
    /// <code>
    ///   line     | 0 1 2 3 | 4 5 6 7 | 8 9 …            0 4 8 … 1 5 9 … 2 6 …
    /// </code>
    /// </summary>
    private void SpreadOverLines(Span<nint> objects)
    {
        Span<nint> before = stackalloc nint[MostSpread];
        if (objects.Length > before.Length)
            return;

        objects.CopyTo(before);
        int to = 0;
        for (int column = 0; column < _objectsPerLine; column++)
        {
            for (int from = column; from < objects.Length; from += _objectsPerLine)
                objects[to++] = before[from];
        }
    }

    private unsafe Sheaf* NewSheaf(Gfp gfp, int capacity)
    {
        Gfp plain = gfp & ~(Gfp.Dma | Gfp.Reclaimable | Gfp.Account | Gfp.NoFail);
        var sheaf = (Sheaf*)_slabs.AllocMetadata((nuint)(Sheaf.HeaderBytes + (capacity * sizeof(nint))), plain | Gfp.Zero);
        if (sheaf == null)
            return null;

        _slabs.Watch?.Disown((nint)sheaf);
        *sheaf = new Sheaf { Capacity = capacity };
        return sheaf;
    }

    /// <summary>Ends a sheaf; what it holds goes to the slabs.</summary>
    private unsafe void FreeSheaf(Sheaf* sheaf)
    {
        Flush(sheaf);
        _slabs.FreeMetadata((nint)sheaf);
    }

    /// <summary>
    /// Lets the grace periods of objects begin that still gather on CPUs (kvfree_rcu_barrier_on_cache).
    /// </summary>
    internal unsafe void FlushRcuSheaves()
    {
        for (int cpu = 0; cpu < _cpus.Count && _sheafCapacity > 0; cpu++)
        {
            _cpus.AcquireRemote(cpu);
            Sheaf* sheaf = CpuAt(cpu)->RcuFree;
            CpuAt(cpu)->RcuFree = null;
            _cpus.ReleaseRemote(cpu);
            if (sheaf != null)
            {
                sheaf->Node = _slabs.NodeOfCpu(cpu);
                _slabs.Rcu.Call(new RcuSheafFree(this, (nint)sheaf).Run);
            }
        }
    }

    /// <summary>
    /// Gives all sheaves of a CPU back, except its main one, which is kept empty where a CPU cannot get one later.
    /// Outside a section.
    /// </summary>
    private unsafe void FlushSheavesOf(int cpu)
    {
        KmemCacheCpu* c = CpuAt(cpu);
        _cpus.AcquireRemote(cpu);
        Sheaf* spare = c->Spare;
        Sheaf* rcu = c->RcuFree;
        c->Spare = null;
        c->RcuFree = null;
        nint[] objects = new Span<nint>(c->Low, c->MainSize).ToArray();
        c->Top = c->Low;
        Sheaf* main = null;
        if (_slabs.Options.SheavesEverywhere)
        {
            main = c->Settle();
            c->Install(null);
        }

        _cpus.ReleaseRemote(cpu);

        if (main != null)
            FreeSheaf(main);
        if (spare != null)
            FreeSheaf(spare);
        if (rcu != null)
        {
            rcu->Node = _slabs.NodeOfCpu(cpu);
            _slabs.Rcu.Call(new RcuSheafFree(this, (nint)rcu).Run);
        }

        for (int end = objects.Length; end > 0; end -= FlushBatch)
        {
            int start = Math.Max(0, end - FlushBatch);
            FreeToSlabs(objects.AsSpan(start, end - start));
        }
    }

    /// <summary>Full sheaves are flushed and freed from the head, then the empty ones.</summary>
    private static unsafe void EmptyBarn(KmemCache cache, Barn barn)
    {
        for (Sheaf* sheaf = barn.TakeFull(); sheaf != null; sheaf = barn.TakeFull())
            cache.FreeSheaf(sheaf);
        for (Sheaf* sheaf = barn.TakeEmpty(); sheaf != null; sheaf = barn.TakeEmpty())
            cache.FreeSheaf(sheaf);
    }

    private Barn BarnOf(int cpu) => _nodes[_nodes.Length == 1 ? 0 : _slabs.NodeOfCpu(cpu)].Barn!;

    /// <summary>All sheaves that belong to the cache and hold objects; for checks.</summary>
    internal unsafe IEnumerable<nint> AllSheaves()
    {
        var all = new List<nint>();
        for (int cpu = 0; cpu < _cpus.Count && _sheafCapacity > 0; cpu++)
        {
            KmemCacheCpu* c = CpuAt(cpu);
            foreach (nint sheaf in (ReadOnlySpan<nint>)[(nint)c->Settle(), (nint)c->Spare, (nint)c->RcuFree])
            {
                if (sheaf != 0)
                    all.Add(sheaf);
            }
        }

        foreach (KmemCacheNode node in _nodes)
        {
            if (node.Barn != null)
                all.AddRange([.. node.Barn.List(full: true), .. node.Barn.List(full: false)]);
        }

        return all;
    }

    private static unsafe void SwapSheaves(KmemCacheCpu* c)
    {
        Sheaf* main = c->Settle();
        c->Install(c->Spare);
        c->Spare = main;
    }

    private sealed class RcuSheafFree(KmemCache cache, nint sheaf)
    {
        public unsafe void Run() => cache.FinishRcuSheaf((Sheaf*)sheaf);
    }
}
