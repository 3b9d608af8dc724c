namespace Kmem.Tests;

/// <summary>
/// The deliberate errors in tests/mutants, each of which <c>eng/mutants</c> builds and has found: they still fit the code,
/// and name tests and rules that exist.
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
        foreach (string name in Header(text, "Tests").Single().Split(' '))
            Assert.True(typeof(MutantTests).Assembly.GetType(name) != null, $"there is no {name}");
        foreach (string rule in Header(text, "Rule"))
            Assert.Contains($"| {rule} |", Rules(), StringComparison.Ordinal);

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

    private static IEnumerable<string> Header(string text, string name) => text.Split('\n')
        .Where(line => line.StartsWith($"{name}: ", StringComparison.Ordinal)).Select(line => line[(name.Length + 2)..]);

    private static void Verify(string code, List<string> hunk)
    {
        if (hunk.Count > 0)
            Assert.Contains(string.Join('\n', hunk), code, StringComparison.Ordinal);
        hunk.Clear();
    }

    private static string Rules() =>
        string.Join('\n', Directory.GetFiles(Path.Combine(s_root, "rules"), "*.md").Select(File.ReadAllText));
}
