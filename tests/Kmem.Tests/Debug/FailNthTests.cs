namespace Kmem.Tests;

/// <summary>
/// Every way that allocates, with its first request failing, then its second, and so on until none is left to fail:
/// each time it says so by null, 0 or <see cref="OutOfMemoryException"/>, nothing is lost, and all rules hold. What is
/// given back is given back while requests still fail, because some frees need memory themselves.
/// </summary>
public sealed partial class FailNthTests
{
    private const int Page = Pfn.PageSize;

    private delegate bool Way(Machine machine, Stack<Action> undo);

    private static readonly Dictionary<string, Way> s_ways = new(OtherKinds, StringComparer.Ordinal)
    {
        ["pages of every order"] = (machine, undo) => Enumerable.Range(0, 11).All(order => Pages(machine, undo, order)),
        ["pages in bulk"] = PagesInBulk,
        ["exact pages"] = ExactPages,
        ["kmalloc of every class"] = (machine, undo) => new[]
        {
            1, 8, 16, 32, 64, 96, 128, 192, 256, 300, 512, 700, 1024, 2048, 3000, 4096, 8192,
        }.All(size => Kmalloc(machine, undo, size, Gfp.Kernel)),
        ["kmalloc of every type"] = (machine, undo) => new[]
        {
            Gfp.Kernel, Gfp.Kernel | Gfp.Account, Gfp.Kernel | Gfp.Reclaimable, Gfp.Kernel | Gfp.Dma, Gfp.Atomic,
            Gfp.NoWait,
        }.All(gfp => Kmalloc(machine, undo, 200, gfp)),
        ["large kmalloc"] = (machine, undo) => Kmalloc(machine, undo, 20_000, Gfp.Kernel)
            && Kmalloc(machine, undo, 1 << 20, Gfp.Kernel),
        ["krealloc"] = Krealloc,
        ["kmemdup and kcalloc"] = Copies,
        ["caches"] = Caches,
        ["a cache with sheaves"] = (machine, undo) => CacheWithSheaves(machine, undo, 400, 17, 5)
            && CacheWithSheaves(machine, undo, 64, 150, 40),
        ["objects in bulk"] = (machine, undo) => Bulk(machine, undo, 500) && Bulk(machine, undo, 64),
        ["a scope"] = Scope,
        ["objects freed after a grace period"] = FreeAfterReaders,
        ["mempool"] = MempoolOfObjects,
        ["percpu"] = Percpu,
        ["vmalloc"] = (machine, undo) => Vmalloc(machine, undo, () => machine.VmallocPointer(50 * Page)),
        ["huge vmalloc"] = (machine, undo) => Vmalloc(machine, undo, () => machine.VmallocHugePointer(5 << 20)),
        ["vmalloc for users, below 4 GiB, cleared"] = OtherVmallocs,
        ["vrealloc"] = Vrealloc,
        ["kvmalloc"] = Kvmalloc,
        ["vmap"] = Vmap,
        ["vm_map_ram"] = VmMapRam,
        ["ioremap"] = Ioremap,
        ["a sparse area"] = SparseArea,
        ["coherent memory"] = Dma,
        ["thread stacks"] = Stacks,
        ["modules"] = Modules,
        ["address spaces"] = Spaces,
        ["rents"] = Rents,
        ["a typed cache"] = TypedCache,
        ["writers"] = Writers,
        ["a growing buffer and a region"] = Growing,
        ["a ring"] = Ring,
    };

    private static readonly string[] s_machines =
        ["kernel", "native", "debugged", "hardened", "tracked", "kernel, 3 CPUs", "native, 3 CPUs"];

