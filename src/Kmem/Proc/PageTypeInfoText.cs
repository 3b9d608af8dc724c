namespace Kmem;

/// <summary>/proc/pagetypeinfo: per node and zone the free blocks of each migratetype and order, and the pageblocks
/// of each migratetype.</summary>
/// <remarks>
/// <code>
/// Page block order: 9
/// Pages per block:  512
///
/// Free pages count per migrate type at order       0      1      2      3      4 …
/// Node    0, zone   Normal, type    Unmovable     21      5      2      1      0 …
/// Node    0, zone   Normal, type      Movable    890    371   1040     17      9 …
///
/// Number of blocks type     Unmovable      Movable …
/// Node 0, zone   Normal           18          224 …
/// </code>
/// The whole text, headers included, is repeated for every node that has memory.
/// Kernel: <c>pagetypeinfo_show</c>, mm/vmstat.c, Linux 6.18. Not thread safe.
/// </remarks>
public sealed class PageTypeInfoText
{
    private const string Kind = "/proc/pagetypeinfo";
    private const string FreeTitle = "Free pages count per migrate type at order";
    private const string BlocksTitle = "Number of blocks type";
    private const string MixedTitle = "Number of mixed blocks";

    /// <summary>The nodes in the text's order.</summary>
    public List<PageTypeNode> Nodes { get; init; } = [];

    /// <summary>Reads the text of /proc/pagetypeinfo.</summary>
    /// <exception cref="ProcFormatException">A line breaks a rule of the format, or there is none.</exception>
    public static PageTypeInfoText Parse(string text) => Parse(new StringReader(text));

    /// <inheritdoc cref="Parse(string)"/>
    public static PageTypeInfoText Parse(TextReader text)
    {
        var reader = new ProcTextReader(Kind, text);
        reader.RejectEmpty();
        var info = new PageTypeInfoText();
        while (reader.Line is not null) info.Nodes.Add(ParseNode(reader));
        return info;
    }

    /// <summary>Writes the text as the kernel does, byte for byte; table lines end with a blank.</summary>
    public string Render()
    {
        var text = new ProcTextWriter();
        foreach (PageTypeNode node in Nodes)
        {
            text.Text("Page block order: ").Number(node.PageBlockOrder).Line();
            text.Text("Pages per block:  ").Number(node.PagesPerBlock).Line().Line();
            RenderFree(text, node);
            RenderBlocks(text, node, BlocksTitle, zone => zone.Blocks);
            if (node.Zones.Exists(zone => zone.MixedBlocks is not null))
                RenderBlocks(text, node, MixedTitle, zone => zone.MixedBlocks ?? []);
        }
        return text.ToString();
    }

    /// <summary>The same as <see cref="Render"/>.</summary>
    public override string ToString() => Render();

    private static void RenderFree(ProcTextWriter text, PageTypeNode node)
    {
        text.Left(FreeTitle, 43).Text(" ");
        int orders = node.Zones.Count == 0 ? 0 : node.Zones[0].Free[0].Blocks.Count;
        for (int order = 0; order < orders; order++) text.Number(order, 6).Text(" ");
        text.Line();

        foreach (PageTypeZone zone in node.Zones)
        {
            foreach (PageTypeFree row in zone.Free)
            {
                text.Text("Node ").Number(node.Node, 4).Text(", zone ").Right(zone.Zone, 8);
                text.Text(", type ").Right(row.Type, 12).Text(" ");
                foreach (CappedCount count in row.Blocks)
                    text.Text(count.Capped ? ">" : "").Number(count.Value, 6).Text(" ");
                text.Line();
            }
        }
    }

    private static void RenderBlocks(
        ProcTextWriter text, PageTypeNode node, string title, Func<PageTypeZone, IReadOnlyList<ulong>> blocks)
    {
        text.Line().Left(title, 23);
        if (node.Zones.Count > 0)
        {
            foreach (PageTypeFree row in node.Zones[0].Free) text.Right(row.Type, 12).Text(" ");
        }
        text.Line();
        foreach (PageTypeZone zone in node.Zones)
        {
            ZoneLine.Write(text, node.Node, zone.Zone).Text(" ");
            foreach (ulong count in blocks(zone)) text.Number(count, 12).Text(" ");
            text.Line();
        }
    }

