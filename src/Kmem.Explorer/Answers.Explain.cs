using System.Text.Json;
using Kmem.Tracing;

namespace Kmem;

/// <content>What is behind an address, and what an event made the allocators do.</content>
internal sealed partial class Answers
{
    /// <summary>The sentence and the values of <see cref="Kmem.Machine.Explain(VirtAddr)"/>, and the way there in
    /// steps. Of a machine at work each of them shows some moment.</summary>
    public ExplainAnswer Explain(int moment, ulong address)
    {
        Explanation found = source.Explain(moment, (machine, memory) => Explained(machine, address, memory));
        (string kind, IReadOnlyList<ExplainStep> steps) = _shape.PfnOf(address) is { } pfn
            ? StepsToFrame(moment, address, pfn)
            : StepsOfWalk(moment, address);
        using JsonDocument values = JsonDocument.Parse(found.ToJson());
        return new ExplainAnswer(moment, Hex(address), kind, found.Sentence, steps, values.RootElement.Clone());
    }

    private Explanation Explained(Machine machine, ulong address, EventMemory? memory = null) => machine.ExplainWith(
        new VirtAddr(address), source.RecordedTables is { } tables ? va => tables(new VirtAddr(va)) : null, memory);

    /// <summary>What the allocators did for one event, in order.</summary>
    public ExplainAnswer ExplainEvent(int n)
    {
        Timeline timeline = Recording;
        if (n >= timeline.Events)
            throw new QueryException($"there is no event {n}: the recording has {timeline.Events}", "event", 404);

        StoredEvent e = timeline.EventAt(n);
        var steps = new List<ExplainStep>();
        foreach (ref readonly Tick tick in timeline.TicksOf(n, n + 1))
            steps.Add(StepOf(tick, timeline));
        string? address = null;
        foreach (ref readonly ObjectChange change in timeline.ObjectsOf(n, n + 1))
        {
            address = Hex(_shape.DirectMap + change.Offset);
            string whose = timeline.CacheName(change.Cache) ?? "large kmalloc";
            steps.Add(new ExplainStep(
                change.Sign > 0 ? "alloc" : "free",
                change.Sign > 0 ? $"{whose} gives out {address}" : $"{address} goes back to {whose}",
                new(StringComparer.Ordinal) { ["requested"] = change.Requested, ["cache"] = change.Cache }));
        }

        if (StoredEvent.IsOfAreas(e.Kind) && e.Result is (EventResult.Ok or EventResult.Unknown))
        {
            address = e.Kind == TraceEventKind.PurgeVmapAreaLazy ? null : Hex(e.Place);
            steps.Add(StepOfArea(e));
        }

        string what = EventText.NameOf(e.Kind);
        string summary = steps.Count == 0
            ? $"Event {n}, {what}: nothing changed."
            : $"Event {n}, {what}: {string.Join("; ", steps.Select(step => step.Text))}.";
        return new ExplainAnswer(n, address, what, summary, steps, null);
    }

    public static string NameOf(TickKind kind)
    {
        string name = kind.ToString();
        return char.ToLowerInvariant(name[0]) + name[1..];
    }

    private (string Kind, IReadOnlyList<ExplainStep> Steps) StepsToFrame(int moment, ulong address, ulong pfn)
    {
        FrameAnswer frame = Frame(moment, pfn);
        var steps = new List<ExplainStep>();
        if (frame.Zone is { } zone)
        {
            ZoneShape its = _shape.Zones[zone];
            steps.Add(new ExplainStep("zone", $"frame {pfn} is in zone {its.Name} of node {its.Node}",
                new(StringComparer.Ordinal)
                {
                    ["start"] = (long)its.Start,
                    ["end"] = (long)its.End,
                    ["managed"] = (long)its.Managed,
                }));
        }

        steps.Add(new ExplainStep(
            "pageblock",
            $"its pageblock is {frame.MigrateType}: {frame.Pageblock.InUse} of {frame.Pageblock.Frames} frames "
                + "are in use",
            new(StringComparer.Ordinal)
            {
                ["first"] = (long)frame.Pageblock.First,
                ["inUse"] = frame.Pageblock.InUse,
                ["pins"] = frame.Pageblock.Pins,
            }));
        steps.Add(new ExplainStep("block", BlockText(frame), new(StringComparer.Ordinal)
        {
            ["head"] = (long)frame.Head,
            ["order"] = frame.Order,
            ["born"] = frame.Born,
        }));
        if (frame.Kind == "slab" && TryObject(moment, address) is { } obj)
        {
            string since = obj.Born > 0
                ? $", since event {obj.Born - 1}" + (obj.Site is { } site ? $" by {site.Name}" : "")
                : "";
            string use = obj.Allocated ? "in use" : "free";
            string text = $"object {obj.Index} of a slab of {obj.CacheName}, {use}{since}";
            steps.Add(new ExplainStep("object", text, new(StringComparer.Ordinal)
            {
                ["index"] = obj.Index ?? 0,
                ["size"] = obj.Size,
                ["objectSize"] = obj.ObjectSize,
                ["requested"] = obj.Requested ?? 0,
                ["offset"] = (long)(address - Convert.ToUInt64(obj.Address, 16)),
            }));
        }

        return (frame.Kind, steps);
    }

