namespace Kmem.Tracing;

/// <summary>
/// Compares the zone events of a machine with recorded ones. Each context has a queue for both sides, and whenever both
/// have one, the heads must be equal: an event may stand a little before or after the request that caused it, and
/// others may act in between.
/// </summary>
internal sealed class ZoneEventCheck : ITrace
{
    private readonly Dictionary<(int Cpu, string Task), Queues> _queues = [];
    private Queues _current = new();

    public long Expected { get; private set; }

    public long Exact { get; private set; }

    /// <summary>The first pair that differs.</summary>
    public (string Expected, string Came)? First { get; private set; }

    /// <summary>Events came that none in the recording of this context has been compared with yet.</summary>
    public bool HasUnmatched => _current.Came.Count > 0;

    /// <summary>Whose events come from here on.</summary>
    public void Enter((int Cpu, string Task) context)
    {
        if (!_queues.TryGetValue(context, out Queues? queues))
            _queues[context] = queues = new Queues();
        _current = queues;
    }

    /// <summary>
    /// Between two requests: if the sides were out of step, both start again from here, so that one mistake counts
    /// once.
    /// </summary>
    public void StartAgain()
    {
        if (!_current.OutOfStep)
            return;

        _current.Came.Clear();
        _current.Expected.Clear();
        _current.Missed = null;
        _current.OutOfStep = false;
    }

    public void Expect(RecordedEvent recorded)
    {
        Expected++;
        string args = recorded.Name == "PX" ? Join(recorded.Args, 6) : Join(recorded.Args, recorded.Name == "PD" ? 3 : 4);
        _current.Expected.Enqueue($"{recorded.Name} {args}");
        Compare();
    }

    /// <summary>At the end: what is left on either side has no counterpart.</summary>
    public void Finish()
    {
        foreach (Queues queues in _queues.Values)
        {
            if (queues.Came.Count > 0 || queues.Expected.Count > 0)
            {
                First ??= (queues.Expected.TryPeek(out string? left) ? left : "nothing",
                    queues.Came.TryPeek(out string? right) ? right : "nothing");
            }
        }
    }

    public void MmPageAllocZoneLocked(Pfn pfn, int order, Migratetype migratetype, bool percpuRefill) =>
        Came($"PZ {pfn.Value} {order} {(int)migratetype} {(percpuRefill ? 1 : 0)}");

    public void MmPagePcpuDrain(Pfn pfn, int order, Migratetype migratetype) =>
        Came($"PD {pfn.Value} {order} {(int)migratetype}");

    public void MmPageAllocExtfrag(in ExtfragEvent fallback) =>
        Came($"PX {fallback.Pfn.Value} {fallback.AllocOrder} {fallback.FallbackOrder} "
            + $"{(int)fallback.AllocMigratetype} {(int)fallback.FallbackMigratetype} {(fallback.ChangeOwnership ? 1 : 0)}");

    public void Kmalloc(ulong address, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node)
    {
    }

    public void Kfree(ulong address)
    {
    }

    public void KmemCacheAlloc(
        ulong address, string cache, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node)
    {
    }

    public void KmemCacheFree(ulong address, string cache)
    {
    }

    public void MmPageAlloc(Pfn pfn, int order, Gfp gfp, Migratetype migratetype)
    {
    }

    public void MmPageFree(Pfn pfn, int order)
    {
    }

    private static string Join(string[] args, int count) => string.Join(' ', args.Take(count));

    private void Came(string zoneEvent)
    {
        _current.Came.Enqueue(zoneEvent);
        Compare();
    }

    private void Compare()
    {
        Queues it = _current;
        while (it.Expected.Count > 0 && (it.Came.Count > 0 || it.Expected.Peek() == it.Missed))
        {
            string expected = it.Expected.Dequeue();
            if (expected == it.Missed)
            {
                // The line before was one too many: what came then belongs to this one.
                Exact++;
                it.Missed = null;
                continue;
            }

            it.Missed = null;
            string came = it.Came.Dequeue();
            if (expected != came)
            {
                First ??= (expected, came);
                it.OutOfStep = true;
                if (!it.Came.Contains(expected))
                {
                    it.Missed = came;
                    continue;
                }

                // Lines are missing: it goes on from the one that is there.
                while (it.Came.Dequeue() != expected)
                {
                }
            }

            Exact++;
        }
    }

    private sealed class Queues
    {
        public Queue<string> Came { get; } = new();

        public Queue<string> Expected { get; } = new();

        public bool OutOfStep { get; set; }

        /// <summary>What came where another event was expected, just before.</summary>
        public string? Missed { get; set; }
    }
}
