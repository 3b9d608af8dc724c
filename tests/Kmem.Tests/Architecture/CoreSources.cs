using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;

namespace Kmem.Tests;

/// <summary>The sources of src/Kmem, parsed and bound once, for the tests that look at them.</summary>
internal static class CoreSources
{
    /// <summary>The folder src/Kmem.</summary>
    public static string Root { get; } = Repository.PathOf("src/Kmem");

    /// <summary>What the SDK's ImplicitUsings adds to each file.</summary>
    private const string GlobalUsings =
        """
        global using System;
        global using System.Collections.Generic;
        global using System.IO;
        global using System.Linq;
        global using System.Net.Http;
        global using System.Threading;
        global using System.Threading.Tasks;
        """;

    private static readonly CSharpParseOptions s_parseOptions = new(
        LanguageVersion.Latest, preprocessorSymbols: ["DEBUG", "NET", "NET10_0", "NET10_0_OR_GREATER"]);

    private static readonly Lazy<CSharpCompilation> s_compilation = new(
        () => Compile(Directory.EnumerateFiles(Root, "*.cs", SearchOption.AllDirectories)
            .Where(path => !IsBuildOutput(path))
            .Order(StringComparer.Ordinal)
            .Select(path => (path, File.ReadAllText(path)))));

    /// <summary>All files of src/Kmem, bound to this runtime's own assemblies.</summary>
    public static CSharpCompilation Compilation => s_compilation.Value;

    /// <summary>Binds files as if they were src/Kmem.</summary>
    public static CSharpCompilation Compile(IEnumerable<(string Path, string Text)> files)
    {
        IEnumerable<SyntaxTree> trees = files.Append(("", GlobalUsings))
            .Select(file => CSharpSyntaxTree.ParseText(file.Item2, s_parseOptions, file.Item1));
        return CSharpCompilation.Create(
            "Kmem",
            trees,
            Repository.FrameworkReferences,
            new CSharpCompilationOptions(
                OutputKind.DynamicallyLinkedLibrary,
                allowUnsafe: true,
                nullableContextOptions: NullableContextOptions.Enable));
    }

    /// <summary>The folder of a path below src/Kmem, "" for the root itself.</summary>
    public static string FolderOf(string path)
    {
        string relative = Path.GetRelativePath(Root, path).Replace('\\', '/');
        int slash = relative.IndexOf('/', StringComparison.Ordinal);
        return slash < 0 ? "" : relative[..slash];
    }

    /// <summary>"Slub/KmemCache.cs:12" for messages.</summary>
    public static string LineOf(SyntaxNode node)
    {
        string path = Path.GetRelativePath(Root, node.SyntaxTree.FilePath).Replace('\\', '/');
        return $"{path}:{node.GetLocation().GetLineSpan().StartLinePosition.Line + 1}";
    }

    private static bool IsBuildOutput(string path) => FolderOf(path) is "bin" or "obj";
}
