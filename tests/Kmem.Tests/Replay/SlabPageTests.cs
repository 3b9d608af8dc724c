using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// Pages that the recorded kernel's slabs got must not be counted twice; how they are told from others.
/// </summary>
public sealed class SlabPageTests
{
    private const string FirstAttempt = "GFP_KERNEL|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP";
    private const string SecondAttempt = "GFP_KERNEL|__GFP_COMP";

    public static TheoryData<string, bool> Flags => new()
    {
        { FirstAttempt, true },
        { "__GFP_RECLAIMABLE|__GFP_IO|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP|__GFP_NOMEMALLOC", true },
        { "GFP_ATOMIC|__GFP_RECLAIMABLE|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP", true },
        { "GFP_NOWAIT|__GFP_NORETRY|__GFP_COMP|__GFP_THISNODE", true },
        { "GFP_KERNEL|GFP_DMA|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP", true },
        { SecondAttempt, false },
        { "GFP_KERNEL|__GFP_NOWARN|__GFP_NORETRY", false },
        { "GFP_KERNEL|__GFP_ZERO|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP", false },

        // Read-ahead of the page cache, and the fragments that network buffers are cut from.
        { "GFP_NOFS|__GFP_HIGHMEM|__GFP_MOVABLE|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP|__GFP_HARDWALL", false },
        { "__GFP_IO|__GFP_FS|__GFP_KSWAPD_RECLAIM|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP", false },
    };

    [Theory]
    [MemberData(nameof(Flags))]
    public void TheFlagsOfTheFirstAttemptTell(string flags, bool slab)
    {
        using ReplayResult result = new TraceWriter()
            .PageAlloc(0x400, 1, flags).PageFree(0x400, 1).PageAlloc(0x400, 1, flags).Run();
        TraceWriter.CheckWhole(result);
        ReplayReport r = result.Report;
        Assert.Equal(
            slab ? (2, 0, 0, 1, 0) : (0, 2, 1, 0, 2),
            (r.SlabPagesRecognised, r.PageAllocs, r.PageFrees, r.SlabPageFrees, r.LivePages));
    }

    [Theory]
    [InlineData(0xffff_8880_0000_0000)]     // the usual place
    [InlineData(0xffff_9a4d_8000_0000)]     // KASLR
    [InlineData(0xff11_0000_0000_0000)]     // five levels of page tables
    public void AnObjectInABlockMakesItASlab(ulong directMap)
    {
        // Two slabs that the flags tell show where the direct map is; then one that only its object tells, much later.
        ulong At(ulong pfn) => directMap + (pfn << 12);
        var trace = new TraceWriter()
            .PageAlloc(0x400, 1, FirstAttempt).CacheAlloc("thing", At(0x400), 64, 64)
            .PageAlloc(0x500, 1, FirstAttempt).CacheAlloc("thing", At(0x501) + 64, 64, 64)
            .PageAlloc(0x600, 2, SecondAttempt).PageAlloc(0x700, 2, SecondAttempt);
        trace.Pid++;
        trace.CacheAlloc("other", At(0x603) + 512, 128, 128).CacheAlloc("other", At(0x600), 128, 128);
        trace.CacheAlloc("other", At(0x604), 128, 128).PageFree(0x600, 2);

        using ReplayResult result = trace.Run();
        TraceWriter.CheckWhole(result);
        ReplayReport r = result.Report;
        Assert.Equal((3, 1, 0, 1), (r.SlabPagesRecognised, r.PageAllocs, r.PageFrees, r.SlabPageFrees));
        Assert.Equal(4, r.LivePages);

        // The slab was given back with two objects in it: their frees are not in the trace.
        Assert.Equal((2, 3), (r.MissedFrees, r.LiveObjects));
    }

    [Fact]
    public void ANewBlockAtTheSameFramesIsLookedAtAgain()
    {
        const ulong Object = TraceWriter.DirectMap + (0x400 << 12);
        using ReplayResult result = new TraceWriter()
            .CacheAlloc("thing", Object, 64, 64).CacheFree("thing", Object)         // in no block we know
            .PageAlloc(0x400, 0, SecondAttempt).CacheAlloc("thing", Object, 64, 64)
            .Run();
        TraceWriter.CheckWhole(result);
        Assert.Equal((1, 0), (result.Report.SlabPagesRecognised, result.Report.PageAllocs));
    }

