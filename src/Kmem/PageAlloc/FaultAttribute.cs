namespace Kmem;

/// <summary>
/// When requests fail on purpose (<c>struct fault_attr</c>, lib/fault-inject.c, Linux 6.18). All zero but
/// <see cref="Times"/> and <see cref="Interval"/>: never. Settings may change at any time, on any thread.
/// </summary>
/// <remarks>
/// A request fails if <see cref="Space"/> is used up, it is the <see cref="Interval"/>-th since the last such one,
/// <see cref="Probability"/> says so and <see cref="Times"/> is not used up. <see cref="Machine.FailNth"/> overrides
/// all of
/// it. Requests with <see cref="Gfp.NoFail"/> never fail.
/// </remarks>
public sealed class FaultAttribute
{
    private readonly Lock _lock = new();
    private ulong _random;
    private long _calls;

    internal FaultAttribute(ulong seed) => _random = seed | 1;

    /// <summary>Of those whose turn it is, how many fail: 0 to 100 percent.</summary>
    public int Probability { get; set; }

    /// <summary>Only every so-manieth request can fail; 1 and less: any.</summary>
    public int Interval { get; set; } = 1;

    /// <summary>How many failures are left; -1: no limit.</summary>
    public int Times { get; set; } = 1;

    /// <summary>Bytes (of a cache) or frames that are still to be had before anything fails.</summary>
    public long Space { get; set; }

    /// <summary>Requests that may wait for reclaim never fail (ignore-gfp-wait).</summary>
    public bool IgnoreGfpWait { get; set; } = true;

    /// <summary>Blocks of pages of a smaller order never fail (min-order); 0 to 10.</summary>
    public int MinOrder { get; set; } = 1;

    /// <summary>Requests that failed on purpose since boot.</summary>
    public long Failures { get; private set; }

    /// <summary>Whether a request of this size is to fail (should_fail).</summary>
    internal bool ShouldFail(Gfp gfp, long size)
    {
        if ((gfp & Gfp.NoFail) != 0)
            return false;

        lock (_lock)
        {
            if (Probability <= 0 || Times == 0 || (IgnoreGfpWait && (gfp & Gfp.DirectReclaim) != 0))
                return false;

            if (Space > size)
            {
                Space -= size;
                return false;
            }

            if (Interval > 1 && ++_calls % Interval != 0)
                return false;
            if (Next() % 100 >= (ulong)Probability)
                return false;

            if (Times > 0)
                Times--;
            Failures++;
            return true;
        }
    }

    internal void CountFailure()
    {
        lock (_lock)
            Failures++;
    }

    private ulong Next()
    {
        _random ^= _random >> 12;
        _random ^= _random << 25;
        _random ^= _random >> 27;
        return (_random * 0x2545_F491_4F6C_DD1D) >> 32;
    }
}
