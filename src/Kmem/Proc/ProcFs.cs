namespace Kmem;

/// <summary>
/// The kernel's texts about a machine, in the kernel's format byte for byte. Each call reads the machine as it is at
/// that moment; while other threads work, numbers of one text may be from slightly different instants, as in the
/// kernel.
/// </summary>
public sealed class ProcFs
{
    private readonly PageAllocator _pages;
    private readonly SlabAllocator _slabs;
    private readonly PageblockMap _blocks;

    internal ProcFs(PageAllocator pages, SlabAllocator slabs, PageblockMap blocks)
    {
        _pages = pages;
        _slabs = slabs;
        _blocks = blocks;
    }

    /// <summary>Set when vmalloc is used for the first time.</summary>
    internal VmallocAllocator? Vmalloc { get; set; }

    internal PercpuAllocator? Percpu { get; set; }

    /// <summary>Set when something is registered for reclaim.</summary>
    internal Reclaimer? Reclaim { get; set; }

    /// <summary>/proc/slabinfo, version 2.1.</summary>
    /// <returns>The text.</returns>
    public string SlabInfo() => ReadSlabInfo().Render();

    /// <summary>/proc/buddyinfo: free blocks by order.</summary>
    /// <returns>The text.</returns>
    public string BuddyInfo() => ReadBuddyInfo().Render();

    /// <summary>/proc/pagetypeinfo: free blocks by order and migrate type.</summary>
    /// <returns>The text.</returns>
    public string PageTypeInfo() => ReadPageTypeInfo().Render();

    /// <summary>/proc/zoneinfo: sizes, watermarks and per-CPU lists of every zone.</summary>
    /// <returns>The text.</returns>
    public string ZoneInfo() => ReadZoneInfo().Render();

    /// <summary>/proc/meminfo, the lines that a machine without user processes knows.</summary>
    /// <returns>The text.</returns>
    public string MemInfo() => ReadMemInfo().Render();

    /// <summary>/proc/vmstat: the zones' and nodes' counters, summed, and the allocators' events.</summary>
    /// <returns>The text.</returns>
    public string VmStat() => ReadVmStat().Render();

    /// <summary>debugfs extfrag/extfrag_index: why an allocation of each order would fail.</summary>
    /// <returns>The text.</returns>
    public string ExtfragIndex() => ReadFragmentation(FragIndexKind.ExtfragIndex).Render();

    /// <summary>debugfs extfrag/unusable_index: the part of free memory that each order cannot use.</summary>
    /// <returns>The text.</returns>
    public string UnusableIndex() => ReadFragmentation(FragIndexKind.UnusableIndex).Render();

    /// <summary>The text of /proc/vmallocinfo: areas in use, and addresses that wait for a purge.</summary>
    /// <returns>The text, empty if vmalloc was not used yet.</returns>
    public string VmallocInfo() => ReadVmallocInfo().Render();

    /// <summary>/sys/kernel/slab/&lt;cache&gt;/: file name to text.</summary>
    /// <param name="cache">A cache of this machine.</param>
    /// <returns>The files.</returns>
    public IReadOnlyDictionary<string, string> SlabFiles(KmemCache cache) => ReadSlabFiles(cache).Render();

    /// <summary>/proc/slabinfo as values.</summary>
    /// <returns>A row per cache, newest first.</returns>
    public SlabInfoText ReadSlabInfo() => new()
    {
        Rows = _slabs.Caches.Select(cache => new SlabInfoRow
        {
            Name = cache.Name,
            ActiveObjs = (ulong)(cache.TotalObjects - cache.Nodes.Sum(node => node.CountPartialFree())),
            NumObjs = (ulong)cache.TotalObjects,
            ObjSize = (uint)cache.SlotSize,
            ObjPerSlab = (uint)cache.Geometry.ObjectsPerSlab,
            PagesPerSlab = 1u << cache.Geometry.Order,
            ActiveSlabs = (ulong)cache.SlabCount,
            NumSlabs = (ulong)cache.SlabCount,
        }).ToList(),
    };

    /// <summary>/proc/buddyinfo as values.</summary>
    /// <returns>A row per populated zone.</returns>
    public BuddyInfoText ReadBuddyInfo() => new()
    {
        Rows = _pages.Zones.Select(zone => new BuddyInfoRow(
            zone.Zone.NodeId,
            zone.Zone.Name,
            Orders().Select(order => (ulong)zone.Buddy.NrFree(order)).ToArray())).ToList(),
    };

