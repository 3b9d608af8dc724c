using System.Buffers;
using System.Diagnostics;

namespace Kmem;

/// <summary>
/// Collects bytes in a chain of blocks outside the GC heap. Nothing is ever copied or moved; the result is a
/// <see cref="ReadOnlySequence{T}"/>.
/// <code>
///   ┌──────────┐   ┌──────────┐   ┌──────────┐
///   │ 4 KiB    │──▶│ 4 KiB    │──▶│ 8 KiB    │     a request larger than a block gets a block of its own
///   └──────────┘   └──────────┘   └─────▲────┘
///                                       next byte
/// </code>
/// </summary>
/// <remarks>Not thread-safe. Created by <see cref="Machine.CreateSequenceWriter"/>.</remarks>
[DebuggerDisplay("{Length} bytes in {SegmentCount} segments")]
public sealed class KmemSequenceWriter : IBufferWriter<byte>, IDisposable
{
    private readonly BufferSource _source;
    private readonly int _blockSize;
    private readonly string _file;
    private readonly int _line;
    private readonly List<Segment> _segments = [];
    private long _length;
    private bool _disposed;

    internal KmemSequenceWriter(BufferSource source, int blockSize, string file, int line)
    {
        _source = source;
        _blockSize = blockSize;
        _file = file;
        _line = line;
    }

    /// <summary>Bytes written.</summary>
    public long Length => _length;

    /// <summary>Blocks in use.</summary>
    public int SegmentCount => _segments.Count;

    /// <summary>
    /// What was written so far, without copying; good until <see cref="Clear"/> or Dispose. Writing more leaves it as
    /// it is.
    /// </summary>
    /// <exception cref="ObjectDisposedException">The writer has been disposed.</exception>
    public ReadOnlySequence<byte> AsReadOnlySequence
    {
        get
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            if (_length == 0)
                return ReadOnlySequence<byte>.Empty;

            Segment last = _segments[^1];
            return new ReadOnlySequence<byte>(_segments[0], 0, last, last.Written);
        }
    }

    /// <summary>Counts bytes that were written into the last span or memory.</summary>
    /// <param name="count">Bytes.</param>
    /// <exception cref="ArgumentOutOfRangeException">Negative, or more than there was room for.</exception>
    public void Advance(int count)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        int room = _segments.Count == 0 ? 0 : _segments[^1].Room;
        if ((uint)count > (uint)room)
            throw new ArgumentOutOfRangeException(nameof(count), count, $"there was room for {room} bytes");
        if (count == 0)
            return;

        _segments[^1].Written += count;
        _length += count;
    }

    /// <inheritdoc/>
    /// <exception cref="OutOfMemoryException">There is no block left; what was written is untouched.</exception>
    public Memory<byte> GetMemory(int sizeHint = 0)
    {
        Segment last = SegmentFor(sizeHint);
        return last.Block.Memory[last.Written..];
    }

    /// <inheritdoc/>
    /// <exception cref="OutOfMemoryException">There is no block left; what was written is untouched.</exception>
    public Span<byte> GetSpan(int sizeHint = 0)
    {
        Segment last = SegmentFor(sizeHint);
        return last.Block.GetSpan()[last.Written..];
    }

    /// <summary>Frees all blocks and starts anew.</summary>
    /// <exception cref="ObjectDisposedException">The writer has been disposed.</exception>
    public void Clear()
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        FreeAll();
    }

    /// <summary>
    /// Frees all blocks. A second call does nothing: a writer hands nothing out that could be freed twice.
    /// </summary>
    public void Dispose()
    {
        if (_disposed)
            return;

        _disposed = true;
        FreeAll();
    }

    private void FreeAll()
    {
        foreach (Segment segment in _segments)
            segment.Block.Dispose();
        _segments.Clear();
        _length = 0;
    }

    private Segment SegmentFor(int sizeHint)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(sizeHint);
        ObjectDisposedException.ThrowIf(_disposed, this);
        int needed = Math.Max(sizeHint, 1);
        Segment? last = _segments.Count > 0 ? _segments[^1] : null;
        if (last != null && last.Room >= needed)
            return last;

        var next = new Segment(Allocate(Math.Max(needed, _blockSize)), _length);
        if (last is { Written: 0 })
        {
            // Nothing was written into the last block, and it is too small: it would be an empty segment.
            _segments.RemoveAt(_segments.Count - 1);
            last.Block.Dispose();
            last = _segments.Count > 0 ? _segments[^1] : null;
        }

        last?.Append(next);
        _segments.Add(next);
        return next;
    }

    private unsafe KmemOwner<byte> Allocate(int size)
    {
        var bytes = (nuint)size;
        if (bytes <= KmallocClasses.MaxSize)
            bytes = KmallocAllocator.SizeRoundup(bytes);
        BufferAccount account = _source.Account;
        void* block = account.Alloc(bytes, clear: false, _source);
        return new KmemOwner<byte>(_source, account, block, bytes, (int)bytes, _file, _line);
    }

    /// <summary>A block. Its Memory is cut to what was written when the next one is appended.</summary>
    private sealed class Segment : ReadOnlySequenceSegment<byte>
    {
        public Segment(KmemOwner<byte> block, long runningIndex)
        {
            Block = block;
            Memory = block.Memory;
            RunningIndex = runningIndex;
        }

        public KmemOwner<byte> Block { get; }

        public int Written { get; set; }

        public int Room => Block.Length - Written;

        public void Append(Segment next)
        {
            Memory = Block.Memory[..Written];
            Next = next;
        }
    }
}
