namespace Kmem;

/// <content>Memory pressure: who gives memory back when it is short.</content>
public sealed partial class Machine
{
    private readonly Lock _reclaimGate = new();
    private readonly List<SwapArea> _swapAreas = [];
    private Reclaimer? _reclaimer;

    /// <summary>The registered shrinkers, in the order in which they are called.</summary>
    public IReadOnlyList<Shrinker> Shrinkers => ReclaimerIfUsed?.Shrinkers ?? [];

    /// <summary>What is called when memory is short, once somebody registered something; null until then.</summary>
    internal Reclaimer? ReclaimerIfUsed => Volatile.Read(ref _reclaimer);

    /// <summary>
    /// Registers a cache that gives memory back under pressure (shrinker_alloc, shrinker_register, mm/shrinker.c, Linux
    /// 6.18). From then on requests that may sleep call it before they fail; see <see cref="Shrinker"/> for how much
    /// they ask for, and for what callbacks must keep to.
    /// </summary>
    /// <param name="name">For reports.</param>
    /// <param name="count">Tells how many objects could be freed. Must be cheap, and must not wait.</param>
    /// <param name="scan">Frees objects.</param>
    /// <param name="seeks">How dear it is to make an object anew; 0: nothing.</param>
    /// <param name="batch">Objects of one scan; 0 for 128.</param>
    /// <param name="flags">How it is called.</param>
    /// <returns>The shrinker; dispose it to unregister, before what its callbacks use is gone.</returns>
    public Shrinker RegisterShrinker(
        string name,
        ShrinkerCallback count,
        ShrinkerCallback scan,
        int seeks = Shrinker.DefaultSeeks,
        long batch = 0,
        ShrinkerFlags flags = ShrinkerFlags.None)
    {
        ArgumentException.ThrowIfNullOrEmpty(name);
        ArgumentNullException.ThrowIfNull(count);
        ArgumentNullException.ThrowIfNull(scan);
        ArgumentOutOfRangeException.ThrowIfNegative(seeks);
        ArgumentOutOfRangeException.ThrowIfNegative(batch);
        return Reclaim.Register(
            new ShrinkerSettings(name, count, scan) { Seeks = seeks, Batch = batch, Flags = flags });
    }

    /// <summary>
    /// Reclaims now, before memory is short (a write to memory.reclaim, mm/vmscan.c, Linux 6.18): cold pages of swap
    /// areas, then objects of shrinkers.
    /// </summary>
    /// <param name="bytes">How much is wanted.</param>
    /// <returns>Bytes that came back, in whole pages; less than asked for if there is no more.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    public ulong ReclaimMemory(ulong bytes)
    {
        if (ReclaimerIfUsed is not { } reclaimer)
            return 0;
        long frames = (long)Math.Min((bytes + Pfn.PageSize - 1) >> Pfn.PageShift, long.MaxValue >> Pfn.PageShift);
        return (ulong)reclaimer.Proactive(frames, Gfp.Kernel) << Pfn.PageShift;
    }

    /// <summary>
    /// Does now what kswapd would do in the background for the requests that found no zone above LOW since the last
    /// time (balance_pgdat, mm/vmscan.c, Linux 6.18): reclaims until a zone is above HIGH. For machines without the
    /// threads (<see cref="MachineOptions.Kswapd"/>), whose results then depend on nothing but the calls.
    /// </summary>
    /// <returns>Bytes that came back.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    public ulong RunKswapd() => (ulong)(ReclaimerIfUsed?.RunKswapd() ?? 0) << Pfn.PageShift;

    /// <summary>
    /// Who is asked when memory is out: when nothing can be reclaimed, and the request is one for which the kernel
    /// would call its OOM killer, neither of more than 8 frames nor with <see cref="Gfp.NoRetry"/> or
    /// <see cref="Gfp.RetryMayFail"/>. Null, the default: it fails. In any case a report in the kernel's form goes to
    /// <see cref="Dmesg"/>, at most ten in five seconds.
    /// </summary>
    public OomPolicy? OomPolicy
    {
        get => ReclaimerIfUsed?.OomPolicy;
        set => Reclaim.OomPolicy = value;
    }

    /// <summary>Who holds the machine's memory now, largest first.</summary>
    /// <returns>Names and bytes; together they are what is not free.</returns>
    public IReadOnlyList<MemoryHolder> MemoryHolders() =>
        ReclaimerIfUsed?.Holders() ?? OomReport.Holders(_pages, _slabs, []);

