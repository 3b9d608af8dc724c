namespace Kmem.Tracing;

/// <summary>
/// Compares the zone events of a machine with recorded ones: both are queued, and whenever both sides have one, the heads
/// must be equal. An event may stand a little before or after the request that caused it.
/// </summary>
internal sealed class ZoneEventCheck : ITrace
{
    private readonly Queue<string> _came = new();
    private readonly Queue<string> _expected = new();
    private bool _outOfStep;

    public long Expected { get; private set; }

    public long Exact { get; private set; }

    /// <summary>The first pair that differs.</summary>
    public (string Expected, string Came)? First { get; private set; }

    /// <summary>
    /// Between two requests: if the sides were out of step, both start again from here, so that one mistake counts once.
    /// </summary>
    public void StartAgain()
    {
        if (!_outOfStep)
            return;

        _came.Clear();
        _expected.Clear();
        _outOfStep = false;
    }

    /// <summary>Events came that none in the recording has been compared with yet.</summary>
    public bool HasUnmatched => _came.Count > 0;

    public void Expect(RecordedEvent recorded)
    {
        Expected++;
        string args = recorded.Name == "PX" ? Join(recorded.Args, 6) : Join(recorded.Args, recorded.Name == "PD" ? 3 : 4);
        _expected.Enqueue($"{recorded.Name} {args}");
        Compare();
    }

    /// <summary>At the end: what is left on either side has no counterpart.</summary>
    public void Finish()
    {
        if (_came.Count > 0 || _expected.Count > 0)
            First ??= (_expected.TryPeek(out string? left) ? left : "nothing", _came.TryPeek(out string? right) ? right : "nothing");
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
        _came.Enqueue(zoneEvent);
        Compare();
    }

    private void Compare()
    {
        while (_came.Count > 0 && _expected.Count > 0)
        {
            string expected = _expected.Dequeue();
            string came = _came.Dequeue();
            if (expected == came)
            {
                Exact++;
                continue;
            }

            First ??= (expected, came);
            _outOfStep = true;
        }
    }
}
