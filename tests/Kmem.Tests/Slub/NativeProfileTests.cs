namespace Kmem.Tests;

/// <summary>
/// The profile that programs use: sheaves for every cache, and fast paths that are inlined into the caller. What they
/// may not forget is tested here; that they give out right memory, by the stress and model tests.
/// </summary>
public sealed class NativeProfileTests : IDisposable
{
    private readonly Machine _machine = Machine.Boot(new MachineOptions
    {
        RamBytes = 128 << 20,
        Profile = KernelProfile.Native,
        DecaySeconds = 0,
    });

    public void Dispose() => _machine.Dispose();

    [Fact]
    public void Programs_get_it_without_asking()
    {
        Assert.Same(KernelProfile.Native, new MachineOptions().Profile);
        Assert.Equal(Math.Max(16, 4 * Environment.ProcessorCount), new MachineOptions().Cpus);
        Assert.Equal(Environment.ProcessorCount, new MachineOptions { Profile = KernelProfile.Linux618 }.Cpus);
        Assert.Equal(3, new MachineOptions { Cpus = 3 }.Cpus);
    }

    [Theory]
    [InlineData(64, 124)]
    [InlineData(256, 60)]
    [InlineData(1024, 28)]
    [InlineData(8192, 12)]
    public void Every_cache_has_sheaves_of_a_kibibyte_or_less(int size, int capacity)
    {
        Assert.Equal(capacity, _machine.CreateCache("own", size).SheafCapacity);
        string name = size < 1024 ? $"kmalloc-{size}" : $"kmalloc-{size / 1024}k";
        Assert.Equal(capacity, _machine.Caches.Single(cache => cache.Name == name).SheafCapacity);
        Assert.Equal(0, _machine.Caches.Single(cache => cache.Name == "kmem_cache").SheafCapacity);
    }

