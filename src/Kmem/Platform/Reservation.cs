namespace Kmem;

/// <summary>
/// Aligned address space of our own, with at least one page on either side that faults:
/// <code>
///   reserved                                                                  reserved
///   |· guard, unused ·|################ Base … Base + Bytes ################|· guard ·|
///                     ^ multiple of the alignment
/// </code>
/// All MAP_FIXED mappings of Kmem go between Base and Base + Bytes, so they can never hit foreign memory, and running
/// over either end of simulated RAM is a fault instead of silent damage.
/// </summary>
internal sealed class Reservation : IDisposable
{
    /// <summary>
    /// Sums of sizes and alignments below this cannot overflow; no machine has so much address space.
    /// </summary>
    public const ulong MaxBytes = 1UL << 56;

    private readonly ulong _reservedBytes;
    private readonly string _purpose;
    private unsafe byte* _reserved;

    private unsafe Reservation(byte* reserved, ulong reservedBytes, byte* start, ulong bytes, string purpose)
    {
        _reserved = reserved;
        _reservedBytes = reservedBytes;
        _purpose = purpose;
        Base = start;
        Bytes = bytes;
    }

    /// <summary>The first usable byte; null after <see cref="Dispose"/>.</summary>
    public unsafe byte* Base { get; private set; }

    /// <summary>The usable size.</summary>
    public ulong Bytes { get; }

    /// <summary>
    /// 1 GiB for ranges of at least 1 GiB, else 4 MiB: a block that is aligned as an offset (up to order 10, or a huge
    /// mapping of 1 GiB) is then equally aligned as a pointer.
    /// </summary>
    public static ulong NaturalAlignment(ulong bytes) => bytes >= 1UL << 30 ? 1UL << 30 : 4UL << 20;

    /// <exception cref="PlatformException">The host has no such range.</exception>
    public static Reservation Create(ulong bytes, ulong alignment, string purpose) =>
        TryCreate(bytes, alignment, purpose) ?? throw HostMemory.ReserveError(bytes, purpose);

    /// <summary>null when the host has no such range; the last P/Invoke error says why.</summary>
    public static unsafe Reservation? TryCreate(ulong bytes, ulong alignment, string purpose)
    {
        ulong page = HostInfo.PageBytes;
        ulong usable = (bytes + page - 1) & ~(page - 1);
        ulong reservedBytes = usable + alignment + 2 * page;
        byte* reserved = HostMemory.TryReserve(reservedBytes);
        if (reserved == null) return null;

        ulong start = ((ulong)reserved + page + alignment - 1) & ~(alignment - 1);
        return new Reservation(reserved, reservedBytes, (byte*)start, bytes, purpose);
    }

    /// <summary>Unmaps everything in the range. Twice is fine.</summary>
    public unsafe void Dispose()
    {
        if (_reserved == null) return;

        byte* reserved = _reserved;
        _reserved = null;
        Base = null;
        HostMemory.Free(reserved, _reservedBytes, _purpose);
    }
}
