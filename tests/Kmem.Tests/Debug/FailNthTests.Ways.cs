using System.Reflection;
using System.Runtime.CompilerServices;

namespace Kmem.Tests;

/// <content>The other kinds of each request, and the check that no public method which allocates is left out.</content>
public sealed partial class FailNthTests
{
    private static Dictionary<string, Way> OtherKinds => new(StringComparer.Ordinal)
    {
        ["pages by address and by node"] = PagesByAddress,
        ["kmalloc of every form"] = KmallocForms,
        ["kvmalloc of every form"] = KvmallocForms,
        ["caches used on every CPU"] = CachesOnEveryCpu,
        ["sheaves that are refilled"] = RefilledSheaves,
        ["mempools of every kind"] = Mempools,
        ["a mempool that grows"] = MempoolThatGrows,
        ["vmalloc of every form"] = VmallocForms,
        ["vmap of frames that become the area's"] = OwnedVmap,
        ["ioremap of every kind"] = IoremapKinds,
        ["rights of pages"] = Rights,
        ["a module of bytes"] = ModuleOfBytes,
        ["a swap area"] = SwapAreaOfPages,
        ["leases"] = Leases,
        ["cleared rents"] = ClearedRents,
        ["memory of writers"] = MemoryOfWriters,
    };

    /// <summary>Ask for no memory of the machine: what they do, they do with what is there.</summary>
    private static readonly HashSet<string> s_withoutRequests =
    [
        // Addresses, questions, texts, and checks.
        "AddressOf", "PfnOf", "PhysicalAddressOf", "KernelAddressOf", "IsVmallocAddr", "VmallocToPage", "PerCpuPtr",
        "DescribeFrame", "Explain", "ExplainRequest", "DumpPageTables", "WalkPageTables", "Walk", "Ksize",
        "KmallocSizeRoundup", "MemoryHolders", "FindLeaks", "ScanForLeaks", "Validate", "ValidateObjects", "IsLive",
        "CheckUserCopy", "AsSpan", "Translate", "Tags", "AllocInfo", "PageOwner",

        // Contexts.
        "Atomic", "BottomHalvesDisabled", "HardIrq", "IrqsDisabled", "SoftIrq", "Tasklet", "MemallocNoFs", "MemallocNoIo",
        "MemallocNoReclaim", "MemallocPin", "RunOn", "RcuRead", "Tick", "FailNth", "ConfigureShared",

        // Give memory back, or move it to frames that are free.
        "Compact", "DrainAllPages", "ReclaimMemory", "ReturnFreeMemory", "RunKswapd", "Trim", "VmUnmapAliases", "GetPage",
        "SplitPages", "SetMovable", "ClearMovable", "KfreeSensitive", "KfreeBulk", "RegisterShrinker", "Shrink", "Clear",
        "ShrinkCaches", "RcuBarrier", "Commit",

        // A state is managed memory; the building of machines has a test of its own.
        "SaveState", "LoadState", "Boot",

        // Roots of the leak scan.
        "AddRoot", "RemoveRoot", "Ignore", "NotALeak",
    ];

    private static readonly Type[] s_allocators =
    [
        typeof(Machine), typeof(KmemCache), typeof(CacheScope), typeof(Mempool), typeof(AddressSpace), typeof(SwapArea),
        typeof(KmemPool), typeof(KmemCache<>), typeof(KmemBufferWriter), typeof(KmemGrowingBuffer),
        typeof(KmemSequenceWriter), typeof(KmemRing), typeof(KmemRegion), typeof(DmaDevice), typeof(DeviceMemory),
        typeof(KernelModule), typeof(AllocationTracker),
    ];

