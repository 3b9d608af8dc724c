using System.Runtime.InteropServices;
using System.Runtime.Versioning;

namespace Kmem;

/// <summary>The two calls of Windows that private memory needs.</summary>
[SupportedOSPlatform("windows")]
internal static partial class Kernel32
{
    /// <summary>Pages become usable and zero; charged against the commit limit.</summary>
    public const uint MemCommit = 0x1000;

    /// <summary>Address space only.</summary>
    public const uint MemReserve = 0x2000;

    /// <summary>Pages go back; the address space stays ours.</summary>
    public const uint MemDecommit = 0x4000;

    /// <summary>Pages and address space go back; the size must be 0 and the address that of the reservation.</summary>
    public const uint MemRelease = 0x8000;

    public const uint PageNoAccess = 0x01;
    public const uint PageReadWrite = 0x04;

    [LibraryImport("kernel32", EntryPoint = "VirtualAlloc", SetLastError = true)]
    public static unsafe partial byte* VirtualAlloc(byte* address, nuint size, uint type, uint protection);

    [LibraryImport("kernel32", EntryPoint = "VirtualFree", SetLastError = true)]
    [return: MarshalAs(UnmanagedType.Bool)]
    public static unsafe partial bool VirtualFree(byte* address, nuint size, uint type);
}
