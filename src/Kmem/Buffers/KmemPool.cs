using System.Buffers;
using System.Diagnostics;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// A <see cref="MemoryPool{T}"/> of bytes over a machine: give it to a pipe, to a serializer, or to ASP.NET Core's
/// server. Blocks come from kmalloc, larger ones from vmalloc if need be, and go back at once; the machine's own CPU
/// caches make that fast, so the pool itself keeps nothing.
/// </summary>
/// <remarks>
/// Thread-safe. Created by <see cref="Machine.CreatePool"/>. Blocks outlive the pool: after <see cref="Dispose(bool)"/>
/// only renting is refused. A pool that is disposed with blocks outstanding says so (see <see cref="LeakReport"/>).
/// </remarks>
[DebuggerDisplay("{DebuggerText,nq}")]
public sealed class KmemPool : MemoryPool<byte>
{
    /// <summary>Bytes of a block for callers that name no size: a page.</summary>
    public const int DefaultBlockSize = Pfn.PageSize;

    private readonly BufferAccount _account;
    private readonly BufferSource _source;
    private int _disposed;

    internal KmemPool(BufferAccount account, string name)
    {
        _account = account;
        Name = name;
        MaxBufferSize = account.Memory.WhyNoWindow == null ? int.MaxValue : KmallocClasses.MaxSize;
        _source = account.AddSource($"KmemPool '{name}'");
    }

    /// <summary>The name given when it was created.</summary>
    public string Name { get; }

    /// <summary>Blocks rented and not yet disposed. Exact when no other thread is at work.</summary>
    public long Outstanding => _source.Count;

    /// <summary>Their bytes.</summary>
    public long OutstandingBytes => _source.Bytes;

    /// <summary>2 GiB less 1; 4 MiB where there is no vmalloc.</summary>
    public override int MaxBufferSize { get; }

    private string DebuggerText => $"KmemPool '{Name}': {Outstanding} blocks, {OutstandingBytes} bytes outstanding";

    /// <inheritdoc cref="Rent(int, string, int)"/>
    public override IMemoryOwner<byte> Rent(int minBufferSize) => Rent(minBufferSize, "", 0);

    /// <summary>Rents a block (kvmalloc).</summary>
    /// <param name="minBufferSize">
    /// Bytes needed; -1 for <see cref="DefaultBlockSize"/>. The block has the size of its slot.
    /// </param>
    /// <param name="file">Filled in by the compiler.</param>
    /// <param name="line">Filled in by the compiler.</param>
    /// <returns>The block, with undefined content; dispose it once.</returns>
    /// <exception cref="OutOfMemoryException">
    /// The machine has no memory left; the message says what it has and why.
    /// </exception>
    /// <exception cref="ArgumentOutOfRangeException">More than <see cref="MaxBufferSize"/>, or below -1.</exception>
    /// <exception cref="ObjectDisposedException">The pool, or its machine, has been disposed.</exception>
    public unsafe KmemOwner<byte> Rent(
        int minBufferSize = -1, [CallerFilePath] string file = "", [CallerLineNumber] int line = 0)
    {
        if (minBufferSize < -1 || minBufferSize > MaxBufferSize)
            ThrowBadSize(minBufferSize);
        ObjectDisposedException.ThrowIf(Volatile.Read(ref _disposed) != 0, this);

        nuint bytes = minBufferSize == -1 ? DefaultBlockSize : (nuint)Math.Max(minBufferSize, 1);
        if (bytes <= KmallocClasses.MaxSize)
            bytes = KmallocAllocator.SizeRoundup(bytes);
        void* block = _account.Alloc(bytes, clear: false, _source);
        return new KmemOwner<byte>(_source, _account, block, bytes, (int)bytes, file, line);
    }

    /// <summary>What is outstanding now, by source line if the machine keeps call sites.</summary>
    /// <returns>The report; empty if everything came back.</returns>
    public LeakReport FindLeaks() => _account.Report("now", _source);

    /// <summary>
    /// Ends renting, and reports blocks that are outstanding; they stay valid until they are disposed.
    /// </summary>
    /// <param name="disposing">Ignored: there is no finalizer.</param>
    protected override void Dispose(bool disposing)
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0 || _account.IsClosed)
            return;

        _account.Announce(_account.Report($"pool '{Name}' disposed", _source));
        _account.Retire(_source);
    }

    private void ThrowBadSize(int size) => throw new ArgumentOutOfRangeException(
        "minBufferSize", size, $"a block of this pool has 0 to {MaxBufferSize} bytes, or -1 for {DefaultBlockSize}");
}
