namespace Kmem;

/// <summary>What a machine's state is spread over.</summary>
internal sealed record MachineParts(
    int Cpus,
    int MinFreeKbytes,
    int WatermarkBoostFactor,
    IReadOnlyList<Node> NodeList,
    PageAllocator Pages,
    PageblockMap Blocks,
    MemMap Map,
    SlabAllocator Slabs,
    KmallocAllocator KmallocCaches)
{
    /// <summary>The machine's vmalloc, if it has been used.</summary>
    public VmallocAllocator? VmallocIfUsed { get; init; }

    /// <summary>The addresses of the vmalloc space, also without a vmalloc of its own.</summary>
    public VmapAllocator? VmapSpace { get; init; }
}