    private (string Kind, IReadOnlyList<ExplainStep> Steps) StepsOfWalk(int moment, ulong address)
    {
        try
        {
            WalkAnswer walk = Walk(moment, address);
            return (walk.Region, [.. walk.Steps.Select(step => new ExplainStep(
                step.Level,
                step.Entry.Length == 0 ? $"{step.Level}[{step.Index}], not recorded"
                    : $"{step.Level}[{step.Index}] = {step.Entry} {step.Flags}",
                new(StringComparer.Ordinal) { ["index"] = step.Index }))]);
        }
        catch (QueryException)
        {
            return ("nothing", []);     // the sentence says why
        }
    }

    private ObjectAnswer? TryObject(int moment, ulong address)
    {
        try
        {
            return Object(moment, address);
        }
        catch (QueryException)
        {
            return null;        // the unused rest of a slab
        }
    }

    private string BlockText(FrameAnswer frame) => frame.Kind switch
    {
        "free" => $"part of a free block of order {frame.Order} that begins at frame {frame.Head}",
        "pcp" => $"free, on a list of CPU {frame.Owner}",
        "slab" => $"part of a slab of {frame.OwnerName}, {frame.InUse} of {frame.Objects} objects in use",
        "reserved" => "memory that the page allocator never had",
        "hole" => "no memory",
        "large" => $"part of a large kmalloc block of order {frame.Order}",
        "pageTable" => "a page table",
        _ => $"part of {frame.Kind} pages, a block of order {frame.Order}",
    } + (frame.Born > 0 ? $", since event {frame.Born - 1}" : "");

    private static ExplainStep StepOf(in Tick tick, Timeline timeline)
    {
        string text = tick.Kind switch
        {
            TickKind.Split => $"a free block of order {tick.FromOrder} is split for order {tick.Order}",
            TickKind.Merge => $"what came back merges to a free block of order {tick.FromOrder}",
            TickKind.Fallback => $"no block of the wanted type: {TypeOf(tick.Migratetype)} steals order {tick.FromOrder} "
                + $"from {TypeOf(tick.FromType)}",
            TickKind.Claim => $"no block of the wanted type: {TypeOf(tick.Migratetype)} claims a pageblock "
                + $"of {TypeOf(tick.FromType)}",
            TickKind.Refill => $"CPU {tick.Cpu} refills its list with {tick.Count} blocks of order {tick.Order}",
            TickKind.Drain => $"CPU {tick.Cpu} gives back {tick.Count} blocks of order {tick.Order}",
            TickKind.NewSlab => $"{timeline.CacheName(tick.Cache)} gets a new slab of order {tick.Order} "
                + $"at frame {tick.Pfn}",
            TickKind.FreeSlab => $"{timeline.CacheName(tick.Cache)} gives up the slab at frame {tick.Pfn}",
            TickKind.SlowPath => $"no zone is above its low watermark for order {tick.Order}: the slow path",
            _ => $"no memory for order {tick.Order}",
        };
        return new ExplainStep(NameOf(tick.Kind), text, new(StringComparer.Ordinal)
        {
            ["pfn"] = tick.Pfn,
            ["order"] = tick.Order,
            ["count"] = tick.Count,
        });
    }

    private static ExplainStep StepOfArea(in StoredEvent e) => e.Kind switch
    {
        TraceEventKind.AllocVmapArea => new ExplainStep(
            "area", $"an area of {e.Detail} pages, its guard page included, is given out at {Hex(e.Place)}",
            new(StringComparer.Ordinal) { ["pages"] = e.Detail, ["align"] = e.BytesAllocated }),
        TraceEventKind.FreeVmapAreaNoflush => new ExplainStep(
            "area", $"the area at {Hex(e.Place)} is freed; its addresses stay unused until a purge",
            new(StringComparer.Ordinal) { ["lazyPages"] = e.Detail }),
        _ => new ExplainStep("area", "a purge: freed addresses become usable again", new(StringComparer.Ordinal)),
    };

    private static string TypeOf(byte type) => type < s_migrateTypes.Length ? s_migrateTypes[type] : "?";
}

internal sealed record ExplainAnswer(int T, string? Address, string Kind, string Summary,
    IReadOnlyList<ExplainStep> Steps, JsonElement? Explanation);

internal sealed record ExplainStep(string Name, string Text, Dictionary<string, long> Values);
