using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// One byte for every place where an object may begin: non-zero while an object that begins there is allocated. It
/// makes a double free, an interior pointer and a misaligned pointer visible in O(1), outside the memory that users
/// write to.
/// </summary>
/// <remarks>
/// <code>
///   objects of 64 bytes and more:  one byte per 64 bytes of RAM (1.6 %)
///   smaller objects:               one byte per 8 bytes of RAM
///   holding 0x80 | the address's low bits, so that an address between two places never looks live
/// </code>
/// Two objects never share a byte, so plain stores do. Host memory is used only where there are slabs.
/// </remarks>
internal sealed class LiveObjects : IDisposable
{
    private const int CoarseShift = 6;
    private const int FineShift = 3;
    private readonly SparseMemory _coarse;
    private readonly SparseMemory _fine;

    public LiveObjects(ulong ramBytes)
    {
        _coarse = SparseMemory.Create(Math.Max(ramBytes >> CoarseShift, 4096), "map of live objects");
        _fine = SparseMemory.Create(Math.Max(ramBytes >> FineShift, 4096), "map of live small objects");
    }

    public static int ShiftFor(int slotSize) => slotSize >= 1 << CoarseShift ? CoarseShift : FineShift;

    /// <summary>
    /// The map for caches with this slot size, to be indexed by RAM offset &gt;&gt; <see cref="ShiftFor"/>.
    /// </summary>
    public unsafe byte* MapFor(int slotSize) => slotSize >= 1 << CoarseShift ? _coarse.Base : _fine.Base;

    /// <summary>What the byte of an allocated object at this address holds.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint Mark(nuint address) => 0x80u | (byte)address;

    public void Dispose()
    {
        _coarse.Dispose();
        _fine.Dispose();
    }
}