    private static PageTypeNode ParseNode(ProcTextReader reader)
    {
        LineCursor fields = reader.Fields("\"Page block order:\"");
        fields.Expect("Page block order:");
        int order = fields.Int("the page block order");
        fields.End();
        reader.Advance();

        fields = reader.Fields("\"Pages per block:\"");
        fields.Expect("Pages per block:");
        ulong pages = fields.ULong("the pages per block");
        fields.End();
        reader.Advance();

        int orders = ParseFreeTitle(reader);
        (int node, List<PageTypeZone> zones) = ParseFreeRows(reader, orders);

        List<List<ulong>> blocks = ParseBlocks(reader, BlocksTitle, node, zones);
        for (int i = 0; i < zones.Count; i++) zones[i] = zones[i] with { Blocks = blocks[i] };
        if (reader.Line?.StartsWith(MixedTitle, StringComparison.Ordinal) == true)
        {
            blocks = ParseBlocks(reader, MixedTitle, node, zones);
            for (int i = 0; i < zones.Count; i++) zones[i] = zones[i] with { MixedBlocks = blocks[i] };
        }
        return new PageTypeNode { Node = node, PageBlockOrder = order, PagesPerBlock = pages, Zones = zones };
    }

    /// <summary>Reads the title line of the free table; returns how many orders it has.</summary>
    private static int ParseFreeTitle(ProcTextReader reader)
    {
        LineCursor fields = reader.Fields("the title of the free table");
        fields.Expect(FreeTitle);
        int orders = 0;
        for (; !fields.AtEnd; orders++)
        {
            if (fields.Int("an order") != orders) throw reader.Error("the orders must count up from 0");
        }
        if (orders == 0) throw reader.Error("the orders are missing");
        reader.Advance();
        return orders;
    }

    /// <summary>Reads the rows of the free table and groups them by zone; the blocks come later.</summary>
    private static (int Node, List<PageTypeZone> Zones) ParseFreeRows(ProcTextReader reader, int orders)
    {
        int node = -1;
        var zones = new List<PageTypeZone>();
        while (reader.Line?.StartsWith("Node", StringComparison.Ordinal) == true)
        {
            LineCursor fields = reader.Fields("a zone");
            fields.Expect("Node");
            int rowNode = fields.Int("the node");
            fields.Expect(",");
            fields.Expect("zone");
            string zone = fields.Until(',', "the zone's name").ToString();
            fields.Expect("type");
            PageTypeFree row = ParseFreeRow(reader, ref fields, orders);

            if (node >= 0 && rowNode != node) throw reader.Error($"node {node} expected, as in the first row");
            node = rowNode;
            if (zone.Length == 0) throw reader.Error("the zone's name is missing");
            if (zones.Count == 0 || zones[^1].Zone != zone)
            {
                if (zones.Count > 0) RequireSameTypes(reader, zones);
                zones.Add(new PageTypeZone { Zone = zone, Free = [], Blocks = [] });
            }
            zones[^1].Free.Add(row);
            reader.Advance();
        }
        if (zones.Count == 0) throw reader.Error("a row of the free table expected");
        RequireSameTypes(reader, zones);
        return (node, zones);
    }

    private static PageTypeFree ParseFreeRow(ProcTextReader reader, ref LineCursor fields, int orders)
    {
        string type = fields.Word("the migratetype").ToString();
        var blocks = new List<CappedCount>(Math.Min(orders, 64));
        while (!fields.AtEnd)
        {
            bool capped = fields.TryTake(">");
            blocks.Add(new CappedCount(fields.ULong("a number of free blocks"), capped));
        }
        if (blocks.Count != orders) throw reader.Error($"{orders} orders expected, as in the title");
        return new PageTypeFree(type, blocks);
    }

