namespace Kmem.Tracing;

/// <summary>
/// Reads off a machine's page descriptors what each frame is used for. It takes no locks: of a machine at work it gets
/// a picture that may be a moment out of date here and there, never a wrong access.
/// </summary>
/// <remarks>
/// A descriptor does not tell what a block was asked for; blocks that are nothing special count as what their pageblock
/// is meant for.
/// </remarks>
internal sealed class FrameScan
{
    private const int ChunkFrames = FrameMap.ChunkFrames;

    /// <summary>Frames of vmalloc that are marked; the rest show as what their pageblock is for.</summary>
    private const int MostMapped = 1 << 18;

    private readonly Machine _machine;
    private readonly ZonePages[] _zones;
    private readonly FrameCell[] _cells = new FrameCell[ChunkFrames];
    private readonly Dictionary<ulong, (ushort Cpu, byte Order)> _listed = [];
    private readonly HashSet<ulong> _mapped = [];

    public FrameScan(Machine machine)
    {
        _machine = machine;
        _zones = [.. machine.Pages.Zones];
    }

    /// <summary>A map of the machine as it is.</summary>
    public FrameMap Read()
    {
        var map = new FrameMap(_machine.Map.EndPfn, _zones.Length, _machine.Cpus);
        for (ulong pfn = 0; pfn < map.Frames; pfn += PageOrder.PageblockPages)
        {
            int zone = Array.FindIndex(_zones, it => _machine.Pages.HasMemory(it.Zone, pfn));
            if (zone >= 0)
                map.SetZone(pfn, (byte)Math.Min(zone, FrameMap.NoZone - 1), _machine.Blocks.TypeOf(pfn));
        }

        Update(map);
        return map;
    }

    /// <summary>Brings a map of this machine up to date.</summary>
    public void Update(FrameMap map)
    {
        LookAtLists(map);
        for (int chunk = 0; chunk < map.Chunks; chunk++)
        {
            UpdateTypes(map, chunk);
            ulong start = (ulong)chunk * ChunkFrames;
            if (IsOneFreeBlock(start, map))
            {
                map.SetFree(chunk);
                continue;
            }

            Classify(map, start);
            MarkVmalloc(start);
            MarkLists(map, start);
            Store(map, chunk);
        }
    }

    /// <summary>Whose frames are which; looked up once for all chunks.</summary>
    private void LookAtLists(FrameMap map)
    {
        _listed.Clear();
        _mapped.Clear();
        foreach (ZonePages zone in _zones)
        {
            for (int cpu = 0; cpu < _machine.Cpus; cpu++)
                CollectLists(zone, cpu, map);
        }

        CollectVmalloc();
    }

    private unsafe bool IsOneFreeBlock(ulong start, FrameMap map)
    {
        if (start + ChunkFrames > map.Frames || map.ZoneOf(start) == FrameMap.NoZone)
            return false;
        Page* page = _machine.Map.PageOf(start);
        return page->Type == PageType.Buddy && page->Private == PageOrder.Max;
    }

    private void UpdateTypes(FrameMap map, int chunk)
    {
        for (ulong pfn = (ulong)chunk * ChunkFrames; pfn < (ulong)(chunk
            + 1) * ChunkFrames; pfn += PageOrder.PageblockPages)
        {
            if (map.ZoneOf(pfn) != FrameMap.NoZone)
                map.SetType(pfn, _machine.Blocks.TypeOf(pfn));
        }
    }

    private unsafe void Classify(FrameMap map, ulong start)
    {
        for (ulong pfn = start; pfn < start + ChunkFrames; pfn++)
            _cells[pfn - start] = new FrameCell
            {
                Kind = pfn < map.Frames && map.ZoneOf(pfn) != FrameMap.NoZone
                ? FrameKind.Reserved : FrameKind.Hole
            };

        for (ulong pfn = start; pfn < Math.Min(start + ChunkFrames, map.Frames);)
        {
            if (map.ZoneOf(pfn) == FrameMap.NoZone)
            {
                pfn = (pfn | (PageOrder.PageblockPages - 1)) + 1;
                continue;
            }

            Page* page = _machine.Map.PageOf(pfn);
            FrameCell cell = CellOf(_machine, page, map.TypeOf(pfn), out bool whole);
            if (cell.Kind == FrameKind.Hole)
            {
                pfn++;
                continue;
            }

            ulong count = Math.Min(1UL << cell.Order, start + ChunkFrames - pfn);
            _cells.AsSpan((int)(pfn - start), (int)count).Fill(cell);
            if (cell.Kind == FrameKind.Slab)
                _cells[pfn - start].InUse = CountLive(page);

            // Parts of other blocks may have been freed: look at each frame.
            pfn += whole ? count : 1;
        }
    }

