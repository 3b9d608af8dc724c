using System.Diagnostics;

namespace Kmem;

/// <summary>
/// A pool of pages in which some of a machine's objects live alone (KFENCE). Every second page may never be touched,
/// the others only while an object lives on them:
/// <code>
///   page   0      1      2          3      4          5            2N      2N+1
///        |/////|/////| object 0 |/////| object 1 |/////|  …  | object N−1 |/////|       / faults
///                      ▲ at the left or the right edge, by chance; canary bytes beside it
/// </code>
/// So are as many pages again on both sides of the pool, with up to 255 objects. What faults ends the process, with
/// the stack of who touched it: the runtime makes a fatal error of a fault outside its own memory, and no handler
/// is asked. <see cref="Explain"/> says then what was at the address. What does not fault (a byte written between
/// object and page edge, a second free) is reported when the object is freed.
/// </summary>
/// <remarks>
/// mm/kfence/core.c, Linux 6.18. Thread-safe. The pages are frames of the machine's RAM, inaccessible in the direct
/// map. Hosts without 4 KiB pages or without Linux have no guard pages, only canaries.
/// </remarks>
public sealed partial class Kfence
{
    private const int PageBytes = (int)Pfn.PageSize;
    private const byte CanaryByte = 0xaa;
    private const string Purpose = "guard pages";

    private readonly SlabAllocator _slabs;
    private readonly KfenceOptions _options;
    private readonly Lock _gate = new();
    private readonly Slot[] _slots;
    private readonly Queue<int> _unused = new();  // the one freed last is used last
    private readonly Dictionary<int, int> _covered = []; // guarded objects by the stack that allocated them
    private readonly unsafe byte* _pool;
    private readonly nuint _poolBytes;
    private readonly int _mappings;
    private readonly long _boot = Stopwatch.GetTimestamp();
    private ulong _random;
    private Timer? _timer;
    private long _allocations;       // all that were seen, for every n-th
    private volatile bool _isOpen;

    private unsafe Kfence(SlabAllocator slabs, KfenceOptions options, byte* pool, bool guarded, ulong seed)
    {
        _slabs = slabs;
        _options = options;
        _pool = pool;
        _poolBytes = (nuint)((2 * (options.Objects + 1)) * PageBytes);
        _mappings = guarded ? MappingsFor(options.Objects) : 0;
        IsGuarded = guarded;
        _random = Math.Max(1, seed * 0x9e37_79b9_7f4a_7c15);
        _slots = new Slot[options.Objects];
        for (int i = 0; i < _slots.Length; i++)
        {
            _slots[i] = new Slot(i);
            _unused.Enqueue(i);
            if (!guarded)
                FillCanary(PageOf(i), PageBytes);
        }

        _isOpen = options.EveryNth > 0;
    }

    private enum SlotState
    {
        Unused,
        Allocated,
        Freed,
    }

    /// <summary>Whether the pages between objects really fault.</summary>
    public bool IsGuarded { get; }

    /// <summary>Objects that are guarded now.</summary>
    public int Allocated
    {
        get
        {
            lock (_gate)
                return _slots.Length - _unused.Count;
        }
    }

    /// <summary>Objects guarded since boot.</summary>
    public long TotalAllocated { get; private set; }

    /// <summary>Bugs reported since boot.</summary>
    public long TotalBugs { get; private set; }

    /// <summary>Allocations are to come by: one of them will be guarded.</summary>
    internal bool IsOpen => _isOpen;

