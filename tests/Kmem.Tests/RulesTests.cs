using System.Reflection;
using System.Text.RegularExpressions;

namespace Kmem.Tests;

/// <summary>The numbered rules: the documents, the tests and the checks of <see cref="Machine.Validate"/> name the same.</summary>
public sealed partial class RulesTests
{
    [Fact]
    public void EveryRuleHasATestAndEveryTestARule()
    {
        var tested = typeof(RulesTests).Assembly.GetTypes()
            .SelectMany(type => type.GetMethods(BindingFlags.Instance | BindingFlags.Public))
            .SelectMany(method => method.GetCustomAttributes<TraitAttribute>())
            .Where(trait => trait.Name == "rule")
            .Select(trait => trait.Value)
            .ToHashSet(StringComparer.Ordinal);
        HashSet<string> written = Written();

        Assert.NotEmpty(written);
        Assert.Empty(written.Except(tested, StringComparer.Ordinal).Select(id => $"{id} has no test"));
        Assert.Empty(tested.Except(written, StringComparer.Ordinal).Select(id => $"{id} is not in rules/"));
    }

    [Fact]
    public void EveryCheckIsARule()
    {
        HashSet<string> written = Written();
        IEnumerable<string> named = Directory.EnumerateFiles(Path.Combine(Root, "src", "Kmem", "Debug"), "*.cs")
            .SelectMany(file => QuotedId().Matches(File.ReadAllText(file)))
            .Select(match => match.Groups[1].Value);

        Assert.Contains("BUDDY-02", named, StringComparer.Ordinal);
        Assert.Empty(named.Except(written, StringComparer.Ordinal));
    }

    [Fact]
    public void TheTestsThatRulesNameExist()
    {
        foreach (Match match in Directory.EnumerateFiles(Path.Combine(Root, "rules"), "*.md")
            .SelectMany(file => TestName().Matches(File.ReadAllText(file))))
        {
            Type? type = typeof(RulesTests).Assembly.GetType($"Kmem.Tests.{match.Groups[1].Value}");
            Assert.True(type?.GetMethod(match.Groups[2].Value) != null, $"rules/ name {match.Value}, which is no test");
        }
    }

    private static string Root => Path.GetFullPath(Path.Combine(TestData.PathOf("."), "..", ".."));

    private static HashSet<string> Written() =>
        Directory.EnumerateFiles(Path.Combine(Root, "rules"), "*.md")
            .SelectMany(file => RowId().Matches(File.ReadAllText(file)))
            .Select(match => match.Groups[1].Value)
            .ToHashSet(StringComparer.Ordinal);

    [GeneratedRegex(@"^\| (?<id>[A-Z]+-\d+) \|", RegexOptions.Multiline | RegexOptions.ExplicitCapture)]
    private static partial Regex RowId();

    [GeneratedRegex("\"(?<id>[A-Z]+-\\d\\d)\"", RegexOptions.ExplicitCapture)]
    private static partial Regex QuotedId();

    [GeneratedRegex(@"`(?<type>\w+Tests)\.(?<method>\w+)`", RegexOptions.ExplicitCapture)]
    private static partial Regex TestName();
}
