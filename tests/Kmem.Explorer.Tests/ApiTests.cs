using System.Net;
using System.Text.Json;
using Kmem.Tracing;

namespace Kmem.Explorer.Tests;

/// <summary>Each question of docs/explorer.md, on the sample recording.</summary>
public sealed class ApiTests(ExplorerFixture fixture) : IClassFixture<ExplorerFixture>
{
    [Fact]
    public async Task InfoDescribesTheRecording()
    {
        JsonElement info = await fixture.GetAsync("/api/info");
        Assert.Equal(1, info.GetProperty("protocol").GetInt32());
        Assert.Equal("trace", info.GetProperty("source").GetString());
        Assert.True(info.GetProperty("seekable").GetBoolean());
        Assert.Equal(ExplorerFixture.Events, info.GetProperty("events").GetInt32());
        Assert.Equal(ExplorerFixture.Events,
            info.GetProperty("eventKinds").EnumerateArray().Sum(it => it.GetProperty("count").GetInt32()));
        Assert.Equal(12, info.GetProperty("kinds").GetArrayLength());
        Assert.All(info.GetProperty("zones").EnumerateArray(), zone =>
            Assert.True(zone.GetProperty("end").GetInt64() > zone.GetProperty("start").GetInt64()));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(777)]
    [InlineData(ExplorerFixture.Events)]
    public async Task MachineAddsUp(int t)
    {
        JsonElement machine = await fixture.GetAsync($"/api/machine?t={t}");
        Assert.Equal(t, machine.GetProperty("t").GetInt32());
        JsonElement frames = machine.GetProperty("frames");
        long all = frames.EnumerateObject().Where(it => it.Name != "total").Sum(it => it.Value.GetInt64());
        Assert.InRange(all, 1, frames.GetProperty("total").GetInt64());
        JsonElement[] zones = [.. machine.GetProperty("zones").EnumerateArray()];
        Assert.Equal(frames.GetProperty("free").GetInt64(), zones.Sum(zone => zone.GetProperty("free").GetInt64()));
        foreach (JsonElement zone in zones)
        {
            long free = zone.GetProperty("freeBlocks").EnumerateArray().Sum(
                it => it.GetProperty("total").GetInt64() << it.GetProperty("order").GetInt32());
            Assert.Equal(zone.GetProperty("free").GetInt64(), free);
            Assert.True(zone.GetProperty("low").GetInt64() >= zone.GetProperty("min").GetInt64());
        }

        JsonElement pcp = await fixture.GetAsync($"/api/machine/pcp?t={t}&cpu=1");
        long listed = pcp.GetProperty("zones").EnumerateArray().SelectMany(zone =>
            zone.GetProperty("lists").EnumerateArray())
            .Sum(list => (long)list.GetProperty("frames").GetArrayLength() << list.GetProperty("order").GetInt32());
        Assert.Equal(listed, machine.GetProperty("cpus")[1].GetProperty("zones").EnumerateArray().Sum(it =>
            it.GetProperty("frames").GetInt64()));
    }

    [Fact]
    public async Task EventsArePagedForwardsAndBackwards()
    {
        JsonElement first = await fixture.GetAsync("/api/events?from=100&limit=10&kind=kmalloc,kfree");
        int[] numbers = [.. first.GetProperty("events").EnumerateArray().Select(it => it.GetProperty("n").GetInt32())];
        Assert.Equal(10, numbers.Length);
        Assert.All(first.GetProperty("events").EnumerateArray(), e =>
            Assert.True(e.GetProperty("kind").GetString() is "kmalloc" or "kfree"));
        int next = first.GetProperty("next").GetInt32();
        JsonElement back = await fixture.GetAsync(
            $"/api/events?from={next - 1}&limit=10&kind=kmalloc,kfree&direction=-1");
        Assert.Equal(numbers.Reverse(),
            back.GetProperty("events").EnumerateArray().Select(it => it.GetProperty("n").GetInt32()));
        JsonElement last = await fixture.GetAsync($"/api/events?from={ExplorerFixture.Events - 1}&limit=10");
        Assert.False(last.GetProperty("more").GetBoolean());
        Assert.Equal(JsonValueKind.Null, last.GetProperty("next").ValueKind);
    }

