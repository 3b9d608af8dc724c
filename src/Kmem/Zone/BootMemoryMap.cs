namespace Kmem;

/// <summary>
/// The memory map of a machine at boot, before there is an allocator: which physical addresses are memory, of which
/// node, and which of them are taken. The kernel's memblock.
/// </summary>
/// <remarks>
/// <code>
/// memory     [4K────────639K)            [1M──────────────3G)    hole    [4G────────5G)
/// reserved [0─────────────────────────1M)      [16M─18M)
/// free                                   [1M─16M)  [18M───3G)            [4G────────5G)
/// </code>
/// Two lists of ranges, sorted and merged. Memory ranges touch only where their nodes differ; a reserved range may
/// reach beyond memory. Addresses are bytes, [start, end). Pages are counted inwards: a frame is present if all of it
/// is memory, free if none of it is reserved. Kernel: <c>struct memblock</c>, mm/memblock.c, Linux 6.18.
/// Not thread safe.
/// </remarks>
public sealed class BootMemoryMap
{
    /// <summary>Bytes of a pageblock: nodes border on its multiples, as a pageblock has one node only.</summary>
    public const ulong PageBlockBytes = 2UL << 20;

    /// <summary>The end of x86-64's physical addresses: 52 bits.</summary>
    public const ulong AddressLimit = 1UL << 52;

    /// <summary>MAX_NUMNODES, with NODES_SHIFT = 10 as on x86-64.</summary>
    internal const int MaxNodes = 1024;

    private const int PageShift = 12;
    private const ulong PageBytes = 1UL << PageShift;
    private const ulong MiB = 1UL << 20;
    private const ulong GiB = 1UL << 30;

    /// <summary>Up to here a machine gets all of its RAM, at <see cref="SmallBase"/>.</summary>
    private const ulong SmallLimit = 12 * MiB;
    private const ulong SmallBase = 4 * MiB;

    private List<BootRegion> _memory = [];
    private List<BootRegion> _reserved = [];

    /// <summary>The ranges of memory, ascending.</summary>
    public IReadOnlyList<BootRegion> Memory => _memory;

    /// <summary>The reserved ranges, ascending; not all need be memory.</summary>
    public IReadOnlyList<BootRegion> Reserved => _reserved;

    /// <summary>Bytes of memory, reserved ones included.</summary>
    public ulong MemoryBytes
    {
        get
        {
            ulong bytes = 0;
            foreach (BootRegion region in _memory) bytes += region.Length;
            return bytes;
        }
    }

    /// <summary>The number behind the last present page frame; 0 without memory. Kernel: max_pfn.</summary>
    public ulong EndPfn
    {
        get
        {
            ulong end = 0;
            foreach (BootPages pages in PresentPages()) end = pages.End;
            return end;
        }
    }

    /// <summary>One more than the highest node number; 0 without memory.</summary>
    public int NodeCount
    {
        get
        {
            int count = 0;
            foreach (BootRegion region in _memory) count = Math.Max(count, region.Node + 1);
            return count;
        }
    }

