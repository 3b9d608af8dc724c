namespace Kmem.Tests;

/// <summary>The hardened profile: what it adds to the native one is there, and what it finds is said.</summary>
public sealed class HardenedProfileTests : IDisposable
{
    private readonly Machine _machine = Boot();

    public void Dispose() => _machine.Dispose();

    private static Machine Boot(ulong seed = 1, KernelProfile? profile = null) => Machine.Boot(new MachineOptions
    {
        RamBytes = 128 << 20,
        Cpus = 4,
        Profile = profile ?? KernelProfile.Hardened,
        DecaySeconds = 0,
        Seed = seed,
    });

    [Fact]
    public void It_is_found_by_its_name()
    {
        Assert.Same(KernelProfile.Hardened, KernelProfile.Find("hardened"));
        Assert.Contains(KernelProfile.Hardened, KernelProfile.All);
    }

    [Fact]
    public unsafe void Memory_is_clear_when_it_is_allocated_and_when_it_is_freed()
    {
        foreach (int size in (int[])[8, 64, 100, 4096, 8192, 100_000])
        {
            void* p = _machine.Kmalloc((nuint)size, Gfp.Kernel);
            Assert.Equal(-1, new Span<byte>(p, size).IndexOfAnyExcept((byte)0));
            new Span<byte>(p, size).Fill(0x5e);
            _machine.Kfree(p);
            Assert.Equal(-1, new Span<byte>(p, size).IndexOfAnyExcept((byte)0));
        }

        Pfn pages = _machine.AllocPages(Gfp.Kernel, 3);
        var content = new Span<byte>(_machine.AddressOf(pages), 8 << 12);
        content.Fill(0x5e);
        _machine.FreePages(pages, 3);
        Assert.Equal(-1, content.IndexOfAnyExcept((byte)0));
    }

    [Fact]
    public unsafe void What_a_constructor_left_stays()
    {
        KmemCache cache = _machine.CreateCache("built", 100, constructor: obj => new Span<byte>(obj, 100).Fill(0x11));
        for (int i = 0; i < 5000; i++)
        {
            void* obj = cache.Alloc(Gfp.Kernel);
            Assert.Equal(-1, new Span<byte>(obj, 100).IndexOfAnyExcept((byte)0x11));
            cache.Free(obj);
        }

        Assert.Equal("", _machine.Dmesg.ToString());
    }

