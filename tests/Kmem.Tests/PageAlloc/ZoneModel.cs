namespace Kmem.Tests;

/// <summary>
/// A zone by the book: the kernel's rules written down a second time, over plain lists of frame numbers, slow and
/// without any of the allocator's types but the enumerations. What the real thing must equal, order of lists included.
/// </summary>
internal sealed partial class ZoneModel
{
    private const int MaxOrder = 10;
    private const int BlockOrder = 9;
    private const ulong BlockPages = 512;

    // The fallbacks of Unmovable, Movable, Reclaimable, as the table of section 5.3 prints them.
    private static readonly Migratetype[][] s_fallbacks =
    [
        [Migratetype.Reclaimable, Migratetype.Movable],
        [Migratetype.Reclaimable, Migratetype.Unmovable],
        [Migratetype.Unmovable, Migratetype.Movable],
    ];

    private readonly ulong _start;
    private readonly ulong _end;
    private readonly List<ulong>[,] _free = new List<ulong>[MaxOrder + 1, 5];
    private readonly Dictionary<ulong, int> _orderOfFree = [];
    private readonly Dictionary<ulong, Migratetype> _typeOfBlock = [];
    private readonly long[] _differences;

    public ZoneModel(ulong start, ulong end, int cpus)
    {
        _start = start;
        _end = end;
        _differences = new long[cpus];
        for (int order = 0; order <= MaxOrder; order++)
        {
            for (int type = 0; type < 5; type++)
                _free[order, type] = [];
        }

        for (ulong block = start / BlockPages; block * BlockPages < end; block++)
            _typeOfBlock[block] = Migratetype.Movable;
        _cpus = [.. Enumerable.Range(0, cpus).Select(_ => new CpuLists())];
    }

    public List<string> Events { get; } = [];

    /// <summary>Frames that an LRU list holds: they count as movable.</summary>
    public HashSet<ulong> Lru { get; } = [];

    public long Managed { get; set; }

    public long HighMark { get; set; }

    public long BoostFactor { get; set; } = 15000;

    public bool GroupingDisabled { get; set; }

    public int StatThreshold { get; set; }

    public long Boost { get; private set; }

    public bool BoostedWatermark { get; private set; }

    public long ReservedHighAtomic { get; private set; }

    public long FreeHighAtomic { get; private set; }

    /// <summary>The global part of NR_FREE_PAGES.</summary>
    public long FreePages { get; private set; }

    public ulong[] Free(int order, Migratetype type) => [.. _free[order, (int)type]];

    public Migratetype TypeOf(ulong pfn) => _typeOfBlock[pfn / BlockPages];

    public void SetType(ulong pfn, Migratetype type) => _typeOfBlock[pfn / BlockPages] = type;

    public void HandOver(ulong start, ulong end)
    {
        for (ulong pfn = start; pfn < end;)
        {
            int order = Lists.BootOrder(pfn, end);
            Managed += 1L << order;
            FreeToBuddy(pfn, order, toTail: true, cpu: 0);
            pfn += 1UL << order;
        }
    }

    /// <summary>split_large_buddy: by pageblocks, each with its own type.</summary>
    public void FreeToBuddy(ulong pfn, int order, bool toTail, int cpu)
    {
        int piece = Math.Min(order, BlockOrder);
        for (ulong at = pfn; at < pfn + (1UL << order); at += 1UL << piece)
            FreeOne(at, piece, TypeOf(at), toTail, cpu);
    }

    /// <summary>__free_one_page.</summary>
    public void FreeOne(ulong pfn, int order, Migratetype type, bool toTail, int cpu)
    {
        Account(1L << order, type, cpu);
        while (order < MaxOrder)
        {
            ulong buddy = pfn ^ (1UL << order);
            if (!IsFree(buddy, order))
                break;

            if (order >= BlockOrder)
            {
                Migratetype other = TypeOf(buddy);
                if (other != type && (other >= Migratetype.HighAtomic || type >= Migratetype.HighAtomic))
                    break;
                Unlink(buddy, order, other);
                SetType(buddy, type);
            }
            else
            {
                Unlink(buddy, order, type);
            }

            pfn = Math.Min(pfn, buddy);
            order++;
        }

        if (toTail || MergeLikely(pfn, order))
            AddTail(pfn, order, type);
        else
            AddHead(pfn, order, type);
    }

