namespace Kmem;

/// <summary>What a swap area knows of each of its pages, and the pages that could go, coldest first.</summary>
/// <remarks>Everything here needs the area's lock, except the content of a page by whoever made it busy.</remarks>
internal sealed class SwapPages
{
    private const int None = -1;

    private readonly int[] _frame;
    private readonly int[] _slot;
    private readonly ulong[] _sum;
    private readonly int[] _pins;
    private readonly SwapPageFlags[] _flags;

    // Per node a ring through these, with a head behind the last page: next of the head is the coldest.
    private readonly int[] _next;
    private readonly int[] _previous;
    private readonly long[] _evictable;

    private readonly Stack<int> _freeSlots = new();
    private int _slots;

    public SwapPages(int count, int nodes)
    {
        Count = count;
        _frame = new int[count];
        _slot = new int[count];
        _sum = new ulong[count];
        _pins = new int[count];
        _flags = new SwapPageFlags[count];
        _next = new int[count + nodes];
        _previous = new int[count + nodes];
        _evictable = new long[nodes];
        _frame.AsSpan().Fill(None);
        _slot.AsSpan().Fill(None);
        for (int node = 0; node < nodes; node++)
            _next[HeadOf(node)] = _previous[HeadOf(node)] = HeadOf(node);
    }

    public int Count { get; }

    /// <summary>Pages with a frame.</summary>
    public int Resident { get; private set; }

    /// <summary>Pages that somebody has pinned.</summary>
    public int Pinned { get; private set; }

    /// <summary>Slots that hold a page, or held one that has changed since.</summary>
    public int SlotsInUse => _slots - _freeSlots.Count;

    /// <summary>Slots that the store has had at once.</summary>
    public int SlotsEver => _slots;

    public ulong FrameOf(int page) => (ulong)_frame[page];

    public bool IsResident(int page) => _frame[page] >= 0;

    public bool Has(int page, SwapPageFlags flag) => (_flags[page] & flag) != 0;

    public void Set(int page, SwapPageFlags flag) => _flags[page] |= flag;

    public void Clear(int page, SwapPageFlags flag) => _flags[page] &= ~flag;

    public int PinsOf(int page) => _pins[page];

    public int SlotOf(int page) => _slot[page];

    public ulong SumOf(int page) => _sum[page];

    /// <summary>Pages of a node on the list.</summary>
    public long Evictable(int node) => Volatile.Read(ref _evictable[node]);

    public void Pin(int page)
    {
        if (_pins[page]++ == 0)
            Pinned++;
    }

    /// <returns>Whether that was the last pin.</returns>
    public bool Unpin(int page)
    {
        if (--_pins[page] != 0)
            return false;
        Pinned--;
        return true;
    }

    public void SetFrame(int page, ulong pfn)
    {
        _frame[page] = (int)pfn;
        Resident++;
    }

    public void ReplaceFrame(int page, ulong pfn) => _frame[page] = (int)pfn;

    public void ClearFrame(int page)
    {
        _frame[page] = None;
        Resident--;
    }

    /// <summary>The page's slot, a new one if it has none.</summary>
    public int TakeSlot(int page)
    {
        if (_slot[page] < 0)
            _slot[page] = _freeSlots.TryPop(out int free) ? free : _slots++;
        return _slot[page];
    }

    public void SetSum(int page, ulong sum) => _sum[page] = sum;

    /// <summary>The page's content is nowhere but in memory, or nothing but zeros.</summary>
    public void DropSlot(int page)
    {
        if (_slot[page] >= 0)
            _freeSlots.Push(_slot[page]);
        _slot[page] = None;
    }

    /// <summary>The page is the warmest of its node from now on; or the coldest.</summary>
    public void Enlist(int page, int node, bool warm = true)
    {
        int before = warm ? _previous[HeadOf(node)] : HeadOf(node);
        int after = _next[before];
        (_previous[page], _next[page]) = (before, after);
        _next[before] = _previous[after] = page;
        _flags[page] |= SwapPageFlags.Listed;
        _evictable[node]++;
    }

    public void Delist(int page, int node)
    {
        _next[_previous[page]] = _next[page];
        _previous[_next[page]] = _previous[page];
        _flags[page] &= ~SwapPageFlags.Listed;
        _evictable[node]--;
    }

    /// <summary>The coldest pages of a node, in that order.</summary>
    public IEnumerable<int> Coldest(int node)
    {
        for (int page = _next[HeadOf(node)]; page != HeadOf(node);)
        {
            int next = _next[page];
            yield return page;
            page = next;
        }
    }

    private int HeadOf(int node) => Count + node;
}

/// <summary>The state of a page of a swap area.</summary>
/// <remarks>
/// <code>
///                    pin: read, map                     unpin
///   out (or never written) ──────────▶ resident, pinned ───────▶ resident, listed ──▶ out
///                                             ▲                        │   ▲     reclaim: unmap,
///                                             └────── pin ─────────────┘   │     write if dirty
///                                                                          └── the store refused
/// </code>
/// </remarks>
[Flags]
internal enum SwapPageFlags : byte
{
    None = 0,

    /// <summary>One thread has it in hand, outside the lock; all others wait, or pass by.</summary>
    Busy = 1,

    /// <summary>Its addresses show its frame.</summary>
    Mapped = 2,

    /// <summary>Memory is newer than the slot.</summary>
    Dirty = 4,

    /// <summary>On the list of pages that could go.</summary>
    Listed = 8,
}
