using System.Reflection;
using System.Text.RegularExpressions;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>What the documents name exists: members in the kernel map, files behind links.</summary>
public partial class DocumentationTests
{
    private const BindingFlags Any = BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.Static | BindingFlags.Instance;

    private static readonly ILookup<string, Type> s_types =
        new[] { typeof(Machine).Assembly, typeof(FtraceReader).Assembly }
            .SelectMany(assembly => assembly.GetTypes())
            .ToLookup(type => type.Name, StringComparer.Ordinal);

    [Fact]
    public void TheKernelMapNamesMembersThatExist()
    {
        // The second column of each row: | kernel | `Type.Member`, `Type` | differs |
        string[] names = File.ReadLines(Repository.PathOf("docs/kernel-map.md"))
            .Where(line => line.StartsWith("| ", StringComparison.Ordinal))
            .Select(line => line.Split('|')[2])
            .SelectMany(cell => CodeSpan().Matches(cell).Select(match => match.Groups["name"].Value))
            .ToArray();
        Assert.True(names.Length > 100, $"{names.Length} names");
        Assert.All(names, name => Assert.True(Exists(name), name));
    }

    [Theory]
    [InlineData("Buddy.TakeLocked", true)]
    [InlineData("Buddy.NoSuchMember", false)]
    [InlineData("NoSuchType", false)]
    public void ANameThatIsNotThereIsSeen(string name, bool exists) => Assert.Equal(exists, Exists(name));

    [Fact]
    public void TheTableOfLocksIsTheOneThatIsChecked()
    {
        string architecture = File.ReadAllText(Repository.PathOf("docs/ARCHITECTURE.md"));
        string[] documented = LockRow().Matches(architecture)
            .Select(match => $"{match.Groups["rank"].Value} {match.Groups["name"].Value}").ToArray();
        Assert.Equal(
            Enum.GetValues<LockRank>().Select(rank => $"{(int)rank} {rank}"), documented, StringComparer.Ordinal);
    }

    [Fact]
    public void LinksLeadToFiles()
    {
        string[] broken = Documents()
            .SelectMany(path => Link().Matches(File.ReadAllText(path))
                .Select(match => match.Groups["target"].Value)
                .Where(target => !target.Contains("://", StringComparison.Ordinal) && !target.StartsWith('#'))
                .Where(target => !Path.Exists(Path.Combine(Path.GetDirectoryName(path)!, target.Split('#')[0])))
                .Select(target => $"{Path.GetRelativePath(Repository.Root, path)}: {target}"))
            .ToArray();
        Assert.Empty(broken);
    }

    private static IEnumerable<string> Documents() =>
        Directory.EnumerateFiles(Repository.Root, "*.md")
            .Concat(new[] { "docs", "samples", "rules" }
                .Select(Repository.PathOf)
                .Where(Directory.Exists)
                .SelectMany(folder => Directory.EnumerateFiles(folder, "*.md", SearchOption.AllDirectories)));

    private static bool Exists(string name)
    {
        string[] parts = name.Split('.');
        return s_types[parts[0]].Any(type => parts.Length == 1 || type.GetMember(parts[1], Any).Length > 0);
    }

    [GeneratedRegex("`(?<name>[^`]+)`", RegexOptions.ExplicitCapture, matchTimeoutMilliseconds: 60_000)]
    private static partial Regex CodeSpan();

    [GeneratedRegex(
        @"^\| (?<rank>\d+) \| `(?<name>\w+)`",
        RegexOptions.ExplicitCapture | RegexOptions.Multiline,
        matchTimeoutMilliseconds: 60_000)]
    private static partial Regex LockRow();

    [GeneratedRegex(@"\]\((?<target>[^)\s]+)\)", RegexOptions.ExplicitCapture, matchTimeoutMilliseconds: 60_000)]
    private static partial Regex Link();
}
