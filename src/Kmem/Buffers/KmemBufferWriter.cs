using System.Buffers;
using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// Collects bytes in one contiguous block outside the GC heap, which moves to a larger one when it is full: what
/// <see cref="ArrayBufferWriter{T}"/> is on the heap.
/// </summary>
/// <remarks>
/// Not thread-safe. Spans and <see cref="Memory{T}"/> from before a growth must not be used after it; the latter
/// notices. Where bytes must stay in their place, take a <see cref="KmemGrowingBuffer"/> or a
/// <see cref="KmemSequenceWriter"/>. Created by <see cref="Machine.CreateWriter"/>.
/// </remarks>
[DebuggerDisplay("{WrittenCount} of {Capacity} bytes written")]
public sealed class KmemBufferWriter : IBufferWriter<byte>, IDisposable
{
    private const int SmallestGrowth = 256;

    private readonly BufferSource _source;
    private readonly string _file;
    private readonly int _line;
    private KmemOwner<byte>? _block;
    private int _written;

    internal KmemBufferWriter(BufferSource source, int capacity, string file, int line)
    {
        _source = source;
        _file = file;
        _line = line;
        _block = Allocate(capacity);
    }

    /// <summary>Bytes written.</summary>
    public int WrittenCount => _written;

    /// <summary>Bytes that fit before the block has to move; 0 after Dispose.</summary>
    public int Capacity => _block?.Length ?? 0;

    /// <summary>What was written. Not to be used after the next write or Dispose.</summary>
    public ReadOnlySpan<byte> WrittenSpan => Block.GetSpan()[.._written];

    /// <summary>What was written; using it after a growth or Dispose throws.</summary>
    public ReadOnlyMemory<byte> WrittenMemory => Block.Memory[.._written];

    private KmemOwner<byte> Block
    {
        get
        {
            if (_block == null)
                ThrowDisposed();
            return _block;
        }
    }

    /// <summary>Counts bytes that were written into the last span or memory.</summary>
    /// <param name="count">Bytes.</param>
    /// <exception cref="ArgumentOutOfRangeException">Negative, or more than there was room for.</exception>
    public void Advance(int count)
    {
        if ((uint)count > (uint)(Block.Length - _written))
        {
            throw new ArgumentOutOfRangeException(
                nameof(count), count, $"there was room for {Block.Length - _written} bytes");
        }

        _written += count;
    }

    /// <inheritdoc/>
    /// <exception cref="OutOfMemoryException">The block cannot grow; what was written is untouched.</exception>
    public Memory<byte> GetMemory(int sizeHint = 0)
    {
        Reserve(sizeHint);
        return Block.Memory[_written..];
    }

    /// <inheritdoc/>
    /// <exception cref="OutOfMemoryException">The block cannot grow; what was written is untouched.</exception>
    public Span<byte> GetSpan(int sizeHint = 0)
    {
        Reserve(sizeHint);
        return Block.GetSpan()[_written..];
    }

    /// <summary>Forgets what was written and keeps the block.</summary>
    public void Clear()
    {
        _ = Block;
        _written = 0;
    }

    /// <summary>
    /// Frees the block. A second call does nothing: a writer hands nothing out that could be freed twice.
    /// </summary>
    public void Dispose()
    {
        KmemOwner<byte>? block = Interlocked.Exchange(ref _block, null);
        block?.Dispose();
    }

    private void Reserve(int sizeHint)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(sizeHint);
        KmemOwner<byte> old = Block;
        if (Math.Max(sizeHint, 1) <= old.Length - _written)
            return;

        long needed = (long)_written + Math.Max(sizeHint, SmallestGrowth);
        if (needed > int.MaxValue)
            _source.Account.ThrowOutOfMemory((nuint)needed, $"{_source.Name} (at most {int.MaxValue} bytes)");
        KmemOwner<byte> larger = Allocate((int)Math.Min(Math.Max(needed, 2L * old.Length), int.MaxValue));
        old.GetSpan()[.._written].CopyTo(larger.GetSpan());
        _block = larger;
        old.Dispose();
    }

    private unsafe KmemOwner<byte> Allocate(int capacity)
    {
        nuint bytes = (nuint)Math.Max(capacity, 1);
        if (bytes <= KmallocClasses.MaxSize)
            bytes = KmallocAllocator.SizeRoundup(bytes);
        BufferAccount account = _source.Account;
        void* block = account.Alloc(bytes, clear: false, _source);
        return new KmemOwner<byte>(_source, account, block, bytes, (int)bytes, _file, _line);
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ThrowDisposed() => throw new ObjectDisposedException(nameof(KmemBufferWriter));
}
