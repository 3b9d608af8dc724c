using System.Globalization;

namespace Kmem.Tests;

/// <summary>Creation, merging (slub.md 3), constructors, and destruction in bad moments.</summary>
public sealed class CacheCreationTests : IDisposable
{
    private readonly Machine _machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 128 << 20, Cpus = 2 });

    public void Dispose() => _machine.Dispose();

    // size, align, flags of the first; the same of the second; whether the second becomes an alias.
    [Theory]
    [InlineData(200, 0, "", 200, 0, "", true)]
    [InlineData(200, 0, "", 193, 0, "", true)]      // both need slots of 200 bytes
    [InlineData(200, 0, "", 192, 0, "", false)]     // 8 bytes too many
    [InlineData(200, 0, "", 201, 0, "", false)]     // does not fit
    [InlineData(256, 0, "", 256, 64, "", true)]     // 256 is a multiple of 64
    [InlineData(200, 0, "", 136, 64, "", false)]    // would fit in a slot of 192, but 200 is no multiple of 64
    [InlineData(100, 0, "H", 100, 0, "H", true)]    // 128
    [InlineData(128, 0, "", 100, 0, "H", true)]     // 128 already
    [InlineData(100, 0, "H", 128, 0, "", true)]
    [InlineData(104, 0, "", 100, 0, "H", false)]
    [InlineData(20, 0, "H", 30, 0, "", true)]       // 32 bytes suffice: half a line
    [InlineData(200, 0, "a", 200, 0, "", false)]
    [InlineData(200, 0, "a", 200, 0, "a", true)]
    [InlineData(200, 0, "A", 200, 0, "", false)]
    [InlineData(200, 0, "A", 200, 0, "A", true)]
    [InlineData(200, 0, "A", 200, 0, "aA", false)]
    [InlineData(200, 0, "d", 200, 0, "", false)]
    [InlineData(200, 0, "d", 200, 0, "D", false)]
    [InlineData(200, 0, "d", 200, 0, "d", true)]
    [InlineData(200, 0, "P", 200, 0, "", true)]     // PANIC says nothing about slabs
    [InlineData(200, 0, "R", 200, 0, "", false)]
    [InlineData(200, 0, "", 200, 0, "R", false)]
    [InlineData(200, 0, "N", 200, 0, "", false)]
    [InlineData(200, 0, "", 200, 0, "N", false)]
    [InlineData(200, 0, "L", 200, 0, "L", false)]
    [InlineData(200, 0, "", 200, 0, "c", false)]
    [InlineData(200, 0, "c", 200, 0, "", false)]
    [InlineData(200, 0, "", 200, 0, "u", false)]
    [InlineData(200, 0, "u", 200, 0, "", false)]
    [InlineData(256, 0, "", 256, 0, "", true)]      // not into kmalloc-256, which is not open
    public void Merging_follows_the_rules(
        int size, int align, string flags, int size2, int align2, string flags2, bool merges)
    {
        KmemCache first = Create("first", size, align, flags);
        KmemCache second = Create("second", size2, align2, flags2);
        Assert.Equal(merges, ReferenceEquals(first, second));
        Assert.Equal("first", first.Name);
        Assert.Equal(merges ? 1 : 0, first.Aliases);
        if (!merges)
        {
            second.Destroy();
            first.Destroy();
            return;
        }

        Assert.Equal(Math.Max(size, size2), first.ObjectSize);
        second.Destroy();
        Assert.Equal(0, first.Aliases);
        Assert.Contains(first, _machine.Caches);
        first.Destroy();
        Assert.DoesNotContain(first, _machine.Caches);
        Assert.Throws<KernelBugException>(first.Destroy);
    }

    [Fact]
    public unsafe void An_alias_has_room_for_the_larger_user()
    {
        KmemCache cache = _machine.CreateCache("small", 194);
        void* early = cache.Alloc(Gfp.Kernel);
        new Span<byte>(early, 200).Fill(0xff);
        cache.Free(early);
        KmemCache alias = _machine.CreateCache("large", 199);
        Assert.Same(cache, alias);
        var zeroed = (byte*)alias.Alloc(Gfp.Kernel | Gfp.Zero);
        Assert.Equal((nint)early, (nint)zeroed);
        Assert.True(SlabModel.IsZero(zeroed, 199));
    }

    /// <summary>
    /// The caches that a running kernel has merged others into: none of them fits another, each fits itself.
    /// </summary>
    [Fact]
    public void The_shared_caches_of_a_real_kernel_stay_apart_and_take_their_own_kind()
    {
        string[][] rows = File.ReadLines(TestData.PathOf("live-2cpu/slab-geometry.tsv"))
            .Skip(1).Select(line => line.Split('\t')).Where(row => row[0].StartsWith(':')).ToArray();
        Dictionary<string, int> aliases = File.ReadLines(TestData.PathOf("live-2cpu/slab-aliases.tsv"))
            .Skip(1).Select(line => line.Split('\t')).CountBy(row => row[1]).ToDictionary(StringComparer.Ordinal);
        Assert.True(rows.Length > 50);
        var created = new List<KmemCache>();
        foreach (string[] row in rows)
        {
            KmemCache cache = Like(row);
            Assert.DoesNotContain(cache, created);
            Assert.Equal(Number(row[13]), cache.SlotSize);
            created.Add(cache);
        }

        for (int i = 0; i < rows.Length; i++)
        {
            for (int user = 1; user < aliases.GetValueOrDefault(rows[i][0], 1); user++)
                Assert.Same(created[i], Like(rows[i]));
        }

        int[] expected = rows.Select(row => Math.Max(0, aliases.GetValueOrDefault(row[0], 1) - 1)).ToArray();
        Assert.Equal(expected, created.Select(cache => cache.Aliases).ToArray());

        static int Number(string text) => int.Parse(text, CultureInfo.InvariantCulture);
        KmemCache Like(string[] row)
        {
            string letters = row[0].TrimStart(':').Split('-') is { Length: 2 } parts ? parts[0] : "";
            return Create(row[0], Number(row[1]), Number(row[2]), letters + (row[3] == "1" ? "H" : ""));
        }
    }

    [Fact]
    public void Merging_can_be_off()
    {
        using var machine = Machine.Boot(new MachineOptions
        {
            RamBytes = 64 << 20,
            Cpus = 1,
            Profile = KernelProfile.Linux618 with { SlabMerge = false },
        });
        Assert.NotSame(machine.CreateCache("a", 200), machine.CreateCache("b", 200));
    }

    [Fact]
    public void The_oldest_fitting_cache_is_taken()
    {
        KmemCache blocked = Create("blocked", 200, 0, "N");
        KmemCache older = Create("older", 200, 0, "");
        KmemCache newer = Create("newer", 196, 8, "A");
        Assert.NotSame(older, newer);
        Assert.Same(older, Create("joins", 196, 0, ""));
        older.Destroy();
        older.Destroy();
        Assert.NotSame(blocked, Create("again", 196, 0, ""));
    }

    [Fact]
    public void The_newest_cache_is_first_in_slabinfo_and_boot_caches_last()
    {
        Create("one", 200, 0, "");
        Create("two", 300, 0, "");
        string[] names = _machine.Proc.SlabInfo().Split('\n').Skip(2)
            .Select(line => line.Split(' ')[0]).Where(name => name.Length > 0).ToArray();
        Assert.Equal(["two", "one"], names[..2]);
        Assert.Equal(["kmem_cache", "kmem_cache_node"], names[^2..]);
        Assert.Equal(["kmalloc-192", "kmalloc-96"], names[^4..^2]);
        Assert.Equal<string[]>(
            ["kmalloc-8k", "kmalloc-4k", "kmalloc-2k", "kmalloc-1k", "kmalloc-512", "kmalloc-256", "kmalloc-128",
                "kmalloc-64", "kmalloc-32", "kmalloc-16", "kmalloc-8", "kmalloc-192", "kmalloc-96"],
            names.Where(name => name.StartsWith("kmalloc-", StringComparison.Ordinal) && name.Count(c => c == '-') == 1)
                .ToArray());
    }

    [Theory]
    [InlineData(0, 0)]
    [InlineData(-1, 0)]
    [InlineData(100, 3)]
    [InlineData(100, -8)]
    [InlineData(100, 1 << 30)]
    [InlineData((4 << 20) + 1, 0)]
    [InlineData(int.MaxValue, 0)]
    public void Impossible_caches_are_refused(int size, int align)
    {
        int before = _machine.Caches.Count;
        Assert.ThrowsAny<ArgumentException>(() => _machine.CreateCache("bad", size, align));
        Assert.Equal(before, _machine.Caches.Count);
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public void Bad_names_flags_and_windows_are_refused()
    {
        Assert.ThrowsAny<ArgumentException>(() => _machine.CreateCache("", 100));
        Assert.ThrowsAny<ArgumentException>(() => _machine.CreateCache(null!, 100));
        Assert.ThrowsAny<ArgumentException>(() => _machine.CreateCache("x", 100, 0, SlabFlags.FailSlab));
        Assert.ThrowsAny<ArgumentException>(() => _machine.CreateCache("x", 100, 0, (SlabFlags)0x8000_0000));
        Assert.ThrowsAny<ArgumentException>(() => _machine.CreateCache("x", 100, userOffset: 50, userSize: 51));
        Assert.ThrowsAny<ArgumentException>(() => _machine.CreateCache("x", 100, userOffset: -1, userSize: 1));
        Assert.ThrowsAny<ArgumentException>(
            () => _machine.CreateCache("x", 100, userOffset: int.MaxValue, userSize: int.MaxValue));
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public void The_machines_own_caches_cannot_be_destroyed_or_joined()
    {
        foreach (KmemCache cache in _machine.Caches)
            Assert.Throws<KernelBugException>(cache.Destroy);
        foreach (KmemCache cache in _machine.Caches.Where(cache => cache.Name.StartsWith("kmem_", StringComparison.Ordinal)))
            Assert.NotSame(cache, Create("joins?", cache.ObjectSize, 0, "H"));
    }

    [Fact]
    public unsafe void A_constructor_runs_once_per_object_of_a_slab()
    {
        var seen = new List<nint>();
        KmemCache cache = _machine.CreateCache("made", 1024, 0, SlabFlags.None, obj =>
        {
            seen.Add((nint)obj);
            *(ulong*)obj = 0x1234;
        });
        void* first = cache.Alloc(Gfp.Kernel);
        Assert.Equal(cache.Geometry.ObjectsPerSlab, seen.Count);
        Assert.Equal(seen.Distinct().Order(), seen);
        Assert.Equal((nint)first, seen[0]);
        cache.Free(first);
        for (int i = 0; i < 20; i++)
        {
            void* obj = cache.Alloc(Gfp.Kernel);
            Assert.Equal(0x1234UL, *(ulong*)obj);
            *(ulong*)((byte*)obj + 1016) = ulong.MaxValue; // the last word is the user's: the free pointer lies behind it
            cache.Free(obj);
        }

        Assert.Equal(cache.Geometry.ObjectsPerSlab, seen.Count);
        Assert.True(cache.Geometry.FreePointerOffset >= 1024);
        cache.Destroy();
        Assert.Empty(_machine.Validate());
    }

    [Theory]
    [InlineData(false, 0)]
    [InlineData(true, 0)]
    [InlineData(false, 12)]
    [InlineData(true, 12)]
    public unsafe void A_constructor_that_throws_loses_nothing(bool bulk, int sheaf)
    {
        int calls = 0;
        bool fail = true;
        KmemCache cache = _machine.CreateCache("fails", 1024, sheafCapacity: sheaf, constructor: _ =>
        {
            if (++calls % 21 == 0 && fail)
                throw new InvalidDataException("no");
        });
        long before = FreeFrames();
        for (int i = 0; i < 10; i++)
        {
            if (bulk)
            {
                var objects = new nint[40];
                Assert.Throws<InvalidDataException>(() => cache.AllocBulk(Gfp.Kernel, objects));
            }
            else
            {
                var objects = new List<nint>();
                Assert.Throws<InvalidDataException>(() =>
                {
                    for (int one = 0; one < 1000; one++)
                        objects.Add((nint)cache.Alloc(Gfp.Kernel));
                });
                cache.FreeBulk(objects.ToArray());
            }

            Assert.Equal(0, cache.LiveCount);
            Assert.Empty(_machine.Validate());
            cache.Shrink();
        }

        Assert.Equal(before, FreeFrames());
        fail = false;
        cache.Free(cache.Alloc(Gfp.Kernel));
        cache.Destroy();
    }

    [Fact]
    public unsafe void A_constructor_may_use_other_caches_but_not_its_own()
    {
        KmemCache? self = null;
        KmemCache other = _machine.CreateCache("other", 100, 0, SlabFlags.NoMerge);
        int mode = 0;
        self = _machine.CreateCache("self", 1024, 0, SlabFlags.None, _ =>
        {
            if (mode == 1)
                self!.Alloc(Gfp.Kernel);
            if (mode == 2)
                self!.Destroy();
            if (mode == 3)
                self!.Shrink();
            other.Free(other.Alloc(Gfp.Kernel));
        });
        long before = FreeFrames();
        for (mode = 1; mode <= 2; mode++)
        {
            KernelBugException error = Assert.Throws<KernelBugException>(() => { self.Alloc(Gfp.Kernel); });
            Assert.Contains("self", error.Message);
            Assert.Contains("constructor", error.Message);
        }

        other.Shrink();
        Assert.Equal(before, FreeFrames());
        mode = 3;
        void* fine = self.Alloc(Gfp.Kernel);
        Assert.True(fine != null);
        self.Free(fine);
        Assert.Empty(_machine.Validate());
        self.Destroy();
    }

    [Fact]
    public unsafe void Two_constructors_that_need_each_others_caches_are_refused()
    {
        KmemCache? a = null;
        KmemCache? b = null;
        a = _machine.CreateCache("ring-a", 1024, 0, SlabFlags.None, _ => b!.Alloc(Gfp.Kernel));
        b = _machine.CreateCache("ring-b", 1024, 0, SlabFlags.None, _ => a.Alloc(Gfp.Kernel));
        Assert.Throws<KernelBugException>(() => { a.Alloc(Gfp.Kernel); });
        Assert.Equal((0, 0), (a.SlabCount, b.SlabCount));
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void Threads_construct_slabs_of_one_cache_side_by_side()
    {
        using var both = new Barrier(2);
        bool meet = true;
        KmemCache cache = _machine.CreateCache("side", 1024, 0, SlabFlags.None, _ =>
        {
            if (Volatile.Read(ref meet))
                both.SignalAndWait(1000);
        });
        var crew = new Crew();
        crew.Add(2, index =>
        {
            using CpuBinding cpu = _machine.RunOn(index);
            Assert.True(cache.Alloc(Gfp.Kernel) != null);
            Volatile.Write(ref meet, false);
            for (int i = 0; i < 40; i++)
                Assert.True(cache.Alloc(Gfp.Kernel) != null);
        });
        crew.Run();
        Assert.Empty(_machine.Validate());
    }

    [Theory]
    [InlineData(0)]
    [InlineData(10)]
    public unsafe void A_cache_that_is_gone_allocates_nothing(int sheaf)
    {
        KmemCache cache = _machine.CreateCache("gone", 200, 0, SlabFlags.NoMerge, sheafCapacity: sheaf);
        cache.Free(cache.Alloc(Gfp.Kernel));
        cache.Destroy();
        for (int i = 0; i < 3; i++)
        {
            Assert.Contains("gone", Assert.Throws<KernelBugException>(() => { cache.Alloc(Gfp.Kernel); }).Message);
            Assert.Throws<KernelBugException>(() => cache.AllocBulk(Gfp.Kernel, new nint[3]));
        }

        Assert.Throws<KernelBugException>(cache.Destroy);
        Assert.Equal(0, cache.SlabCount);
        cache.Shrink();

        // A new cache may get the same number: it is not taken for the old one.
        KmemCache next = Create("next", 200, 0, "N");
        void* obj = next.Alloc(Gfp.Kernel);
        Assert.Throws<KernelBugException>(() => { cache.Alloc(Gfp.Kernel); });
        Assert.Throws<KernelBugException>(cache.Destroy);
        next.Free(obj);
        next.Destroy();
        Assert.Empty(_machine.Validate());
    }

    [Theory]
    [InlineData(0)]
    [InlineData(10)]
    public unsafe void Destroying_waits_for_deferred_frees(int sheaf)
    {
        KmemCache cache = _machine.CreateCache("later", 200, 0, SlabFlags.NoMerge, sheafCapacity: sheaf);
        void* obj = cache.Alloc(Gfp.Kernel);
        int phase = _machine.Slabs.Rcu.ReadLock();
        _machine.KfreeRcu(obj);
        var thread = new Thread(() =>
        {
            Thread.Sleep(50);
            _machine.Slabs.Rcu.ReadUnlock(phase);
        });
        thread.Start();
        cache.Destroy();
        thread.Join();
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public void Sheaves_without_memory_mean_no_cache()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 16 << 20, Cpus = 64 });
        machine.ShrinkCaches();
        machine.DrainAllPages();
        var hoard = new List<Pfn>();
        for (Pfn page; (page = machine.AllocPages(Gfp.Kernel | Gfp.NoWarn, 0)).IsValid;)
            hoard.Add(page);
        int caches = machine.Caches.Count;
        Assert.Throws<OutOfMemoryException>(() => machine.CreateCache("poor", 100, sheafCapacity: 1000));
        Assert.Equal(caches, machine.Caches.Count);
        Assert.Empty(machine.Validate());
        hoard.ForEach(machine.FreePage);
        machine.CreateCache("rich", 100, sheafCapacity: 1000).Destroy();
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void Objects_of_another_node_are_not_freed_to_sheaves()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 128 << 20, Cpus = 2, Nodes = 2 });
        KmemCache cache = machine.CreateCache("local", 256, 0, SlabFlags.NoMerge, sheafCapacity: 30);
        var objects = new nint[100];
        using (machine.RunOn(0))
            Assert.Equal(100, cache.AllocBulk(Gfp.Kernel, objects));
        using (machine.RunOn(1))
        {
            cache.FreeBulk(objects.AsSpan(0, 50));
            foreach (nint obj in objects.AsSpan(50))
                cache.Free((void*)obj);
            Assert.Equal(0, cache.StateOf(1)->Main->Size);
            void* own = cache.Alloc(Gfp.Kernel, 1);
            cache.Free(own);
            Assert.True(cache.StateOf(1)->Main->Size > 0);
        }

        Assert.Equal(0, cache.LiveCount);
        Assert.Empty(machine.Validate());
    }

    [Theory]
    [InlineData(0)]
    [InlineData(8)]
    public unsafe void Destroying_while_others_allocate_is_refused_or_done_but_never_half(int sheaf)
    {
        var crew = new Crew(0.8);
        crew.Add(1, _ =>
        {
            for (int round = 0; crew.Working; round++)
                Race(round);
        });
        crew.Run();
        Assert.Empty(_machine.Validate());

        void Race(int round)
        {
            KmemCache cache = _machine.CreateCache($"race-{round}", 1000, 0, SlabFlags.NoMerge, sheafCapacity: sheaf);
            var objects = new List<nint>();
            bool refused = false;
            var other = new Thread(() =>
            {
                try
                {
                    for (int i = 0; i < 30; i++)
                        objects.Add((nint)cache.Alloc(Gfp.Kernel));
                }
                catch (KernelBugException)
                {
                    refused = true;
                }
            });
            other.Start();
            Thread.SpinWait(round * 7 % 3000);
            bool destroyed = true;
            try
            {
                cache.Destroy();
            }
            catch (KernelBugException)
            {
                destroyed = false;
            }

            other.Join();
            if (destroyed)
            {
                Assert.True(
                    refused && objects.Count == 0, $"round {round}: {objects.Count} objects of a cache that is gone");
                return;
            }

            cache.FreeBulk(objects.ToArray());
            cache.Destroy();
        }
    }

    private unsafe KmemCache Create(string name, int size, int align, string letters)
    {
        SlabFlags flags = SlabFlags.None;
        foreach (char letter in letters)
        {
            flags |= letter switch
            {
                'H' => SlabFlags.HwcacheAlign,
                'a' => SlabFlags.ReclaimAccount,
                'A' => SlabFlags.Account,
                'd' => SlabFlags.CacheDma,
                'D' => SlabFlags.CacheDma32,
                'P' => SlabFlags.Panic,
                'R' => SlabFlags.TypesafeByRcu,
                'N' => SlabFlags.NoMerge,
                'L' => SlabFlags.NoLeakTrace,
                _ => SlabFlags.None,
            };
        }

        SlabConstructor? constructor = letters.Contains('c') ? _ => { } : null;
        return _machine.CreateCache(name, size, align, flags, constructor, 0, letters.Contains('u') ? 8 : 0);
    }

    private long FreeFrames()
    {
        _machine.ShrinkCaches();
        _machine.DrainAllPages();
        return _machine.Pages.Zones.Sum(zone => zone.Zone.FreePagesExact);
    }
}
