using Kmem.Tool.Bench;

namespace Kmem.Tool.Tests;

/// <summary>The workloads of <c>bench</c> as programs: they use memory properly and free all of it.</summary>
public sealed class WorkloadTests
{
    public static TheoryData<string> OnHeaps => [.. Workloads.All
        .Where(it => it.Peers.Contains("glibc", StringComparer.Ordinal)).Select(it => it.Name)];

    public static TheoryData<string, string> OfKmem =>
        [.. Workloads.All.SelectMany(it => it.Own.Select(own => (it.Name, own)))];

    [Theory]
    [MemberData(nameof(OnHeaps))]
    public void EveryObjectIsFreedOnceAndWithinItsBounds(string workload)
    {
        var counts = new HeapCounts();
        var factory = new CaseFactory(new Lazy<KmemHost>(() => new KmemHost()), small: true);
        using (Case it = factory.Heap(workload, "guarded", new GuardedHeap(counts), () => { }))
        {
            Assert.True(it.Round(it.Least) >= 1);
            Assert.True(it.Round(3 * it.Least) >= 2 * it.Least);
            it.Finish();
        }
        Assert.True(counts.Allocs > 0);
        Assert.Equal((counts.Allocs, 0), (counts.Frees, counts.Damaged));
    }

    [Theory]
    [MemberData(nameof(OfKmem))]
    public void KmemIsWholeAfterwards(string workload, string allocator)
    {
        var host = new Lazy<KmemHost>(() => new KmemHost());
        var factory = new CaseFactory(host, small: true);
        using (Case it = factory.Create(Workloads.Find(workload), allocator)!)
        {
            it.Round(it.Least);
            it.Finish();
        }
        if (!host.IsValueCreated) return; // a replay has a machine of its own

        Assert.Equal(0, host.Value.CountOutstanding());
        Assert.Empty(host.Value.Machine.Validate());
        host.Value.Dispose();
    }

    [Fact]
    public unsafe void MstressSeesAWordThatWasOverwritten()
    {
        using var it = new MstressCase<NativeMemoryHeap>("NativeMemory", default, threads: 2, scale: 1);
        nint good = it.AllocMarked(40);
        it.FreeChecked(good);

        nint bad = it.AllocMarked(40);
        ((ulong*)bad)[17] ^= 1;
        var failure = Assert.Throws<InvalidOperationException>(() => it.FreeChecked(bad));
        Assert.Contains("word 17", failure.Message, StringComparison.Ordinal);
        ((ulong*)bad)[17] ^= 1;
        it.FreeChecked(bad);
    }

    [Fact]
    public unsafe void MstressSeesObjectsThatOverlap()
    {
        ulong* memory = stackalloc ulong[16];
        var heap = new OverlappingHeap((nint)memory, new int[1]);
        using var it = new MstressCase<OverlappingHeap>("overlapping", heap, threads: 2, scale: 1);
        nint first = it.AllocMarked(4);
        nint second = it.AllocMarked(4);
        it.FreeChecked(second);
        Assert.Throws<InvalidOperationException>(() => it.FreeChecked(first));
    }

    [Fact]
    public void AFailureOfAThreadIsTheCallers()
    {
        var failure = Assert.Throws<InvalidOperationException>(() => Workers.Run(3, thread =>
        {
            if (thread == 1) throw new InvalidOperationException("of thread 1");
        }));
        Assert.Equal("of thread 1", failure.Message);
    }

    [Fact]
    public void GoalsAreJudgedByTheBestPeer()
    {
        static CaseResult Case(string name, params double[] rounds) => new(name, rounds, null, null, null);
        var result = Output.WorkloadJson.Of(new WorkloadResult(Workloads.Find("rsize"),
            [Case("kmem", 3, 2, 4), Case("glibc", 5, 4), Case("c-tcmalloc", 2.5), Case("ArrayPool", 1)]));
        Assert.Equal(("c-tcmalloc", 0.8, true), (result.Best, result.Ratio, result.Reached));
        Assert.Equal((2, 3), (result.Ns["kmem"], result.MedianNs["kmem"]));

        var level = Output.WorkloadJson.Of(
            new WorkloadResult(Workloads.Find("rsize"), [Case("kmem", 4), Case("glibc", 4)]));
        Assert.Equal((1.0, false), (level.Ratio, level.Reached));

        var alone = Output.WorkloadJson.Of(new WorkloadResult(Workloads.Find("rsize"), [Case("kmem", 4)]));
        Assert.Equal((null, null), (alone.Ratio, alone.Reached));
    }

    [Fact]
    public void AMemoryGoalIsJudgedByResidentBytes()
    {
        static CaseResult Case(string name, double ns, long resident) =>
            new(name, [ns], new Footprint(100, resident), null, null);
        var result = Output.WorkloadJson.Of(new WorkloadResult(Workloads.Find("footprint"),
            [Case("kmem", 1, 150), Case("glibc", 5, 120), Case("mimalloc", 9, 200)]));
        Assert.Equal(("glibc", 1.25, false), (result.Best, result.Ratio, result.Reached));

        var flat = Output.WorkloadJson.Of(new WorkloadResult(Workloads.Find("mleak"), [Case("kmem", 1, 1 << 20)]));
        Assert.Equal((0.25, true), (flat.Ratio, flat.Reached));
    }
}
