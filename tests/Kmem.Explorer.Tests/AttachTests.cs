using System.Net;
using System.Text.Json;

namespace Kmem.Explorer.Tests;

/// <summary>One line in a program: its live machine in the browser.</summary>
public sealed class AttachTests
{
    [Fact]
    public async Task ALiveMachineIsShownAsItIs()
    {
        using Machine machine =
            Machine.Boot(new MachineOptions { Name = "mine", RamBytes = 256 << 20, Profile = KernelProfile.Linux618 });
        using KmemExplorer explorer = machine.ServeExplorer();
        using var client = new HttpClient { BaseAddress = explorer.Url };
        JsonElement info = await GetAsync(client, "/api/info");
        Assert.Equal("live", info.GetProperty("source").GetString());
        Assert.Equal("mine", info.GetProperty("name").GetString());
        Assert.False(info.GetProperty("seekable").GetBoolean());
        string address = Allocate(machine);
        JsonElement obj = await GetAsync(client, $"/api/object?address={address}");
        Assert.True(obj.GetProperty("allocated").GetBoolean());
        Assert.Equal("kmalloc-128", obj.GetProperty("cacheName").GetString());
        Assert.Equal(HttpStatusCode.Conflict,
            (await client.GetAsync("/api/events", TestContext.Current.CancellationToken)).StatusCode);
    }

    [Fact]
    public async Task PagesOfALiveMachineComeAndGoOnTheMap()
    {
        using Machine machine =
            Machine.Boot(new MachineOptions { RamBytes = 256 << 20, Profile = KernelProfile.Linux618 });
        using KmemExplorer explorer = machine.ServeExplorer();
        await using Socket socket = await Socket.OpenAsync(explorer.Url);
        await socket.SendAsync("""{"type":"view","id":1,"count":65536,"level":0}""");
        await socket.CellsAsync(it => it.Cells.Length == 65536 * 4);
        Pfn block = machine.AllocPages(Gfp.Kernel, 5);
        await socket.CellsAsync(it => (it.Cells[block.Value * 4] & 0xff) is 8 or 9
            && (it.Cells[block.Value * 4] >> 8 & 15) == 5);
        machine.FreePages(block, 5);
        await socket.CellsAsync(it => (it.Cells[block.Value * 4] & 0xff) == 2);
        await socket.SendAsync("""{"type":"seek","t":0}""");
        Assert.Equal("seek", (await socket.NextAsync("error"))!.Value.GetProperty("in").GetString());
    }

    [Fact]
    public async Task AreasAndTheirWalksAreShown()
    {
        using Machine machine =
            Machine.Boot(new MachineOptions { RamBytes = 256 << 20, Profile = KernelProfile.Linux618 });
        string start = Vmalloc(machine, 5 * 4096);
        using KmemExplorer explorer = machine.ServeExplorer();
        using var client = new HttpClient { BaseAddress = explorer.Url };
        JsonElement space = await GetAsync(client, "/api/virtual");
        JsonElement area = space.GetProperty("areas").EnumerateArray().Single(it =>
            it.GetProperty("start").GetString() == start);
        Assert.Equal(5, area.GetProperty("pages").GetInt32());
        Assert.True(area.GetProperty("guard").GetBoolean());
        Assert.NotEqual(JsonValueKind.Null, space.GetProperty("tree").ValueKind);
        Assert.NotEqual(0, space.GetProperty("holes").GetArrayLength());
        JsonElement walk = await GetAsync(client, $"/api/walk?address={start}");
        Assert.True(walk.GetProperty("mapped").GetBoolean());
        Assert.Equal(4, walk.GetProperty("steps").GetArrayLength());
        ulong pfn = walk.GetProperty("frame").GetProperty("number").GetUInt64();
        JsonElement frame = await GetAsync(client, $"/api/frame/{pfn}");
        Assert.Equal("vmalloc", frame.GetProperty("kind").GetString());
        JsonElement why = await GetAsync(client, $"/api/explain?address={start}");
        JsonElement explanation = why.GetProperty("explanation");
        Assert.Equal("vmallocPage", explanation.GetProperty("kind").GetString());
        Assert.Equal(explanation.GetProperty("sentence").GetString(), why.GetProperty("summary").GetString());
        Assert.Equal(start, explanation.GetProperty("area").GetProperty("start").GetString());
        Assert.Equal(4, explanation.GetProperty("mapping").GetProperty("steps").GetArrayLength());
        Assert.Empty(explanation.GetProperty("life").EnumerateArray());
    }

    [Fact]
    public async Task ALiveMachineThatRemembersTellsLifeStories()
    {
        using Machine machine = Machine.Boot(new MachineOptions { RamBytes = 256 << 20, RememberEvents = 1000 });
        using KmemExplorer explorer = machine.ServeExplorer();
        using var client = new HttpClient { BaseAddress = explorer.Url };
        string address = Allocate(machine);
        JsonElement explanation =
            (await GetAsync(client, $"/api/explain?address={address}")).GetProperty("explanation");
        Assert.Equal("slabObject", explanation.GetProperty("kind").GetString());
        Assert.Contains(explanation.GetProperty("life").EnumerateArray(), it =>
            it.GetProperty("kind").GetString() == "objectAllocated" && it.GetProperty("address").GetString() == address);
    }

