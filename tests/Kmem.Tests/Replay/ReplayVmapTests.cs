using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>The vmalloc space of a recorded kernel, followed by a replay.</summary>
public sealed partial class ReplayVmapTests
{
    private const ulong Start = 0xffff_c900_0000_0000;
    private const string Range = "vstart=0xffffc90000000000 vend=0xffffe8ffffffffff";

    [Fact]
    public void AreasOfARecordingAreBusyWhereTheKernelPutThem()
    {
        byte[] text = TraceText.Gunzip(TestData.PathOf("vmap/r4/trace.txt.gz"));
        using ReplayResult result = TraceWriter.Run(text);
        TraceWriter.CheckShape(result);
        var busy = new SortedDictionary<ulong, ulong>();
        foreach (Match line in AreaLine().Matches(Encoding.UTF8.GetString(text)))
        {
            if (line.Groups["free"].Success)
                busy.Remove(Convert.ToUInt64(line.Groups["free"].Value, 16));
            else if (line.Groups["failed"].Value == "0")
                busy[Number(line, "start")] = Number(line, "start") + Number(line, "size");
        }

        VmapAllocator space = result.Machine.Recorded!.Vmap;
        Assert.Empty(VmapValidator.Run(space));
        VmapState state = space.Capture();
        Assert.Equal(busy, new SortedDictionary<ulong, ulong>(
            state.Nodes.SelectMany(node => node.Busy).ToDictionary(area => area.Start, area => area.End)));
        Assert.NotEmpty(state.Nodes.SelectMany(node => node.Pools.Values.SelectMany(pool => pool)));

        // Most of what is given out comes from pools whose content the recording has told.
        ReplayReport r = result.Report;
        Assert.Equal((7523, 6776, 57), (r.VmapAllocs, r.VmapFrees, r.VmapPurges));
        Assert.InRange(r.VmapAllocsForetold, r.VmapAllocs / 2, r.VmapAllocs);
    }

    [Fact]
    public void NothingIsTakenFromTheMachine()
    {
        byte[] text = TraceText.Gunzip(TraceText.Recorded[0]);
        string[] without = [.. Encoding.UTF8.GetString(text).Split('\n').Where(line =>
            !line.Contains("vmap_area: ", StringComparison.Ordinal) && !line.Contains("vmap_area_", StringComparison.Ordinal))];
        using ReplayResult all = TraceWriter.Run(text);
        using ReplayResult some = TraceWriter.Run(Encoding.UTF8.GetBytes(string.Join('\n', without)));
        Assert.Equal(all.Report.VmapAllocs, all.Report.Events - some.Report.Events - 5);
        Assert.Equal(6, all.Report.VmapAllocs);
        Assert.Equal(StateOf(some), StateOf(all));
        Assert.Null(some.Machine.Recorded);
    }

    [Fact]
    public void AnAreaIsBusyThenLazyThenInAPoolAndIsGivenOutAgain()
    {
        var trace = new TraceWriter();
        Alloc(trace, Start, 5 * 4096);
        using (ReplayResult busy = trace.Run())
        {
            Assert.Equal([Start], StartsOf(busy, node => node.Busy));
            Assert.Equal("vmalloc space", busy.Machine.Explain(new VirtAddr(Start)).Region);
            Assert.Equal(AddressKind.GuardPage, busy.Machine.Explain(new VirtAddr(Start + (4 * 4096))).Kind);
        }

        trace.Event("free_vmap_area_noflush: va_start=0xffffc90000000000 nr_lazy=5 nr_lazy_max=16384");
        using (ReplayResult lazy = trace.Run())
        {
            Assert.Equal([], StartsOf(lazy, node => node.Busy));
            Assert.Equal([Start], StartsOf(lazy, node => node.Lazy));
            Assert.Equal(5UL, lazy.Machine.Recorded!.Vmap.LazyPages);
        }

        trace.Event("purge_vmap_area_lazy: start=0xffffc90000000000 end=0xffffc90000005000 num_purged=1");
        using (ReplayResult pooled = trace.Run())
        {
            Assert.Equal([], StartsOf(pooled, node => node.Lazy));
            Assert.Equal([Start], StartsOf(pooled, node => node.Pools.Values.SelectMany(pool => pool)));
        }

        Alloc(trace, Start + 0x5000, 4096);     // lowest first: nobody could have foretold anything else
        Alloc(trace, Start, 5 * 4096);
        using ReplayResult again = trace.Run();
        TraceWriter.CheckWhole(again);
        Assert.Equal([Start, Start + 0x5000], StartsOf(again, node => node.Busy));
        Assert.Equal((3, 3, 1, 1), (
            again.Report.VmapAllocs, again.Report.VmapAllocsForetold, again.Report.VmapFrees, again.Report.VmapPurges));
    }