    /// <summary>A new public method has to be called in a way, or to be named as one that asks for no memory.</summary>
    [Fact]
    public void Every_public_method_that_allocates_has_a_way()
    {
        string ways = File.ReadAllText(PathOfThis()) + File.ReadAllText(PathOfThis().Replace(".Ways.cs", ".cs"));
        string[] missing =
        [
            .. s_allocators.SelectMany(type => type.GetMethods(
                    BindingFlags.Public | BindingFlags.Instance | BindingFlags.Static | BindingFlags.DeclaredOnly))
                .Where(method => !method.IsSpecialName && !s_withoutRequests.Contains(method.Name))
                .Where(method => method.Name is not ("Dispose" or "ToString" or "Equals" or "GetHashCode"))
                .Where(method => !IsCalled(method.Name))
                .Select(method => $"{method.DeclaringType!.Name}.{method.Name}").Distinct(StringComparer.Ordinal),
        ];
        Assert.Empty(missing);
        Assert.All(s_withoutRequests, name => Assert.Contains(
            s_allocators, type => type.GetMethods().Any(method => method.Name == name)));

        bool IsCalled(string name) => ways.Contains($".{name}(", StringComparison.Ordinal)
            || ways.Contains($".{name}<", StringComparison.Ordinal) || ways.Contains($".{name})", StringComparison.Ordinal);
    }

