namespace Kmem;

/// <content>Pages come and go.</content>
public sealed partial class SwapArea : ILru, INamedHolder
{
    /// <summary>Pages whose mappings are given back at once when the process has too many.</summary>
    private const int UnmapBatch = 256;

    /// <inheritdoc/>
    string INamedHolder.HolderName => $"swap area {Path.GetFileName(FilePath)}";

    /// <inheritdoc/>
    long INamedHolder.Frames => Report.Resident;

    /// <inheritdoc/>
    long ILru.Evictable(int node) => _table.Evictable(node);

    /// <inheritdoc/>
    (long Scanned, long Freed) ILru.Shrink(int node, long pages, Gfp gfp)
    {
        // Without __GFP_IO only what needs no writing may go, and who could tell how far that lies.
        bool mayWrite = (gfp & Gfp.IO) != 0;
        List<int> batch = Isolate(node, pages, page => mayWrite || !_table.Has(page, SwapPageFlags.Dirty));
        long freed = 0;
        int done = 0;
        try
        {
            while (done < batch.Count)
            {
                if (TryEvict(batch[done++]))
                    freed++;
            }
        }
        finally
        {
            // Whoever waits for a page in this thread's hands would wait for ever.
            foreach (int page in batch[done..])
                Release(page);
        }

        return (batch.Count, freed);
    }

    /// <summary>Takes cold pages off the list and into this thread's hands.</summary>
    private List<int> Isolate(int node, long pages, Func<int, bool> wanted)
    {
        var batch = new List<int>();
        lock (_gate)
        {
            if (_disposed)
                return batch;
            foreach (int page in _table.Coldest(node))
            {
                if (batch.Count == pages)
                    break;
                if (!wanted(page))
                    continue;
                _table.Delist(page, node);
                _table.Set(page, SwapPageFlags.Busy);
                batch.Add(page);
            }
        }

        return batch;
    }

    /// <summary>
    /// Writes a page out if that is needed, and frees its frame. Nobody can change it meanwhile: its addresses fault.
    /// </summary>
    /// <returns>False if it could not be written: it is the warmest page now.</returns>
    private bool TryEvict(int page)
    {
        ulong frame = _table.FrameOf(page);
        bool gone = false;
        try
        {
            Unmap(page);
            gone = !_table.Has(page, SwapPageFlags.Dirty) ? Drop() : TryWrite(page, frame);
        }
        finally
        {
            lock (_gate)
            {
                if (gone)
                    _table.ClearFrame(page);
                else
                    _table.Enlist(page, NodeOf(page));
                _table.Clear(page, gone ? SwapPageFlags.Busy | SwapPageFlags.Dirty : SwapPageFlags.Busy);
                Monitor.PulseAll(_gate);
            }
        }

        if (gone)
            FreeFrame(frame);
        return gone;
    }

    private bool Drop()
    {
        Interlocked.Increment(ref _dropped);
        return true;
    }

    private bool TryWrite(int page, ulong frame)
    {
        Span<byte> content = ContentOf(frame);
        int slot;
        lock (_gate)
        {
            if (!content.ContainsAnyExcept((byte)0))
            {
                _table.DropSlot(page);
                return Drop();
            }

            slot = _table.TakeSlot(page);
            _table.SetSum(page, SwapChecksum.Of(content, (ulong)page));
        }

        try
        {
            _store.Write(slot, content);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException or ObjectDisposedException)
        {
            ReportWriteError(page, slot, error);
            return false;
        }

        Interlocked.Increment(ref _swapOuts);
        Interlocked.Increment(ref _parts.Reclaimer.Counters.PswpOut);
        return true;
    }

    private void ReportWriteError(int page, int slot, Exception error)
    {
        Interlocked.Increment(ref _writeErrors);
        if (_reports.Allows(_parts.Reclaimer.Log))
        {
            _parts.Reclaimer.Log.Write(
                $"Write-error on swap-device ({FilePath}, slot {slot}): {error.Message}; page {page} stays in memory");
        }
    }

    /// <summary>A frame with the page's content; what it is not mapped to yet.</summary>
    private unsafe void BringIn(int page)
    {
        Page* fresh = _parts.Pages.Alloc(Gfp.Kernel | Gfp.Movable | Gfp.NoWarn, 0, -1);
        if (fresh == null)
        {
            throw new OutOfMemoryException(
                $"page {page} of swap area {FilePath} cannot come back, {Report.Pinned} pages are pinned: "
                + MemorySummary.Short(_parts.Pages, 0, Gfp.Kernel));
        }

        ulong frame = _parts.Map.PfnOf(fresh);
        bool read = false;
        try
        {
            if (_table.SlotOf(page) < 0)
                ContentOf(frame).Clear();
            else
                ReadBack(page, ContentOf(frame));
            read = true;
        }
        finally
        {
            if (!read)
                _parts.Pages.Free(frame, 0);
        }

        fresh->Index = (ulong)page;
        lock (_gate)
            _table.SetFrame(page, frame);
        _parts.Reclaimer.Compactor.Movable.Set(new Pfn(frame), this);
    }

    /// <summary>Not under the lock: compaction may just be asking whether it may move the frame.</summary>
    private void FreeFrame(ulong frame)
    {
        var wait = default(Backoff);
        while (!_parts.Reclaimer.Compactor.Movable.TryClear(new Pfn(frame)))
            wait.Once();
        _parts.Pages.Free(frame, 0);
    }

