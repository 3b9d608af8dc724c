namespace Kmem;

/// <summary>
/// What the page allocator calls when memory is short. The base class has nothing to reclaim: no daemon wakes, nothing
/// can be freed, nobody is killed. All are called without locks, with PF_MEMALLOC set where the kernel sets it.
/// </summary>
internal class ReclaimHooks
{
    /// <summary>Whether a request that found nothing empties the per-CPU lists of all CPUs and looks again.</summary>
    public virtual bool DrainsOnFailure => true;

    /// <summary>Whether a request that must not fail waits for others to free; else it fails.</summary>
    public virtual bool MayWait => true;

    /// <summary>No zone of the node was above LOW for a request (wakeup_kswapd).</summary>
    public virtual void WakeKswapd(Node node, int order, ZoneType highest)
    {
    }

    /// <summary>Frees frames on behalf of the caller (try_to_free_pages).</summary>
    /// <param name="order">What the caller wants.</param>
    /// <param name="gfp">Its flags.</param>
    /// <param name="zones">The zones that it may use, best first.</param>
    /// <returns>Frames freed; 0 means no progress.</returns>
    public virtual long DirectReclaim(int order, Gfp gfp, Zone[] zones) => 0;

    /// <summary>Makes a block of the order by moving frames (try_to_compact_pages).</summary>
    public virtual CompactResult DirectCompact(int order, Gfp gfp, CompactPriority priority, Zone[] zones) =>
        CompactResult.Skipped;

    /// <summary>Frames of a node that reclaim could free in principle.</summary>
    public virtual long ReclaimableFrames(Node node) => 0;

    /// <summary>
    /// Frames that came back are reason enough to try again, wherever they came from. The kernel counts on user pages
    /// only, and calls the killer where shrinkers would have had more.
    /// </summary>
    public virtual bool RetriesOnProgress => false;

    /// <summary>Nothing else helped (out_of_memory).</summary>
    /// <returns>Whether memory was freed or will be soon, so that trying again makes sense.</returns>
    public virtual bool OutOfMemory(int order, Gfp gfp) => false;
}

/// <summary>How a direct compaction ended (enum compact_result, as far as the allocator looks).</summary>
internal enum CompactResult
{
    Skipped,
    Deferred,
    Complete,
    Success,
}

/// <summary>How hard a direct compaction tries (enum compact_priority).</summary>
internal enum CompactPriority
{
    SyncFull,
    SyncLight,
    Async,
}
