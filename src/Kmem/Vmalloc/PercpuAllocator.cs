using System.Globalization;

namespace Kmem;

/// <summary>
/// Memory of which each CPU has its own copy (mm/percpu.c, Linux 6.18). A chunk has a unit for each CPU; an object is
/// at the same offset in all of them, so its address for one CPU is its address for another plus a constant:
/// <code>
///   chunk 1   base  ├ unit of CPU 0 ┤├ unit of CPU 1 ┤ … ├ other node: unit of CPU 2 ┤
///   chunk 0   base' ├───────────────┤├───────────────┤ … ├───────────────────────────┤     highest addresses first
///                   └─ UnitOffset(1) ─┘
/// </code>
/// Units of one NUMA node lie in one area; areas of several nodes are as far apart as the nodes' memory. Frames come
/// when an object needs them, each from its CPU's node, and go when nothing is left on their page.
/// </summary>
/// <remarks>
/// Thread-safe. There is no first chunk in the direct map: a machine has no static per-CPU variables, so all chunks are
/// in the vmalloc space. The first chunk with room serves a request; the kernel sorts them by how full they are.
/// </remarks>
internal sealed class PercpuAllocator
{
    /// <summary>Units are laid out in pieces of this size (atom_size).</summary>
    public const int AtomBytes = 2 << 20;

    private const int SmallestUnit = 256 << 10;
    private const int SmallestObject = 4;       // PCPU_MIN_ALLOC_SIZE

    /// <summary>Pages without objects that keep their frames (PCPU_EMPTY_POP_PAGES_HIGH).</summary>
    private const int SparePages = 4;

    private readonly VmallocAllocator _vmalloc;
    private readonly SlabAllocator _slabs;
    private readonly Lock _lock = new();
    private readonly List<PercpuChunk> _chunks = [];
    private ulong[] _bases = [];                // of the chunks, replaced whole when one comes or goes
    private readonly ulong[] _groupOffsets;
    private readonly ulong[] _groupBytes;
    private readonly ulong[] _unitOffsets;

    public PercpuAllocator(VmallocAllocator vmalloc, SlabAllocator slabs)
    {
        _vmalloc = vmalloc;
        _slabs = slabs;
        int cpus = slabs.Cpus.Count;
        int[][] groups = [.. Enumerable.Range(0, cpus).GroupBy(slabs.NodeOfCpu).OrderBy(group => group.Key)
            .Select(group => group.ToArray())];
        UnitBytes = UnitFor(groups.Max(group => group.Length));
        _groupOffsets = new ulong[groups.Length];
        _groupBytes = new ulong[groups.Length];
        _unitOffsets = new ulong[cpus];
        ulong first = NodeStart(slabs.NodeOfCpu(groups[0][0]));
        for (int i = 0; i < groups.Length; i++)
        {
            ulong bytes = (ulong)groups[i].Length * (ulong)UnitBytes;
            _groupBytes[i] = RoundUp(bytes);
            ulong behind = i == 0 ? 0 : _groupOffsets[i - 1] + _groupBytes[i - 1];
            _groupOffsets[i] = Math.Max(behind, RoundUp(NodeStart(slabs.NodeOfCpu(groups[i][0])) - first));
            for (int unit = 0; unit < groups[i].Length; unit++)
                _unitOffsets[groups[i][unit]] = _groupOffsets[i] + ((ulong)unit * (ulong)UnitBytes);
        }
    }

    /// <summary>Bytes of a unit: the largest object.</summary>
    public int UnitBytes { get; }

    public int Chunks
    {
        get
        {
            SimPoint.Gate(_lock);
            lock (_lock)
                return _chunks.Count;
        }
    }

    /// <summary>Frames in use, of all CPUs (the line Percpu of /proc/meminfo).</summary>
    public long Pages
    {
        get
        {
            SimPoint.Gate(_lock);
            lock (_lock)
                return _chunks.Sum(chunk => (long)chunk.Populated) * _unitOffsets.Length;
        }
    }

    /// <summary>What has to be added to an object's address to get that of a CPU (pcpu_unit_offsets).</summary>
    public ulong UnitOffset(int cpu) => _unitOffsets[cpu];

