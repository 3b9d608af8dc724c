using System.Collections.Concurrent;
using System.Diagnostics.Metrics;
using System.Diagnostics.Tracing;

namespace Kmem.Tests;

/// <summary>The meter and the event source, seen as a listener sees them.</summary>
public sealed class MetricsTests
{
    private static Machine Boot(string name, ulong ram = 32 << 20) =>
        Machine.Boot(
            new MachineOptions { RamBytes = ram, Cpus = 2, Name = name, Profile = KernelProfile.Linux618 });

    [Fact]
    public void The_meter_shows_what_the_machine_has()
    {
        using Machine machine = Boot("meter-1");
        using KmemPool pool = machine.CreatePool("p");
        using KmemCache<Guid> cache = machine.CreateCache<Guid>("guids");
        var block = pool.Rent();
        KmemHandle<Guid> guid = cache.Rent();
        var seen = Collect("meter-1");

        Assert.Equal(32 << 20, seen[("kmem.memory.size", "")]);
        Assert.True(seen[("kmem.memory.resident", "")] > 0);
        Assert.Equal(
            machine.Pages.Zones.Sum(zone => zone.Zone.FreePages),
            seen.Where(entry => entry.Key.Item1 == "kmem.pages.free").Sum(entry => entry.Value));
        foreach (ZonePages zone in machine.Pages.Zones)
        {
            for (int order = 0; order <= PageOrder.Max; order++)
            {
                Assert.Equal(
                    zone.Buddy.NrFree(order),
                    seen[("kmem.blocks.free", $"node=0 zone={zone.Zone.Name} order={order}")]);
            }
        }

        Assert.True(seen.Where(entry => entry.Key.Item1 == "kmem.pages.allocated").Sum(entry => entry.Value) > 0);
        Assert.Contains(seen.Keys, key => key.Item1 == "kmem.pages.freed");
        Assert.Equal(0, seen[("kmem.pages.failures", "")]);
        Assert.Equal(0, seen[("kmem.pages.slow_paths", "")]);
        Assert.Equal(1, seen[("kmem.slab.slabs", "cache=guids")]);
        Assert.Equal(cache.Cache.TotalObjects, seen[("kmem.slab.objects.total", "cache=guids")]);
        Assert.Equal(cache.Cache.TotalObjects, seen[("kmem.slab.objects.active", "cache=guids")]);
        Assert.Equal(1, seen[("kmem.outstanding", "source=KmemPool 'p'")]);
        Assert.Equal(4096, seen[("kmem.outstanding.size", "source=KmemPool 'p'")]);
        Assert.Equal(1, seen[("kmem.outstanding", "source=KmemCache<Guid> 'guids'")]);
        Assert.Contains(seen.Keys, key => key.Item1 == "kmem.vmalloc.pages");
        Assert.Contains(seen.Keys, key => key.Item1 == "kmem.vmalloc.mappings");
        block.Dispose();
        cache.Return(guid);
    }

    [Fact]
    public void Failures_and_slow_paths_are_counted()
    {
        using Machine machine = Boot("meter-2");
        while (machine.AllocPage(Gfp.Kernel).IsValid)
        {
        }

        var seen = Collect("meter-2");
        Assert.Equal(machine.FailedAllocations, seen[("kmem.pages.failures", "")]);
        Assert.True(seen[("kmem.pages.failures", "")] >= 1);
        Assert.True(seen[("kmem.pages.slow_paths", "")] >= 1);
    }

    [Fact]
    public void A_machine_that_is_gone_is_not_measured_any_more()
    {
        Machine machine = Boot("meter-3");
        Assert.NotEmpty(Collect("meter-3"));
        machine.Dispose();
        Assert.Empty(Collect("meter-3"));
    }

    [Fact]
    public async Task Collecting_while_machines_work_and_go_harms_nobody()
    {
        using var stop = new CancellationTokenSource();
        Task collector = Task.Run(() =>
        {
            while (!stop.IsCancellationRequested)
                Collect("meter-4");
        }, TestContext.Current.CancellationToken);
        for (int round = 0; round < 20; round++)
        {
            using Machine machine = Boot("meter-4", 16 << 20);
            using KmemPool pool = machine.CreatePool("p");
            Parallel.For(0, 4, _ =>
            {
                for (int i = 0; i < 500; i++)
                    pool.Rent(i).Dispose();
            });
            Assert.Empty(machine.Validate());
        }

        await stop.CancelAsync();
        await collector;
    }

