namespace Kmem.Tests;

/// <summary>
/// A zone with its free lists and per-CPU lists, without a machine around it: no RAM, only descriptors. Empty at first.
/// </summary>
internal sealed class BareZone : IDisposable
{
    private readonly MemMap _map;

    public unsafe BareZone(ulong start, ulong end, int cpus = 1)
    {
        _map = new MemMap(end, ramBase: null);
        Blocks = new PageblockMap(end);
        Zone = new Zone(index: 0, node: 0, ZoneType.Dma32, start, end - start, end - start, cpus);
        for (ulong pfn = start & ~511UL; pfn < end; pfn += 512)
        {
            Blocks.SetZone(pfn, 0);
            Blocks.SetType(pfn, Migratetype.Movable);
        }

        Pages = new ZonePages(Zone, _map, Blocks);
        Pages.Trace = Pages.Buddy.Trace = Trace;
    }

    public Zone Zone { get; }

    public PageblockMap Blocks { get; }

    public ZonePages Pages { get; }

    public Buddy Buddy => Pages.Buddy;

    public RecordingTrace Trace { get; } = new();

    public unsafe Page* PageOf(ulong pfn) => _map.PageOf(pfn);

    public unsafe ulong? PfnOf(Page* page) => page == null ? null : _map.PfnOf(page);

    public unsafe Page* Take(int order, Migratetype type, AllocFlags flags = AllocFlags.Kswapd, int cpu = 0) =>
        Pages.Take(order, type, flags, cpu, bypassPcp: false);

    public unsafe void Give(Page* page, int order, int cpu = 0) => Pages.Give(page, order, cpu, bypassPcp: false);

    public unsafe Page* TakeBlock(int order, Migratetype type, int cpu = 0)
    {
        Buddy.Lock.Acquire();
        Page* page = Buddy.TakeLocked(order, type, cpu);
        Buddy.Lock.Release();
        return page;
    }

    public unsafe Page* Rmqueue(int order, Migratetype type, AllocFlags flags, ref SearchMode mode, int cpu = 0)
    {
        Buddy.Lock.Acquire();
        Page* page = Buddy.RmqueueLocked(order, type, flags, ref mode, cpu);
        Buddy.Lock.Release();
        return page;
    }

    /// <summary>The blocks of a free list, from head to tail.</summary>
    public ulong[] Free(int order, Migratetype type) => Lists.Blocks(Pages, _map, order, type);

    /// <summary>The blocks of a per-CPU list, from head to tail.</summary>
    public unsafe ulong[] PerCpu(int cpu, int index) => Lists.Walk(_map, PerCpuPages.ListOf(Pages.PcpOf(cpu), index));

    /// <summary>Gives frames to the zone as boot does.</summary>
    public unsafe void HandOver(ulong start, ulong end)
    {
        for (ulong pfn = start; pfn < end;)
        {
            int order = Lists.BootOrder(pfn, end);
            Zone.Managed += 1UL << order;
            Pages.GiveToBuddy(PageOf(pfn), order, FreeFlags.ToTail, cpu: 0);
            pfn += 1UL << order;
        }
    }

    public void Dispose()
    {
        Pages.Dispose();
        Blocks.Dispose();
        _map.Dispose();
    }
}

/// <summary>Looks into the lists of the page allocator.</summary>
internal static class Lists
{
    public static unsafe ulong[] Walk(MemMap map, ListHead* list)
    {
        var pfns = new List<ulong>();
        for (ListHead* node = list->Next; node != list; node = node->Next)
            pfns.Add(map.PfnOf(Page.FromLru(node)));
        return [.. pfns];
    }

    public static void MovePageblock(ZonePages zone, ulong pfn, Migratetype from, Migratetype to)
    {
        zone.Buddy.Lock.Acquire();
        zone.Buddy.MovePageblockLocked(pfn, from, to, cpu: 0);
        zone.Buddy.Lock.Release();
    }

    public static unsafe ulong[] Blocks(ZonePages zone, MemMap map, int order, Migratetype type) =>
        Walk(map, zone.Buddy.ListOf(order, type));

    /// <summary>The largest block that boot can cut at a frame (memblock's rule).</summary>
    public static int BootOrder(ulong pfn, ulong end)
    {
        int order = pfn == 0 ? 10 : Math.Min(10, (int)ulong.TrailingZeroCount(pfn));
        while (pfn + (1UL << order) > end)
            order--;
        return order;
    }
}
