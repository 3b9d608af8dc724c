using System.Diagnostics.Tracing;

namespace Kmem;

/// <summary>
/// The event source "Kmem": what should be rare. Each event is tested for listeners before anything is formatted.
/// <c>dotnet-trace collect --providers Kmem</c> records them.
/// </summary>
[EventSource(Name = "Kmem")]
internal sealed class KmemEventSource : EventSource
{
    /// <summary>The one source of the process.</summary>
    public static KmemEventSource Log { get; } = new();

    [ThreadStatic]
    private static bool t_busy;

    private KmemEventSource()
    {
    }

    /// <summary>
    /// Whether somebody listens and this thread is not inside an event already: a listener that allocates from the
    /// machine would otherwise cause the event that it is told of.
    /// </summary>
    [NonEvent]
    public bool Wants(EventLevel level) => IsEnabled(level, EventKeywords.None) && !t_busy;

    /// <summary>Calls an event method with <see cref="Wants"/> answering false on this thread.</summary>
    [NonEvent]
    public void Write<T>(T argument, Action<KmemEventSource, T> write)
    {
        t_busy = true;
        try
        {
            write(this, argument);
        }
        finally
        {
            t_busy = false;
        }
    }

    [Event(1, Level = EventLevel.Informational, Message = "Machine '{0}' booted: {1} bytes, {2} CPUs, {3}")]
    public void MachineBooted(string machine, long bytes, int cpus, string profile) =>
        WriteEvent(1, machine, bytes, cpus, profile);

    [Event(2, Level = EventLevel.Informational, Message = "Machine '{0}' disposed with {1} outstanding")]
    public void MachineDisposed(string machine, long outstanding) => WriteEvent(2, machine, outstanding);

    [Event(3, Level = EventLevel.Informational, Message = "Machine '{0}': slow path for order {1}, {2}")]
    public void SlowPath(string machine, int order, string gfp) => WriteEvent(3, machine, order, gfp);

    [Event(4, Level = EventLevel.Informational, Message = "Machine '{0}': {3} fallbacks in node {1} zone {2}")]
    public void Fallback(string machine, int node, string zone, long count) => WriteEvent(4, machine, node, zone, count);

    [Event(5, Level = EventLevel.Warning, Message = "Machine '{0}': page allocation failure, order {1}, {2}")]
    public void PageFailure(string machine, int order, string gfp) => WriteEvent(5, machine, order, gfp);

    [Event(6, Level = EventLevel.Error, Message = "{1}")]
    public void OutOfMemory(string machine, string report) => WriteEvent(6, machine, report);

    [Event(7, Level = EventLevel.Warning, Message = "Machine '{0}', {1}: {4} x {2}, {5} bytes, at {3}")]
    public void Leak(string machine, string occasion, string source, string place, long count, long bytes) =>
        WriteEvent(7, machine, occasion, source, place, count, bytes);
}
