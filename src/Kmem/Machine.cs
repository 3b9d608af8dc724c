using System.Runtime.CompilerServices;
using System.Text;

namespace Kmem;

/// <summary>
/// A machine: RAM, CPUs and the kernel's memory allocators over them. Memory it gives out is real memory of this
/// process.
/// </summary>
/// <remarks>
/// <para>
/// Thread-safe unless a member says otherwise. A thread that allocates borrows one of the machine's CPUs; with at least
/// as many CPUs as busy threads the fast paths take no lock.
/// </para>
/// <para>
/// The kernel's contexts hold: a request with <see cref="Gfp.DirectReclaim"/> (which <see cref="Gfp.Kernel"/> contains)
/// may sleep, and is refused inside <see cref="Atomic"/>, <see cref="SoftIrq"/> and the like. Misuse is written to
/// <see cref="Dmesg"/> and thrown as <see cref="KernelBugException"/>; the machine stays whole. No pointer may be used
/// after <see cref="Dispose"/>.
/// </para>
/// </remarks>
public sealed partial class Machine : IDisposable
{
    private readonly Ram _ram;
    private readonly MemMap _map;
    private readonly PageblockMap _blocks;
    private readonly CpuSet _cpus;
    private readonly PageAllocator _pages;
    private readonly SlabAllocator _slabs;
    private readonly KmallocAllocator _kmalloc;
    private readonly Node[] _nodes;
    private bool _disposed;

    /// <summary>The machine's parts, its zones still without a free frame.</summary>
    private unsafe Machine(MachineOptions options, ulong endPfn, Func<PageblockMap, Node[]> layOut)
    {
        Options = options;
        _cpus = new CpuSet(options.Cpus, SlabAllocator.CpuAreaBytes);
        _ram = options.PortableMemory
            ? Ram.CreatePortable(endPfn << Pfn.PageShift)
            : Ram.Create(endPfn << Pfn.PageShift, options.HugePages);
        _map = new MemMap(endPfn, _ram.Base);
        _blocks = new PageblockMap(endPfn);
        _nodes = layOut(_blocks);
        int[] nodeOfCpu = Enumerable.Range(0, options.Cpus)
            .Select(cpu => ZoneLayout.NodeOfCpu(cpu, options.Cpus, _nodes.Length)).ToArray();
        _pages = new PageAllocator(_cpus, _map, _blocks, _nodes, nodeOfCpu, Dmesg);
        _pages.Harden(options.Profile.InitOnAlloc, options.Profile.InitOnFree);
        _slabs = new SlabAllocator(_pages, _map, _cpus, nodeOfCpu, Dmesg, new SlabOptions
        {
            Merge = options.Profile.SlabMerge,
            MemoryCgroups = options.Profile.MemoryCgroups,
            SheavesEverywhere = options.Profile.SheavesEverywhere,
            FreelistRandom = options.SlabFreelistRandom || options.Profile.SlabFreelistRandom,
            FreelistHardened = options.SlabFreelistHardened || options.Profile.SlabFreelistHardened,
            Hardening = options.Profile.Hardening,
            CacheLineSize = options.CacheLineSize,
            Seed = options.Seed,
            Debug = SlubDebugSetting.Parse(options.SlubDebug),
            Addresses = AddressMap.For(options.PageTableLevels),
        });
        ApplyFailNth();
        _kmalloc = new KmallocAllocator(_slabs, options.HistoricKmallocLimit);
        Proc = new ProcFs(_pages, _slabs, _blocks);
        OpenFloor();
    }

    /// <summary>What the machine was booted with.</summary>
    public MachineOptions Options { get; }

    /// <summary>The machine's log: reports of misuse and of failed allocations.</summary>
    public KernelLog Dmesg { get; } = new();

    /// <summary>The texts of /proc and /sys about this machine.</summary>
    public ProcFs Proc { get; }

    /// <summary>Number of CPUs.</summary>
    public int Cpus => _cpus.Count;

    /// <summary>Number of NUMA nodes.</summary>
    public int Nodes => _nodes.Length;

    /// <summary>vm.min_free_kbytes as computed at boot, or as given.</summary>
    public int MinFreeKbytes { get; private set; }

    /// <summary>Host memory that the RAM really occupies now, in bytes.</summary>
    public ulong ResidentBytes => _ram.ResidentBytes + _ram.PrivateResidentBytes;

    /// <summary>Page allocations that failed since boot.</summary>
    public long FailedAllocations => _pages.FailedAllocations;

    /// <summary>What backs the RAM on this host.</summary>
    public string RamDescription => _ram.Description;

    internal Ram Ram => _ram;

    internal MemMap Map => _map;

    internal PageblockMap Blocks => _blocks;

    internal PageAllocator Pages => _pages;

    internal SlabAllocator Slabs => _slabs;

    internal KmallocAllocator KmallocCaches => _kmalloc;

    internal CpuSet CpuSet => _cpus;

    internal IReadOnlyList<Node> NodeList => _nodes;

    /// <summary>Receives the machine's tracepoints; null (the default) costs next to nothing.</summary>
    internal ITrace? Trace
    {
        get => _pages.Trace;
        set
        {
            _pages.Trace = value;
            _slabs.Trace = value;
            _kmalloc.Trace = value;
            if (_vmalloc != null)
                _vmalloc.Vmap.Trace = value as IVmapTrace;
            if (_recordedVmap != null)
                _recordedVmap.Trace = value as IVmapTrace;
            if (Recorded != null)
                Recorded.Vmap.Trace = value as IVmapTrace;
        }
    }

