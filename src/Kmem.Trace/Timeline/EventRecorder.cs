namespace Kmem.Tracing;

/// <summary>
/// Watches a machine carry out one event after the other and writes down what each changed:
/// <code>
///   tracepoints ─▶ which frames were touched ─▶ their descriptors ─▶ runs that differ ─▶ FrameChange, Tick
///                                                                                         ObjectChange
/// </code>
/// A block taken from a CPU's list touches just its frames. Whatever went to or from the buddy system may have split
/// and merged: then the whole largest block around it is looked at.
/// </summary>
internal sealed class EventRecorder : ITrace, IRareEvents
{
    private const int ChunkFrames = FrameMap.ChunkFrames;

    private readonly Machine _machine;
    private readonly ZonePages[] _zones;
    private readonly FrameMap _map;
    private readonly IRareEvents? _next;
    private readonly ulong _directMap;
    private readonly List<Touch> _touches = [];
    private readonly List<int> _chunks = [];            // looked at as a whole
    private readonly FrameCell[] _cells = new FrameCell[ChunkFrames];
    private long _reserved;
    private int _firstObject;           // of this event
    private uint _now;
    private int _site;
    private ushort _cpu;

    /// <param name="machine">The machine; it tells its events here from now on.</param>
    /// <param name="map">Its frames; kept up to date.</param>
    public EventRecorder(Machine machine, FrameMap map)
    {
        _machine = machine;
        _map = map;
        _zones = [.. machine.Pages.Zones];
        _directMap = machine.Slabs.Addresses.DirectMap;
        _reserved = ReservedHighAtomic();
        _next = machine.Pages.Rare;
        machine.Trace = this;
        machine.Pages.Rare = this;
    }

    public GrowingList<FrameChange> Frames { get; } = new();

    public GrowingList<ObjectChange> Objects { get; } = new();

    public GrowingList<Tick> Ticks { get; } = new();

    private enum TouchKind : byte
    {
        Alloc,
        Free,
        Taken,
        Drained,
        Stolen,
    }

    /// <summary>The machine goes on without being watched.</summary>
    public void Detach()
    {
        _machine.Trace = null;
        _machine.Pages.Rare = _next;
    }

    /// <summary>An event is about to be carried out.</summary>
    public void Begin(int number, int site, int cpu)
    {
        _now = (uint)number + 1;
        _site = site;
        _cpu = (ushort)cpu;
        _firstObject = Objects.Count;
        _touches.Clear();
    }

    /// <summary>It was: writes down what changed.</summary>
    public void End()
    {
        long reserved = ReservedHighAtomic();
        if (_touches.Count == 0 && reserved == _reserved)
            return;

        FindChunks();
        foreach (int chunk in _chunks)
            Compare((ulong)chunk * ChunkFrames, ChunkFrames);
        foreach (Touch touch in _touches)
        {
            if (!_chunks.Contains((int)(touch.Pfn / ChunkFrames)))
                Compare(touch.Pfn, 1 << touch.Order);
        }

        if (reserved != _reserved)
        {
            _reserved = reserved;
            for (ulong pfn = 0; pfn < _map.Frames; pfn += PageOrder.PageblockPages)
                CompareType(pfn);
        }
    }

    void ITrace.Kmalloc(ulong address, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node) =>
        AddObject(address, (ulong)bytesRequested, 1);

    void ITrace.Kfree(ulong address) => AddObject(address, 0, -1);

    void ITrace.KmemCacheAlloc(
        ulong address, string cache, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node) =>
        AddObject(address, (ulong)bytesRequested, 1);

    void ITrace.KmemCacheFree(ulong address, string cache) => AddObject(address, 0, -1);

    void ITrace.MmPageAlloc(Pfn pfn, int order, Gfp gfp, Migratetype migratetype)
    {
        if (pfn.IsValid)
            Add(TouchKind.Alloc, pfn, order, migratetype);
    }

