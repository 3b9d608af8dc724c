namespace Kmem;

/// <summary>An area that is busy, lazily freed or in a pool.</summary>
/// <param name="Start">First byte.</param>
/// <param name="End">One past the last byte.</param>
/// <param name="Flags">The flag word: see <see cref="VmapArea"/>.</param>
/// <param name="Vm">Pointer to its vm_struct, or 0.</param>
/// <param name="Object">Address of the object that describes it; 0 if unknown.</param>
internal readonly record struct VmapAreaState(ulong Start, ulong End, ulong Flags = 0, nint Vm = 0, ulong Object = 0)
{
    /// <summary>What the vm_struct says, for a state that outlives its machine; null if there is none.</summary>
    public VmStructState? Struct { get; init; }
}

/// <summary>What lies behind an area. A recording tells the first four; the rest is in a machine's own state.</summary>
/// <param name="Address">First byte.</param>
/// <param name="Size">Bytes, with the guard page.</param>
/// <param name="Flags">VM_*.</param>
/// <param name="PageCount">Pages that belong to it.</param>
internal sealed record VmStructState(ulong Address, ulong Size, ulong Flags, uint PageCount)
{
    /// <summary>Address of the vm_struct itself; 0 if unknown.</summary>
    public ulong Object { get; init; }

    /// <summary>Address of its array of pages, of the direct map or of the vmalloc space; 0 if it has none.</summary>
    public ulong PageArray { get; init; }

    public uint PageOrder { get; init; }

    public ulong PhysicalAddress { get; init; }

    public ulong Caller { get; init; }

    public ulong RequestedSize { get; init; }

    /// <summary>The frames in the array.</summary>
    public ulong[] Pages { get; init; } = [];
}

/// <summary>A block of the free tree.</summary>
/// <param name="Start">First byte.</param>
/// <param name="End">One past the last byte.</param>
/// <param name="Parent">Start of the parent in the tree; null for the root.</param>
/// <param name="IsBlack">Its colour.</param>
/// <param name="Largest">The largest block of its subtree, in bytes; not read by a restore, which computes it.</param>
/// <param name="Object">Address of the object that describes it; 0 if unknown.</param>
internal readonly record struct VmapBlockState(
    ulong Start, ulong End, ulong? Parent = null, bool IsBlack = false, ulong Largest = 0, ulong Object = 0);

/// <summary>One vmap node.</summary>
internal sealed class VmapNodeState
{
    public List<VmapAreaState> Busy { get; init; } = [];

    public List<VmapAreaState> Lazy { get; init; } = [];

    /// <summary>Pools by size in pages; each list with the area first that is handed out first.</summary>
    public SortedDictionary<int, List<VmapAreaState>> Pools { get; init; } = [];
}

/// <summary>The whole state of a <see cref="VmapAllocator"/>, as plain data.</summary>
internal sealed class VmapState
{
    /// <summary>
    /// The free tree: in order of address, with parents and colours; or, if <see cref="ShapeKnown"/> is false, blocks
    /// to be inserted one after the other.
    /// </summary>
    public List<VmapBlockState> Free { get; init; } = [];

    public bool ShapeKnown { get; init; } = true;

    public VmapNodeState[] Nodes { get; init; } = [];

    /// <summary>Pages that are lazily free (vmap_lazy_nr), as counted; a restore counts them itself.</summary>
    public ulong LazyPages { get; init; }

    /// <summary>The spare object of each CPU; 0 for none, any other number where its address is unknown.</summary>
    public ulong[] Spare { get; init; } = [];
}
