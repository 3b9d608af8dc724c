namespace Kmem.Tool.Bench;

/// <summary>What a workload's goal is about.</summary>
internal enum GoalKind
{
    /// <summary>Time per operation, as a part of the best peer's.</summary>
    Time,

    /// <summary>Resident bytes, as a part of the best peer's.</summary>
    Resident,

    /// <summary>Growth of resident memory, as a part of a limit.</summary>
    Growth,

    /// <summary>Time per event, as a part of a limit.</summary>
    Rate,
}

/// <summary>One workload: what it is, who takes part, and what Kmem is to reach.</summary>
internal sealed record Workload(string Name, string What)
{
    /// <summary>The allocators of Kmem that take part.</summary>
    internal string[] Own { get; init; } = ["kmem"];

    /// <summary>The one of <see cref="Own"/> that the goal is about.</summary>
    internal string Judged { get; init; } = "kmem";

    /// <summary>The peers that take part, in this process or one of their own.</summary>
    internal string[] Peers { get; init; } = Workloads.Mallocs;

    /// <summary>The peers that the goal is about; null for all but <c>ArrayPool</c>.</summary>
    internal string[]? Bar { get; init; }

    internal GoalKind Kind { get; init; } = GoalKind.Time;

    /// <summary>The largest ratio that reaches the goal.</summary>
    internal double Goal { get; init; } = 1;

    /// <summary>The goal in words.</summary>
    internal string GoalText { get; init; } = "ahead of the best peer";

    /// <summary>What a ratio of 1 is, for goals that are no comparison.</summary>
    internal double Limit { get; init; }

    /// <summary>How long a round should take.</summary>
    internal TimeSpan RoundTime { get; init; } = TimeSpan.FromMilliseconds(2);

    /// <summary>Each allocator has a process of its own, so that resident memory can be told.</summary>
    internal bool OwnProcess { get; init; }

    /// <summary>The C program has the same loop.</summary>
    internal bool HasC { get; init; }
}

/// <summary>The workloads that there are.</summary>
internal static class Workloads
{
    private const string Seventy = "at most 0.7 of the best peer";
    private const string Third = "at most 0.35 of the best peer";

    private static readonly TimeSpan s_long = TimeSpan.FromMilliseconds(25);

    internal static string[] Mallocs { get; } = ["NativeMemory", .. NativeLibraryPeer.Names];

    private static string[] WithArrays { get; } = [.. Mallocs, "ArrayPool"];

    internal static IReadOnlyList<Workload> All { get; } =
    [
        Object("pair64c", "64 bytes, a constant, allocated and freed at once")
            with { Own = ["kmem", "kmem-cache", "kmem-scope"], Goal = 0.7, GoalText = Seventy },
        Object("pair64", "64 bytes, read from memory, allocated and freed at once")
            with { Own = ["kmem", "kmem-cache", "kmem-scope"], Goal = 0.7, GoalText = Seventy },
        Object("scope64", "as pair64, with a handle of the cache held by the loop")
            with { Own = ["kmem-scope"], Judged = "kmem-scope", Goal = 0.35, GoalText = Third },
        Object("lifo100", "100 × 64 bytes, freed in reverse order")
            with { Own = ["kmem", "kmem-cache", "kmem-scope"] },
        Object("rand100", "100 × 64 bytes, freed in random order")
            with { Own = ["kmem", "kmem-cache", "kmem-scope"] },
        Object("bulk64", "64 × 64 bytes; kmem-bulk takes and gives them by one call each")
            with
            {
                Own = ["kmem-bulk", "kmem", "kmem-cache", "kmem-scope"], Judged = "kmem-bulk", Goal = 0.35,
                GoalText = Third,
            },
        Object("rsize", "16 to 1024 bytes, allocated and freed at once"),
        Object("slots1000", "replace a random one of 1000 objects of 16 to 1024 bytes"),
        new("pc2", "one thread allocates 64 bytes, another frees them") { RoundTime = s_long },
        Area("vmalloc16", "an area of 16 pages: allocate, touch, free"),
        Area("vmalloc4k", "an area of 4096 pages: allocate, touch, free") with { RoundTime = s_long },
        Threads("larson", "servers replace objects and hand them to successor threads"),
        Threads("xmalloc", "some threads allocate batches, others free them"),
        Threads("cache-scratch", "do threads get pieces of one cache line? ns per write"),
        Threads("mstress", "threads exchange objects of all sizes; every word is verified"),
        Threads("rptest", "threads replace 8 to 16000 bytes and mail batches to each other"),
        Threads("glibc-simple", "16 bytes × 25 … 1600, half freed oldest first, half newest first"),
        Threads("glibc-thread", "independent threads refill slots with 4 to 32768 bytes"),
        Threads("mleak", "ten threads at a time, each frees what another left; resident: its growth") with
        {
            Kind = GoalKind.Growth, Limit = 4 << 20, GoalText = "resident memory grows by less than 4 MiB",
        },
        Threads("malloc-large", "replace one of 20 cleared buffers of 5 to 25 MiB; ns per MiB"),
        Threads("footprint", "resident memory after churn, and after all is freed") with
        {
            Kind = GoalKind.Resident, GoalText = "not more resident than the best peer",
        },
        new("replay", "the sample recording, from ftrace text; ns per event")
        {
            Peers = [], Kind = GoalKind.Rate, Limit = 1e9 / 3e6, GoalText = "at least 3 million events per second",
            RoundTime = s_long,
        },
    ];

    internal static IEnumerable<string> Names => All.Select(it => it.Name);

    /// <summary>All peers of any workload.</summary>
    internal static IEnumerable<string> Peers => All.SelectMany(it => it.Peers).Distinct(StringComparer.Ordinal);

    internal static Workload Find(string name) => All.First(it => it.Name == name);

    private static Workload Object(string name, string what) => new(name, what) { Peers = WithArrays, HasC = true };

    private static Workload Threads(string name, string what) =>
        new(name, what) { OwnProcess = true, RoundTime = s_long };

    private static Workload Area(string name, string what) => new(name, what)
    {
        Peers = ["mmap", "AlignedAlloc"],
        Bar = ["mmap"],
        GoalText = "ahead of mmap and munmap",
    };
}
