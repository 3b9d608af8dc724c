using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// The books of a machine's .NET floor: what is outstanding, from where, and whether the machine is still there.
/// </summary>
internal sealed class BufferAccount : IBufferRelease
{
    private readonly List<BufferSource> _sources = [];
    private readonly List<WeakReference<KmemRegion>> _regions = [];
    private readonly Lock _gate = new();
    private readonly KernelLog _log;
    private readonly Action<LeakReport>? _onLeak;
    private bool _closed;

    public BufferAccount(
        string machine, IBufferMemory memory, KernelLog log, bool trackCallSites, Action<LeakReport>? onLeak)
    {
        Machine = machine;
        Memory = memory;
        _log = log;
        _onLeak = onLeak;
        Sites = trackCallSites ? new CallSites() : null;
    }

    /// <summary>The machine's name.</summary>
    public string Machine { get; }

    public IBufferMemory Memory { get; }

    /// <summary>Call sites of everything outstanding; null if they are not kept.</summary>
    public CallSites? Sites { get; }

    /// <summary>The machine is gone: none of its memory may be touched.</summary>
    public bool IsClosed => Volatile.Read(ref _closed);

    /// <summary>Told of each report of a leak, and of each refusal; set by whoever boots the machine.</summary>
    public IFloorEvents? Events { get; set; }

    /// <summary>
    /// Finalizers run whenever they like, so they and the end of the machine exclude each other here. Everybody else is
    /// required not to be inside a call when the machine ends.
    /// </summary>
    public Lock FinalizerGate { get; } = new();

    public BufferSource AddSource(string name, Action? closing = null)
    {
        var source = new BufferSource(this, name) { Closing = closing };
        lock (_gate)
            _sources.Add(source);
        return source;
    }

    /// <summary>
    /// A source that hands nothing out any more; it stays on the list while something is outstanding.
    /// </summary>
    public void Retire(BufferSource source)
    {
        lock (_gate)
        {
            if (source.Count == 0)
                _sources.Remove(source);
        }
    }

    public IReadOnlyList<BufferSource> Sources
    {
        get
        {
            lock (_gate)
                return _sources.ToArray();
        }
    }

    /// <summary>Regions are told when the machine goes, because they hand out their address.</summary>
    public void Remember(KmemRegion region)
    {
        lock (_gate)
        {
            _regions.RemoveAll(entry => !entry.TryGetTarget(out KmemRegion? live) || live.IsClosed);
            _regions.Add(new WeakReference<KmemRegion>(region));
        }
    }

    /// <summary>What is outstanding now, of one source or of all.</summary>
    public LeakReport Report(string occasion, BufferSource? only = null)
    {
        IReadOnlyList<LeakSite> sites = Sites != null
            ? Sites.Summary(only)
            : Sources.Where(source => only == null || source == only)
                .Select(source => new LeakSite(source.Name, "", 0, source.Count, source.Bytes))
                .Where(site => site.Count != 0)
                .OrderByDescending(site => site.Bytes)
                .ToArray();
        return new LeakReport(Machine, occasion, Sites != null, sites);
    }

    /// <summary>
    /// A report goes to the log, to listeners and to whoever booted the machine, if there is anything in it.
    /// </summary>
    public void Announce(LeakReport report)
    {
        if (report.IsEmpty)
            return;

        _log.Write(report.ToString());
        Events?.Leak(report);
        _onLeak?.Invoke(report);
    }

    /// <summary>
    /// The machine ends: reports what is outstanding; from here on everything of the floor is refused.
    /// </summary>
    public void Close()
    {
        try
        {
            Announce(Report("at dispose"));
        }
        finally
        {
            lock (FinalizerGate)
                Volatile.Write(ref _closed, true);
            foreach (BufferSource source in Sources)
                source.Closing?.Invoke();
            lock (_gate)
            {
                foreach (WeakReference<KmemRegion> entry in _regions)
                {
                    if (entry.TryGetTarget(out KmemRegion? region))
                        region.Abandon();
                }
            }
        }
    }

    /// <summary>Memory for an owner, or the exception that explains why there is none.</summary>
    public unsafe void* Alloc(nuint bytes, bool clear, BufferSource source)
    {
        ThrowIfClosed();
        void* memory = null;
        try
        {
            memory = Memory.Alloc(bytes, clear ? Gfp.Kernel | Gfp.Zero : Gfp.Kernel);
        }
        catch (OutOfMemoryException)
        {
            // vmalloc could not even be started: the same thing to the caller.
        }

        if (memory == null)
            ThrowOutOfMemory(bytes, source.Name);
        return memory;
    }

    /// <summary>vmalloc, or the exception that explains why it cannot be started.</summary>
    public VmallocAllocator VmallocFor(nuint bytes, BufferSource source)
    {
        try
        {
            return Memory.Vmalloc;
        }
        catch (OutOfMemoryException)
        {
            ThrowOutOfMemory(bytes, $"the page tables under a {source.Name}");
            throw;
        }
    }

    /// <inheritdoc/>
    public unsafe void Release(void* memory, nuint bytes) => Memory.Free(memory);

    public void ThrowIfClosed()
    {
        if (IsClosed)
            ThrowClosed();
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void ThrowClosed() =>
        throw new ObjectDisposedException("Machine", $"the Kmem machine '{Machine}' has been disposed");

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void ThrowOutOfMemory(nuint bytes, string what)
    {
        string report = OutOfMemoryReport.For(Machine, bytes, what, Memory);
        Events?.OutOfMemory(report);
        throw new OutOfMemoryException(report);
    }
}

/// <summary>Hears of rare events on the .NET floor.</summary>
internal interface IFloorEvents
{
    void OutOfMemory(string report);

    void Leak(LeakReport report);
}
