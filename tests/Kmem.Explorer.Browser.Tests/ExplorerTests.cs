using System.Globalization;
using System.Text.RegularExpressions;
using Microsoft.Playwright;

namespace Kmem.Explorer.Browser.Tests;

/// <summary>Each screen of the explorer, as a person uses it: opened, played, zoomed, clicked, typed at.</summary>
[Collection("recording")]
public sealed partial class ExplorerTests(RecordingFixture fixture)
{
    private Task<Visit> Open(string hash, int width = 1280, int height = 800, bool dark = false) =>
        fixture.Open(hash, width, height, dark);

    [Theory]
    [InlineData("machine", ".zone svg rect")]
    [InlineData("map", "canvas[data-map=cells]")]
    [InlineData("slabs", "tbody tr")]
    [InlineData("virtual", ".walk .problem, .walk svg, .walk p")]
    [InlineData("explain", ".empty")]
    [InlineData("time", "tr[data-n]")]
    [InlineData("compare?from=0&to=20000", ".panel svg rect")]
    public async Task EveryScreenOpensInEverySize(string hash, string what)
    {
        foreach ((int width, int height, bool dark) in new[] { (1280, 800, false), (1920, 1080, true), (390, 844, true) })
        {
            await using Visit visit = await Open(hash, width, height, dark);
            await visit.Page.Locator(what).First.WaitForAsync();
            bool wider = await visit.Ask<bool>("() => document.documentElement.scrollWidth > innerWidth + 1");
            Assert.False(wider, $"{hash} at {width} scrolls sideways");
        }
    }

    [Fact]
    public async Task TheMapShowsManyColoursAndTheyChangeWhenItPlays()
    {
        await using Visit visit = await Open("map?t=100");
        await visit.Until($"() => {Colours} > 3");
        string before = await visit.Ask<string>($"() => {Pixels}");
        await visit.Page.Keyboard.PressAsync("End");
        await visit.Until($"() => {Pixels} !== {Quote(before)}");
    }

    [Fact]
    public async Task PlayingMovesAndPauseStops()
    {
        await using Visit visit = await Open("machine?t=0");
        await visit.Until("() => document.querySelector('.track').getAttribute('aria-valuenow') === '0'");
        await visit.Page.Locator(".play").ClickAsync();
        await visit.Until("() => Number(document.querySelector('.track').getAttribute('aria-valuenow')) > 500");
        await visit.Page.Locator("ol.ticker li").First.WaitForAsync();
        await visit.Page.Keyboard.PressAsync("Space");
        await visit.Page.Locator(".play", new PageLocatorOptions { HasTextString = "Play" }).WaitForAsync();
        await visit.Page.WaitForTimeoutAsync(300);
        int moment = await visit.Moment();
        await visit.Page.WaitForTimeoutAsync(400);
        Assert.Equal(moment, await visit.Moment());
        Assert.Contains($"t={moment}", visit.Page.Url, StringComparison.Ordinal);
    }

    [Fact]
    public async Task StepsGoBothWaysAndTheScrubberAnywhere()
    {
        await using Visit visit = await Open("machine?t=1000");
        await Shows(visit, 1000);
        await visit.Page.Keyboard.PressAsync(".");
        await Shows(visit, 1001);
        await visit.Page.Keyboard.PressAsync(",");
        await visit.Page.Keyboard.PressAsync(",");
        await Shows(visit, 999);
        await visit.Page.Keyboard.PressAsync("<");
        await Shows(visit, 899);
        LocatorBoundingBoxResult box = (await visit.Page.Locator(".track").BoundingBoxAsync())!;
        await visit.Page.Mouse.ClickAsync(box.X + (box.Width * 0.75f), box.Y + 10);
        int all = await visit.LastMoment();
        await visit.Until($"() => Math.abs(document.querySelector('.track').getAttribute('aria-valuenow') - {all * 3L / 4}) < {all / 50}");
    }

