namespace Kmem.Tests;

/// <summary>
/// The other ways to ask for frames: many at once, exact sizes, splitting, clearing; and what is counted.
/// </summary>
public sealed class PageVariantsTests
{
    [Fact]
    [Trait("rule", "PAGE-06")]
    public unsafe void A_bulk_request_takes_from_one_list_without_a_trace()
    {
        using var machine = new BarePages((4096, 4096 + 65536));
        PerCpuPages* pcp = machine.Zone(ZoneType.Dma32).PcpOf(0);
        pcp->FreeCount = 40;
        var pages = new Pfn[100];
        Array.Fill(pages, Pfn.None);
        Pfn kept = new(machine.Alloc(Gfp.Kernel)!.Value);
        Assert.Equal(20, pcp->FreeCount);       // halved by the single request only
        pages[7] = kept;
        machine.Trace.Allocations.Clear();
        Assert.Equal(100, machine.Pages.AllocBulk(Gfp.Kernel, -1, pages));
        Assert.Equal(kept, pages[7]);
        Assert.Equal(100, pages.Distinct().Count());
        Assert.Empty(machine.Trace.Allocations);
        Assert.Equal(20, pcp->FreeCount);
        Assert.Equal(100, pcp->PgAlloc);
        foreach (Pfn pfn in pages)
            machine.Free(pfn.Value);
        Assert.Equal(100, pcp->PgFree);
    }

    [Fact]
    [Trait("rule", "PAGE-06")]
    public void A_bulk_request_needs_the_length_of_the_array_above_low()
    {
        using BarePages machine = new BarePages((4096, 8192)).WithoutReserves();
        Zone zone = machine.Zone(ZoneType.Dma32).Zone;
        zone.Watermarks = new Watermarks(0, 3900, 3950, 4000);

        // 4096 frames are free: 195 are above LOW for all, so 196 entries get a single page, filled ones counted.
        var pages = new Pfn[196];
        Array.Fill(pages, new Pfn(1));
        pages[10] = pages[11] = Pfn.None;
        Assert.Equal(11, machine.Pages.AllocBulk(Gfp.Kernel, -1, pages));
        Assert.True(pages[10].IsValid);
        Assert.Single(machine.Trace.Allocations);

        machine.Free(pages[10].Value);
        var fewer = new Pfn[195];
        Array.Fill(fewer, Pfn.None);
        Assert.Equal(195, machine.Pages.AllocBulk(Gfp.Kernel, -1, fewer));
        Assert.Single(machine.Trace.Allocations);
    }

    [Fact]
    [Trait("rule", "PAGE-06")]
    public void A_bulk_request_ends_with_what_there_is()
    {
        using BarePages machine = new BarePages((4096, 4096 + 10)).WithoutReserves();
        var pages = new Pfn[8];
        Array.Fill(pages, Pfn.None);
        Assert.Equal(8, machine.Pages.AllocBulk(Gfp.Kernel | Gfp.NoWarn, -1, pages));
        Array.Fill(pages, Pfn.None);
        Assert.Equal(1, machine.Pages.AllocBulk(Gfp.Kernel | Gfp.NoWarn, -1, pages));
        Assert.Equal(1, machine.Pages.AllocBulk(Gfp.Kernel | Gfp.NoWarn, -1, pages.AsSpan(1)));
        Array.Fill(pages, Pfn.None);
        Assert.Equal(0, machine.Pages.AllocBulk(Gfp.Kernel | Gfp.NoWarn, -1, pages));
        Assert.Equal(0, machine.Pages.AllocBulk(Gfp.Kernel, -1, []));
    }

