namespace Kmem;

/// <summary>One event in the life of an object or of a frame.</summary>
public sealed record LifeEvent
{
    /// <summary>The event of the recording, or the number of the operation in the machine's memory of events.</summary>
    public required long Event { get; init; }

    /// <summary>Nanoseconds of the recording's clock; of a machine that does not replay, since it began to
    /// remember.</summary>
    public long TimeNs { get; init; }

    /// <summary>The CPU.</summary>
    public int Cpu { get; init; }

    /// <summary>What happened.</summary>
    public required LifeEventKind Kind { get; init; }

    /// <summary>The object, or the first byte of the block of pages.</summary>
    public VirtAddr Address { get; init; }

    /// <summary>The address that the recording has for it; null if there is no recording, or it tells no
    /// address.</summary>
    public VirtAddr? Recorded { get; init; }

    /// <summary>Bytes asked for; 0 for a free.</summary>
    public long Bytes { get; init; }

    /// <summary>The order of a block of pages.</summary>
    public int Order { get; init; }

    /// <summary>The cache of an object, if the event tells it.</summary>
    public string? Cache { get; init; }

    /// <summary>Who asked, as the recording prints it.</summary>
    public string? CallSite { get; init; }

    /// <summary>Flags of an allocation.</summary>
    public Gfp Gfp { get; init; }

    /// <summary>Where an object came from; null if it is not the allocation of one.</summary>
    public ObjectSource? Source { get; init; }
}

/// <summary>What happened to an object or a frame.</summary>
public enum LifeEventKind
{
    /// <summary>An object was handed out.</summary>
    ObjectAllocated,

    /// <summary>An object was given back.</summary>
    ObjectFreed,

    /// <summary>A block of pages was handed out.</summary>
    PagesAllocated,

    /// <summary>A block of pages was given back: to a list of a CPU, or to the buddy system.</summary>
    PagesFreed,

    /// <summary>It left a list of a CPU for the buddy system.</summary>
    DrainedToBuddy,
}
