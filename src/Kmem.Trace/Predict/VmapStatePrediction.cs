using System.IO.Compression;
using System.Text.Json;

namespace Kmem.Tracing;

/// <summary>
/// Replays the vmalloc events of a fully recorded phase (state, events, state) on a <see cref="VmapAllocator"/> and
/// compares everything that the kernel did: addresses, purges, which object it took from the slab or gave back, and
/// the state at the end with the shape of the free tree.
/// </summary>
internal sealed class VmapStatePrediction : IDisposable, IVmapTrace, ITrace
{
    private readonly Machine _machine;
    private readonly VmapAllocator _vmap;
    private readonly JsonElement _end;
    private readonly Dictionary<ulong, ulong> _ours = [];            // the kernel's object → ours
    private readonly Queue<(bool Alloc, ulong Object)> _slab = [];   // what our allocator did to the slab cache
    private readonly Queue<(bool Alloc, ulong Object)> _recorded = [];   // what the kernel did to it
    private readonly List<ulong> _kernelNodes = [];                  // addresses of the kernel's vmap nodes
    private VmapPurge _purge;

    private VmapStatePrediction(string directory)
    {
        JsonElement start = ReadJson(Path.Combine(directory, "state-t0.json.gz"));
        _end = ReadJson(Path.Combine(directory, "state-t1.json.gz"));
        JsonElement vmap = start.GetProperty("vmap");
        VmapState state = VmapStateReader.Read(vmap);
        _machine = Machine.Boot(new MachineOptions
        {
            RamBytes = 64 << 20,
            Cpus = start.GetProperty("nr_cpu").GetInt32(),
        });
        _vmap = new VmapAllocator(_machine.Slabs, new VmapOptions { Nodes = vmap.GetProperty("nr_nodes").GetInt32() })
        {
            DrainScheduler = static () => { },
        };
        _vmap.Restore(state, NewObject);
        _vmap.Trace = this;
        _machine.Slabs.Trace = this;
    }

    /// <summary>Areas that the kernel allocated.</summary>
    public int Allocs { get; private set; }

    /// <summary>Of these, the ones that came out at the same address.</summary>
    public int AllocsExact { get; private set; }

    public int Frees { get; private set; }

    public int Purges { get; private set; }

    public int SlabOperations { get; private set; }

    /// <summary>What came out otherwise than in the kernel.</summary>
    public List<string> Differences { get; } = [];

    /// <summary>Replays a phase and compares its end.</summary>
    public static VmapStatePrediction Run(string folder, IReadOnlyList<RecordedEvent> events)
    {
        using var prediction = new VmapStatePrediction(folder);
        foreach (RecordedEvent recorded in events)
            prediction.Apply(recorded);
        prediction.CompareEnd();
        return prediction;
    }

    /// <summary>Compares the state with the recorded one of the end.</summary>
    private void CompareEnd()
    {
        JsonElement vmap = _end.GetProperty("vmap");
        VmapState kernel = VmapStateReader.Read(vmap);
        VmapState ours = _vmap.Capture();
        Compare("free", ours.Free, kernel.Free.Select(b => b with { Object = Ours(b.Object) }));
        for (int i = 0; i < kernel.Nodes.Length; i++)
        {
            Compare($"busy {i}", Plain(ours.Nodes[i].Busy), Plain(kernel.Nodes[i].Busy, this));
            Compare($"lazy {i}", Plain(ours.Nodes[i].Lazy), Plain(kernel.Nodes[i].Lazy, this));
            Compare($"pools {i}", ours.Nodes[i].Pools.Keys, kernel.Nodes[i].Pools.Keys);
            foreach ((int pages, List<VmapAreaState> pool) in kernel.Nodes[i].Pools)
            {
                Compare(
                    $"pool {i}/{pages}",
                    Plain(ours.Nodes[i].Pools.GetValueOrDefault(pages, [])),
                    Plain(pool, this));
            }
        }

        Compare("spare", ours.Spare, kernel.Spare.Select(Ours));
        Compare("lazy_nr", [_vmap.LazyPages], [VmapStateReader.ReadLazyPages(vmap)]);
        Compare("slab operations that the kernel did not do", _slab, []);
    }

    public void Dispose()
    {
        _vmap.Dispose();
        _machine.Dispose();
    }

    void IVmapTrace.AllocVmapArea(ulong address, in VmapRequest request, bool failed)
    {
    }

    void IVmapTrace.PurgeVmapAreaLazy(ulong start, ulong end, uint purged) => Purged = (start, end, purged);

    void IVmapTrace.FreeVmapAreaNoflush(ulong start, ulong lazyPages, ulong lazyMax) =>
        Lazy = (start, lazyPages, lazyMax);

    void ITrace.Kmalloc(ulong address, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node)
    {
    }

    void ITrace.Kfree(ulong address)
    {
    }

    void ITrace.KmemCacheAlloc(
        ulong address, string cache, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node) =>
        _slab.Enqueue((true, Host(address)));

    void ITrace.KmemCacheFree(ulong address, string cache) => _slab.Enqueue((false, Host(address)));

    void ITrace.MmPageAlloc(Pfn pfn, int order, Gfp gfp, Migratetype migratetype)
    {
    }

    void ITrace.MmPageFree(Pfn pfn, int order)
    {
    }

    void ITrace.MmPageAllocZoneLocked(Pfn pfn, int order, Migratetype migratetype, bool percpuRefill)
    {
    }

    void ITrace.MmPagePcpuDrain(Pfn pfn, int order, Migratetype migratetype)
    {
    }

