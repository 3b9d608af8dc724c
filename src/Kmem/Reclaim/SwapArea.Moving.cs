namespace Kmem;

/// <content>Pages in memory that nobody has pinned may be moved by compaction.</content>
public sealed partial class SwapArea : IMovablePages
{
    /// <inheritdoc/>
    bool IMovablePages.Isolate(Pfn page)
    {
        lock (_gate)
        {
            int number = NumberOf(page);
            if (_disposed || number < 0 || !_table.Has(number, SwapPageFlags.Listed))
                return false;
            _table.Delist(number, NodeOf(number));
            _table.Set(number, SwapPageFlags.Busy);
            return true;
        }
    }

    /// <inheritdoc/>
    bool IMovablePages.Migrate(Pfn from, Pfn to)
    {
        int number = NumberOf(from);
        Unmap(number);
        ContentOf(from.Value).CopyTo(ContentOf(to.Value));
        lock (_gate)
            _table.ReplaceFrame(number, to.Value);
        Release(number);
        return true;
    }

    /// <inheritdoc/>
    void IMovablePages.PutBack(Pfn page) => Release(NumberOf(page));

    private void Release(int number)
    {
        lock (_gate)
        {
            _table.Clear(number, SwapPageFlags.Busy);
            _table.Enlist(number, NodeOf(number), warm: false);
            Monitor.PulseAll(_gate);
        }
    }

    /// <summary>The page that a frame holds; -1 if it is none of this area any more.</summary>
    private unsafe int NumberOf(Pfn frame)
    {
        ulong number = _parts.Map.PageOf(frame.Value)->Index;
        return number < (ulong)_table.Count && _table.IsResident((int)number) && _table.FrameOf((int)number) == frame.Value
            ? (int)number
            : -1;
    }
}
