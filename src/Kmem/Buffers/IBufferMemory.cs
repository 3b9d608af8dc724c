namespace Kmem;

/// <summary>What the .NET floor stands on: the machine below it, as far as this layer may see it.</summary>
internal interface IBufferMemory
{
    PageAllocator Pages { get; }

    MemMap Map { get; }

    /// <summary>Why frames cannot be mapped a second time here; null if they can.</summary>
    string? WhyNoWindow { get; }

    /// <summary>vmalloc, started if need be.</summary>
    /// <exception cref="NotSupportedException">See <see cref="WhyNoWindow"/>.</exception>
    VmallocAllocator Vmalloc { get; }

    /// <summary>Contiguous memory if there is some, else memory from vmalloc, of any size; null on failure.</summary>
    unsafe void* Alloc(nuint bytes, Gfp gfp);

    /// <summary>Frees what <see cref="Alloc"/> gave.</summary>
    unsafe void Free(void* memory);
}

/// <summary>Gets the memory of an owner back when nobody uses it any more.</summary>
internal interface IBufferRelease
{
    /// <summary>Called once for each owner, on any thread; not when the machine is gone.</summary>
    unsafe void Release(void* memory, nuint bytes);
}
