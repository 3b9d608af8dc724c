using System.Diagnostics;

namespace Kmem;

/// <summary>Where a replay is: what the events of the machine are attributed to.</summary>
/// <param name="Event">Number of the recorded event, from 1.</param>
/// <param name="TimeNs">Its time stamp.</param>
/// <param name="Cpu">Its CPU.</param>
/// <param name="CallSite">Its caller, a number of the reader's.</param>
/// <param name="Address">The address in it; 0 for none.</param>
internal readonly record struct RecordedMoment(long Event, ulong TimeNs, int Cpu, int CallSite, ulong Address);

/// <summary>
/// Remembers what happened on a machine, so that it can be explained: allocations and frees in a ring, and for blocks
/// of pages in use, and for those that failed last, how it was decided.
/// <code>
///   chunks of 64 Ki entries:  [ 0 … ][ 65536 … ][ … newest ]     the oldest chunk is used again when all are there
///   decisions: first frame → decision, for blocks in use
///   origins:   frame → how it left the buddy system, for frames on CPUs' lists
/// </code>
/// Called under zone locks; its own lock is the last one.
/// </summary>
internal sealed class EventMemory : ITrace, IVmapTrace
{
    private const int ChunkShift = 16;
    private const int ChunkSize = 1 << ChunkShift;
    private const int MaxFailures = 64;
    private const int MaxDecisions = 1 << 18;

    private readonly Lock _lock = new();
    private readonly AddressMap _addresses;
    private readonly Func<int> _cpu;
    private readonly Func<ulong, ZonePages?> _zoneOf;
    private readonly Entry[]?[] _chunks;
    private readonly Dictionary<ulong, PageDecision> _decisions = [];
    private readonly Dictionary<ulong, Origin> _origins = [];
    private readonly List<PageDecision> _failures = [];
    private readonly List<string> _names = [];
    private readonly Dictionary<string, int> _numbers = new(StringComparer.Ordinal);
    private readonly long _start = Stopwatch.GetTimestamp();
    private long _count;
    private long _own;

    // The requests for pages that this thread is in, innermost first, and where its object comes from.
    [ThreadStatic]
    private static Pending? t_pending;
    [ThreadStatic]
    private static ObjectSource t_source;

    /// <param name="events">Events to remember; rounded up to chunks.</param>
    /// <param name="addresses">The machine's addresses.</param>
    /// <param name="cpu">The CPU that this thread is on.</param>
    /// <param name="zoneOf">The zone of a frame.</param>
    public EventMemory(long events, AddressMap addresses, Func<int> cpu, Func<ulong, ZonePages?> zoneOf)
    {
        _addresses = addresses;
        _cpu = cpu;
        _zoneOf = zoneOf;
        _chunks = new Entry[]?[(int)Math.Max(1, (events + ChunkSize - 1) >> ChunkShift)];
        _names.Add("");
    }

    public bool WantsDecisions => true;

    /// <summary>Set by a replay before each event; without one events count themselves.</summary>
    public RecordedMoment? Moment { get; set; }

    /// <summary>
    /// Answers are as after this event, though more have come; null: after all. Set by who alone asks. A decision is
    /// known only while its block is in use: after it was freed and given out again, none of before is.
    /// </summary>
    public long? Until { get; set; }

    /// <summary>The name of a caller, by the number in <see cref="RecordedMoment.CallSite"/>.</summary>
    public Func<int, string?> NameOfCallSite { get; set; } = _ => null;

    /// <summary>Events that came so far.</summary>
    public long Count => Volatile.Read(ref _count);

    /// <summary>The decisions about requests that failed, oldest first.</summary>
    public IReadOnlyList<PageDecision> Failures
    {
        get
        {
            lock (_lock)
                return [.. _failures];
        }
    }

    /// <summary>How the block at a frame was decided, or null.</summary>
    public PageDecision? DecisionOf(ulong firstPfn)
    {
        lock (_lock)
        {
            PageDecision? decision = _decisions.GetValueOrDefault(firstPfn);
            return decision?.Event > Until ? null : decision;
        }
    }

