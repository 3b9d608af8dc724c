using System.Globalization;
using System.IO.Compression;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Kmem.Tracing;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.Primitives;

namespace Kmem;

/// <summary>Which part of a recording an exported file holds.</summary>
internal sealed record ExportOptions
{
    /// <summary>First moment.</summary>
    public int From { get; init; }

    /// <summary>Last moment; null for the recording's.</summary>
    public int? To { get; init; }

    /// <summary>Moments with slabs, free lists and areas, evenly spread; the first and the last always have
    /// them.</summary>
    public int DeepMoments { get; init; } = 25;

    public int MaxBytes { get; init; } = 48 << 20;
}

/// <summary>
/// Writes the explorer as one HTML file that plays without a server:
/// <code>
///   index.html ─ styles in place ─ modules as data: URLs ─ window.KMEM_EXPORT = base64(gzip(
///      length of the JSON | JSON: info, names, answers at some moments | sections of 32-bit words:
///      frames at the first moment, and per event what changed: frames, objects, ticks, the events themselves)))
/// </code>
/// The front end's offline.js reads that; both sides of the layout are described in docs/explorer.md.
/// </summary>
internal sealed partial class ExplorerExport
{
    private const int MostEvents = 1_000_000;
    private const int SlabsPerCache = 256;
    private const long MostAreaWork = 20_000_000;       // areas looked at, over all events about them
    private const int Patience = 10_000;        // ms, for a pattern over files of our own

    private readonly TraceSource _source;
    private readonly Timeline _timeline;
    private readonly ExplorerApi _api;
    private readonly ExportOptions _options;
    private readonly int _from;
    private readonly int _to;
    private readonly Dictionary<string, uint[]> _sections = new(StringComparer.Ordinal);
    private int _areasUntil;

    private ExplorerExport(TraceSource source, ExportOptions options)
    {
        _source = source;
        _timeline = source.Timeline;
        _api = new ExplorerApi(source);
        _options = options;
        _from = options.From;
        _to = options.To ?? _timeline.Events;
    }

    /// <summary>Writes the file's text.</summary>
    /// <exception cref="QueryException">The range is impossible, or the file would become too large.</exception>
    public static byte[] Write(TraceSource source, ExportOptions options)
    {
        var export = new ExplorerExport(source, options);
        if (export._from < 0 || export._to > source.Now || export._from > export._to)
            throw new QueryException($"the moments {export._from} to {export._to} are not within 0 to {source.Now}",
                "from");
        if (export._to - export._from > MostEvents)
            throw new QueryException(
                $"{export._to - export._from} events are too many for one file: at most {MostEvents}; "
                + "choose with --from and --to", "to");

        byte[] page = export.Page(export.Pack());
        return page.Length <= options.MaxBytes
            ? page
            : throw new QueryException(
                $"the file would have {page.Length >> 20} MiB, at most {options.MaxBytes >> 20}; "
                + "choose fewer events with --from and --to", "to");
    }

    private byte[] Pack()
    {
        WriteFrames();
        WriteChanges();
        WriteAreas();
        WriteEvents(out HashSet<int> sites, out HashSet<int> names, out List<string> gfps);
        byte[] json = WriteJson(sites, names, gfps);
        using var packed = new MemoryStream();
        using (var gzip = new GZipStream(packed, CompressionLevel.Optimal))
        {
            // Sections begin at multiples of four bytes.
            var padded = new byte[(json.Length + 3) & ~3];
            Array.Fill(padded, (byte)' ');
            json.CopyTo(padded, 0);
            gzip.Write(BitConverter.GetBytes(padded.Length));
            gzip.Write(padded);
            foreach (uint[] words in _sections.Values)
                gzip.Write(System.Runtime.InteropServices.MemoryMarshal.AsBytes<uint>(words));
        }

        return packed.ToArray();
    }

