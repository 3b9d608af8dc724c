using System.Net;
using System.Text.Json;

namespace Kmem.Explorer.Tests;

/// <summary>What a machine at work has counted, and what it did since the last look.</summary>
public sealed class LiveCountersTests
{
    private const int SmallBlocks = 200;

    [Fact]
    public async Task CountersOfALiveMachineGrowByWhatItDoes()
    {
        using Machine machine = Boot();
        using KmemExplorer explorer = machine.ServeExplorer();
        using var client = new HttpClient { BaseAddress = explorer.Url };
        JsonElement before = await CountersAsync(client);
        SplitAndMerge(machine);
        JsonElement after = await CountersAsync(client);
        Assert.Equal(SmallBlocks * 32, Difference(before, after, "framesAllocated"));
        Assert.Equal(SmallBlocks * 32, Difference(before, after, "framesFreed"));
        Assert.InRange(Difference(before, after, "splits"), 1, SmallBlocks);
        Assert.InRange(Difference(before, after, "merges"), 1, SmallBlocks);
        Assert.Equal(0, Difference(before, after, "failures"));
    }

    [Fact]
    public void ATickStandsForAllSinceTheLastLook()
    {
        using Machine machine = Boot();
        var ticker = new LiveTicker();
        ticker.Look(machine, 0);
        ticker.Look(machine, 1);
        Assert.Empty(ticker.Between(-1, 1));
        KmemCache cache = machine.CreateCache("ticked", 512, 0, SlabFlags.NoMerge);
        unsafe
        {
            for (int i = 0; i < 100; i++)
                cache.Alloc(Gfp.Kernel);
        }

        ticker.Look(machine, 2);
        Kmem.Tracing.Tick slabs = Assert.Single(ticker.Between(1, 2), tick =>
            tick.Kind == Kmem.Tracing.TickKind.NewSlab && tick.Cache == cache.Id + 1);
        Assert.Equal((cache.SlabCount, 2u), (slabs.Count, slabs.Event));
        Assert.Empty(ticker.Between(2, 3));
        Assert.Empty(ticker.Between(0, 1));
    }

    [Fact]
    public async Task TheTickerOfALiveMachineTellsOfSplitsAndSlowPaths()
    {
        using Machine machine = Boot();
        using KmemExplorer explorer = machine.ServeExplorer();
        await using Socket socket = await Socket.OpenAsync(explorer.Url);
        await socket.SendAsync("""{"type":"view","id":1,"count":1024,"level":0}""");
        await socket.SendAsync("""{"type":"subscribe","topics":["ticker"],"rate":30}""");
        await socket.CellsAsync(_ => true);

        // All the time: what happens before the server has taken the subscription is nobody's.
        using var stop = new CancellationTokenSource();
        Task work = Task.Run(async () =>
        {
            while (!stop.IsCancellationRequested)
            {
                SplitAndMerge(machine);
                FailOnce(machine);
                await Task.Delay(20, CancellationToken.None);
            }
        }, CancellationToken.None);
        var seen = new HashSet<string>(StringComparer.Ordinal);
        while (!seen.IsSupersetOf(["split", "merge", "slowPath", "failure"]))
        {
            JsonElement ticker = (await socket.NextAsync("ticker"))!.Value;
            foreach (JsonElement item in ticker.GetProperty("items").EnumerateArray())
            {
                seen.Add(item.GetProperty("what").GetString()!);
                Assert.True(item.GetProperty("count").GetInt64() > 0);
                Assert.Equal(JsonValueKind.Null, item.GetProperty("cpu").ValueKind);
            }
        }

        await stop.CancelAsync();
        await work;
    }

