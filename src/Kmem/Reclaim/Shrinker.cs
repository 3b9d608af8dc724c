namespace Kmem;

/// <summary>
/// A cache's promise to give memory back under pressure: a callback that counts what could be freed, and one that frees
/// some of it (struct shrinker, mm/shrinker.c, Linux 6.18). Dispose it to unregister.
/// </summary>
/// <remarks>
/// <para>How much one call is asked for, with F freeable objects and the priority p of 12 (gentle) to 0
/// (desperate):</para>
/// <code>
///   delta = (F &gt;&gt; p) × 4 / seeks             F / 2 if seeks is 0
///   total = min((deferred &gt;&gt; p) + delta, 2 × F)   scanned in batches; less than a batch is deferred,
///   deferred += what was not scanned               unless it is all there is
/// </code>
/// <para>
/// Callbacks run on whatever thread is short of memory, on several at once, in the middle of its allocation. It may
/// hold locks of yours: take them with TryEnter and answer <see cref="Stop"/> if that fails, and remember that .NET's
/// locks let the thread that holds them in again. Memory allocated inside a callback comes from the reserves; it never
/// reclaims.
/// </para>
/// </remarks>
public sealed class Shrinker : IDisposable
{
    /// <summary>A scan's answer: no progress is possible now (SHRINK_STOP).</summary>
    public const long Stop = -1;

    /// <summary>A count's answer: there is nothing at all (SHRINK_EMPTY).</summary>
    public const long Empty = -2;

    /// <summary>How dear it is to make an object anew, if nothing else is known (DEFAULT_SEEKS).</summary>
    public const int DefaultSeeks = 2;

    /// <summary>Objects of one scan, if nothing else is asked for (SHRINK_BATCH).</summary>
    public const long DefaultBatch = 128;

    private const int Closed = 1 << 30;
    private const int MaxReportedErrors = 3;

    [ThreadStatic]
    private static Shrinker? t_running;

    private readonly ShrinkerCallback _count;
    private readonly ShrinkerCallback _scan;
    private readonly Reclaimer _reclaimer;
    private readonly long[] _deferred;
    private int _users;
    private long _calls;
    private long _scanned;
    private long _freed;
    private long _frames;
    private long _stops;
    private long _errors;

    internal Shrinker(Reclaimer reclaimer, ShrinkerSettings settings)
    {
        _reclaimer = reclaimer;
        _count = settings.Count;
        _scan = settings.Scan;
        Name = settings.Name;
        Seeks = settings.Seeks;
        Batch = settings.Batch;
        Flags = settings.Flags;
        _deferred = new long[IsNumaAware ? reclaimer.Nodes : 1];
    }

    /// <summary>Its name, for reports.</summary>
    public string Name { get; }

    /// <summary>How dear it is to make an object anew; 0: nothing, take them first.</summary>
    public int Seeks { get; }

    /// <summary>Objects of one scan; 0 for <see cref="DefaultBatch"/>.</summary>
    public long Batch { get; }

    /// <summary>How it is called.</summary>
    public ShrinkerFlags Flags { get; }

    /// <summary>What it has given so far.</summary>
    public ShrinkerReport Report => new(
        Volatile.Read(ref _calls),
        Volatile.Read(ref _scanned),
        Volatile.Read(ref _freed),
        Volatile.Read(ref _frames),
        Volatile.Read(ref _stops),
        Volatile.Read(ref _errors));

    private bool IsNumaAware => (Flags & ShrinkerFlags.NumaAware) != 0;

    /// <summary>Objects that were asked for and put off until later (nr_deferred).</summary>
    /// <param name="node">A node; 0 unless the shrinker tells nodes apart.</param>
    /// <returns>Objects.</returns>
    public long Deferred(int node = 0) => Volatile.Read(ref _deferred[node]);

    /// <summary>Asks the shrinker now, without pressure (debugfs shrinker/…/count).</summary>
    /// <param name="node">A node.</param>
    /// <returns>Objects that could be freed; 0 if it has none, does not know, or is unregistered.</returns>
    public long CountObjects(int node = 0) =>
        Use(new ShrinkControl(Gfp.Kernel, node), static (self, control) => Math.Max(0, self.Call(self._count, control)));

    /// <summary>Has the shrinker free objects now, without pressure (debugfs shrinker/…/scan).</summary>
    /// <param name="objects">How many to look at.</param>
    /// <param name="node">A node.</param>
    /// <returns>Objects freed; 0 if it cannot, or is unregistered.</returns>
    public long ScanObjects(long objects, int node = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(objects);
        var control = new ShrinkControl(Gfp.Kernel, node) { ToScan = objects, Scanned = objects };
        return Use(control, static (self, asked) => Math.Max(0, self.Scan(asked)));
    }

