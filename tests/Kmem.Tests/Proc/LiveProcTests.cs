namespace Kmem.Tests;

/// <summary>The texts of the kernel that runs the tests; skipped where there is none that prints like Linux 6.18.
/// </summary>
public sealed class LiveProcTests
{
    [Theory]
    [InlineData("/proc/slabinfo")]
    [InlineData("/proc/buddyinfo")]
    [InlineData("/proc/pagetypeinfo")]
    [InlineData("/proc/zoneinfo")]
    [InlineData("/proc/vmstat")]
    [InlineData("/proc/meminfo")]
    public void This_machines_text_is_written_as_it_was_read(string file)
    {
        string text = TryRead(() => File.ReadAllText(file));
        Assert.Equal(text, ProcTexts.Rewrite[file](text));
    }

    [Fact]
    public void This_machines_caches_are_read()
    {
        string[] caches = TryRead(() => Directory.GetDirectories("/sys/kernel/slab"));
        Assert.SkipWhen(caches.Length == 0, "no caches in /sys/kernel/slab");
        foreach (string path in caches.Take(20))
        {
            // Caches come and go, so a directory can vanish between its listing and its reading.
            SlabSysfs cache = TryRead(() => SlabSysfs.ReadDirectory(path));
            Assert.Equal(Path.GetFileName(path), cache.Name);
            Assert.InRange(cache.SlabSize, cache.ObjectSize, uint.MaxValue);
            Assert.InRange(cache.ObjsPerSlab * cache.SlabSize, 1u, 4096u << (int)cache.Order);
        }
    }

    [Fact]
    public void This_machines_memory_map_is_read()
    {
        string text = TryRead(() => File.ReadAllText("/proc/iomem"));
        bool hidden = text.Split('\n').All(line => line.Length == 0 || line.Contains("00000000-00000000 :"));
        Assert.SkipWhen(hidden, "/proc/iomem shows addresses to root only");
        BootMemoryMap map = BootMemoryMap.ParseIomem(text);
        ulong total = MemInfoText.Parse(File.ReadAllText("/proc/meminfo")).Find("MemTotal")!.Value << 10;
        Assert.InRange(total, 0UL, map.MemoryBytes);
    }

    private static T TryRead<T>(Func<T> read)
    {
        bool fits = OperatingSystem.IsLinux() && Environment.OSVersion.Version >= new Version(6, 8);
        Assert.SkipUnless(fits, "not on Linux 6.8 or later");
        try
        {
            return read();
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            Assert.Skip(e.Message);
            throw;
        }
    }
}
