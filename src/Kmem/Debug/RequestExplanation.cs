namespace Kmem;

/// <summary>
/// What a request for pages would find now, or has just failed on, as values: what each zone lacks, and which objects
/// stand in the way.
/// </summary>
/// <remarks>Made by <see cref="Machine.ExplainRequest"/>. Plain data: it does not change with the machine.</remarks>
public sealed record RequestExplanation
{
    /// <summary>2^order frames.</summary>
    public required int Order { get; init; }

    /// <summary>Flags, as the scopes of the asking task leave them.</summary>
    public required Gfp Gfp { get; init; }

    /// <summary>The migrate type that follows from them.</summary>
    public required Migratetype Type { get; init; }

    /// <summary>Events replayed before this answer; 0 if the machine does not replay a recording.</summary>
    public long AtEvent { get; init; }

    /// <summary>Whether some zone has what is asked for, at the lowest watermark that the flags allow.</summary>
    public required bool WouldSucceed { get; init; }

    /// <summary>The zones of the zonelist, best first.</summary>
    public required IReadOnlyList<ZoneLack> Zones { get; init; }

    /// <summary>
    /// The blocks that the fewest objects keep from being free, best first: of the order asked for, or of the larger
    /// one that gives back what is missing to the watermark. Empty if the request would succeed, or if no block could
    /// ever be free.
    /// </summary>
    public IReadOnlyList<PinnedBlock> Pinned { get; init; } = [];

    /// <summary>Blocks of the order that can never be free: parts of them were taken at boot, or are holes.</summary>
    public long NeverFree { get; init; }

    /// <summary>How such a request was decided when it failed; null if no failure was recorded.</summary>
    public PageDecision? Decision { get; init; }

    /// <summary>All of it in one sentence.</summary>
    public required string Sentence { get; init; }

    /// <summary>The values as JSON: camelCase, addresses and frames as texts in hexadecimal.</summary>
    /// <returns>An indented object.</returns>
    public string ToJson() => ExplanationJson.Write(this);
}

/// <summary>What one zone has, and what it lacks for a request; all counts are frames.</summary>
/// <param name="Node">Its node.</param>
/// <param name="Zone">Its name.</param>
/// <param name="Free">Frames free.</param>
/// <param name="Min">Watermark MIN, with boost.</param>
/// <param name="Low">Watermark LOW, with boost.</param>
/// <param name="Reserve">Frames kept back from requests that could have used a higher zone.</param>
/// <param name="AboveLow">Whether the fast path would be served.</param>
/// <param name="AboveMin">Whether the slow path would be served.</param>
/// <param name="MissingFrames">Frames that must become free until MIN and reserve are kept; 0 if that is no
/// problem.</param>
/// <param name="LargestUsable">The largest order free on a list that the request may take from; -1 for none.</param>
/// <param name="FreeBlocks">Free blocks of order 0 to 10.</param>
/// <param name="OnCpuLists">Frames on CPUs' lists, which a failing request takes back before it gives up.</param>
/// <param name="ExtfragIndex">Near 0: it would fail for lack of memory; near 1: because memory is cut up; -1: it would
/// not fail (extfrag_index).</param>
/// <param name="UnusableIndex">The part of free memory in blocks that are too small, 0 to 1 (unusable_index).</param>
public sealed record ZoneLack(
    int Node, string Zone, long Free, long Min, long Low, long Reserve, bool AboveLow, bool AboveMin,
    long MissingFrames, int LargestUsable, IReadOnlyList<long> FreeBlocks, long OnCpuLists, double ExtfragIndex,
    double UnusableIndex);

/// <summary>A block that would be free if some objects were.</summary>
/// <param name="First">Its first frame.</param>
/// <param name="Order">Its order.</param>
/// <param name="Node">Node of its zone.</param>
/// <param name="Zone">Name of its zone.</param>
/// <param name="Type">Migrate type of its pageblock.</param>
/// <param name="FramesFree">Frames in it that are free already.</param>
/// <param name="FramesInUse">Frames that the objects keep: what freeing them gives back.</param>
/// <param name="Objects">How many objects have to be freed.</param>
/// <param name="Pins">The first of them, by address.</param>
public sealed record PinnedBlock(
    Pfn First, int Order, int Node, string Zone, Migratetype Type, int FramesFree, int FramesInUse, long Objects,
    IReadOnlyList<Pin> Pins);

/// <summary>Something in use that keeps a block from being free.</summary>
/// <param name="Kind">What it is.</param>
/// <param name="Address">Where it starts, in the direct map.</param>
/// <param name="Bytes">Its size.</param>
/// <param name="What">The cache, or what is known of it.</param>
/// <param name="AllocatedAt">The event that allocated it; 0 if that was not recorded.</param>
/// <param name="CallSite">Who allocated it, if recorded.</param>
public sealed record Pin(PinKind Kind, VirtAddr Address, long Bytes, string What, long AllocatedAt, string? CallSite);

/// <summary>What keeps a frame in use.</summary>
public enum PinKind
{
    /// <summary>An object of a slab.</summary>
    SlabObject,

    /// <summary>A slab without live objects, kept by its cache: <see cref="KmemCache.Shrink"/> gives it back.</summary>
    EmptySlab,

    /// <summary>A kmalloc block of whole pages.</summary>
    LargeKmalloc,

    /// <summary>A page table.</summary>
    PageTable,

    /// <summary>A block of pages whose owner is not known.</summary>
    Pages,
}