    /// <summary>
    /// Unregisters (shrinker_free). Waits until no callback runs any more, so what they use may go afterwards. Twice is
    /// fine.
    /// </summary>
    /// <exception cref="KernelBugException">Called from its own callback, which would wait for itself.</exception>
    public void Dispose()
    {
        if (t_running == this)
            _reclaimer.ThrowBug($"BUG: shrinker {Name} is unregistered by its own callback");

        _reclaimer.Unregister(this);
        Interlocked.Or(ref _users, Closed);
        var wait = default(SpinWait);
        while (Volatile.Read(ref _users) != Closed)
            wait.SpinOnce();
    }

    /// <summary>The name and what it could free.</summary>
    /// <returns>One line.</returns>
    public override string ToString() => $"{Name}: {Volatile.Read(ref _freed)} objects freed";

    /// <summary>One call at one priority (do_shrink_slab).</summary>
    /// <returns>Objects freed.</returns>
    internal long Shrink(ScanControl scan, int node)
    {
        var control = new ShrinkControl(scan.Gfp, IsNumaAware ? node : 0);
        return Use((control, scan), static (self, asked) => self.ShrinkUsed(asked.control, asked.scan));
    }

    private unsafe long ShrinkUsed(ShrinkControl control, ScanControl scan)
    {
        int priority = scan.Priority;
        Interlocked.Increment(ref _calls);
        long freeable = Call(_count, control);
        if (freeable <= 0)
            return 0;

        long deferred = Interlocked.Exchange(ref _deferred[control.Node], 0);
        long delta = Seeks != 0 ? (freeable >> priority) * 4 / Seeks : freeable / 2;
        long total = Math.Min((deferred >> priority) + delta, 2 * freeable);
        long batch = Batch != 0 ? Batch : DefaultBatch;
        long scanned = 0;
        long freed = 0;
        long framesBefore = _reclaimer.Task->Reclaimed;
        while (total >= batch || total >= freeable)
        {
            control.ToScan = control.Scanned = Math.Min(batch, total);
            long result = Scan(control);
            if (result == Stop)
            {
                scan.Stopped = true;
                break;
            }

            freed += result;
            total -= control.Scanned;
            scanned += control.Scanned;
        }

        long next = Math.Clamp(deferred + delta - scanned, 0, 2 * freeable);
        Interlocked.Add(ref _deferred[control.Node], next);
        Interlocked.Add(ref _frames, _reclaimer.Task->Reclaimed - framesBefore);
        return freed;
    }

    /// <summary>
    /// One batch. What a callback answers is not believed where it would make the caller's loop endless.
    /// </summary>
    private long Scan(ShrinkControl control)
    {
        long freed = Call(_scan, control);
        if (freed < 0)
        {
            Interlocked.Increment(ref _stops);
            return Stop;
        }

        control.Scanned = Math.Max(1, control.Scanned);
        Interlocked.Add(ref _scanned, control.Scanned);
        Interlocked.Add(ref _freed, freed);
        Interlocked.Add(ref _reclaimer.Counters.SlabsScanned, control.Scanned);
        return freed;
    }

    /// <summary>
    /// Calls foreign code. The one who is short of memory has nothing to do with its mistakes: an exception is written
    /// to the log, and counts as <see cref="Stop"/>.
    /// </summary>
    private long Call(ShrinkerCallback callback, ShrinkControl control)
    {
        Shrinker? outer = t_running;
        t_running = this;
        try
        {
            return callback(control);
        }
        catch (Exception error)
        {
            if (Interlocked.Increment(ref _errors) <= MaxReportedErrors)
                _reclaimer.Log.Write($"WARNING: shrinker {Name}: {error.GetType().Name}: {error.Message}");
            return Stop;
        }
        finally
        {
            t_running = outer;
        }
    }

    /// <summary>Runs what must not overlap the end of <see cref="Dispose"/>; 0 if that is over.</summary>
    private long Use<T>(T argument, Func<Shrinker, T, long> work)
    {
        if ((Interlocked.Increment(ref _users) & Closed) != 0)
        {
            Interlocked.Decrement(ref _users);
            return 0;
        }

        try
        {
            return work(this, argument);
        }
        finally
        {
            Interlocked.Decrement(ref _users);
        }
    }
}

/// <summary>What a shrinker is made of.</summary>
internal sealed record ShrinkerSettings(string Name, ShrinkerCallback Count, ShrinkerCallback Scan)
{
    public int Seeks { get; init; } = Shrinker.DefaultSeeks;

    public long Batch { get; init; }

    public ShrinkerFlags Flags { get; init; }
}