    /// <summary>/proc/pagetypeinfo as values. Walks the free lists.</summary>
    /// <returns>An entry per node with memory.</returns>
    public PageTypeInfoText ReadPageTypeInfo() => new()
    {
        Nodes = _pages.Zones.GroupBy(zone => zone.Zone.NodeId).Select(node => new PageTypeNode
        {
            Node = node.Key,
            Zones = node.Select(ReadPageTypes).ToList(),
        }).ToList(),
    };

    /// <summary>/proc/zoneinfo as values.</summary>
    /// <returns>A record per zone of every node, empty zones included.</returns>
    public ZoneInfoText ReadZoneInfo()
    {
        var records = new List<ZoneInfoRecord>();
        foreach (Node node in _pages.Nodes)
        {
            bool first = true;
            foreach (Zone zone in node.Zones)
            {
                records.Add(ReadZone(node, zone, withNodeStats: first && zone.IsPopulated));
                first &= !zone.IsPopulated;
            }
        }

        return new ZoneInfoText { Zones = records };
    }

    /// <summary>/proc/meminfo as values.</summary>
    /// <returns>The lines, in the kernel's order.</returns>
    public MemInfoText ReadMemInfo()
    {
        long managed = _pages.Zones.Sum(zone => (long)zone.Zone.Managed);
        long free = _pages.Zones.Sum(zone => zone.Zone.FreePages);
        long low = _pages.Zones.Sum(zone => zone.Zone.Watermarks.Low);
        long reclaimable = _pages.Nodes.Sum(node => node.SlabReclaimablePages);
        long unreclaimable = _pages.Nodes.Sum(node => node.SlabUnreclaimablePages);
        long available = free - ZoneLayout.TotalReserve(_pages.Nodes) + reclaimable - Math.Min(reclaimable / 2, low);
        static MemInfoLine Line(string label, long pages) => new(label, (ulong)Math.Max(0, pages) * 4);
        return new MemInfoText
        {
            Lines =
            [
                Line("MemTotal", managed),
                Line("MemFree", free),
                Line("MemAvailable", available),
                Line("KReclaimable", reclaimable),
                Line("Slab", reclaimable + unreclaimable),
                Line("SReclaimable", reclaimable),
                Line("SUnreclaim", unreclaimable),
                Line("PageTables", _pages.Nodes.Sum(node => node.PageTablePages)),
                new MemInfoLine("VmallocTotal", VmallocBytes >> 10),
                Line("VmallocUsed", Vmalloc?.PageCount ?? 0),
                Line("VmallocChunk", 0),
                Line("Percpu", Percpu?.Pages ?? 0),
                .. DirectMapLines(),
            ],
        };
    }

    /// <summary>
    /// The content of /proc/vmallocinfo. The caller is the name of the public member that was called.
    /// </summary>
    /// <returns>Its lines, in the kernel's order: node by node, not by address.</returns>
    public unsafe VmallocInfoText ReadVmallocInfo()
    {
        var info = new VmallocInfoText();
        if (Vmalloc is not { } vmalloc)
            return info;

        foreach (VmapNode node in vmalloc.Vmap.Nodes)
            node.ForEachBusy(area => AddVmallocRow((VmapArea*)area, info.Rows));
        foreach (VmapNode node in vmalloc.Vmap.Nodes)
        {
            info.Rows.AddRange(node.LazyRanges().Select(range =>
                new VmallocInfoRow(range.Start, range.End, range.End - range.Start) { Kind = VmallocInfoKind.Unpurged }));
        }

        return info;
    }

