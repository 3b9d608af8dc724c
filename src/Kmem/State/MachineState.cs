using System.IO.Compression;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace Kmem;

/// <summary>
/// The complete state of a machine's allocators at one instant, as plain data: free lists in order, per-CPU lists with
/// their tuning, slabs with their free lists in order, what each CPU holds of each cache. The JSON form is the one in
/// which the state of real kernels is recorded.
/// </summary>
/// <remarks>
/// Addresses are the kernel's; in JSON they are strings in hexadecimal. Lists of frames are texts, head first.
/// </remarks>
internal sealed record MachineState
{
    public int NrCpu { get; init; } = 1;

    public int MinFreeKbytes { get; init; }

    public long TotalreservePages { get; init; }

    public IReadOnlyList<ZoneState> Zones { get; init; } = [];

    public IReadOnlyList<CacheState> Caches { get; init; } = [];

    /// <summary>Cache names by kmalloc type (normal, reclaimable, DMA) and size index.</summary>
    public IReadOnlyList<IReadOnlyList<string?>> KmallocCaches { get; init; } = [];

    /// <summary>
    /// Every slab; in JSON a row of [pfn, order, cache, inuse, objects, frozen, on list, [free indices]].
    /// </summary>
    [JsonConverter(typeof(SlabRowsConverter))]
    public IReadOnlyList<SlabRow> Slabs { get; init; } = [];

    /// <summary>Runs [pfn, count] of frames on LRU lists.</summary>
    public IReadOnlyList<ulong[]> LruPages { get; init; } = [];

    /// <summary>The vmalloc space; null if the machine never used it.</summary>
    [JsonConverter(typeof(VmapStateConverter))]
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public VmapState? Vmap { get; init; }

    /// <summary>
    /// What only a machine's own state has, and a kernel's recording has not: blocks in use that are not slabs, names
    /// that were merged into other caches, page tables. Null in a kernel's state.
    /// </summary>
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public OwnState? Own { get; init; }

    /// <summary>Reads a state, plain or gzip.</summary>
    /// <exception cref="InvalidDataException">The text is not such a state.</exception>
    public static MachineState Read(string path)
    {
        using FileStream file = File.OpenRead(path);
        bool gzip = file.ReadByte() == 0x1f && file.ReadByte() == 0x8b;
        file.Position = 0;
        using Stream text = gzip ? new GZipStream(file, CompressionMode.Decompress) : file;
        MachineState state;
        try
        {
            state = JsonSerializer.Deserialize(text, MachineStateJson.Default.MachineState)
                ?? throw new InvalidDataException("it is empty");
        }
        catch (Exception error) when (error is JsonException or InvalidDataException)
        {
            throw new InvalidDataException($"{path}: not a machine state: {error.Message}", error);
        }

        if (StateRules.FirstBroken(state) is { } broken)
            throw new InvalidDataException($"{path}: not a machine state: {broken}");
        return state;
    }

    /// <summary>Writes the state to a file, gzip if its name ends so.</summary>
    /// <exception cref="IOException">The file cannot be written.</exception>
    public void Write(string path)
    {
        using FileStream file = File.Create(path);
        if (!path.EndsWith(".gz", StringComparison.OrdinalIgnoreCase))
        {
            Write(file);
            return;
        }

        using var packed = new GZipStream(file, CompressionLevel.Fastest);
        Write(packed);
    }

    /// <summary>Writes the state as JSON.</summary>
    public void Write(Stream text) => JsonSerializer.Serialize(text, this, MachineStateJson.Default.MachineState);
}

/// <summary>A zone's lists and counters.</summary>
internal sealed record ZoneState
{
    /// <summary>The zone's type: 0 DMA, 1 DMA32, 2 Normal, 3 Movable.</summary>
    public int Index { get; init; }

