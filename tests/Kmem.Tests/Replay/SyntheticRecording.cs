using System.Globalization;
using System.IO.Compression;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// A recording in the form of those of real kernels, made of a machine of our own: its state, random work of tasks and
/// interrupts on several CPUs, which stop in the middle of operations while others act, and its state at the end.
/// </summary>
internal sealed unsafe class SyntheticRecording : ITrace, IVmapTrace, IDisposable
{
    private readonly Machine _machine;
    private readonly Random _random;
    private readonly List<string> _lines = ["seq\tts\tcpu\tctx\tpid\tev\targs"];
    private readonly List<string> _zoneLines = [];
    private readonly List<KmemCache> _caches = [];
    private readonly List<KmemCache> _sheafCaches = [];
    private readonly List<(KmemCache? Cache, nint Object)> _objects = [];
    private readonly List<(ulong Pfn, int Order)> _pages = [];
    private readonly List<ulong> _areas = [];
    private readonly Fiber?[] _waiting;
    private readonly string[] _seen;        // whose line was the last one of each CPU
    private readonly int _mayPause;
    private readonly VmapAllocator? _vmap;
    private Actor _actor = new(0, "", ".....");
    private string _site = "test+0x1/0x2";
    private bool _slabFailed;
    private bool _quiet;
    private string? _bulk;
    private bool _muted;

    public SyntheticRecording(MachineOptions options, int seed, int mayPause)
    {
        _machine = Machine.Boot(options with { Profile = KernelProfile.Linux618 with { MemoryCgroups = false } });
        _random = new Random(seed);
        _mayPause = mayPause;
        _waiting = new Fiber?[options.Cpus];
        _seen = new string[options.Cpus];
        _machine.CpuSet.Pin(0);
        for (int i = 0; i < 6; i++)
            _caches.Add(_machine.Slabs.Create($"plain-{i}", 40 + (i * 150), 0, SlabFlags.NoMerge, default, null));
        for (int i = 0; i < 2; i++)
        {
            _sheafCaches.Add(_machine.Slabs.Create(
                $"sheafy-{i}", 96 + (i * 200), 0, SlabFlags.NoMerge, new CacheTraits(SheafCapacity: 8 + (24 * i)), null));
        }

        if (AddressWindow.WhyUnsupported(_machine.Ram) == null)
        {
            _machine.Vfree(_machine.Vmalloc(100_000));
            _vmap = _machine.VmallocIfUsed!.Vmap;
        }
    }

    public int Failures { get; private set; }

    public int Pauses { get; private set; }

    public int Lines => _lines.Count;

    public Machine Machine => _machine;

    public void Warm(int operations)
    {
        _quiet = true;
        Work(operations);
        _quiet = false;
    }

    /// <summary>Writes the folder that <c>kmem predict state</c> reads.</summary>
    public void Record(string folder, int operations)
    {
        Save(Path.Combine(folder, "state-t0.json.gz"));
        _machine.Trace = this;
        if (_vmap != null)
        {
            _vmap.Trace = this;
            _vmap.Objects.Refused = gfp =>
                Emit($"KA\t{_vmap.Objects.Cache.Name}\t0\t{_vmap.Objects.Cache.ObjectSize}\t{Hex(gfp)}\t{_site}");
        }

        _machine.Slabs.PageSource = TakeSlabPage;
        Func<nuint, Gfp, nint> source = _machine.Slabs.AllocMetadata;
        Action<nint> sink = _machine.Slabs.FreeMetadata;
        _machine.Slabs.AllocMetadata = (size, gfp) => At("alloc_empty_sheaf+0x23/0x40", () =>
        {
            // As for every request, the kernel's event comes also if there was nothing.
            nint block = source(size, gfp);
            if (block == 0)
                Emit($"KM\t0\t{size}\t{size}\t{Hex(gfp)}\t{_site}");
            return block;
        });
        _machine.Slabs.FreeMetadata = block => At("free_empty_sheaf+0x1/0x2", () =>
        {
            sink(block);
            return 0;
        });
        int phase = _machine.Slabs.Rcu.ReadLock();
        Work(operations);
        _machine.Trace = null;
        File.WriteAllLines(Path.Combine(folder, "events.tsv"), _lines);
        using (FileStream packed = File.Create(Path.Combine(folder, "events.tsv.gz")))
        using (var gzip = new GZipStream(packed, CompressionLevel.Fastest))
            gzip.Write(File.ReadAllBytes(Path.Combine(folder, "events.tsv")));
        Save(Path.Combine(folder, "state-t1.json.gz"));
        _machine.Slabs.Rcu.ReadUnlock(phase);
    }

