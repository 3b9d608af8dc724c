namespace Kmem;

/// <summary>Requests that fail on purpose: of pages, of objects, and the N-th of a thread.</summary>
/// <remarks>mm/fail_page_alloc.c, mm/failslab.c, fail-nth of lib/fault-inject.c, Linux 6.18.</remarks>
internal sealed class FaultInjection(ulong seed)
{
    [ThreadStatic]
    private static long t_nth;

    public FaultAttribute Pages { get; } = new(seed);

    public FaultAttribute Slabs { get; } = new(seed + 1);

    /// <summary>How many more requests of this thread until one fails; 0 is off.</summary>
    public static long Nth
    {
        get => t_nth;
        set => t_nth = value;
    }

    public bool FailsPages(Gfp gfp, int order)
    {
        if (t_nth > 0)
            return IsNth(gfp, Pages);
        return order >= Pages.MinOrder && Pages.ShouldFail(gfp, 1L << order);
    }

    public bool FailsObject(Gfp gfp, int size) => t_nth > 0 ? IsNth(gfp, Slabs) : Slabs.ShouldFail(gfp, size);

    private static bool IsNth(Gfp gfp, FaultAttribute kind)
    {
        if ((gfp & Gfp.NoFail) != 0 || --t_nth > 0)
            return false;

        kind.CountFailure();
        return true;
    }
}
