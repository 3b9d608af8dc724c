using System.Numerics;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// The orders of the page allocator: a block of order <c>n</c> is 2^n pages of 4096 bytes, aligned to its own size.
/// </summary>
/// <remarks>Values of x86-64 with 4 KiB pages (<c>include/linux/mmzone.h</c>, Linux 6.18).</remarks>
public static class PageOrder
{
    /// <summary>The largest order, 1024 pages or 4 MiB (<c>MAX_PAGE_ORDER</c>).</summary>
    public const int Max = 10;

    /// <summary>How many orders there are, 0 to <see cref="Max"/> (<c>NR_PAGE_ORDERS</c>).</summary>
    public const int Count = Max + 1;

    /// <summary>
    /// The last order for which the allocator tries hard; above it a request rather fails
    /// (<c>PAGE_ALLOC_COSTLY_ORDER</c>).
    /// </summary>
    public const int Costly = 3;

    /// <summary>
    /// The order of a pageblock, the unit of grouping by mobility: 512 pages (<c>pageblock_order</c>).
    /// </summary>
    public const int Pageblock = 9;

    internal const int PageblockPages = 1 << Pageblock;

    internal const int MaxBlockPages = 1 << Max;

    private const int PageShift = 12;

    /// <summary>
    /// The smallest order whose block holds <paramref name="bytes"/> bytes (<c>get_order</c>,
    /// <c>include/asm-generic/getorder.h</c>, Linux 6.18). It may exceed <see cref="Max"/>: then no block is
    /// large enough. Zero bytes give 52, as in the kernel; ask for at least one.
    /// </summary>
    /// <param name="bytes">A size in bytes, at least 1.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int ForSize(nuint bytes) => 64 - BitOperations.LeadingZeroCount((ulong)(bytes - 1) >> PageShift);
}