    /// <summary>Boots a machine.</summary>
    /// <param name="options">What it is made of.</param>
    /// <returns>The machine; dispose it to give its memory back.</returns>
    /// <exception cref="ArgumentException">An option is out of range; the message names it.</exception>
    /// <exception cref="PlatformException">The host refused the address space or the memory.</exception>
    public static Machine Boot(MachineOptions? options = null)
    {
        options ??= new MachineOptions();
        ArgumentOutOfRangeException.ThrowIfLessThan(options.Cpus, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(options.Nodes, 1);
        if (options.WatermarkScaleFactor is < 1 or > 3000)
            throw new ArgumentException("WatermarkScaleFactor is not between 1 and 3000", nameof(options));
        if (options.PercpuPagelistHighFraction is not 0 and < Watermark.MinHighFraction)
            throw new ArgumentException("PercpuPagelistHighFraction is neither 0 nor at least 8", nameof(options));
        if (options.PageTableLevels is not (4 or 5))
            throw new ArgumentException("PageTableLevels is neither 4 nor 5", nameof(options));
        if (options.RememberEvents < 0)
            throw new ArgumentException("RememberEvents is negative", nameof(options));
        if (options.MinFreeKbytes < 0)
            throw new ArgumentException("MinFreeKbytes is negative", nameof(options));
        options.Kfence?.Check();

        BootMemoryMap map = options.MemoryMap ?? BootMemoryMap.ForRam(options.RamBytes, options.Nodes);
        Func<int, int, int> distance = options.NodeDistance ?? ((a, b) => a == b ? 10 : 20);
        var machine = new Machine(
            options,
            map.EndPfn,
            blocks => ZoneLayout.Build(map, options.Cpus, options.MovableBytes, distance, blocks));
        try
        {
            machine.Start(map);
            machine.ApplyFaultOptions();
        }
        catch
        {
            machine.DisposeParts();
            throw;
        }

        machine.StartMetrics();
        return machine;
    }

    /// <summary>
    /// Returns the memory of free blocks to the host; it reads as zero when it is used again (free page reporting).
    /// </summary>
    /// <param name="minOrder">Smallest block to return; 9 (2 MiB) is what the kernel uses.</param>
    /// <returns>Bytes given back; 0 where the host has no such call.</returns>
    public ulong ReturnFreeMemory(int minOrder = PageOrder.Pageblock)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(minOrder);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(minOrder, PageOrder.Max);
        if (!_ram.CanRelease)
            return 0;

        _pages.DrainAll();
        ulong frames = _pages.ReportFree(minOrder, (pfn, count) =>
        {
            _ram.Release(pfn << Pfn.PageShift, count << Pfn.PageShift);
            return true;
        });
        return frames << Pfn.PageShift;
    }

    /// <summary>
    /// Checks every invariant of the machine; O(memory in use). No other thread may be at work on it.
    /// </summary>
    /// <returns>The broken rules, with their ids in <c>rules/</c>; empty if all hold.</returns>
    public IReadOnlyList<BrokenRule> Validate()
    {
        // The decay has blocks in its hands that are on no list.
        lock (_upkeep)
            return ValidateAtRest();
    }

    private IReadOnlyList<BrokenRule> ValidateAtRest()
    {
        IReadOnlyList<BrokenRule> broken = new Validator(_pages, _slabs, _blocks, _map).Run();
        if (_vmalloc != null)
            broken = [.. broken, .. VmallocValidator.Run(_vmalloc, _map)];
        if (ReclaimerIfUsed is { } reclaimer)
            broken = [.. broken, .. ReclaimValidator.Run(reclaimer, _pages, _map, _swapAreas)];
        return PercpuIfUsed is { } percpu
            ? [.. broken, .. PageTableValidator.Run(percpu, _vmalloc!.Tables, _map)]
            : broken;
    }

    /// <summary>
    /// Gives all memory back. No thread may be inside a call; pointers into the machine become invalid.
    /// </summary>
    public void Dispose()
    {
        if (_disposed)
            return;

        ThrowIfShared();
        StopUpkeep();
        StopReclaim();
        _disposed = true;
        StopMetrics();
        try
        {
            _account.Close();
        }
        finally
        {
            DisposeParts();
        }
    }

    private void DisposeParts()
    {
        CloseAddressSpaces();
        _vmalloc?.Dispose();
        _physical?.Dispose();
        _recordedVmap?.Dispose();
        Recorded?.Dispose();
        _cpus.Dispose();
        Kfence?.Close();
        _slabs.Dispose();
        _pages.Dispose();
        _blocks.Dispose();
        _map.Dispose();
        _ram.Dispose();
    }

    private void Start(BootMemoryMap map)
    {
        _bootMap = map;
        foreach (BootPages range in map.FreePages().OrderBy(range => range.Start))
            _pages.HandOver(range.Start, range.End);
        MinFreeKbytes = ZoneLayout.SetReserves(
            _nodes,
            Options.Cpus,
            Options.MinFreeKbytes,
            Options.WatermarkScaleFactor,
            Options.Profile.TransparentHugePages);
        _pages.Configure(Options.WatermarkBoostFactor, Options.PercpuPagelistHighFraction);
        if (Options.Profile.ShufflePages)
            _pages.Shuffle(_slabs.NextRandom);
        StartRuns();
        StartKfence();
        StartTracking();
        _slabs.Start();
        _kmalloc.Start();
        StartReclaim();
        if (Options.RememberEvents > 0)
            Remember(Options.RememberEvents);
        StartUpkeep();
    }
}
