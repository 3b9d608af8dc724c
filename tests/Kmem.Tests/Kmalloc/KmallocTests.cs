using System.Text;

namespace Kmem.Tests;

/// <summary>kmalloc and its relatives on a machine, against the tables and rules of kmalloc.md.</summary>
public sealed class KmallocTests : IDisposable
{
    private readonly Machine _machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 256 << 20, Cpus = 2 });

    public void Dispose() => _machine.Dispose();

    [Theory]
    [InlineData(1, 8, "8")]
    [InlineData(9, 16, "16")]
    [InlineData(17, 32, "32")]
    [InlineData(33, 64, "64")]
    [InlineData(65, 96, "96")]
    [InlineData(97, 128, "128")]
    [InlineData(129, 192, "192")]
    [InlineData(193, 256, "256")]
    [InlineData(257, 512, "512")]
    [InlineData(513, 1024, "1k")]
    [InlineData(1025, 2048, "2k")]
    [InlineData(2049, 4096, "4k")]
    [InlineData(4097, 8192, "8k")]
    public unsafe void Sizes_go_to_their_classes(int first, int last, string name)
    {
        foreach (int size in (int[])[first, (first + last) / 2, last])
        {
            void* p = _machine.Kmalloc((nuint)size, Gfp.Kernel);
            Assert.Equal((nuint)last, _machine.Ksize(p));
            Assert.Equal((nuint)last, Machine.KmallocSizeRoundup((nuint)size));
            Assert.Equal($"kmalloc-{name}", CacheOf(p).Name);
            int alignment = last & -last;
            Assert.Equal(0UL, (ulong)p & (ulong)(alignment - 1));
            _machine.Kfree(p);
        }
    }

    [Theory]
    [InlineData(8193, 16384)]
    [InlineData(16384, 16384)]
    [InlineData(16385, 32768)]
    [InlineData(1 << 20, 1 << 20)]
    [InlineData((1 << 20) + 1, 2 << 20)]
    [InlineData(4 << 20, 4 << 20)]
    public unsafe void Large_sizes_are_blocks_of_pages_naturally_aligned(int size, int block)
    {
        long before = SlabPages();
        var p = (byte*)_machine.Kmalloc((nuint)size, Gfp.Kernel);
        Assert.True(p != null);
        Assert.Equal((nuint)block, _machine.Ksize(p));
        Assert.Equal((nuint)block, Machine.KmallocSizeRoundup((nuint)size));
        Assert.Equal(0UL, _machine.PhysicalAddressOf(p).Value & (ulong)(block - 1));
        Assert.Equal(0UL, (ulong)p & (ulong)(block - 1));
        Assert.Equal(0UL, _machine.KernelAddressOf(p).Value & (ulong)(block - 1));
        p[0] = 1;
        p[block - 1] = 2;
        Assert.Equal(before + (block >> 12), SlabPages());
        _machine.Kfree(p);
        Assert.Equal(before, SlabPages());
    }

    [Fact]
    public unsafe void Beyond_the_maximum_there_is_null_and_one_warning()
    {
        Assert.Equal(4 << 20, Machine.KmallocMaxSize);
        nuint[] tooMuch = [(4 << 20) + 1, 1 << 30, nuint.MaxValue / 2, nuint.MaxValue, unchecked((nuint)(-4096))];
        foreach (nuint size in tooMuch)
        {
            Assert.True(_machine.Kmalloc(size, Gfp.Kernel | Gfp.NoWarn) == null);
            Assert.Equal(size, Machine.KmallocSizeRoundup(size));
        }

        Assert.Empty(_machine.Dmesg.Lines);
        for (nuint i = 1; i < 20; i++)
            Assert.True(_machine.Kmalloc((4 << 20) + i, Gfp.Kernel) == null);
        Assert.Single(_machine.Dmesg.Lines);
    }

    [Fact]
    public unsafe void The_historic_limit_is_128_KiB()
    {
        using var old = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1, HistoricKmallocLimit = true });
        void* most = old.Kmalloc(131072, Gfp.Kernel);
        Assert.Equal((nuint)131072, old.Ksize(most));
        Assert.True(old.Kmalloc(131073, Gfp.Kernel) == null);
        Assert.True(old.Krealloc(most, 131073, Gfp.Kernel) == null);
        Assert.Contains("131072", Assert.Single(old.Dmesg.Lines));
        old.Kfree(most);
    }

    [Fact]
    public unsafe void Zero_bytes_have_an_address_that_is_no_memory()
    {
        void* nothing = _machine.Kmalloc(0, Gfp.Kernel);
        Assert.Equal((nint)16, (nint)nothing);
        Assert.Equal((nint)16, (nint)_machine.Kzalloc(0, Gfp.Atomic));
        Assert.Equal((nint)16, (nint)_machine.Kcalloc(0, 100, Gfp.Kernel));
        Assert.Equal((nint)16, (nint)_machine.KmallocArray(nuint.MaxValue, 0, Gfp.Kernel));
        Assert.Equal((nint)16, (nint)_machine.Kmemdup([], Gfp.Kernel));
        Assert.Equal((nuint)0, _machine.Ksize(nothing));
        Assert.Equal((nuint)0, _machine.Ksize(null));
        Assert.Equal((nuint)0, Machine.KmallocSizeRoundup(0));
        _machine.Kfree(nothing);
        _machine.Kfree(nothing);
        _machine.Kfree(null);
        _machine.KfreeSensitive(nothing);
        _machine.KfreeSensitive(null);
        _machine.KfreeRcu(nothing);
        _machine.KfreeRcu(null);
        Assert.Empty(_machine.Dmesg.Lines);
    }

    [Fact]
    public unsafe void The_flags_choose_the_set()
    {
        (Gfp, string)[] sets =
        [
            (Gfp.Kernel, "kmalloc-64"),
            (Gfp.Atomic, "kmalloc-64"),
            (Gfp.Kernel | Gfp.Dma, "dma-kmalloc-64"),
            (Gfp.Kernel | Gfp.Reclaimable, "kmalloc-rcl-64"),
            (Gfp.KernelAccount, "kmalloc-cg-64"),
            (Gfp.KernelAccount | Gfp.Reclaimable, "kmalloc-rcl-64"),
            (Gfp.KernelAccount | Gfp.Reclaimable | Gfp.Dma, "dma-kmalloc-64"),
            (Gfp.Kernel | Gfp.Account | Gfp.Dma, "dma-kmalloc-64"),
        ];
        foreach ((Gfp gfp, string name) in sets)
        {
            void* p = _machine.Kmalloc(50, gfp);
            Assert.Equal(name, CacheOf(p).Name);
            _machine.Kfree(p);
        }

        using var small = Machine.Boot(new MachineOptions
        {
            RamBytes = 64 << 20,
            Cpus = 1,
            Profile = KernelProfile.Linux618 with { MemoryCgroups = false },
        });
        void* accounted = small.Kmalloc(50, Gfp.KernelAccount);
        Assert.Equal("kmalloc-64", small.Slabs.CacheOf(small.Slabs.SlabOf(accounted)).Name);
        Assert.DoesNotContain(small.Caches, cache => cache.Name.Contains("-cg-"));
    }

    [Fact]
    public unsafe void Dma_memory_lies_in_the_first_16_MiB()
    {
        foreach (nuint size in (nuint[])[8, 192, 4096, 8192, 20_000, 1 << 20])
        {
            void* p = _machine.Kmalloc(size, Gfp.Kernel | Gfp.Dma);
            Assert.True(_machine.PhysicalAddressOf((byte*)p + size - 1).Value < 16 << 20, $"{size} bytes");
            _machine.Kfree(p);
        }
    }

    [Fact]
    public unsafe void Reclaimable_blocks_are_counted_apart()
    {
        Node node = _machine.NodeList[0];
        (long reclaimable, long unreclaimable) = (node.SlabReclaimablePages, node.SlabUnreclaimablePages);
        void* a = _machine.Kmalloc(8192, Gfp.Kernel | Gfp.Reclaimable);
        Assert.Equal((reclaimable + 8, unreclaimable), (node.SlabReclaimablePages, node.SlabUnreclaimablePages));
        void* b = _machine.Kmalloc(20000, Gfp.Kernel | Gfp.Reclaimable); // large ones never are
        Assert.Equal((reclaimable + 8, unreclaimable + 8), (node.SlabReclaimablePages, node.SlabUnreclaimablePages));
        _machine.Kfree(a);
        _machine.Kfree(b);
        _machine.ShrinkCaches();
        Assert.Equal(reclaimable, node.SlabReclaimablePages);
    }

    [Theory]
    [InlineData(64)]
    [InlineData(20000)]
    public unsafe void Flags_that_make_no_sense_are_fixed_up_with_a_warning(int size)
    {
        void* p = _machine.Kmalloc((nuint)size, Gfp.Kernel | Gfp.HighMem);
        Assert.True(p != null);
        Assert.Equal(
            "Unexpected gfp: 0x2 (__GFP_HIGHMEM). Fixing up to gfp: 0xcc0 (GFP_KERNEL). Fix your code!",
            Assert.Single(_machine.Dmesg.Lines));
        void* q = _machine.Kmalloc((nuint)size == 64 ? 200 : (nuint)size, Gfp.Kernel | Gfp.Dma32);
        Assert.True(q != null);
        Assert.Contains("0x4 (GFP_DMA32)", _machine.Dmesg.Lines[1]);
        _machine.Kfree(p);
        _machine.Kfree(q);
    }

    [Fact]
    public unsafe void Array_sizes_that_overflow_are_reported()
    {
        foreach ((nuint count, nuint size) in ((nuint, nuint)[])
            [(nuint.MaxValue, 2), ((nuint)1 << 33, (nuint)1 << 33), ((nuint)1 << 32, (nuint)1 << 32), (3, nuint.MaxValue / 2)])
        {
            _machine.Dmesg.Clear();
            Assert.Throws<KernelBugException>(() => { _machine.Kcalloc(count, size, Gfp.Kernel); });
            Assert.Throws<KernelBugException>(() => { _machine.KmallocArray(count, size, Gfp.Kernel); });
            void* p = _machine.Kmalloc(10, Gfp.Kernel);
            Assert.Throws<KernelBugException>(() => { _machine.KreallocArray(p, count, size, Gfp.Kernel); });
            Assert.Equal(3, _machine.Dmesg.Lines.Count);
            Assert.All(_machine.Dmesg.Lines, line => Assert.Contains("overflows", line));
            _machine.Kfree(p);
        }

        Assert.True(_machine.Kcalloc(1 << 20, 8, Gfp.Kernel | Gfp.NoWarn) == null); // fits, but is too much
    }

    [Fact]
    public unsafe void Zeroed_memory_is_zero_after_dirty_use()
    {
        foreach (nuint size in (nuint[])[1, 8, 100, 1000, 8192, 20_000])
        {
            nuint all = Machine.KmallocSizeRoundup(size);
            void* dirty = _machine.Kmalloc(size, Gfp.Kernel);
            new Span<byte>(dirty, (int)all).Fill(0xff);
            _machine.Kfree(dirty);
            void* clean = size % 2 == 0 ? _machine.Kzalloc(size, Gfp.Kernel) : _machine.Kcalloc(size, 1, Gfp.Kernel);
            Assert.Equal((nint)dirty, (nint)clean);
            Assert.True(SlabModel.IsZero((byte*)clean, all), $"{size} bytes: the slack counts, too");
            _machine.Kfree(clean);
        }
    }

    [Fact]
    public unsafe void Krealloc_follows_its_rules()
    {
        // Nothing to start from.
        var p = (byte*)_machine.Krealloc(null, 100, Gfp.Kernel);
        Assert.Equal((nuint)128, _machine.Ksize(p));
        Assert.Equal((nuint)8, _machine.Ksize(_machine.Krealloc((void*)16, 5, Gfp.Kernel)));
        new Span<byte>(p, 128).Fill(7);

        // Shrinking never moves, growing within the slot neither.
        Assert.Equal((nint)p, (nint)_machine.Krealloc(p, 1, Gfp.Kernel));
        Assert.Equal((nuint)128, _machine.Ksize(p));
        Assert.Equal((nint)p, (nint)_machine.Krealloc(p, 128, Gfp.Kernel));
        Assert.Equal(7, p[127]);

        // In place with zero: what is behind the new size.
        Assert.Equal((nint)p, (nint)_machine.Krealloc(p, 50, Gfp.Kernel | Gfp.Zero));
        Assert.Equal((7, 0, 0), (p[49], p[50], p[127]));

        // Growing copies the whole slot and frees the old one.
        p[127] = 9;
        var q = (byte*)_machine.Krealloc(p, 129, Gfp.Kernel | Gfp.Zero);
        Assert.NotEqual((nint)p, (nint)q);
        Assert.Equal((7, 0, 9, 0, 0), (q[49], q[50], q[127], q[128], q[191]));
        Assert.Throws<KernelBugException>(() => _machine.Kfree(p));

        // Between slots, pages, and back in place.
        var large = (byte*)_machine.Krealloc(q, 10_000, Gfp.Kernel);
        Assert.Equal((7, 9), (large[0], large[127]));
        Assert.Equal((nint)large, (nint)_machine.Krealloc(large, 16384, Gfp.Kernel));
        Assert.Equal((nint)large, (nint)_machine.Krealloc(large, 1, Gfp.Kernel));
        Assert.Equal((nuint)16384, _machine.Ksize(large));

        // Too much: null, and the old block is as it was.
        Assert.True(_machine.Krealloc(large, 5 << 20, Gfp.Kernel | Gfp.NoWarn) == null);
        Assert.Equal((7, 9), (large[0], large[127]));

        // Zero bytes: freed.
        Assert.Equal((nint)16, (nint)_machine.Krealloc(large, 0, Gfp.Kernel));
        Assert.Throws<KernelBugException>(() => _machine.Kfree(large));
        Assert.Equal((nint)16, (nint)_machine.Krealloc(null, 0, Gfp.Kernel));

        // An array of a type: the same by elements.
        var array = (byte*)_machine.KreallocArray(null, 10, 10, Gfp.Kernel);
        Assert.Equal((nint)array, (nint)_machine.KreallocArray(array, 16, 8, Gfp.Kernel));
        _machine.Kfree(array);
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void Krealloc_refuses_what_is_not_the_start_of_a_live_block()
    {
        var p = (byte*)_machine.Kmalloc(100, Gfp.Kernel);
        var large = (byte*)_machine.Kmalloc(20000, Gfp.Kernel);
        int local = 0;
        foreach (nint bad in (nint[])[(nint)(p + 1), (nint)(p + 8), (nint)(p + 128), (nint)(large + 4096), (nint)(&local)])
        {
            Assert.Throws<KernelBugException>(() => { _machine.Krealloc((void*)bad, 50, Gfp.Kernel); });
            Assert.Throws<KernelBugException>(() => { _machine.Krealloc((void*)bad, 5000, Gfp.Kernel); });
            Assert.Throws<KernelBugException>(() => _machine.Ksize((void*)bad));
            Assert.Throws<KernelBugException>(() => _machine.KfreeSensitive((void*)bad));
            Assert.Throws<KernelBugException>(() => _machine.KfreeRcu((void*)bad));
        }

        _machine.Kfree(p);
        Assert.Throws<KernelBugException>(() => { _machine.Krealloc(p, 200, Gfp.Kernel); });
        Assert.Throws<KernelBugException>(() => _machine.Ksize(p));
        _machine.Kfree(large);
        Assert.Throws<KernelBugException>(() => { _machine.Krealloc(large, 200, Gfp.Kernel); });
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void Krealloc_of_a_cache_object_keeps_to_its_object_size()
    {
        KmemCache cache = _machine.CreateCache("odd", 201, 0, SlabFlags.NoMerge);
        var obj = (byte*)cache.Alloc(Gfp.Kernel);
        Assert.Equal((nuint)208, _machine.Ksize(obj));
        Assert.Equal((nint)obj, (nint)_machine.Krealloc(obj, 201, Gfp.Kernel));
        obj[200] = 5;
        var moved = (byte*)_machine.Krealloc(obj, 202, Gfp.Kernel);
        Assert.Equal("kmalloc-256", CacheOf(moved).Name);
        Assert.Equal(5, moved[200]);
        Assert.Equal(0, cache.LiveCount);
        _machine.Kfree(moved);
        cache.Destroy();

        KmemCache rcu = _machine.CreateCache("rcu", 200, 0, SlabFlags.TypesafeByRcu);
        void* typed = rcu.Alloc(Gfp.Kernel);
        Assert.Equal((208, (nuint)200), (rcu.SlotSize, _machine.Ksize(typed))); // the free pointer is the readers'
        _machine.Kfree(typed);
        rcu.Destroy();
    }

    [Fact]
    public unsafe void Sensitive_content_is_gone_when_it_is_freed()
    {
        foreach (nuint size in (nuint[])[8, 100, 5000, 20000])
        {
            var p = (byte*)_machine.Kmalloc(size, Gfp.Kernel);
            nuint all = _machine.Ksize(p);
            new Span<byte>(p, (int)all).Fill(0xee);
            _machine.KfreeSensitive(p);
            int left = new Span<byte>(p, (int)all).Count((byte)0xee);
            Assert.True(left == 0, $"{left} of {size} bytes are still there");
        }
    }

    [Fact]
    public unsafe void Texts_are_copied_with_their_zero()
    {
        Assert.True(_machine.Kstrdup(null, Gfp.Kernel) == null);
        Assert.True(_machine.Kstrndup(null, 5, Gfp.Kernel) == null);
        byte* text = _machine.Kstrdup("größe", Gfp.Kernel);
        Assert.Equal("größe", Read(text));
        Assert.Equal((nuint)8, _machine.Ksize(text)); // seven bytes and the zero
        byte* empty = _machine.Kstrdup("", Gfp.Kernel);
        Assert.Equal(0, *empty);
        byte* cut = _machine.Kstrndup("abcdefghij", 4, Gfp.Kernel);
        Assert.Equal("abcd", Read(cut));
        byte* whole = _machine.Kstrndup("abc", 100, Gfp.Kernel);
        Assert.Equal("abc", Read(whole));
        byte* none = _machine.Kstrndup("abc", 0, Gfp.Kernel);
        Assert.Equal("", Read(none));
        _machine.KfreeBulk([(nint)text, (nint)empty, (nint)cut, (nint)whole, (nint)none]);

        byte[] content = Encoding.ASCII.GetBytes(new string('x', 9000));
        var copy = (byte*)_machine.Kmemdup(content, Gfp.Kernel);
        Assert.True(new Span<byte>(copy, 9000).SequenceEqual(content));
        _machine.Kfree(copy);
        Assert.Empty(_machine.Validate());

        static string Read(byte* start)
        {
            int length = new Span<byte>(start, 1000).IndexOf((byte)0);
            return Encoding.UTF8.GetString(start, length);
        }
    }

    [Fact]
    public unsafe void Requests_that_may_sleep_are_refused_where_sleeping_is_forbidden()
    {
        KmemCache cache = _machine.CreateCache("c", 100);
        using Mempool pool = _machine.CreateMempool(2, cache);
        void* old = _machine.Kmalloc(10, Gfp.Kernel);
        using (_machine.Atomic())
        {
            Assert.Throws<KernelBugException>(() => { _machine.Kmalloc(100, Gfp.Kernel); });
            Assert.Throws<KernelBugException>(() => { _machine.Kmalloc(20_000, Gfp.Kernel); });
            Assert.Throws<KernelBugException>(() => { cache.Alloc(Gfp.Kernel); });
            Assert.Throws<KernelBugException>(() => cache.AllocBulk(Gfp.Kernel, new nint[2]));
            Assert.Throws<KernelBugException>(() => { _machine.Krealloc(old, 500, Gfp.Kernel); });
            Assert.Throws<KernelBugException>(() => { pool.Alloc(Gfp.Kernel); });
            Assert.All(
                _machine.Dmesg.Lines.Where(line => line.StartsWith("BUG", StringComparison.Ordinal)),
                line => Assert.Contains("sleeping function called from invalid context", line));
            _machine.Kfree(_machine.Kmalloc(100, Gfp.Atomic));
            cache.Free(cache.Alloc(Gfp.NoWait));
            pool.Free(pool.Alloc(Gfp.Atomic));
            _machine.Kfree(old);
        }

        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void The_trace_tells_what_was_asked_for_and_what_was_given()
    {
        var trace = new TraceRecorder();
        KmemCache cache = _machine.CreateCache("traced", 100, 0, SlabFlags.NoMerge);
        _machine.Trace = trace;
        _machine.Kmalloc(100, Gfp.Kernel);
        _machine.Kzalloc(10_000, Gfp.Kernel);
        _machine.Kmalloc(0, Gfp.Kernel);
        _machine.Kmalloc(5 << 20, Gfp.Kernel | Gfp.NoWarn);
        cache.Alloc(Gfp.Atomic);
        _machine.Trace = null;
        Assert.Equal(
            [
                ("kmalloc", (nuint)100, (nuint)128, Gfp.Kernel),
                ("kmalloc", 10_000, 16384, Gfp.Kernel | Gfp.Zero),
                ("traced", 100, 104, Gfp.Atomic),
            ],
            trace.Allocs);
    }

    [Fact]
    public unsafe void Deferred_frees_wait_for_the_readers()
    {
        nint[] blocks = [(nint)_machine.Kmalloc(64, Gfp.Kernel), (nint)_machine.Kmalloc(20_000, Gfp.Kernel)];
        using (_machine.RcuRead())
        {
            foreach (nint block in blocks)
            {
                _machine.KfreeRcu((void*)block);
                Assert.True(_machine.Ksize((void*)block) > 0); // still there
            }
        }

        foreach (nint block in blocks)
            Assert.Throws<KernelBugException>(() => _machine.Ksize((void*)block));

        nint twice = (nint)_machine.Kmalloc(64, Gfp.Kernel);
        nint other = (nint)_machine.Kmalloc(64, Gfp.Kernel);
        _machine.Dmesg.Clear();
        using (_machine.RcuRead())
        {
            _machine.KfreeRcu((void*)twice);
            _machine.KfreeRcu((void*)twice);
            _machine.KfreeRcu((void*)other);
        }

        Assert.Contains("already free", _machine.Dmesg.ToString());
        Assert.Throws<KernelBugException>(() => _machine.Ksize((void*)other));
        Assert.Empty(_machine.Validate());
    }

    private unsafe KmemCache CacheOf(void* p) => _machine.Slabs.CacheOf(_machine.Slabs.SlabOf(p));

    private long SlabPages() => _machine.NodeList.Sum(node => node.SlabReclaimablePages + node.SlabUnreclaimablePages);
}