    [Fact]
    public void ALargeKmallocHasItsOwnPages()
    {
        const ulong Large = TraceWriter.DirectMap + (0x800 << 12);
        var trace = new TraceWriter().PageAlloc(0x800, 3, "GFP_KERNEL|__GFP_ZERO|__GFP_COMP").PageAlloc(0x900);
        trace.Kmalloc(Large, 20000, 32768, "GFP_KERNEL|__GFP_ZERO").Kfree(Large).PageFree(0x800, 3);
        using ReplayResult result = trace.Run();
        TraceWriter.CheckWhole(result);
        ReplayReport r = result.Report;
        Assert.Equal((1, 0, 1), (r.LargeKmallocPagesRecognised, r.SlabPagesRecognised, r.SlabPageFrees));
        Assert.Equal((1, 1, 1, 1), (r.KmallocAllocs, r.ObjectFrees, r.PageAllocs, r.LivePages));
    }

    [Theory]
    [InlineData(3, "GFP_KERNEL|__GFP_COMP", 0, 1)]
    [InlineData(2, "GFP_KERNEL|__GFP_COMP", 0, 0)]      // another size
    [InlineData(3, "GFP_KERNEL", 0, 0)]                 // not compound
    [InlineData(3, "GFP_KERNEL|__GFP_COMP", 1, 0)]      // another task
    public void WithHashedPointersALargeKmallocIsToldByThePageEventBefore(int order, string flags, int task, long large)
    {
        var trace = new TraceWriter().PageAlloc(0x800, order, flags);
        trace.Pid += task;
        trace.Kmalloc(0xdead_beef, 20000, 32768).Kfree(0xdead_beef).PageFree(0x800, order);
        using ReplayResult result = trace.Run();
        TraceWriter.CheckWhole(result);
        ReplayReport r = result.Report;
        Assert.Equal(
            (large, large, 1 - large, 1 - large, 0),
            (r.LargeKmallocPagesRecognised, r.SlabPageFrees, r.PageAllocs, r.PageFrees, r.LivePages));
    }

    [Fact]
    public void AfterAFailedFirstAttemptTheNextRequestIsTheSecond()
    {
        var trace = new TraceWriter().PageAlloc(0, 3, FirstAttempt);
        trace.Cpu = 1;
        trace.PageAlloc(0x400, 0, SecondAttempt);       // somebody else's
        trace.Cpu = 0;
        trace.PageAlloc(0x500, 1, SecondAttempt).PageAlloc(0x600, 0, SecondAttempt);
        using ReplayResult result = trace.Run();
        TraceWriter.CheckWhole(result);
        ReplayReport r = result.Report;
        Assert.Equal((1, 1, 2, 2), (r.TracedFailures, r.SlabPagesRecognised, r.PageAllocs, r.LivePages));
    }

    [Fact]
    public void AFailedBlockThatTurnsOutToBeASlabHasNotFailed()
    {
        // 10 MiB of RAM: the second block of 4 MiB cannot be had.
        var trace = new TraceWriter();
        for (ulong block = 0; block < 4; block++)
            trace.PageAlloc(0x400 + (block << 10), 10, SecondAttempt);
        using ReplayResult before = trace.Run(new ReplayOptions { RamBytes = 10UL << 20 });
        for (ulong block = 0; block < 4; block++)
            trace.CacheAlloc("thing", TraceWriter.DirectMap + ((0x400 + (block << 10)) << 12), 64, 64);
        using ReplayResult after = trace.Run(new ReplayOptions { RamBytes = 10UL << 20 });
        TraceWriter.CheckWhole(before);
        TraceWriter.CheckWhole(after);
        Assert.True(before.Report.FailedAllocs > 0);
        ReplayReport r = after.Report;
        Assert.Equal((0, 4, 0, 0), (r.FailedAllocs, r.SlabPagesRecognised, r.PageAllocs, r.LivePages));
    }
}
