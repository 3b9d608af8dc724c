using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>Explaining at a moment of a recording: which of its addresses is which of ours, and what happened to
/// it.</summary>
public sealed partial class ReplayExplainTests
{
    private const int Moment = 5000;

    /// <summary>Every object of a named cache that is live at that moment is found, in that cache.</summary>
    [Fact]
    public void LiveObjectsOfTheRecordingAreFound()
    {
        byte[] text = TraceText.Gunzip(TraceText.Recorded[0]);
        Dictionary<ulong, (string Cache, long Event, string Site)> live = LiveAfter(Encoding.UTF8.GetString(text),
            Moment);
        Assert.True(live.Count > 100);
        using ReplayResult result = Run(text, new ReplayOptions { StopAfter = Moment, RememberEvents = 1 << 20 });
        Assert.Equal(Moment, result.Events);
        int insides = 0;
        foreach ((ulong pointer, (string cache, long number, string site)) in live)
        {
            Explanation it = result.Explain(new VirtAddr(pointer));
            Assert.Equal((AddressKind.SlabObject, pointer), (it.Kind, it.Recorded!.Value.Value));
            Assert.Equal(Moment, it.AtEvent);
            LifeEvent birth = it.Life.Last(e => e.Kind == LifeEventKind.ObjectAllocated);
            Assert.Equal((number, site, pointer), (birth.Event, birth.CallSite, birth.Recorded!.Value.Value));
            Assert.True(it.Slab!.Cache == cache || result.Machine.Slabs.AliasNames.Any(it2 => it2.Name == cache),
                cache);
            Assert.Equal(it.Address, result.Find(new VirtAddr(pointer)));

            // From inside of it only where the recording shows the pages of its slab.
            if (result.Find(new VirtAddr(pointer + 3)) is { } inside)
            {
                Assert.Equal(it.Address.Value + 3, inside.Value);
                insides++;
            }
        }

        Assert.True(insides > 10, $"{insides} found from inside");
    }

    /// <summary>What was freed is found where it was last; an address that the recording never had is our
    /// own.</summary>
    [Fact]
    public void AFreedObjectIsFoundWhereItWas()
    {
        byte[] text = TraceText.Gunzip(TraceText.Recorded[0]);
        using ReplayResult result = Run(text, new ReplayOptions { StopAfter = Moment, RememberEvents = 1 << 20 });
        Match gone = ObjectEvent().Matches(Encoding.UTF8.GetString(text)).First(it =>
            it.Groups["what"].Value == "kmem_cache_alloc");
        Explanation it = result.Explain(new VirtAddr(Hex(gone)));
        Assert.NotNull(it.Recorded);
        Assert.Contains(it.Life, e => e.Recorded?.Value == Hex(gone));
        Assert.Null(result.Explain(it.Address, own: true).Recorded);
        Assert.Null(result.Find(new VirtAddr(0xffff_8881_2345_6000)));
    }

    /// <summary>
    /// Pages of the recording, by their address and by that of their descriptor, lead to one block of ours.
    /// </summary>
    [Fact]
    public void LivePagesOfTheRecordingAreFound()
    {
        byte[] text = TraceText.Gunzip(TraceText.Recorded[0]);
        using ReplayResult result = Run(text, new ReplayOptions { StopAfter = Moment, RememberEvents = 1 << 20 });
        int found = 0;
        foreach (Match match in PageEvent().Matches(Encoding.UTF8.GetString(text)))
        {
            ulong pfn = ulong.Parse(match.Groups["pfn"].Value, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);
            var page = new VirtAddr(0xffff_8880_0000_0000 + (pfn << 12) + 7);
            var descriptor = new VirtAddr(0xffff_ea00_0000_0000 + (pfn * 64));
            if (result.Find(descriptor) is not { } ours)
                continue;

            found++;
            Explanation it = result.Explain(page);
            Assert.Equal((AddressKind.Pages, 7UL), (it.Kind, it.Address.Value & 4095));
            Assert.Equal(ours, it.Page!.Descriptor);
            Assert.Equal(it.Page, result.Explain(descriptor).Page);
            Assert.Equal(LifeEventKind.PagesAllocated, it.Life[^1].Kind);
            Assert.NotNull(it.Decision!.Source);
        }

        Assert.True(found > 50, $"{found} pages");
    }

