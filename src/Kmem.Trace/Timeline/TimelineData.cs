using System.Runtime.InteropServices;

namespace Kmem.Tracing;

/// <summary>What became of a recorded event in the replay.</summary>
internal enum EventResult : byte
{
    Ok,

    /// <summary>There was no memory, here or in the recording.</summary>
    Failed,

    /// <summary>A free of what was allocated before the recording.</summary>
    Unknown,

    /// <summary>An event that a replay has nothing to do for.</summary>
    Skipped,

    /// <summary>The recorded SLUB's own request for pages: this machine's SLUB makes its own.</summary>
    Internal,

    /// <summary>The machine refused it as misuse.</summary>
    Refused,
}

/// <summary>A recorded event in the form in which millions are kept: what a replay or a list of events needs.</summary>
[StructLayout(LayoutKind.Auto)]
internal struct StoredEvent
{
    public ulong TimestampNs;

    /// <summary>The object's address, the first frame of a block, or the start of an area.</summary>
    public ulong Place;
    public uint BytesRequested;

    /// <summary>Bytes given; of an area the alignment that was asked for.</summary>
    public uint BytesAllocated;
    public uint Gfp;
    public uint Line;

    /// <summary>
    /// Of an area: its pages, guard page included, where it is given out; lazy pages where it is freed.
    /// </summary>
    public uint Detail;
    public int CallSite;
    public int Name;
    public int Pid;
    public ushort Cpu;
    public TraceEventKind Kind;
    public byte Order;
    public byte Migratetype;
    public EventResult Result;
    public bool Hidden;
    public bool Accounted;

    public static bool IsOfPages(TraceEventKind kind) => kind
        is TraceEventKind.PageAlloc or TraceEventKind.PageFree or TraceEventKind.PageFreeBatched
        or TraceEventKind.PageAllocZoneLocked or TraceEventKind.PagePcpuDrain or TraceEventKind.PageAllocExtfrag;

    /// <summary>Bytes that an object has; areas have an alignment there.</summary>
    public readonly uint BytesGiven => IsOfAreas(Kind) ? 0 : BytesAllocated;

    /// <summary>Whether it is about an area of the vmalloc space.</summary>
    public static bool IsOfAreas(TraceEventKind kind) => kind
        is TraceEventKind.AllocVmapArea or TraceEventKind.FreeVmapAreaNoflush or TraceEventKind.PurgeVmapAreaLazy;

    /// <param name="e">The event as it was read.</param>
    /// <param name="ranges">
    /// Where areas may lie: their number becomes the event's migrate type. A kernel has a few.
    /// </param>
    public static StoredEvent Of(in TraceEvent e, List<VmapRange> ranges)
    {
        ulong place = IsOfPages(e.Kind) ? e.Pfn : e.Ptr;
        ulong bytes = e.BytesReq;
        if (IsOfAreas(e.Kind))
            return OfArea(e, ranges);

        return new StoredEvent
        {
            TimestampNs = e.TimestampNs,
            Place = place,
            BytesRequested = (uint)Math.Min(bytes, uint.MaxValue),
            BytesAllocated = (uint)Math.Min(e.BytesAlloc, uint.MaxValue),
            Gfp = e.GfpFlags,
            Line = (uint)Math.Min(e.Line, uint.MaxValue),
            CallSite = e.CallSite,
            Name = e.Kind == TraceEventKind.Other ? e.EventName : e.Name,
            Pid = e.Pid,
            Cpu = (ushort)Math.Clamp(e.Cpu, 0, ushort.MaxValue),
            Kind = e.Kind,
            Order = (byte)Math.Clamp(e.Order, 0, byte.MaxValue),
            Migratetype = (byte)Math.Clamp(e.Migratetype, 0, byte.MaxValue),
            Hidden = e.PtrHidden,
            Accounted = e.Accounted,
        };
    }

    private static StoredEvent OfArea(in TraceEvent e, List<VmapRange> ranges)
    {
        var range = new VmapRange(e.VmapRangeStart, e.VmapRangeEnd);
        int number = ranges.IndexOf(range);
        if (number < 0 && ranges.Count <= byte.MaxValue)
        {
            number = ranges.Count;
            ranges.Add(range);
        }

        bool freed = e.Kind == TraceEventKind.FreeVmapAreaNoflush;
        return new StoredEvent
        {
            TimestampNs = e.TimestampNs,
            Place = e.VmapStart,
            BytesRequested = (uint)Math.Min(e.VmapSize, uint.MaxValue),
            Detail = (uint)Math.Min(freed ? e.VmapLazyPages : e.VmapSize >> Pfn.PageShift, uint.MaxValue),
            BytesAllocated = (uint)Math.Min(e.VmapAlign, uint.MaxValue),
            Line = (uint)Math.Min(e.Line, uint.MaxValue),
            Pid = e.Pid,
            Cpu = (ushort)Math.Clamp(e.Cpu, 0, ushort.MaxValue),
            Kind = e.Kind,
            Migratetype = (byte)Math.Max(number, 0),
            Hidden = e.VmapFailed,
        };
    }

