namespace Kmem;

/// <summary>
/// Lets through so many messages per interval and counts the rest (struct ratelimit_state, lib/ratelimit.c,
/// Linux 6.18). Thread-safe.
/// </summary>
/// <param name="name">Who is silent, for the line that says so.</param>
/// <param name="interval">The interval; it begins with the first message.</param>
/// <param name="burst">Messages per interval.</param>
internal sealed class RateLimit(string name, TimeSpan interval, int burst)
{
    private readonly Lock _gate = new();
    private long _begin = long.MinValue;
    private int _printed;
    private int _missed;

    /// <summary>The clock, in milliseconds; a test puts in its own.</summary>
    public Func<long> Clock { get; set; } = static () => Environment.TickCount64;

    /// <summary>Whether a message may be written now. The first of a new interval tells how many were not.</summary>
    public bool Allows(KernelLog log)
    {
        int missed = 0;
        lock (_gate)
        {
            long now = Clock();
            if (_begin == long.MinValue || now - _begin >= interval.TotalMilliseconds)
            {
                missed = _missed;
                _begin = now;
                _printed = 0;
                _missed = 0;
            }

            if (_printed >= burst)
            {
                _missed++;
                return false;
            }

            _printed++;
        }

        if (missed > 0)
            log.Write($"{name}: {missed} callbacks suppressed");
        return true;
    }
}
