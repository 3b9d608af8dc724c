namespace Kmem.Tests;

/// <summary>Finds the files in tests/data, wherever the tests run from.</summary>
internal static class TestData
{
    private static readonly string s_root = FindRoot();

    /// <summary>The full path of a file in tests/data, named with forward slashes.</summary>
    public static string PathOf(string name) => Path.Combine(s_root, name);

    private static string FindRoot()
    {
        for (DirectoryInfo? folder = new(AppContext.BaseDirectory); folder is not null; folder = folder.Parent)
        {
            if (File.Exists(Path.Combine(folder.FullName, "Kmem.slnx")))
                return Path.Combine(folder.FullName, "tests", "data");
        }
        throw new DirectoryNotFoundException($"No folder above {AppContext.BaseDirectory} has Kmem.slnx.");
    }
}
