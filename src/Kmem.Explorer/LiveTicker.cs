using Kmem.Tracing;

namespace Kmem;

/// <summary>
/// What a machine at work did lately, without being in its way: it counts its slow paths itself, and whoever looks
/// compares the counts with those of the last look.
/// <code>
///   machine: splits, merges, refills, … ──look──▶ differences ─▶ ring of ticks, each with the number of the look
/// </code>
/// So a tick stands for all that happened of its kind since the look before; its frame and orders are those of the last
/// one. Objects are not counted: that would cost the fast path.
/// </summary>
internal sealed class LiveTicker
{
    private const int Kept = 256;

    private readonly Dictionary<(TickKind Kind, int Place), long> _before = [];
    private readonly Queue<Tick> _ring = new();
    private bool _first = true;

    /// <summary>Looks at the counts. One thread at a time.</summary>
    /// <param name="machine">The machine, which stays while this runs.</param>
    /// <param name="moment">The number of the look.</param>
    public void Look(Machine machine, int moment)
    {
        int id = 0;
        foreach (ZonePages zone in machine.Pages.Zones)
        {
            Tell(TickKind.Split, id, zone.Buddy.Splits, moment);
            Tell(TickKind.Merge, id, zone.Buddy.Merges, moment);
            Tell(TickKind.Refill, id, zone.Refills, moment);
            Tell(TickKind.Drain, id, zone.Drains, moment);
            Tell(NewTick(TickKind.Fallback, moment) with { Zone = (byte)id }, id, zone.Buddy.Fallbacks);
            id++;
        }

        foreach (KmemCache cache in machine.Slabs.Caches)
        {
            var number = (ushort)(cache.Id + 1);
            Tell(NewTick(TickKind.NewSlab, moment) with { Cache = number, Order = (byte)cache.Geometry.Order }, number,
                cache.Nodes.Sum(node => node.NewSlabs));
            Tell(NewTick(TickKind.FreeSlab, moment) with { Cache = number, Order = (byte)cache.Geometry.Order }, number,
                cache.Nodes.Sum(node => node.FreedSlabs));
        }

        Tell(NewTick(TickKind.SlowPath, moment), 0, machine.Pages.SlowPaths);
        Tell(NewTick(TickKind.Failure, moment), 0, machine.Pages.FailedAllocations);
        _first = false;
    }

    /// <summary>What was seen after one look, up to another.</summary>
    public Tick[] Between(int after, int upTo) => [.. _ring.Where(tick => tick.Event > after && tick.Event <= upTo)];

    /// <summary>All counts since the machine was booted.</summary>
    public static IReadOnlyDictionary<string, long> CountersOf(Machine machine)
    {
        ZonePages[] zones = [.. machine.Pages.Zones];
        var counters = new Dictionary<string, long>(StringComparer.Ordinal)
        {
            ["framesAllocated"] = zones.Sum(zone => FramesOf(machine, zone).Allocated),
            ["framesFreed"] = zones.Sum(zone => FramesOf(machine, zone).Freed),
            ["splits"] = zones.Sum(zone => zone.Buddy.Splits.Count),
            ["merges"] = zones.Sum(zone => zone.Buddy.Merges.Count),
            ["fallbacks"] = zones.Sum(zone => zone.Buddy.Fallbacks),
            ["refills"] = zones.Sum(zone => zone.Refills.Count),
            ["drains"] = zones.Sum(zone => zone.Drains.Count),
            ["newSlabs"] = machine.Slabs.Caches.Sum(cache => cache.Nodes.Sum(node => node.NewSlabs)),
            ["freeSlabs"] = machine.Slabs.Caches.Sum(cache => cache.Nodes.Sum(node => node.FreedSlabs)),
            ["slowPaths"] = machine.Pages.SlowPaths,
            ["failures"] = machine.Pages.FailedAllocations,
        };
        if (machine.ReclaimerIfUsed?.Counters is { } reclaim)
        {
            counters["reclaimed"] = Volatile.Read(ref reclaim.PgStealKswapd) + Volatile.Read(ref reclaim.PgStealDirect)
                + Volatile.Read(ref reclaim.PgStealProactive);
            counters["scanned"] = Volatile.Read(ref reclaim.SlabsScanned);
            counters["compactions"] = Volatile.Read(ref reclaim.CompactStall);
            counters["oomKills"] = Volatile.Read(ref reclaim.OomKill);
        }

        if (machine.VmallocIfUsed is { } vmalloc)
            counters["areasPurged"] = vmalloc.Purged.Areas;
        return counters;
    }

    private static unsafe (long Allocated, long Freed) FramesOf(Machine machine, ZonePages zone)
    {
        (long allocated, long freed) = (0, 0);
        for (int cpu = 0; cpu < machine.Cpus; cpu++)
        {
            PerCpuPages* pcp = zone.PcpOf(cpu);
            allocated += (long)pcp->PgAlloc;
            freed += (long)pcp->PgFree;
        }

        return (allocated, freed);
    }

    private void Tell(TickKind kind, int zone, in BlockCount count, int moment)
    {
        bool single = kind is TickKind.Refill or TickKind.Drain;
        Tell(
            NewTick(kind, moment) with
            {
                Zone = (byte)zone,
                Pfn = (uint)count.Pfn,
                Order = (byte)count.Order,
                FromOrder = single ? byte.MaxValue : (byte)count.LargerOrder,
            },
            zone,
            count.Count);
    }

    /// <summary>Keeps a tick if its count has grown; at the first look it only learns where counting begins.</summary>
    private void Tell(in Tick tick, int place, long count)
    {
        long before = _before.GetValueOrDefault((tick.Kind, place));
        if (count == before)
            return;

        _before[(tick.Kind, place)] = count;
        if (_first || count < before)
            return;
        if (_ring.Count == Kept)
            _ring.Dequeue();
        _ring.Enqueue(tick with { Count = (int)Math.Min(count - before, int.MaxValue) });
    }

    private static Tick NewTick(TickKind kind, int moment) => new()
    {
        Event = (uint)moment,
        Kind = kind,
        Zone = FrameMap.NoZone,
        Order = Tick.NoOrder,
        FromOrder = byte.MaxValue,
        Migratetype = byte.MaxValue,
        FromType = byte.MaxValue,
        Cpu = Tick.NoCpu,
    };
}
