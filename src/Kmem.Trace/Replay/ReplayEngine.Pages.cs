using System.Runtime.CompilerServices;

namespace Kmem.Tracing;

/// <content>
/// Page events, and how to tell the pages of slabs from others. The recorded kernel's SLUB got its slabs from the page
/// allocator, which the trace shows; ours gets its own, so those events must not be replayed:
/// <code>
///   mm_page_alloc ─▶ flags as only SLUB combines them? ──────────yes─▶ slab: remember, do nothing
///                     │ no
///                     ▼
///                    allocate ─▶ later an object is given out at an address inside ─▶ a slab after all: take it back
/// </code>
/// The second test needs addresses as they are. Where the kernel printed them hashed, the flags decide alone; and a
/// large kmalloc is known by the page event of its size that came right before on the same CPU.
/// </content>
internal sealed partial class ReplayEngine
{
    /// <summary>Physical addresses have at most 52 bits.</summary>
    private const ulong MaxPfn = 1UL << 40;

    /// <summary>
    /// What a request for a slab's pages can carry: the caller's efforts, a node, the cache's zone and type.
    /// </summary>
    private const Gfp SlabPageFlags = GfpMask.Reclaim | GfpMask.Constraint
        | Gfp.Comp | Gfp.Dma | Gfp.Dma32 | Gfp.Reclaimable;

    /// <summary>What the first attempt always carries: it may fail, because a smaller slab will do.</summary>
    private const Gfp FirstAttempt = Gfp.Comp | Gfp.NoWarn | Gfp.NoRetry;

    /// <summary>
    /// Not carried over: nobody reads the pages, and blocks that are not compound can be freed in parts.
    /// </summary>
    private const Gfp IgnoredForPages = Gfp.Zero | Gfp.Comp | Gfp.NoFail;

    private readonly AddressTable<Block> _blocks = new(1 << 12);
    private readonly int[] _blocksOfOrder = new int[PageOrder.Count];
    private readonly LastPage[] _lastPage;      // by CPU
    private DirectMap _directMap = new();
    private long _pageAllocs;
    private long _pageFrees;
    private long _slabPages;
    private long _largePages;
    private long _slabPageFrees;
    private long _livePages;

    private enum BlockKind : byte
    {
        Plain,
        Slab,
        LargeKmalloc,
    }

    private void PageAlloc(in TraceEvent e, int cpu)
    {
        if (!HasBlock(e, cpu))
            return;

        ForgetOverlapped(e.Pfn, e.Order);
        bool slab = IsSlabRequest(e, cpu);
        _lastPage[cpu] = new LastPage { Pfn = e.Pfn, Gfp = e.GfpFlags, Order = e.Order, Pid = e.Pid, IsSlab = slab };
        ref Block block = ref _blocks.Add(e.Pfn, out _);
        block = new Block { Ours = Pfn.None, Order = (byte)e.Order, Kind = slab ? BlockKind.Slab : BlockKind.Plain };
        _blocksOfOrder[e.Order]++;
        if (slab)
        {
            _slabPages++;
            return;
        }

        _pageAllocs++;
        Gfp gfp = ((Gfp)e.GfpFlags & GfpMask.Bits & ~IgnoredForPages) | _quiet;
        if (!gfp.HasValidZone() || !gfp.HasValidMobility())
            gfp &= ~(GfpMask.Zone | GfpMask.Mobility);
        Pfn ours = _machine.AllocPages(gfp, e.Order);
        if (ours.IsValid)
        {
            block.Ours = ours;
            _livePages += 1L << e.Order;
            TellArea(e, ours);
        }
        else
        {
            Failed();
        }
    }

    private void PageFree(in TraceEvent e)
    {
        if (e.Pfn - 1 >= MaxPfn || e.Order > PageOrder.Max)
        {
            _skipped++;
            return;
        }

        ref Block block = ref _blocks.Find(e.Pfn);
        if (Unsafe.IsNullRef(ref block) || block.Order != e.Order)
        {
            FreeOdd(e);
            return;
        }

        CountFree(block);
        Drop(e.Pfn);
    }

    /// <summary>Whether a page event tells of pages that were given out; counts it if not.</summary>
    private bool HasBlock(in TraceEvent e, int cpu)
    {
        if (e.Pfn - 1 < MaxPfn && e.Order <= PageOrder.Max)
            return true;

        if (e.Pfn is 0 or ulong.MaxValue)
        {
            // After SLUB's first attempt failed it tries again, smaller and with the caller's own flags.
            _tracedFailures++;
            _lastPage[cpu] = new LastPage { Pid = e.Pid, SlabFailed = IsFirstAttempt((Gfp)e.GfpFlags) };
        }
        else
        {
            _skipped++;
        }

        return false;
    }

