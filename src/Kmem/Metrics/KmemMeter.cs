using System.Diagnostics.Metrics;

namespace Kmem;

/// <summary>
/// The meter "Kmem". All instruments are observable: they read what the allocators keep anyway, and only when somebody
/// collects, so a program without a listener pays nothing. <c>dotnet-counters monitor --counters Kmem</c> shows them.
/// </summary>
/// <remarks>docs/dotnet.md has the table of instruments; a test holds it against this class.</remarks>
internal static class KmemMeter
{
    public const string Name = "Kmem";

    /// <summary>The machines that are measured.</summary>
    public static MachineRegistry Machines { get; } = new();

    private static readonly Meter s_meter = Create();

    /// <summary>Makes the meter known to listeners.</summary>
    public static void Start() => GC.KeepAlive(s_meter);

    private static Meter Create()
    {
        var meter = new Meter(Name);
        AddMemory(meter);
        AddPages(meter);
        AddSlabs(meter);
        AddFloor(meter);
        return meter;
    }

    private static void AddMemory(Meter meter)
    {
        Gauge(meter, "kmem.memory.size", "By", "RAM of the machine: its budget", static (machine, add) =>
            add((long)machine.RamBytes, []));
        Gauge(meter, "kmem.memory.resident", "By", "Host memory that the RAM occupies now", static (machine, add) =>
            add((long)machine.ResidentBytes, []));
        Gauge(meter, "kmem.vmalloc.pages", "{page}", "Pages that vmalloc allocated", static (machine, add) =>
            add(machine.Vmalloc?.PageCount ?? 0, []));
        Gauge(meter, "kmem.vmalloc.mappings", "{mapping}", "Host mappings of the vmalloc window", static (machine, add) =>
            add(machine.Vmalloc?.MapCount ?? 0, []));
    }

    private static void AddPages(Meter meter)
    {
        Gauge(meter, "kmem.pages.free", "{page}", "Free pages by zone", static (machine, add) =>
        {
            foreach (ZonePages zone in machine.Pages.Zones)
                add(zone.Zone.FreePages, [("node", zone.Zone.NodeId), ("zone", zone.Zone.Name)]);
        });
        Gauge(meter, "kmem.blocks.free", "{block}", "Free blocks by zone and order", static (machine, add) =>
        {
            foreach (ZonePages zone in machine.Pages.Zones)
            {
                for (int order = 0; order <= PageOrder.Max; order++)
                {
                    add(
                        zone.Buddy.NrFree(order),
                        [("node", zone.Zone.NodeId), ("zone", zone.Zone.Name), ("order", order)]);
                }
            }
        });
        Counter(meter, "kmem.pages.allocated", "{page}", "Pages allocated by zone", static (machine, add) =>
            AddPerZone(machine, add, static (zone, cpu) => AllocatedOn(zone, cpu)));
        Counter(meter, "kmem.pages.freed", "{page}", "Pages freed by zone", static (machine, add) =>
            AddPerZone(machine, add, static (zone, cpu) => FreedOn(zone, cpu)));
        Counter(meter, "kmem.pages.fallbacks", "{block}", "Blocks taken from another migrate type", static (machine, add) =>
        {
            foreach (ZonePages zone in machine.Pages.Zones)
                add(zone.Buddy.Fallbacks, [("node", zone.Zone.NodeId), ("zone", zone.Zone.Name)]);
        });
        Counter(meter, "kmem.pages.slow_paths", "{request}", "Page requests that found no zone above LOW",
            static (machine, add) => add(machine.Pages.SlowPaths, []));
        Counter(meter, "kmem.pages.failures", "{request}", "Page requests that failed", static (machine, add) =>
            add(machine.Pages.FailedAllocations, []));
    }

    private static void AddSlabs(Meter meter)
    {
        Gauge(meter, "kmem.slab.objects.active", "{object}", "Objects in use by cache, those in CPUs' slabs included",
            static (machine, add) =>
            {
                foreach (KmemCache cache in machine.Slabs.Caches)
                    add(cache.TotalObjects - cache.Nodes.Sum(node => node.CountPartialFree()), [("cache", cache.Name)]);
            });
        Gauge(meter, "kmem.slab.objects.total", "{object}", "Slots in slabs by cache", static (machine, add) =>
        {
            foreach (KmemCache cache in machine.Slabs.Caches)
                add(cache.TotalObjects, [("cache", cache.Name)]);
        });
        Gauge(meter, "kmem.slab.slabs", "{slab}", "Slabs by cache", static (machine, add) =>
        {
            foreach (KmemCache cache in machine.Slabs.Caches)
                add(cache.SlabCount, [("cache", cache.Name)]);
        });
    }

    private static void AddFloor(Meter meter)
    {
        Gauge(meter, "kmem.outstanding", "{item}", "Handed out by the .NET floor and not given back", static (machine, add) =>
        {
            foreach (BufferSource source in machine.Floor.Sources)
                add(source.Count, [("source", source.Name)]);
        });
        Gauge(meter, "kmem.outstanding.size", "By", "Bytes of what is outstanding", static (machine, add) =>
        {
            foreach (BufferSource source in machine.Floor.Sources)
                add(source.Bytes, [("source", source.Name)]);
        });
    }

    private static void AddPerZone(IMachineStats machine, Add add, Func<ZonePages, int, long> count)
    {
        foreach (ZonePages zone in machine.Pages.Zones)
        {
            long sum = 0;
            for (int cpu = 0; cpu < zone.Zone.CpuCount; cpu++)
                sum += count(zone, cpu);
            add(sum, [("node", zone.Zone.NodeId), ("zone", zone.Zone.Name)]);
        }
    }

    private static unsafe long AllocatedOn(ZonePages zone, int cpu) => zone.PcpOf(cpu)->PgAlloc;

    private static unsafe long FreedOn(ZonePages zone, int cpu) => zone.PcpOf(cpu)->PgFree;

    private static void Gauge(Meter meter, string name, string unit, string what, Action<IMachineStats, Add> read) =>
        meter.CreateObservableUpDownCounter(name, () => Collect(read), unit, what);

    private static void Counter(Meter meter, string name, string unit, string what, Action<IMachineStats, Add> read) =>
        meter.CreateObservableCounter(name, () => Collect(read), unit, what);

    /// <summary>One measurement for each call of the reader's second argument, tagged with the machine.</summary>
    private static List<Measurement<long>> Collect(Action<IMachineStats, Add> read)
    {
        var measurements = new List<Measurement<long>>();
        Machines.ForEach(machine => read(machine, (value, tags) =>
        {
            var all = new KeyValuePair<string, object?>[tags.Length + 1];
            all[0] = new("machine", machine.Name);
            for (int i = 0; i < tags.Length; i++)
                all[i + 1] = new(tags[i].Name, tags[i].Value);
            measurements.Add(new Measurement<long>(value, all));
        }));
        return measurements;
    }

    private delegate void Add(long value, ReadOnlySpan<(string Name, object Value)> tags);
}
