namespace Kmem;

/// <summary>Frames in as few blocks as the machine has, because each block is a mapping of the host.</summary>
internal sealed class FrameBlocks(PageAllocator pages, MemMap map)
{
    private readonly List<(Pfn First, int Order)> _blocks = [];

    public IReadOnlyList<(Pfn First, int Order)> Blocks => _blocks;

    public ulong Frames { get; private set; }

    /// <summary>Takes one block of at most so many frames, the largest there is.</summary>
    /// <returns>The block; null if there is not even one frame.</returns>
    public unsafe (Pfn First, int Order)? TryTake(ulong most)
    {
        int order = Math.Min(PageOrder.Pageblock, System.Numerics.BitOperations.Log2(most));
        for (; order >= 0; order--)
        {
            // Larger blocks are worth a look, not an effort: nobody reclaims or complains for them.
            Gfp gfp = order == 0 ? Gfp.Kernel | Gfp.NoWarn : (Gfp.Kernel | Gfp.NoWarn | Gfp.NoRetry) & ~Gfp.DirectReclaim;
            Page* page = pages.Alloc(gfp, order, -1);
            if (page == null)
                continue;

            var block = (new Pfn(map.PfnOf(page)), order);
            _blocks.Add(block);
            Frames += 1UL << order;
            return block;
        }

        return null;
    }

    /// <summary>Frees the block that was taken last.</summary>
    public void FreeLast()
    {
        (Pfn first, int order) = _blocks[^1];
        _blocks.RemoveAt(_blocks.Count - 1);
        Frames -= 1UL << order;
        pages.Free(first.Value, order);
    }

    public void FreeAll()
    {
        while (_blocks.Count > 0)
            FreeLast();
    }
}
