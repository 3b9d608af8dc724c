using System.Text.Json;

namespace Kmem.Tests;

/// <summary>What a machine says about its addresses is checked against what was done, and against its own
/// counters.</summary>
public sealed class ExplainTests
{
    private static MachineOptions Small(int megabytes = 64, long remember = 0) => new()
    {
        RamBytes = (ulong)megabytes << 20,
        Cpus = 2,
        Profile = KernelProfile.Linux618,
        RememberEvents = remember,
    };

    [Fact]
    public unsafe void AnObjectIsFoundFromAnyOfItsBytes()
    {
        using Machine machine = Machine.Boot(Small());
        KmemCache cache = machine.CreateCache("thing", size: 600, align: 0, SlabFlags.NoMerge);
        byte* obj = (byte*)cache.Alloc(Gfp.Kernel);
        foreach (int offset in new[] { 0, 1, 599 })
        {
            Explanation it = machine.Explain(obj + offset);
            Assert.Equal((AddressKind.SlabObject, "thing", (long)offset), (it.Kind, it.Slab!.Cache, it.Object!.Offset));
            Assert.True(it.Object.Allocated);
            Assert.Equal(machine.KernelAddressOf(obj), it.Object.Start);
            Assert.Equal((1, cache.Geometry.ObjectsPerSlab), (it.Slab.Live, it.Slab.Objects));
        }

        int objects = cache.Geometry.ObjectsPerSlab;
        byte* tail = obj + ((long)objects * cache.SlotSize);
        if (((nuint)tail & 4095) != 0)
            Assert.Equal(AddressKind.SlabPadding, machine.Explain(tail).Kind);
        cache.Free(obj);
        Explanation free = machine.Explain(obj);
        Assert.Equal((AddressKind.FreeObject, "free list of CPU"), (free.Kind, free.Object!.FreeOn![..16]));
        Assert.Contains("free: on the free list of CPU", free.Sentence, StringComparison.Ordinal);
    }

    [Fact]
    public unsafe void AFreedObjectIsFoundInTheSheafThatHasIt()
    {
        using Machine machine = Machine.Boot(new MachineOptions { RamBytes = 64 << 20, Cpus = 1 });
        void* obj = machine.Kmalloc(100, Gfp.Kernel);
        machine.Kfree(obj);
        Assert.StartsWith("main sheaf of CPU 0, 0 before", machine.Explain(obj).Object!.FreeOn,
            StringComparison.Ordinal);
    }

    [Fact]
    public unsafe void EachKindOfAddressIsTold()
    {
        Assert.SkipUnless(HostMemory.IsLinux && Environment.SystemPageSize == 4096, "vmalloc needs Linux");
        using Machine machine = Machine.Boot(Small());
        byte* area = (byte*)machine.Vmalloc(12 << 10);
        Explanation page = machine.Explain(area + 4096 + 5);
        Assert.Equal((AddressKind.VmallocPage, 1L, 3L), (page.Kind, page.Area!.Page, page.Area.Pages));
        Assert.True(page.Mapping!.Mapped);
        Assert.Equal(page.Page!.Frame, machine.VmallocToPage(area + 4096));
        Explanation direct = machine.Explain(page.Page.DirectMap);
        Assert.Equal((AddressKind.VmallocPage, 1L), (direct.Kind, direct.Area!.Page));
        Assert.Equal(page.Page, machine.Explain(page.Page.Descriptor).Page);
        Assert.Equal(AddressKind.GuardPage, machine.Explain(machine.KernelAddressOf(area + (12 << 10))).Kind);

        Assert.Equal(AddressKind.LargeKmalloc, machine.Explain(machine.Kmalloc(40_000, Gfp.Kernel)).Kind);
        Explanation table = machine.Explain(new VirtAddr(0xffff_8880_0000_0000UL
            + page.Mapping.Steps[^1].Table!.Value.Value));
        Assert.Equal((AddressKind.PageTable, "pte", 3), (table.Kind, table.Table!.Name, table.Table.Present));
        Assert.Equal(0xffff_c900_0000_0000UL, table.Table.Maps.Value);

        Pfn block = machine.AllocPages(Gfp.Kernel, 4);
        Explanation pages = machine.Explain(machine.AddressOf(block + 3));
        Assert.Equal((AddressKind.Pages, 4, block, 1),
            (pages.Kind, pages.Page!.Order, pages.Page.BlockFirst, pages.Page.References));
        machine.Vfree(area);
        Assert.Equal("freed, not purged yet", machine.Explain(machine.KernelAddressOf(area)).Area!.State);
    }

