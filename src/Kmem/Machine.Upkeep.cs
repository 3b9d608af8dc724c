namespace Kmem;

/// <content>What a machine does once a second, and how memory goes back to the host.</content>
public sealed partial class Machine
{
    private readonly Lock _upkeep = new();
    private Timer? _upkeepTimer;
    private SurplusWindow? _surplus;
    private QuickDecay? _quick;

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
        _slabs.Runs?.Drop();
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
        if (Options.DecaySeconds != null || !_ram.CanRelease)
            return;

        _quick = new QuickDecay(machine);
        _slabs.ManyReleased = _quick.Wake;
    }

    private void StopUpkeep()
    {
        lock (_upkeep)
        {
            _upkeepTimer?.Dispose();
            _upkeepTimer = null;
            _quick?.Dispose();
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
            if (_slabs.Runs is { } runs)
                runs.Drop((runs.KeptBlocks + 3) / 4);
            long used = UsedFrames();
            long surplus = _surplus!.Lowest(ResidentFrames() - used);
            if (surplus >= 1L << DecayMinOrder && _ram.CanRelease)
                ReleaseFree(DecayMinOrder, surplus);
        }
        finally
        {
            _upkeep.Exit();
        }
    }

    /// <summary>
    /// What there is much more of than a sixteenth of the frames in use goes back after a few of these.
    /// </summary>
    internal void QuickTick(QuickDecay quick)
    {
        if (!_upkeep.TryEnter())
            return;

        try
        {
            if (_upkeepTimer == null || _disposed)
                return;

            long used = UsedFrames();
            long surplus = ResidentFrames() - used - Math.Max(QuickLeast, used / QuickShare);
            long lowest = quick.Lowest(surplus);
            if (lowest > 0)
                ReleaseFree(QuickMinOrder, lowest);
        }
        finally
        {
            _upkeep.Exit();
        }
    }

    /// <summary>64 KiB: a smaller hole costs the host more than it brings.</summary>
    private const int DecayMinOrder = 4;

    /// <summary>16 KiB: where there is much, most of it may be in pieces.</summary>
    private const int QuickMinOrder = 2;

    /// <summary>8 MiB, or a sixteenth of what is used, may lie about until the slow decay takes it.</summary>
    private const long QuickLeast = (8 << 20) >> Pfn.PageShift;
    private const long QuickShare = 16;

    /// <summary>
    /// Frames that somebody has, or a CPU's lists; those that were never touched, too. Private ones are none of the
    /// file's.
    /// </summary>
    private long UsedFrames()
    {
        long used = -((long)_ram.PrivateBlocks << PageOrder.Max);
        foreach (ZonePages zone in _pages.Zones)
            used += (long)zone.Zone.Managed - zone.Zone.FreePages;
        return used;
    }

    private long ResidentFrames() => (long)(_ram.ResidentBytes >> Pfn.PageShift);

    /// <summary>
    /// Gives free blocks back, the largest first, until the host has got enough. Blocks that nobody ever touched bring
    /// nothing and count as nothing.
    /// </summary>
    private void ReleaseFree(int minOrder, long most)
    {
        long before = ResidentFrames();
        _pages.ReportFree(minOrder, (pfn, count) =>
        {
            if (most <= 0)
                return false;

            _ram.Release(pfn << Pfn.PageShift, count << Pfn.PageShift);
            long after = ResidentFrames();
            most -= Math.Max(0, before - after);
            before = after;
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
    /// <summary>
    /// A timer that runs only while slabs go: three looks in 30 milliseconds, and what was surplus at each goes back. A
    /// program that shrinks is as small as it looks; one that breathes faster than that does not pay for its breath.
    /// </summary>
    internal sealed class QuickDecay : IDisposable
    {
        private const int Looks = 3;
        private const int CalmTicks = 5;

        private static readonly TimeSpan s_period = TimeSpan.FromMilliseconds(10);

        private readonly SurplusWindow _seen = new(Looks);
        private readonly Timer _timer;
        private int _awake;
        private bool _goingOn;
        private int _calm;

        public QuickDecay(WeakReference<Machine> machine) => _timer = new Timer(_ =>
        {
            if (machine.TryGetTarget(out Machine? alive))
                alive.QuickTick(this);
            SleepIfCalm();
        });

        /// <summary>Slabs have gone. From any thread, at any time.</summary>
        public void Wake()
        {
            Volatile.Write(ref _goingOn, true);
            if (Interlocked.Exchange(ref _awake, 1) == 0)
                _timer.Change(s_period, s_period);
        }

        public long Lowest(long now) => _seen.Lowest(now);

        public void Dispose() => _timer.Dispose();

        private void SleepIfCalm()
        {
            _calm = Volatile.Read(ref _goingOn) ? 0 : _calm + 1;
            Volatile.Write(ref _goingOn, false);
            if (_calm < CalmTicks)
                return;

            _calm = 0;
            _timer.Change(Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
            Volatile.Write(ref _awake, 0);
        }
    }
}
