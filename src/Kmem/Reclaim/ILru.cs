namespace Kmem;

/// <summary>
/// Pages whose content can go elsewhere: what the kernel keeps on its LRU lists. Reclaim looks at them before it calls
/// shrinkers.
/// </summary>
internal interface ILru
{
    /// <summary>Pages of a node that are resident and could go.</summary>
    long Evictable(int node);

    /// <summary>
    /// Looks at pages of a node, coldest first, and frees those that may go.
    /// </summary>
    /// <param name="node">The node.</param>
    /// <param name="pages">How many to look at.</param>
    /// <param name="gfp">What may be done for it: without __GFP_IO nothing is written.</param>
    /// <returns>Pages looked at, and frames freed.</returns>
    (long Scanned, long Freed) Shrink(int node, long pages, Gfp gfp);
}
