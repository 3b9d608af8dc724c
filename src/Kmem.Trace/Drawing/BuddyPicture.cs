namespace Kmem.Tracing;

/// <summary>
/// <see cref="Pictures.Buddy"/>: 64 frames a row, eight rows a pageblock; free blocks in one piece with their order.
/// </summary>
internal static class BuddyPicture
{
    private const int PerRow = 64;
    private const double Cell = 13;
    private const double RowHeight = 19;
    private const double Left = 108;

    private static readonly (string Type, string Words)[] s_legend =
    [
        ("free", "free block, with its order"), ("none", "on a CPU's list"), ("c1", "slab"), ("c2", "pages"),
        ("c3", "page table"), ("c4", "vmalloc"), ("c5", "large kmalloc"), ("box", "reserved"),
    ];

    public static unsafe string Draw(Machine machine, Pfn near, int pageblocks)
    {
        ulong first = near.Value & ~(ulong)(PageOrder.PageblockPages - 1);
        if (machine.Pages.PresentZoneOf(near.Value) is not { } zone)
            throw new ArgumentException($"there is no memory at frame {near}", nameof(near));

        var svg = new Svg(Svg.PageWidth);
        var frames = new FrameUses(machine);
        double y = 52;
        ulong end = Math.Min(first + ((ulong)pageblocks * PageOrder.PageblockPages), zone.Zone.EndPfn);
        for (ulong pfn = first; pfn < end; pfn += PerRow)
        {
            if ((pfn & (PageOrder.PageblockPages - 1)) == 0)
            {
                svg.Word(20, y + 12, Svg.Text($"pageblock {new Pfn(pfn)}: {machine.Blocks.TypeOf(pfn)}"), "b");
                y += 20;
            }

            svg.Word(Left - 8, y + 13, $"{new Pfn(pfn)}", "m e");
            DrawRow(svg, frames, pfn, y);
            y += RowHeight;
        }

        y = svg.Legend(y + 10, s_legend);
        y = DrawLists(svg, zone, y + 8);
        string title = Svg.Text($"Buddy map: {end - first} frames of zone {zone.Zone.Name}");
        return svg.Finish(y, title, Describe(zone, frames, first, end));
    }

    private static void DrawRow(Svg svg, FrameUses frames, ulong start, double y)
    {
        for (ulong pfn = start; pfn < start + PerRow;)
        {
            (string type, ulong blockFirst, int order) = frames.Of(pfn);
            ulong next = Math.Min(start + PerRow, order < 0 ? pfn + 1 : blockFirst + (1UL << order));
            double x = Left + ((pfn - start) * Cell);
            double width = (next - pfn) * Cell;
            svg.Box(x + 0.5, y + 0.5, width - 1, RowHeight - 4, type);
            if (type == "free" && pfn == Math.Max(blockFirst, start))
                svg.Word(x + (width / 2), y + 12.5, Svg.Text($"{order}"), "i c");
            pfn = next;
        }
    }

    /// <summary>The free lists of the zone: how many blocks of each order and type.</summary>
    private static unsafe double DrawLists(Svg svg, ZonePages zone, double y)
    {
        svg.Word(20, y + 12, "Free blocks of the whole zone by order", "b");
        y += 22;
        for (int order = 0; order < PageOrder.Count; order++)
            svg.Word(Left + 50 + (order * 70), y + 10, Svg.Text($"order {order}"), "s e");
        for (int type = 0; type < Migratetypes.PcpTypes; type++)
        {
            y += 19;
            svg.Word(20, y + 10, $"{(Migratetype)type}");
            for (int order = 0; order < PageOrder.Count; order++)
            {
                int count = ListHead.Count(zone.Buddy.ListOf(order, (Migratetype)type));
                svg.Word(Left + 50 + (order * 70), y + 10, Svg.Text($"{count}"), count == 0 ? "s m e" : "m e");
            }
        }

        return y + 28;
    }

    private static string Describe(ZonePages zone, FrameUses frames, ulong first, ulong end)
    {
        var counts = new Dictionary<string, int>(StringComparer.Ordinal);
        for (ulong pfn = first; pfn < end; pfn++)
        {
            string words = s_legend.First(entry => entry.Type == frames.Of(pfn).Type).Words.Split(',')[0];
            counts[words] = counts.GetValueOrDefault(words) + 1;
        }

        string uses = string.Join(", ",
            counts.OrderByDescending(it => it.Value).ThenBy(it => it.Key, StringComparer.Ordinal)
            .Select(it => Svg.Text($"{it.Value} frames {it.Key}")));
        return Svg.Text($"Frames {new Pfn(first)} to {new Pfn(end - 1)} of zone {zone.Zone.Name}, 64 in a row: ")
            + $"{uses}.";
    }
}

/// <summary>What frames are used for, as colours.</summary>
internal sealed class FrameUses
{
    private readonly Machine _machine;
    private readonly Dictionary<ulong, int> _listed = [];
    private readonly HashSet<ulong> _vmalloc = [];

    public unsafe FrameUses(Machine machine)
    {
        _machine = machine;
        foreach (ZonePages zone in machine.Pages.Zones)
        {
            for (int i = 0; i < zone.Zone.CpuCount * PerCpuPages.ListCount; i++)
            {
                int list = i % PerCpuPages.ListCount;
                ListHead* head = PerCpuPages.ListOf(zone.PcpOf(i / PerCpuPages.ListCount), list);
                for (ListHead* node = head->Next; node != head; node = node->Next)
                    _listed[machine.Map.PfnOf(Page.FromLru(node))] = PerCpuPages.OrderOfList(list);
            }
        }

        foreach (VmapNode node in machine.VmallocIfUsed?.Vmap.Nodes ?? [])
        {
            for (VmapArea* area = VmapTree.First(node.Busy); area != null; area = VmapTree.Next(node.Busy, area))
            {
                for (uint i = 0; area->Vm != null && area->Vm->Pages != null && i < area->Vm->PageCount; i++)
                    _vmalloc.Add(machine.Map.PfnOf(area->Vm->Pages[i]));
            }
        }
    }

    /// <summary>The colour of a frame, and the block that it is part of; order -1 if it is part of none.</summary>
    public unsafe (string Type, ulong First, int Order) Of(ulong pfn)
    {
        for (int order = 0; order <= PageOrder.Max; order++)
        {
            ulong first = pfn & ~((1UL << order) - 1);
            Page* page = _machine.Map.PageOf(first);
            if (page->Type == PageType.Buddy && (int)page->Private >= order)
                return ("free", first, (int)page->Private);
            if (_listed.TryGetValue(first, out int listed) && listed >= order)
                return ("none", first, listed);
            if (page->AllocatedOrderPlusOne <= order)
                continue;

            string type = page->Type switch
            {
                PageType.Slab => "c1",
                PageType.Table => "c3",
                PageType.LargeKmalloc => "c5",
                _ => _vmalloc.Contains(pfn) ? "c4" : "c2",
            };
            return (type, first, page->AllocatedOrderPlusOne - 1);
        }

        return ("box", pfn, -1);
    }
}