    [Fact]
    public async Task TheMapZoomsFromTheNodeToBytes()
    {
        await using Visit visit = await Open("map?color=kind&first=1048576&level=0&size=5");
        await visit.Until($"() => {Colours} > 3");
        int frame = await FrameOf(visit, "slab");
        await visit.Go($"map?sel={frame}");
        await visit.Page.Locator(".side dl").First.WaitForAsync();
        for (int i = 0; i < 40 && !visit.Page.Url.Contains("deep=page", StringComparison.Ordinal); i++)
        {
            await visit.Page.Keyboard.PressAsync("+");
            await visit.Page.WaitForTimeoutAsync(30);
        }

        Assert.Contains("deep=page", visit.Page.Url, StringComparison.Ordinal);
        await visit.Page.Locator(".slab-strip [data-object]").First.ClickAsync();
        await visit.Page.Locator(".hex .byte").First.WaitForAsync();
        Assert.Contains("object=0x", visit.Page.Url, StringComparison.Ordinal);
        await visit.Page.Keyboard.PressAsync("Escape");
        await visit.Page.Locator("canvas[data-map=cells]").WaitForAsync();
    }

    [Fact]
    public async Task AClickOnACellTellsWhatItIsAndTheLegendFilters()
    {
        await using Visit visit = await Open("map");
        await visit.Until($"() => {Colours} > 3");
        LocatorBoundingBoxResult box = (await visit.Page.Locator("canvas.over").BoundingBoxAsync())!;
        await visit.Page.Mouse.MoveAsync(box.X + 150, box.Y + 40);
        await visit.Page.Locator(".tip:not(.hidden)").WaitForAsync();
        await visit.Page.Mouse.ClickAsync(box.X + 150, box.Y + 40);
        await visit.Page.Locator(".side dl dd").First.WaitForAsync();
        Assert.Matches(@"sel=\d+", visit.Page.Url);

        string before = await visit.Ask<string>($"() => {Pixels}");
        await visit.Page.Locator(".legend button", new PageLocatorOptions { HasTextString = "slab" }).ClickAsync();
        await visit.Until($"() => {Pixels} !== {Quote(before)}");
        Assert.Equal("true", await visit.Page.Locator(".legend button", new PageLocatorOptions { HasTextString = "slab" }).GetAttributeAsync("aria-pressed"));
    }

    [Theory]
    [InlineData("cache")]
    [InlineData("zone")]
    [InlineData("type")]
    [InlineData("age")]
    [InlineData("site")]
    [InlineData("pin")]
    public async Task EveryMeaningOfColoursHasALegend(string mode)
    {
        await using Visit visit = await Open($"map?color={mode}");
        await visit.Page.Locator(".legend button").First.WaitForAsync();
        await visit.Until($"() => {Colours} > 1");
    }

    [Fact]
    public async Task SlabsSortAndUnfoldAndAnObjectOpens()
    {
        await using Visit visit = await Open("slabs");
        await visit.Page.Locator("tbody tr").First.WaitForAsync();
        await visit.Page.Locator("th button", new PageLocatorOptions { HasTextString = "Name" }).ClickAsync();
        await visit.Page.Locator("th[aria-sort=ascending]").WaitForAsync();
        IReadOnlyList<string> names = await visit.Page.Locator("tbody tr td:first-child").AllInnerTextsAsync();
        Assert.True(names.Count > 3);
        await visit.Page.Locator("th button", new PageLocatorOptions { HasTextString = "Memory" }).ClickAsync();
        await visit.Page.Locator("tbody tr td a").First.ClickAsync();
        await visit.Page.Locator(".strip .object").First.WaitForAsync();
        await visit.Page.Locator(".strip .object").First.FocusAsync();
        await visit.Page.Keyboard.PressAsync("Enter");
        await visit.Page.Locator(".hex .byte").First.WaitForAsync();
        await visit.Page.GetByRole(AriaRole.Searchbox, new PageGetByRoleOptions { Name = "Find a cache" }).FillAsync("no such cache");
        await visit.Page.Locator(".empty").WaitForAsync();
    }

