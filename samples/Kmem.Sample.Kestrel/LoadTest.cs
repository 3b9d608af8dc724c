using System.Diagnostics;
using System.Net;
using Microsoft.AspNetCore.Connections;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;

namespace Kmem.Samples;

/// <summary>What came of a load test.</summary>
/// <param name="Requests">Requests answered.</param>
/// <param name="Wrong">Answers that were not what was sent.</param>
/// <param name="Elapsed">How long it took.</param>
/// <param name="PeakBlocks">Most blocks that the server was seen to hold; 0 on the built-in pool.</param>
/// <param name="GcPause">Time that the garbage collector stopped the process.</param>
/// <param name="AllocatedBytes">Bytes allocated on the GC heap, the load generator's included.</param>
public sealed record LoadResult(
    long Requests, long Wrong, TimeSpan Elapsed, long PeakBlocks, TimeSpan GcPause, long AllocatedBytes)
{
    /// <summary>Requests in a second.</summary>
    public double Rate => Requests / Elapsed.TotalSeconds;
}

/// <summary>A server on loopback that echoes bodies, and clients that send them and compare what comes back.</summary>
public static class LoadTest
{
    /// <summary>Runs server and clients, and stops both.</summary>
    /// <param name="factory">The server's memory; null for the built-in pool.</param>
    /// <param name="ownTransport">Use <see cref="KmemSocketTransport"/>; memory that is not arrays needs it.</param>
    /// <param name="clients">Connections, each with one request at a time.</param>
    /// <param name="requests">Requests of each.</param>
    /// <param name="largestBody">Bodies have 0 to so many bytes.</param>
    /// <param name="stop">Ends it early.</param>
    /// <returns>What came of it.</returns>
    public static async Task<LoadResult> RunAsync(
        KmemMemoryPoolFactory? factory,
        bool ownTransport,
        int clients,
        int requests,
        int largestBody,
        CancellationToken stop)
    {
        await using WebApplication server = await StartServerAsync(factory, ownTransport, stop);
        string address = server.Services.GetRequiredService<IServer>()
            .Features.Get<IServerAddressesFeature>()!.Addresses.Single();

        long wrong = 0, peak = 0;
        TimeSpan pause = GC.GetTotalPauseDuration();
        long allocated = GC.GetTotalAllocatedBytes();
        var clock = Stopwatch.StartNew();
        using var finished = new CancellationTokenSource();
        Task watch = WatchAsync(factory, blocks => peak = Math.Max(peak, blocks), finished.Token);
        await Task.WhenAll(Enumerable.Range(0, clients).Select(async seed =>
        {
            long bad = await ClientAsync(new Uri($"{address}/echo"), seed, requests, largestBody, stop);
            Interlocked.Add(ref wrong, bad);
        }));
        clock.Stop();
        await finished.CancelAsync();
        await watch;
        await server.StopAsync(stop);
        return new LoadResult(
            (long)clients * requests,
            wrong,
            clock.Elapsed,
            peak,
            GC.GetTotalPauseDuration() - pause,
            GC.GetTotalAllocatedBytes() - allocated);
    }

    private static async Task<WebApplication> StartServerAsync(
        KmemMemoryPoolFactory? factory, bool ownTransport, CancellationToken stop)
    {
        WebApplicationBuilder builder = WebApplication.CreateSlimBuilder();
        builder.Logging.ClearProviders();
        builder.WebHost.UseUrls($"http://{IPAddress.Loopback}:0");
        if (factory != null)
            builder.Services.AddSingleton<IMemoryPoolFactory<byte>>(factory);
        if (ownTransport)
            builder.Services.AddSingleton<IConnectionListenerFactory, KmemSocketTransport>();

        WebApplication app = builder.Build();
        app.MapPost("/echo", async context =>
        {
            // Straight from the server's buffers to the server's buffers.
            context.Response.ContentLength = context.Request.ContentLength;
            await context.Request.BodyReader.CopyToAsync(context.Response.BodyWriter, context.RequestAborted);
        });
        await app.StartAsync(stop);
        return app;
    }

    private static async Task<long> ClientAsync(Uri echo, int seed, int requests, int largestBody, CancellationToken stop)
    {
        using var client = new HttpClient(new SocketsHttpHandler { MaxConnectionsPerServer = 1, UseProxy = false });
        var random = new Random(seed);
        var body = new byte[largestBody];
        random.NextBytes(body);
        long wrong = 0;
        for (int i = 0; i < requests; i++)
        {
            int length = random.Next(largestBody + 1);
            int start = random.Next(largestBody - length + 1);
            using var content = new ByteArrayContent(body, start, length);
            using HttpResponseMessage answer = await client.PostAsync(echo, content, stop);
            byte[] echoed = await answer.Content.ReadAsByteArrayAsync(stop);
            if (answer.StatusCode != HttpStatusCode.OK || !echoed.AsSpan().SequenceEqual(body.AsSpan(start, length)))
                wrong++;
        }

        return wrong;
    }

    private static async Task WatchAsync(KmemMemoryPoolFactory? factory, Action<long> seen, CancellationToken finished)
    {
        while (factory != null && !finished.IsCancellationRequested)
        {
            seen(factory.Outstanding);
            await Task.Delay(2, CancellationToken.None);
        }
    }
}
