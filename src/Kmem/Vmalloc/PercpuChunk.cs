namespace Kmem;

/// <summary>
/// Address space for one unit per CPU, and which parts of a unit are given out. What is true for one unit is true for
/// all:
/// <code>
///   unit of CPU 0   | a a a |   | b |  free         |      page 0 populated in every unit, page 1 in none
///   unit of CPU 1   | a a a |   | b |  free         |
///                   ├── page 0 ─────┼─── page 1 ────┤
/// </code>
/// </summary>
internal sealed class PercpuChunk
{
    private readonly SortedList<int, int> _free = [];           // offset → bytes
    private readonly Dictionary<int, int> _allocated = [];      // offset → bytes
    private readonly int[] _users;                              // of each page of the unit
    private readonly Pfn[][] _frames;                           // [page][CPU]; empty if the page is not populated

    public PercpuChunk(nint[] areas, ulong start, int unitBytes)
    {
        Areas = areas;
        Base = start;
        UnitBytes = unitBytes;
        _free.Add(0, unitBytes);
        _users = new int[unitBytes >> Pfn.PageShift];
        _frames = new Pfn[_users.Length][];
        Array.Fill(_frames, []);
    }

    /// <summary>The vm_structs (VmStruct*), one per group of CPUs.</summary>
    public nint[] Areas { get; }

    /// <summary>The common base of the areas.</summary>
    public ulong Base { get; }

    public int UnitBytes { get; }

    /// <summary>Pages of a unit that have frames.</summary>
    public int Populated { get; private set; }

    public bool IsEmpty => _allocated.Count == 0;

    /// <summary>Pages of a unit that have frames and nothing else.</summary>
    public IEnumerable<int> EmptyPopulated => Enumerable.Range(0, _users.Length)
        .Where(page => _users[page] == 0 && IsPopulated(page));

    public bool Contains(ulong address) => address - Base < (ulong)UnitBytes;

    public bool IsPopulated(int page) => _frames[page].Length != 0;

    /// <summary>Takes the lowest free range that fits.</summary>
    /// <param name="bytes">Size.</param>
    /// <param name="align">A power of two.</param>
    /// <param name="onlyPopulated">Its pages must have frames already.</param>
    /// <returns>The offset in the unit, or −1.</returns>
    public int Take(int bytes, int align, bool onlyPopulated)
    {
        for (int i = 0; i < _free.Count; i++)
        {
            int start = _free.GetKeyAtIndex(i);
            int end = start + _free.GetValueAtIndex(i);
            int offset = (start + align - 1) & -align;
            while (onlyPopulated && offset + bytes <= end && MissingPage(offset, bytes) is var missing and >= 0)
                offset = (((missing + 1) << Pfn.PageShift) + align - 1) & -align;
            if (offset + bytes > end)
                continue;

            _free.RemoveAt(i);
            if (offset > start)
                _free.Add(start, offset - start);
            if (offset + bytes < end)
                _free.Add(offset + bytes, end - offset - bytes);
            _allocated.Add(offset, bytes);
            Use(offset, bytes, 1);
            return offset;
        }

        return -1;
    }

    /// <summary>Gives back what starts at an offset.</summary>
    /// <returns>Whether something does.</returns>
    public bool Return(int offset)
    {
        if (!_allocated.Remove(offset, out int bytes))
            return false;

        Use(offset, bytes, -1);
        _free.Add(offset, bytes);
        int at = _free.IndexOfKey(offset);
        if (at + 1 < _free.Count && _free.GetKeyAtIndex(at + 1) == offset + bytes)
        {
            bytes += _free.GetValueAtIndex(at + 1);
            _free.RemoveAt(at + 1);
            _free.SetValueAtIndex(at, bytes);
        }

        if (at > 0 && _free.GetKeyAtIndex(at - 1) + _free.GetValueAtIndex(at - 1) == offset)
        {
            _free.SetValueAtIndex(at - 1, _free.GetValueAtIndex(at - 1) + bytes);
            _free.RemoveAt(at);
        }

        return true;
    }

    /// <summary>The first page of a range without frames, or −1.</summary>
    public int MissingPage(int offset, int bytes)
    {
        for (int page = offset >> Pfn.PageShift; page <= (offset + bytes - 1) >> Pfn.PageShift; page++)
        {
            if (!IsPopulated(page))
                return page;
        }

        return -1;
    }

    /// <summary>A page's frames, by CPU; none if it has none.</summary>
    public ReadOnlySpan<Pfn> FramesOf(int page) => _frames[page];

    public void Populate(int page, Pfn[] frames)
    {
        _frames[page] = frames;
        Populated++;
    }

    /// <summary>Forgets a page's frames.</summary>
    /// <returns>Them, by CPU.</returns>
    public Pfn[] Depopulate(int page)
    {
        Pfn[] frames = _frames[page];
        _frames[page] = [];
        Populated--;
        return frames;
    }

    private void Use(int offset, int bytes, int change)
    {
        for (int page = offset >> Pfn.PageShift; page <= (offset + bytes - 1) >> Pfn.PageShift; page++)
            _users[page] += change;
    }
}