    /// <summary>/proc/vmstat as values.</summary>
    /// <returns>Counters in the kernel's order.</returns>
    public unsafe VmStatText ReadVmStat()
    {
        var stats = new ProcStats();
        foreach (IGrouping<string, ProcStat> zoneItem in _pages.Zones.SelectMany(ZoneStats).GroupBy(stat => stat.Name, StringComparer.Ordinal))
            stats.Add(zoneItem.Key, (ulong)zoneItem.Sum(stat => (long)stat.Value));
        foreach (IGrouping<string, ProcStat> numaItem in _pages.Zones.SelectMany(NumaStats).GroupBy(stat => stat.Name, StringComparer.Ordinal))
            stats.Add(numaItem.Key, (ulong)numaItem.Sum(stat => (long)stat.Value));
        foreach (IGrouping<string, ProcStat> nodeItem in _pages.Nodes.SelectMany(NodeStats).GroupBy(stat => stat.Name, StringComparer.Ordinal))
            stats.Add(nodeItem.Key, (ulong)nodeItem.Sum(stat => (long)stat.Value));

        stats.Add("pswpin", (ulong)(Reclaim?.Counters.PswpIn ?? 0));
        stats.Add("pswpout", (ulong)(Reclaim?.Counters.PswpOut ?? 0));
        foreach (ZoneType type in Enum.GetValues<ZoneType>())
        {
            long allocated = _pages.Zones.Where(zone => zone.Zone.Type == type).Sum(zone => PerCpu(zone, pcp => pcp.PgAlloc));
            stats.Add($"pgalloc_{type.Name().ToLowerInvariant()}", (ulong)allocated);
        }

        ReclaimCounters reclaim = Reclaim?.Counters ?? s_noReclaim;
        foreach (ZoneType type in Enum.GetValues<ZoneType>())
        {
            ulong stalls = (ulong)Volatile.Read(ref reclaim.AllocStall[(int)type]);
            stats.Add($"allocstall_{type.Name().ToLowerInvariant()}", stalls);
        }

        stats.Add("pgfree", (ulong)_pages.Zones.Sum(zone => PerCpu(zone, pcp => pcp.PgFree)));
        AddReclaimEvents(stats, reclaim);
        return new VmStatText { Stats = stats };
    }

    /// <summary>What reclaim and compaction count, in the kernel's order.</summary>
    private static void AddReclaimEvents(ProcStats stats, ReclaimCounters reclaim)
    {
        void Add(string name, ref long value) => stats.Add(name, (ulong)Volatile.Read(ref value));
        Add("pgsteal_kswapd", ref reclaim.PgStealKswapd);
        Add("pgsteal_direct", ref reclaim.PgStealDirect);
        Add("pgsteal_proactive", ref reclaim.PgStealProactive);
        Add("pgscan_kswapd", ref reclaim.PgScanKswapd);
        Add("pgscan_direct", ref reclaim.PgScanDirect);
        Add("pgscan_proactive", ref reclaim.PgScanProactive);
        Add("pgscan_direct_throttle", ref reclaim.PgScanDirectThrottle);
        Add("slabs_scanned", ref reclaim.SlabsScanned);
        Add("kswapd_low_wmark_hit_quickly", ref reclaim.KswapdLowWmarkHitQuickly);
        Add("kswapd_high_wmark_hit_quickly", ref reclaim.KswapdHighWmarkHitQuickly);
        Add("pageoutrun", ref reclaim.PageOutRun);
        Add("oom_kill", ref reclaim.OomKill);
        Add("pgmigrate_success", ref reclaim.PgMigrateSuccess);
        Add("pgmigrate_fail", ref reclaim.PgMigrateFail);
        Add("compact_migrate_scanned", ref reclaim.CompactMigrateScanned);
        Add("compact_free_scanned", ref reclaim.CompactFreeScanned);
        Add("compact_isolated", ref reclaim.CompactIsolated);
        Add("compact_stall", ref reclaim.CompactStall);
        Add("compact_fail", ref reclaim.CompactFail);
        Add("compact_success", ref reclaim.CompactSuccess);
    }

    /// <summary>The fragmentation indices of every zone and order, as values.</summary>
    /// <param name="kind">Which of the two.</param>
    /// <returns>A row per populated zone, in thousandths.</returns>
    public FragIndexText ReadFragmentation(FragIndexKind kind) => new(kind)
    {
        Rows = _pages.Zones.Select(zone => new FragIndexRow(
            zone.Zone.NodeId,
            zone.Zone.Name,
            Orders().Select(order => kind == FragIndexKind.ExtfragIndex
                ? Fragmentation.ExtfragIndex(zone.Buddy.NrFree, order)
                : Fragmentation.UnusableIndex(zone.Buddy.NrFree, order)).ToArray())).ToList(),
    };

