using System.Diagnostics;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// A lock held for a few dozen instructions. One word, no allocation, not re-entrant; waiting spins and then yields, so
/// that a holder that was descheduled gets to run. The word is the holder's thread, so that nobody opens a lock that is
/// another's. Never copy a value of this type.
/// </summary>
internal struct SpinLock(LockRank rank)
{
    private int _holder;    // the managed thread's number; 0: open

    public readonly bool IsHeld => Volatile.Read(in _holder) != 0;

    public readonly bool IsHeldHere => Volatile.Read(in _holder) == Environment.CurrentManagedThreadId;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Acquire()
    {
        LockOrder.Acquire(rank);
        SimPoint.Here(Name);
        if (Interlocked.CompareExchange(ref _holder, Environment.CurrentManagedThreadId, 0) != 0)
            AcquireSlow();
    }

    public bool TryAcquire()
    {
        SimPoint.Here(Name);
        if (Interlocked.CompareExchange(ref _holder, Environment.CurrentManagedThreadId, 0) != 0)
            return false;

        LockOrder.Acquire(rank);
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Release()
    {
        Bug.OnVm(!IsHeldHere && !IsPlantedOpen, "release of a lock that is not held");
        LockOrder.Release(rank);
        Volatile.Write(ref _holder, 0);
        SimPoint.Here(Name);
    }

    /// <summary>
    /// Fails unless this thread holds the lock (lockdep_assert_held): for whoever changes what the lock guards. In
    /// debug builds only.
    /// </summary>
    [Conditional("DEBUG")]
    public readonly void AssertHeld([CallerMemberName] string change = "") => Bug.OnVm(
        !IsHeldHere && !IsPlantedOpen, $"{change} without the lock {Name}");

    /// <summary>
    /// Opens the lock if this thread broke off while it held it (see <see cref="LockOrder.Break"/>). A lock of another
    /// thread, a finalizer's or a reader's of metrics, stays: that one goes on and opens it itself.
    /// </summary>
    /// <returns>Whether it was held here.</returns>
    public bool Break()
    {
        if (!IsHeldHere)
            return false;

        Volatile.Write(ref _holder, 0);
        return true;
    }

    /// <summary>Returns at a moment when nobody held the lock; somebody may take it right after.</summary>
    public void WaitUntilFree()
    {
        var wait = default(Backoff);
        while (IsHeld)
            wait.Once();
    }

#if DEBUG
    private static readonly string[] s_names = Enum.GetNames<LockRank>();

    private readonly string Name => s_names[(int)rank - 1];

    private readonly bool IsPlantedOpen => SimPoint.Of is { } simulation && !simulation.Excludes(rank);
#else
    private const string Name = "";
    private static bool IsPlantedOpen => false;
#endif

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void AcquireSlow()
    {
        if (IsPlantedOpen)
            return;

        var wait = default(Backoff);
        do
        {
            wait.Once();
        }
        while (IsHeld || Interlocked.CompareExchange(ref _holder, Environment.CurrentManagedThreadId, 0) != 0);
    }
}
