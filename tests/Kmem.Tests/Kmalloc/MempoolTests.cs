namespace Kmem.Tests;

/// <summary>The rules of kmalloc.md, section 8, over an allocator that fails on command.</summary>
public sealed class MempoolTests
{
    [Fact]
    public unsafe void The_allocator_comes_first_then_the_reserve_latest_first()
    {
        var source = new Source();
        using var pool = source.Pool(3);
        Assert.Equal((3, 3), (pool.Minimum, pool.Reserved));
        Assert.Equal([1, 2, 3], source.Given);
        void* fresh = pool.Alloc(Gfp.Kernel);
        Assert.Equal((nint)4, (nint)fresh);
        Gfp light = Gfp.KswapdReclaim | Gfp.FS | Gfp.NoMemAlloc | Gfp.NoRetry | Gfp.NoWarn;
        Assert.Equal(light, source.Flags[^1]);

        source.Left = 0;
        foreach ((nint element, Gfp gfp) in ((nint, Gfp)[])[(3, Gfp.Kernel), (2, Gfp.Atomic), (1, Gfp.Kernel)])
            Assert.Equal(element, (nint)pool.Alloc(gfp));
        int calls = source.Flags.Count;
        Assert.True(pool.Alloc(Gfp.Atomic) == null); // may not sleep: one attempt, its flags are light already
        Assert.Equal(calls + 1, source.Flags.Count);
        Assert.True(pool.Alloc(Gfp.NoWait | Gfp.IO) == null); // twice: once without IO
        Assert.Equal(calls + 3, source.Flags.Count);
        Assert.True(pool.AllocPreallocated() == null);

        foreach (nint element in (nint[])[1, 2, 3])
            pool.Free((void*)element);
        Assert.Equal(3, pool.Reserved);
        Assert.Empty(source.Freed);
        pool.Free(fresh);
        pool.Free(null);
        Assert.Equal([4], source.Freed);
        Assert.Equal((nint)3, (nint)pool.AllocPreallocated());
        pool.Free((void*)3);
        pool.Dispose();
        Assert.Equal([4, 3, 2, 1], source.Freed);
        Assert.Throws<ObjectDisposedException>(() => { pool.Alloc(Gfp.Kernel); });
        pool.Free((void*)99);
        Assert.Equal(99, source.Freed[^1]);
        pool.Dispose();
        Assert.Equal(5, source.Freed.Count);
    }

    [Fact]
    public void Creation_that_fails_gives_everything_back()
    {
        var source = new Source { Left = 2 };
        Assert.Throws<OutOfMemoryException>(() => source.Pool(3));
        Assert.Equal([2, 1], source.Freed);
        Assert.Throws<ArgumentOutOfRangeException>(() => source.Pool(-1));

        var thrower = new Source { ThrowAt = 3 };
        Assert.Throws<InvalidDataException>(() => thrower.Pool(5));
        Assert.Equal([2, 1], thrower.Freed);
    }

    [Fact]
    public unsafe void A_pool_of_none_keeps_one()
    {
        var source = new Source();
        using var pool = source.Pool(0);
        Assert.Equal((0, 1), (pool.Minimum, pool.Reserved));
        source.Left = 0;
        void* only = pool.Alloc(Gfp.Atomic);
        Assert.True(only != null);
        Assert.True(pool.Alloc(Gfp.Atomic) == null);
        pool.Free((void*)50);
        Assert.Equal(1, pool.Reserved);
        pool.Free(only);
        Assert.Equal([(nint)only], source.Freed);
    }

    [Fact]
    public unsafe void Resizing_fills_and_frees()
    {
        var source = new Source();
        using var pool = source.Pool(4);
        pool.Resize(2);
        Assert.Equal([4, 3], source.Freed);
        Assert.Equal((2, 2), (pool.Minimum, pool.Reserved));
        source.Left = 3;
        pool.Resize(8); // as far as memory goes
        Assert.Equal((8, 5), (pool.Minimum, pool.Reserved));
        pool.Free((void*)100);
        Assert.Equal(6, pool.Reserved); // later frees fill the rest
        source.Left = 100;
        pool.Resize(8); // not larger: nothing to fill
        Assert.Equal(6, pool.Reserved);
        pool.Resize(9);
        Assert.Equal(9, pool.Reserved);
        Assert.Throws<ArgumentOutOfRangeException>(() => pool.Resize(0));
        int freed = source.Freed.Count;
        pool.Free((void*)101);
        Assert.Equal(freed + 1, source.Freed.Count);
    }

