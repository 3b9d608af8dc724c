using System.Text.RegularExpressions;

namespace Kmem.Tests;

/// <summary>Slab debugging: what is written around objects, what is found when it is overwritten, and what happens
/// then.</summary>
public sealed class SlabDebugTests : IDisposable
{
    private const SlabFlags All =
        SlabFlags.ConsistencyChecks | SlabFlags.RedZone | SlabFlags.Poison | SlabFlags.StoreUser;

    private readonly Machine _machine = Machine.Boot(
        new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });

    public void Dispose() => _machine.Dispose();

    [Fact]
    public unsafe void Objects_lie_and_look_as_the_kernel_lays_them_out()
    {
        KmemCache cache = _machine.CreateCache("demo_node", 56, 8, All);
        Assert.Equal((152, 64, 64, 8), (cache.SlotSize, cache.Geometry.Inuse, cache.Geometry.FreePointerOffset, cache.Geometry.RedLeftPad));
        var p = (byte*)cache.Alloc(Gfp.Kernel);
        Assert.Equal(8u, (nuint)p & 4095); // the first slot, behind its red zone
        AssertAll(0xcc, p - 8, 8);
        AssertAll(0x6b, p, 55);
        Assert.Equal(0xa5, p[55]);
        AssertAll(0xcc, p + 56, 8);
        AssertAll(0x5a, p + 136, 8);
        cache.Free(p);
        AssertAll(0xbb, p - 8, 8);
        AssertAll(0x6b, p, 55);
        Assert.Equal(0xa5, p[55]);
        AssertAll(0xbb, p + 56, 8);
        AssertAll(0x5a, p - 8 + (26 * 152), 4096 - (26 * 152)); // the slab's end
        Whole(cache);
    }

    [Fact]
    public unsafe void An_overflow_by_one_byte_is_reported_as_the_kernel_does()
    {
        KmemCache cache = _machine.CreateCache("demo_node", 56, 8, All);
        for (int i = 0; i < 3; i++)
            cache.Alloc(Gfp.Kernel);
        var p = (byte*)cache.Alloc(Gfp.Kernel);
        new Span<byte>(p, 24).Clear();
        "node-07"u8.CopyTo(new Span<byte>(p, 7));
        p[56] = 0x41;
        var error = Assert.Throws<KernelBugException>(() => cache.Free(p));

        string at = $"{_machine.KernelAddressOf(p).Value:x16}";
        string red = $"{_machine.KernelAddressOf(p + 56).Value:x16}";
        string[] lines = error.Message.Split('\n');
        Assert.Equal(
            $"[Right Redzone overwritten] 0x{red}-0x{red} @offset=520. First byte 0x41 instead of 0xcc", lines[0]);
        Assert.Equal(new string('=', 77), lines[1]);
        Assert.Equal("BUG demo_node (Not tainted): Object corrupt", lines[2]);
        Assert.Equal(new string('-', 77), lines[3]);
        Assert.Equal("", lines[4]);
        Assert.Matches(@"^Allocated in \S*An_overflow_by_one_byte\S*\+0x[0-9a-f]+ age=\d+ cpu=0 pid=\d+$", lines[5]);
        Assert.Matches(@"^ Kmem\.KmemCache\.Alloc\S*\+0x[0-9a-f]+$", lines[6]);
        Assert.Matches(@"^ \S*An_overflow_by_one_byte\S*\+0x[0-9a-f]+$", lines[7]);
        int slab = Array.FindIndex(lines, line => line.StartsWith("Slab ", StringComparison.Ordinal));
        Assert.Matches(
            $"^Slab 0xffffea[0-9a-f]{{10}} objects=26 used=4 fp=0x[0-9a-f]{{16}} "
            + @"flags=0x100000000000200\(workingset\|node=0\|zone=1\)$",
            lines[slab]);
        Assert.StartsWith($"Object 0x{at} @offset=464 fp=0x", lines[slab + 1]);
        string[] dump =
        [
            "",
            $"Redzone  {_machine.KernelAddressOf(p - 8).Value:x16}: cc cc cc cc cc cc cc cc                          ........",
            $"Object   {at}: 6e 6f 64 65 2d 30 37 00 00 00 00 00 00 00 00 00  node-07.........",
            $"Object   {_machine.KernelAddressOf(p + 16).Value:x16}: 00 00 00 00 00 00 00 00 6b 6b 6b 6b 6b 6b 6b 6b  ........kkkkkkkk",
            $"Object   {_machine.KernelAddressOf(p + 32).Value:x16}: 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b  kkkkkkkkkkkkkkkk",
            $"Object   {_machine.KernelAddressOf(p + 48).Value:x16}: 6b 6b 6b 6b 6b 6b 6b a5                          kkkkkkk.",
            $"Redzone  {red}: 41 cc cc cc cc cc cc cc                          A.......",
            $"Padding  {_machine.KernelAddressOf(p + 136).Value:x16}: 5a 5a 5a 5a 5a 5a 5a 5a                          ZZZZZZZZ",
            "------------[ cut here ]------------",
        ];
        Assert.Equal(dump, lines[(slab + 2)..(slab + 2 + dump.Length)]);
        Assert.Equal($"FIX demo_node: Restoring Right Redzone 0x{red}-0x{red}=0xcc", lines[^2]);
        Assert.Equal($"FIX demo_node: Object at 0x{at} not freed", lines[^1]);
        Assert.Equal(lines, _machine.Dmesg.Lines);

        // The object is still there, and whole again.
        Assert.Equal(4, cache.LiveCount);
        Whole(cache);
        cache.Free(p);
        Whole(cache);
    }

    [Theory]
    [InlineData(-1, "Left Redzone", 0xcc)]
    [InlineData(-8, "Left Redzone", 0xcc)]
    [InlineData(56, "Right Redzone", 0xcc)]
    [InlineData(63, "Right Redzone", 0xcc)]
    [InlineData(140, "Object padding", 0x5a)]
    public unsafe void Each_guard_byte_is_checked_when_an_object_is_freed(int offset, string what, int expected)
    {
        KmemCache cache = _machine.CreateCache("demo_node", 56, 8, All);
        var p = (byte*)cache.Alloc(Gfp.Kernel);
        p[offset] ^= 1;
        var error = Assert.Throws<KernelBugException>(() => cache.Free(p));
        Assert.StartsWith($"[{what} overwritten] ", error.Message);
        Assert.Contains($"instead of 0x{expected:x}\n", error.Message);
        Assert.Contains($"FIX demo_node: Restoring {what} ", error.Message);
        Whole(cache);
        cache.Free(p);
        Assert.Equal(0, cache.LiveCount);
        cache.Destroy();
        Assert.Empty(_machine.Validate());
    }

    [Theory]
    [InlineData(0, "Poison")]
    [InlineData(54, "Poison")]
    [InlineData(55, "End Poison")]
    [InlineData(57, "Right Redzone")]
    [InlineData(65, "Freepointer corrupt")]
    [InlineData(-3, "Left Redzone")]
    public unsafe void A_write_after_free_is_found_by_the_next_allocation(int offset, string what)
    {
        KmemCache cache = _machine.CreateCache("demo_node", 56, 8, All);
        var p = (byte*)cache.Alloc(Gfp.Kernel);
        var neighbour = (byte*)cache.Alloc(Gfp.Kernel);
        cache.Free(p);
        p[offset] ^= 0x10;

        // Whoever allocates is not to blame: it gets an object of another slab.
        var other = (byte*)cache.Alloc(Gfp.Kernel);
        Assert.NotEqual((nuint)p & ~(nuint)4095, (nuint)other & ~(nuint)4095);
        string log = _machine.Dmesg.ToString();
        Assert.Contains(what, log);
        Assert.Contains("Freed in ", log);
        Assert.Contains("FIX demo_node: Marking all objects used", log);
        Whole(cache);

        // Objects of the slab that was given up are still their owners', and leak when they are freed.
        neighbour[0] = 1;
        _machine.Dmesg.Clear();
        cache.Free(neighbour);
        Assert.Contains("Slab disabled since SLUB metadata consistency check failed", _machine.Dmesg.ToString());
        Assert.Throws<KernelBugException>(() => cache.Free(neighbour));
        cache.Free(other);
        Whole(cache);
    }

    [Fact]
    public unsafe void Freeing_twice_shows_both_stacks()
    {
        KmemCache cache = _machine.CreateCache("demo_node", 56, 8, All);
        void* p = AllocHere(cache);
        FreeHere(cache, p);
        var error = Assert.Throws<KernelBugException>(() => cache.Free(p));
        Assert.Contains("BUG demo_node (Not tainted): Object already free\n", error.Message);
        Assert.Matches(@"\nAllocated in \S*AllocHere\+0x", error.Message);
        Assert.Matches(@"\nFreed in \S*FreeHere\+0x", error.Message);
        Assert.Contains("not freed", error.Message.Split('\n')[^1]);
        error = Assert.Throws<KernelBugException>(() => cache.Free((byte*)p + 8));
        Assert.Matches(@"BUG demo_node \(Tainted: B\): Invalid object pointer 0x[0-9a-f]{16}\n", error.Message);
        Whole(cache);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(33)]
    [InlineData(63)]
    [InlineData(64)]
    public unsafe void Kmalloc_guards_what_was_not_asked_for(int size)
    {
        using var machine = Debugged("FZPU,kmalloc-*");
        var p = (byte*)machine.Kmalloc((nuint)size, Gfp.Kernel | Gfp.Zero);
        Assert.Equal(-1, new Span<byte>(p, size).IndexOfAnyExcept((byte)0));
        int slot = size <= 8 ? 8 : 64;
        AssertAll(0xcc, p + size, slot - size);
        p[size] = 0;
        var error = Assert.Throws<KernelBugException>(() => machine.Kfree(p));
        Assert.StartsWith(size < slot ? "[kmalloc Redzone overwritten]" : "[Right Redzone overwritten]", error.Message);
        machine.Kfree(p);
        Assert.Empty(machine.Validate());

        // Who asks how much there is may use it all.
        p = (byte*)machine.Kmalloc((nuint)size, Gfp.Kernel);
        nuint usable = machine.Ksize(p);
        Assert.Equal((nuint)slot, usable);
        new Span<byte>(p, (int)usable).Fill(7);
        machine.Kfree(p);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void Krealloc_moves_the_red_zone()
    {
        using var machine = Debugged("FZPU");
        var p = (byte*)machine.Kmalloc(40, Gfp.Kernel);
        new Span<byte>(p, 40).Fill(1);
        var q = (byte*)machine.Krealloc(p, 60, Gfp.Kernel);
        Assert.Equal((nint)p, (nint)q);
        new Span<byte>(q, 60).Fill(2);
        q = (byte*)machine.Krealloc(q, 50, Gfp.Kernel);
        q[50] = 2;
        Assert.StartsWith(
            "[kmalloc Redzone overwritten]", Assert.Throws<KernelBugException>(() => machine.Kfree(q)).Message);
        var r = (byte*)machine.Krealloc(q, 500, Gfp.Kernel);
        AssertAll(2, r, 50);
        AssertAll(0x6b, r + 50, 449);
        machine.KfreeSensitive(r);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void Validation_on_request_finds_damage_wherever_it_is()
    {
        KmemCache cache = _machine.CreateCache("demo_node", 56, 8, All);
        var objects = new byte*[60]; // two full slabs and a partial one
        for (int i = 0; i < objects.Length; i++)
            objects[i] = (byte*)cache.Alloc(Gfp.Kernel);
        cache.Free(objects[59]);
        Assert.Equal(0, cache.ValidateObjects());
        Assert.Empty(_machine.Dmesg.Lines);

        objects[3][56] = 0;                                    // in a full slab
        objects[59][5] = 0;                                    // a free object
        ((byte*)((nuint)objects[30] & ~(nuint)4095))[4095] = 0;      // the end of a slab
        Assert.Equal(3, cache.ValidateObjects());
        string log = _machine.Dmesg.ToString();
        Assert.Contains("[Right Redzone overwritten]", log);
        Assert.Contains("[Poison overwritten]", log);
        Assert.Contains("Padding overwritten. 0x", log);
        Assert.Contains("FIX demo_node: Restoring slab padding 0x", log);
        Assert.Equal(0, cache.ValidateObjects());

        KmemCache plain = _machine.CreateCache("plain", 56, 8, SlabFlags.NoMerge);
        Assert.Throws<InvalidOperationException>(() => plain.ValidateObjects());
        for (int i = 0; i < 59; i++)
            cache.Free(objects[i]);
        Whole(cache);
        cache.Destroy();
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void A_free_list_that_leads_astray_is_cut()
    {
        KmemCache cache = _machine.CreateCache("demo_list", 64, 8, SlabFlags.ConsistencyChecks);
        var p = (byte*)cache.Alloc(Gfp.Kernel);
        var q = (byte*)cache.Alloc(Gfp.Kernel);
        cache.Free(q);
        cache.Free(p);
        *(ulong*)(q + cache.Geometry.FreePointerOffset) = 0x4141_4141_4141_4141;
        Assert.Equal(1, cache.ValidateObjects());
        string log = _machine.Dmesg.ToString();
        Assert.Contains("Freechain corrupt", log);
        Assert.Contains("Isolate corrupted freechain", log);
        Assert.Contains("Wrong object count. Counter is 0 but counted were 62", log);
        Assert.Contains("Object count adjusted", log);
        Whole(cache);

        var again = (byte*)cache.Alloc(Gfp.Kernel);
        Assert.Equal((nint)p, (nint)again);
        cache.Free(again);
        *(void**)(again + cache.Geometry.FreePointerOffset) = again;
        Assert.Equal(1, cache.ValidateObjects());
        Assert.Contains("Freelist cycle detected", _machine.Dmesg.ToString());
        Assert.Contains("Freelist cleared", _machine.Dmesg.ToString());
        Whole(cache);
    }

    [Fact]
    public unsafe void Random_work_on_every_mix_of_flags_leaves_everything_whole()
    {
        var random = new Random(7);
        for (int mix = 1; mix < 16; mix++)
        {
            var flags = (SlabFlags)((mix & 7) | ((mix & 8) << 4));
            Assert.Equal(mix >= 8, (flags & SlabFlags.StoreUser) != 0);
            int size = random.Next(1, 600);
            KmemCache cache = _machine.CreateCache($"mix-{mix}", size, 0, flags | SlabFlags.NoMerge, sheafCapacity: 32);
            Assert.Equal((0, 0), (cache.SheafCapacity, cache.Geometry.CpuPartial));
            var live = new List<nint>();
            for (int i = 0; i < 600; i++)
            {
                if (random.Next(5) < 3)
                {
                    var p = (nint)cache.Alloc(Gfp.Kernel);
                    Assert.DoesNotContain(p, live);
                    new Span<byte>((void*)p, size).Fill((byte)i);
                    live.Add(p);
                }
                else if (live.Count > 0)
                {
                    int at = random.Next(live.Count);
                    cache.Free((void*)live[at]);
                    live.RemoveAt(at);
                }
            }

            var batch = new nint[40];
            Assert.Equal(40, cache.AllocBulk(Gfp.Kernel | Gfp.Zero, batch));
            live.AddRange(batch);
            Assert.Equal(live.Count, cache.LiveCount);
            Whole(cache);
            cache.FreeBulk(live.ToArray());
            Assert.Equal(0, cache.LiveCount);
            Whole(cache);
            cache.Destroy();
        }

        Assert.Empty(_machine.Dmesg.Lines);
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void A_whole_machine_runs_with_debugging_on_all_caches()
    {
        foreach (KernelProfile profile in (KernelProfile[])[KernelProfile.Linux618, KernelProfile.Native])
        {
            using var machine = Machine.Boot(new MachineOptions
            {
                Profile = profile,
                RamBytes = 128 << 20,
                Cpus = 2,
                SlubDebug = "",
                SlabFreelistRandom = true,
                SlabFreelistHardened = true,
            });
            Parallel.For(0, 4, worker =>
            {
                var random = new Random(worker);
                var live = new Queue<nint>();
                for (int i = 0; i < 400; i++)
                {
                    int size = random.Next(1, 9000);
                    var p = (nint)machine.Kmalloc((nuint)size, Gfp.Kernel);
                    new Span<byte>((void*)p, size).Fill((byte)worker);
                    live.Enqueue(p);
                    if (live.Count > 20)
                        machine.Kfree((void*)live.Dequeue());
                }

                foreach (nint p in live)
                    machine.Kfree((void*)p);
            });
            void* area = machine.Vmalloc(100_000);
            machine.Vfree(area);
            KmemCache cache = machine.CreateCache("with-sheaves", 100, sheafCapacity: 8);
            using (CacheScope scope = cache.Enter(Gfp.Kernel))
                scope.Free(scope.Alloc());
            cache.Destroy();
            Assert.Empty(machine.Validate());
            foreach (KmemCache its in machine.Caches.Where(its => (its.Flags & SlabFlags.Poison) != 0))
                Assert.Equal(0, its.ValidateObjects());
            machine.ShrinkCaches();
            Assert.Empty(machine.Dmesg.Lines);
            Assert.Empty(machine.Validate());
        }
    }

    [Fact]
    public unsafe void Constructed_and_rcu_objects_keep_their_content()
    {
        KmemCache made = _machine.CreateCache("made", 100, 0, All, constructor: p => new Span<byte>(p, 100).Fill(9));
        KmemCache rcu = _machine.CreateCache("rcu", 100, 0, All | SlabFlags.TypesafeByRcu);
        var a = (byte*)made.Alloc(Gfp.Kernel);
        AssertAll(9, a, 100);
        a[5] = 8;
        made.Free(a);
        Assert.Equal((nint)a, (nint)made.Alloc(Gfp.Kernel));
        Assert.Equal(8, a[5]);
        var b = (byte*)rcu.Alloc(Gfp.Kernel);
        b[7] = 7;
        rcu.Free(b);
        Assert.Equal(7, b[7]);
        made.Free(a);
        Whole(made);
        Whole(rcu);
    }

    [Fact]
    public unsafe void Traced_caches_log_each_operation()
    {
        KmemCache cache = _machine.CreateCache("traced", 20, 0, SlabFlags.Trace);
        void* p = AllocHere(cache);
        string at = $"0x{_machine.KernelAddressOf(p).Value:x16}";
        Assert.StartsWith($"TRACE traced alloc {at} inuse=1 fp=0x", _machine.Dmesg.Lines[0]);
        Assert.Contains(_machine.Dmesg.Lines, line => Regex.IsMatch(line, "AllocHere"));
        _machine.Dmesg.Clear();
        cache.Free(p);
        Assert.StartsWith($"TRACE traced free {at} inuse=1 fp=0x", _machine.Dmesg.Lines[0]);
        Assert.StartsWith("Object   ffff", _machine.Dmesg.Lines[1]);
        Assert.Equal(0, cache.ValidateObjects());
        Whole(cache);
    }

    [Fact]
    public unsafe void Destroying_too_early_lists_who_has_the_objects()
    {
        KmemCache cache = _machine.CreateCache("demo_node", 56, 8, All);
        void* p = AllocHere(cache);
        var error = Assert.Throws<KernelBugException>(cache.Destroy);
        Assert.Contains("Objects remaining on __kmem_cache_shutdown()", error.Message);
        Assert.Contains("@offset=8\nAllocated in ", error.Message);
        Assert.Contains("AllocHere", error.Message);
        cache.Free(p);
        cache.Destroy();
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public void Sysfs_shows_the_flags()
    {
        KmemCache cache = _machine.CreateCache("demo_node", 56, 8, All | SlabFlags.Trace);
        SlabSysfs files = _machine.Proc.ReadSlabFiles(cache);
        Assert.Equal(
            (true, true, true, true, true),
            (files.SanityChecks, files.RedZone, files.Poison, files.StoreUser, files.Trace));
        Assert.Equal(("demo_node", 152u, 0u), (files.Name, files.SlabSize, files.CpuPartial));
    }

    private static Machine Debugged(string debug) => Machine.Boot(new MachineOptions
    {
        Profile = KernelProfile.Linux618,
        RamBytes = 64 << 20,
        Cpus = 1,
        SlubDebug = debug,
    });

    [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
    private static unsafe void* AllocHere(KmemCache cache) => cache.Alloc(Gfp.Kernel);

    [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
    private static unsafe void FreeHere(KmemCache cache, void* p) => cache.Free(p);

    private static unsafe void AssertAll(byte expected, byte* from, int count) =>
        Assert.Equal(-1, new Span<byte>(from, count).IndexOfAnyExcept(expected));

    private void Whole(KmemCache cache)
    {
        Assert.Equal(0, cache.ValidateObjects());
        Assert.Empty(_machine.Validate());
    }
}
