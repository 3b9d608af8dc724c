namespace Kmem;

/// <summary>The start that the zone tables share: <c>Node 0, zone   Normal </c>, then one field per order.</summary>
internal static class ZoneLine
{
    /// <summary>Reads <c>Node %d, zone %8s</c>.</summary>
    public static (int Node, string Zone) Parse(ref LineCursor fields)
    {
        fields.Expect("Node");
        int node = fields.Int("the node");
        fields.Expect(",");
        fields.Expect("zone");
        return (node, fields.Word("the zone's name").ToString());
    }

    /// <summary>Reads numbers up to the end of the line.</summary>
    public static List<ulong> ParseCounts(ref LineCursor fields, string what)
    {
        var counts = new List<ulong>();
        while (!fields.AtEnd) counts.Add(fields.ULong(what));
        return counts;
    }

    /// <summary>Writes <c>Node %d, zone %8s</c>.</summary>
    public static ProcTextWriter Write(ProcTextWriter text, int node, string zone) =>
        text.Text("Node ").Number(node).Text(", zone ").Right(zone, 8);
}