    /// <summary>Its NUMA node; recordings of machines with one node do not say.</summary>
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingDefault)]
    public int Node { get; init; }

    public string Name { get; init; } = "";

    public ulong StartPfn { get; init; }

    public ulong Spanned { get; init; }

    public ulong Present { get; init; }

    public ulong Managed { get; init; }

    /// <summary>MIN, LOW, HIGH, PROMO without boost.</summary>
    public long[] Watermark { get; init; } = [];

    public long WatermarkBoost { get; init; }

    public long[] LowmemReserve { get; init; } = [];

    public long NrReservedHighatomic { get; init; }

    public long NrFreeHighatomic { get; init; }

    public int Flags { get; init; }

    public long PercpuDriftMark { get; init; }

    /// <summary>The global part of the counter.</summary>
    public long VmStatNrFreePages { get; init; }

    public IReadOnlyList<FreeAreaState> FreeArea { get; init; } = [];

    public ulong PageblockFirst { get; init; }

    /// <summary>A digit for each pageblock: its migrate type; '-' where there is no memory.</summary>
    public string PageblockMt { get; init; } = "";

    public string PageblockSkip { get; init; } = "";

    public IReadOnlyList<PcpState> Pcp { get; init; } = [];

    public IReadOnlyList<ZoneStatState> Zonestat { get; init; } = [];
}

/// <summary>The free blocks of one order.</summary>
/// <param name="Order">The order.</param>
/// <param name="NrFree">Blocks on all lists.</param>
/// <param name="Lists">Frames by migrate type, head first; in JSON texts of numbers and blanks.</param>
internal sealed record FreeAreaState(
    int Order, long NrFree, [property: JsonConverter(typeof(FrameListsConverter))] IReadOnlyList<ulong[]> Lists);

/// <summary>One CPU's lists of a zone, and their tuning.</summary>
internal sealed record PcpState
{
    public int Cpu { get; init; }

    public int Count { get; init; }

    public int High { get; init; }

    public int HighMin { get; init; }

    public int HighMax { get; init; }

    public int Batch { get; init; }

    public int Flags { get; init; }

    public int AllocFactor { get; init; }

    public int FreeCount { get; init; }

    [JsonConverter(typeof(FrameListsConverter))]
    public IReadOnlyList<ulong[]> Lists { get; init; } = [];
}

/// <summary>One CPU's share of a zone's free-page counter.</summary>
/// <param name="Cpu">The CPU.</param>
/// <param name="NrFreePagesDiff">What it has not folded in yet.</param>
/// <param name="StatThreshold">How large that may become.</param>
internal sealed record ZoneStatState(int Cpu, int NrFreePagesDiff, int StatThreshold);

/// <summary>A cache: its shape, and what each CPU and node holds.</summary>
internal sealed record CacheState
{
    public string Name { get; init; } = "";

    /// <summary>The address of the kernel's own descriptor; only a name.</summary>
    [JsonConverter(typeof(HexConverter))]
    public ulong Addr { get; init; }

    public int Size { get; init; }

    public int ObjectSize { get; init; }

    public int Inuse { get; init; }

    public int Offset { get; init; }

    public int Align { get; init; }

    [JsonConverter(typeof(HexConverter))]
    public ulong Flags { get; init; }

    public int Order { get; init; }

    public int Objects { get; init; }

    public int MinOrder { get; init; }

    public int MinObjects { get; init; }

    [JsonConverter(typeof(HexConverter))]
    public ulong Allocflags { get; init; }

    public int MinPartial { get; init; }

    public int CpuPartial { get; init; }

    public int CpuPartialSlabs { get; init; }

    public int SheafCapacity { get; init; }

    public int Refcount { get; init; }

    /// <summary>Whether it has a constructor; a recording gives its address.</summary>
    [JsonConverter(typeof(FlagConverter))]
    public bool Ctor { get; init; }

    /// <summary>First byte that user copies may touch; a recording does not say.</summary>
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingDefault)]
    public int UserOffset { get; init; }

    /// <summary>Bytes that user copies may touch; a recording does not say.</summary>
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingDefault)]
    public int UserSize { get; init; }

    public IReadOnlyList<CacheCpuState> Cpu { get; init; } = [];

    public CacheNodeState Node { get; init; } = new();

    public BarnState? Barn { get; init; }

    /// <summary>Sheaves that a caller owns, or that wait for a grace period.</summary>
    public IReadOnlyList<SheafState>? DetachedSheaves { get; init; }

    /// <summary>What the nodes after the first hold; absent on machines with one node.</summary>
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public IReadOnlyList<CacheNodeState>? OtherNodes { get; init; }
}

/// <summary>A sheaf: where it is, and what it holds; the last object is handed out first.</summary>
internal sealed record SheafState
{
    [JsonConverter(typeof(HexConverter))]
    public ulong Addr { get; init; }

    public int Size { get; init; }

    [JsonConverter(typeof(HexListConverter))]
    public ulong[] Objects { get; init; } = [];