    private void ReadBack(int page, Span<byte> content)
    {
        int slot = _table.SlotOf(page);
        try
        {
            _store.Read(slot, content);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException or ObjectDisposedException)
        {
            throw ReadError(page, slot, $"cannot be read: {error.Message}", error);
        }

        ulong sum = SwapChecksum.Of(content, (ulong)page);
        if (sum != _table.SumOf(page))
            throw ReadError(page, slot, $"is not what was written: checksum {sum:x16}, not {_table.SumOf(page):x16}", null);
        Interlocked.Increment(ref _swapIns);
        Interlocked.Increment(ref _parts.Reclaimer.Counters.PswpIn);
    }

    private SwapException ReadError(int page, int slot, string what, Exception? cause)
    {
        Interlocked.Increment(ref _readErrors);
        string report = $"Read-error on swap-device ({FilePath}, slot {slot}): page {page} {what}";
        if (_reports.Allows(_parts.Reclaimer.Log))
            _parts.Reclaimer.Log.Write(report);
        return new SwapException(report, cause) { Offset = (ulong)page << Pfn.PageShift };
    }

    /// <summary>
    /// Shows a page's frame at its addresses. A process has so many mappings only: cold pages give theirs back, and
    /// stay where they are otherwise.
    /// </summary>
    private void Map(int page)
    {
        while (!TryMap(page))
        {
            if (!UnmapCold())
            {
                throw new OutOfMemoryException(
                    $"page {page} of swap area {FilePath} cannot be shown: no page tables, or no mappings of the host "
                    + "(half of vm.max_map_count) are left");
            }
        }
    }

    private unsafe bool TryMap(int page)
    {
        var frame = new Pfn(_table.FrameOf(page));
        VmapError error = _parts.Vmalloc.MapSparse((void*)_start, OffsetOf(page), new ReadOnlySpan<Pfn>(in frame));
        if (error == VmapError.NoMemory)
            return false;
        Bug.On(error != VmapError.None, "the addresses of a swap area are gone");
        lock (_gate)
            _table.Set(page, SwapPageFlags.Mapped);
        return true;
    }

    /// <summary>Makes a page's addresses fault. The page is busy, or the lock is held.</summary>
    private unsafe void Unmap(int page)
    {
        if (!_table.Has(page, SwapPageFlags.Mapped))
            return;
        VmapError error = _parts.Vmalloc.UnmapSparse((void*)_start, OffsetOf(page), 1);
        Bug.On(error != VmapError.None, "the addresses of a swap area are gone");
        lock (_gate)
            _table.Clear(page, SwapPageFlags.Mapped);
    }

    /// <returns>False if no page that could go is mapped.</returns>
    private bool UnmapCold()
    {
        bool any = false;
        for (int node = 0; node < _parts.Pages.Nodes.Count; node++)
        {
            List<int> batch = Isolate(node, UnmapBatch, page => _table.Has(page, SwapPageFlags.Mapped));
            foreach (int page in batch)
                Unmap(page);
            lock (_gate)
            {
                for (int i = batch.Count - 1; i >= 0; i--)
                {
                    _table.Clear(batch[i], SwapPageFlags.Busy);
                    _table.Enlist(batch[i], node, warm: false);
                }

                Monitor.PulseAll(_gate);
            }

            any |= batch.Count > 0;
        }

        return any;
    }

    /// <summary>What is wrong with an area at rest, for the validator.</summary>
    internal List<(SwapFault Fault, int Page)> Faults()
    {
        var faults = new List<(SwapFault Fault, int Page)>();
        var slots = new HashSet<int>();
        for (int page = 0; page < _table.Count; page++)
        {
            bool resident = _table.IsResident(page);
            if (resident && NumberOf(new Pfn(_table.FrameOf(page))) != page)
                faults.Add((SwapFault.Frame, page));
            if ((resident && _table.PinsOf(page) == 0) != _table.Has(page, SwapPageFlags.Listed))
                faults.Add((SwapFault.List, page));
            if (_table.SlotOf(page) >= 0 && !slots.Add(_table.SlotOf(page)))
                faults.Add((SwapFault.Slot, page));
            Pfn expected = _table.Has(page, SwapPageFlags.Mapped) ? new Pfn(_table.FrameOf(page)) : Pfn.None;
            if (ShownAt(page) != expected)
                faults.Add((SwapFault.Mapping, page));
        }

        return faults;
    }

    private unsafe Pfn ShownAt(int page) =>
        _parts.Vmalloc.Tables.Translate(_parts.Vmalloc.AddressOf((byte*)_start) + OffsetOf(page));

    private static nuint OffsetOf(int page) => (nuint)page << Pfn.PageShift;
}

/// <summary>What can be wrong with a page of a swap area.</summary>
internal enum SwapFault
{
    Frame,
    List,
    Slot,
    Mapping,
}

/// <summary>
/// A page of a <see cref="SwapArea"/> could not be read back, or is not what was written. The message names the file,
/// the slot and the page.
/// </summary>
public sealed class SwapException : IOException
{
    /// <summary>Creates the exception.</summary>
    public SwapException()
    {
    }

    /// <summary>Creates the exception with a message.</summary>
    /// <param name="message">What happened.</param>
    public SwapException(string message)
        : base(message)
    {
    }

    /// <summary>Creates the exception with a message and what led to it.</summary>
    /// <param name="message">What happened.</param>
    /// <param name="innerException">The error of the file.</param>
    public SwapException(string message, Exception? innerException)
        : base(message, innerException)
    {
    }

    /// <summary>The page's first byte in the area.</summary>
    public ulong Offset { get; init; }
}