    [Fact]
    public void SamplesAreTakenAndChangeNothing()
    {
        byte[] text = TraceText.Gunzip(TraceText.Recorded[0]);
        var seen = new List<long>();
        using ReplayResult sampled = Run(text,
            new ReplayOptions { Sample = (_, events) => seen.Add(events), SampleEvery = 7000 });
        using ReplayResult plain = Run(text, new ReplayOptions());
        Assert.Equal(plain.Machine.Proc.BuddyInfo(), sampled.Machine.Proc.BuddyInfo());
        Assert.Equal(plain.Report.Events, sampled.Report.Events);
        Assert.Equal(0, seen[0]);
        Assert.Equal(plain.Report.Events, seen[^1]);
        Assert.Equal(seen.Distinct().Order(), seen);
    }

    [Fact]
    public void AReplayStopsAtItsFirstFailure()
    {
        byte[] text = TraceText.Gunzip(TraceText.Recorded[0]);
        using ReplayResult result = Run(
            text, new ReplayOptions { StopAtFailure = true, RememberEvents = 1 << 20, RamBytes = 8 << 20 });
        RequestExplanation it = result.LastFailure!;
        Assert.Equal(1, result.Report.FailedAllocs);
        Assert.Equal((result.Events, false), (it.Decision!.Event, it.WouldSucceed));
        Assert.Equal(SlowStep.Failed, it.Decision.SlowPath[^1]);
        Assert.NotEmpty(it.Pinned);
        Assert.All(it.Pinned, block => Assert.True(block.FramesInUse > 0));
        using ReplayResult enough = Run(text, new ReplayOptions { StopAtFailure = true, RememberEvents = 1 << 20 });
        Assert.Null(enough.LastFailure);
    }

    /// <summary>A recorded kernel: an object of a slab, and a page of an area, in the kernel's own tables.</summary>
    [Fact]
    public void ARecordedKernelIsExplained()
    {
        using RecordedKernel kernel = RecordedKernel.Read(TestData.PathOf("boot-1cpu/02-vm"));
        Explanation it = kernel.Explain(new VirtAddr(0xffff_8880_02e0_a080));
        Assert.Equal(("kmalloc-128", 1), (it.Slab!.Cache, it.Object!.Number));
        Assert.Equal("current slab of CPU 0", it.Slab.Place);
        Explanation page = kernel.Explain(new VirtAddr(0xffff_c900_0000_0010));
        Assert.Equal((AddressKind.VmallocPage, 0x1f401UL), (page.Kind, page.Page!.Frame.Value));
        Assert.Equal(AddressKind.GuardPage, kernel.Explain(new VirtAddr(0xffff_c900_0000_4000)).Kind);
    }

    private static ReplayResult Run(byte[] text, ReplayOptions options)
    {
        using FtraceReader reader = FtraceReader.Open(new MemoryStream(text), "trace");
        return Replay.Run(reader, options);
    }

    private static Dictionary<ulong, (string, long, string)> LiveAfter(string text, int events)
    {
        var live = new Dictionary<ulong, (string, long, string)>();
        long number = 0;
        foreach (string line in text.Split('\n').Where(line => line.Length > 0 && !line.StartsWith('#')).Take(events))
        {
            number++;
            if (ObjectEvent().Match(line) is not { Success: true } match)
                continue;
            if (match.Groups["what"].Value == "kmem_cache_alloc")
                live[Hex(match)] = (match.Groups["name"].Value, number, match.Groups["site"].Value);
            else
                live.Remove(Hex(match));
        }

        return live;
    }

    private static ulong Hex(Match match) =>
        ulong.Parse(match.Groups["ptr"].Value, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);

    [GeneratedRegex(
        @": mm_page_alloc: page=\S+ pfn=0x(?<pfn>[0-9a-f]+) ", RegexOptions.ExplicitCapture, matchTimeoutMilliseconds: 60_000)]
    private static partial Regex PageEvent();

    [GeneratedRegex(
        @": (?<what>kmem_cache_alloc|kmem_cache_free|kfree): call_site=(?<site>\S+) ptr=(?<ptr>[0-9a-f]{16})"
            + @"( name=(?<name>\S+))?",
        RegexOptions.ExplicitCapture,
        matchTimeoutMilliseconds: 60_000)]
    private static partial Regex ObjectEvent();
}
