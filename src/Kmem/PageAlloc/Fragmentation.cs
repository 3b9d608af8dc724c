namespace Kmem;

/// <summary>
/// How badly free memory is cut up, from the number of free blocks per order (mm/vmstat.c, Linux 6.18). F frames free
/// in B blocks; S blocks of the wanted order can be had from them.
/// </summary>
internal static class Fragmentation
{
    /// <summary>
    /// Why an allocation of the order would fail, ×1000: near 0 for lack of memory, near 1000 because it is fragmented;
    /// −1000 if it would not fail, 0 if nothing is free.
    /// </summary>
    public static int ExtfragIndex(Func<int, long> freeBlocks, int order)
    {
        (long frames, long blocks, long suitable) = Count(freeBlocks, order);
        if (blocks == 0)
            return 0;
        if (suitable > 0)
            return -1000;
        return (int)(1000 - ((1000 + (frames * 1000 / (1L << order))) / blocks));
    }

    /// <summary>
    /// The part of free memory that is in blocks too small for the order, ×1000; 1000 if nothing is free.
    /// </summary>
    public static int UnusableIndex(Func<int, long> freeBlocks, int order)
    {
        (long frames, _, long suitable) = Count(freeBlocks, order);
        return frames == 0 ? 1000 : (int)((frames - (suitable << order)) * 1000 / frames);
    }

    /// <summary>The same in percent; 0 if nothing is free (extfrag_for_order).</summary>
    public static int ExternalPercent(Func<int, long> freeBlocks, int order)
    {
        (long frames, _, long suitable) = Count(freeBlocks, order);
        return frames == 0 ? 0 : (int)((frames - (suitable << order)) * 100 / frames);
    }

    private static (long Frames, long Blocks, long Suitable) Count(Func<int, long> freeBlocks, int order)
    {
        long frames = 0;
        long blocks = 0;
        long suitable = 0;
        for (int current = 0; current <= PageOrder.Max; current++)
        {
            long count = freeBlocks(current);
            blocks += count;
            frames += count << current;
            if (current >= order)
                suitable += count << (current - order);
        }

        return (frames, blocks, suitable);
    }
}
