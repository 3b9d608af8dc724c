using System.Numerics;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// Freed objects that are not given out again before others of a certain weight were freed after them: on each CPU a
/// ring, oldest first. To all others they are like objects in a sheaf: in use for their slab, and not live.
/// <code>
///   free ──▶ | newest | … | oldest | ──▶ sheaf or slab        when the CPU's share of the bytes is exceeded
/// </code>
/// </summary>
/// <remarks>In the manner of mm/kasan/quarantine.c, Linux 6.18: whole slots are counted, FIFO, per CPU.</remarks>
internal sealed class Quarantine : IDisposable
{
    /// <summary>Of the RAM; no more is ever kept back.</summary>
    private const int RamFraction = 32;

    /// <summary>A CPU that can keep less has a quarantine in name only.</summary>
    private const long LeastShare = 16 << 10;

    private const uint MostObjects = 1 << 14;
    private const int BytesPerObject = 32; // places are provided for objects of this size

    private readonly SlabAllocator _slabs;
    private readonly SparseMemory _rings;
    private readonly nuint _ringBytes;
    private readonly uint _places;
    private readonly long _share;
    private int _inHand; // threads that carry objects from a ring to their slabs

    public Quarantine(SlabAllocator slabs, long bytes)
    {
        _slabs = slabs;
        long ram = (long)(slabs.Map.EndPfn << Pfn.PageShift);
        _share = Math.Max(Math.Min(bytes, ram / RamFraction) / slabs.Cpus.Count, LeastShare);
        _places = Math.Min(BitOperations.RoundUpToPowerOf2((uint)(_share / BytesPerObject)), MostObjects);
        unsafe
        {
            _ringBytes = (nuint)sizeof(Ring) + (_places * (nuint)sizeof(nint));
        }

        _rings = SparseMemory.Create((ulong)slabs.Cpus.Count * _ringBytes, "quarantine");
    }

    /// <summary>Bytes of slots that a CPU keeps back at most.</summary>
    public long Share => _share;

    /// <summary>Takes an object in, and hands out the oldest ones if there are too many now.</summary>
    /// <param name="task">This thread, not inside a section.</param>
    /// <param name="obj">An object that is marked free; null to go on handing out.</param>
    /// <param name="bytes">Size of its slot.</param>
    /// <param name="leaving">Gets those that leave.</param>
    /// <returns>
    /// How many leave. If any, <see cref="Left"/> must be called when they are where they belong; if as many as there
    /// is room for, perhaps there are more.
    /// </returns>
    public unsafe int Exchange(CpuTask* task, void* obj, int bytes, Span<nint> leaving)
    {
        int cpu = _slabs.Cpus.Enter(task);
        Ring* ring = RingOf(cpu);
        if (obj != null)
        {
            ring->Objects()[ring->Tail++ & (_places - 1)] = (nint)obj;
            ring->Bytes += bytes;
        }

        int count = 0;
        if (ring->Bytes > _share || ring->Tail - ring->Head == _places)
        {
            // Some more than necessary, so that not every free has to carry one away.
            long enough = _share - (_share / 8);
            Interlocked.Increment(ref _inHand);
            while (count < leaving.Length && ring->Tail != ring->Head
                && (ring->Bytes > enough || ring->Tail - ring->Head > _places / 2))
            {
                nint oldest = ring->Objects()[ring->Head++ & (_places - 1)];
                ring->Bytes -= CacheOf(oldest).SlotSize;
                leaving[count++] = oldest;
            }
        }

        _slabs.Cpus.Leave(task);
        return count;
    }

    /// <summary>The objects that <see cref="Exchange"/> handed out are back in their slabs.</summary>
    public void Left() => Interlocked.Decrement(ref _inHand);

    /// <summary>Gives back all objects of a cache, or of all caches. Not inside a section.</summary>
    /// <returns>How many.</returns>
    public unsafe int Flush(KmemCache? cache)
    {
        int flushed = 0;
        var leaving = new List<nint>();
        for (int cpu = 0; cpu < _slabs.Cpus.Count; cpu++)
        {
            if (RingOf(cpu)->Tail == RingOf(cpu)->Head)
                continue;

            _slabs.Cpus.AcquireRemote(cpu);
            TakeOut(RingOf(cpu), cache, leaving);
            _slabs.Cpus.ReleaseRemote(cpu);
        }

        foreach (nint obj in leaving)
        {
            // Its slab may go to the page allocator, and what was written to it would be cleared.
            CacheOf(obj).CheckKeptBack((void*)obj);
            CacheOf(obj).GiveBack(_slabs.Cpus.Current, _slabs.SlabOf((void*)obj), (void*)obj);
            flushed++;
        }

        // Who carries some of them away right now is waited for: their slabs are to look as if nobody had them.
        var wait = default(SpinWait);
        while (Volatile.Read(ref _inHand) != 0)
            wait.SpinOnce();
        return flushed;
    }

    /// <summary>All objects in quarantine, for checks; nobody may be at work.</summary>
    public unsafe List<nint> List()
    {
        var all = new List<nint>();
        for (int cpu = 0; cpu < _slabs.Cpus.Count; cpu++)
        {
            Ring* ring = RingOf(cpu);
            for (uint at = ring->Head; at != ring->Tail; at++)
                all.Add(ring->Objects()[at & (_places - 1)]);
        }

        return all;
    }

    public void Dispose() => _rings.Dispose();

    private unsafe void TakeOut(Ring* ring, KmemCache? cache, List<nint> leaving)
    {
        uint kept = ring->Head;
        long bytes = 0;
        for (uint at = ring->Head; at != ring->Tail; at++)
        {
            nint obj = ring->Objects()[at & (_places - 1)];
            KmemCache owner = CacheOf(obj);
            if (cache == null || owner == cache)
            {
                leaving.Add(obj);
                continue;
            }

            ring->Objects()[kept++ & (_places - 1)] = obj;
            bytes += owner.SlotSize;
        }

        ring->Tail = kept;
        ring->Bytes = bytes;
    }

    private unsafe KmemCache CacheOf(nint obj) => _slabs.CacheOf(_slabs.SlabOf((void*)obj));

    private unsafe Ring* RingOf(int cpu) => (Ring*)(_rings.Base + ((nuint)cpu * _ringBytes));

    /// <summary>Head and Tail count on and on; their low bits are places. Behind it, the places.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 64)]
    private struct Ring
    {
        public long Bytes;
        public uint Head;
        public uint Tail;

        public unsafe nint* Objects()
        {
            fixed (Ring* self = &this)
                return (nint*)(self + 1);
        }
    }
}
