using System.Globalization;

namespace Kmem;

/// <summary>An address as a device sees it: physical, or one that its IOMMU translates.</summary>
/// <param name="Value">The address.</param>
public readonly record struct DmaAddress(ulong Value)
{
    /// <summary>The address in hexadecimal.</summary>
    /// <returns>For example <c>0x1000</c>.</returns>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"0x{Value:x}");
}

/// <summary>What a device can reach of the memory, and how (<c>struct device</c> as far as DMA goes).</summary>
public sealed class DmaDevice
{
    private readonly Lock _lock = new();
    private readonly SortedDictionary<ulong, DmaBuffer> _buffers = [];  // by first page of the device's address
    private readonly Dictionary<nint, DmaBuffer> _byPointer = [];

    /// <summary>The highest address that it can use (coherent_dma_mask); usually 4 GiB less 1.</summary>
    public ulong CoherentMask { get; init; } = uint.MaxValue;

    /// <summary>
    /// Whether it sees what is in the CPU's caches; PCs do. Else its memory is mapped a second time, uncached.
    /// </summary>
    public bool IsCoherent { get; init; } = true;

    /// <summary>Whether an IOMMU translates its addresses: then frames need not be contiguous nor low.</summary>
    public bool HasIommu { get; init; }

    /// <summary>
    /// Map memory for writing in bursts, if it is mapped a second time at all (DMA_ATTR_WRITE_COMBINE).
    /// </summary>
    public bool WriteCombine { get; init; }

    /// <summary>Its NUMA node, or -1.</summary>
    public int Node { get; init; } = -1;

    /// <summary>Its coherent buffers at this moment.</summary>
    public int Buffers
    {
        get
        {
            SimPoint.Gate(_lock);
            lock (_lock)
                return _byPointer.Count;
        }
    }

    /// <summary>
    /// The frame that the device reaches through an address; <see cref="Pfn.None"/> if it may not use it.
    /// </summary>
    /// <param name="address">An address within one of its buffers.</param>
    /// <returns>The frame.</returns>
    public Pfn Translate(DmaAddress address)
    {
        ulong page = address.Value >> Pfn.PageShift;
        SimPoint.Gate(_lock);
        lock (_lock)
        {
            foreach ((ulong first, DmaBuffer buffer) in _buffers)
            {
                if (page - first < (ulong)buffer.Frames.Length)
                    return buffer.Frames[page - first];
            }
        }

        return Pfn.None;
    }

    /// <summary>
    /// Takes addresses for the frames of a buffer: the highest free ones below the mask, or the frames' own.
    /// </summary>
    /// <returns>False if there are none.</returns>
    internal bool Add(nint pointer, DmaBuffer buffer, out DmaAddress address)
    {
        SimPoint.Gate(_lock);
        lock (_lock)
        {
            ulong first = buffer.Frames[0].Value;
            if (HasIommu && !FindPages((ulong)buffer.Frames.Length, out first))
            {
                address = default;
                return false;
            }

            _buffers.Add(first, buffer with { FirstPage = first });
            _byPointer.Add(pointer, buffer with { FirstPage = first });
            address = new DmaAddress(first << Pfn.PageShift);
            return true;
        }
    }

    internal DmaBuffer? Find(nint pointer)
    {
        SimPoint.Gate(_lock);
        lock (_lock)
            return _byPointer.GetValueOrDefault(pointer);
    }

    /// <summary>Takes a buffer away; null if none is there.</summary>
    internal DmaBuffer? Remove(nint pointer)
    {
        SimPoint.Gate(_lock);
        lock (_lock)
        {
            if (!_byPointer.Remove(pointer, out DmaBuffer? buffer))
                return null;
            _buffers.Remove(buffer.FirstPage);
            return buffer;
        }
    }

    private bool FindPages(ulong count, out ulong first)
    {
        // Below 4 GiB as long as there is room: such addresses are shorter in what is sent over the bus.
        ulong top = (Math.Min(CoherentMask, uint.MaxValue) >> Pfn.PageShift) + 1;
        ulong align = System.Numerics.BitOperations.RoundUpToPowerOf2(count);
        foreach ((ulong start, DmaBuffer buffer) in _buffers.Reverse())
        {
            if (top >= align && ((top - count) & ~(align - 1)) >= start + (ulong)buffer.Frames.Length)
                break;
            top = start;
        }

        first = top >= count ? (top - count) & ~(align - 1) : 0;
        return first > 0;       // address 0 is no address
    }
}

/// <summary>Memory that a device shares with the CPU.</summary>
/// <param name="Frames">Its frames, in the device's order.</param>
/// <param name="Order">Of the block if the frames are one; −1 if each is alone.</param>
/// <param name="IsRemapped">The CPU's addresses are in the vmalloc space.</param>
internal sealed record DmaBuffer(Pfn[] Frames, int Order, bool IsRemapped)
{
    public ulong FirstPage { get; init; }
}
