using System.Net.WebSockets;
using System.Text.Json;
using Kmem.Tracing;

namespace Kmem.Explorer.Tests;

/// <summary>The WebSocket: windows, moments, films, filters, and what clients get wrong.</summary>
public sealed class SocketTests(ExplorerFixture fixture) : IClassFixture<ExplorerFixture>
{
    private static readonly TraceSource s_sample = ExplorerFixture.ReadSample(ExplorerFixture.Events);

    [Fact]
    public async Task AClientThatIsMovedAboutHasTheCellsOfTheMoment()
    {
        await using Socket socket = await Socket.OpenAsync(fixture.Explorer.Url);
        Assert.Equal("hello", (await socket.NextAsync())?.GetProperty("type").GetString());
        await socket.SendAsync("""{"type":"view","id":7,"first":0,"count":262144,"level":4}""");
        var random = new Random(3);
        for (int i = 0; i < 20; i++)
        {
            int t = i % 3 == 2 ? (int)Math.Max(socket.Moment, 1) - 1 : random.Next(ExplorerFixture.Events + 1);
            await socket.SendAsync($$"""{"type":"seek","t":{{t}}}""");
            await socket.CellsAsync(it => it.ViewId == 7 && it.Moment == t && it.Cells.Length == 16384 * 4);
            Assert.Equal(CellsAt(t, 0, 262144, 4, FrameFilter.Everything), socket.Cells);
        }

        Assert.True(socket.DeltaFrames > socket.FullFrames);
    }

    [Fact]
    public async Task AFilmRunsToTheEndAndBack()
    {
        await using Socket socket = await Socket.OpenAsync(fixture.Explorer.Url);
        await socket.SendAsync("""{"type":"subscribe","topics":["machine","ticker"],"rate":30}""");
        await socket.SendAsync("""{"type":"seek","t":0}""");
        await socket.SendAsync("""{"type":"view","id":1,"count":262144,"cells":1024}""");
        await socket.CellsAsync(it => it.Moment == 0 && it.Cells.Length > 0);
        await socket.SendAsync("""{"type":"play","speed":30000}""");
        JsonElement ticker = (await socket.NextAsync("ticker"))!.Value;
        Assert.InRange(ticker.GetProperty("items").GetArrayLength(), 1, 50);
        JsonElement time;
        do
            time = (await socket.NextAsync("time"))!.Value;
        while (time.GetProperty("t").GetInt32() < ExplorerFixture.Events);
        Assert.False(time.GetProperty("playing").GetBoolean());
        Assert.Equal(ExplorerFixture.Events - 1, time.GetProperty("event").GetProperty("n").GetInt32());
        await socket.CellsAsync(it => it.Moment == ExplorerFixture.Events);
        Assert.Equal(CellsAt(ExplorerFixture.Events, 0, 262144, 8, FrameFilter.Everything), socket.Cells);

        await socket.SendAsync("""{"type":"play","speed":-1000000}""");
        await socket.CellsAsync(it => it.Moment == 0);
        Assert.Equal(CellsAt(0, 0, 262144, 8, FrameFilter.Everything), socket.Cells);
    }

    [Fact]
    public async Task AFilterMarksWhatMatches()
    {
        await using Socket socket = await Socket.OpenAsync(fixture.Explorer.Url);
        await socket.SendAsync("""{"type":"filter","kinds":[4],"orders":[0,3]}""");
        await socket.SendAsync("""{"type":"view","id":2,"count":262144,"level":6}""");
        await socket.CellsAsync(it => it.ViewId == 2 && it.Cells.Length > 0);
        var filter = new FrameFilter { Kinds = 1u << 4, MaxOrder = 3 };
        Assert.Equal(CellsAt(ExplorerFixture.Events, 0, 262144, 6, filter), socket.Cells);
        uint[] marked = [.. socket.Cells.Where((_, i) => i % 4 == 0).Where(word => (word >> 21 & 1) != 0)];
        Assert.NotEmpty(marked);
        Assert.All(marked, word => Assert.Equal((uint)FrameKind.Slab, word & 0xff));
        Assert.True(marked.Length < socket.Cells.Length / 4);
    }

    [Fact]
    public async Task StepsGoOneEventAtATime()
    {
        await using Socket socket = await Socket.OpenAsync(fixture.Explorer.Url);
        await socket.SendAsync("""{"type":"seek","t":500}""");
        await WaitForAsync(socket, 500);
        await socket.SendAsync("""{"type":"step","by":1}""");
        await WaitForAsync(socket, 501);
        await socket.SendAsync("""{"type":"step","by":-2}""");
        await WaitForAsync(socket, 499);
    }

