namespace Kmem.Tests;

/// <summary>Keeps what the machine's tracepoints say.</summary>
internal sealed class TraceRecorder : ITrace
{
    public List<(Pfn Pfn, int Order, Gfp Gfp)> PageAllocs { get; } = [];

    public List<(Pfn Pfn, int Order)> PageFrees { get; } = [];

    public List<(string Cache, nuint Requested, nuint Allocated, Gfp Gfp)> Allocs { get; } = [];

    public void Kmalloc(ulong address, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node) =>
        Allocs.Add(("kmalloc", bytesRequested, bytesAllocated, gfp));

    public void Kfree(ulong address)
    {
    }

    public void KmemCacheAlloc(
        ulong address, string cache, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node) =>
        Allocs.Add((cache, bytesRequested, bytesAllocated, gfp));

    public void KmemCacheFree(ulong address, string cache)
    {
    }

    public void MmPageAlloc(Pfn pfn, int order, Gfp gfp, Migratetype migratetype) => PageAllocs.Add((pfn, order, gfp));

    public void MmPageFree(Pfn pfn, int order) => PageFrees.Add((pfn, order));

    public void MmPageAllocZoneLocked(Pfn pfn, int order, Migratetype migratetype, bool percpuRefill)
    {
    }

    public void MmPagePcpuDrain(Pfn pfn, int order, Migratetype migratetype)
    {
    }

    public void MmPageAllocExtfrag(in ExtfragEvent fallback)
    {
    }
}