    void ITrace.MmPageFree(Pfn pfn, int order)
    {
        ref readonly FrameCell cell = ref _map.At(pfn.Value);
        if (cell.Kind == FrameKind.Slab && cell.HeadOf(pfn.Value) == pfn.Value)
            AddTick(TickKind.FreeSlab, pfn.Value, order, order, 1, cell.Owner);
        Add(TouchKind.Free, pfn, order, default);
    }

    void ITrace.MmPageAllocZoneLocked(Pfn pfn, int order, Migratetype migratetype, bool percpuRefill)
    {
        if (percpuRefill)
            AddOrCount(TickKind.Refill, pfn.Value, order, migratetype);
        Add(TouchKind.Taken, pfn, order, migratetype);
    }

    void ITrace.MmPagePcpuDrain(Pfn pfn, int order, Migratetype migratetype)
    {
        AddOrCount(TickKind.Drain, pfn.Value, order, migratetype);
        Add(TouchKind.Drained, pfn, order, migratetype);
    }

    void ITrace.MmPageAllocExtfrag(in ExtfragEvent fallback)
    {
        TickKind kind = fallback.ChangeOwnership ? TickKind.Claim : TickKind.Fallback;
        Ticks.Add(NewTick(kind, fallback.Pfn.Value, fallback.AllocOrder) with
        {
            FromOrder = (byte)fallback.FallbackOrder,
            Migratetype = (byte)fallback.AllocMigratetype,
            FromType = (byte)fallback.FallbackMigratetype,
        });
        Add(TouchKind.Stolen, fallback.Pfn, fallback.AllocOrder, fallback.AllocMigratetype);
    }

    void IRareEvents.SlowPath(int order, Gfp gfp)
    {
        Ticks.Add(NewTick(TickKind.SlowPath, 0, order));
        _next?.SlowPath(order, gfp);
    }

    void IRareEvents.Fallback(int node, ZoneType zone, long count) => _next?.Fallback(node, zone, count);

    void IRareEvents.Failure(int order, Gfp gfp)
    {
        Ticks.Add(NewTick(TickKind.Failure, 0, order));
        _next?.Failure(order, gfp);
    }

    private long ReservedHighAtomic()
    {
        long frames = 0;
        foreach (ZonePages zone in _zones)
            frames += zone.Zone.ReservedHighAtomic;
        return frames;
    }

    private void Add(TouchKind kind, Pfn pfn, int order, Migratetype type) =>
        _touches.Add(new Touch(pfn.Value, (byte)order, kind, type));

    private unsafe void AddObject(ulong address, ulong requested, int sign)
    {
        ulong offset = address - _directMap;
        ulong pfn = offset >> Pfn.PageShift;
        if (pfn >= _map.Frames)
            return;

        Page* head = Page.HeadOf(_machine.Map.PageOf(pfn));
        var change = new ObjectChange
        {
            Offset = offset,
            Requested = (uint)requested,
            Cache = head->Type == PageType.Slab && _machine.Slabs.TryCacheOf(head) is { } cache
                ? (ushort)(cache.Id + 1) : (ushort)0,
            Sign = (sbyte)sign,
        };
        Objects.Add(change);
        _map.AddObject(pfn, sign);
    }

    private Tick NewTick(TickKind kind, ulong pfn, int order) => new()
    {
        Event = _now - 1,
        Kind = kind,
        Pfn = (uint)pfn,
        Count = 1,
        Zone = pfn < _map.Frames && pfn != 0 ? _map.ZoneOf(pfn) : FrameMap.NoZone,
        Order = (byte)order,
        FromOrder = byte.MaxValue,
        Migratetype = byte.MaxValue,
        FromType = byte.MaxValue,
        Cpu = _cpu,
        Cache = 0,
    };

    private void AddTick(TickKind kind, ulong pfn, int order, int fromOrder, int count, int cache) =>
        Ticks.Add(NewTick(kind, pfn, order) with
        {
            FromOrder = (byte)fromOrder,
            Count = count,
            Cache = (ushort)cache,
        });

