namespace Kmem;

/// <content>The end of the road: report, ask the policy, fail.</content>
internal sealed partial class Reclaimer
{
    /// <summary>Answers after which nothing was free, before they are no longer believed.</summary>
    private const int MaxVainAnswers = 16;

    private readonly Lock _oomLock = new();
    private readonly RateLimit _reports = new("oom_kill_process", TimeSpan.FromSeconds(5), 10);
    private int _vainAnswers;

    /// <summary>Who decides; null: requests fail.</summary>
    public OomPolicy? OomPolicy { get; set; }

    /// <inheritdoc/>
    public override unsafe bool OutOfMemory(int order, Gfp gfp)
    {
        if (_oomLock.IsHeldByCurrentThread)
            return false; // the policy itself is out of memory

        // Somebody else is at it: that may help us, too.
        if (!_oomLock.TryEnter())
        {
            Pause.For(1);
            return true;
        }

        CpuTask* task = Task;
        TaskFlags before = task->Flags;
        task->Flags |= TaskFlags.MemAlloc;
        try
        {
            return Decide(order, gfp);
        }
        finally
        {
            task->Flags = before;
            _oomLock.Exit();
        }
    }

    /// <summary>Who holds the memory, largest first.</summary>
    public List<MemoryHolder> Holders() => OomReport.Holders(
        _pages, _slabs, Volatile.Read(ref _lrus).OfType<INamedHolder>().Select(area => (area.HolderName, area.Frames)));

    private bool Decide(int order, Gfp gfp)
    {
        long free = FreeFrames();
        _slabs.TryShrinkAll();
        if (FreeFrames() > free)
            return true;

        List<MemoryHolder> holders = Holders();
        long lruPages = _pages.Nodes.Sum(ReclaimableFrames);
        string report = OomReport.Of(_pages, _slabs, holders, lruPages, order, gfp);
        bool told = _reports.Allows(Log);
        if (told)
            Log.Write(report);

        // Without __GFP_FS the caller may hold what the policy would need.
        OomVerdict verdict = (gfp & Gfp.FS) == 0 ? OomVerdict.Fail : Ask(new OomEvent(order, gfp, holders, report));
        if (verdict == OomVerdict.Fail)
        {
            if (told)
                Log.Write("Out of memory and nobody to free any: the request fails");
            return false;
        }

        Interlocked.Increment(ref Counters.OomKill);
        long freed = FreeFrames() - free;
        if (told)
            Log.Write($"Out of memory: the policy freed {Math.Max(0, freed)} pages");
        _vainAnswers = freed > 0 ? 0 : _vainAnswers + 1;
        if (_vainAnswers < MaxVainAnswers)
            return true;

        _vainAnswers = 0;
        Log.Write($"Out of memory: the policy freed nothing {MaxVainAnswers} times: the request fails");
        return false;
    }

    private OomVerdict Ask(OomEvent oom)
    {
        if (OomPolicy is not { } policy)
            return OomVerdict.Fail;

        try
        {
            return policy(oom);
        }
        catch (Exception error)
        {
            Log.Write($"WARNING: the out-of-memory policy threw {error.GetType().Name}: {error.Message}");
            return OomVerdict.Fail;
        }
    }

    /// <summary>Free, wherever: the number that tells whether anything came back.</summary>
    private long FreeFrames() => _pages.Zones.Sum(zone => zone.Zone.FreePagesExact + zone.PcpCount);
}

/// <summary>Somebody with many frames, for the report.</summary>
internal interface INamedHolder
{
    string HolderName { get; }

    long Frames { get; }
}
