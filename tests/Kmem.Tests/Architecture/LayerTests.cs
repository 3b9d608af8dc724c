using System.Globalization;
using System.Xml.Linq;
using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;
using Microsoft.CodeAnalysis.CSharp.Syntax;

namespace Kmem.Tests;

/// <summary>
/// The order of the rooms: a folder of src/Kmem uses only folders before it in this list. The compiler cannot say it,
/// because all of them share one namespace and one assembly.
/// </summary>
public class LayerTests
{
    /// <summary>From the ground up. The root (Machine and its options) comes last and may use everything.</summary>
    private static readonly string[] s_layers =
    [
        "Lib", "Arch", "Platform", "Page", "Trace", "Cpu", "Zone", "PageAlloc", "Slub", "Kmalloc", "Vmalloc",
        "Reclaim", "Debug", "Proc", "State", "Buffers", "Metrics", "",
    ];

    [Fact]
    public void EveryFolderHasAPlaceInTheOrder()
    {
        IEnumerable<string> unknown = CoreSources.Compilation.SyntaxTrees
            .Where(tree => tree.FilePath.Length > 0)
            .Select(tree => CoreSources.FolderOf(tree.FilePath))
            .Except(s_layers, StringComparer.Ordinal);
        Assert.Empty(unknown);
    }

    [Fact]
    public void TheSourcesBindSoThatNothingIsOverlooked()
    {
        // No source generator runs here: the second halves of LibraryImport methods and of JSON contexts are missing.
        string[] generated = CoreSources.Compilation.SyntaxTrees
            .SelectMany(tree => tree.GetRoot().DescendantNodes())
            .OfType<ClassDeclarationSyntax>()
            .Where(type => type.AttributeLists.ToString().Contains("JsonSerializable", StringComparison.Ordinal))
            .Select(type => type.Identifier.Text)
            .Append("JsonSerializerContext")
            .ToArray();
        Diagnostic[] errors = CoreSources.Compilation.GetDiagnostics(TestContext.Current.CancellationToken)
            .Where(diagnostic => diagnostic.Severity == DiagnosticSeverity.Error && diagnostic.Id != "CS8795")
            .Where(diagnostic => !generated.Any(
                name => diagnostic.GetMessage(CultureInfo.InvariantCulture).Contains(name, StringComparison.Ordinal)))
            .ToArray();
        Assert.Empty(errors);
    }

    [Fact]
    public void FoldersUseOnlyFoldersAbove() =>
        Assert.Empty(UpwardUses(CoreSources.Compilation));

    [Fact]
    public void AnUpwardUseIsSeenWhateverItsShape()
    {
        CSharpCompilation compilation = CoreSources.Compile(
        [
            (Path.Combine(CoreSources.Root, "Lib", "Low.cs"),
                """
                namespace Kmem;
                /// <summary>Naming <see cref="High"/> in a comment is no use.</summary>
                internal static class Low
                {
                    public static int Call() => 1.Twice();
                    public static object Make() => new High();
                    public static object Infer() { var all = new List<High>(); return all; }
                    public static string Name() => nameof(High.Count);
                }
                """),
            (Path.Combine(CoreSources.Root, "Proc", "High.cs"),
                """
                namespace Kmem;
                internal sealed class High { public int Count => Low.Call(); }
                internal static class Extensions { public static int Twice(this int value) => 2 * value; }
                """),
        ]);
        Assert.Equal(
            [
                "Lib/Low.cs:5: Twice is in Proc",
                "Lib/Low.cs:6: High is in Proc",
                "Lib/Low.cs:7: High is in Proc",
                "Lib/Low.cs:8: Count is in Proc",
                "Lib/Low.cs:8: High is in Proc",
            ],
            UpwardUses(compilation));
    }

