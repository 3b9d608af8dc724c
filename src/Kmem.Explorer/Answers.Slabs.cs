using Kmem.Tracing;

namespace Kmem;

/// <content>Caches, their slabs, and the bytes of an object.</content>
internal sealed partial class Answers
{
    private const int MostBytes = 4096;
    private const byte PoisonFree = 0x6b, PoisonInUse = 0x5a, PoisonEnd = 0xa5;

    public SlabsAnswer Slabs(int moment) => source.Ask(moment, machine =>
    {
        Dictionary<KmemCache, long> live = CountLive(machine);
        return new SlabsAnswer(
            moment, [.. machine.Slabs.Caches.Select(cache => RowOf(machine, cache, live.GetValueOrDefault(cache)))]);
    });

    public SlabAnswer Slab(int moment, int id, int offset, int limit) => source.Ask(moment, machine =>
    {
        KmemCache cache = machine.Slabs.Caches.FirstOrDefault(it => it.Id + 1 == id)
            ?? throw new QueryException($"there is no cache {id} at this moment", "id", 404);
        return SlabOf(machine, cache, moment, offset, limit);
    });

    /// <summary>One slab of a cache, without the cache's CPUs, lists and other slabs.</summary>
    /// <param name="moment">When.</param>
    /// <param name="id">The cache's number.</param>
    /// <param name="pfn">A frame of the slab.</param>
    /// <param name="parameter">What named the frame.</param>
    public SlabAnswer SlabAt(int moment, int id, ulong pfn, string parameter) => source.Ask(moment, machine =>
    {
        KmemCache cache = CacheAt(machine, pfn, out ulong first)
            ?? throw new QueryException($"frame {pfn} is no slab at this moment", parameter, 404);
        if (cache.Id + 1 != id)
        {
            throw new QueryException(
                $"frame {pfn} is a slab of {cache.Name}, which is cache {cache.Id + 1}", parameter, 404);
        }

        return SlabOf(machine, cache, moment, 0, 1, first) with { Cpus = [], Nodes = [] };
    });

    /// <summary>The frame behind any address that an explanation takes.</summary>
    /// <exception cref="QueryException">There is none.</exception>
    public ulong FrameBehind(int moment, ulong address)
    {
        if (_shape.PfnOf(address) is { } mapped)
            return mapped;
        Explanation found = source.Ask(moment, machine => Explained(machine, address));
        return found.Page?.Frame.Value
            ?? throw new QueryException($"there is no frame behind {Hex(address)}: {found.Sentence}", "address", 404);
    }

    public ObjectAnswer Object(int moment, ulong address)
    {
        ulong pfn = FrameBehind(moment, address);
        if (_shape.PfnOf(address) == null)
            address = _shape.DirectMap + (pfn << Pfn.PageShift) + (IsDescriptor(address) ? 0 : address & (Pfn.PageSize - 1));
        (ObjectAnswer? found, ulong start, int order) =
            source.Ask(moment, machine => ObjectOf(machine, moment, address, pfn));
        if (found != null)
            return found;

        // Not of a slab: what the frames say. Asked outside of the machine's lock, which frames take themselves.
        FrameAnswer frame = Frame(moment, pfn);
        long bytes = (long)Pfn.PageSize << order;
        ulong at = _shape.DirectMap + (start << Pfn.PageShift);
        string hex = source.Ask(moment, machine => HexOf(machine, at, (int)Math.Min(bytes, MostBytes)));
        return new ObjectAnswer(
            moment, frame.Kind, null, null, null, null, Hex(at), bytes, bytes,
            frame.Kind is not ("free" or "pcp" or "reserved" or "hole"), frame.Site, frame.Born, null, hex, Hex(at),
                []);
    }

    /// <summary>Objects given out, of all caches in one walk.</summary>
    private static unsafe Dictionary<KmemCache, long> CountLive(Machine machine)
    {
        var live = new Dictionary<KmemCache, long>();
        machine.Slabs.ForEachSlab(page =>
        {
            if (machine.Slabs.TryCacheOf((Page*)page) is { } cache)
                live[cache] = live.GetValueOrDefault(cache) + cache.ObserveLive((Page*)page);
        });
        return live;
    }

