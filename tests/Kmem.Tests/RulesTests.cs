using System.Reflection;
using System.Text.RegularExpressions;

namespace Kmem.Tests;

/// <summary>
/// The numbered rules, the tests that verify them and the validators that report them tell the same story.
/// </summary>
public sealed class RulesTests
{
    private static readonly string s_root = Directory.GetParent(TestData.PathOf("gfp-flags.txt"))!.Parent!.Parent!.FullName;

    [Fact]
    public void Each_rule_is_verified_by_the_test_that_it_names()
    {
        Dictionary<string, List<string>> verifiers = RulesOfTests();
        var faults = new List<string>();
        foreach (Rule rule in WrittenRules())
        {
            List<string> tests = verifiers.GetValueOrDefault(rule.Id, []);
            if (rule.VerifiedBy.Count == 0)
                faults.Add($"{rule.Id} names no test");
            faults.AddRange(rule.VerifiedBy.Except(tests, StringComparer.Ordinal).Select(
                test => $"{rule.Id} names {test}, which does not name it"));
        }

        Assert.Empty(faults);
    }

    [Fact]
    public void Each_rule_that_a_test_names_is_written_down() =>
        Assert.Empty(RulesOfTests().Keys.Except(WrittenRules().Select(rule => rule.Id), StringComparer.Ordinal));

    [Fact]
    public void Each_rule_that_a_validator_reports_is_written_down()
    {
        var reported = new HashSet<string>(StringComparer.Ordinal);
        foreach (string file in Directory.EnumerateFiles(Path.Combine(s_root, "src", "Kmem", "Debug"), "*.cs"))
        {
            foreach (Match match in Regex.Matches(File.ReadAllText(file), "\"(?<id>[A-Z]+-[0-9]{2})\""))
                reported.Add(match.Groups["id"].Value);
        }

        Assert.True(reported.Count > 30, $"only {reported.Count} rules found in the validators");
        Assert.Empty(reported.Except(WrittenRules().Select(rule => rule.Id), StringComparer.Ordinal));

        // And each of them is broken on purpose.
        var broken = RulesOfTests().Where(rule => rule.Value.Exists(
            test => test.StartsWith("Broken", StringComparison.Ordinal))).Select(rule => rule.Key);
        Assert.Empty(reported.Except(broken, StringComparer.Ordinal));
    }

    /// <summary>
    /// A rule that a validator reports is broken in a live machine; any other by a build with an error
    /// (tests/mutants).
    /// </summary>
    [Fact]
    public void Each_rule_is_broken_on_purpose()
    {
        IEnumerable<string> inMachines = RulesOfTests().Where(rule => rule.Value.Exists(
            test => test.StartsWith("Broken", StringComparison.Ordinal))).Select(rule => rule.Key);
        Assert.Empty(WrittenRules().Select(rule => rule.Id).Except(
            inMachines.Concat(MutantTests.BrokenRules()), StringComparer.Ordinal));
    }

    [Fact]
    public void Rules_are_numbered_once_and_have_a_reason()
    {
        List<Rule> rules = WrittenRules();
        Assert.True(rules.Count > 100, $"only {rules.Count} rules found");
        Assert.Equal(rules.Count, rules.Select(rule => rule.Id).Distinct(StringComparer.Ordinal).Count());
        Assert.All(rules, rule => Assert.EndsWith(".", rule.Text, StringComparison.Ordinal));
        Assert.All(rules, rule => Assert.EndsWith(".", rule.Reason, StringComparison.Ordinal));
        string overview = File.ReadAllText(Path.Combine(s_root, "rules", "README.md"));
        Assert.All(
            RuleFiles(), file => Assert.Contains($"[{Path.GetFileName(file)}]", overview, StringComparison.Ordinal));
    }

    private static IEnumerable<string> RuleFiles() =>
        Directory.EnumerateFiles(Path.Combine(s_root, "rules"), "*.md").Where(
            file => !file.EndsWith("README.md", StringComparison.Ordinal));

    /// <summary>The lines <c>| ID | rule | because | `Class.Method`, … |</c> of rules/*.md.</summary>
    private static List<Rule> WrittenRules()
    {
        var rules = new List<Rule>();
        foreach (string file in RuleFiles())
        {
            foreach (string line in File.ReadLines(file).Where(
                line => line.StartsWith('|') && !line.StartsWith("| id ", StringComparison.Ordinal) && line[1] != '-'))
            {
                string[] cells = line.Trim('|').Split('|', StringSplitOptions.TrimEntries);
                Assert.True(cells.Length == 4 && Regex.IsMatch(cells[0], "^[A-Z]+-[0-9]{2}$"), $"{file}: {line}");
                rules.Add(new Rule(
                    cells[0],
                    cells[1],
                    cells[2],
                    [.. Regex.Matches(cells[3], "`(?<test>[^`]+)`").Select(match => match.Groups["test"].Value)]));
            }
        }

        return rules;
    }

    /// <summary>Rule to tests, as <c>Class.Method</c>.</summary>
    private static Dictionary<string, List<string>> RulesOfTests()
    {
        var rules = new Dictionary<string, List<string>>(StringComparer.Ordinal);
        foreach (Type type in typeof(RulesTests).Assembly.GetTypes())
        {
            foreach (MethodInfo method in type.GetMethods())
            {
                foreach (TraitAttribute trait in method.GetCustomAttributes<TraitAttribute>())
                {
                    if (trait.Name != "rule")
                        continue;
                    if (!rules.TryGetValue(trait.Value, out List<string>? tests))
                        rules.Add(trait.Value, tests = []);
                    tests.Add($"{type.Name}.{method.Name}");
                }
            }
        }

        return rules;
    }

    private sealed record Rule(string Id, string Text, string Reason, List<string> VerifiedBy);
}
