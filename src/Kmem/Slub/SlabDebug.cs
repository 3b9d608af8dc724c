using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// What slab debugging writes into the slots of one cache, and what it expects to find there.
/// <code>
///   slot  | left red zone | object | right red zone | free pointer | who allocated | who freed | requested | padding |
///                         p        +ObjectSize      +Inuse         +TrackOffset                  size
///   free         bb       6b … a5          bb
///   in use       cc       the user's       cc                                                              5a
/// </code>
/// In kmalloc caches that know the requested size, the red zone of an object in use begins where that ends.
/// </summary>
/// <remarks>init_object, check_object, check_slab, on_freelist, mm/slub.c, Linux 6.18. Not thread-safe:
/// list_lock.</remarks>
internal sealed class SlabDebug
{
    private const byte RedInactive = 0xbb;
    private const byte RedActive = 0xcc;
    private const byte PoisonInUse = 0x5a;
    private const byte PoisonFree = 0x6b;
    private const byte PoisonEnd = 0xa5;

    private readonly KmemCache _cache;
    private readonly SlabAllocator _slabs;
    private readonly SlabGeometry _geometry;
    private readonly bool _redZone;
    private readonly bool _poison;
    private readonly bool _kmalloc;
    private readonly int _metadataEnd;

    public SlabDebug(KmemCache cache, SlabAllocator slabs)
    {
        _cache = cache;
        _slabs = slabs;
        _geometry = cache.Geometry;
        SlabFlags flags = _geometry.Flags;
        _redZone = (flags & SlabFlags.RedZone) != 0;
        _poison = (flags & SlabFlags.Poison) != 0;
        _kmalloc = (flags & SlabFlags.Kmalloc) != 0;
        Checks = (flags & SlabFlags.ConsistencyChecks) != 0;
        StoresUser = (flags & SlabFlags.StoreUser) != 0;
        Traces = (flags & SlabFlags.Trace) != 0;
        _metadataEnd = _geometry.TrackOffset
            + (StoresUser ? 2 * ObjectTrack.SizeInBytes : 0)
            + (KeepsRequestedSize ? sizeof(uint) : 0);
    }

    public bool Checks { get; }

    public bool StoresUser { get; }

    public bool Traces { get; }

    /// <summary>
    /// The CPU that this thread used last. Takes no lock, other than <see cref="CpuSet.CurrentCpu"/>: list_lock is
    /// held.
    /// </summary>
    public unsafe int CpuHere
    {
        get
        {
            CpuTask* task = CpuSet.Here;
            if (task == null || task->MachineId != _slabs.Cpus.Id)
                return 0;
            return Math.Max(task->Cpu >= 0 ? task->Cpu : task->LastCpu, 0);
        }
    }

    public KmemCache Cache => _cache;

    public SlabAllocator Slabs => _slabs;

    /// <summary>Objects remember how many bytes were asked for (slub_debug_orig_size).</summary>
    public bool KeepsRequestedSize => StoresUser && _kmalloc;

    /// <summary>Whether bytes behind the requested ones must stay as they are.</summary>
    public bool GuardsSlack => KeepsRequestedSize && _redZone;

    public bool HasRedZones => _redZone;

    /// <summary>Bytes that ksize() reports: what is behind them is not the user's.</summary>
    public int UsableSize => _redZone || _poison ? _geometry.ObjectSize
        : StoresUser || (_geometry.Flags & SlabFlags.TypesafeByRcu) != 0 ? _geometry.Inuse
        : _geometry.Size;

    /// <summary>A new slab: everything is padding first, then each object is free and was never used.</summary>
    public unsafe void InitSlab(Page* slab, int objects, int order)
    {
        if (_poison)
            new Span<byte>(_slabs.Map.AddressOf(slab), (int)Pfn.PageSize << order).Fill(PoisonInUse);
        for (int i = 0; i < objects; i++)
        {
            var p = (byte*)_cache.ObjectOf(slab, i);
            InitObject(p, active: false);
            if (StoresUser)
                new Span<byte>(p + _geometry.TrackOffset, 2 * ObjectTrack.SizeInBytes).Clear();
            SetRequestedSize(p, (nuint)_geometry.ObjectSize);
        }
    }

