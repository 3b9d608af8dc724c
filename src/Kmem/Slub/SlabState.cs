using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// The state of a slab in one 64-bit word, so that one compare-and-swap changes all of it. The kernel swaps two words,
/// a pointer and counters; here the free list's head is an object index, and a version makes every change visible.
/// <code>
///   bits  0–15   FreeIndex   first object of the slab's own free list, 0xffff if it is empty
///   bits 16–31   InUse       objects not on that list: allocated, or on the CPU's free list
///   bits 32–46   Objects     objects in the slab
///   bit  47      Frozen      the slab is some CPU's current slab
///   bits 48–63   Version     raised by every change (no A-B-A)
/// </code>
/// </summary>
internal readonly record struct SlabState(ulong Word)
{
    public const int NoFreeObject = 0xffff;

    private const int InUseShift = 16;
    private const int ObjectsShift = 32;
    private const int FrozenShift = 47;
    private const int VersionShift = 48;
    private const ulong ObjectsMask = 0x7fff;

    public SlabState(int freeIndex, int inUse, int objects, bool frozen)
        : this((uint)freeIndex
            | ((ulong)(uint)inUse << InUseShift)
            | ((ulong)(uint)objects << ObjectsShift)
            | ((frozen ? 1UL : 0) << FrozenShift))
    {
    }

    public int FreeIndex => (int)(Word & 0xffff);

    public bool HasFree => FreeIndex != NoFreeObject;

    public int InUse => (int)((Word >> InUseShift) & 0xffff);

    public int Objects => (int)((Word >> ObjectsShift) & ObjectsMask);

    public bool Frozen => ((Word >> FrozenShift) & 1) != 0;

    public int Free => Objects - InUse;

    /// <summary>The next state: same number of objects, next version.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public SlabState With(int freeIndex, int inUse, bool frozen) =>
        new(new SlabState(freeIndex, inUse, Objects, frozen).Word
            | (((Word >> VersionShift) + 1) << VersionShift));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe SlabState Read(Page* slab) => new(Volatile.Read(ref slab->SlabState));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe bool TryChange(Page* slab, SlabState from, SlabState to)
    {
        SimPoint.Here();
        return Interlocked.CompareExchange(ref slab->SlabState, to.Word, from.Word) == from.Word;
    }
}
