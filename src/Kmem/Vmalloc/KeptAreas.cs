namespace Kmem;

/// <summary>
/// Freed areas that keep their frames and mappings for the next request of their size. An area that comes from here
/// costs no call of the host and no page fault.
/// <code>
///   newest of 16 pages ─▶ [area] ─▶ [area]            by age:  oldest ─▶ [1 page] [16] [16] [4096] ◀─ newest
///   newest of 17 pages ─▶ nothing                     what is too much goes from the oldest on
/// </code>
/// </summary>
/// <remarks>Thread-safe. It knows numbers and pointers only; its user gives the areas back.</remarks>
internal sealed class KeptAreas
{
    /// <summary>So many areas at most: each is a mapping of the host, or several.</summary>
    public const int MostAreas = 1024;

    private const int None = -1;
    private const int Buckets = 1024;

    private readonly Lock _gate = new();
    private readonly int[] _newestOf = new int[Buckets];        // by number of pages modulo Buckets
    private Entry[] _entries = new Entry[64];
    private int _unused = None;
    private int _oldest = None;
    private int _newest = None;
    private int _made;
    private int _count;
    private ulong _pages;

    /// <param name="mostPages">So many pages at most.</param>
    public KeptAreas(ulong mostPages)
    {
        MostPages = mostPages;
        Array.Fill(_newestOf, None);
    }

    /// <summary>Above this many pages the oldest areas have to go.</summary>
    public ulong MostPages { get; }

    public int Count => Volatile.Read(ref _count);

    public ulong Pages => Volatile.Read(ref _pages);

    /// <summary>Whether an area should be given back with <see cref="TakeOldest"/>.</summary>
    public bool IsTooFull => Count > MostAreas || Pages > MostPages;

    /// <summary>Keeps an area, as the newest.</summary>
    /// <param name="area">Its object.</param>
    /// <param name="start">Its address.</param>
    /// <param name="pages">Its pages, without the guard.</param>
    public void Put(nint area, ulong start, ulong pages)
    {
        SimPoint.Gate(_gate);
        lock (_gate)
        {
            int at = NewEntry();
            int bucket = BucketOf(pages);
            ref Entry entry = ref _entries[at];
            entry = new Entry(area, start, pages)
            {
                Older = _newest,
                Newer = None,
                Next = _newestOf[bucket],
                Previous = None,
            };
            if (entry.Next != None)
                _entries[entry.Next].Previous = at;
            _newestOf[bucket] = at;
            if (_newest != None)
                _entries[_newest].Newer = at;
            else
                _oldest = at;
            _newest = at;
            Volatile.Write(ref _count, _count + 1);
            Volatile.Write(ref _pages, _pages + pages);
        }
    }

    /// <summary>Takes the newest area of a size whose address is aligned; 0 if there is none.</summary>
    public nint Take(ulong pages, ulong align)
    {
        if (Count == 0)
            return 0;

        SimPoint.Gate(_gate);
        lock (_gate)
        {
            for (int at = _newestOf[BucketOf(pages)]; at != None; at = _entries[at].Next)
            {
                if (_entries[at].Pages == pages && (_entries[at].Start & (align - 1)) == 0)
                    return RemoveLocked(at);
            }

            return 0;
        }
    }

    /// <summary>Takes the area that was kept for the longest time; 0 if there is none.</summary>
    public nint TakeOldest()
    {
        SimPoint.Gate(_gate);
        lock (_gate)
            return _oldest == None ? 0 : RemoveLocked(_oldest);
    }

    private static int BucketOf(ulong pages) => (int)(pages % Buckets);

    private int NewEntry()
    {
        int at = _unused;
        if (at != None)
        {
            _unused = _entries[at].Next;
            return at;
        }

        if (_made == _entries.Length)
            Array.Resize(ref _entries, 2 * _made);
        return _made++;
    }

    private nint RemoveLocked(int at)
    {
        Entry entry = _entries[at];
        if (entry.Previous != None)
            _entries[entry.Previous].Next = entry.Next;
        else
            _newestOf[BucketOf(entry.Pages)] = entry.Next;
        if (entry.Next != None)
            _entries[entry.Next].Previous = entry.Previous;
        if (entry.Older != None)
            _entries[entry.Older].Newer = entry.Newer;
        else
            _oldest = entry.Newer;
        if (entry.Newer != None)
            _entries[entry.Newer].Older = entry.Older;
        else
            _newest = entry.Older;
        _entries[at].Next = _unused;
        _unused = at;
        Volatile.Write(ref _count, _count - 1);
        Volatile.Write(ref _pages, _pages - entry.Pages);
        return entry.Area;
    }

    private record struct Entry(nint Area, ulong Start, ulong Pages)
    {
        public int Older;
        public int Newer;
        public int Next;
        public int Previous;
    }
}
