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
    /// allocates from the arrays of its CPU without a lock or an interlocked instruction.
    /// </summary>
    public static KernelProfile Native { get; } = new("native")
    {
        MemoryCgroups = false,
        TransparentHugePages = false,
        SlabMerge = false,
        SheavesEverywhere = true,
        KeepFreedAreas = true,
    };

    private static readonly KernelProfile[] s_all = [Linux618, Native];

    private KernelProfile(string name) => Name = name;

    /// <summary>The name by which tools select it, for example <c>linux-6.18</c>.</summary>
    public string Name { get; }

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
