namespace Kmem;

/// <summary>What an <see cref="OomPolicy"/> decided.</summary>
public enum OomVerdict
{
    /// <summary>Nothing can be done: the request fails.</summary>
    Fail,

    /// <summary>Memory was freed, or will be at once: the request tries again.</summary>
    Retry,
}

/// <summary>
/// Called when a request found no memory, nothing could be reclaimed, and it may not simply fail (out_of_memory,
/// mm/oom_kill.c, Linux 6.18). It may free something and say <see cref="OomVerdict.Retry"/>.
/// </summary>
/// <remarks>
/// Runs on the thread that is short of memory, one at a time in a machine. What it allocates comes from the reserves.
/// Sixteen answers in a row after which no frame was free that was not free before are taken as
/// <see cref="OomVerdict.Fail"/>; so is an exception, which is written to <see cref="Machine.Dmesg"/>.
/// </remarks>
/// <param name="oom">What happened.</param>
/// <returns>What to do.</returns>
public delegate OomVerdict OomPolicy(OomEvent oom);

/// <summary>A request that found no memory.</summary>
/// <param name="Order">It wanted 2^Order frames.</param>
/// <param name="Gfp">Its flags.</param>
/// <param name="Holders">Who has the memory, largest first.</param>
/// <param name="Report">The report in the kernel's form.</param>
public sealed record OomEvent(int Order, Gfp Gfp, IReadOnlyList<MemoryHolder> Holders, string Report);

/// <summary>A part of a machine's memory that is not free.</summary>
/// <param name="Name">
/// Who has it: <c>slab inode</c>, <c>page tables</c>, <c>page frames</c> (of AllocPages and vmalloc).
/// </param>
/// <param name="Bytes">How much.</param>
public readonly record struct MemoryHolder(string Name, long Bytes);