    private bool IsSlabRequest(in TraceEvent e, int cpu)
    {
        var gfp = (Gfp)e.GfpFlags;
        ref LastPage last = ref _lastPage[cpu];
        return IsFirstAttempt(gfp)
            || (last.SlabFailed && last.Pid == e.Pid && (gfp & Gfp.Comp) != 0 && (gfp & ~SlabPageFlags) == 0);
    }

    /// <summary>
    /// Network buffers are asked for with nearly the same flags, but never with direct reclaim and always with I/O; a
    /// slab for a kvmalloc can look so, too, and is then known by its objects.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool IsFirstAttempt(Gfp gfp) =>
        (gfp & FirstAttempt) == FirstAttempt
        && (gfp & ~(SlabPageFlags & ~Gfp.NoFail)) == 0
        && (gfp & (Gfp.Reclaim | Gfp.IO)) != (Gfp.KswapdReclaim | Gfp.IO);

    /// <summary>Before an object is given out: if it lies in a block that we allocated, that block is a slab.</summary>
    private void RecogniseSlab(in TraceEvent e, int cpu)
    {
        bool large = e.BytesAlloc > KmallocClasses.MaxCacheSize && e.Kind == TraceEventKind.Kmalloc;
        if (DirectMap.IsAddress(e.Ptr))
        {
            if (!_directMap.IsVerified)
                Witness(e, cpu);

            ref Block block = ref FindCovering(_directMap.PfnOf(e.Ptr), out ulong head);
            if (!Unsafe.IsNullRef(ref block))
            {
                if (block.Slot == 0)
                    TakeBack(ref block, head, e, large);
                return;
            }
        }

        if (large && !_directMap.IsVerified)
            RecogniseLarge(e, cpu);
    }

    private void Witness(in TraceEvent e, int cpu)
    {
        ref LastPage last = ref _lastPage[cpu];
        if (last.Pfn != 0 && last.Pid == e.Pid)
            _directMap.Witness(e.Ptr, last.Pfn, last.Order);
    }

    /// <summary>Without addresses: the page event right before, if it is of the same size and task.</summary>
    private void RecogniseLarge(in TraceEvent e, int cpu)
    {
        ref LastPage last = ref _lastPage[cpu];
        if (last.Pfn == 0 || last.IsSlab || last.Pid != e.Pid
            || (last.Gfp & (uint)Gfp.Comp) == 0 || (ulong)Pfn.PageSize << last.Order != e.BytesAlloc)
        {
            return;
        }

        ref Block block = ref _blocks.Find(last.Pfn);
        if (!Unsafe.IsNullRef(ref block) && block.Order == last.Order)
            TakeBack(ref block, large: true);
        last = default;
    }

    /// <summary>
    /// An object lies in a block: it is a slab's. Where its slots are tells which objects leave with it.
    /// </summary>
    private void TakeBack(ref Block block, ulong head, in TraceEvent e, bool large)
    {
        TakeBack(ref block, large);
        if (e.BytesAlloc is > 0 and <= (ulong)PageOrder.MaxBlockPages * Pfn.PageSize)
        {
            block.Slot = (uint)e.BytesAlloc;
            block.FirstSlot = (uint)((e.Ptr - _directMap.AddressOf(head)) % e.BytesAlloc);
        }
    }

    /// <summary>A block that we allocated turns out to be the slab's or kmalloc's own: as if we had not.</summary>
    private void TakeBack(ref Block block, bool large)
    {
        if (block.Kind != BlockKind.Plain)
            return;

        block.Kind = large ? BlockKind.LargeKmalloc : BlockKind.Slab;
        _pageAllocs--;
        if (large)
            _largePages++;
        else
            _slabPages++;

        if (block.Ours.IsValid)
            FreeOurs(ref block);
        else
            _failedAllocs--;
    }

    /// <summary>The page event right before was that of a slab with reclaimable objects.</summary>
    private bool IsSlabReclaimable(in TraceEvent e, int cpu)
    {
        ref LastPage last = ref _lastPage[cpu];
        return last.IsSlab && last.Pid == e.Pid && (last.Gfp & (uint)Gfp.Reclaimable) != 0;
    }

