using System.Net;
using System.Net.Http.Json;
using System.Text.Json;
using Kmem.Tracing;

namespace Kmem.Explorer.Tests;

/// <summary>A server on the sample recording, shared by the tests that only ask.</summary>
public sealed class ExplorerFixture : IDisposable
{
    public const int Events = 20_000;

    public ExplorerFixture()
    {
        Explorer = KmemExplorer.Start(ReadSample(Events), new ExplorerOptions());
        Client = new HttpClient { BaseAddress = Explorer.Url };
    }

    public KmemExplorer Explorer { get; }

    public HttpClient Client { get; }

    public static string SamplePath => Path.Combine(Root(), "samples", "traces", "git", "trace.txt.gz");

    public void Dispose()
    {
        Client.Dispose();
        Explorer.Dispose();
    }

    public async Task<JsonElement> GetAsync(string path)
    {
        HttpResponseMessage response = await Client.GetAsync(path);
        string text = await response.Content.ReadAsStringAsync();
        Assert.True(response.StatusCode == HttpStatusCode.OK, $"{path}: {response.StatusCode} {text}");
        return JsonDocument.Parse(text).RootElement;
    }

    /// <summary>Asks what must be refused, and returns the error.</summary>
    public async Task<(HttpStatusCode Status, JsonElement Error)> GetErrorAsync(string path)
    {
        HttpResponseMessage response = await Client.GetAsync(path);
        return (response.StatusCode, await response.Content.ReadFromJsonAsync<JsonElement>());
    }

    internal static TraceSource ReadSample(int events)
    {
        FtraceReader reader = FtraceReader.Open(File.OpenRead(SamplePath), "git");
        return TraceSource.Read(reader, new ReplayOptions { RamBytes = 1UL << 30 }, events, "git");
    }

    private static string Root()
    {
        DirectoryInfo? at = new(AppContext.BaseDirectory);
        while (at is not null && !File.Exists(Path.Combine(at.FullName, "Kmem.slnx")))
            at = at.Parent;
        return at?.FullName ?? throw new DirectoryNotFoundException("Kmem.slnx");
    }
}
