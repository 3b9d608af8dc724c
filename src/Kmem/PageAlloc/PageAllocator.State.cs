namespace Kmem;

/// <content>Corrections from outside: a replay that went wrong once goes on from the recorded answer.</content>
internal sealed partial class PageAllocator
{
    /// <summary>
    /// Makes it so that a request got the block at <paramref name="wanted"/> instead of the one at
    /// <paramref name="taken"/>, which takes the other's place among the free ones as far as possible.
    /// </summary>
    /// <returns>False if the wanted block was not free here: the taken one is given back all the same.</returns>
    public unsafe bool Exchange(ulong taken, ulong wanted, int order)
    {
        Page* page = _map.PageOf(taken);
        Page* other = _map.PageOf(wanted);
        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        PageFlags flags = page->Flags;
        page->Flags = PageFlags.None;
        bool free = ZoneOf(wanted).Buddy.TryExchange(page, other, order, cpu) || TryExchangeOnList(page, other);
        if (!free)
            ZoneOf(taken).GiveToBuddy(page, order, FreeFlags.None, cpu);
        other->Flags = flags;
        other->AllocatedOrderPlusOne = (byte)(order + 1);
        _cpus.Leave(task);
        return free;
    }

    /// <summary>Takes a block that a recording gave out and that a request did not find here, if it is free at all.</summary>
    public unsafe void Claim(ulong wanted, int order)
    {
        Page* page = _map.PageOf(wanted);
        CpuTask* task = _cpus.Current;
        int cpu = _cpus.Enter(task);
        if (!ZoneOf(wanted).Buddy.TryClaim(page, order, cpu) && IsOnList(page))
            ListHead.Remove(&page->Lru);
        page->Flags = PageFlags.None;
        page->AllocatedOrderPlusOne = (byte)(order + 1);
        _cpus.Leave(task);
    }

    private static unsafe bool IsOnList(Page* page) =>
        page->Type == PageType.None && page->AllocatedOrderPlusOne == 0 && page->RefCount == 0
        && page->Lru.Next != null && (page->CompoundHead & 1) == 0;

    /// <summary>A block on a per-CPU list has links and no owner.</summary>
    private static unsafe bool TryExchangeOnList(Page* page, Page* other)
    {
        if (!IsOnList(other))
            return false;

        ListHead.AddHead(&other->Lru, &page->Lru);
        ListHead.Remove(&other->Lru);
        return true;
    }
}