    [Fact]
    public void FramesAreBehindAnAreaWhereTheRecordingTells()
    {
        const string Gfp = "GFP_KERNEL|__GFP_HIGHMEM|__GFP_NOWARN";
        var trace = new TraceWriter();
        Alloc(trace, Start, 4 * 4096);
        trace.PageAlloc(0x9000, 0, "GFP_KERNEL|__GFP_ZERO");        // a page table
        trace.PageAlloc(0x5000, 1, Gfp);
        trace.Pid = 7;
        trace.PageAlloc(0x6000, 0, Gfp);                            // somebody else's
        trace.Pid = 100;
        trace.PageAlloc(0x5010, 0, Gfp);
        trace.PageAlloc(0x5011, 0, Gfp);                            // the guard page has none
        using ReplayResult result = trace.Run();
        RecordedSpace space = result.Machine.Recorded!;
        Pfn[] frames = [.. Enumerable.Range(0, 4).Select(page => space.Translate(Start + ((ulong)page * 4096)))];
        ulong vmemmap = 0xffff_ea00_0000_0000;
        ulong[] expected = [.. new ulong[] { 0x5000, 0x5001, 0x5010 }
            .Select(pfn => (result.Find(new VirtAddr(vmemmap + (pfn * 64)))!.Value.Value - vmemmap) / 64)];
        Assert.Equal(expected, frames[..3].Select(frame => frame.Value));
        Assert.False(frames[3].IsValid);
        PageWalk walk = space.Walk(Start + 0x1234);
        Assert.Equal((true, frames[1], 4), (walk.IsMapped, walk.Pfn, walk.Steps.Count));
        Assert.Equal(AddressKind.VmallocPage, result.Machine.Explain(new VirtAddr(Start)).Kind);
    }

    [Fact]
    public void AnAreaOlderThanTheRecordingIsKnownWhenItIsFreed()
    {
        var trace = new TraceWriter();
        Alloc(trace, Start + 0x10_0000, 8192);
        trace.Event("free_vmap_area_noflush: va_start=0xffffc90000200000 nr_lazy=100 nr_lazy_max=16384");   // no size yet
        trace.Event("free_vmap_area_noflush: va_start=0xffffc90000300000 nr_lazy=105 nr_lazy_max=16384");
        trace.Event("free_vmap_area_noflush: va_start=0xffffc900000ff000 nr_lazy=107 nr_lazy_max=16384");   // overlaps
        using ReplayResult result = trace.Run();
        TraceWriter.CheckWhole(result);
        VmapAreaState lazy = Assert.Single(result.Machine.Recorded!.Vmap.Capture().Nodes.SelectMany(node => node.Lazy));
        Assert.Equal((Start + 0x30_0000, Start + 0x30_5000), (lazy.Start, lazy.End));
        Assert.Equal((3, 0), (result.Report.UnknownFrees, result.Report.VmapFrees));
    }

    [Theory]
    [InlineData("alloc_vmap_area: va_start: 18446683600570023936 size=0 align=1 " + Range + " failed=0")]
    [InlineData("alloc_vmap_area: va_start: 18446683600570023936 size=100 align=1 " + Range + " failed=0")]
    [InlineData("alloc_vmap_area: va_start: 18446683600570023936 size=4096 align=3 " + Range + " failed=0")]
    [InlineData("alloc_vmap_area: va_start: 18446683600570023937 size=4096 align=1 " + Range + " failed=0")]
    [InlineData("alloc_vmap_area: va_start: 18446744073709547520 size=8192 align=1 " + Range + " failed=0")]
    [InlineData("alloc_vmap_area: va_start: 0 size=8192 align=1 " + Range + " failed=0")]
    public void WhatNoKernelGivesOutIsSkipped(string text)
    {
        using ReplayResult result = new TraceWriter().Event(text).Run();
        TraceWriter.CheckWhole(result);
        Assert.Equal((1, 0), (result.Report.SkippedEvents, result.Report.VmapAllocs));
    }

    [Fact]
    public void AreasThatOverlapInARecordingWithLossesLeaveAWholeSpace()
    {
        var random = new Random(5);
        var trace = new TraceWriter();
        for (int i = 0; i < 2000; i++)
        {
            trace.Cpu = random.Next(2);
            ulong at = Start + ((ulong)random.Next(300) << 12);
            if (random.Next(5) < 3)
                Alloc(trace, at, random.Next(1, 9) * 4096L);
            else if (random.Next(30) > 0)
                trace.Event($"free_vmap_area_noflush: va_start=0x{at:x} nr_lazy={random.Next(400)} nr_lazy_max=16384");
            else
                trace.Event("purge_vmap_area_lazy: start=0xffffc90000000000 end=0xffffc90000005000 num_purged=9");
        }

        using ReplayResult result = trace.Run();
        TraceWriter.CheckWhole(result);
        Assert.Empty(VmapValidator.Run(result.Machine.Recorded!.Vmap));
    }

    private static void Alloc(TraceWriter trace, ulong start, long size) => trace.Event(string.Create(
        CultureInfo.InvariantCulture, $"alloc_vmap_area: va_start: {start} size={size} align=1 {Range} failed=0"));

    private static ulong[] StartsOf(ReplayResult result, Func<VmapNodeState, IEnumerable<VmapAreaState>> areas) =>
        [.. result.Machine.Recorded!.Vmap.Capture().Nodes.SelectMany(areas).Select(area => area.Start).Order()];

    private static ulong Number(Match line, string group) =>
        ulong.Parse(line.Groups[group].Value, CultureInfo.InvariantCulture);

    private static string StateOf(ReplayResult result) => result.Machine.Proc.BuddyInfo() + result.Machine.Proc.SlabInfo()
        + result.Machine.Proc.ZoneInfo() + result.Machine.Proc.PageTypeInfo();

    [GeneratedRegex(@"alloc_vmap_area: va_start: (?<start>\d+) size=(?<size>\d+).*failed=(?<failed>\d)"
        + @"|free_vmap_area_noflush: va_start=(?<free>0x\w+)", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex AreaLine();
}
