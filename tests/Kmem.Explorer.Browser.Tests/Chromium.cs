using Microsoft.Playwright;

namespace Kmem.Explorer.Browser.Tests;

/// <summary>
/// The system's Chromium, started once for all tests; where there is none, they are skipped and say why.
/// </summary>
public sealed class Chromium : IAsyncLifetime
{
    private static readonly string[] s_names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

    private IPlaywright? _playwright;
    private IBrowser? _browser;

    /// <summary>Why there is no browser; null if there is one.</summary>
    public string? Missing { get; private set; }

    /// <summary>The browser.</summary>
    public IBrowser Browser => _browser ?? throw new InvalidOperationException(Missing);

    public async ValueTask InitializeAsync()
    {
        string? path = Find();
        if (path == null)
        {
            Missing = "no Chromium: set KMEM_CHROMIUM or install it on the PATH";
            return;
        }

        try
        {
            _playwright = await Playwright.CreateAsync();
            _browser = await _playwright.Chromium.LaunchAsync(new BrowserTypeLaunchOptions
            {
                ExecutablePath = path,
                Args = ["--no-sandbox"],                       // or it does not run as root, as in most containers
            });
        }
        catch (PlaywrightException e)
        {
            Missing = $"{path} does not start: {e.Message}";
        }
    }

    public async ValueTask DisposeAsync()
    {
        if (_browser != null)
            await _browser.DisposeAsync();
        _playwright?.Dispose();
    }

    private static string? Find()
    {
        if (Environment.GetEnvironmentVariable("KMEM_CHROMIUM") is { Length: > 0 } chosen)
            return File.Exists(chosen) ? chosen : null;
        string[] folders = (Environment.GetEnvironmentVariable("PATH") ?? "").Split(Path.PathSeparator);
        return folders.SelectMany(folder => s_names.Select(name => Path.Combine(folder, name))).FirstOrDefault(File.Exists);
    }
}
