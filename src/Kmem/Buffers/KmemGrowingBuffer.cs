using System.Buffers;
using System.Diagnostics;

namespace Kmem;

/// <summary>
/// Bytes that grow in place: addresses are reserved once, for the largest size, and frames are put behind them as they
/// are needed. Nothing is copied, and every span, memory and pointer into what was written stays good until Dispose.
/// <code>
///   reserved addresses  [ written      | committed |  faults                          ] guard
///                        frames ............... ^ Grow: more frames, same addresses    ^ MaxCapacity
/// </code>
/// </summary>
/// <remarks>
/// <para>Not thread-safe. Created by <see cref="Machine.CreateGrowingBuffer"/>.</para>
/// <para>
/// Where frames cannot be mapped a second time (<see cref="MachineOptions.PortableMemory"/>, hosts that are not Linux
/// with 4 KiB pages) addresses cannot be reserved without memory: up to 4 MiB all of it is taken at once
/// (<see cref="CommitsOnDemand"/> is false), more is refused with <see cref="NotSupportedException"/>.
/// </para>
/// </remarks>
[DebuggerDisplay("{WrittenCount} written, {Committed} committed of {MaxCapacity} bytes")]
public sealed class KmemGrowingBuffer : IBufferWriter<byte>, IDisposable, IBufferRelease
{
    private const int SmallestStep = 64 << 10;
    private const int LargestStep = 64 << 20;

    private readonly BufferSource _source;
    private readonly KmemOwner<byte> _owner;
    private readonly FrameBlocks? _frames;
    private readonly nint _start;
    private int _committed;
    private int _written;
    private bool _disposed;

    internal unsafe KmemGrowingBuffer(BufferSource source, int maxCapacity, string file, int line)
    {
        _source = source;
        BufferAccount account = source.Account;
        account.ThrowIfClosed();
        var bytes = (int)Math.Min(((long)maxCapacity + Pfn.PageSize - 1) & -Pfn.PageSize, int.MaxValue & -Pfn.PageSize);
        void* start;
        if (account.Memory.WhyNoWindow is { } reason)
        {
            if (bytes > KmallocClasses.MaxSize)
            {
                throw new NotSupportedException(
                    $"a growing buffer of {bytes} bytes needs addresses without memory behind them; without them the "
                    + $"largest has {KmallocClasses.MaxSize} bytes: {reason}");
            }

            start = account.Alloc((nuint)bytes, clear: false, source);
            _committed = bytes;
        }
        else
        {
            start = account.VmallocFor((nuint)bytes, source).ReserveSparse((nuint)bytes);
            if (start == null)
                account.ThrowOutOfMemory((nuint)bytes, $"the addresses of a {source.Name}");
            _frames = new FrameBlocks(account.Memory.Pages, account.Memory.Map);
        }

        _start = (nint)start;
        _owner = new KmemOwner<byte>(source, this, start, (nuint)bytes, bytes, file, line);
    }

    /// <summary>Bytes it may grow to: what was asked for, in whole pages.</summary>
    public int MaxCapacity => _owner.Length;

    /// <summary>Bytes with frames behind them.</summary>
    public int Committed => _committed;

    /// <summary>Bytes written.</summary>
    public int WrittenCount => _written;

    /// <summary>
    /// Frames are taken as they are needed; false where the host has no second mappings, see the remarks.
    /// </summary>
    public bool CommitsOnDemand => _frames != null;

    /// <summary>What was written. Good until Dispose, but for what <see cref="TrimExcess"/> takes.</summary>
    /// <exception cref="ObjectDisposedException">The buffer, or its machine, has been disposed.</exception>
    public Span<byte> WrittenSpan => _owner.GetSpan()[.._written];

    /// <summary>What was written; using it after Dispose throws.</summary>
    /// <exception cref="ObjectDisposedException">The buffer, or its machine, has been disposed.</exception>
    public Memory<byte> WrittenMemory => _owner.Memory[.._written];

