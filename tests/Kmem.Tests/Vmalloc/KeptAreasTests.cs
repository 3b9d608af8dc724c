using static Kmem.Tests.VmallocMachine;

namespace Kmem.Tests;

/// <summary>Freed areas that the native profile keeps for the next request of their size.</summary>
public sealed class KeptAreasTests
{
    private const int Page = Pfn.PageSize;

    private static Machine Native(ulong ramBytes = 64UL << 20) => Boot(
        ramBytes: ramBytes, change: options => options with { Profile = KernelProfile.Native, DecaySeconds = 0 });

    [Fact]
    public unsafe void The_next_request_of_the_size_gets_the_area_and_costs_no_mapping()
    {
        using Machine machine = Native();
        var first = (byte*)machine.Vmalloc(16 * Page);
        first[5] = 42;
        machine.Vfree(first);
        Assert.Equal((1, 16UL), (machine.VmallocStatistics.KeptAreas, machine.VmallocStatistics.KeptPages));
        AssertWhole(machine);
        Assert.Contains("unpurged vm_area", machine.Proc.VmallocInfo(), StringComparison.Ordinal);

        Assert.True(machine.Vmalloc(15 * Page) != first);
        int mappings = machine.VmallocStatistics.HostMappings;
        var second = (byte*)machine.Vmalloc((16 * Page) - 100);
        Assert.True(second == first);
        Assert.Equal("Vmalloc pages=16 vmalloc N0=16", InfoLine(machine, second)[6..]);
        machine.Vfree(second);
        byte* cleared = (byte*)machine.Vzalloc(16 * Page);
        Assert.True(cleared == first);
        Assert.Equal(0, cleared[5]);
        Assert.Equal(2, machine.VmallocStatistics.Reused);
        Assert.Equal(mappings, machine.VmallocStatistics.HostMappings);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void A_kept_area_is_free_for_everybody_else()
    {
        using Machine machine = Native();
        void* area = machine.Vmalloc(4 * Page);
        machine.Vfree(area);
        AssertRefused(machine, () => machine.Vfree(area), "vfree", "it is free already");
        AssertRefused(machine, () => machine.Vunmap(area), "vunmap", "it is free already");
        AssertRefused(machine, () => machine.Vrealloc(area, Page, Gfp.Kernel), "vrealloc", "it is free already");
        AssertRefused(machine, () => machine.SetMemoryRo(area, 1), "set_memory_ro");
    }

    [Fact]
    public unsafe void What_is_special_is_not_kept()
    {
        using Machine machine = Native();
        void* user = machine.VmallocUser(4 * Page);
        void* changed = machine.Vmalloc(4 * Page);
        Assert.True(machine.SetMemoryX(changed, 1));
        void* shared = machine.Vmalloc(4 * Page);
        Pfn frame = machine.VmallocToPage(shared);
        machine.Pages.Get(frame.Value);
        void* deferred = machine.Vmalloc(4 * Page);
        foreach (nint area in new[] { (nint)user, (nint)changed, (nint)shared })
            machine.Vfree((void*)area);
        using (machine.Atomic())
            machine.Vfree(deferred);
        machine.Vfree(machine.Vmalloc(Page));
        Assert.Equal((1, 1UL), machine.VmallocIfUsed!.Kept);
        machine.FreePages(frame, 0);
        AssertWhole(machine);

        // Nor is a kept area given to a request that wants something special.
        void* kept = machine.Vmalloc(4 * Page);
        machine.Vfree(kept);
        Assert.True(machine.VmallocUser(4 * Page) != kept);
        Assert.True(machine.Vmalloc32(4 * Page) != kept);
        Assert.True(machine.Vmalloc(4 * Page) == kept);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void They_are_given_back_before_an_allocation_fails()
    {
        using Machine machine = Native();
        const nuint Size = 64 * Page;
        int Fill()
        {
            var areas = new List<nint>();
            while (machine.Vmalloc(Size) is var area && area != null)
                areas.Add((nint)area);
            foreach (nint area in areas)
                machine.Vfree((void*)area);
            return areas.Count;
        }

        int first = Fill();
        Assert.True(first > 100);
        Assert.True(machine.VmallocStatistics.KeptPages > 0);
        Assert.InRange(Fill(), first * 9 / 10, first + 2);      // tables and empty slabs stay

        // Frames for another size, and for kmalloc, come from what is kept, too.
        void* large = machine.Vmalloc((nuint)(first * 8 / 10) * Size);
        Assert.True(large != null);
        machine.Vfree(large);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void A_purge_a_trim_and_time_give_them_back()
    {
        using Machine machine = Native();
        using var probe = new MemoryProbe();
        void* area = machine.Vmalloc(4 * Page);
        machine.Vfree(area);
        machine.VmUnmapAliases();
        Assert.Equal(0, machine.VmallocStatistics.KeptAreas);
        Assert.Equal("--", probe.Access((byte*)area));

        machine.Vfree(machine.Vmalloc(4 * Page));
        Assert.True(machine.Trim() > 0);
        Assert.Equal((0, 0L), (machine.VmallocStatistics.KeptAreas, machine.VmallocIfUsed!.PageCount));
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void A_frame_freed_behind_our_back_is_reported_and_not_blamed_on_who_trims()
    {
        using Machine machine = Native();
        void* area = machine.Vmalloc(4 * Page);
        Pfn frame = machine.VmallocToPage(area);
        machine.Vfree(area);
        machine.FreePages(frame, 0);
        long lines = machine.Dmesg.TotalLines;
        machine.Trim();
        Assert.True(machine.Dmesg.TotalLines > lines);
        Assert.Equal((0, 0L), (machine.VmallocStatistics.KeptAreas, machine.VmallocIfUsed!.PageCount));
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void There_is_a_bound_and_the_oldest_goes_first()
    {
        using Machine machine = Native();
        ulong most = (ulong)machine.Pages.Zones.Sum(zone => (long)zone.Zone.Managed) / 8;
        var areas = new List<nint>();
        for (int i = 0; i < 40; i++)
            areas.Add((nint)machine.Vmalloc(100 * Page));
        foreach (nint area in areas)
            machine.Vfree((void*)area);
        VmallocStatistics now = machine.VmallocStatistics;
        Assert.InRange(now.KeptPages, most - 100, most);
        Assert.Equal(now.KeptPages, 100UL * (ulong)now.KeptAreas);
        Assert.Equal((long)now.KeptPages, machine.VmallocIfUsed!.PageCount);
        Assert.True(machine.Vmalloc(100 * Page) == (void*)areas[^1]);
        AssertWhole(machine);
    }

    [Fact]
    public void Kept_areas_agree_with_a_list()
    {
        var random = new Random(5);
        var kept = new KeptAreas(1000);
        var model = new List<(nint Area, ulong Start, ulong Pages)>();     // oldest first
        for (int i = 1; i < 20_000; i++)
        {
            ulong pages = (ulong)random.Next(1, 5) + (random.Next(4) == 0 ? 1024u : 0);
            switch (random.Next(5))
            {
                case < 2:
                    ulong start = (ulong)random.Next(1, 1 << 20) << Pfn.PageShift;
                    kept.Put(i, start, pages);
                    model.Add((i, start, pages));
                    break;
                case < 4:
                    ulong align = random.Next(3) == 0 ? 0x4000u : 1u;
                    int at = model.FindLastIndex(it => it.Pages == pages && it.Start % align == 0);
                    Assert.Equal(at < 0 ? 0 : model[at].Area, kept.Take(pages, align));
                    if (at >= 0)
                        model.RemoveAt(at);
                    break;
                default:
                    Assert.Equal(model.Count == 0 ? 0 : model[0].Area, kept.TakeOldest());
                    if (model.Count > 0)
                        model.RemoveAt(0);
                    break;
            }

            Assert.Equal(model.Count, kept.Count);
            Assert.Equal(model.Aggregate(0UL, (sum, it) => sum + it.Pages), kept.Pages);
        }
    }

    /// <summary>Areas filled with patterns by several threads: no two owners ever have one area.</summary>
    [Fact]
    public async Task Threads_never_share_a_kept_area()
    {
        using Machine machine = Native(128UL << 20);
        Task[] threads = Enumerable.Range(1, 4).Select(id => Task.Run(() => Churn(machine, id))).ToArray();
        await Task.WhenAll(threads);
        Assert.True(machine.VmallocStatistics.Reused > 1000);
        AssertWhole(machine);
        machine.Trim();
        Assert.Equal(0, machine.VmallocIfUsed!.PageCount);
        AssertWhole(machine);
    }

    private static unsafe void Churn(Machine machine, int id)
    {
        var random = new Random(id);
        var live = new List<(nint Area, int Pages)>();
        for (int i = 0; i < 2500; i++)
        {
            if (live.Count < 8 && random.Next(2) == 0)
            {
                int pages = random.Next(1, 9);
                var area = (byte*)machine.Vmalloc((nuint)(pages * Page));
                Assert.True(area != null);
                for (int page = 0; page < pages; page++)
                    *(long*)(area + (page * Page)) = ((long)id << 32) | (uint)page;
                live.Add(((nint)area, pages));
            }
            else if (live.Count > 0)
            {
                int at = random.Next(live.Count);
                (nint area, int pages) = live[at];
                live.RemoveAt(at);
                for (int page = 0; page < pages; page++)
                    Assert.Equal(((long)id << 32) | (uint)page, *(long*)(area + (page * Page)));
                machine.Vfree((void*)area);
            }
        }

        foreach ((nint area, _) in live)
            machine.Vfree((void*)area);
    }
}