    [Fact]
    [Trait("rule", "PAGE-07")]
    public unsafe void An_exact_request_gives_its_tail_back_to_the_tails()
    {
        using BarePages machine = new BarePages((4096, 4096 + 32)).WithoutReserves();
        ZonePages zone = machine.Zone(ZoneType.Dma32);
        ulong first = machine.Alloc(Gfp.Kernel)!.Value;         // splits the block of 32
        Assert.Equal(4096UL, first);
        machine.Trace.Events.Clear();
        Page* page = machine.Pages.AllocExact((4 * 4096) + 1, Gfp.Kernel);

        // Order 3 at 4104; frames 4109, 4110, 4111 come back, the last two as one block, each behind what is there.
        Assert.Equal(4104UL, (ulong)(page - machine.PageOf(0)));
        Assert.Equal([4097, 4109], machine.FreeList(zone, 0, Migratetype.Movable));
        Assert.Equal([4098, 4110], machine.FreeList(zone, 1, Migratetype.Movable));
        Assert.Equal(
            ["free 4109 order 0", "free 4110 order 0", "free 4111 order 0"], machine.Trace.Events.ToArray()[^3..]);
        Assert.Equal((9, 3), (zone.PcpOf(0)->PgAlloc, zone.PcpOf(0)->PgFree));
        machine.Pages.FreeExact(4104, (4 * 4096) + 1);
        machine.Free(first);
        machine.Pages.DrainAll();
        Assert.Equal([4096], machine.FreeList(zone, 5, Migratetype.Movable));
        Assert.Equal((9, 9), (zone.PcpOf(0)->PgAlloc, zone.PcpOf(0)->PgFree));
    }

    [Theory]
    [InlineData(1, 0, 1)]
    [InlineData(4096, 0, 1)]
    [InlineData(4097, 1, 2)]
    [InlineData(5 * 4096, 3, 5)]
    [InlineData(4 << 20, 10, 1024)]
    [Trait("rule", "PAGE-07")]
    public unsafe void An_exact_request_keeps_exactly_its_frames(int bytes, int order, int frames)
    {
        using BarePages machine = new BarePages((4096, 8192)).WithoutReserves();
        Page* page = machine.Pages.AllocExact((nuint)bytes, Gfp.Kernel);
        Assert.True(page != null);
        Assert.Equal(order, machine.Trace.Allocations[^1].Order);
        Assert.Equal(4096 - frames, machine.Zone(ZoneType.Dma32).Zone.FreePages);
        for (int i = 0; i < frames; i++)
            Assert.Equal(1, page[i].RefCount);
    }

