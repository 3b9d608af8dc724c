using System.Diagnostics.CodeAnalysis;

namespace Kmem.Tests;

/// <summary>Caches on shrinkers survive in a machine that is far too small for all that is put into them.</summary>
public sealed class BudgetTests
{
    private const int ValueBytes = 600 / sizeof(ulong) * sizeof(ulong);

    [Theory]
    [InlineData("native", 1)]
    [InlineData("native", 4)]
    [InlineData("linux-6.18", 1)]
    [InlineData("linux-6.18", 4)]
    [Trait("rule", "RECLAIM-01")]
    public void A_cache_takes_eight_times_the_memory_and_never_fails(string profile, int threads)
    {
        using Machine machine = Boot(profile, 32UL << 20, cpus: 4);
        ulong total = 8 * machine.Options.RamBytes / ValueBytes;
        using (var cache = new EvictingCache(machine, ValueBytes))
        {
            var crew = new Crew(seconds: 60);
            crew.Add(threads, index =>
            {
                for (ulong key = (ulong)index; key < total; key += (ulong)threads)
                {
                    Assert.True(cache.TryInsert(key), $"no memory for value {key}");
                    if (key > 1000)
                        cache.Contains(key - 1000);
                }
            });
            crew.Run();
            Assert.Equal((long)total, cache.Inserted);
            cache.CheckAll();
            Assert.Empty(machine.Validate());

            // It uses the memory, and does not throw everything away when a little is short.
            long most = (long)machine.Options.RamBytes / ValueBytes;
            Assert.InRange(cache.Most, most / 2, most);
            Assert.InRange(cache.Count, most / 4, most);
            ShrinkerReport report = cache.Shrinker.Report;
            Assert.Equal(report.Freed, cache.Evicted);
            Assert.Equal(0, report.Errors);
            Assert.True(report.Frames > 0);
            TestContext.Current.TestOutputHelper?.WriteLine(
                $"{profile}, {threads} threads: {cache.Inserted} inserted, at most {cache.Most} of {most}, {report}");
        }

        machine.ShrinkCaches();
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "RECLAIM-01")]
    [SuppressMessage("Reliability", "CA2000", Justification = "Both caches are disposed together.")]
    public void Two_caches_share_the_memory()
    {
        using Machine machine = Boot("native", 32UL << 20, cpus: 2);
        EvictingCache[] caches = [new(machine, 256), new(machine, 4096)];
        var crew = new Crew(seconds: 60);
        crew.Add(2, index =>
        {
            EvictingCache mine = caches[index];
            ulong count = 4 * machine.Options.RamBytes / (ulong)mine.ValueBytes;
            for (ulong key = 0; key < count; key++)
                Assert.True(mine.TryInsert(key));
        });
        crew.Run();
        foreach (EvictingCache cache in caches)
        {
            cache.CheckAll();
            Assert.True(cache.Evicted > 0, $"nothing evicted from the cache of {cache.ValueBytes} bytes");
            cache.Dispose();
        }

        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void Without_its_shrinker_the_same_cache_fails()
    {
        using Machine machine = Boot("linux-6.18", 32UL << 20, cpus: 1);
        using var cache = new EvictingCache(machine, ValueBytes);
        cache.Shrinker.Dispose();
        ulong key = 0;
        while (cache.TryInsert(key))
            key++;
        Assert.InRange(key, 1UL, machine.Options.RamBytes / ValueBytes);
        cache.CheckAll();
        Assert.Equal(0, cache.Evicted);
        Assert.Empty(machine.Validate());
    }

    internal static Machine Boot(string profile, ulong bytes, int cpus) => Machine.Boot(new MachineOptions
    {
        Profile = KernelProfile.Find(profile)!,
        RamBytes = bytes,
        Cpus = cpus,
    });
}
