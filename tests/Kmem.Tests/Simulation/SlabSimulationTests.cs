namespace Kmem.Tests;

/// <summary>
/// The slab allocator under simulated CPUs: free lists, remote frees, partial slabs, sheaves and barns.
/// </summary>
public sealed class SlabSimulationTests
{
    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void Slabs_of_the_kernel_profile(int cpus) =>
        new Explorer($"slabs-{cpus}", seed => new Slabs(seed, KernelProfile.Linux618, cpus, sheaf: 0)).MustHold(200);

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void Sheaves_and_barns_of_the_kernel_profile(int cpus) =>
        new Explorer($"sheaves-{cpus}", seed => new Slabs(seed, KernelProfile.Linux618, cpus, sheaf: 4)).MustHold(200);

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void Sheaves_and_barns_of_the_native_profile(int cpus) =>
        new Explorer($"native-{cpus}", seed => new Slabs(seed, KernelProfile.Native, cpus, sheaf: 4)).MustHold(200);

    [Fact]
    public void More_threads_than_cpus_and_threads_that_die() =>
        new Explorer("threads", seed => new Slabs(seed, KernelProfile.Native, 2, sheaf: 4, threads: 3, stages: 3))
            .MustHold(200);

    [Fact]
    public void A_cache_is_destroyed_while_others_free_its_objects() =>
        new Explorer("destroy", seed => new Destruction(seed)).MustHold(200);

    [Fact]
    public void One_seed_is_one_interleaving()
    {
        var explorer = new Explorer("same", seed => new Slabs(seed, KernelProfile.Native, 3, sheaf: 4));
        int different = 0;
        for (int seed = 1; seed < 60; seed += 2)
        {
            Outcome straight = explorer.RunOnce(seed, []);
            Preemption[] order = Explorer.OrderOf(seed, straight.Steps);
            Outcome first = explorer.RunOnce(seed, order);
            Outcome second = explorer.RunOnce(seed, order);
            Assert.Null(first.Error);
            Assert.Equal((first.Steps, first.Switches, first.Hash), (second.Steps, second.Switches, second.Hash));
            Assert.Equal(first.Preempted, second.Preempted);
            different += first.Hash != straight.Hash ? 1 : 0;
        }

        Assert.InRange(different, 20, 30);
    }

    /// <summary>Locks that keep nobody out: what the simulation is there to find.</summary>
    [Theory]
    [InlineData((byte)LockRank.Barn)]
    [InlineData((byte)LockRank.NodeList)]
    public void A_lock_that_does_not_lock_is_found(byte rank)
    {
        var explorer = new Explorer("planted", seed => new Slabs(seed, KernelProfile.Linux618, 3, sheaf: rank == 8 ? 4 : 0))
        {
            Open = (LockRank)rank,
        };
        Failure? failure = explorer.Explore(3000);
        Assert.True(failure != null, $"nothing found in {explorer.Interleavings} interleavings");
        TestContext.Current.TestOutputHelper?.WriteLine(failure.ToString());
        Assert.InRange(failure.Order.Count, 1, 4);
    }

    /// <summary>Objects of one cache, and of kmalloc, in all the ways there are.</summary>
    private sealed class Slabs : SimulatedMachine
    {
        private readonly KmemCache _cache;
        private readonly KmemCache _other;

        public Slabs(int seed, KernelProfile profile, int cpus, int sheaf, int threads = 0, int stages = 1)
            : base(seed, profile, cpus)
        {
            // Few objects to a slab, so that slabs fill and empty all the time.
            _cache = Machine.CreateCache("simulated", 1000, flags: SlabFlags.NoMerge, sheafCapacity: sheaf);
            _other = Machine.CreateCache(
                "other", 2000, flags: SlabFlags.NoMerge | SlabFlags.TypesafeByRcu, sheafCapacity: sheaf);
            for (int i = 0; i < (threads == 0 ? cpus : threads); i++)
                AddCpu(25, Thing, threads == 0 ? i : null, stages);
            Caches.AddRange([_cache, _other]);
        }

