using System.Diagnostics;

namespace Kmem;

/// <summary>
/// A ring buffer whose memory is mapped twice in a row, so that what is readable and what is free are each one
/// contiguous span, wherever they start.
/// <code>
///   frames       [ a | b | c | d ]
///   addresses    [ a | b | c | d | a | b | c | d ]
///                          ^───────────^             readable: c d a, one span
/// </code>
/// </summary>
/// <remarks>
/// <para>
/// One thread may write while another reads, without a lock: <see cref="WriteSpan"/> and <see cref="Commit"/> belong to
/// the writer, <see cref="ReadSpan"/> and <see cref="Consume"/> to the reader. Created by
/// <see cref="Machine.CreateRing"/>.
/// </para>
/// <para>
/// Where frames cannot be mapped twice (<see cref="WhyNotMirrored"/> says why), the ring works, but its spans end at
/// the end of the memory: what wraps around comes in two.
/// </para>
/// </remarks>
[DebuggerDisplay("{ReadableCount} of {Capacity} bytes readable")]
public sealed class KmemRing : IDisposable, IBufferRelease
{
    /// <summary>Largest <see cref="Capacity"/>: both mappings together fit a span.</summary>
    public const int MaxCapacity = 1 << 29;

    private readonly BufferSource _source;
    private readonly KmemOwner<byte> _owner;
    private readonly FrameBlocks? _frames;
    private readonly int _mask;
    private long _written;      // bytes ever committed; the writer's
    private long _read;         // bytes ever consumed; the reader's
    private bool _disposed;

    internal unsafe KmemRing(BufferSource source, int capacity, bool requireMirror, string file, int line)
    {
        _source = source;
        BufferAccount account = source.Account;
        account.ThrowIfClosed();
        Capacity = (int)System.Numerics.BitOperations.RoundUpToPowerOf2((uint)Math.Max(capacity, Pfn.PageSize));
        _mask = Capacity - 1;
        WhyNotMirrored = account.Memory.WhyNoWindow;
        if (WhyNotMirrored != null)
        {
            if (requireMirror)
                throw new NotSupportedException($"a ring cannot be mapped twice here: {WhyNotMirrored}");

            void* memory = account.Alloc((nuint)Capacity, clear: false, source);
            _owner = new KmemOwner<byte>(source, this, memory, (nuint)Capacity, Capacity, file, line);
            return;
        }

        VmallocAllocator vmalloc = account.VmallocFor((nuint)Capacity, source);
        _frames = new FrameBlocks(account.Memory.Pages, account.Memory.Map);
        void* twice = MapTwice(vmalloc, _frames, Capacity >> Pfn.PageShift);
        if (twice == null)
        {
            _frames.FreeAll();
            account.ThrowOutOfMemory((nuint)Capacity, source.Name);
        }

        _owner = new KmemOwner<byte>(source, this, twice, (nuint)Capacity, 2 * Capacity, file, line);
    }

    /// <summary>Bytes that fit: a power of two, at least a page.</summary>
    public int Capacity { get; }

    /// <summary>
    /// Null if the memory is mapped twice; else why that cannot be, and spans end where the memory ends.
    /// </summary>
    public string? WhyNotMirrored { get; }

    /// <summary>Bytes committed and not yet consumed. Others than writer and reader see an estimate.</summary>
    public int ReadableCount => (int)Math.Clamp(Volatile.Read(ref _written) - Volatile.Read(ref _read), 0, Capacity);

    /// <summary>Bytes that may be written.</summary>
    public int WritableCount => Capacity - ReadableCount;

    /// <summary>
    /// The free bytes, all of them if the ring is mirrored. The writer fills a part and calls <see cref="Commit"/>.
    /// </summary>
    /// <exception cref="ObjectDisposedException">The ring, or its machine, has been disposed.</exception>
    public Span<byte> WriteSpan => _owner.GetSpan().Slice(Offset(_written), Contiguous(_written, WritableCount));

    /// <summary>As <see cref="WriteSpan"/>, for asynchronous reads from sockets and files.</summary>
    /// <exception cref="ObjectDisposedException">The ring, or its machine, has been disposed.</exception>
    public Memory<byte> WriteMemory => _owner.Memory.Slice(Offset(_written), Contiguous(_written, WritableCount));

    /// <summary>
    /// The readable bytes, all of them if the ring is mirrored. The reader calls <see cref="Consume"/> after use.
    /// </summary>
    /// <exception cref="ObjectDisposedException">The ring, or its machine, has been disposed.</exception>
    public ReadOnlySpan<byte> ReadSpan => _owner.GetSpan().Slice(Offset(_read), Contiguous(_read, ReadableCount));

