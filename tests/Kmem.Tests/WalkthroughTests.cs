using System.Text.RegularExpressions;

namespace Kmem.Tests;

/// <summary>
/// The walkthroughs, and what there is in Chinese beside English: same programs, same pictures, same structure.
/// </summary>
public sealed partial class WalkthroughTests
{
    /// <summary>The English chapters, in order.</summary>
    public static IReadOnlyList<string> Chapters { get; } =
        [.. Directory.EnumerateFiles(Repository.PathOf("docs/walkthroughs"), "?-*.md").Order(StringComparer.Ordinal)];

    /// <summary>Each English page and its Chinese sister.</summary>
    public static TheoryData<string, string> Pairs()
    {
        var pairs = new TheoryData<string, string> { { "README.md", "README.zh-CN.md" } };
        string folder = Repository.PathOf("docs/walkthroughs");
        foreach (string page in Directory.EnumerateFiles(folder, "*.md").Order(StringComparer.Ordinal))
        {
            string name = Path.GetFileName(page);
            pairs.Add($"docs/walkthroughs/{name}", $"docs/walkthroughs/zh-CN/{name}");
        }

        return pairs;
    }

    [Fact]
    public void ThereAreFiveChaptersWithPicturesAndPrograms()
    {
        Assert.Equal(5, Chapters.Count);
        Assert.All(Chapters, chapter =>
        {
            string text = File.ReadAllText(chapter);
            Assert.Contains("```csharp", text, StringComparison.Ordinal);
            Assert.Matches(Picture(), text);
        });
    }

    /// <summary>Whoever changes a program or a command changes it in both languages.</summary>
    [Theory]
    [MemberData(nameof(Pairs))]
    public void BothLanguagesHaveTheSameBlocks(string english, string chinese)
    {
        string[] expected = Blocks(Read(english));
        string[] found = Blocks(Read(chinese));
        Assert.Equal(expected, found, StringComparer.Ordinal);
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void BothLanguagesHaveTheSameStructure(string english, string chinese)
    {
        Assert.Equal(Headings(Read(english)), Headings(Read(chinese)));
        Assert.Equal(PicturesOf(english), PicturesOf(chinese), StringComparer.Ordinal);
        Assert.Matches("[\\u4e00-\\u9fff]", Read(chinese));
    }

    /// <summary>Each picture of the walkthroughs is shown by a chapter, and each that is shown is there.</summary>
    [Fact]
    public void EveryPictureIsThereAndShown()
    {
        string[] shown = [.. Pairs().SelectMany(row => PicturesOf(row.Data.Item1)).Distinct(StringComparer.Ordinal)];
        Assert.All(shown, path => Assert.True(File.Exists(path), path));
        Assert.All(
            Directory.EnumerateFiles(Repository.PathOf("docs/walkthroughs/images")),
            path => Assert.Contains(Path.GetFullPath(path), shown, StringComparer.Ordinal));
    }

    private static string Read(string path) => File.ReadAllText(Repository.PathOf(path)).ReplaceLineEndings("\n");

    private static string[] Blocks(string text) => [.. Block().Matches(text).Select(match => match.Value)];

    private static int[] Headings(string text) =>
        [.. Heading().Matches(Block().Replace(text, "")).Select(match => match.Groups["marks"].Length)];

    private static string[] PicturesOf(string path) => [.. Picture().Matches(Read(path)).Select(match =>
        Path.GetFullPath(Path.Combine(Path.GetDirectoryName(Repository.PathOf(path))!, match.Groups["target"].Value)))];

    [GeneratedRegex("^```.*?^```$", RegexOptions.Singleline | RegexOptions.Multiline, matchTimeoutMilliseconds: 60_000)]
    private static partial Regex Block();

    [GeneratedRegex("^(?<marks>#+) ", RegexOptions.Multiline | RegexOptions.ExplicitCapture,
        matchTimeoutMilliseconds: 60_000)]
    private static partial Regex Heading();

    [GeneratedRegex(@"!\[[^\]]*\]\((?<target>[^)]+\.svg)\)", RegexOptions.ExplicitCapture,
        matchTimeoutMilliseconds: 60_000)]
    private static partial Regex Picture();
}
