using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace Kmem;

/// <summary>
/// RAM on Linux: a sparse memfd, whole in one shared mapping. Because it is a file, a frame can be seen at a second
/// address (<see cref="AddressWindow"/>) and a single frame can be given back.
/// </summary>
/// <remarks>
/// <para>Errors that cannot be return values: touching a frame when the host has no memory left is SIGBUS or the OOM
/// killer's (as for any memory on Linux); the container's limit counts touched frames.</para>
/// <para>Huge pages: who wants them asks for them (MADV_HUGEPAGE), and gets them where the administrator allows them
/// for shared memory (shmem_enabled is advise, always, within_size or force). For everybody else MADV_NOHUGEPAGE is
/// applied where a memfd would get them unasked, because a sparse machine would cost 2 MiB for each touched frame, and
/// releasing one frame of a huge page frees nothing.</para>
/// <para>Fork: the linear map is left out of children (MADV_DONTFORK), because a shared mapping would let a bare
/// fork's child write to this machine. Windows are not: the advice would have to be repeated for each mapping.
/// Starting programs (fork and exec) is safe, the descriptor is close-on-exec.</para>
/// </remarks>
internal sealed class LinuxRam : Ram
{
    private const string Purpose = "simulated RAM";

    private static int s_count;

    /// <summary>A private block splits the mapping around it.</summary>
    private const int MappingsPerBlock = 2;

    private readonly bool[] _private;
    private readonly bool _hugePages;
    private int _privateBlocks;
    private readonly SafeFileHandle _file;
    private readonly Reservation _linearMap;

    private unsafe LinuxRam(string name, SafeFileHandle file, Reservation linearMap, ulong bytes, bool hugePages)
        : base(linearMap.Base, bytes)
    {
        Name = name;
        _private = new bool[(bytes + PrivateBlockBytes - 1) / PrivateBlockBytes];
        _hugePages = hugePages;
        _file = file;
        _linearMap = linearMap;
        Description = $"memfd {name}: {PlatformException.Size(bytes)}, sparse; frames can be released to the host "
            + "and mapped into windows" + (hugePages ? "; huge pages where 2 MiB are free" : "");
    }

    /// <summary>Whether the host gives a memfd huge pages when it is asked.</summary>
    public static bool GivesHugePages => HostInfo.SharedHugePages is "advise" or "always" or "within_size" or "force";

    /// <summary>Shown in /proc/PID/maps as "/memfd:NAME (deleted)"; unique in the process.</summary>
    public string Name { get; }

    public override bool CanRelease => true;

    public override bool CanAlias => true;

    public override string Description { get; }

    /// <summary>
    /// The blocks of the file, touched through whichever mapping. Frames that the host has swapped out count: they
    /// still cost.
    /// </summary>
    public override unsafe ulong ResidentBytes
    {
        get
        {
            ObjectDisposedException.ThrowIf(Base == null, this);
            byte* buffer = stackalloc byte[LibC.StatxSize];
            if (LibC.Statx(_file, LibC.StatxBlocks, buffer) != 0)
                throw PlatformException.Last("statx", 0, Purpose);

            // Blocks are 512 bytes whatever the file system.
            return *(ulong*)(buffer + LibC.StatxBlocksOffset) * 512;
        }
    }

    internal override SafeFileHandle BackingFile => _file;

    /// <inheritdoc cref="Ram.Create"/>
    public static new unsafe LinuxRam Create(ulong bytes, bool hugePages = false)
    {
        CheckSize(bytes);
        string name = $"kmem-ram-{Interlocked.Increment(ref s_count)}";
        SafeFileHandle file = OpenMemfd(name);
        Reservation? linearMap = null;
        try
        {
            while (LibC.Ftruncate(file, (long)bytes) != 0) ThrowUnlessInterrupted("ftruncate", bytes);

            linearMap = Reservation.Create(bytes, Reservation.NaturalAlignment(bytes), Purpose);
            MapAll(file, linearMap.Base, bytes, hugePages);
            return new LinuxRam(name, file, linearMap, bytes, hugePages && GivesHugePages);
        }
        catch (PlatformException)
        {
            linearMap?.Dispose();
            file.Dispose();
            throw;
        }
    }

    internal override int PrivateBlocks => Volatile.Read(ref _privateBlocks);

    internal override unsafe ulong PrivateResidentBytes
    {
        get
        {
            const int Pages = (int)(PrivateBlockBytes / FrameBytes);
            byte* resident = stackalloc byte[Pages];
            ulong frames = 0;
            for (int block = 0; PrivateBlocks > 0 && block < _private.Length; block++)
            {
                byte* start = Base + (ulong)block * PrivateBlockBytes;
                if (!_private[block] || LibC.Mincore(start, (nuint)PrivateBlockBytes, resident) != 0) continue;
                for (int page = 0; page < Pages; page++) frames += resident[page] & 1u;
            }
            return frames * FrameBytes;
        }
    }

