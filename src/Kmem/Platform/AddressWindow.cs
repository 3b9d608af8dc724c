using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>What came of a change to a window; anything but <see cref="Done"/> changed nothing.</summary>
internal enum WindowResult
{
    Done,

    /// <summary>
    /// Our own budget of mappings is used up: unmap lazily freed areas and try again, or fail the allocation.
    /// </summary>
    BudgetReached,

    /// <summary>The host refused (ENOMEM, EAGAIN): its mapping limit, or memory for the mapping itself.</summary>
    HostLimit,
}

/// <summary>What the mapped pages allow.</summary>
internal enum WindowProtection
{
    ReadWrite,
    ReadOnly,

    /// <summary>Text: may be run and read. A host that forbids that gives <see cref="ReadOnly"/>.</summary>
    ReadExecute,

    /// <summary>Every access faults.</summary>
    None,
}

/// <summary>
/// A range of addresses into which runs of RAM frames are mapped: the ground under vmalloc. A frame is visible at the
/// linear map and here, and both see the same bytes; everything not mapped faults.
/// <code>
///   RAM (linear map)   | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | ...
///                            \   \   \       |
///   window         ....#######| 1 | 2 | 3 |##| 5 |##########....     # faults
///                             ^ boundary  ^  ^   ^
/// </code>
/// The kernel's addresses stay numbers; window offset = va − VMALLOC_START, pointer = <see cref="Base"/> + offset.
/// </summary>
/// <remarks>
/// Each run is one mapping of the host (about 3.4 µs, however long it is), so callers join adjacent frames before
/// they call, and unmap in long ranges. All members may be called from any thread; a lock orders them, because the
/// count of mappings has to follow what the host did.
/// </remarks>
internal sealed class AddressWindow : IDisposable
{
    private const string Purpose = "the vmalloc window";

    private const ulong SmallestUseful = 1UL << 30;

    private readonly Ram _ram;
    private readonly MapBudget _budget;
    private readonly Reservation _range;
    private readonly Lock _gate = new();

    /// <summary>Pages that show a frame.</summary>
    private readonly PageBits _mapped;

    /// <summary>
    /// Pages at which a host mapping begins: bit p says that page p belongs to another mapping than page p − 1
    /// (faulting pages count as one mapping per gap). The bit behind the last page stands for the guard that follows.
    /// </summary>
    private readonly PageBits _boundaries;

    private int _boundaryCount;
    private int _hostCallsUntilFailure;
    private bool _disposed;

    private unsafe AddressWindow(Ram ram, MapBudget budget, Reservation range, ulong asked)
    {
        _ram = ram;
        _budget = budget;
        _range = range;
        Base = range.Base;
        Bytes = range.Bytes;
        Description = $"window of {PlatformException.Size(Bytes)}";
        if (asked != Bytes) Description += $"; the host has no free range of {PlatformException.Size(asked)}";
        ulong pages = Bytes / Ram.FrameBytes;
        _mapped = new PageBits(pages);
        try
        {
            _boundaries = new PageBits(pages + 1);
        }
        catch
        {
            _mapped.Dispose();
            throw;
        }

        budget.Take(1);
    }

    /// <summary>
    /// The address of window offset 0, as aligned as <see cref="Ram.Base"/>; null after <see cref="Dispose"/>.
    /// </summary>
    public unsafe byte* Base { get; private set; }

    /// <summary>The size that the host gave, which may be less than was asked for.</summary>
    public ulong Bytes { get; }

    /// <summary>One line for people, with the reason if the window is smaller than was asked for.</summary>
    public string Description { get; }

    /// <summary>
    /// Host mappings that this window uses: never less than the truth. Neighbours that continue each other in RAM are
    /// merged by the kernel but count as two here when they came by two calls.
    /// </summary>
    public int MapCount
    {
        get
        {
            lock (_gate) return _disposed ? 0 : 1 + _boundaryCount;
        }
    }

    /// <summary>Null when windows over this RAM work, else the reason why not.</summary>
    public static string? WhyUnsupported(Ram ram)
    {
        if (!ram.CanAlias)
            return $"this RAM cannot be mapped a second time ({ram.Description})";

        return HostInfo.PageBytes != Ram.FrameBytes
            ? $"the host maps pages of {HostInfo.PageBytes} bytes, a frame has 4096"
            : null;
    }