    /// <summary>
    /// A machine that is built from nothing, or from a state, while requests fail: it is whole, or there is none.
    /// </summary>
    [Theory]
    [InlineData("kernel", false)]
    [InlineData("native", false)]
    [InlineData("hardened", false)]
    [InlineData("debugged", false)]
    [InlineData("tracked", false)]
    [InlineData("kernel", true)]
    [InlineData("native", true)]
    public void Whichever_request_fails_while_a_machine_is_built(string kind, bool fromState)
    {
        string path = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}.json.gz");
        try
        {
            using (Machine sample = Boot(kind))
            {
                FirstUse(sample);
                if (fromState)
                    sample.SaveState(path);
            }

            int refused = 0, injected = 0;
            for (bool isLast = false; !isLast;)
            {
                FaultInjection.Nth = ++injected;
                Machine? machine = null;
                try
                {
                    machine = fromState ? Machine.LoadState(path, OptionsOf(kind)) : Boot(kind);
                }
                catch (OutOfMemoryException error)
                {
                    Assert.NotEmpty(error.Message);
                    refused++;
                }
                finally
                {
                    isLast = FaultInjection.Nth > 0;
                    FaultInjection.Nth = 0;
                }

                Assert.True(machine != null || !isLast, "no machine though no request failed");
                using (machine)
                {
                    Assert.Empty(machine?.Validate() ?? []);
                    Assert.True(
                        machine == null || (Operate(machine, "kmalloc of every form") && Operate(machine, "vmalloc")));
                    Assert.Empty(machine?.Validate() ?? []);
                }

                Assert.InRange(injected, 1, 3000);
            }

            Figures.Add("fail-nth", "requests failed", injected - 1);
            Figures.Add("fail-nth", "failures passed on", refused);
            TestContext.Current.TestOutputHelper?.WriteLine($"{injected - 1} requests failed, {refused} were passed on");
            Assert.True(fromState || injected > 1, "asks for no memory at all");
        }
        finally
        {
            FaultInjection.Nth = 0;
            File.Delete(path);
        }
    }

    /// <summary>What the options make fail fails in a machine of a state, too.</summary>
    [Fact]
    public unsafe void A_machine_of_a_state_has_the_faults_of_its_options()
    {
        string path = Path.Combine(Path.GetTempPath(), $"kmem-{Guid.NewGuid():n}.json.gz");
        try
        {
            using (Machine sample = Boot("kernel"))
                sample.SaveState(path);
            using Machine machine = Machine.LoadState(path, OptionsOf("kernel") with { FailSlab = "1,100,0,-1" });
            Assert.True(machine.Kmalloc(100, Gfp.NoWait | Gfp.NoWarn) == null);
            Assert.Equal(1, machine.FailSlab.Failures);
        }
        finally
        {
            File.Delete(path);
        }
    }

    private static string PathOfThis([CallerFilePath] string path = "") => Repository.PathOf(
        Path.Combine("tests", "Kmem.Tests", "Debug", Path.GetFileName(path)));

    /// <summary>Keeps what came, if it came, to be given back later.</summary>
    private static bool Keep(Stack<Action> undo, nint block, Action<nint> free)
    {
        if (block != 0)
            undo.Push(() => free(block));
        return block != 0;
    }

    private static unsafe bool PagesByAddress(Machine machine, Stack<Action> undo)
    {
        foreach (int order in (int[])[0, 3, 9])
        {
            if (!Keep(undo, (nint)machine.GetFreePages(Gfp.Kernel | Gfp.NoWarn, order), at => machine.FreePages((void*)at, order)))
                return false;
        }

        Pfn block = machine.AllocPages(Gfp.Kernel | Gfp.NoWarn | Gfp.ThisNode, 1, node: 0);
        if (block.IsValid)
            undo.Push(() => machine.FreePages(block, 1));
        return block.IsValid;
    }

    private static unsafe bool KmallocForms(Machine machine, Stack<Action> undo)
    {
        const Gfp Quiet = Gfp.Kernel | Gfp.NoWarn;
        Action<nint> free = block => machine.Kfree((void*)block);
        nint grown = 0;
        undo.Push(() => free(grown));
        foreach (int count in (int[])[3, 90, 20])
        {
            var moved = (nint)machine.KreallocArray((void*)grown, (nuint)count, 60, Quiet);
            if (moved == 0)
                return false;
            grown = moved;
        }

        return Keep(undo, (nint)machine.KmallocArray(30, 50, Quiet), free)
            && Keep(undo, (nint)machine.Kzalloc(700, Quiet), free)
            && Keep(undo, (nint)machine.KmallocNode(900, Quiet, 0), free)
            && Keep(undo, (nint)machine.Kstrndup("a long text", 6, Quiet), free);
    }

    private static unsafe bool KvmallocForms(Machine machine, Stack<Action> undo)
    {
        const Gfp Quiet = Gfp.Kernel | Gfp.NoWarn;
        Action<nint> free = block => machine.Kvfree((void*)block);
        return Keep(undo, (nint)machine.Kvmalloc(30_000, Quiet), free)
            && Keep(undo, (nint)machine.Kvzalloc(3000, Quiet), free)
            && Keep(undo, (nint)machine.Kvcalloc(1000, 70, Quiet), free);
    }

    /// <summary>Each CPU gets its own sheaves, the first time or when the cache is made.</summary>
    private static unsafe bool CachesOnEveryCpu(Machine machine, Stack<Action> undo)
    {
        KmemCache cache = machine.CreateCache("everywhere", 300, flags: SlabFlags.NoMerge, sheafCapacity: 8);
        undo.Push(cache.Destroy);
        for (int cpu = 0; cpu < machine.Cpus; cpu++)
        {
            using CpuBinding here = machine.RunOn(cpu);
            for (int i = 0; i < 20; i++)
            {
                if (!Keep(undo, (nint)cache.Alloc(Gfp.Kernel | Gfp.NoWarn, i % 2 - 1), obj => cache.Free((void*)obj)))
                    return false;
            }
        }

        return true;
    }

    private static unsafe bool RefilledSheaves(Machine machine, Stack<Action> undo)
    {
        KmemCache cache = machine.CreateCache("refilled", 1500, flags: SlabFlags.NoMerge, sheafCapacity: 6);
        undo.Push(cache.Destroy);
        if (cache.SheafCapacity == 0)
            return machine.Kmalloc(8, Gfp.Kernel) is var block && Keep(undo, (nint)block, it => machine.Kfree((void*)it));

        var sheaf = (nint)cache.PrefillSheaf(Gfp.Kernel | Gfp.NoWarn, 2);
        if (sheaf == 0)
            return false;
        undo.Push(() => cache.ReturnSheaf(Gfp.Kernel, (Sheaf*)sheaf));
        var taken = new List<nint>();
        bool refilled = true;
        for (int round = 0; round < 3 && refilled; round++)
        {
            while (((Sheaf*)sheaf)->Size > 0)
                taken.Add((nint)cache.AllocFromPrefilled(Gfp.Kernel, (Sheaf*)sheaf));
            var at = (Sheaf*)sheaf;
            refilled = cache.RefillSheaf(Gfp.Kernel | Gfp.NoWarn, ref at, 4 + (4 * round));
            sheaf = (nint)at;
        }

        foreach (nint obj in taken)
            cache.Free((void*)obj);
        return refilled;
    }

    private static unsafe bool Mempools(Machine machine, Stack<Action> undo)
    {
        KmemCache cache = machine.CreateCache("elements", 250, flags: SlabFlags.NoMerge);
        undo.Push(cache.Destroy);
        foreach (Func<Mempool> create in (Func<Mempool>[])
        [
            () => machine.CreateMempool(5, cache),
            () => machine.CreatePageMempool(3, 2),
            () => machine.CreateKvmallocMempool(2, 40_000),
        ])
        {
            Mempool pool = create();
            undo.Push(pool.Dispose);
            for (int i = 0; i < 3; i++)
            {
                if (!Keep(undo, (nint)pool.Alloc(Gfp.Kernel | Gfp.NoWarn), element => pool.Free((void*)element)))
                    return false;
            }
        }

        return true;
    }

    /// <summary>
    /// The promise grows; as many elements as memory allowed are there, and no more can be taken of them.
    /// </summary>
    private static unsafe bool MempoolThatGrows(Machine machine, Stack<Action> undo)
    {
        Mempool pool = machine.CreateMempool(2, (nuint)3000);
        undo.Push(pool.Dispose);
        pool.Resize(7);
        Assert.Equal(7, pool.Minimum);
        int reserved = pool.Reserved, taken = 0;
        while (Keep(undo, (nint)pool.AllocPreallocated(), element => pool.Free((void*)element)))
            taken++;
        Assert.Equal(reserved, taken);
        return reserved == 7;
    }

    private static unsafe bool VmallocForms(Machine machine, Stack<Action> undo)
    {
        Action<nint> free = area => machine.Vfree((void*)area);
        return Keep(undo, (nint)machine.Vmalloc(7 * Page), free)
            && Keep(undo, (nint)machine.Vmalloc(7 * Page, Gfp.Kernel | Gfp.NoWarn | Gfp.Zero, node: 0), free)
            && Keep(undo, (nint)machine.VmallocHuge(3 << 20, Gfp.Kernel | Gfp.NoWarn), free);
    }

    private static unsafe bool OwnedVmap(Machine machine, Stack<Action> undo)
    {
        var frames = new List<Pfn>();
        bool isOwned = false;
        undo.Push(() => (isOwned ? [] : frames).ForEach(machine.FreePage));
        for (int i = 0; i < 5; i++)
        {
            Pfn frame = machine.AllocPage(Gfp.Kernel | Gfp.NoWarn);
            if (!frame.IsValid)
                return false;
            frames.Add(frame);
        }

        if (!Keep(undo, (nint)machine.Vmap([.. frames], readOnly: true), area => machine.Vunmap((void*)area)))
            return false;
        isOwned = Keep(undo, (nint)machine.Vmap([.. frames], putPages: true), area => machine.Vfree((void*)area));
        return isOwned;
    }

    private static unsafe bool IoremapKinds(Machine machine, Stack<Action> undo)
    {
        var bar = new PhysAddr(0xfea0_0000);
        undo.Push(machine.AddDevice(bar, 1 << 20, "disk").Dispose);
        Action<nint> end = area => machine.Iounmap((void*)area);
        const int Part = 0x2_0000;
        return Keep(undo, (nint)machine.IoremapUc(bar, 3 * Page), end)
            && Keep(undo, (nint)machine.IoremapWc(new PhysAddr(bar.Value + Part), 3 * Page), end)
            && Keep(undo, (nint)machine.IoremapWt(new PhysAddr(bar.Value + (2 * Part)), Page), end)
            && Keep(undo, (nint)machine.IoremapCache(new PhysAddr(bar.Value + (3 * Part)), Page), end)
            && Keep(undo, (nint)machine.Memremap(new PhysAddr(bar.Value + (4 * Part)), Page),
                area => machine.Memunmap((void*)area));
    }

    /// <summary>The right comes back while requests still fail: the tables for it are there.</summary>
    private static unsafe bool Rights(Machine machine, Stack<Action> undo)
    {
        var area = (nint)machine.Vmalloc(6 * Page);
        if (!Keep(undo, area, at => machine.Vfree((void*)at)))
            return false;

        bool changed = machine.SetMemoryRo((void*)(area + Page), 2);
        undo.Push(() => Assert.True(!changed || machine.SetMemoryRw((void*)(area + Page), 2)));
        if (!changed || !machine.SetMemoryRox((void*)(area + Page), 1))
            return false;
        return machine.SetMemoryNx((void*)(area + Page), 1) && machine.SetMemoryX((void*)(area + (2 * Page)), 1)
            && machine.SetMemoryNx((void*)(area + (2 * Page)), 1);
    }

    private static bool ModuleOfBytes(Machine machine, Stack<Action> undo)
    {
        var image = new ModuleImage("bytes");
        image.Sections.Add(new ModuleSection(ModuleSectionKind.Text, 64, 300, new byte[300]));
        image.Sections.Add(new ModuleSection(ModuleSectionKind.ReadOnlyData, 8, 100, new byte[100]));
        image.Sections.Add(new ModuleSection(ModuleSectionKind.Data, 8, 70_000, new byte[10]));
        image.Symbols.Add(new ModuleSymbol("start", 0, 0));
        KernelModule module = machine.LoadModule(image.ToArray());
        undo.Push(module.Dispose);
        return true;
    }

    private static bool SwapAreaOfPages(Machine machine, Stack<Action> undo)
    {
        SwapArea area = machine.CreateSwapArea(40 * Page);
        undo.Push(area.Dispose);
        foreach (ulong page in (ulong[])[0, 9, 33])
        {
            using SwapPin pin = area.Pin(page * Page, 3 * Page);
            pin.Span.Fill(7);
        }

        area.Discard(9 * Page, Page);
        using SwapPin again = area.Pin(8 * Page, 3 * Page);
        Assert.Equal([0, 7], [again.Span[Page], again.Span[2 * Page]]);
        return true;
    }

    private static bool Leases(Machine machine, Stack<Action> undo)
    {
        KmemCache<decimal> cache = machine.CreateCache<decimal>("decimals", SlabFlags.NoMerge, stamps: true);
        undo.Push(cache.Dispose);
        for (int i = 0; i < 5; i++)
        {
            using KmemLease<decimal> lease = cache.Lease(i);
            KmemHandle<decimal> kept = cache.Rent(i);
            undo.Push(() => cache.Return(kept));
        }

        return true;
    }

    private static bool ClearedRents(Machine machine, Stack<Action> undo)
    {
        foreach (int length in (int[])[10, 900, 3000, 100_000])
        {
            KmemOwner<long> owner = machine.Rent<long>(length, clear: true);
            undo.Push(owner.Dispose);
            Assert.Equal(0, owner.Memory.Span[length - 1]);
        }

        return true;
    }

    private static bool MemoryOfWriters(Machine machine, Stack<Action> undo)
    {
        KmemBufferWriter writer = machine.CreateWriter(100);
        undo.Push(writer.Dispose);
        KmemSequenceWriter chain = machine.CreateSequenceWriter(500);
        undo.Push(chain.Dispose);
        KmemGrowingBuffer growing = machine.CreateGrowingBuffer(1 << 18);
        undo.Push(growing.Dispose);
        KmemRing ring = machine.CreateRing(10_000);
        undo.Push(ring.Dispose);
        for (int i = 1; i <= 4; i++)
        {
            int size = 1700 * i;
            writer.GetMemory(size).Span[size - 1] = 1;
            writer.Advance(size);
            chain.GetMemory(size).Span[size - 1] = 1;
            chain.Advance(size);
            growing.GetMemory(size).Span[size - 1] = 1;
            growing.Advance(size);
            growing.TrimExcess();
            Assert.True(ring.TryWrite(new byte[500]));
            ring.Consume(ring.Read(new byte[400]) * 0);
        }

        Assert.Equal(writer.WrittenCount, growing.WrittenCount);
        return true;
    }
}
