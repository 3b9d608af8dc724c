using System.Buffers;
using System.Runtime.CompilerServices;

namespace Kmem.Tests;

/// <summary>Owners and pools: what they give, what they refuse, and what they report.</summary>
public sealed class OwnerTests
{
    private static MachineOptions Small(bool sites = false, Action<LeakReport>? onLeak = null) =>
        new() { RamBytes = 64 << 20, Cpus = 2, TrackCallSites = sites, OnLeak = onLeak, Name = "test" };

    [Fact]
    public void A_rented_block_has_its_length_is_memory_of_the_machine_and_comes_back()
    {
        using Machine machine = Machine.Boot(Small());
        using (KmemOwner<long> owner = machine.Rent<long>(1000, clear: true))
        {
            Assert.Equal(1000, owner.Length);
            Assert.Equal(1000, owner.Memory.Length);
            Assert.True(owner.Span.IndexOfAnyExcept(0) < 0);
            owner.Span.Fill(42);
            Assert.Equal(42, owner.Memory.Span[999]);
            unsafe
            {
                using MemoryHandle pin = owner.Memory.Pin();
                Assert.True(machine.PfnOf(pin.Pointer).IsValid);
            }

            Assert.Equal(1, machine.Outstanding);
            Assert.Equal(8000, machine.OutstandingBytes);
        }

        Assert.Equal(0, machine.Outstanding);
        Assert.Equal(0, machine.OutstandingBytes);
        Assert.Empty(machine.Validate());
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(4096)]
    [InlineData(9 << 20)]
    public void Blocks_of_any_size_can_be_rented(int bytes)
    {
        using Machine machine = Machine.Boot(Small());
        Assert.SkipWhen(bytes > Machine.KmallocMaxSize && machine.Floor.Memory.WhyNoWindow != null, "no vmalloc here");
        using KmemOwner<byte> owner = machine.Rent<byte>(bytes);
        owner.Span.Fill(7);
        Assert.Equal(bytes, owner.Span.Length);
    }