    void ITrace.MmPageAllocExtfrag(in ExtfragEvent fallback)
    {
    }

    private (ulong Start, ulong End, uint Count) Purged { get; set; }

    private (ulong Start, ulong Pages, ulong Max) Lazy { get; set; }

    private void Apply(RecordedEvent e)
    {
        switch (e.Name)
        {
            case "KA" or "KC" when e.Args[0] == "vmap_area":
                _recorded.Enqueue((e.Name == "KA", e.Hex(1)));
                break;
            case "VA":
                Alloc(e);
                MatchSlab(e);
                break;
            case "VF":
                Free(e);
                break;
            case "CALL":
                Step(e);
                break;
            case "VP":
                _vmap.EndPurge(_purge);
                Purges++;
                Expect((e.Hex(0), e.Hex(1), (uint)e.Number(2)), Purged, e);
                MatchSlab(e);
                break;
        }
    }

    private unsafe void Alloc(RecordedEvent e)
    {
        var request = new VmapRequest(e.Number(1), e.Number(2), e.Hex(3), e.Hex(4));
        using CpuBinding binding = _machine.RunOn(e.Cpu);
        VmapArea* area = _vmap.Alloc(request, null, out VmapError error);
        Allocs++;
        bool failed = e.Args[5] != "0";
        bool exact = failed ? area == null : area != null && area->Start == e.Hex(0);
        AllocsExact += exact ? 1 : 0;
        if (exact)
            return;

        Differences.Add($"{e}: came {(area == null ? error.ToString() : $"{area->Start:x}")}");
        if (area != null)
            _vmap.FreeNow(_vmap.Unlink(area->Start));
        if (!failed)
            _vmap.TakeAt(e.Hex(0), request, e.Cpu);
    }

    private unsafe void Free(RecordedEvent e)
    {
        VmapArea* area = _vmap.Unlink(e.Hex(0));
        if (area == null)
        {
            Differences.Add($"{e}: not busy here");
            return;
        }

        _vmap.FreeNoflush(area);
        Frees++;
        Expect((e.Hex(0), e.Number(1), e.Number(2)), Lazy, e);
    }

    private void Step(RecordedEvent e)
    {
        ulong argument = e.Args.Length > 1 ? e.Hex(1) : 0;
        switch (e.Args[0])
        {
            case "__purge_vmap_area_lazy":
                _purge = VmapPurge.Begin(full: e.Hex(3) != 0);
                _purge.Start = argument;
                _purge.End = e.Hex(2);
                break;
            case "decay_va_pool_node":
                if (!_kernelNodes.Contains(argument))
                    _kernelNodes.Add(argument);
                _vmap.Detach(_vmap.Nodes[_kernelNodes.IndexOf(argument)], ref _purge);
                break;
            case "purge_vmap_node":
                // The argument points to the work item inside the node.
                _vmap.Reclaim(_vmap.Nodes[_kernelNodes.FindLastIndex(node => node <= argument)], ref _purge);
                break;
        }
    }

    /// <summary>
    /// What our allocator took from the slab and gave back must be what the kernel did, object by object.
    /// </summary>
    private void MatchSlab(RecordedEvent e)
    {
        while (_slab.Count > 0 && _recorded.Count > 0)
        {
            (bool alloc, ulong theirs) = _recorded.Dequeue();
            (bool ourAlloc, ulong ours) = _slab.Dequeue();
            SlabOperations++;
            if (alloc && ourAlloc)
                _ours[theirs] = ours;
            Expect((alloc, Ours(theirs)), (ourAlloc, ours), e);
        }

        Expect((0, 0), (_slab.Count, _recorded.Count), e);
        _slab.Clear();
        _recorded.Clear();
    }

    private void Expect<T>(T kernel, T ours, RecordedEvent e)
    {
        if (!EqualityComparer<T>.Default.Equals(kernel, ours))
            Differences.Add($"{e}: kernel {kernel}, ours {ours}");
    }

    private void Compare<T>(string what, IEnumerable<T> ours, IEnumerable<T> kernel)
    {
        T[] a = ours.ToArray();
        T[] b = kernel.ToArray();
        if (!a.SequenceEqual(b))
        {
            int at = Enumerable.Range(0, Math.Max(a.Length, b.Length)).First(
                i => i >= a.Length || i >= b.Length || !EqualityComparer<T>.Default.Equals(a[i], b[i]));
            Differences.Add($"end, {what} [{at}]: {a.ElementAtOrDefault(at)} instead of {b.ElementAtOrDefault(at)}");
        }
    }

    private static IEnumerable<VmapAreaState> Plain(List<VmapAreaState> areas, VmapStatePrediction? kernel = null) =>
        areas.Select(area => area with { Object = kernel?.Ours(area.Object) ?? area.Object });

    private ulong Ours(ulong theirs) => theirs == 0 ? 0 : _ours.GetValueOrDefault(theirs, theirs);

    private unsafe nint NewObject(ulong kernelAddress)
    {
        var obj = (nint)_vmap.Objects.Alloc(Gfp.Kernel);
        _ours.Add(kernelAddress, (ulong)obj);
        return obj;
    }

    private unsafe ulong Host(ulong kernelAddress) =>
        (ulong)_machine.Map.RamBase + kernelAddress - AddressMap.PageOffset;

    private static JsonElement ReadJson(string path)
    {
        using var file = new GZipStream(File.OpenRead(path), CompressionMode.Decompress);
        using JsonDocument document = JsonDocument.Parse(file);
        return document.RootElement.Clone();
    }
}
