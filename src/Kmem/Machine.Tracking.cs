namespace Kmem;

/// <content>Who holds what, and what nobody holds any more.</content>
public sealed partial class Machine
{
    /// <summary>
    /// Every allocation with its call site; null unless <see cref="MachineOptions.TrackAllocations"/> is set.
    /// </summary>
    public AllocationTracker? Allocations { get; private set; }

    /// <summary>
    /// Finds objects that cannot be reached from the roots, and writes the kernel's line to <see cref="Dmesg"/> if
    /// there are any; see <see cref="AllocationTracker.ScanForLeaks"/> for what a scan can and cannot know.
    /// </summary>
    /// <param name="minAge">Younger objects are not reported; null for 5 s.</param>
    /// <returns>The leaks, oldest first.</returns>
    /// <exception cref="InvalidOperationException">The machine does not track its allocations.</exception>
    /// <remarks>kmemleak_scan, mm/kmemleak.c, Linux 6.18. No other thread may be at work on the machine.</remarks>
    public IReadOnlyList<Leak> ScanForLeaks(TimeSpan? minAge = null)
    {
        if (Allocations is not { } tracker)
            throw new InvalidOperationException("the machine was booted without MachineOptions.TrackAllocations");

        IReadOnlyList<Leak> leaks = tracker.ScanForLeaks(minAge);
        if (leaks.Count > 0)
            Dmesg.Write($"kmemleak: {leaks.Count} new suspected memory leaks (see Machine.ScanForLeaks)");
        return leaks;
    }

    private void StartTracking()
    {
        if (!Options.TrackAllocations)
            return;

        Allocations = new AllocationTracker(_slabs, _blocks);
        _pages.Watch = Allocations;
        _slabs.Watch = Allocations;
        _slabs.Reroute();
    }
}