    private static CacheRow RowOf(Machine machine, KmemCache cache, long active)
    {
        SlabGeometry shape = cache.Geometry;
        long total = cache.TotalObjects;
        return new CacheRow(
            cache.Id + 1, cache.Name, cache.ObjectSize, cache.SlotSize, shape.ObjectsPerSlab, shape.Order, total,
                active,
            total == 0 ? 0 : (int)(active * 100 / total), cache.SlabCount,
                (cache.SlabCount * (long)Pfn.PageSize) << shape.Order,
            shape.Align, FlagsOf(cache.Flags),
            [.. machine.Slabs.AliasNames.Where(alias => alias.Cache == cache).Select(alias => alias.Name)],
            cache.SheafCapacity, cache.CpuPartial, cache.MinPartial);
    }

    private static string FlagsOf(SlabFlags flags) => flags == SlabFlags.None
        ? "" : flags.ToString().Replace(", ", "|", StringComparison.Ordinal);

    private static SlabAnswer SlabOf(
        Machine machine, KmemCache cache, int moment, int offset, int limit, ulong? only = null)
    {
        var places = new Dictionary<ulong, (string State, int? Cpu)>();
        SlabCpuAnswer[] cpus = [.. Enumerable.Range(0, machine.Cpus).Select(cpu => CpuOf(machine, cache, cpu, places))];
        SlabNodeAnswer[] nodes = [.. cache.Nodes.Select((node, id) => NodeOf(machine, node, id, places))];
        var all = new List<ulong>();
        long live = 0;
        ForEachSlab(machine, cache, (pfn, objects) =>
        {
            all.Add(pfn);
            live += objects;
        });
        if (only is { } one)
            offset = Math.Max(0, all.IndexOf(one));
        return new SlabAnswer(
            moment, RowOf(machine, cache, live), cache.Geometry.FreePointerOffset, cpus, nodes, all.Count, offset,
            [.. all.Skip(offset).Take(limit).Select(pfn => OneSlab(machine, cache, pfn, places))]);
    }

    private static unsafe KmemCache? CacheAt(Machine machine, ulong pfn, out ulong first)
    {
        first = pfn;
        if (pfn >= machine.Map.EndPfn || machine.Pages.PresentZoneOf(pfn) == null)
            return null;
        Page* head = Page.HeadOf(machine.Map.PageOf(pfn));
        first = machine.Map.PfnOf(head);
        return head->Type == PageType.Slab ? machine.Slabs.TryCacheOf(head) : null;
    }

    /// <summary>The address of a <c>struct page</c>: it stands for the frame.</summary>
    private bool IsDescriptor(ulong address) =>
        source.Ask(source.Now, machine => address - machine.Slabs.Addresses.Vmemmap < _shape.Frames * Page.SizeInBytes);

    private static unsafe void ForEachSlab(Machine machine, KmemCache cache, Action<ulong, int> visit) =>
        machine.Slabs.ForEachSlab(
            cache, page => visit(machine.Map.PfnOf((Page*)page), cache.ObserveLive((Page*)page)));

    private static unsafe SlabCpuAnswer CpuOf(
        Machine machine, KmemCache cache, int cpu, Dictionary<ulong, (string State, int? Cpu)> places)
    {
        KmemCacheCpu* c = cache.ObserveCpu(cpu);
        Page* slab = c->Slab;
        ulong? current = slab != null && PageLists.IsPage(machine, slab) ? machine.Map.PfnOf(slab) : null;
        if (current is { } pfn)
            places[pfn] = ("cpu", cpu);
        var partial = new List<ulong>();
        for (Page* page = c->Partial; page != null && PageLists.IsPage(machine, page)
            && partial.Count < MostBytes; page = page->CpuPartialNext)
        {
            partial.Add(machine.Map.PfnOf(page));
            places[partial[^1]] = ("cpuPartial", cpu);
        }

        return new SlabCpuAnswer(
            cpu, current, current == null ? [] : FreeIndices(machine, cache, slab, c->Freelist), partial,
            cache.SheafCapacity == 0 ? null : new SheavesAnswer(
                MainOf(machine, c), SheafOf(machine, c->Spare), SheafOf(machine, c->RcuFree)));
    }

