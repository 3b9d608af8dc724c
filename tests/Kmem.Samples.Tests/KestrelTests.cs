using Kmem.Samples;
using Microsoft.AspNetCore.Connections;

namespace Kmem.Tests;

/// <summary>ASP.NET Core's server under load, with all of its buffers in a machine.</summary>
public sealed class KestrelTests
{
    [Fact]
    public async Task Under_load_every_answer_is_right_and_every_block_comes_back()
    {
        var leaks = new List<LeakReport>();
        using Machine machine = Machine.Boot(new MachineOptions
        {
            Name = "kestrel",
            RamBytes = 128 << 20,
            Cpus = 4,
            TrackCallSites = true,
            OnLeak = report =>
            {
                lock (leaks)
                    leaks.Add(report);
            },
        });
        var factory = new KmemMemoryPoolFactory(machine);
        LoadResult result = await LoadTest.RunAsync(
            factory, ownTransport: true, clients: 8, requests: 150, largestBody: 100_000, TestContext.Current.CancellationToken);

        Assert.Equal((1200, 0), (result.Requests, result.Wrong));
        Assert.NotEmpty(factory.Pools);
        Assert.True(result.PeakBlocks > 0, "the server never took a block");
        Assert.Equal(0, factory.Outstanding);
        Assert.True(machine.FindLeaks().IsEmpty, machine.FindLeaks().ToString());
        lock (leaks)
            Assert.Empty(leaks);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public async Task A_server_whose_budget_is_used_up_comes_back_when_memory_does()
    {
        using Machine machine = Machine.Boot(new MachineOptions { Name = "small", RamBytes = 32 << 20, Cpus = 2 });
        var factory = new KmemMemoryPoolFactory(machine);
        var held = new List<IDisposable>();
        using (KmemPool greedy = machine.CreatePool("greedy"))
        {
            Assert.Throws<OutOfMemoryException>(() => RentForever(greedy, held));
            await Assert.ThrowsAnyAsync<HttpRequestException>(() =>
                LoadTest.RunAsync(factory, true, 1, 1, 1000, TestContext.Current.CancellationToken));
            held.ForEach(block => block.Dispose());
        }

        LoadResult result = await LoadTest.RunAsync(factory, true, 2, 20, 1000, TestContext.Current.CancellationToken);
        Assert.Equal(0, result.Wrong);
        Assert.Equal(0, machine.Outstanding);
    }

    [Fact]
    public void The_factory_names_its_pools_after_their_owner()
    {
        using Machine machine = Machine.Boot(new MachineOptions { RamBytes = 32 << 20, Cpus = 1 });
        var factory = new KmemMemoryPoolFactory(machine);
        using var one = (KmemPool)factory.Create(new MemoryPoolOptions { Owner = "kestrel" });
        using var two = (KmemPool)factory.Create();
        Assert.Equal(["kestrel-1", "server-2"], factory.Pools.Select(pool => pool.Name), StringComparer.Ordinal);
    }

    private static void RentForever(KmemPool pool, List<IDisposable> held)
    {
        while (true)
            held.Add(pool.Rent());
    }
}
