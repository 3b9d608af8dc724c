using static Kmem.Tests.VmallocMachine;

namespace Kmem.Tests;

/// <summary>
/// Every kind of area handed to every call that frees: what does not belong together is refused with a report, and the
/// memory is as it was.
/// </summary>
public sealed class VmallocBadInputTests
{
    private const int Page = Pfn.PageSize;
    private const int Pages = 3;
    private const int ManyPages = 70;

    private static readonly string[] s_kinds =
    [
        "vmalloc", "user", "huge", "vmap", "vmapPut", "ioremap", "ram", "manyRam", "stack", "execmem", "text", "sparse",
        "direct", "heap",
    ];

    private static readonly string[] s_calls =
        ["Vfree", "Vunmap", "Iounmap", "VmUnmapRam", "FreeThreadStack", "ExecmemFree", "Kfree", "Vrealloc", "FreeVmArea"];

    /// <summary>
    /// Pairs that the kernel accepts; all others are refused, or ignored by iounmap for direct addresses.
    /// </summary>
    private static readonly HashSet<(string Kind, string Call)> s_fit =
    [
        ("vmalloc", "Vfree"), ("user", "Vfree"), ("huge", "Vfree"), ("vmap", "Vfree"), ("vmapPut", "Vfree"),
        ("vmap", "Vunmap"), ("ioremap", "Iounmap"), ("ram", "VmUnmapRam"), ("manyRam", "VmUnmapRam"),
        ("stack", "FreeThreadStack"), ("execmem", "ExecmemFree"), ("text", "ExecmemFree"),
        ("vmalloc", "Vrealloc"), ("user", "Vrealloc"), ("huge", "Vrealloc"),
        ("vmap", "Vrealloc"), ("vmapPut", "Vrealloc"),      // to size 0, which is vfree
        ("sparse", "FreeVmArea"),
        ("direct", "Kfree"), ("direct", "Iounmap"),
    ];