    /// <summary>Sets the pool up; from then on its frames belong to nobody else.</summary>
    /// <exception cref="OutOfMemoryException">The RAM has no such block.</exception>
    internal static unsafe Kfence Create(SlabAllocator slabs, KfenceOptions options, ulong seed)
    {
        // In the middle of a block twice as large, if there are such: what is far beyond an object faults, too.
        int bytes = 2 * (options.Objects + 1) * PageBytes;
        int order = Math.Min(PageOrder.ForSize((nuint)bytes) + 1, PageOrder.Max);
        Page* head = slabs.Pages.AllocFrozen(Gfp.Kernel | Gfp.Zero, order, -1);
        if (head == null)
            throw new OutOfMemoryException($"Kfence: the machine has no free block of order {order}");

        // Its type tells everybody else that this is no slab and no block of kmalloc.
        head->Type = PageType.Guard;
        byte* block = slabs.Map.AddressOf(head);
        byte* pool = block + ((((PageBytes << order) - bytes) / 2) & ~(PageBytes - 1));
        bool guarded = !options.WithoutGuardPages && HostMemory.IsLinux && HostInfo.PageBytes == PageBytes
            && MapBudget.Process.TryTake(MappingsFor(options.Objects));
        if (guarded && !HostMemory.TryProtect(block, (ulong)PageBytes << order, WindowProtection.None, Purpose))
        {
            MapBudget.Process.Take(-MappingsFor(options.Objects));
            guarded = false;
        }

        return new Kfence(slabs, options, pool, guarded, seed);
    }

    /// <summary>Samples by time from now on, if they are to. The timer keeps no machine alive.</summary>
    internal void StartTimer()
    {
        if (_options.EveryNth > 0 || _options.SampleInterval == 0)
            return;

        var weak = new WeakReference<Kfence>(this);
        _timer = new Timer(
            static state =>
            {
                if (((WeakReference<Kfence>)state!).TryGetTarget(out Kfence? alive))
                    alive.OpenGate();
            },
            weak,
            _options.SampleInterval,
            _options.SampleInterval);
    }

    /// <summary>The next allocation that can be guarded is: all come by the slow way until then.</summary>
    internal void OpenGate() => SetGate(true);

    /// <summary>Ends the sampling; the pool's frames go with the RAM.</summary>
    internal void Close()
    {
        lock (_gate)
        {
            _timer?.Dispose();
            _timer = null;
            _isClosed = true;
        }

        MapBudget.Process.Take(-_mappings);
    }

    private bool _isClosed;

    /// <summary>Whether an address of this process is in the pool.</summary>
    internal unsafe bool Contains(void* address) => (nuint)((byte*)address - _pool) < _poolBytes;

    /// <summary>Guards an object, if it is the turn of this allocation.</summary>
    /// <returns>The object, not clear unless asked for; null: allocate it as always.</returns>
    internal unsafe void* TryAlloc(KmemCache cache, nuint size, Gfp gfp, int node)
    {
        if (_options.EveryNth > 1 && Interlocked.Increment(ref _allocations) % _options.EveryNth != 0)
            return null;
        if (!IsEligible(cache, size, gfp, node))
        {
            Interlocked.Increment(ref _skippedIncompatible);
            return null;
        }

        if (_options.EveryNth == 0 && !SetGate(false))
            return null;

        int stack = _slabs.Stacks.Capture();
        byte* obj;
        lock (_gate)
        {
            int inUse = _slots.Length - _unused.Count;
            bool rare = inUse * 100 < _slots.Length * _options.SkipCoveredPercent;
            if (_unused.Count == 0 || (!rare && _covered.ContainsKey(stack)))
            {
                _ = _unused.Count == 0 ? _skippedCapacity++ : _skippedCovered++;
                return null;
            }

            Slot slot = _slots[_unused.Dequeue()];
            obj = PlaceLocked(slot, cache, (int)size);
            if (obj == null)
                return null;

            slot.Alloc = TrackHere(stack);
            _covered[stack] = _covered.GetValueOrDefault(stack) + 1;
            TotalAllocated++;
        }

        if ((gfp & Gfp.Zero) != 0 || cache.ClearsOnAlloc)
            new Span<byte>(obj, (int)size).Clear();
        if (cache.HasConstructor && !TryConstruct(cache, obj))
            return null;
        return obj;
    }

