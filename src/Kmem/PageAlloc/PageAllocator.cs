using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// The page allocator: blocks of 2ⁿ frames for a GFP mask. The way of a request:
/// <code>
///   AllocFrozen ─▶ Walk the zonelist at LOW ─▶ zone good? ─▶ ZonePages.Take ─▶ Prepare
///        │                 └ again without NOFRAGMENT                (per-CPU list, else buddy)
///        └─▶ AllocSlow: wake kswapd, MIN, reserves, reclaim, compaction, OOM, failure report
/// </code>
/// </summary>
/// <remarks>
/// mm/page_alloc.c, Linux 6.18: __alloc_frozen_pages_noprof, get_page_from_freelist, __free_frozen_pages.
/// </remarks>
internal sealed partial class PageAllocator : IDisposable
{
    private readonly CpuSet _cpus;
    private readonly MemMap _map;
    private readonly PageblockMap _blocks;
    private readonly Node[] _nodes;
    private readonly ZonePages?[] _zones;
    private readonly int[] _nodeOfCpu;
    private readonly KernelLog _log;
    private ITrace? _trace;

    public PageAllocator(
        CpuSet cpus, MemMap map, PageblockMap blocks, Node[] nodes, int[] nodeOfCpu, KernelLog log)
    {
        _cpus = cpus;
        _map = map;
        _blocks = blocks;
        _nodes = nodes;
        _nodeOfCpu = nodeOfCpu;
        _log = log;
        _zones = new ZonePages?[nodes.Length * ZoneTypes.Count];
        foreach (Zone zone in nodes.SelectMany(node => node.Zones).Where(zone => zone.IsPopulated))
            _zones[zone.Index] = new ZonePages(zone, map, blocks);
    }

    /// <summary>What is called under pressure.</summary>
    public ReclaimHooks Hooks { get; set; } = new();

    /// <summary>
    /// Frees what is kept only because it may be needed again, before anything is reclaimed, and tells how many frames
    /// that were. Null: nothing is kept.
    /// </summary>
    public Func<long>? FreeSpare { get; set; }

    /// <summary>
    /// Frees what is kept back on purpose, freed objects in quarantine, before a request fails or the killer is asked.
    /// Tells whether there was any. Null: nothing is kept back.
    /// </summary>
    public Func<bool>? FreeKeptBack { get; set; }

    public IReadOnlyList<Node> Nodes => _nodes;

    /// <summary>The populated zones, in the order of node and type.</summary>
    public IEnumerable<ZonePages> Zones => _zones.OfType<ZonePages>();

    public ITrace? Trace
    {
        get => _trace;
        set
        {
            _trace = value;
            AskFirst();
            foreach (ZonePages zone in Zones)
            {
                zone.Trace = value;
                zone.Buddy.Trace = value;
            }
        }
    }

    /// <summary>
    /// Applies what depends on the zones' final sizes: limits of the per-CPU lists, boost, and whether grouping by
    /// mobility makes sense at all (build_all_zonelists, zone_pcp_update, Linux 6.18).
    /// </summary>
    public unsafe void Configure(int watermarkBoostFactor, int percpuHighFraction)
    {
        ConfigureRestored(watermarkBoostFactor);
        foreach (ZonePages pages in Zones)
        {
            int cpus = _nodes[pages.Zone.NodeId].Cpus.Count;
            PcpLimits limits = Watermark.Pcp(
                (long)pages.Zone.Managed,
                pages.Zone.Mark(WatermarkLevel.Low),
                cpus == 0 ? _cpus.Count : cpus,
                percpuHighFraction);
            for (int cpu = 0; cpu < _cpus.Count; cpu++)
            {
                PerCpuPages* pcp = pages.PcpOf(cpu);
                pcp->Batch = limits.Batch;
                pcp->HighMin = limits.HighMin;
                pcp->HighMax = limits.HighMax;
            }
        }
    }

    /// <summary>What of this a state does not say: boost, and grouping by mobility.</summary>
    public void ConfigureRestored(int watermarkBoostFactor)
    {
        long aboveHigh = Zones.Sum(pages => Math.Max(0, (long)pages.Zone.Managed - pages.Zone.Watermarks.High));
        GroupingDisabled = aboveHigh < (long)PageOrder.PageblockPages * Migratetypes.Count;
        foreach (ZonePages pages in Zones)
        {
            pages.Buddy.WatermarkBoostFactor = watermarkBoostFactor;
            pages.Buddy.GroupingDisabled = GroupingDisabled;
        }
    }

