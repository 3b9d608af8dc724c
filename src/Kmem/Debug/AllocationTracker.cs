using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;
using System.Text;

namespace Kmem;

/// <summary>
/// Who holds what: every allocation of a machine with the stack that made it, by
/// <see cref="MachineOptions.TrackAllocations"/>. From it come the texts of /proc/allocinfo and page_owner, and the
/// leak scan (<see cref="ScanForLeaks"/>).
/// <code>
///   allocation ──▶ address → size, stack number, when ──┬─▶ by source line:  bytes, calls       AllocInfo
///   frames     ──▶ pfn     → order, flags, stack       ─┼─▶ block by block                      PageOwner
///                                                       └─▶ reachable from the roots, or not    ScanForLeaks
/// </code>
/// </summary>
/// <remarks>
/// lib/alloc_tag.c, mm/page_owner.c, mm/kmemleak.c, Linux 6.18. Thread-safe but for the scan. Each allocation walks the
/// stack, which takes microseconds.
/// </remarks>
public sealed partial class AllocationTracker : IAllocationWatch
{
    private readonly SlabAllocator _slabs;
    private readonly PageblockMap _blocks;
    private readonly ConcurrentDictionary<nint, Tracked> _live = new();
    private readonly ConcurrentDictionary<ulong, TrackedPages> _pages = new();
    private readonly long _boot = Stopwatch.GetTimestamp();

    internal AllocationTracker(SlabAllocator slabs, PageblockMap blocks)
    {
        _slabs = slabs;
        _blocks = blocks;
    }

    /// <summary>
    /// Objects, large blocks and areas that are allocated now, those of the allocators themselves too.
    /// </summary>
    public int Count => _live.Count;

    /// <summary>What is allocated now, by the source line that asked for it, most bytes first.</summary>
    /// <returns>A value for each line; blocks of frames are not among them.</returns>
    public IReadOnlyList<AllocationTag> Tags() =>
    [
        .. _live.Values.GroupBy(it => (it.Stack, it.Source)).GroupBy(
                group => (Site: _slabs.Stacks.SiteOf(group.Key.Stack), group.Key.Source))
            .Select(site => new AllocationTag(
                site.Key.Site,
                site.Key.Source,
                site.Sum(stack => stack.LongCount()),
                site.Sum(stack => stack.Sum(it => (long)it.Bytes))))
            .OrderByDescending(tag => tag.Bytes)
            .ThenBy(tag => tag.Site, StringComparer.Ordinal)
            .ThenBy(tag => tag.Source, StringComparer.Ordinal),
    ];

    /// <summary>The text of /proc/allocinfo: bytes, calls and source line, most bytes first.</summary>
    /// <returns>Two lines of heading and one for each source line that holds something.</returns>
    public string AllocInfo()
    {
        var text = new StringBuilder("allocinfo - version: 1.0\n#     <size>  <calls> <tag info>\n");
        foreach (var site in Tags().GroupBy(tag => tag.Site, StringComparer.Ordinal))
        {
            long bytes = site.Sum(tag => tag.Bytes);
            text.Append(CultureInfo.InvariantCulture, $"{bytes,12} {site.Sum(tag => tag.Count),8} ")
                .Append(site.Key).Append('\n');
        }

        return text.ToString();
    }

    /// <summary>The text of debugfs page_owner: each block of frames in use, with who allocated it.</summary>
    /// <returns>Blocks in order of address, an empty line behind each.</returns>
    public string PageOwner()
    {
        var text = new StringBuilder();
        int process = Environment.ProcessId;
        foreach ((ulong pfn, TrackedPages pages) in _pages.OrderBy(entry => entry.Key))
        {
            Migratetype block = _blocks.TypeOf(pfn);
            ulong flags;
            unsafe
            {
                flags = (ulong)_slabs.Map.PageOf(pfn)->Flags & ((1UL << 40) - 1);
            }

            text.Append(CultureInfo.InvariantCulture, $"Page allocated via order {pages.Order}, ")
                .Append(CultureInfo.InvariantCulture, $"mask 0x{(uint)pages.Gfp:x}({pages.Gfp.ToKernelString()}), ")
                .Append(CultureInfo.InvariantCulture, $"pid {pages.Thread}, tgid {process} (dotnet), ")
                .Append(CultureInfo.InvariantCulture, $"ts {pages.At} ns\n")
                .Append(CultureInfo.InvariantCulture, $"PFN 0x{pfn:x} type {pages.Gfp.ToMigratetype()} ")
                .Append(CultureInfo.InvariantCulture, $"Block {pfn / PageOrder.PageblockPages} type {block} ")
                .Append(CultureInfo.InvariantCulture, $"Flags 0x{flags:x}\n");
            foreach (string frame in _slabs.Stacks.Find(pages.Stack) ?? [])
                text.Append(' ').Append(frame).Append('\n');
            text.Append('\n');
        }

        return text.ToString();
    }

