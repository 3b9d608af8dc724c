namespace Kmem.Explorer.Browser.Tests;

/// <summary>In Chinese nothing but the kernel's own names is English.</summary>
[Collection("recording")]
public sealed class ChineseTests(RecordingFixture fixture)
{
    // What Chinese books on the kernel write in Latin letters, too; units; names of this page.
    private const string Terms = "Kmem English CPU RCU GFP SLUB OOM RAM KiB MiB GiB TiB EiB "
        + "slab Slab kmalloc kfree vmalloc vmap sheaf barn kswapd partial zone poison red min low high pid serve kmem "
        + "DMA DMA32 Normal pgd p4d pud pmd pte order";

    [Theory]
    [MemberData(nameof(AccessibilityTests.Screens), MemberType = typeof(AccessibilityTests))]
    public async Task NothingIsLeftInEnglish(string hash, string what)
    {
        await using Visit visit = await fixture.Open(hash, language: "zh-CN");
        visit.FailedRequestsAreExpected = hash.Contains("address=", StringComparison.Ordinal);
        await visit.Page.Locator(what).First.WaitForAsync();
        Assert.Equal("", await English(visit));
    }

    [Theory]
    [InlineData("explain?event=5000", ".sentence")]
    [InlineData("explain?event=5003", ".sentence")]
    [InlineData("explain?address=0xffffc90000001000", ".sentence, .problem")]
    [InlineData("map?color=type", ".legend button")]
    [InlineData("map?color=age", ".legend button")]
    [InlineData("map?color=pin", ".legend button")]
    public async Task NorInTheCorners(string hash, string what)
    {
        await using Visit visit = await fixture.Open(hash, language: "zh-CN");
        visit.FailedRequestsAreExpected = hash.Contains("address=", StringComparison.Ordinal);
        await visit.Page.Locator(what).First.WaitForAsync();
        Assert.Equal("", await English(visit));
    }

    [Fact]
    public async Task NorOfAMachineAtWork()
    {
        Assert.SkipWhen(fixture.Chromium.Missing != null, fixture.Chromium.Missing ?? "");
        using Server server = await Server.Start("--port", "0");
        await using Visit visit = await Visit.To(fixture.Chromium, server.Url, "machine", language: "zh-CN");
        foreach ((string hash, string what) in new[]
        {
            ("machine", ".lane"), ("virtual", ".walk svg rect"), ("time", ".empty"),
            ("explain?address=0xffff888000200000", ".sentence"),
        })
        {
            await visit.Go(hash);
            await visit.Page.Locator(what).First.WaitForAsync();
            Assert.Equal("", await English(visit));
        }
    }

    [Fact]
    public async Task TheAddressChoosesTheLanguage()
    {
        Assert.SkipWhen(fixture.Chromium.Missing != null, fixture.Chromium.Missing ?? "");
        await using Visit visit = await Visit.To(fixture.Chromium, $"{fixture.Server!.Url}?lang=zh", "machine");
        Assert.Equal("zh-CN", await visit.Ask<string>("() => document.documentElement.lang"));
    }

    /// <summary>Texts, titles and labels with words that are neither terms nor marked as names.</summary>
    private static async Task<string> English(Visit visit)
    {
        await visit.Until("() => !document.querySelector('main .loading')");
        return await visit.Page.EvaluateAsync<string>("""
            terms => {
                const known = new Set(terms.split(' '));
                const word = /(?<![\w0-9])[A-Za-z][A-Za-z]+[0-9]*(?![\w.+/])/g;
                const strange = text => [...text.replace(/0x[0-9a-f]+|\b[a-z0-9]+_[\w+\/.]+/g, '').matchAll(word)]
                    .some(([one]) => !known.has(one));
                const found = new Set();
                const names = 'code, kbd, .mono, .hex, [translate=no], script, style';
                const walker = document.createTreeWalker(document.querySelector('#app'), NodeFilter.SHOW_TEXT);
                for (let node = walker.nextNode(); node; node = walker.nextNode()) {
                    if (!node.parentElement.closest(names) && strange(node.data)) found.add(node.data);
                }
                for (const e of document.querySelectorAll('#app [title], #app [aria-label]')) {
                    if (e.closest(names)) continue;
                    for (const name of ['title', 'aria-label']) {
                        const text = e.getAttribute(name) ?? '';
                        if (/[a-z]{3,} [a-z]{2,} /.test(text)) found.add(text);
                    }
                }
                return [...found].join('\n');
            }
            """, Terms);
    }
}