    /// <summary>/sys/kernel/slab/&lt;cache&gt;/ as values.</summary>
    /// <param name="cache">A cache of this machine.</param>
    /// <returns>One property per file.</returns>
    public SlabSysfs ReadSlabFiles(KmemCache cache)
    {
        ArgumentNullException.ThrowIfNull(cache);
        SlabGeometry geometry = cache.Geometry;
        ulong[] partial = cache.Nodes.Select(node => (ulong)node.NrPartial).ToArray();
        ulong[] partialFree = cache.Nodes.Select(node => (ulong)node.CountPartialFree()).ToArray();
        ulong[] total = cache.Nodes.Select(node => (ulong)node.TotalObjects).ToArray();
        ulong[] objectsPartial = cache.Nodes
            .Select((node, i) => ((ulong)node.NrPartial * (ulong)geometry.ObjectsPerSlab) - partialFree[i]).ToArray();
        var cpuSlabs = new ulong[cache.Nodes.Count];
        var chains = new uint[_slabs.Cpus.Count];
        for (int cpu = 0; cpu < chains.Length; cpu++)
        {
            (int current, int chained) = cache.CpuSlabsOf(cpu);
            chains[cpu] = (uint)chained;
            cpuSlabs[_slabs.NodeOfCpu(cpu)] += (ulong)(current + chained);
        }

        static bool Flag(KmemCache cache, SlabFlags flag) => (cache.Flags & flag) != 0;
        return new SlabSysfs
        {
            Name = _slabs.IsMergeable(cache) ? SlabGeometry.SysfsName(cache.Flags, cache.SlotSize) : cache.Name,
            ObjectSize = (uint)cache.ObjectSize,
            SlabSize = (uint)cache.SlotSize,
            Align = (uint)geometry.Align,
            ObjsPerSlab = (uint)geometry.ObjectsPerSlab,
            Order = (uint)geometry.Order,
            MinPartial = (ulong)cache.MinPartial,
            CpuPartial = (uint)cache.CpuPartial,
            SheafCapacity = (uint)cache.SheafCapacity,
            Ctor = cache.HasConstructor ? "constructor" : "",
            Aliases = (uint)cache.Aliases,
            Usersize = (uint)cache.UserSize,
            RemoteNodeDefragRatio = cache.Nodes.Count > 1 ? (uint)cache.RemoteNodeDefragRatio / 10 : null,
            ObjectsPartial = SlabCount.Of(objectsPartial),
            Partial = SlabCount.Of(partial),
            CpuSlabs = SlabCount.Of(cpuSlabs),
            SlabsCpuPartial = SlabCpuPartial.Of((uint)geometry.ObjectsPerSlab, chains),
            Objects = SlabCount.Of(total.Select((count, i) => count - partialFree[i]).ToArray()),
            TotalObjects = SlabCount.Of(total),
            Slabs = SlabCount.Of(cache.Nodes.Select(node => (ulong)node.NrSlabs).ToArray()),
            HwcacheAlign = Flag(cache, SlabFlags.HwcacheAlign),
            ReclaimAccount = Flag(cache, SlabFlags.ReclaimAccount),
            DestroyByRcu = Flag(cache, SlabFlags.TypesafeByRcu),
            CacheDma = Flag(cache, SlabFlags.CacheDma),
            SanityChecks = Flag(cache, SlabFlags.ConsistencyChecks),
            RedZone = Flag(cache, SlabFlags.RedZone),
            Poison = Flag(cache, SlabFlags.Poison),
            StoreUser = Flag(cache, SlabFlags.StoreUser),
            Trace = Flag(cache, SlabFlags.Trace),
            HasShrink = true,
            HasValidate = true,
        };
    }

    private static IEnumerable<int> Orders() => Enumerable.Range(0, PageOrder.Count);

    private static unsafe long PerCpu(ZonePages zone, Func<PerCpuPages, long> value)
    {
        long sum = 0;
        for (int cpu = 0; cpu < zone.Zone.CpuCount; cpu++)
            sum += value(*zone.PcpOf(cpu));
        return sum;
    }

    private unsafe PageTypeZone ReadPageTypes(ZonePages zone)
    {
        var free = new List<PageTypeFree>();
        zone.Buddy.Lock.Acquire();
        for (Migratetype type = 0; (int)type < Migratetypes.Count; type++)
        {
            Migratetype its = type;
            free.Add(new PageTypeFree(
                type.Name(),
                Orders().Select(order => CappedCount.Of((ulong)ListHead.Count(zone.Buddy.ListOf(order, its)))).ToArray()));
        }

        zone.Buddy.Lock.Release();
        var counts = new ulong[Migratetypes.Count];
        for (ulong pfn = zone.Zone.StartPfn; pfn < zone.Zone.EndPfn; pfn = (pfn | (PageOrder.PageblockPages - 1)) + 1)
        {
            if (_blocks.IsPresent(pfn) && _blocks.ZoneOf(pfn) == zone.Zone.Index)
                counts[(int)_blocks.TypeOf(pfn)]++;
        }

        return new PageTypeZone { Zone = zone.Zone.Name, Free = free, Blocks = counts };
    }

