namespace Kmem.Tests;

/// <summary>
/// The rules of slub.md one by one, with expectations worked out by hand. On one CPU 1024-byte objects come 8 to a slab
/// of two pages; min_partial is 5, and a CPU chains at most 6 slabs (24 objects, half a slab each).
/// </summary>
public sealed class SlubBehaviourTests : IDisposable
{
    private readonly Machine _machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 128 << 20, Cpus = 1 });

    public void Dispose() => _machine.Dispose();

    [Fact]
    public void The_object_freed_last_is_allocated_next()
    {
        KmemCache cache = Create();
        nint[] a = Alloc(cache, 4);
        Assert.Equal([a[0], a[0] + 1024, a[0] + 2048, a[0] + 3072], a);
        Free(cache, a[1], a[3], a[0]);
        Assert.Equal([a[0], a[3], a[1], a[0] + 4096], Alloc(cache, 4));
    }

    [Fact]
    public void Objects_freed_elsewhere_come_back_in_one_step_latest_first()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 128 << 20, Cpus = 2 });
        KmemCache cache = machine.CreateCache("t", 1024, 0, SlabFlags.NoMerge); // 2 CPUs: 16 to a slab
        using (machine.RunOn(0))
        {
            nint[] a = Alloc(cache, 10);
            using (machine.RunOn(1))
                Free(cache, a[4], a[7], a[2]);
            nint[] rest = Alloc(cache, 6);
            Assert.Equal([a[0] + 10240, a[0] + 11264], rest[..2]);
            Assert.Equal([a[2], a[7], a[4]], Alloc(cache, 3));
            Assert.Equal(1, cache.SlabCount);
        }
    }

    [Fact]
    public void A_current_slab_goes_to_the_head_unless_others_freed_into_it()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 128 << 20, Cpus = 2 });
        KmemCache cache = machine.CreateCache("t", 1024, 0, SlabFlags.NoMerge);
        using CpuBinding cpu = machine.RunOn(0);
        nint s1 = SlabOf(machine, Alloc(cache, 1)[0]);
        cache.FlushAll();
        Assert.Equal([s1], SlabView.Partial(cache, 0));

        nint[] second = Fill(machine, cache, s1); // takes s1, then a new one
        nint s2 = SlabOf(machine, second[^1]);
        cache.FlushAll();
        Assert.Equal([s2], SlabView.Partial(cache, 0)); // s1 is full: on no list

        nint[] third = Fill(machine, cache, s2);
        nint s3 = SlabOf(machine, third[^1]);
        using (machine.RunOn(1))
            Free(cache, third[0]);                 // s2 was full: to CPU 1's chain
        Assert.Equal([s2], SlabView.Chain(cache, 1));
        nint inThird = Alloc(cache, 1)[0];
        using (machine.RunOn(1))
            Free(cache, inThird);                  // into the current slab of CPU 0
        cache.FlushAll();                          // CPU 0 first: s3 to the tail of nothing, then s2 behind it
        Assert.Equal([s3, s2], SlabView.Partial(cache, 0));

        // Nobody frees into s3 this time, so it goes in front of s2.
        Assert.Equal(s3, SlabOf(machine, Alloc(cache, 1)[0]));
        Assert.Equal([s2], SlabView.Chain(cache, 0));
        cache.FlushAll();
        Assert.Equal([s3, s2], SlabView.Partial(cache, 0));
    }

    [Fact]
    public void Full_slabs_are_chained_on_their_first_free_and_the_seventh_drains_six()
    {
        KmemCache cache = Create();
        Assert.Equal((8, 5, 6), (cache.Geometry.ObjectsPerSlab, cache.MinPartial, cache.CpuPartialSlabs));
        nint[] objects = Alloc(cache, 65);
        nint[] slabs = Enumerable.Range(0, 8).Select(i => SlabOf(_machine, objects[i * 8])).ToArray();
        for (int i = 0; i < 6; i++)
            Free(cache, objects[i * 8]);
        Assert.Equal(slabs[..6].Reverse(), SlabView.Chain(cache, 0));
        Assert.Empty(SlabView.Partial(cache, 0));

        Free(cache, objects[6 * 8]);
        Assert.Equal([slabs[6]], SlabView.Chain(cache, 0));
        Assert.Equal(slabs[..6].Reverse(), SlabView.Partial(cache, 0)); // newest first, each to the tail
    }

    [Fact]
    public void Draining_keeps_five_slabs_on_the_node_and_frees_the_other_empty_ones()
    {
        KmemCache cache = Create();
        nint[] objects = Alloc(cache, 65);
        for (int i = 0; i < 6; i++)
            Free(cache, objects[(i * 8)..((i + 1) * 8)]); // six empty slabs, all chained
        Assert.Equal(9, cache.SlabCount);
        nint oldest = SlabOf(_machine, objects[0]);
        Assert.Contains(oldest, SlabView.Chain(cache, 0));

        Free(cache, objects[48]); // the seventh: five empty ones fill the node, the one met last goes
        Assert.Equal(8, cache.SlabCount);
        Assert.Equal(5, SlabView.Partial(cache, 0).Count);
        Assert.DoesNotContain(oldest, SlabView.Partial(cache, 0));
    }

    [Fact]
    public void A_slab_on_the_node_list_goes_when_its_last_object_is_freed_and_five_others_are_there()
    {
        KmemCache cache = Create();
        nint[] objects = Alloc(cache, 57);
        for (int i = 0; i < 7; i++)
            Free(cache, objects[i * 8]);
        cache.FlushAll(); // chain and current slab to the node: 8 partial slabs
        Assert.Equal(8, SlabView.Partial(cache, 0).Count);
        nint fourth = SlabOf(_machine, objects[24]);
        Free(cache, objects[25..31]);
        Assert.Contains(fourth, SlabView.Partial(cache, 0));
        Free(cache, objects[31]);
        Assert.DoesNotContain(fourth, SlabView.Partial(cache, 0));
        Assert.Equal(7, cache.SlabCount);
        Free(cache, objects[1..8]);
        Free(cache, objects[9..16]);
        Assert.Equal(5, cache.SlabCount);
        Free(cache, objects[17..24]);
        Assert.Equal(4, cache.SlabCount); // five were there, itself included
        Free(cache, objects[33..40]);
        Assert.Equal(4, cache.SlabCount); // only four now: it stays
        Assert.Equal(4, SlabView.Partial(cache, 0).Count);
    }

    [Theory]
    [InlineData(1024, 6, 4)]
    [InlineData(4096, 2, 2)]
    [InlineData(512, 13, 7)]
    public void A_refill_from_the_node_takes_one_slab_and_chains_half_the_limit_and_one(int size, int limit, int extra)
    {
        KmemCache cache = _machine.CreateCache("t", size, 0, SlabFlags.NoMerge);
        Assert.Equal(limit, cache.CpuPartialSlabs);
        int perSlab = cache.Geometry.ObjectsPerSlab;
        nint[] objects = Alloc(cache, perSlab * 12);
        for (int i = 0; i < 12; i++)
            Free(cache, objects[i * perSlab]);
        cache.FlushAll();
        List<nint> before = SlabView.Partial(cache, 0);
        Assert.Equal(12, before.Count);

        nint first = SlabOf(_machine, Alloc(cache, 1)[0]);
        Assert.Equal(before[0], first);
        List<nint> chained = before.GetRange(1, extra);
        chained.Reverse();
        Assert.Equal(chained, SlabView.Chain(cache, 0));
        Assert.Equal(before.Skip(1 + extra), SlabView.Partial(cache, 0));
        Assert.Equal(before[extra], SlabOf(_machine, Alloc(cache, 1)[0])); // the one moved last is used first
    }

    [Fact]
    public void With_a_limit_of_zero_a_refill_takes_one_slab_and_a_free_still_chains_one()
    {
        KmemCache cache = Create();
        nint[] objects = Alloc(cache, 33);
        cache.SetCpuPartial(0);
        Assert.Equal(0, cache.CpuPartialSlabs);
        Free(cache, objects[0]);
        nint first = SlabOf(_machine, objects[0]);
        Assert.Equal([first], SlabView.Chain(cache, 0));
        Free(cache, objects[8]);
        Assert.Equal([SlabOf(_machine, objects[8])], SlabView.Chain(cache, 0));
        Assert.Contains(first, SlabView.Partial(cache, 0));
        Alloc(cache, 1 + 8); // the chain's, then one from the node
        Assert.Empty(SlabView.Chain(cache, 0));
    }

    [Fact]
    public void Slabs_of_one_object_go_to_the_chain_too()
    {
        KmemCache cache = _machine.CreateCache("t", 20000, 0, SlabFlags.NoMerge);
        Assert.Equal((1, 12), (cache.Geometry.ObjectsPerSlab, cache.CpuPartialSlabs));
        nint[] objects = Alloc(cache, 14);
        Free(cache, objects[..12]);
        Assert.Equal(12, SlabView.Chain(cache, 0).Count);
        Assert.Equal(14, cache.SlabCount);

        // min_partial is 7 (log2 of 20000 is 14): the drain keeps seven of the twelve.
        Free(cache, objects[12]);
        Assert.Single(SlabView.Chain(cache, 0));
        Assert.Equal(7, SlabView.Partial(cache, 0).Count);
        Assert.Equal(14 - 5, cache.SlabCount);
    }

    [Fact]
    public void A_shrink_sorts_by_free_objects_and_frees_the_empty_ones_last_met_first()
    {
        KmemCache cache = Create();
        nint[] objects = Alloc(cache, 57);
        int[] free = [3, 8, 1, 3, 8, 1, 2];
        for (int i = 0; i < free.Length; i++)
            Free(cache, objects[(i * 8)..((i * 8) + free[i])]);
        var slab = objects.Chunk(8).Select(chunk => SlabOf(_machine, chunk[0])).ToArray();
        cache.FlushAll();

        // The current slab (7 free) came first, then the chain, newest first; the seventh slab chained had drained six.
        Assert.Equal(
            [slab[7], slab[5], slab[4], slab[3], slab[2], slab[1], slab[0], slab[6]], SlabView.Partial(cache, 0));
        var trace = new TraceRecorder();
        _machine.Trace = trace;
        Assert.True(cache.Shrink());
        _machine.Trace = null;
        Assert.Equal(
            [slab[2], slab[5], slab[6], slab[0], slab[3], slab[7]], SlabView.Partial(cache, 0));
        Assert.Equal([slab[1], slab[4]], trace.PageFrees.Select(entry => PageOf(entry.Pfn)));
        foreach (int i in (int[])[0, 2, 3, 5, 6])
            Free(cache, objects[((i * 8) + free[i])..((i + 1) * 8)]);
        Free(cache, objects[56]);
        Assert.False(cache.Shrink());
        Assert.Equal(0, cache.SlabCount);
    }

    [Fact]
    public unsafe void A_named_node_is_first_asked_for_strictly_and_without_effort()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 256 << 20, Cpus = 2, Nodes = 2 });
        KmemCache cache = machine.CreateCache("t", 1024, 0, SlabFlags.NoMerge);
        var trace = new TraceRecorder();
        using CpuBinding cpu = machine.RunOn(0);
        machine.Trace = trace;
        void* remote = cache.Alloc(Gfp.Kernel, 1);
        machine.Trace = null;
        Assert.Equal(1, NodeOf(machine, remote));
        (Pfn _, int order, Gfp gfp) = Assert.Single(trace.PageAllocs);
        Assert.Equal(2, order);
        Assert.Equal(Gfp.NoWait | Gfp.ThisNode | Gfp.NoRetry | Gfp.Comp, gfp);

        void* local = cache.Alloc(Gfp.Kernel);     // the current slab serves, wherever it is
        Assert.Equal(1, NodeOf(machine, local));
        void* home = cache.Alloc(Gfp.Kernel | Gfp.ThisNode, 0);
        Assert.Equal(0, NodeOf(machine, home));    // the mismatching current slab went to its node's list
        Assert.Single(SlabView.Partial(cache, 1));
        void* again = cache.Alloc(Gfp.Kernel, 1);
        Assert.Equal((nint)SlabView.SlabOf(machine, remote), SlabView.SlabOf(machine, again));
        Assert.Single(SlabView.Partial(cache, 0));
        Assert.Throws<ArgumentOutOfRangeException>(() => { cache.Alloc(Gfp.Kernel, 2); });
        cache.FreeBulk([(nint)remote, (nint)local, (nint)home, (nint)again]);
        cache.Destroy();
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void A_named_node_without_memory_is_given_up_unless_only_it_will_do()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 2, Nodes = 2 });
        KmemCache cache = machine.CreateCache("t", 4096, 0, SlabFlags.NoMerge);
        var hoard = new List<nint>();
        for (void* p; (p = machine.KmallocNode(65536, Gfp.Kernel | Gfp.ThisNode | Gfp.NoWarn, 1)) != null;)
            hoard.Add((nint)p);
        for (void* p; (p = machine.KmallocNode(8192 + 1, Gfp.Kernel | Gfp.ThisNode | Gfp.NoWarn, 1)) != null;)
            hoard.Add((nint)p);
        for (Pfn p; (p = machine.AllocPages(Gfp.Kernel | Gfp.ThisNode | Gfp.NoWarn, 0, 1)).IsValid;)
            hoard.Add(-(nint)p.Value);
        Assert.True(cache.Alloc(Gfp.Kernel | Gfp.ThisNode | Gfp.NoWarn, 1) == null);
        void* elsewhere = cache.Alloc(Gfp.Kernel | Gfp.NoWarn, 1);
        Assert.Equal(0, NodeOf(machine, elsewhere));
        foreach (nint block in hoard)
        {
            if (block > 0)
                machine.Kfree((void*)block);
            else
                machine.FreePage(new Pfn((ulong)-block));
        }

        cache.Free(elsewhere);
        cache.Destroy();
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void A_new_slab_is_asked_for_quietly_at_its_order_then_at_the_smallest_with_the_callers_flags()
    {
        KmemCache cache = Create("t", 1024, SlabFlags.ReclaimAccount);
        var trace = new TraceRecorder();
        _machine.Trace = trace;
        void* easy = cache.Alloc(Gfp.Kernel | Gfp.NoFail);
        _machine.Trace = null;
        (Pfn _, int order, Gfp gfp) = Assert.Single(trace.PageAllocs);
        Assert.Equal(1, order);
        Gfp quiet = Gfp.IO | Gfp.FS | Gfp.NoWarn | Gfp.NoRetry | Gfp.NoMemAlloc | Gfp.Comp | Gfp.Reclaimable;
        Assert.Equal(quiet, gfp);
        cache.Free(easy);
        cache.Shrink();

        List<Pfn> hoard = FragmentEverything();
        trace.PageAllocs.Clear();
        _machine.Trace = trace;
        nint[] objects = Alloc(cache, 4);
        _machine.Trace = null;
        Assert.Equal([1, 0], trace.PageAllocs.Select(entry => entry.Order));
        Assert.Equal([quiet, Gfp.Kernel | Gfp.Comp | Gfp.Reclaimable], trace.PageAllocs.Select(entry => entry.Gfp));
        Assert.False(trace.PageAllocs[0].Pfn.IsValid);
        nint slab = SlabOf(_machine, objects[0]);
        Assert.Equal((4, 4L), (SlabView.State(slab).Objects, cache.TotalObjects));
        Assert.Equal(objects[0] & ~4095, objects[3] & ~4095);
        Free(cache, objects);
        foreach (Pfn page in hoard)
            _machine.FreePage(page);
        Assert.Empty(_machine.Validate());
        cache.Destroy();
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void Without_reclaim_the_first_attempt_keeps_its_flags()
    {
        KmemCache cache = Create();
        var trace = new TraceRecorder();
        _machine.Trace = trace;
        cache.Alloc(Gfp.Atomic);
        _machine.Trace = null;
        Assert.Equal(Gfp.Atomic | Gfp.NoWarn | Gfp.NoRetry | Gfp.Comp, Assert.Single(trace.PageAllocs).Gfp);
    }

    [Fact]
    public unsafe void Leftovers_are_listed_and_the_cache_stays_usable()
    {
        KmemCache cache = Create("keeps");
        nint[] objects = Alloc(cache, 20);
        Free(cache, objects[..18]);
        var error = Assert.Throws<KernelBugException>(cache.Destroy);
        Assert.Contains("BUG keeps (Not tainted): Objects remaining on __kmem_cache_shutdown()", error.Message);
        foreach (nint left in objects[18..])
            Assert.Contains($"Object 0x{_machine.KernelAddressOf((void*)left).Value:x16}", error.Message);
        Assert.DoesNotContain($"0x{_machine.KernelAddressOf((void*)objects[0]).Value:x16}", error.Message);
        Assert.Contains("Slab cache still has objects", _machine.Dmesg.ToString());
        Assert.Contains(cache, _machine.Caches);
        Assert.Empty(_machine.Validate());

        nint[] more = Alloc(cache, 30);
        Free(cache, more);
        Free(cache, objects[18..]);
        cache.Destroy();
        Assert.DoesNotContain(cache, _machine.Caches);
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public void Pages_of_an_rcu_cache_stay_slabs_until_the_readers_are_gone()
    {
        KmemCache cache = Create("rcu", 1024, SlabFlags.TypesafeByRcu);
        nint[] objects = Alloc(cache, 8);
        nint slab = SlabOf(_machine, objects[0]);
        var trace = new TraceRecorder();
        using (_machine.RcuRead())
        {
            Free(cache, objects);
            _machine.Trace = trace;
            Assert.False(cache.Shrink());          // counted as given back at once
            Assert.Equal(0, cache.SlabCount);
            Assert.Empty(trace.PageFrees);         // but the pages are still there, of the same type
            Assert.Equal(slab, SlabOf(_machine, objects[0]));
            Assert.Equal(0, SlabView.State(slab).InUse);
            Assert.Empty(_machine.Validate());
        }

        _machine.Trace = null;
        Assert.Equal(slab, PageOf(Assert.Single(trace.PageFrees).Pfn));
        Assert.Equal(0, SlabOf(_machine, objects[0]));
        cache.Destroy();
    }

    [Fact]
    public unsafe void User_copies_stay_in_the_window()
    {
        KmemCache cache = _machine.CreateCache("copy", 200, userOffset: 40, userSize: 100);
        var obj = (byte*)cache.Alloc(Gfp.Kernel);
        obj = (byte*)cache.Alloc(Gfp.Kernel);
        _machine.CheckUserCopy(obj + 40, 100);
        _machine.CheckUserCopy(obj + 139, 1);
        _machine.CheckUserCopy(obj + 140, 0);
        ReadOnlySpan<(int, int)> outside = [(39, 1), (40, 101), (139, 2), (140, 1), (0, 200), (199, 1)];
        foreach ((int offset, int count) in outside)
        {
            byte* from = obj + offset;
            Assert.Throws<KernelBugException>(() => _machine.CheckUserCopy(from, (nuint)count));
        }

        Assert.Throws<KernelBugException>(() => _machine.CheckUserCopy(obj + 40, nuint.MaxValue));
        var kernelOnly = (byte*)_machine.CreateCache("none", 200, 0, SlabFlags.NoMerge).Alloc(Gfp.Kernel);
        Assert.Throws<KernelBugException>(() => _machine.CheckUserCopy(kernelOnly, 1));
        var anything = (byte*)_machine.Kmalloc(100, Gfp.Kernel); // kmalloc objects are open, slack included
        _machine.CheckUserCopy(anything, 128);
        Assert.Throws<KernelBugException>(() => _machine.CheckUserCopy(anything, 129));
        var large = (byte*)_machine.Kmalloc(20000, Gfp.Kernel);
        _machine.CheckUserCopy(large + 8000, 32768 - 8000);
        Assert.Throws<KernelBugException>(() => _machine.CheckUserCopy(large + 8000, 32768 - 7999));
        Assert.Throws<KernelBugException>(() => _machine.CheckUserCopy((void*)4096, 1));
    }

    private KmemCache Create(string name = "t", int size = 1024, SlabFlags flags = SlabFlags.None) =>
        _machine.CreateCache(name, size, 0, flags | SlabFlags.NoMerge);

    private static unsafe nint[] Alloc(KmemCache cache, int count)
    {
        var objects = new nint[count];
        for (int i = 0; i < count; i++)
        {
            objects[i] = (nint)cache.Alloc(Gfp.Kernel);
            Assert.NotEqual(0, objects[i]);
        }

        return objects;
    }

    private static unsafe void Free(KmemCache cache, params ReadOnlySpan<nint> objects)
    {
        foreach (nint obj in objects)
            cache.Free((void*)obj);
    }

    /// <summary>Allocates until a slab other than the given one is current.</summary>
    private static nint[] Fill(Machine machine, KmemCache cache, nint slab)
    {
        var objects = new List<nint>();
        do
        {
            objects.AddRange(Alloc(cache, 1));
        }
        while (SlabOf(machine, objects[^1]) == slab);
        return objects.ToArray();
    }

    /// <summary>Takes every page and gives every other one back: plenty of memory, and no two pages in a row.</summary>
    private List<Pfn> FragmentEverything()
    {
        var all = new List<Pfn>();
        for (Pfn page; (page = _machine.AllocPages(Gfp.Kernel | Gfp.MemAlloc | Gfp.NoWarn, 0)).IsValid;)
            all.Add(page);
        var kept = new List<Pfn>();
        foreach (Pfn page in all)
        {
            if (page.Value % 2 == 0)
                kept.Add(page);
            else
                _machine.FreePage(page);
        }

        _machine.DrainAllPages();
        return kept;
    }

    private static unsafe nint SlabOf(Machine machine, nint obj) => SlabView.SlabOf(machine, (void*)obj);

    private unsafe nint PageOf(Pfn pfn) => (nint)_machine.Map.PageOf(pfn.Value);

    private static unsafe int NodeOf(Machine machine, void* obj) => machine.Slabs.NodeOf(machine.Map.PageAt(obj));
}
