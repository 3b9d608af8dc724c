using Deque.AxeCore.Commons;
using Deque.AxeCore.Playwright;
using Microsoft.Playwright;

namespace Kmem.Explorer.Browser.Tests;

/// <summary>The page for those who do not see it, see few colours, or have no mouse.</summary>
[Collection("recording")]
public sealed class AccessibilityTests(RecordingFixture fixture)
{
    private static readonly List<string> s_rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"];

    /// <summary>All screens, with something open in each.</summary>
    public static TheoryData<string, string> Screens => new()
    {
        { "machine", ".zone svg rect" },
        { "map", "canvas[data-map=cells]" },
        { "map?sel=1048600", ".side dl dd" },
        { "map?sel=1048600&deep=page", ".deep dl dd" },
        { "slabs?cache=1", ".strip" },
        { "virtual?address=0xffff888000100000", ".walk .problem, .walk svg" },
        { "explain?address=0xffff888100100000", ".sentence" },
        { "time", "tr[data-n]" },
        { "compare?from=0&to=9000", ".panel svg rect" },
    };

    [Theory]
    [MemberData(nameof(Screens))]
    public async Task AxeFindsNothing(string hash, string what)
    {
        await using Visit visit = await fixture.Open(hash);
        visit.FailedRequestsAreExpected = hash.StartsWith("virtual", StringComparison.Ordinal);
        await visit.Page.Locator(what).First.WaitForAsync();
        await visit.Until("() => !document.querySelector('main .loading')");
        foreach (ColorScheme scheme in new[] { ColorScheme.Light, ColorScheme.Dark })
        {
            await visit.Page.EmulateMediaAsync(new PageEmulateMediaOptions { ColorScheme = scheme });
            AxeResult found = await visit.Page.RunAxe(new AxeRunOptions
            {
                RunOnly = new RunOnlyOptions { Type = "tag", Values = s_rules },
            });
            string violations = string.Join('\n', found.Violations.SelectMany(rule => rule.Nodes.Take(4).Select(node =>
                $"{rule.Id}: {node.Html} {string.Join("; ", node.Any.Select(check => check.Message))}")));
            Assert.Equal("", violations);
        }
    }

    [Theory]
    [MemberData(nameof(Screens))]
    public async Task TheTabKeyReachesEverythingAndShowsWhereItIs(string hash, string what)
    {
        await using Visit visit = await fixture.Open(hash);
        visit.FailedRequestsAreExpected = hash.StartsWith("virtual", StringComparison.Ordinal);
        await visit.Page.Locator(what).First.WaitForAsync();
        await visit.Until("() => !document.querySelector('main .loading')");
        string lost = await visit.Ask<string>("""
            () => [...document.querySelectorAll('[role=button], [role=slider], [onclick], button, a, select, input')]
                .filter(e => e.getClientRects().length > 0 && !e.disabled && e.tabIndex < 0)
                .map(e => e.outerHTML.slice(0, 90)).join('\n')
            """);
        Assert.Equal("", lost);
        for (int i = 0; i < 16; i++)
        {
            await visit.Page.Keyboard.PressAsync("Tab");
            string unseen = await visit.Ask<string>("""
                () => {
                    const e = document.activeElement;
                    if (e === document.body) return '';
                    const style = getComputedStyle(e);
                    const shown = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
                    return shown && e.matches(':focus-visible') ? '' : e.outerHTML.slice(0, 90);
                }
                """);
            Assert.Equal("", unseen);
        }
    }

    [Fact]
    public async Task TheSentenceIsSaidAloud()
    {
        await using Visit visit = await fixture.Open("explain?address=0xffff888100100000");
        await visit.Page.Locator(".sentence[role=status]").WaitForAsync();
        await visit.Until("() => document.querySelector('[aria-live=polite]') !== null");
    }

