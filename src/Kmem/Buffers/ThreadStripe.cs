namespace Kmem;

/// <summary>
/// A small number for each living thread, so that threads can count in cells of their own without interlocked
/// instructions. With more threads than numbers, the late ones share the last number and count interlocked there.
/// </summary>
internal static class ThreadStripe
{
    /// <summary>Cells that a counter needs.</summary>
    public const int Count = 64;

    /// <summary>The number that any number of threads may have.</summary>
    public const int Shared = Count - 1;

    [ThreadStatic]
    private static int t_numberPlusOne;

    [ThreadStatic]
    private static Lease? t_lease;

    private static readonly Lock s_gate = new();
    private static ulong s_taken;       // bit n: a living thread has number n

    /// <summary>This thread's number, 0 to <see cref="Shared"/>.</summary>
    public static int Current => t_numberPlusOne != 0 ? t_numberPlusOne - 1 : Take();

    private static int Take()
    {
        int number = Shared;
        lock (s_gate)
        {
            int free = System.Numerics.BitOperations.TrailingZeroCount(~s_taken);
            if (free < Shared)
            {
                number = free;
                s_taken |= 1UL << free;
            }
        }

        // A thread with the shared number keeps it: another thread may have read its cell's neighbours meanwhile.
        if (number != Shared)
            t_lease = new Lease(number);
        t_numberPlusOne = number + 1;
        return number;
    }

    /// <summary>Only a thread-static holds it, so its finalizer is the notice that the thread has ended.</summary>
    private sealed class Lease(int number)
    {
        ~Lease()
        {
            lock (s_gate)
                s_taken &= ~(1UL << number);
        }
    }
}
