namespace Kmem;

/// <summary>
/// What a shrinker's callbacks are asked, and where they answer how much they looked at (struct shrink_control,
/// include/linux/shrinker.h, Linux 6.18). Valid during the call only.
/// </summary>
public sealed class ShrinkControl
{
    internal ShrinkControl(Gfp gfp, int node)
    {
        Gfp = gfp;
        Node = node;
    }

    /// <summary>
    /// The flags of whoever is short of memory. Without <see cref="Gfp.FS"/> he may hold locks of a file system,
    /// without <see cref="Gfp.IO"/> nothing may be written: answer <see cref="Shrinker.Stop"/> if that is what it
    /// takes.
    /// </summary>
    public Gfp Gfp { get; }

    /// <summary>The node whose objects are asked for; always 0 for a shrinker that does not tell nodes apart.</summary>
    public int Node { get; }

    /// <summary>Scan only: objects to look at, and to free unless they are in use.</summary>
    public long ToScan { get; internal set; }

    /// <summary>
    /// Scan only: objects looked at; at first <see cref="ToScan"/>. A callback that had to look at more, or less, says
    /// so.
    /// </summary>
    public long Scanned { get; set; }
}

/// <summary>A callback of a shrinker; see <see cref="Machine.RegisterShrinker"/>.</summary>
/// <param name="control">What is asked.</param>
/// <returns>
/// Count: objects that could be freed; 0 if that cannot be told now, <see cref="Shrinker.Empty"/> if there are none.
/// Scan: objects freed, or <see cref="Shrinker.Stop"/> if there is no getting on now.
/// </returns>
public delegate long ShrinkerCallback(ShrinkControl control);

/// <summary>How a shrinker is called (SHRINKER_*, include/linux/shrinker.h, Linux 6.18).</summary>
[Flags]
public enum ShrinkerFlags
{
    /// <summary>Once for each node that is short of memory, always as node 0.</summary>
    None = 0,

    /// <summary>It tells nodes apart: what it could not do is remembered for each node (SHRINKER_NUMA_AWARE).</summary>
    NumaAware = 2,
}

/// <summary>
/// What a shrinker has given so far. Read while others work, the numbers may be of slightly different instants.
/// </summary>
/// <param name="Calls">How often its count was asked for.</param>
/// <param name="Scanned">Objects that scans looked at.</param>
/// <param name="Freed">Objects that scans freed, as they say.</param>
/// <param name="Frames">Page frames that came back meanwhile.</param>
/// <param name="Stops">Scans that could not get on.</param>
/// <param name="Errors">Callbacks that threw; the exceptions are in <see cref="Machine.Dmesg"/>.</param>
public readonly record struct ShrinkerReport(
    long Calls, long Scanned, long Freed, long Frames, long Stops, long Errors);