    /// <summary>Frees an object of the pool; false if the address is elsewhere.</summary>
    /// <param name="address">Where it begins.</param>
    /// <param name="given">The cache it is freed to, or null for kfree.</param>
    /// <exception cref="KernelBugException">No live object begins there, or bytes beside it were changed.</exception>
    internal unsafe bool TryFree(void* address, KmemCache? given)
    {
        if (!Contains(address))
            return false;

        int stack = _slabs.Stacks.Capture();
        KmemCache? owner;
        string? report;
        lock (_gate)
        {
            Slot? slot = SlotAt((nint)address);
            owner = slot?.Cache;
            report = slot == null || slot.State != SlotState.Allocated || slot.Address != (nint)address
                ? InvalidFreeReportLocked(slot, (nint)address)
                : CanaryReportLocked(slot);
            if (report == null)
            {
                _slabs.Watch?.Freed((nint)address);
                RetireLocked(slot!, stack);
            }
        }

        if (report != null)
            _slabs.Pages.ThrowBug(report);
        if (given != null && owner != given)
            _slabs.WarnWrongCache(given, owner!, address);
        return true;
    }

    /// <summary>Bytes of a live object, as asked for (ksize).</summary>
    internal unsafe nuint SizeOf(void* address, string operation)
    {
        lock (_gate)
        {
            Slot? slot = SlotAt((nint)address);
            if (slot is { State: SlotState.Allocated } && slot.Address == (nint)address)
                return (nuint)slot.Size;
        }

        _slabs.Pages.ThrowBug($"BUG: {operation}: {Explain(address)}");
        return 0;
    }

    /// <summary>
    /// A live object becomes smaller without moving: what it loses is nobody's (the end of krealloc).
    /// </summary>
    internal unsafe void Shrink(void* address, nuint size)
    {
        lock (_gate)
        {
            Slot? slot = SlotAt((nint)address);
            if (slot is not { State: SlotState.Allocated } || slot.Address != (nint)address || slot.Size <= (int)size)
                return;

            FillCanary((byte*)address + size, slot.Size - (int)size);
            slot.Size = (int)size;
        }
    }

    /// <summary>A line for each live object of a cache.</summary>
    internal IReadOnlyList<string> LiveOf(KmemCache cache)
    {
        lock (_gate)
        {
            return [.. _slots.Where(slot => slot.State == SlotState.Allocated && slot.Cache == cache)
                .Select(ObjectLine)];
        }
    }

    /// <summary>For checks: objects beside which a byte was changed, as text. Nobody may be at work.</summary>
    internal List<string> Damaged()
    {
        lock (_gate)
        {
            return [.. _slots.Where(slot => slot.State == SlotState.Allocated && FirstDamage(slot) != 0)
                .Select(ObjectLine)];
        }
    }

    private static int MappingsFor(int objects) => (2 * objects) + 2;

    private static bool IsEligible(KmemCache cache, nuint size, Gfp gfp, int node) =>
        size > 0 && size <= (nuint)PageBytes && cache.SlotSize > 0
        && (gfp & GfpMask.Zone) == 0 && (cache.Flags & (SlabFlags.CacheDma | SlabFlags.CacheDma32)) == 0
        && (node < 0 || (gfp & Gfp.ThisNode) == 0)
        && (cache.Flags & SlabFlags.TypesafeByRcu) == 0 && !cache.SkipsKfence && !cache.IsClosed
        && !(cache.HasConstructor && cache.IsConstructing);

    /// <summary>A constructor that throws gets its object's place back to the pool.</summary>
    private unsafe bool TryConstruct(KmemCache cache, byte* obj)
    {
        bool done = false;
        try
        {
            cache.ConstructOne(obj);
            done = true;
        }
        finally
        {
            if (!done)
            {
                lock (_gate)
                    RetireLocked(SlotAt((nint)obj)!, _slabs.Stacks.Capture());
            }
        }

        return done;
    }

    /// <summary>
    /// Opens the gate or closes it; false if it was so before. Whoever closes it guards his allocation.
    /// </summary>
    private bool SetGate(bool open)
    {
        lock (_gate)
        {
            if (_isOpen == open || _isClosed)
                return false;

            _isOpen = open;
            _slabs.Reroute();
            return true;
        }
    }

