namespace Kmem;

/// <summary>
/// What the linear map of the RAM allows, frame by frame. Everything but what is kept here may be read and written:
/// <code>
///   frame         0    1    2    3    4    5
///   linear map  | rw | rw | r- | r- | rw | rw |      set_memory_ro of an area with the frames 2 and 3
/// </code>
/// Taking the right to write from an area takes it from its frames here, too: else the area could be changed through
/// the other address.
/// </summary>
/// <remarks>
/// set_direct_map_invalid_noflush, set_direct_map_default_noflush, cpa_process_alias (arch/x86/mm/pat/set_memory.c,
/// Linux 6.18): the host's part. Whoever changes rights here does so in the page tables of the direct map, too.
/// Thread-safe.
/// </remarks>
internal sealed class DirectMap(Ram ram, MapBudget budget)
{
    private const string Purpose = "the linear map";

    private readonly Lock _gate = new();
    private readonly SortedDictionary<ulong, WindowProtection> _changed = [];
    private int _changedFrames;

    /// <summary>Frames that have not all rights.</summary>
    public int ChangedFrames => Volatile.Read(ref _changedFrames);

    /// <summary>
    /// For tests of the error path: so many calls from now on are answered as the host answers ENOMEM.
    /// </summary>
    internal int FailNext { get; set; }

    /// <summary>What the linear map allows for a frame.</summary>
    public WindowProtection RightsOf(ulong pfn)
    {
        lock (_gate)
            return RightsLocked(pfn);
    }

    /// <summary>The frames that have not all rights, ascending.</summary>
    public ulong[] Changed()
    {
        lock (_gate)
            return [.. _changed.Keys];
    }

    /// <summary>
    /// Sets the rights of a run of frames. Giving all rights back is not refused for the budget's sake.
    /// </summary>
    /// <returns><see cref="WindowResult.Done"/>; anything else changed nothing.</returns>
    public unsafe WindowResult Set(ulong pfn, ulong frames, WindowProtection rights)
    {
        lock (_gate)
        {
            if (FailNext > 0 && FailNext-- > 0)
                return WindowResult.HostLimit;

            ulong end = pfn + frames;
            int before = 0;
            for (ulong at = pfn; at <= end; at++)
                before += IsBoundaryLocked(at) ? 1 : 0;
            int after = (pfn > 0 && RightsLocked(pfn - 1) != rights ? 1 : 0) + (RightsLocked(end) != rights ? 1 : 0);
            int growth = after - before;
            if (growth > 0 && rights != WindowProtection.ReadWrite && !budget.TryTake(growth))
                return WindowResult.BudgetReached;
            if (growth <= 0 || rights == WindowProtection.ReadWrite)
                budget.Take(growth);

            if (!HostMemory.TryProtect(ram.Base + (pfn << Pfn.PageShift), frames << Pfn.PageShift, rights, Purpose))
            {
                budget.Take(-growth);
                return WindowResult.HostLimit;
            }

            for (ulong at = pfn; at < end; at++)
            {
                if (rights == WindowProtection.ReadWrite)
                    _changed.Remove(at);
                else
                    _changed[at] = rights;
            }

            Volatile.Write(ref _changedFrames, _changed.Count);
            return WindowResult.Done;
        }
    }

    private WindowProtection RightsLocked(ulong pfn) =>
        _changed.GetValueOrDefault(pfn, WindowProtection.ReadWrite);

    private bool IsBoundaryLocked(ulong pfn) => pfn > 0 && RightsLocked(pfn - 1) != RightsLocked(pfn);
}
