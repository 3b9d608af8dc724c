namespace Kmem;

/// <summary>
/// A node's background reclaim: woken when no zone is above LOW, at work until one is above HIGH. The thread is
/// optional; without it requests are remembered until somebody calls <see cref="RunPending"/>.
/// <code>
///   free frames    HIGH ─────╮                ╭──────  enough: sleeps
///                  LOW  ──────╲──────────────╱───────  wakes here
///                  MIN  ───────╲╌╌╌╌╌╌╌╌╌╌╌╱─────────  allocators reclaim themselves below
/// </code>
/// </summary>
/// <remarks>mm/vmscan.c, Linux 6.18: wakeup_kswapd, kswapd, kswapd_try_to_sleep, balance_pgdat.</remarks>
internal sealed class Kswapd : IDisposable
{
    /// <summary>Runs that brought nothing, after which a node is given up (MAX_RECLAIM_RETRIES).</summary>
    public const int MaxFailures = 16;

    /// <summary>A short sleep first: who is woken in it was not done (HZ / 10).</summary>
    private const int NapMilliseconds = 100;

    /// <summary>While only a boost is worked off, reclaim does not get more urgent than this.</summary>
    private const int GentlePriority = ScanControl.DefaultPriority - 2;

    private readonly Reclaimer _reclaimer;
    private readonly PageAllocator _pages;
    private readonly Node _node;
    private readonly int _cpus;
    private readonly Lock _work = new();
    private readonly AutoResetEvent _wake = new(initialState: false);
    private Thread? _thread;
    private volatile bool _stop;
    private int _asleep;
    private int _order;
    private int _highest = -1;

    public Kswapd(Reclaimer reclaimer, PageAllocator pages, Node node, int cpus)
    {
        _reclaimer = reclaimer;
        _pages = pages;
        _node = node;
        _cpus = cpus;
    }

    /// <summary>Whether there is a thread.</summary>
    public bool HasThread => Volatile.Read(ref _thread) != null;

    /// <summary>Whether the thread has nothing to do.</summary>
    public bool IsAsleep => Volatile.Read(ref _asleep) != 0;

    /// <summary>So many runs brought nothing that only somebody else's success can help.</summary>
    public bool IsHopeless => _node.KswapdFailures >= MaxFailures;

    /// <summary>Starts the thread.</summary>
    public void Start()
    {
        _thread = new Thread(Run) { IsBackground = true, Name = $"kswapd{_node.Id}" };
        _thread.Start();
    }

    /// <summary>
    /// Somebody found no zone above LOW (wakeup_kswapd). The largest order and the highest zone are remembered. Never
    /// waits, whatever locks the caller has.
    /// </summary>
    public void Wake(int order, ZoneType highest)
    {
        RaiseTo(ref _order, order);
        RaiseTo(ref _highest, (int)highest);
        if (Volatile.Read(ref _asleep) == 0
            || IsHopeless
            || (IsBalanced(order, highest) && !IsBoosted(highest)))
        {
            return;
        }

        if (Interlocked.Exchange(ref _asleep, 0) != 0)
            _wake.Set();
    }

    /// <summary>Does now what the thread would do for the requests that came since the last time.</summary>
    /// <returns>Frames that came back.</returns>
    public long RunPending()
    {
        int order = Interlocked.Exchange(ref _order, 0);
        int highest = Interlocked.Exchange(ref _highest, -1);
        if (highest < 0 || IsHopeless)
            return 0;

        UseThresholds(pressure: true);
        try
        {
            return Balance(ref order, (ZoneType)highest);
        }
        finally
        {
            UseThresholds(pressure: HasThread && !IsAsleep);
        }
    }

    /// <summary>
    /// Whether the node has a zone that a request with this highest zone could use and that is above HIGH
    /// (pgdat_balanced).
    /// </summary>
    public bool IsBalanced(int order, ZoneType highest)
    {
        bool any = false;
        foreach (ZonePages pages in ZonesUpTo(highest))
        {
            Zone zone = pages.Zone;
            long free = zone.FreePages;
            if (zone.PercpuDriftMark != 0 && free < zone.PercpuDriftMark)
                free = zone.FreePagesExact;
            if (pages.WatermarkOk(order, zone.Mark(WatermarkLevel.High), highest, 0, free))
                return true;
            any = true;
        }

        return !any;
    }

