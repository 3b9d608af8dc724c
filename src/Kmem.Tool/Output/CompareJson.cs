using Kmem.Tracing;

namespace Kmem.Tool.Output;

/// <summary>What <c>kmem compare --json</c> prints.</summary>
/// <param name="Trace">The recording.</param>
/// <param name="Settings">The recording's own machine, then the others in the order given.</param>
internal sealed record CompareJson(string Trace, IReadOnlyList<ComparedJson> Settings);

/// <summary>One machine of a comparison.</summary>
internal sealed record ComparedJson
{
    /// <summary>As given; empty for the recording's own machine.</summary>
    public required string With { get; init; }

    public required string Profile { get; init; }

    public required int Cpus { get; init; }

    public required ulong RamBytes { get; init; }

    public required long Events { get; init; }

    public required long FailedAllocs { get; init; }

    public required long Violations { get; init; }

    /// <summary>Bytes of live objects' slots that nobody asked for.</summary>
    public required long WasteBytes { get; init; }

    /// <summary>Bytes of slots that are free.</summary>
    public required long FreeSlotBytes { get; init; }

    public required WorkNumbers Work { get; init; }

    /// <summary>Cache by cache; the same caches in every machine of the comparison.</summary>
    public required IReadOnlyList<ComparedCacheJson> Caches { get; init; }

    internal static ComparedJson Of(string with, ReplayReport report, WorkNumbers work) => new()
    {
        With = with,
        Profile = report.Profile,
        Cpus = report.Cpus,
        RamBytes = report.RamBytes,
        Events = report.Events,
        FailedAllocs = report.FailedAllocs,
        Violations = report.Violations,
        WasteBytes = report.Caches.Sum(it => it.InternalWasteBytes),
        FreeSlotBytes = report.Caches.Sum(it => it.FreeSlotBytes),
        Work = work,
        Caches = [.. report.Caches.Select(it =>
            new ComparedCacheJson(it.Name, it.SlotSize, it.Slabs, it.Slabs * (Pfn.PageSize << it.Order)))],
    };
}

/// <summary>One cache on one machine of a comparison.</summary>
internal sealed record ComparedCacheJson(string Name, long SlotSize, long Slabs, long SlabBytes);
