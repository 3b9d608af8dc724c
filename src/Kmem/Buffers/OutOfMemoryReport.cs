using System.Globalization;
using System.Text;

namespace Kmem;

/// <summary>
/// What the message of an <see cref="OutOfMemoryException"/> says: what was asked, the budget, each zone with its free
/// blocks by order, and the reason in one sentence.
/// </summary>
internal static class OutOfMemoryReport
{
    public static string For(string machine, nuint bytes, string what, IBufferMemory memory)
    {
        int order = Math.Min(OrderOf(bytes), PageOrder.Max);
        ZonePages[] zones = memory.Pages.Zones.ToArray();
        long managed = zones.Sum(zone => (long)zone.Zone.Managed);
        long free = zones.Sum(zone => zone.Zone.FreePages);
        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture, $"Kmem machine '{machine}' has no {bytes} bytes (order {order}) for {what}: ");
        text.Append(Why(bytes, order, managed, free, zones, memory));
        text.Append(CultureInfo.InvariantCulture, $"; budget {Kib(managed)} KiB, {Kib(managed - free)} KiB in use");
        foreach (ZonePages pages in zones)
        {
            Zone zone = pages.Zone;
            text.Append(CultureInfo.InvariantCulture, $"; node {zone.NodeId} zone {zone.Name}: {Kib(zone.FreePages)} KiB free, ");
            text.Append(
                CultureInfo.InvariantCulture, $"min {Kib(zone.Mark(WatermarkLevel.Min))} KiB, free blocks by order");
            for (int o = 0; o <= PageOrder.Max; o++)
                text.Append(CultureInfo.InvariantCulture, $" {pages.Buddy.NrFree(o)}");
        }

        return text.ToString();
    }

    private static string Why(
        nuint bytes, int order, long managed, long free, ZonePages[] zones, IBufferMemory memory)
    {
        var pages = (long)Math.Min(((ulong)bytes + Pfn.PageSize - 1) / Pfn.PageSize, long.MaxValue);
        if (pages > managed)
            return "the machine is smaller than that";
        if (bytes > KmallocClasses.MaxSize && memory.WhyNoWindow is { } reason)
            return $"contiguous memory ends at {KmallocClasses.MaxSize} bytes, and there is no vmalloc: {reason}";

        long reserve = zones.Sum(zone => zone.Zone.Mark(WatermarkLevel.Min));
        if (free - pages < reserve)
            return "what is free is the reserve below the min watermarks, for those who cannot wait";

        bool hasBlock = zones.Any(zone => Enumerable.Range(order, PageOrder.Max - order + 1).Any(o => zone.Buddy.NrFree(o) > 0));
        if (!hasBlock)
            return $"free memory is fragmented, no zone has a block of order {order}";
        return MapBudget.Process.Used >= MapBudget.Process.Limit
            ? "the process has no mappings left (half of vm.max_map_count)"
            : "zones that have such a block keep it for other requests (watermarks, reserves); memory may be free again by now";
    }

    private static int OrderOf(nuint bytes)
    {
        int order = 0;
        for (ulong size = Pfn.PageSize; size < bytes && order <= PageOrder.Max; size <<= 1)
            order++;
        return order;
    }

    private static long Kib(long pages) => pages * (Pfn.PageSize / 1024);
}