    /// <summary>Ends the thread; one that is in a callback is waited for.</summary>
    public void Dispose()
    {
        _stop = true;
        _wake.Set();
        _thread?.Join();
        _thread = null;
        _wake.Dispose();
    }

    private static void RaiseTo(ref int field, int value)
    {
        int seen = Volatile.Read(ref field);
        while (value > seen)
        {
            int before = Interlocked.CompareExchange(ref field, value, seen);
            if (before == seen)
                return;
            seen = before;
        }
    }

    private IEnumerable<ZonePages> ZonesUpTo(ZoneType highest) => _pages.Zones.Where(
        pages => pages.Zone.NodeId == _node.Id && pages.Zone.Type <= highest && pages.Zone.Managed != 0);

    private bool IsBoosted(ZoneType highest) => ZonesUpTo(highest).Any(pages => pages.Zone.Boost != 0);

    private void Run()
    {
        try
        {
            RunUntilStopped();
        }
        catch (Exception error)
        {
            // Allocators reclaim for themselves from now on.
            _reclaimer.Log.Write($"WARNING: {Thread.CurrentThread.Name} ends: {error.GetType().Name}: {error.Message}");
        }
        finally
        {
            _node.KswapdAwake = false;
            Volatile.Write(ref _thread, null);
        }
    }

    private void RunUntilStopped()
    {
        _node.KswapdAwake = true;
        UseThresholds(pressure: true);
        int order = 0;
        ZoneType highest = ZoneType.Movable;
        while (!_stop)
        {
            Sleep(order, highest);
            order = Interlocked.Exchange(ref _order, 0);
            int asked = Interlocked.Exchange(ref _highest, -1);
            highest = asked < 0 ? ZoneType.Movable : (ZoneType)asked;
            if (_stop)
                return;

            int wanted = order;
            Balance(ref order, highest);
            if (order < wanted)
                order = 0;
        }
    }

    /// <summary>A nap, and if nothing happens in it a sleep until somebody wakes it (kswapd_try_to_sleep).</summary>
    private void Sleep(int order, ZoneType highest)
    {
        bool woken = false;
        if (MaySleep(order, highest))
        {
            _reclaimer.CompactInBackground(_node, order, highest);
            woken = WaitAsleep(NapMilliseconds, order, highest);
        }

        if (woken || !MaySleep(order, highest))
        {
            Interlocked.Increment(ref woken
                ? ref _reclaimer.Counters.KswapdLowWmarkHitQuickly
                : ref _reclaimer.Counters.KswapdHighWmarkHitQuickly);
            return;
        }

        UseThresholds(pressure: false);
        _node.KswapdAwake = false;
        WaitAsleep(Timeout.Infinite, order, highest);
        _node.KswapdAwake = true;
        UseThresholds(pressure: true);
    }

    /// <summary>Waits for a wake-up; not at all if there is work again by the time that others see it asleep.</summary>
    /// <returns>Whether it was woken.</returns>
    private bool WaitAsleep(int milliseconds, int order, ZoneType highest)
    {
        Interlocked.Exchange(ref _asleep, 1);
        bool woken = _stop || !MaySleep(order, highest) || _wake.WaitOne(milliseconds);
        Interlocked.Exchange(ref _asleep, 0);
        return woken;
    }

    private bool MaySleep(int order, ZoneType highest) => IsHopeless || IsBalanced(order, highest);

