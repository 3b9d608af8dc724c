namespace Kmem;

/// <summary>
/// Everything that a machine knows about one address, as values: where it lies, what it is, who had it, and why it came
/// from there. <see cref="Sentence"/> is made from the other members; nobody needs to parse it.
/// </summary>
/// <remarks>Made by <see cref="Machine.Explain(VirtAddr)"/>. Plain data: it does not change with the machine.</remarks>
public sealed record Explanation
{
    /// <summary>The address asked for, as the kernel would print it.</summary>
    public required VirtAddr Address { get; init; }

    /// <summary>The address that a recording has for it; null if it was not asked for by one.</summary>
    public VirtAddr? Recorded { get; init; }

    /// <summary>Events replayed before this answer; 0 if the machine does not replay a recording.</summary>
    public long AtEvent { get; init; }

    /// <summary>The part of the address space: <c>direct map</c>, <c>vmalloc space</c>, <c>page descriptors</c>,
    /// <c>elsewhere</c>, <c>not canonical</c>.</summary>
    public required string Region { get; init; }

    /// <summary>What is there, in one word.</summary>
    public required AddressKind Kind { get; init; }

    /// <summary>The zone of the frame; null if no frame of the machine is behind the address.</summary>
    public ExplainedZone? Zone { get; init; }

    /// <summary>The pageblock of the frame, or null.</summary>
    public ExplainedPageblock? Pageblock { get; init; }

    /// <summary>The frame behind the address, or null.</summary>
    public ExplainedPage? Page { get; init; }

    /// <summary>For a free frame: the block it is part of, and why that is not larger.</summary>
    public ExplainedFreeBlock? FreeBlock { get; init; }

    /// <summary>For a frame on a list of a CPU: which.</summary>
    public ExplainedPcpEntry? Pcp { get; init; }

    /// <summary>The slab, if the frame is part of one.</summary>
    public ExplainedSlab? Slab { get; init; }

    /// <summary>The object of the slab, or the large kmalloc block; null between objects.</summary>
    public ExplainedObject? Object { get; init; }

    /// <summary>For a page table: its level and what it maps.</summary>
    public ExplainedTable? Table { get; init; }

    /// <summary>The area of the vmalloc space that the address lies in, or that the frame belongs to.</summary>
    public ExplainedArea? Area { get; init; }

    /// <summary>The way through the page tables; null if the machine has none.</summary>
    public ExplainedMapping? Mapping { get; init; }

    /// <summary>Allocations and frees of this object and of its frame, oldest first, as far as they were recorded
    /// (<see cref="MachineOptions.RememberEvents"/>; a replay that was asked to).</summary>
    public IReadOnlyList<LifeEvent> Life { get; init; } = [];

    /// <summary>Further events that were recorded and are left out of <see cref="Life"/>.</summary>
    public long LifeOmitted { get; init; }

    /// <summary>Why the frame came from where it came; null if that was not recorded.</summary>
    public PageDecision? Decision { get; init; }

    /// <summary>All of it in one sentence.</summary>
    public required string Sentence { get; init; }

    /// <summary>The values as JSON: camelCase, addresses and frames as texts in hexadecimal.</summary>
    /// <returns>An indented object.</returns>
    public string ToJson() => ExplanationJson.Write(this);
}

/// <summary>What is behind an address.</summary>
public enum AddressKind
{
    /// <summary>No memory: nothing is mapped there, or it is a hole.</summary>
    Nothing,

    /// <summary>Taken at boot, or for another reason never given to the page allocator.</summary>
    Reserved,

    /// <summary>In a free block of the buddy system.</summary>
    FreeBlock,

    /// <summary>On a list of a CPU: free, but not for everybody.</summary>
    PcpList,

    /// <summary>A page table.</summary>
    PageTable,

    /// <summary>An allocated object of a slab.</summary>
    SlabObject,

    /// <summary>A free object of a slab.</summary>
    FreeObject,