    [Fact]
    public async Task AnAddressIsExplainedAndAWrongOneIsToldWhereItWasTyped()
    {
        await using Visit visit = await Open("machine");
        await visit.Page.Keyboard.PressAsync("/");
        await visit.Page.Keyboard.TypeAsync("xyz");
        await visit.Page.Keyboard.PressAsync("Enter");
        Assert.DoesNotContain("explain", visit.Page.Url, StringComparison.Ordinal);
        await visit.Page.Locator("input[name=address]").FillAsync("ffff888000100000");
        await visit.Page.Keyboard.PressAsync("Enter");
        await visit.Page.Locator(".sentence", new PageLocatorOptions { HasTextString = "0xffff888000100000" }).WaitForAsync();
        await visit.Page.Locator("section[data-part=zone] dl, section[data-part=zone] table").First.WaitForAsync();
        await visit.Page.Locator("section[data-part=page]").WaitForAsync();
        Assert.Contains("explain?address=0xffff888000100000", visit.Page.Url, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AnAreaIsWalkedTableByTable()
    {
        Assert.SkipWhen(fixture.Chromium.Missing != null, fixture.Chromium.Missing ?? "");
        using Server server = await Server.Start("--port", "0");
        await using Visit visit = await Visit.To(fixture.Chromium, server.Url, "virtual");
        await visit.Page.Locator("[data-area]").First.WaitForAsync();
        await visit.Page.Locator(".play").ClickAsync();                  // or the area may be gone before it is clicked
        await visit.Page.Locator(".where", new PageLocatorOptions { HasTextString = "frozen" }).WaitForAsync();
        await visit.Page.WaitForTimeoutAsync(1000);
        await visit.Page.Locator("[data-area]").First.ClickAsync();
        await visit.Page.Locator(".walk svg rect").First.WaitForAsync();
        await visit.Until("() => document.querySelectorAll('.walk tbody tr').length >= 3");
        Assert.Matches("address=0xffffc9", visit.Page.Url);
        await visit.Page.Locator(".tree svg rect").First.WaitForAsync();
    }

    [Fact]
    public async Task EventsAreFilteredAndLeadToTheirMoment()
    {
        await using Visit visit = await Open("time?t=5000");
        await visit.Page.Locator("tr[data-n='4999'][aria-selected=true]").WaitForAsync();
        await visit.Page.Locator("select[data-filter=kind]").SelectOptionAsync("kfree");
        await visit.Until("() => { const k = [...document.querySelectorAll('tr[data-n] code')]; return k.length > 0 && k.every(c => c.textContent === 'kfree'); }");
        Assert.Contains("kind=kfree", visit.Page.Url, StringComparison.Ordinal);
        ILocator row = visit.Page.Locator("tr[data-n]").First;
        int n = int.Parse((await row.GetAttributeAsync("data-n"))!, CultureInfo.InvariantCulture);
        await row.Locator("button").ClickAsync();
        await Shows(visit, n + 1);
    }

    [Fact]
    public async Task TwoMarksGiveADifference()
    {
        await using Visit visit = await Open("machine?t=1000");
        await Shows(visit, 1000);
        await visit.Page.Keyboard.PressAsync("[");
        await visit.Page.Keyboard.PressAsync("End");
        await Shows(visit, await visit.LastMoment());
        await visit.Page.Keyboard.PressAsync("]");
        await visit.Page.Locator("footer button:enabled", new PageLocatorOptions { HasTextString = "Compare" }).ClickAsync();
        await visit.Page.Locator(".tabs a[data-view=compare][aria-current=page]").WaitForAsync();
        await visit.Page.Locator("main [data-moment]").First.WaitForAsync();
        await visit.Page.Locator("main svg[role=img] rect").First.WaitForAsync();
        Assert.Contains("from=1000", visit.Page.Url, StringComparison.Ordinal);
    }

    [Fact]
    public async Task AViewComesBackFromItsAddress()
    {
        await using Visit visit = await Open("map?color=zone&t=2000");
        await visit.Until($"() => {Colours} > 1");
        await visit.Page.Keyboard.PressAsync("+");
        await visit.Page.WaitForTimeoutAsync(500);
        string hash = visit.Page.Url.Split('#')[1][1..];
        await using Visit other = await Open(hash);
        await other.Until($"() => {Colours} > 1");
        await other.Page.WaitForTimeoutAsync(500);
        Assert.Equal(visit.Page.Url, other.Page.Url);
        Assert.Equal(2000, await other.Moment());
    }

    [Fact]
    public async Task BothLanguagesHaveTheSameTexts()
    {
        await using Visit visit = await Open("machine");
        string different = await visit.Ask<string>("""
            async () => {
                const [en, zh] = (await Promise.all([import('/texts-en.js'), import('/texts-zh-CN.js')])).map(m => m.default);
                const holes = text => [...text.matchAll(/\{\w+\}/g)].map(m => m[0]).sort().join();
                return [...new Set([...Object.keys(en), ...Object.keys(zh)])].filter(key => !en[key] || !zh[key] || holes(en[key]) !== holes(zh[key])).join();
            }
            """);
        Assert.Equal("", different);
        await visit.Page.Keyboard.PressAsync("l");
        await visit.Page.Locator(".tabs a", new PageLocatorOptions { HasTextString = "机器" }).WaitForAsync();
        Assert.Equal("zh-CN", await visit.Ask<string>("() => document.documentElement.lang"));
        foreach (string view in new[] { "map", "slabs", "virtual", "explain", "time", "compare" })
        {
            await visit.Page.Locator($".tabs a[data-view={view}]").ClickAsync();
            await visit.Page.WaitForTimeoutAsync(300);
            Assert.DoesNotMatch(Key(), await visit.Page.InnerTextAsync("#app"));
        }
    }

    [Fact]
    public async Task HelpIsAKeyAwayAndTheThemeIsKept()
    {
        await using Visit visit = await Open("machine");
        await visit.Page.Keyboard.PressAsync("?");
        await visit.Page.Locator("dialog[open] kbd").First.WaitForAsync();
        await visit.Page.Keyboard.PressAsync("Escape");
        await visit.Page.Locator("dialog").WaitForAsync(new LocatorWaitForOptions { State = WaitForSelectorState.Detached });
        await visit.Page.Keyboard.PressAsync("t");
        Assert.Equal("dark", await visit.Ask<string>("() => document.documentElement.dataset.theme"));
        await visit.Go("map");
        Assert.Equal("dark", await visit.Ask<string>("() => document.documentElement.dataset.theme"));
        await visit.Page.Keyboard.PressAsync("3");
        await visit.Page.Locator(".tabs a[data-view=slabs][aria-current=page]").WaitForAsync();
    }

    [Fact]
    public async Task EverythingThatCanBeClickedHasAName()
    {
        foreach (string hash in new[] { "machine", "map", "slabs?cache=1", "virtual", "explain?address=0xffff888000100000", "time", "compare?from=0&to=9000" })
        {
            await using Visit visit = await Open(hash);
            await visit.Page.WaitForTimeoutAsync(700);
            string nameless = await visit.Ask<string>("""
                () => [...document.querySelectorAll('button, a[href], input, select, canvas, [role=button], [role=slider], svg[role=img]')]
                    .filter(e => !e.closest('[aria-hidden=true]'))
                    .filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.title || e.labels?.length))
                    .map(e => e.outerHTML.slice(0, 80)).join('\n')
                """);
            Assert.Equal("", nameless);
        }
    }

    [Fact]
    public async Task AFailedQuestionIsToldInItsPlace()
    {
        await using Visit visit = await Open("machine");
        visit.FailedRequestsAreExpected = true;
        await visit.Page.RouteAsync("**/api/slabs?**", route => route.FulfillAsync(new RouteFulfillOptions
        {
            Status = 503,
            ContentType = "application/json",
            Body = """{"error":"busy for a test","parameter":null}""",
        }));
        await visit.Page.Locator(".tabs a[data-view=slabs]").ClickAsync();
        await visit.Page.Locator(".problem", new PageLocatorOptions { HasTextString = "busy for a test" }).WaitForAsync();
    }

    [Fact]
    public async Task ALostServerIsToldAndFoundAgain()
    {
        Assert.SkipWhen(fixture.Chromium.Missing != null, fixture.Chromium.Missing ?? "");
        Server first = await Server.Start("--port", "0");
        string port = new Uri(first.Url).Port.ToString(CultureInfo.InvariantCulture);
        try
        {
            await using Visit visit = await Visit.To(fixture.Chromium, first.Url, "machine");
            visit.FailedRequestsAreExpected = true;
            await visit.Page.Locator(".status.open").WaitForAsync();
            first.Dispose();
            await visit.Page.Locator(".bar[role=alert]:not(.hidden)").WaitForAsync();
            using Server second = await Server.Start("--port", port);
            await visit.Page.Locator(".status.open").WaitForAsync();
            await visit.Page.Locator(".bar.hidden").WaitForAsync(new LocatorWaitForOptions { State = WaitForSelectorState.Attached });
        }
        finally
        {
            first.Dispose();
        }
    }

    [Fact]
    public async Task AMachineAtWorkMovesByItself()
    {
        Assert.SkipWhen(fixture.Chromium.Missing != null, fixture.Chromium.Missing ?? "");
        using Server server = await Server.Start("--port", "0");
        await using Visit visit = await Visit.To(fixture.Chromium, server.Url, "map");
        await visit.Until($"() => {Colours} > 2");
        string before = await visit.Ask<string>($"() => {Pixels}");
        await visit.Until($"() => {Pixels} !== {Quote(before)}");
        await visit.Page.Locator(".play").ClickAsync();
        await visit.Page.Locator(".where", new PageLocatorOptions { HasTextString = "frozen" }).WaitForAsync();
        await visit.Page.Locator(".tabs a[data-view=time]").ClickAsync();
        await visit.Page.Locator(".empty").WaitForAsync();
    }

    private static Task Shows(Visit visit, int moment) =>
        visit.Until($"() => document.querySelector('.track').getAttribute('aria-valuenow') === '{moment}'");

    /// <summary>Goes over the map with the pointer until it is on a frame of that kind.</summary>
    private static async Task<int> FrameOf(Visit visit, string kind)
    {
        LocatorBoundingBoxResult box = (await visit.Page.Locator("canvas.over").BoundingBoxAsync())!;
        for (float y = 5; y < box.Height; y += 10)
        {
            for (float x = 90; x < box.Width; x += 14)
            {
                await visit.Page.Mouse.MoveAsync(box.X + x, box.Y + y);
                ILocator tip = visit.Page.Locator(".tip:not(.hidden) > div:nth-child(2)");
                if (await tip.CountAsync() == 0 || !(await tip.InnerTextAsync()).Contains(kind, StringComparison.Ordinal))
                    continue;
                await visit.Page.Mouse.ClickAsync(box.X + x, box.Y + y);
                await visit.Until("() => location.hash.includes('sel=')");
                Match selected = Selected().Match(await visit.Ask<string>("() => location.hash"));
                return int.Parse(selected.Groups[1].Value, CultureInfo.InvariantCulture);
            }
        }

        throw new InvalidOperationException($"the map shows no {kind}");
    }

    // Colours that the map's canvas has, and a digest of its pixels; both of a copy, so that the canvas stays as fast
    // as it is.
    private const string Colours = "(() => { " + Data + " const s = new Set();"
        + " for (let i = 0; i < d.length; i += 12) s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); return s.size; })()";

    private const string Pixels = "(() => { " + Data + " let s = 0;"
        + " for (let i = 0; i < d.length; i++) s = (s * 31 + d[i]) | 0; return String(s); })()";

    private const string Data = "const c = document.querySelector('canvas[data-map=cells]'); const k = document.createElement('canvas');"
        + " k.width = c.width; k.height = c.height; const g = k.getContext('2d', { willReadFrequently: true });"
        + " g.drawImage(c, 0, 0); const d = g.getImageData(0, 0, k.width, k.height).data;";

    private static string Quote(string text) => $"'{text}'";

    [GeneratedRegex(@"sel=(\d+)")]
    private static partial Regex Selected();

    // What a text looks like that has no entry in the dictionary: its own key.
    [GeneratedRegex(@"\b(app|view|map|slabs?|virtual|explain|time|compare|object|machine|counter|tick|mark|sheaf|status)\.[a-z][A-Za-z.]+\b")]
    private static partial Regex Key();
}
