namespace Kmem;

/// <summary>
/// Read-copy-update in its smallest useful form: readers mark a section, writers put work off until every section that was
/// open at that moment has ended (a grace period).
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

    /// <summary>Number of callbacks not run yet.</summary>
    public int Pending
    {
        get
        {
            lock (_lock)
                return _waiting.Count + _next.Count;
        }
    }

    /// <summary>Opens a read-side section (rcu_read_lock).</summary>
    /// <returns>What <see cref="ReadUnlock"/> needs.</returns>
    public int ReadLock()
    {
        lock (_lock)
        {
            _readers[_phase]++;
            return _phase;
        }
    }

    public void ReadUnlock(int phase)
    {
        lock (_lock)
            _readers[phase]--;
        Advance();
    }

    /// <summary>Runs work after a grace period (call_rcu); right away if nobody reads. No locks may be held.</summary>
    public void Call(Action work)
    {
        lock (_lock)
            _next.Add(work);
        Advance();
    }

    /// <summary>Waits until all work put off so far has run (rcu_barrier). Not inside a read-side section.</summary>
    public void Barrier()
    {
        var spin = default(SpinWait);
        while (Pending > 0)
        {
            Advance();
            spin.SpinOnce();
        }
    }

    /// <summary>Runs what can be run: the batch whose readers are gone, then the next one if it too has none.</summary>
    private void Advance()
    {
        // Two rounds, because work put off a moment ago needs the batch before it to go first.
        for (int round = 0; round < 2; round++)
        {
            List<Action> ready;
            lock (_lock)
            {
                int old = _phase ^ 1;
                if (_readers[old] != 0 || _waiting.Count + _next.Count == 0)
                    return;

                // Readers of the old phase are gone, so the waiting batch is ready; the next one waits for today's.
                ready = _waiting;
                _waiting = _next;
                _next = [];
                _phase = old;
            }

            foreach (Action work in ready)
                work();
        }
    }
}
