using System.Globalization;
using System.Text.RegularExpressions;

namespace Kmem.Tests;

/// <summary>
/// What a replay must count, worked out from the text of a trace with regular expressions and dictionaries, without a
/// machine: every allocation succeeds, and gets the bytes that the trace says.
/// </summary>
internal sealed partial class ReplayModel
{
    private readonly Dictionary<ulong, Object> _objects = [];
    private readonly Dictionary<ulong, Block> _blocks = [];
    private readonly Dictionary<ulong, ulong> _headOfFrame = [];

    public long Events { get; private set; }

    public long Kmallocs { get; private set; }

    public long CacheAllocs { get; private set; }

    public long ObjectFrees { get; private set; }

    public long PageFrees { get; private set; }

    public long UnknownFrees { get; private set; }

    public long NullFrees { get; private set; }

    public long MissedFrees { get; private set; }

    public long Skipped { get; private set; }

    public long VmapAllocs { get; private set; }

    public long VmapFrees { get; private set; }

    public long VmapPurges { get; private set; }

    public long SlabPages { get; private set; }

    public long PageAllocs { get; private set; }

    public long LiveObjects => _objects.Count;

    public long LiveBytes => _objects.Values.Sum(o => o.Given);

    public long LivePages => _blocks.Values.Where(b => !b.IsSlab).Sum(b => 1L << b.Order);

    /// <summary>Name, live objects, bytes asked for by them, most objects at a time; of the named caches.</summary>
    public IEnumerable<(string Name, long Live, long Requested, long Peak)> Caches => _peaks
        .Select(pair => (
            pair.Key,
            Live(pair.Key).LongCount(),
            Live(pair.Key).Sum(o => o.Requested),
            pair.Value))
        .OrderBy(cache => cache.Key, StringComparer.Ordinal);

    /// <summary>The callers with live bytes, most first.</summary>
    public IEnumerable<(string Site, long Objects, long Bytes)> Sites => _objects.Values
        .GroupBy(o => o.Site, StringComparer.Ordinal)
        .Select(site => (site.Key, site.LongCount(), site.Sum(o => o.Given)))
        .OrderByDescending(site => site.Item3);

    private readonly Dictionary<string, long> _peaks = new(StringComparer.Ordinal);
    private readonly HashSet<ulong> _areas = [];
    private readonly Dictionary<string, long> _live = new(StringComparer.Ordinal);

    public static ReplayModel Of(string text)
    {
        var model = new ReplayModel();
        foreach (string line in text.Split('\n'))
        {
            Match match = LineModel().Match(line);
            if (match.Success)
                model.Step(match.Groups["event"].Value, match.Groups["text"].Value);
        }

        return model;
    }

    private IEnumerable<Object> Live(string cache) => _objects.Values.Where(o => o.Cache == cache);

    private void Step(string name, string text)
    {
        Events++;
        Dictionary<string, string> f = FieldModel().Matches(text)
            .ToDictionary(x => x.Groups["key"].Value, x => x.Groups["value"].Value, StringComparer.Ordinal);
        switch (name)
        {
            case "kmalloc":
                Kmallocs++;
                Alloc(f, string.Empty);
                break;
            case "kmem_cache_alloc":
                CacheAllocs++;
                Alloc(f, f["name"]);
                break;
            case "kfree" or "kmem_cache_free":
                Free(Hex(f["ptr"]));
                break;
            case "mm_page_alloc":
                PageAlloc(Hex(f["pfn"]), int.Parse(f["order"], CultureInfo.InvariantCulture), f["gfp_flags"]);
                break;
            case "mm_page_free":
                PageFree(Hex(f["pfn"]));
                break;
            case "alloc_vmap_area" when f["failed"] == "0":
                VmapAllocs++;
                _areas.Add(ulong.Parse(f["va_start"], CultureInfo.InvariantCulture));
                break;
            case "free_vmap_area_noflush":
                if (_areas.Remove(Hex(f["va_start"])))
                    VmapFrees++;
                else
                    UnknownFrees++;
                break;
            case "purge_vmap_area_lazy":
                VmapPurges++;
                break;
            default:
                Skipped++;
                break;
        }
    }

    private void Alloc(Dictionary<string, string> f, string cache)
    {
        ulong ptr = Hex(f["ptr"]);
        if (_headOfFrame.TryGetValue((ptr - TraceWriter.DirectMap) >> 12, out ulong head) && !_blocks[head].IsSlab)
        {
            _blocks[head] = _blocks[head] with { IsSlab = true };
            PageAllocs--;
            SlabPages++;
        }

        if (_objects.Remove(ptr, out Object? old))
        {
            MissedFrees++;
            _live[old.Cache]--;
        }

        _objects[ptr] = new Object(cache, long.Parse(f["bytes_req"]), long.Parse(f["bytes_alloc"]), f["call_site"]);
        _live[cache] = _live.GetValueOrDefault(cache) + 1;
        _peaks[cache] = Math.Max(_peaks.GetValueOrDefault(cache), _live[cache]);
    }

    private void Free(ulong ptr)
    {
        if (ptr == 0)
        {
            NullFrees++;
        }
        else if (_objects.Remove(ptr, out Object? old))
        {
            ObjectFrees++;
            _live[old.Cache]--;
        }
        else
        {
            UnknownFrees++;
        }
    }

    private void PageAlloc(ulong pfn, int order, string gfp)
    {
        Assert.False(_headOfFrame.ContainsKey(pfn), "the recordings miss no page frees");
        string[] names = gfp.Split('|');
        bool slab = names.Contains("__GFP_NORETRY") && names.Contains("__GFP_COMP") && !names.Contains("__GFP_MOVABLE")
            && !names.Contains("GFP_HIGHUSER_MOVABLE");
        if (slab)
            SlabPages++;
        else
            PageAllocs++;
        _blocks[pfn] = new Block(order, slab);
        for (ulong i = 0; i < 1UL << order; i++)
            _headOfFrame[pfn + i] = pfn;
    }

    private void PageFree(ulong pfn)
    {
        if (!_blocks.Remove(pfn, out Block? block))
        {
            UnknownFrees++;
            return;
        }

        Assert.False(block.IsSlab, "no slab is given back in the recordings");
        PageFrees++;
        for (ulong i = 0; i < 1UL << block.Order; i++)
            _headOfFrame.Remove(pfn + i);
    }

    private static ulong Hex(string text) => Convert.ToUInt64(text, 16);

    [GeneratedRegex(@"^.*?-\d+ +\[\d+\] .{5} +\d+\.\d+: (?<event>\w+): (?<text>.*)$",
        RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex LineModel();

    [GeneratedRegex(@"(?<key>\w+)(=|: )(?<value>.*?)(?= \w+=|$)", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex FieldModel();

    private sealed record Object(string Cache, long Requested, long Given, string Site);

    private sealed record Block(int Order, bool IsSlab);
}
