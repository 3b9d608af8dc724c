using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// Names an object of a <see cref="KmemCache{T}"/>: 16 bytes without a managed reference, so it can be kept anywhere,
/// in objects of the cache itself, too. <see cref="KmemCache{T}.this"/> turns it into a reference, and notices when the
/// object is gone.
/// <code>
///   63     48 47  42 41                        0
///  ┌─────────┬──────┬───────────────────────────┐
///  │ cache   │thread│ sequence                  │   Stamp; the object has the same one while it lives
///  └─────────┴──────┴───────────────────────────┘
/// </code>
/// </summary>
/// <typeparam name="T">Type of the object.</typeparam>
[StructLayout(LayoutKind.Sequential)]
public readonly record struct KmemHandle<T>
    where T : unmanaged
{
    internal KmemHandle(nuint offset, ulong stamp)
    {
        Offset = offset;
        Stamp = stamp;
    }

    /// <summary>Bytes from the start of the machine's RAM.</summary>
    internal nuint Offset { get; }

    internal ulong Stamp { get; }

    /// <summary>
    /// No object: the value of <c>default</c>. A handle of an object that has been returned is not null.
    /// </summary>
    public bool IsNull => Stamp == 0;

    /// <summary>For people.</summary>
    /// <returns>The place in RAM and the stamp.</returns>
    public override string ToString() => IsNull ? "null" : $"{typeof(T).Name} at RAM offset 0x{(ulong)Offset:x}, stamp {Stamp:x}";
}

/// <summary>
/// An object of a <see cref="KmemCache{T}"/> for the length of a block: <c>using var node = cache.Lease();</c>
/// </summary>
/// <typeparam name="T">Type of the object.</typeparam>
public ref struct KmemLease<T>
    where T : unmanaged
{
    private KmemCache<T>? _cache;

    internal KmemLease(KmemCache<T> cache, KmemHandle<T> handle)
    {
        _cache = cache;
        Handle = handle;
    }

    /// <summary>The object's handle, valid until the lease is disposed.</summary>
    public KmemHandle<T> Handle { get; }

    /// <summary>The object.</summary>
    /// <exception cref="ObjectDisposedException">The lease has been disposed.</exception>
    public readonly ref T Value
    {
        get
        {
            ObjectDisposedException.ThrowIf(_cache == null, typeof(KmemLease<T>));
            return ref _cache[Handle];
        }
    }

    /// <summary>Returns the object.</summary>
    /// <exception cref="ObjectDisposedException">The object was returned before.</exception>
    public void Dispose()
    {
        KmemCache<T>? cache = _cache;
        _cache = null;
        cache?.Return(Handle);
    }
}
