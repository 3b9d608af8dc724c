using System.Globalization;

namespace Kmem;

/// <summary>
/// When requests fail on purpose (<c>struct fault_attr</c>, lib/fault-inject.c, Linux 6.18). All zero but
/// <see cref="Times"/> and <see cref="Interval"/>: never. Settings may change at any time, on any thread.
/// </summary>
/// <remarks>
/// A request fails if <see cref="Space"/> is used up, it is the <see cref="Interval"/>-th since the last such one,
/// <see cref="Probability"/> says so and <see cref="Times"/> is not used up. <see cref="Machine.FailNth"/> overrides
/// all of it. Requests with <see cref="Gfp.NoFail"/> never fail. Who fails follows from
/// <see cref="MachineOptions.Seed"/> and the order of the requests alone.
/// </remarks>
public sealed class FaultAttribute
{
    private readonly Lock _lock = new();
    private readonly string _name;
    private readonly KernelLog _log;
    private ulong _random;
    private long _calls;

    internal FaultAttribute(string name, ulong seed, KernelLog log)
    {
        _name = name;
        _log = log;
        _random = (seed * 0x9e37_79b9_7f4a_7c15) | 1;
    }

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

    /// <summary>Requests that may be served from high memory never fail (ignore-gfp-highmem); for pages only.</summary>
    public bool IgnoreGfpHighMem { get; set; } = true;

    /// <summary>Only caches with the debugging flag A fail (cache-filter); for objects only.</summary>
    public bool CacheFilter { get; set; }

    /// <summary>Only threads fail that said so, with <see cref="Machine.MakeItFail"/> (task-filter).</summary>
    public bool TaskFilter { get; set; }

    /// <summary>Each failure leaves a line in the machine's log (verbose).</summary>
    public bool Verbose { get; set; }

    /// <summary>Requests that failed on purpose since boot.</summary>
    public long Failures { get; private set; }

    /// <summary>Whether a request of this size is to fail (should_fail).</summary>
    internal bool ShouldFail(Gfp gfp, long size)
    {
        if ((gfp & Gfp.NoFail) != 0)
            return false;

        if (Probability <= 0 || (TaskFilter && !FaultInjection.MakeItFail))
            return false;

        lock (_lock)
        {
            if (Times == 0 || (IgnoreGfpWait && (gfp & Gfp.DirectReclaim) != 0))
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
        }

        if (Verbose)
        {
            _log.Write(
                $"FAULT_INJECTION: forcing a failure.\nname {_name}, interval {Interval}, probability {Probability}, "
                + $"space {Space}, times {Times}");
        }

        return true;
    }

    /// <summary>Reads the value of a boot parameter: interval, probability, space, times (setup_fault_attr).</summary>
    /// <exception cref="ArgumentException">It is not four numbers with commas between them.</exception>
    internal void Apply(string setting)
    {
        string[] parts = setting.Split(',');
        if (parts.Length != 4
            || !int.TryParse(parts[0], NumberStyles.None, CultureInfo.InvariantCulture, out int interval)
            || !int.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out int probability)
            || !long.TryParse(parts[2], NumberStyles.None, CultureInfo.InvariantCulture, out long space)
            || !int.TryParse(parts[3], NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out int times))
        {
            throw new ArgumentException(
                $"{_name}={setting}: not of the form interval,probability,space,times", nameof(setting));
        }

        (Interval, Probability, Space, Times) = (interval, probability, space, times);
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
