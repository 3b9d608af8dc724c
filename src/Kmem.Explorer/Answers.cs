using System.Globalization;
using Kmem.Tracing;

namespace Kmem;

/// <summary>The answers to the questions of docs/explorer.md. This part: what the source is, frames, zones and
/// CPUs.</summary>
internal sealed partial class Answers(ExplorerSource source)
{
    public const int Protocol = 1;

    private const int MostSites = 500;

    private static readonly string[] s_migrateTypes =
        [.. Enum.GetValues<Migratetype>().Select(type => type.Name())];

    private readonly MachineShape _shape = source.Shape;

    public InfoAnswer Info()
    {
        Timeline? timeline = source.Timeline;
        var kinds = new List<EventKindAnswer>();
        if (timeline != null)
        {
            var counts = new int[Enum.GetValues<TraceEventKind>().Length];
            for (int n = 0; n < timeline.Events; n++)
                counts[(int)timeline.EventAt(n).Kind]++;
            kinds.AddRange(Enum.GetValues<TraceEventKind>().Where(kind => counts[(int)kind] > 0)
                .Select(kind => new EventKindAnswer((int)kind, EventText.NameOf(kind), counts[(int)kind])));
        }

        bool timed = timeline is { Events: > 0 };
        return new InfoAnswer(
            Protocol, source.Kind, source.Name, _shape.Profile, timeline != null, timeline?.Events ?? 0,
            timeline?.IsCut ?? false,
            timed ? timeline!.EventAt(0).TimestampNs : null,
            timed ? timeline!.EventAt(timeline.Events - 1).TimestampNs : null,
            _shape.Frames, _shape.RamBytes, (int)Pfn.PageSize, PageOrder.Pageblock, PageOrder.Max, _shape.Cpus,
            Hex(_shape.DirectMap),
            _shape.Zones,
            [.. Enum.GetValues<FrameKind>().Select(it =>
                new KindAnswer((int)it, FrameKinds.Name(it), FrameKinds.Label(it)))],
            [.. s_migrateTypes.Select((name, id) => new IdName(id, name))],
            kinds,
            Caches(),
            null,
            new LimitsAnswer(ExplorerLimits.MaxCells, ExplorerLimits.MaxEvents, ExplorerLimits.MaxRate));
    }

    public IReadOnlyList<IdName> Caches() => source.Ask(source.Now, machine =>
        machine.Slabs.Caches.Select(cache => new IdName(cache.Id + 1, cache.Name)).OrderBy(it => it.Id).ToArray());

    public SitesAnswer Sites(IReadOnlyList<int> ids)
    {
        if (ids.Count > MostSites)
            throw new QueryException($"ids are {ids.Count}, at most {MostSites} at a time", "ids");
        return new SitesAnswer(
            [.. ids.Select(id => SiteOf(id) ?? throw new QueryException($"there is no call site {id}", "ids", 404))]);
    }

    public SitesAnswer FindSites(string text, int limit)
    {
        var found = new List<IdName>();
        for (int id = 1; id < (source.CallSites?.Count ?? 0) && found.Count < limit; id++)
        {
            string name = source.CallSites![id];
            if (name.Contains(text, StringComparison.OrdinalIgnoreCase))
                found.Add(new IdName(id, name));
        }

        return new SitesAnswer(found);
    }

    public MachineAnswer Machine(int moment) =>
        source.AskFrames(moment, frames => Machine(frames, WatermarksAt(moment)));

    /// <summary>
    /// The numbers of the frames, and what only the allocators know. Those of a recording are asked only when somebody
    /// wants them: while a film plays, the frames' own numbers do.
    /// </summary>
    public MachineAnswer Machine(FrameSource frames, IReadOnlyList<ZoneMarks>? marks)
    {
        FrameMap map = frames.Map;
        var counts = new Dictionary<string, long>(StringComparer.Ordinal) { ["total"] = (long)map.Frames };
        for (int kind = 1; kind < FrameKinds.Count; kind++)
            counts[FrameKinds.Name((FrameKind)kind)] = map.FramesOf((FrameKind)kind);
        return new MachineAnswer(
            "machine",
            frames.Moment,
            counts,
            [.. _shape.Zones.Select(zone => ZoneOf(zone, map, marks?[zone.Id]))],
            [.. Enumerable.Range(0, _shape.Cpus).Select(cpu => new CpuAnswer(cpu, [.. _shape.Zones.Select(zone =>
            {
                long listed = map.PcpFrames(zone.Id, cpu);
                PcpMarks? tuning = marks?[zone.Id].Pcp[cpu];
                return new CpuZoneAnswer(zone.Id, listed, tuning?.High, tuning?.Batch);
            })]))],
            frames.Cursor == null ? source.CountersNow() : CountersOf(frames.Cursor));
    }

    public IReadOnlyList<ZoneMarks> WatermarksAt(int moment) => source.Ask(moment, machine =>
        machine.Pages.Zones.Select(pages => new ZoneMarks(
            pages.Zone.Watermarks,
            pages.Zone.Boost,
            pages.Zone.ReservedHighAtomic,
            [.. Enumerable.Range(0, machine.Cpus).Select(cpu => PcpOf(pages, cpu))])).ToArray());

