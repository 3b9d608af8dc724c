using System.Collections.Concurrent;

namespace Kmem.Tests;

/// <summary>
/// Real threads on one machine: everything allocated is stamped word by word and verified when it is freed, mostly by
/// another thread; at the end the machine validates and has all its memory back.
/// </summary>
public sealed class SlabStressTests
{
    [Theory]
    [InlineData(8, 1, 1, "")]
    [InlineData(8, 2, 1, "random hardened")]
    [InlineData(8, 4, 1, "")]
    [InlineData(2, 4, 1, "")]
    [InlineData(4, 4, 2, "hardened")]
    [InlineData(6, 2, 2, "random")]
    [InlineData(8, 16, 1, "native")]
    [InlineData(8, 2, 1, "native random hardened")]
    [InlineData(6, 4, 2, "native")]
    [InlineData(8, 16, 1, "native secure")]
    [InlineData(6, 2, 2, "native secure")]
    [InlineData(6, 4, 1, "native guarded")]
    public void Threads_free_each_others_objects(int threads, int cpus, int nodes, string options)
    {
        using var yard = new Yard(cpus, nodes, options);
        var crew = new Crew(0.6);
        crew.Add(threads, index => yard.Work(crew, index, runOn: false));
        crew.Run();
        yard.WindUp();
    }

    [Theory]
    [InlineData(6, 2, 1, "")]
    [InlineData(6, 4, 2, "")]
    [InlineData(3, 8, 1, "")]
    [InlineData(6, 2, 1, "native")]
    [InlineData(3, 8, 1, "native")]
    [InlineData(6, 2, 1, "native secure")]
    public void Threads_hop_from_cpu_to_cpu(int threads, int cpus, int nodes, string options)
    {
        using var yard = new Yard(cpus, nodes, options);
        var crew = new Crew(0.6);
        crew.Add(threads, index => yard.Work(crew, index, runOn: true));
        crew.Run();
        yard.WindUp();
    }