    /// <summary>Has frames cleared when they are allocated, or freed (init_on_alloc, init_on_free).</summary>
    public void Harden(bool initOnAlloc, bool initOnFree)
    {
        _always = initOnAlloc ? Gfp.Zero : Gfp.None;
        _clearsFreed = initOnFree;
    }

    /// <summary>
    /// Puts the free blocks in random order, and from now on freed ones to either end of their lists.
    /// </summary>
    public void Shuffle(Func<ulong> random)
    {
        foreach (ZonePages pages in Zones)
            pages.Buddy.Shuffle(random);
    }

    /// <summary>Told of every block of frames; null if nobody wants to know.</summary>
    public IAllocationWatch? Watch { get; set; }

    // Flags that every request has.
    private Gfp _always;
    private bool _clearsFreed;

    /// <summary>The machine is too small to keep migrate types apart: everything is Unmovable.</summary>
    public bool GroupingDisabled { get; private set; }

    public ZonePages ZoneOf(ulong pfn) => _zones[_blocks.ZoneOf(pfn)]!;

    /// <summary>The zone of a frame, or null in a hole.</summary>
    public ZonePages? PresentZoneOf(ulong pfn) =>
        _blocks.ZoneOf(pfn) is not PageblockMap.NoZone and var zone && _blocks.IsPresent(pfn) ? _zones[zone] : null;

    /// <summary>
    /// Whether a pageblock in a zone's span has memory of that zone: it may be a hole, or another node's.
    /// </summary>
    public bool HasMemory(Zone zone, ulong pfn) => _blocks.ZoneOf(pfn) == zone.Index && _blocks.IsPresent(pfn);

    /// <summary>Whether a pageblock has memory of any zone.</summary>
    public bool IsPresent(ulong pfn) => _blocks.IsPresent(pfn);

    /// <summary>
    /// Allocates a block whose reference count stays 0 ("frozen"): what slabs and large kmalloc blocks are made of.
    /// </summary>
    /// <param name="gfp">What may be done to get it, and from which zones.</param>
    /// <param name="order">Block size: 2^order frames.</param>
    /// <param name="node">Preferred node, or -1 for the CPU's own.</param>
    /// <param name="bypassPcp">Whoever was interrupted holds the per-CPU lists: straight to the buddy system.</param>
    /// <returns>The head page, or null.</returns>
    public unsafe Page* AllocFrozen(Gfp gfp, int order, int node, bool bypassPcp = false)
    {
        if ((uint)order >= _unaskedOrders && IsRefused(order, gfp, node))
            return null;

        CpuTask* task = _cpus.Current;
        gfp = ApplyScopes(gfp, task->Flags);
        CheckContext(gfp, task);
        if (!gfp.HasValidZone() || !gfp.HasValidMobility())
            ThrowBadGfp(gfp);

        var request = new AllocRequest(gfp, order, ZonelistFor(gfp, node), GroupingDisabled, bypassPcp);
        AllocFlags flags = AllocFlags.WatermarkLow | (AllocFlags)(gfp & Gfp.KswapdReclaim);
        if (MustNotFragment(request))
            flags |= AllocFlags.NoFragment;

        Page* page = Walk(request, flags, task);
        if (page == null)
            page = AllocSlow(request, task);

        _trace?.MmPageAlloc(page == null ? Pfn.None : new Pfn(_map.PfnOf(page)), order, gfp, request.Migratetype);
        return page;
    }

    /// <summary>Allocates a block and counts one reference to it (alloc_pages).</summary>
    public unsafe Page* Alloc(Gfp gfp, int order, int node)
    {
        Page* page = AllocFrozen(gfp, order, node);
        if (page != null)
            page->RefCount = 1;
        return page;
    }

