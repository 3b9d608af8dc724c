namespace Kmem;

/// <summary>Requests that fail on purpose: of pages, of objects, and the N-th of a thread.</summary>
/// <remarks>mm/fail_page_alloc.c, mm/failslab.c, fail-nth of lib/fault-inject.c, Linux 6.18.</remarks>
internal sealed class FaultInjection(ulong seed, KernelLog log)
{
    [ThreadStatic]
    private static long t_nth;

    [ThreadStatic]
    private static bool t_makeItFail;

    public FaultAttribute Pages { get; } = new("fail_page_alloc", seed, log);

    public FaultAttribute Slabs { get; } = new("failslab", seed + 1, log);

    /// <summary>How many more requests of this thread until one fails; 0 is off.</summary>
    public static long Nth
    {
        get => t_nth;
        set => t_nth = value;
    }

    /// <summary>This thread is one of those that <see cref="FaultAttribute.TaskFilter"/> lets through.</summary>
    public static bool MakeItFail
    {
        get => t_makeItFail;
        set => t_makeItFail = value;
    }

    public bool FailsPages(Gfp gfp, int order)
    {
        if (t_nth > 0)
            return IsNth(gfp, Pages);
        if (order < Pages.MinOrder || (Pages.IgnoreGfpHighMem && (gfp & Gfp.HighMem) != 0))
            return false;
        return Pages.ShouldFail(gfp, 1L << order);
    }

    /// <param name="gfp">The request's flags.</param>
    /// <param name="size">Bytes of an object.</param>
    /// <param name="isMarked">Its cache has the flag A.</param>
    public bool FailsObject(Gfp gfp, int size, bool isMarked)
    {
        if (t_nth > 0)
            return IsNth(gfp, Slabs);
        return (isMarked || !Slabs.CacheFilter) && Slabs.ShouldFail(gfp, size);
    }

    private static bool IsNth(Gfp gfp, FaultAttribute kind)
    {
        if ((gfp & Gfp.NoFail) != 0 || --t_nth > 0)
            return false;

        kind.CountFailure();
        return true;
    }
}