    /// <summary>
    /// Creates memory at contiguous addresses that may be larger than the machine; see <see cref="SwapArea"/>.
    /// </summary>
    /// <param name="bytes">Its size, up to 8 TiB.</param>
    /// <param name="directory">
    /// Where its swap file goes, which grows up to that size as pages go out; null for the system's temporary
    /// directory.
    /// </param>
    /// <returns>The area; dispose it to free its memory and to delete the file.</returns>
    /// <exception cref="OutOfMemoryException">There are no such addresses.</exception>
    /// <exception cref="IOException">The file cannot be created.</exception>
    /// <exception cref="UnauthorizedAccessException">The file must not be created there.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public SwapArea CreateSwapArea(ulong bytes, string? directory = null)
    {
        ArgumentOutOfRangeException.ThrowIfZero(bytes);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(bytes, (ulong)int.MaxValue << Pfn.PageShift);
        VmallocAllocator vmalloc = Vmallocs; // refused before there is a file
        return CreateSwapAreaOn(bytes, SwapFile.Create(directory ?? Path.GetTempPath()), vmalloc);
    }

    /// <summary>The same over any store.</summary>
    internal SwapArea CreateSwapAreaOn(ulong bytes, ISwapStore store, VmallocAllocator? vmalloc = null)
    {
        bool complete = false;
        try
        {
            var parts = new SwapParts(_pages, _map, vmalloc ?? Vmallocs, Reclaim, Forget);
            var area = new SwapArea(parts, store, bytes);
            lock (_swapAreas)
                _swapAreas.Add(area);
            complete = true;
            return area;
        }
        finally
        {
            if (!complete)
                store.Dispose();
        }
    }

    private void Forget(SwapArea area)
    {
        lock (_swapAreas)
            _swapAreas.Remove(area);
    }

    private void CloseSwapAreas()
    {
        SwapArea[] areas;
        lock (_swapAreas)
            areas = [.. _swapAreas];
        foreach (SwapArea area in areas)
            area.Close();
    }

    /// <summary>
    /// Offers a frame to compaction: its owner lets it be moved (__SetPageMovable, mm/migrate.c, Linux 6.18).
    /// </summary>
    /// <param name="page">
    /// A frame allocated alone, best with <see cref="Gfp.Movable"/>, and held by nobody else.
    /// </param>
    /// <param name="owner">Who moves it.</param>
    /// <exception cref="ArgumentException">It is another kind of frame, or offered already.</exception>
    public void SetMovable(Pfn page, IMovablePages owner)
    {
        ArgumentNullException.ThrowIfNull(owner);
        Reclaim.Compactor.Movable.Set(page, owner);
    }

    /// <summary>Takes the offer back, which has to happen before the frame is freed (__ClearPageMovable).</summary>
    /// <param name="page">An offered frame.</param>
    /// <returns>
    /// False if it is just being moved, or asked for: nothing has changed. Try again after that, with the frame where
    /// the content is then.
    /// </returns>
    /// <exception cref="KernelBugException">The frame is not offered.</exception>
    public bool ClearMovable(Pfn page)
    {
        if (page.Value >= _map.EndPfn)
            throw new ArgumentOutOfRangeException(nameof(page), page, "no such page frame");
        return Reclaim.Compactor.Movable.TryClear(page);
    }

    /// <summary>
    /// Moves all pages that may be moved to the ends of their zones, so that what is free is in large blocks (a write
    /// to vm.compact_memory, mm/compaction.c, Linux 6.18).
    /// </summary>
    /// <returns>What was done.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    public CompactionReport Compact() => Reclaim.CompactAll();

    private void StartReclaim()
    {
        if (Options.Kswapd)
            Reclaim.StartThreads();
    }

    private void StopReclaim()
    {
        ReclaimerIfUsed?.Dispose();
        CloseSwapAreas();
    }

    /// <summary>Reclaim, put in its place at the first use.</summary>
    private Reclaimer Reclaim
    {
        get
        {
            if (ReclaimerIfUsed is { } present)
                return present;
            lock (_reclaimGate)
            {
                ObjectDisposedException.ThrowIf(_disposed, this);
                if (_reclaimer is { } made)
                    return made;
                var reclaimer = new Reclaimer(_pages, _slabs, _cpus, _map, _blocks, Dmesg);
                _pages.Hooks = reclaimer;
                Proc.Reclaim = reclaimer;
                Volatile.Write(ref _reclaimer, reclaimer);
                return reclaimer;
            }
        }
    }
}
