using Microsoft.CodeAnalysis;

namespace Kmem.Tests;

/// <summary>Files of this repository, and what its code is compiled against.</summary>
internal static class Repository
{
    private static readonly Lazy<IReadOnlyList<MetadataReference>> s_framework = new(ReadFramework);

    /// <summary>The folder that has Kmem.slnx.</summary>
    public static string Root { get; } = Find();

    /// <summary>The assemblies of the runtime that runs the tests.</summary>
    public static IReadOnlyList<MetadataReference> FrameworkReferences => s_framework.Value;

    /// <summary>A file or folder by its path from the root.</summary>
    public static string PathOf(string relative) => Path.Combine(Root, relative);

    private static string Find()
    {
        DirectoryInfo? at = new(AppContext.BaseDirectory);
        while (at is not null && !File.Exists(Path.Combine(at.FullName, "Kmem.slnx"))) at = at.Parent;
        return at?.FullName ?? throw new DirectoryNotFoundException("Kmem.slnx");
    }

    private static MetadataReference[] ReadFramework()
    {
        // The trusted assemblies are those of the runtime and those beside the tests; only the former are wanted.
        string runtime = Path.GetDirectoryName(typeof(object).Assembly.Location)!;
        var trusted = (string)AppContext.GetData("TRUSTED_PLATFORM_ASSEMBLIES")!;
        return trusted.Split(Path.PathSeparator)
            .Where(path => Path.GetDirectoryName(path) == runtime)
            .Select(path => MetadataReference.CreateFromFile(path))
            .ToArray();
    }
}
