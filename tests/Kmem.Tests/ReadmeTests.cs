using System.Reflection;
using System.Runtime.Loader;
using System.Text.RegularExpressions;
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;

namespace Kmem.Tests;

/// <summary>Console output is the process's: nothing else may run meanwhile.</summary>
[CollectionDefinition("console", DisableParallelization = true)]
public sealed class ConsoleCollection;

/// <summary>
/// The C# blocks of the README, of the guide for .NET programs and of the walkthroughs are programs: they compile
/// without a warning, run, and print what the page says.
/// </summary>
[Collection("console")]
public sealed partial class ReadmeTests
{
    private const string ImplicitUsings =
        "global using System; global using System.Collections.Generic; global using System.IO; global using System.Linq;";

    private static readonly string s_readme = File.ReadAllText(Repository.PathOf("README.md"));

    /// <summary>Each C# block by its number, with the text block that follows it directly, if one does.</summary>
    public static TheoryData<int, string, string?> Programs() => ProgramsIn(s_readme);

    /// <summary>The same of docs/dotnet.md.</summary>
    public static TheoryData<int, string, string?> GuidePrograms() =>
        ProgramsIn(File.ReadAllText(Repository.PathOf("docs/dotnet.md")));

    /// <summary>The same of all chapters in docs/walkthroughs.</summary>
    public static TheoryData<int, string, string?> WalkthroughPrograms() =>
        ProgramsIn(string.Join('\n', WalkthroughTests.Chapters.Select(File.ReadAllText)));

    private static TheoryData<int, string, string?> ProgramsIn(string page)
    {
        var programs = new TheoryData<int, string, string?>();
        foreach (Match match in ProgramWithOutput().Matches(page.ReplaceLineEndings("\n")))
        {
            Group output = match.Groups["output"];
            programs.Add(programs.Count + 1, match.Groups["code"].Value, output.Success ? output.Value : null);
        }

        return programs;
    }

    [Fact]
    public void ThePagesHavePrograms()
    {
        Assert.True(Programs().Count >= 2);
        Assert.True(GuidePrograms().Count >= 4);
        Assert.True(WalkthroughPrograms().Count >= 7);
    }

    [Theory]
    [MemberData(nameof(Programs), DisableDiscoveryEnumeration = true)]
    [MemberData(nameof(GuidePrograms), DisableDiscoveryEnumeration = true)]
    [MemberData(nameof(WalkthroughPrograms), DisableDiscoveryEnumeration = true)]
    public void EachProgramRunsAndPrintsWhatIsShown(int number, string code, string? shown)
    {
        byte[] program = Compile($"readme{number}", code);
        bool runs = HostMemory.IsLinux || !code.Contains("Vmalloc", StringComparison.Ordinal);
        Assert.SkipUnless(runs, "vmalloc needs Linux");
        string printed = Run(program);
        if (shown != null)
            Assert.Equal(WithoutNumbers(shown), WithoutNumbers(printed));
    }

    [Fact]
    public void FilesNamedInCommandsExist()
    {
        string[] paths = PathInCommand().Matches(s_readme).Select(match => match.Value)
            .Distinct(StringComparer.Ordinal).ToArray();
        Assert.NotEmpty(paths);
        Assert.All(paths, path => Assert.True(Path.Exists(Repository.PathOf(path)), path));
    }

    private static byte[] Compile(string name, string code)
    {
        var options = new CSharpParseOptions(LanguageVersion.Latest);
        CSharpCompilation compilation = CSharpCompilation.Create(
            name,
            [CSharpSyntaxTree.ParseText(code, options), CSharpSyntaxTree.ParseText(ImplicitUsings, options)],
            [.. Repository.FrameworkReferences, MetadataReference.CreateFromFile(typeof(Machine).Assembly.Location)],
            new CSharpCompilationOptions(
                OutputKind.ConsoleApplication, allowUnsafe: true, nullableContextOptions: NullableContextOptions.Enable));
        using var image = new MemoryStream();
        Microsoft.CodeAnalysis.Emit.EmitResult result = compilation.Emit(image);
        Assert.Empty(result.Diagnostics.Where(diagnostic => diagnostic.Severity >= DiagnosticSeverity.Warning));
        return image.ToArray();
    }

    private static string Run(byte[] image)
    {
        var context = new AssemblyLoadContext("README", isCollectible: true);
        TextWriter console = Console.Out;
        var output = new StringWriter();
        try
        {
            Assembly program = context.LoadFromStream(new MemoryStream(image));
            Console.SetOut(output);
            program.EntryPoint!.Invoke(null, [Array.Empty<string>()]);
        }
        finally
        {
            Console.SetOut(console);
            context.Unload();
        }

        return output.ToString();
    }

    /// <summary>Addresses and counts change with every cache that boot creates; words do not.</summary>
    private static string WithoutNumbers(string text) =>
        Number().Replace(text.ReplaceLineEndings("\n").Trim(), "#");

    [GeneratedRegex(
        "```csharp\n(?<code>.*?)```(?:\\s*```text\n(?<output>.*?)```)?",
        RegexOptions.Singleline | RegexOptions.ExplicitCapture,
        matchTimeoutMilliseconds: 60_000)]
    private static partial Regex ProgramWithOutput();

    [GeneratedRegex("0x[0-9a-f]+|[0-9]+", RegexOptions.None, matchTimeoutMilliseconds: 60_000)]
    private static partial Regex Number();

    [GeneratedRegex("(?<=[ (])(?:src|samples|bench|docs)/[A-Za-z0-9_./-]*[A-Za-z0-9]", RegexOptions.None, matchTimeoutMilliseconds: 60_000)]
    private static partial Regex PathInCommand();
}