    public void Dispose() => _machine.Dispose();

    private void Save(string path) => (_machine.WriteState() with { Own = null }).Write(path);

    private nint At(string site, Func<nint> what)
    {
        string before = _site;
        _site = site;
        nint result = what();
        _site = before;
        return result;
    }

    private void Work(int operations)
    {
        for (int i = 0; i < operations; i++)
        {
            int cpu = _random.Next(_waiting.Length);
            if (_waiting[cpu] is { } waiting && _random.Next(3) > 0)
            {
                Resume(cpu, waiting);
                continue;
            }

            // While its task waits, a CPU can only serve interrupts.
            bool interrupt = _waiting[cpu] != null;
            Actor actor = interrupt
                ? new Actor(cpu, RecordedEvent.IdleTask, "d.h1.")
                : new Actor(cpu, $"{100 + cpu}", ".....");
            if (interrupt)
                GoIdle(actor);
            var random = new Random(_random.Next());
            var fiber = new Fiber(() => Operate(actor, random, interrupt));
            Run(actor, fiber);
            if (!fiber.IsDone && !interrupt)
                _waiting[cpu] = fiber;
        }

        for (int cpu = 0; cpu < _waiting.Length; cpu++)
        {
            while (_waiting[cpu] is { } left)
                Resume(cpu, left);
        }
    }

    /// <summary>A CPU whose task waits is idle until an interrupt comes: it has folded its counts.</summary>
    private void GoIdle(Actor actor)
    {
        if (_seen[actor.Cpu] == actor.Pid)
            return;

        foreach (ZonePages zone in _machine.Pages.Zones)
            zone.Fold(actor.Cpu);
        (Actor before, _actor) = (_actor, actor);
        Emit1("CALL\ttick_nohz_irq_exit\t0\t0\t0\t0");
        _actor = before;
    }

    private void Resume(int cpu, Fiber waiting)
    {
        Run(new Actor(cpu, $"{100 + cpu}", "....."), waiting);
        if (waiting.IsDone)
            _waiting[cpu] = null;
    }

    private void Run(Actor actor, Fiber fiber)
    {
        Actor before = _actor;
        _actor = actor;
        (bool failed, _slabFailed) = (_slabFailed, false);
        fiber.Resume();
        _slabFailed = failed;
        FlushZoneLines();
        _actor = before;
        if (fiber.IsDone)
            fiber.Dispose();
    }

    private void Operate(Actor actor, Random random, bool interrupt)
    {
        _machine.CpuSet.Pin(actor.Cpu);
        Gfp gfp = interrupt || random.Next(4) == 0 ? Gfp.Atomic : Gfp.Kernel | Gfp.NoRetry;
        gfp |= Gfp.NoWarn;
        switch (random.Next(interrupt ? 60 : 100))
        {
            case < 14:
                AllocObject(_caches[random.Next(_caches.Count)], gfp);
                break;
            case < 22:
                AllocObject(_sheafCaches[random.Next(_sheafCaches.Count)], gfp);
                break;
            case < 42:
                FreeObject(random);
                break;
            case < 48:
                Kmalloc((nuint)random.Next(1, 5000), gfp);
                break;
            case < 56:
                FreePages(random);
                break;
            case < 60:
                AllocPages(random, gfp, order: random.Next(3));
                break;
            case < 74:
                AllocPages(random, gfp, random.Next(4) == 0 ? random.Next(11) : 0);
                break;
            case < 77:
                Kmalloc((nuint)random.Next(9000, 40000), gfp);
                break;
            case < 81:
                BulkPages(random, gfp);
                break;
            case < 86:
                Bulk(random, gfp);
                break;
            case < 90:
                Prefilled(random, gfp);
                break;
            case < 94:
                FreeRcu(random);
                break;
            default:
                Vmap(random);
                break;
        }
    }