    /// <summary>
    /// Reserves a window. When the host has no range of this size, halves it until there is one, down to
    /// <paramref name="atLeast"/>; <see cref="Bytes"/> and <see cref="Description"/> tell.
    /// </summary>
    /// <param name="bytes">A multiple of 4096; 32 TiB is the kernel's vmalloc space with 4 levels.</param>
    /// <param name="ram">Whose frames will be mapped. The window may outlive it, but then maps nothing new.</param>
    /// <param name="atLeast">The smallest acceptable size; by default 1 GiB, or all if less is asked for.</param>
    /// <param name="budget">Mappings it may use; by default shared with all windows of the process.</param>
    /// <exception cref="PlatformNotSupportedException">See <see cref="WhyUnsupported"/>.</exception>
    /// <exception cref="PlatformException">Not even <paramref name="atLeast"/> bytes are free.</exception>
    public static AddressWindow Reserve(ulong bytes, Ram ram, ulong? atLeast = null, MapBudget? budget = null)
    {
        if (bytes == 0 || bytes % Ram.FrameBytes != 0 || bytes > Reservation.MaxBytes)
        {
            throw new ArgumentOutOfRangeException(
                nameof(bytes),
                bytes,
                $"a window must be a positive multiple of 4096 bytes, at most {Reservation.MaxBytes}");
        }

        if (WhyUnsupported(ram) is { } reason) throw new PlatformNotSupportedException("no address window: " + reason);

        ulong smallest = Math.Min(bytes, atLeast ?? SmallestUseful);
        ulong size = bytes;
        for (; ; size = size / 2 / Ram.FrameBytes * Ram.FrameBytes)
        {
            Reservation? range = Reservation.TryCreate(size, Reservation.NaturalAlignment(size), Purpose);
            if (range is not null) return Create(ram, budget ?? MapBudget.Process, range, bytes);
            if (size / 2 < smallest || size / 2 < Ram.FrameBytes) throw HostMemory.ReserveError(size, Purpose);
        }
    }

