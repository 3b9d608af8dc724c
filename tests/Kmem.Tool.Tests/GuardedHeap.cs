using System.Runtime.InteropServices;
using Kmem.Tool.Bench;

namespace Kmem.Tool.Tests;

/// <summary>What went through a <see cref="GuardedHeap"/>.</summary>
internal sealed class HeapCounts
{
    internal long Allocs;
    internal long Frees;
    internal long Damaged;
}

/// <summary>
/// An allocator that counts, keeps the size before an object and a guard behind it, and looks at both.
/// </summary>
internal readonly struct GuardedHeap(HeapCounts counts) : IHeap
{
    private const ulong Guard = 0xdead_beef_0bad_f00d;
    private const nuint Head = 16;

    public unsafe nint Alloc(nuint size)
    {
        Interlocked.Increment(ref counts.Allocs);
        var block = (byte*)NativeMemory.Alloc(Head + size + sizeof(ulong));
        *(nuint*)block = size;
        *(ulong*)(block + sizeof(nuint)) = Guard;
        Marshal.WriteInt64((nint)(block + Head + size), unchecked((long)Guard));
        return (nint)(block + Head);
    }

    public unsafe void Free(nint obj)
    {
        Interlocked.Increment(ref counts.Frees);
        byte* block = (byte*)obj - Head;
        ulong behind = (ulong)Marshal.ReadInt64((nint)(block + Head + *(nuint*)block));
        if (*(ulong*)(block + sizeof(nuint)) != Guard || behind != Guard)
        {
            // A second free of the same object comes here, too: its head is overwritten below.
            Interlocked.Increment(ref counts.Damaged);
            return;
        }
        *(ulong*)(block + sizeof(nuint)) = 0;
        NativeMemory.Free(block);
    }

    public nint AllocAny(nuint size) => Alloc(size);

    public void FreeAny(nint obj) => Free(obj);

    public bool IsNone(nint obj) => obj == 0;
}

/// <summary>A broken allocator: every object begins one word behind the one before.</summary>
internal readonly struct OverlappingHeap(nint memory, int[] given) : IHeap
{
    public nint Alloc(nuint size) => memory + (sizeof(ulong) * given[0]++);

    public void Free(nint obj)
    {
    }

    public nint AllocAny(nuint size) => Alloc(size);

    public void FreeAny(nint obj) => Free(obj);

    public bool IsNone(nint obj) => obj == 0;
}