        private unsafe void Thing(Random random, List<Stamped> kept, ulong stamp)
        {
            KmemCache cache = random.Next(3) == 0 ? _other : _cache;
            switch (random.Next(20))
            {
                case < 9:
                    Place(random, kept, Stamp(cache.Alloc(Gfp.Kernel), cache, stamp));
                    break;
                case < 14:
                    FreeOne(random, kept);
                    break;
                case 14:
                    Bulk(random, cache, stamp);
                    break;
                case 15:
                    Scope(random, kept, cache, stamp);
                    break;
                case 16:
                    cache.Shrink();
                    break;
                case 17:
                    Place(random, kept, Stamped.Write(Machine.Kmalloc(700, Gfp.NoWait), 700, stamp, null));
                    break;
                case 18:
                    Machine.KfreeRcu(Stamp(_cache.Alloc(Gfp.Kernel), _cache, stamp).Address.ToPointer());
                    break;
                default:
                    if (cache.SheafCapacity > 0)
                        Prefill(random, kept, cache, stamp);
                    break;
            }
        }

        private static unsafe Stamped Stamp(void* obj, KmemCache cache, ulong stamp)
        {
            Assert.True(obj != null, "no memory");
            return Stamped.Write(obj, cache.ObjectSize, stamp, cache);
        }

        private static unsafe void Bulk(Random random, KmemCache cache, ulong stamp)
        {
            var objects = new nint[1 + random.Next(12)];
            Assert.Equal(objects.Length, cache.AllocBulk(Gfp.Kernel, objects));
            Stamped[] blocks = [.. objects.Select((obj, i) => Stamp((void*)obj, cache, stamp + (ulong)i))];
            SimPoint.Here();
            Assert.All(blocks, block => block.Verify());
            cache.FreeBulk(objects);
        }

        private unsafe void Scope(Random random, List<Stamped> kept, KmemCache cache, ulong stamp)
        {
            using CacheScope scope = cache.Enter(Gfp.Kernel);
            for (int i = random.Next(1, 10); i > 0; i--)
            {
                Stamped block = Stamp(scope.Alloc(), cache, stamp + (ulong)i);
                SimPoint.Here();
                if (random.Next(2) == 0)
                {
                    Place(random, kept, block);
                    continue;
                }

                block.Verify();
                scope.Free((void*)block.Address);
            }
        }

        private unsafe void Prefill(Random random, List<Stamped> kept, KmemCache cache, ulong stamp)
        {
            int count = random.Next(1, 7);
            Sheaf* sheaf = cache.PrefillSheaf(Gfp.Kernel, count);
            Assert.True(sheaf != null, "no sheaf");
            for (int i = 0; i < count; i++)
                Place(random, kept, Stamp(cache.AllocFromPrefilled(Gfp.Kernel, sheaf), cache, stamp + (ulong)i));
            cache.ReturnSheaf(Gfp.Kernel, sheaf);
        }
    }

    /// <summary>
    /// Each CPU frees its objects; all try to destroy the cache. It is refused until the last object is gone.
    /// </summary>
    private sealed class Destruction : SimulatedMachine
    {
        private readonly KmemCache _cache;
        private int _begun;
        private int _freed;
        private int _destroyed;

        public Destruction(int seed)
            : base(seed, (seed & 1) == 0 ? KernelProfile.Linux618 : KernelProfile.Native, 3)
        {
            _cache = Machine.CreateCache("doomed", 1000, flags: SlabFlags.NoMerge, sheafCapacity: seed % 3 == 0 ? 4 : 0);
            for (int i = 0; i < 3; i++)
            {
                Stamped[] mine = [.. Enumerable.Range(0, 5).Select(k => Write((ulong)((i * 100) + k)))];
                int left = mine.Length;
                AddCpu(8, (_, _, _) =>
                {
                    if (left > 0)
                    {
                        _begun++;
                        mine[--left].Free(Machine);
                        _freed++;
                    }
                    else
                    {
                        TryDestroy(3 * mine.Length);
                    }
                }, i);
            }
        }

        public override void Check()
        {
            if (_destroyed == 0)
                _cache.Destroy();
            base.Check();
        }

        private unsafe Stamped Write(ulong stamp) => Stamped.Write(_cache.Alloc(Gfp.Kernel), 1000, stamp, _cache);

        private void TryDestroy(int all)
        {
            bool wasEmpty = _freed == all;
            try
            {
                _cache.Destroy();
                _destroyed++;
                Assert.Equal((all, 1), (_begun, _destroyed));
            }
            catch (KernelBugException)
            {
                Assert.True(!wasEmpty || _destroyed > 0 || _cache.IsClosed, "an empty cache could not be destroyed");
            }
        }
    }
}