    public PcpAnswer Pcp(int moment, int cpu) => source.Ask(moment, machine => new PcpAnswer(moment, cpu,
        [.. machine.Pages.Zones.Select((pages, id) => new PcpZoneAnswer(id, ListsOf(machine, pages, cpu)))]));

    public FrameAnswer Frame(int moment, ulong pfn)
    {
        if (pfn >= _shape.Frames)
            throw new QueryException($"there is no frame {pfn}: the machine has {_shape.Frames}", "pfn", 404);

        return source.AskFrames(moment, frames =>
        {
            FrameMap map = frames.Map;
            FrameCell cell = map.At(pfn);
            ulong head = cell.HeadOf(pfn);
            byte zone = map.ZoneOf(pfn);
            ulong block = pfn & ~(ulong)(PageOrder.PageblockPages - 1);
            int pins = 0;
            for (ulong frame = block; frame < Math.Min(block + PageOrder.PageblockPages, map.Frames); frame++)
                pins += map.IsPin(map.At(frame), frame) ? 1 : 0;
            FrameCell first = map.At(head);
            return new FrameAnswer(
                frames.Moment, pfn, Hex(_shape.DirectMap + (pfn << Pfn.PageShift)), FrameKinds.Name(cell.Kind),
                    cell.Order, head,
                zone == FrameMap.NoZone ? null : zone,
                s_migrateTypes[(int)map.TypeOf(pfn)],
                cell.Kind is FrameKind.Slab or FrameKind.Pcp ? cell.Owner : null,
                cell.Kind == FrameKind.Slab ? CacheName(moment, cell.Owner) : null,
                cell.Born, SiteOf(cell.Site),
                new PageblockAnswer(block, PageOrder.PageblockPages, map.UsedOf(pfn), pins),
                cell.Kind == FrameKind.Slab ? first.InUse : null,
                cell.Kind == FrameKind.Slab ? first.Objects : null);
        });
    }

    public IdName? SiteOf(int id) =>
        id > 0 && source.CallSites is { } sites && id < sites.Count ? new IdName(id, sites[id]) : null;

    internal static string Hex(ulong value) => string.Create(CultureInfo.InvariantCulture, $"0x{value:x16}");

    internal static IReadOnlyDictionary<string, long> CountersOf(TimelineCursor cursor) =>
        new Dictionary<string, long>(StringComparer.Ordinal)
        {
            ["objectAllocs"] = cursor.Counter(TickKind.ObjectAlloc),
            ["objectFrees"] = cursor.Counter(TickKind.ObjectFree),
            ["pageAllocs"] = cursor.Counter(TickKind.PageAlloc),
            ["pageFrees"] = cursor.Counter(TickKind.PageFree),
            ["splits"] = cursor.Counter(TickKind.Split),
            ["merges"] = cursor.Counter(TickKind.Merge),
            ["fallbacks"] = cursor.Counter(TickKind.Fallback),
            ["claims"] = cursor.Counter(TickKind.Claim),
            ["refills"] = cursor.Counter(TickKind.Refill),
            ["drains"] = cursor.Counter(TickKind.Drain),
            ["newSlabs"] = cursor.Counter(TickKind.NewSlab),
            ["freeSlabs"] = cursor.Counter(TickKind.FreeSlab),
            ["slowPaths"] = cursor.Counter(TickKind.SlowPath),
            ["failures"] = cursor.Counter(TickKind.Failure),
        };

    private static ZoneAnswer ZoneOf(ZoneShape zone, FrameMap map, ZoneMarks? marks)
    {
        var blocks = new int[Migratetypes.Count];
        map.CountBlocks(zone.Id, blocks);
        long listed = 0;
        for (int cpu = 0; cpu < map.Cpus; cpu++)
            listed += map.PcpFrames(zone.Id, cpu);
        return new ZoneAnswer(
            zone.Id, zone.Node, zone.Name, zone.Managed, zone.Present, map.FreeFrames(zone.Id),
            marks?.Watermarks.Min, marks?.Watermarks.Low, marks?.Watermarks.High, marks?.Watermarks.Promo, marks?.Boost,
            listed, marks?.ReservedHighatomic,
            [.. Enumerable.Range(0, PageOrder.Count).Select(order =>
            {
                long[] byType = [.. Enumerable.Range(0, Migratetypes.Count).Select(
                    type => map.FreeBlocks(zone.Id, order, (Migratetype)type))];
                return new FreeBlocksAnswer(order, byType.Sum(), byType);
            })],
            blocks);
    }

    private static unsafe PcpMarks PcpOf(ZonePages pages, int cpu) =>
        new(pages.PcpOf(cpu)->High, pages.PcpOf(cpu)->Batch);