    /// <summary>
    /// Drops one reference to a block from <see cref="Alloc"/> and frees it when that was the last (__free_pages). If
    /// others still hold the first frame of a block that is not compound, the rest of the block is freed now.
    /// </summary>
    public unsafe void Free(ulong pfn, int order)
    {
        Page* page = CheckedForFree(pfn, order);
        bool compound = page->IsHead;
        SimPoint.Here();
        int left = Interlocked.Decrement(ref page->RefCount);
        if (left == 0)
        {
            FreeFrozen(page, order);
        }
        else if (left < 0)
        {
            Interlocked.Increment(ref page->RefCount);
            ThrowBadFree(pfn, order, "page is already free");
        }
        else if (!compound)
        {
            page->AllocatedOrderPlusOne = 1;
            for (int part = order - 1; part >= 0; part--)
                FreeFrozen(page + (1L << part), part);
        }
    }

    /// <summary>Gives back a block with reference count 0 (__free_frozen_pages).</summary>
    public unsafe void FreeFrozen(Page* page, int order, bool bypassPcp = false)
    {
        PrepareFree(page, order);
        if (_clearsFreed)
            new Span<byte>(_map.AddressOf(page), Pfn.PageSize << order).Clear();
        ZonePages zone = ZoneOf(_map.PfnOf(page));
        CpuTask* task = _cpus.Current;
        if ((task->Flags & TaskFlags.MemAlloc) != 0)
            task->Reclaimed += 1L << order;
        int cpu = _cpus.Enter(task);
        zone.PcpOf(cpu)->PgFree += 1L << order;
        zone.Give(page, order, cpu, bypassPcp);
        _cpus.Leave(task);
    }

    /// <summary>Gives boot memory to the buddy system: the largest aligned blocks, ascending, at the tails.</summary>
    /// <returns>Frames handed over; the zone's managed count has grown by as many.</returns>
    public unsafe ulong HandOver(ulong startPfn, ulong endPfn)
    {
        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        for (ulong pfn = startPfn; pfn < endPfn;)
        {
            int order = pfn == 0 ? PageOrder.Max : Math.Min(PageOrder.Max, (int)ulong.TrailingZeroCount(pfn));
            while (pfn + (1UL << order) > endPfn)
                order--;

            ZonePages zone = ZoneOf(pfn);
            zone.Zone.Managed += 1UL << order;
            zone.GiveToBuddy(_map.PageOf(pfn), order, FreeFlags.ToTail, cpu);
            pfn += 1UL << order;
        }

        _cpus.Leave(task);
        return endPfn - startPfn;
    }

    /// <summary>
    /// Empties the per-CPU lists of all CPUs (drain_all_pages). Not inside a section. Those that seem to have none are
    /// left in peace, as in the kernel: taking a CPU away from its thread is dear.
    /// </summary>
    public void DrainAll()
    {
        for (int cpu = 0; cpu < _cpus.Count; cpu++)
        {
            foreach (ZonePages zone in Zones)
            {
                if (zone.CountOf(cpu) == 0)
                    continue;
                DrainCpu(cpu);
                break;
            }
        }
    }

    /// <summary>Empties the per-CPU lists of one CPU, in every zone.</summary>
    public void DrainCpu(int cpu)
    {
        int executing = _cpus.CurrentCpu;
        _cpus.AcquireRemote(cpu);
        foreach (ZonePages zone in Zones)
            zone.Drain(cpu, executing);
        _cpus.ReleaseRemote(cpu);
    }

    /// <summary>What each CPU's stat work does once a second (vmstat_update): lists decay, counts are folded.</summary>
    public void Tick()
    {
        for (int cpu = 0; cpu < _cpus.Count; cpu++)
        {
            if (!Zones.Any(zone => zone.HasWork(cpu)))
                continue; // most CPUs of a large machine: do not disturb them

            _cpus.AcquireRemote(cpu);
            foreach (ZonePages zone in Zones)
            {
                zone.Decay(cpu);
                zone.Fold(cpu);
            }

            _cpus.ReleaseRemote(cpu);
        }
    }

    /// <summary>Returns the memory of free blocks to the host (free page reporting).</summary>
    /// <returns>Frames returned.</returns>
    public unsafe ulong ReportFree(int minOrder, Func<ulong, ulong, bool> release)
    {
        int cpu = _cpus.CurrentCpu;
        ulong reported = 0;
        foreach (ZonePages zone in Zones)
            reported += zone.Buddy.Report(minOrder, release, cpu);
        return reported;
    }

    /// <summary>Makes frames that are on no list a block in use.</summary>
    public unsafe void RestoreAllocated(Page* page, int order, bool compound)
    {
        page->Flags &= PageFlags.Lru;
        page->AllocatedOrderPlusOne = (byte)(order + 1);
        if (compound && order > 0)
            PrepareCompound(page, order);
    }

