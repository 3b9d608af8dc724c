namespace Kmem.Explorer.Browser.Tests;

/// <summary>A browser and a server with a recording, for all tests of the project.</summary>
public sealed class RecordingFixture : IAsyncLifetime
{
    internal Chromium Chromium { get; } = new();

    internal Server? Server { get; private set; }

    public async ValueTask InitializeAsync()
    {
        await Chromium.InitializeAsync();
        if (Chromium.Missing == null)
            Server = await Server.Start(Server.Recording, "--port", "0");
    }

    public async ValueTask DisposeAsync()
    {
        Server?.Dispose();
        await Chromium.DisposeAsync();
    }

    /// <summary>A tab at a view of the recording; skips the test where there is no browser.</summary>
    internal Task<Visit> Open(
        string hash, int width = 1280, int height = 800, bool dark = false, string language = "en-US",
        bool contrast = false)
    {
        Assert.SkipWhen(Chromium.Missing != null, Chromium.Missing ?? "");
        return Visit.To(Chromium, Server!.Url, hash, width, height, dark, language, contrast);
    }
}

/// <summary>Tests that share the fixture, and so run one after the other.</summary>
[CollectionDefinition("recording")]
public sealed class RecordingCollection : ICollectionFixture<RecordingFixture>;
