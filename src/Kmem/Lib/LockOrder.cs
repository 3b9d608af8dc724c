using System.Diagnostics;

namespace Kmem;

/// <summary>
/// The order in which locks may be taken: a thread that holds a lock may only take locks of a higher rank. Checked in
/// debug builds; in release builds this type costs nothing.
/// </summary>
internal enum LockRank : byte
{
    /// <summary>The list of caches, creation and destruction (slab_mutex).</summary>
    SlabMutex = 1,

    /// <summary>The pools of a vmap node (pool_lock).</summary>
    VmapPool = 2,

    /// <summary>The busy tree of a vmap node (vn->busy.lock).</summary>
    VmapBusy = 3,

    /// <summary>The lazy tree of a vmap node (vn->lazy.lock).</summary>
    VmapLazy = 4,

    /// <summary>Free address space (free_vmap_area_lock); area objects are allocated and freed under it.</summary>
    VmapFree = 5,

    /// <summary>Which thread owns which CPU.</summary>
    CpuBinding = 6,

    /// <summary>The state of one CPU, when threads share it or another CPU works on it.</summary>
    CpuSection = 7,

    /// <summary>A node's full and empty sheaves of a cache.</summary>
    Barn = 8,

    /// <summary>The partial list of a node of a cache (list_lock).</summary>
    NodeList = 9,

    /// <summary>The free lists of a zone (zone->lock).</summary>
    Zone = 10,
}

/// <summary>Checks <see cref="LockRank"/> per thread, in debug builds.</summary>
internal static class LockOrder
{
    [ThreadStatic]
    private static ulong t_held;    // one bit per rank; two locks of one rank are never held together

    [Conditional("DEBUG")]
    public static void Acquire(LockRank rank)
    {
        ulong notBelow = ~0UL << (int)rank;
        if ((t_held & notBelow) != 0)
            throw new KernelBugException($"possible deadlock: {rank} taken while 0x{t_held:x} is held");
        t_held |= 1UL << (int)rank;
    }

    [Conditional("DEBUG")]
    public static void Release(LockRank rank) => t_held &= ~(1UL << (int)rank);

    /// <summary>
    /// This thread broke off in the middle of an operation and opens the locks that it held. Only a replay of foreign
    /// recordings does that: it must go on after mistakes.
    /// </summary>
    [Conditional("DEBUG")]
    public static void Break() => t_held = 0;

    /// <summary>Fails if this thread holds any lock: callbacks into foreign code may only run without.</summary>
    [Conditional("DEBUG")]
    public static void AssertNoneHeld()
    {
        if (t_held != 0)
            throw new KernelBugException($"callback while locks are held: 0x{t_held:x}");
    }
}