    /// <summary>__rmqueue_smallest.</summary>
    public ulong? Take(int order, Migratetype type, int cpu)
    {
        for (int o = order; o <= MaxOrder; o++)
        {
            if (_free[o, (int)type].Count == 0)
                continue;

            ulong pfn = _free[o, (int)type][0];
            Unlink(pfn, o, type);
            Expand(pfn, order, o, type);
            Account(-(1L << order), type, cpu);
            bool pcpOrder = order is <= 3 or 9;
            Events.Add(RecordingTrace.Taken(pfn, order, type, pcpOrder && type < Migratetype.HighAtomic));
            return pfn;
        }

        return null;
    }

    /// <summary>__rmqueue; <paramref name="mode"/> 0, 1, 2 is where the search starts.</summary>
    public ulong? Rmqueue(int order, Migratetype type, AllocFlags flags, ref int mode, int cpu)
    {
        ulong? pfn = mode == 0 ? Take(order, type, cpu) : null;
        if (pfn != null)
            return pfn;

        pfn = mode <= 1 ? Claim(order, type, flags, cpu) : null;
        if (pfn != null)
        {
            mode = 0;
            return pfn;
        }

        pfn = flags.HasFlag(AllocFlags.NoFragment) ? null : Steal(order, type, cpu);
        if (pfn != null)
            mode = 2;
        return pfn;
    }

    /// <summary>reserve_highatomic_pageblock.</summary>
    public void Reserve(ulong pfn, int order, int cpu)
    {
        long onePercent = Managed / 100;
        long most = (onePercent + 511) / 512 * 512;
        if (onePercent < 512 || ReservedHighAtomic >= most || TypeOf(pfn) >= Migratetype.HighAtomic)
            return;

        if (order < BlockOrder)
        {
            if (Straddles(pfn))
                return;
            MoveBlock(pfn, Migratetype.HighAtomic, cpu);
            ReservedHighAtomic += 512;
        }
        else
        {
            for (ulong at = pfn; at < pfn + (1UL << order); at += BlockPages)
                SetType(at, Migratetype.HighAtomic);
            ReservedHighAtomic += 1L << order;
        }
    }

    /// <summary>unreserve_highatomic_pageblock, for this zone.</summary>
    public bool Unreserve(Migratetype to, bool force, int cpu)
    {
        if (!force && ReservedHighAtomic <= 512)
            return false;

        for (int order = 0; order <= MaxOrder; order++)
        {
            if (_free[order, (int)Migratetype.HighAtomic].Count == 0)
                continue;

            ulong pfn = _free[order, (int)Migratetype.HighAtomic][0];
            ReservedHighAtomic = Math.Max(0, ReservedHighAtomic - Math.Max(512, 1L << order));
            if (order < BlockOrder)
            {
                MoveBlock(pfn, to, cpu);
                return true;
            }

            MoveFree(pfn, order, Migratetype.HighAtomic, to, cpu);
            for (ulong at = pfn; at < pfn + (1UL << order); at += BlockPages)
                SetType(at, to);
            return true;
        }

        return false;
    }

    private ulong? Claim(int order, Migratetype wanted, AllocFlags flags, int cpu)
    {
        int lowest = order < BlockOrder && flags.HasFlag(AllocFlags.NoFragment) ? BlockOrder : order;
        for (int o = MaxOrder; o >= lowest; o--)
        {
            bool worth = o >= BlockOrder || o >= BlockOrder / 2 || wanted != Migratetype.Movable || GroupingDisabled;
            if (!worth)
                return null;
            if (FirstFallback(o, wanted) is not { } from)
                continue;

            ulong found = _free[o, (int)from][0];
            ulong? pfn;
            if (o >= BlockOrder)
            {
                Unlink(found, o, from);
                Account(-(1L << o), from, cpu);
                for (ulong at = found; at < found + (1UL << o); at += BlockPages)
                    SetType(at, wanted);
                Expand(found, order, o, wanted);
                Account((1L << o) - (1L << order), wanted, cpu);
                pfn = found;
            }
            else
            {
                pfn = ClaimPart(found, order, wanted, from, flags, cpu);
            }

            if (pfn is { } got)
            {
                Events.Add(RecordingTrace.Fallback(got, order, o, wanted, from, ownership: TypeOf(got) == wanted));
                return pfn;
            }
        }

        return null;
    }

