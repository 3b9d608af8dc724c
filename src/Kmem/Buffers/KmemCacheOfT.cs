using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// A cache of objects of one type outside the GC heap: a typed <see cref="KmemCache"/> for safe code. Objects are named
/// by handles; the indexer gives a reference into the object's memory.
/// <code>
///   using KmemCache&lt;Node&gt; nodes = machine.CreateCache&lt;Node&gt;("node");
///   KmemHandle&lt;Node&gt; first = nodes.Rent(new Node { Key = 1 });
///   nodes[first].Key++;
///   nodes.Return(first);
/// </code>
/// </summary>
/// <typeparam name="T">Type of the objects, up to 4 MiB.</typeparam>
/// <remarks>
/// <para>
/// Thread-safe; an object may be returned on another thread than it was rented on. Behind each object lie 8 bytes with
/// the stamp of its present life, so a handle that outlived its object, one that is returned twice, and one of another
/// cache throw. Without stamps (see <see cref="Machine.CreateCache{T}(string, SlabFlags, bool)"/>) only a free or
/// foreign place is noticed, not that it was given out again. Two threads that return one handle at the very same
/// instant are not told apart: nothing on this path is interlocked.
/// </para>
/// <para>A reference must not be used after its object has been returned; nothing can notice that.</para>
/// </remarks>
[DebuggerDisplay("{DebuggerText,nq}")]
public sealed class KmemCache<T> : IDisposable
    where T : unmanaged
{
    private const int IdShift = 48;
    private const int BulkBatch = 64;

    private static int s_lastId;

    private readonly BufferAccount _account;
    private readonly BufferSource _source;
    private readonly KmemCache _cache;
    private readonly nint _ram;
    private readonly nuint _stampOffset;    // 0: no stamps
    private readonly ulong _id;
    private nuint _limit;                   // bytes of RAM; 0 when the cache or its machine is gone
    private int _disposed;

    internal unsafe KmemCache(BufferAccount account, KmemCache cache, MemMap map, int stampOffset)
    {
        _account = account;
        _cache = cache;
        _ram = (nint)map.RamBase;
        _stampOffset = (nuint)stampOffset;
        _limit = (nuint)(map.EndPfn << Pfn.PageShift);
        _id = (ulong)((Interlocked.Increment(ref s_lastId) % 0xffff) + 1) << IdShift;
        _source = account.AddSource($"KmemCache<{typeof(T).Name}> '{cache.Name}'", () => Volatile.Write(ref _limit, 0));
    }

    /// <summary>The name given when it was created.</summary>
    public string Name => _cache.Name;

    /// <summary>The cache below, for pointers, statistics and hot loops.</summary>
    public KmemCache Cache => _cache;

    /// <summary>Objects rented and not returned. Exact when no other thread is at work.</summary>
    public long Outstanding => _source.Count;

    /// <summary>The cache or its machine has been disposed.</summary>
    public bool IsDisposed => Volatile.Read(ref _limit) == 0;

    /// <summary>The object behind a handle. The reference is good until the object is returned.</summary>
    /// <param name="handle">From <see cref="Rent(in T, string, int)"/>.</param>
    /// <exception cref="ObjectDisposedException">
    /// The object has been returned, or the cache or its machine disposed.
    /// </exception>
    /// <exception cref="ArgumentException">The handle is null, or another cache's.</exception>
    public unsafe ref T this[KmemHandle<T> handle]
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get
        {
            if (!IsLive(handle))
                ThrowBadHandle(handle, "used");
            return ref *(T*)(_ram + (nint)handle.Offset);
        }
    }

    private string DebuggerText => $"KmemCache<{typeof(T).Name}> '{Name}': {Outstanding} objects outstanding";

    /// <summary>How many bytes in front of the stamp; 8 more are needed.</summary>
    internal static unsafe int StampOffset => (sizeof(T) + 7) & ~7;

    /// <summary>Rents an object (kmem_cache_alloc).</summary>
    /// <param name="value">Its first content; zeros by default.</param>
    /// <param name="file">Filled in by the compiler.</param>
    /// <param name="line">Filled in by the compiler.</param>
    /// <returns>Its handle; give it to <see cref="Return(KmemHandle{T})"/> once.</returns>
    /// <exception cref="OutOfMemoryException">
    /// The machine has no memory left; the message says what it has and why.
    /// </exception>
    /// <exception cref="ObjectDisposedException">The cache, or its machine, has been disposed.</exception>
    public unsafe KmemHandle<T> Rent(
        in T value = default, [CallerFilePath] string file = "", [CallerLineNumber] int line = 0)
    {
        if (Volatile.Read(ref _limit) == 0)
            ThrowGone();
        void* obj = _cache.Alloc(Gfp.Kernel);
        if (obj == null)
            _account.ThrowOutOfMemory((nuint)_cache.SlotSize, _source.Name);

        *(T*)obj = value;
        return Stamp(obj, _source.Charge((nint)obj, sizeof(T), file, line));
    }

    /// <summary>Rents as many objects as there are entries: all or none (kmem_cache_alloc_bulk).</summary>
    /// <param name="handles">Filled.</param>
    /// <param name="file">Filled in by the compiler.</param>
    /// <param name="line">Filled in by the compiler.</param>
    /// <exception cref="OutOfMemoryException">Memory ran out; nothing is rented, and the entries are null.</exception>
    /// <exception cref="ObjectDisposedException">The cache, or its machine, has been disposed.</exception>
    public unsafe void RentBulk(
        Span<KmemHandle<T>> handles, [CallerFilePath] string file = "", [CallerLineNumber] int line = 0)
    {
        if (Volatile.Read(ref _limit) == 0)
            ThrowGone();
        Span<nint> batch = stackalloc nint[BulkBatch];
        for (int done = 0; done < handles.Length;)
        {
            Span<nint> objects = batch[..Math.Min(BulkBatch, handles.Length - done)];
            if (_cache.AllocBulk(Gfp.Kernel, objects) == 0)
            {
                ReturnBulk(handles[..done]);
                handles.Clear();
                _account.ThrowOutOfMemory((nuint)_cache.SlotSize * (nuint)handles.Length, _source.Name);
            }

            ulong serial = _source.ChargeMany(objects, sizeof(T), file, line);
            foreach (nint obj in objects)
            {
                *(T*)obj = default;
                handles[done++] = Stamp((void*)obj, serial);
                serial = BufferSource.NextSerial(serial);
            }
        }
    }

    /// <summary>Rents an object for the length of a block.</summary>
    /// <param name="value">Its first content.</param>
    /// <param name="file">Filled in by the compiler.</param>
    /// <param name="line">Filled in by the compiler.</param>
    /// <returns>The lease; its Dispose returns the object.</returns>
    /// <exception cref="OutOfMemoryException">The machine has no memory left.</exception>
    /// <exception cref="ObjectDisposedException">The cache, or its machine, has been disposed.</exception>
    public KmemLease<T> Lease(
        in T value = default, [CallerFilePath] string file = "", [CallerLineNumber] int line = 0) =>
        new(this, Rent(value, file, line));

    /// <summary>Gives an object back (kmem_cache_free), on any thread.</summary>
    /// <param name="handle">Its handle.</param>
    /// <exception cref="ObjectDisposedException">
    /// It was returned before, or the cache or its machine disposed.
    /// </exception>
    /// <exception cref="ArgumentException">The handle is null, or another cache's.</exception>
    public unsafe void Return(KmemHandle<T> handle)
    {
        byte* obj = Take(handle);
        _source.Discharge((nint)obj, sizeof(T));
        _cache.Free(obj);
    }

    /// <summary>Gives many objects back, those of one slab in one step (kmem_cache_free_bulk).</summary>
    /// <param name="handles">Their handles.</param>
    /// <exception cref="ObjectDisposedException">
    /// One was returned before; those in front of it are returned now.
    /// </exception>
    /// <exception cref="ArgumentException">
    /// One is null, or another cache's; those in front of it are returned now.
    /// </exception>
    public unsafe void ReturnBulk(ReadOnlySpan<KmemHandle<T>> handles)
    {
        Span<nint> batch = stackalloc nint[_stampOffset != 0 ? BulkBatch : 1];  // without stamps twins show up one by one
        while (!handles.IsEmpty)
        {
            int count = 0;
            try
            {
                while (count < Math.Min(batch.Length, handles.Length))
                {
                    batch[count] = (nint)Take(handles[count]);
                    count++;
                }
            }
            finally
            {
                _source.DischargeMany(batch[..count], sizeof(T));
                _cache.FreeBulk(batch[..count]);
            }

            handles = handles[count..];
        }
    }

    /// <summary>Whether a handle's object is alive.</summary>
    /// <param name="handle">Any handle.</param>
    /// <returns>False for null, a returned object, another cache's, and after Dispose.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe bool IsLive(KmemHandle<T> handle)
    {
        // Offset 0 is never given out: null wraps around and fails, and everything does once the limit is 0.
        if (handle.Offset - 1 >= Volatile.Read(ref _limit) || (handle.Stamp ^ _id) >> IdShift != 0)
            return false;

        byte* obj = (byte*)_ram + handle.Offset;
        return _stampOffset != 0 ? *(ulong*)(obj + _stampOffset) == handle.Stamp : _cache.IsLive(obj);
    }

    /// <summary>What is outstanding now, by source line if the machine keeps call sites.</summary>
    /// <returns>The report; empty if everything came back.</returns>
    public LeakReport FindLeaks() => _account.Report("now", _source);

    /// <summary>
    /// Destroys the cache (kmem_cache_destroy). Objects that are outstanding are reported, and their memory stays taken
    /// until the machine ends; their handles are refused from now on.
    /// </summary>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0 || _account.IsClosed)
            return;

        Volatile.Write(ref _limit, 0);
        LeakReport leaks = _account.Report($"cache '{Name}' disposed", _source);
        _account.Announce(leaks);
        if (_source.Count == 0)
            _cache.Destroy();
        _account.Retire(_source);
    }

    /// <summary>Begins an object's life: it and its handle get a stamp that no other has.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe KmemHandle<T> Stamp(void* obj, ulong serial)
    {
        ulong stamp = _id;
        if (_stampOffset != 0)
        {
            stamp |= serial;
            *(ulong*)((byte*)obj + _stampOffset) = stamp;
        }

        return new KmemHandle<T>((nuint)((nint)obj - _ram), stamp);
    }

    /// <summary>Ends the life of a handle's object, which is still to be freed.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private unsafe byte* Take(KmemHandle<T> handle)
    {
        if (!IsLive(handle))
            ThrowBadHandle(handle, "returned");

        byte* obj = (byte*)_ram + handle.Offset;
        if (_stampOffset != 0)
            *(ulong*)(obj + _stampOffset) = 0;
        return obj;
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ThrowGone()
    {
        _account.ThrowIfClosed();
        throw new ObjectDisposedException($"KmemCache<{typeof(T).Name}>", $"the cache '{Name}' has been disposed");
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ThrowBadHandle(KmemHandle<T> handle, string what)
    {
        if (IsDisposed)
            ThrowGone();
        if (handle.IsNull)
            throw new ArgumentException($"cache '{Name}': a null handle was {what}", nameof(handle));
        if ((handle.Stamp ^ _id) >> IdShift != 0)
            throw new ArgumentException(
                $"cache '{Name}': a handle of another cache was {what}: {handle}", nameof(handle));
        throw new ObjectDisposedException(
            $"KmemHandle<{typeof(T).Name}>", $"cache '{Name}': a handle was {what} after its object had been returned: {handle}");
    }
}
