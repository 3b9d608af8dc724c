using System.Globalization;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// The host refused a call that Kmem needs. The message names the call, the size, the error and the likely cause, in
/// the words of the setting that an administrator would change.
/// </summary>
public sealed class PlatformException : IOException
{
    internal PlatformException(string call, ulong bytes, int error, string purpose)
        : base(Text(call, bytes, error, purpose, HostLimits.Read()))
    {
        Call = call;
        Bytes = bytes;
        Error = error;
    }

    /// <summary>The call that failed: "mmap", "memfd_create", "VirtualAlloc" …</summary>
    public string Call { get; }

    /// <summary>The size that was asked for, in bytes; 0 where the call has none.</summary>
    public ulong Bytes { get; }

    /// <summary>The host's error number: errno, or GetLastError on Windows.</summary>
    public int Error { get; }

    /// <summary>The failure of the P/Invoke that has just returned.</summary>
    internal static PlatformException Last(string call, ulong bytes, string purpose) =>
        new(call, bytes, Marshal.GetLastPInvokeError(), purpose);

    /// <summary>A size as people write it: "1 TiB", "1.5 GiB", "12 KiB", "100 bytes".</summary>
    internal static string Size(ulong bytes)
    {
        ReadOnlySpan<string> units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        int unit = 0;
        double value = bytes;
        for (; value >= 1024 && unit < units.Length - 1; unit++) value /= 1024;
        return string.Create(CultureInfo.InvariantCulture, $"{value:0.##} {units[unit]}");
    }

    internal static string Text(string call, ulong bytes, int error, string purpose, in HostLimits limits)
    {
        string size = bytes == 0 ? "" : $" of {Size(bytes)} ({bytes} bytes)";
        string reason = $"{ErrorName(error)} ({error}: {Marshal.GetPInvokeErrorMessage(error)})";
        return $"{call}{size} for {purpose} failed: {reason}. Likely cause: {Cause(call, bytes, error, limits)}.";
    }

    private static string Cause(string call, ulong bytes, int error, in HostLimits limits)
    {
        if (OperatingSystem.IsWindows())
            return "not enough address space or commit charge (page file too small, or a job object's memory limit)";

        return (call, ErrorName(error)) switch
        {
            ("memfd_create", "ENOSYS") => "the kernel is older than 3.17, or a seccomp filter hides memfd_create",
            ("memfd_create", "EACCES" or "EPERM") =>
                "sysctl vm.memfd_noexec, SELinux or a seccomp filter forbids memfd_create",
            (_, "EMFILE") => "this process has no free file descriptor (RLIMIT_NOFILE, ulimit -n)",
            (_, "ENFILE") => "the system has no free file descriptor (sysctl fs.file-max)",
            ("ftruncate", "EFBIG") => "the size is above RLIMIT_FSIZE (ulimit -f) or above the largest tmpfs file",
            ("statx" or "fallocate", "ENOSYS" or "EPERM") => "a seccomp filter of the container forbids this call",
            ("mmap", "EACCES" or "EPERM") => "SELinux or another security module forbids this mapping",
            (_, "EAGAIN") => "memory is locked by default here (mlockall) and RLIMIT_MEMLOCK is used up",
            (_, "ENOMEM" or "ENOSPC") => MemoryCause(bytes, limits),
            _ => "not known; this combination of call and error was not expected",
        };
    }

    private static string MemoryCause(ulong bytes, in HostLimits limits)
    {
        List<string> causes = [];
        if (bytes >= 1UL << 47)
            causes.Add("a process has only 128 TiB of address space");
        if (limits.AddressSpace is { } addressSpace)
            causes.Add($"RLIMIT_AS (ulimit -v) allows this process {Size(addressSpace)} of address space");
        if (limits.OvercommitMode == 2)
            causes.Add("vm.overcommit_memory=2 charges memory when it is reserved, not when it is touched");
        if (limits.Memory is { } memory && bytes > memory)
            causes.Add($"the container's memory limit (cgroup) is {Size(memory)}");
        causes.Add(limits.MaxMapCount is { } maps
            ? $"the process has used up its {maps} mappings (sysctl vm.max_map_count) or has no free range of this size"
            : "the process has no free range of this size");
        return string.Join("; or ", causes);
    }

    /// <summary>The symbolic name; on Windows the number alone says it, the message follows it.</summary>
    internal static string ErrorName(int error)
    {
        if (OperatingSystem.IsWindows()) return "error";

        bool linux = OperatingSystem.IsLinux();
        return error switch
        {
            1 => "EPERM",
            2 => "ENOENT",
            4 => "EINTR",
            9 => "EBADF",
            11 when linux => "EAGAIN",
            35 when !linux => "EAGAIN",
            12 => "ENOMEM",
            13 => "EACCES",
            14 => "EFAULT",
            17 => "EEXIST",
            19 => "ENODEV",
            22 => "EINVAL",
            23 => "ENFILE",
            24 => "EMFILE",
            27 => "EFBIG",
            28 => "ENOSPC",
            38 when linux => "ENOSYS",
            78 when !linux => "ENOSYS",
            75 when linux => "EOVERFLOW",
            95 when linux => "EOPNOTSUPP",
            _ => "errno",
        };
    }
}

/// <summary>
/// The settings that decide how much memory a process may reserve; null where the host has no such limit.
/// </summary>
internal readonly record struct HostLimits(ulong? AddressSpace, int? OvercommitMode, int? MaxMapCount, ulong? Memory)
{
    public static HostLimits Read() =>
        new(HostInfo.AddressSpaceLimit, HostInfo.OvercommitMode, HostInfo.MaxMapCount, HostInfo.MemoryLimit);
}