    [Fact]
    public unsafe void Who_may_wait_waits_for_a_free_on_another_thread()
    {
        var source = new Source();
        using var pool = source.Pool(2);
        source.Left = 0;
        var first = (nint)pool.Alloc(Gfp.Kernel);
        var second = (nint)pool.Alloc(Gfp.Kernel);
        nint got = 0;
        var waiter = new Thread(() => Volatile.Write(ref got, (nint)pool.Alloc(Gfp.Kernel)));
        waiter.Start();
        Thread.Sleep(50);
        Assert.Equal(0, Volatile.Read(ref got));
        pool.Free((void*)first);
        Assert.True(waiter.Join(2000), "the free did not wake the waiter");
        Assert.Equal(first, got);
        pool.Free((void*)got);
        pool.Free((void*)second);
    }

    [Fact]
    public unsafe void Many_waiters_get_their_turn()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 2 });
        var source = new Source();
        using var pool = source.Pool(3);
        source.Left = 0;
        var crew = new Crew(0.5);
        var owners = new int[4];
        long turns = 0;
        crew.Add(8, index =>
        {
            while (crew.Working)
            {
                var element = (nint)pool.Alloc(Gfp.Kernel);
                Assert.True(element is >= 1 and <= 3, $"element {element}");
                Assert.Equal(0, Interlocked.Exchange(ref owners[element], index + 1));
                Thread.SpinWait(50);
                Assert.Equal(index + 1, Interlocked.Exchange(ref owners[element], 0));
                pool.Free((void*)element);
                Interlocked.Increment(ref turns);
            }
        });
        crew.Run();
        Assert.True(turns > 8);
        Assert.Equal(3, pool.Reserved);
    }

    [Fact]
    public unsafe void Zeroed_elements_and_null_caches_are_refused()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });
        using Mempool pool = machine.CreateMempool(1, 100);
        Assert.Throws<ArgumentException>(() => { pool.Alloc(Gfp.Kernel | Gfp.Zero); });
        Assert.Throws<ArgumentNullException>(() => machine.CreateMempool(1, null!));
    }

    [Fact]
    public unsafe void A_pool_serves_when_the_machine_has_no_memory_left()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 32 << 20, Cpus = 1 });
        KmemCache cache = machine.CreateCache("elements", 4096, 0, SlabFlags.NoMerge);
        using Mempool pool = machine.CreateMempool(4, cache);
        var hoard = new List<nint>();
        foreach (nuint size in (nuint[])[65536, 8193, 4096])
        {
            for (void* p; (p = machine.Kmalloc(size, Gfp.Kernel | Gfp.NoWarn)) != null;)
                hoard.Add((nint)p);
        }

        for (void* p; (p = cache.Alloc(Gfp.Kernel | Gfp.NoWarn)) != null;)
            hoard.Add((nint)p);
        var elements = new List<nint>();
        for (int i = 0; i < 4; i++)
            elements.Add((nint)pool.Alloc(Gfp.Kernel));
        Assert.DoesNotContain(0, elements);
        Assert.Equal(4, elements.Distinct().Count());
        Assert.Empty(elements.Intersect(hoard));
        Assert.True(pool.Alloc(Gfp.NoWait) == null);
        elements.ForEach(element => pool.Free((void*)element));
        machine.KfreeBulk(hoard.ToArray());
        pool.Dispose();
        cache.Destroy();
        Assert.Empty(machine.Validate());
    }

    [Theory]
    [InlineData("native")]
    [InlineData("linux-6.18")]
    [Trait("rule", "MEMPOOL-01")]
    public unsafe void Threads_on_an_empty_machine_live_on_the_reserve(string profile)
    {
        using Machine machine = BudgetTests.Boot(profile, 32UL << 20, cpus: 4);
        using Mempool pool = machine.CreatePageMempool(3, 1);
        List<Pfn> held = ShrinkerTests.Exhaust(machine);
        long turns = 0;
        int inUse = 0;
        int most = 0;
        var crew = new Crew(0.5);
        crew.Add(6, index =>
        {
            while (crew.Working)
            {
                var page = (ulong*)pool.Alloc(Gfp.NoIO);
                Assert.True(page != null);
                int now = Interlocked.Increment(ref inUse);
                if (now > Volatile.Read(ref most))
                    Volatile.Write(ref most, now);
                var words = new Span<ulong>(page, 2 * Pfn.PageSize / sizeof(ulong));
                words.Fill((ulong)index);
                Thread.SpinWait(20);
                Assert.False(words.ContainsAnyExcept((ulong)index));
                Interlocked.Decrement(ref inUse);
                pool.Free(page);
                Interlocked.Increment(ref turns);
            }
        });
        crew.Run();
        Assert.True(turns > 6);
        Assert.InRange(most, 1, 6);
        Assert.Equal(3, pool.Reserved);
        held.ForEach(machine.FreePage);
        pool.Dispose();
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "MEMPOOL-02")]
    public unsafe void Disposing_a_pool_ends_those_who_wait_for_it()
    {
        var source = new Source();
        Mempool pool = source.Pool(1);
        source.Left = 0;
        var only = (nint)pool.Alloc(Gfp.Kernel);
        Exception? error = null;
        var waiter = new Thread(() => error = Record.Exception(() => { pool.Alloc(Gfp.Kernel); }));
        waiter.Start();
        Thread.Sleep(50);
        pool.Dispose();
        Assert.True(waiter.Join(2000), "the waiter still waits");
        Assert.IsType<ObjectDisposedException>(error);
        pool.Free((void*)only);
        Assert.Contains(only, source.Freed);
    }

    [Theory]
    [InlineData(0, "0x00, not 0x6b")]
    [InlineData(99, "0x00, not 0xa5")]
    [Trait("rule", "MEMPOOL-03")]
    public unsafe void With_slab_debugging_a_write_to_the_reserve_is_found(int at, string report)
    {
        using var machine = Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            RamBytes = 32 << 20,
            Cpus = 1,
            SlubDebug = "F,kmalloc-8",
        });
        using Mempool pool = machine.CreateMempool(2, 100);
        var stale = (byte*)pool.AllocPreallocated();
        Assert.Equal(0x5a, stale[at]);
        pool.Free(stale);
        stale[at] = 0;
        var again = (byte*)pool.AllocPreallocated();
        Assert.True(again == stale);
        Assert.Equal("BUG: mempool element poison mismatch", machine.Dmesg.Lines[^2]);
        Assert.Contains($"byte {at} is {report}", machine.Dmesg.Lines[^1], StringComparison.Ordinal);
        pool.Free(again);
        long lines = machine.Dmesg.TotalLines;
        pool.Free(pool.AllocPreallocated());
        Assert.Equal(lines, machine.Dmesg.TotalLines);
    }

    [Fact]
    [Trait("rule", "MEMPOOL-01")]
    public unsafe void A_pool_of_large_elements_has_them_without_sleeping()
    {
        using Machine machine = VmallocMachine.Boot();
        using Mempool pool = machine.CreateKvmallocMempool(2, 5 << 20);
        using (machine.Atomic())
        {
            var a = (byte*)pool.Alloc(Gfp.Atomic);
            var b = (byte*)pool.Alloc(Gfp.Atomic);
            Assert.True(a != null && b != null);
            Assert.True(pool.Alloc(Gfp.Atomic) == null);
            b[(5 << 20) - 1] = 1;
            pool.Free(a);
            pool.Free(b);
        }

        // The attempt without sleeping cannot bring one, so the reserve is next; then vmalloc.
        void*[] all = [pool.Alloc(Gfp.Kernel), pool.Alloc(Gfp.Kernel), pool.Alloc(Gfp.Kernel)];
        Assert.Equal(0, pool.Reserved);
        foreach (void* element in all)
            pool.Free(element);
        Assert.Equal(2, pool.Reserved);
        pool.Dispose();
        Assert.Empty(machine.Validate());
    }

    private sealed class Source
    {
        public int Left { get; set; } = int.MaxValue;

        public int ThrowAt { get; set; } = -1;

        public List<nint> Given { get; } = [];

        public List<nint> Freed { get; } = [];

        public List<Gfp> Flags { get; } = [];

        public Mempool Pool(int minimum) => new(minimum, Alloc, Freed.Add, _ => { });

        private nint Alloc(Gfp gfp)
        {
            lock (Given)
            {
                Flags.Add(gfp);
                if (Left == 0)
                    return 0;
                if (Given.Count + 1 == ThrowAt)
                    throw new InvalidDataException("no");
                Left--;
                Given.Add(Given.Count + 1);
                return Given.Count;
            }
        }
    }
}
