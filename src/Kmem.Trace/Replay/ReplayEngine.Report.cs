namespace Kmem.Tracing;

/// <content>The report.</content>
internal sealed partial class ReplayEngine
{
    private const int MaxCallSites = 50;

    public ReplayReport Report()
    {
        IReadOnlyList<BrokenRule> broken = _machine.Validate();
        return new ReplayReport
        {
            Events = _events,
            Lines = _reader.Lines,
            DamagedLines = _reader.DamagedCount,
            Damage = _reader.Damage,
            LostEvents = _reader.LostEvents,
            UnknownGfpCount = _reader.UnknownGfpCount,
            UnknownGfpNames = _reader.UnknownGfpNames,
            KmallocAllocs = _kmallocAllocs,
            CacheAllocs = _cacheAllocs,
            PageAllocs = _pageAllocs,
            ObjectFrees = _objectFrees,
            PageFrees = _pageFrees,
            UnknownFrees = _unknownFrees,
            NullFrees = _nullFrees,
            FreesOfFailedAllocs = _freesOfFailed,
            FailedAllocs = _failedAllocs,
            TracedFailures = _tracedFailures,
            MissedFrees = _missedFrees,
            SlabPagesRecognised = _slabPages,
            LargeKmallocPagesRecognised = _largePages,
            SlabPageFrees = _slabPageFrees,
            SkippedEvents = _skipped,
            VmapAllocs = _vmapAllocs,
            VmapAllocsForetold = _vmapForetold,
            VmapFrees = _vmapFrees,
            VmapPurges = _vmapPurges,
            FoldedCpuEvents = _folded,
            KmallocChecked = _kmallocChecked,
            KmallocEqual = _kmallocEqual,
            CacheChecked = _cacheChecked,
            CacheEqual = _cacheEqual,
            Mismatches = _mismatches,
            LiveObjects = _liveObjects,
            LiveBytes = _liveBytes,
            LivePages = _livePages,
            Violations = broken.Count + _misuseCount,
            ViolationTexts = [.. broken.Select(rule => rule.ToString()).Concat(_misuse).Take(MaxTexts)],
            Elapsed = _elapsed,
            EventsPerSecond = _elapsed > TimeSpan.Zero ? _events / _elapsed.TotalSeconds : 0,
            Profile = _machine.Options.Profile.Name,
            Cpus = _machine.Cpus,
            RamBytes = _machine.Options.RamBytes,
            Caches = [.. _caches.Report()],
            Zones = [.. _machine.Pages.Zones.Select(Report)],
            CallSites = ReportCallSites(),
        };
    }

    private static ZoneReport Report(ZonePages zone)
    {
        IEnumerable<int> orders = Enumerable.Range(0, PageOrder.Count);
        return new ZoneReport
        {
            Node = zone.Zone.NodeId,
            Name = zone.Zone.Name,
            Managed = (long)zone.Zone.Managed,
            Free = zone.Zone.FreePagesExact,
            FreeBlocks = [.. orders.Select(order => (long)zone.Buddy.NrFree(order))],
            PcpFrames = zone.PcpCount,
            ExtfragIndex = [.. orders.Select(order => Fragmentation.ExtfragIndex(zone.Buddy.NrFree, order) / 1000.0)],
            UnusableIndex = [.. orders.Select(order => Fragmentation.UnusableIndex(zone.Buddy.NrFree, order) / 1000.0)],
        };
    }

    private List<CallSiteReport> ReportCallSites()
    {
        return Enumerable.Range(0, Math.Min(_sites.Length, _reader.CallSites.Count))
            .Where(site => _sites[site].Allocs > 0)
            .OrderByDescending(site => _sites[site].LiveBytes)
            .ThenByDescending(site => _sites[site].TotalBytes)
            .ThenBy(site => site)
            .Take(MaxCallSites)
            .Select(site => new CallSiteReport
            {
                Name = site == 0 ? "(unknown)" : _reader.CallSites[site],
                LiveObjects = _sites[site].Live,
                LiveBytes = _sites[site].LiveBytes,
                Allocs = _sites[site].Allocs,
                TotalBytes = _sites[site].TotalBytes,
            })
            .ToList();
    }
}