    [Fact]
    public async Task EventsAreFilteredByWhatTheyAreAbout()
    {
        JsonElement e = (await fixture.GetAsync("/api/events?kind=kmem_cache_alloc&from=5000&limit=1")).GetProperty(
            "events")[0];
        string address = e.GetProperty("address").GetString()!;
        string cache = e.GetProperty("cache").GetString()!;
        int site = e.GetProperty("site").GetProperty("id").GetInt32();
        JsonElement same = await fixture.GetAsync(
            $"/api/events?address={address}&from={e.GetProperty("n").GetInt32()}&limit=1");
        Assert.Equal(e.GetProperty("n").GetInt32(), same.GetProperty("events")[0].GetProperty("n").GetInt32());
        JsonElement ofCache = await fixture.GetAsync($"/api/events?cache={Uri.EscapeDataString(cache)}&limit=20");
        Assert.All(ofCache.GetProperty("events").EnumerateArray(), it =>
            Assert.Equal(cache, it.GetProperty("cache").GetString()));
        JsonElement sites = await fixture.GetAsync($"/api/sites?ids={site}");
        string name = sites.GetProperty("sites")[0].GetProperty("name").GetString()!;
        Assert.Equal(e.GetProperty("site").GetProperty("name").GetString(), name);
        JsonElement ofSite = await fixture.GetAsync(
            $"/api/events?site={Uri.EscapeDataString(name)}&limit=5&cpu={e.GetProperty("cpu").GetInt32()}");
        Assert.All(ofSite.GetProperty("events").EnumerateArray(), it =>
            Assert.Equal(site, it.GetProperty("site").GetProperty("id").GetInt32()));
        JsonElement found = await fixture.GetAsync($"/api/sites?find={Uri.EscapeDataString(name[..5])}");
        Assert.Contains(found.GetProperty("sites").EnumerateArray(), it => it.GetProperty("id").GetInt32() == site);
    }

    [Fact]
    public async Task AnObjectIsFoundWhereItsEventPutIt()
    {
        JsonElement e = (await fixture.GetAsync("/api/events?kind=kmem_cache_alloc&from=9000&limit=1")).GetProperty(
            "events")[0];
        int t = e.GetProperty("n").GetInt32() + 1;
        string address = e.GetProperty("address").GetString()!;
        JsonElement obj = await fixture.GetAsync($"/api/object?address={address}&t={t}");
        Assert.True(obj.GetProperty("allocated").GetBoolean());
        Assert.Equal(t, obj.GetProperty("born").GetInt32());
        Assert.Equal(address, obj.GetProperty("address").GetString());
        Assert.Equal(e.GetProperty("cache").GetString(), obj.GetProperty("cacheName").GetString());
        Assert.Equal(obj.GetProperty("size").GetInt32() * 2, obj.GetProperty("bytes").GetString()!.Length);
        JsonElement before = await fixture.GetAsync($"/api/object?address={address}&t={t - 1}");
        Assert.False(before.GetProperty("allocated").GetBoolean());
        JsonElement frame = await fixture.GetAsync($"/api/frame/{e.GetProperty("pfn").GetInt64()}?t={t}");
        Assert.Equal("slab", frame.GetProperty("kind").GetString());
        Assert.Equal(e.GetProperty("cache").GetString(), frame.GetProperty("ownerName").GetString());
        JsonElement why = await fixture.GetAsync($"/api/explain?address={address}&t={t}");
        Assert.Contains(e.GetProperty("cache").GetString()!, why.GetProperty("summary").GetString(),
            StringComparison.Ordinal);
        Assert.NotEmpty(why.GetProperty("steps").EnumerateArray());
        JsonElement explanation = why.GetProperty("explanation");
        Assert.Equal(why.GetProperty("summary").GetString(), explanation.GetProperty("sentence").GetString());
        Assert.Equal("slabObject", explanation.GetProperty("kind").GetString());
        Assert.Equal(t, explanation.GetProperty("atEvent").GetInt32());
        Assert.Equal(
            obj.GetProperty("index").GetInt32(), explanation.GetProperty("object").GetProperty("number").GetInt32());
        JsonElement birth = explanation.GetProperty("life").EnumerateArray().Last();
        Assert.Equal("objectAllocated", birth.GetProperty("kind").GetString());
        Assert.Equal(t, birth.GetProperty("event").GetInt32());
        Assert.Equal(e.GetProperty("site").GetProperty("name").GetString(), birth.GetProperty("callSite").GetString());
        Assert.Equal(e.GetProperty("recorded").GetString(), birth.GetProperty("recorded").GetString());
        JsonElement ofEvent = await fixture.GetAsync($"/api/explain?event={t - 1}");
        Assert.Contains(address, ofEvent.GetProperty("summary").GetString(), StringComparison.Ordinal);
        Assert.Equal(JsonValueKind.Null, ofEvent.GetProperty("explanation").ValueKind);
    }