    [Theory]
    [InlineData("nonsense", null)]
    [InlineData("[1,2]", null)]
    [InlineData("""{"type":5}""", null)]
    [InlineData("""{"type":"dance"}""", "dance")]
    [InlineData("""{"type":"seek"}""", "seek")]
    [InlineData("""{"type":"seek","t":-1}""", "seek")]
    [InlineData("""{"type":"seek","t":1e300}""", "seek")]
    [InlineData("""{"type":"view","id":1,"first":0,"count":262144,"level":0}""", "view")]
    [InlineData("""{"type":"view","id":1,"first":-4,"count":1}""", "view")]
    [InlineData("""{"type":"view","id":1,"first":99999999,"count":1}""", "view")]
    [InlineData("""{"type":"view","id":1,"count":10,"level":60}""", "view")]
    [InlineData("""{"type":"play","speed":"fast"}""", "play")]
    [InlineData("""{"type":"filter","kinds":[99]}""", "filter")]
    [InlineData("""{"type":"filter","orders":[5,1]}""", "filter")]
    [InlineData("""{"type":"subscribe","topics":["everything"]}""", "subscribe")]
    [InlineData("""{"type":"subscribe","topics":[],"rate":1000}""", "subscribe")]
    public async Task AWrongMessageGetsAnErrorAndTheConnectionStays(string message, string? type)
    {
        await using Socket socket = await Socket.OpenAsync(fixture.Explorer.Url);
        await socket.SendAsync(message);
        JsonElement error = (await socket.NextAsync("error"))!.Value;
        Assert.Equal(type, error.GetProperty("in").GetString());
        Assert.NotEmpty(error.GetProperty("error").GetString()!);
        await socket.SendAsync("""{"type":"ping","n":42}""");
        Assert.Equal(42, (await socket.NextAsync("pong"))!.Value.GetProperty("n").GetInt32());
    }

    [Fact]
    public async Task AMessageThatNeverEndsClosesTheConnection()
    {
        await using Socket socket = await Socket.OpenAsync(fixture.Explorer.Url);
        await socket.SendAsync("\"" + new string('x', 100_000) + "\"");
        Assert.Null(await socket.NextAsync("nothing"));
        Assert.Equal(WebSocketCloseStatus.MessageTooBig, socket.CloseStatus);
    }

    [Fact]
    public async Task APageFromElsewhereIsNotLetIn()
    {
        await Assert.ThrowsAsync<WebSocketException>(() =>
            Socket.OpenAsync(fixture.Explorer.Url, "http://example.org"));
        await using Socket own = await Socket.OpenAsync(
            fixture.Explorer.Url, fixture.Explorer.Url.GetLeftPart(UriPartial.Authority));
        Assert.NotNull(await own.NextAsync("hello"));
    }

    [Fact]
    public async Task ManyClientsEachHaveTheirOwnMomentAndOneTooManyIsTold()
    {
        using KmemExplorer explorer = KmemExplorer.Start(
            ExplorerFixture.ReadSample(5000), new ExplorerOptions { MaxClients = 6 });
        Socket[] sockets = await Task.WhenAll(Enumerable.Range(0, 6).Select(_ => Socket.OpenAsync(explorer.Url)));
        await Assert.ThrowsAsync<WebSocketException>(() => Socket.OpenAsync(explorer.Url));
        await Task.WhenAll(sockets.Select(async (socket, i) =>
        {
            await socket.SendAsync("""{"type":"subscribe","topics":["machine","ticker"],"rate":30}""");
            await socket.SendAsync("""{"type":"view","id":1,"count":262144,"level":4}""");
            for (int round = 0; round < 10; round++)
            {
                int t = 37 + (i * 700) + round;
                await socket.SendAsync($$"""{"type":"seek","t":{{t}}}""");
                await socket.CellsAsync(it => it.Moment == t && it.Cells.Length > 0);
                Assert.Equal(CellsAt(t, 0, 262144, 4, FrameFilter.Everything), socket.Cells);
            }
        }));
        foreach (Socket socket in sockets)
            await socket.DisposeAsync();
    }

    [Fact]
    public void BringingAClientUpToDateAllocatesNothing()
    {
        FrameSource frames = s_sample.OpenFrames();
        var view = new FrameView(1, 0, 262144, 4);
        frames.MoveTo(ExplorerFixture.Events);
        frames.Update(view);
        frames.MoveTo(0);
        frames.Update(view);
        long before = GC.GetAllocatedBytesForCurrentThread();
        long sent = 0;
        for (int t = 0; t < ExplorerFixture.Events; t += 50)
        {
            frames.MoveTo(t);
            sent += frames.Update(view).Length;
        }

        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
        Assert.True(sent > 100_000);
    }

    private static async Task WaitForAsync(Socket socket, int t)
    {
        JsonElement time;
        do
            time = (await socket.NextAsync("time"))!.Value;
        while (time.GetProperty("t").GetInt32() != t);
    }

    private static uint[] CellsAt(int t, ulong first, ulong count, int level, FrameFilter filter)
    {
        FrameSource frames = s_sample.OpenFrames();
        frames.MoveTo(t);
        var view = new FrameView(0, first, count, level) { Filter = filter };
        frames.Update(view);
        return view.Words.ToArray();
    }
}