    public static TheoryData<string, string> Pairs()
    {
        var pairs = new TheoryData<string, string>();
        foreach (string kind in s_kinds)
        {
            foreach (string call in s_calls)
                pairs.Add(kind, call);
        }

        return pairs;
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public unsafe void Only_what_belongs_together_is_freed(string kind, string call)
    {
        using Machine machine = Boot(cpus: 1);
        _ = machine.ModuleLoader;
        machine.AddDevice(new PhysAddr(0xfe00_0000), 8 * Page, "device");
        byte* heap = stackalloc byte[16];
        byte* area = kind == "heap" ? heap : Make(machine, kind);
        bool writable = kind != "text";
        if (writable)
            new Span<byte>(area, 16).Fill(0x3c);
        byte first = *area;

        // Inside an area nothing may be freed, whatever it is.
        if (kind is not ("direct" or "heap"))
            AssertRefused(machine, () => Free(machine, call, area + Page, kind));
        if (kind is not ("direct" or "heap") && call != "Iounmap")
            AssertRefused(machine, () => Free(machine, call, area + 1, kind));
        if (s_fit.Contains((kind, call)))
        {
            Free(machine, call, area, kind);
            AssertWhole(machine);
            if (call is not ("Vrealloc" or "Iounmap"))
                AssertRefused(machine, () => Free(machine, call, area, kind));
            return;
        }

        AssertRefused(machine, () => Free(machine, call, area, kind));
        Assert.Equal(first, *area);
        if (writable)
            Assert.Equal(-1, new Span<byte>(area, 16).IndexOfAnyExcept((byte)0x3c));
        (string _, string fitting) = s_fit.FirstOrDefault(pair => pair.Kind == kind);
        if (fitting != null)
            Free(machine, fitting, area, kind);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Before_there_is_any_area_every_pointer_is_foreign()
    {
        using Machine machine = Boot();
        byte local = 1;
        byte* foreign = &local;
        foreach (string call in new[] { "Vfree", "Vunmap", "Iounmap", "VmUnmapRam", "FreeThreadStack" })
            AssertRefused(machine, () => Free(machine, call, foreign, "heap"), "there is none at all");
        machine.Vfree(null);
        machine.Vunmap(null);
        machine.Iounmap(null);
        machine.FreeThreadStack(null);
        Assert.Null(machine.VmallocIfUsed);
    }

    /// <summary>Of two threads that free one area, one succeeds and the other one gets a report.</summary>
    [Theory]
    [InlineData("vmalloc", "Vfree")]
    [InlineData("vmap", "Vunmap")]
    [InlineData("ioremap", "Iounmap")]
    [InlineData("ram", "VmUnmapRam")]
    [InlineData("manyRam", "VmUnmapRam")]
    [InlineData("stack", "FreeThreadStack")]
    [InlineData("execmem", "ExecmemFree")]
    [InlineData("text", "ExecmemFree")]
    [InlineData("sparse", "FreeVmArea")]
    public unsafe void Of_two_who_free_one_is_refused(string kind, string call)
    {
        using Machine machine = Boot(cpus: 2);
        _ = machine.ModuleLoader;
        for (int round = 0; round < 50; round++)
        {
            var area = (nint)Make(machine, kind);
            int refused = 0;
            Parallel.For(0, 2, _ =>
            {
                try
                {
                    Free(machine, call, (byte*)area, kind);
                }
                catch (KernelBugException)
                {
                    Interlocked.Increment(ref refused);
                }
            });
            Assert.Equal(1, refused);
        }

        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Mapping_over_a_mapping_is_refused_and_changes_nothing()
    {
        using Machine machine = Boot();
        var area = (byte*)machine.Vmalloc(Pages * Page);
        PageTable tables = machine.VmallocIfUsed!.Tables;
        ulong va = machine.VmallocIfUsed.AddressOf(area);
        AssertRefused(
            machine,
            () => tables.Map(va - Page, 0x2000, 2, PageProt.Kernel, CacheMode.WriteBack, 12, Gfp.Kernel),
            "mapping over a mapping");
        Assert.False(tables.Walk(va - Page).IsMapped);
        Assert.True(tables.Walk(va).IsMapped);
        machine.Vfree(area);
    }

    /// <summary>With __GFP_NOFAIL the call waits for addresses, and says so.</summary>
    [Fact]
    public unsafe void Nofail_waits_until_there_are_addresses()
    {
        using Machine machine = Boot(cpus: 2);
        machine.Vfree(machine.Vmalloc(Page));
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        ulong start = vmalloc.Vmap.Start + (1UL << 40);
        var request = new VmallocRequest(Pages * Page, Gfp.Kernel | Gfp.NoWarn, VmCaller.Vmalloc)
        {
            Range = new VmapRange(start, start + ((Pages + 1) * Page)),
        };
        void* first = vmalloc.Alloc(request);
        Assert.Equal(start, vmalloc.AddressOf(first));
        Assert.True(vmalloc.Alloc(request) == null);
        nint got = 0;
        var waiting = new Thread(() =>
            Volatile.Write(ref got, (nint)vmalloc.Alloc(request with { Gfp = Gfp.Kernel | Gfp.NoFail })));
        waiting.Start();
        while (!machine.Dmesg.ToString().Contains("vm_struct allocation failed. Retrying.", StringComparison.Ordinal))
            Thread.Sleep(1);
        Assert.Equal(0, Volatile.Read(ref got));
        machine.Vfree(first);
        Assert.True(waiting.Join(TimeSpan.FromSeconds(30)), "it waits for ever");
        Assert.Equal((nint)first, got);
        machine.Vfree(first);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Complaints_about_failures_are_one_in_ten_seconds()
    {
        using Machine machine = Boot(cpus: 1);
        nuint tooMuch = unchecked((nuint)(1UL << 40));
        for (int i = 0; i < 5; i++)
            Assert.True(machine.Vmalloc(tooMuch + (nuint)i) == null);
        Assert.Equal($"vmalloc error: size {1UL << 40}, exceeds total pages, mode:0xcc0(GFP_KERNEL)", Assert.Single(
            machine.Dmesg.Lines, line => line.StartsWith("vmalloc error", StringComparison.Ordinal)));
    }

    [Fact]
    public void A_rate_limit_counts_what_it_keeps_back()
    {
        long now = 1000;
        var log = new KernelLog();
        var limit = new RateLimit("somebody", TimeSpan.FromSeconds(5), 2) { Clock = () => now };
        Assert.Equal([true, true, false, false], Enumerable.Range(0, 4).Select(_ => limit.Allows(log)));
        now += 4999;
        Assert.False(limit.Allows(log));
        now += 1;
        Assert.True(limit.Allows(log));
        Assert.Equal(["somebody: 3 callbacks suppressed"], log.Lines);
        now += 60_000;
        Assert.True(limit.Allows(log));
        Assert.Single(log.Lines);
    }

    private static unsafe byte* Make(Machine machine, string kind)
    {
        Execmem execmem = machine.ModuleLoader.Execmem;
        void* area = kind switch
        {
            "vmalloc" => machine.Vmalloc(Pages * Page),
            "user" => machine.VmallocUser(Pages * Page),
            "huge" => machine.VmallocHuge(2 << 20, Gfp.Kernel),
            "vmap" => machine.Vmap(AllocPages(machine, Pages)),
            "vmapPut" => machine.Vmap(AllocPages(machine, Pages), putPages: true),
            "ioremap" => machine.Ioremap(new PhysAddr(0xfe00_0000), Pages * Page),
            "ram" => machine.VmMapRam(AllocPages(machine, Pages)),
            "manyRam" => machine.VmMapRam(AllocPages(machine, ManyPages)),
            "stack" => machine.AllocThreadStack(),
            "execmem" => execmem.Alloc(ExecmemType.Bpf, Pages * Page),
            "sparse" => Sparse(machine),
            "text" => execmem.Alloc(ExecmemType.ModuleText, Pages * Page),
            _ => machine.Kmalloc(100, Gfp.Kernel),
        };
        Assert.True(area != null);
        return (byte*)area;
    }

    private static unsafe void* Sparse(Machine machine)
    {
        void* area = machine.GetVmArea(Pages * Page);
        Assert.Equal(VmapError.None, machine.VmAreaMapPages(area, 0, AllocPages(machine, Pages)));
        return area;
    }

    private static unsafe void Free(Machine machine, string call, byte* area, string kind)
    {
        switch (call)
        {
            case "Vfree":
                machine.Vfree(area);
                break;
            case "Vunmap":
                machine.Vunmap(area);
                break;
            case "Iounmap":
                machine.Iounmap(area);
                break;
            case "VmUnmapRam":
                machine.VmUnmapRam(area, kind == "manyRam" ? ManyPages : Pages);
                break;
            case "FreeThreadStack":
                machine.FreeThreadStack(area);
                break;
            case "ExecmemFree":
                machine.ModuleLoader.Execmem.Free(area);
                break;
            case "FreeVmArea":
                machine.FreeVmArea(area);
                break;
            case "Kfree":
                machine.Kfree(area);
                break;
            default:
                machine.Vrealloc(area, 0, Gfp.Kernel);
                break;
        }
    }
}
