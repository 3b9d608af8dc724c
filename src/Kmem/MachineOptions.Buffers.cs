namespace Kmem;

/// <content>The .NET floor.</content>
public sealed partial record MachineOptions
{
    /// <summary>The machine's name in metrics, events and reports; null for "machine-1" and so on.</summary>
    public string? Name { get; init; }

    /// <summary>
    /// Keep the source line of everything that the .NET floor hands out, for leak reports, and find owners that were
    /// lost without Dispose. Off by default; on, each rent costs a dictionary entry and a finalizable object.
    /// </summary>
    public bool TrackCallSites { get; init; }

    /// <summary>
    /// Called with each report of something not given back: when the machine, a pool or a cache is disposed, and when
    /// the garbage collector finds a lost owner (then on the finalizer's thread; do not throw, do not dispose the
    /// machine there). Reports go to <see cref="Machine.Dmesg"/> and to the event source "Kmem" as well.
    /// </summary>
    public Action<LeakReport>? OnLeak { get; init; }
}