    [Fact]
    public async Task OneSlabIsAskedForByFrameAndByAnyAddress()
    {
        using Machine machine = Boot();
        string vmalloc;
        (int Id, ulong Address, ulong Pfn) its;
        unsafe
        {
            void* obj = machine.Kmalloc(100, Gfp.Kernel);
            ulong address = machine.KernelAddressOf(obj).Value;
            KmemCache cache = machine.Slabs.CacheOf(machine.Slabs.SlabOf(obj));
            its = (cache.Id + 1, address, (address - machine.Slabs.Addresses.DirectMap) >> Pfn.PageShift);
            vmalloc = $"0x{machine.KernelAddressOf(machine.Vmalloc(4096)).Value:x16}";
        }

        using KmemExplorer explorer = machine.ServeExplorer();
        using var client = new HttpClient { BaseAddress = explorer.Url };
        JsonElement slab = await GetAsync(client, $"/api/slabs/{its.Id}?slab={its.Pfn}");
        JsonElement only = Assert.Single(slab.GetProperty("slabs").EnumerateArray());
        Assert.InRange(
            its.Pfn - only.GetProperty("pfn").GetUInt64(), 0UL, (1UL << only.GetProperty("order").GetInt32()) - 1);
        Assert.Empty(slab.GetProperty("cpus").EnumerateArray());
        Assert.Empty(slab.GetProperty("nodes").EnumerateArray());
        ulong descriptor = machine.Slabs.Addresses.Vmemmap + (its.Pfn * Page.SizeInBytes);
        foreach (string address in (string[])[$"{its.Address:x}", $"0x{descriptor:x}"])
        {
            JsonElement same = await GetAsync(client, $"/api/slabs/{its.Id}?address={address}");
            Assert.Equal(slab.GetProperty("slabs").ToString(), same.GetProperty("slabs").ToString());
        }

        // Objects, too: through page tables.
        JsonElement page = await GetAsync(client, $"/api/object?address={vmalloc}");
        Assert.Equal("vmalloc", page.GetProperty("kind").GetString());
        foreach ((string path, HttpStatusCode status, string parameter) in new[]
        {
            ($"/api/slabs/{its.Id}?slab=99999999", HttpStatusCode.NotFound, "slab"),
            ($"/api/slabs/{its.Id + 1}?slab={its.Pfn}", HttpStatusCode.NotFound, "slab"),
            ($"/api/slabs/{its.Id}?slab=x", HttpStatusCode.BadRequest, "slab"),
            ($"/api/slabs/{its.Id}?slab={its.Pfn}&limit=3", HttpStatusCode.BadRequest, "slab"),
            ($"/api/slabs/{its.Id}?address=0x1000", HttpStatusCode.NotFound, "address"),
            ($"/api/slabs/{its.Id}?address={vmalloc}", HttpStatusCode.NotFound, "address"),
        })
        {
            HttpResponseMessage response = await client.GetAsync(path, TestContext.Current.CancellationToken);
            string text = await response.Content.ReadAsStringAsync(TestContext.Current.CancellationToken);
            Assert.True(status == response.StatusCode, $"{path}: {response.StatusCode} {text}");
            Assert.Equal(parameter, JsonDocument.Parse(text).RootElement.GetProperty("parameter").GetString());
        }
    }

    private static Machine Boot() =>
        Machine.Boot(new MachineOptions { RamBytes = 256 << 20, Cpus = 1, Profile = KernelProfile.Linux618 });

    /// <summary>More blocks than a boot leaves over, of an order that CPUs' lists do not keep.</summary>
    private static void SplitAndMerge(Machine machine)
    {
        Pfn[] blocks = [.. Enumerable.Range(0, SmallBlocks).Select(_ => machine.AllocPages(Gfp.Kernel, 5))];
        foreach (Pfn block in blocks)
            machine.FreePages(block, 5);
    }

    /// <summary>Takes all blocks of the largest order until one request finds none.</summary>
    private static void FailOnce(Machine machine)
    {
        var blocks = new List<Pfn>();
        Pfn block;
        while ((block = machine.AllocPages(Gfp.Kernel | Gfp.NoWarn | Gfp.NoRetry, 10)).IsValid)
            blocks.Add(block);
        blocks.ForEach(it => machine.FreePages(it, 10));
    }

    private static long Difference(JsonElement before, JsonElement after, string name) =>
        after.GetProperty(name).GetInt64() - before.GetProperty(name).GetInt64();

    private static async Task<JsonElement> CountersAsync(HttpClient client) =>
        (await GetAsync(client, "/api/machine")).GetProperty("counters");

    private static async Task<JsonElement> GetAsync(HttpClient client, string path) =>
        JsonDocument.Parse(await client.GetStringAsync(path, TestContext.Current.CancellationToken)).RootElement;
}
