using System.Globalization;

namespace Kmem;

/// <summary>The part of an explanation that is about slabs, their objects, and large kmalloc blocks.</summary>
internal sealed class SlabExplainer(SlabAllocator slabs, MemMap map, CpuSet cpus)
{
    public unsafe Explanation Explain(Explanation explanation, Page* slab, byte* address)
    {
        SlabState state = SlabState.Read(slab);
        nint tag = slab->SlabCache;
        KmemCache? cache = slabs.Caches.FirstOrDefault(it => SlabAllocator.TagOf(it.Id) == tag);
        if (cache == null)
            return explanation with { Kind = AddressKind.Pages };     // given back since

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
                live ? null : FreeOn(cache, slab, state, start))
            {
                AllocatedBy = CallerOf(cache, start, free: false),
                FreedBy = CallerOf(cache, start, free: true),
            },
        };
    }

    public unsafe Explanation ExplainLarge(Explanation explanation, Page* head, byte* address)
    {
        byte* start = map.AddressOf(head);
        return explanation with
        {
            Kind = AddressKind.LargeKmalloc,
            Object = new ExplainedObject(
                0, new VirtAddr(slabs.KernelAddress(start)), (long)SlabAllocator.LargeSize(head), address - start,
                    true, null),
        };
    }

    /// <summary>Who used a debugged object last, if its cache remembers (SLAB_STORE_USER).</summary>
    private unsafe string? CallerOf(KmemCache cache, void* obj, bool free) =>
        cache.Debug is { StoresUser: true } debug && debug.TrackOf(obj, free) is { Address: not 0 } track
            && slabs.Stacks.Find(track.Stack) is { } frames
            ? StackDepot.CallerIn(frames)
            : null;

    private unsafe string PlaceOf(KmemCache cache, Page* slab, SlabState state)
    {
        for (int cpu = 0; cpu < cpus.Count; cpu++)
        {
            (bool current, bool partial) = HasSlab(cache, cpu, slab);
            if (current)
                return Text($"current slab of CPU {cpu}");
            if (partial)
                return Text($"kept partial by CPU {cpu}");
        }

        if ((slab->Flags & PageFlags.SlabOnPartialList) != 0)
            return Text($"partial list of node {slabs.NodeOf(slab)}");
        return state.HasFree ? "on no list" : "full: on no list";
    }

    private unsafe (bool Current, bool Partial) HasSlab(KmemCache cache, int cpu, Page* slab)
    {
        (int current, int chained) = cache.CpuSlabsOf(cpu);
        if (current + chained == 0)
            return default;

        cpus.AcquireRemote(cpu);
        KmemCacheCpu* c = cache.StateOf(cpu);
        bool isCurrent = c->Slab == slab;
        bool isPartial = false;
        for (Page* link = c->Partial; link != null; link = link->CpuPartialNext)
            isPartial |= link == slab;
        cpus.ReleaseRemote(cpu);
        return (isCurrent, isPartial);
    }

    /// <summary>Where a free object waits to be used again.</summary>
    private unsafe string FreeOn(KmemCache cache, Page* slab, SlabState state, void* obj)
    {
        for (int cpu = 0; cpu < cpus.Count; cpu++)
        {
            cpus.AcquireRemote(cpu);
            string? place = FreeOnCpu(cache, cpu, slab, state, obj);
            cpus.ReleaseRemote(cpu);
            if (place != null)
                return place;
        }

        void* first = state.HasFree ? cache.ObjectOf(slab, state.FreeIndex) : null;
        if (PositionIn(cache, slab, state, first, obj) is { } position)
            return Text($"free list of the slab, {position} before it");
        return InBarn(cache, (nint)obj) ? "a sheaf in the barn" : "on no list";
    }

    private unsafe string? FreeOnCpu(KmemCache cache, int cpu, Page* slab, SlabState state, void* obj)
    {
        KmemCacheCpu* c = cache.StateOf(cpu);
        if (c->Slab == slab && PositionIn(cache, slab, state, c->Freelist, obj) is { } place)
            return Text($"free list of CPU {cpu}, {place} before it");
        if (cache.SheafCapacity == 0)
            return null;

        foreach ((nint sheaf, string name) in
            (ReadOnlySpan<(nint, string)>)[((nint)c->Main, "main sheaf"), ((nint)c->Spare, "spare sheaf"),
                ((nint)c->RcuFree, "sheaf waiting for readers")])
        {
            int at = sheaf == 0 ? -1 : Sheaf.Objects((Sheaf*)sheaf).IndexOf((nint)obj);
            if (at >= 0)
                return Text($"{name} of CPU {cpu}, {((Sheaf*)sheaf)->Size - 1 - at} before it");
        }

        return null;
    }

    private static bool InBarn(KmemCache cache, nint obj)
    {
        foreach (KmemCacheNode node in cache.Nodes)
        {
            if (node.Barn is { } barn && barn.Holds(obj))
                return true;
        }

        return false;
    }

    /// <summary>How many objects of a free list go before one; null if it is not on it. Links are not
    /// trusted.</summary>
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