    /// <summary>Part of a slab that belongs to no object: red zone, padding, the rest at its end.</summary>
    SlabPadding,

    /// <summary>A kmalloc block of whole pages.</summary>
    LargeKmalloc,

    /// <summary>A page of an area of the vmalloc space.</summary>
    VmallocPage,

    /// <summary>The guard page behind an area.</summary>
    GuardPage,

    /// <summary>An allocated block of pages whose owner the allocators do not know.</summary>
    Pages,
}

/// <summary>A zone at this moment; all counts are frames.</summary>
/// <param name="Node">Its node.</param>
/// <param name="Name">For example <c>Normal</c>.</param>
/// <param name="Start">First frame.</param>
/// <param name="Spanned">Frames from the first to the last, holes included.</param>
/// <param name="Managed">Those given to the page allocator.</param>
/// <param name="Free">On the free lists.</param>
/// <param name="OnPcpLists">On lists of CPUs.</param>
/// <param name="Min">Watermark MIN, with boost.</param>
/// <param name="Low">Watermark LOW, with boost.</param>
/// <param name="High">Watermark HIGH, with boost.</param>
/// <param name="Boost">The part of the watermarks that a fallback has added.</param>
/// <param name="FreeBlocks">Free blocks of order 0 to 10.</param>
public sealed record ExplainedZone(
    int Node, string Name, Pfn Start, ulong Spanned, long Managed, long Free, long OnPcpLists, long Min, long Low,
    long High, long Boost, IReadOnlyList<long> FreeBlocks);

/// <summary>A pageblock: 512 frames of one migrate type.</summary>
/// <param name="First">First frame.</param>
/// <param name="Type">Its migrate type.</param>
/// <param name="Free">Frames in free blocks.</param>
/// <param name="OnPcpLists">Frames on lists of CPUs.</param>
/// <param name="InUse">Frames of allocated blocks.</param>
/// <param name="Other">The rest: reserved, or holes.</param>
public sealed record ExplainedPageblock(
    Pfn First, Migratetype Type, int Free, int OnPcpLists, int InUse, int Other);

/// <summary>A page frame.</summary>
/// <param name="Frame">Its number.</param>
/// <param name="DirectMap">The address of its first byte in the direct map.</param>
/// <param name="Descriptor">The address of its <c>struct page</c>.</param>
/// <param name="Order">The order of the block that it is part of.</param>
/// <param name="BlockFirst">The first frame of that block.</param>
/// <param name="References">References to the block; 0 for free ones and for "frozen" ones, such as slabs.</param>
/// <param name="Flags">Names of the flags that are set.</param>
public sealed record ExplainedPage(
    Pfn Frame, VirtAddr DirectMap, VirtAddr Descriptor, int Order, Pfn BlockFirst, int References,
    IReadOnlyList<string> Flags);

/// <summary>A free block.</summary>
/// <param name="First">Its first frame.</param>
/// <param name="Order">Its order.</param>
/// <param name="List">The migrate type of the list that it is on.</param>
/// <param name="Position">How many blocks of that list go first; -1 if it is not on it.</param>
/// <param name="Buddy">The other half of the next larger block.</param>
/// <param name="BuddyUse">What that is used for, and so why the two are not one block.</param>
public sealed record ExplainedFreeBlock(
    Pfn First, int Order, Migratetype List, int Position, Pfn Buddy, string BuddyUse);

/// <summary>A block on a list of a CPU.</summary>
/// <param name="Cpu">The CPU.</param>
/// <param name="First">Its first frame.</param>
/// <param name="Order">Its order.</param>
/// <param name="List">The migrate type of the list.</param>
/// <param name="Position">How many blocks go before it.</param>
/// <param name="Length">Blocks on the list.</param>
public sealed record ExplainedPcpEntry(int Cpu, Pfn First, int Order, Migratetype List, int Position, int Length);

