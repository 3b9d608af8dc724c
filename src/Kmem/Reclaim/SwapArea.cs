using System.Diagnostics;

namespace Kmem;

/// <summary>
/// Memory at contiguous addresses that may be larger than the machine: pages that nobody has pinned go to a swap file
/// when memory is short, the longest unpinned first, and come back when they are pinned again.
/// <code>
///   addresses   [ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │ 6 │ 7 │ … ]      reserved once, they never change
///                 │       │       │   ╰─ pinned: stays            a page outside is not mapped: a stray
///   frames       17      42      99                               pointer faults, it does not lie
///   swap file   [ 1 │ 3 │ 6 ]                              with a checksum for each
/// </code>
/// </summary>
/// <remarks>
/// <para>Thread-safe. Created by <see cref="Machine.CreateSwapArea"/>; bytes that were never written are 0.</para>
/// <para>
/// Nothing is lost when the disk is full or fails: a page that cannot be written stays in memory, with a line in
/// <see cref="Machine.Dmesg"/>, and whoever needs memory then has to do without. A page that cannot be read, or is not
/// what was written, is reported to whoever pins it; what the slot holds is kept, so the next try may succeed.
/// </para>
/// </remarks>
[DebuggerDisplay("{Bytes} bytes, {Report}")]
public sealed partial class SwapArea : IDisposable
{
    private readonly object _gate = new();
    private readonly SwapParts _parts;
    private readonly ISwapStore _store;
    private readonly SwapPages _table;
    private readonly nint _start;
    private readonly RateLimit _reports = new("swap", TimeSpan.FromSeconds(5), 10);
    private bool _disposed;
    private long _swapIns;
    private long _swapOuts;
    private long _dropped;
    private long _writeErrors;
    private long _readErrors;

    internal unsafe SwapArea(SwapParts parts, ISwapStore store, ulong bytes)
    {
        _parts = parts;
        _store = store;
        Bytes = (bytes + Pfn.PageSize - 1) & ~(ulong)(Pfn.PageSize - 1);
        _table = new SwapPages(checked((int)(Bytes >> Pfn.PageShift)), parts.Pages.Nodes.Count);
        void* start = parts.Vmalloc.ReserveSparse((nuint)Bytes);
        if (start == null)
            throw new OutOfMemoryException($"no {Bytes} bytes of addresses for a swap area");
        _start = (nint)start;
        parts.Reclaimer.Add(this);
    }

    /// <summary>Its size, in whole pages.</summary>
    public ulong Bytes { get; }

    /// <summary>Where its pages go; the file is deleted by <see cref="Dispose"/>.</summary>
    public string FilePath => _store.Name;

    /// <summary>How it is doing.</summary>
    public SwapAreaReport Report
    {
        get
        {
            lock (_gate)
            {
                return new SwapAreaReport(
                    _table.Count,
                    _table.Resident,
                    _table.Pinned,
                    _table.SlotsInUse,
                    _swapIns,
                    _swapOuts,
                    _dropped,
                    _writeErrors,
                    _readErrors);
            }
        }
    }

    /// <summary>
    /// Brings a range into memory, and keeps it there until the result is disposed. Pins of one page add up.
    /// </summary>
    /// <param name="offset">First byte, from 0.</param>
    /// <param name="length">Bytes; they may lie in several pages, and 0 pins nothing.</param>
    /// <param name="write">
    /// Whether the bytes may be changed through the span. False saves writing the pages again when they go; changes are
    /// then lost.
    /// </param>
    /// <returns>The bytes; dispose it when done with them.</returns>
    /// <exception cref="ArgumentOutOfRangeException">The range is not within the area.</exception>
    /// <exception cref="OutOfMemoryException">Memory is short, and what is pinned leaves too little of it.</exception>
    /// <exception cref="SwapException">A page could not be read back.</exception>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="ObjectDisposedException">The area has been disposed.</exception>
    public unsafe SwapPin Pin(ulong offset, int length, bool write = true)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        if (offset > Bytes || (ulong)length > Bytes - offset)
            throw new ArgumentOutOfRangeException(
                nameof(offset), offset, $"the area has {Bytes} bytes, {length} were asked for");
        _parts.Vmalloc.RequireSleep();

