using System.IO.Compression;

namespace Kmem.Tests;

/// <summary>The recorded answers of real kernels in tests/data.</summary>
internal static class TestData
{
    private static readonly string s_directory = Find();

    /// <summary>The path of a file or folder in tests/data.</summary>
    public static string PathOf(string name)
    {
        string path = Path.Combine(s_directory, name);
        return Path.Exists(path) ? path : throw new FileNotFoundException($"no test data {name}", path);
    }

    /// <summary>The text of a .gz file in tests/data.</summary>
    public static string ReadGzip(string name)
    {
        using var reader = new StreamReader(new GZipStream(File.OpenRead(PathOf(name)), CompressionMode.Decompress));
        return reader.ReadToEnd();
    }

    private static string Find()
    {
        DirectoryInfo? at = new(AppContext.BaseDirectory);
        while (at is not null && !File.Exists(Path.Combine(at.FullName, "Kmem.slnx"))) at = at.Parent;
        return Path.Combine(at?.FullName ?? throw new DirectoryNotFoundException("Kmem.slnx"), "tests", "data");
    }
}