    /// <summary>The event as a replay takes it.</summary>
    /// <param name="ranges">As they were when the event was made.</param>
    public readonly TraceEvent ToTraceEvent(List<VmapRange> ranges)
    {
        if (IsOfAreas(Kind))
            return ToAreaEvent(ranges[Migratetype]);

        bool pages = IsOfPages(Kind);
        return new TraceEvent
        {
            Kind = Kind,
            TimestampNs = TimestampNs,
            Line = Line,
            Cpu = Cpu,
            Pid = Pid,
            State = TraceEvent.NoState,
            Ptr = pages ? 0 : Place,
            PtrHidden = Hidden,
            Pfn = pages ? Place : 0,
            Order = Order,
            Migratetype = Migratetype,
            BytesReq = BytesRequested,
            BytesAlloc = BytesAllocated,
            GfpFlags = Gfp,
            Node = -1,
            Accounted = Accounted,
            CallSite = CallSite,
            Name = Kind == TraceEventKind.Other ? 0 : Name,
        };
    }

    private readonly TraceEvent ToAreaEvent(VmapRange range) => new()
    {
        Kind = Kind,
        TimestampNs = TimestampNs,
        Line = Line,
        Cpu = Cpu,
        Pid = Pid,
        State = TraceEvent.NoState,
        Node = -1,
        VmapStart = Place,
        VmapSize = (ulong)Detail << Pfn.PageShift,
        VmapAlign = BytesAllocated,
        VmapRangeStart = range.Start,
        VmapRangeEnd = range.End,
        VmapFailed = Hidden,
        VmapLazyPages = Detail,
    };
}

/// <summary>A change of the frames: a run of equal ones became another kind of equal ones.</summary>
/// <remarks>Both ways are there, so time runs backwards as well. Count 0: a pageblock's migrate type, in
/// Order.</remarks>
[StructLayout(LayoutKind.Auto)]
internal struct FrameChange
{
    public uint Pfn;
    public ushort Count;
    public FrameCell From;
    public FrameCell To;
}

/// <summary>An object was given out, or came back.</summary>
[StructLayout(LayoutKind.Auto)]
internal struct ObjectChange
{
    /// <summary>Bytes from the start of RAM.</summary>
    public ulong Offset;

    /// <summary>Bytes asked for.</summary>
    public uint Requested;

    /// <summary>Its cache; 0: a large block.</summary>
    public ushort Cache;

    /// <summary>1 or −1.</summary>
    public sbyte Sign;
}

/// <summary>What the allocator did that is worth a word.</summary>
internal enum TickKind : byte
{
    Split,
    Merge,
    Fallback,
    Claim,
    Refill,
    Drain,
    NewSlab,
    FreeSlab,
    SlowPath,
    Failure,
    ObjectAlloc,
    ObjectFree,
    PageAlloc,
    PageFree,
}

/// <summary>One entry of the ticker.</summary>
[StructLayout(LayoutKind.Auto)]
internal struct Tick
{
    /// <summary>It is not known which order, or many were meant.</summary>
    public const byte NoOrder = byte.MaxValue;

    /// <summary>The same of a CPU.</summary>
    public const ushort NoCpu = ushort.MaxValue;

    public uint Event;
    public uint Pfn;
    public int Count;
    public TickKind Kind;
    public byte Zone;
    public byte Order;
    public byte FromOrder;
    public byte Migratetype;
    public byte FromType;
    public ushort Cpu;
    public ushort Cache;
}

/// <summary>A list that grows, read by index without checks of versions; written by one, then read by many.</summary>
internal sealed class GrowingList<T>
    where T : struct
{
    private T[] _items = new T[1024];

    public int Count { get; private set; }

    public ref T this[int index] => ref _items[index];

    public ReadOnlySpan<T> Range(int from, int to) => _items.AsSpan(from, to - from);

    public ReadOnlyMemory<T> Memory(int from, int to) => _items.AsMemory(from, to - from);

    public ReadOnlySpan<T> All => _items.AsSpan(0, Count);

    public void Add(in T item)
    {
        if (Count == _items.Length)
            Array.Resize(ref _items, _items.Length + (_items.Length / 2));
        _items[Count++] = item;
    }
}
