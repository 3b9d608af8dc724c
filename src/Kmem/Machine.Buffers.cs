using System.Diagnostics;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>The .NET floor: the machine's memory for safe code.</content>
[DebuggerDisplay("{DebuggerText,nq}")]
[DebuggerTypeProxy(typeof(DebuggerView))]
public sealed partial class Machine
{
    private static int s_machines;

    private BufferAccount _account = null!;
    private BufferSource _rents = null!;
    private BufferSource _regions = null!;
    private BufferSource _writers = null!;
    private BufferSource _sequenceWriters = null!;
    private BufferSource _growing = null!;
    private BufferSource _rings = null!;

    /// <summary>
    /// The name in metrics, events and reports: <see cref="MachineOptions.Name"/>, or "machine-1" and so on.
    /// </summary>
    public string Name => _account.Machine;

    /// <summary>
    /// Things that the .NET floor handed out and did not get back: owners, pool blocks, typed objects, regions,
    /// writers, rings. Exact when no other thread is at work; a test can assert that it is 0. Pointers from kmalloc and
    /// its relatives are not counted.
    /// </summary>
    public long Outstanding => _account.Sources.Sum(source => source.Count);

    /// <summary>Their bytes, as asked for.</summary>
    public long OutstandingBytes => _account.Sources.Sum(source => source.Bytes);

    internal BufferAccount Floor => _account;

    private string DebuggerText =>
        _disposed ? $"Machine '{Name}', disposed" : $"Machine '{Name}': {Pages.Zones.Sum(zone => (long)zone.Zone.Managed) / 256} MiB, "
            + $"{Pages.Zones.Sum(zone => zone.Zone.FreePages) / 256} MiB free, {Outstanding} outstanding";

    /// <summary>What is outstanding now, by source line if <see cref="MachineOptions.TrackCallSites"/> is on.</summary>
    /// <returns>The report; empty if everything came back.</returns>
    public LeakReport FindLeaks() => _account.Report("now");

