using System.Diagnostics.CodeAnalysis;

namespace Kmem;

/// <summary>
/// The vmalloc space of a recorded kernel, beside the machine that carries out its other events:
/// <code>
///   alloc_vmap_area        ─▶ busy, at the recorded address
///   free_vmap_area_noflush ─▶ lazy                             all of it in copies: nothing is taken from the
///   purge_vmap_area_lazy   ─▶ a pool, or the free tree         machine, whose objects and pages are other events
///   mm_page_alloc          ─▶ what is mapped behind an area, where the recording tells
/// </code>
/// A kernel takes most pages of vmalloc in bulk, and writes no event of that: most areas are shown without frames.
/// Areas that are older than the recording are not known until they are freed.
/// </summary>
/// <remarks>Not thread-safe: a replay is one thread, and who looks at its machine waits for it.</remarks>
internal sealed class RecordedSpace : IDisposable
{
    /// <summary>Larger than any area: beyond this, a count of pages is no size.</summary>
    private const ulong MostPages = 1 << 22;

    private readonly Dictionary<ulong, RecordedArea> _areas = [];
    private ulong? _lazyPages;          // as the last event told it; null: a purge may be under way

    /// <param name="slabs">The machine's; nothing is taken from them.</param>
    /// <param name="start">VMALLOC_START of the recorded kernel.</param>
    /// <param name="end">VMALLOC_END: the last byte.</param>
    public RecordedSpace(SlabAllocator slabs, ulong start, ulong end)
    {
        Levels = slabs.Addresses.Levels;
        Vmap = new VmapAllocator(slabs, new VmapOptions { Start = start, End = end, IsReplay = true })
        {
            DrainScheduler = static () => { },      // the recording says when
        };
    }

    /// <summary>The addresses: trees, lazy areas and pools.</summary>
    public VmapAllocator Vmap { get; }

    private int Levels { get; }

    public void Dispose() => Vmap.Dispose();

    /// <summary>What else is known of the busy area that starts at an address.</summary>
    public bool TryGetArea(ulong start, [NotNullWhen(true)] out RecordedArea? area) =>
        _areas.TryGetValue(start, out area);

    /// <summary>Gives out the recorded address.</summary>
    /// <param name="start">The address.</param>
    /// <param name="request">What was asked for.</param>
    /// <param name="cpu">On which CPU of the machine.</param>
    /// <param name="born">When: so many events have happened then.</param>
    /// <param name="foretold">Whether the allocator would have chosen that address by itself.</param>
    /// <returns>The area; null if no kernel can have given out such a range.</returns>
    public unsafe RecordedArea? Alloc(ulong start, in VmapRequest request, int cpu, long born, out bool foretold)
    {
        foretold = Vmap.Peek(request, cpu, out ulong expected) == VmapError.None && expected == start;
        VmapArea* area = foretold ? Vmap.Alloc(request, null, out _) : Vmap.Follow(start, request, cpu);
        if (area == null)
            return null;

        var its = new RecordedArea(start, start + request.Size, born);
        _areas[start] = its;
        return its;
    }

    /// <summary>
    /// Frees an area lazily. One that is older than the recording becomes known by that: how many pages are lazy now,
    /// and were before, tells its size.
    /// </summary>
    /// <param name="start">Its first byte.</param>
    /// <param name="lazyPages">Lazy pages, with its own, as recorded.</param>
    /// <param name="cpu">On which CPU of the machine.</param>
    /// <returns>Whether it was known.</returns>
    public unsafe bool Free(ulong start, ulong lazyPages, int cpu)
    {
        ulong pages = _lazyPages is { } before ? lazyPages - before : 0;
        _lazyPages = lazyPages;
        VmapArea* area = Vmap.Find(start);
        bool known = area != null && area->Start == start;
        if (!known)
        {
            // No pool is asked for a range of its own, so none will get it either: its node is not known.
            var request = new VmapRequest(pages << Pfn.PageShift, 1, start, ulong.MaxValue);
            if (pages - 1 >= MostPages || area != null || Overlaps(start, request.Size)
                || Vmap.TakeAt(start, request, cpu) == null)
            {
                return false;
            }
        }

        _areas.Remove(start);
        Vmap.FreeNoflush(Vmap.Unlink(start));
        return known;
    }

    /// <summary>A purge has ended: what is lazy becomes usable again.</summary>
    public void Purge()
    {
        // Frees that come while it runs are in the count of one event and not of the next.
        _lazyPages = null;
        VmapPurge purge = VmapPurge.Begin(full: false);
        foreach (VmapNode node in Vmap.Nodes)
            Vmap.Detach(node, ref purge);
        foreach (VmapNode node in Vmap.Nodes)
            Vmap.Reclaim(node, ref purge);
        Vmap.EndPurge(purge);
    }

    /// <summary>The frame behind an address; <see cref="Pfn.None"/> if nothing is, or if it is not known.</summary>
    public unsafe Pfn Translate(ulong address)
    {
        VmapArea* area = Vmap.Find(address);
        return area != null && _areas.TryGetValue(area->Start, out RecordedArea? its)
            ? its.FrameOf((address - area->Start) >> Pfn.PageShift) : Pfn.None;
    }

    /// <summary>
    /// The way to a frame that is known. Where the tables lie is not recorded; the last entry is made as vmalloc makes
    /// it.
    /// </summary>
    public PageWalk Walk(ulong address)
    {
        Pfn frame = Translate(address);
        var steps = new List<PageWalkStep>(Levels);
        for (int level = Levels; level >= PageTableEntry.PteLevel; level--)
        {
            string name = level == Levels ? "pgd" : level switch { 1 => "pte", 2 => "pmd", 3 => "pud", _ => "p4d" };
            ulong entry = level > PageTableEntry.PteLevel ? PageTableEntry.Table
                : frame.IsValid ? PageTableEntry.Leaf(
                    frame.Value, PageTableEntry.FlagsOf(PageProt.Kernel, CacheMode.WriteBack), level)
                : 0;
            steps.Add(new PageWalkStep(level, name, Pfn.None.Value, PageTableEntry.IndexOf(level, address), entry));
        }

        return new PageWalk(address, steps);
    }

    private unsafe bool Overlaps(ulong start, ulong bytes) =>
        Vmap.FindNext(start) is { } next && next.Start < start + bytes;
}

/// <summary>What a recording tells of a busy area besides its addresses.</summary>
/// <param name="start">First byte.</param>
/// <param name="end">One past the last byte, guard page included.</param>
/// <param name="born">The moment at which it was there: so many events had happened.</param>
internal sealed class RecordedArea(ulong start, ulong end, long born)
{
    private readonly List<(ulong Page, ulong Pfn, ulong Count)> _runs = [];

    public ulong Start => start;

    public ulong End => end;

    public long Born => born;

    /// <summary>Pages whose frames are known, from the first page on.</summary>
    public ulong Mapped { get; private set; }

    /// <summary>The frames of its next pages.</summary>
    /// <returns>False if all pages have theirs; the last one of an area is its guard page.</returns>
    public bool Map(ulong pfn, ulong count)
    {
        ulong pages = (end - start) >> Pfn.PageShift;
        if (Mapped + count >= pages)
            return false;

        _runs.Add((Mapped, pfn, count));
        Mapped += count;
        return true;
    }

    public Pfn FrameOf(ulong page)
    {
        foreach ((ulong first, ulong pfn, ulong count) in _runs)
        {
            if (page - first < count)
                return new Pfn(pfn + (page - first));
        }

        return Pfn.None;
    }
}
