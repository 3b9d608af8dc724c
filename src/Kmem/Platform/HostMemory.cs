using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// Private memory of this process in the host's own terms, one vocabulary over Linux, macOS, FreeBSD and Windows:
/// <code>
///   Reserve ──► address space, faults ──CommitZero──► zero pages, host memory on first touch
///                                          ▲                │
///                                          └── Discard ◄────┘      Free: the whole reservation goes
/// </code>
/// Only for addresses inside a reservation made here; nothing else may be replaced.
/// </summary>
internal static class HostMemory
{
    /// <summary>The Linux architectures whose constants are in <see cref="LibC"/>.</summary>
    public static bool IsLinux { get; } = OperatingSystem.IsLinux()
        && RuntimeInformation.ProcessArchitecture is Architecture.X64 or Architecture.Arm64;

    /// <summary>
    /// True where reservations work; elsewhere only the C heap is left (32-bit processes, other systems).
    /// </summary>
    public static bool CanReserve => Environment.Is64BitProcess
        && (IsLinux || OperatingSystem.IsMacOS() || OperatingSystem.IsFreeBSD() || OperatingSystem.IsWindows());

    private static string ReserveCall => OperatingSystem.IsWindows() ? "VirtualAlloc" : "mmap";

    /// <summary>
    /// Address space that faults when touched; null when the host refuses (see the last P/Invoke error).
    /// </summary>
    public static unsafe byte* TryReserve(ulong bytes)
    {
        if (OperatingSystem.IsWindows())
            return Kernel32.VirtualAlloc(null, (nuint)bytes, Kernel32.MemReserve, Kernel32.PageNoAccess);

        int flags = LibC.MapPrivate | LibC.MapAnonymous | LibC.MapNoReserve;
        byte* at = LibC.Mmap(null, (nuint)bytes, LibC.ProtNone, flags, -1, 0);
        return at == LibC.MapFailed ? null : at;
    }

    /// <summary>The error of the last failed <see cref="TryReserve"/>.</summary>
    public static PlatformException ReserveError(ulong bytes, string purpose) =>
        PlatformException.Last(ReserveCall, bytes, purpose);

    /// <summary>
    /// Makes pages of a reservation readable, writable and zero; the host gives memory when they are touched.
    /// </summary>
    /// <exception cref="PlatformException">The host refuses the size.</exception>
    public static unsafe void CommitZero(byte* at, ulong bytes, string purpose)
    {
        if (OperatingSystem.IsWindows())
        {
            if (Kernel32.VirtualAlloc(at, (nuint)bytes, Kernel32.MemCommit, Kernel32.PageReadWrite) == null)
                throw PlatformException.Last("VirtualAlloc", bytes, purpose);
            return;
        }

        int flags = LibC.MapPrivate | LibC.MapAnonymous | LibC.MapNoReserve | LibC.MapFixed;
        if (LibC.Mmap(at, (nuint)bytes, LibC.ProtRead | LibC.ProtWrite, flags, -1, 0) == LibC.MapFailed)
            throw PlatformException.Last("mmap", bytes, purpose);

        // Advice only: a kernel built without huge pages answers EINVAL, and then there is nothing to prevent.
        if (IsLinux) _ = LibC.Madvise(at, (nuint)bytes, LibC.MadvNoHugePage);
    }

    /// <summary>What mmap and mprotect are told.</summary>
    public static int AccessOf(WindowProtection protection) => protection switch
    {
        WindowProtection.ReadWrite => LibC.ProtRead | LibC.ProtWrite,
        WindowProtection.ReadOnly => LibC.ProtRead,
        WindowProtection.ReadExecute => LibC.ProtRead | LibC.ProtExec,
        _ => LibC.ProtNone,
    };

    /// <summary>Whether the last call failed because a security module forbids what was asked for.</summary>
    public static bool WasForbidden() => Marshal.GetLastPInvokeError() is LibC.Eacces or LibC.Eperm;

