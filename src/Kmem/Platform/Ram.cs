using Microsoft.Win32.SafeHandles;

namespace Kmem;

/// <summary>
/// The physical memory of a machine: frames of 4096 bytes, one after the other, all visible at the linear map (the
/// kernel's direct map). A physical address is an offset into it.
/// <code>
///   frame     0        1        2               n
///         +--------+--------+--------+-----+--------+
///         |  4 KiB |        |        | ... |        |
///         +--------+--------+--------+-----+--------+
///         ^ Base                            ^ Base + n * 4096
/// </code>
/// Frames cost host memory from their first touch (read or write) until <see cref="Release"/>, so a machine may be
/// far larger than its host.
/// </summary>
/// <remarks>
/// There is no finalizer: raw pointers may outlive the last reference to this object, so only <see cref="Dispose"/>
/// unmaps. All members may be called from any thread; who disposes makes sure that nobody else still uses the memory.
/// </remarks>
internal abstract class Ram : IDisposable
{
    /// <summary>Bytes per frame: the kernel's PAGE_SIZE on x86-64, whatever the host's own page size is.</summary>
    public const ulong FrameBytes = 4096;

    private protected unsafe Ram(byte* start, ulong bytes)
    {
        Base = start;
        Bytes = bytes;
    }

    /// <summary>
    /// Frame 0; null after <see cref="Dispose"/>. A multiple of 4 MiB, of 1 GiB when <see cref="Bytes"/> is at least
    /// 1 GiB, so that a naturally aligned block of frames is as aligned as a pointer.
    /// </summary>
    public unsafe byte* Base { get; private set; }

    /// <summary>The size of the machine's memory; a multiple of <see cref="FrameBytes"/>.</summary>
    public ulong Bytes { get; }

    /// <summary>True when <see cref="Release"/> gives memory back to the host; where false it only clears.</summary>
    public abstract bool CanRelease { get; }

    /// <summary>True when frames can be mapped a second time, into an <see cref="AddressWindow"/>.</summary>
    public virtual bool CanAlias => false;

    /// <summary>Bytes of host memory that the frames use now.</summary>
    public abstract ulong ResidentBytes { get; }

    /// <summary>One line for people: what backs the memory, and what that backing cannot do.</summary>
    public abstract string Description { get; }

    /// <summary>The file whose offsets are physical addresses, where <see cref="CanAlias"/>.</summary>
    internal virtual SafeFileHandle? BackingFile => null;

    /// <summary>Bytes of one block that can be private.</summary>
    internal const ulong PrivateBlockBytes = 4UL << 20;

    /// <summary>Blocks that are private at the moment.</summary>
    internal virtual int PrivateBlocks => 0;

    /// <summary>Bytes of host memory that private blocks use; not part of <see cref="ResidentBytes"/>.</summary>
    internal virtual ulong PrivateResidentBytes => 0;

    /// <summary>
    /// Puts private memory under a block of the linear map, in huge pages where the host gives them to who asks: ten
    /// times faster to touch first than memory of a file. It cannot be mapped a second time, and what was in it is
    /// gone.
    /// </summary>
    /// <param name="block">Number of the block; all of its frames are the caller's, and nobody looks at them.</param>
    /// <returns>False if this RAM or the host cannot; nothing has changed.</returns>
    internal virtual bool TryMakePrivate(int block) => false;

    /// <summary>The way back; what was in it is gone.</summary>
    /// <returns>False if the host refuses: the block is still private.</returns>
    internal virtual bool TryMakeShared(int block) => false;

    internal virtual bool IsPrivate(int block) => false;

    /// <summary>Whether any byte of a run lies in a private block.</summary>
    internal bool HasPrivate(ulong offset, ulong bytes)
    {
        if (PrivateBlocks == 0) return false;

        for (ulong block = offset / PrivateBlockBytes; block * PrivateBlockBytes < offset + bytes; block++)
        {
            if (IsPrivate((int)block)) return true;
        }
        return false;
    }

    /// <summary>RAM of the best kind that this system has: a memfd on Linux, private memory elsewhere.</summary>
    /// <param name="bytes">A multiple of 4096, at least 4096.</param>
    /// <param name="hugePages">Ask the host for huge pages, where it has them for shared memory.</param>
    /// <exception cref="ArgumentException">A size that cannot be.</exception>
    /// <exception cref="PlatformException">
    /// The host refuses; the message says which call, and the likely cause.
    /// </exception>
    public static Ram Create(ulong bytes, bool hugePages = false) => HostMemory.CanReserve && HostMemory.IsLinux
        ? LinuxRam.Create(bytes, hugePages)
        : CreatePortable(bytes);

    /// <summary>RAM that any system can give, without windows: see <see cref="PortableRam"/>.</summary>
    /// <inheritdoc cref="Create"/>
    public static Ram CreatePortable(ulong bytes, PrivateBacking backing = PrivateBacking.Auto) =>
        PortableRam.Create(bytes, backing);

    /// <summary>
    /// Gives a run of frames back to the host: they read as zero afterwards and cost memory again when touched. One
    /// call for a long run is far cheaper than many for its frames (about 8.9 µs for one frame alone).
    /// </summary>
    /// <param name="offset">Physical address of the first frame; a multiple of 4096.</param>
    /// <param name="bytes">A multiple of 4096, at least 4096.</param>
    /// <exception cref="ArgumentException">Not whole frames inside this memory; nothing has changed.</exception>
    /// <exception cref="PlatformException">The host refuses.</exception>
    public unsafe void Release(ulong offset, ulong bytes)
    {
        ObjectDisposedException.ThrowIf(Base == null, this);
        CheckRun(offset, bytes, Bytes, "RAM", nameof(offset));
        ReleaseRun(offset, bytes);
    }

    /// <summary>Unmaps and frees everything; pointers into the memory dangle. Twice is fine.</summary>
    public unsafe void Dispose()
    {
        if (Base == null) return;

        Base = null;
        Free();
    }

    /// <summary><see cref="Release"/> with everything checked.</summary>
    private protected abstract void ReleaseRun(ulong offset, ulong bytes);

    /// <summary>Called once.</summary>
    private protected abstract void Free();

    private protected static void CheckSize(ulong bytes)
    {
        if (bytes == 0 || bytes % FrameBytes != 0 || bytes > Reservation.MaxBytes)
        {
            throw new ArgumentOutOfRangeException(
                nameof(bytes), bytes, $"RAM must be a positive multiple of 4096 bytes, at most {Reservation.MaxBytes}");
        }
    }

    /// <summary>The rules for a run of frames, the same in RAM and in windows.</summary>
    internal static void CheckRun(ulong offset, ulong bytes, ulong limit, string where, string parameter)
    {
        if (offset % FrameBytes != 0)
            throw new ArgumentException($"offset 0x{offset:x} is not a multiple of 4096", parameter);
        if (bytes == 0 || bytes % FrameBytes != 0)
            throw new ArgumentException($"{bytes} bytes are not a positive multiple of 4096", nameof(bytes));
        if (bytes > limit || offset > limit - bytes)
        {
            throw new ArgumentOutOfRangeException(
                parameter, $"the run 0x{offset:x} + 0x{bytes:x} is outside the {where} of 0x{limit:x} bytes");
        }
    }
}
