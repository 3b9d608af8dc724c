namespace Kmem.Tool.Bench;

/// <summary>The machine of Kmem that a process measures, and its cache of 64-byte objects.</summary>
internal sealed class KmemHost : IDisposable
{
    private KmemCache? _cache;

    internal KmemHost(KernelProfile? profile = null)
    {
        // One slot for every thread of the busiest workload; slots that nobody uses cost nothing.
        int cpus = Math.Clamp(4 * Environment.ProcessorCount, 12, 256);
        Machine = Machine.Boot(new MachineOptions
        {
            RamBytes = 4UL << 30,
            Cpus = cpus,
            Profile = profile ?? KernelProfile.Native,
        });
    }

    internal Machine Machine { get; }

    internal KmemCache Cache => _cache ??= Machine.CreateCache("bench-64", Tables.Size, flags: SlabFlags.NoMerge);

    /// <summary>
    /// Objects of kmalloc and of the cache that are allocated, those of freed areas that are kept for reuse not
    /// counted.
    /// </summary>
    internal long CountOutstanding()
    {
        Machine.Trim();
        return Machine.Caches
            .Where(it => it == _cache || it.Name.StartsWith("kmalloc", StringComparison.Ordinal)).Sum(it => it.LiveCount);
    }

    /// <summary>Gives back to the host all that is free.</summary>
    internal void Trim()
    {
        Machine.ShrinkCaches();
        Machine.DrainAllPages();
        Machine.VmUnmapAliases();
        Machine.ReturnFreeMemory(0);
    }

    public void Dispose() => Machine.Dispose();
}

/// <summary>Joins workloads and allocators.</summary>
/// <param name="host">The machine; made when a case of Kmem is.</param>
/// <param name="small">A fiftieth of the objects, for a quick look.</param>
internal sealed class CaseFactory(Lazy<KmemHost> host, bool small)
{
    /// <summary>What comes before the name of a profile: <c>kmem-hardened</c>.</summary>
    internal const string ProfilePrefix = "kmem-";

    private readonly Dictionary<string, KmemHost> _others = [];
    private readonly int _threads = Math.Clamp(Environment.ProcessorCount, 2, 32);

    /// <summary>Makes a case; null if the allocator is not installed.</summary>
    internal Case? Create(Workload workload, string allocator)
    {
        switch (allocator)
        {
            case "kmem" when workload.Name == "replay":
                return new ReplayCase(allocator);
            case "kmem" when Pages(workload.Name) is > 0 and var pages:
                return new AreaCase<VmallocHeap>(allocator, new VmallocHeap(host.Value.Machine), pages);
            case "kmem":
                return Heap(workload.Name, allocator, new KmallocHeap(host.Value.Machine), host.Value.Trim);
            case "kmem-cache":
                return Object<CacheHeap, nint>(workload.Name, allocator, new CacheHeap(host.Value.Cache));
            case "kmem-scope":
                return new ScopeCase(allocator, host.Value.Cache, OrderOf(workload.Name));
            case "kmem-bulk":
                return new BulkCallCase(allocator, host.Value.Cache);
            case var _ when ProfileOf(allocator) is { } profile:
                KmemHost other = Other(profile);
                return Heap(workload.Name, allocator, new KmallocHeap(other.Machine), other.Trim);
            case "NativeMemory":
                return Heap(
                    workload.Name, allocator, default(NativeMemoryHeap), () => NativeLibraryPeer.TryLoad("glibc")?.Trim());
            case "ArrayPool":
                return Object<ArrayPoolHeap, ArrayHandle>(workload.Name, allocator, default);
            case "mmap" when OperatingSystem.IsLinux():
                var mmap = new MmapHeap((nuint)Pages(workload.Name) * 4096);
                return new AreaCase<MmapHeap>(allocator, mmap, Pages(workload.Name));
            case "mmap":
                return null;
            case "AlignedAlloc":
                return new AreaCase<AlignedAllocHeap>(allocator, default, Pages(workload.Name));
            default:
                return NativeLibraryPeer.TryLoad(allocator) is { } peer
                    ? Heap(workload.Name, allocator, new NativeHeap(peer), peer.Trim)
                    : null;
        }
    }

    /// <summary>The machines of other profiles.</summary>
    internal IEnumerable<KmemHost> Others => _others.Values;

