namespace Kmem;

/// <summary>
/// Cuts a boot memory map into nodes and zones, and sets their watermarks and reserves
/// (<c>free_area_init</c>, <c>__setup_per_zone_wmarks</c>, Linux 6.18).
/// <code>
///   0        16 MiB            4 GiB                     node's end − MovableBytes      node's end
///   |  DMA    |      DMA32      |          Normal          |         Movable              |
/// </code>
/// </summary>
internal static class ZoneLayout
{
    private const ulong DmaEndPfn = 16UL << (20 - Pfn.PageShift);
    private const ulong Dma32EndPfn = 4UL << (30 - Pfn.PageShift);

    /// <summary>Creates the nodes with all their zones, empty ones too, and their zonelists.</summary>
    public static Node[] Build(
        BootMemoryMap map, int cpus, ulong movableBytes, Func<int, int, int> distance, PageblockMap blocks)
    {
        int count = map.NodeCount;
        var nodes = new Node[count];
        for (int id = 0; id < count; id++)
        {
            int node = id;
            nodes[id] = new Node(id, Enumerable.Range(0, cpus).Where(cpu => NodeOfCpu(cpu, cpus, count) == node).ToArray());
            BuildZones(nodes[id], map, cpus, movableBytes, blocks);
        }

        Zonelist.BuildAll(nodes, distance);
        return nodes;
    }

    /// <summary>CPUs are dealt to nodes in equal runs.</summary>
    public static int NodeOfCpu(int cpu, int cpus, int nodes) => (int)((long)cpu * nodes / Math.Max(cpus, nodes));

    /// <summary>Computes all that depends on how many frames each zone manages; returns min_free_kbytes.</summary>
    /// <param name="nodes">All nodes.</param>
    /// <param name="cpus">CPUs online.</param>
    /// <param name="userKbytes">vm.min_free_kbytes, or null for the formula.</param>
    /// <param name="scaleFactor">vm.watermark_scale_factor.</param>
    /// <param name="hugePages">Transparent huge pages are on.</param>
    public static int SetReserves(Node[] nodes, int cpus, int? userKbytes, int scaleFactor, bool hugePages)
    {
        Zone[] zones = nodes.SelectMany(node => node.Zones).ToArray();
        ZoneSize[] sizes = zones.Select(SizeOf).ToArray();
        int minFree = userKbytes ?? Watermark.MinFreeKbytes(sizes);
        var marks = new Watermarks[zones.Length];
        Watermark.Compute(sizes, minFree, marks, scaleFactor);
        if (hugePages && userKbytes == null)
        {
            // khugepaged starts when the first watermarks are in place, and looks at what is above them.
            long[] high = marks.Select(mark => mark.High).ToArray();
            minFree = Watermark.RaiseForHugePages(minFree, sizes, high);
            Watermark.Compute(sizes, minFree, marks, scaleFactor);
        }

        for (int i = 0; i < zones.Length; i++)
            SetReserves(zones[i], marks[i], nodes[zones[i].NodeId], cpus);
        return minFree;
    }

    /// <summary>Σ over zones of what user data cannot count on (totalreserve_pages).</summary>
    public static long TotalReserve(IEnumerable<Node> nodes) =>
        nodes.SelectMany(node => node.Zones)
            .Sum(zone => Watermark.TotalReserve((long)zone.Managed, zone.Watermarks.High, zone.LowmemReserve));

    private static void SetReserves(Zone zone, Watermarks marks, Node node, int cpus)
    {
        zone.Boost = 0;
        zone.Watermarks = marks;
        ZoneSize[] siblings = node.Zones.Select(SizeOf).ToArray();
        Watermark.LowmemReserve(
            siblings, zone.Type, Watermark.DefaultReserveRatios[(int)zone.Type], zone.LowmemReserve);
        zone.StatThreshold = Watermark.StatThreshold((long)zone.Managed, cpus);
        zone.PercpuDriftMark = Watermark.PercpuDriftMark(marks, zone.StatThreshold, cpus) ?? zone.PercpuDriftMark;
    }

    private static ZoneSize SizeOf(Zone zone) => new(zone.Type, (long)zone.Managed, (long)zone.Present);

    private static void BuildZones(Node node, BootMemoryMap map, int cpus, ulong movableBytes, PageblockMap blocks)
    {
        BootPages[] present = map.PresentPages().Where(range => range.Node == node.Id).ToArray();
        ulong start = present.Length == 0 ? 0 : present.Min(range => range.Start);
        ulong end = present.Length == 0 ? 0 : present.Max(range => range.End);
        ulong movableStart = MovableStart(present, movableBytes);
        foreach (ZoneType type in Enum.GetValues<ZoneType>())
        {
            (ulong from, ulong to) = type switch
            {
                ZoneType.Dma => (0UL, DmaEndPfn),
                ZoneType.Dma32 => (DmaEndPfn, Math.Min(Dma32EndPfn, movableStart)),
                ZoneType.Normal => (Dma32EndPfn, movableStart),
                ZoneType.Movable => (Math.Max(movableStart, DmaEndPfn), ulong.MaxValue),
                _ => (0UL, 0UL),
            };
            from = Math.Max(from, start);
            to = Math.Min(to, end);
            ulong frames = 0;
            foreach (BootPages range in present)
                frames += Overlap(range, from, to);
            if (frames == 0)
                from = to = 0;
            int index = (node.Id * ZoneTypes.Count) + (int)type;
            var zone = new Zone(index, node.Id, type, from, to - from, frames, cpus);
            node.Zones[(int)type] = zone;
            if (frames != 0)
                Mark(zone, present, blocks);
        }
    }

    /// <summary>The frame at which the node's last bytes begin, rounded up to a largest block.</summary>
    private static ulong MovableStart(BootPages[] present, ulong bytes)
    {
        ulong wanted = bytes >> Pfn.PageShift;
        if (wanted == 0)
            return ulong.MaxValue;

        for (int i = present.Length - 1; i >= 0; i--)
        {
            if (present[i].Count >= wanted)
            {
                ulong pfn = present[i].End - wanted;
                return (pfn + PageOrder.MaxBlockPages - 1) & ~(ulong)(PageOrder.MaxBlockPages - 1);
            }

            wanted -= present[i].Count;
        }

        return DmaEndPfn;
    }

    private static ulong Overlap(BootPages range, ulong from, ulong to)
    {
        ulong low = Math.Max(range.Start, from);
        ulong high = Math.Min(range.End, to);
        return high > low ? high - low : 0;
    }

    /// <summary>
    /// The zone's memory belongs to it, and of the holes in its span what no other zone has; spans of nodes may
    /// interleave. All pageblocks start as Movable.
    /// </summary>
    private static void Mark(Zone zone, BootPages[] present, PageblockMap blocks)
    {
        for (ulong pfn = zone.StartPfn & ~(ulong)(PageOrder.PageblockPages - 1); pfn < zone.EndPfn;
            pfn += PageOrder.PageblockPages)
        {
            if (blocks.ZoneOf(pfn) == PageblockMap.NoZone)
                blocks.SetZone(pfn, zone.Index);
            blocks.SetType(pfn, Migratetype.Movable);
        }

        foreach (BootPages range in present)
        {
            ulong end = Math.Min(range.End, zone.EndPfn);
            ulong start = Math.Max(range.Start, zone.StartPfn) & ~(ulong)(PageOrder.PageblockPages - 1);
            for (ulong pfn = start; pfn < end; pfn += PageOrder.PageblockPages)
            {
                blocks.SetZone(pfn, zone.Index);
                blocks.SetPresent(pfn);
            }
        }
    }
}
