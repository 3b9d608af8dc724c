using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>Where private memory comes from.</summary>
internal enum PrivateBacking
{
    /// <summary><see cref="Pages"/> where the system can, else <see cref="Heap"/>.</summary>
    Auto,

    /// <summary>Anonymous pages: mmap, or VirtualAlloc on Windows.</summary>
    Pages,

    /// <summary>The C heap: no sparseness, nothing to give back; small sizes only. Works everywhere.</summary>
    Heap,
}

/// <summary>
/// Zeroed memory for arrays indexed by number, of which mostly a small part is ever touched: mem_map takes 64 bytes a
/// frame, so a machine of 1 TiB reserves 16 GiB here and uses a few pages of it. Private to this process, outside the
/// GC heap.
/// </summary>
/// <remarks>
/// Huge pages are refused (MADV_NOHUGEPAGE), because with them the first touch would make 2 MiB resident. There is no
/// finalizer: raw pointers into the range may outlive the last reference to this object, so only
/// <see cref="Dispose"/> frees it.
/// </remarks>
internal sealed class SparseMemory : IDisposable
{
    /// <summary>The C heap clears, and so touches, all it hands out: more than this is a mistake, not a need.</summary>
    public const ulong MaxHeapBytes = 1UL << 30;

    private readonly Reservation? _pages;
    private readonly string _purpose;

    private unsafe SparseMemory(byte* start, ulong bytes, Reservation? pages, string purpose)
    {
        Base = start;
        Bytes = bytes;
        _pages = pages;
        _purpose = purpose;
    }

    /// <summary>The first byte; null after <see cref="Dispose"/>.</summary>
    public unsafe byte* Base { get; private set; }

    /// <summary>The size that was asked for.</summary>
    public ulong Bytes { get; }

    /// <summary>False on the C heap: <see cref="Discard"/> then only clears.</summary>
    public bool CanDiscard => _pages is not null;

    /// <summary>Bytes of host memory in use now; on the C heap and on Windows all of them. O(pages).</summary>
    public unsafe ulong ResidentBytes
    {
        get
        {
            ObjectDisposedException.ThrowIf(Base == null, this);
            return _pages is null ? Bytes : HostMemory.Resident(Base, Bytes);
        }
    }

    /// <param name="bytes">Size, at least 1.</param>
    /// <param name="purpose">What it is for, in error messages: "mem_map".</param>
    /// <param name="alignment">Of <see cref="Base"/>; a power of two, at least a page.</param>
    /// <param name="backing">Forced by tests; <see cref="PrivateBacking.Auto"/> takes the best of this system.</param>
    /// <exception cref="ArgumentException">A size or alignment that cannot be.</exception>
    /// <exception cref="PlatformException">The host refuses.</exception>
    public static unsafe SparseMemory Create(
        ulong bytes, string purpose, ulong alignment = 4096, PrivateBacking backing = PrivateBacking.Auto)
    {
        ArgumentOutOfRangeException.ThrowIfZero(bytes);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(bytes, Reservation.MaxBytes);
        if (!ulong.IsPow2(alignment) || alignment < 4096)
        {
            throw new ArgumentException(
                $"alignment {alignment} is not a power of two of at least 4096", nameof(alignment));
        }

        if (backing == PrivateBacking.Auto)
            backing = HostMemory.CanReserve ? PrivateBacking.Pages : PrivateBacking.Heap;
        if (backing == PrivateBacking.Heap) return CreateOnHeap(bytes, purpose, alignment);

        Reservation pages = Reservation.Create(bytes, Math.Max(alignment, HostInfo.PageBytes), purpose);
        try
        {
            HostMemory.CommitZero(pages.Base, bytes, purpose);
        }
        catch (PlatformException)
        {
            pages.Dispose();
            throw;
        }

        return new SparseMemory(pages.Base, bytes, pages, purpose);
    }

    /// <summary>
    /// Everything is zero again, and the host has its memory back. Nobody may use the range meanwhile.
    /// </summary>
    public void Reset() => Discard(0, Bytes);

    /// <summary>A run is zero again; where <see cref="CanDiscard"/>, the host has its memory back.</summary>
    public unsafe void Discard(ulong offset, ulong bytes)
    {
        ObjectDisposedException.ThrowIf(Base == null, this);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(offset, Bytes);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(bytes, Bytes - offset);
        if (_pages is null)
            NativeMemory.Clear(Base + offset, (nuint)bytes);
        else
            HostMemory.Discard(Base + offset, bytes, _purpose);
    }

    /// <summary>Frees the range; pointers into it dangle. Twice is fine.</summary>
    public unsafe void Dispose()
    {
        if (Base == null) return;

        byte* start = Base;
        Base = null;
        if (_pages is null)
            NativeMemory.AlignedFree(start);
        else
            _pages.Dispose();
    }

    private static unsafe SparseMemory CreateOnHeap(ulong bytes, string purpose, ulong alignment)
    {
        if (bytes > MaxHeapBytes)
        {
            throw new ArgumentOutOfRangeException(
                nameof(bytes), bytes, $"{purpose}: the C heap backs at most {MaxHeapBytes} bytes");
        }

        byte* start = (byte*)NativeMemory.AlignedAlloc((nuint)bytes, (nuint)alignment);
        NativeMemory.Clear(start, (nuint)bytes);
        return new SparseMemory(start, bytes, pages: null, purpose);
    }
}
