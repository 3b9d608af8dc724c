using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace Kmem;

/// <summary>
/// The C library calls that Kmem needs, without any structure: numbers, pointers and handles only, so there is no
/// layout to get wrong. The constants hold for 64-bit x86 and arm Linux (which agree except where a member says
/// otherwise) and, where a property asks, for macOS and FreeBSD.
/// </summary>
internal static partial class LibC
{
    /// <summary>
    /// Address space that is ours but faults when touched: reservations, guards, unmapped window pages.
    /// </summary>
    public const int ProtNone = 0;
    public const int ProtRead = 1;
    public const int ProtWrite = 2;

    /// <summary>Text of modules: never together with <see cref="ProtWrite"/>.</summary>
    public const int ProtExec = 4;

    /// <summary>Frames of RAM: every mapping of the memfd must see the same bytes.</summary>
    public const int MapShared = 0x01;

    /// <summary>Metadata and reservations: nobody else may see them.</summary>
    public const int MapPrivate = 0x02;

    /// <summary>Replaces what is at the address. Only ever used inside a reservation of our own.</summary>
    public const int MapFixed = 0x10;

    /// <summary>
    /// Linux 4.17: like <see cref="MapFixed"/> but refuses to replace. Puts a lost piece of a reservation back
    /// without the danger of overwriting what moved in. Older kernels take the address as a hint, so the answer has
    /// to be compared.
    /// </summary>
    public const int MapFixedNoReplace = 0x100000;

    /// <summary>All pages of the mapping are entered at once: a fifth of what a fault for each costs.</summary>
    public const int MapPopulate = 0x8000;

    /// <summary>Discards private anonymous pages at once; they read as zero afterwards (on Linux only).</summary>
    public const int MadvDontNeed = 4;

    /// <summary>A child made by a bare fork must not write to this machine's RAM: leave the range out of it.</summary>
    public const int MadvDontFork = 10;

    /// <summary>Huge pages where the host has them for such memory.</summary>
    public const int MadvHugePage = 14;

    /// <summary>Touching one page of a sparse range must make one page resident, not 2 MiB.</summary>
    public const int MadvNoHugePage = 15;

    /// <summary>The RAM is this process's business: programs started by it must not inherit the descriptor.</summary>
    public const uint MfdCloseOnExec = 0x1;

    /// <summary>
    /// Linux 6.3: never executable. With sysctl <c>vm.memfd_noexec=2</c> a memfd without it is refused; without the
    /// sysctl its absence is a line in the kernel log. Older kernels answer EINVAL.
    /// </summary>
    public const uint MfdNoExecSeal = 0x8;

    /// <summary>Punching a hole must not shorten the file: frame n stays at offset n × 4096.</summary>
    public const int FallocKeepSize = 0x1;

    /// <summary>Frees the frames of the run; the hole reads as zero.</summary>
    public const int FallocPunchHole = 0x2;

    /// <summary>statx on the descriptor itself (with an empty path).</summary>
    public const int AtEmptyPath = 0x1000;

    /// <summary>Only the number of 512-byte blocks is wanted.</summary>
    public const uint StatxBlocks = 0x400;

    /// <summary>
    /// The size of struct statx: fixed by the kernel's ABI on every architecture, unlike struct stat.
    /// </summary>
    public const int StatxSize = 256;

    /// <summary>Where stx_blocks lies in struct statx.</summary>
    public const int StatxBlocksOffset = 48;

    /// <summary>Refusals of a security module: no executable memory, for instance.</summary>
    public const int Eperm = 1;
    public const int Eacces = 13;

    public const int Eintr = 4;
    public const int Enomem = 12;
    public const int Einval = 22;

    /// <summary>EAGAIN is 11 on Linux, 35 on the BSDs; mmap gives it when locked memory is exhausted.</summary>
    public static int Eagain => OperatingSystem.IsLinux() ? 11 : 35;

    /// <summary>Memory without a file: 0x20 on Linux, 0x1000 on the BSDs.</summary>
    public static int MapAnonymous => OperatingSystem.IsLinux() ? 0x20 : 0x1000;

    /// <summary>
    /// No commit charge for what is only reserved (overcommit modes 0 and 1). 0x4000 on Linux, 0x40 on macOS; FreeBSD
    /// has no such flag and never charges.
    /// </summary>
    public static int MapNoReserve => OperatingSystem.IsLinux() ? 0x4000 : OperatingSystem.IsMacOS() ? 0x40 : 0;

    /// <summary>
    /// statx has a wrapper only from glibc 2.28 and musl 1.2.5 on, so the system call is named by number:
    /// 332 on x86-64, 291 on arm64.
    /// </summary>
    private static nint StatxNumber => RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 291 : 332;

    /// <summary>The result of mmap when it fails (MAP_FAILED).</summary>
    public static unsafe byte* MapFailed => (byte*)-1;

    [LibraryImport("libc", EntryPoint = "mmap", SetLastError = true)]
    public static unsafe partial byte* Mmap(
        byte* address, nuint length, int protection, int flags, int fd, long offset);

    [LibraryImport("libc", EntryPoint = "mmap", SetLastError = true)]
    public static unsafe partial byte* Mmap(
        byte* address, nuint length, int protection, int flags, SafeFileHandle file, long offset);

    [LibraryImport("libc", EntryPoint = "munmap", SetLastError = true)]
    public static unsafe partial int Munmap(byte* address, nuint length);

    [LibraryImport("libc", EntryPoint = "madvise", SetLastError = true)]
    public static unsafe partial int Madvise(byte* address, nuint length, int advice);

    [LibraryImport("libc", EntryPoint = "mprotect", SetLastError = true)]
    public static unsafe partial int Mprotect(byte* address, nuint length, int protection);

    [LibraryImport("libc", EntryPoint = "mincore", SetLastError = true)]
    public static unsafe partial int Mincore(byte* address, nuint length, byte* resident);

    [LibraryImport("libc", EntryPoint = "memfd_create", SetLastError = true)]
    public static partial int MemfdCreate([MarshalAs(UnmanagedType.LPUTF8Str)] string name, uint flags);

    [LibraryImport("libc", EntryPoint = "ftruncate", SetLastError = true)]
    public static partial int Ftruncate(SafeFileHandle file, long length);

    [LibraryImport("libc", EntryPoint = "fallocate", SetLastError = true)]
    public static partial int Fallocate(SafeFileHandle file, int mode, long offset, long length);

    /// <summary>Fills <see cref="StatxSize"/> bytes at <paramref name="buffer"/>; 0 or −1 and the error.</summary>
    public static unsafe nint Statx(SafeFileHandle file, uint mask, byte* buffer)
    {
        byte emptyPath = 0;
        return Syscall(StatxNumber, file, &emptyPath, AtEmptyPath, mask, buffer);
    }

    // syscall is variadic; on Linux x86-64 and arm64 integers and pointers travel in the same registers either way.
    [LibraryImport("libc", EntryPoint = "syscall", SetLastError = true)]
    private static unsafe partial nint Syscall(
        nint number, SafeFileHandle file, byte* path, nint flags, nuint mask, byte* buffer);
}
