using System.Diagnostics;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <summary>
/// A lock held for a few dozen instructions. One word, no allocation, not re-entrant; waiting spins and then yields,
/// so that a holder that was descheduled gets to run. Never copy a value of this type.
/// </summary>
internal struct SpinLock(LockRank rank)
{
    private int _held;      // 0, or who holds it: the thread in debug builds, 1 in others

    public readonly bool IsHeld => Volatile.Read(in _held) != 0;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Acquire()
    {
        LockOrder.Acquire(rank);
        SimPoint.Here(Name);
        if (Interlocked.CompareExchange(ref _held, Me, 0) != 0)
            AcquireSlow();
    }

    public bool TryAcquire()
    {
        SimPoint.Here(Name);
        if (Interlocked.CompareExchange(ref _held, Me, 0) != 0)
            return false;

        LockOrder.Acquire(rank);
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Release()
    {
        Bug.OnVm(_held == 0 && !IsPlantedOpen, "release of a lock that is not held");
        LockOrder.Release(rank);
        Volatile.Write(ref _held, 0);
        SimPoint.Here(Name);
    }

    /// <summary>
    /// Fails unless this thread holds the lock (lockdep_assert_held): for whoever changes what the lock guards. In debug
    /// builds only.
    /// </summary>
    [Conditional("DEBUG")]
    public readonly void AssertHeld([CallerMemberName] string change = "") => Bug.OnVm(
        Volatile.Read(in _held) != Me && !IsPlantedOpen, $"{change} without the lock {Name}");

    /// <summary>Opens the lock, whoever held it: only where nobody else is at work (see <see cref="LockOrder.Break"/>).</summary>
    public void Break() => Volatile.Write(ref _held, 0);

    /// <summary>Returns at a moment when nobody held the lock; somebody may take it right after.</summary>
    public void WaitUntilFree()
    {
        var wait = default(Backoff);
        while (Volatile.Read(ref _held) != 0)
            wait.Once();
    }

#if DEBUG
    private static readonly string[] s_names = Enum.GetNames<LockRank>();

    private readonly string Name => s_names[(int)rank - 1];

    private static int Me => Environment.CurrentManagedThreadId;

    private readonly bool IsPlantedOpen => SimPoint.Of is { } simulation && !simulation.Excludes(rank);
#else
    private const string Name = "";
    private const int Me = 1;
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
        while (Volatile.Read(ref _held) != 0 || Interlocked.CompareExchange(ref _held, Me, 0) != 0);
    }
}
