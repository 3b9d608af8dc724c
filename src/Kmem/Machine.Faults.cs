namespace Kmem;

/// <content>Fault injection.</content>
public sealed partial class Machine
{
    private readonly Lock _faultsLock = new();

    /// <summary>
    /// Requests for blocks of pages that fail on purpose (fail_page_alloc, mm/fail_page_alloc.c, Linux 6.18). From the
    /// first look at it on every request takes a slower way.
    /// </summary>
    public FaultAttribute FailPageAlloc => Faults.Pages;

    /// <summary>
    /// Requests for objects of caches, and of kmalloc, that fail on purpose (failslab, mm/failslab.c, Linux 6.18). From
    /// the first look at it on every request takes a slower way, and a request for many objects is as many requests.
    /// </summary>
    public FaultAttribute FailSlab => Faults.Slabs;

    /// <summary>
    /// Makes a request of this thread fail, for pages or for an object of any machine with fault injection, or of one
    /// that it builds meanwhile (fail-nth, /proc/self/fail-nth).
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

    /// <summary>
    /// Whether this thread is one of those that <see cref="FaultAttribute.TaskFilter"/> lets through
    /// (/proc/self/make-it-fail, lib/fault-inject.c, Linux 6.18); on all machines.
    /// </summary>
    public static bool MakeItFail
    {
        get => FaultInjection.MakeItFail;
        set => FaultInjection.MakeItFail = value;
    }

    /// <summary>Who has a request that is to fail, and builds a machine, means the requests of that, too.</summary>
    private void ApplyFailNth()
    {
        if (FaultInjection.Nth > 0)
            _ = Faults;
    }

    /// <summary>What the options ask for, once the machine runs.</summary>
    private void ApplyFaultOptions()
    {
        if (Options.FailPageAlloc != null)
            FailPageAlloc.Apply(Options.FailPageAlloc);
        if (Options.FailSlab != null)
            FailSlab.Apply(Options.FailSlab);
    }

    private FaultInjection Faults
    {
        get
        {
            lock (_faultsLock)
            {
                if (_pages.Faults == null)
                {
                    _pages.Faults = new FaultInjection(Options.Seed, Dmesg);
                    _slabs.AskFaults();
                }

                return _pages.Faults;
            }
        }
    }
}
