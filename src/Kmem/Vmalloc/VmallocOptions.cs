namespace Kmem;

/// <summary>What a <see cref="VmallocAllocator"/> is made for.</summary>
internal sealed record VmallocOptions
{
    /// <summary>How many mappings of the host it may use; null: it shares the budget of the process.</summary>
    public MapBudget? Budget { get; init; }

    /// <summary>How address spaces learn of new top-level entries.</summary>
    public KernelTableSync Sync { get; init; } = KernelTableSync.Preallocated;

    /// <summary>
    /// Not as in the kernel, but fast in a process: freed areas are kept for the next request of their size, and new
    /// ones are made of the largest blocks, which take one call of the host each.
    /// </summary>
    public bool KeepFreedAreas { get; init; }
}
