namespace Kmem;

/// <summary>
/// The zones of a node, low to high (<c>enum zone_type</c>, <c>include/linux/mmzone.h</c>, Linux 6.18, x86-64 with
/// all options). The number is the index into the lowmem_reserve arrays.
/// </summary>
public enum ZoneType : byte
{
    /// <summary>The first 16 MiB of physical memory, for devices with 24 address lines.</summary>
    Dma = 0,

    /// <summary>Memory from 16 MiB to 4 GiB, for devices with 32 address lines.</summary>
    Dma32 = 1,

    /// <summary>Memory from 4 GiB on.</summary>
    Normal = 2,

    /// <summary>Memory for migratable pages only; empty unless the boot options or hotplug fill it.</summary>
    Movable = 3,

    /// <summary>Memory of devices; never used for ordinary allocations.</summary>
    Device = 4,
}

/// <summary>Names and number of the zones.</summary>
internal static class ZoneTypes
{
    /// <summary>How many zone types there are (<c>MAX_NR_ZONES</c>).</summary>
    internal const int Count = 5;

    /// <summary>The zone's name as /proc prints it.</summary>
    internal static string Name(this ZoneType zone) => zone switch
    {
        ZoneType.Dma => "DMA",
        ZoneType.Dma32 => "DMA32",
        ZoneType.Normal => "Normal",
        ZoneType.Movable => "Movable",
        ZoneType.Device => "Device",
        _ => throw new ArgumentOutOfRangeException(nameof(zone)),
    };
}