    [Theory]
    [InlineData(0x0000_8000_0000_0000, "not canonical")]
    [InlineData(0xffff_8880_0400_0000, "elsewhere")]
    [InlineData(0xffff_c900_0000_0000, "vmalloc space")]
    [InlineData(0, "elsewhere")]
    [InlineData(ulong.MaxValue, "elsewhere")]
    public void WhatIsNoMemoryIsSaidToBeNone(ulong address, string region)
    {
        using Machine machine = Machine.Boot(Small());
        Explanation it = machine.Explain(new VirtAddr(address));
        Assert.Equal((AddressKind.Nothing, region), (it.Kind, it.Region));
        Assert.EndsWith(".", it.Sentence, StringComparison.Ordinal);
    }

    /// <summary>Frame by frame, the kinds add up to what the zones count.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public unsafe void TheKindsOfAllFramesAddUpToTheCounters(int seed)
    {
        using Machine machine = Machine.Boot(Small(32));
        Churn(machine, new Random(seed), 3000);
        var kinds = new Dictionary<AddressKind, long>();
        for (ulong pfn = 0; pfn < machine.Map.EndPfn; pfn++)
        {
            Explanation it = machine.Explain(machine.Map.AddressOf(machine.Map.PageOf(pfn)));
            kinds[it.Kind] = kinds.GetValueOrDefault(it.Kind) + 1;
            Assert.True(it.FreeBlock is not { Position: < 0 }, $"frame 0x{pfn:x} is not on its list");
        }

        long used = kinds.Where(it =>
            it.Key is AddressKind.SlabObject or AddressKind.FreeObject or AddressKind.SlabPadding
            or AddressKind.LargeKmalloc or AddressKind.Pages or AddressKind.PageTable).Sum(it => it.Value);
        long free = machine.Pages.Zones.Sum(zone => zone.Zone.FreePagesExact);
        long listed = machine.Pages.Zones.Sum(zone => zone.PcpCount);
        long managed = machine.Pages.Zones.Sum(zone => (long)zone.Zone.Managed);
        Assert.Equal((free, listed), (kinds[AddressKind.FreeBlock], kinds.GetValueOrDefault(AddressKind.PcpList)));
        Assert.Equal(managed, free + listed + used);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void ALifeIsToldInOrder()
    {
        using Machine machine = Machine.Boot(Small(remember: 1000));
        using CpuBinding cpu = machine.RunOn(1);
        void* obj = machine.Kmalloc(100, Gfp.Kernel);
        machine.Kfree(obj);
        Assert.Equal((nint)obj, (nint)machine.Kmalloc(110, Gfp.Kernel));
        Explanation it = machine.Explain(obj);
        Assert.Equal(
            [LifeEventKind.PagesAllocated, LifeEventKind.ObjectAllocated, LifeEventKind.ObjectFreed,
                LifeEventKind.ObjectAllocated],
            it.Life.Select(e => e.Kind));
        Assert.Equal([0, 100, 0, 110], it.Life.Select(e => e.Kind == LifeEventKind.PagesAllocated ? 0 : e.Bytes));
        Assert.Equal([ObjectSource.NewSlab, ObjectSource.CpuFreeList],
            it.Life.Select(e => e.Source).OfType<ObjectSource>());
        Assert.All(it.Life, e => Assert.Equal(1, e.Cpu));
        Assert.Equal(it.Life.Select(e => e.Event).Order(), it.Life.Select(e => e.Event));
        Assert.Equal(it.Life[0].Event, it.Decision!.Event);
    }

    [Fact]
    public unsafe void AnAreaHasALifeToo()
    {
        Assert.SkipUnless(HostMemory.IsLinux && Environment.SystemPageSize == 4096, "vmalloc needs Linux");
        using Machine machine = Machine.Boot(Small(remember: 1000));
        void* pointer = machine.Vmalloc(10_000);
        VirtAddr area = machine.KernelAddressOf(pointer);
        Explanation it = machine.Explain(new VirtAddr(area.Value + 5000));
        Assert.Equal([LifeEventKind.ObjectAllocated, LifeEventKind.PagesAllocated],
            it.Life.Select(e => e.Kind).Order());
        Assert.Contains(it.Life, e => e is { Cache: "vmalloc area", Bytes: 4 << 12, Source: null }
            && e.Address == area);
        machine.Vfree(pointer);
        Assert.Contains(machine.Explain(area).Life, e =>
            e is { Kind: LifeEventKind.ObjectFreed, Cache: "vmalloc area" });
    }

    /// <summary>The ring is used again from its start; what it lost is not told, what it has is right.</summary>
    [Fact]
    public unsafe void OnlyTheNewestEventsAreRemembered()
    {
        using Machine machine = Machine.Boot(Small(remember: 1));
        void* old = machine.Kmalloc(100, Gfp.Kernel);
        void* obj = machine.Kmalloc(2000, Gfp.Kernel);
        for (int i = 0; i < 50_000; i++)
        {
            machine.Kfree(obj);
            obj = machine.Kmalloc(2000, Gfp.Kernel);
        }

        Assert.Empty(machine.Explain(old).Life);
        Explanation it = machine.Explain(obj);
        Assert.Equal((32, LifeEventKind.ObjectAllocated), (it.Life.Count, it.Life[^1].Kind));
        Assert.Equal(65_536 - 32, it.LifeOmitted);
    }

    [Fact]
    public void ADecisionNamesTheZoneAndTheBlock()
    {
        using Machine machine = Machine.Boot(Small(remember: 10_000));
        Pfn pfn = machine.AllocPages(Gfp.Kernel, 5);
        PageDecision it = machine.Explain(machine.KernelOf(pfn)).Decision!;
        Assert.Equal((5, Gfp.Kernel, Migratetype.Unmovable, pfn), (it.Order, it.Gfp, it.Type, it.Block));
        Assert.Equal(["DMA32", "DMA"], it.Zones.Select(zone => zone.Zone), StringComparer.Ordinal);
        Assert.Equal([ZoneResult.Served, ZoneResult.NotAsked], it.Zones.Select(zone => zone.Result));
        Assert.Equal(BlockPlace.FreeList, it.Source!.Place);
        Assert.Equal(it.Source.FoundOrder - 5, it.Source.Splits);
        Assert.Empty(it.SlowPath);
        Assert.True(it.Zones[0].Free > it.Zones[0].Low);

        // The first of its kind fills the CPU's list up, the next one finds it there.
        Pfn first = machine.AllocPages(Gfp.Kernel | Gfp.Reclaimable, 2);
        Pfn second = machine.AllocPages(Gfp.Kernel | Gfp.Reclaimable, 2);
        Assert.Equal(BlockPlace.CpuListRefilled, machine.Explain(machine.KernelOf(first)).Decision!.Source!.Place);
        Assert.Equal(BlockPlace.CpuList, machine.Explain(machine.KernelOf(second)).Decision!.Source!.Place);
        Assert.True(machine.Explain(machine.KernelOf(first)).Decision!.Source!.Stolen);
        machine.FreePages(pfn, 5);
        Assert.Null(machine.Explain(machine.KernelOf(pfn)).Decision);
    }

    [Fact]
    public void AFailureTellsItsWay()
    {
        using Machine machine = Machine.Boot(Small(16, remember: 10_000));
        while (machine.AllocPages(Gfp.Kernel | Gfp.NoWarn, 3).IsValid)
        {
        }

        RequestExplanation why = machine.ExplainRequest(Gfp.Kernel | Gfp.NoWarn, 3);
        Assert.False(why.WouldSucceed);
        PageDecision it = why.Decision!;
        Assert.False(it.Block.IsValid);
        Assert.Null(it.Source);
        Assert.Equal((SlowStep.Entered, SlowStep.Failed), (it.SlowPath[0], it.SlowPath[^1]));
        Assert.Contains(SlowStep.DrainedCpuLists, it.SlowPath);
        Assert.All(it.Zones, zone => Assert.NotEqual(ZoneResult.Served, zone.Result));
    }

    /// <summary>What is said about a request is what the request finds.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void ThePredictionIsWhatHappens(int seed)
    {
        var random = new Random(seed);
        using Machine machine = Machine.Boot(Small(16));
        for (int round = 0; round < 60; round++)
        {
            Churn(machine, random, 200);
            machine.DrainAllPages();
            int order = random.Next(PageOrder.Count);
            Gfp gfp = Gfp.NoWarn | random.Next(3) switch
            {
                0 => Gfp.Atomic,
                1 => Gfp.HighUserMovable & ~Gfp.HighMem,
                _ => Gfp.Kernel,
            };
            RequestExplanation it = machine.ExplainRequest(gfp, order);
            Pfn got = machine.AllocPages(gfp, order);
            Assert.True(it.WouldSucceed == got.IsValid,
                $"seed {seed} round {round} order {order} {gfp}: {it.Sentence}");
            Assert.Equal(it.WouldSucceed, it.Pinned.Count == 0
                && !it.Sentence.Contains("fails", StringComparison.Ordinal));
            machine.FreePages(got, order);
        }
    }

    /// <summary>The best block has the fewest objects of all, and freeing them makes the request succeed.</summary>
    [Theory]
    [InlineData(1, 9)]
    [InlineData(2, 9)]
    [InlineData(3, 10)]
    [InlineData(4, 9)]
    public unsafe void FreeingThePinsCompletesTheRequest(int seed, int order)
    {
        using Machine machine = Machine.Boot(Small(16));
        var random = new Random(seed);
        var frames = new List<Pfn>();
        const Gfp Quiet = Gfp.Kernel | Gfp.NoWarn;
        for (Pfn pfn = machine.AllocPage(Quiet); pfn.IsValid; pfn = machine.AllocPage(Quiet))
            frames.Add(pfn);
        var kept = new HashSet<ulong>();
        foreach (Pfn pfn in frames)
        {
            if (random.Next(order == 9 ? 60 : 120) == 0)
                kept.Add(pfn.Value);
            else
                machine.FreePage(pfn);
        }

        RequestExplanation it = machine.ExplainRequest(Gfp.Kernel | Gfp.NoWarn, order);
        Assert.False(it.WouldSucceed);
        Assert.Equal(it.Pinned.OrderBy(block => block.Objects).ThenBy(block => block.FramesInUse), it.Pinned);
        PinnedBlock best = it.Pinned[0];
        Assert.Equal(FewestKept(kept, order, machine), best.Objects);
        Assert.Equal(best.Objects, best.Pins.Count);
        foreach (Pin pin in best.Pins)
            machine.FreePage(machine.Explain(pin.Address).Page!.Frame);
        Assert.True(machine.AllocPages(Gfp.Kernel | Gfp.NoWarn, order).IsValid);
    }

    [Fact]
    public unsafe void SlabObjectsAreCountedOneByOne()
    {
        using Machine machine = Machine.Boot(Small(16));
        var objects = new List<nint>();
        const Gfp Quiet = Gfp.Kernel | Gfp.NoWarn;
        for (void* obj = machine.Kmalloc(1024, Quiet); obj != null; obj = machine.Kmalloc(1024, Quiet))
            objects.Add((nint)obj);
        for (int i = 0; i < objects.Count; i++)
        {
            if (i % 1000 is not (7 or 8))
                machine.Kfree((void*)objects[i]);
        }

        RequestExplanation it = machine.ExplainRequest(Gfp.Kernel | Gfp.NoWarn, 10);
        Assert.False(it.WouldSucceed);
        Assert.Contains(it.Pinned[0].Pins, pin => pin is { Kind: PinKind.SlabObject, What: "kmalloc-1k", Bytes: 1024 });
        Assert.Equal(
            it.Pinned[0].Pins.Count(pin => pin.Kind == PinKind.SlabObject),
            it.Pinned[0].Pins.Count(pin => objects.Contains((nint)machine.PointerOf(pin.Address))));
    }

    /// <summary>A cache that remembers its users tells them.</summary>
    [Fact]
    public unsafe void TheUsersOfADebuggedObjectAreNamed()
    {
        using Machine machine = Machine.Boot(Small() with { SlubDebug = "U,kmalloc-128" });
        void* obj = machine.Kmalloc(100, Gfp.Kernel);
        Assert.Contains(nameof(TheUsersOfADebuggedObjectAreNamed), machine.Explain(obj).Object!.AllocatedBy!,
            StringComparison.Ordinal);
        Assert.Null(machine.Explain(obj).Object!.FreedBy);
        machine.Kfree(obj);
        Assert.Contains(nameof(TheUsersOfADebuggedObjectAreNamed), machine.Explain(obj).Object!.FreedBy!,
            StringComparison.Ordinal);
    }

    /// <summary>No address of any kind is too odd.</summary>
    [Fact]
    public void EveryAddressHasAnAnswer()
    {
        using Machine machine = Machine.Boot(Small(remember: 100));
        Churn(machine, new Random(9), 500);
        var random = new Random(10);
        ulong[] bases = [0xffff_8880_0000_0000, 0xffff_c900_0000_0000, 0xffff_ea00_0000_0000, 0xffff_ffff_a000_0000,
            0, 1UL << 63];
        for (int i = 0; i < 5000; i++)
        {
            ulong address = bases[random.Next(bases.Length)] + (ulong)random.NextInt64(1L << random.Next(1, 48));
            Explanation it = machine.Explain(new VirtAddr(address));
            Assert.StartsWith($"0x{it.Address} is ", it.Sentence, StringComparison.Ordinal);
            Assert.Equal(it.Zone == null, it.Page == null);
        }
    }

    /// <summary>Others allocate and free meanwhile; whoever asks gets some answer, and the machine stays
    /// whole.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task AMachineAtWorkCanBeAsked(bool native)
    {
        KernelProfile profile = native ? KernelProfile.Native : KernelProfile.Linux618;
        using Machine machine = Machine.Boot(Small() with { Profile = profile });
        bool vmalloc = HostMemory.IsLinux && Environment.SystemPageSize == 4096;
        using var stop = new CancellationTokenSource(TimeSpan.FromSeconds(1.5));
        Task[] workers = [.. Enumerable.Range(0, 2).Select(seed =>
            Task.Run(() => Work(machine, seed, vmalloc, stop.Token)))];
        var random = new Random(3);
        long asked = 0;
        while (!stop.IsCancellationRequested || asked < 100)
        {
            ulong address = vmalloc && random.Next(4) == 0
                ? 0xffff_c900_0000_0000 + ((ulong)random.Next(400) << 12)
                : 0xffff_8880_0000_0000 + (ulong)random.Next(64 << 20);
            Assert.NotEmpty(machine.Explain(new VirtAddr(address)).Sentence);
            asked++;
        }

        await Task.WhenAll(workers);
        Assert.Empty(machine.Validate());
    }

    private static unsafe void Work(Machine machine, int seed, bool vmalloc, CancellationToken stop)
    {
        var random = new Random(seed);
        var live = new List<nint>();
        while (!stop.IsCancellationRequested)
        {
            if (live.Count > 200)
            {
                foreach (nint block in live)
                    machine.Kvfree((void*)block);
                live.Clear();
            }

            bool area = vmalloc && random.Next(20) == 0;
            live.Add((nint)(area ? machine.Vmalloc((nuint)random.Next(1, 40_000))
                : machine.Kmalloc((nuint)random.Next(8, 10_000), Gfp.Kernel)));
        }

        foreach (nint block in live)
            machine.Kvfree((void*)block);
    }

    [Fact]
    public unsafe void TheValuesAreJson()
    {
        using Machine machine = Machine.Boot(Small(remember: 100));
        void* obj = machine.Kmalloc(100, Gfp.Kernel);
        using JsonDocument json = JsonDocument.Parse(machine.Explain(obj).ToJson());
        JsonElement root = json.RootElement;
        Assert.Equal($"0x{machine.KernelAddressOf(obj)}", root.GetProperty("address").GetString());
        Assert.Equal("slabObject", root.GetProperty("kind").GetString());
        Assert.Equal("kmalloc-128", root.GetProperty("slab").GetProperty("cache").GetString());
        Assert.Equal("newSlab", root.GetProperty("life")[1].GetProperty("source").GetString());
        Assert.Equal("served", root.GetProperty("decision").GetProperty("zones")[0].GetProperty("result").GetString());
        using JsonDocument request = JsonDocument.Parse(machine.ExplainRequest(Gfp.Kernel, 9).ToJson());
        Assert.Equal("GFP_KERNEL", request.RootElement.GetProperty("gfp").GetString());
    }

    [Fact]
    public void ARequestThatMakesNoSenseIsRefused()
    {
        using Machine machine = Machine.Boot(Small());
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.ExplainRequest(Gfp.Kernel, 11));
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.ExplainRequest(Gfp.Kernel, -1));
        Assert.Throws<ArgumentException>(() => machine.ExplainRequest(Gfp.Kernel | Gfp.Dma | Gfp.Dma32, 0));
        Assert.Throws<ArgumentException>(() => Machine.Boot(Small(remember: -1)));
    }

    /// <summary>Memory of events changes nothing: the same requests get the same answers.</summary>
    [Fact]
    public void RememberingChangesNoAnswer()
    {
        using Machine plain = Machine.Boot(Small());
        using Machine remembering = Machine.Boot(Small(remember: 1000));
        Assert.Equal(Churn(plain, new Random(5), 2000), Churn(remembering, new Random(5), 2000));
        Assert.Equal(plain.Proc.BuddyInfo(), remembering.Proc.BuddyInfo());
    }

    /// <summary>Random requests and frees; a part of what was allocated stays. Tells the addresses.</summary>
    private static unsafe List<ulong> Churn(Machine machine, Random random, int steps)
    {
        var live = new List<(nint Address, int Order)>();
        var addresses = new List<ulong>();
        for (int i = 0; i < steps; i++)
        {
            using CpuBinding cpu = machine.RunOn(random.Next(machine.Cpus));
            if (live.Count > 0 && random.Next(100) < 45)
            {
                int at = random.Next(live.Count);
                (nint address, int order) = live[at];
                live.RemoveAt(at);
                if (order < 0)
                    machine.Kfree((void*)address);
                else
                    machine.FreePages(machine.PfnOf((void*)address), order);
                continue;
            }

            int kind = random.Next(3);
            Gfp gfp = (kind == 0 ? Gfp.HighUserMovable & ~Gfp.HighMem : Gfp.Kernel) | Gfp.NoWarn;
            int wanted = random.Next(4);
            Pfn pfn = kind == 2 ? Pfn.None : machine.AllocPages(gfp, wanted);
            void* block = kind == 2 ? machine.Kmalloc((nuint)random.Next(1, 12000), gfp)
                : pfn.IsValid ? machine.AddressOf(pfn) : null;
            addresses.Add(block == null ? 0 : machine.KernelAddressOf(block).Value);
            if (block != null)
                live.Add(((nint)block, kind == 2 ? -1 : wanted));
        }

        return addresses;
    }

    private static unsafe long FewestKept(HashSet<ulong> kept, int order, Machine machine)
    {
        long fewest = long.MaxValue;
        ulong size = 1UL << order;
        for (ulong first = 0; first + size <= machine.Map.EndPfn; first += size)
        {
            bool usable = true;
            long count = 0;
            for (ulong pfn = first; pfn < first + size && usable; pfn++)
            {
                AddressKind kind = machine.Explain(machine.Map.AddressOf(machine.Map.PageOf(pfn))).Kind;
                usable = kind is AddressKind.FreeBlock or AddressKind.PcpList || kept.Contains(pfn);
                count += kept.Contains(pfn) ? 1 : 0;
            }

            if (usable)
                fewest = Math.Min(fewest, count);
        }

        return fewest;
    }
}

internal static class ExplainedMachine
{
    public static unsafe VirtAddr KernelOf(this Machine machine, Pfn pfn) =>
        machine.KernelAddressOf(machine.AddressOf(pfn));

    public static unsafe void* PointerOf(this Machine machine, VirtAddr address) =>
        machine.Slabs.PointerOf(address.Value);
}