    [Theory]
    [InlineData(1, 1, "")]
    [InlineData(2, 1, "")]
    [InlineData(4, 2, "")]
    [InlineData(2, 1, "native")]
    [InlineData(16, 1, "native")]
    public void Upkeep_goes_on_while_others_allocate(int cpus, int nodes, string options)
    {
        using var yard = new Yard(cpus, nodes, options);
        var crew = new Crew(1);
        crew.Add(4, index => yard.Work(crew, index, runOn: index == 0));
        crew.Add(1, _ =>
        {
            for (int round = 0; crew.Working; round++)
                Upkeep(yard, round);
        });
        crew.Add(2, index =>
        {
            for (int round = 0; crew.Working; round++)
                OwnCache(yard.Machine, index, round);
        });
        crew.Run();
        yard.WindUp();
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void Threads_come_and_go_and_nothing_grows(int cpus)
    {
        using var yard = new Yard(cpus, 1, "");
        Machine machine = yard.Machine;
        KmemCache cache = machine.CreateCache("visitors", 200, flags: SlabFlags.NoMerge);
        var crew = new Crew(1);
        int visitors = 0;
        int mostKnown = 0;
        long mostSlabs = 0;
        crew.Add(3, index =>
        {
            var random = new Random(index);
            while (crew.Working || Volatile.Read(ref visitors) < 300)
            {
                var visitor = new Thread(() => crew.Guard(() => Visit(machine, cache, new Random(random.Next()))));
                visitor.Start();
                visitor.Join();
                Interlocked.Increment(ref visitors);
                mostKnown = Math.Max(mostKnown, machine.CpuSet.KnownThreads);
                mostSlabs = Math.Max(mostSlabs, cache.SlabCount);
            }
        });
        crew.Run();
        TestContext.Current.TestOutputHelper?.WriteLine($"{visitors} threads, {mostKnown} known, {mostSlabs} slabs");
        Assert.True(mostKnown < 64, $"{mostKnown} threads known at a time, with 7 alive");

        // Each visit needs 3 slabs; a CPU keeps one and a chain of at most CpuPartialSlabs, the node MinPartial.
        Assert.True(mostSlabs <= 9 + (cpus * (1 + cache.CpuPartialSlabs)) + cache.MinPartial, $"{mostSlabs} slabs");
        Assert.Equal(0, cache.LiveCount);
        cache.Destroy();
        yard.WindUp();
    }

    [Theory]
    [InlineData(2, "")]
    [InlineData(4, "")]
    [InlineData(4, "native")]
    [InlineData(4, "native secure")]
    public void A_reader_never_sees_an_object_freed_before_it_left(int cpus, string options)
    {
        using var yard = new Yard(cpus, 1, options);
        Machine machine = yard.Machine;
        var shelf = new nint[16];
        var crew = new Crew(0.6);
        crew.Add(2, index => Replace(machine, crew, shelf, index));
        crew.Add(3, index => Look(machine, crew, shelf, index));
        crew.Run();
        foreach (nint item in shelf)
            Free(machine, item);
        yard.WindUp();
    }

    [Fact]
    public void Interrupts_lose_nothing()
    {
        using var yard = new Yard(1, 1, "");
        var crew = new Crew(0.6);
        var threads = new ConcurrentBag<Thread>();
        crew.Add(4, index =>
        {
            threads.Add(Thread.CurrentThread);
            yard.Work(crew, index, runOn: true);
        });
        crew.Add(1, _ =>
        {
            while (crew.Working)
            {
                foreach (Thread thread in threads)
                    thread.Interrupt();
                Thread.SpinWait(1000);
            }
        });
        crew.Run();
        yard.WindUp();
    }

    private static void Upkeep(Yard yard, int round)
    {
        Machine machine = yard.Machine;
        switch (round % 7)
        {
            case 0: machine.ShrinkCaches(); break;
            case 1: machine.DrainAllPages(); break;
            case 2: yard.Caches[round % yard.Caches.Length].Shrink(); break;
            case 3: Assert.NotEmpty(machine.Proc.SlabInfo()); break;
            case 4: machine.Tick(); break;
            case 5: machine.Trim(); break;
            default: machine.RcuBarrier(); break;
        }
    }

    private static unsafe void OwnCache(Machine machine, int index, int round)
    {
        int size = 8 + ((round * 56) % 3000);
        SlabConstructor? constructor = round % 3 == 0 ? obj => *(ulong*)obj = 77 : null;
        SlabFlags flags = round % 4 == 0 ? SlabFlags.TypesafeByRcu : SlabFlags.NoMerge;
        int sheaf = round % 5 == 0 ? 12 : 0;
        KmemCache cache = machine.CreateCache($"own-{index}-{round}", size, 0, flags, constructor, sheafCapacity: sheaf);
        var objects = new nint[50];
        Assert.Equal(50, cache.AllocBulk(Gfp.Kernel, objects));
        foreach (nint obj in objects)
            Assert.True(constructor == null || *(ulong*)obj == 77);
        cache.FreeBulk(objects);
        cache.Destroy();
    }

    private static unsafe void Visit(Machine machine, KmemCache cache, Random random)
    {
        var mine = new List<Stamped>();
        for (int i = 0; i < 50; i++)
        {
            mine.Add(Stamped.Write(cache.Alloc(Gfp.Kernel), 200, (ulong)random.NextInt64(), cache));
            mine.Add(Stamped.Write(machine.Kmalloc(100, Gfp.Kernel), 100, (ulong)random.NextInt64(), null));
        }

        foreach (Stamped block in mine)
            block.Free(machine);
    }

    private static unsafe void Replace(Machine machine, Crew crew, nint[] shelf, int index)
    {
        var random = new Random(index);
        while (crew.Working)
        {
            int size = 16 << random.Next(8);
            Stamped item = Stamped.Write(machine.Kmalloc((nuint)size, Gfp.Kernel), size, (ulong)size, null);
            nint old = Interlocked.Exchange(ref shelf[random.Next(shelf.Length)], item.Address);
            if (old == 0)
                continue;

            machine.KfreeRcu((void*)old);
            if (random.Next(50) == 0)
                machine.RcuBarrier();
        }
    }

    private static unsafe void Look(Machine machine, Crew crew, nint[] shelf, int index)
    {
        var random = new Random(100 + index);
        while (crew.Working)
        {
            using RcuReader reader = machine.RcuRead();
            nint item = Volatile.Read(ref shelf[random.Next(shelf.Length)]);
            if (item == 0)
                continue;

            // Its size is in its first word; whoever reuses the place would change that.
            ulong size = *(ulong*)item;
            for (int look = 0; look < 3; look++)
            {
                new Stamped(item, (int)size, size, null).Verify();
                Thread.SpinWait(20);
            }
        }
    }

    private static unsafe void Free(Machine machine, nint item) => machine.Kfree((void*)item);

    /// <summary>A machine, some caches, and a table through which threads hand objects to each other.</summary>
    private sealed class Yard : IDisposable
    {
        private readonly Stamped?[] _table = new Stamped?[256];
        private readonly long _freeBefore;

        public Yard(int cpus, int nodes, string options)
        {
            Machine = Machine.Boot(new MachineOptions
            {
                Profile = options.Contains("secure") ? KernelProfile.Hardened
                    : options.Contains("native") ? KernelProfile.Native : KernelProfile.Linux618,
                Kfence = options.Contains("guarded") ? new KfenceOptions { EveryNth = 50 } : null,
                DecaySeconds = 0,
                RamBytes = 256 << 20,
                Cpus = cpus,
                Nodes = nodes,
                SlabFreelistRandom = options.Contains("random"),
                SlabFreelistHardened = options.Contains("hardened"),
            });
            _freeBefore = FreeFrames();
            Caches =
            [
                Machine.CreateCache("plain", 72),
                Machine.CreateCache("sheaves", 144, sheafCapacity: 20),
                Machine.CreateCache("lines", 300, 0, SlabFlags.HwcacheAlign),
                Machine.CreateCache("rcu", 500, 0, SlabFlags.TypesafeByRcu),
                Machine.CreateCache("one", 20000),
                Machine.CreateCache("page", 4096, 4096),
            ];
        }

        public Machine Machine { get; }

        public KmemCache[] Caches { get; }

        /// <summary>Allocates, keeps some, puts most into the table, and frees what was there.</summary>
        public unsafe void Work(Crew crew, int index, bool runOn)
        {
            var random = new Random(index);
            var kept = new List<Stamped>();
            var bulk = new nint[24];
            for (ulong counter = 0; crew.Working; counter++)
            {
                using CpuBinding binding = runOn && random.Next(8) == 0
                    ? Machine.RunOn(random.Next(Machine.Cpus)) : default;
                ulong stamp = ((ulong)index << 56) | (counter << 8);
                switch (random.Next(16))
                {
                    case < 10:
                        Stamped block = Allocate(random, stamp);
                        if (random.Next(4) == 0)
                            kept.Add(block);
                        else
                            Exchange(random.Next(_table.Length), block);
                        break;
                    case 10:
                        BulkRound(random, bulk, stamp);
                        break;
                    case 11:
                        ScopeRound(random, stamp);
                        break;
                    case 12:
                        Exchange(random.Next(_table.Length), null);
                        break;
                    default:
                        if (kept.Count > 0)
                        {
                            int at = random.Next(kept.Count);
                            kept[at].Free(Machine);
                            kept[at] = kept[^1];
                            kept.RemoveAt(kept.Count - 1);
                        }

                        break;
                }
            }

            kept.ForEach(block => block.Free(Machine));
        }

        /// <summary>
        /// Some objects through a scope: half of them freed in it, the others handed to other threads.
        /// </summary>
        private unsafe void ScopeRound(Random random, ulong stamp)
        {
            KmemCache cache = Caches[random.Next(4)];
            using CacheScope scope = cache.Enter(Gfp.Kernel);
            int count = random.Next(1, 40);
            for (int i = 0; i < count; i++)
            {
                Stamped block = Stamped.Write(scope.Alloc(), cache.ObjectSize, stamp, cache);
                if (random.Next(2) == 0)
                {
                    Exchange(random.Next(_table.Length), block);
                    continue;
                }

                block.Verify();
                scope.Free((void*)block.Address);
            }
        }

        public void WindUp()
        {
            for (int i = 0; i < _table.Length; i++)
                Exchange(i, null);
            Machine.RcuBarrier();
            Assert.Empty(Machine.Validate());
            foreach (KmemCache cache in Caches)
            {
                Assert.Equal(0, cache.LiveCount);
                cache.Destroy();
            }

            Assert.Equal(_freeBefore, FreeFrames());
            Assert.Empty(Machine.Validate());
            foreach (KmemCache cache in Machine.Caches.Where(cache => (cache.Flags & SlabFlags.Kmalloc) != 0))
                Assert.True(cache.SlabCount == 0, $"{cache.Name} keeps {cache.SlabCount} slabs");
            Assert.Equal(0, Machine.FailedAllocations);
        }

        public void Dispose() => Machine.Dispose();

        private unsafe Stamped Allocate(Random random, ulong stamp)
        {
            KmemCache? cache = random.Next(3) == 0 ? Caches[random.Next(Caches.Length)] : null;
            int size = cache?.ObjectSize ?? random.Next(20) switch
            {
                0 => random.Next(8193, 40000),
                < 4 => random.Next(1025, 8193),
                _ => random.Next(1, 1025),
            };
            void* pointer = cache != null ? cache.Alloc(Gfp.Kernel) : Machine.Kmalloc((nuint)size, Gfp.Kernel);
            Assert.True(pointer != null, $"no memory for {size} bytes");
            return Stamped.Write(pointer, size, stamp, cache);
        }

        private unsafe void BulkRound(Random random, nint[] bulk, ulong stamp)
        {
            KmemCache cache = Caches[random.Next(4)];
            Assert.Equal(bulk.Length, cache.AllocBulk(Gfp.Kernel, bulk));
            foreach (nint obj in bulk)
                Stamped.Write((void*)obj, cache.ObjectSize, stamp, cache);
            foreach (nint obj in bulk)
                new Stamped(obj, cache.ObjectSize, stamp, cache).Verify();
            random.Shuffle(bulk);
            if (random.Next(2) == 0)
                cache.FreeBulk(bulk);
            else
                Machine.KfreeBulk(bulk);
        }

        private void Exchange(int place, Stamped? block) =>
            Interlocked.Exchange(ref _table[place], block)?.Free(Machine);

        private long FreeFrames()
        {
            Machine.ShrinkCaches();
            Machine.DrainAllPages();
            return Machine.Pages.Zones.Sum(zone => zone.Zone.FreePagesExact);
        }
    }
}