    private static unsafe SlabNodeAnswer NodeOf(
        Machine machine, KmemCacheNode node, int id, Dictionary<ulong, (string State, int? Cpu)> places)
    {
        var partial = new List<ulong>();
        for (ListHead* entry = node.Partial->Next; entry != node.Partial && partial.Count < node.NrPartial; entry =
            entry->Next)
        {
            Page* page = Page.FromSlabList(entry);
            if (!PageLists.IsPage(machine, page))
                break;
            partial.Add(machine.Map.PfnOf(page));
            places[partial[^1]] = ("partial", null);
        }

        return new SlabNodeAnswer(
            id, partial,
            node.Barn == null ? [] : [.. node.Barn.List(full: true).Select(sheaf => SheafOf(machine, (Sheaf*)sheaf)!)],
            node.Barn?.EmptyCount ?? 0);
    }

    /// <summary>The main sheaf's size is in the CPU's state while it is the main one.</summary>
    private static unsafe SheafAnswer? MainOf(Machine machine, KmemCacheCpu* c) =>
        c->Main == null ? null : SheafOf(machine, c->Main, c->Top - c->Low);

    private static unsafe SheafAnswer? SheafOf(Machine machine, Sheaf* sheaf) =>
        sheaf == null ? null : SheafOf(machine, sheaf, sheaf->Size);

    private static unsafe SheafAnswer? SheafOf(Machine machine, Sheaf* sheaf, long size)
    {
        if (size < 0 || size > Math.Min(sheaf->Capacity, MostBytes))
            return null;

        var objects = new List<string?>();
        for (int i = 0; i < size; i++)
        {
            void* obj = Sheaf.ObjectsOf(sheaf)[i];
            objects.Add(machine.Map.Contains(obj) ? Hex(machine.Slabs.KernelAddress(obj)) : null);
        }

        return new SheafAnswer((int)size, (int)sheaf->Capacity, objects);
    }

    private static unsafe OneSlabAnswer OneSlab(
        Machine machine, KmemCache cache, ulong pfn, Dictionary<ulong, (string State, int? Cpu)> places)
    {
        Page* slab = machine.Map.PageOf(pfn);
        SlabState state = SlabState.Read(slab);
        (string where, int? cpu) = places.GetValueOrDefault(pfn, ("full", null));
        int objects = cache.ObserveObjects(slab);
        var live = new byte[(objects + 7) / 8];
        for (int i = 0; i < objects; i++)
        {
            if (cache.IsLive(cache.ObjectOf(slab, i)))
                live[i / 8] |= (byte)(1 << (i % 8));
        }

        return new OneSlabAnswer(
            pfn, Hex(machine.Slabs.KernelAddress(machine.Map.AddressOf(slab))), PageAllocator.CompoundOrder(slab),
                where, cpu,
            objects, state.InUse, Convert.ToBase64String(live),
            state.HasFree && state.FreeIndex < objects
                ? FreeIndices(machine, cache, slab, cache.ObjectOf(slab, state.FreeIndex)) : []);
    }

    /// <summary>A free list as indices. The slab may be at work: a link that leads nowhere ends the list.</summary>
    private static unsafe List<int> FreeIndices(Machine machine, KmemCache cache, Page* slab, void* first)
    {
        var indices = new List<int>();
        int objects = cache.ObserveObjects(slab);
        byte* start = (byte*)cache.ObjectOf(slab, 0);
        for (void* obj = first; obj != null && indices.Count < objects; obj = cache.NextFree(obj))
        {
            long offset = (byte*)obj - start;
            if (offset < 0 || offset % cache.SlotSize != 0 || offset / cache.SlotSize >= objects)
                break;
            indices.Add((int)(offset / cache.SlotSize));
        }

        return indices;
    }