    /// <summary>An object's page becomes accessible, the object put to one of its edges, the rest filled.</summary>
    /// <returns>The object; null if the host refuses, and the slot is unused as before.</returns>
    private unsafe byte* PlaceLocked(Slot slot, KmemCache cache, int size)
    {
        byte* page = PageOf(slot.Index);
        if (!IsGuarded)
            ReportIfTouchedLocked(slot, page);
        if (!SetAccess(page, accessible: true))
        {
            _unused.Enqueue(slot.Index);
            return null;
        }

        int align = Math.Max(cache.Geometry.Align, 1);
        int offset = (NextRandom() >> 63) == 0 ? 0 : (PageBytes - size) / align * align;
        slot.State = SlotState.Allocated;
        slot.Address = (nint)(page + offset);
        slot.Size = size;
        slot.Cache = cache;
        slot.CacheName = cache.Name;
        FillCanary(page, PageBytes);
        return page + offset;
    }

    private unsafe void RetireLocked(Slot slot, int stack)
    {
        byte* page = PageOf(slot.Index);
        slot.State = SlotState.Freed;
        slot.Cache = null;
        slot.Free = TrackHere(stack);
        if (_covered.TryGetValue(slot.Alloc.Stack, out int same) && same > 1)
            _covered[slot.Alloc.Stack] = same - 1;
        else
            _covered.Remove(slot.Alloc.Stack);
        FillCanary(page, PageBytes);
        SetAccess(page, accessible: false);
        _unused.Enqueue(slot.Index);
    }

    /// <summary>xorshift64*, from the machine's seed: the same program finds the same objects guarded.</summary>
    private ulong NextRandom()
    {
        _random ^= _random >> 12;
        _random ^= _random << 25;
        _random ^= _random >> 27;
        return _random * 0x2545_F491_4F6C_DD1D;
    }

    private unsafe bool SetAccess(byte* page, bool accessible) => !IsGuarded || HostMemory.TryProtect(
        page, PageBytes, accessible ? WindowProtection.ReadWrite : WindowProtection.None, Purpose);

    private unsafe byte* PageOf(int index) => _pool + ((2L * (index + 1)) * PageBytes);

    /// <summary>Whose page an address is on; null for guard pages.</summary>
    private unsafe Slot? SlotAt(nint address)
    {
        long page = (address - (nint)_pool) / PageBytes;
        return page >= 2 && page % 2 == 0 && page / 2 <= _slots.Length ? _slots[(page / 2) - 1] : null;
    }

    private static unsafe void FillCanary(byte* from, int bytes)
    {
        for (int i = 0; i < bytes; i++)
            from[i] = Canary(from + i);
    }

    private static unsafe byte Canary(byte* at) => (byte)(CanaryByte ^ ((nuint)at & 7));

    /// <summary>The first byte beside an object that is no canary any more; 0 if all are.</summary>
    private unsafe nint FirstDamage(Slot slot)
    {
        byte* page = PageOf(slot.Index);
        byte* obj = (byte*)slot.Address;
        for (byte* at = page; at < page + PageBytes; at++)
        {
            if (at == obj)
                at += slot.Size;
            if (at < page + PageBytes && *at != Canary(at))
                return (nint)at;
        }

        return 0;
    }

    private Track TrackHere(int stack) => new(
        stack, Environment.CurrentManagedThreadId, CpuHere(), Stopwatch.GetElapsedTime(_boot).TotalSeconds);

    private unsafe int CpuHere()
    {
        CpuTask* task = CpuSet.Here;
        return task == null || task->MachineId != _slabs.Cpus.Id
            ? 0
            : Math.Max(task->Cpu >= 0 ? task->Cpu : task->LastCpu, 0);
    }

    /// <summary>Who did something to an object.</summary>
    private readonly record struct Track(int Stack, int Thread, int Cpu, double At);

    /// <summary>What is known of an object (struct kfence_metadata).</summary>
    private sealed class Slot(int index)
    {
        public int Index { get; } = index;

        public SlotState State { get; set; }

        public nint Address { get; set; }

        public int Size { get; set; }

        public KmemCache? Cache { get; set; }

        public string CacheName { get; set; } = "";

        public Track Alloc { get; set; }

        public Track Free { get; set; }
    }
}