    /// <summary>The kernel walks one list of types for every zone; the block tables have one title for all.</summary>
    private static void RequireSameTypes(ProcTextReader reader, List<PageTypeZone> zones)
    {
        List<PageTypeFree> first = zones[0].Free, last = zones[^1].Free;
        bool same = first.Count == last.Count;
        for (int i = 0; same && i < first.Count; i++) same = first[i].Type == last[i].Type;
        if (!same) throw reader.Error("each zone must list the same migratetypes");
    }

    private static List<List<ulong>> ParseBlocks(
        ProcTextReader reader, string title, int node, List<PageTypeZone> zones)
    {
        LineCursor fields = reader.Fields($"\"{title}\"");
        fields.Expect(title);
        foreach (PageTypeFree row in zones[0].Free) fields.Expect(row.Type);
        fields.End();
        reader.Advance();

        var table = new List<List<ulong>>();
        foreach (PageTypeZone zone in zones)
        {
            fields = reader.Fields("a row of page blocks");
            (int rowNode, string name) = ZoneLine.Parse(ref fields);
            List<ulong> counts = ZoneLine.ParseCounts(ref fields, "a number of page blocks");
            if (rowNode != node || name != zone.Zone)
                throw reader.Error($"node {node}, zone {zone.Zone} expected, in the order of the free table");
            if (counts.Count != zone.Free.Count)
                throw reader.Error($"{zone.Free.Count} numbers expected, one per migratetype");
            table.Add(counts);
            reader.Advance();
        }
        return table;
    }
}

/// <summary>One node's part of /proc/pagetypeinfo.</summary>
public sealed record PageTypeNode
{
    /// <summary>The node's number.</summary>
    public int Node { get; init; }

    /// <summary>The order of a pageblock; 9 on x86-64 with huge pages.</summary>
    public int PageBlockOrder { get; init; } = 9;

    /// <summary>Pages of a pageblock: 2^order.</summary>
    public ulong PagesPerBlock { get; init; } = 512;

    /// <summary>The node's populated zones, lowest first. At least one; all list the same migratetypes.</summary>
    public required List<PageTypeZone> Zones { get; init; }
}

/// <summary>One zone of a node in /proc/pagetypeinfo.</summary>
public sealed record PageTypeZone
{
    /// <summary>The zone's name, for instance "Normal".</summary>
    public required string Zone { get; init; }

    /// <summary>The free blocks, a row per migratetype in the kernel's order.</summary>
    public required List<PageTypeFree> Free { get; init; }

    /// <summary>Pageblocks of each migratetype, in the order of <see cref="Free"/>.</summary>
    public required IReadOnlyList<ulong> Blocks { get; init; }

    /// <summary>Pageblocks with pages of another type in them, in the order of <see cref="Free"/>; null without
    /// page_owner, which prints this table.</summary>
    public IReadOnlyList<ulong>? MixedBlocks { get; init; }

    /// <summary>The free blocks of this migratetype; null if there is no such type.</summary>
    public PageTypeFree? Find(string type) => Free.Find(row => row.Type == type);
}

/// <summary>The free blocks of one migratetype in one zone.</summary>
/// <param name="Type">The migratetype's name, for instance "Movable".</param>
/// <param name="Blocks">Free blocks (not pages) of each order, from order 0 on.</param>
public sealed record PageTypeFree(string Type, IReadOnlyList<CappedCount> Blocks);

/// <summary>A number that the kernel stopped counting at 100000 (it holds the zone's lock meanwhile) and then prints
/// as <c>&gt;100000</c>. Kernel: <c>pagetypeinfo_showfree_print</c>, mm/vmstat.c, Linux 6.18.</summary>
/// <param name="Value">The number counted.</param>
/// <param name="Capped">There may be more.</param>
public readonly record struct CappedCount(ulong Value, bool Capped = false)
{
    /// <summary>Where the kernel stops.</summary>
    public const ulong Limit = 100_000;

    /// <summary>What the kernel shows for a list of this length.</summary>
    public static CappedCount Of(ulong length) => length < Limit ? new(length) : new(Limit, Capped: true);
}