    [Fact]
    public void NoTypeIsUnsafeAsAWhole()
    {
        // A delegate has only its signature: there the word stands where it stands on a member.
        IEnumerable<string> types = CoreSources.Compilation.SyntaxTrees
            .SelectMany(tree => tree.GetRoot().DescendantNodes())
            .OfType<BaseTypeDeclarationSyntax>()
            .Where(type => type.Modifiers.Any(SyntaxKind.UnsafeKeyword))
            .Select(type => $"{CoreSources.LineOf(type)}: {type.Identifier}");
        Assert.Empty(types);
    }

    [Fact]
    public void OnlyPlatformCallsTheOperatingSystem()
    {
        (string Folder, string Line)[] imports = CoreSources.Compilation.SyntaxTrees
            .SelectMany(tree => tree.GetRoot().DescendantNodes())
            .OfType<AttributeSyntax>()
            .Where(attribute => attribute.Name.ToString().Split('.')[^1].Replace("Attribute", "", StringComparison.Ordinal)
                is "DllImport" or "LibraryImport")
            .Select(attribute => (CoreSources.FolderOf(attribute.SyntaxTree.FilePath), CoreSources.LineOf(attribute)))
            .ToArray();
        Assert.NotEmpty(imports);
        Assert.Empty(imports.Where(import => import.Folder != "Platform").Select(import => import.Line));
    }

    [Fact]
    public void TheLibraryNeedsNoPackage()
    {
        XDocument project = XDocument.Load(Path.Combine(CoreSources.Root, "Kmem.csproj"));
        IEnumerable<string?> needed = project.Descendants("PackageReference")
            .Where(reference => (string?)reference.Attribute("PrivateAssets") != "all")
            .Concat(project.Descendants("ProjectReference"))
            .Select(reference => (string?)reference.Attribute("Include"));
        Assert.Empty(needed);
    }

    /// <summary>
    /// "file:line: name is in folder", for each name in code that stands for something further down the list.
    /// </summary>
    private static string[] UpwardUses(CSharpCompilation compilation) =>
        compilation.SyntaxTrees
            .Where(tree => tree.FilePath.Length > 0)
            .SelectMany(tree => UpwardUses(tree, compilation.GetSemanticModel(tree)))
            .Distinct(StringComparer.Ordinal)
            .Order(StringComparer.Ordinal)
            .ToArray();

    private static IEnumerable<string> UpwardUses(SyntaxTree tree, SemanticModel model)
    {
        int own = RankOf(CoreSources.FolderOf(tree.FilePath));
        foreach (SimpleNameSyntax name in tree.GetRoot().DescendantNodes().OfType<SimpleNameSyntax>())
        {
            SymbolInfo info = model.GetSymbolInfo(name);
            ISymbol? symbol = info.Symbol ?? info.CandidateSymbols.FirstOrDefault();
            if (symbol is null or INamespaceSymbol)
                continue;

            (int rank, string folder) = LowestDeclaration(symbol);
            if (rank > own)
                yield return $"{CoreSources.LineOf(name)}: {name.Identifier} is in {(folder == "" ? "the root" : folder)}";
        }
    }

    /// <summary>
    /// Where a symbol is declared; the lowest place, if it has several parts. Rank −1: not in these sources.
    /// </summary>
    private static (int Rank, string Folder) LowestDeclaration(ISymbol symbol)
    {
        if (symbol is IMethodSymbol { ReducedFrom: { } extension })
            symbol = extension;
        return symbol.OriginalDefinition.DeclaringSyntaxReferences
            .Where(reference => reference.SyntaxTree.FilePath.Length > 0)
            .Select(reference => CoreSources.FolderOf(reference.SyntaxTree.FilePath))
            .Select(folder => (RankOf(folder), folder))
            .DefaultIfEmpty((-1, ""))
            .Min();
    }

    private static int RankOf(string folder)
    {
        int rank = Array.IndexOf(s_layers, folder);
        return rank >= 0 ? rank : throw new InvalidOperationException($"{folder} has no place in the order");
    }
}
