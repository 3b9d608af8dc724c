namespace Kmem;

/// <content>Blocks too large for a cache: compound pages of type LargeKmalloc.</content>
internal sealed partial class SlabAllocator
{
    /// <summary>Buffers of several blocks; null if there are none in this profile, or on this host.</summary>
    public LargeRuns? Runs { get; set; }

    /// <summary>Allocates 2^order frames as one kmalloc block of a size (___kmalloc_large_node).</summary>
    public unsafe void* LargeAlloc(int order, nuint size, Gfp gfp, int node)
    {
        if ((gfp & GfpMask.SlabBug) != 0)
            gfp = FixFlags(gfp);
        Page* page = Pages.AllocFrozen(gfp | Gfp.Comp, order, node);
        if (page == null)
            return null;

        page->Type = PageType.LargeKmalloc;
        AccountPages(page, 1L << order, SlabFlags.None);
        Watch?.Allocated((nint)Map.AddressOf(page), size, AllocationKind.Large, "kmalloc");
        return Map.AddressOf(page);
    }

    /// <summary>Frees a block from <see cref="LargeAlloc"/>; anything else is refused.</summary>
    public unsafe void LargeFree(void* address)
    {
        Page* page = LargeBlockAt(address);
        if (page == null)
            ThrowNotASlab(address, "kfree");

        int order = PageAllocator.CompoundOrder(page);
        int blocks = LargeRuns.LengthOf(page);

        // Two threads that free one block: the type is taken once.
        SimPoint.Here();
        if (Interlocked.CompareExchange(
                ref System.Runtime.CompilerServices.Unsafe.As<PageType, uint>(ref page->Type),
                (uint)PageType.None,
                (uint)PageType.LargeKmalloc) != (uint)PageType.LargeKmalloc)
        {
            ThrowNotASlab(address, "kfree");
        }

        Watch?.Freed((nint)address);
        if (blocks > 1)
        {
            Runs!.Free(page, blocks);
            return;
        }

        AccountPages(page, -(1L << order), SlabFlags.None);
        Pages.FreeFrozen(page, order);
    }

    /// <summary>The head page of the large block that begins at an address, or null.</summary>
    public unsafe Page* LargeBlockAt(void* address)
    {
        if (!Map.Contains(address) || ((ulong)((byte*)address - Map.RamBase) & (Pfn.PageSize - 1)) != 0)
            return null;

        Page* page = Map.PageAt(address);
        return page->Type == PageType.LargeKmalloc && !LargeRuns.IsBody(page) ? page : null;
    }

    public static unsafe nuint LargeSize(Page* page) =>
        ((nuint)Pfn.PageSize << PageAllocator.CompoundOrder(page)) * (nuint)LargeRuns.LengthOf(page);
}