    /// <summary>Room for objects, where it is not the cache's; a recording does not say.</summary>
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingDefault)]
    public int Capacity { get; init; }
}

/// <summary>A CPU's sheaves.</summary>
internal sealed record CpuSheavesState
{
    public SheafState? Main { get; init; }

    public SheafState? Spare { get; init; }

    public SheafState? RcuFree { get; init; }
}

/// <summary>A node's sheaves, list heads first.</summary>
internal sealed record BarnState
{
    public IReadOnlyList<SheafState> Full { get; init; } = [];

    public IReadOnlyList<SheafState> Empty { get; init; } = [];
}

/// <summary>What one CPU holds of a cache.</summary>
internal sealed record CacheCpuState
{
    public ulong? Slab { get; init; }

    /// <summary>Object indices in the current slab, first to be handed out first.</summary>
    public IReadOnlyList<int> Freelist { get; init; } = [];

    public IReadOnlyList<ulong> Partial { get; init; } = [];

    public int PartialSlabs { get; init; }

    public CpuSheavesState? Sheaves { get; init; }
}

/// <summary>What a node holds of a cache.</summary>
internal sealed record CacheNodeState
{
    public int NrPartial { get; init; }

    public IReadOnlyList<ulong> Partial { get; init; } = [];

    public long NrSlabs { get; init; }

    public long TotalObjects { get; init; }

    /// <summary>The node's sheaves, for nodes after the first; the first one's are the cache's.</summary>
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public BarnState? Barn { get; init; }

    /// <summary>The object that stands for the node's part of the cache; a recording does not say.</summary>
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingDefault)]
    [JsonConverter(typeof(HexConverter))]
    public ulong Addr { get; init; }
}

/// <summary>A slab.</summary>
/// <param name="Pfn">Its first frame.</param>
/// <param name="Order">Its size.</param>
/// <param name="Cache">Name of its cache.</param>
/// <param name="InUse">Objects that are not on its own free list.</param>
/// <param name="Objects">All of them.</param>
/// <param name="Frozen">Whether it is some CPU's current slab.</param>
/// <param name="OnPartialList">Whether it is on its node's list.</param>
/// <param name="Free">Its own free list: indices, first to be handed out first.</param>
internal sealed record SlabRow(
    ulong Pfn, int Order, string Cache, int InUse, int Objects, bool Frozen, bool OnPartialList, int[] Free)
{
    public override string ToString() =>
        $"[{Pfn},{Order},{Cache},{InUse},{Objects},{(Frozen ? 1 : 0)},{(OnPartialList ? 1 : 0)},[{string.Join(',', Free)}]]";
}

/// <summary>What a machine knows of itself beyond what a kernel's recording says.</summary>
internal sealed record OwnState
{
    /// <summary>
    /// Blocks in use that are not slabs: [first pfn, order, page flags, page type, references, count of such blocks
    /// that follow each other].
    /// </summary>
    public IReadOnlyList<ulong[]> Blocks { get; init; } = [];

    /// <summary>Names merged into other caches, in order of creation: [name, cache].</summary>
    public IReadOnlyList<string[]> Aliases { get; init; } = [];

    /// <summary>State of the machine's random numbers.</summary>
    public ulong Random { get; init; }

    /// <summary>vm.watermark_boost_factor.</summary>
    public int WatermarkBoostFactor { get; init; }

    /// <summary>Of each CPU's lists of each zone: frames allocated and freed, and the NUMA counters.</summary>
    public IReadOnlyList<long[]> PcpCounters { get; init; } = [];

    /// <summary>Slabs from the emergency reserve.</summary>
    public IReadOnlyList<ulong> PfMemAllocSlabs { get; init; } = [];

    /// <summary>The kernel's page tables, if the machine has vmalloc.</summary>
    public PageTableState? Tables { get; init; }
}

/// <summary>A tree of page tables.</summary>
/// <param name="Root">The frame of the root.</param>
/// <param name="Tables">Each table: its frame, then pairs of index and entry where an entry is not 0.</param>
internal sealed record PageTableState(ulong Root, IReadOnlyList<ulong[]> Tables);

/// <summary>Reading and writing without reflection.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.SnakeCaseLower,
    DefaultIgnoreCondition = JsonIgnoreCondition.Never,
    RespectNullableAnnotations = true)]
[JsonSerializable(typeof(MachineState))]
internal sealed partial class MachineStateJson : JsonSerializerContext;
