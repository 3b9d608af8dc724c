namespace Kmem;

/// <summary>
/// An owner of page frames who lets them be moved, so that large blocks can be had from fragmented memory (struct
/// movable_operations, include/linux/migrate.h, Linux 6.18). Frames are offered with <see cref="Machine.SetMovable"/>.
/// <code>
///   Isolate ── false: not now
///      ╰─ true ──▶ Migrate(from, to) ── true: the content is in `to`, and so are all pointers; `from` is freed
///                        ╰─ false ──▶ PutBack
/// </code>
/// </summary>
/// <remarks>
/// Called on any thread that wants a block, without locks of Kmem, in the middle of its allocation: take locks of yours
/// only if nobody allocates while holding them. What a callback throws is written to <see cref="Machine.Dmesg"/>, and
/// the page stays.
/// </remarks>
public interface IMovablePages
{
    /// <summary>
    /// Whether the page may be moved now. If so, it must not be freed before the next callback about it.
    /// </summary>
    /// <param name="page">An offered page.</param>
    /// <returns>False if it is in use.</returns>
    bool Isolate(Pfn page);

    /// <summary>Copies the page and makes everything point to the copy. It has been isolated.</summary>
    /// <param name="from">Where it is.</param>
    /// <param name="to">Where it goes: a frame with one reference, and undefined content.</param>
    /// <returns>False if that is impossible now: nothing has changed.</returns>
    bool Migrate(Pfn from, Pfn to);

    /// <summary>An isolated page is not moved after all.</summary>
    /// <param name="page">The page.</param>
    void PutBack(Pfn page);
}

/// <summary>What a compaction did.</summary>
/// <param name="Scanned">Frames looked at for something to move.</param>
/// <param name="Moved">Pages moved.</param>
/// <param name="Failed">Pages that their owner did not move.</param>
/// <param name="FreeScanned">Frames looked at for somewhere to move it.</param>
public readonly record struct CompactionReport(long Scanned, long Moved, long Failed, long FreeScanned);
