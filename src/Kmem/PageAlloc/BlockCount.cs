namespace Kmem;

/// <summary>
/// How often something happened to blocks of a zone, and to which block last. Written under the zone's lock, read
/// without: then the block may belong to another time than the count.
/// </summary>
internal struct BlockCount
{
    public long Count;
    public ulong Pfn;
    public int Order;

    /// <summary>The order of the larger block.</summary>
    public int LargerOrder;

    public void Add(ulong pfn, int order, int largerOrder)
    {
        Count++;
        Pfn = pfn;
        Order = order;
        LargerOrder = largerOrder;
    }
}