    /// <summary>Shows a run of frames at a run of unmapped window pages, in one host mapping.</summary>
    /// <param name="windowOffset">Where; a multiple of 4096.</param>
    /// <param name="ramOffset">First byte of the memory to show; a multiple of 4096.</param>
    /// <param name="bytes">A multiple of 4096.</param>
    /// <param name="protection">What the pages allow.</param>
    /// <param name="source">Whose frames, if not the machine's RAM: a device's memory.</param>
    /// <param name="populate">
    /// The host looks the frames up now, in one go, and not by a fault for each page: good for who touches them all.
    /// </param>
    /// <exception cref="ArgumentException">
    /// Not whole pages inside the window, or not whole frames inside the RAM.
    /// </exception>
    /// <exception cref="InvalidOperationException">
    /// A page of the target is mapped already; nothing has changed.
    /// </exception>
    public unsafe WindowResult Map(
        ulong windowOffset,
        ulong ramOffset,
        ulong bytes,
        WindowProtection protection,
        Ram? source = null,
        bool populate = false)
    {
        source ??= _ram;
        Ram.CheckRun(windowOffset, bytes, Bytes, "window", nameof(windowOffset));
        Ram.CheckRun(ramOffset, bytes, source.Bytes, "RAM", nameof(ramOffset));
        ulong first = windowOffset / Ram.FrameBytes, end = first + bytes / Ram.FrameBytes;
        if (source.HasPrivate(ramOffset, bytes)) return WindowResult.HostLimit;

        lock (_gate)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            ObjectDisposedException.ThrowIf(source.Base == null, source);
            if (_mapped.Count(first, end) != 0)
            {
                throw new InvalidOperationException(
                    $"window run 0x{windowOffset:x} + 0x{bytes:x} has mapped pages; they must be unmapped first");
            }

            // The target lies in one gap, so there are boundaries at most at its two ends, where a neighbour is mapped.
            int growth = 2 - _boundaries.Count(first, first + 1) - _boundaries.Count(end, end + 1);
            if (growth > 0 && !_budget.TryTake(growth)) return WindowResult.BudgetReached;

            if (!TryMapFrames(windowOffset, ramOffset, bytes, protection, source, populate))
            {
                _budget.Take(-growth);
                return WindowResult.HostLimit;
            }

            _mapped.Set(first, end);
            _boundaries.Set(first, first + 1);
            _boundaries.Set(end, end + 1);
            _boundaryCount += growth;
            return WindowResult.Done;
        }
    }

    /// <summary>Changes what a run of mapped pages allows.</summary>
    /// <returns><see cref="WindowResult.Done"/>; anything else changed nothing.</returns>
    /// <exception cref="ArgumentException">Not whole pages inside the window.</exception>
    /// <exception cref="InvalidOperationException">A page of the run is not mapped; nothing has changed.</exception>
    public unsafe WindowResult Protect(ulong windowOffset, ulong bytes, WindowProtection protection)
    {
        Ram.CheckRun(windowOffset, bytes, Bytes, "window", nameof(windowOffset));
        ulong first = windowOffset / Ram.FrameBytes, end = first + bytes / Ram.FrameBytes;
        lock (_gate)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            if ((ulong)_mapped.Count(first, end) != end - first)
            {
                throw new InvalidOperationException(
                    $"window run 0x{windowOffset:x} + 0x{bytes:x} has pages that are not mapped");
            }

            // A boundary once counted stays counted until its page is unmapped, also if the host merges what it split.
            int growth = 2 - _boundaries.Count(first, first + 1) - _boundaries.Count(end, end + 1);
            if (growth > 0 && !_budget.TryTake(growth)) return WindowResult.BudgetReached;

            if (FailsOnPurpose() || !HostMemory.TryProtect(Base + windowOffset, bytes, protection, Purpose))
            {
                _budget.Take(-growth);
                return WindowResult.HostLimit;
            }

            _boundaries.Set(first, first + 1);
            _boundaries.Set(end, end + 1);
            _boundaryCount += growth;
            return WindowResult.Done;
        }
    }

    /// <summary>
    /// Makes a run of window pages fault again; pages in it that are not mapped already do. The frames keep their
    /// contents. <see cref="WindowResult.BudgetReached"/> never happens here.
    /// </summary>
    /// <exception cref="ArgumentException">Not whole pages inside the window.</exception>
    public WindowResult Unmap(ulong windowOffset, ulong bytes)
    {
        Ram.CheckRun(windowOffset, bytes, Bytes, "window", nameof(windowOffset));
        ulong first = windowOffset / Ram.FrameBytes, end = first + bytes / Ram.FrameBytes;
        lock (_gate)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            if (_mapped.Count(first, end) == 0) return WindowResult.Done;
            if (!TryMapNothing(windowOffset, bytes)) return WindowResult.HostLimit;

            // The run becomes part of the gap around it; a boundary stays where a mapped page is next to it.
            bool leftMapped = first > 0 && _mapped.Count(first - 1, first) != 0;
            bool rightMapped = end < Bytes / Ram.FrameBytes && _mapped.Count(end, end + 1) != 0;
            int before = _boundaries.Count(first, end + 1);
            _mapped.Clear(first, end);
            _boundaries.Clear(first, end + 1);
            if (leftMapped) _boundaries.Set(first, first + 1);
            if (rightMapped) _boundaries.Set(end, end + 1);
            int growth = (leftMapped ? 1 : 0) + (rightMapped ? 1 : 0) - before;
            _boundaryCount += growth;
            _budget.Take(growth);
            return WindowResult.Done;
        }
    }

    /// <summary>Unmaps everything and frees the addresses; pointers into the window dangle. Twice is fine.</summary>
    public unsafe void Dispose()
    {
        lock (_gate)
        {
            if (_disposed) return;

            _disposed = true;
            Base = null;
            _budget.Take(-1 - _boundaryCount);
            _mapped.Dispose();
            _boundaries.Dispose();
            _range.Dispose();
        }
    }

    /// <summary>For tests of the error path: the n-th host call from now is answered with ENOMEM.</summary>
    internal void FailHostCall(int n) => _hostCallsUntilFailure = n;

    private static AddressWindow Create(Ram ram, MapBudget budget, Reservation range, ulong asked)
    {
        try
        {
            return new AddressWindow(ram, budget, range, asked);
        }
        catch
        {
            range.Dispose();
            throw;
        }
    }

    private unsafe bool TryMapFrames(
        ulong windowOffset, ulong ramOffset, ulong bytes, WindowProtection protection, Ram source, bool populate)
    {
        if (FailsOnPurpose()) return false;

        int flags = LibC.MapShared | LibC.MapFixed | (populate ? LibC.MapPopulate : 0);
        byte* at = Base + windowOffset;
        int access = HostMemory.AccessOf(protection);
        byte* got = LibC.Mmap(at, (nuint)bytes, access, flags, source.BackingFile!, (long)ramOffset);
        if (got == LibC.MapFailed && protection == WindowProtection.ReadExecute && HostMemory.WasForbidden())
            got = LibC.Mmap(at, (nuint)bytes, LibC.ProtRead, flags, source.BackingFile!, (long)ramOffset);
        return got != LibC.MapFailed || Refused(at, bytes);
    }

    /// <summary>
    /// A reservation is mapped over the run; munmap would leave a hole for somebody else to move into.
    /// </summary>
    private unsafe bool TryMapNothing(ulong windowOffset, ulong bytes)
    {
        if (FailsOnPurpose()) return false;

        int flags = LibC.MapPrivate | LibC.MapAnonymous | LibC.MapNoReserve | LibC.MapFixed;
        byte* at = Base + windowOffset;
        byte* got = LibC.Mmap(at, (nuint)bytes, LibC.ProtNone, flags, -1, 0);
        return got != LibC.MapFailed || Refused(at, bytes);
    }

    /// <summary>
    /// Answers false for a limit of the host and throws for anything else, which would be a fault of ours. A kernel
    /// that runs out of memory halfway through MAP_FIXED may have removed what was there: the reservation is put back
    /// if so.
    /// </summary>
    private static unsafe bool Refused(byte* at, ulong bytes)
    {
        int error = Marshal.GetLastPInvokeError();
        int flags = LibC.MapPrivate | LibC.MapAnonymous | LibC.MapNoReserve | LibC.MapFixedNoReplace;
        byte* got = LibC.Mmap(at, (nuint)bytes, LibC.ProtNone, flags, -1, 0);
        if (got != LibC.MapFailed && got != at) _ = LibC.Munmap(got, (nuint)bytes);    // before Linux 4.17: only a hint

        if (error == LibC.Enomem || error == LibC.Eagain) return false;
        throw new PlatformException("mmap", bytes, error, Purpose);
    }

    private bool FailsOnPurpose() => _hostCallsUntilFailure > 0 && --_hostCallsUntilFailure == 0;
}