    /// <summary>Changes what mapped pages allow; Linux only.</summary>
    /// <returns>False if the host has no mappings or memory left: nothing has changed.</returns>
    /// <exception cref="PlatformException">The host refuses for any other reason.</exception>
    public static unsafe bool TryProtect(byte* at, ulong bytes, WindowProtection protection, string purpose)
    {
        int result = LibC.Mprotect(at, (nuint)bytes, AccessOf(protection));
        if (result != 0 && protection == WindowProtection.ReadExecute && WasForbidden())
            result = LibC.Mprotect(at, (nuint)bytes, LibC.ProtRead);
        if (result == 0)
            return true;

        int error = Marshal.GetLastPInvokeError();
        if (error == LibC.Enomem || error == LibC.Eagain)
            return false;
        throw new PlatformException("mprotect", bytes, error, purpose);
    }

    /// <summary>
    /// Gives the host's memory behind committed pages back; they read as zero afterwards. Host pages that are only
    /// partly in the run (hosts with 16 or 64 KiB pages) are cleared by hand and stay.
    /// </summary>
    public static unsafe void Discard(byte* at, ulong bytes, string purpose)
    {
        (ulong head, ulong whole, ulong tail) = SplitRun((ulong)at, bytes, HostInfo.PageBytes);
        NativeMemory.Clear(at, (nuint)head);
        NativeMemory.Clear(at + head + whole, (nuint)tail);
        if (whole == 0) return;

        byte* inner = at + head;
        if (IsLinux)
        {
            if (LibC.Madvise(inner, (nuint)whole, LibC.MadvDontNeed) != 0)
                throw PlatformException.Last("madvise", whole, purpose);
        }
        else
        {
            // The BSDs' MADV_DONTNEED and MADV_FREE do not promise zeros; fresh pages on top do, on every system.
            if (OperatingSystem.IsWindows() && !Kernel32.VirtualFree(inner, (nuint)whole, Kernel32.MemDecommit))
                throw PlatformException.Last("VirtualFree", whole, purpose);
            CommitZero(inner, whole, purpose);
        }
    }

    /// <summary>
    /// Cuts a run into a partial host page, whole host pages, and a partial host page. A run inside one host page is
    /// all head.
    /// </summary>
    internal static (ulong Head, ulong Whole, ulong Tail) SplitRun(ulong start, ulong bytes, ulong hostPage)
    {
        ulong end = start + bytes;
        ulong firstWhole = (start + hostPage - 1) & ~(hostPage - 1);
        ulong endWhole = end & ~(hostPage - 1);
        return firstWhole < endWhole
            ? (firstWhole - start, endWhole - firstWhole, end - endWhole)
            : (bytes, 0, 0);
    }

    /// <summary>Gives a whole reservation back.</summary>
    public static unsafe void Free(byte* at, ulong bytes, string purpose)
    {
        if (OperatingSystem.IsWindows())
        {
            if (!Kernel32.VirtualFree(at, 0, Kernel32.MemRelease))
                throw PlatformException.Last("VirtualFree", bytes, purpose);
        }
        else if (LibC.Munmap(at, (nuint)bytes) != 0)
        {
            throw PlatformException.Last("munmap", bytes, purpose);
        }
    }

    /// <summary>
    /// Bytes of a committed run that are in the host's memory now; swapped pages do not count. Windows charges
    /// committed pages whether touched or not, so there it is the whole run. O(pages): for reports, not for hot paths.
    /// </summary>
    public static unsafe ulong Resident(byte* at, ulong bytes)
    {
        if (OperatingSystem.IsWindows()) return bytes;

        const int Batch = 4096;
        byte* state = stackalloc byte[Batch];
        ulong page = HostInfo.PageBytes, pages = 0, total = (bytes + page - 1) / page;
        for (ulong done = 0; done < total; done += Batch)
        {
            int count = (int)Math.Min(Batch, total - done);
            if (LibC.Mincore(at + done * page, (nuint)((ulong)count * page), state) != 0)
                throw PlatformException.Last("mincore", bytes, "counting resident pages");

            // Bit 0 is "in memory"; macOS and FreeBSD use the others for more.
            foreach (byte s in new ReadOnlySpan<byte>(state, count)) pages += s & 1u;
        }

        return pages * page;
    }
}