    /// <summary>
    /// What a descriptor says about the block that begins there; a hole if none does. <paramref name="whole"/>: no part
    /// of it can have been freed.
    /// </summary>
    internal static unsafe FrameCell CellOf(Machine machine, Page* page, Migratetype type, out bool whole)
    {
        whole = true;
        PageType what = page->Type;
        int order = page->AllocatedOrderPlusOne - 1;
        if (what == PageType.Buddy)
            return new FrameCell { Kind = FrameKind.Free, Order = (byte)Math.Min(page->Private, PageOrder.Max) };
        if (order is < 0 or > PageOrder.Max)
            return default;

        if (what == PageType.Slab && machine.Slabs.TryCacheOf(page) is { } cache)
        {
            return new FrameCell
            {
                Kind = FrameKind.Slab,
                Order = (byte)order,
                Owner = (ushort)(cache.Id + 1),
                Objects = (ushort)cache.ObserveObjects(page),
            };
        }

        whole = false;
        FrameKind kind = what switch
        {
            PageType.LargeKmalloc => FrameKind.Large,
            PageType.Table => FrameKind.PageTable,
            PageType.None => FrameKinds.OfType(type),
            _ => FrameKind.Other,
        };
        return new FrameCell { Kind = kind, Order = (byte)order };
    }

    private unsafe ushort CountLive(Page* slab) =>
        _machine.Slabs.TryCacheOf(slab) is { } cache ? (ushort)cache.ObserveLive(slab) : (ushort)0;

    private unsafe void CollectLists(ZonePages zone, int cpu, FrameMap map)
    {
        PerCpuPages* pcp = zone.PcpOf(cpu);
        for (int list = 0; list < PerCpuPages.ListCount; list++)
        {
            // The CPU may be at work: every link is checked before it is followed, and the walk ends in time.
            ListHead* head = PerCpuPages.ListOf(pcp, list);
            ListHead* node = head->Next;
            for (int i = Math.Max(pcp->Count, 0); i > 0 && node != head && IsLinkOfPage(node); i--)
            {
                ulong pfn = _machine.Map.PfnOf(Page.FromLru(node));
                if (pfn < map.Frames)
                    _listed[pfn] = ((ushort)cpu, (byte)PerCpuPages.OrderOfList(list));
                node = node->Next;
            }
        }
    }

    private unsafe bool IsLinkOfPage(ListHead* node)
    {
        nint offset = (nint)((byte*)Page.FromLru(node) - (byte*)_machine.Map.Base);
        return offset >= 0 && offset % Page.SizeInBytes == 0 && (ulong)offset >> Page.SizeShift < _machine.Map.EndPfn;
    }

    private void CollectVmalloc()
    {
        if (_machine.VmallocIfUsed is not { } vmalloc)
            return;

        foreach (VmallocInfoRow row in _machine.Proc.ReadVmallocInfo().Rows)
        {
            if (row.Kind == VmallocInfoKind.Unpurged || (row.Flags & VmallocInfoFlags.IoRemap) != 0)
                continue;

            for (ulong va = row.Start; va < row.End && _mapped.Count < MostMapped; va += Pfn.PageSize)
            {
                Pfn frame = vmalloc.Tables.Translate(va);
                if (frame.IsValid)
                    _mapped.Add(frame.Value);
            }
        }
    }

    private void MarkVmalloc(ulong start)
    {
        if (_mapped.Count == 0)
            return;

        for (int i = 0; i < ChunkFrames; i++)
        {
            if (FrameKinds.IsInUse(_cells[i].Kind) && _mapped.Contains(start + (ulong)i))
                _cells[i].Kind = FrameKind.Vmalloc;
        }
    }

    private void MarkLists(FrameMap map, ulong start)
    {
        if (_listed.Count == 0)
            return;

        for (int i = 0; i < ChunkFrames; i++)
        {
            if (_cells[i].Kind == FrameKind.Free || !_listed.TryGetValue(start + (ulong)i, out var place))
                continue;

            int count = Math.Min(1 << place.Order, ChunkFrames - i);
            _cells.AsSpan(i, count).Fill(
                new FrameCell { Kind = FrameKind.Pcp, Order = place.Order, Owner = place.Cpu });
            i += count - 1;
        }
    }

    /// <summary>Writes what is different, run by run.</summary>
    private void Store(FrameMap map, int chunk)
    {
        ReadOnlySpan<FrameCell> old = map.Chunk(chunk);
        for (int from = 0; from < ChunkFrames;)
        {
            if (_cells[from].Equals(old[from]))
            {
                from++;
                continue;
            }

            int to = from + 1;
            while (to < ChunkFrames && _cells[to].Equals(_cells[from]))
                to++;
            map.Set(((ulong)chunk * ChunkFrames) + (ulong)from, to - from, _cells[from]);
            old = map.Chunk(chunk);
            from = to;
        }
    }
}
