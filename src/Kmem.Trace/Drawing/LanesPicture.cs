namespace Kmem.Tracing;

/// <summary><see cref="Pictures.Lanes"/>: a row for each CPU, what it keeps to itself; below it what the node
/// has.</summary>
internal static class LanesPicture
{
    private const int MostCpus = 8;
    private const double LaneHeight = 104;
    private const double Left = 84;
    private const int MostCells = 42;

    public static unsafe string Draw(Machine machine, string name)
    {
        KmemCache cache = machine.Caches.FirstOrDefault(it => it.Name == name)
            ?? throw new ArgumentException($"there is no cache named {name}", nameof(name));
        var svg = new Svg(Svg.PageWidth);
        svg.Word(20, 56, Svg.Text($"{cache.ObjectSize} bytes an object, {cache.Geometry.ObjectsPerSlab} objects a ")
            + Svg.Text($"slab, {cache.SlabCount} slabs, {cache.LiveCount} objects allocated"));
        double y = 72;
        int cpus = Math.Min(machine.Cpus, MostCpus);
        var words = new List<string>();
        for (int cpu = 0; cpu < cpus; cpu++)
        {
            words.Add(DrawCpu(svg, machine, cache, cpu, y));
            y += LaneHeight;
        }

        if (machine.Cpus > cpus)
        {
            svg.Word(20, y + 14, Svg.Text($"and {machine.Cpus - cpus} more CPUs"), "s");
            y += 24;
        }

        for (int node = 0; node < cache.Nodes.Count; node++)
        {
            words.Add(DrawNode(svg, cache, node, y));
            y += 76;
        }

        y = svg.Legend(y + 8,
        [
            ("c4", "free objects in hand: list or sheaf"), ("free", "room in a sheaf"),
                ("c1", "a slab, by the part in use"),
            ("none", "pages on the CPU's lists"),
        ]);
        return svg.Finish(y + 4, $"Lanes of {cache.Name}", string.Join(" ", words));
    }

    private static unsafe string DrawCpu(Svg svg, Machine machine, KmemCache cache, int cpu, double y)
    {
        KmemCacheCpu* c = cache.StateOf(cpu);
        svg.Box(12, y, Svg.PageWidth - 24, LaneHeight - 8, "box", 8);
        svg.Word(24, y + 22, Svg.Text($"CPU {cpu}"), "b");
        string said;
        if (cache.SheafCapacity > 0)
        {
            said = DrawSheaf(svg, "main sheaf", c->Main, Left, y + 12) + ", "
                + DrawSheaf(svg, "spare sheaf", c->Spare, Left + 440, y + 12);
        }
        else
        {
            int free = 0;
            for (void* at = c->Freelist; at != null && free < cache.Geometry.ObjectsPerSlab; at = cache.NextFree(at))
                free++;
            Cells(svg, Left, y + 24, free, free, Svg.Text($"free list: {free} objects"));
            said = Svg.Text($"{free} objects on its free list");
        }

        double x = Left;
        svg.Word(x, y + 64, "current slab", "s");
        if (c->Slab != null)
            Gauge(svg, x, y + 70, SlabState.Read(c->Slab));
        x += 150;
        svg.Word(x, y + 64, "partial slabs kept", "s");
        int chain = 0;
        for (Page* link = c->Partial; link != null; link = link->CpuPartialNext, chain++)
        {
            if (chain < 5)
                Gauge(svg, x + (chain * 58), y + 70, SlabState.Read(link));
        }

        if (chain > 5)
            svg.Word(x + (5 * 58), y + 82, Svg.Text($"+{chain - 5}"), "s");
        string pages = PagesOf(machine, cpu);
        svg.Word(Left + 500, y + 64, "pages kept", "s");
        svg.Box(Left + 500, y + 70, 14, 14, "none");
        svg.Word(Left + 520, y + 82, pages, "i");
        return Svg.Text($"CPU {cpu}: {said}, {(c->Slab != null ? "a" : "no")} current slab, {chain} partial slabs, ")
            + $"pages kept: {pages}.";
    }

    private static unsafe string DrawSheaf(Svg svg, string name, Sheaf* sheaf, double x, double y)
    {
        if (sheaf == null)
        {
            svg.Word(x, y + 8, $"{name}: none", "s");
            return $"no {name}";
        }

        Cells(svg, x, y + 12, sheaf->Size, (int)sheaf->Capacity,
            Svg.Text($"{name}: {sheaf->Size} of {sheaf->Capacity} objects"));
        return Svg.Text($"{sheaf->Size} of {sheaf->Capacity} objects in its {name}");
    }

    private static void Cells(Svg svg, double x, double y, int full, int all, string words)
    {
        svg.Word(x, y - 4, words, "s");
        int shown = Math.Min(all, MostCells);
        for (int i = 0; i < shown; i++)
            svg.Box(x + (i * 9.6), y, 8, 18, i * all < full * shown ? "c4" : "free");
        if (all == 0)
            svg.Word(x, y + 13, "empty", "i");
    }

    /// <summary>A slab as a bar, full as far as its objects are in use.</summary>
    private static void Gauge(Svg svg, double x, double y, SlabState state)
    {
        svg.Box(x, y, 50, 14, "free");
        if (state.InUse > 0)
            svg.Box(x, y, 50.0 * state.InUse / state.Objects, 14, "c1");
    }

    private static string PagesOf(Machine machine, int cpu)
    {
        var counts = new List<string>();
        foreach (ZonePages zone in machine.Pages.Zones)
        {
            if (zone.CountOf(cpu) > 0)
                counts.Add(Svg.Text($"{zone.CountOf(cpu)} of {zone.Zone.Name}"));
        }

        return counts.Count == 0 ? "none" : string.Join(", ", counts);
    }

    private static unsafe string DrawNode(Svg svg, KmemCache cache, int node, double y)
    {
        KmemCacheNode of = cache.Nodes[node];
        svg.Box(12, y, Svg.PageWidth - 24, 66, "box", 8);
        svg.Word(24, y + 22, Svg.Text($"node {node}"), "b");
        svg.Word(Left, y + 20, Svg.Text($"partial list: {of.NrPartial} slabs"), "s");
        int i = 0;
        for (ListHead* entry = of.Partial->Next; entry != of.Partial && i < 8; entry = entry->Next, i++)
            Gauge(svg, Left + (i * 58), y + 30, SlabState.Read(Page.FromSlabList(entry)));
        string barn = of.Barn is { } store
            ? Svg.Text($"barn: {store.FullCount} full and {store.EmptyCount} empty sheaves")
            : "no barn: this cache has no sheaves";
        svg.Word(Left + 500, y + 40, barn, "i");
        return Svg.Text($"Node {node}: {of.NrPartial} partial slabs; {barn}.");
    }
}
