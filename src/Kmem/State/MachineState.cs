using System.IO.Compression;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace Kmem;

/// <summary>
/// The complete state of a machine's allocators at one instant, as plain data: free lists in order, per-CPU lists with their
/// tuning, slabs with their free lists in order, what each CPU holds of each cache. The JSON form is the one in which the
/// state of real kernels is recorded.
/// </summary>
/// <remarks>Addresses are the kernel's; in JSON they are strings in hexadecimal. Lists of frames are texts, head first.</remarks>
internal sealed record MachineState
{
    public int NrCpu { get; init; } = 1;

    public int MinFreeKbytes { get; init; }

    public long TotalreservePages { get; init; }

    public IReadOnlyList<ZoneState> Zones { get; init; } = [];

    public IReadOnlyList<CacheState> Caches { get; init; } = [];

    /// <summary>Cache names by kmalloc type (normal, reclaimable, DMA) and size index.</summary>
    public IReadOnlyList<IReadOnlyList<string?>> KmallocCaches { get; init; } = [];

    /// <summary>Each slab as [pfn, order, cache, inuse, objects, frozen, on partial list, [free object indices]].</summary>
    public IReadOnlyList<JsonElement[]> Slabs { get; init; } = [];

    /// <summary>Runs [pfn, count] of frames on LRU lists.</summary>
    public IReadOnlyList<ulong[]> LruPages { get; init; } = [];

    /// <summary>Reads a state, plain or gzip.</summary>
    /// <exception cref="InvalidDataException">The text is not such a state.</exception>
    public static MachineState Read(string path)
    {
        using FileStream file = File.OpenRead(path);
        bool gzip = file.ReadByte() == 0x1f && file.ReadByte() == 0x8b;
        file.Position = 0;
        using Stream text = gzip ? new GZipStream(file, CompressionMode.Decompress) : file;
        try
        {
            return JsonSerializer.Deserialize(text, MachineStateJson.Default.MachineState)
                ?? throw new InvalidDataException($"{path}: no machine state");
        }
        catch (JsonException error)
        {
            throw new InvalidDataException($"{path}: not a machine state: {error.Message}", error);
        }
    }
}

/// <summary>A zone's lists and counters.</summary>
internal sealed record ZoneState
{
    public int Index { get; init; }

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
/// <param name="Lists">Frames by migrate type, separated by blanks, head first.</param>
internal sealed record FreeAreaState(int Order, long NrFree, IReadOnlyList<string> Lists);

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

    public IReadOnlyList<string> Lists { get; init; } = [];
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
    public string Addr { get; init; } = "";

    public int Size { get; init; }

    public int ObjectSize { get; init; }

    public int Inuse { get; init; }

    public int Offset { get; init; }

    public int Align { get; init; }

    public string Flags { get; init; } = "0x0";

    public int Order { get; init; }

    public int Objects { get; init; }

    public int MinOrder { get; init; }

    public int MinObjects { get; init; }

    public string Allocflags { get; init; } = "0x0";

    public int MinPartial { get; init; }

    public int CpuPartial { get; init; }

    public int CpuPartialSlabs { get; init; }

    public int SheafCapacity { get; init; }

    public int Refcount { get; init; }

    public JsonElement Ctor { get; init; }

    public IReadOnlyList<CacheCpuState> Cpu { get; init; } = [];

    public CacheNodeState Node { get; init; } = new();

    public BarnState? Barn { get; init; }

    /// <summary>Sheaves that a caller owns, or that wait for a grace period.</summary>
    public IReadOnlyList<SheafState>? DetachedSheaves { get; init; }
}

/// <summary>A sheaf: where it is, and what it holds; the last object is handed out first.</summary>
internal sealed record SheafState
{
    public string Addr { get; init; } = "0x0";

    public int Size { get; init; }

    public IReadOnlyList<string> Objects { get; init; } = [];
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
}

/// <summary>Reading and writing without reflection.</summary>
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.SnakeCaseLower)]
[JsonSerializable(typeof(MachineState))]
[JsonSerializable(typeof(JsonElement[]))]
[JsonSerializable(typeof(string))]
internal sealed partial class MachineStateJson : JsonSerializerContext;
