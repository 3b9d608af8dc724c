namespace Kmem;

/// <summary>An area that is busy, lazily freed or in a pool.</summary>
/// <param name="Start">First byte.</param>
/// <param name="End">One past the last byte.</param>
/// <param name="Flags">The flag word: see <see cref="VmapArea"/>.</param>
/// <param name="Vm">Pointer to its vm_struct, or 0.</param>
/// <param name="Object">Address of the object that describes it; 0 if unknown.</param>
internal readonly record struct VmapAreaState(ulong Start, ulong End, ulong Flags = 0, nint Vm = 0, ulong Object = 0);

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

    /// <summary>The spare object of each CPU; 0 for none, any other number where its address is unknown.</summary>
    public ulong[] Spare { get; init; } = [];
}