    /// <summary>One entry for each batch.</summary>
    private void AddOrCount(TickKind kind, ulong pfn, int order, Migratetype type)
    {
        if (Ticks.Count > 0)
        {
            ref Tick last = ref Ticks[Ticks.Count - 1];
            if (last.Event == _now - 1 && last.Kind == kind && last.Order == order && last.Migratetype == (byte)type)
            {
                last.Count++;
                return;
            }
        }

        Ticks.Add(NewTick(kind, pfn, order) with { Migratetype = (byte)type });
    }

    private void FindChunks()
    {
        _chunks.Clear();
        foreach (Touch touch in _touches)
        {
            bool ofBuddy = touch.Kind >= TouchKind.Taken || (touch.Kind == TouchKind.Free && IsInFreeBlock(touch.Pfn));
            int chunk = (int)(touch.Pfn / ChunkFrames);
            if (ofBuddy && !_chunks.Contains(chunk))
                _chunks.Add(chunk);
        }
    }

    private unsafe bool IsInFreeBlock(ulong pfn)
    {
        for (int order = 0; order <= PageOrder.Max; order++)
        {
            Page* head = _machine.Map.PageOf(pfn & ~((1UL << order) - 1));
            if (head->Type == PageType.Buddy && head->Private >= (ulong)order)
                return true;
        }

        return false;
    }

    /// <summary>What frames are now, against what they were; the differences are written down.</summary>
    private void Compare(ulong start, int count)
    {
        Span<FrameCell> now = _cells.AsSpan(0, count);
        int chunk = (int)(start / ChunkFrames);
        _map.Chunk(chunk).Slice((int)(start % ChunkFrames), count).CopyTo(now);
        foreach (Touch touch in _touches)
        {
            if (touch.Pfn < start + (ulong)count && touch.Pfn + (1UL << touch.Order) > start)
                Apply(touch, now, start);
        }

        LookAtDescriptors(now, start);
        if (count == ChunkFrames)
            TellOfBlocks(now, start);
        for (int from = 0; from < count;)
        {
            // Looked up again each time: the first change gives the map its own copy of the chunk.
            ReadOnlySpan<FrameCell> old = _map.Chunk(chunk).Slice((int)(start % ChunkFrames), count);
            if (now[from].Equals(old[from]))
            {
                from++;
                continue;
            }

            int to = from + 1;
            while (to < count && now[to].Equals(now[from]) && old[to].Equals(old[from]))
                to++;
            var change = new FrameChange
            {
                Pfn = (uint)(start + (ulong)from),
                Count = (ushort)(to - from),
                From = old[from],
                To = now[from],
            };
            Frames.Add(change);
            _map.Change(change.Pfn, change.Count, change.From, change.To);
            from = to;
        }

        if (count == ChunkFrames)
        {
            CompareType(start);
            CompareType(start + PageOrder.PageblockPages);
        }
    }

    private void CompareType(ulong pfn)
    {
        if (pfn >= _map.Frames || _map.ZoneOf(pfn) == FrameMap.NoZone)
            return;

        Migratetype was = _map.TypeOf(pfn);
        Migratetype type = _machine.Blocks.TypeOf(pfn);
        if (was == type)
            return;

        Frames.Add(new FrameChange
        {
            Pfn = (uint)pfn,
            From = new FrameCell { Order = (byte)was },
            To = new FrameCell { Order = (byte)type },
        });
        _map.SetType(pfn, type);
    }

    /// <summary>What a tracepoint says; descriptors have the last word.</summary>
    private void Apply(in Touch touch, Span<FrameCell> now, ulong start)
    {
        ulong from = Math.Max(touch.Pfn, start);
        ulong to = Math.Min(touch.Pfn + (1UL << touch.Order), start + (ulong)now.Length);
        Span<FrameCell> cells = now[(int)(from - start)..(int)(to - start)];
        if (touch.Kind == TouchKind.Alloc)
        {
            cells.Fill(new FrameCell
            {
                Kind = FrameKinds.OfType(touch.Type),
                Order = touch.Order,
                Born = _now,
                Site = _site,
            });
        }
        else if (touch.Kind != TouchKind.Drained)
        {
            cells.Fill(new FrameCell { Kind = FrameKind.Pcp, Order = touch.Order, Owner = _cpu });
        }
    }