    /// <summary>Allocates a cleared object for each CPU (pcpu_alloc).</summary>
    /// <param name="size">Bytes for each CPU.</param>
    /// <param name="align">A power of two, at most a page.</param>
    /// <param name="gfp">How to get frames; without sleeping only frames that are there already are used.</param>
    /// <returns>The address of offset 0 of CPU 0; 0 if there is no room or no memory.</returns>
    public unsafe ulong Alloc(nuint size, nuint align, Gfp gfp)
    {
        int bytes = (int)Math.Min((size + SmallestObject - 1) & ~(nuint)(SmallestObject - 1), int.MaxValue);
        if (size == 0 || size > (nuint)UnitBytes || align == 0 || align > Pfn.PageSize || (align & (align - 1)) != 0)
        {
            _slabs.Log.Write(string.Create(
                CultureInfo.InvariantCulture,
                $"WARNING: illegal size ({size}) or align ({align}) for percpu allocation"));
            return 0;
        }

        bool atomic = !gfp.MayBlock();
        _slabs.Pages.CheckContext(gfp, _slabs.Cpus.Current);
        ulong address;
        SimPoint.Gate(_lock);
        lock (_lock)
            address = AllocLocked(bytes, Math.Max((int)align, SmallestObject), atomic);
        if (address != 0)
        {
            Clear(address, bytes);
            return address;
        }

        if ((gfp & Gfp.NoWarn) == 0)
        {
            _slabs.Log.Write(string.Create(
                CultureInfo.InvariantCulture,
                $"percpu: allocation failed, size={size} align={align} atomic={(atomic ? 1 : 0)}"));
        }

        return 0;
    }

    /// <summary>
    /// Frees an object of all CPUs (free_percpu). Where sleeping is forbidden its frames stay for the next.
    /// </summary>
    /// <exception cref="KernelBugException">No object starts there.</exception>
    public unsafe void Free(ulong address)
    {
        SimPoint.Gate(_lock);
        lock (_lock)
        {
            PercpuChunk? chunk = _chunks.Find(it => it.Contains(address));
            if (chunk == null || !chunk.Return((int)(address - chunk.Base)))
            {
                _slabs.Pages.ThrowBug($"WARNING: free_percpu of 0x{address:x}: no per-CPU object starts there");
                return;
            }

            if (_slabs.Cpus.Current->MaySleep)
                GiveBackLocked();
        }
    }

    /// <summary>Whether an address lies in unit 0 of a chunk. Takes no lock.</summary>
    public bool Owns(ulong address)
    {
        foreach (ulong start in Volatile.Read(ref _bases))
        {
            if (address - start < (ulong)UnitBytes)
                return true;
        }

        return false;
    }

    /// <summary>Each page that has a frame, of each CPU.</summary>
    public IEnumerable<(ulong Address, Pfn Frame)> MappedPages()
    {
        List<(ulong Address, Pfn Frame)> all = [];
        SimPoint.Gate(_lock);
        lock (_lock)
        {
            foreach (PercpuChunk chunk in _chunks)
            {
                for (int page = 0; page < UnitBytes >> Pfn.PageShift; page++)
                {
                    ReadOnlySpan<Pfn> frames = chunk.FramesOf(page);
                    for (int cpu = 0; cpu < frames.Length; cpu++)
                        all.Add((PageAddress(chunk, page, cpu), frames[cpu]));
                }
            }
        }

        return all;
    }

    private static int UnitFor(int cpus)
    {
        int unit = AtomBytes;
        while (unit > SmallestUnit && AtomBytes / unit < cpus)
            unit /= 2;
        return unit;
    }

    private static ulong RoundUp(ulong bytes) => (bytes + AtomBytes - 1) & ~(ulong)(AtomBytes - 1);

    private ulong NodeStart(int node) => _slabs.Pages.Nodes[node].Zones
        .Where(zone => zone.IsPopulated).Select(zone => zone.StartPfn).DefaultIfEmpty(0UL).Min() << Pfn.PageShift;

    private ulong AllocLocked(int bytes, int align, bool atomic)
    {
        foreach (PercpuChunk chunk in _chunks)
        {
            int offset = chunk.Take(bytes, align, onlyPopulated: atomic);
            if (offset >= 0)
                return atomic || PopulateLocked(chunk, offset, bytes) ? chunk.Base + (ulong)offset : 0;
        }

        if (atomic || NewChunkLocked() is not { } fresh)
            return 0;
        int start = fresh.Take(bytes, align, onlyPopulated: false);
        if (PopulateLocked(fresh, start, bytes))
            return fresh.Base + (ulong)start;
        GiveBackLocked();
        return 0;
    }

