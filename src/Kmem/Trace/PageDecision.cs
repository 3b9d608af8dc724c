namespace Kmem;

/// <summary>
/// How a request for pages was decided, as values: which zones were looked at with which numbers, where the block came
/// from, and what the slow path did.
/// </summary>
public sealed record PageDecision
{
    /// <summary>The event of the recording, or the number of the request in the machine's memory of events.</summary>
    public long Event { get; init; }

    /// <summary>The CPU that asked.</summary>
    public int Cpu { get; init; }

    /// <summary>2^order frames were asked for.</summary>
    public int Order { get; init; }

    /// <summary>With these flags.</summary>
    public Gfp Gfp { get; init; }

    /// <summary>The migrate type that follows from them.</summary>
    public Migratetype Type { get; init; }

    /// <summary>The block; <see cref="Pfn.None"/> if the request failed.</summary>
    public Pfn Block { get; init; }

    /// <summary>The zones of the zonelist in order, with the numbers of the moment before the request.</summary>
    public IReadOnlyList<ZoneVerdict> Zones { get; init; } = [];

    /// <summary>Where the block came from; null if the request failed.</summary>
    public BlockSource? Source { get; init; }

    /// <summary>What the slow path did, in order; empty if the fast path was enough.</summary>
    public IReadOnlyList<SlowStep> SlowPath { get; init; } = [];
}

/// <summary>What a request found in one zone.</summary>
/// <param name="Node">Node of the zone.</param>
/// <param name="Zone">Its name.</param>
/// <param name="Result">How the zone answered in the end.</param>
/// <param name="Free">Frames free, as the watermark check counts them.</param>
/// <param name="Min">Watermark MIN, with boost.</param>
/// <param name="Low">Watermark LOW, with boost.</param>
/// <param name="High">Watermark HIGH, with boost.</param>
/// <param name="Boost">The part of the watermarks that fallbacks have added.</param>
/// <param name="Reserve">Frames kept back from requests that could have used a higher zone (lowmem_reserve).</param>
/// <param name="OnCpuList">Blocks that the CPU's list for this order and type had.</param>
/// <param name="LargestFree">The largest order with a free block of the migrate type; -1 if there is none.</param>
public sealed record ZoneVerdict(
    int Node, string Zone, ZoneResult Result, long Free, long Min, long Low, long High, long Boost, long Reserve,
    int OnCpuList, int LargestFree);

/// <summary>How a zone answered a request.</summary>
public enum ZoneResult
{
    /// <summary>It was not asked: a zone before it gave the block.</summary>
    NotAsked,

    /// <summary>It gave the block.</summary>
    Served,

    /// <summary>It is below the watermark, or has no block of the order.</summary>
    BelowWatermark,

    /// <summary>It is above the watermark, but no list had a block that the request may have.</summary>
    NoBlock,
}

/// <summary>Where a block came from.</summary>
/// <param name="Place">The list that gave it.</param>
/// <param name="FoundOrder">The order of the free block that it was cut from.</param>
/// <param name="Splits">How often that was halved.</param>
/// <param name="FoundType">The migrate type of the list that it was found on.</param>
/// <param name="Stolen">It was another migrate type's.</param>
/// <param name="BlockClaimed">The whole pageblock changed its type with it.</param>
/// <param name="LeftBuddyAt">The event that took it from the buddy system: an earlier one if it waited on a CPU's
/// list.</param>
public sealed record BlockSource(
    BlockPlace Place, int FoundOrder, int Splits, Migratetype FoundType, bool Stolen, bool BlockClaimed,
    long LeftBuddyAt);

/// <summary>The list that gave a block.</summary>
public enum BlockPlace
{
    /// <summary>This CPU's list had it.</summary>
    CpuList,

    /// <summary>This CPU's list was empty, and was filled up for this request.</summary>
    CpuListRefilled,

    /// <summary>A free list of the buddy system.</summary>
    FreeList,
}

/// <summary>One step of the slow path (__alloc_pages_slowpath, mm/page_alloc.c, Linux 6.18).</summary>
public enum SlowStep
{
    /// <summary>No zone was above LOW: the slow path began.</summary>
    Entered,

    /// <summary>kswapd was woken.</summary>
    WokeKswapd,

    /// <summary>All zones were tried again, down to MIN or into the reserves.</summary>
    TriedAtMin,

    /// <summary>Direct reclaim ran.</summary>
    Reclaimed,

    /// <summary>The lists of all CPUs were emptied into the buddy system.</summary>
    DrainedCpuLists,

    /// <summary>Compaction was asked.</summary>
    Compacted,

    /// <summary>Pageblocks of the highatomic reserve were given back.</summary>
    UnreservedHighAtomic,

    /// <summary>The last attempt at HIGH before somebody is killed.</summary>
    TriedBeforeOom,

    /// <summary>Somebody was to be killed.</summary>
    OutOfMemory,

    /// <summary>It was given up.</summary>
    Failed,
}

/// <summary>Where an object came from: the stations of a request to a cache, nearest first (mm/slub.c, Linux
/// 6.18).</summary>
public enum ObjectSource
{
    /// <summary>This CPU's free list, or its sheaf.</summary>
    CpuFreeList,

    /// <summary>The CPU's other sheaf: the main one was empty.</summary>
    SpareSheaf,

    /// <summary>A full sheaf from the node's barn.</summary>
    Barn,

    /// <summary>This CPU's slab: objects that other CPUs had freed into it.</summary>
    CpuSlab,

    /// <summary>A partial slab that was kept for this CPU.</summary>
    CpuPartial,

    /// <summary>A slab from the node's partial list.</summary>
    NodePartial,

    /// <summary>A new slab, made of pages.</summary>
    NewSlab,
}
