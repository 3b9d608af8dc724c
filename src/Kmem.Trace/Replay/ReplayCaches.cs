using System.Globalization;
using System.Runtime.CompilerServices;

namespace Kmem.Tracing;

/// <summary>
/// The caches of a replay and what is counted about each. A cache's index is its number in the machine; before those
/// come the sizes of large kmalloc blocks:
/// <code>
///   index   0 … 10               11 + KmemCache.Id
///           kmalloc blocks of    caches: kmalloc's own, and those that the trace names,
///           2⁰ … 2¹⁰ pages       made at the first event that names them
/// </code>
/// </summary>
internal sealed class ReplayCaches
{
    /// <summary>A kernel has about 250; the bound keeps a hostile trace from filling memory.</summary>
    private const int MaxCreated = 4096;

    private const int LargestAlign = 4096;
    private const int Impossible = -1;

    private readonly Machine _machine;
    private readonly AddressTable<int> _unnamed = new(64);      // by size and slot, for kernels that print no names
    private KmemCache?[] _caches = [];
    private CacheCounts[] _counts = [];
    private int[] _indexOfName = new int[256];
    private int _created;

    public ReplayCaches(Machine machine)
    {
        _machine = machine;
        foreach (KmemCache cache in machine.Caches)
            Register(cache);
        for (int order = 0; order < PageOrder.Count; order++)
            _counts[order].Slot = (uint)Pfn.PageSize << order;
    }

    /// <summary>The index of a cache of the machine.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int IndexOf(KmemCache cache) => PageOrder.Count + cache.Id;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public KmemCache At(int index) => _caches[index]!;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ref CacheCounts Counts(int index) => ref _counts[index];

    /// <summary>The index of the cache that an event names; negative if there can be no such cache.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public int Find(in TraceEvent e, FtraceReader reader, bool reclaimable)
    {
        int[] indices = _indexOfName;
        int name = e.Name;
        int index = (uint)name < (uint)indices.Length ? indices[name] : 0;
        return index != 0 ? index : FindSlow(e, reader, reclaimable);
    }

    public IEnumerable<CacheReport> Report()
    {
        var reports = new List<CacheReport>();
        for (int index = 0; index < _counts.Length; index++)
        {
            if (_counts[index].Allocs > 0)
                reports.Add(Report(index));
        }

        return reports
            .OrderByDescending(report => report.LiveObjects * report.SlotSize)
            .ThenByDescending(report => report.Slabs << report.Order)
            .ThenBy(report => report.Name, StringComparer.Ordinal);
    }

    private CacheReport Report(int index)
    {
        ref CacheCounts counts = ref _counts[index];
        KmemCache? cache = _caches[index];
        long slots = cache?.TotalObjects ?? counts.Live;
        return new CacheReport
        {
            Name = cache?.Name ?? string.Create(CultureInfo.InvariantCulture, $"kmalloc-large-{4 << index}k"),
            ObjectSize = cache?.ObjectSize ?? (long)counts.Slot,
            SlotSize = counts.Slot,
            ObjectsPerSlab = cache?.Geometry.ObjectsPerSlab ?? 1,
            Order = cache?.Geometry.Order ?? index,
            Allocs = counts.Allocs,
            Frees = counts.Allocs - counts.Live,
            LiveObjects = counts.Live,
            PeakObjects = counts.Peak,
            Slabs = cache?.SlabCount ?? counts.Live,
            RequestedBytes = counts.Requested,
            InternalWasteBytes = (counts.Live * counts.Slot) - counts.Requested,
            FreeSlotBytes = (slots - counts.Live) * counts.Slot,
            Checked = counts.Checked,
            Equal = counts.Equal,
        };
    }

    private int FindSlow(in TraceEvent e, FtraceReader reader, bool reclaimable)
    {
        if (e.Name == 0)
        {
            // Sizes that do not fit into the key are beyond every cache.
            if ((e.BytesReq | e.BytesAlloc) > uint.MaxValue || e.BytesReq == 0)
                return Impossible;

            ref int index = ref _unnamed.Add((e.BytesReq << 32) | e.BytesAlloc, out bool existed);
            if (!existed)
                index = Create(e, $"unnamed-{e.BytesReq}", reclaimable);
            return index;
        }

        if (e.Name >= _indexOfName.Length)
            Array.Resize(ref _indexOfName, reader.Names.Count * 2);
        return _indexOfName[e.Name] = Create(e, reader.Names[e.Name], reclaimable);
    }

    private int Create(in TraceEvent e, string name, bool reclaimable)
    {
        if (_created == MaxCreated || e.BytesReq > KmallocClasses.MaxSize || string.IsNullOrWhiteSpace(name))
            return Impossible;

        try
        {
            (int align, SlabFlags flags) = Infer((int)e.BytesReq, e.BytesAlloc);
            flags |= SlabFlags.NoMerge
                | (e.Accounted ? SlabFlags.Account : SlabFlags.None)
                | (reclaimable ? SlabFlags.ReclaimAccount : SlabFlags.None);
            KmemCache cache = _machine.CreateCache(name, (int)e.BytesReq, align, flags);
            _created++;
            Register(cache);
            return IndexOf(cache);
        }
        catch (ArgumentException)
        {
            return Impossible;
        }
    }

    /// <summary>
    /// How the cache was created, as far as it can be told from the size of an object and of its slot: the first of the
    /// kernel's ways that gives this slot. If none does, the plain way; the report then shows the difference.
    /// </summary>
    private (int Align, SlabFlags Flags) Infer(int size, ulong slot)
    {
        const SlabFlags Behind = SlabFlags.TypesafeByRcu;       // as with a constructor, the free pointer lies behind
        ReadOnlySpan<SlabFlags> layouts =
            [SlabFlags.None, SlabFlags.HwcacheAlign, Behind, SlabFlags.HwcacheAlign | Behind];
        foreach (SlabFlags flags in layouts)
        {
            if (Gives(size, 0, flags, slot))
                return (0, flags);
        }

        for (int align = 16; align <= LargestAlign; align *= 2)
        {
            if (Gives(size, align, SlabFlags.None, slot))
                return (align, SlabFlags.None);
            if (Gives(size, align, Behind, slot))
                return (align, Behind);
        }

        return (0, SlabFlags.None);
    }

    private bool Gives(int size, int align, SlabFlags flags, ulong slot)
    {
        var request = new SlabGeometryRequest(size, align, flags, _machine.Cpus)
        {
            CacheLineSize = _machine.Options.CacheLineSize,
        };
        return (ulong)SlabGeometry.Compute(request).Size == slot;
    }

    private void Register(KmemCache cache)
    {
        int index = IndexOf(cache);
        if (index >= _counts.Length)
        {
            Array.Resize(ref _counts, Math.Max(64, index * 2));
            Array.Resize(ref _caches, _counts.Length);
        }

        _caches[index] = cache;
        _counts[index].Slot = (uint)cache.SlotSize;
    }
}

/// <summary>What is counted about a cache while a replay runs.</summary>
internal struct CacheCounts
{
    public long Allocs;
    public long Live;
    public long Peak;
    public long Requested;
    public long Checked;
    public long Equal;

    /// <summary>Bytes of a slot.</summary>
    public uint Slot;
}
