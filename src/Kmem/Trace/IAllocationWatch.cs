namespace Kmem;

/// <summary>What was allocated.</summary>
internal enum AllocationKind : byte
{
    /// <summary>An object of a cache, or of kmalloc.</summary>
    Object,

    /// <summary>A block of kmalloc that is too large for a cache.</summary>
    Large,

    /// <summary>An area of vmalloc.</summary>
    Area,
}

/// <summary>
/// Sees everything that the allocators give out and take back, on the thread that asks, and may look at its stack. The
/// tracepoints tell less: not of bulk frees, nor of frees that are refused.
/// </summary>
/// <remarks>Must not allocate from the same machine, and must not throw. A free may be told inside a section.</remarks>
internal interface IAllocationWatch
{
    /// <summary>A user's object; <paramref name="source"/> names its cache.</summary>
    void Allocated(nint address, nuint bytes, AllocationKind kind, string source);

    /// <summary>The last one told of was for the allocators' own use, or a managed object holds it.</summary>
    void Disown(nint address);

    /// <summary>It has another size now, where it is.</summary>
    void Resized(nint address, nuint bytes);

    /// <summary>It is being freed: its address may be another's when this returns.</summary>
    void Freed(nint address);

    /// <summary>A block of frames, for users or for the allocators themselves.</summary>
    void PagesAllocated(ulong pfn, int order, Gfp gfp);

    /// <summary>A block of frames, or a part of one, is being freed.</summary>
    void PagesFreed(ulong pfn, int order);
}
