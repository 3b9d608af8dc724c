namespace Kmem;

/// <summary>
/// Hears of what should be rare in the page allocator. Called without locks and outside sections, on the thread that
/// allocates; it may allocate itself.
/// </summary>
internal interface IRareEvents
{
    /// <summary>No zone was above its LOW watermark for a request.</summary>
    void SlowPath(int order, Gfp gfp);

    /// <summary>Blocks were taken from another migrate type's lists since the last call.</summary>
    void Fallback(int node, ZoneType zone, long count);

    /// <summary>A request failed.</summary>
    void Failure(int order, Gfp gfp);
}
