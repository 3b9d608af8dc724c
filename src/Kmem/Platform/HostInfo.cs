using System.Globalization;

namespace Kmem;

/// <summary>
/// What the host lets this process have. Everything that may be absent (other systems, closed containers, old
/// kernels) is nullable and never an error; the numbers are read when asked for, because an administrator may change
/// them.
/// </summary>
internal static class HostInfo
{
    /// <summary>
    /// cgroup v1 writes "no limit" as the largest page-aligned signed number; anything near it is no limit.
    /// </summary>
    private const ulong CgroupV1Unlimited = 1UL << 62;

    /// <summary>CPUs this process may run on: affinity and the container's CPU quota already applied.</summary>
    public static int Cpus => Environment.ProcessorCount;

    /// <summary>Bytes per page of the host: 4096, or 16384 or 65536 on some arm64 systems.</summary>
    public static uint PageBytes { get; } = (uint)Environment.SystemPageSize;

    /// <summary>Most mappings a process may have (sysctl vm.max_map_count).</summary>
    public static int? MaxMapCount => ReadNumber("/proc/sys/vm/max_map_count") is { } count and <= int.MaxValue
        ? (int)count
        : null;

    /// <summary>sysctl vm.overcommit_memory: 0 heuristic, 1 always, 2 strict (MAP_NORESERVE is then ignored).</summary>
    public static int? OvercommitMode => (int?)ReadNumber("/proc/sys/vm/overcommit_memory");

    /// <summary>Transparent huge pages for anonymous memory: always, madvise or never.</summary>
    public static string? HugePages => Selected(ReadText("/sys/kernel/mm/transparent_hugepage/enabled"));

    /// <summary>Transparent huge pages for memfd: always, within_size, advise, never, deny or force.</summary>
    public static string? SharedHugePages => Selected(ReadText("/sys/kernel/mm/transparent_hugepage/shmem_enabled"));

    /// <summary>Bytes that the container (or any cgroup above it) may use; null without a limit.</summary>
    public static ulong? MemoryLimit => CgroupMemoryLimit(ReadText("/proc/self/cgroup"), "/sys/fs/cgroup");

    /// <summary>Bytes of address space that this process may have (RLIMIT_AS); null without a limit.</summary>
    public static ulong? AddressSpaceLimit => AddressSpaceLimitOf(ReadText("/proc/self/limits"));

    /// <summary>
    /// The smallest memory limit from this process's cgroup up to the root of the hierarchy it can see.
    /// </summary>
    /// <param name="membership">The text of /proc/self/cgroup: lines "id:controllers:path".</param>
    /// <param name="root">Where the cgroup file systems are mounted.</param>
    internal static ulong? CgroupMemoryLimit(string? membership, string root)
    {
        ulong? limit = null;
        foreach (string line in (membership ?? "").Split('\n', StringSplitOptions.RemoveEmptyEntries))
        {
            string[] field = line.Split(':', 3);
            if (field.Length != 3) continue;

            if (field[0] is "0" && field[1].Length == 0)
            {
                // v2; beside v1 controllers ("hybrid") it is mounted one level down and has no memory controller.
                limit = Least(limit, LimitUpwards(root, field[2], "memory.max"));
            }
            else if (Array.IndexOf(field[1].Split(','), "memory") >= 0)
            {
                limit = Least(limit, LimitUpwards(Path.Combine(root, "memory"), field[2], "memory.limit_in_bytes"));
            }
        }

        return limit;
    }

    /// <summary>The soft limit in the line "Max address space" of /proc/self/limits.</summary>
    internal static ulong? AddressSpaceLimitOf(string? limits)
    {
        const string Name = "Max address space";
        foreach (string line in (limits ?? "").Split('\n'))
        {
            if (!line.StartsWith(Name, StringComparison.Ordinal)) continue;

            string soft = line[Name.Length..].Split(' ', StringSplitOptions.RemoveEmptyEntries).FirstOrDefault("");
            return ParseNumber(soft);
        }

        return null;
    }

    /// <summary>The choice in brackets: "always [madvise] never" is "madvise".</summary>
    internal static string? Selected(string? choices)
    {
        if (choices is null) return null;

        int open = choices.IndexOf('[', StringComparison.Ordinal);
        int close = choices.IndexOf(']', StringComparison.Ordinal);
        return open >= 0 && close > open ? choices[(open + 1)..close] : null;
    }

    /// <summary>
    /// Inside a container the path may be the host's while the mount shows only the container's own cgroup; the file
    /// is then at the root of the mount, where the climb ends anyway.
    /// </summary>
    private static ulong? LimitUpwards(string mount, string path, string file)
    {
        string[] names = path.Split('/', StringSplitOptions.RemoveEmptyEntries);
        if (Array.IndexOf(names, "..") >= 0) names = [];      // outside our cgroup namespace: only the root is visible

        ulong? limit = null;
        for (int depth = names.Length; depth >= 0; depth--)
            limit = Least(limit, ReadNumber(Path.Combine([mount, .. names[..depth], file])));

        return limit < CgroupV1Unlimited ? limit : null;
    }

    private static ulong? Least(ulong? a, ulong? b) => a is null ? b : b is null ? a : Math.Min(a.Value, b.Value);

    private static ulong? ReadNumber(string path) => ParseNumber(ReadText(path));

    /// <summary>null for anything that is not a plain number: "max", "unlimited", nothing.</summary>
    private static ulong? ParseNumber(string? text) =>
        ulong.TryParse(text?.Trim(), NumberStyles.None, CultureInfo.InvariantCulture, out ulong n) ? n : null;

    private static string? ReadText(string path)
    {
        try
        {
            return File.ReadAllText(path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or NotSupportedException)
        {
            return null;
        }
    }
}