    /// <summary>Reclaims until a zone is above HIGH or nothing comes back any more (balance_pgdat).</summary>
    /// <param name="order">
    /// What is wanted; 0 afterwards if twice as much came back and the rest is for compaction.
    /// </param>
    /// <param name="highest">The highest zone that counts.</param>
    /// <returns>Frames that came back.</returns>
    private unsafe long Balance(ref int order, ZoneType highest)
    {
        CpuTask* task = _reclaimer.Task;
        TaskFlags before = task->Flags;
        ZonePages[] zones = [.. ZonesUpTo(highest)];
        long[] boosts = [.. zones.Select(pages => pages.Zone.Boost)];
        lock (_work)
        {
            task->Flags |= TaskFlags.MemAlloc;
            Interlocked.Increment(ref _reclaimer.Counters.PageOutRun);
            foreach (ZonePages pages in zones)
                pages.Zone.SetFlag(ZoneFlags.ReclaimActive);
            try
            {
                var scan = new ScanControl(ReclaimActor.Kswapd, Gfp.Kernel, order, 0);
                while (!_stop && !Pass(scan, zones, boosts.Sum(), highest))
                {
                }

                order = scan.Order;
                return scan.Reclaimed;
            }
            finally
            {
                Finish(zones, boosts);
                task->Flags = before;
            }
        }
    }

    /// <summary>The priorities from gentle to urgent.</summary>
    /// <returns>False if it is to begin again, without regard to the boost.</returns>
    private bool Pass(ScanControl scan, ZonePages[] zones, long boost, ZoneType highest)
    {
        for (int rounds = 0; rounds < 2; rounds++)
        {
            scan.Priority = ScanControl.DefaultPriority;
            bool restart = false;
            while (scan.Priority >= 1 && !_stop)
            {
                bool balanced = IsBalanced(scan.Order, highest);
                if (!balanced && boost > 0)
                {
                    boost = 0; // really short: the boost has to wait
                    restart = true;
                    break;
                }

                if (balanced && boost == 0)
                    return true;
                long freed = Step(scan, zones, ref boost);
                if (boost > 0 && freed == 0)
                    break;
            }

            if (!restart)
                break;
        }

        if (scan.Reclaimed == 0)
            _node.KswapdFailures++;
        return true;
    }

    /// <summary>One look at the node, at one priority.</summary>
    /// <returns>Frames that came back.</returns>
    private long Step(ScanControl scan, ZonePages[] zones, ref long boost)
    {
        bool raise = boost == 0 || scan.Priority > GentlePriority;
        scan.MaySwap = boost == 0;
        long before = scan.Reclaimed;
        long wanted = zones.Sum(pages => Math.Max(pages.Zone.Mark(WatermarkLevel.High), ScanControl.Cluster));
        scan.Scanned = 0;
        scan.Target = before + wanted;
        _reclaimer.ShrinkNode(_node, scan);
        if (scan.Scanned >= wanted)
            raise = false;
        if (scan.Order > 0 && scan.Reclaimed >= 2L << scan.Order)
            scan.Order = 0;

        long freed = scan.Reclaimed - before;
        boost -= Math.Min(boost, freed);
        if (raise || freed == 0)
            scan.Priority--;
        return freed;
    }

    /// <summary>The boost that was there at the start is worked off; what came meanwhile stays.</summary>
    private static void Finish(ZonePages[] zones, long[] boosts)
    {
        for (int i = 0; i < zones.Length; i++)
        {
            Zone zone = zones[i].Zone;
            zone.ClearFlag(ZoneFlags.ReclaimActive);
            if (boosts[i] == 0)
                continue;
            zones[i].Buddy.Lock.Acquire();
            zone.Boost -= Math.Min(zone.Boost, boosts[i]);
            zones[i].Buddy.Lock.Release();
        }
    }

    /// <summary>
    /// How far CPUs' counts may drift, where that could hide the way from LOW to MIN (set_pgdat_percpu_threshold).
    /// </summary>
    private void UseThresholds(bool pressure)
    {
        foreach (ZonePages pages in ZonesUpTo(ZoneType.Movable))
        {
            Zone zone = pages.Zone;
            if (zone.PercpuDriftMark == 0)
                continue;
            zone.StatThreshold = pressure
                ? Watermark.PressureThreshold(zone.Watermarks, _cpus)
                : Watermark.StatThreshold((long)zone.Managed, _cpus);
        }
    }
}
