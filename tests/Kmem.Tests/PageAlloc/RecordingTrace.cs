namespace Kmem.Tests;

/// <summary>Keeps the page events of a machine or zone, as text, in order.</summary>
internal sealed class RecordingTrace : ITrace
{
    public List<string> Events { get; } = [];

    /// <summary>What mm_page_alloc reported, failures included.</summary>
    public List<(Pfn Pfn, int Order, Gfp Gfp, Migratetype Type)> Allocations { get; } = [];

    public List<ExtfragEvent> Fallbacks { get; } = [];

    public static string Taken(ulong pfn, int order, Migratetype type, bool refill) =>
        $"take {pfn} order {order} {type}{(refill ? " refill" : "")}";

    public static string Drained(ulong pfn, int order, Migratetype type) => $"drain {pfn} order {order} {type}";

    public static string Fallback(
        ulong pfn, int order, int found, Migratetype wanted, Migratetype from, bool ownership) =>
        $"extfrag {pfn} order {order} of {found} {wanted} from {from}{(ownership ? " owned" : "")}";

    public static string Freed(ulong pfn, int order) => $"free {pfn} order {order}";

    public void Kmalloc(ulong address, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node)
    {
    }

    public void Kfree(ulong address)
    {
    }

    public void KmemCacheAlloc(
        ulong address, string cache, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node)
    {
    }

    public void KmemCacheFree(ulong address, string cache)
    {
    }

    public void MmPageAlloc(Pfn pfn, int order, Gfp gfp, Migratetype migratetype) =>
        Allocations.Add((pfn, order, gfp, migratetype));

    public void MmPageFree(Pfn pfn, int order) => Events.Add(Freed(pfn.Value, order));

    public void MmPageAllocZoneLocked(Pfn pfn, int order, Migratetype migratetype, bool percpuRefill) =>
        Events.Add(Taken(pfn.Value, order, migratetype, percpuRefill));

    public void MmPagePcpuDrain(Pfn pfn, int order, Migratetype migratetype) =>
        Events.Add(Drained(pfn.Value, order, migratetype));

    public void MmPageAllocExtfrag(in ExtfragEvent fallback)
    {
        Fallbacks.Add(fallback);
        Events.Add(Fallback(
            fallback.Pfn.Value,
            fallback.AllocOrder,
            fallback.FallbackOrder,
            fallback.AllocMigratetype,
            fallback.FallbackMigratetype,
            fallback.ChangeOwnership));
    }
}