    [Fact]
    public void After_dispose_every_use_throws_and_a_second_dispose_too()
    {
        using Machine machine = Machine.Boot(Small());
        KmemOwner<int> owner = machine.Rent<int>(16);
        Memory<int> memory = owner.Memory;
        Memory<int> slice = memory[4..8];
        owner.Dispose();
        Assert.True(owner.IsDisposed);
        Assert.Throws<ObjectDisposedException>(() => owner.Memory);
        Assert.Throws<ObjectDisposedException>(() => memory.Span[0]);
        Assert.Throws<ObjectDisposedException>(() => slice.Span[0]);
        Assert.Throws<ObjectDisposedException>(() => slice.Pin());
        ObjectDisposedException twice = Assert.Throws<ObjectDisposedException>(owner.Dispose);
        Assert.Contains("a second time", twice.Message, StringComparison.Ordinal);
        Assert.Throws<ObjectDisposedException>(() => ((IMemoryOwner<int>)owner).Dispose());
        Assert.Equal(0, machine.Outstanding);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void A_pinned_block_is_freed_with_the_last_pin()
    {
        using Machine machine = Machine.Boot(Small());
        KmemOwner<byte> owner = machine.Rent<byte>(100);
        MemoryHandle first = owner.Memory.Pin();
        MemoryHandle second = owner.Pin(100);
        Assert.Throws<ArgumentOutOfRangeException>(() => owner.Pin(101));
        owner.Dispose();
        Assert.Equal(1, machine.Outstanding);
        first.Dispose();
        Assert.Equal(1, machine.Outstanding);
        second.Dispose();
        Assert.Equal(0, machine.Outstanding);
        Assert.Throws<InvalidOperationException>(owner.Unpin);
        Assert.Throws<ObjectDisposedException>(() => owner.Pin());
    }

    [Fact]
    public async Task Of_many_threads_that_dispose_one_owner_exactly_one_succeeds()
    {
        using Machine machine = Machine.Boot(Small());
        for (int round = 0; round < 200; round++)
        {
            KmemOwner<byte> owner = machine.Rent<byte>(64);
            int freed = 0;
            using var start = new Barrier(4);
            await Task.WhenAll(Enumerable.Range(0, 4).Select(i => Task.Run(() =>
            {
                start.SignalAndWait();
                try
                {
                    if (i == 3)
                    {
                        using MemoryHandle pin = owner.Pin();
                    }
                    else
                    {
                        owner.Dispose();
                        Interlocked.Increment(ref freed);
                    }
                }
                catch (ObjectDisposedException)
                {
                    // What the others are to get.
                }
            })));
            Assert.Equal(1, freed);
            Assert.Equal(0, machine.Outstanding);
        }

        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void An_owner_that_outlives_its_machine_throws_instead_of_touching_memory()
    {
        Machine machine = Machine.Boot(Small());
        KmemOwner<byte> owner = machine.Rent<byte>(64);
        KmemPool pool = machine.CreatePool();
        IMemoryOwner<byte> block = pool.Rent(10);
        KmemCache<long> cache = machine.CreateCache<long>("long");
        KmemHandle<long> handle = cache.Rent(5);
        KmemRegion region = machine.CreateRegion(10000);
        KmemRing ring = machine.CreateRing(4096);
        KmemBufferWriter writer = machine.CreateWriter();
        machine.Dispose();

        Assert.Throws<ObjectDisposedException>(() => owner.Span[0]);
        Assert.Throws<ObjectDisposedException>(() => block.Memory);
        Assert.Throws<ObjectDisposedException>(() => pool.Rent(1));
        Assert.Throws<ObjectDisposedException>(() => cache[handle]);
        Assert.Throws<ObjectDisposedException>(() => cache.Rent(1));
        Assert.Throws<ObjectDisposedException>(() => cache.Return(handle));
        Assert.Throws<ObjectDisposedException>(() => region.Read<byte>(0));
        Assert.Throws<ObjectDisposedException>(() => region.AsSpan(0, 1)[0]);
        Assert.Throws<ObjectDisposedException>(() => ring.WriteSpan[0]);
        Assert.Throws<ObjectDisposedException>(() => writer.GetSpan(1)[0]);
        Assert.Throws<ObjectDisposedException>(() => machine.Rent<byte>(1));
        Assert.Throws<ObjectDisposedException>(() => machine.CreateRegion(1));
        Assert.Throws<ObjectDisposedException>(() => machine.CreateRing(1));
        Assert.Throws<ObjectDisposedException>(() => machine.CreateGrowingBuffer(1));
        Assert.Throws<ObjectDisposedException>(() => machine.CreateSequenceWriter());
        Assert.Throws<ObjectDisposedException>(() => machine.CreatePool());
        Assert.Throws<ObjectDisposedException>(() => machine.CreateCache<int>("late"));

        // Giving back what is gone is no mistake: the machine has reported it.
        owner.Dispose();
        block.Dispose();
        region.Dispose();
        ring.Dispose();
        writer.Dispose();
        cache.Dispose();
        pool.Dispose();
        machine.Dispose();
    }

    [Fact]
    public void A_pool_gives_blocks_of_a_page_or_of_the_size_asked_for()
    {
        using Machine machine = Machine.Boot(Small());
        using KmemPool pool = machine.CreatePool("http");
        MemoryPool<byte> asPool = pool;
        using (IMemoryOwner<byte> standard = asPool.Rent())
        using (IMemoryOwner<byte> large = pool.Rent(5000))
        using (IMemoryOwner<byte> none = pool.Rent(0))
        {
            Assert.Equal(4096, standard.Memory.Length);
            Assert.Equal(8192, large.Memory.Length);
            Assert.True(none.Memory.Length >= 1);
            Assert.Equal(3, pool.Outstanding);
            Assert.Equal("3 x KmemPool 'http', 12296 bytes", pool.FindLeaks().Sites.Single().ToString());
        }

        Assert.Equal((0, 0), (pool.Outstanding, pool.OutstandingBytes));
        Assert.Throws<ArgumentOutOfRangeException>(() => pool.Rent(-2));
        Assert.True(pool.MaxBufferSize >= Machine.KmallocMaxSize);
    }

    [Fact]
    public void A_pool_that_is_disposed_refuses_to_rent_and_its_blocks_live_on()
    {
        var reports = new List<LeakReport>();
        using Machine machine = Machine.Boot(Small(onLeak: reports.Add));
        KmemPool pool = machine.CreatePool("p");
        IMemoryOwner<byte> block = pool.Rent(100);
        pool.Dispose();
        pool.Dispose();
        Assert.Throws<ObjectDisposedException>(() => pool.Rent(1));
        block.Memory.Span.Fill(1);
        Assert.Equal("pool 'p' disposed", Assert.Single(reports).Occasion);
        block.Dispose();
        Assert.Equal(0, machine.Outstanding);
    }

    [Fact]
    public void A_leak_is_reported_by_source_line_when_the_machine_is_disposed()
    {
        var reports = new List<LeakReport>();
        Machine machine = Machine.Boot(Small(sites: true, reports.Add));
        KmemPool pool = machine.CreatePool("leaky");
        var kept = new List<object>();
        int line = LineHere();
        for (int i = 0; i < 3; i++)
            kept.Add(pool.Rent(4096));                          // line + 2
        kept.Add(machine.Rent<int>(10));                        // line + 3
        pool.Rent(1).Dispose();
        machine.Dispose();

        LeakReport report = Assert.Single(reports);
        Assert.Equal(("test", "at dispose", 4, 3 * 4096 + 40), (report.Machine, report.Occasion, (int)report.Count, (int)report.Bytes));
        Assert.Equal(2, report.Sites.Count);
        Assert.Equal(
            ("KmemPool 'leaky'", line + 2, 3L), (report.Sites[0].Source, report.Sites[0].Line, report.Sites[0].Count));
        Assert.Equal(("Machine.Rent", line + 3), (report.Sites[1].Source, report.Sites[1].Line));
        Assert.EndsWith("OwnerTests.cs", report.Sites[0].File, StringComparison.Ordinal);
        Assert.Contains($"OwnerTests.cs:{line + 2}", machine.Dmesg.ToString(), StringComparison.Ordinal);
        GC.KeepAlive(kept);
    }

    [Fact]
    public void Callers_through_the_base_class_are_found_on_the_stack()
    {
        using Machine machine = Machine.Boot(Small(sites: true));
        MemoryPool<byte> pool = machine.CreatePool("base");
        using IMemoryOwner<byte> block = pool.Rent(1);
        LeakSite site = Assert.Single(machine.FindLeaks().Sites);
        Assert.Contains(nameof(OwnerTests), site.File, StringComparison.Ordinal);
    }

    [Fact]
    public void Without_call_sites_a_report_names_the_sources()
    {
        using Machine machine = Machine.Boot(Small());
        Assert.True(machine.FindLeaks().IsEmpty);
        Assert.Contains("nothing is outstanding", machine.FindLeaks().ToString(), StringComparison.Ordinal);
        using KmemOwner<byte> owner = machine.Rent<byte>(5);
        LeakReport report = machine.FindLeaks();
        Assert.False(report.HasCallSites);
        Assert.Equal(new LeakSite("Machine.Rent", "", 0, 1, 5), Assert.Single(report.Sites));
        Assert.Contains("TrackCallSites", report.ToString(), StringComparison.Ordinal);
    }

    [Fact]
    public void A_lost_owner_is_found_reported_and_freed_where_call_sites_are_kept()
    {
        var reports = new List<LeakReport>();
        using Machine machine = Machine.Boot(Small(sites: true, report =>
        {
            lock (reports)
                reports.Add(report);
        }));
        int line = Lose(machine);
        for (int i = 0; i < 20 && machine.Outstanding > 0; i++)
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
        }

        Assert.Equal(0, machine.Outstanding);
        lock (reports)
        {
            LeakReport report = Assert.Single(reports);
            Assert.StartsWith("lost", report.Occasion, StringComparison.Ordinal);
            Assert.Equal((line, 12L), (report.Sites[0].Line, report.Sites[0].Bytes));
        }
    }

    [Fact]
    public void What_is_lost_while_the_machine_ends_is_left_alone()
    {
        for (int round = 0; round < 10; round++)
        {
            Machine machine = Machine.Boot(Small(sites: true));
            for (int i = 0; i < 50; i++)
                Lose(machine);
            var collector = new Thread(GC.Collect);
            collector.Start();
            machine.Dispose();
            collector.Join();
            GC.WaitForPendingFinalizers();
            Assert.Throws<ObjectDisposedException>(() => machine.Rent<byte>(1));
        }
    }

    [Fact]
    public void An_exhausted_machine_explains_itself()
    {
        using Machine machine = Machine.Boot(new MachineOptions { RamBytes = 32 << 20, Cpus = 1, Name = "tiny" });
        using KmemPool pool = machine.CreatePool("p");
        var held = new List<IMemoryOwner<byte>>();
        OutOfMemoryException error = Assert.Throws<OutOfMemoryException>(() => RentForever(pool, held));
        Assert.Matches(
            @"^Kmem machine 'tiny' has no 4096 bytes \(order 0\) for KmemPool 'p': what is free is the reserve .*; "
            + @"budget \d+ KiB, \d+ KiB in use; node 0 zone DMA: \d+ KiB free, min \d+ KiB, free blocks by order( \d+){11}",
            error.Message);
        Assert.True(held.Count > 5000, $"{held.Count} blocks");

        error = Assert.Throws<OutOfMemoryException>(() => machine.Rent<byte>(1 << 30));
        Assert.Contains("the machine is smaller than that", error.Message, StringComparison.Ordinal);
        error = Assert.Throws<OutOfMemoryException>(() => machine.CreateRegion((nuint)1 << 40));
        Assert.Contains("for KmemRegion: the machine is smaller", error.Message, StringComparison.Ordinal);
        held.ForEach(block => block.Dispose());
        Assert.Equal(0, machine.Outstanding);
        Assert.Empty(machine.Validate());
        using KmemOwner<byte> again = machine.Rent<byte>(1 << 20);
    }

    [Fact]
    public void A_fragmented_machine_says_so()
    {
        using Machine machine = Machine.Boot(
            new MachineOptions { RamBytes = 32 << 20, Cpus = 1, PortableMemory = true, Name = "holes" });
        var frames = new List<Pfn>();
        using (machine.MemallocNoReclaim())                     // takes the reserves, too
        {
            for (Pfn frame = machine.AllocPage(Gfp.Kernel); frame.IsValid; frame = machine.AllocPage(Gfp.Kernel))
                frames.Add(frame);
        }

        foreach (Pfn frame in frames.Where(frame => frame.Value % 2 == 0))
            machine.FreePage(frame);
        machine.DrainAllPages();
        OutOfMemoryException error = Assert.Throws<OutOfMemoryException>(() => machine.Rent<byte>(1 << 20));
        Assert.Contains("fragmented, no zone has a block of order 8", error.Message, StringComparison.Ordinal);
        error = Assert.Throws<OutOfMemoryException>(() => machine.Rent<byte>(5 << 20));
        Assert.Contains("there is no vmalloc", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Threads_that_rent_and_others_that_dispose_leave_nothing_behind()
    {
        using Machine machine = Machine.Boot(Small(sites: true));
        using KmemPool pool = machine.CreatePool("threads");
        using var handed = new System.Collections.Concurrent.BlockingCollection<KmemOwner<byte>>(100);
        var disposer = new Thread(() =>
        {
            foreach (KmemOwner<byte> block in handed.GetConsumingEnumerable())
            {
                Assert.True(block.Span.IndexOfAnyExcept((byte)block.Length) < 0);
                block.Dispose();
            }
        });
        disposer.Start();
        Thread[] renters = Enumerable.Range(0, 4).Select(seed => new Thread(() =>
        {
            var random = new Random(seed);
            for (int i = 0; i < 3000; i++)
            {
                KmemOwner<byte> block = pool.Rent(random.Next(20000));
                block.Span.Fill((byte)block.Length);
                handed.Add(block);
            }
        })).ToArray();
        Array.ForEach(renters, thread => thread.Start());
        Array.ForEach(renters, thread => thread.Join());
        handed.CompleteAdding();
        disposer.Join();
        Assert.Equal((0, 0), (pool.Outstanding, pool.OutstandingBytes));
        Assert.True(machine.FindLeaks().IsEmpty);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void More_threads_than_counters_count_right()
    {
        using Machine machine = Machine.Boot(Small());
        var blocks = new KmemOwner<byte>[200];
        using var all = new Barrier(blocks.Length);
        Thread[] threads = Enumerable.Range(0, blocks.Length).Select(i => new Thread(
            () =>
            {
                all.SignalAndWait();
                for (int round = 0; round < 50; round++)
                    machine.Rent<byte>(8).Dispose();
                blocks[i] = machine.Rent<byte>(16);
                all.SignalAndWait();
            },
            maxStackSize: 256 << 10)).ToArray();
        Array.ForEach(threads, thread => thread.Start());
        Array.ForEach(threads, thread => thread.Join());
        Assert.Equal((200, 3200), (machine.Outstanding, machine.OutstandingBytes));
        Array.ForEach(blocks, block => block.Dispose());
        Assert.Equal((0, 0), (machine.Outstanding, machine.OutstandingBytes));
    }

    private static int LineHere([CallerLineNumber] int line = 0) => line;

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static int Lose(Machine machine)
    {
        machine.Rent<byte>(12);
        return LineHere() - 1;
    }

    private static void RentForever(KmemPool pool, List<IMemoryOwner<byte>> held)
    {
        while (true)
            held.Add(pool.Rent());
    }
}
