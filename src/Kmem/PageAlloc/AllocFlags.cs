namespace Kmem;

/// <summary>What one attempt of the page allocator may do (ALLOC_*, mm/internal.h, Linux 6.18).</summary>
[Flags]
internal enum AllocFlags
{
    /// <summary>Check against MIN; the lowest two bits are the <see cref="WatermarkLevel"/>.</summary>
    WatermarkMin = 0,
    WatermarkLow = 1,
    WatermarkHigh = 2,
    WatermarkMask = 3,

    /// <summary>Ignore watermarks: full access to the reserves.</summary>
    NoWatermarks = 0x04,

    /// <summary>The task is an OOM victim.</summary>
    Oom = 0x08,
    NonBlock = 0x10,
    MinReserve = 0x20,
    CpuSet = 0x40,

    /// <summary>Do not mix migrate types in a pageblock.</summary>
    NoFragment = 0x100,
    HighAtomic = 0x200,

    /// <summary>Never wait for a lock.</summary>
    TryLock = 0x400,
    Kswapd = 0x800,

    Reserves = NonBlock | MinReserve | HighAtomic | Oom,
}

/// <summary>How a block is put back into the free lists (FPI_*, mm/page_alloc.c, Linux 6.18).</summary>
[Flags]
internal enum FreeFlags
{
    None = 0,

    /// <summary>Insert at the tail of the list: boot, and pages that should stay free longest.</summary>
    ToTail = 2,
}