    /// <summary>
    /// The map of a PC with this much RAM: the first 3 GiB below the device hole, the rest from 4 GiB on; no page 0,
    /// a hole for video and firmware from 640 KiB to 1 MiB, everything below 1 MiB reserved. So about 1 MiB of the RAM
    /// is lost, as in a PC.
    /// </summary>
    /// <remarks>With up to 12 MiB that loss would be felt: such a map has all of its RAM free in one piece from 4 MiB
    /// on, aligned for the largest block and inside the DMA zone, which makes machines of a few frames easy to reason
    /// about.</remarks>
    /// <param name="ramBytes">Bytes of RAM, at least one page; part of a page at the end is lost.</param>
    /// <param name="nodes">NUMA nodes to share the memory evenly.</param>
    /// <exception cref="ArgumentOutOfRangeException">Less than a page, or more than 52 bits address.</exception>
    /// <exception cref="ArgumentException">Too little memory for so many nodes.</exception>
    public static BootMemoryMap ForRam(ulong ramBytes, int nodes = 1)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(ramBytes, PageBytes);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(ramBytes, AddressLimit - GiB);
        var map = new BootMemoryMap();
        if (ramBytes <= SmallLimit)
        {
            map.AddMemory(SmallBase, SmallBase + ramBytes);
        }
        else
        {
            ulong low = Math.Min(ramBytes, 3 * GiB);
            map.AddMemory(0, 0x9fc00);                 // the last KiB below 640 KiB is the BIOS's data area
            map.AddMemory(MiB, low);
            map.AddMemory(4 * GiB, (4 * GiB) + (ramBytes - low));
            map.ApplyPcRules();
        }
        if (nodes != 1) map.SplitIntoNodes(nodes);
        return map;
    }

    /// <summary>Reads the map of a running machine from the text of /proc/iomem: "System RAM" at the top level is
    /// memory; Reserved, Kernel code, rodata, data, bss and Crash kernel are reserved. One node.</summary>
    /// <remarks>Root must have read the file. What the kernel reserved without naming it there is not in the map.
    /// Kernel: <c>r_show</c>, kernel/resource.c, Linux 6.18.</remarks>
    /// <exception cref="ProcFormatException">A line breaks a rule of the format; or there is no System RAM; or all
    /// addresses are zero, which is what the kernel shows to unprivileged readers.</exception>
    public static BootMemoryMap ParseIomem(string text) => BootMapParser.ParseIomem(text);

    /// <summary>Reads the firmware's map from the kernel's boot log: its <c>BIOS-e820: [mem 0x…-0x…] usable</c> lines,
    /// with or without time stamps; other lines are skipped. What any entry calls other than usable is no memory, even
    /// where a usable entry overlaps it, and is reserved. One node.</summary>
    /// <remarks>This is what the firmware says; call <see cref="ApplyPcRules"/> for what the kernel makes of it.
    /// Kernel: <c>e820__print_table</c>, arch/x86/kernel/e820.c, Linux 6.18.</remarks>
    /// <exception cref="ProcFormatException">A BIOS-e820 line breaks a rule of the format, or nothing is usable.
    /// </exception>
    public static BootMemoryMap ParseE820(string text) => BootMapParser.ParseE820(text);

    /// <summary>Adds memory. Where it overlaps older memory, the older node stays. Kernel: memblock_add_node.
    /// </summary>
    /// <param name="start">The first byte's physical address.</param>
    /// <param name="end">The address behind the last byte, up to <see cref="AddressLimit"/>; an empty range adds
    /// nothing.</param>
    /// <param name="node">0 … 1023.</param>
    /// <exception cref="ArgumentOutOfRangeException">The range ends before it starts or is out of bounds.</exception>
    /// <exception cref="ArgumentException">A pageblock would have memory of two nodes; the map is unchanged.
    /// </exception>
    public void AddMemory(ulong start, ulong end, int node = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(node);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(node, MaxNodes);
        CheckRange(start, end);
        List<BootRegion> memory = BootRegions.Add(_memory, new BootRegion(start, end, node));
        CheckNodeBorders(memory);
        _memory = memory;
    }

    /// <summary>Makes a hole: these addresses are no memory any more. Kernel: memblock_remove.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The range ends before it starts or is out of bounds.</exception>
    public void RemoveMemory(ulong start, ulong end)
    {
        CheckRange(start, end);
        _memory = BootRegions.Remove(_memory, start, end);
    }

    /// <summary>Keeps a range from the allocator. It need not be memory, and may be reserved already.
    /// Kernel: memblock_reserve.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The range ends before it starts or is out of bounds.</exception>
    public void Reserve(ulong start, ulong end)
    {
        CheckRange(start, end);
        _reserved = BootRegions.Add(_reserved, new BootRegion(start, end, 0));
    }

    /// <summary>Takes a reservation, or part of it, back. Kernel: memblock_phys_free.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The range ends before it starts or is out of bounds.</exception>
    public void Unreserve(ulong start, ulong end)
    {
        CheckRange(start, end);
        _reserved = BootRegions.Remove(_reserved, start, end);
    }

    /// <summary>What the kernel does to every PC's map: page 0 and 640 KiB … 1 MiB are no memory, all below 1 MiB is
    /// reserved. Kernel: trim_bios_range, setup_arch, arch/x86/kernel/setup.c, Linux 6.18.</summary>
    public void ApplyPcRules()
    {
        RemoveMemory(0, PageBytes);
        RemoveMemory(640 << 10, MiB);
        Reserve(0, MiB);
    }

    /// <summary>Shares the memory evenly among nodes 0, 1, 2 … from low to high addresses, as near as the borders'
    /// multiples of 2 MiB allow.</summary>
    /// <exception cref="ArgumentException">A node would get no memory; the map is unchanged.</exception>
    public void SplitIntoNodes(int nodes)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(nodes);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(nodes, MaxNodes);
        ulong share = MemoryBytes / (ulong)nodes;
        var borders = new ulong[nodes - 1];
        int region = 0;
        ulong below = 0;                               // bytes in the regions before this one
        for (int i = 0; i < borders.Length && _memory.Count > 0; i++)
        {
            ulong wanted = share * ((ulong)i + 1);
            while (wanted - below > _memory[region].Length) below += _memory[region++].Length;
            ulong address = _memory[region].Start + (wanted - below);
            borders[i] = (address + (PageBlockBytes / 2)) / PageBlockBytes * PageBlockBytes;
        }
        SplitIntoNodesAt(borders);
    }

    /// <summary>Cuts the memory into nodes at these physical addresses: below the first is node 0.</summary>
    /// <param name="borders">Ascending multiples of 2 MiB.</param>
    /// <exception cref="ArgumentException">A border is no multiple of 2 MiB or out of order, or a node would get no
    /// memory; the map is unchanged.</exception>
    public void SplitIntoNodesAt(params ReadOnlySpan<ulong> borders)
    {
        if (borders.Length >= MaxNodes) throw new ArgumentException($"more than {MaxNodes} nodes", nameof(borders));
        foreach (ulong border in borders)
        {
            if (border % PageBlockBytes != 0)
                throw new ArgumentException($"the node border 0x{border:x} is no multiple of 2 MiB", nameof(borders));
        }

        List<BootRegion> memory = BootRegions.CutIntoNodes(_memory, borders);
        int next = 0;
        foreach (BootRegion region in memory)
        {
            if (region.Node == next) next++;
            else if (region.Node > next) break;
        }
        if (next <= borders.Length)
        {
            throw new ArgumentException(
                $"node {next} of {borders.Length + 1} would have no memory: the borders must ascend, " +
                "and a node needs at least one pageblock of 2 MiB",
                nameof(borders));
        }
        _memory = memory;
    }

    /// <summary>Memory without its reserved parts, ascending; one node each. Kernel: for_each_free_mem_range.</summary>
    public IEnumerable<BootRegion> FreeRanges() => BootRegions.Without(_memory, _reserved);

    /// <summary>The page frames that boot hands to the buddy system: whole and free, ascending.
    /// Kernel: free_low_memory_core_early, mm/memblock.c, Linux 6.18.</summary>
    public IEnumerable<BootPages> FreePages() => Pages(FreeRanges());

    /// <summary>The page frames that are memory, reserved or not, ascending. Kernel: for_each_mem_pfn_range.</summary>
    public IEnumerable<BootPages> PresentPages() => Pages(_memory);

    /// <summary>Whether this physical address is memory, reserved or not.</summary>
    public bool IsMemory(ulong address) => BootRegions.IndexOf(_memory, address) >= 0;

    /// <summary>Whether this physical address is reserved, memory or not.</summary>
    public bool IsReserved(ulong address) => BootRegions.IndexOf(_reserved, address) >= 0;

    /// <summary>The node of a page frame; −1 if the frame is not present, that is not wholly memory.</summary>
    public int NodeOfPage(ulong pfn)
    {
        if (pfn >= AddressLimit >> PageShift) return -1;
        int index = BootRegions.IndexOf(_memory, pfn << PageShift);
        return index >= 0 && (pfn + 1) << PageShift <= _memory[index].End ? _memory[index].Node : -1;
    }

    /// <summary>The number of present page frames in [startPfn, endPfn).</summary>
    public ulong CountPresent(ulong startPfn, ulong endPfn)
    {
        ulong count = 0;
        foreach (BootPages pages in PresentPages())
        {
            ulong from = Math.Max(pages.Start, startPfn), to = Math.Min(pages.End, endPfn);
            if (from < to) count += to - from;
        }
        return count;
    }

    /// <summary>The number of page frames in [startPfn, endPfn) that are not present.
    /// Kernel: absent_pages_in_range, mm/mm_init.c, Linux 6.18.</summary>
    public ulong CountHoles(ulong startPfn, ulong endPfn) =>
        startPfn < endPfn ? endPfn - startPfn - CountPresent(startPfn, endPfn) : 0;

    private static IEnumerable<BootPages> Pages(IEnumerable<BootRegion> regions)
    {
        foreach (BootRegion region in regions)
        {
            ulong start = (region.Start + PageBytes - 1) >> PageShift;   // PFN_UP
            ulong end = region.End >> PageShift;                         // PFN_DOWN
            if (start < end) yield return new BootPages(start, end, region.Node);
        }
    }

    private static void CheckRange(ulong start, ulong end)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(start, end);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(end, AddressLimit);
    }

    private static void CheckNodeBorders(List<BootRegion> memory)
    {
        for (int i = 1; i < memory.Count; i++)
        {
            BootRegion left = memory[i - 1], right = memory[i];
            if (left.Node == right.Node || (left.End - 1) / PageBlockBytes != right.Start / PageBlockBytes) continue;
            throw new ArgumentException(
                $"node {left.Node} ends at 0x{left.End:x} and node {right.Node} starts at 0x{right.Start:x}, " +
                "in one pageblock: node boundaries must be multiples of 2 MiB");
        }
    }
}
