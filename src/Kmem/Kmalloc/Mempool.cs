namespace Kmem;

/// <summary>
/// A reserve of elements that an allocation falls back to, so that a caller who may wait never gets null
/// (<c>mempool_t</c>). It guarantees that its minimum number of elements can be in use at the same time; it is not a
/// cache.
/// </summary>
/// <remarks>
/// mm/mempool.c, Linux 6.18. Created by <see cref="Machine.CreateMempool(int, KmemCache)"/>. Thread-safe.
/// </remarks>
public sealed class Mempool : IDisposable
{
    private static readonly TimeSpan s_longestWait = TimeSpan.FromSeconds(5);

    private readonly Func<Gfp, nint> _alloc;
    private readonly Action<nint> _free;
    private readonly Action<Gfp> _checkContext;
    private readonly MempoolPoison? _poison;
    private readonly object _lock = new();
    private nint[] _elements;
    private bool _disposed;

    internal Mempool(
        int minimum, Func<Gfp, nint> alloc, Action<nint> free, Action<Gfp> checkContext, MempoolPoison? poison = null)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(minimum);
        _alloc = alloc;
        _free = free;
        _checkContext = checkContext;
        _poison = poison;
        Minimum = minimum;
        _elements = new nint[Math.Max(1, minimum)];
        bool complete = false;
        try
        {
            Fill();
            complete = true;
        }
        finally
        {
            if (!complete)
                FreeReserve();
        }
    }

    /// <summary>Elements that the pool promises.</summary>
    public int Minimum { get; private set; }

    /// <summary>Elements in the reserve now.</summary>
    public int Reserved { get; private set; }

    /// <summary>
    /// Takes an element: from the allocator without effort, else from the reserve, else with effort, else it waits for
    /// a <see cref="Free"/> (mempool_alloc).
    /// </summary>
    /// <param name="gfp">Flags; <see cref="Gfp.Zero"/> is not supported.</param>
    /// <returns>The element; null only if the request may not sleep.</returns>
    /// <exception cref="ArgumentException">Zeroed elements were asked for.</exception>
    /// <exception cref="KernelBugException">The request may sleep and this context may not.</exception>
    /// <exception cref="ObjectDisposedException">
    /// The pool has been disposed, perhaps while this call waited.
    /// </exception>
    public unsafe void* Alloc(Gfp gfp)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        if ((gfp & Gfp.Zero) != 0)
            throw new ArgumentException("a mempool cannot promise zeroed elements", nameof(gfp));

        _checkContext(gfp); // the first attempt goes without reclaim and would not notice
        gfp |= Gfp.NoMemAlloc | Gfp.NoRetry | Gfp.NoWarn;
        Gfp light = gfp & ~(Gfp.DirectReclaim | Gfp.IO);
        while (true)
        {
            nint element = _alloc(light);
            if (element == 0)
                element = TakeReserve();
            if (element == 0 && light != gfp)
                element = _alloc(gfp);
            if (element != 0)
                return (void*)element;
            if ((gfp & Gfp.DirectReclaim) == 0)
                return null;

            lock (_lock)
            {
                ObjectDisposedException.ThrowIf(_disposed, this);
                if (Reserved == 0)
                    Monitor.Wait(_lock, s_longestWait);
            }
        }
    }

    /// <summary>Takes an element of the reserve only; never sleeps (mempool_alloc_preallocated).</summary>
    /// <returns>The element, or null if the reserve is empty.</returns>
    public unsafe void* AllocPreallocated() => (void*)TakeReserve();

    /// <summary>
    /// Gives an element back: to the reserve while that is not full, else to the allocator (mempool_free).
    /// </summary>
    /// <param name="element">What <see cref="Alloc"/> returned; null is ignored.</param>
    public unsafe void Free(void* element)
    {
        if (element != null)
            GiveBack((nint)element);
    }

    private void GiveBack(nint element)
    {
        lock (_lock)
        {
            if (!_disposed && (Reserved < Minimum || (Minimum == 0 && Reserved == 0)))
            {
                _poison?.Write(element);
                _elements[Reserved++] = element;
                Monitor.Pulse(_lock);
                return;
            }
        }

        _free(element);
    }

    /// <summary>Changes the promise; a larger reserve is filled as far as memory allows (mempool_resize).</summary>
    /// <param name="minimum">The new number, at least 1.</param>
    public void Resize(int minimum)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(minimum, 1);
        var surplus = new List<nint>();
        bool grows;
        lock (_lock)
        {
            grows = minimum > Minimum;
            while (Reserved > minimum)
                surplus.Add(_elements[--Reserved]);
            Array.Resize(ref _elements, minimum);
            Minimum = minimum;
        }

        surplus.ForEach(_free);
        if (grows)
            FillUp();
    }

    /// <summary>Frees the reserve. Elements in use stay valid and can still be freed (mempool_destroy).</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            if (_disposed)
                return;
            _disposed = true;
            Monitor.PulseAll(_lock);
        }

        FreeReserve();
    }

    private void Fill()
    {
        while (Reserved < _elements.Length)
        {
            nint element = _alloc(Gfp.Kernel);
            if (element == 0)
            {
                throw new OutOfMemoryException(
                    $"mempool: only {Reserved} of {_elements.Length} elements could be set aside");
            }

            _poison?.Write(element);
            _elements[Reserved++] = element;
        }
    }

    /// <summary>Fills the reserve as far as memory allows; others may take and free meanwhile.</summary>
    private void FillUp()
    {
        while (true)
        {
            lock (_lock)
            {
                if (Reserved >= Minimum)
                    return;
            }

            nint element = _alloc(Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn);
            if (element != 0)
                GiveBack(element);
            else
                return;
        }
    }

    private nint TakeReserve()
    {
        lock (_lock)
        {
            if (Reserved == 0)
                return 0;
            nint element = _elements[--Reserved];
            _poison?.Check(element, Reserved);
            return element;
        }
    }

    private void FreeReserve()
    {
        while (TakeReserve() is var element and not 0)
            _free(element);
    }
}

/// <summary>
/// Elements in a reserve are filled with the poison of free objects, and checked when they leave it: who writes to one
/// has kept its address (CONFIG_SLUB_DEBUG_ON; poison_element, check_element).
/// </summary>
/// <param name="bytes">Bytes of an element.</param>
/// <param name="log">Where reports go.</param>
internal sealed class MempoolPoison(int bytes, KernelLog log)
{
    private const byte Free = 0x6b;
    private const byte End = 0xa5;
    private const byte InUse = 0x5a;

    public unsafe void Write(nint element)
    {
        // SAFETY: the element is free, and this pool's, so nobody else may touch its bytes.
        var content = new Span<byte>((void*)element, bytes);
        content[..^1].Fill(Free);
        content[^1] = End;
    }

    public unsafe void Check(nint element, int number)
    {
        var content = new Span<byte>((void*)element, bytes);
        int bad = content[..^1].IndexOfAnyExcept(Free);
        if (bad < 0 && content[^1] != End)
            bad = bytes - 1;
        if (bad >= 0)
        {
            log.Write(
                "BUG: mempool element poison mismatch\n"
                + $"Mempool size {bytes}, nr={number} @ 0x{(ulong)element:x}: byte {bad} is 0x{content[bad]:x2}, "
                + $"not 0x{(bad == bytes - 1 ? End : Free):x2}");
        }

        content.Fill(InUse);
    }
}
