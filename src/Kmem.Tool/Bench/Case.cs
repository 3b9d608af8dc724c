namespace Kmem.Tool.Bench;

/// <summary>
/// One workload on one allocator. Its loop is the body of <see cref="Round"/>, so that it is compiled for that
/// allocator alone, and called often enough to reach the last tier of the compiler.
/// </summary>
internal abstract class Case(string allocator) : IDisposable
{
    /// <summary>The allocator's name in the results.</summary>
    internal string Allocator { get; } = allocator;

    /// <summary>
    /// Does about so many operations, and all that belongs to them, threads included. Objects may stay allocated until
    /// the next round. Never inlined, so that what surrounds the loop has no part in how it is compiled.
    /// </summary>
    /// <returns>How many operations it was: what the time is divided by.</returns>
    internal abstract long Round(long operations);

    /// <summary>The least that <see cref="Round"/> can do at a time.</summary>
    internal virtual long Least => 1;

    /// <summary>Time of one operation if the case measures it itself; else the rounds are timed from outside.</summary>
    internal virtual double? MeasuredNanoseconds => null;

    /// <summary>Resident memory as the case saw it itself; null if that is measured from outside.</summary>
    internal virtual Footprint? Footprint => null;

    /// <summary>What is to be looked at after the last round, outside of the time.</summary>
    internal virtual void Finish()
    {
    }

    /// <summary>Frees all objects that are still allocated.</summary>
    public virtual void Dispose()
    {
    }
}

/// <summary>Resident memory of a workload, in bytes above what was there before it.</summary>
/// <param name="Live">Bytes that the program had asked for, at the end; 0 if the workload keeps nothing.</param>
/// <param name="Resident">Resident memory then.</param>
/// <param name="AfterFree">A while after all was freed.</param>
/// <param name="AfterTrim">After the allocator was asked to give back what it can.</param>
internal sealed record Footprint(long Live, long Resident, long? AfterFree = null, long? AfterTrim = null);

/// <summary>A sequence of numbers that costs less than what is measured (xorshift64*).</summary>
internal struct Dice(ulong seed)
{
    private ulong _state = (seed * 0x9E3779B97F4A7C15) | 1;

    internal ulong Next()
    {
        ulong x = _state;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        _state = x;
        return x * 0x2545F4914F6CDD1D;
    }

    /// <summary>A number from 0 to <paramref name="end"/> - 1.</summary>
    internal int Below(int end) => (int)((Next() >> 32) * (ulong)(uint)end >> 32);

    /// <summary>A number from 0 to below 1.</summary>
    internal double Unit() => (Next() >> 11) * (1.0 / (1UL << 53));
}

/// <summary>Threads that work and end, with whatever one of them failed with.</summary>
internal static class Workers
{
    internal static void Run(int count, Action<int> work)
    {
        Exception? failure = null;
        var threads = new Thread[count];
        for (int i = 0; i < count; i++)
        {
            int number = i;
            threads[i] = new Thread(() =>
            {
                try
                {
                    work(number);
                }
                catch (Exception e)
                {
                    Interlocked.CompareExchange(ref failure, e, null);
                }
            });
            threads[i].Start();
        }
        foreach (Thread thread in threads) thread.Join();
        if (failure is not null) throw new InvalidOperationException(failure.Message, failure);
    }
}