    /// <summary>Rents a block for a number of elements (kvmalloc).</summary>
    /// <typeparam name="T">Type of the elements.</typeparam>
    /// <param name="length">Elements; the block has exactly so many.</param>
    /// <param name="clear">Whether it is cleared; else its content is undefined.</param>
    /// <param name="file">Filled in by the compiler.</param>
    /// <param name="line">Filled in by the compiler.</param>
    /// <returns>The owner; dispose it once.</returns>
    /// <exception cref="OutOfMemoryException">
    /// The machine has no memory left; the message says what it has and why.
    /// </exception>
    /// <exception cref="ArgumentOutOfRangeException">A negative length.</exception>
    /// <exception cref="ObjectDisposedException">The machine has been disposed.</exception>
    public unsafe KmemOwner<T> Rent<T>(
        int length, bool clear = false, [CallerFilePath] string file = "", [CallerLineNumber] int line = 0)
        where T : unmanaged
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        nuint bytes = checked((nuint)length * (nuint)sizeof(T));
        void* block = _account.Alloc(nuint.Max(bytes, 1), clear, _rents);
        return new KmemOwner<T>(_rents, _account, block, bytes, length, file, line);
    }

    /// <summary>
    /// Creates a pool for pipes, serializers and servers: a <see cref="System.Buffers.MemoryPool{T}"/> of bytes.
    /// </summary>
    /// <param name="name">For reports and metrics.</param>
    /// <returns>The pool. Several may share a machine, and with it its budget.</returns>
    /// <exception cref="ObjectDisposedException">The machine has been disposed.</exception>
    public KmemPool CreatePool(string name = "pool")
    {
        ArgumentException.ThrowIfNullOrWhiteSpace(name);
        _account.ThrowIfClosed();
        return new KmemPool(_account, name);
    }

    /// <summary>Creates a cache of objects of one type for safe code.</summary>
    /// <typeparam name="T">Type of the objects.</typeparam>
    /// <param name="name">For slabinfo and reports.</param>
    /// <returns>The cache; dispose it when all objects are returned.</returns>
    /// <exception cref="ArgumentException">The type is larger than 4 MiB.</exception>
    /// <exception cref="ObjectDisposedException">The machine has been disposed.</exception>
    public KmemCache<T> CreateCache<T>(string name)
        where T : unmanaged => CreateCache<T>(name, SlabFlags.None, stamps: true);

    /// <summary>Creates a cache of objects of one type for safe code.</summary>
    /// <typeparam name="T">Type of the objects.</typeparam>
    /// <param name="name">For slabinfo and reports.</param>
    /// <param name="flags">How the cache below behaves; it is never merged with others.</param>
    /// <param name="stamps">
    /// Whether each object carries 8 bytes that tell a stale handle for certain; see <see cref="KmemCache{T}"/>.
    /// </param>
    /// <returns>The cache; dispose it when all objects are returned.</returns>
    /// <exception cref="ArgumentException">The type is larger than 4 MiB, or the flags are impossible.</exception>
    /// <exception cref="ObjectDisposedException">The machine has been disposed.</exception>
    public unsafe KmemCache<T> CreateCache<T>(string name, SlabFlags flags, bool stamps)
        where T : unmanaged
    {
        _account.ThrowIfClosed();
        int size = stamps ? KmemCache<T>.StampOffset + sizeof(ulong) : sizeof(T);
        KmemCache cache = CreateCache(name, size, align: 0, flags | SlabFlags.NoMerge);
        cache.SkipsKfence = true; // a handle looks for its stamp in the object, alive or not
        return new KmemCache<T>(_account, cache, _map, stamps ? KmemCache<T>.StampOffset : 0);
    }

    /// <summary>
    /// Allocates a region of any size, for state that lives long (kmalloc up to 4 MiB, vmalloc above).
    /// </summary>
    /// <param name="bytes">Bytes, at least 1.</param>
    /// <param name="file">Filled in by the compiler.</param>
    /// <param name="line">Filled in by the compiler.</param>
    /// <returns>The region, cleared; a <see cref="System.Runtime.InteropServices.SafeHandle"/>.</returns>
    /// <exception cref="OutOfMemoryException">
    /// The machine has no memory left; the message says what it has and why.
    /// </exception>
    /// <exception cref="ObjectDisposedException">The machine has been disposed.</exception>
    public unsafe KmemRegion CreateRegion(
        nuint bytes, [CallerFilePath] string file = "", [CallerLineNumber] int line = 0)
    {
        ArgumentOutOfRangeException.ThrowIfZero(bytes);
        void* memory = _account.Alloc(bytes, clear: true, _regions);
        return new KmemRegion(_regions, (nint)memory, bytes, file, line);
    }

    /// <summary>Creates a writer into one contiguous block that moves when it grows.</summary>
    /// <param name="capacity">Bytes to start with.</param>
    /// <param name="file">Filled in by the compiler.</param>
    /// <param name="line">Filled in by the compiler.</param>
    /// <returns>The writer; dispose it.</returns>
    /// <exception cref="OutOfMemoryException">The machine has no memory left.</exception>
    /// <exception cref="ObjectDisposedException">The machine has been disposed.</exception>
    public KmemBufferWriter CreateWriter(
        int capacity = 256, [CallerFilePath] string file = "", [CallerLineNumber] int line = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(capacity);
        return new KmemBufferWriter(_writers, capacity, file, line);
    }

    /// <summary>Creates a writer into a chain of blocks: nothing moves, nothing is copied.</summary>
    /// <param name="blockSize">Bytes of a block, up to 4 MiB.</param>
    /// <param name="file">Filled in by the compiler.</param>
    /// <param name="line">Filled in by the compiler.</param>
    /// <returns>The writer, still without a block; dispose it.</returns>
    /// <exception cref="ObjectDisposedException">The machine has been disposed.</exception>
    public KmemSequenceWriter CreateSequenceWriter(
        int blockSize = KmemPool.DefaultBlockSize, [CallerFilePath] string file = "", [CallerLineNumber] int line = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(blockSize);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(blockSize, KmallocMaxSize);
        _account.ThrowIfClosed();
        return new KmemSequenceWriter(_sequenceWriters, blockSize, file, line);
    }

    /// <summary>Creates a buffer that grows in place: addresses now, frames as they are needed.</summary>
    /// <param name="maxCapacity">Bytes that it may grow to; costs addresses only.</param>
    /// <param name="file">Filled in by the compiler.</param>
    /// <param name="line">Filled in by the compiler.</param>
    /// <returns>The buffer; dispose it.</returns>
    /// <exception cref="OutOfMemoryException">There are no addresses left.</exception>
    /// <exception cref="NotSupportedException">More than 4 MiB where frames cannot be mapped a second time.</exception>
    /// <exception cref="ObjectDisposedException">The machine has been disposed.</exception>
    public KmemGrowingBuffer CreateGrowingBuffer(
        int maxCapacity, [CallerFilePath] string file = "", [CallerLineNumber] int line = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(maxCapacity);
        return new KmemGrowingBuffer(_growing, maxCapacity, file, line);
    }

    /// <summary>
    /// Creates a ring buffer whose memory is mapped twice in a row, so that every slice is contiguous.
    /// </summary>
    /// <param name="capacity">Bytes; rounded up to a power of two, at least a page.</param>
    /// <param name="requireMirror">
    /// Refuse to do without the second mapping; see <see cref="KmemRing.WhyNotMirrored"/>.
    /// </param>
    /// <param name="file">Filled in by the compiler.</param>
    /// <param name="line">Filled in by the compiler.</param>
    /// <returns>The ring; dispose it.</returns>
    /// <exception cref="OutOfMemoryException">The machine has no memory, addresses or mappings left.</exception>
    /// <exception cref="NotSupportedException">A second mapping is required and not possible here.</exception>
    /// <exception cref="ObjectDisposedException">The machine has been disposed.</exception>
    public KmemRing CreateRing(
        int capacity, bool requireMirror = false, [CallerFilePath] string file = "", [CallerLineNumber] int line = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(capacity);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(capacity, KmemRing.MaxCapacity);
        return new KmemRing(_rings, capacity, requireMirror, file, line);
    }

    /// <summary>Called once, at the end of the constructor.</summary>
    private void OpenFloor()
    {
        string name = Options.Name ?? $"machine-{Interlocked.Increment(ref s_machines)}";
        _account = new BufferAccount(name, new FloorMemory(this), Dmesg, Options.TrackCallSites, Options.OnLeak);
        _rents = _account.AddSource("Machine.Rent");
        _regions = _account.AddSource("KmemRegion");
        _writers = _account.AddSource("KmemBufferWriter");
        _sequenceWriters = _account.AddSource("KmemSequenceWriter");
        _growing = _account.AddSource("KmemGrowingBuffer");
        _rings = _account.AddSource("KmemRing");
    }

    /// <summary>What a debugger shows: the budget, the zones, the caches, and what is outstanding.</summary>
    private sealed class DebuggerView(Machine machine)
    {
        public MachineOptions Options => machine.Options;

        public string[] Zones => machine._disposed ? [] : machine._pages.Zones.Select(zone =>
            $"node {zone.Zone.NodeId} zone {zone.Zone.Name}: {zone.Zone.FreePages} of {zone.Zone.Managed} pages free, blocks by order "
            + string.Join(' ', Enumerable.Range(0, PageOrder.Count).Select(order => zone.Buddy.NrFree(order)))).ToArray();

        public KmemCache[] Caches => machine._disposed ? [] : machine.Caches.ToArray();

        public string[] Outstanding => machine._account.Sources.Where(source => source.Count != 0)
            .Select(source => $"{source.Count} x {source.Name}, {source.Bytes} bytes").ToArray();

        public IReadOnlyList<string> Dmesg => machine.Dmesg.Lines;
    }

    /// <summary>What the floor may use of the machine.</summary>
    private sealed class FloorMemory(Machine machine) : IBufferMemory
    {
        public PageAllocator Pages => machine._pages;

        public MemMap Map => machine._map;

        public string? WhyNoWindow { get; } = AddressWindow.WhyUnsupported(machine._ram);

        public VmallocAllocator Vmalloc => machine.Vmallocs;

        public unsafe void* Alloc(nuint bytes, Gfp gfp)
        {
            void* memory = AllocCore(bytes, gfp);
            if (memory != null)
                machine._slabs.Watch?.Disown((nint)memory); // a managed object holds it, which a leak scan does not see
            return memory;
        }

        private unsafe void* AllocCore(nuint bytes, Gfp gfp)
        {
            if (bytes <= Pfn.PageSize)
                return machine.Kmalloc(bytes, gfp);

            // kmalloc and kvmalloc have a largest size, above which they complain in the log; vmalloc has none.
            if (bytes <= KmallocMaxSize)
                return machine.Kvmalloc(bytes, gfp);
            return WhyNoWindow == null && bytes <= machine._ram.Bytes ? machine.Vmalloc(bytes, gfp | Gfp.NoWarn) : null;
        }

        public unsafe void Free(void* memory) => machine.Kvfree(memory);
    }
}
