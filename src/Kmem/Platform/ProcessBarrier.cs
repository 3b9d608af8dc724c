namespace Kmem;

/// <summary>
/// The expensive half of an asymmetric handshake: many threads run a fast path without any fence, one rare visitor pays
/// for all of them.
/// <code>
///   owner of a CPU slot (often)             visitor: drain, stop, take over (rarely)
///   ---------------------------             ----------------------------------------
///   slot.Busy = 1       plain store         slot.Visitor = 1
///   if (slot.Visitor)   plain load          ProcessBarrier.Full()
///       step aside                          if (slot.Busy) wait until it is 0
///   ... work ...                            ... now the slot is ours ...
///   slot.Busy = 0       release store       slot.Visitor = 0
/// </code>
/// The owner's store and load could be swapped by the processor, and then both sides would see 0. The barrier acts as
/// a full fence on every thread of the process at some moment between its call and its return, so either the owner's
/// store is visible to the visitor or the owner's load sees the visitor. The owner still has to stop the
/// <em>compiler</em> from swapping the two (<see cref="Volatile"/>), which costs nothing on x86-64.
/// </summary>
/// <remarks>
/// Costs microseconds and interrupts every core that runs this process (membarrier on Linux,
/// FlushProcessWriteBuffers on Windows): for draining and hot-unplugging, never on an allocation path.
/// </remarks>
internal static class ProcessBarrier
{
    /// <summary>Returns after every thread of the process has passed a full memory fence.</summary>
    public static void Full() => Interlocked.MemoryBarrierProcessWide();
}