    [Fact]
    public unsafe void A_freed_object_does_not_come_back_soon()
    {
        void* first = _machine.Kmalloc(64, Gfp.Kernel);
        _machine.Kfree(first);
        long share = _machine.Slabs.Quarantine!.Share;
        int before = 0;
        while (true)
        {
            void* p = _machine.Kmalloc(64, Gfp.Kernel);
            if (p == first)
                break;

            before++;
            _machine.Kfree(p);
            Assert.InRange(before, 0, 100 * share / 64);
        }

        Assert.InRange(before, share / 64 / 2, long.MaxValue);
        Assert.InRange(_machine.Slabs.Quarantine.List().Sum(_ => 64), 0, 4 * (share + 64));
        Assert.Empty(_machine.Validate());
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public unsafe void A_write_after_free_is_reported_when_the_object_is_used_again(bool atFlush)
    {
        KmemCache cache = _machine.CreateCache("stale", 96);
        var p = (byte*)cache.Alloc(Gfp.Kernel);
        ulong address = _machine.Slabs.KernelAddress(p);
        cache.Free(p);
        p[10] = 0x41;
        p[90] = 0x42;
        Assert.Equal("", _machine.Dmesg.ToString());
        if (atFlush)
        {
            cache.Shrink();
        }
        else
        {
            // Enough others are freed that it leaves by itself.
            for (int i = 0; i < 100_000 && _machine.Dmesg.TotalLines == 0; i++)
                cache.Free(cache.Alloc(Gfp.Kernel));
        }

        string said = _machine.Dmesg.ToString();
        Assert.Contains(
            $"[Poison overwritten] 0x{address + 10:x16}-0x{address + 90:x16} @offset=", said);
        Assert.Contains("First byte 0x41 instead of 0x0", said);
        Assert.Contains("BUG stale (Not tainted): Object corrupt", said);
        Assert.Equal(-1, new Span<byte>(p, 96).IndexOfAnyExcept((byte)0));
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void Objects_and_pages_come_in_random_order_that_one_seed_repeats()
    {
        static (List<long> Objects, List<ulong> Pages) Addresses(ulong seed)
        {
            using Machine machine = Boot(seed);
            KmemCache cache = machine.CreateCache("order", 64);
            var objects = new List<long>();
            for (int i = 0; i < 64; i++)
                objects.Add((byte*)cache.Alloc(Gfp.Kernel) - machine.Map.RamBase);
            var pages = new List<ulong>();
            for (int i = 0; i < 64; i++)
                pages.Add(machine.AllocPages(Gfp.Kernel, PageOrder.Max - 1).Value);
            return (objects, pages);
        }

        var one = Addresses(1);
        Assert.Equal(one, Addresses(1), static (a, b) =>
            a.Objects.SequenceEqual(b.Objects) && a.Pages.SequenceEqual(b.Pages));
        var two = Addresses(2);
        Assert.NotEqual(one.Objects, two.Objects);
        Assert.NotEqual(one.Pages, two.Pages);
        long steady = one.Objects.Zip(one.Objects.Skip(1)).Count(pair => pair.Second - pair.First is 64 or -64);
        Assert.InRange(steady, 0, 32);
    }

    [Fact]
    public unsafe void Links_of_free_objects_are_not_addresses()
    {
        KmemCache cache = _machine.CreateCache("links", 64);
        cache.Free(cache.Alloc(Gfp.Kernel));
        cache.Shrink();
        void* obj = cache.Alloc(Gfp.Kernel);
        Page* slab = _machine.Slabs.SlabOf(obj);
        int links = 0;
        for (int i = 0; i < cache.Geometry.ObjectsPerSlab; i++)
        {
            ulong word = *(ulong*)((byte*)cache.ObjectOf(slab, i) + cache.Geometry.FreePointerOffset);
            links += word == 0 ? 0 : 1;
            Assert.False(_machine.Map.Contains((void*)word));
        }

        Assert.InRange(links, 1, cache.Geometry.ObjectsPerSlab);
    }

    /// <summary>
    /// The mark of a live object is a byte that ordinary frees read and then write: here it is taken once.
    /// </summary>
    [Fact]
    public unsafe void Of_two_threads_that_free_one_object_at_the_same_instant_one_is_told()
    {
        const int Rounds = 20_000;
        int told = 0;
        int arrived = 0;
        var objects = new nint[Rounds];
        for (int i = 0; i < Rounds; i++)
            objects[i] = (nint)_machine.Kmalloc(64, Gfp.Kernel);
        var crew = new Crew(60);
        crew.Add(2, _ =>
        {
            for (int i = 0; i < Rounds; i++)
            {
                // Who comes first spins, so that both go on within nanoseconds.
                Interlocked.Increment(ref arrived);
                var wait = default(SpinWait);
                while (Volatile.Read(ref arrived) < 2 * (i + 1))
                    wait.SpinOnce(sleep1Threshold: -1);
                try
                {
                    _machine.Kfree((void*)objects[i]);
                }
                catch (KernelBugException error)
                {
                    Assert.Contains("Object already free", error.Message, StringComparison.Ordinal);
                    Interlocked.Increment(ref told);
                }
            }
        });
        crew.Run();
        Assert.Equal(Rounds, told);
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void Memory_is_not_out_while_objects_are_kept_back()
    {
        var objects = new List<nint>();
        KmemCache cache = _machine.CreateCache("large", 4096);
        void* obj;
        while ((obj = cache.Alloc(Gfp.Kernel | Gfp.NoWarn)) != null)
            objects.Add((nint)obj);
        for (int i = 0; i < 20; i++)
            cache.Free((void*)objects[i]);
        for (int i = 0; i < 20; i++)
            Assert.True(cache.Alloc(Gfp.Kernel) != null);
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void A_cache_can_be_destroyed_while_its_objects_are_kept_back()
    {
        for (int round = 0; round < 20; round++)
        {
            KmemCache cache = _machine.CreateCache("gone", 200);
            var objects = new nint[300];
            Assert.Equal(300, cache.AllocBulk(Gfp.Kernel, objects));
            cache.FreeBulk(objects);
            Assert.NotEmpty(_machine.Slabs.Quarantine!.List());
            cache.Destroy();
        }

        Assert.Empty(_machine.Validate());
    }

    /// <summary>
    /// Whichever way a request for pages would end in, refusal or the killer: first it gets what is only kept back.
    /// </summary>
    [Theory]
    [InlineData(0, Gfp.Kernel | Gfp.NoRetry)]
    [InlineData(0, Gfp.Kernel | Gfp.RetryMayFail)]
    [InlineData(0, Gfp.Kernel | Gfp.ThisNode)]
    [InlineData(0, Gfp.Kernel)]
    [InlineData(2, Gfp.Kernel | Gfp.NoRetry)]
    [InlineData(4, Gfp.Kernel | Gfp.RetryMayFail)]
    public unsafe void Requests_for_pages_get_what_is_kept_back_before_memory_is_out(int order, Gfp gfp)
    {
        int keptWhenAsked = -1;
        using Machine machine = Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Hardened,
            Cpus = 1,
            RamBytes = 32 << 20,
        });
        machine.OomPolicy = _ =>
        {
            keptWhenAsked = machine.Slabs.Quarantine!.List().Count;
            return OomVerdict.Fail;
        };
        KmemCache cache = machine.CreateCache("kept", 1000, flags: SlabFlags.NoMerge);
        var objects = new nint[600];
        Assert.Equal(600, cache.AllocBulk(Gfp.Kernel, objects));
        cache.FreeBulk(objects);
        Assert.True(machine.Slabs.Quarantine!.List().Count > 500);
        Assert.Empty(machine.Dmesg.ToString());

        var blocks = new List<Pfn>();
        for (Pfn block; (block = machine.AllocPages(gfp | Gfp.NoWarn, order)).IsValid;)
            blocks.Add(block);

        Assert.Empty(machine.Slabs.Quarantine.List());
        Assert.Equal(0, cache.SlabCount);
        Assert.Equal(gfp == Gfp.Kernel ? 0 : -1, keptWhenAsked);
        Assert.Empty(machine.Validate());
        foreach (Pfn block in blocks)
            machine.FreePages(block, order);
    }

    /// <summary>Who may not wait takes nothing out of the quarantine.</summary>
    [Fact]
    public unsafe void Requests_that_may_not_wait_leave_it_alone()
    {
        using Machine machine = Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Hardened,
            Cpus = 1,
            RamBytes = 32 << 20,
        });
        machine.Kfree(machine.Kmalloc(100, Gfp.Kernel));
        while (machine.AllocPage(Gfp.NoWait | Gfp.NoWarn).IsValid)
        {
        }

        Assert.Single(machine.Slabs.Quarantine!.List());
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public void Threads_keep_their_memory_apart(int seed)
    {
        var crew = new Crew();
        crew.Add(4, worker => Work(new Random((seed * 10) + worker)));
        crew.Run();
        Assert.Empty(_machine.Validate());
        _machine.ShrinkCaches();
        Assert.Empty(_machine.Slabs.Quarantine!.List());
        Assert.Equal(0, _machine.Caches.Where(
            cache => cache.Name.StartsWith("kmalloc", StringComparison.Ordinal)).Sum(cache => cache.LiveCount));
        Assert.Equal("", _machine.Dmesg.ToString());
    }

    private unsafe void Work(Random random)
    {
        var live = new List<(nint At, int Size, byte Fill)>();
        for (int i = 0; i < 20_000; i++)
        {
            if (live.Count < 200 && random.Next(2) == 0)
            {
                int size = random.Next(1, 3000);
                byte fill = (byte)random.Next(1, 256);
                void* p = _machine.Kmalloc((nuint)size, Gfp.Kernel);
                Assert.Equal(-1, new Span<byte>(p, size).IndexOfAnyExcept((byte)0));
                new Span<byte>(p, size).Fill(fill);
                live.Add(((nint)p, size, fill));
            }
            else if (live.Count > 0)
            {
                int at = random.Next(live.Count);
                Assert.Equal(-1, new Span<byte>((void*)live[at].At, live[at].Size).IndexOfAnyExcept(live[at].Fill));
                _machine.Kfree((void*)live[at].At);
                live[at] = live[^1];
                live.RemoveAt(live.Count - 1);
            }
        }

        foreach ((nint at, int _, byte _) in live)
            _machine.Kfree((void*)at);
    }
}
