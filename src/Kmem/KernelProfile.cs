namespace Kmem;

/// <summary>
/// Which kernel's rules a machine follows. Plain data: the allocators read it at boot, and nothing else decides.
/// </summary>
public sealed record KernelProfile
{
    /// <summary>Linux 6.18, as built by distributions: memory cgroups, transparent huge pages, slab merging.</summary>
    public static KernelProfile Linux618 { get; } = new("linux-6.18");

    /// <summary>
    /// No kernel's rules, but the fastest for a .NET program: every cache has sheaves, as in Linux 7.0, and a thread
    /// allocates from the arrays of its CPU without a lock or an interlocked instruction; kmalloc has caches up to 32
    /// KiB.
    /// </summary>
    public static KernelProfile Native { get; } = new("native")
    {
        MemoryCgroups = false,
        TransparentHugePages = false,
        SlabMerge = false,
        SheavesEverywhere = true,
        KeepFreedAreas = true,
    };

    /// <summary>
    /// As <see cref="Native"/>, but bugs are found and contained rather than served fast: random and encoded free
    /// lists, random free pages, memory cleared when it is allocated and when it is freed, freed objects kept back for
    /// a while and looked at before they are given out again, and each free decided by one interlocked instruction.
    /// Costs nine times as much as the native profile; see docs/misuse.md.
    /// </summary>
    public static KernelProfile Hardened { get; } = Native with
    {
        Name = "hardened",
        KeepFreedAreas = false,
        SlabFreelistRandom = true,
        SlabFreelistHardened = true,
        ShufflePages = true,
        InitOnAlloc = true,
        InitOnFree = true,
        QuarantineBytes = 8 << 20,
        AtomicFree = true,
    };

    private static readonly KernelProfile[] s_all = [Linux618, Native, Hardened];

    private KernelProfile(string name) => Name = name;

    /// <summary>The name by which tools select it, for example <c>linux-6.18</c>.</summary>
    public string Name { get; private init; }

    /// <summary>All profiles there are.</summary>
    public static IReadOnlyList<KernelProfile> All => s_all;

    /// <summary>Memory cgroups are configured: accounted requests have caches of their own (CONFIG_MEMCG).</summary>
    public bool MemoryCgroups { get; init; } = true;

    /// <summary>
    /// Transparent huge pages are on: khugepaged raises min_free_kbytes so that grouping by mobility has room.
    /// </summary>
    public bool TransparentHugePages { get; init; } = true;

    /// <summary>Caches of equal shape share their slabs (CONFIG_SLAB_MERGE_DEFAULT).</summary>
    public bool SlabMerge { get; init; } = true;

    /// <summary>
    /// Every cache has sheaves, of 60, 28, 12 or 4 objects according to their size (Linux 7.0); else only those created
    /// with a sheaf capacity (Linux 6.18).
    /// </summary>
    public bool SheavesEverywhere { get; init; }

    /// <summary>
    /// How processes learn of new entries in the top-level table of the kernel: by a page fault (before Linux 5.8), at
    /// once (5.8), or not at all because the entries exist from boot on (5.9 and later).
    /// </summary>
    public KernelTableSync TableSync { get; init; } = KernelTableSync.Preallocated;

    /// <summary>
    /// vfree keeps areas as they are for the next request of the same size, up to an eighth of the RAM or 128 MiB, and
    /// vmalloc takes large blocks first; else as in Linux 6.18 single frames, given back at once.
    /// </summary>
    public bool KeepFreedAreas { get; init; }

    /// <summary>
    /// Objects of a new slab are handed out in random order (CONFIG_SLAB_FREELIST_RANDOM); see also
    /// <see cref="MachineOptions.SlabFreelistRandom"/>.
    /// </summary>
    public bool SlabFreelistRandom { get; init; }

    /// <summary>
    /// Free pointers are stored encoded (CONFIG_SLAB_FREELIST_HARDENED); see also
    /// <see cref="MachineOptions.SlabFreelistHardened"/>.
    /// </summary>
    public bool SlabFreelistHardened { get; init; }

    /// <summary>
    /// Free blocks of pages are in random order from boot on, and a freed one goes to either end of its list by chance
    /// (page_alloc.shuffle, mm/shuffle.c; there only the largest blocks, here those of every order).
    /// </summary>
    public bool ShufflePages { get; init; }

    /// <summary>
    /// Pages and objects are cleared when they are allocated (init_on_alloc=1, mm/page_alloc.c, mm/slub.c). Objects of
    /// caches with a constructor or <see cref="SlabFlags.TypesafeByRcu"/> are not, nor poisoned ones.
    /// </summary>
    public bool InitOnAlloc { get; init; }

    /// <summary>
    /// Pages and objects are cleared when they are freed, with the same exceptions (init_on_free=1); and an object that
    /// is no longer clear when it is allocated again was written to after it was freed, which is reported in the log.
    /// </summary>
    public bool InitOnFree { get; init; }

    /// <summary>
    /// Bytes of freed objects that are kept back, divided among the CPUs, at most 1/32 of the RAM: an address is not
    /// used again soon, so that stale pointers hit memory that belongs to nobody (KASAN's quarantine, mm/kasan). 0:
    /// none.
    /// </summary>
    public long QuarantineBytes { get; init; }

    /// <summary>
    /// Two threads that free one object at the same instant are told apart: the mark of a live object is taken by an
    /// interlocked instruction. Without it both can pass the check.
    /// </summary>
    public bool AtomicFree { get; init; }

    /// <summary>Null if the profile asks for nothing of this, and objects take the ordinary ways.</summary>
    internal Hardening? Hardening => InitOnAlloc || InitOnFree || QuarantineBytes > 0 || AtomicFree
        ? new Hardening(InitOnAlloc, InitOnFree, QuarantineBytes)
        : null;

    /// <summary>Finds a profile by name, whatever the case; "linux618" and "Linux618" do as well.</summary>
    /// <param name="name">A name.</param>
    /// <returns>The profile, or null.</returns>
    public static KernelProfile? Find(string name)
    {
        static string Simple(string text) => new(text.Where(char.IsLetterOrDigit).Select(char.ToLowerInvariant).ToArray());
        return s_all.FirstOrDefault(profile => Simple(profile.Name) == Simple(name));
    }

    /// <summary>The profile's name.</summary>
    /// <returns><see cref="Name"/>.</returns>
    public override string ToString() => Name;
}