    private unsafe (ObjectAnswer? Object, ulong Start, int Order) ObjectOf(
        Machine machine, int moment, ulong address, ulong pfn)
    {
        Page* page = machine.Map.PageOf(pfn);
        if (!machine.Pages.Zones.Any(zone => machine.Pages.HasMemory(zone.Zone, pfn)))
            throw new QueryException($"there is no memory at {Hex(address)}", "address", 404);

        Page* head = Page.HeadOf(page);
        if (head->Type == PageType.Slab && machine.Slabs.TryCacheOf(head) is { } cache)
            return (SlabObject(machine, cache, head, moment, address), 0, 0);

        bool large = head->Type == PageType.LargeKmalloc;
        return (null, large ? machine.Map.PfnOf(head) : pfn, large ? Math.Max(head->AllocatedOrderPlusOne - 1, 0) : 0);
    }

    private unsafe ObjectAnswer SlabObject(Machine machine, KmemCache cache, Page* slab, int moment, ulong address)
    {
        ulong slabStart = machine.Slabs.KernelAddress(machine.Map.AddressOf(slab));
        int index = (int)((address - slabStart) / (ulong)cache.SlotSize);
        int objects = cache.ObserveObjects(slab);
        if (index >= objects)
            throw new QueryException($"{Hex(address)} is in the unused rest of a slab of {cache.Name}", "address", 404);

        void* obj = cache.ObjectOf(slab, index);
        ulong at = machine.Slabs.KernelAddress(obj);
        ulong slot = slabStart + ((ulong)index * (ulong)cache.SlotSize);
        bool allocated = cache.IsLive(obj);
        (int number, uint requested) = allocated ? BirthOf(at, moment) : (-1, 0u);
        int length = Math.Min(cache.SlotSize, MostBytes);
        return new ObjectAnswer(
            moment, "slab", cache.Id + 1, cache.Name, machine.Map.PfnOf(slab), index, Hex(at), cache.SlotSize,
                cache.ObjectSize,
            allocated, number < 0 ? null : SiteOf(source.Timeline!.EventAt(number).CallSite), number < 0
                ? 0 : (uint)number + 1,
            number < 0 ? null : requested, HexOf(machine, slot, length), Hex(slot),
            MarksOf(machine, cache, obj, (int)(at - slot), allocated, requested));
    }

    /// <summary>The event that gave an object out, and how many bytes it asked for; −1: before the recording.</summary>
    private (int Event, uint Requested) BirthOf(ulong address, int moment)
    {
        if (source.Timeline is not { } timeline)
            return (-1, 0);

        ulong offset = address - _shape.DirectMap;
        ReadOnlySpan<ObjectChange> changes = timeline.Objects[..timeline.ObjectsBefore(moment)];
        for (int i = changes.Length - 1; i >= 0; i--)
        {
            if (changes[i].Offset == offset && changes[i].Sign > 0)
                return (timeline.EventOfObject(i), changes[i].Requested);
        }

        return (-1, 0);
    }

