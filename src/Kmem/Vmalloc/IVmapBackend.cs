namespace Kmem;

/// <summary>
/// What lies behind the addresses: whoever maps pages there. Called with the purge lock held, no spinlock.
/// </summary>
internal interface IVmapBackend
{
    /// <summary>
    /// The areas given are about to be reused: after this nothing may be reachable through their addresses any more
    /// (flush_tlb_kernel_range).
    /// </summary>
    /// <param name="start">Lowest address of them all.</param>
    /// <param name="end">End of the highest one; in use areas lie in between.</param>
    /// <param name="areas">The areas; empty if only addresses of a vm_map_ram block became stale.</param>
    void Flush(ulong start, ulong end, IReadOnlyList<VmapRange> areas);

    /// <summary>Lazily frees the vm_map_ram blocks of which nothing is in use (purge_fragmented_blocks).</summary>
    /// <param name="force">Also those that still have much room.</param>
    /// <param name="start">Widened to cover what was unmapped in other blocks since the last call.</param>
    /// <param name="end">As <paramref name="start"/>.</param>
    /// <returns>Whether there was anything to widen for.</returns>
    bool PurgeFragmentedBlocks(bool force, ref ulong start, ref ulong end);
}