    [Theory]
    [InlineData(8193, 10240, 9)]
    [InlineData(12288, 12288, 8)]
    [InlineData(16000, 16384, 6)]
    [InlineData(20481, 24576, 4)]
    [InlineData(32768, 32768, 4)]
    public unsafe void Sizes_up_to_32_kibibytes_have_caches(int size, int slot, int capacity)
    {
        KmemCache cache = _machine.Caches.Single(it => it.Name == $"kmalloc-{slot}");
        Assert.Equal((slot, capacity), (cache.ObjectSize, cache.SheafCapacity));
        Assert.InRange(cache.Geometry.WastePerSlab, 0, (Pfn.PageSize << cache.Geometry.Order) / 8);
        var p = (byte*)_machine.Kmalloc((nuint)size, Gfp.Kernel);
        Assert.Equal((nuint)slot, _machine.Ksize(p));
        Assert.Equal(1, cache.LiveCount);
        Assert.Equal(0u, (ulong)p % (ulong)(slot & -slot));
        Assert.Equal($"kmalloc-{slot}", _machine.Explain(p).Slab!.Cache);
        new Span<byte>(p, slot).Fill(0xaa);
        foreach (int inside in (int[])[1, 8, 64, 128, 4096, slot / 2, slot - 8])
            Assert.Throws<KernelBugException>(() => _machine.Kfree(p + inside));
        _machine.Kfree(p);
        Assert.Throws<KernelBugException>(() => _machine.Kfree(p));

        var again = (byte*)_machine.Kzalloc((nuint)size, Gfp.Kernel);
        Assert.Equal((nint)p, (nint)again);
        Assert.Equal(-1, new Span<byte>(again, slot).IndexOfAnyExcept((byte)0));
        _machine.Kfree(again);
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void Larger_and_special_requests_get_whole_pages_as_in_the_kernel()
    {
        foreach ((nuint size, Gfp gfp) in ((nuint, Gfp)[])
            [(32769, Gfp.Kernel), (10_000, Gfp.Kernel | Gfp.Reclaimable), (10_000, Gfp.Kernel | Gfp.Dma)])
        {
            void* p = _machine.Kmalloc(size, gfp);
            Assert.Equal(AddressKind.LargeKmalloc, _machine.Explain(p).Kind);
            _machine.Kfree(p);
        }

        using var kernel = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });
        Assert.Equal(AddressKind.LargeKmalloc, kernel.Explain(kernel.Kmalloc(8193, Gfp.Kernel)).Kind);
        Assert.DoesNotContain(
            kernel.Caches, cache => cache.Name.StartsWith("kmalloc", StringComparison.Ordinal) && cache.ObjectSize > 8192);
    }

    [Theory]
    [InlineData(8)]
    [InlineData(16)]
    [InlineData(32)]
    public unsafe void Small_objects_that_follow_each_other_are_in_different_cache_lines(int size)
    {
        KmemCache cache = _machine.CreateCache("small", size);
        var objects = new nint[cache.SheafCapacity];
        for (int i = 0; i < objects.Length; i++)
            objects[i] = (nint)cache.Alloc(Gfp.Kernel);
        Assert.DoesNotContain(objects.Zip(objects.Skip(1)), pair => pair.First / 64 == pair.Second / 64);

        // As many lines as there must be, and no more: who uses a sheaf of them loses nothing.
        Assert.InRange(objects.Select(obj => obj / 64).Distinct().Count(), 1, (objects.Length * size / 64) + 1);
        Assert.Equal(objects.Length, objects.Distinct().Count());
        foreach (nint obj in objects)
            cache.Free((void*)obj);
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void What_was_freed_last_comes_first_and_zero_means_zero()
    {
        void* p = _machine.Kmalloc(100, Gfp.Kernel);
        new Span<byte>(p, 100).Fill(0xaa);
        _machine.Kfree(p);
        var again = (byte*)_machine.Kzalloc(100, Gfp.Kernel);
        Assert.Equal((nint)p, (nint)again);
        Assert.Equal(-1, new Span<byte>(again, 128).IndexOfAnyExcept((byte)0));
        KmemCache cache = _machine.CreateCache("own", 200);
        void* obj = cache.Alloc(Gfp.Kernel);
        new Span<byte>(obj, 200).Fill(0xaa);
        cache.Free(obj);
        Assert.Equal(-1, new Span<byte>(cache.Alloc(Gfp.Kernel | Gfp.Zero), 200).IndexOfAnyExcept((byte)0));
    }

    [Fact]
    public unsafe void The_fast_paths_know_the_context()
    {
        _machine.Kfree(_machine.Kmalloc(64, Gfp.Kernel));
        using (_machine.Atomic())
        {
            Assert.Throws<KernelBugException>(() => { _machine.Kmalloc(64, Gfp.Kernel); });
            void* p = _machine.Kmalloc(64, Gfp.Atomic);
            Assert.True(p != null);
            _machine.Kfree(p);
            using (_machine.IrqsDisabled())
                Assert.Throws<KernelBugException>(() => { _machine.Kmalloc(64, Gfp.Kernel); });
            Assert.Throws<KernelBugException>(() => { _machine.Kmalloc(64, Gfp.Kernel); });
        }

        _machine.Kfree(_machine.Kmalloc(64, Gfp.Kernel));
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void Two_machines_on_one_thread_keep_their_memory_apart()
    {
        using var other = Machine.Boot(new MachineOptions { RamBytes = 64 << 20, Cpus = 2 });
        for (int i = 0; i < 200; i++)
        {
            void* mine = _machine.Kmalloc(48, Gfp.Kernel);
            void* its = other.Kmalloc(48, Gfp.Kernel);
            Assert.Throws<KernelBugException>(() => _machine.Kfree(its));
            Assert.Throws<KernelBugException>(() => other.Kfree(mine));
            _machine.Kfree(mine);
            other.Kfree(its);
        }

        Assert.Empty(_machine.Validate());
        Assert.Empty(other.Validate());
    }

    [Fact]
    public unsafe void An_object_freed_by_another_thread_and_allocated_again_there_is_not_taken_for_the_last_one()
    {
        // This thread allocates p last; then the place changes hands, and cache, before this thread frees it. Both
        // caches share the map of live objects, and this CPU's sheaf of the former one has room: only the frame tells.
        KmemCache former = _machine.CreateCache("former", 128);
        var p = (nint)former.Alloc(Gfp.Kernel);
        nint other = p;
        for (int i = 0; (p & ~4095) == (other & ~4095); i++)
            p = (nint)former.Alloc(Gfp.Kernel);
        former.Free((void*)p);
        Assert.Equal(p, (nint)former.Alloc(Gfp.Kernel));
        KmemCache next = null!;
        var thread = new Thread(() =>
        {
            former.Free((void*)p);
            former.Shrink();
            next = _machine.CreateCache("next", 64);
            nint found = 0;
            for (int i = 0; i < 1_500_000 && found != p; i++)
                found = (nint)next.Alloc(Gfp.NoWait | Gfp.NoWarn);
            p = found == p ? p : 0;
        });
        thread.Start();
        thread.Join();
        Assert.SkipWhen(p == 0, "the page went elsewhere");
        former.Free((void*)other);
        _machine.Kfree((void*)p);
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void A_thread_that_is_bound_elsewhere_takes_nothing_from_its_former_cpu()
    {
        using CpuBinding first = _machine.RunOn(0);
        void* p = _machine.Kmalloc(64, Gfp.Kernel);
        _machine.Kfree(p);
        using (_machine.RunOn(1))
        {
            void* q = _machine.Kmalloc(64, Gfp.Kernel);
            Assert.NotEqual((nint)p, (nint)q);
            _machine.Kfree(q);
        }

        Assert.Equal((nint)p, (nint)_machine.Kmalloc(64, Gfp.Kernel));
    }

    [Fact]
    public unsafe void More_threads_than_cpus_take_turns()
    {
        using var machine = Machine.Boot(new MachineOptions { RamBytes = 64 << 20, Cpus = 2 });
        Exception? error = null;
        Thread[] threads = Enumerable.Range(0, 12).Select(index => new Thread(() =>
        {
            try
            {
                for (int i = 0; i < 3000; i++)
                {
                    var p = (ulong*)machine.Kmalloc((nuint)(8 + (i % 500)), Gfp.Kernel);
                    *p = (ulong)((index * 3000) + i);
                    if (i % 100 == 0)
                        Thread.Yield();
                    Assert.Equal((ulong)((index * 3000) + i), *p);
                    machine.Kfree(p);
                }
            }
            catch (Exception caught)
            {
                error = caught;
            }
        })).ToArray();
        Array.ForEach(threads, thread => thread.Start());
        Array.ForEach(threads, thread => thread.Join());
        Assert.Null(error);
        Assert.Empty(machine.Validate());
        machine.ShrinkCaches();
        Assert.DoesNotContain(
            machine.Caches, cache => cache.Name.StartsWith("kmalloc", StringComparison.Ordinal) && cache.SlabCount > 0);
    }

    [Fact]
    public unsafe void A_scope_is_a_sheaf_of_ones_own()
    {
        KmemCache cache = _machine.CreateCache("own", 64);
        var objects = new nint[1000];
        using (CacheScope scope = cache.Enter(Gfp.Kernel))
        {
            for (int i = 0; i < objects.Length; i++)
                objects[i] = (nint)scope.Alloc();
            Assert.Equal(objects.Length, objects.Distinct().Count());
            foreach (nint obj in objects.AsSpan(0, 500))
                scope.Free((void*)obj);
            foreach (nint obj in objects.AsSpan(500, 400))
                cache.Free((void*)obj);
            scope.Free(null);
        }

        Assert.Equal(100, cache.LiveCount);
        Assert.Empty(_machine.Validate());
        cache.FreeBulk(objects.AsSpan(900));
        cache.Destroy();
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void A_sheaf_that_a_scope_left_behind_does_for_a_cpu_that_has_no_other()
    {
        KmemCache cache = _machine.CreateCache("own", 64);
        var objects = new nint[3 * cache.SheafCapacity];
        Assert.Equal(objects.Length, cache.AllocBulk(Gfp.Kernel, objects));
        using (CacheScope scope = cache.Enter(Gfp.Kernel))
        {
            cache.Shrink();
            foreach (nint obj in objects.AsSpan(0, cache.SheafCapacity))
                scope.Free((void*)obj);
        }

        // Its full sheaf is this CPU's spare one now, and there is no main one.
        cache.Free((void*)objects[^1]);
        cache.FreeBulk(objects.AsSpan()[cache.SheafCapacity..^1]);
        Assert.Equal(0, cache.LiveCount);
        Assert.Empty(_machine.Validate());
        cache.Destroy();
    }

    [Fact]
    public unsafe void A_scope_finds_mistakes()
    {
        KmemCache cache = _machine.CreateCache("own", 64);
        KmemCache other = _machine.CreateCache("other", 64);
        var p = (nint)cache.Alloc(Gfp.Kernel);
        var stranger = (nint)other.Alloc(Gfp.Kernel);
        cache.Free((void*)p);
        Assert.Throws<ArgumentException>(() => { cache.Enter(Gfp.Kernel | Gfp.Zero); });
        using (CacheScope scope = cache.Enter(Gfp.Kernel))
        {
            Assert.Equal("BUG", Refused(scope, p)[..3]);
            Assert.Equal("BUG", Refused(scope, p + 8)[..3]);
            Assert.Equal("BUG", Refused(scope, 0x1234560)[..3]);
            scope.Free((void*)stranger); // goes home, with a warning
            Assert.Contains("own but object is from other", _machine.Dmesg.Lines[^1]);
        }

        Assert.Equal(0, other.LiveCount);
        using (_machine.Atomic())
            Assert.Throws<KernelBugException>(() => { cache.Enter(Gfp.Kernel); });
        Assert.Empty(_machine.Validate());

        static string Refused(CacheScope scope, nint bad)
        {
            try
            {
                scope.Free((void*)bad);
            }
            catch (KernelBugException bug)
            {
                return bug.Message.Split('\n').First(line => !line.StartsWith('='));
            }

            return "freed";
        }
    }

    [Fact]
    public unsafe void A_scope_works_where_there_are_no_sheaves()
    {
        using var machine = Machine.Boot(new MachineOptions
        {
            RamBytes = 64 << 20,
            Cpus = 1,
            Profile = KernelProfile.Linux618,
        });
        KmemCache cache = machine.CreateCache("own", 64);
        using (CacheScope scope = cache.Enter(Gfp.Kernel))
        {
            void* p = scope.Alloc();
            Assert.Equal(1, cache.LiveCount);
            scope.Free(p);
        }

        Assert.Equal(0, cache.LiveCount);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void A_stale_pointer_cannot_take_the_allocator_s_own_memory()
    {
        KmemCache sheaves = _machine.Caches.Single(cache => cache.Name == "slab_sheaf-1024");
        _machine.Kfree(_machine.Kmalloc(64, Gfp.Kernel));
        nint sheaf = 0;
        _machine.Slabs.ForEachSlab(sheaves, slab =>
        {
            for (int i = 0; i < SlabState.Read((Page*)slab).Objects && sheaf == 0; i++)
                sheaf = sheaves.IsLive(sheaves.ObjectOf((Page*)slab, i)) ? (nint)sheaves.ObjectOf((Page*)slab, i) : 0;
        });
        Assert.NotEqual(0, sheaf);
        Assert.Throws<KernelBugException>(() => _machine.Kfree((void*)sheaf));
        Assert.Throws<KernelBugException>(() => sheaves.Free((void*)sheaf));
        Assert.Throws<KernelBugException>(() => _machine.KfreeBulk([sheaf]));
        Assert.Throws<KernelBugException>(() => { _machine.Ksize((void*)sheaf); });
        Assert.Throws<KernelBugException>(() => _machine.KfreeRcu((void*)sheaf));
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void Trimming_gives_everything_back()
    {
        Assert.SkipUnless(_machine.Ram.CanRelease, "this host cannot take memory back");
        var blocks = new nint[20000];
        for (int i = 0; i < blocks.Length; i++)
        {
            blocks[i] = (nint)_machine.Kmalloc(1000, Gfp.Kernel);
            new Span<byte>((void*)blocks[i], 1000).Fill(1);
        }

        ulong peak = _machine.ResidentBytes;
        Assert.True(peak > 20_000_000, $"{peak}");
        foreach (nint block in blocks)
            _machine.Kfree((void*)block);
        Assert.True(_machine.Trim() > 0);
        Assert.True(_machine.ResidentBytes < 1 << 20, $"{_machine.ResidentBytes} of {peak} remain");
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void What_was_surplus_all_the_time_goes_back_by_itself()
    {
        using var machine = Machine.Boot(new MachineOptions { RamBytes = 128 << 20, Cpus = 2, DecaySeconds = 3 });
        Assert.SkipUnless(machine.Ram.CanRelease, "this host cannot take memory back");
        var blocks = new nint[64];
        for (int i = 0; i < blocks.Length; i++)
        {
            blocks[i] = (nint)machine.Kmalloc(1 << 20, Gfp.Kernel);
            new Span<byte>((void*)blocks[i], 1 << 20).Fill(1);
        }

        foreach (nint block in blocks.AsSpan(32))
            machine.Kfree((void*)block);
        Assert.True(machine.ResidentBytes >= 64 << 20);
        for (int second = 0; second < 4; second++)
            machine.UpkeepTick();
        Assert.InRange(machine.ResidentBytes, 32UL << 20, 36UL << 20);
        foreach (nint block in blocks.AsSpan(0, 32))
            Assert.Equal(-1, new Span<byte>((void*)block, 1 << 20).IndexOfAnyExcept((byte)1));
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void What_far_exceeds_need_goes_back_without_being_asked()
    {
        using var machine = Machine.Boot(new MachineOptions { RamBytes = 256 << 20, Cpus = 2 });
        Assert.SkipUnless(machine.Ram.CanRelease, "this host cannot take memory back");
        var blocks = new nint[60_000];
        for (int i = 0; i < blocks.Length; i++)
        {
            blocks[i] = (nint)machine.Kmalloc(1000, Gfp.Kernel);
            new Span<byte>((void*)blocks[i], 1000).Fill(1);
        }

        Assert.True(machine.ResidentBytes > 60_000_000);
        foreach (nint block in blocks.AsSpan(1000))
            machine.Kfree((void*)block);

        // The timer was woken; what is waited for is its work, however slow the host is.
        Assert.True(SpinWait.SpinUntil(() => machine.ResidentBytes < 20 << 20, TimeSpan.FromMinutes(1)));
        foreach (nint block in blocks.AsSpan(0, 1000))
            Assert.Equal(-1, new Span<byte>((void*)block, 1000).IndexOfAnyExcept((byte)1));
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void Slabs_hold_fewer_objects_than_a_kernel_s()
    {
        KmemCache ours = _machine.Caches.Single(it => it.Name == "kmalloc-1k");
        Assert.Equal((1, 8), (ours.Geometry.Order, ours.Geometry.ObjectsPerSlab));
        Assert.All(_machine.Caches.Where(it => it.IsBuiltIn), it => Assert.True(
            it.Geometry.Order <= 2 || it.SlotSize > 2048, it.Name));
    }

    [Fact]
    public unsafe void A_restored_machine_allocates_as_the_saved_one()
    {
        using var machine = Machine.Boot(new MachineOptions { RamBytes = 64 << 20, Cpus = 2, DecaySeconds = 0 });
        using CpuBinding binding = machine.RunOn(0);
        var random = new Random(5);
        var live = new List<nint>();
        for (int i = 0; i < 5000; i++)
        {
            if (live.Count > 0 && random.Next(3) == 0)
            {
                int at = random.Next(live.Count);
                machine.Kfree((void*)live[at]);
                live.RemoveAt(at);
            }
            else
            {
                live.Add((nint)machine.Kmalloc((nuint)random.Next(1, 3000), Gfp.Kernel));
            }
        }

        using var copy = Machine.FromState(machine.WriteState(), machine.Options);
        using CpuBinding copyBinding = copy.RunOn(0);
        for (int i = 0; i < 5000; i++)
        {
            var size = (nuint)random.Next(1, 3000);
            var a = (byte*)machine.Kmalloc(size, Gfp.Kernel);
            var b = (byte*)copy.Kmalloc(size, Gfp.Kernel);
            Assert.Equal(a - machine.Map.RamBase, b - copy.Map.RamBase);
            if (i % 2 == 0)
            {
                machine.Kfree(a);
                copy.Kfree(b);
            }
        }

        Assert.Empty(copy.Validate());
    }
}