    /// <summary>The machine's address that a recorded address stood for when it was last allocated; null:
    /// never.</summary>
    public ulong? LastOf(ulong recorded)
    {
        lock (_lock)
        {
            for (long at = _count - 1; at >= First; at--)
            {
                ref Entry entry = ref At(at);
                if (entry.Event > Until)
                    continue;
                if (entry.Recorded == recorded && entry.Kind == LifeEventKind.ObjectAllocated)
                    return entry.Address;
            }
        }

        return null;
    }

    /// <summary>
    /// What happened to an object and to the block of frames that it lies in, oldest first; the newest, if it is more
    /// than <paramref name="most"/>.
    /// </summary>
    public (List<LifeEvent> Events, long Omitted) StoryOf(ulong objectStart, ulong firstByte, ulong bytes, int most)
    {
        var story = new List<LifeEvent>();
        long omitted = 0;
        lock (_lock)
        {
            for (long at = _count - 1; at >= First; at--)
            {
                ref Entry entry = ref At(at);
                if (entry.Event > Until)
                    continue;
                bool pages = entry.Kind >= LifeEventKind.PagesAllocated;
                bool concerns = pages
                    ? entry.Address < firstByte + bytes && firstByte < entry.Address
                        + ((ulong)Pfn.PageSize << entry.Order)
                    : entry.Address == objectStart;
                if (!concerns)
                    continue;
                if (story.Count == most)
                    omitted++;
                else
                    story.Add(ToEvent(entry));
            }
        }

        story.Reverse();
        return (story, omitted);
    }

    /// <summary>The last allocation of an object, or of pages, at an address; null if it is not remembered.</summary>
    public LifeEvent? BirthOf(ulong address, bool isObject)
    {
        LifeEventKind kind = isObject ? LifeEventKind.ObjectAllocated : LifeEventKind.PagesAllocated;
        lock (_lock)
        {
            for (long at = _count - 1; at >= First; at--)
            {
                ref Entry entry = ref At(at);
                if (entry.Event > Until)
                    continue;
                if (entry.Address == address && entry.Kind == kind)
                    return ToEvent(entry);
            }
        }

        return null;
    }

    public void Kmalloc(ulong address, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node) =>
        AddObject(address, bytesRequested, gfp, 0);

    public void KmemCacheAlloc(
        ulong address, string cache, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node) =>
        AddObject(address, bytesRequested, gfp, NumberOf(cache));

    public void Kfree(ulong address) => Add(new Entry { Kind = LifeEventKind.ObjectFreed, Address = address });

    public void KmemCacheFree(ulong address, string cache) =>
        Add(new Entry { Kind = LifeEventKind.ObjectFreed, Address = address, Name = NumberOf(cache) });

    public void RequestBegins(int order, Gfp gfp, Migratetype migratetype, IReadOnlyList<ZoneVerdict> zones)
    {
        // Inside the slow path hooks may allocate; any other request that is still pending ended with an exception.
        Pending? outer = t_pending is { Steps.Count: > 0 } ? t_pending : null;
        t_pending = new Pending(outer, order, gfp, migratetype, zones);
    }

    public void ZoneRefused(int node, ZoneType zone, ZoneResult result) =>
        t_pending?.Mark(node, zone.Name(), result);

    public void SlowPathStep(SlowStep step) => t_pending?.Steps.Add(step);

    public void ObjectFrom(ObjectSource source) => t_source = source;

    public void MmPageAllocZoneLocked(Pfn pfn, int order, Migratetype migratetype, bool percpuRefill)
    {
        // BlockFound follows, and says more.
    }

    public void BlockFound(Pfn pfn, int order, int foundOrder, Migratetype migratetype) => SetOrigin(
        pfn.Value, new Origin(t_pending, EventNow, foundOrder, foundOrder - order, migratetype, false, false));

    public void MmPageAllocExtfrag(in ExtfragEvent fallback) => SetOrigin(
        fallback.Pfn.Value,
        new Origin(
            t_pending,
            EventNow,
            fallback.FallbackOrder,
            fallback.FallbackOrder - fallback.AllocOrder,
            fallback.FallbackMigratetype,
            true,
            fallback.ChangeOwnership));

    public void MmPagePcpuDrain(Pfn pfn, int order, Migratetype migratetype)
    {
        lock (_lock)
            _origins.Remove(pfn.Value);
        Add(new Entry { Kind = LifeEventKind.DrainedToBuddy, Address = AddressOf(pfn), Order = (byte)order });
    }