        int first = (int)(offset >> Pfn.PageShift);
        int end = length == 0 ? first : (int)((offset + (ulong)length - 1) >> Pfn.PageShift) + 1;
        int page = first;
        try
        {
            for (; page < end; page++)
                PinPage(page, write);
        }
        catch
        {
            Unpin(first, page);
            throw;
        }

        // SAFETY: the pages first … end are mapped and stay so until they are unpinned.
        return new SwapPin(this, first, end, new Span<byte>((byte*)_start + offset, length));
    }

    /// <summary>
    /// Forgets what whole pages hold: they are 0 again, and need neither memory nor a place in the file.
    /// </summary>
    /// <param name="offset">First byte, a multiple of 4096.</param>
    /// <param name="length">Bytes, a multiple of 4096.</param>
    /// <exception cref="ArgumentException">Not whole pages of the area.</exception>
    /// <exception cref="KernelBugException">
    /// A page is pinned: those before it are 0, the others are as they were.
    /// </exception>
    public void Discard(ulong offset, ulong length)
    {
        const ulong PartOfPage = Pfn.PageSize - 1;
        if (((offset | length) & PartOfPage) != 0 || offset > Bytes || length > Bytes - offset)
            throw new ArgumentException($"{length} bytes at {offset} are not whole pages of an area of {Bytes} bytes");

        int end = (int)((offset + length) >> Pfn.PageShift);
        for (int page = (int)(offset >> Pfn.PageShift); page < end; page++)
            DiscardPage(page);
    }

    /// <summary>Frees memory and addresses, and deletes the file. Twice is fine.</summary>
    /// <exception cref="KernelBugException">Pages are pinned; nothing was changed.</exception>
    public void Dispose()
    {
        lock (_gate)
        {
            if (_disposed)
                return;
            if (_table.Pinned > 0)
                _parts.Reclaimer.ThrowBug($"BUG: swap area {FilePath} is disposed with {_table.Pinned} pinned pages");
        }

        Close();
    }

    /// <summary>Ends the area, whatever is pinned: its machine goes.</summary>
    internal unsafe void Close()
    {
        var frames = new List<ulong>();
        lock (_gate)
        {
            if (_disposed)
                return;
            _disposed = true;
            for (int page = 0; page < _table.Count; page++)
            {
                while (_table.Has(page, SwapPageFlags.Busy))
                    Monitor.Wait(_gate);
                if (!_table.IsResident(page))
                    continue;
                frames.Add(_table.FrameOf(page));
                Unmap(page);
                if (_table.Has(page, SwapPageFlags.Listed))
                    _table.Delist(page, NodeOf(page));
                _table.ClearFrame(page);
            }
        }

        _parts.Reclaimer.Remove(this);
        _parts.Vmalloc.FreeSparse((void*)_start);
        foreach (ulong frame in frames)
            FreeFrame(frame);
        _store.Dispose();
        _parts.Closed(this);
    }

    internal void Unpin(int first, int end)
    {
        lock (_gate)
        {
            for (int page = first; page < end; page++)
            {
                // A page in somebody's hands is enlisted by him.
                if (_table.Unpin(page) && !_table.Has(page, SwapPageFlags.Busy) && _table.IsResident(page))
                    _table.Enlist(page, NodeOf(page));
            }
        }
    }

    /// <summary>The content of a resident page, by way of the direct map.</summary>
    private unsafe Span<byte> ContentOf(int page) => ContentOf(_table.FrameOf(page));

    private unsafe Span<byte> ContentOf(ulong pfn) =>
        new(_parts.Map.AddressOf(_parts.Map.PageOf(pfn)), Pfn.PageSize);

    private int NodeOf(int page) => _parts.Pages.ZoneOf(_table.FrameOf(page)).Zone.NodeId;

    private void PinPage(int page, bool write)
    {
        lock (_gate)
        {
            WaitUntilIdleLocked(page);
            _table.Pin(page);
            if (_table.Has(page, SwapPageFlags.Listed))
                _table.Delist(page, NodeOf(page));
            if (_table.IsResident(page) && _table.Has(page, SwapPageFlags.Mapped))
            {
                if (write)
                    _table.Set(page, SwapPageFlags.Dirty);
                return;
            }

            _table.Set(page, SwapPageFlags.Busy);
        }

        // Not under the lock: what follows allocates, and reclaim may come here for other pages.
        bool complete = false;
        try
        {
            if (!_table.IsResident(page))
                BringIn(page);
            Map(page);
            complete = true;
        }
        finally
        {
            Settle(page, complete, write);
        }
    }

    private void WaitUntilIdleLocked(int page)
    {
        while (true)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            if (!_table.Has(page, SwapPageFlags.Busy))
                return;
            Monitor.Wait(_gate);
        }
    }

    /// <summary>The page is nobody's any more. If bringing it in failed, so did the pin.</summary>
    private void Settle(int page, bool complete, bool write)
    {
        lock (_gate)
        {
            if (complete && write)
                _table.Set(page, SwapPageFlags.Dirty);
            bool last = !complete && _table.Unpin(page);
            _table.Clear(page, SwapPageFlags.Busy);
            if (last && _table.IsResident(page))
                _table.Enlist(page, NodeOf(page));
            Monitor.PulseAll(_gate);
        }
    }

    private void DiscardPage(int page)
    {
        ulong frame = 0;
        lock (_gate)
        {
            WaitUntilIdleLocked(page);
            if (_table.PinsOf(page) > 0)
                _parts.Reclaimer.ThrowBug($"BUG: page {page} of swap area {FilePath} is discarded while it is pinned");
            _table.DropSlot(page);
            _table.Clear(page, SwapPageFlags.Dirty);
            if (!_table.IsResident(page))
                return;
            frame = _table.FrameOf(page);
            Unmap(page);
            _table.Delist(page, NodeOf(page));
            _table.ClearFrame(page);
        }

        FreeFrame(frame);
    }
}