    private unsafe void LookAtDescriptors(Span<FrameCell> now, ulong start)
    {
        for (int i = 0; i < now.Length;)
        {
            ulong pfn = start + (ulong)i;
            Page* page = _machine.Map.PageOf(pfn);
            int left = now.Length - i;
            if (page->Type == PageType.Buddy)
            {
                int count = Math.Min(1 << (int)page->Private, left);
                now.Slice(i, count).Fill(new FrameCell { Kind = FrameKind.Free, Order = (byte)page->Private });
                i += count;
            }
            else if (page->Type != PageType.None && page->AllocatedOrderPlusOne > 0)
            {
                int count = Math.Min(1 << (page->AllocatedOrderPlusOne - 1), left);
                Name(now.Slice(i, count), page, pfn);
                i += count;
            }
            else
            {
                if (now[i].Kind == FrameKind.Free)
                    now[i] = new FrameCell { Kind = FrameKind.Pcp, Owner = _cpu };
                i++;
            }
        }
    }

    /// <summary>A block of a special kind: takes its name from its descriptor, and keeps since when it is
    /// there.</summary>
    private unsafe void Name(Span<FrameCell> cells, Page* page, ulong pfn)
    {
        FrameCell its = FrameScan.CellOf(_machine, page, _map.TypeOf(pfn), out _);
        if (its.Kind is FrameKind.Hole || (cells[0].Kind == its.Kind && cells[0].Owner == its.Owner))
            return;

        its.Born = cells[0].Born;
        its.Site = cells[0].Site;
        cells.Fill(its);
        if (its.Kind != FrameKind.Slab)
            return;

        cells[0].InUse = GivenOutIn(pfn, its.Order);
        AddTick(TickKind.NewSlab, pfn, its.Order, its.Order, 1, its.Owner);
    }

    /// <summary>Objects of a new slab that this very event gave out.</summary>
    private ushort GivenOutIn(ulong pfn, int order)
    {
        int count = 0;
        for (int i = Objects.Count - 1; i >= _firstObject; i--)
        {
            ulong frame = Objects[i].Offset >> Pfn.PageShift;
            if (frame >= pfn && frame < pfn + (1UL << order))
                count += Objects[i].Sign;
        }

        return (ushort)Math.Max(count, 0);
    }

    /// <summary>Free blocks that are gone in parts were split, those that are new and larger than what came back
    /// merged.</summary>
    private void TellOfBlocks(Span<FrameCell> now, ulong start)
    {
        ulong lastSplit = ulong.MaxValue;
        ulong lastMerge = ulong.MaxValue;
        foreach (Touch touch in _touches)
        {
            if (touch.Pfn / ChunkFrames != start / ChunkFrames)
                continue;

            int at = (int)(touch.Pfn - start);
            FrameCell was = _map.Chunk((int)(start / ChunkFrames))[at];
            if (touch.Kind is TouchKind.Taken or TouchKind.Stolen
                && was.Kind == FrameKind.Free && was.Order > touch.Order && was.HeadOf(touch.Pfn) != lastSplit)
            {
                lastSplit = was.HeadOf(touch.Pfn);
                AddTick(TickKind.Split, lastSplit, touch.Order, was.Order, 1, 0);
            }
            else if (touch.Kind is TouchKind.Free or TouchKind.Drained
                && now[at].Kind == FrameKind.Free && now[at].Order > touch.Order
                    && now[at].HeadOf(touch.Pfn) != lastMerge)
            {
                lastMerge = now[at].HeadOf(touch.Pfn);
                AddTick(TickKind.Merge, lastMerge, touch.Order, now[at].Order, 1, 0);
            }
        }
    }

    private readonly record struct Touch(ulong Pfn, byte Order, TouchKind Kind, Migratetype Type);
}