    void IAllocationWatch.Allocated(nint address, nuint bytes, AllocationKind kind, string source) =>
        _live[address] = new Tracked(
            address, bytes, kind, source, _slabs.Stacks.Capture(), Environment.CurrentManagedThreadId, Nanoseconds);

    void IAllocationWatch.Disown(nint address)
    {
        if (_live.TryGetValue(address, out Tracked? it))
            it.Colour = LeakColour.Grey;
    }

    void IAllocationWatch.Resized(nint address, nuint bytes)
    {
        if (_live.TryGetValue(address, out Tracked? it))
            it.Bytes = bytes;
    }

    void IAllocationWatch.Freed(nint address) => _live.TryRemove(address, out _);

    void IAllocationWatch.PagesAllocated(ulong pfn, int order, Gfp gfp) =>
        _pages[pfn] = new TrackedPages(
            order, gfp, _slabs.Stacks.Capture(), Environment.CurrentManagedThreadId, Nanoseconds);

    void IAllocationWatch.PagesFreed(ulong pfn, int order)
    {
        if (_pages.TryGetValue(pfn, out TrackedPages? whole) && whole.Order == order)
        {
            _pages.TryRemove(pfn, out _);
            return;
        }

        // A part of a block: what is left of it are blocks of their own.
        for (int above = order; above <= PageOrder.Max; above++)
        {
            ulong head = pfn & ~((1UL << above) - 1);
            if (!_pages.TryGetValue(head, out whole) || whole.Order < above || !_pages.TryRemove(head, out _))
                continue;

            for (int part = whole.Order - 1; part >= order; part--)
            {
                ulong half = head + (1UL << part);
                bool isUpper = pfn >= half;
                _pages[isUpper ? head : half] = whole with { Order = part };
                head = isUpper ? half : head;
            }

            return;
        }
    }

    /// <summary>For checks: the frames it believes to be in use.</summary>
    internal long FramesInUse => _pages.Values.Sum(pages => 1L << pages.Order);

    private long Nanoseconds => (long)Stopwatch.GetElapsedTime(_boot).TotalNanoseconds;

    /// <summary>How the leak scan sees an object.</summary>
    private enum LeakColour : byte
    {
        /// <summary>Somebody must refer to it.</summary>
        White,

        /// <summary>In use, whoever refers to it, and scanned.</summary>
        Grey,

        /// <summary>In use, and not scanned.</summary>
        Black,
    }

    /// <summary>One allocation.</summary>
    private sealed class Tracked(
        nint address, nuint bytes, AllocationKind kind, string source, int stack, int thread, long at)
    {
        public nint Address { get; } = address;

        public nuint Bytes { get; set; } = bytes;

        public AllocationKind Kind { get; } = kind;

        public string Source { get; } = source;

        public int Stack { get; } = stack;

        public int Thread { get; } = thread;

        /// <summary>Nanoseconds since boot.</summary>
        public long At { get; } = at;

        /// <summary>What the program said of it, or the allocators.</summary>
        public LeakColour Colour { get; set; }

        /// <summary>Of its content, at the scan before.</summary>
        public uint? Checksum { get; set; }
    }

    private sealed record TrackedPages(int Order, Gfp Gfp, int Stack, int Thread, long At);
}

/// <summary>What one source line holds.</summary>
/// <param name="Site">File, line and function, or what is known of them: <c>Program.cs:12 func:Main</c>.</param>
/// <param name="Source">The cache, <c>kmalloc</c> for large blocks, or <c>vmalloc</c>.</param>
/// <param name="Count">Allocations.</param>
/// <param name="Bytes">Their bytes, as asked for.</param>
public sealed record AllocationTag(string Site, string Source, long Count, long Bytes);
