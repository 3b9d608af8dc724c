namespace Kmem.Tests;

/// <summary>When nothing helps any more: what is written, who is asked, and that it ends.</summary>
public sealed class OomTests
{
    [Fact]
    [Trait("rule", "OOM-01")]
    public unsafe void The_report_has_the_kernels_form()
    {
        using Machine machine = Boot();
        machine.OomPolicy = _ => OomVerdict.Fail;
        KmemCache hogs = machine.CreateCache("hogs", 1024, flags: SlabFlags.NoMerge);
        var objects = new List<nint>();
        while (hogs.Alloc(Gfp.Kernel | Gfp.NoWarn) is var obj && obj != null)
            objects.Add((nint)obj);
        machine.Dmesg.Clear();
        Thread.CurrentThread.Name ??= "oom test";
        Assert.False(machine.AllocPage(Gfp.Kernel | Gfp.NoWarn).IsValid);
        string[] lines = [.. machine.Dmesg.Lines];
        Assert.EndsWith(
            " invoked oom-killer: gfp_mask=0x2cc0(GFP_KERNEL|__GFP_NOWARN), order=0, oom_score_adj=0",
            lines[0],
            StringComparison.Ordinal);
        Assert.Equal("Mem-Info:", lines[1]);
        Assert.StartsWith("Node 0 DMA free:", lines[2], StringComparison.Ordinal);
        int slabs = Array.IndexOf(lines, "Unreclaimable slab info:");
        Assert.Equal("Name                      Used          Total", lines[slabs + 1]);
        long kilobytes = objects.Count;
        Assert.Contains($"hogs              {kilobytes,10}KB {hogs.TotalObjects,10}KB", lines, StringComparer.Ordinal);
        int holders = Array.IndexOf(lines, "Memory holders (in pages):");
        Assert.StartsWith("slab hogs ", lines[holders + 1], StringComparison.Ordinal);
        Assert.Equal("Out of memory and nobody to free any: the request fails", lines[^1]);

        MemoryHolder first = machine.MemoryHolders()[0];
        Assert.Equal("slab hogs", first.Name);
        Assert.InRange(first.Bytes, kilobytes * 1024, (kilobytes * 1024) + (1 << 20));
        foreach (nint obj in objects)
            hogs.Free((void*)obj);
        hogs.Destroy();
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "OOM-01")]
    public void Holders_add_up_to_what_is_not_free()
    {
        using Machine machine = Boot();
        Pfn block = machine.AllocPages(Gfp.Kernel, 6);
        long used = machine.Pages.Zones.Sum(zone => (long)zone.Zone.Managed - zone.Zone.FreePagesExact);
        Assert.Equal(used << Pfn.PageShift, machine.MemoryHolders().Sum(holder => holder.Bytes));
        Assert.Contains(
            machine.MemoryHolders(), holder => holder == new MemoryHolder("page frames", 64 << Pfn.PageShift));
        machine.FreePages(block, 6);
    }

    [Fact]
    [Trait("rule", "OOM-02")]
    public void A_policy_that_frees_something_saves_the_request()
    {
        using Machine machine = Boot();
        List<Pfn> held = ShrinkerTests.Exhaust(machine);
        int asked = 0;
        machine.OomPolicy = oom =>
        {
            asked++;
            Assert.Equal(0, oom.Order);
            Assert.Contains("invoked oom-killer", oom.Report, StringComparison.Ordinal);

            // Out of memory itself, it gets the reserves and is not asked again.
            Pfn own = machine.AllocPage(Gfp.Kernel | Gfp.NoWarn);
            Assert.True(own.IsValid);
            machine.FreePage(own);
            for (int i = 0; i < 64; i++)
            {
                machine.FreePage(held[^1]);
                held.RemoveAt(held.Count - 1);
            }

            return OomVerdict.Retry;
        };
        for (int i = 0; i < 200; i++)
        {
            Pfn page = machine.AllocPage(Gfp.Kernel);
            Assert.True(page.IsValid);
            held.Insert(0, page);
        }

        Assert.InRange(asked, 2, 64);
        Assert.Equal((ulong)asked, machine.Proc.ReadVmStat().Stats.Find("oom_kill"));
        held.ForEach(machine.FreePage);
        Assert.Empty(machine.Validate());
    }

    [Theory]
    [InlineData(Gfp.Kernel | Gfp.NoRetry, 0)]
    [InlineData(Gfp.Kernel | Gfp.RetryMayFail, 0)]
    [InlineData(Gfp.Kernel | Gfp.ThisNode, 0)]
    [InlineData(Gfp.Kernel | Gfp.Dma32, 0)]
    [InlineData(Gfp.Kernel, 4)]
    [InlineData(Gfp.NoFS, 0)]
    [InlineData(Gfp.NoWait, 0)]
    [Trait("rule", "OOM-03")]
    public void Who_may_fail_is_not_worth_a_victim(Gfp gfp, int order)
    {
        using Machine machine = Boot();
        List<Pfn> held = ShrinkerTests.Exhaust(machine);
        int asked = 0;
        machine.OomPolicy = _ =>
        {
            asked++;
            return OomVerdict.Fail;
        };
        Assert.False(machine.AllocPages(gfp | Gfp.NoWarn, order).IsValid);
        Assert.Equal(0, asked);
        Assert.False(machine.AllocPages(Gfp.Kernel | Gfp.NoWarn, 0).IsValid);
        Assert.Equal(1, asked);
        held.ForEach(machine.FreePage);
    }

    [Fact]
    [Trait("rule", "OOM-04")]
    public void A_policy_that_only_promises_is_believed_sixteen_times()
    {
        using Machine machine = Boot();
        List<Pfn> held = ShrinkerTests.Exhaust(machine);
        int asked = 0;
        machine.OomPolicy = _ =>
        {
            asked++;
            return OomVerdict.Retry;
        };
        Assert.False(machine.AllocPage(Gfp.Kernel | Gfp.NoWarn).IsValid);
        Assert.Equal(16, asked);
        machine.OomPolicy = _ => throw new InvalidOperationException("no idea");
        Assert.False(machine.AllocPage(Gfp.Kernel | Gfp.NoWarn).IsValid);
        Assert.Contains(
            "WARNING: the out-of-memory policy threw InvalidOperationException: no idea",
            machine.Dmesg.Lines,
            StringComparer.Ordinal);
        held.ForEach(machine.FreePage);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "OOM-02")]
    public void One_thread_at_a_time_asks_and_all_are_served()
    {
        using Machine machine = Boot(cpus: 4);
        var held = new Stack<Pfn>(ShrinkerTests.Exhaust(machine));
        int inside = 0;
        int most = 0;
        machine.OomPolicy = _ =>
        {
            most = Math.Max(most, Interlocked.Increment(ref inside));
            Thread.Sleep(1);
            lock (held)
            {
                for (int i = 0; i < 100 && held.TryPop(out Pfn frame); i++)
                    machine.FreePage(frame);
            }

            Interlocked.Decrement(ref inside);
            return OomVerdict.Retry;
        };
        var crew = new Crew(seconds: 60);
        crew.Add(4, _ =>
        {
            var mine = new List<Pfn>();
            for (int i = 0; i < 500; i++)
            {
                Pfn frame = machine.AllocPage(Gfp.Kernel);
                Assert.True(frame.IsValid, $"no memory for frame {i}");
                mine.Add(frame);
            }

            mine.ForEach(machine.FreePage);
        });
        crew.Run();
        Assert.Equal(1, most);
        foreach (Pfn frame in held)
            machine.FreePage(frame);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "OOM-02")]
    public unsafe void What_caches_keep_for_themselves_is_taken_before_anybody_is_asked()
    {
        using Machine machine = Boot(profile: KernelProfile.Native);
        KmemCache cache = machine.CreateCache("keeper", 4096, flags: SlabFlags.NoMerge);
        var objects = new List<nint>();
        for (int i = 0; i < 64; i++)
            objects.Add((nint)cache.Alloc(Gfp.Kernel));
        foreach (nint obj in objects)
            cache.Free((void*)obj);
        long kept = cache.SlabCount;
        Assert.True(kept > 0);
        machine.OomPolicy = _ => throw new InvalidOperationException("asked while caches had empty slabs");
        List<Pfn> held = ShrinkerTests.Exhaust(machine);
        Assert.True(cache.SlabCount < kept, "the cache still has its empty slabs");
        held.ForEach(machine.FreePage);
        cache.Destroy();
    }

    private static Machine Boot(int cpus = 1, KernelProfile? profile = null) => Machine.Boot(new MachineOptions
    {
        Profile = profile ?? KernelProfile.Linux618,
        RamBytes = 32UL << 20,
        Cpus = cpus,
    });
}