    private void AllocObject(KmemCache cache, Gfp gfp)
    {
        void* obj = cache.Alloc(gfp);
        if (obj != null)
        {
            _objects.Add((cache, (nint)obj));
            return;
        }

        // The kernel's event comes all the same, with a null pointer.
        Failures++;
        Emit($"KA\t{cache.Name}\t0\t{cache.ObjectSize}\t{Hex(gfp)}\t{_site}");
    }

    private void Kmalloc(nuint size, Gfp gfp)
    {
        void* obj = _machine.Kmalloc(size, gfp);
        if (obj != null)
        {
            _objects.Add((null, (nint)obj));
            return;
        }

        Failures++;
        Emit($"KM\t0\t{size}\t{size}\t{Hex(gfp)}\t{_site}");
    }

    private void FreeObject(Random random)
    {
        if (_objects.Count == 0)
            return;

        (KmemCache? cache, nint obj) = TakeFrom(_objects, random);
        if (cache != null)
            cache.Free((void*)obj);
        else
            _machine.Kfree((void*)obj);
    }

    private void AllocPages(Random random, Gfp gfp, int order)
    {
        if (random.Next(3) > 0 && order < 4)
            gfp |= Gfp.Movable;
        else if (random.Next(4) == 0)
            gfp |= Gfp.Reclaimable;
        if (random.Next(10) == 0)
            gfp |= Gfp.Dma32;
        Page* page = _machine.Pages.Alloc(gfp, order, -1);
        if (page == null)
        {
            Failures++;
            return;
        }

        _pages.Add((_machine.Map.PfnOf(page), order));
        if ((gfp & Gfp.Movable) != 0)
        {
            page->Flags |= PageFlags.Lru;
            Emit($"LI\t{_machine.Map.PfnOf(page)}");
        }
    }

    private void FreePages(Random random)
    {
        for (int i = random.Next(4); i >= 0 && _pages.Count > 0; i--)
        {
            (ulong pfn, int order) = TakeFrom(_pages, random);
            _machine.Map.PageOf(pfn)->Flags &= ~PageFlags.Lru;
            _machine.Pages.Free(pfn, order);
        }
    }

    private void BulkPages(Random random, Gfp gfp)
    {
        var frames = new Pfn[random.Next(2, 40)];
        Array.Fill(frames, Pfn.None);
        ZonePages? zone = _machine.Pages.BeginBulk(gfp, -1, frames.Length);
        _bulk = $"bulk{frames.Length}";
        for (int i = 0; i < frames.Length; i++)
        {
            Page* page = zone == null ? null : _machine.Pages.TakeBulk(zone, gfp, -1);
            if (page == null)
                break;
            MmPageAlloc(new Pfn(_machine.Map.PfnOf(page)), 0, gfp, gfp.ToMigratetype());
            _pages.Add((_machine.Map.PfnOf(page), 0));
        }

        _bulk = null;
    }

    private void Bulk(Random random, Gfp gfp)
    {
        KmemCache cache = random.Next(2) == 0 ? _caches[random.Next(_caches.Count)] : _sheafCaches[random.Next(_sheafCaches.Count)];
        var objects = new nint[random.Next(2, 20)];
        _muted = true;      // a bulk request is one event
        int got = cache.AllocBulk(gfp, objects);
        _muted = false;
        Emit($"KAB\t{cache.Name}\t{Hex(gfp)}\t{objects.Length}\t{got}");
        More(objects.AsSpan(0, got));
        if (got == 0)
        {
            Failures++;
            return;
        }

        // Freed at once, so that nobody else frees them singly in between.
        Emit($"KFB\t{cache.Name}\t{got}");
        More(objects.AsSpan(0, got));
        _muted = true;
        cache.FreeBulk(objects.AsSpan(0, got));
        _muted = false;
    }

    private void Prefilled(Random random, Gfp gfp)
    {
        KmemCache cache = _sheafCaches[random.Next(_sheafCaches.Count)];
        Sheaf* sheaf = cache.PrefillSheaf(gfp, 3);
        if (sheaf == null)
        {
            Failures++;
            Emit($"SP\t{cache.Name}\t{Hex(gfp)}\t3\t0");
            return;
        }

        Emit($"SP\t{cache.Name}\t{Hex(gfp)}\t3\t{Hex(sheaf)}");
        for (int i = random.Next(4); i > 0; i--)
        {
            Emit($"CALL\tkmem_cache_alloc_from_sheaf_noprof\t{Hex((void*)cache.Descriptor)}\t{Hex(gfp)}\t{Hex(sheaf)}\t0");
            void* obj = cache.AllocFromPrefilled(gfp, sheaf);
            Emit($"KA\t{cache.Name}\t{Hex(obj)}\t{cache.ObjectSize}\t{Hex(gfp)}\t{_site}");
            _objects.Add((cache, (nint)obj));
        }

        Emit($"CALL\tkmem_cache_return_sheaf\t{Hex((void*)cache.Descriptor)}\t{Hex(gfp)}\t{Hex(sheaf)}\t0");
        cache.ReturnSheaf(gfp, sheaf);
    }

