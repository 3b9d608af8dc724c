namespace Kmem;

/// <summary>What a page frame is used for: <c>struct page</c> in words (dump_page, mm/debug.c, Linux 6.18).</summary>
/// <param name="Frame">Its number.</param>
/// <param name="Node">Its NUMA node.</param>
/// <param name="Zone">The name of its zone.</param>
/// <param name="Use">For example <c>free</c>, <c>allocated</c>, <c>page table</c>, <c>slab kmalloc-64</c>.</param>
/// <param name="Order">The order of the block that it is part of: free, allocated, or a slab.</param>
/// <param name="References">How many hold it; 0 for a free frame, and for blocks that are "frozen".</param>
/// <param name="Flags">The kernel's names of the flags that are set, such as <c>locked</c>, ascending by bit.</param>
public sealed record PageFrameInfo(
    Pfn Frame, int Node, string Zone, string Use, int Order, int References, IReadOnlyList<string> Flags);
