namespace Kmem;

/// <summary>
/// What may be done with the pages of a pageblock. Free pages are kept in lists by this type, so that pages that can
/// never move gather in few blocks and the rest stays able to form large ones.
/// </summary>
/// <remarks>
/// <c>enum migratetype</c>, <c>include/linux/mmzone.h</c>, Linux 6.18, built with memory isolation, without CMA.
/// </remarks>
public enum Migratetype : byte
{
    /// <summary>Pages that can neither move nor be reclaimed: most kernel memory.</summary>
    Unmovable = 0,

    /// <summary>Pages whose contents can be copied elsewhere: user memory and page cache.</summary>
    Movable = 1,

    /// <summary>Pages that cannot move but can be given back: caches with a shrinker.</summary>
    Reclaimable = 2,

    /// <summary>A reserve of pageblocks for high-order requests that must not sleep.</summary>
    HighAtomic = 3,

    /// <summary>Pageblocks that are taken out of use; their free pages are not counted and not given out.</summary>
    Isolate = 4,
}

/// <summary>Names, number and fallback order of the migrate types (<c>mm/page_alloc.c</c>, Linux 6.18).</summary>
internal static class Migratetypes
{
    /// <summary>How many types there are (<c>MIGRATE_TYPES</c>).</summary>
    internal const int Count = 5;

    /// <summary>
    /// The types below this one have per-CPU lists, have fallbacks, and merge with each other
    /// (<c>MIGRATE_PCPTYPES</c>).
    /// </summary>
    internal const int PcpTypes = 3;

    /// <summary>How many other types a request may fall back to.</summary>
    internal const int FallbackCount = 2;

    // The fallbacks of Unmovable, Movable, Reclaimable; the milder one first: Movable blocks are the ones to protect.
    private static ReadOnlySpan<byte> FallbackTable =>
    [
        (byte)Migratetype.Reclaimable, (byte)Migratetype.Movable,
        (byte)Migratetype.Reclaimable, (byte)Migratetype.Unmovable,
        (byte)Migratetype.Unmovable, (byte)Migratetype.Movable,
    ];

    /// <summary>
    /// The type to take from when <paramref name="wanted"/> has nothing: <paramref name="rank"/> 0 first, then 1
    /// (<c>fallbacks</c>). Only the types below <see cref="PcpTypes"/> have fallbacks.
    /// </summary>
    internal static Migratetype Fallback(Migratetype wanted, int rank)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual((uint)rank, (uint)FallbackCount, nameof(rank));
        return (Migratetype)FallbackTable[((int)wanted * FallbackCount) + rank];
    }

    /// <summary>
    /// Whether blocks of this type merge with other types and fall back to them: Unmovable, Movable and Reclaimable
    /// (<c>migratetype_is_mergeable</c>).
    /// </summary>
    internal static bool IsMergeable(this Migratetype type) => (int)type < PcpTypes;

    /// <summary>The type's name as /proc/pagetypeinfo prints it (<c>migratetype_names</c>).</summary>
    internal static string Name(this Migratetype type) => type switch
    {
        Migratetype.Unmovable => "Unmovable",
        Migratetype.Movable => "Movable",
        Migratetype.Reclaimable => "Reclaimable",
        Migratetype.HighAtomic => "HighAtomic",
        Migratetype.Isolate => "Isolate",
        _ => throw new ArgumentOutOfRangeException(nameof(type)),
    };
}