    /// <summary>Colours that an eye without red or green cones takes for the same have different patterns.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task WhatLooksTheSameHasAnotherPattern(bool dark)
    {
        await using Visit visit = await fixture.Open("machine", dark: dark);
        string same = await visit.Ask<string>("async () => {" + ColourDistances + """

                const { kindColour, kindLetters, migrateColour, cycleColour, CYCLE_LENGTH } = await import('/palette.js');
                const { kindPattern, cyclePattern } = await import('/patterns.js');
                const kinds = Object.keys(kindLetters).filter(name => name !== 'hole')
                    .map(name => ({ name, colour: kindColour(name, 3), pattern: kindPattern(name) }));
                const cycle = Array.from({ length: CYCLE_LENGTH }, (_, n) =>
                    ({ name: `slot ${n}`, colour: cycleColour(n), pattern: cyclePattern(n) }));
                const types = Array.from({ length: 5 }, (_, n) =>
                    ({ name: `type ${n}`, colour: migrateColour(n), pattern: cyclePattern(n) }));
                return [kinds, cycle, types].flatMap(set => tooNear(set)).join('\n');
            }
            """);
        Assert.Equal("", same);
    }

    [Fact]
    public async Task PatternsCanBeSeenOnTheirColours()
    {
        await using Visit visit = await fixture.Open("machine");
        string faint = await visit.Ask<string>("async () => {" + ColourDistances + """

                const { kindColour, kindLetters, cycleColour, CYCLE_LENGTH } = await import('/palette.js');
                const { inkFor, PATTERNS } = await import('/patterns.js');
                const colours = [...Object.keys(kindLetters).map(name => kindColour(name, 3)),
                    ...Array.from({ length: CYCLE_LENGTH }, (_, n) => cycleColour(n))];
                const distinct = new Set(Object.values(PATTERNS).map(rows => rows.join())).size;
                return colours.filter(colour => EYES.some(eye => distance(eye(colour), eye(inkFor(colour))) < 18))
                    .map(String).concat(distinct === Object.keys(PATTERNS).length ? [] : ['the same patterns']).join('\n');
            }
            """);
        Assert.Equal("", faint);
    }

    [Fact]
    public async Task PatternsAreOnWhereTheSystemWantsContrastAndCanBeSwitched()
    {
        await using (Visit plain = await fixture.Open("map?t=9000"))
            Assert.False(await plain.Page.GetByLabel("Patterns over the colours").IsCheckedAsync());
        await using Visit visit = await fixture.Open("map?t=9000", contrast: true);
        ILocator box = visit.Page.GetByLabel("Patterns over the colours");
        Assert.True(await box.IsCheckedAsync());
        await visit.Page.Locator(".legend .swatch.hatched").First.WaitForAsync();
        await box.UncheckAsync();
        await visit.Until("() => !document.querySelector('.legend .swatch.hatched')");
        await visit.Page.Locator("canvas.over").FocusAsync();
        await visit.Page.Keyboard.PressAsync("h");
        await visit.Page.Locator(".legend .swatch.hatched").First.WaitForAsync();
        Assert.True(await box.IsCheckedAsync());
    }

    // Machado, Oliveira and Fernandes 2009: linear RGB as seen without L, without M cones; distance in CIELAB.
    private const string ColourDistances = """

            const LIN = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            const seen = m => ([r, g, b]) => { const c = [LIN(r), LIN(g), LIN(b)];
                return m.map(row => Math.min(1, Math.max(0, row[0] * c[0] + row[1] * c[1] + row[2] * c[2]))); };
            const EYES = [
                seen([[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
                seen([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
                seen([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
            ];
            const lab = ([r, g, b]) => {
                const f = v => v > 0.008856 ? Math.cbrt(v) : 7.787 * v + 16 / 116;
                const x = f((0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505), y = f(0.2126 * r + 0.7152 * g + 0.0722 * b),
                    z = f((0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089);
                return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
            };
            const distance = (a, b) => Math.hypot(...lab(a).map((v, i) => v - lab(b)[i]));
            const tooNear = set => set.flatMap((a, i) => set.slice(i + 1).filter(b => a.pattern === b.pattern
                && EYES.some(eye => distance(eye(a.colour), eye(b.colour)) < 15)).map(b => `${a.name} and ${b.name}`));
        """;
}
