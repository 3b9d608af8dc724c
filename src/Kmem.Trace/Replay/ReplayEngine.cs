using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem.Tracing;

/// <summary>
/// Carries out the events of a trace on a machine, and keeps account. This part: the loop, and objects.
/// </summary>
/// <remarks>
/// Two things of a request are not carried over. <c>__GFP_NOFAIL</c>: with nothing to reclaim such a request would wait
/// for ever when memory is short; here it fails and is counted. <c>__GFP_ZERO</c> of whole pages: nobody looks at their
/// content, and clearing them would occupy host memory for every page of the recorded machine's page cache.
/// </remarks>
internal sealed partial class ReplayEngine
{
    private const long ProgressMask = 0xffff;
    private const int MaxMismatches = 20;
    private const int MaxTexts = 100;

    /// <summary>So many failed allocations are described in the machine's log.</summary>
    private const int MaxFailureReports = 20;

    /// <summary>
    /// What kmalloc(0) returns is no memory (ZERO_SIZE_PTR); addresses up to here are never allocated.
    /// </summary>
    private const ulong ZeroSizePointer = 16;

    private const Gfp ObjectFlags = ~(GfpMask.SlabBug | Gfp.NoFail);

    private readonly Machine _machine;
    private readonly KmallocAllocator _kmalloc;
    private readonly CpuSet _cpus;
    private readonly FtraceReader _reader;
    private readonly Action<long>? _progress;
    private readonly ReplayCaches _caches;
    private readonly AddressTable<LiveObject> _objects = new(1 << 12);
    private readonly List<ReplayMismatch> _mismatches = [];
    private readonly List<string> _misuse = [];
    private CallSiteCounts[] _sites = new CallSiteCounts[1024];
    private Gfp _quiet;             // NoWarn once enough failures were described
    private long _events;
    private long _kmallocAllocs;
    private long _cacheAllocs;
    private long _objectFrees;
    private long _unknownFrees;
    private long _nullFrees;
    private long _freesOfFailed;
    private long _failedAllocs;
    private long _tracedFailures;
    private long _missedFrees;
    private long _skipped;
    private long _folded;
    private long _liveObjects;
    private long _liveBytes;
    private long _kmallocChecked;
    private long _kmallocEqual;
    private long _cacheChecked;
    private long _cacheEqual;
    private long _misuseCount;
    private TimeSpan _elapsed;

    public ReplayEngine(Machine machine, FtraceReader reader, Action<long>? progress)
    {
        _machine = machine;
        _kmalloc = machine.KmallocCaches;
        _cpus = machine.CpuSet;
        _reader = reader;
        _progress = progress;
        _caches = new ReplayCaches(machine);
        _lastPage = new LastPage[machine.Cpus];
    }

    /// <summary>What the events are carried out on.</summary>
    public Machine Machine => _machine;

    /// <summary>Events so far.</summary>
    public long Events => _events;

    /// <summary>So many events, and no more.</summary>
    public long StopAfter { get; set; } = long.MaxValue;

    /// <summary>End with the first allocation that finds no memory.</summary>
    public bool StopAtFailure { get; init; }

    /// <summary>Is told which event is carried out, or null.</summary>
    public EventMemory? Memory { get; init; }

    /// <summary>Replays the events that were read already, then the rest of the trace.</summary>
    public void Run(IReadOnlyList<TraceEvent> first)
    {
        long start = Stopwatch.GetTimestamp();
        if (Memory != null)
            Memory.NameOfCallSite = site => _reader.CallSites[site];
        int before = _cpus.Pin(0);
        try
        {
            while (!TryReplay(first))
            {
                // An event that the machine refused; on with the next one.
            }
        }
        finally
        {
            _cpus.Pin(before);
        }

        _elapsed += Stopwatch.GetElapsedTime(start);
    }