    [Fact]
    [Trait("rule", "PAGE-08")]
    public void A_split_block_is_single_frames()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });
        machine.DrainAllPages();
        string before = machine.Proc.BuddyInfo();
        Pfn pfn = machine.AllocPages(Gfp.Kernel, 4);
        machine.SplitPages(pfn, 4);
        Assert.Throws<KernelBugException>(() => machine.FreePages(pfn, 4));
        for (ulong i = 0; i < 16; i++)
        {
            machine.FreePage(pfn + i);
            Assert.Empty(machine.Validate());
        }

        machine.DrainAllPages();
        Assert.Equal(before, machine.Proc.BuddyInfo());
    }

    [Fact]
    [Trait("rule", "PAGE-09")]
    public unsafe void Compound_blocks_know_their_head_and_order()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });
        Pfn pfn = machine.AllocPages(Gfp.Kernel | Gfp.Comp, 5);
        Page* head = machine.Map.PageOf(pfn.Value);
        Assert.True(head->IsHead);
        Assert.Equal(5, PageAllocator.CompoundOrder(head));
        for (int i = 1; i < 32; i++)
        {
            Assert.True(head[i].IsTail);
            Assert.True(Page.HeadOf(head + i) == head);
        }

        machine.FreePages(pfn, 5);
        for (int i = 0; i < 32; i++)
            Assert.False(head[i].IsHead || head[i].IsTail || head[i].Mapping != 0);
        Pfn plain = machine.AllocPages(Gfp.Kernel, 5);
        Assert.Equal(pfn, plain);
        Assert.False(head->IsHead);
        Assert.Equal(0, PageAllocator.CompoundOrder(head));
    }

    [Fact]
    [Trait("rule", "PAGE-05")]
    public unsafe void Cleared_memory_is_clear_whatever_was_there()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });
        for (int order = 0; order <= 10; order++)
        {
            int bytes = 4096 << order;
            Pfn dirty = machine.AllocPages(Gfp.Kernel, order);
            new Span<byte>(machine.AddressOf(dirty), bytes).Fill(0xff);
            machine.FreePages(dirty, order);
            Pfn clear = machine.AllocPages(Gfp.Kernel | Gfp.Zero, order);
            Assert.Equal(dirty, clear);         // the same memory, or this proves nothing
            Assert.True(new Span<byte>(machine.AddressOf(clear), bytes).IndexOfAnyExcept((byte)0) < 0);
            machine.FreePages(clear, order);
        }
    }

    [Fact]
    [Trait("rule", "PAGE-10")]
    public unsafe void Allocations_count_where_they_came_from_and_where_they_were_wanted()
    {
        var map = new BootMemoryMap();
        map.AddMemory(4096 << 12, 8192 << 12, node: 0);
        map.AddMemory(8192 << 12, 12288 << 12, node: 1);
        using BarePages machine = new BarePages(
            new MachineOptions { Profile = KernelProfile.Linux618, MemoryMap = map, Cpus = 2, MinFreeKbytes = 0 }).WithoutReserves();
        machine.Cpus.Pin(0);
        PerCpuPages* near = machine.Zone(ZoneType.Dma32, 0).PcpOf(0);
        PerCpuPages* far = machine.Zone(ZoneType.Dma32, 1).PcpOf(0);

        // From the own node as wanted; from the other one as wanted; from the other one for want of room at home.
        Assert.NotNull(machine.Alloc(Gfp.Kernel, 4));
        Assert.Equal((16, 1, 1), (near->PgAlloc, near->NumaHit, near->NumaLocal));
        Assert.NotNull(machine.Alloc(Gfp.Kernel, 2, node: 1));
        Assert.Equal((4, 1, 0, 1), (far->PgAlloc, far->NumaHit, far->NumaLocal, far->NumaOther));
        machine.Exhaust(Gfp.Kernel | Gfp.ThisNode | Gfp.NoWarn);
        long hits = near->NumaHit;
        Assert.NotNull(machine.Alloc(Gfp.Kernel));
        Assert.Equal((hits, 1), (near->NumaHit, near->NumaForeign));
        Assert.Equal((1, 1, 2), (far->NumaMiss, far->NumaHit, far->NumaOther));
    }

    [Fact]
    [Trait("rule", "PAGE-11")]
    public unsafe void Threads_keep_their_frames_apart()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 128 << 20, Cpus = 2 });
        machine.DrainAllPages();
        string before = machine.Proc.BuddyInfo();
        var failures = new List<Exception>();
        Thread[] threads = [.. Enumerable.Range(0, 4).Select(id => new Thread(() =>
        {
            try
            {
                Work(machine, id);
            }
            catch (Exception exception)
            {
                lock (failures)
                    failures.Add(exception);
            }
        }))];
        foreach (Thread thread in threads)
            thread.Start();
        for (int i = 0; i < 50; i++)
            machine.DrainAllPages();
        foreach (Thread thread in threads)
            thread.Join();
        Assert.Empty(failures);
        Assert.Empty(machine.Validate());
        machine.DrainAllPages();
        Assert.Equal(before, machine.Proc.BuddyInfo());
    }

    private static unsafe void Work(Machine machine, int id)
    {
        var random = new Random(id);
        var live = new List<(Pfn Pfn, int Order, ulong Mark)>();
        for (int step = 0; step < 20_000; step++)
        {
            if (live.Count < 200 && random.Next(2) == 0)
            {
                int order = random.Next(4) == 0 ? random.Next(6) : 0;
                Pfn pfn = machine.AllocPages(random.Next(2) == 0 ? Gfp.Kernel : Gfp.HighUserMovable, order);
                Assert.True(pfn.IsValid);
                ulong mark = ((ulong)id << 32) | (uint)step;
                var words = (ulong*)machine.AddressOf(pfn);
                words[0] = words[(512L << order) - 1] = mark;
                live.Add((pfn, order, mark));
            }
            else if (live.Count > 0)
            {
                int index = random.Next(live.Count);
                (Pfn pfn, int order, ulong mark) = live[index];
                live[index] = live[^1];
                live.RemoveAt(live.Count - 1);
                var words = (ulong*)machine.AddressOf(pfn);
                Assert.True(words[0] == mark && words[(512L << order) - 1] == mark, $"{pfn} was overwritten");
                machine.FreePages(pfn, order);
            }
        }

        foreach ((Pfn pfn, int order, _) in live)
            machine.FreePages(pfn, order);
    }
}
