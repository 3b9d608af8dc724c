using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>The recordings of a real kernel, replayed.</summary>
public sealed partial class ReplayRecordedTests
{
    private static readonly string[] s_traces = [TraceText.Recorded[0], TraceText.Recorded[1]];

    [Theory]
    [InlineData(0, 28)]
    [InlineData(1, 4)]
    public void EveryNumberIsThatOfTheModel(int trace, long slabPages)
    {
        byte[] text = TraceText.Gunzip(s_traces[trace]);
        var model = ReplayModel.Of(Encoding.UTF8.GetString(text));
        using ReplayResult result = TraceWriter.Run(text);
        ReplayReport r = result.Report;
        TraceWriter.CheckWhole(result);

        Assert.True(r.BytesAllocChecked > 15000);
        Assert.Equal((r.BytesAllocChecked, r.KmallocChecked), (r.BytesAllocEqual, r.KmallocEqual));
        Assert.Equal((0, 0, 0), (r.FailedAllocs, r.TracedFailures, r.DamagedLines));
        Assert.Empty(r.Mismatches);
        Assert.Equal((model.Kmallocs, model.CacheAllocs), (r.KmallocChecked, r.CacheChecked));
        Assert.Equal(
            (model.Events, model.Kmallocs, model.CacheAllocs, model.PageAllocs),
            (r.Events, r.KmallocAllocs, r.CacheAllocs, r.PageAllocs));
        Assert.Equal((model.ObjectFrees, model.PageFrees), (r.ObjectFrees, r.PageFrees));
        Assert.Equal(
            (model.UnknownFrees, model.NullFrees, model.MissedFrees, model.Skipped),
            (r.UnknownFrees, r.NullFrees, r.MissedFrees, r.SkippedEvents));
        Assert.Equal((model.VmapAllocs, model.VmapFrees, model.VmapPurges), (r.VmapAllocs, r.VmapFrees, r.VmapPurges));
        Assert.Equal((slabPages, slabPages, 0), (model.SlabPages, r.SlabPagesRecognised, r.SlabPageFrees));
        Assert.Equal(
            (model.LiveObjects, model.LiveBytes, model.LivePages), (r.LiveObjects, r.LiveBytes, r.LivePages));
        Assert.Equal((2, 0, "linux-6.18"), (r.Cpus, r.FoldedCpuEvents, r.Profile));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void CachesAndCallersAreThoseOfTheModel(int trace)
    {
        byte[] text = TraceText.Gunzip(s_traces[trace]);
        var model = ReplayModel.Of(Encoding.UTF8.GetString(text));
        using ReplayResult result = TraceWriter.Run(text);
        Assert.Equal(
            model.Caches.Where(cache => cache.Name.Length > 0),
            result.Report.Caches
                .Where(cache => !cache.Name.Contains("kmalloc-", StringComparison.Ordinal))
                .Select(cache => (cache.Name, cache.LiveObjects, cache.RequestedBytes, cache.PeakObjects))
                .OrderBy(cache => cache.Name, StringComparer.Ordinal));

        IReadOnlyList<CallSiteReport> sites = result.Report.CallSites;
        Assert.Equal(50, sites.Count);
        Assert.Equal(
            model.Sites.Take(10).Select(site => (site.Site, site.Objects, site.Bytes)),
            sites.Take(10).Select(site => (site.Name, site.LiveObjects, site.LiveBytes)));
    }

    [Fact]
    public void TheSlotsAndSlabsOfTheNamedCachesAreThoseOfTheRecordedKernel()
    {
        // The recording's slabinfo lists the caches under the names of those that they were merged into; the ones that
        // are there under their own name can be compared in all columns that are geometry.
        string text = File.ReadAllText(Path.Combine(Path.GetDirectoryName(s_traces[0])!, "after.slabinfo.txt"));
        Dictionary<string, SlabInfoRow> kernel = SlabInfoText.Parse(text).Rows.ToDictionary(
            row => row.Name, StringComparer.Ordinal);
        using ReplayResult result = TraceWriter.Run(TraceText.Gunzip(s_traces[0]), new ReplayOptions());
        int compared = 0;
        foreach (CacheReport cache in result.Report.Caches)
        {
            if (!kernel.TryGetValue(cache.Name, out SlabInfoRow? row))
                continue;

            compared++;
            Assert.Equal(
                (cache.Name, row.ObjSize, row.ObjPerSlab, row.PagesPerSlab),
                (cache.Name, (uint)cache.SlotSize, (uint)cache.ObjectsPerSlab, 1u << cache.Order));
        }

        Assert.True(compared > 30, $"only {compared} caches have a row in the kernel's slabinfo");
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void TwoRunsAreAlike(int trace)
    {
        byte[] text = TraceText.Gunzip(s_traces[trace]);
        using ReplayResult first = TraceWriter.Run(text);
        using ReplayResult second = TraceWriter.Run(text);
        Assert.Equal(TraceWriter.Describe(first), TraceWriter.Describe(second));
        using ReplayResult packed = TraceWriter.Run(File.ReadAllBytes(s_traces[trace]));
        Assert.Equal(TraceWriter.Describe(first), TraceWriter.Describe(packed));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void HashedPointersChangeNothing(int trace)
    {
        // As a kernel prints them by default: 32 bits of a hash, the same for the allocation and the free. Which pages
        // are slabs must then be told by the flags alone.
        byte[] text = TraceText.Gunzip(s_traces[trace]);
        string hashed = Pointer().Replace(Encoding.UTF8.GetString(text), match =>
        {
            ulong pointer = Convert.ToUInt64(match.Groups["hex"].Value, 16);
            ulong hash = pointer == 0 ? 0 : (pointer * 0x9e37_79b9_7f4a_7c15) >> 32;
            return string.Create(CultureInfo.InvariantCulture, $"{match.Groups["field"].Value}={hash:x16}");
        });
        Assert.DoesNotContain("ptr=ffff", hashed, StringComparison.Ordinal);
        using ReplayResult plain = TraceWriter.Run(text);
        using ReplayResult other = TraceWriter.Run(Encoding.UTF8.GetBytes(hashed));
        Assert.Equal(TraceWriter.Describe(plain), TraceWriter.Describe(other));
    }

    [Fact]
    public void MoreCpusThanTheMachineHasAreFolded()
    {
        byte[] text = TraceText.Gunzip(s_traces[0]);
        long onSecond = Encoding.UTF8.GetString(text).Split('\n')
            .LongCount(line => line.Contains(" [001] ", StringComparison.Ordinal));
        using ReplayResult result = TraceWriter.Run(text, new ReplayOptions { Cpus = 1 });
        TraceWriter.CheckWhole(result);
        Assert.True(onSecond > 100);
        Assert.Equal((1, onSecond), (result.Report.Cpus, result.Report.FoldedCpuEvents));
        Assert.Equal(1, result.Machine.Cpus);
        Assert.Equal(result.Report.BytesAllocChecked, result.Report.BytesAllocEqual);
    }

    [Fact]
    public void ALittleMachineRunsOutOfMemoryAndStaysWhole()
    {
        // 16 MiB: the recording needs about 40 for the page cache and user memory alone.
        byte[] text = TraceText.Gunzip(s_traces[1]);
        using ReplayResult result = TraceWriter.Run(text, new ReplayOptions { RamBytes = 16UL << 20 });
        ReplayReport r = result.Report;
        TraceWriter.CheckWhole(result);
        Assert.True(r.FailedAllocs > 1000, $"{r.FailedAllocs} allocations failed");
        Assert.True(r.FreesOfFailedAllocs > 0);
        Assert.Equal(r.BytesAllocChecked, r.BytesAllocEqual);

        var model = ReplayModel.Of(Encoding.UTF8.GetString(text));
        Assert.Equal(
            (model.Events, model.PageAllocs, model.CacheAllocs, model.UnknownFrees, model.NullFrees),
            (r.Events, r.PageAllocs, r.CacheAllocs, r.UnknownFrees, r.NullFrees));
        Assert.Equal(model.ObjectFrees + model.PageFrees, r.Frees + r.FreesOfFailedAllocs);
        Assert.True(result.Machine.Dmesg.TotalLines < 2000, "only the first failures are described");

        using ReplayResult again = TraceWriter.Run(text, new ReplayOptions { RamBytes = 16UL << 20 });
        Assert.Equal(TraceWriter.Describe(result), TraceWriter.Describe(again));
    }

    [Fact]
    public void TheMachineIsStillInOrderWhenEverythingLeftIsFreed()
    {
        byte[] text = TraceText.Gunzip(s_traces[0]);
        using ReplayResult result = TraceWriter.Run(text);
        Machine machine = result.Machine;
        machine.ShrinkCaches();
        machine.DrainAllPages();
        Assert.Empty(machine.Validate());
        long slabFrames = machine.Caches.Sum(cache => cache.SlabCount << cache.Geometry.Order);
        using Machine fresh = Machine.Boot(machine.Options);
        long freeAtBoot = fresh.Pages.Zones.Sum(zone => zone.Zone.FreePagesExact + zone.PcpCount)
            + fresh.Caches.Sum(cache => cache.SlabCount << cache.Geometry.Order);
        Assert.Equal(
            freeAtBoot,
            machine.Pages.Zones.Sum(zone => zone.Zone.FreePagesExact) + slabFrames + result.Report.LivePages);
    }

    [GeneratedRegex("(?<field>ptr|page)=(?<hex>[0-9a-f]{16})", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex Pointer();
}