    public void MmPageAlloc(Pfn pfn, int order, Gfp gfp, Migratetype migratetype)
    {
        if (t_pending is { } pending)
        {
            t_pending = pending.Outer;
            Decide(pending, pfn, order);
        }

        if (pfn.IsValid)
        {
            Add(new Entry
            {
                Kind = LifeEventKind.PagesAllocated,
                Address = AddressOf(pfn),
                Order = (byte)order,
                Bytes = (uint)Pfn.PageSize << order,
                Gfp = gfp,
            });
        }
    }

    public void PageOfBulk(Pfn pfn, Gfp gfp)
    {
        lock (_lock)
            _origins.Remove(pfn.Value);
        Add(new Entry
        {
            Kind = LifeEventKind.PagesAllocated,
            Address = AddressOf(pfn),
            Bytes = Pfn.PageSize,
            Gfp = gfp
        });
    }

    public void MmPageFree(Pfn pfn, int order)
    {
        lock (_lock)
            _decisions.Remove(pfn.Value);
        Add(new Entry { Kind = LifeEventKind.PagesFreed, Address = AddressOf(pfn), Order = (byte)order });
    }

    public void AllocVmapArea(ulong address, in VmapRequest request, bool failed)
    {
        if (!failed)
        {
            Add(new Entry
            {
                Kind = LifeEventKind.ObjectAllocated,
                Address = address,
                Bytes = (uint)Math.Min(request.Size, uint.MaxValue),
                Gfp = request.Gfp,
                Name = NumberOf(AreaName),
            });
        }
    }

    public void PurgeVmapAreaLazy(ulong start, ulong end, uint purged)
    {
    }

    public void FreeVmapAreaNoflush(ulong start, ulong lazyPages, ulong lazyMax) =>
        Add(new Entry { Kind = LifeEventKind.ObjectFreed, Address = start, Name = NumberOf(AreaName) });

    /// <summary>What an area of the vmalloc space has instead of a cache.</summary>
    public const string AreaName = "vmalloc area";

    private long EventNow => Moment?.Event ?? Volatile.Read(ref _own) + 1;

    private long First => Math.Max(0, _count - ((long)_chunks.Length << ChunkShift));

    private ulong AddressOf(Pfn pfn) => _addresses.DirectMap + pfn.Address.Value;

    private void AddObject(ulong address, nuint bytes, Gfp gfp, int name)
    {
        ObjectSource source = t_source;
        t_source = ObjectSource.CpuFreeList;
        Add(new Entry
        {
            Kind = LifeEventKind.ObjectAllocated,
            Address = address,
            Bytes = (uint)Math.Min(bytes, uint.MaxValue),
            Gfp = gfp,
            Name = name,
            Source = source,
        });
    }

    private void Decide(Pending pending, Pfn pfn, int order)
    {
        lock (_lock)
        {
            _origins.Remove(pfn.Value, out Origin? origin);
            if (pfn.IsValid && _zoneOf(pfn.Value)?.Zone is { } zone)
                pending.Mark(zone.NodeId, zone.Name, ZoneResult.Served);
            var decision = new PageDecision
            {
                Event = EventNow,
                Cpu = Moment?.Cpu ?? _cpu(),
                Order = order,
                Gfp = pending.Gfp,
                Type = pending.Type,
                Block = pfn,
                Zones = pending.Zones,
                Source = pfn.IsValid ? SourceOf(origin, pending, order) : null,
                SlowPath = pending.Steps,
            };
            if (!pfn.IsValid)
            {
                if (_failures.Count == MaxFailures)
                    _failures.RemoveAt(0);
                _failures.Add(decision);
            }
            else if (_decisions.Count < MaxDecisions)
            {
                _decisions[pfn.Value] = decision;
            }
        }
    }

    /// <summary>A block without an origin was freed onto the CPU's list and is used again.</summary>
    private static BlockSource SourceOf(Origin? origin, Pending pending, int order)
    {
        if (origin == null)
            return new BlockSource(BlockPlace.CpuList, order, 0, pending.Type, false, false, 0);

        BlockPlace place = !PerCpuPages.IsPcpOrder(order) ? BlockPlace.FreeList
            : origin.For == pending ? BlockPlace.CpuListRefilled
            : BlockPlace.CpuList;
        return new BlockSource(
            place, origin.FoundOrder, origin.Splits, origin.Type, origin.Stolen, origin.Claimed, origin.Event);
    }