    [Fact]
    public async Task ALifeStoryEndsAtTheMomentAndTellsWhyThePagesLieThere()
    {
        JsonElement e = (await fixture.GetAsync("/api/events?kind=mm_page_alloc&from=12000&limit=100")).GetProperty("events")
            .EnumerateArray().First(it => it.GetProperty("address").ValueKind == JsonValueKind.String
                && it.GetProperty("result").GetString() == "ok");
        int t = e.GetProperty("n").GetInt32() + 1;
        string address = e.GetProperty("address").GetString()!;
        JsonElement after = await ExplanationAsync(address, t);
        Assert.Equal(t, after.GetProperty("decision").GetProperty("event").GetInt32());
        Assert.Contains(after.GetProperty("decision").GetProperty("zones").EnumerateArray(), zone =>
            zone.GetProperty("result").GetString() == "served");
        JsonElement before = await ExplanationAsync(address, t - 1);     // backwards: another replay
        Assert.All(
            before.GetProperty("life").EnumerateArray(), it => Assert.True(it.GetProperty("event").GetInt32() < t));
        Assert.True(before.GetProperty("kind").GetString() is "freeBlock" or "pcpList", before.ToString());
        Assert.Equal(after.ToString(), (await ExplanationAsync(address, t)).ToString());
    }

    [Theory]
    [InlineData("0x0000900000000000", "not canonical")]
    [InlineData("0xffffea0000000000", "page descriptors")]
    [InlineData("0xffff888000000000", "direct map")]
    [InlineData("0xffffc90000000000", "vmalloc space")]
    public async Task EveryAddressHasAnExplanation(string address, string region)
    {
        JsonElement explanation = await ExplanationAsync(address, 5000);
        Assert.Equal(region, explanation.GetProperty("region").GetString());
        Assert.Equal(address, explanation.GetProperty("address").GetString());
    }

    private async Task<JsonElement> ExplanationAsync(string address, int t)
    {
        JsonElement answer = await fixture.GetAsync($"/api/explain?address={address}&t={t}");
        Assert.False(string.IsNullOrEmpty(answer.GetProperty("summary").GetString()));
        return answer.GetProperty("explanation");
    }

    [Theory]
    [InlineData(3000)]
    [InlineData(2999)]
    [InlineData(ExplorerFixture.Events)]
    public async Task SlabsAddUp(int t)
    {
        JsonElement slabs = await fixture.GetAsync($"/api/slabs?t={t}");
        foreach (JsonElement row in slabs.GetProperty("caches").EnumerateArray().Where(it =>
            it.GetProperty("slabs").GetInt64() > 0).Take(12))
        {
            int id = row.GetProperty("id").GetInt32();
            JsonElement cache = await fixture.GetAsync($"/api/slabs/{id}?t={t}&limit=256");
            JsonElement[] all = [.. cache.GetProperty("slabs").EnumerateArray()];
            Assert.Equal(row.GetProperty("slabs").GetInt32(), cache.GetProperty("total").GetInt32());
            Assert.Equal(
                row.GetProperty("active").GetInt32(),
                all.Sum(slab => Convert.FromBase64String(slab.GetProperty("live").GetString()!).Sum(bits =>
                    int.PopCount(bits))));
            foreach (JsonElement slab in all)
            {
                // A slab counts as free what is on its own list; its CPU's list is beside it.
                int free = slab.GetProperty("free").GetArrayLength();
                Assert.Equal(slab.GetProperty("objects").GetInt32(), slab.GetProperty("inUse").GetInt32() + free);
                bool current = slab.GetProperty("state").GetString() == "cpu";
                Assert.Equal(current, cache.GetProperty("cpus").EnumerateArray().Any(
                    cpu => cpu.GetProperty("slab") is { ValueKind: JsonValueKind.Number } pfn
                        && pfn.GetInt64() == slab.GetProperty("pfn").GetInt64()));
            }
        }
    }

    [Fact]
    public async Task ADifferenceIsWhatTheTwoMomentsSay()
    {
        JsonElement from = await fixture.GetAsync("/api/machine?t=2000");
        JsonElement to = await fixture.GetAsync("/api/machine?t=8000");
        JsonElement diff = await fixture.GetAsync("/api/diff?from=2000&to=8000");
        foreach (JsonProperty kind in diff.GetProperty("frames").EnumerateObject())
        {
            Assert.Equal(
                to.GetProperty("frames").GetProperty(kind.Name).GetInt64() - from.GetProperty("frames").GetProperty(
                    kind.Name).GetInt64(),
                kind.Value.GetInt64());
        }

        Assert.NotEqual(0, diff.GetProperty("ranges").GetArrayLength());
        JsonElement back = await fixture.GetAsync("/api/diff?from=8000&to=2000");
        Assert.Equal(
            diff.GetProperty("caches").EnumerateArray().Sum(it => it.GetProperty("active").GetInt64()),
            -back.GetProperty("caches").EnumerateArray().Sum(it => it.GetProperty("active").GetInt64()));
        Assert.Equal(
            diff.GetProperty("sites").EnumerateArray().Sum(it => it.GetProperty("objects").GetInt64()),
            -back.GetProperty("sites").EnumerateArray().Sum(it => it.GetProperty("objects").GetInt64()));
    }

