using System.Buffers;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem.Tool.Bench;

/// <summary>
/// An allocator as the loops see it. A struct behind a type parameter, so that every loop is compiled once for each
/// allocator and its calls are inlined or direct: what is compared is allocators, not ways of calling them.
/// </summary>
/// <typeparam name="THandle">What stands for an object: an address, or an array.</typeparam>
internal interface IAllocator<THandle>
{
    /// <summary>Allocates; content undefined. There must be memory: the loops use what they get.</summary>
    THandle Alloc(nuint size);

    /// <summary>Frees; not to be called with no object.</summary>
    void Free(THandle obj);

    /// <summary>Whether a slot that was never filled holds this.</summary>
    bool IsNone(THandle obj);
}

/// <summary>An allocator that deals in addresses, of any size.</summary>
internal interface IHeap : IAllocator<nint>
{
    /// <summary>As <see cref="IAllocator{THandle}.Alloc"/>, for sizes that may be many megabytes.</summary>
    nint AllocAny(nuint size);

    /// <summary>Frees what either way of allocating gave.</summary>
    void FreeAny(nint obj);
}

/// <summary><c>kmem</c>: kmalloc and kfree, for large sizes kvmalloc and kvfree.</summary>
internal readonly struct KmallocHeap(Machine machine) : IHeap
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe nint Alloc(nuint size) => (nint)machine.Kmalloc(size, Gfp.Kernel);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void Free(nint obj) => machine.Kfree((void*)obj);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe nint AllocAny(nuint size) =>
        size <= Machine.KmallocMaxSize / 4 ? Alloc(size) : (nint)machine.Kvmalloc(size, Gfp.Kernel);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void FreeAny(nint obj) => machine.Kvfree((void*)obj);

    public bool IsNone(nint obj) => obj == 0;
}

/// <summary><c>kmem-cache</c>: a cache of objects of one size, whatever size is asked for.</summary>
internal readonly struct CacheHeap(KmemCache cache) : IAllocator<nint>
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe nint Alloc(nuint size) => (nint)cache.Alloc(Gfp.Kernel);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void Free(nint obj) => cache.Free((void*)obj);

    public bool IsNone(nint obj) => obj == 0;
}

/// <summary><c>NativeMemory</c>: what .NET offers.</summary>
internal readonly struct NativeMemoryHeap : IHeap
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe nint Alloc(nuint size) => (nint)NativeMemory.Alloc(size);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void Free(nint obj) => NativeMemory.Free((void*)obj);

    public nint AllocAny(nuint size) => Alloc(size);

    public void FreeAny(nint obj) => Free(obj);

    public bool IsNone(nint obj) => obj == 0;
}

/// <summary><c>ArrayPool</c>: the shared pool of arrays; what it lends is an array of at least the size.</summary>
internal readonly struct ArrayPoolHeap : IAllocator<ArrayHandle>
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ArrayHandle Alloc(nuint size) => new(ArrayPool<byte>.Shared.Rent((int)size));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Free(ArrayHandle obj) => ArrayPool<byte>.Shared.Return(obj.Array);

    public bool IsNone(ArrayHandle obj) => obj.Array is null;
}

/// <summary>An array as a struct: loops over references would be shared between types, and slower.</summary>
internal readonly struct ArrayHandle(byte[] array)
{
    public byte[] Array { get; } = array;
}

/// <summary>
/// malloc and free of a C library, called through addresses without leaving the garbage collector's cooperative mode:
/// the cheapest call that C# has. It delays a collection while the callee asks the system for memory.
/// </summary>
internal readonly unsafe struct NativeHeap(NativeLibraryPeer peer) : IHeap
{
    private readonly delegate* unmanaged[SuppressGCTransition]<nuint, nint> _malloc =
        (delegate* unmanaged[SuppressGCTransition]<nuint, nint>)peer.Malloc;

    private readonly delegate* unmanaged[SuppressGCTransition]<nint, void> _free =
        (delegate* unmanaged[SuppressGCTransition]<nint, void>)peer.Free;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public nint Alloc(nuint size) => _malloc(size);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Free(nint obj) => _free(obj);

    public nint AllocAny(nuint size) => Alloc(size);

    public void FreeAny(nint obj) => Free(obj);

    public bool IsNone(nint obj) => obj == 0;
}

/// <summary><c>kmem</c> of the vmalloc workloads.</summary>
internal readonly struct VmallocHeap(Machine machine) : IAllocator<nint>
{
    public unsafe nint Alloc(nuint size) => (nint)machine.Vmalloc(size);

    public unsafe void Free(nint obj) => machine.Vfree((void*)obj);

    public bool IsNone(nint obj) => obj == 0;
}

/// <summary><c>mmap</c>: fresh pages from the system and back to it; all areas of one size.</summary>
internal readonly struct MmapHeap(nuint size) : IAllocator<nint>
{
    public nint Alloc(nuint _) => LibC.Mmap(0, size, LibC.ReadWrite, LibC.PrivateAnonymous, -1, 0);

    public void Free(nint obj)
    {
        if (LibC.Munmap(obj, size) != 0) throw new InvalidOperationException("munmap failed");
    }

    public bool IsNone(nint obj) => obj is 0 or -1;
}

/// <summary><c>AlignedAlloc</c>: whole pages from <see cref="NativeMemory"/>.</summary>
internal readonly struct AlignedAllocHeap : IAllocator<nint>
{
    public unsafe nint Alloc(nuint size) => (nint)NativeMemory.AlignedAlloc(size, 4096);

    public unsafe void Free(nint obj) => NativeMemory.AlignedFree((void*)obj);

    public bool IsNone(nint obj) => obj == 0;
}

/// <summary>The system calls that Kmem's vmalloc is compared with.</summary>
internal static partial class LibC
{
    internal const int ReadWrite = 3;
    internal const int PrivateAnonymous = 0x22;

    [LibraryImport("libc", EntryPoint = "mmap")]
    internal static partial nint Mmap(nint address, nuint length, int protection, int flags, int file, nint offset);

    [LibraryImport("libc", EntryPoint = "munmap")]
    internal static partial int Munmap(nint address, nuint length);
}