    private void SetOrigin(ulong pfn, Origin origin)
    {
        lock (_lock)
            _origins[pfn] = origin;
    }

    private int NumberOf(string name)
    {
        lock (_lock)
        {
            if (!_numbers.TryGetValue(name, out int number))
            {
                number = _names.Count;
                _names.Add(name);
                _numbers.Add(name, number);
            }

            return number;
        }
    }

    private void Add(Entry entry)
    {
        lock (_lock)
        {
            if (Moment is { } moment)
            {
                entry.Event = moment.Event;
                entry.TimeNs = moment.TimeNs;
                entry.Cpu = moment.Cpu;
                entry.CallSite = moment.CallSite;
                entry.Recorded = entry.Kind < LifeEventKind.PagesAllocated ? moment.Address : 0;
            }
            else
            {
                entry.Event = ++_own;
                entry.TimeNs = (ulong)(Stopwatch.GetElapsedTime(_start).Ticks * TimeSpan.NanosecondsPerTick);
                entry.Cpu = _cpu();
            }

            int chunk = (int)((_count >> ChunkShift) % _chunks.Length);
            (_chunks[chunk] ??= new Entry[ChunkSize])[_count & (ChunkSize - 1)] = entry;
            _count++;
        }
    }

    private ref Entry At(long index) =>
        ref _chunks[(index >> ChunkShift) % _chunks.Length]![index & (ChunkSize - 1)];

    private LifeEvent ToEvent(in Entry entry) => new()
    {
        Event = entry.Event,
        TimeNs = (long)entry.TimeNs,
        Cpu = entry.Cpu,
        Kind = entry.Kind,
        Address = new VirtAddr(entry.Address),
        Recorded = entry.Recorded == 0 ? null : new VirtAddr(entry.Recorded),
        Bytes = entry.Bytes,
        Order = entry.Order,
        Cache = entry.Name == 0 ? null : _names[entry.Name],
        CallSite = entry.CallSite == 0 ? null : NameOfCallSite(entry.CallSite),
        Gfp = entry.Gfp,
        Source = entry.Kind == LifeEventKind.ObjectAllocated && entry.Name != AreaNumber ? entry.Source : null,
    };

    private int AreaNumber => _numbers.GetValueOrDefault(AreaName, -1);

    private struct Entry
    {
        public long Event;
        public ulong TimeNs;
        public ulong Address;
        public ulong Recorded;
        public int Cpu;
        public int CallSite;
        public int Name;
        public uint Bytes;
        public Gfp Gfp;
        public LifeEventKind Kind;
        public ObjectSource Source;
        public byte Order;
    }

    /// <summary>How a block left the buddy system.</summary>
    /// <param name="For">The request that took it; it may serve another one.</param>
    /// <param name="Event">When.</param>
    /// <param name="FoundOrder">Order of the free block.</param>
    /// <param name="Splits">How often that was halved.</param>
    /// <param name="Type">Whose list it was on.</param>
    /// <param name="Stolen">It was another type's.</param>
    /// <param name="Claimed">The pageblock changed its type.</param>
    private sealed record Origin(
        Pending? For, long Event, int FoundOrder, int Splits, Migratetype Type, bool Stolen, bool Claimed);

    /// <summary>A request for pages on its way.</summary>
    private sealed class Pending(
        Pending? outer, int order, Gfp gfp, Migratetype type, IReadOnlyList<ZoneVerdict> zones)
    {
        public Pending? Outer { get; } = outer;

        public int Order { get; } = order;

        public Gfp Gfp { get; } = gfp;

        public Migratetype Type { get; } = type;

        public ZoneVerdict[] Zones { get; } = [.. zones];

        public List<SlowStep> Steps { get; } = [];

        public void Mark(int node, string zone, ZoneResult result)
        {
            for (int i = 0; i < Zones.Length; i++)
            {
                if (Zones[i].Node == node && Zones[i].Zone == zone)
                    Zones[i] = Zones[i] with { Result = result };
            }
        }
    }
}