    /// <summary>
    /// How the direct map is mapped (arch_report_meminfo), from the moment on that there are page tables.
    /// </summary>
    private IEnumerable<MemInfoLine> DirectMapLines()
    {
        if (Vmalloc is not { } vmalloc)
            yield break;

        string[] names = ["DirectMap4k", "DirectMap2M", "DirectMap1G"];
        for (int level = PageTableEntry.PteLevel; level <= PageTableEntry.PudLevel; level++)
        {
            ulong leaves = (ulong)vmalloc.Tables.DirectMapLeaves(level);
            yield return new MemInfoLine(names[level - 1], leaves << (PageTableEntry.ShiftOf(level) - 10));
        }
    }

    private ulong VmallocBytes => Vmalloc is { } vmalloc
        ? vmalloc.Vmap.End - vmalloc.Vmap.Start
        : _slabs.Addresses.VmallocEnd - _slabs.Addresses.VmallocStart;

    private unsafe void AddVmallocRow(VmapArea* area, List<VmallocInfoRow> rows)
    {
        VmStruct* vm = area->Vm;
        if (vm == null && (area->Flags & (ulong)VmapAreaFlags.Ram) != 0)
            rows.Add(new VmallocInfoRow(area->Start, area->End, area->Size) { Kind = VmallocInfoKind.MapRam });
        if (vm == null || (vm->Flags & VmFlags.Uninitialized) != 0)
            return;

        if ((vm->Flags & VmFlags.Kept) != 0)
        {
            rows.Add(new VmallocInfoRow(area->Start, area->End, area->Size) { Kind = VmallocInfoKind.Unpurged });
            return;
        }

        var perNode = new ulong[_pages.Nodes.Count];
        for (uint i = 0; i < vm->PageCount; i++)
            perNode[_pages.ZoneOf((ulong)(vm->Pages[i] - _slabs.Map.Base)).Zone.NodeId]++;
        rows.Add(new VmallocInfoRow(area->Start, area->End, area->Size)
        {
            Caller = vm->Caller == VmCaller.None ? null : vm->Caller.ToString(),
            Pages = vm->PageCount,
            PhysicalAddress = vm->PhysicalAddress,
            Flags = WordsOf(vm),
            NodePages = perNode.Select((count, node) => new VmallocNodePages(node, count))
                .Where(node => node.Pages != 0).ToArray(),
        });
    }

    private unsafe VmallocInfoFlags WordsOf(VmStruct* vm)
    {
        VmallocInfoFlags words = Vmalloc!.Contains(vm->Pages) ? VmallocInfoFlags.Vpages : VmallocInfoFlags.None;
        foreach ((VmFlags flag, VmallocInfoFlags word) in s_vmallocWords)
        {
            if ((vm->Flags & flag) != 0)
                words |= word;
        }

        return words;
    }

    private ZoneInfoRecord ReadZone(Node node, Zone zone, bool withNodeStats)
    {
        ZonePages? pages = _pages.Zones.FirstOrDefault(candidate => candidate.Zone == zone);
        return new ZoneInfoRecord
        {
            Node = node.Id,
            Zone = zone.Name,
            NodeStats = withNodeStats ? [.. NodeStats(node)] : null,
            Free = (ulong)zone.FreePages,
            Boost = (ulong)zone.Boost,
            Min = (ulong)zone.Mark(WatermarkLevel.Min),
            Low = (ulong)zone.Mark(WatermarkLevel.Low),
            High = (ulong)zone.Mark(WatermarkLevel.High),
            Promo = (ulong)(zone.Watermarks.Promo + zone.Boost),
            Spanned = zone.Spanned,
            Present = zone.Present,
            Managed = zone.Managed,
            Cma = 0,
            Protection = zone.LowmemReserve,
            ZoneStats = pages == null ? [] : [.. ZoneStats(pages)],
            NumaStats = pages == null ? [] : [.. NumaStats(pages)],
            Pagesets = pages == null ? [] : Enumerable.Range(0, zone.CpuCount).Select(cpu => ReadPageset(pages, cpu)).ToList(),
            NodeUnreclaimable = node.KswapdFailures >= Kswapd.MaxFailures ? 1 : 0,
            StartPfn = zone.StartPfn,
        };
    }