    private static unsafe List<MarkAnswer> MarksOf(
        Machine machine, KmemCache cache, void* obj, int left, bool allocated, uint requested)
    {
        SlabGeometry shape = cache.Geometry;
        var marks = new List<MarkAnswer>();
        bool redZones = (cache.Flags & SlabFlags.RedZone) != 0;
        if (left > 0)
            marks.Add(new MarkAnswer(0, left, "redZone", null));
        marks.Add(new MarkAnswer(left, cache.ObjectSize, "object", null));
        if (allocated && requested > 0 && requested < cache.ObjectSize)
            marks.Add(new MarkAnswer(left + (int)requested, cache.ObjectSize - (int)requested, "unused", null));
        if (redZones && shape.Inuse > cache.ObjectSize)
            marks.Add(new MarkAnswer(left + cache.ObjectSize, shape.Inuse - cache.ObjectSize, "redZone", null));
        if (!allocated)
        {
            void* next = cache.NextFree(obj);
            string? to = next != null && machine.Map.Contains(next) ? Hex(machine.Slabs.KernelAddress(next)) : null;
            marks.Add(new MarkAnswer(left + shape.FreePointerOffset, sizeof(ulong), "freePointer", to));
        }

        AddPoison(new ReadOnlySpan<byte>(obj, Math.Min(cache.ObjectSize, MostBytes)), left, marks);
        int end = left + Math.Max(shape.Inuse, shape.FreePointerOutside ? shape.FreePointerOffset + sizeof(ulong) : 0);
        if ((cache.Flags & SlabFlags.StoreUser) != 0)
        {
            marks.Add(new MarkAnswer(left + shape.TrackOffset, 64, "track", null));
            end = Math.Max(end, left + shape.TrackOffset + 64);
        }

        if (end < cache.SlotSize)
            marks.Add(new MarkAnswer(end, cache.SlotSize - end, "padding", null));
        return marks;
    }

    private static void AddPoison(ReadOnlySpan<byte> bytes, int left, List<MarkAnswer> marks)
    {
        const int Shortest = 8;
        for (int from = 0; from < bytes.Length;)
        {
            byte value = bytes[from];
            int to = from + 1;
            while (to < bytes.Length && (bytes[to] == value || (value == PoisonFree && bytes[to] == PoisonEnd)))
                to++;
            if (value is PoisonFree or PoisonInUse && to - from >= Shortest)
                marks.Add(new MarkAnswer(left + from, to - from, "poison", null));
            from = to;
        }
    }

    private unsafe string HexOf(Machine machine, ulong address, int length) =>
        Convert.ToHexStringLower(new ReadOnlySpan<byte>(machine.Map.RamBase + (address - _shape.DirectMap), length));
}

internal sealed record SlabsAnswer(int T, IReadOnlyList<CacheRow> Caches);

internal sealed record CacheRow(
    int Id, string Name, int ObjectSize, int Size, int ObjectsPerSlab, int Order, long Objects, long Active, int Use,
        long Slabs,
    long Bytes, int Align, string Flags, IReadOnlyList<string> Aliases, int SheafCapacity, int CpuPartial,
        int MinPartial);

internal sealed record SlabAnswer(
    int T, CacheRow Cache, int FreeOffset, IReadOnlyList<SlabCpuAnswer> Cpus, IReadOnlyList<SlabNodeAnswer> Nodes,
        int Total,
    int Offset, IReadOnlyList<OneSlabAnswer> Slabs);

internal sealed record SlabCpuAnswer(
    int Cpu, ulong? Slab, IReadOnlyList<int> Freelist, IReadOnlyList<ulong> Partial, SheavesAnswer? Sheaves);

internal sealed record SheavesAnswer(SheafAnswer? Main, SheafAnswer? Spare, SheafAnswer? RcuFree);

internal sealed record SheafAnswer(int Size, int Capacity, IReadOnlyList<string?> Objects);

internal sealed record SlabNodeAnswer(
    int Node, IReadOnlyList<ulong> Partial, IReadOnlyList<SheafAnswer> FullSheaves, int EmptySheaves);

internal sealed record OneSlabAnswer(
    ulong Pfn, string Address, int Order, string State, int? Cpu, int Objects, int InUse, string Live,
        IReadOnlyList<int> Free);

internal sealed record ObjectAnswer(
    int T, string Kind, int? Cache, string? CacheName, ulong? Slab, int? Index, string Address, long Size,
        long ObjectSize,
    bool Allocated, IdName? Site, uint Born, uint? Requested, string Bytes, string Start,
        IReadOnlyList<MarkAnswer> Marks);

internal sealed record MarkAnswer(int Offset, int Length, string What, string? To);