    private void FreeRcu(Random random)
    {
        int at = _objects.FindIndex(it => it.Cache is { SheafCapacity: > 0 });
        if (at < 0)
            return;

        (KmemCache? cache, nint obj) = _objects[at];
        _objects.RemoveAt(at);
        bool accepted = cache!.FreeRcu(_machine.Slabs.SlabOf((void*)obj), (void*)obj);
        Emit($"SK\t{cache.Name}\t{Hex((void*)obj)}\t{(accepted ? 1 : 0)}");
        if (!accepted)
            _objects.Add((cache, obj));
    }

    private void Vmap(Random random)
    {
        // A request that gets no object is in no event, but it has looked at the pools.
        if (_vmap == null || _machine.Pages.Zones.Sum(zone => zone.Zone.FreePages) < 3000)
            return;

        if (_areas.Count > 0 && random.Next(5) < 2)
        {
            VmapArea* area = _vmap.Unlink(TakeFrom(_areas, random));
            _vmap.FreeNoflush(area);
            return;
        }

        if (random.Next(40) == 0)
        {
            Purge();
            return;
        }

        At("__get_vm_area_node+0x8a/0x140", () =>
        {
            Kmalloc(72, Gfp.Kernel | Gfp.NoRetry | Gfp.NoWarn);
            return 0;
        });
        ulong align = random.Next(4) == 0 ? 16384UL : 4096;
        var request = new VmapRequest((ulong)random.Next(2, 40) * 4096, align, _vmap.Start, _vmap.End);
        VmapArea* taken = _vmap.Alloc(request, null, out _);
        if (taken != null)
            _areas.Add(taken->Start);
        else
            Failures++;
    }

    private void Purge()
    {
        VmapPurge purge = VmapPurge.Begin(full: false);
        Emit("CALL\t__purge_vmap_area_lazy\tffffffffffffffff\t0\t0\t0");
        var any = new List<VmapNode>();
        foreach (VmapNode node in _vmap!.Nodes)
        {
            Emit($"CALL\tdecay_va_pool_node\t{0xffff_8880_0100_0000 + (ulong)(node.Id * 0x2000):x}\t0\t0\t0");
            if (_vmap.Detach(node, ref purge))
                any.Add(node);
        }

        foreach (VmapNode node in any)
        {
            Emit($"CALL\tpurge_vmap_node\t{0xffff_8880_0100_1858 + (ulong)(node.Id * 0x2000):x}\t0\t0\t0");
            _vmap.Reclaim(node, ref purge);
        }

        _vmap.EndPurge(purge);
    }

    private nint TakeSlabPage(Gfp gfp, int order, int node)
    {
        if (!_slabFailed)
            Emit("CALL\tallocate_slab\t0\t0\t0\t0");
        if (Fiber.Current is { } fiber && !_quiet && !_muted && _actor.Flags == "....." && _mayPause > 0
            && _random.Next(_mayPause) == 0)
        {
            Pauses++;
            fiber.Pause();
        }

        Page* page = _machine.Pages.AllocFrozen(gfp, order, node);
        _slabFailed = page == null && !_slabFailed;
        return (nint)page;
    }

    private static T TakeFrom<T>(List<T> list, Random random)
    {
        int at = random.Next(list.Count);
        T item = list[at];
        list[at] = list[^1];
        list.RemoveAt(list.Count - 1);
        return item;
    }

    public void Kmalloc(ulong address, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node) =>
        Emit($"KM\t{address:x}\t{bytesRequested}\t{bytesAllocated}\t{Hex(gfp)}\t{_site}");

    public void Kfree(ulong address) => Emit($"KF\t{address:x}\t{_site}\tfast");

