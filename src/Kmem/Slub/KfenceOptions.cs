namespace Kmem;

/// <summary>How many objects are guarded, and which (kfence.* boot parameters, mm/kfence/core.c, Linux 6.18).</summary>
public sealed record KfenceOptions
{
    /// <summary>Most objects that there can be in the pool; each has 8 KiB of RAM, or 16.</summary>
    public const int MostObjects = 511;

    /// <summary>
    /// Objects that can be guarded at the same time, 1 to <see cref="MostObjects"/> (CONFIG_KFENCE_NUM_OBJECTS). A
    /// freed one stays untouchable until all the others were used. Up to 255 there is a MiB and more of guard pages on
    /// both sides of the pool.
    /// </summary>
    public int Objects { get; init; } = 255;

    /// <summary>
    /// Milliseconds after which the next allocation is guarded (kfence.sample_interval); 0 for never. Between samples
    /// the fast paths are as fast as without.
    /// </summary>
    public int SampleInterval { get; init; } = 100;

    /// <summary>
    /// Guards the n-th, 2n-th, … allocation of the machine instead: 1 for all. The same program guards the same ones
    /// again, but every allocation is counted, out of line. 0: by time.
    /// </summary>
    public int EveryNth { get; init; }

    /// <summary>For tests of what hosts without guard pages do.</summary>
    internal bool WithoutGuardPages { get; init; }

    /// <summary>
    /// From so many percent of the objects in use on, an allocation from a call stack that has a guarded object already
    /// is left out, so that rare ones get their turn (kfence.skip_covered_thresh).
    /// </summary>
    public int SkipCoveredPercent { get; init; } = 75;

    /// <summary>Refuses what cannot be.</summary>
    /// <exception cref="ArgumentException">An option is out of range; the message names it.</exception>
    internal void Check()
    {
        if (Objects is < 1 or > MostObjects)
            throw new ArgumentException($"Kfence.Objects is not between 1 and {MostObjects}");
        if (SampleInterval < 0 || EveryNth < 0)
            throw new ArgumentException("Kfence.SampleInterval or Kfence.EveryNth is negative");
    }
}
