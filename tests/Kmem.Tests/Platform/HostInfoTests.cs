using System.Runtime.InteropServices;

namespace Kmem.Tests;

public sealed class HostInfoTests
{
    [Fact]
    public void ThisHostAnswersSensibly()
    {
        Assert.InRange(HostInfo.Cpus, 1, 1 << 16);
        Assert.True(uint.IsPow2(HostInfo.PageBytes) && HostInfo.PageBytes >= 4096);
        Assert.SkipUnless(OperatingSystem.IsLinux(), "the rest comes from /proc");
        Assert.InRange(HostInfo.MaxMapCount ?? -1, 1, int.MaxValue);
        Assert.InRange(HostInfo.OvercommitMode ?? -1, 0, 2);
        Assert.True(HostInfo.MemoryLimit is null or > 1 << 20);
        Assert.Equal(HostInfo.MaxMapCount / 2, MapBudget.Process.Limit);
    }

    /// <summary>Guards the skips of the other tests: they must not hide a system that ought to work.</summary>
    [Fact]
    public void KnownSystemsHaveReservations()
    {
        Assert.SkipUnless(Environment.Is64BitProcess, "32-bit process");
        bool known = RuntimeInformation.ProcessArchitecture is Architecture.X64 or Architecture.Arm64;
        Assert.Equal(OperatingSystem.IsLinux() && known, HostMemory.IsLinux);
        if (HostMemory.IsLinux || OperatingSystem.IsWindows() || OperatingSystem.IsMacOS())
            Assert.True(HostMemory.CanReserve);
    }

    [Theory]
    [InlineData("always [madvise] never\n", "madvise")]
    [InlineData("[always] madvise never", "always")]
    [InlineData("nothing chosen", null)]
    [InlineData("]odd[", null)]
    [InlineData("", null)]
    [InlineData(null, null)]
    public void TheChoiceInBracketsIsTheChoice(string? text, string? expected) =>
        Assert.Equal(expected, HostInfo.Selected(text));

    [Theory]
    [InlineData("Limit  Soft  Hard  Units\nMax address space   unlimited    unlimited    bytes\n", null)]
    [InlineData("Limit  Soft  Hard  Units\nMax address space   8589934592   unlimited    bytes\n", 8UL << 30)]
    [InlineData("Max address space", null)]
    [InlineData(null, null)]
    public void TheAddressSpaceLimitIsTheSoftOne(string? text, ulong? expected) =>
        Assert.Equal(expected, HostInfo.AddressSpaceLimitOf(text));

    [Fact]
    public void TheSmallestCgroupLimitOnTheWayUpCounts()
    {
        using var root = new FakeCgroups();
        root.Write("memory.max", "max");
        root.Write("a/memory.max", "1000000");
        root.Write("a/b/memory.max", "2000000");
        Assert.Equal(1000000UL, HostInfo.CgroupMemoryLimit("0::/a/b\n", root.Path));
        Assert.Equal(1000000UL, HostInfo.CgroupMemoryLimit("0::/a/b/gone\n", root.Path));
        Assert.Null(HostInfo.CgroupMemoryLimit("0::/\n", root.Path));
        Assert.Null(HostInfo.CgroupMemoryLimit("0::/../../other\n", root.Path));
    }

    [Fact]
    public void VersionOneLimitsAreFoundBesideVersionTwo()
    {
        using var root = new FakeCgroups();
        root.Write("memory/memory.limit_in_bytes", "9223372036854771712");     // "no limit"
        root.Write("memory/job/memory.limit_in_bytes", "4194304");
        const string Hybrid = "9:name=systemd:/\n4:memory:/job\n3:cpu,cpuacct:/\n0::/\n";
        Assert.Equal(4194304UL, HostInfo.CgroupMemoryLimit(Hybrid, root.Path));
        Assert.Null(HostInfo.CgroupMemoryLimit("4:memory:/\n", root.Path));

        // A container sees the host's path in the file but its own cgroup at the mount's root.
        root.Write("memory/memory.limit_in_bytes", "8388608");
        Assert.Equal(8388608UL, HostInfo.CgroupMemoryLimit("4:memory:/docker/0123\n", root.Path));
    }

    [Theory]
    [InlineData(null)]
    [InlineData("")]
    [InlineData("garbage\n::\n0:\n")]
    public void NoCgroupsIsNoLimit(string? membership) =>
        Assert.Null(HostInfo.CgroupMemoryLimit(membership, "/nonexistent/cgroup"));

    [Theory]
    [InlineData("memfd_create", 38, "older than 3.17")]
    [InlineData("memfd_create", 13, "vm.memfd_noexec, SELinux")]
    [InlineData("memfd_create", 24, "RLIMIT_NOFILE")]
    [InlineData("ftruncate", 27, "RLIMIT_FSIZE")]
    [InlineData("mmap", 13, "SELinux")]
    [InlineData("mmap", 12, "vm.max_map_count")]
    [InlineData("mmap", 12, "RLIMIT_AS (ulimit -v) allows this process 8 GiB")]
    [InlineData("mmap", 12, "vm.overcommit_memory=2")]
    [InlineData("fallocate", 12, "the container's memory limit (cgroup) is 512 MiB")]
    [InlineData("mmap", 9, "not known")]
    public void ErrorsNameTheSettingThatCausesThem(string call, int error, string cause)
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "errno numbers of Linux");
        var limits = new HostLimits(AddressSpace: 8UL << 30, OvercommitMode: 2, MaxMapCount: 65530, Memory: 512 << 20);
        string text = PlatformException.Text(call, 1UL << 40, error, "simulated RAM", limits);
        string start = $"{call} of 1 TiB (1099511627776 bytes) for simulated RAM failed: E";
        Assert.StartsWith(start, text, StringComparison.Ordinal);
        Assert.Contains(cause, text, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0UL, "0 bytes")]
    [InlineData(1023UL, "1023 bytes")]
    [InlineData(1536UL, "1.5 KiB")]
    [InlineData(1UL << 40, "1 TiB")]
    [InlineData(ulong.MaxValue, "16 EiB")]
    public void SizesAreWrittenAsPeopleSayThem(ulong bytes, string text) =>
        Assert.Equal(text, PlatformException.Size(bytes));

    private sealed class FakeCgroups : IDisposable
    {
        public string Path { get; } = Directory.CreateTempSubdirectory("kmem-cgroup-").FullName;

        public void Write(string file, string content)
        {
            string path = System.IO.Path.Combine(Path, file);
            Directory.CreateDirectory(System.IO.Path.GetDirectoryName(path)!);
            File.WriteAllText(path, content + "\n");
        }

        public void Dispose() => Directory.Delete(Path, recursive: true);
    }
}