    /// <summary>Counts bytes that were written into the last span or memory.</summary>
    /// <param name="count">Bytes.</param>
    /// <exception cref="ArgumentOutOfRangeException">Negative, or more than is committed.</exception>
    public void Advance(int count)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        if ((uint)count > (uint)(_committed - _written))
            throw new ArgumentOutOfRangeException(
                nameof(count), count, $"there was room for {_committed - _written} bytes");
        _written += count;
    }

    /// <inheritdoc/>
    /// <exception cref="OutOfMemoryException">
    /// No frames are left, or the reserved addresses end; nothing has changed.
    /// </exception>
    public Memory<byte> GetMemory(int sizeHint = 0)
    {
        Reserve(sizeHint);
        return _owner.Memory[_written.._committed];
    }

    /// <inheritdoc/>
    /// <exception cref="OutOfMemoryException">
    /// No frames are left, or the reserved addresses end; nothing has changed.
    /// </exception>
    public Span<byte> GetSpan(int sizeHint = 0)
    {
        Reserve(sizeHint);
        return _owner.GetSpan()[_written.._committed];
    }

    /// <summary>Forgets what was written and keeps the frames.</summary>
    /// <exception cref="ObjectDisposedException">The buffer has been disposed.</exception>
    public void Clear()
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        _written = 0;
    }

    /// <summary>
    /// Gives frames back that lie behind what was written, as far as their blocks end there; those addresses fault
    /// again.
    /// </summary>
    /// <exception cref="ObjectDisposedException">The buffer has been disposed.</exception>
    public unsafe void TrimExcess()
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        _source.Account.ThrowIfClosed();
        while (_frames is { Blocks.Count: > 0 })
        {
            int bytes = Pfn.PageSize << _frames.Blocks[^1].Order;
            if (_committed - bytes < _written)
                return;

            _committed -= bytes;
            Unmap(_source.Account.Memory.Vmalloc, _committed, bytes);
            _frames.FreeLast();
        }
    }

    /// <summary>Frees frames and addresses; if a <see cref="Memory{T}"/> of it is pinned, with the last pin.</summary>
    public void Dispose()
    {
        if (_disposed)
            return;

        _disposed = true;
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

        VmallocAllocator vmalloc = _source.Account.Memory.Vmalloc;
        if (_committed > 0)
            Unmap(vmalloc, 0, _committed);
        vmalloc.FreeSparse(memory);
        _frames.FreeAll();
    }

    private void Reserve(int sizeHint)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(sizeHint);
        ObjectDisposedException.ThrowIf(_disposed, this);
        long needed = (long)_written + Math.Max(sizeHint, 1);
        if (needed <= _committed)
            return;

        BufferAccount account = _source.Account;
        account.ThrowIfClosed();
        if (needed > MaxCapacity)
            account.ThrowOutOfMemory((nuint)needed, $"a {_source.Name} of at most {MaxCapacity} bytes");
        long wanted = Math.Max(needed, _committed + (long)Math.Clamp(_committed / 4, SmallestStep, LargestStep));
        wanted = Math.Min((wanted + Pfn.PageSize - 1) & -Pfn.PageSize, MaxCapacity);
        while (_committed < wanted)
        {
            if (!TryCommitBlock((ulong)(wanted - _committed) >> Pfn.PageShift))
                break;
        }

        if (_committed < needed)
            account.ThrowOutOfMemory((nuint)(needed - _committed), $"the growth of a {_source.Name}");
    }

    private unsafe bool TryCommitBlock(ulong mostFrames)
    {
        if (_frames!.TryTake(mostFrames) is not { } block)
            return false;

        Span<Pfn> run = stackalloc Pfn[1 << block.Order];
        for (int i = 0; i < run.Length; i++)
            run[i] = new Pfn(block.First.Value + (ulong)i);
        VmallocAllocator vmalloc = _source.Account.Memory.Vmalloc;
        if (vmalloc.MapSparse((void*)_start, (nuint)_committed, run) != VmapError.None)
        {
            _frames.FreeLast();
            return false;
        }

        _committed += Pfn.PageSize << block.Order;
        return true;
    }

    private unsafe void Unmap(VmallocAllocator vmalloc, int offset, int bytes) =>
        Bug.On(
            vmalloc.UnmapSparse((void*)_start, (nuint)offset, (ulong)bytes >> Pfn.PageShift) != VmapError.None,
            "the area of a growing buffer is gone");
}
