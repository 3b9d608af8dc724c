using System.Globalization;
using Kmem.Tool.Commands;
using Spectre.Console;

namespace Kmem.Tool.Output;

/// <summary>The text of <c>kmem explain</c>: a line for each value, the story, the reasons, and the sentence.</summary>
internal static class ExplainText
{
    private const int MostPins = 6;

    internal static void Write(IAnsiConsole console, Explanation it)
    {
        if (it.Recorded is { } recorded)
            console.Paragraph($"recorded     0x{recorded}, here 0x{it.Address}");
        if (it.AtEvent > 0)
            console.Paragraph(Line($"moment       after event {it.AtEvent}"));
        console.Paragraph($"address      0x{it.Address}, {it.Region}");
        WritePage(console, it);
        if (it.Slab is { } slab)
        {
            console.Paragraph(Line($"slab         {slab.Cache}, first frame {slab.First}, order {slab.Order}: ")
                + Line($"{slab.Live} of {slab.Objects} objects allocated, {slab.Place}"));
        }

        if (it.Object is { } obj)
        {
            string state = obj.Allocated ? "allocated" : $"free: {obj.FreeOn}";
            console.Paragraph(Line($"object       number {obj.Number} at 0x{obj.Start}, {obj.Size} bytes, ")
                + Line($"byte {obj.Offset}; {state}"));
        }

        if (it.Object?.AllocatedBy is { } allocatedBy)
            console.Paragraph($"allocated by {allocatedBy}");
        if (it.Object?.FreedBy is { } freedBy)
            console.Paragraph($"freed by     {freedBy}");
        if (it.Table is { } table)
            console.Paragraph(Line($"table        {table.Name}, {table.Present} of 512 entries, from 0x{table.Maps}"));
        if (it.Area is { } area)
        {
            console.Paragraph(Line($"area         0x{area.Start}-0x{area.End}, {area.Caller}, {area.State}; ")
                + Line($"page {area.Page}") + (area.Pages > 0 ? Line($" of {area.Pages}") : ""));
        }

        if (it.Mapping is { } mapping)
            WriteMapping(console, mapping);
        WriteLife(console, it);
        if (it.Decision is { } decision)
            WriteDecision(console, decision);
        console.WriteLine();
        console.Paragraph(it.Sentence);
    }

    internal static void Write(IAnsiConsole console, RequestExplanation it)
    {
        console.Paragraph(Line($"request      order {it.Order}, {it.Gfp.ToKernelString()}, type {it.Type}"));
        if (it.AtEvent > 0)
            console.Paragraph(Line($"moment       after event {it.AtEvent}"));
        console.Heading("Zones, in the order in which they are asked");
        Table zones = Screen.Table("zone", ">free", ">MIN", ">LOW", ">reserve", ">missing", ">largest", ">index",
            "answer");
        foreach (ZoneLack zone in it.Zones)
        {
            zones.Row(
                Line($"{zone.Node} {zone.Zone}"), Kib(zone.Free), Kib(zone.Min), Kib(zone.Low), Kib(zone.Reserve),
                Kib(zone.MissingFrames), Line($"{zone.LargestUsable}"), Line($"{zone.ExtfragIndex:0.000}"),
                zone.AboveLow ? "yes" : zone.AboveMin ? "yes, in the slow path" : "no");
        }

        console.Write(zones);
        console.Heading("Free blocks by order");
        Table blocks = Screen.Table(["zone",
            .. Enumerable.Range(0, PageOrder.Count).Select(order => Line($">{order}"))]);
        foreach (ZoneLack zone in it.Zones)
            blocks.Row([Line($"{zone.Node} {zone.Zone}"), .. zone.FreeBlocks.Select(count => Line($"{count}"))]);
        console.Write(blocks);
        if (it.Pinned.Count > 0)
            WritePinned(console, it);
        if (it.Decision is { } decision)
            WriteDecision(console, decision);
        console.WriteLine();
        console.Paragraph(it.Sentence);
    }

    private static void WritePage(IAnsiConsole console, Explanation it)
    {
        if (it.Zone is { } zone)
        {
            console.Paragraph(Line($"zone         {zone.Name} of node {zone.Node}: {Kib(zone.Free)} free of ")
                + Line($"{Kib(zone.Managed)}, MIN {Kib(zone.Min)}, LOW {Kib(zone.Low)}, HIGH {Kib(zone.High)}"));
        }

        if (it.Pageblock is { } block)
        {
            console.Paragraph(Line($"pageblock    {block.First}, {block.Type}: {block.InUse} frames in use, ")
                + Line($"{block.Free} free, {block.OnPcpLists} on CPUs' lists"));
        }

        if (it.Page is { } page)
        {
            string flags = page.Flags.Count == 0 ? "none" : string.Join('|', page.Flags);
            console.Paragraph(Line($"page         frame {page.Frame}, in the block of order {page.Order} at ")
                + Line($"{page.BlockFirst}, references {page.References}, flags {flags}"));
        }

        if (it.FreeBlock is { } free)
        {
            console.Paragraph(Line($"free block   order {free.Order}, {free.Position} before it on the {free.List} ")
                + Line($"list; buddy {free.Buddy}: {free.BuddyUse}"));
        }

        if (it.Pcp is { } pcp)
        {
            console.Paragraph(Line($"CPU list     CPU {pcp.Cpu}, order {pcp.Order}, {pcp.List}: {pcp.Position} before ")
                + Line($"it of {pcp.Length}"));
        }
    }

