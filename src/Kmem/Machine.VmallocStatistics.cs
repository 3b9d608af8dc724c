namespace Kmem;

/// <summary>What the vmalloc space cost and what was saved, since it was first used.</summary>
public readonly record struct VmallocStatistics
{
    /// <summary>Pages whose addresses are freed and wait for a purge (nr_lazy).</summary>
    public ulong LazyPages { get; init; }

    /// <summary>Above this many a purge begins (lazy_max_pages).</summary>
    public ulong LazyMax { get; init; }

    /// <summary>Address ranges in the per-node pools, ready for the next request of their size.</summary>
    public long PooledAreas { get; init; }

    /// <summary>Freed areas whose addresses purges made usable again.</summary>
    public long AreasPurged { get; init; }

    /// <summary>Flushes of the processors' translations (flush_tlb_kernel_range) that this took.</summary>
    public long Flushes { get; init; }

    /// <summary>
    /// What purging late saves: so many flushes more there would have been if each vfree flushed, each with an
    /// interrupt to every other CPU.
    /// </summary>
    public long FlushesSaved => Math.Max(0, AreasPurged - Flushes);

    /// <summary>
    /// Freed areas that are kept with frames and mappings (<see cref="KernelProfile.KeepFreedAreas"/>).
    /// </summary>
    public int KeptAreas { get; init; }

    /// <summary>Pages of those; vmallocinfo shows them as unpurged, meminfo as used.</summary>
    public ulong KeptPages { get; init; }

    /// <summary>Requests that were served by a kept area.</summary>
    public long Reused { get; init; }

    /// <summary>Mappings of the host, of which vm.max_map_count allows a limited number.</summary>
    public int HostMappings { get; init; }

    /// <summary>
    /// Page faults that fetched an entry of the top-level table (<see cref="KernelTableSync.OnFault"/>).
    /// </summary>
    public long VmallocFaults { get; init; }

    /// <summary>Calls of arch_sync_kernel_mappings.</summary>
    public long SyncCalls { get; init; }

    /// <summary>Entries that those calls copied into processes.</summary>
    public long SyncedEntries { get; init; }
}

/// <content>Statistics of the vmalloc space.</content>
public sealed partial class Machine
{
    private VmallocOptions VmallocOptionsOfProfile => new()
    {
        Sync = Options.Profile.TableSync,
        KeepFreedAreas = Options.Profile.KeepFreedAreas,
    };

    /// <summary>What the vmalloc space cost and what was saved; all 0 if it was not used yet.</summary>
    public VmallocStatistics VmallocStatistics
    {
        get
        {
            if (VmallocIfUsed is not { } vmalloc)
                return default;

            (long flushes, long areas) = vmalloc.Purged;
            return new VmallocStatistics
            {
                LazyPages = vmalloc.Vmap.LazyPages,
                LazyMax = vmalloc.Vmap.LazyMax,
                PooledAreas = vmalloc.Vmap.CountPooled(),
                AreasPurged = areas,
                Flushes = flushes,
                KeptAreas = vmalloc.Kept.Areas,
                KeptPages = vmalloc.Kept.Pages,
                Reused = vmalloc.Reused,
                HostMappings = vmalloc.MapCount,
                VmallocFaults = vmalloc.Tables.VmallocFaults,
                SyncCalls = vmalloc.Tables.SyncCalls,
                SyncedEntries = vmalloc.Tables.SyncedEntries,
            };
        }
    }
}
