using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// Recordings of a real kernel: what is in them, and every field of every line against a slow and obvious reading with
/// regular expressions.
/// </summary>
public sealed partial class FtraceRecordedTests
{
    [Fact]
    public void TheGitSession() => Check(
        TraceText.Recorded[0], 44331, 2,
        (TraceEventKind.Kmalloc, 893), (TraceEventKind.KmemCacheAlloc, 15332), (TraceEventKind.Kfree, 4121),
        (TraceEventKind.KmemCacheFree, 12484), (TraceEventKind.PageAlloc, 4826), (TraceEventKind.PageFree, 3762),
        (TraceEventKind.PageFreeBatched, 2902), (TraceEventKind.AllocVmapArea, 6),
        (TraceEventKind.FreeVmapAreaNoflush, 5));

    [Fact]
    public void TheGccCompile() => Check(
        TraceText.Recorded[1], 78473, 2,
        (TraceEventKind.Kmalloc, 408), (TraceEventKind.KmemCacheAlloc, 15394), (TraceEventKind.Kfree, 2557),
        (TraceEventKind.KmemCacheFree, 13462), (TraceEventKind.PageAlloc, 18213), (TraceEventKind.PageFree, 9258),
        (TraceEventKind.PageFreeBatched, 8319), (TraceEventKind.PageAllocZoneLocked, 10851),
        (TraceEventKind.AllocVmapArea, 7), (TraceEventKind.FreeVmapAreaNoflush, 4));

    [Fact]
    public void TheVmapRecordings()
    {
        Check(
            TraceText.Recorded[2], 7090, 2,
            (TraceEventKind.AllocVmapArea, 3722), (TraceEventKind.PurgeVmapAreaLazy, 37),
            (TraceEventKind.FreeVmapAreaNoflush, 3327), (TraceEventKind.Marker, 4));
        Check(
            TraceText.Recorded[3], 14364, 2,
            (TraceEventKind.AllocVmapArea, 7523), (TraceEventKind.PurgeVmapAreaLazy, 57),
            (TraceEventKind.FreeVmapAreaNoflush, 6780), (TraceEventKind.Marker, 4));
    }

    private static void Check(string path, int events, int cpus, params (TraceEventKind Kind, int Count)[] counts)
    {
        string[] lines = Encoding.UTF8.GetString(TraceText.Gunzip(path)).Split('\n');
        var found = new SortedDictionary<TraceEventKind, int>();
        using FtraceReader r = FtraceReader.Open(path);
        TraceEvent e = default;
        while (r.TryRead(ref e))
        {
            found[e.Kind] = found.GetValueOrDefault(e.Kind) + 1;
            Compare(lines[e.Line - 1], r, e);
        }

        Assert.Equal(counts.Order(), found.Select(p => (p.Key, p.Value)));
        Assert.Equal((events, 0, 0, 0), (r.Events, r.DamagedCount, r.LostEvents, r.UnknownGfpCount));
        Assert.Equal(lines.Length - 1, r.Lines);
        Assert.Equal(cpus, r.HeaderCpus);
        Assert.Equal(new FileInfo(path).Length, r.InputPosition);
    }

    private static void Compare(string line, FtraceReader r, in TraceEvent e)
    {
        Match m = LineModel().Match(line);
        Dictionary<string, string> f = FieldModel().Matches(m.Groups["text"].Value)
            .ToDictionary(x => x.Groups["key"].Value, x => x.Groups["value"].Value, StringComparer.Ordinal);
        ulong Dec(string key) => ulong.Parse(f.GetValueOrDefault(key, "0"), CultureInfo.InvariantCulture);
        ulong Hex(string key) => Convert.ToUInt64(f.GetValueOrDefault(key, "0"), 16);

        bool same = e.Pid.ToString(CultureInfo.InvariantCulture) == m.Groups["pid"].Value
            && e.Cpu == int.Parse(m.Groups["cpu"].Value, CultureInfo.InvariantCulture)
            && e.TimestampNs == (ulong)(decimal.Parse(m.Groups["time"].Value, CultureInfo.InvariantCulture) * 1e9m)
            && Encoding.ASCII.GetString(BitConverter.GetBytes(e.State), 0, 5) == m.Groups["state"].Value;
        if (e.Kind == TraceEventKind.Marker)
        {
            Assert.True(same && e.Text == m.Groups["text"].Value, line);
            return;
        }

        bool vmap = e.Kind is TraceEventKind.AllocVmapArea;
        same = same
            && r.CallSites[e.CallSite] == f.GetValueOrDefault("call_site", string.Empty)
            && r.Names[e.Name] == f.GetValueOrDefault("name", string.Empty)
            && e.Ptr == Hex("ptr") && e.Page == Hex("page") && e.Pfn == Hex("pfn")
            && (ulong)e.Order == Dec("order") && (ulong)e.Migratetype == Dec("migratetype")
            && e.BytesReq == Dec("bytes_req") && e.BytesAlloc == Dec("bytes_alloc")
            && (e.GfpFlags != 0) == f.ContainsKey("gfp_flags")
            && e.Node == int.Parse(f.GetValueOrDefault("node", "-1"), CultureInfo.InvariantCulture)
            && e.Accounted == (f.GetValueOrDefault("accounted", "false") == "true")
            && e.PercpuRefill == (Dec("percpu_refill") == 1)
            && e.VmapStart == (vmap ? Dec("va_start") : Hex("va_start") + Hex("start")) && e.VmapEnd == Hex("end")
            && e.VmapSize == Dec("size") && e.VmapAlign == Dec("align")
            && e.VmapRangeStart == Hex("vstart") && e.VmapRangeEnd == Hex("vend")
            && e.VmapFailed == (Dec("failed") == 1) && e.VmapPurged == Dec("num_purged")
            && e.VmapLazyPages == Dec("nr_lazy") && e.VmapLazyMax == Dec("nr_lazy_max");
        Assert.True(same, line + "\n" + TraceText.Describe(r, e));
    }

    [GeneratedRegex(@"^.*?-(?<pid>\d+) +\[(?<cpu>\d+)\] (?<state>.{5}) +(?<time>\d+\.\d+): \w+: (?<text>.*)$",
        RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex LineModel();

    [GeneratedRegex(@"(?<key>\w+)(=|: )(?<value>.*?)(?= \w+=|$)", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex FieldModel();
}