/// <summary>
/// A pinned range of a <see cref="SwapArea"/>. Dispose it exactly once, when nobody uses the span any more; the pages
/// may then go.
/// </summary>
public ref struct SwapPin
{
    private readonly int _first;
    private readonly int _end;
    private SwapArea? _area;

    internal SwapPin(SwapArea area, int first, int end, Span<byte> span)
    {
        _area = area;
        _first = first;
        _end = end;
        Span = span;
    }

    /// <summary>The bytes.</summary>
    public Span<byte> Span { get; private set; }

    /// <summary>Unpins.</summary>
    public void Dispose()
    {
        _area?.Unpin(_first, _end);
        _area = null;
        Span = default;
    }
}

/// <summary>How a swap area is doing.</summary>
/// <param name="Pages">Its size in pages.</param>
/// <param name="Resident">Pages in memory.</param>
/// <param name="Pinned">Pages that may not go.</param>
/// <param name="Slots">Pages that have a place in the file.</param>
/// <param name="SwapIns">Pages read from the file so far.</param>
/// <param name="SwapOuts">Pages written to the file so far.</param>
/// <param name="Dropped">Pages that went without being written: unchanged, or all zeros.</param>
/// <param name="WriteErrors">Writes that failed; their pages are in memory.</param>
/// <param name="ReadErrors">Reads that failed, or brought something else than was written.</param>
public readonly record struct SwapAreaReport(
    long Pages,
    long Resident,
    long Pinned,
    long Slots,
    long SwapIns,
    long SwapOuts,
    long Dropped,
    long WriteErrors,
    long ReadErrors);

/// <summary>What a swap area needs of its machine.</summary>
internal sealed record SwapParts(
    PageAllocator Pages, MemMap Map, VmallocAllocator Vmalloc, Reclaimer Reclaimer, Action<SwapArea> Closed);