    /// <summary>As <see cref="ReadSpan"/>, for asynchronous writes.</summary>
    /// <exception cref="ObjectDisposedException">The ring, or its machine, has been disposed.</exception>
    public ReadOnlyMemory<byte> ReadMemory => _owner.Memory.Slice(Offset(_read), Contiguous(_read, ReadableCount));

    /// <summary>Makes bytes of <see cref="WriteSpan"/> readable. Writer only.</summary>
    /// <param name="count">Bytes from its start.</param>
    /// <exception cref="ArgumentOutOfRangeException">Negative, or more than are free.</exception>
    public void Commit(int count)
    {
        ObjectDisposedException.ThrowIf(Volatile.Read(ref _disposed), this);
        if ((uint)count > (uint)WritableCount)
            throw new ArgumentOutOfRangeException(nameof(count), count, $"{WritableCount} bytes are free");
        Volatile.Write(ref _written, _written + count);
    }

    /// <summary>Frees bytes of <see cref="ReadSpan"/>. Reader only.</summary>
    /// <param name="count">Bytes from its start.</param>
    /// <exception cref="ArgumentOutOfRangeException">Negative, or more than are readable.</exception>
    public void Consume(int count)
    {
        ObjectDisposedException.ThrowIf(Volatile.Read(ref _disposed), this);
        if ((uint)count > (uint)ReadableCount)
            throw new ArgumentOutOfRangeException(nameof(count), count, $"{ReadableCount} bytes are readable");
        Volatile.Write(ref _read, _read + count);
    }

    /// <summary>Writes all of the bytes, or none. Writer only.</summary>
    /// <param name="bytes">What to write.</param>
    /// <returns>False if they do not fit now.</returns>
    public bool TryWrite(ReadOnlySpan<byte> bytes)
    {
        ObjectDisposedException.ThrowIf(Volatile.Read(ref _disposed), this);
        if (bytes.Length > WritableCount)
            return false;

        while (!bytes.IsEmpty)
        {
            Span<byte> room = WriteSpan;
            int count = Math.Min(room.Length, bytes.Length);
            bytes[..count].CopyTo(room);
            Commit(count);
            bytes = bytes[count..];
        }

        return true;
    }

    /// <summary>Reads as many bytes as there are, up to the length. Reader only.</summary>
    /// <param name="bytes">Filled from the start.</param>
    /// <returns>Bytes read; 0 if nothing is readable.</returns>
    public int Read(Span<byte> bytes)
    {
        ObjectDisposedException.ThrowIf(Volatile.Read(ref _disposed), this);
        int done = 0;
        while (done < bytes.Length && ReadableCount > 0)
        {
            ReadOnlySpan<byte> ready = ReadSpan;
            int count = Math.Min(ready.Length, bytes.Length - done);
            ready[..count].CopyTo(bytes[done..]);
            Consume(count);
            done += count;
        }

        return done;
    }

    /// <summary>
    /// Unmaps and frees the memory; if it is pinned, with the last pin. Nobody may be reading or writing.
    /// </summary>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, true))
            return;

        _owner.Dispose();
    }

    /// <inheritdoc/>
    unsafe void IBufferRelease.Release(void* memory, nuint bytes)
    {
        if (_frames == null)
        {
            _source.Account.Memory.Free(memory);
            return;
        }

        _source.Account.Memory.Vmalloc.Unmap(memory);
        _frames.FreeAll();
    }

    private static unsafe void* MapTwice(VmallocAllocator vmalloc, FrameBlocks frames, int count)
    {
        while (frames.Frames < (ulong)count)
        {
            if (frames.TryTake((ulong)count - frames.Frames) == null)
                return null;
        }

        var order = new Pfn[2 * count];
        int at = 0;
        foreach ((Pfn first, int blockOrder) in frames.Blocks)
        {
            for (ulong i = 0; i < 1UL << blockOrder; i++)
                order[at++] = new Pfn(first.Value + i);
        }

        order.AsSpan(0, count).CopyTo(order.AsSpan(count));
        return vmalloc.Map(order, VmFlags.None, PageProt.Kernel);
    }

    private int Offset(long position) => (int)(position & _mask);

    private int Contiguous(long position, int count) =>
        WhyNotMirrored == null ? count : Math.Min(count, Capacity - Offset(position));
}