    internal override bool IsPrivate(int block) => Volatile.Read(ref _private[block]);

    internal override unsafe bool TryMakePrivate(int block)
    {
        if (_private[block] || !MapBudget.Process.TryTake(MappingsPerBlock)) return false;

        ulong offset = (ulong)block * PrivateBlockBytes;
        ReleaseRun(offset, PrivateBlockBytes);
        int flags = LibC.MapPrivate | LibC.MapAnonymous | LibC.MapFixed | LibC.MapNoReserve;
        byte* at = Base + offset;
        if (LibC.Mmap(at, (nuint)PrivateBlockBytes, LibC.ProtRead | LibC.ProtWrite, flags, -1, 0) == LibC.MapFailed)
        {
            MapBudget.Process.Take(-MappingsPerBlock);
            MapShared(block);       // a refused MAP_FIXED may have removed what was there
            return false;
        }

        // Advice only.
        _ = LibC.Madvise(at, (nuint)PrivateBlockBytes, LibC.MadvDontFork);
        _ = LibC.Madvise(at, (nuint)PrivateBlockBytes, LibC.MadvHugePage);
        Volatile.Write(ref _private[block], true);
        Interlocked.Increment(ref _privateBlocks);
        return true;
    }

    internal override bool TryMakeShared(int block)
    {
        if (!MapShared(block)) return false;

        Volatile.Write(ref _private[block], false);
        Interlocked.Decrement(ref _privateBlocks);
        MapBudget.Process.Take(-MappingsPerBlock);
        return true;
    }

    private unsafe bool MapShared(int block)
    {
        ulong offset = (ulong)block * PrivateBlockBytes;
        byte* at = Base + offset;
        int flags = LibC.MapShared | LibC.MapFixed | LibC.MapNoReserve;
        const int Access = LibC.ProtRead | LibC.ProtWrite;
        if (LibC.Mmap(at, (nuint)PrivateBlockBytes, Access, flags, _file, (long)offset) == LibC.MapFailed)
            return false;

        Advise(at, PrivateBlockBytes, _hugePages);
        return true;
    }

    private protected override void ReleaseRun(ulong offset, ulong bytes)
    {
        while (LibC.Fallocate(_file, LibC.FallocPunchHole | LibC.FallocKeepSize, (long)offset, (long)bytes) != 0)
            ThrowUnlessInterrupted("fallocate", bytes);
    }

    private protected override void Free()
    {
        _linearMap.Dispose();
        _file.Dispose();
        MapBudget.Process.Take(-MappingsPerBlock * _privateBlocks);
        _privateBlocks = 0;
    }

    private static SafeFileHandle OpenMemfd(string name)
    {
        int fd = LibC.MemfdCreate(name, LibC.MfdCloseOnExec | LibC.MfdNoExecSeal);
        if (fd < 0 && Marshal.GetLastPInvokeError() == LibC.Einval)
            fd = LibC.MemfdCreate(name, LibC.MfdCloseOnExec);          // before Linux 6.3
        if (fd < 0) throw PlatformException.Last("memfd_create", 0, Purpose);

        return new SafeFileHandle(fd, ownsHandle: true);
    }

    private static unsafe void MapAll(SafeFileHandle file, byte* at, ulong bytes, bool hugePages)
    {
        // NORESERVE: charge what is touched, never the whole size.
        int flags = LibC.MapShared | LibC.MapFixed | LibC.MapNoReserve;
        if (LibC.Mmap(at, (nuint)bytes, LibC.ProtRead | LibC.ProtWrite, flags, file, 0) == LibC.MapFailed)
            throw PlatformException.Last("mmap", bytes, Purpose);
        if (!Advise(at, bytes, hugePages))
            throw PlatformException.Last("madvise", bytes, Purpose);
    }

    private static unsafe bool Advise(byte* at, ulong bytes, bool hugePages)
    {
        if (LibC.Madvise(at, (nuint)bytes, LibC.MadvDontFork) != 0) return false;

        // Advice only: a kernel without huge pages refuses it and needs none.
        if (hugePages)
            _ = LibC.Madvise(at, (nuint)bytes, LibC.MadvHugePage);
        else if (GivesHugePages)
            _ = LibC.Madvise(at, (nuint)bytes, LibC.MadvNoHugePage);
        return true;
    }

    private static void ThrowUnlessInterrupted(string call, ulong bytes)
    {
        if (Marshal.GetLastPInvokeError() != LibC.Eintr) throw PlatformException.Last(call, bytes, Purpose);
    }
}
