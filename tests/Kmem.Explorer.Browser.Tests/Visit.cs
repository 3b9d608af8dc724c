using System.Collections.Concurrent;
using Microsoft.Playwright;

namespace Kmem.Explorer.Browser.Tests;

/// <summary>
/// A tab of its own for one test. What the page complains about fails the test when the tab is closed.
/// </summary>
internal sealed class Visit : IAsyncDisposable
{
    private readonly IBrowserContext _context;
    private readonly ConcurrentQueue<string> _complaints = new();
    private readonly string _url;

    private Visit(IBrowserContext context, IPage page, string url)
    {
        (_context, Page, _url) = (context, page, url);
        page.SetDefaultTimeout(15_000);
        page.PageError += (_, error) => _complaints.Enqueue(error);
        page.Console += (_, message) =>
        {
            if (message.Type is "error" or "warning")
                _complaints.Enqueue($"{message.Text} ({message.Type}, {message.Location})");
        };
    }

    private static bool IsFailedRequest(string text) =>
        text.StartsWith("Failed to load", StringComparison.Ordinal) || text.StartsWith("WebSocket connection to", StringComparison.Ordinal);

    public IPage Page { get; }

    /// <summary>The test breaks requests itself; the browser's messages about them are no complaint.</summary>
    public bool FailedRequestsAreExpected { get; set; }

    public static async Task<Visit> To(
        Chromium chromium, string url, string hash, int width = 1280, int height = 800, bool dark = false,
        string language = "en-US", bool contrast = false)
    {
        IBrowserContext context = await chromium.Browser.NewContextAsync(new BrowserNewContextOptions
        {
            ViewportSize = new ViewportSize { Width = width, Height = height },
            ColorScheme = dark ? ColorScheme.Dark : ColorScheme.Light,
            Locale = language,
            Contrast = contrast ? Contrast.More : Contrast.NoPreference,
        });
        var visit = new Visit(context, await context.NewPageAsync(), url);
        await visit.Go(hash);
        return visit;
    }

    /// <summary>Loads the page at a view.</summary>
    public async Task Go(string hash)
    {
        await Page.GotoAsync("about:blank");
        await Page.GotoAsync($"{_url}#/{hash}");
        await Page.Locator(".tabs a[aria-current=page]").WaitForAsync();
    }

    /// <summary>What a script says about the page.</summary>
    public Task<T> Ask<T>(string script) => Page.EvaluateAsync<T>(script);

    /// <summary>Waits for a script to say yes.</summary>
    public Task Until(string script) => Page.WaitForFunctionAsync(script);

    /// <summary>The moment that the time line shows.</summary>
    public async Task<int> Moment() =>
        int.Parse(await Page.Locator(".track").GetAttributeAsync("aria-valuenow") ?? "", null);

    /// <summary>The last moment of the recording.</summary>
    public async Task<int> LastMoment() =>
        int.Parse(await Page.Locator(".track").GetAttributeAsync("aria-valuemax") ?? "", null);

    public async ValueTask DisposeAsync()
    {
        await _context.DisposeAsync();
        Assert.DoesNotContain(_complaints, text => !FailedRequestsAreExpected || !IsFailedRequest(text));
    }
}
