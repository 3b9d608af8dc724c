namespace Kmem;

/// <summary>
/// Read-copy-update in its smallest useful form: readers mark a section, writers put work off until every section that
/// was open at that moment has ended (a grace period).
/// <code>
///   phase 0 readers ──┐        call_rcu(work)          phase 0 drained ─▶ work runs
///   phase 1 readers ──┴─ new readers count here from now on
/// </code>
/// </summary>
internal sealed class Rcu
{
    private readonly Lock _lock = new();
    private readonly int[] _readers = new int[2];
    private List<Action> _waiting = [];
    private List<Action> _next = [];
    private int _phase;
    private int _running;       // callbacks of the batch that some thread is at work on

    /// <summary>Number of callbacks that have not ended yet.</summary>
    public int Pending
    {
        get
        {
            SimPoint.Gate(_lock);
            lock (_lock)
                return _waiting.Count + _next.Count + _running;
        }
    }

    /// <summary>Opens a read-side section (rcu_read_lock).</summary>
    /// <returns>What <see cref="ReadUnlock"/> needs.</returns>
    public int ReadLock()
    {
        SimPoint.Gate(_lock);
        lock (_lock)
        {
            _readers[_phase]++;
            return _phase;
        }
    }

    public void ReadUnlock(int phase)
    {
        SimPoint.Gate(_lock);
        lock (_lock)
            _readers[phase]--;
        Advance();
    }

    /// <summary>Runs work after a grace period (call_rcu); right away if nobody reads. No locks may be held.</summary>
    public void Call(Action work)
    {
        SimPoint.Gate(_lock);
        lock (_lock)
            _next.Add(work);
        Advance();
    }

    /// <summary>
    /// Waits until all work put off so far has run (rcu_barrier). Neither inside a read-side section nor inside such
    /// work.
    /// </summary>
    public void Barrier()
    {
        // Batches run one after the other, so when this callback has run, all before it have.
        bool passed = Pending == 0;
        if (passed)
            return;

        Call(() => Volatile.Write(ref passed, true));
        var spin = default(SpinWait);
        while (!Volatile.Read(ref passed))
        {
            Advance();
            SimPoint.Wait();
            spin.SpinOnce();
        }
    }

    /// <summary>
    /// Runs what can be run: the batch whose readers are gone, then the next one if it too has none. One batch at a
    /// time; whoever runs one looks again afterwards.
    /// </summary>
    private void Advance()
    {
        while (TakeReady() is { } ready)
        {
            foreach (Action work in ready)
                Run(work);
            if (ready.Count > 0)
            {
                SimPoint.Gate(_lock);
                lock (_lock)
                    _running = 0;
            }
        }
    }

    private static void Run(Action work)
    {
        try
        {
            work();
        }
        catch (KernelBugException)
        {
            // A bad free. It is in the machine's log; who handed it in is long gone, and this thread has no part in it.
        }
    }

    /// <summary>
    /// The next batch whose grace period is over, perhaps empty; null if there is nothing to do or to wait for.
    /// </summary>
    private List<Action>? TakeReady()
    {
        SimPoint.Gate(_lock);
        lock (_lock)
        {
            int old = _phase ^ 1;
            if (_running > 0 || _readers[old] != 0 || _waiting.Count + _next.Count == 0)
                return null;

            // Readers of the old phase are gone, so the waiting batch is ready; the next one waits for today's.
            List<Action> ready = _waiting;
            _waiting = _next;
            _next = [];
            _phase = old;
            _running = ready.Count;
            return ready;
        }
    }
}
