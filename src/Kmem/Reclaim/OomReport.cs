using System.Globalization;
using System.Text;

namespace Kmem;

/// <summary>Who holds the machine's memory, and the text that is written when there is no more (dump_header).</summary>
/// <remarks>mm/oom_kill.c, mm/show_mem.c, mm/slab_common.c, Linux 6.18.</remarks>
internal static class OomReport
{
    /// <summary>The largest that are listed.</summary>
    private const int MostHolders = 10;

    public static string Of(
        PageAllocator pages, SlabAllocator slabs, IReadOnlyList<MemoryHolder> holders, long lruPages, int order, Gfp gfp)
    {
        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture, $"{PageAllocator.TaskName} invoked oom-killer: ")
            .Append(CultureInfo.InvariantCulture, $"gfp_mask=0x{(uint)gfp:x}({gfp.ToKernelString()}), ")
            .Append(CultureInfo.InvariantCulture, $"order={order}, oom_score_adj=0\n")
            .Append(MemorySummary.Of(pages));
        if (pages.Nodes.Sum(node => node.SlabUnreclaimablePages) > lruPages)
            AppendSlabs(text, slabs);

        text.Append("Memory holders (in pages):\n");
        foreach (MemoryHolder holder in holders.Take(MostHolders))
        {
            text.Append(CultureInfo.InvariantCulture, $"{holder.Name,-30} ")
                .Append(CultureInfo.InvariantCulture, $"{holder.Bytes >> Pfn.PageShift,10}\n");
        }

        return text.ToString();
    }

    /// <summary>Largest first; together they are what is not free.</summary>
    public static List<MemoryHolder> Holders(
        PageAllocator pages, SlabAllocator slabs, IEnumerable<(string Name, long Frames)> others)
    {
        var holders = new List<(string Name, long Frames)>(others);
        long slabFrames = 0;
        foreach (KmemCache cache in slabs.Caches)
        {
            long frames = (long)cache.SlabCount << cache.Geometry.Order;
            slabFrames += frames;
            holders.Add(($"slab {cache.Name}", frames));
        }

        long accounted = pages.Nodes.Sum(node => node.SlabReclaimablePages + node.SlabUnreclaimablePages);
        holders.Add(("large kmalloc blocks", accounted - slabFrames));
        holders.Add(("page tables", pages.Nodes.Sum(node => node.PageTablePages)));
        holders.Add(("free, on per-CPU lists", pages.Zones.Sum(zone => zone.PcpCount)));
        long used = pages.Zones.Sum(zone => (long)zone.Zone.Managed - zone.Zone.FreePagesExact);
        holders.Add(("page frames", used - holders.Sum(holder => holder.Frames)));
        return [.. holders.Where(holder => holder.Frames > 0)
            .OrderByDescending(holder => holder.Frames)
            .Select(holder => new MemoryHolder(holder.Name, holder.Frames << Pfn.PageShift))];
    }

    /// <summary>dump_unreclaimable_slab.</summary>
    private static void AppendSlabs(StringBuilder text, SlabAllocator slabs)
    {
        text.Append("Unreclaimable slab info:\nName                      Used          Total\n");
        foreach (KmemCache cache in slabs.Caches)
        {
            long free = cache.Nodes.Sum(node => node.CountPartialFree());
            if ((cache.Flags & SlabFlags.ReclaimAccount) != 0 || cache.TotalObjects == 0)
                continue;
            long used = (cache.TotalObjects - free) * cache.SlotSize / 1024;
            long total = (long)cache.TotalObjects * cache.SlotSize / 1024;
            text.Append(CultureInfo.InvariantCulture, $"{cache.Name,-17} {used,10}KB {total,10}KB\n");
        }
    }
}