    public void KmemCacheAlloc(
        ulong address, string cache, nuint bytesRequested, nuint bytesAllocated, Gfp gfp, int node) =>
        EmitObject($"KA\t{cache}\t{address:x}\t{bytesRequested}\t{Hex(gfp)}\t{_site}");

    public void KmemCacheFree(ulong address, string cache) => EmitObject($"KC\t{cache}\t{address:x}\t{_site}\tfast");

    public void MmPageAlloc(Pfn pfn, int order, Gfp gfp, Migratetype migratetype)
    {
        string frame = pfn.IsValid ? pfn.Value.ToString(CultureInfo.InvariantCulture) : "-1";
        string via = _bulk ?? (PerCpuPages.IsPcpOrder(order) ? "pcp" : "buddy");

        // The entry of the pop comes first, then what it caused; drains of an allocation come before.
        var drains = _zoneLines.Where(line => line.StartsWith("PD", StringComparison.Ordinal)).ToList();
        _zoneLines.RemoveAll(line => line.StartsWith("PD", StringComparison.Ordinal));
        drains.ForEach(Emit1);
        Emit1($"PA\t{frame}\t{order}\t{(int)migratetype}\t{Hex(gfp)}\t{via}");
        FlushZoneLines();
    }

    public void MmPageFree(Pfn pfn, int order) =>
        Emit($"PF\t{pfn.Value}\t{order}\t{(PerCpuPages.IsPcpOrder(order) ? "pcp" : "buddy")}");

    public void MmPageAllocZoneLocked(Pfn pfn, int order, Migratetype migratetype, bool percpuRefill) =>
        _zoneLines.Add($"PZ\t{pfn.Value}\t{order}\t{(int)migratetype}\t{(percpuRefill ? 1 : 0)}");

    public void MmPagePcpuDrain(Pfn pfn, int order, Migratetype migratetype) =>
        _zoneLines.Add($"PD\t{pfn.Value}\t{order}\t{(int)migratetype}");

    public void MmPageAllocExtfrag(in ExtfragEvent it) => _zoneLines.Add(
        $"PX\t{it.Pfn.Value}\t{it.AllocOrder}\t{it.FallbackOrder}\t{(int)it.AllocMigratetype}\t{(int)it.FallbackMigratetype}\t"
        + (it.ChangeOwnership ? "1" : "0"));

    public void AllocVmapArea(ulong address, in VmapRequest request, bool failed) => Emit(
        $"VA\t{address:x}\t{request.Size}\t{request.Align}\t{request.RangeStart:x}\t{request.RangeEnd:x}\t{(failed ? 1 : 0)}");

    public void PurgeVmapAreaLazy(ulong start, ulong end, uint purged) => Emit($"VP\t{start:x}\t{end:x}\t{purged}");

    public void FreeVmapAreaNoflush(ulong start, ulong lazyPages, ulong lazyMax) =>
        Emit($"VF\t{start:x}\t{lazyPages}\t{lazyMax}");

    private void More(Span<nint> objects)
    {
        for (int i = 0; i < objects.Length && !_quiet; i += 8)
        {
            var line = new List<string> { "+" };
            foreach (nint obj in objects[i..Math.Min(i + 8, objects.Length)])
                line.Add(Hex((void*)obj));
            _lines.Add(string.Join('\t', line));
        }
    }

    private void FlushZoneLines()
    {
        foreach (string line in _zoneLines)
            Emit1(line);
        _zoneLines.Clear();
    }

    private void EmitObject(string text)
    {
        if (!_muted)
            Emit(text);
    }

    private void Emit(string text)
    {
        FlushZoneLines();
        Emit1(text);
    }

    private void Emit1(string text)
    {
        if (_quiet)
            return;

        _seen[_actor.Cpu] = _actor.Pid;
        _lines.Add($"{_lines.Count}\t1.0\t{_actor.Cpu}\t{_actor.Flags}\t{_actor.Pid}\t{text}");
    }

    private static string Hex(Gfp gfp) => ((uint)gfp).ToString("x", CultureInfo.InvariantCulture);

    private string Hex(void* pointer) =>
        _machine.Slabs.KernelAddress(pointer).ToString("x", CultureInfo.InvariantCulture);

    private sealed record Actor(int Cpu, string Pid, string Flags);
}
