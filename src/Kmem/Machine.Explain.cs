namespace Kmem;

/// <content>Reasons as values.</content>
public sealed partial class Machine
{
    private EventMemory? _memory;

    /// <summary>What the machine remembers; null unless somebody asked for it.</summary>
    internal EventMemory? Memory => Volatile.Read(ref _memory);

    /// <summary>
    /// Tells everything about an address: zone, pageblock, frame, slab, object and offset, mapping, and, as far as the
    /// machine remembers (<see cref="MachineOptions.RememberEvents"/>), its life and why it lies there.
    /// </summary>
    /// <param name="address">A kernel's address: of the direct map, of the vmalloc space, of a page descriptor, or any
    /// other.</param>
    /// <returns>The values and a sentence. Reads only. While others are at work each value shows some moment.</returns>
    public Explanation Explain(VirtAddr address) => ExplainWith(address, null);

    /// <summary>As <see cref="Explain(VirtAddr)"/>, for a pointer.</summary>
    /// <param name="pointer">A pointer into the machine's RAM, or into memory from vmalloc.</param>
    /// <returns>The values and a sentence.</returns>
    /// <exception cref="ArgumentException">The pointer is not memory of this machine.</exception>
    public unsafe Explanation Explain(void* pointer) => Explain(KernelAddressOf(pointer));

    /// <summary>
    /// Tells what a request for pages would find now: which zone lacks what, how free memory is cut up, and for a
    /// request that fails which objects keep the blocks that it needs, ranked by how few they are. Nothing is
    /// allocated.
    /// </summary>
    /// <param name="gfp">The flags of the request.</param>
    /// <param name="order">0 to 10: 2^order frames.</param>
    /// <param name="node">Preferred node, or -1 for the CPU's own.</param>
    /// <returns>The values and a sentence. Looks at every frame of the zones if the request would fail. No other thread
    /// may be at work on the machine.</returns>
    /// <exception cref="ArgumentException">The order is out of range, there is no such node, or the flags name zones or
    /// migrate types that exclude each other.</exception>
    public RequestExplanation ExplainRequest(Gfp gfp, int order, int node = -1)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(order);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(order, PageOrder.Max);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(node, Nodes);
        if (!gfp.HasValidZone() || !gfp.HasValidMobility())
            throw new ArgumentException($"{gfp.ToKernelString()} names zones or types that exclude each other",
                nameof(gfp));
        return new RequestExplainer(_pages, _slabs, _blocks, _map, Memory).Explain(gfp, order, Math.Max(node, -1));
    }

    /// <summary>As <see cref="Explain(VirtAddr)"/>, by page tables, or a memory, that are not the machine's
    /// own.</summary>
    internal Explanation ExplainWith(VirtAddr address, Func<ulong, PageWalk>? walk, EventMemory? memory = null)
    {
        var parts = new ExplainedParts(_pages, _slabs, _blocks, _map, _cpus)
        {
            Vmalloc = VmallocIfUsed,
            Space = VmapSpace,
            Memory = memory ?? Memory,
            Walk = walk ?? (Recorded?.Translate(address.Value).IsValid == true ? Recorded.Walk : null),
            Describe = DescribeFrame,
        };
        return new Explainer(parts).Explain(address.Value);
    }

    /// <summary>Begins to remember; from now on every request takes the slow way.</summary>
    internal EventMemory Remember(long events)
    {
        var memory = new EventMemory(events, _slabs.Addresses, () => _cpus.LikelyCpu, _pages.PresentZoneOf);
        Volatile.Write(ref _memory, memory);
        Trace = memory;
        return memory;
    }
}
