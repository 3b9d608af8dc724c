namespace Kmem;

/// <content>What a machine does once a second, and how memory goes back to the host.</content>
public sealed partial class Machine
{
    private readonly Lock _upkeep = new();
    private Timer? _upkeepTimer;
    private SurplusWindow? _surplus;

    /// <summary>
    /// The once-a-second work of a kernel (vmstat_update, mm/vmstat.c, Linux 6.18): per-CPU page lists that grew for a
    /// burst shrink again, and what CPUs counted for themselves is added to the zones' counts. A machine whose
    /// <see cref="MachineOptions.DecaySeconds"/> is not 0 does it by itself; call it for others as simulated time
    /// passes.
    /// </summary>
    public void Tick() => _pages.Tick();

    /// <summary>
    /// Gives back to the host all it can: empties the caches' per-CPU stores and the per-CPU page lists, and returns
    /// the memory of all free blocks. What is allocated next is slower to come; a peak is over afterwards.
    /// </summary>
    /// <returns>Bytes given back.</returns>
    public ulong Trim()
    {
        ExecmemIfUsed?.DropUnused();
        VmallocIfUsed?.DropKept();
        ShrinkCaches();
        return ReturnFreeMemory(0);
    }

    /// <summary>Starts the work by timer. The timer does not keep a machine alive that nobody has any more.</summary>
    private void StartUpkeep()
    {
        double seconds = Options.DecaySeconds ?? (Options.Profile.SheavesEverywhere ? 3 : 0);
        if (seconds <= 0)
            return;

        _surplus = new SurplusWindow((int)Math.Ceiling(seconds));
        var machine = new WeakReference<Machine>(this);
        _upkeepTimer = new Timer(
            static state =>
            {
                if (((WeakReference<Machine>)state!).TryGetTarget(out Machine? alive))
                    alive.UpkeepTick();
            },
            machine,
            TimeSpan.FromSeconds(1),
            TimeSpan.FromSeconds(1));
    }

    private void StopUpkeep()
    {
        lock (_upkeep)
        {
            _upkeepTimer?.Dispose();
            _upkeepTimer = null;
        }
    }

    internal void UpkeepTick()
    {
        // One that is late is left out; after Dispose none comes through.
        if (!_upkeep.TryEnter())
            return;

        try
        {
            if (_upkeepTimer == null || _disposed)
                return;

            Tick();
            if (VmallocIfUsed is { } vmalloc)
                vmalloc.DropKept((vmalloc.Kept.Areas + 3) / 4);
            long surplus = _surplus!.Lowest(SurplusFrames());
            if (surplus >= 1L << DecayMinOrder && _ram.CanRelease)
                ReleaseFree(DecayMinOrder, (ulong)surplus);
        }
        finally
        {
            _upkeep.Exit();
        }
    }

    /// <summary>64 KiB: a smaller hole costs the host more than it brings.</summary>
    private const int DecayMinOrder = 4;

    /// <summary>
    /// Frames that the host backs beyond those in use; an underestimate where frames in use were never touched.
    /// </summary>
    private long SurplusFrames()
    {
        long used = 0;
        foreach (ZonePages zone in _pages.Zones)
            used += (long)zone.Zone.Managed - zone.Zone.FreePages;
        return (long)(_ram.ResidentBytes >> Pfn.PageShift) - used;
    }

    private ulong ReleaseFree(int minOrder, ulong most)
    {
        ulong left = most;
        return _pages.ReportFree(minOrder, (pfn, count) =>
        {
            if (left < count)
                return false;

            left -= count;
            _ram.Release(pfn << Pfn.PageShift, count << Pfn.PageShift);
            return true;
        });
    }

    /// <summary>
    /// What was surplus all through the last seconds: a program that breathes does not give back what it needs again.
    /// </summary>
    private sealed class SurplusWindow(int seconds)
    {
        private readonly long[] _seen = new long[seconds];
        private int _next;

        public long Lowest(long now)
        {
            _seen[_next] = now;
            _next = (_next + 1) % _seen.Length;
            return _seen.Min();
        }
    }
}
