namespace Kmem;

/// <summary>What an access through a <see cref="TlbModel"/> met.</summary>
/// <param name="Pfn">The frame; <see cref="Pfn.None"/> is a page fault.</param>
/// <param name="Hit">The translation was cached.</param>
/// <param name="Stale">It was cached and the tables say something else by now.</param>
internal readonly record struct TlbAccess(Pfn Pfn, bool Hit, bool Stale);

/// <summary>
/// What the processors remember of page tables. It forgets only when told to, as a processor may: a translation that
/// could still be cached somewhere is cached here, so an access that meets a stale one is a flush that is missing.
/// </summary>
/// <remarks>flush_tlb_kernel_range, arch/x86/mm/tlb.c, Linux 6.18. Thread-safe.</remarks>
internal sealed class TlbModel
{
    /// <summary>More pages than this are not worth single invalidations (tlb_single_page_flush_ceiling).</summary>
    public const int SinglePageCeiling = 33;

    private readonly Lock _lock = new();
    private readonly Cpu[] _cpus;

    public TlbModel(int cpus)
    {
        _cpus = new Cpu[cpus];
        for (int cpu = 0; cpu < cpus; cpu++)
            _cpus[cpu] = new Cpu();
    }

    public long Hits { get; private set; }

    public long Misses { get; private set; }

    /// <summary>Accesses that went where the tables no longer point.</summary>
    public long StaleHits { get; private set; }

    /// <summary>Flushes of everything, on all CPUs.</summary>
    public long FullFlushes { get; private set; }

    /// <summary>Flushes page by page, on all CPUs.</summary>
    public long RangeFlushes { get; private set; }

    /// <summary>Single invalidations, summed over the CPUs.</summary>
    public long PageInvalidations { get; private set; }

    /// <summary>Interrupts sent to other CPUs, which the sender waits for.</summary>
    public long Interrupts { get; private set; }

    /// <summary>Puts a CPU into an address space (a load of CR3): only global translations survive.</summary>
    public void Load(int cpu, PageTable tables)
    {
        lock (_lock)
        {
            Cpu at = _cpus[cpu];
            at.Tables = tables;
            foreach (((int, ulong) key, Cached cached) in at.Cached.ToArray())
            {
                if ((cached.Prot & PageProt.Global) == 0)
                    at.Cached.Remove(key);
            }
        }
    }

    /// <summary>Reads or writes at an address in the address space that the CPU is in.</summary>
    /// <param name="cpu">The CPU.</param>
    /// <param name="va">The address.</param>
    /// <param name="write">A write, which the mapping must allow.</param>
    public TlbAccess Access(int cpu, ulong va, bool write = false)
    {
        lock (_lock)
        {
            Cpu at = _cpus[cpu];
            PageTable tables = at.Tables ?? throw new InvalidOperationException($"CPU {cpu} has no page tables");
            if (at.Find(va) is { } cached && (!write || (cached.Prot & PageProt.Write) != 0))
            {
                PageWalk now = tables.Walk(va);
                Pfn pfn = cached.FrameOf(va);
                bool stale = now.Pfn != pfn || now.Prot != cached.Prot;
                if (write && !stale)
                    tables.MarkUsed(now, write);
                Hits++;
                StaleHits += stale ? 1 : 0;
                return new TlbAccess(pfn, Hit: true, stale);
            }

            // A cached translation that forbids the access is looked up again before the fault is taken.
            Misses++;
            PageWalk walk = tables.Access(va);
            if (!walk.IsMapped || (write && (walk.Prot & PageProt.Write) == 0))
                return new TlbAccess(Pfn.None, Hit: false, Stale: false);
            tables.MarkUsed(walk, write);
            at.Add(walk);
            return new TlbAccess(walk.Pfn, Hit: false, Stale: false);
        }
    }

    /// <summary>No CPU uses a translation of the range from now on (flush_tlb_kernel_range).</summary>
    /// <param name="start">First address.</param>
    /// <param name="end">End, exclusive.</param>
    public void FlushRange(ulong start, ulong end)
    {
        ulong pages = (end - start + Pfn.PageSize - 1) >> Pfn.PageShift;
        if (pages > SinglePageCeiling)
        {
            FlushAll();
            return;
        }

        lock (_lock)
        {
            RangeFlushes++;
            Interrupts += _cpus.Length - 1;
            PageInvalidations += (long)pages * _cpus.Length;
            foreach (Cpu cpu in _cpus)
            {
                for (ulong page = 0; page < pages; page++)
                    cpu.Forget(start + (page << Pfn.PageShift));
            }
        }
    }

    /// <summary>All CPUs forget everything, global translations too (flush_tlb_all).</summary>
    public void FlushAll()
    {
        lock (_lock)
        {
            FullFlushes++;
            Interrupts += _cpus.Length - 1;
            foreach (Cpu cpu in _cpus)
                cpu.Cached.Clear();
        }
    }

    private readonly record struct Cached(ulong FirstPfn, ulong Bytes, PageProt Prot)
    {
        public Pfn FrameOf(ulong va) => new(FirstPfn + ((va & (Bytes - 1)) >> Pfn.PageShift));
    }

    private sealed class Cpu
    {
        public PageTable? Tables { get; set; }

        /// <summary>By level of the leaf and number of the page of that size.</summary>
        public Dictionary<(int Level, ulong Page), Cached> Cached { get; } = [];

        public Cached? Find(ulong va)
        {
            for (int level = PageTableEntry.PteLevel; level <= PageTableEntry.PudLevel; level++)
            {
                if (Cached.TryGetValue(KeyOf(level, va), out Cached cached))
                    return cached;
            }

            return null;
        }

        public void Add(PageWalk walk)
        {
            ulong into = (walk.Address & (walk.LeafBytes - 1)) >> Pfn.PageShift;
            Forget(walk.Address);
            Cached.Add(
                KeyOf(walk.Steps[^1].Level, walk.Address),
                new Cached(walk.Pfn.Value - into, walk.LeafBytes, walk.Prot));
        }

        public void Forget(ulong va)
        {
            for (int level = PageTableEntry.PteLevel; level <= PageTableEntry.PudLevel; level++)
                Cached.Remove(KeyOf(level, va));
        }

        private static (int Level, ulong Page) KeyOf(int level, ulong va) =>
            (level, va >> PageTableEntry.ShiftOf(level));
    }
}
