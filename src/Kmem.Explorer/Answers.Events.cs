using System.Text.Json;
using Kmem.Tracing;

namespace Kmem;

/// <summary>Which events somebody wants to see; null means all.</summary>
internal sealed record EventFilter
{
    public IReadOnlySet<string>? Kinds { get; init; }

    public int? Cpu { get; init; }

    public int? Pid { get; init; }

    public string? Cache { get; init; }

    /// <summary>A part of the call site's name.</summary>
    public string? Site { get; init; }

    /// <summary>Of the recording, or of this machine.</summary>
    public ulong? Address { get; init; }
}

/// <content>Events, when there were how many, and what changed between two moments.</content>
internal sealed partial class Answers
{
    private const int MostBuckets = 4000;
    private const int MostRanges = 1000;
    private const int MostDiffSites = 100;

    private Timeline Recording => source.Timeline
        ?? throw new QueryException("this is no recording: there are no events and no other moments", null, 409);

    /// <summary>Writes the page of events from a number on, in one direction.</summary>
    public void WriteEvents(Utf8JsonWriter json, int from, int limit, int direction, EventFilter filter)
    {
        Timeline timeline = Recording;
        Func<int, bool> matches = Compile(timeline, filter);
        int n = Math.Clamp(from, 0, Math.Max(timeline.Events - 1, 0));
        int found = 0;
        json.WriteStartObject();
        json.WriteStartArray("events"u8);
        for (; n >= 0 && n < timeline.Events && found < limit; n += direction)
        {
            if (!matches(n))
                continue;
            EventText.Write(json, timeline, _shape, n);
            found++;
        }

        while (n >= 0 && n < timeline.Events && !matches(n))
            n += direction;
        bool more = n >= 0 && n < timeline.Events;
        json.WriteEndArray();
        if (more)
            json.WriteNumber("next"u8, n);
        else
            json.WriteNull("next"u8);
        json.WriteBoolean("more"u8, more);
        json.WriteEndObject();
    }

    public HistogramAnswer Histogram(int buckets)
    {
        Timeline timeline = Recording;
        buckets = Math.Clamp(buckets, 1, Math.Min(MostBuckets, Math.Max(timeline.Events, 1)));
        var objects = new int[buckets];
        var pages = new int[buckets];
        var slow = new int[buckets];
        var free = new long[buckets];
        TimelineCursor cursor = timeline.Open();
        for (int bucket = 0; bucket < buckets; bucket++)
        {
            int end = (int)((long)timeline.Events * (bucket + 1) / buckets);
            for (int n = (int)((long)timeline.Events * bucket / buckets); n < end; n++)
            {
                if (StoredEvent.IsOfPages(timeline.EventAt(n).Kind))
                    pages[bucket]++;
                else
                    objects[bucket]++;
            }

            foreach (ref readonly Tick tick in timeline.TicksOf(cursor.Moment, end))
                slow[bucket] += tick.Kind is TickKind.SlowPath or TickKind.Failure or TickKind.Fallback or TickKind.Claim
                    ? 1 : 0;
            cursor.MoveTo(end);
            free[bucket] = cursor.Map.FramesOf(FrameKind.Free);
        }

        return new HistogramAnswer(
            buckets, (double)timeline.Events / buckets,
            [new SeriesAnswer("objects", objects), new SeriesAnswer("pages", pages), new SeriesAnswer("slow", slow)],
                free);
    }

    public DiffAnswer Diff(int from, int to)
    {
        Timeline timeline = Recording;
        TimelineCursor old = timeline.Open();
        TimelineCursor now = timeline.Open();
        old.MoveTo(from);
        now.MoveTo(to);
        (List<RangeAnswer> ranges, long changed, bool truncated) = RangesOf(old.Map, now.Map);
        IReadOnlyDictionary<string, long> before = CountersOf(old);
        return new DiffAnswer(
            from, to, Math.Abs(to - from),
            NonZero(Enumerable.Range(0, FrameKinds.Count).Select(kind => KeyValuePair.Create(
                FrameKinds.Name((FrameKind)kind),
                    now.Map.FramesOf((FrameKind)kind) - old.Map.FramesOf((FrameKind)kind)))),
            changed,
            CachesOf(old, now),
            SitesOf(timeline, from, to, old.Map, now.Map),
            NonZero(CountersOf(now).Select(pair => KeyValuePair.Create(pair.Key, pair.Value - before[pair.Key]))),
            [.. _shape.Zones.Select(zone => new ZoneDiffAnswer(
                zone.Id,
                now.Map.FreeFrames(zone.Id) - old.Map.FreeFrames(zone.Id),
                [.. Enumerable.Range(0, PageOrder.Count).Select(order => Enum.GetValues<Migratetype>().Sum(
                    type => now.Map.FreeBlocks(zone.Id, order, type) - old.Map.FreeBlocks(zone.Id, order, type)))]))
                .Where(zone => zone.Free != 0 || zone.FreeBlocks.Any(blocks => blocks != 0))],
            ranges,
            truncated);
    }