    /// <summary>Red zones and poison as they belong around a free object, or around one that is handed out.</summary>
    public unsafe void InitObject(byte* p, bool active)
    {
        byte red = active ? RedActive : RedInactive;
        int body = _geometry.ObjectSize;
        if (_redZone)
        {
            new Span<byte>(p - _geometry.RedLeftPad, _geometry.RedLeftPad).Fill(red);
            if (active && KeepsRequestedSize)
                body = RequestedSize(p);
        }

        if (_geometry.PoisonsObjects)
        {
            new Span<byte>(p, body - 1).Fill(PoisonFree);
            p[body - 1] = PoisonEnd;
        }

        if (_redZone)
            new Span<byte>(p + body, _geometry.Inuse - body).Fill(red);
    }

    /// <summary>Notes what was asked for, if this cache does; the slack behind it becomes red zone.</summary>
    public unsafe void SetRequestedSize(void* p, nuint size)
    {
        if (KeepsRequestedSize)
            Unsafe.WriteUnaligned((byte*)p + _metadataEnd - sizeof(uint), (uint)size);
    }

    /// <summary>An object in use gets another size without moving (the end of krealloc).</summary>
    public unsafe void Resize(void* p, nuint size)
    {
        SetRequestedSize(p, size);
        if (GuardsSlack)
            new Span<byte>((byte*)p + size, _geometry.ObjectSize - (int)size).Fill(RedActive);
    }

    /// <summary>Bytes that were asked for; the object's size if nobody knows, or somebody wrote over it.</summary>
    public unsafe int RequestedSize(void* p)
    {
        if (!KeepsRequestedSize)
            return _geometry.ObjectSize;

        uint size = Unsafe.ReadUnaligned<uint>((byte*)p + _metadataEnd - sizeof(uint));
        return size > 0 && size <= (uint)_geometry.ObjectSize ? (int)size : _geometry.ObjectSize;
    }

    public unsafe void SetTrack(void* p, bool free, int stack)
    {
        var track = new ObjectTrack
        {
            Address = (ulong)stack,
            Stack = stack,
            Cpu = CpuHere,
            Thread = Environment.CurrentManagedThreadId,
            When = Environment.TickCount64,
        };
        Unsafe.WriteUnaligned((byte*)p + _geometry.TrackOffset + (free ? ObjectTrack.SizeInBytes : 0), track);
    }

    public unsafe ObjectTrack TrackOf(void* p, bool free) => Unsafe.ReadUnaligned<ObjectTrack>(
        (byte*)p + _geometry.TrackOffset + (free ? ObjectTrack.SizeInBytes : 0));

    /// <summary>Who allocated and freed an object last, as reports show it; empty if nobody knows.</summary>
    public unsafe string TracksOf(void* p)
    {
        var report = new SlabReport(this);
        report.Tracks(p);
        string text = report.ToString();
        return text.Length == 0 ? text : text + '\n';
    }

    /// <summary>Where the padding of a slot lies, as offsets from the object.</summary>
    public (int From, int To) Padding => (_metadataEnd, _geometry.Size - _geometry.RedLeftPad);

    /// <summary>Whether an object of a slab begins at an address (check_valid_pointer).</summary>
    public unsafe bool IsObject(Page* slab, void* address)
    {
        long offset = (byte*)address - _geometry.RedLeftPad - _slabs.Map.AddressOf(slab);
        return offset >= 0
            && offset < (long)SlabState.Read(slab).Objects * _geometry.Size
            && offset % _geometry.Size == 0;
    }

    /// <summary>Counts that are possible, and padding at the end as it was (check_slab).</summary>
    /// <returns>False if the slab cannot be used; the padding is put right.</returns>
    public unsafe bool CheckSlab(Page* slab, ref SlabReport? report)
    {
        SlabState state = SlabState.Read(slab);
        int order = PageAllocator.CompoundOrder(slab);
        int most = ((int)Pfn.PageSize << order) / _geometry.Size;
        string? wrong = state.Objects > most ? $"objects {state.Objects} > max {most}"
            : state.InUse > state.Objects ? $"inuse {state.InUse} > max {state.Objects}"
            : state.Frozen ? "Slab disabled since SLUB metadata consistency check failed"
            : null;
        if (wrong != null)
        {
            (report ??= new SlabReport(this)).SlabError(slab, wrong);
            return false;
        }

        if (_poison)
            CheckTail(slab, (int)Pfn.PageSize << order, ref report);
        return true;
    }

