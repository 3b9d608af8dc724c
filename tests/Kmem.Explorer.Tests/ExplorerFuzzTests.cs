using System.Buffers;
using System.Text;
using System.Text.Json;
using Kmem.Tests;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.WebUtilities;

namespace Kmem.Explorer.Tests;

/// <summary>What a browser, or somebody who is none, may send: an answer, or an error with a reason.</summary>
public sealed class ExplorerFuzzTests
{
    private static readonly Lazy<TraceSource> s_source = new(() => ExplorerFixture.ReadSample(2000));

    [Theory]
    [InlineData("/api/info")]
    [InlineData("/api/machine?t=77")]
    [InlineData("/api/machine/pcp?t=1999&cpu=1")]
    [InlineData("/api/events?from=100&limit=10&kind=kmalloc,kfree&direction=-1&cpu=0&pid=7&address=0xffff888000001000")]
    [InlineData("/api/sites?ids=1,2,3")]
    [InlineData("/api/sites?find=alloc&limit=5")]
    [InlineData("/api/slabs?t=5")]
    [InlineData("/api/slabs/3?t=700&offset=1&limit=5")]
    [InlineData("/api/frame/1000?t=9")]
    [InlineData("/api/object?t=1500&address=0xffff888000001000")]
    [InlineData("/api/virtual?t=3")]
    [InlineData("/api/walk?t=1500&address=0xffffc90000000000")]
    [InlineData("/api/explain?event=77")]
    [InlineData("/api/explain?t=100&pfn=4096")]
    [InlineData("/api/diff?from=3&to=1800")]
    [InlineData("/api/histogram?buckets=50")]
    public void Questions(string question)
    {
        var api = new ExplorerApi(s_source.Value);
        Fuzzer.Texts("questions to the explorer", question, 60, damaged =>
        {
            string[] parts = damaged.Split('?', 2);
            var parameters = new QueryCollection(QueryHelpers.ParseQuery(parts.ElementAtOrDefault(1)));
            var answer = new ArrayBufferWriter<byte>();
            api.Answer(parts[0], parameters, answer);
            JsonDocument.Parse(answer.WrittenMemory).Dispose();
        }, typeof(QueryException));
    }

    [Theory]
    [InlineData("""{"type":"\ud800"}""")]
    [InlineData("""{"type":"ping","\ude00":1}""")]
    [InlineData("""{"type":"subscribe","topics":["\ud83d"]}""")]
    public void Half_a_character_is_refused(string message) =>
        Assert.Throws<QueryException>(() => ClientMessage.Parse(Encoding.UTF8.GetBytes(message)));

    [Theory]
    [InlineData("""{"type":"view","id":1,"first":0,"count":262144,"cells":4096,"level":3}""")]
    [InlineData("""{"type":"filter","kinds":[1,2],"owners":[3],"orders":[0,9],"age":[1,1000],"sites":[5,6],"zones":[1]}""")]
    [InlineData("""{"type":"seek","t":77}""")]
    [InlineData("""{"type":"play","speed":-2.5}""")]
    [InlineData("""{"type":"subscribe","topics":["events","counts"],"rate":10}""")]
    public void Messages(string message) => Fuzzer.Fuzz("messages to the explorer", Encoding.UTF8.GetBytes(message), 600, input =>
    {
        (JsonElement read, string type) = ClientMessage.Parse(input);
        Assert.NotNull(type);
        foreach (Action<JsonElement> part in (Action<JsonElement>[])
        [
            it => ClientMessage.View(it, s_source.Value.Shape.Frames),
            it => ClientMessage.Filter(it),
            it => Assert.InRange(ClientMessage.Number(it, "t", 0, 2000), 0, 2000),
            it => Assert.InRange(ClientMessage.Decimal(it, "speed", -1000, 1000), -1000, 1000),
            it => Assert.NotNull(ClientMessage.Texts(it, "topics")),
        ])
        {
            try
            {
                part(read);
            }
            catch (QueryException error)
            {
                Assert.NotEmpty(error.Message);
            }
        }
    }, typeof(QueryException));
}
