namespace Kmem;

/// <summary>
/// A NUMA node: its zones, and the order in which a request that prefers it looks at zones (zonelists).
/// </summary>
internal sealed class Node
{
    public Node(int id, int[] cpus)
    {
        Id = id;
        Cpus = cpus;
    }

    public int Id { get; }

    /// <summary>CPUs of this node, ascending.</summary>
    public IReadOnlyList<int> Cpus { get; }

    /// <summary>All zones of the node by type, unpopulated ones included.</summary>
    public Zone[] Zones { get; } = new Zone[ZoneTypes.Count];

    public bool HasMemory => Zones.Any(zone => zone.IsPopulated);

    public ulong PresentPages => Zones.Aggregate(0UL, (sum, zone) => sum + zone.Present);

    /// <summary>The list with all nodes (ZONELIST_FALLBACK), best zone first.</summary>
    public Zonelist Fallback { get; set; } = Zonelist.Empty;

    /// <summary>The list with this node's zones only (ZONELIST_NOFALLBACK, for __GFP_THISNODE).</summary>
    public Zonelist NoFallback { get; set; } = Zonelist.Empty;

    // Pages of slabs of this node, by kind, for meminfo and zoneinfo.
    private long _slabReclaimable;
    private long _slabUnreclaimable;
    private long _pageTables;

    /// <summary>Frames that are page tables (NR_PAGETABLE).</summary>
    public long PageTablePages => Volatile.Read(ref _pageTables);

    /// <summary>Pages in slabs of caches with SLAB_RECLAIM_ACCOUNT.</summary>
    public long SlabReclaimablePages => Volatile.Read(ref _slabReclaimable);

    /// <summary>Pages in all other slabs, and in large kmalloc blocks.</summary>
    public long SlabUnreclaimablePages => Volatile.Read(ref _slabUnreclaimable);

    public void AddSlabPages(long pages, bool reclaimable) =>
        Interlocked.Add(ref reclaimable ? ref _slabReclaimable : ref _slabUnreclaimable, pages);

    public void AddPageTablePages(long pages) => Interlocked.Add(ref _pageTables, pages);

    /// <summary>Set while the node's kswapd is awake.</summary>
    public bool KswapdAwake { get; set; }

    /// <summary>Runs of kswapd that brought nothing, since anybody's reclaim of this node brought something.</summary>
    public int KswapdFailures { get; set; }
}

/// <summary>Zones in the order in which they are tried.</summary>
/// <param name="zones">Populated zones, best first.</param>
internal sealed class Zonelist(Zone[] zones)
{
    public static readonly Zonelist Empty = new([]);

    /// <summary>Populated zones: node after node, within a node from the highest type to the lowest.</summary>
    public Zone[] Zones { get; } = zones;

    private readonly Zone[][] _upTo = Enumerable.Range(0, ZoneTypes.Count)
        .Select(highest => zones.Where(zone => (int)zone.Type <= highest).ToArray())
        .ToArray();

    /// <summary>Those of the zones that a request with this highest zone may use, on every node.</summary>
    public Zone[] UpTo(ZoneType highest) => _upTo[(int)highest];

    /// <summary>Builds both lists of every node (build_zonelists, mm/page_alloc.c, Linux 6.18).</summary>
    /// <param name="nodes">All nodes, by id.</param>
    /// <param name="distance">Distance between two nodes; 10 is local.</param>
    public static void BuildAll(IReadOnlyList<Node> nodes, Func<int, int, int> distance)
    {
        var load = new int[nodes.Count];
        foreach (Node local in nodes)
        {
            local.NoFallback = new Zonelist(HighestFirst(local).ToArray());
            local.Fallback = new Zonelist(NodeOrder(local, nodes, distance, load).SelectMany(HighestFirst).ToArray());
        }
    }

    private static IEnumerable<Zone> HighestFirst(Node node) =>
        node.Zones.Reverse().Where(zone => zone.IsPopulated);

    /// <summary>
    /// The local node first; then always the nearest unused one, where a lower number and having CPUs count against a
    /// node, and where the first node of each distance is spread over the nodes that ask (node_load).
    /// </summary>
    private static List<Node> NodeOrder(
        Node local, IReadOnlyList<Node> nodes, Func<int, int, int> distance, int[] load)
    {
        var order = new List<Node>();
        var unused = nodes.Where(node => node.HasMemory).ToHashSet();
        int previousDistance = -1;
        while (unused.Count > 0)
        {
            Node best = unused.Contains(local)
                ? local
                : unused.OrderBy(node => node.Id).MinBy(node =>
                {
                    int value = distance(local.Id, node.Id);
                    value += node.Id < local.Id ? 1 : 0;
                    value += node.Cpus.Count > 0 ? 1 : 0;
                    return (value * nodes.Count) + load[node.Id];
                })!;
            int bestDistance = distance(local.Id, best.Id);
            if (best != local && bestDistance != previousDistance)
                load[best.Id]++;
            previousDistance = bestDistance;
            unused.Remove(best);
            order.Add(best);
        }

        return order;
    }
}