/// <summary>A slab.</summary>
/// <param name="Cache">Its cache.</param>
/// <param name="First">Its first frame.</param>
/// <param name="Order">Its order.</param>
/// <param name="ObjectSize">Bytes of an object.</param>
/// <param name="SlotSize">Bytes from one object to the next.</param>
/// <param name="Objects">Objects in it.</param>
/// <param name="Live">Objects that a user has.</param>
/// <param name="InUse">As SLUB counts: those that are not on the slab's own free list.</param>
/// <param name="Place">Where it is: <c>current slab of CPU 0</c>, <c>partial list of node 0</c>, <c>full</c> …</param>
/// <param name="FirstFree">Number of the first object of its own free list; null if that is empty.</param>
public sealed record ExplainedSlab(
    string Cache, Pfn First, int Order, int ObjectSize, int SlotSize, int Objects, int Live, int InUse, string Place,
    int? FirstFree);

/// <summary>An object.</summary>
/// <param name="Number">Its number in the slab; 0 for a large block.</param>
/// <param name="Start">Its first byte.</param>
/// <param name="Size">Bytes that its user may write.</param>
/// <param name="Offset">Where in it the address is, in bytes.</param>
/// <param name="Allocated">Whether a user has it (the map of live objects).</param>
/// <param name="FreeOn">For a free one: whose free list it is on, and how many go before it.</param>
public sealed record ExplainedObject(
    int Number, VirtAddr Start, long Size, long Offset, bool Allocated, string? FreeOn)
{
    /// <summary>Who allocated it last, if its cache remembers (slab_debug=U,
    /// <see cref="MachineOptions.SlubDebug"/>).</summary>
    public string? AllocatedBy { get; init; }

    /// <summary>Who freed it last, if its cache remembers.</summary>
    public string? FreedBy { get; init; }
}

/// <summary>A page table.</summary>
/// <param name="Name">pgd, p4d, pud, pmd or pte.</param>
/// <param name="Level">1 for a table of PTEs, and so on up.</param>
/// <param name="Maps">The first address that its entries are for.</param>
/// <param name="Present">Entries that lead somewhere, of 512.</param>
public sealed record ExplainedTable(string Name, int Level, VirtAddr Maps, int Present);

/// <summary>An area of the vmalloc space.</summary>
/// <param name="Start">First byte.</param>
/// <param name="End">One past the last byte, guard page included.</param>
/// <param name="Caller">The call that made it, if known.</param>
/// <param name="Pages">Pages it has; 0 for mappings without pages of their own.</param>
/// <param name="Page">Which of its pages the address is in, from 0.</param>
/// <param name="State">busy, or freed and not purged yet.</param>
public sealed record ExplainedArea(VirtAddr Start, VirtAddr End, string Caller, long Pages, long Page, string State);

/// <summary>The way through the page tables.</summary>
/// <param name="Mapped">Whether it ends at a frame.</param>
/// <param name="Steps">The entries read, from the root.</param>
/// <param name="Physical">The physical address; null if nothing is mapped.</param>
/// <param name="LeafBytes">Bytes that the last entry maps; 0 if nothing is mapped.</param>
/// <param name="Rights">What may be done there.</param>
/// <param name="CacheMode">How it is cached.</param>
public sealed record ExplainedMapping(
    bool Mapped, IReadOnlyList<ExplainedStep> Steps, PhysAddr? Physical, ulong LeafBytes, string Rights,
    string CacheMode);

/// <summary>One entry on the way.</summary>
/// <param name="Level">pgd, p4d, pud, pmd or pte.</param>
/// <param name="Table">Where the table is; null if that is not known (the root of a recorded kernel).</param>
/// <param name="Index">Which of its 512 entries.</param>
/// <param name="Entry">Its value.</param>
/// <param name="Flags">The names of its bits.</param>
public sealed record ExplainedStep(string Level, PhysAddr? Table, int Index, VirtAddr Entry, string Flags);