    private static unsafe ZonePageset ReadPageset(ZonePages zone, int cpu)
    {
        PerCpuPages* pcp = zone.PcpOf(cpu);
        return new ZonePageset
        {
            Cpu = cpu,
            Count = pcp->Count,
            High = pcp->High,
            Batch = pcp->Batch,
            HighMin = pcp->HighMin,
            HighMax = pcp->HighMax,
            StatThreshold = zone.Zone.StatThreshold,
        };
    }

    private static IEnumerable<ProcStat> ZoneStats(ZonePages zone) =>
    [
        new("nr_free_pages", (ulong)zone.Zone.FreePages),
        new("nr_free_pages_blocks", (ulong)zone.Zone.FreePagesInBlocks),
        .. s_emptyZoneItems.Select(name => new ProcStat(name, 0)),
    ];

    private static IEnumerable<ProcStat> NumaStats(ZonePages zone) =>
    [
        new("numa_hit", (ulong)PerCpu(zone, pcp => pcp.NumaHit)),
        new("numa_miss", (ulong)PerCpu(zone, pcp => pcp.NumaMiss)),
        new("numa_foreign", (ulong)PerCpu(zone, pcp => pcp.NumaForeign)),
        new("numa_interleave", 0),
        new("numa_local", (ulong)PerCpu(zone, pcp => pcp.NumaLocal)),
        new("numa_other", (ulong)PerCpu(zone, pcp => pcp.NumaOther)),
    ];

    /// <summary>Every item is there; those about user memory are 0, because a machine has none.</summary>
    private static IEnumerable<ProcStat> NodeStats(Node node) => s_nodeItems.Select(name => new ProcStat(name, name switch
    {
        "nr_slab_reclaimable" => (ulong)node.SlabReclaimablePages,
        "nr_slab_unreclaimable" => (ulong)node.SlabUnreclaimablePages,
        "nr_page_table_pages" => (ulong)node.PageTablePages,
        _ => 0,
    }));

    private static readonly ReclaimCounters s_noReclaim = new();

    private static readonly (VmFlags Flag, VmallocInfoFlags Word)[] s_vmallocWords =
    [
        (VmFlags.IoRemap, VmallocInfoFlags.IoRemap),
        (VmFlags.Sparse, VmallocInfoFlags.Sparse),
        (VmFlags.Alloc, VmallocInfoFlags.Vmalloc),
        (VmFlags.Map, VmallocInfoFlags.Vmap),
        (VmFlags.UserMap, VmallocInfoFlags.User),
        (VmFlags.DmaCoherent, VmallocInfoFlags.DmaCoherent),
    ];

    private static readonly string[] s_emptyZoneItems =
    [
        "nr_zone_inactive_anon", "nr_zone_active_anon", "nr_zone_inactive_file", "nr_zone_active_file",
        "nr_zone_unevictable", "nr_zone_write_pending", "nr_mlock", "nr_zspages", "nr_free_cma",
    ];

    private static readonly string[] s_nodeItems =
    [
        "nr_inactive_anon", "nr_active_anon", "nr_inactive_file", "nr_active_file", "nr_unevictable",
        "nr_slab_reclaimable", "nr_slab_unreclaimable", "nr_isolated_anon", "nr_isolated_file", "workingset_nodes",
        "workingset_refault_anon", "workingset_refault_file", "workingset_activate_anon", "workingset_activate_file",
        "workingset_restore_anon", "workingset_restore_file", "workingset_nodereclaim", "nr_anon_pages", "nr_mapped",
        "nr_file_pages", "nr_dirty", "nr_writeback", "nr_shmem", "nr_shmem_hugepages", "nr_shmem_pmdmapped",
        "nr_file_hugepages", "nr_file_pmdmapped", "nr_anon_transparent_hugepages", "nr_vmscan_write",
        "nr_vmscan_immediate_reclaim", "nr_dirtied", "nr_written", "nr_throttled_written", "nr_kernel_misc_reclaimable",
        "nr_foll_pin_acquired", "nr_foll_pin_released", "nr_kernel_stack", "nr_page_table_pages",
        "nr_sec_page_table_pages", "nr_iommu_pages", "nr_swapcached", "pgpromote_success", "pgpromote_candidate",
        "pgpromote_candidate_nrl", "pgdemote_kswapd", "pgdemote_direct", "pgdemote_khugepaged", "pgdemote_proactive",
        "nr_hugetlb", "nr_balloon_pages", "nr_kernel_file_pages",
    ];
}