    private byte[] WriteJson(HashSet<int> sites, HashSet<int> names, List<string> gfps)
    {
        int[] moments = Moments();
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer))
        {
            json.WriteStartObject();
            json.WriteNumber("from", _from);
            json.WriteNumber("to", _to);
            json.WriteNumber("areasUntil", _areasUntil);
            json.WritePropertyName("info");
            InfoAnswer info = _api.Answers.Info() with { DeepMoments = moments };
            JsonSerializer.Serialize(json, info, ExplorerJson.Default.InfoAnswer);
            WriteNames(json, "sites", sites, _timeline.CallSites);
            WriteNames(json, "names", names, _timeline.Names);
            json.WriteStartObject("caches");
            foreach (IdName cache in info.Caches)
                json.WriteString(cache.Id.ToString(CultureInfo.InvariantCulture), cache.Name);
            json.WriteEndObject();
            json.WriteStartArray("gfp");
            gfps.ForEach(json.WriteStringValue);
            json.WriteEndArray();
            json.WriteStartObject("sections");
            foreach ((string name, uint[] words) in _sections)
                json.WriteNumber(name, words.Length);
            json.WriteEndObject();
            json.WriteStartObject("answers");
            foreach (int moment in moments)
                WriteAnswers(json, moment);
            json.WriteEndObject();
            json.WriteEndObject();
        }

        return buffer.ToArray();
    }

    private static void WriteNames(Utf8JsonWriter json, string property, HashSet<int> ids, StringTable table)
    {
        json.WriteStartObject(property);
        foreach (int id in ids.Where(id => id > 0).Order())
            json.WriteString(id.ToString(CultureInfo.InvariantCulture), table.Utf8(id));
        json.WriteEndObject();
    }

    private int[] Moments()
    {
        int count = Math.Max(2, _options.DeepMoments);
        return [.. Enumerable.Range(0, count).Select(i => _from
            + (int)((long)(_to - _from) * i / (count - 1))).Distinct()];
    }

    /// <summary>The answers that need the machine itself.</summary>
    private void WriteAnswers(Utf8JsonWriter json, int moment)
    {
        string t = moment.ToString(CultureInfo.InvariantCulture);
        foreach (string path in (string[])["/api/machine", "/api/slabs", "/api/virtual"])
            WriteAnswer(json, path, t, null);
        for (int cpu = 0; cpu < _source.Shape.Cpus; cpu++)
            WriteAnswer(json, "/api/machine/pcp", t, ("cpu", cpu.ToString(CultureInfo.InvariantCulture)));
        foreach (CacheRow row in _api.Answers.Slabs(moment).Caches.Where(row => row.Slabs > 0))
        {
            WriteAnswer(
                json, "/api/slabs/" + row.Id.ToString(CultureInfo.InvariantCulture), t,
                ("limit", SlabsPerCache.ToString(CultureInfo.InvariantCulture)));
        }
    }

    private void WriteAnswer(Utf8JsonWriter json, string path, string t, (string Name, string Value)? parameter)
    {
        var query = new Dictionary<string, StringValues>(StringComparer.Ordinal) { ["t"] = t };
        if (parameter is { } its)
            query[its.Name] = its.Value;
        var answer = new System.Buffers.ArrayBufferWriter<byte>();
        _api.Answer(path, new QueryCollection(query), answer);
        string name = parameter is ("cpu", var cpu) ? $"{path}?cpu={cpu}&t={t}" : $"{path}?t={t}";
        json.WritePropertyName(name);
        json.WriteRawValue(answer.WrittenSpan, skipInputValidation: true);
    }

    /// <summary>The frames at the first moment, as runs: count, then the four words of the cell; and the
    /// pageblocks.</summary>
    private void WriteFrames()
    {
        FrameSource frames = _source.OpenFrames();
        frames.MoveTo(_from);
        FrameMap map = frames.Map;
        var runs = new List<uint>();
        for (ulong pfn = 0; pfn < map.Frames;)
        {
            FrameCell cell = map.At(pfn);
            ulong end = pfn + 1;
            while (end < map.Frames && map.At(end).Equals(cell))
                end++;
            runs.Add((uint)(end - pfn));
            AddCell(runs, cell);
            pfn = end;
        }

        var blocks = new uint[(map.Frames + PageOrder.PageblockPages - 1) / PageOrder.PageblockPages];
        for (int block = 0; block < blocks.Length; block++)
        {
            ulong pfn = (ulong)block * PageOrder.PageblockPages;
            blocks[block] = (uint)map.TypeOf(pfn) | ((uint)map.ZoneOf(pfn) << 8);
        }

        _sections["frames"] = [.. runs];
        _sections["blocks"] = blocks;
        _sections["counters"] = [.. Enum.GetValues<TickKind>().Select(kind => (uint)frames.Cursor!.Counter(kind))];
        _sections["active"] = [.. Enumerable.Range(0, 1 + _api.Answers.Caches().Max(cache => cache.Id))
            .Select(cache => (uint)frames.Cursor!.Active(cache))];
    }

    private void WriteChanges()
    {
        var changes = new List<uint>();
        var objects = new List<uint>();
        var ticks = new List<uint>();
        for (int n = _from; n < _to; n++)
        {
            foreach (ref readonly FrameChange change in _timeline.FramesOf(n, n + 1))
            {
                changes.AddRange([(uint)n, change.Pfn, change.Count]);
                AddCell(changes, change.From);
                AddCell(changes, change.To);
            }

            foreach (ref readonly ObjectChange change in _timeline.ObjectsOf(n, n + 1))
            {
                // Objects begin at multiples of eight: terabytes fit.
                objects.AddRange([(uint)n, (uint)(change.Offset >> 3), change.Requested,
                    change.Cache | (change.Sign > 0 ? 1u << 16 : 0)]);
            }

            foreach (ref readonly Tick tick in _timeline.TicksOf(n, n + 1))
            {
                ticks.AddRange(
                [
                    tick.Event, tick.Pfn, (uint)tick.Count,
                    (uint)tick.Kind | ((uint)tick.Zone << 8) | ((uint)tick.Order << 16) | ((uint)tick.FromOrder << 24),
                    tick.Migratetype | ((uint)tick.FromType << 8) | ((uint)tick.Cpu << 16), tick.Cache,
                ]);
            }
        }

        _sections["changes"] = [.. changes];
        _sections["objects"] = [.. objects];
        _sections["ticks"] = [.. ticks];
    }

    /// <summary>
    /// What became of areas of the vmalloc space at each event about them: gone, or there in another state.
    /// </summary>
    private void WriteAreas()
    {
        var words = new List<uint>();
        Dictionary<ulong, (ulong End, int State)> before = AreasAt(_from);
        long work = 0;
        _areasUntil = _to;
        for (int n = _from; n < _to; n++)
        {
            if (!StoredEvent.IsOfAreas(_timeline.EventAt(n).Kind))
                continue;
            if ((work += before.Count) > MostAreaWork)
            {
                _areasUntil = n;
                break;
            }

            Dictionary<ulong, (ulong End, int State)> now = AreasAt(n + 1);
            foreach ((ulong start, (ulong end, _)) in before)
            {
                if (!now.ContainsKey(start))
                    Add(n, 0, start, end);
            }

            foreach ((ulong start, (ulong end, int state)) in now)
            {
                if (!before.TryGetValue(start, out var old) || old != (end, state))
                    Add(n, 1 + (uint)state, start, end);
            }

            before = now;
        }

        _sections["areas"] = [.. words];

        void Add(int n, uint what, ulong start, ulong end) => words.AddRange(
            [(uint)n, what, (uint)start, (uint)(start >> 32), (uint)((end - start) >> Pfn.PageShift)]);
    }

    private Dictionary<ulong, (ulong End, int State)> AreasAt(int moment) => _source.Ask(moment, machine =>
        machine.Recorded is not { } space ? []
            : Answers.StatesOf(space.Vmap).ToDictionary(it => it.Area.Start, it => (it.Area.End, it.State)));

    private static void AddCell(List<uint> words, in FrameCell cell)
    {
        words.Add((uint)cell.Kind | ((uint)cell.Order << 8) | ((uint)cell.Owner << 16));
        words.Add(cell.InUse | ((uint)cell.Objects << 16));
        words.Add(cell.Born);
        words.Add((uint)cell.Site);
    }

    private void WriteEvents(out HashSet<int> sites, out HashSet<int> names, out List<string> gfps)
    {
        const int Words = 12;
        (sites, names, gfps) = ([], [], [""]);
        var gfpOf = new Dictionary<uint, int> { [0] = 0 };
        var words = new uint[(_to - _from) * Words];
        for (int n = _from; n < _to; n++)
        {
            ref readonly StoredEvent e = ref _timeline.EventAt(n);
            sites.Add(e.CallSite);
            int name = e.Kind == TraceEventKind.Other ? 0 : e.Name;
            names.Add(name);
            if (!gfpOf.TryGetValue(e.Gfp, out int gfp))
            {
                gfp = gfpOf[e.Gfp] = gfps.Count;
                gfps.Add(((Gfp)e.Gfp).ToKernelString());
            }

            ReadOnlySpan<uint> its =
            [
                (uint)e.TimestampNs, (uint)(e.TimestampNs >> 32), (uint)e.Place, (uint)(e.Place >> 32),
                e.BytesRequested, e.BytesGiven, e.Line, (uint)e.CallSite, (uint)name | ((uint)gfp << 16),
                    (uint)e.Pid,
                (uint)e.Kind | ((uint)e.Order << 8) | ((uint)e.Migratetype << 16) | ((uint)e.Result << 24), e.Cpu,
            ];
            its.CopyTo(words.AsSpan((n - _from) * Words));
        }

        // Frames of before may name call sites that no event of the range has.
        FrameSource frames = _source.OpenFrames();
        frames.MoveTo(_from);
        for (ulong pfn = 0; pfn < frames.Map.Frames; pfn++)
            sites.Add(frames.Map.At(pfn).Site);
        _sections["events"] = words;
    }

    /// <summary>The front end's files and the data as one page.</summary>
    private byte[] Page(byte[] data)
    {
        string html = TextOf("index.html");
        html = StyleLink().Replace(html, match => $"<style>\n{TextOf(match.Groups["name"].Value)}\n</style>");
        Match entry = EntryModule().Match(html);
        if (!entry.Success)
            throw new InvalidDataException("index.html has no module to start from");

        string start = entry.Groups["name"].Value;
        var modules = new SortedDictionary<string, string>(StringComparer.Ordinal);
        Collect(start, modules);
        var script = new StringBuilder();
        script.Append("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; ")
            .Append("script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src data:\">\n");
        script.Append("<script type=\"importmap\">{\"imports\":{");
        script.AppendJoin(',', modules.Select(module =>
            $"\"kmem/{module.Key}\":\"data:text/javascript;base64,"
            + $"{Convert.ToBase64String(Encoding.UTF8.GetBytes(module.Value))}\""));
        script.Append("}}</script>\n<script>window.KMEM_EXPORT = {\"protocol\":1,\"data\":\"")
            .Append(Convert.ToBase64String(data))
            .Append("\"};</script>\n<script type=\"module\">import 'kmem/").Append(start).Append("';</script>");
        return Encoding.UTF8.GetBytes(string.Concat(
            html.AsSpan(0, entry.Index), script.ToString(), html.AsSpan(entry.Index + entry.Length)));
    }

    /// <summary>A module and all that it imports, with names in place of relative addresses, which data: URLs have
    /// not.</summary>
    private static void Collect(string name, SortedDictionary<string, string> modules)
    {
        if (modules.ContainsKey(name))
            return;

        string text = TextOf(name);
        modules[name] = ModuleImport().Replace(text, "${verb}${quote}kmem/${name}${quote}");
        foreach (Match import in ModuleImport().Matches(text))
            Collect(import.Groups["name"].Value, modules);
    }

    private static string TextOf(string name) => KmemExplorer.FileOf(name) is { } bytes
        ? Encoding.UTF8.GetString(bytes)
        : throw new InvalidDataException($"the explorer's page has no file {name}");

    [GeneratedRegex("<link rel=\"stylesheet\" href=\"(?<name>[\\w.-]+)\">",
        RegexOptions.CultureInvariant | RegexOptions.ExplicitCapture, Patience)]
    private static partial Regex StyleLink();

    [GeneratedRegex("<script type=\"module\" src=\"(?<name>[\\w.-]+)\"></script>",
        RegexOptions.CultureInvariant | RegexOptions.ExplicitCapture, Patience)]
    private static partial Regex EntryModule();

    [GeneratedRegex("(?<verb>\\bfrom\\s*|\\bimport\\s*)(?<quote>[\"'])\\./(?<name>[\\w.-]+)\\k<quote>",
        RegexOptions.CultureInvariant | RegexOptions.ExplicitCapture, Patience)]
    private static partial Regex ModuleImport();
}
