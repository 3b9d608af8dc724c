using System.Diagnostics;
using System.Reflection;

namespace Kmem.Tests;

/// <summary>
/// The deliberate errors in tests/mutants, each of which <c>eng/mutants</c> builds and has found: they still fit the
/// code, and name tests and rules that exist.
/// </summary>
public sealed class MutantTests
{
    private static readonly string s_root = Directory.GetParent(TestData.PathOf("gfp-flags.txt"))!.Parent!.Parent!.FullName;

    public static TheoryData<string> Patches() =>
        [.. Directory.GetFiles(Path.Combine(s_root, "tests", "mutants"), "*.patch").Select(path => Path.GetFileName(path))];

    [Theory]
    [MemberData(nameof(Patches))]
    public void A_deliberate_error_fits_the_code(string patch)
    {
        string text = File.ReadAllText(Path.Combine(s_root, "tests", "mutants", patch));
        string[] tests = Header(text, "Tests").Single().Split(' ');
        foreach (string name in tests)
            Assert.True(Methods(name).Length > 0, $"there is no {name}");
        foreach (string rule in Header(text, "Rule"))
        {
            Assert.Contains($"| {rule} |", Rules(), StringComparison.Ordinal);
            Assert.Contains(tests.SelectMany(Methods), test => Verifies(test, rule));
        }

        string code = "";
        var hunk = new List<string>();
        foreach (string line in text[text.IndexOf("--- a/", StringComparison.Ordinal)..].Split('\n').Append("@@"))
        {
            if (line.StartsWith("--- a/", StringComparison.Ordinal))
                code = File.ReadAllText(Path.Combine(s_root, line[6..]));
            else if (line.StartsWith("@@", StringComparison.Ordinal))
                Verify(code, hunk);
            else if (line.StartsWith(' ') || line.StartsWith('-'))
                hunk.Add(line[1..]);
        }
    }

    [Fact]
    public void Git_applies_each_of_them()
    {
        Assert.SkipUnless(Directory.Exists(Path.Combine(s_root, ".git")) || File.Exists(Path.Combine(s_root, ".git")),
            "this is no checkout");
        Assert.SkipUnless(Git("--version") is not null, "there is no git");
        foreach (string path in Directory.GetFiles(Path.Combine(s_root, "tests", "mutants"), "*.patch"))
            Assert.Equal("", Git("apply", "--check", path));
    }

    /// <summary>The rules that some patch breaks.</summary>
    internal static IEnumerable<string> BrokenRules() => Directory
        .GetFiles(Path.Combine(s_root, "tests", "mutants"), "*.patch")
        .SelectMany(path => Header(File.ReadAllText(path), "Rule"));

    /// <summary>The tests of a class, or the one of a name with a dot more.</summary>
    private static MethodInfo[] Methods(string name)
    {
        Assembly tests = typeof(MutantTests).Assembly;
        if (tests.GetType(name) is { } type)
            return type.GetMethods();
        int dot = name.LastIndexOf('.');
        return tests.GetType(name[..dot])?.GetMethod(name[(dot + 1)..]) is { } method ? [method] : [];
    }

    private static bool Verifies(MethodInfo test, string rule) => test.GetCustomAttributes<TraitAttribute>().Any(
        trait => trait.Name == "rule" && trait.Value == rule);

    /// <summary>What git says, errors included; null if there is none.</summary>
    private static string? Git(params string[] arguments)
    {
        var start = new ProcessStartInfo("git", arguments)
        {
            UseShellExecute = false,
            WorkingDirectory = s_root,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        try
        {
            using Process git = Process.Start(start)!;
            Task<string> errors = git.StandardError.ReadToEndAsync();
            string said = git.StandardOutput.ReadToEnd();
            git.WaitForExit();
            return said + errors.Result;
        }
        catch (System.ComponentModel.Win32Exception)
        {
            return null;
        }
    }

    private static IEnumerable<string> Header(string text, string name) => text.Split('\n')
        .Where(line => line.StartsWith($"{name}: ", StringComparison.Ordinal)).Select(line => line[(name.Length + 2)..]);

    private static void Verify(string code, List<string> hunk)
    {
        if (hunk.Count > 0)
        {
            // Once: a second place would be the wrong one as soon as lines move.
            string old = string.Join('\n', hunk);
            int at = code.IndexOf(old, StringComparison.Ordinal);
            Assert.True(at >= 0, $"not in the code:\n{old}");
            Assert.True(code.IndexOf(old, at + 1, StringComparison.Ordinal) < 0, $"twice in the code:\n{old}");
        }

        hunk.Clear();
    }

    private static string Rules() =>
        string.Join('\n', Directory.GetFiles(Path.Combine(s_root, "rules"), "*.md").Select(File.ReadAllText));
}