    /// <summary>Replays up to the end, or to an event that ends in a misuse report.</summary>
    private bool TryReplay(IReadOnlyList<TraceEvent> first)
    {
        try
        {
            while (_events < first.Count && _events < StopAfter)
                Step(first[(int)_events]);

            TraceEvent e = default;
            while (_events < StopAfter && _reader.TryRead(ref e))
                Step(e);
            return true;
        }
        catch (KernelBugException bug)
        {
            _misuseCount++;
            if (_misuse.Count < MaxTexts)
                _misuse.Add(bug.Message);
            return false;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void Step(in TraceEvent e)
    {
        if ((++_events & ProgressMask) == 0)
            _progress?.Invoke(_events);

        int cpu = e.Cpu;
        if ((uint)cpu >= (uint)_lastPage.Length)
        {
            cpu %= _lastPage.Length;
            _folded++;
        }

        if (Memory != null)
            Remember(e, cpu);
        switch (e.Kind)
        {
            case TraceEventKind.Kmalloc:
                _cpus.Pin(cpu);
                Kmalloc(e, cpu);
                break;
            case TraceEventKind.KmemCacheAlloc:
                _cpus.Pin(cpu);
                CacheAlloc(e, cpu);
                break;
            case TraceEventKind.Kfree:
            case TraceEventKind.KmemCacheFree:
                _cpus.Pin(cpu);
                ObjectFree(e);
                break;
            case TraceEventKind.PageAlloc:
                _cpus.Pin(cpu);
                PageAlloc(e, cpu);
                break;
            case TraceEventKind.PageFree:
                _cpus.Pin(cpu);
                PageFree(e);
                break;
            case TraceEventKind.AllocVmapArea:
            case TraceEventKind.FreeVmapAreaNoflush:
            case TraceEventKind.PurgeVmapAreaLazy:
                _cpus.Pin(cpu);
                VmapEvent(e, cpu);
                break;
            default:
                _skipped++;
                break;
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void Remember(in TraceEvent e, int cpu) =>
        Memory!.Moment = new RecordedMoment(_events, e.TimestampNs, cpu, e.CallSite, e.Ptr);

    /// <summary>The address here of what the recording has at an address now; null for nothing.</summary>
    public unsafe ulong? Find(ulong recorded)
    {
        ref LiveObject exact = ref _objects.Find(recorded);
        if (!Unsafe.IsNullRef(ref exact) && exact.Ours != 0)
            return _machine.KernelAddressOf((void*)exact.Ours).Value;
        if (!DirectMap.IsAddress(recorded))
            return null;

        ulong descriptor = recorded - AddressMap.VmemmapBase;
        if (descriptor < MaxPfn * Page.SizeInBytes)
            return FindDescriptor(descriptor / Page.SizeInBytes);

        ref Block block = ref FindCovering(_directMap.PfnOf(recorded), out ulong head);
        if (Unsafe.IsNullRef(ref block))
            return null;

        ulong inBlock = recorded - _directMap.AddressOf(head);
        if (block.Ours.IsValid)
            return _machine.KernelAddressOf(_machine.AddressOf(block.Ours)).Value + inBlock;
        if (block.Slot == 0 || inBlock < block.FirstSlot)
            return null;

        ulong offset = (inBlock - block.FirstSlot) % block.Slot;
        ref LiveObject inside = ref _objects.Find(recorded - offset);
        return Unsafe.IsNullRef(ref inside) || inside.Ours == 0
            ? null
            : _machine.KernelAddressOf((void*)inside.Ours).Value + offset;
    }

    /// <summary>
    /// The address here of the <c>struct page</c> of a recorded frame; null unless the page is allocated.
    /// </summary>
    private ulong? FindDescriptor(ulong pfn)
    {
        ref Block block = ref FindCovering(pfn, out ulong head);
        return Unsafe.IsNullRef(ref block) || !block.Ours.IsValid
            ? null
            : AddressMap.VmemmapBase + ((block.Ours.Value + (pfn - head)) * Page.SizeInBytes);
    }

    private unsafe void Kmalloc(in TraceEvent e, int cpu)
    {
        if (!HasObject(e))
            return;

        _kmallocAllocs++;
        RecogniseSlab(e, cpu);
        ref LiveObject entry = ref Claim(e.Ptr);
        Gfp gfp = FlagsOf(e);
        var size = (nuint)e.BytesReq;
        void* obj;
        int index;
        if (KmallocClasses.IsCached(size))
        {
            KmemCache cache = _kmalloc.CacheFor(size, gfp);
            index = ReplayCaches.IndexOf(cache);
            obj = cache.AllocCore(gfp, -1, size, traceAsKmalloc: true);
        }
        else
        {
            obj = LargeAlloc(size, gfp, out index);
        }

        if (obj == null)
        {
            Failed();
            return;
        }

        ref CacheCounts counts = ref _caches.Counts(index);
        _kmallocChecked++;
        counts.Checked++;
        if (counts.Slot == e.BytesAlloc)
        {
            _kmallocEqual++;
            counts.Equal++;
        }
        else
        {
            AddMismatch(e, counts.Slot);
        }

        Keep(ref entry, e, obj, index, ref counts);
    }

    private unsafe void CacheAlloc(in TraceEvent e, int cpu)
    {
        if (!HasObject(e))
            return;

        RecogniseSlab(e, cpu);
        int index = _caches.Find(e, _reader, (e.GfpFlags & (uint)Gfp.Reclaimable) != 0 || IsSlabReclaimable(e, cpu));
        if (index < 0)
        {
            _skipped++;
            return;
        }

        _cacheAllocs++;
        ref LiveObject entry = ref Claim(e.Ptr);
        KmemCache cache = _caches.At(index);
        void* obj = cache.AllocCore(FlagsOf(e), -1, (nuint)cache.ObjectSize, traceAsKmalloc: false);
        if (obj == null)
        {
            Failed();
            return;
        }

        ref CacheCounts counts = ref _caches.Counts(index);
        _cacheChecked++;
        counts.Checked++;
        if (counts.Slot == e.BytesAlloc)
        {
            _cacheEqual++;
            counts.Equal++;
        }
        else
        {
            AddMismatch(e, counts.Slot);
        }

        Keep(ref entry, e, obj, index, ref counts);
    }

    /// <summary>kfree and kmem_cache_free: the object knows its cache.</summary>
    private void ObjectFree(in TraceEvent e)
    {
        if (e.Ptr <= ZeroSizePointer)
        {
            if (e.PtrHidden)
                _skipped++;
            else
                _nullFrees++;
        }
        else if (!_objects.Remove(e.Ptr, out LiveObject obj))
        {
            _unknownFrees++;
        }
        else if (obj.Ours == 0)
        {
            _freesOfFailed++;
        }
        else
        {
            _objectFrees++;
            Release(obj);
        }
    }

    /// <summary>Whether an allocation event tells of memory that was given out; counts it if not.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool HasObject(in TraceEvent e)
    {
        if (e.Ptr > ZeroSizePointer && e.BytesReq != 0)
            return true;

        if (e.Ptr == 0 && !e.PtrHidden)
            _tracedFailures++;
        else
            _skipped++;
        return false;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private Gfp FlagsOf(in TraceEvent e) =>
        ((Gfp)e.GfpFlags & ObjectFlags) | (e.Accounted ? Gfp.Account : Gfp.None) | _quiet;

    /// <summary>The entry of an address that is given out now. What is still there was freed unseen.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private ref LiveObject Claim(ulong address)
    {
        ref LiveObject entry = ref _objects.Add(address, out bool existed);
        if (existed)
            ReleaseMissed(ref entry);
        return ref entry;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ReleaseMissed(ref LiveObject entry)
    {
        LiveObject old = entry;
        entry = default;
        _missedFrees++;
        if (old.Ours != 0)
            Release(old);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe void Keep(ref LiveObject entry, in TraceEvent e, void* obj, int index, ref CacheCounts counts)
    {
        var requested = (uint)e.BytesReq;
        int site = e.CallSite;
        entry.Ours = (nint)obj;
        entry.Requested = requested;
        entry.Site = site;
        entry.Index = index;

        long slot = counts.Slot;
        counts.Allocs++;
        counts.Requested += requested;
        if (++counts.Live > counts.Peak)
            counts.Peak = counts.Live;
        _liveObjects++;
        _liveBytes += slot;

        if ((uint)site >= (uint)_sites.Length)
            Array.Resize(ref _sites, site * 2);
        ref CallSiteCounts caller = ref _sites[site];
        caller.Allocs++;
        caller.TotalBytes += slot;
        caller.Live++;
        caller.LiveBytes += slot;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe void Release(in LiveObject obj)
    {
        ref CacheCounts counts = ref _caches.Counts(obj.Index);
        long slot = counts.Slot;
        counts.Live--;
        counts.Requested -= obj.Requested;
        _liveObjects--;
        _liveBytes -= slot;
        ref CallSiteCounts caller = ref _sites[obj.Site];
        caller.Live--;
        caller.LiveBytes -= slot;
        _kmalloc.Free((void*)obj.Ours);
    }

    /// <summary>More than the caches have; beyond the largest size nothing.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void* LargeAlloc(nuint size, Gfp gfp, out int index)
    {
        index = 0;
        if (size > KmallocClasses.MaxSize)
            return null;

        if (!gfp.HasValidMobility())
            gfp &= ~GfpMask.Mobility;
        index = PageOrder.ForSize(size);
        return _kmalloc.AllocBlock(size, gfp & ~Gfp.Zero);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void Failed()
    {
        if (++_failedAllocs >= MaxFailureReports)
            _quiet = Gfp.NoWarn;
        if (StopAtFailure)
            StopAfter = _events;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void AddMismatch(in TraceEvent e, uint slot)
    {
        if (_mismatches.Count == MaxMismatches)
            return;

        string cache = e.Kind == TraceEventKind.Kmalloc ? "kmalloc" : _reader.Names[e.Name];
        _mismatches.Add(new ReplayMismatch(e.Line, $"bytes_alloc of {cache}, {e.BytesReq} bytes", e.BytesAlloc, slot));
    }

    /// <summary>An object that is allocated in the recording and here.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct LiveObject
    {
        /// <summary>Its address here; 0 if there was no memory.</summary>
        public nint Ours;

        /// <summary>Bytes asked for.</summary>
        public uint Requested;

        /// <summary>The caller, in the reader's table.</summary>
        public int Site;

        /// <summary>The cache; see <see cref="ReplayCaches"/>.</summary>
        public int Index;
    }

    private struct CallSiteCounts
    {
        public long Allocs;
        public long TotalBytes;
        public long Live;
        public long LiveBytes;
    }
}