    private static Func<int, bool> Compile(Timeline timeline, EventFilter filter)
    {
        var kinds = new bool[Enum.GetValues<TraceEventKind>().Length];
        foreach (TraceEventKind kind in Enum.GetValues<TraceEventKind>())
            kinds[(int)kind] = filter.Kinds?.Contains(EventText.NameOf(kind)) ?? true;
        HashSet<int>? sites = filter.Site == null
            ? null : [.. Enumerable.Range(1, Math.Max(timeline.CallSites.Count - 1, 0))
            .Where(id => timeline.CallSites[id].Contains(filter.Site, StringComparison.OrdinalIgnoreCase))];
        HashSet<int>? caches = filter.Cache == null
            ? null : [.. Enumerable.Range(1, Math.Max(timeline.Names.Count - 1, 0))
            .Where(id => timeline.Names[id].Equals(filter.Cache, StringComparison.Ordinal))];
        ulong direct = timeline.Machines.Ask(timeline.Events, machine => machine.Slabs.Addresses.DirectMap);
        return n =>
        {
            ref readonly StoredEvent e = ref timeline.EventAt(n);
            return kinds[(int)e.Kind]
                && (filter.Cpu == null || e.Cpu == filter.Cpu)
                && (filter.Pid == null || e.Pid == filter.Pid)
                && (sites == null || sites.Contains(e.CallSite))
                && (caches == null || (e.Kind != TraceEventKind.Other && caches.Contains(e.Name))
                    || IsOf(timeline, n, filter.Cache!))
                && (filter.Address is not { } address || Touches(timeline, n, e, address, direct));
        };
    }

    /// <summary>kmalloc and kfree do not name their cache: the object that they are about does.</summary>
    private static bool IsOf(Timeline timeline, int n, string cache)
    {
        if (timeline.EventAt(n).Kind is not (TraceEventKind.Kmalloc or TraceEventKind.Kfree))
            return false;
        foreach (ref readonly ObjectChange change in timeline.ObjectsOf(n, n + 1))
        {
            if (timeline.CacheName(change.Cache) == cache)
                return true;
        }

        return false;
    }

    private static bool Touches(Timeline timeline, int n, in StoredEvent e, ulong address, ulong direct)
    {
        if (!StoredEvent.IsOfPages(e.Kind) && e.Place == address)
            return true;

        if (e.Kind == TraceEventKind.AllocVmapArea && address - e.Place < (ulong)e.Detail << Pfn.PageShift)
            return true;

        ulong offset = address - direct;
        foreach (ref readonly ObjectChange change in timeline.ObjectsOf(n, n + 1))
        {
            if (offset >= change.Offset && offset < change.Offset + Math.Max(change.Requested, 1))
                return true;
        }

        ulong pfn = offset >> Pfn.PageShift;
        foreach (ref readonly FrameChange change in timeline.FramesOf(n, n + 1))
        {
            if (pfn >= change.Pfn && pfn < (ulong)change.Pfn + change.Count
                && FrameKinds.IsInUse(change.From.Kind) != FrameKinds.IsInUse(change.To.Kind))
            {
                return true;
            }
        }

        return false;
    }

    private static (List<RangeAnswer> Ranges, long Changed, bool Truncated) RangesOf(FrameMap old, FrameMap now)
    {
        var ranges = new List<RangeAnswer>();
        long changed = 0;
        bool truncated = false;
        for (ulong pfn = 0; pfn < now.Frames;)
        {
            FrameCell was = old.At(pfn);
            FrameCell cell = now.At(pfn);
            if (was.Kind == FrameKind.Free && cell.Kind == FrameKind.Free)
            {
                int order = Math.Min(was.Order, cell.Order);
                pfn = (pfn | ((1UL << order) - 1)) + 1;
                continue;
            }

            if (was.Kind == cell.Kind && was.Owner == cell.Owner && was.Born == cell.Born)
            {
                pfn++;
                continue;
            }

            ulong end = pfn + 1;
            while (end < now.Frames && old.At(end).Kind == was.Kind && now.At(end).Kind == cell.Kind
                && (was.Kind != cell.Kind || old.At(end).Owner != now.At(end).Owner
                    || old.At(end).Born != now.At(end).Born))
            {
                end++;
            }

            changed += (long)(end - pfn);
            if (ranges.Count < MostRanges)
                ranges.Add(new RangeAnswer(pfn, end - pfn, FrameKinds.Name(was.Kind), FrameKinds.Name(cell.Kind)));
            else
                truncated = true;
            pfn = end;
        }

        return (ranges, changed, truncated);
    }