    [Fact]
    public void Rare_events_are_told_to_listeners_and_a_listener_may_use_the_machine()
    {
        using var listener = new Events("events-1");
        Machine machine = Boot("events-1");
        listener.OnEvent = _ =>
        {
            // As a careless listener would: what it takes must not call it again, nor wait for itself.
            using KmemOwner<byte> own = machine.Rent<byte>(10);
        };
        using KmemPool pool = machine.CreatePool("p");
        var held = new List<IDisposable>();
        Assert.Throws<OutOfMemoryException>(() => RentForever(pool, held));
        held.ForEach(block => block.Dispose());
        KmemOwner<byte> leaked = machine.Rent<byte>(77);
        listener.OnEvent = null;
        machine.Dispose();

        Assert.Contains(listener.Seen, e => e is { Name: "MachineBooted", Payload: [_, 33554432L, 2, "linux-6.18"] });
        Assert.Contains(listener.Seen, e => e is { Name: "SlowPath", Payload: [_, 0, _] });
        Assert.Contains(listener.Seen, e => e is { Name: "PageFailure", Payload: [_, 0, string] });
        Assert.Contains(
            listener.Seen,
            e => e.Name == "OutOfMemory" && ((string)e.Payload[1]!).Contains("for KmemPool 'p'", StringComparison.Ordinal));
        Assert.Contains(
            listener.Seen, e => e is { Name: "Leak", Payload: [_, "at dispose", "Machine.Rent", "", 1L, 77L] });
        Assert.Contains(listener.Seen, e => e is { Name: "MachineDisposed", Payload: [_, 1L] });
        Assert.False(leaked.IsDisposed);
    }

    [Fact]
    public unsafe void Fallbacks_are_told()
    {
        using var listener = new Events("events-2");
        using Machine machine = Boot("events-2", 256 << 20);
        var frames = new List<Pfn>();
        while (!listener.Seen.Any(e => e.Name == "Fallback"))
        {
            Pfn frame = machine.AllocPage(Gfp.Kernel);
            Assert.True(frame.IsValid, "memory ran out before another type's block was taken");
            frames.Add(frame);
        }

        Assert.True(machine.Pages.Zones.Sum(zone => zone.Buddy.Fallbacks) > 0);
        frames.ForEach(machine.FreePage);
    }

    [Fact]
    public void The_event_source_has_a_valid_manifest() =>
        Assert.Contains(
            "Kmem", EventSource.GenerateManifest(typeof(KmemEventSource), "Kmem.dll")!, StringComparison.Ordinal);

    [Fact]
    public void The_guide_has_every_instrument()
    {
        string guide = File.ReadAllText(Repository.PathOf("docs/dotnet.md"));
        var names = new SortedSet<string>(StringComparer.Ordinal);
        using var listener = new MeterListener();
        listener.InstrumentPublished = (instrument, _) =>
        {
            if (instrument.Meter.Name == KmemMeter.Name)
                names.Add(instrument.Name);
        };
        using Machine machine = Boot("guide");
        listener.Start();
        Assert.True(names.Count > 10);
        Assert.All(names, name => Assert.Contains($"| `{name}` |", guide, StringComparison.Ordinal));
    }

    private static void RentForever(KmemPool pool, List<IDisposable> held)
    {
        while (true)
            held.Add(pool.Rent());
    }

    private static Dictionary<(string Name, string Tags), long> Collect(string machine)
    {
        var seen = new Dictionary<(string, string), long>();
        using var listener = new MeterListener();
        listener.InstrumentPublished = (instrument, l) =>
        {
            if (instrument.Meter.Name == "Kmem")
                l.EnableMeasurementEvents(instrument);
        };
        listener.SetMeasurementEventCallback<long>((instrument, value, tags, _) =>
        {
            if ((string?)tags[0].Value == machine)
                seen[(instrument.Name, string.Join(' ', tags[1..].ToArray().Select(tag => $"{tag.Key}={tag.Value}")))] = value;
        });
        listener.Start();
        listener.RecordObservableInstruments();
        return seen;
    }

    /// <summary>The events of one machine: tests run side by side in this process.</summary>
    private sealed class Events(string machine) : EventListener
    {
        public ConcurrentQueue<(string Name, IReadOnlyList<object?> Payload)> Seen { get; } = new();

        public Action<string>? OnEvent { get; set; }

        protected override void OnEventSourceCreated(EventSource eventSource)
        {
            if (eventSource.Name == "Kmem")
                EnableEvents(eventSource, EventLevel.Verbose);
        }

        protected override void OnEventWritten(EventWrittenEventArgs eventData)
        {
            if (eventData.EventSource.Name != "Kmem" || (string?)eventData.Payload?[0] != machine)
                return;

            Seen.Enqueue((eventData.EventName!, eventData.Payload.ToArray()));
            OnEvent?.Invoke(eventData.EventName!);
        }
    }
}