    private static unsafe List<PcpListAnswer> ListsOf(Machine machine, ZonePages pages, int cpu)
    {
        PerCpuPages* pcp = pages.PcpOf(cpu);
        var lists = new List<PcpListAnswer>();
        for (int list = 0; list < PerCpuPages.ListCount; list++)
        {
            List<ulong> frames = PageLists.Frames(machine, PerCpuPages.ListOf(pcp, list), Math.Max(pcp->Count, 0));
            if (frames.Count > 0)
            {
                int order = PerCpuPages.OrderOfList(list);
                int type = list >= 12 ? (list == 13 ? 1 : 0) : list % 3;
                lists.Add(new PcpListAnswer(order, type, frames));
            }
        }

        return lists;
    }

    private string? CacheName(int moment, int id) => source.Timeline?.CacheName(id) ?? source.Ask(moment, machine =>
        machine.Slabs.Caches.FirstOrDefault(cache => cache.Id + 1 == id)?.Name);
}

/// <summary>What a client may ask for at most.</summary>
internal static class ExplorerLimits
{
    public const int MaxCells = 65536;
    public const int DefaultCells = 16384;
    public const int MaxEvents = 1000;
    public const int MaxRate = 30;
    public const int MaxMessageBytes = 64 << 10;
}

/// <summary>Lists through page descriptors, walked without locks: each link is checked before it is followed.</summary>
internal static class PageLists
{
    public static unsafe List<ulong> Frames(Machine machine, ListHead* head, int most)
    {
        var frames = new List<ulong>();
        for (ListHead* node = head->Next; node != head && frames.Count < most; node = node->Next)
        {
            if (!IsPage(machine, Page.FromLru(node)))
                break;
            frames.Add(machine.Map.PfnOf(Page.FromLru(node)));
        }

        return frames;
    }

    public static unsafe bool IsPage(Machine machine, Page* page)
    {
        nint offset = (nint)((byte*)page - (byte*)machine.Map.Base);
        return offset >= 0 && offset % Page.SizeInBytes == 0 && (ulong)offset >> Page.SizeShift < machine.Map.EndPfn;
    }
}

internal sealed record IdName(int Id, string Name);

internal sealed record KindAnswer(int Id, string Name, string Label);

internal sealed record EventKindAnswer(int Id, string Name, int Count);

internal sealed record LimitsAnswer(int MaxCells, int MaxEvents, int MaxRate);

internal sealed record InfoAnswer(
    int Protocol, string Source, string Name, string Profile, bool Seekable, int Events, bool Cut, ulong? FirstNs,
    ulong? LastNs, ulong Frames, ulong RamBytes, int PageBytes, int PageblockOrder, int MaxOrder, int Cpus,
    string DirectMap, IReadOnlyList<ZoneShape> Zones, IReadOnlyList<KindAnswer> Kinds,
    IReadOnlyList<IdName> MigrateTypes, IReadOnlyList<EventKindAnswer> EventKinds, IReadOnlyList<IdName> Caches,
    IReadOnlyList<int>? DeepMoments, LimitsAnswer Limits);

internal sealed record SitesAnswer(IReadOnlyList<IdName> Sites);

internal sealed record CachesAnswer(IReadOnlyList<IdName> Caches);

internal sealed record MachineAnswer(
    string Type, int T, IReadOnlyDictionary<string, long> Frames, IReadOnlyList<ZoneAnswer> Zones,
    IReadOnlyList<CpuAnswer> Cpus, IReadOnlyDictionary<string, long> Counters);

internal sealed record ZoneAnswer(
    int Id, int Node, string Name, ulong Managed, ulong Present, long Free, long? Min, long? Low, long? High,
        long? Promo,
    long? Boost, long PcpFrames, long? ReservedHighatomic, IReadOnlyList<FreeBlocksAnswer> FreeBlocks,
    IReadOnlyList<int> Pageblocks);

internal sealed record FreeBlocksAnswer(int Order, long Total, IReadOnlyList<long> ByType);

internal sealed record CpuAnswer(int Cpu, IReadOnlyList<CpuZoneAnswer> Zones);

internal sealed record CpuZoneAnswer(int Zone, long Frames, int? High, int? Batch);

internal sealed record ZoneMarks(
    Watermarks Watermarks, long Boost, long ReservedHighatomic, IReadOnlyList<PcpMarks> Pcp);

internal sealed record PcpMarks(int High, int Batch);

internal sealed record PcpAnswer(int T, int Cpu, IReadOnlyList<PcpZoneAnswer> Zones);

internal sealed record PcpZoneAnswer(int Zone, IReadOnlyList<PcpListAnswer> Lists);

internal sealed record PcpListAnswer(int Order, int MigrateType, IReadOnlyList<ulong> Frames);

internal sealed record FrameAnswer(
    int T, ulong Pfn, string Address, string Kind, int Order, ulong Head, int? Zone, string MigrateType, int? Owner,
    string? OwnerName, uint Born, IdName? Site, PageblockAnswer Pageblock, int? InUse, int? Objects);

internal sealed record PageblockAnswer(ulong First, int Frames, int InUse, int Pins);