    private KmemHost Other(KernelProfile profile)
    {
        if (!_others.TryGetValue(profile.Name, out KmemHost? its))
            _others[profile.Name] = its = new KmemHost(profile);
        return its;
    }

    private static KernelProfile? ProfileOf(string allocator) =>
        allocator.StartsWith(ProfilePrefix, StringComparison.Ordinal)
            ? KernelProfile.Find(allocator[ProfilePrefix.Length..])
            : null;

    /// <summary>A case on an allocator of addresses.</summary>
    internal Case Heap<TA>(string workload, string name, TA a, Action trim)
        where TA : struct, IHeap => workload switch
        {
            "pc2" => new ProducerConsumerCase<TA>(name, a),
            "larson" => new LarsonCase<TA>(name, a, _threads),
            "xmalloc" => new XmallocCase<TA>(name, a, _threads),
            "cache-scratch" => new CacheScratchCase<TA>(name, a, _threads),
            "mstress" => new MstressCase<TA>(name, a, _threads, small ? 1 : 50),
            "rptest" => new RptestCase<TA>(name, a, _threads),
            "glibc-simple" => new GlibcSimpleCase<TA>(name, a),
            "glibc-thread" => new GlibcThreadCase<TA>(name, a, _threads),
            "mleak" => new LeakCase<TA>(name, a),
            "malloc-large" => new LargeCase<TA>(name, a),
            "footprint" => new FootprintCase<TA>(name, a, small ? 4000 : 150_000, trim, () => Resident(name)),
            _ => Object<TA, nint>(workload, name, a),
        };

    /// <summary>A single-threaded loop over objects.</summary>
    internal static Case Object<TA, TH>(string workload, string name, TA a)
        where TA : struct, IAllocator<TH> => workload switch
        {
            "pair64c" => new ConstantPairCase<TA, TH>(name, a),
            "pair64" or "scope64" => new PairCase<TA, TH>(name, a),
            "lifo100" or "rand100" or "bulk64" => new OrderCase<TA, TH>(name, a, OrderOf(workload)!),
            "rsize" => new RandomSizeCase<TA, TH>(name, a),
            "slots1000" => new SlotsCase<TA, TH>(name, a),
            _ => throw new ArgumentException($"{workload} is no workload of {name}", nameof(workload)),
        };

    /// <summary>
    /// Resident memory of this process, with those frames of Kmem's machine that are mapped nowhere at the moment.
    /// </summary>
    internal long Resident(string allocator)
    {
        (long all, long shared) = ProcessMemory.Resident();
        if (allocator != "kmem") return all;

        // What is private is mapped, and counted already.
        Machine machine = host.Value.Machine;
        return all + Math.Max(0, (long)machine.ResidentBytes - (long)machine.PrivateResidentBytes - shared);
    }

    /// <summary>In which order the objects of a workload are freed; null if each is freed at once.</summary>
    private static int[]? OrderOf(string workload) => workload switch
    {
        "lifo100" => Tables.NewestFirst,
        "rand100" => Tables.Order,
        "bulk64" => Tables.OldestFirst,
        _ => null,
    };

    private static int Pages(string workload) => workload switch
    {
        "vmalloc16" => 16,
        "vmalloc4k" => 4096,
        _ => 0,
    };
}

/// <summary>What of this process is in memory.</summary>
internal static class ProcessMemory
{
    /// <summary>
    /// Bytes, pages that are mapped twice counted once (Pss), and how many of them are of files in memory, as the RAM
    /// of a machine is. Where the system does not tell that, the working set.
    /// </summary>
    internal static (long All, long Shared) Resident()
    {
        if (!OperatingSystem.IsLinux()) return (Environment.WorkingSet, long.MaxValue);

        long all = Environment.WorkingSet;
        long shared = 0;
        foreach (string line in File.ReadLines("/proc/self/smaps_rollup"))
        {
            if (line.StartsWith("Pss:", StringComparison.Ordinal)) all = Bytes(line);
            if (line.StartsWith("Pss_Shmem:", StringComparison.Ordinal)) shared = Bytes(line);
        }
        return (all, shared);
    }

    // "Pss:               1234 kB"
    private static long Bytes(string line) => long.Parse(line.AsSpan(line.IndexOf(':') + 1)[..^3]) << 10;
}
