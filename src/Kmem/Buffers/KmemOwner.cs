using System.Buffers;
using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// Owns a block of a machine's memory: <see cref="IMemoryOwner{T}"/> whose <see cref="Memory{T}"/> knows when the block
/// is gone. Dispose it exactly once.
/// </summary>
/// <typeparam name="T">Type of the elements.</typeparam>
/// <remarks>
/// <para>
/// After <see cref="Dispose()"/> every use of the owner and of its <see cref="Memory{T}"/> throws
/// <see cref="ObjectDisposedException"/>, a second Dispose too. A <see cref="Span{T}"/> is a plain address: it must not
/// be used after Dispose, and does not keep the owner alive. A pinned block is freed when the last pin is released.
/// </para>
/// <para>
/// Any thread may dispose or pin; of two that dispose, one gets the exception. An owner that is lost without Dispose
/// keeps its memory until the machine ends, and is counted in <see cref="Machine.Outstanding"/>; with
/// <see cref="MachineOptions.TrackCallSites"/> the garbage collector finds it, reports its source line, and the memory
/// is freed.
/// </para>
/// </remarks>
[DebuggerDisplay("{DebuggerText,nq}")]
[DebuggerTypeProxy(typeof(KmemOwnerView<>))]
public sealed class KmemOwner<T> : MemoryManager<T>, IMemoryOwner<T>
    where T : unmanaged
{
    private const int Disposed = 1;
    private const int OnePin = 2;

    private readonly BufferSource _source;
    private readonly IBufferRelease _release;
    private readonly nint _address;
    private readonly nuint _bytes;
    private readonly int _length;
    private readonly LostOwner? _lost;
    private int _state;     // bit 0: disposed; above: number of pins

    internal unsafe KmemOwner(
        BufferSource source, IBufferRelease release, void* address, nuint bytes, int length, string file, int line)
    {
        _source = source;
        _release = release;
        _address = (nint)address;
        _bytes = bytes;
        _length = length;
        source.Charge(_address, (long)bytes, file, line);
        if (source.Account.Sites != null)
            _lost = new LostOwner(source, release, _address, bytes);
    }

    /// <summary>Elements of the block.</summary>
    public int Length => _length;

    /// <summary>True from Dispose on.</summary>
    public bool IsDisposed => (Volatile.Read(ref _state) & Disposed) != 0;

    internal bool IsUsable => !IsDisposed && !_source.Account.IsClosed;

    /// <summary>The elements. Not to be used after Dispose: a span cannot notice.</summary>
    /// <exception cref="ObjectDisposedException">The owner, or the machine, has been disposed.</exception>
    public Span<T> Span => GetSpan();

    private string DebuggerText =>
        $"{_source.Name}: {_length} x {typeof(T).Name} at 0x{_address:x}{(IsDisposed ? ", disposed" : "")}";

    /// <inheritdoc/>
    public override Memory<T> Memory
    {
        get
        {
            ThrowIfUnusable();
            return CreateMemory(_length);
        }
    }

    /// <summary>Gives the block back; if it is pinned, with the last pin.</summary>
    /// <exception cref="ObjectDisposedException">It was disposed before.</exception>
    /// <remarks>Not the base class's, which tells the garbage collector of a finalizer that there is not.</remarks>
    public void Dispose() => Dispose(disposing: true);

    /// <inheritdoc/>
    /// <exception cref="ObjectDisposedException">The owner, or the machine, has been disposed.</exception>
    public override unsafe Span<T> GetSpan()
    {
        ThrowIfUnusable();
        return new Span<T>((void*)_address, _length);
    }

    /// <summary>Keeps the block from being freed until the handle is disposed. It never moves, pinned or not.</summary>
    /// <param name="elementIndex">The element that the handle points to; the length itself is allowed.</param>
    /// <returns>The handle; dispose it once.</returns>
    /// <exception cref="ObjectDisposedException">The owner, or the machine, has been disposed.</exception>
    public override unsafe MemoryHandle Pin(int elementIndex = 0)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan((uint)elementIndex, (uint)_length, nameof(elementIndex));
        _source.Account.ThrowIfClosed();
        while (true)
        {
            int state = Volatile.Read(ref _state);
            if ((state & Disposed) != 0)
                ThrowDisposed("used");
            if (Interlocked.CompareExchange(ref _state, state + OnePin, state) == state)
                return new MemoryHandle((T*)_address + elementIndex, pinnable: this);
        }
    }

    /// <summary>Ends a <see cref="Pin"/>; a <see cref="MemoryHandle"/> calls it.</summary>
    /// <exception cref="InvalidOperationException">The block is not pinned.</exception>
    public override void Unpin()
    {
        int state = Volatile.Read(ref _state);
        while (true)
        {
            if (state < OnePin)
                throw new InvalidOperationException($"{_source.Name}: unpinned more often than pinned");

            int before = Interlocked.CompareExchange(ref _state, state - OnePin, state);
            if (before == state)
                break;
            state = before;
        }

        if (state == (OnePin | Disposed))
            Free();
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        int before = Interlocked.Or(ref _state, Disposed);
        if ((before & Disposed) != 0)
            ThrowDisposed("disposed a second time");
        if (before == 0)
            Free();
    }

    private unsafe void Free()
    {
        _lost?.Found();

        // The machine may be gone before its owners; then it has told so, and its memory went with it.
        if (_source.Account.IsClosed)
            return;

        _source.Discharge(_address, (long)_bytes);
        _release.Release((void*)_address, _bytes);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void ThrowIfUnusable()
    {
        if ((Volatile.Read(ref _state) & Disposed) != 0)
            ThrowDisposed("used");
        _source.Account.ThrowIfClosed();
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ThrowDisposed(string what) => throw new ObjectDisposedException(
        $"KmemOwner<{typeof(T).Name}>", $"{_source.Name}: a block of {_bytes} bytes was {what} after Dispose");
}

/// <summary>What a debugger shows of an owner: its first elements.</summary>
internal sealed class KmemOwnerView<T>(KmemOwner<T> owner)
    where T : unmanaged
{
    private const int Most = 1000;

    [DebuggerBrowsable(DebuggerBrowsableState.RootHidden)]
    public T[] Items => owner.IsUsable ? owner.Span[..Math.Min(owner.Length, Most)].ToArray() : [];
}

/// <summary>
/// Referenced by its owner only, and only where call sites are kept: when the owner becomes garbage without having been
/// disposed, the finalizer reports it and frees its memory.
/// </summary>
internal sealed class LostOwner(BufferSource source, IBufferRelease release, nint address, nuint bytes)
{
    ~LostOwner()
    {
        BufferAccount account = source.Account;
        lock (account.FinalizerGate)
        {
            if (account.IsClosed)
                return;

            CallSite? site = account.Sites?.Find(address);
            account.Announce(new LeakReport(
                account.Machine,
                "lost without Dispose, found by the garbage collector",
                hasCallSites: true,
                [new LeakSite(source.Name, site?.File ?? "", site?.Line ?? 0, 1, (long)bytes)]));
            if (account.IsClosed)
                return;     // whoever heard of it disposed the machine

            source.Discharge(address, (long)bytes);
            Free();
        }
    }

    /// <summary>The owner was disposed.</summary>
    public void Found() => GC.SuppressFinalize(this);

    private unsafe void Free() => release.Release((void*)address, bytes);
}