    [Fact]
    public async Task TheHistogramCountsEveryEventOnce()
    {
        JsonElement histogram = await fixture.GetAsync("/api/histogram?buckets=7");
        int counted = histogram.GetProperty("series").EnumerateArray()
            .Where(it => it.GetProperty("name").GetString() != "slow")
            .SelectMany(it => it.GetProperty("counts").EnumerateArray()).Sum(it => it.GetInt32());
        Assert.Equal(ExplorerFixture.Events, counted);
        Assert.Equal(7, histogram.GetProperty("freeFrames").GetArrayLength());
    }

    [Theory]
    [InlineData("/api/machine?t=-1", "t", HttpStatusCode.BadRequest)]
    [InlineData("/api/machine?t=999999", "t", HttpStatusCode.BadRequest)]
    [InlineData("/api/machine?t=x", "t", HttpStatusCode.BadRequest)]
    [InlineData("/api/machine?t=1&t=2", "t", HttpStatusCode.BadRequest)]
    [InlineData("/api/machine?when=1", "when", HttpStatusCode.BadRequest)]
    [InlineData("/api/machine/pcp?cpu=77", "cpu", HttpStatusCode.BadRequest)]
    [InlineData("/api/events?direction=0", "direction", HttpStatusCode.BadRequest)]
    [InlineData("/api/events?limit=100000", "limit", HttpStatusCode.BadRequest)]
    [InlineData("/api/events?address=zz", "address", HttpStatusCode.BadRequest)]
    [InlineData("/api/object", "address", HttpStatusCode.BadRequest)]
    [InlineData("/api/object?address=0x1000", "address", HttpStatusCode.NotFound)]
    [InlineData("/api/frame/99999999", "pfn", HttpStatusCode.NotFound)]
    [InlineData("/api/slabs/60000", "id", HttpStatusCode.NotFound)]
    [InlineData("/api/slabs/1?limit=9999", "limit", HttpStatusCode.BadRequest)]
    [InlineData("/api/sites", "ids", HttpStatusCode.BadRequest)]
    [InlineData("/api/sites?ids=99999999", "ids", HttpStatusCode.NotFound)]
    [InlineData("/api/explain", "address", HttpStatusCode.BadRequest)]
    [InlineData("/api/explain?event=99999999", "event", HttpStatusCode.NotFound)]
    [InlineData("/api/walk?address=ffffc90000000000&t=0", "address", HttpStatusCode.Conflict)]
    [InlineData("/api/nothing", null, HttpStatusCode.NotFound)]
    [InlineData("/../../etc/passwd", null, HttpStatusCode.NotFound)]
    public async Task AWrongQuestionIsRefusedWithAReason(string path, string? parameter, HttpStatusCode status)
    {
        (HttpStatusCode actual, JsonElement error) = await fixture.GetErrorAsync(path);
        Assert.Equal(status, actual);
        Assert.Equal(parameter, error.GetProperty("parameter").GetString());
        Assert.NotEmpty(error.GetProperty("error").GetString()!);
    }

    [Fact]
    public async Task HeadersKeepStrangersOut()
    {
        HttpResponseMessage response =
            await fixture.Client.GetAsync("/api/info", TestContext.Current.CancellationToken);
        Assert.Contains("default-src 'none'", response.Headers.GetValues("Content-Security-Policy").Single(),
            StringComparison.Ordinal);
        Assert.Equal("nosniff", response.Headers.GetValues("X-Content-Type-Options").Single());
        Assert.True(response.Headers.CacheControl!.NoStore);

        using var request = new HttpRequestMessage(HttpMethod.Get, "/api/info");
        request.Headers.Host = "evil.example";
        HttpResponseMessage other = await fixture.Client.SendAsync(request, TestContext.Current.CancellationToken);
        Assert.Equal(HttpStatusCode.MisdirectedRequest, other.StatusCode);
        HttpResponseMessage post =
            await fixture.Client.PostAsync("/api/info", null, TestContext.Current.CancellationToken);
        Assert.Equal(HttpStatusCode.MethodNotAllowed, post.StatusCode);
    }
}
