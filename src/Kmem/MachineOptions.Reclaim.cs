namespace Kmem;

/// <content>Memory pressure.</content>
public sealed partial record MachineOptions
{
    /// <summary>
    /// A thread for each node that reclaims in the background when no zone is above its LOW watermark (kswapd). Off by
    /// default: results of a machine with such threads depend on the host's clock. Without them requests reclaim for
    /// themselves, and <see cref="Machine.RunKswapd"/> does the threads' work when it is called.
    /// </summary>
    public bool Kswapd { get; init; }
}