    public void Dispose()
    {
        foreach (ZonePages zone in Zones)
            zone.Dispose();
        foreach (Zone zone in _nodes.SelectMany(node => node.Zones).Where(zone => !zone.IsPopulated))
            zone.Dispose();
    }

    /// <summary>The task's scopes: memalloc_noio, _nofs and _pin take flags away (current_gfp_context).</summary>
    private static Gfp ApplyScopes(Gfp gfp, TaskFlags flags)
    {
        if ((flags & (TaskFlags.NoIo | TaskFlags.NoFs | TaskFlags.Pin)) == 0)
            return gfp;

        if ((flags & TaskFlags.NoIo) != 0)
            gfp &= ~(Gfp.IO | Gfp.FS);
        else if ((flags & TaskFlags.NoFs) != 0)
            gfp &= ~Gfp.FS;
        if ((flags & TaskFlags.Pin) != 0)
            gfp &= ~Gfp.Movable;
        return gfp;
    }

    /// <summary>
    /// Tries the zones of the list in order, at the watermark named by the flags (get_page_from_freelist).
    /// </summary>
    private unsafe Page* Walk(in AllocRequest request, AllocFlags flags, CpuTask* task)
    {
        bool skipNodesBeingReclaimed = _nodes.Length > 1;
        while (true)
        {
            bool noFragment = (flags & AllocFlags.NoFragment) != 0;
            bool skipped = false;
            bool wentRemote = false;
            for (int i = request.First; i < request.Zones.Length; i++)
            {
                Zone zone = request.Zones[i];
                if (_nodes.Length > 1)
                {
                    if (zone.Type > request.Highest)
                        continue;       // another node's: the first zones of this one are behind First

                    // Mixing types at home is better than going to a remote node.
                    if (noFragment && zone.NodeId != request.Zones[request.First].NodeId)
                    {
                        flags &= ~AllocFlags.NoFragment;
                        wentRemote = true;
                        break;
                    }

                    if (skipNodesBeingReclaimed && _nodes[zone.NodeId].KswapdAwake)
                    {
                        skipped = true;
                        continue;
                    }
                }

                ZonePages pages = _zones[zone.Index]!;
                if (!IsZoneGood(pages, request, flags))
                {
                    _trace?.ZoneRefused(zone.NodeId, zone.Type, ZoneResult.BelowWatermark);
                    continue;
                }

                Page* page = TakeFrom(pages, request, flags, task);
                if (page != null)
                    return page;
                _trace?.ZoneRefused(zone.NodeId, zone.Type, ZoneResult.NoBlock);
            }

            if (wentRemote)
                continue;
            if (skipNodesBeingReclaimed && skipped)
                skipNodesBeingReclaimed = false;
            else if (noFragment)
                flags &= ~AllocFlags.NoFragment;
            else
                return null;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool IsZoneGood(ZonePages pages, in AllocRequest request, AllocFlags flags)
    {
        Zone zone = pages.Zone;
        if ((zone.Flags & ZoneFlags.BelowHigh) == 0)
        {
            if (pages.WatermarkFast(request.Order, zone.Mark(WatermarkLevel.High), request.Highest, flags))
                return true;
            zone.SetFlag(ZoneFlags.BelowHigh);
        }

        long mark = zone.Mark((WatermarkLevel)(flags & AllocFlags.WatermarkMask));
        return pages.WatermarkFast(request.Order, mark, request.Highest, flags)
            || (flags & AllocFlags.NoWatermarks) != 0;
    }

    private unsafe Page* TakeFrom(ZonePages pages, in AllocRequest request, AllocFlags flags, CpuTask* task)
    {
        int cpu = _cpus.Enter(task);
        Page* page = pages.Take(request.Order, request.Migratetype, flags, cpu, request.BypassPcp);
        if (page != null)
            CountAllocation(pages, request, cpu);
        _cpus.Leave(task);
        if (Rare != null && pages.Buddy.Fallbacks != pages.ToldFallbacks && MayTell(request.Gfp))
            TellFallbacks(pages);

        if ((flags & AllocFlags.Kswapd) != 0 && (pages.Zone.Flags & ZoneFlags.BoostedWatermark) != 0)
        {
            pages.Zone.ClearFlag(ZoneFlags.BoostedWatermark);
            Hooks.WakeKswapd(_nodes[pages.Zone.NodeId], 0, pages.Zone.Type);
        }

        if (page == null)
            return null;

        Prepare(page, request, flags);
        if ((flags & AllocFlags.HighAtomic) != 0)
            pages.Buddy.ReserveHighAtomic(page, request.Order, cpu);
        return page;
    }

    private unsafe void CountAllocation(ZonePages pages, in AllocRequest request, int cpu)
    {
        PerCpuPages* pcp = pages.PcpOf(cpu);
        pcp->PgAlloc += 1L << request.Order;
        Zone preferred = request.Zones[request.First];
        if (pages.Zone.NodeId == preferred.NodeId)
        {
            pcp->NumaHit++;
        }
        else
        {
            pcp->NumaMiss++;
            _zones[preferred.Index]!.PcpOf(cpu)->NumaForeign++;
        }

        if (pages.Zone.NodeId == _nodeOfCpu[cpu])
            pcp->NumaLocal++;
        else
            pcp->NumaOther++;
    }

    /// <summary>Makes a taken block ready for its user (prep_new_page).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe void Prepare(Page* page, in AllocRequest request, AllocFlags flags)
    {
        page->Flags = (flags & AllocFlags.NoWatermarks) != 0 ? PageFlags.PfMemAlloc : PageFlags.None;
        page->AllocatedOrderPlusOne = (byte)(request.Order + 1);
        page->Private = 0;
        if (((request.Gfp | _always) & Gfp.Zero) != 0)
            new Span<byte>(_map.AddressOf(page), Pfn.PageSize << request.Order).Clear();
        if (request.Order > 0 && (request.Gfp & Gfp.Comp) != 0)
            PrepareCompound(page, request.Order);
        Watch?.PagesAllocated(_map.PfnOf(page), request.Order, request.Gfp);
    }

    private static unsafe void PrepareCompound(Page* head, int order)
    {
        head->Flags |= PageFlags.Head;
        for (long i = 1; i < 1L << order; i++)
        {
            head[i].CompoundHead = (ulong)head | 1;
            head[i].Mapping = 0x400; // TAIL_MAPPING: nobody's mapping, and recognisable in a dump
        }

        head[1].Flags = (PageFlags)order;
    }

    /// <summary>Order of a compound block from its head.</summary>
    public static unsafe int CompoundOrder(Page* head) => head->IsHead ? (int)head[1].Flags & 0xff : 0;

    private Zonelist ZonelistFor(Gfp gfp, int node)
    {
        Node preferred = _nodes[node >= 0 ? node : _nodes.Length == 1 ? 0 : _nodeOfCpu[_cpus.CurrentCpu]];
        return (gfp & Gfp.ThisNode) != 0 ? preferred.NoFallback : preferred.Fallback;
    }

    /// <summary>
    /// Whether the first pass keeps migrate types apart: only if there is another zone to go to instead, DMA32 below
    /// Normal (alloc_flags_nofragment).
    /// </summary>
    private bool MustNotFragment(in AllocRequest request)
    {
        if (request.First >= request.Zones.Length)
            return false;

        Zone preferred = request.Zones[request.First];
        return preferred.Type == ZoneType.Normal
            && (_nodes.Length == 1 || _nodes[preferred.NodeId].Zones[(int)ZoneType.Dma32].IsPopulated);
    }

    /// <summary>One request on its way (struct alloc_context).</summary>
    private readonly struct AllocRequest
    {
        public AllocRequest(
            Gfp gfp, int order, Zonelist zonelist, bool groupingDisabled, bool bypassPcp = false)
        {
            BypassPcp = bypassPcp;
            Gfp = gfp;
            Order = order;
            Highest = gfp.HighestZone();
            Migratetype = groupingDisabled ? Migratetype.Unmovable : gfp.ToMigratetype();
            Zones = zonelist.UpTo(Highest);
        }

        public Gfp Gfp { get; }

        public int Order { get; }

        public bool BypassPcp { get; }

        public ZoneType Highest { get; }

        public Migratetype Migratetype { get; }

        public Zone[] Zones { get; }

        /// <summary>Index of the preferred zone; not below the length if there is none.</summary>
        public int First => 0;
    }
}
