using System.Globalization;
using System.Text;

namespace Kmem;

/// <summary>
/// The memory part of a failure report: one paragraph per zone, then its free blocks by order (show_mem).
/// </summary>
internal static class MemorySummary
{
    private const string TypeLetters = "UMEHI";

    public static string Of(PageAllocator allocator)
    {
        var text = new StringBuilder("Mem-Info:\n");
        foreach (ZonePages pages in allocator.Zones)
            AppendZone(text, pages);
        foreach (ZonePages pages in allocator.Zones)
            AppendBlocks(text, pages);
        return text.ToString();
    }

    /// <summary>One line for an exception: what was asked, and what the zones have.</summary>
    public static string Short(PageAllocator allocator, int order, Gfp gfp)
    {
        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture, $"out of memory: order {order} ({4L << order} KiB), ");
        text.Append(CultureInfo.InvariantCulture, $"gfp 0x{(uint)gfp:x}({gfp.ToKernelString()});");
        foreach (ZonePages pages in allocator.Zones)
        {
            Zone zone = pages.Zone;
            text.Append(CultureInfo.InvariantCulture, $" zone {zone.Name} of node {zone.NodeId}: ");
            text.Append(CultureInfo.InvariantCulture, $"{Kib(zone.FreePages)} KiB free, ");
            text.Append(CultureInfo.InvariantCulture, $"min {Kib(zone.Watermarks.Min)} KiB, blocks by order");
            for (int o = 0; o <= PageOrder.Max; o++)
                text.Append(CultureInfo.InvariantCulture, $" {pages.Buddy.NrFree(o)}");
            text.Append(';');
        }

        return text.ToString().TrimEnd(';');
    }

    private static void AppendZone(StringBuilder text, ZonePages pages)
    {
        Zone zone = pages.Zone;
        string reserves = string.Join(' ', zone.LowmemReserve);
        text.Append(CultureInfo.InvariantCulture, $"Node {zone.NodeId} {zone.Name} free:{Kib(zone.FreePages)}kB ")
            .Append(CultureInfo.InvariantCulture, $"boost:{Kib(zone.Boost)}kB min:{Kib(zone.Mark(WatermarkLevel.Min))}kB ")
            .Append(CultureInfo.InvariantCulture, $"low:{Kib(zone.Mark(WatermarkLevel.Low))}kB ")
            .Append(CultureInfo.InvariantCulture, $"high:{Kib(zone.Mark(WatermarkLevel.High))}kB ")
            .Append(CultureInfo.InvariantCulture, $"reserved_highatomic:{Kib(zone.ReservedHighAtomic)}KB ")
            .Append(CultureInfo.InvariantCulture, $"free_highatomic:{Kib(zone.FreeHighAtomic)}KB ")
            .Append(CultureInfo.InvariantCulture, $"present:{Kib((long)zone.Present)}kB ")
            .Append(CultureInfo.InvariantCulture, $"managed:{Kib((long)zone.Managed)}kB ")
            .Append(CultureInfo.InvariantCulture, $"free_pcp:{Kib(pages.PcpCount)}kB\n")
            .Append(CultureInfo.InvariantCulture, $"lowmem_reserve[]: {reserves}\n");
    }

    private static unsafe void AppendBlocks(StringBuilder text, ZonePages pages)
    {
        Zone zone = pages.Zone;
        long total = 0;
        text.Append(CultureInfo.InvariantCulture, $"Node {zone.NodeId} {zone.Name}: ");
        for (int order = 0; order <= PageOrder.Max; order++)
        {
            long blocks = pages.Buddy.NrFree(order);
            total += blocks << order;
            text.Append(CultureInfo.InvariantCulture, $"{blocks}*{4L << order}kB ");
            if (blocks == 0)
                continue;

            text.Append('(');
            for (int type = 0; type < Buddy.Types; type++)
            {
                if (!ListHead.IsEmpty(pages.Buddy.ListOf(order, (Migratetype)type)))
                    text.Append(TypeLetters[type]);
            }

            text.Append(") ");
        }

        text.Append(CultureInfo.InvariantCulture, $"= {Kib(total)}kB\n");
    }

    private static long Kib(long pages) => pages * (Pfn.PageSize / 1024);
}
