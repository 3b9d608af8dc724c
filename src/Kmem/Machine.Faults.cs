namespace Kmem;

/// <content>Fault injection.</content>
public sealed partial class Machine
{
    private readonly Lock _faultsLock = new();

    /// <summary>
    /// Requests for blocks of pages that fail on purpose (fail_page_alloc, mm/fail_page_alloc.c, Linux 6.18). From the
    /// first
    /// look at it on every request takes a slower way.
    /// </summary>
    public FaultAttribute FailPageAlloc => Faults.Pages;

    /// <summary>
    /// Requests for objects that fail on purpose (failslab, mm/failslab.c, Linux 6.18): those to caches with slab
    /// debugging
    /// (<see cref="MachineOptions.SlubDebug"/>), because the ways of all others ask nobody.
    /// </summary>
    public FaultAttribute FailSlab => Faults.Slabs;

    /// <summary>
    /// Makes a request of this thread fail, for pages of any machine with fault injection or for an object of a
    /// debugged
    /// cache (fail-nth, /proc/self/fail-nth).
    /// </summary>
    /// <param name="n">1 for the next request, 2 for the one after it; 0 for none.</param>
    /// <returns>What was left of the number set before: 0 if that request has failed, or none was to.</returns>
    public long FailNth(long n)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(n);
        _ = Faults;
        long before = FaultInjection.Nth;
        FaultInjection.Nth = n;
        return before;
    }

    private FaultInjection Faults
    {
        get
        {
            lock (_faultsLock)
            {
                _pages.Faults ??= new FaultInjection(Options.Seed);
                return _pages.Faults;
            }
        }
    }
}