    private ulong? ClaimPart(ulong found, int order, Migratetype wanted, Migratetype from, AllocFlags flags, int cpu)
    {
        if (BoostFactor != 0 && Managed >= 4 * 512 && HighMark * BoostFactor / 10000 is var most and > 0)
        {
            Boost = Math.Min(Boost + 512, Math.Max(512, most));
            BoostedWatermark |= flags.HasFlag(AllocFlags.Kswapd);
        }

        if (Straddles(found))
            return null;

        long free = 0;
        long movable = 0;
        ulong first = found / BlockPages * BlockPages;
        for (ulong at = first; at < first + BlockPages; at++)
        {
            if (_orderOfFree.TryGetValue(at, out int o))
            {
                free += 1L << o;
                at += (1UL << o) - 1;
            }
            else if (Lru.Contains(at))
            {
                movable++;
            }
        }

        long alike = wanted == Migratetype.Movable ? movable : from == Migratetype.Movable ? 512 - free - movable : 0;
        if (free + alike < 256 && !GroupingDisabled)
            return null;

        MoveBlock(found, wanted, cpu);
        return Take(order, wanted, cpu);
    }

    private ulong? Steal(int order, Migratetype wanted, int cpu)
    {
        for (int o = order; o <= MaxOrder; o++)
        {
            if (FirstFallback(o, wanted) is not { } from)
                continue;

            ulong pfn = _free[o, (int)from][0];
            Unlink(pfn, o, from);
            Expand(pfn, order, o, from);
            Account(-(1L << order), from, cpu);
            Events.Add(RecordingTrace.Fallback(pfn, order, o, wanted, from, ownership: TypeOf(pfn) == wanted));
            return pfn;
        }

        return null;
    }

    private Migratetype? FirstFallback(int order, Migratetype wanted)
    {
        foreach (Migratetype type in s_fallbacks[(int)wanted])
        {
            if (_free[order, (int)type].Count > 0)
                return type;
        }

        return null;
    }

    private void MoveBlock(ulong pfn, Migratetype to, int cpu)
    {
        ulong first = pfn / BlockPages * BlockPages;
        Migratetype from = TypeOf(first);
        for (ulong at = first; at < first + BlockPages; at++)
        {
            if (!_orderOfFree.TryGetValue(at, out int order))
                continue;
            MoveFree(at, order, from, to, cpu);
            at += (1UL << order) - 1;
        }

        SetType(first, to);
    }

    private void MoveFree(ulong pfn, int order, Migratetype from, Migratetype to, int cpu)
    {
        Unlink(pfn, order, from);
        AddTail(pfn, order, to);
        Account(-(1L << order), from, cpu);
        Account(1L << order, to, cpu);
    }

    private bool Straddles(ulong pfn)
    {
        ulong first = pfn / BlockPages * BlockPages;
        return first < _start || first + BlockPages > _end;
    }

    private bool MergeLikely(ulong pfn, int order)
    {
        if (order >= MaxOrder - 1)
            return false;

        ulong parent = pfn & ~(1UL << order);
        return IsFree(parent ^ (1UL << (order + 1)), order + 1);
    }

    private bool IsFree(ulong pfn, int order) => _orderOfFree.TryGetValue(pfn, out int free) && free == order;

    private void Expand(ulong pfn, int low, int high, Migratetype type)
    {
        while (high > low)
        {
            high--;
            AddHead(pfn + (1UL << high), high, type);
        }
    }

    private void AddHead(ulong pfn, int order, Migratetype type)
    {
        _free[order, (int)type].Insert(0, pfn);
        _orderOfFree.Add(pfn, order);
    }

    private void AddTail(ulong pfn, int order, Migratetype type)
    {
        _free[order, (int)type].Add(pfn);
        _orderOfFree.Add(pfn, order);
    }

    private void Unlink(ulong pfn, int order, Migratetype type)
    {
        Assert.True(_free[order, (int)type].Remove(pfn), $"the model lost block {pfn} of order {order}");
        _orderOfFree.Remove(pfn);
    }

    /// <summary>Books free frames: a difference of this CPU, folded in when it grows beyond the threshold.</summary>
    private void Account(long frames, Migratetype type, int cpu)
    {
        _differences[cpu] += frames;
        if (Math.Abs(_differences[cpu]) > StatThreshold)
        {
            FreePages += _differences[cpu];
            _differences[cpu] = 0;
        }

        if (type == Migratetype.HighAtomic)
            FreeHighAtomic += frames;
    }
}
