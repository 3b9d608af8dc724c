using System.Buffers;
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using Microsoft.AspNetCore.Http;

namespace Kmem;

/// <summary>The addresses below <c>/api</c>: each a question with parameters, and JSON for an answer.</summary>
internal sealed class ExplorerApi
{
    private const int MostSlabs = 256, DefaultSlabs = 64, DefaultEvents = 100, DefaultBuckets = 600, MostBuckets = 4000;

    private readonly ExplorerSource _source;
    private readonly Answers _answers;
    private readonly Dictionary<string, Action<Query, IBufferWriter<byte>>> _questions;

    public ExplorerApi(ExplorerSource source)
    {
        _source = source;
        _answers = new Answers(source);
        ExplorerJson types = ExplorerJson.Default;
        _questions = new(StringComparer.Ordinal)
        {
            ["/api/info"] = (_, to) => Send(to, _answers.Info(), types.InfoAnswer),
            ["/api/caches"] = (_, to) => Send(to, new CachesAnswer(_answers.Caches()), types.CachesAnswer),
            ["/api/sites"] = Sites,
            ["/api/machine"] = (query, to) => Send(to, _answers.Machine(query.Moment(source)), types.MachineAnswer),
            ["/api/machine/pcp"] = (query, to) => Send(
                to, _answers.Pcp(query.Moment(source), query.Number("cpu", 0, source.Shape.Cpus - 1) ?? 0),
                    types.PcpAnswer),
            ["/api/events"] = Events,
            ["/api/histogram"] = (query, to) => Send(
                to, _answers.Histogram(query.Number("buckets", 1, MostBuckets) ?? DefaultBuckets),
                    types.HistogramAnswer),
            ["/api/slabs"] = (query, to) => Send(to, _answers.Slabs(query.Moment(source)), types.SlabsAnswer),
            ["/api/object"] = (query, to) => Send(
                to, _answers.Object(query.Moment(source), Required(query.Address("address"), "address")),
                    types.ObjectAnswer),
            ["/api/virtual"] = (query, to) => Send(to, _answers.Virtual(query.Moment(source)), types.VirtualAnswer),
            ["/api/walk"] = (query, to) => Send(
                to, _answers.Walk(query.Moment(source), Required(query.Address("address"), "address")),
                    types.WalkAnswer),
            ["/api/explain"] = Explain,
            ["/api/diff"] = (query, to) => Send(
                to, _answers.Diff(query.Moment(source, "from"), query.Moment(source, "to")), types.DiffAnswer),
        };
    }

    public Answers Answers => _answers;

    /// <summary>Answers a question.</summary>
    /// <param name="path">The path, beginning with /api/.</param>
    /// <param name="parameters">What stands behind the question mark.</param>
    /// <param name="to">Receives the JSON.</param>
    /// <exception cref="QueryException">There is no answer.</exception>
    public void Answer(string path, IQueryCollection parameters, IBufferWriter<byte> to)
    {
        var query = new Query(parameters);
        Action<Query, IBufferWriter<byte>> question = Find(path);
        var answer = new ArrayBufferWriter<byte>(1 << 12);
        question(query, answer);
        query.NoMore();
        to.Write(answer.WrittenSpan);
    }

    private Action<Query, IBufferWriter<byte>> Find(string path)
    {
        if (_questions.TryGetValue(path, out Action<Query, IBufferWriter<byte>>? question))
            return question;

        ExplorerJson types = ExplorerJson.Default;
        if (After(path, "/api/slabs/") is { } cache
            && int.TryParse(cache, NumberStyles.None, CultureInfo.InvariantCulture, out int id))
        {
            return (query, to) => Send(to, Slab(query, id), types.SlabAnswer);
        }

        if (After(path, "/api/frame/") is { } frame
            && ulong.TryParse(frame, NumberStyles.None, CultureInfo.InvariantCulture, out ulong pfn))
            return (query, to) => Send(to, _answers.Frame(query.Moment(_source), pfn), types.FrameAnswer);

        throw new QueryException($"there is no question {path}", null, StatusCodes.Status404NotFound);
    }

