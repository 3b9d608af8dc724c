namespace Kmem.Tests;

/// <summary>Finds recorded files in <c>tests/data/</c> of the repository, wherever the tests run from.</summary>
internal static class TestData
{
    /// <summary>The full path of a file or folder below <c>tests/data/</c>.</summary>
    public static string PathOf(string name)
    {
        for (DirectoryInfo? at = new(AppContext.BaseDirectory); at is not null; at = at.Parent)
        {
            if (File.Exists(Path.Combine(at.FullName, "Kmem.slnx")))
                return Path.Combine(at.FullName, "tests", "data", name);
        }

        throw new DirectoryNotFoundException($"no Kmem.slnx above {AppContext.BaseDirectory}");
    }
}
