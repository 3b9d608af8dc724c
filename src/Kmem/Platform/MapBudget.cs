namespace Kmem;

/// <summary>
/// How many mappings windows may use. The kernel limits them per process (vm.max_map_count, 65530 by default), and
/// the .NET runtime dies when none are left, because its JIT maps memory too. So all machines of the process share
/// one budget of half the limit, and running into it is an ordinary failure of one call.
/// </summary>
internal sealed class MapBudget(int limit)
{
    /// <summary>The kernel's default, for hosts that do not tell.</summary>
    private const int DefaultMaxMapCount = 65530;

    private int _used;

    /// <summary>The budget of this process; read once, when the first window is made.</summary>
    public static MapBudget Process { get; } = new((HostInfo.MaxMapCount ?? DefaultMaxMapCount) / 2);

    /// <summary>Most mappings that <see cref="TryTake"/> gives out.</summary>
    public int Limit { get; } = limit;

    /// <summary>Mappings given out; may be above the limit after <see cref="Take"/>.</summary>
    public int Used => Volatile.Read(ref _used);

    /// <summary>False, and nothing taken, when the limit would be passed.</summary>
    public bool TryTake(int count)
    {
        if (Interlocked.Add(ref _used, count) <= Limit) return true;

        // A rival may meanwhile have been refused because of our overshoot: an early "no" near the limit is harmless.
        Interlocked.Add(ref _used, -count);
        return false;
    }

    /// <summary>
    /// Takes (or with a negative count gives back) without asking: unmapping the middle of a run makes one mapping into
    /// three, and a free must not fail.
    /// </summary>
    public void Take(int count) => Interlocked.Add(ref _used, count);
}