    /// <summary>A page of a cache's slabs; or the one at a frame, or at an address.</summary>
    private SlabAnswer Slab(Query query, int id)
    {
        int moment = query.Moment(_source);
        int? offset = query.Number("offset", 0, int.MaxValue);
        int? limit = query.Number("limit", 1, MostSlabs);
        int? slab = query.Number("slab", 0, int.MaxValue);
        ulong? address = query.Address("address");
        if (slab == null && address == null)
            return _answers.Slab(moment, id, offset ?? 0, limit ?? DefaultSlabs);
        if (offset != null || limit != null || (slab != null && address != null))
        {
            string name = slab != null ? "slab" : "address";
            throw new QueryException(
                $"{name} names one slab: it excludes offset, limit, and the other way to name one", name);
        }

        return slab is { } pfn ? _answers.SlabAt(moment, id, (ulong)pfn, "slab")
            : _answers.SlabAt(moment, id, _answers.FrameBehind(moment, address!.Value), "address");
    }

    private void Sites(Query query, IBufferWriter<byte> to)
    {
        const int DefaultSites = 50, MostSites = 500;
        IReadOnlyList<int>? ids = query.Numbers("ids");
        string? text = query.Text("find");
        int limit = query.Number("limit", 1, MostSites) ?? DefaultSites;
        if (ids == null == (text == null))
            throw new QueryException("expected ids or find", "ids");
        Send(to, ids != null ? _answers.Sites(ids) : _answers.FindSites(text!, limit),
            ExplorerJson.Default.SitesAnswer);
    }

    private void Events(Query query, IBufferWriter<byte> to)
    {
        int direction = query.Number("direction", -1, 1) ?? 1;
        if (direction == 0)
            throw new QueryException("direction is 0, expected 1 or -1", "direction");
        int from = query.Number("from", 0, int.MaxValue) ?? (direction > 0 ? 0 : int.MaxValue);
        int limit = query.Number("limit", 1, ExplorerLimits.MaxEvents) ?? DefaultEvents;
        var filter = new EventFilter
        {
            Kinds = query.Text("kind")?.Split(',').ToHashSet(StringComparer.Ordinal),
            Cpu = query.Number("cpu", 0, ushort.MaxValue),
            Pid = query.Number("pid", 0, int.MaxValue),
            Cache = query.Text("cache"),
            Site = query.Text("site"),
            Address = query.Address("address"),
        };
        using var json = new Utf8JsonWriter(to);
        _answers.WriteEvents(json, from, limit, direction, filter);
    }

    private void Explain(Query query, IBufferWriter<byte> to)
    {
        int moment = query.Moment(_source);
        ulong? address = query.Address("address");
        int? number = query.Number("event", 0, int.MaxValue);
        int? pfn = query.Number("pfn", 0, int.MaxValue);
        if ((address != null ? 1 : 0) + (number != null ? 1 : 0) + (pfn != null ? 1 : 0) != 1)
            throw new QueryException("expected one of address, pfn and event", "address");
        if (pfn is { } frame)
            address = _source.Shape.DirectMap + ((ulong)frame << Kmem.Pfn.PageShift);
        ExplainAnswer answer = number is { } n ? _answers.ExplainEvent(n) : _answers.Explain(moment, address!.Value);
        Send(to, answer, ExplorerJson.Default.ExplainAnswer);
    }

    private static T Required<T>(T? value, string name)
        where T : struct => value ?? throw new QueryException($"{name} is missing", name);

    private static string? After(string path, string prefix) =>
        path.StartsWith(prefix, StringComparison.Ordinal) ? path[prefix.Length..] : null;

    private static void Send<T>(IBufferWriter<byte> to, T answer, JsonTypeInfo<T> type)
    {
        using var json = new Utf8JsonWriter(to);
        JsonSerializer.Serialize(json, answer, type);
    }
}