    private List<CacheDiffAnswer> CachesOf(TimelineCursor old, TimelineCursor now)
    {
        // The number of slots is the machine's to know; it was the same for all slabs but those of a smaller order.
        int last = Math.Max(old.Moment, now.Moment);
        return [.. source.Ask(last, machine => machine.Slabs.Caches.OrderBy(cache => cache.Id).Select(cache =>
        {
            int slabs = now.Map.Slabs(cache.Id + 1) - old.Map.Slabs(cache.Id + 1);
            return new CacheDiffAnswer(
                cache.Id + 1, cache.Name, slabs, slabs * cache.Geometry.ObjectsPerSlab,
                now.Active(cache.Id + 1) - old.Active(cache.Id + 1));
        }).Where(cache => cache.Slabs != 0 || cache.Active != 0).ToArray())];
    }

    /// <summary>Who took more than came back in between, most bytes first.</summary>
    private List<SiteDiffAnswer> SitesOf(Timeline timeline, int from, int to, FrameMap old, FrameMap now)
    {
        int sign = to >= from ? 1 : -1;
        int low = Math.Min(from, to);
        var sums = new Dictionary<int, (long Frames, long Objects, long Bytes)>();
        var owners = new Dictionary<ulong, (int Site, uint Bytes)>();
        for (int n = 0; n < Math.Max(from, to); n++)
        {
            foreach (ref readonly ObjectChange change in timeline.ObjectsOf(n, n + 1))
            {
                if (change.Sign > 0)
                    owners[change.Offset] = (timeline.EventAt(n).CallSite, change.Requested);
                else if (!owners.ContainsKey(change.Offset))
                    continue;

                (int site, uint bytes) = owners[change.Offset];
                if (change.Sign < 0)
                    owners.Remove(change.Offset);
                if (n < low)
                    continue;

                int step = sign * change.Sign;
                (long frames, long objects, long total) = sums.GetValueOrDefault(site);
                sums[site] = (frames, objects + step, total + (step * bytes));
            }
        }

        CountFrames(now, sums, 1);
        CountFrames(old, sums, -1);
        return [.. sums.Where(pair => pair.Key > 0 && pair.Value is not (0, 0, 0))
            .OrderByDescending(pair => Math.Abs(pair.Value.Bytes) + (Math.Abs(pair.Value.Frames) << Pfn.PageShift))
            .ThenBy(pair => pair.Key)
            .Take(MostDiffSites)
            .Select(pair => new SiteDiffAnswer(SiteOf(pair.Key)!, pair.Value.Frames, pair.Value.Objects,
                pair.Value.Bytes))];
    }

    private static void CountFrames(FrameMap map, Dictionary<int, (long Frames, long Objects, long Bytes)> sums,
        int sign)
    {
        for (ulong pfn = 0; pfn < map.Frames;)
        {
            FrameCell cell = map.At(pfn);
            if (cell.Kind == FrameKind.Free)
            {
                pfn = (pfn | ((1UL << cell.Order) - 1)) + 1;
                continue;
            }

            if (cell.Site > 0)
            {
                (long frames, long objects, long bytes) = sums.GetValueOrDefault(cell.Site);
                sums[cell.Site] = (frames + sign, objects, bytes);
            }

            pfn++;
        }
    }

    private static Dictionary<string, long> NonZero(IEnumerable<KeyValuePair<string, long>> pairs) =>
        pairs.Where(pair => pair.Value != 0).ToDictionary(StringComparer.Ordinal);
}

internal sealed record HistogramAnswer(int Buckets, double PerBucket, IReadOnlyList<SeriesAnswer> Series,
    IReadOnlyList<long> FreeFrames);

internal sealed record SeriesAnswer(string Name, IReadOnlyList<int> Counts);

internal sealed record DiffAnswer(
    int From, int To, int Events, IReadOnlyDictionary<string, long> Frames, long ChangedFrames,
        IReadOnlyList<CacheDiffAnswer> Caches,
    IReadOnlyList<SiteDiffAnswer> Sites, IReadOnlyDictionary<string, long> Counters,
        IReadOnlyList<ZoneDiffAnswer> Zones,
    IReadOnlyList<RangeAnswer> Ranges, bool RangesTruncated);

internal sealed record CacheDiffAnswer(int Id, string Name, long Slabs, long Objects, long Active);

internal sealed record SiteDiffAnswer(IdName Site, long Frames, long Objects, long Bytes);

internal sealed record ZoneDiffAnswer(int Id, long Free, IReadOnlyList<long> FreeBlocks);

internal sealed record RangeAnswer(ulong First, ulong Count, string From, string To);
