using Kmem.Samples;

namespace Kmem.Tests;

/// <summary>The cache off the heap does what the one on the heap does.</summary>
public sealed class CacheTests
{
    [Theory]
    [InlineData(1, 10, 25)]
    [InlineData(2, 100, 150)]
    [InlineData(3, 1000, 5000)]
    public void Both_caches_hold_and_forget_the_same(int seed, int capacity, int keys)
    {
        using Machine machine = Machine.Boot(new MachineOptions { RamBytes = 32 << 20, Cpus = 1 });
        using var cache = new OffHeapCache(machine, capacity);
        using var model = new HeapCache(capacity);
        var random = new Random(seed);
        var value = new byte[OffHeapCache.MaxValue];
        var found = new byte[OffHeapCache.MaxValue];
        var expected = new byte[OffHeapCache.MaxValue];
        for (int i = 0; i < 20_000; i++)
        {
            var key = (ulong)random.Next(keys);
            if (random.Next(3) == 0)
            {
                Span<byte> fresh = value.AsSpan(0, random.Next(value.Length + 1));
                random.NextBytes(fresh);
                cache.Put(key, fresh);
                model.Put(key, fresh);
            }
            else
            {
                int length = cache.TryGet(key, found);
                Assert.Equal(model.TryGet(key, expected), length);
                Assert.True(length < 0 || found.AsSpan(0, length).SequenceEqual(expected.AsSpan(0, length)), $"seed {seed}, step {i}");
            }

            Assert.Equal(model.Count, cache.Count);
        }

        Assert.Equal(model.Evictions, cache.Evictions);
        Assert.True(cache.Evictions > 0);
        Assert.Throws<ArgumentOutOfRangeException>(() => cache.Put(1, new byte[OffHeapCache.MaxValue + 1]));
        cache.Dispose();
        Assert.Equal(0, machine.Outstanding);
        Assert.Empty(machine.Validate());
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void The_workload_finds_what_it_put(bool offHeap)
    {
        using Machine machine = Machine.Boot(new MachineOptions { RamBytes = 128 << 20, Cpus = 2 });
        using ILruCache cache = offHeap ? new OffHeapCache(machine, 20_000) : new HeapCache(20_000);
        WorkloadResult result = Workload.Run(cache, 20_000, 100_000);
        Assert.Equal(0, result.Wrong);
        Assert.InRange(result.Hits, 60_000, 99_999);
        Assert.Equal(20_000, cache.Count);
        Assert.True(cache.Evictions > 1000);
        cache.Dispose();
        Assert.Equal(0, machine.Outstanding);
    }

    [Fact]
    public void Threads_share_the_cache()
    {
        using Machine machine = Machine.Boot(new MachineOptions { RamBytes = 64 << 20, Cpus = 2 });
        using var cache = new OffHeapCache(machine, 5000);
        WorkloadResult[] results = new WorkloadResult[4];
        Parallel.For(0, results.Length, i => results[i] = Workload.Run(cache, 5000, 20_000, seed: i));
        Assert.All(results, result => Assert.Equal(0, result.Wrong));
        Assert.Equal(5000, cache.Count);
        cache.Dispose();
        cache.Dispose();
        Assert.Equal(0, machine.Outstanding);
        Assert.Empty(machine.Validate());
    }
}