    private static void WriteMapping(IAnsiConsole console, ExplainedMapping mapping)
    {
        string way = string.Join(" → ", mapping.Steps.Select(step => Line($"{step.Level}[{step.Index}]")));
        string end = mapping.Physical is { } physical
            ? Line($"physical {physical}, {ByteSize.Format(mapping.LeafBytes)}, {mapping.Rights}, {mapping.CacheMode}")
            : "nothing";
        console.Paragraph($"mapping      {way} → {end}");
    }

    private static void WriteLife(IAnsiConsole console, Explanation it)
    {
        if (it.Life.Count == 0)
            return;

        console.Heading(it.LifeOmitted == 0 ? "Life" : Line($"Life: the newest events, {it.LifeOmitted} are left out"));
        Table table = Screen.Table(">event", ">CPU", "what", ">bytes", "from", "by");
        foreach (LifeEvent e in it.Life)
        {
            bool pages = e.Kind >= LifeEventKind.PagesAllocated;
            table.Row(
                Line($"{e.Event}"),
                Line($"{e.Cpu}"),
                pages ? Line($"{Words(e.Kind)}, order {e.Order}") : Words(e.Kind),
                e.Bytes == 0 ? "" : Line($"{e.Bytes}"),
                e.Source is { } source ? Words(source) : "",
                e.CallSite ?? "");
        }

        console.Write(table);
    }

    private static void WriteDecision(IAnsiConsole console, PageDecision decision)
    {
        console.Heading(Line($"Decision of event {decision.Event}: order {decision.Order}, ")
            + $"{decision.Gfp.ToKernelString()}, {decision.Type}");
        Table table = Screen.Table("zone", ">free", ">MIN", ">LOW", ">HIGH", ">reserve", ">CPU list", ">largest",
            "answer");
        foreach (ZoneVerdict zone in decision.Zones)
        {
            table.Row(
                Line($"{zone.Node} {zone.Zone}"), Kib(zone.Free), Kib(zone.Min), Kib(zone.Low), Kib(zone.High),
                Kib(zone.Reserve), Line($"{zone.OnCpuList}"), Line($"{zone.LargestFree}"), Words(zone.Result));
        }

        console.Write(table);
        if (decision.Source is { } source)
        {
            string stolen = source.Stolen ? source.BlockClaimed ? ", claimed with its pageblock" : ", stolen" : "";
            console.Paragraph(Line($"block        {decision.Block}, {Words(source.Place)}; found in order ")
                + Line($"{source.FoundOrder}, {source.Splits} splits, list {source.FoundType}{stolen}"));
        }

        if (decision.SlowPath.Count > 0)
            console.Paragraph("slow path    " + string.Join(", ", decision.SlowPath.Select(Words)));
    }

    private static void WritePinned(IAnsiConsole console, RequestExplanation it)
    {
        console.Heading("What keeps blocks from being free, fewest objects first");
        Table table = Screen.Table("block", ">order", "zone", "type", ">free", ">in use", ">objects", "freeing them");
        foreach (PinnedBlock block in it.Pinned)
        {
            table.Row(
                $"{block.First}", Line($"{block.Order}"), Line($"{block.Node} {block.Zone}"), $"{block.Type}",
                    Kib(block.FramesFree),
                Kib(block.FramesInUse), Line($"{block.Objects}"), $"gives back {Kib(block.FramesInUse)}");
        }

        console.Write(table);
        console.Paragraph($"In the first, {it.Pinned[0].First}:");
        foreach (Pin pin in it.Pinned[0].Pins.Take(MostPins))
        {
            string born = pin.AllocatedAt > 0 ? Line($", event {pin.AllocatedAt}") : "";
            string site = pin.CallSite is { } who ? $", {who}" : "";
            console.Paragraph(Line($"  0x{pin.Address}  {pin.What}, {pin.Bytes} bytes{born}{site}"));
        }

        if (it.Pinned[0].Objects > MostPins)
            console.Paragraph(Line($"  and {it.Pinned[0].Objects - MostPins} more"));
    }

    /// <summary>An enumeration's name as words: CpuFreeList → cpu free list.</summary>
    private static string Words<T>(T value)
        where T : struct, Enum =>
        string.Concat(value.ToString().Select((c, i) => char.IsUpper(c) ? (i > 0 ? " " : "")
            + char.ToLowerInvariant(c) : $"{c}"));

    private static string Kib(long frames) => ByteSize.Format((ulong)frames * Pfn.PageSize);

    private static string Line(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