    /// <summary>The block that a frame lies in, or a null reference.</summary>
    private ref Block FindCovering(ulong pfn, out ulong head)
    {
        for (int order = 0; order < _blocksOfOrder.Length; order++)
        {
            if (_blocksOfOrder[order] == 0)
                continue;

            head = pfn & ~((1UL << order) - 1);
            ref Block block = ref head == 0 ? ref Unsafe.NullRef<Block>() : ref _blocks.Find(head);
            if (!Unsafe.IsNullRef(ref block) && block.Order == order)
                return ref block;
        }

        head = 0;
        return ref Unsafe.NullRef<Block>();
    }

    /// <summary>Blocks that share frames with one that is given out now were freed unseen.</summary>
    private void ForgetOverlapped(ulong pfn, int order)
    {
        if (!Unsafe.IsNullRef(ref FindCovering(pfn, out ulong head)))
        {
            _missedFrees++;
            Drop(head);
        }

        for (ulong frame = pfn + 1; frame < pfn + (1UL << order); frame++)
        {
            if (!Unsafe.IsNullRef(ref _blocks.Find(frame)))
            {
                _missedFrees++;
                Drop(frame);
            }
        }
    }

    /// <summary>
    /// A free that does not match a block: part of one (a split huge page), several, or none we know.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void FreeOdd(in TraceEvent e)
    {
        ref Block whole = ref FindCovering(e.Pfn, out ulong head);
        bool known = !Unsafe.IsNullRef(ref whole) && whole.Order > e.Order;
        if (known)
        {
            CountFree(whole);
            if (whole.Kind == BlockKind.Plain)
                Split(head, whole);
            else
                Drop(head);
        }

        for (ulong frame = e.Pfn; frame < e.Pfn + (1UL << e.Order); frame++)
        {
            ref Block part = ref _blocks.Find(frame);
            if (Unsafe.IsNullRef(ref part))
                continue;

            if (!known)
                CountFree(part);
            known = true;
            Drop(frame);
        }

        if (!known)
            _unknownFrees++;
    }

    /// <summary>Turns a block into single frames, here and in the table.</summary>
    private void Split(ulong head, Block block)
    {
        if (block.Ours.IsValid)
            _machine.SplitPages(block.Ours, block.Order);
        _blocks.Remove(head, out _);
        _blocksOfOrder[block.Order]--;
        for (ulong i = 0; i < 1UL << block.Order; i++)
        {
            _blocks.Add(head + i, out _) = new Block { Ours = block.Ours.IsValid ? block.Ours + i : Pfn.None };
            _blocksOfOrder[0]++;
        }
    }

    private void CountFree(in Block block)
    {
        if (block.Kind != BlockKind.Plain)
            _slabPageFrees++;
        else if (block.Ours.IsValid)
            _pageFrees++;
        else
            _freesOfFailed++;
    }

    /// <summary>Forgets a block: frees ours, or what is still in the slab.</summary>
    private void Drop(ulong head)
    {
        _blocks.Remove(head, out Block block);
        _blocksOfOrder[block.Order]--;
        if (block.Ours.IsValid)
            FreeOurs(ref block);
        else if (block.Slot != 0)
            FreeObjectsIn(head, block);
    }

    private void FreeOurs(ref Block block)
    {
        Pfn ours = block.Ours;
        block.Ours = Pfn.None;
        _livePages -= 1L << block.Order;
        _machine.FreePages(ours, block.Order);
    }

    /// <summary>A slab is given back only when it is empty: its objects were freed unseen (kfree_rcu, bulk).</summary>
    private void FreeObjectsIn(ulong head, in Block block)
    {
        ulong start = _directMap.AddressOf(head);
        ulong end = start + ((ulong)Pfn.PageSize << block.Order);
        for (ulong address = start + block.FirstSlot; address < end; address += block.Slot)
        {
            if (!_objects.Remove(address, out LiveObject obj))
                continue;

            _missedFrees++;
            if (obj.Ours != 0)
                Release(obj);
        }
    }

    /// <summary>A block that a page event gave out and none has taken back.</summary>
    private struct Block
    {
        /// <summary>Our block; none if it is a slab's, or if there was no memory.</summary>
        public Pfn Ours;

        /// <summary>Bytes of a slot, if it is a slab and one of its objects was seen.</summary>
        public uint Slot;

        /// <summary>Bytes from the start of the slab to the first object.</summary>
        public uint FirstSlot;

        public byte Order;
        public BlockKind Kind;
    }

    /// <summary>The last page event of a CPU.</summary>
    private struct LastPage
    {
        /// <summary>Its first frame; 0 if it failed.</summary>
        public ulong Pfn;
        public uint Gfp;
        public int Order;
        public int Pid;
        public bool IsSlab;

        /// <summary>It was SLUB's first attempt, and failed.</summary>
        public bool SlabFailed;
    }
}