    private unsafe PercpuChunk? NewChunkLocked()
    {
        VmStruct*[]? areas = _vmalloc.ReserveCongruent(_groupOffsets, _groupBytes, AtomBytes);
        if (areas == null)
            return null;

        var handles = new nint[areas.Length];
        for (int i = 0; i < areas.Length; i++)
            handles[i] = (nint)areas[i];
        var chunk = new PercpuChunk(handles, areas[0]->Address - _groupOffsets[0], UnitBytes);
        _chunks.Add(chunk);
        Volatile.Write(ref _bases, [.. _chunks.Select(it => it.Base)]);
        return chunk;
    }

    /// <summary>Frames for the pages of an object; if they cannot be had, the object is given back.</summary>
    private bool PopulateLocked(PercpuChunk chunk, int offset, int bytes)
    {
        for (int page; (page = chunk.MissingPage(offset, bytes)) >= 0;)
        {
            Pfn[]? frames = AllocFrames();
            if (frames == null || !MapPage(chunk, page, frames))
            {
                if (frames != null)
                    FreeFrames(frames);
                chunk.Return(offset);
                return false;
            }

            chunk.Populate(page, frames);
        }

        return true;
    }

    private unsafe Pfn[]? AllocFrames()
    {
        var frames = new Pfn[_unitOffsets.Length];
        for (int cpu = 0; cpu < frames.Length; cpu++)
        {
            Page* page = _slabs.Pages.Alloc(Gfp.Kernel | Gfp.HighMem | Gfp.NoWarn, 0, _slabs.NodeOfCpu(cpu));
            if (page == null)
            {
                FreeFrames(frames.AsSpan(0, cpu));
                return null;
            }

            frames[cpu] = new Pfn(_slabs.Map.PfnOf(page));
        }

        return frames;
    }

    private void FreeFrames(ReadOnlySpan<Pfn> frames)
    {
        foreach (Pfn frame in frames)
            _slabs.Pages.Free(frame.Value, 0);
    }

    private ulong PageAddress(PercpuChunk chunk, int page, int cpu) =>
        chunk.Base + _unitOffsets[cpu] + ((ulong)page << Pfn.PageShift);

    private bool MapPage(PercpuChunk chunk, int page, Pfn[] frames)
    {
        for (int cpu = 0; cpu < frames.Length; cpu++)
        {
            if (_vmalloc.MapFrames(PageAddress(chunk, page, cpu), frames.AsSpan(cpu, 1), PageProt.Kernel))
                continue;
            while (--cpu >= 0)
                _vmalloc.UnmapFrames(PageAddress(chunk, page, cpu), 1);
            return false;
        }

        return true;
    }

    /// <summary>
    /// Takes frames from pages without objects, and chunks without objects apart; some stay for the next request
    /// (pcpu_balance_workfn, which in the kernel is a worker).
    /// </summary>
    private unsafe void GiveBackLocked()
    {
        int spare = SparePages;
        bool keptOne = false;
        foreach (PercpuChunk chunk in _chunks.ToArray())
        {
            bool remove = chunk.IsEmpty && keptOne;
            keptOne |= chunk.IsEmpty;
            foreach (int page in chunk.EmptyPopulated.ToArray())
            {
                if (!remove && spare-- > 0)
                    continue;
                Pfn[] frames = chunk.Depopulate(page);
                for (int cpu = 0; cpu < frames.Length; cpu++)
                    _vmalloc.UnmapFrames(PageAddress(chunk, page, cpu), 1);
                FreeFrames(frames);
            }

            if (!remove)
                continue;
            _chunks.Remove(chunk);
            Volatile.Write(ref _bases, [.. _chunks.Select(it => it.Base)]);
            var areas = new VmStruct*[chunk.Areas.Length];
            for (int i = 0; i < areas.Length; i++)
                areas[i] = (VmStruct*)chunk.Areas[i];
            _vmalloc.FreeCongruent(areas);
        }
    }

    private unsafe void Clear(ulong address, int bytes)
    {
        for (int cpu = 0; cpu < _unitOffsets.Length; cpu++)
            new Span<byte>(_vmalloc.PointerOf(address + _unitOffsets[cpu]), bytes).Clear();
    }
}