    [Fact]
    public async Task QuestionsWhileThreadsAreAtWorkDoNoHarm()
    {
        using Machine machine = Machine.Boot(new MachineOptions { RamBytes = 256 << 20, Cpus = 2 });
        using KmemExplorer explorer = machine.ServeExplorer();
        using var client = new HttpClient { BaseAddress = explorer.Url };
        using var stop = new CancellationTokenSource();
        Task[] workers = [.. Enumerable.Range(0, 2).Select(seed => Task.Run(() => Churn(machine, seed, stop.Token)))];
        int answered = 0;
        for (int i = 0; i < 40; i++)
        {
            foreach (string path in (string[])["/api/machine", "/api/slabs", $"/api/slabs/{1 + i}", "/api/virtual",
                "/api/machine/pcp?cpu=1", $"/api/explain?pfn={4096 + (i * 61)}"])
            {
                HttpResponseMessage response = await client.GetAsync(path, TestContext.Current.CancellationToken);
                Assert.True(
                    response.StatusCode
                        is HttpStatusCode.OK or HttpStatusCode.NotFound or HttpStatusCode.ServiceUnavailable,
                    $"{path}: {response.StatusCode}");
                answered += response.StatusCode == HttpStatusCode.OK ? 1 : 0;
            }
        }

        await stop.CancelAsync();
        await Task.WhenAll(workers);
        Assert.True(answered > 20, $"{answered}");
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public async Task AMachineThatIsGoneIsToldAbout()
    {
        Machine machine = Machine.Boot(new MachineOptions { RamBytes = 64 << 20 });
        using KmemExplorer explorer = machine.ServeExplorer();
        using var client = new HttpClient { BaseAddress = explorer.Url };
        await GetAsync(client, "/api/machine");
        machine.Dispose();
        await Task.Delay(100, TestContext.Current.CancellationToken);
        HttpResponseMessage response = await client.GetAsync("/api/slabs", TestContext.Current.CancellationToken);
        Assert.Equal(HttpStatusCode.ServiceUnavailable, response.StatusCode);
    }

    [Fact]
    public async Task OutsideOfLoopbackATokenIsAsked()
    {
        using Machine machine = Machine.Boot(new MachineOptions { RamBytes = 64 << 20 });
        Assert.Throws<ArgumentException>(() => machine.ServeExplorer(new ExplorerOptions { Host = IPAddress.Any }));
        Assert.Throws<ArgumentException>(() => machine.ServeExplorer(new ExplorerOptions { Token = "short" }));
        const string Token = "0123456789abcdef";
        using KmemExplorer explorer = machine.ServeExplorer(new ExplorerOptions { Token = Token });
        using var client = new HttpClient(new HttpClientHandler { AllowAutoRedirect = false })
        {
            BaseAddress =
            new Uri(explorer.Url.GetLeftPart(UriPartial.Authority))
        };
        CancellationToken cancel = TestContext.Current.CancellationToken;
        Assert.Equal(HttpStatusCode.Unauthorized, (await client.GetAsync("/api/info", cancel)).StatusCode);
        Assert.Equal(HttpStatusCode.Unauthorized,
            (await client.GetAsync("/api/info?token=0123456789abcdeX", cancel)).StatusCode);
        Assert.Equal(HttpStatusCode.OK, (await client.GetAsync("/api/info?token=" + Token, cancel)).StatusCode);
        Assert.Contains("token=" + Token, explorer.Url.Query, StringComparison.Ordinal);
        HttpResponseMessage first = await client.GetAsync("/?token=" + Token, cancel);
        Assert.Equal(HttpStatusCode.Redirect, first.StatusCode);
        Assert.Contains("httponly", first.Headers.GetValues("Set-Cookie").Single(), StringComparison.OrdinalIgnoreCase);
        Assert.Equal(HttpStatusCode.OK, (await client.GetAsync("/api/info", cancel)).StatusCode);
        await Assert.ThrowsAnyAsync<Exception>(() => Socket.OpenAsync(explorer.Url));
        await using Socket socket = await Socket.OpenAsync(explorer.Url, token: Token);
        Assert.NotNull(await socket.NextAsync("hello"));
    }

    [Fact]
    public void APortInUseIsAnIOException()
    {
        using Machine machine = Machine.Boot(new MachineOptions { RamBytes = 64 << 20 });
        using KmemExplorer explorer = machine.ServeExplorer();
        Assert.ThrowsAny<IOException>(() => machine.ServeExplorer(new ExplorerOptions { Port = explorer.Url.Port }));
    }

    private static async Task<JsonElement> GetAsync(HttpClient client, string path)
    {
        HttpResponseMessage response = await client.GetAsync(path, TestContext.Current.CancellationToken);
        string text = await response.Content.ReadAsStringAsync(TestContext.Current.CancellationToken);
        Assert.True(response.IsSuccessStatusCode, $"{path}: {response.StatusCode} {text}");
        return JsonDocument.Parse(text).RootElement;
    }

    private static unsafe string Allocate(Machine machine) => "0x"
        + machine.KernelAddressOf(machine.Kmalloc(100, Gfp.Kernel));

    private static unsafe string Vmalloc(Machine machine, nuint bytes) => "0x"
        + machine.KernelAddressOf(machine.Vmalloc(bytes));

    private static unsafe void Churn(Machine machine, int seed, CancellationToken stop)
    {
        var random = new Random(seed);
        var live = new List<nint>();
        var areas = new Queue<nint>();
        while (!stop.IsCancellationRequested)
        {
            if (live.Count < 2000 || random.Next(2) == 0)
                live.Add((nint)machine.Kmalloc((nuint)random.Next(1, 9000), Gfp.Kernel));
            for (; live.Count > 4000; live.RemoveAt(live.Count - 1))
                machine.Kfree((void*)live[^1]);
            if (random.Next(200) == 0)
                areas.Enqueue((nint)machine.Vmalloc((nuint)random.Next(1, 40) * 4096));
            if (areas.Count > 20)
                machine.Vfree((void*)areas.Dequeue());
        }

        live.ForEach(obj => machine.Kfree((void*)obj));
        foreach (nint area in areas)
            machine.Vfree((void*)area);
    }
}