    /// <summary>
    /// An object's surroundings, and its body if it is free (check_object). What was overwritten is restored, so that
    /// the same damage is reported once.
    /// </summary>
    /// <returns>Whether all was well.</returns>
    public unsafe bool CheckObject(Page* slab, byte* p, bool active, ref SlabReport? report)
    {
        var check = new ObjectCheck(this, (nint)slab, (nint)p);
        byte red = active ? RedActive : RedInactive;
        int size = _geometry.ObjectSize;
        if (_redZone)
        {
            check.Bytes("Left Redzone", -_geometry.RedLeftPad, 0, red, ref report);
            check.Bytes("Right Redzone", size, _geometry.Inuse, red, ref report);
            if (active && KeepsRequestedSize)
                check.Bytes("kmalloc Redzone", RequestedSize(p), size, red, ref report);
        }
        else if (_poison)
        {
            check.Bytes("Alignment padding", size, _geometry.Inuse, PoisonInUse, ref report);
        }

        if (_geometry.PoisonsObjects && !active)
        {
            check.Bytes("Poison", 0, size - 1, PoisonFree, ref report);
            check.Bytes("End Poison", size - 1, size, PoisonEnd, ref report);
        }

        if (_poison)
            check.Bytes("Object padding", Padding.From, Padding.To, PoisonInUse, ref report);

        // An object in use whose free pointer lies within it has none.
        if (_geometry.FreePointerOutside || !active)
        {
            void* next = _cache.NextFree(p);
            if (next != null && !IsObject(slab, next))
            {
                check.Error("Freepointer corrupt", ref report);
                _cache.SetNextFree(p, null);
            }
        }

        return check.IsGood;
    }

    private unsafe void CheckTail(Page* slab, int bytes, ref SlabReport? report)
    {
        byte* start = _slabs.Map.AddressOf(slab);
        int used = bytes / _geometry.Size * _geometry.Size;
        var tail = new Span<byte>(start + used, bytes - used);
        int first = tail.IndexOfAnyExcept(PoisonInUse);
        if (first < 0)
            return;

        int last = tail.LastIndexOfAnyExcept(PoisonInUse);
        report ??= new SlabReport(this);
        report.TailOverwritten(slab, start + used + first, start + used + last, tail.Length);
        tail.Fill(PoisonInUse);
        report.Fix(
            $"Restoring slab padding {report.Address(start + used + first)}-{report.Address(start + used + last)}"
            + $"=0x{PoisonInUse:x}");
    }

    /// <summary>The checks of one object: only the first finding gets the full report.</summary>
    private ref struct ObjectCheck(SlabDebug debug, nint slab, nint obj)
    {
        private bool _bad;

        public readonly bool IsGood => !_bad;

        public unsafe void Bytes(string what, int from, int to, byte expected, ref SlabReport? report)
        {
            if (from >= to)
                return;

            byte* start = (byte*)obj + from;
            var range = new Span<byte>(start, to - from);
            int first = range.IndexOfAnyExcept(expected);
            if (first < 0)
                return;

            int last = range.LastIndexOfAnyExcept(expected);
            report ??= new SlabReport(debug);
            report.Overwritten((Page*)slab, what, start + first, start + last, expected);
            if (!_bad)
                report.ObjectError((Page*)slab, (byte*)obj, "Object corrupt");
            _bad = true;
            range[first..(last + 1)].Fill(expected);
            report.Fix(
                $"Restoring {what} {report.Address(start + first)}-{report.Address(start + last)}=0x{expected:x}");
        }

        public unsafe void Error(string reason, ref SlabReport? report)
        {
            report ??= new SlabReport(debug);
            report.ObjectError((Page*)slab, (byte*)obj, reason);
            _bad = true;
        }
    }
}
