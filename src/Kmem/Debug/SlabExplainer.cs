using System.Globalization;

namespace Kmem;

/// <summary>The part of an explanation that is about slabs, their objects, and large kmalloc blocks.</summary>
internal sealed class SlabExplainer(SlabAllocator slabs, MemMap map, int cpus)
{
    public unsafe Explanation Explain(Explanation explanation, Page* slab, byte* address)
    {
        KmemCache cache = slabs.CacheOf(slab);
        SlabState state = SlabState.Read(slab);
        explanation = explanation with
        {
            Kind = AddressKind.SlabPadding,
            Slab = new ExplainedSlab(
                cache.Name,
                new Pfn(map.PfnOf(slab)),
                PageAllocator.CompoundOrder(slab),
                cache.ObjectSize,
                cache.SlotSize,
                state.Objects,
                cache.CountLiveIn(slab),
                state.InUse,
                PlaceOf(cache, slab, state),
                state.HasFree ? state.FreeIndex : null),
        };
        int number = (int)((address - map.AddressOf(slab)) / cache.SlotSize);
        if (number >= state.Objects)
            return explanation;

        byte* start = (byte*)cache.ObjectOf(slab, number);
        long offset = address - start;
        if (offset < 0 || offset >= cache.ObjectSize)
            return explanation;

        bool live = cache.IsLive(start);
        return explanation with
        {
            Kind = live ? AddressKind.SlabObject : AddressKind.FreeObject,
            Object = new ExplainedObject(
                number,
                new VirtAddr(slabs.KernelAddress(start)),
                cache.ObjectSize,
                offset,
                live,
                live ? null : FreeOn(cache, slab, state, start)),
        };
    }

    public unsafe Explanation ExplainLarge(Explanation explanation, Page* head, byte* address)
    {
        byte* start = map.AddressOf(head);
        return explanation with
        {
            Kind = AddressKind.LargeKmalloc,
            Object = new ExplainedObject(
                0, new VirtAddr(slabs.KernelAddress(start)), (long)SlabAllocator.LargeSize(head), address - start, true, null),
        };
    }

    private unsafe string PlaceOf(KmemCache cache, Page* slab, SlabState state)
    {
        for (int cpu = 0; cpu < cpus; cpu++)
        {
            KmemCacheCpu* c = cache.StateOf(cpu);
            if (c->Slab == slab)
                return Text($"current slab of CPU {cpu}");
            for (Page* link = c->Partial; link != null; link = link->CpuPartialNext)
            {
                if (link == slab)
                    return Text($"kept partial by CPU {cpu}");
            }
        }

        if ((slab->Flags & PageFlags.SlabOnPartialList) != 0)
            return Text($"partial list of node {slabs.NodeOf(slab)}");
        return state.HasFree ? "on no list" : "full: on no list";
    }

    /// <summary>Where a free object waits to be used again.</summary>
    private unsafe string FreeOn(KmemCache cache, Page* slab, SlabState state, void* obj)
    {
        for (int cpu = 0; cpu < cpus; cpu++)
        {
            KmemCacheCpu* c = cache.StateOf(cpu);
            if (c->Slab == slab && PositionIn(cache, slab, state, c->Freelist, obj) is { } place)
                return Text($"free list of CPU {cpu}, {place} before it");
            if (cache.SheafCapacity == 0)
                continue;

            foreach ((nint sheaf, string name) in
                (ReadOnlySpan<(nint, string)>)[((nint)c->Main, "main sheaf"), ((nint)c->Spare, "spare sheaf"),
                    ((nint)c->RcuFree, "sheaf waiting for readers")])
            {
                int at = sheaf == 0 ? -1 : Sheaf.Objects((Sheaf*)sheaf).IndexOf((nint)obj);
                if (at >= 0)
                    return Text($"{name} of CPU {cpu}, {((Sheaf*)sheaf)->Size - 1 - at} before it");
            }
        }

        void* first = state.HasFree ? cache.ObjectOf(slab, state.FreeIndex) : null;
        if (PositionIn(cache, slab, state, first, obj) is { } position)
            return Text($"free list of the slab, {position} before it");
        return InBarn(cache, obj) ? "a sheaf in the barn" : "on no list";
    }

    private static unsafe bool InBarn(KmemCache cache, void* obj)
    {
        foreach (nint sheaf in cache.AllSheaves())
        {
            if (Sheaf.Objects((Sheaf*)sheaf).Contains((nint)obj))
                return true;
        }

        return false;
    }

    /// <summary>How many objects of a free list go before one; null if it is not on it. Links are not trusted.</summary>
    private unsafe int? PositionIn(KmemCache cache, Page* slab, SlabState state, void* first, void* obj)
    {
        byte* start = map.AddressOf(slab);
        byte* end = start + ((long)state.Objects * cache.SlotSize);
        int position = 0;
        for (void* at = first; at >= start && at < end && position < state.Objects; at = cache.NextFree(at))
        {
            if (at == obj)
                return position;
            position++;
        }

        return null;
    }

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