    public static TheoryData<string, string> Cases()
    {
        var cases = new TheoryData<string, string>();
        foreach (string way in s_ways.Keys)
        {
            foreach (string machine in s_machines)
                cases.Add(way, machine);
        }

        return cases;
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void Whichever_request_fails_nothing_is_lost(string way, string kind)
    {
        using Machine machine = Boot(kind);
        machine.FailNth(0);
        FirstUse(machine);
        Assert.True(Operate(machine, way), "fails though nothing is made to fail");
        Assert.True(Operate(machine, way), "fails the second time");
        Inventory before = Inventory.Take(machine);
        int injected = 0, noticed = 0;
        for (long left = 0; left == 0;)
        {
            machine.FailNth(++injected);
            bool complete = Operate(machine, way);
            left = machine.FailNth(0);
            Inventory after = Inventory.Take(machine);
            Assert.True(before == after, $"{way}, request {injected} fails: {before} before, {after} after");
            Assert.Empty(machine.Validate());
            Assert.True(complete || left == 0, "fails though no request failed");
            noticed += complete ? 0 : 1;
            Assert.InRange(injected, 1, 3000);
        }

        Figures.Add("fail-nth", "ways", 1);
        Figures.Add("fail-nth", "requests failed", injected - 1);
        Figures.Add("fail-nth", "failures passed on", noticed);
        TestContext.Current.TestOutputHelper?.WriteLine($"{injected - 1} requests failed, {noticed} were passed on");
        Assert.True(injected > 1, "asks for no memory at all");
    }

    /// <summary>All ways, one after the other, while requests of all kinds fail at random.</summary>
    [Theory]
    [InlineData("kernel", 2, 1)]
    [InlineData("kernel", 20, 3)]
    [InlineData("native", 2, 1)]
    [InlineData("native", 20, 3)]
    [InlineData("debugged", 5, 2)]
    [InlineData("hardened", 5, 2)]
    public void Requests_that_fail_at_random_lose_nothing(string kind, int probability, int interval)
    {
        int rounds = int.TryParse(Environment.GetEnvironmentVariable("KMEM_FAULT_ROUNDS"), out int wanted) ? wanted : 6;
        using Machine machine = Boot(kind);
        Assert.All(s_ways.Keys, way => Assert.True(Operate(machine, way)));
        Inventory before = Inventory.Take(machine);
        foreach (FaultAttribute faults in (FaultAttribute[])[machine.FailSlab, machine.FailPageAlloc])
        {
            faults.IgnoreGfpWait = false;
            faults.IgnoreGfpHighMem = false;
            faults.MinOrder = 0;
            faults.Times = -1;
            faults.Interval = interval;
        }

        int noticed = 0;
        for (int round = 0; round < rounds; round++)
        {
            foreach (string way in s_ways.Keys)
            {
                machine.FailSlab.Probability = machine.FailPageAlloc.Probability = probability;
                noticed += Operate(machine, way) ? 0 : 1;
                machine.FailSlab.Probability = machine.FailPageAlloc.Probability = 0;
                Inventory after = Inventory.Take(machine);
                Assert.True(before == after, $"round {round}, {way}: {before} before, {after} after");
            }

            Assert.Empty(machine.Validate());
        }

        long failed = machine.FailSlab.Failures + machine.FailPageAlloc.Failures;
        Figures.Add("failslab, fail_page_alloc", "requests failed", failed);
        Figures.Add("failslab, fail_page_alloc", "failures passed on", noticed);
        Assert.True(failed > rounds, $"only {failed} requests failed");
    }

    /// <summary>
    /// A single failure is made good by a smaller slab. Where no page at all is to be had, the new sheaf goes back with
    /// what it holds.
    /// </summary>
    [Theory]
    [InlineData("kernel")]
    [InlineData("native")]
    public unsafe void A_sheaf_that_cannot_be_filled_is_given_back(string kind)
    {
        using Machine machine = Boot(kind);
        KmemCache cache = machine.CreateCache("sheaves", 400, flags: SlabFlags.NoMerge, sheafCapacity: 60);
        cache.Free(cache.Alloc(Gfp.Kernel));
        Inventory before = Inventory.Take(machine);
        FaultAttribute faults = machine.FailPageAlloc;
        faults.IgnoreGfpWait = false;
        faults.MinOrder = 0;
        faults.Times = -1;
        faults.Probability = 100;
        nint[] objects = [.. Enumerable.Range(0, 200).Select(_ => (nint)cache.Alloc(Gfp.Kernel)).Where(obj => obj != 0)];
        faults.Probability = 0;

        Assert.True(faults.Failures > 0, "no request failed");
        Array.ForEach(objects, obj => cache.Free((void*)obj));
        Assert.Equal(before, Inventory.Take(machine));
        Assert.Empty(machine.Validate());
    }

    private static Machine Boot(string kind) =>
        VmallocMachine.Boot(kind.EndsWith("3 CPUs", StringComparison.Ordinal) ? 3 : 1, 64 << 20, _ => OptionsOf(kind));

    private static MachineOptions OptionsOf(string kind) => new()
    {
        RamBytes = 64 << 20,
        Cpus = kind.EndsWith("3 CPUs", StringComparison.Ordinal) ? 3 : 1,
        Profile = kind == "hardened" ? KernelProfile.Hardened
            : kind.StartsWith("native", StringComparison.Ordinal) ? KernelProfile.Native : KernelProfile.Linux618,
        SlubDebug = kind == "debugged" ? "FZPU" : null,
        TrackAllocations = kind == "tracked",
        DecaySeconds = 0,
    };

    /// <summary>What falls back to vmalloc must not be the first to do so.</summary>
    private static unsafe void FirstUse(Machine machine) => machine.Vfree(machine.Vmalloc(Page));

    /// <returns>Whether all of it succeeded.</returns>
    private static bool Operate(Machine machine, string way)
    {
        var undo = new Stack<Action>();
        try
        {
            return s_ways[way](machine, undo);
        }
        catch (OutOfMemoryException)
        {
            return false;
        }
        finally
        {
            foreach (Action step in undo)
                step();
        }
    }

    private static bool Pages(Machine machine, Stack<Action> undo, int order)
    {
        Pfn block = machine.AllocPages(Gfp.Kernel | Gfp.NoWarn, order);
        if (!block.IsValid)
            return false;
        undo.Push(() => machine.FreePages(block, order));
        return true;
    }

    private static bool PagesInBulk(Machine machine, Stack<Action> undo)
    {
        var pages = new Pfn[40];
        Array.Fill(pages, Pfn.None);
        int got = machine.AllocPagesBulk(Gfp.Kernel | Gfp.NoWarn, pages);
        undo.Push(() => Array.ForEach(pages[..got], machine.FreePage));
        Assert.All(pages[got..], page => Assert.False(page.IsValid));
        return got == pages.Length;
    }

    private static unsafe bool ExactPages(Machine machine, Stack<Action> undo)
    {
        var block = (nint)machine.AllocPagesExact(5 * Page, Gfp.Kernel | Gfp.NoWarn);
        if (block != 0)
            undo.Push(() => machine.FreePagesExact((void*)block, 5 * Page));
        return block != 0;
    }

    private static unsafe bool Kmalloc(Machine machine, Stack<Action> undo, int size, Gfp gfp)
    {
        var block = (nint)machine.Kmalloc((nuint)size, gfp | Gfp.NoWarn);
        if (block != 0)
            undo.Push(() => machine.Kfree((void*)block));
        return block != 0;
    }

    private static unsafe bool Krealloc(Machine machine, Stack<Action> undo)
    {
        nint block = 0;
        undo.Push(() => machine.Kfree((void*)block));
        foreach (int size in (int[])[10, 100, 5000, 100_000, 50])
        {
            var moved = (nint)machine.Krealloc((void*)block, (nuint)size, Gfp.Kernel | Gfp.NoWarn);
            if (moved == 0)
                return false; // the old block is as it was
            block = moved;
            *(byte*)(block + size - 1) = 1;
        }

        return true;
    }

    private static unsafe bool Copies(Machine machine, Stack<Action> undo)
    {
        var copy = (nint)machine.Kmemdup([1, 2, 3], Gfp.Kernel);
        undo.Push(() => machine.Kfree((void*)copy));
        var text = (nint)machine.Kstrdup("a text", Gfp.Kernel);
        undo.Push(() => machine.Kfree((void*)text));
        var many = (nint)machine.Kcalloc(100, 30, Gfp.Kernel);
        undo.Push(() => machine.Kfree((void*)many));
        return copy != 0 && text != 0 && many != 0;
    }

    private static unsafe bool Caches(Machine machine, Stack<Action> undo)
    {
        KmemCache cache = machine.CreateCache("one", 200, flags: SlabFlags.NoMerge);
        undo.Push(cache.Destroy);
        KmemCache other = machine.CreateCache("other", 3000, 0, SlabFlags.NoMerge, obj => *(long*)obj = 5);
        undo.Push(other.Destroy);
        for (int i = 0; i < 20; i++)
        {
            KmemCache from = i % 2 == 0 ? cache : other;
            var obj = (nint)from.Alloc(Gfp.Kernel);
            if (obj == 0)
                return false;
            undo.Push(() => from.Free((void*)obj));
        }

        return true;
    }

    /// <summary>A slab of small objects is one frame, and no smaller one does: then a sheaf stays half full.</summary>
    private static unsafe bool CacheWithSheaves(Machine machine, Stack<Action> undo, int size, int count, int capacity)
    {
        KmemCache cache = machine.CreateCache("sheaves", size, flags: SlabFlags.NoMerge, sheafCapacity: capacity);
        undo.Push(cache.Destroy);
        for (int i = 0; i < count; i++)
        {
            var obj = (nint)cache.Alloc(Gfp.Kernel);
            if (obj == 0)
                return false;
            undo.Push(() => cache.Free((void*)obj));
        }

        if (cache.SheafCapacity == 0)
            return true;

        var sheaf = (nint)cache.PrefillSheaf(Gfp.Kernel, 4);
        if (sheaf == 0)
            return false;
        undo.Push(() => cache.ReturnSheaf(Gfp.Kernel, (Sheaf*)sheaf));
        var large = (nint)cache.PrefillSheaf(Gfp.Kernel, 9);
        if (large == 0)
            return false;
        undo.Push(() => cache.ReturnSheaf(Gfp.Kernel, (Sheaf*)large));
        void* first = cache.AllocFromPrefilled(Gfp.Kernel, (Sheaf*)sheaf);
        cache.Free(first);
        return first != null;
    }

    private static bool Bulk(Machine machine, Stack<Action> undo, int size)
    {
        KmemCache cache = machine.CreateCache("bulk", size, flags: SlabFlags.NoMerge);
        undo.Push(cache.Destroy);
        foreach (int count in (int[])[1, 30, 200])
        {
            var objects = new nint[count];
            if (cache.AllocBulk(Gfp.Kernel, objects) == 0)
            {
                Assert.All(objects, obj => Assert.Equal(0, obj));
                return false;
            }

            undo.Push(() => cache.FreeBulk(objects));
        }

        return true;
    }

    private static unsafe bool Scope(Machine machine, Stack<Action> undo)
    {
        KmemCache cache = machine.CreateCache("scope", 500, flags: SlabFlags.NoMerge);
        undo.Push(cache.Destroy);
        using CacheScope scope = cache.Enter(Gfp.Kernel);
        var taken = new List<nint>();
        for (int i = 0; i < 100; i++)
        {
            var obj = (nint)scope.Alloc();
            if (obj == 0)
                break;
            taken.Add(obj);
        }

        foreach (nint obj in taken)
            scope.Free((void*)obj);
        return taken.Count == 100;
    }

    private static unsafe bool FreeAfterReaders(Machine machine, Stack<Action> undo)
    {
        KmemCache cache = machine.CreateCache("readers", 300, flags: SlabFlags.NoMerge, sheafCapacity: 4);
        undo.Push(cache.Destroy);
        for (int i = 0; i < 12; i++)
        {
            void* obj = cache.Alloc(Gfp.Kernel);
            if (obj == null)
                return false;
            machine.KfreeRcu(obj);
        }

        return true;
    }

    private static unsafe bool MempoolOfObjects(Machine machine, Stack<Action> undo)
    {
        Mempool pool = machine.CreateMempool(4, (nuint)600);
        undo.Push(pool.Dispose);
        for (int i = 0; i < 6; i++)
        {
            var element = (nint)pool.Alloc(Gfp.NoWait);
            if (element == 0)
                return false;
            undo.Push(() => pool.Free((void*)element));
        }

        return true;
    }

    private static bool Percpu(Machine machine, Stack<Action> undo)
    {
        for (int i = 0; i < 10; i++)
        {
            PercpuPointer variable = machine.AllocPercpu(25_000, 8);
            if (variable.IsNull)
                return false;
            undo.Push(() => machine.FreePercpu(variable));
        }

        return true;
    }

    private static unsafe bool Vmalloc(Machine machine, Stack<Action> undo, Func<nint> alloc)
    {
        for (int i = 0; i < 2; i++)
        {
            nint area = alloc();
            if (area == 0)
                return false;
            undo.Push(() => machine.Vfree((void*)area));
        }

        return true;
    }

    private static unsafe bool OtherVmallocs(Machine machine, Stack<Action> undo)
    {
        foreach (Func<nint> alloc in (Func<nint>[])
        [
            () => (nint)machine.VmallocUser(3 * Page),
            () => (nint)machine.Vmalloc32(3 * Page),
            () => (nint)machine.Vzalloc(3 * Page),
        ])
        {
            nint area = alloc();
            if (area == 0)
                return false;
            undo.Push(() => machine.Vfree((void*)area));
        }

        return true;
    }

    private static unsafe bool Vrealloc(Machine machine, Stack<Action> undo)
    {
        nint area = 0;
        undo.Push(() => machine.Vfree((void*)area));
        foreach (int pages in (int[])[2, 9, 3])
        {
            var moved = (nint)machine.Vrealloc((void*)area, (nuint)(pages * Page), Gfp.Kernel | Gfp.NoWarn);
            if (moved == 0)
                return false;
            area = moved;
        }

        return true;
    }

    private static unsafe bool Kvmalloc(Machine machine, Stack<Action> undo)
    {
        nint block = 0;
        undo.Push(() => machine.Kvfree((void*)block));
        foreach (int size in (int[])[100, 20_000, 9 << 20])
        {
            var moved = (nint)machine.Kvrealloc((void*)block, (nuint)size, Gfp.Kernel | Gfp.NoWarn);
            if (moved == 0)
                return false;
            block = moved;
        }

        return true;
    }

    private static Pfn[]? Frames(Machine machine, Stack<Action> undo, int count)
    {
        var frames = new List<Pfn>();
        for (int i = 0; i < count; i++)
        {
            Pfn frame = machine.AllocPage(Gfp.Kernel | Gfp.NoWarn);
            if (!frame.IsValid)
                return null;
            undo.Push(() => machine.FreePage(frame));
            frames.Add(frame);
        }

        return [.. frames];
    }

    private static unsafe bool Vmap(Machine machine, Stack<Action> undo)
    {
        if (Frames(machine, undo, 6) is not { } frames)
            return false;
        var area = (nint)machine.Vmap(frames);
        if (area != 0)
            undo.Push(() => machine.Vunmap((void*)area));
        return area != 0;
    }

    private static unsafe bool VmMapRam(Machine machine, Stack<Action> undo)
    {
        foreach (int count in (int[])[3, 70])
        {
            if (Frames(machine, undo, count) is not { } frames)
                return false;
            var area = (nint)machine.VmMapRam(frames);
            if (area == 0)
                return false;
            undo.Push(() => machine.VmUnmapRam((void*)area, count));
        }

        return true;
    }

    private static unsafe bool Ioremap(Machine machine, Stack<Action> undo)
    {
        var bar = new PhysAddr(0xfeb0_0000);
        DeviceMemory device = machine.AddDevice(bar, 1 << 20, "nic");
        undo.Push(device.Dispose);
        foreach (int pages in (int[])[1, 40])
        {
            var area = (nint)machine.Ioremap(bar, (nuint)(pages * Page));
            if (area == 0)
                return false;
            undo.Push(() => machine.Iounmap((void*)area));
        }

        return true;
    }

    private static unsafe bool SparseArea(Machine machine, Stack<Action> undo)
    {
        var area = (nint)machine.GetVmArea(10 * Page);
        if (area == 0)
            return false;
        undo.Push(() => machine.FreeVmArea((void*)area));
        if (Frames(machine, undo, 2) is not { } frames)
            return false;
        if (machine.VmAreaMapPages((void*)area, 3 * Page, frames) != VmapError.None)
            return false;
        undo.Push(() => machine.VmAreaUnmapPages((void*)area, 3 * Page, 2));
        return true;
    }

    private static unsafe bool Dma(Machine machine, Stack<Action> undo)
    {
        foreach (bool iommu in (bool[])[false, true])
        {
            var device = new DmaDevice { HasIommu = iommu, IsCoherent = false };
            var memory = (nint)machine.DmaAllocCoherent(device, 5 * Page, out _, Gfp.Kernel | Gfp.NoWarn);
            if (memory == 0)
                return false;
            undo.Push(() => machine.DmaFreeCoherent(device, (void*)memory));
        }

        return true;
    }

    private static unsafe bool Stacks(Machine machine, Stack<Action> undo)
    {
        for (int i = 0; i < 3; i++)
        {
            var stack = (nint)machine.AllocThreadStack();
            if (stack == 0)
                return false;
            undo.Push(() => machine.FreeThreadStack((void*)stack));
        }

        return true;
    }

    private static bool Modules(Machine machine, Stack<Action> undo)
    {
        var image = new ModuleImage("sample");
        image.Sections.Add(new ModuleSection(ModuleSectionKind.Text, 16, 5000, new byte[5000]));
        image.Sections.Add(new ModuleSection(ModuleSectionKind.Data, 16, 9000, new byte[9000]));
        KernelModule module = machine.LoadModule(image);
        undo.Push(module.Dispose);
        return true;
    }

    private static unsafe bool Spaces(Machine machine, Stack<Action> undo)
    {
        AddressSpace space = machine.CreateAddressSpace();
        undo.Push(space.Dispose);
        var area = (nint)machine.VmallocUser(5 * Page);
        if (area == 0)
            return false;
        undo.Push(() => machine.Vfree((void*)area));
        var at = new VirtAddr(0x7f00_0000_0000);
        if (space.RemapVmallocRange(at, 5 * Page, (void*)area) != VmapError.None)
            return false;
        undo.Push(() => space.Unmap(at));
        return true;
    }

    private static bool Rents(Machine machine, Stack<Action> undo)
    {
        undo.Push(machine.Rent<int>(1000).Dispose);
        undo.Push(machine.Rent<byte>(5 << 20).Dispose);
        KmemPool pool = machine.CreatePool();
        undo.Push(pool.Dispose);
        undo.Push(pool.Rent(100).Dispose);
        undo.Push(pool.Rent(100_000).Dispose);
        return true;
    }

    private static bool TypedCache(Machine machine, Stack<Action> undo)
    {
        KmemCache<Guid> cache = machine.CreateCache<Guid>("guids");
        undo.Push(cache.Dispose);
        KmemHandle<Guid> one = cache.Rent();
        undo.Push(() => cache.Return(one));
        var many = new KmemHandle<Guid>[300];
        cache.RentBulk(many);
        undo.Push(() => cache.ReturnBulk(many));
        return true;
    }

    private static bool Writers(Machine machine, Stack<Action> undo)
    {
        KmemBufferWriter writer = machine.CreateWriter();
        undo.Push(writer.Dispose);
        KmemSequenceWriter chain = machine.CreateSequenceWriter();
        undo.Push(chain.Dispose);
        for (int i = 0; i < 5; i++)
        {
            int size = 3000 * (i + 1);
            writer.GetSpan(size)[size - 1] = 1;
            writer.Advance(size);
            chain.GetSpan(size)[size - 1] = 1;
            chain.Advance(size);
        }

        return writer.WrittenCount == chain.Length;
    }

    private static bool Growing(Machine machine, Stack<Action> undo)
    {
        KmemGrowingBuffer buffer = machine.CreateGrowingBuffer(1 << 20);
        undo.Push(buffer.Dispose);
        for (int i = 0; i < 4; i++)
        {
            buffer.GetSpan(20_000)[0] = 1;
            buffer.Advance(20_000);
        }

        undo.Push(machine.CreateRegion(100_000).Dispose);
        return true;
    }

    private static bool Ring(Machine machine, Stack<Action> undo)
    {
        undo.Push(machine.CreateRing(50_000).Dispose);
        return true;
    }
}

/// <summary>Pointers as numbers, for lambdas.</summary>
file static class Pointers
{
    public static unsafe nint VmallocPointer(this Machine machine, int bytes) =>
        (nint)machine.Vmalloc((nuint)bytes, Gfp.Kernel | Gfp.NoWarn);

    public static unsafe nint VmallocHugePointer(this Machine machine, int bytes) =>
        (nint)machine.VmallocHuge((nuint)bytes, Gfp.Kernel | Gfp.NoWarn);
}
