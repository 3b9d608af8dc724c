using System.Text.RegularExpressions;

namespace Kmem.Tests;

/// <summary>
/// The table of docs/RELIABILITY.md that says which test fuzzes which reader: it names every file of src that makes
/// numbers, JSON or unpacked bytes of text, or has a method that reads text, and its tests exist.
/// </summary>
public sealed partial class ReaderTableTests
{
    [Fact]
    public void No_reader_of_foreign_text_is_missing()
    {
        HashSet<string> named = [.. Rows().SelectMany(row => row.Readers)];
        string[] readers = [.. Sources().Where(path => IsReader(File.ReadAllText(path))).Select(NameOf).Distinct(StringComparer.Ordinal)];

        Assert.True(readers.Length > 40, "the readers were not found");
        Assert.Empty(readers.Except(named, StringComparer.Ordinal));
        Assert.Empty(named.Except(Sources().Select(NameOf), StringComparer.Ordinal));
    }

    [Fact]
    public void The_tests_of_the_table_exist()
    {
        ILookup<string, string> tests = Directory.EnumerateFiles(
                Repository.PathOf("tests"), "*Tests.cs", SearchOption.AllDirectories)
            .ToLookup(NameOf, File.ReadAllText, StringComparer.Ordinal);
        Assert.All(Rows(), row => Assert.All(row.Tests, test =>
        {
            string[] parts = test.Split('.');
            Assert.True(
                tests[parts[0]].Any(text => text.Contains($" {parts[1]}(", StringComparison.Ordinal)), $"there is no {test}");
        }));
    }

    /// <summary>Rows `| text | readers | tests |`; a row without a test says why in its last column.</summary>
    private static List<(string[] Readers, string[] Tests)> Rows()
    {
        string page = File.ReadAllText(Repository.PathOf("docs/RELIABILITY.md"));
        int begin = page.IndexOf("| text | read by | fuzzed by |", StringComparison.Ordinal);
        Assert.True(begin >= 0, "the table is gone");
        List<(string[], string[])> rows =
        [
            .. page[begin..].Split('\n').TakeWhile(line => line.StartsWith('|')).Skip(2)
                .Select(line => line.Split('|'))
                .Select(cells => (Quoted(cells[2]), Quoted(cells[3]).Where(it => it.Contains('.')).ToArray())),
        ];
        Assert.True(rows.Count > 10);
        return rows;
    }

    private static string[] Quoted(string cell) => [.. Code().Matches(cell).Select(match => match.Groups["code"].Value)];

    private static IEnumerable<string> Sources() => Directory.EnumerateFiles(
            Repository.PathOf("src"), "*.cs", SearchOption.AllDirectories)
        .Where(path => !path.Split(Path.DirectorySeparatorChar).Any(part => part is "bin" or "obj"));

    private static string NameOf(string path) => Path.GetFileNameWithoutExtension(path);

    private static bool IsReader(string source) => Conversion().IsMatch(source)
        || Method().Matches(source).Any(match => Text().IsMatch(match.Groups["parameters"].Value));

    [GeneratedRegex("`(?<code>[^`]+)`", RegexOptions.ExplicitCapture)]
    private static partial Regex Code();

    [GeneratedRegex(
        @"\b(?:int|long|uint|ulong|ushort|short|double|decimal|byte|Guid|Enum|JsonDocument|TimeSpan|BigInteger|IPAddress)" +
        @"\.(?:Try)?Parse(?:<\w+>)?\(|JsonSerializer\.Deserialize|Utf8Parser\.|CompressionMode\.Decompress" +
        @"|BinaryPrimitives\.(?:Try)?Read")]
    private static partial Regex Conversion();

    [GeneratedRegex(
        @"^\s*(?:public|internal)[^\n;={]*?\b(?:Try)?(?:Parse|Read|Open|Load)\w*\((?<parameters>[^)]*)\)",
        RegexOptions.Multiline | RegexOptions.ExplicitCapture)]
    private static partial Regex Method();

    [GeneratedRegex(@"\bstring\b|ReadOnlySpan<(?:char|byte)>|TextReader|Stream\b|ReadOnlyMemory<byte>|JsonElement|byte\[\]")]
    private static partial Regex Text();
}
