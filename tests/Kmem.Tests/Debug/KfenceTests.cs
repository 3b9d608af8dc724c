namespace Kmem.Tests;

/// <summary>Guarded objects: where they lie, what is reported about them, and that all else is as ever.</summary>
public sealed class KfenceTests
{
    private static Machine Boot(KfenceOptions? kfence = null, KernelProfile? profile = null) =>
        Machine.Boot(new MachineOptions
        {
            RamBytes = 64 << 20,
            Cpus = 2,
            Profile = profile ?? KernelProfile.Native,
            Kfence = kfence ?? new KfenceOptions { EveryNth = 1 },
            DecaySeconds = 0,
        });

    public static TheoryData<string> Profiles => [.. KernelProfile.All.Select(profile => profile.Name)];

    private static string Try(Action action) =>
        Assert.Throws<KernelBugException>(action).Message;

    [Theory]
    [MemberData(nameof(Profiles))]
    public unsafe void Each_object_lies_alone_at_an_edge_of_its_page(string profile)
    {
        using Machine machine = Boot(profile: KernelProfile.Find(profile));
        KmemCache cache = machine.CreateCache("guarded", 100, align: 32);
        var edges = new HashSet<bool>();
        for (int i = 0; i < 100; i++)
        {
            var p = (byte*)cache.Alloc(Gfp.Kernel);
            Assert.True(machine.Kfence!.Contains(p));
            Assert.Equal(0u, (nuint)p % 32);
            long offset = (nint)p % 4096;
            Assert.True(offset is 0 or 4096 - 128, $"{offset}");
            edges.Add(offset == 0);
            new Span<byte>(p, 100).Fill(1);
            cache.Free(p);
        }

        Assert.Equal(2, edges.Count);
        Assert.Equal(0, cache.LiveCount);
        Assert.Equal(0, machine.Kfence!.Allocated);
        Assert.Empty(machine.Validate());
        cache.Destroy();
        Assert.Equal("", machine.Dmesg.ToString());
    }

    [Fact]
    public unsafe void Every_nth_allocation_is_guarded_and_the_same_ones_again()
    {
        static List<int> Guarded()
        {
            using Machine machine = Boot(new KfenceOptions { EveryNth = 7, Objects = 20 });
            long before = machine.Kfence!.TotalAllocated;
            var guarded = new List<int>();
            for (int i = 0; i < 140; i++)
            {
                void* p = machine.Kmalloc(64, Gfp.Kernel);
                if (machine.Kfence.Contains(p))
                    guarded.Add(i);
                machine.Kfree(p);
            }

            Assert.Equal(20, guarded.Count);
            Assert.Equal(20, machine.Kfence.TotalAllocated - before);
            return guarded;
        }

        List<int> first = Guarded();
        Assert.All(first.Zip(first.Skip(1)), pair => Assert.Equal(7, pair.Second - pair.First));
        Assert.Equal(first, Guarded());
    }

    [Fact]
    public unsafe void By_time_one_allocation_is_guarded_and_then_the_fast_paths_are_open_again()
    {
        using Machine machine = Boot(new KfenceOptions { SampleInterval = 0 });
        machine.Kfree(machine.Kmalloc(64, Gfp.Kernel));
        Assert.Equal(machine.CpuSet.Id, machine.Slabs.FastId);
        Assert.Equal(0, machine.Kfence!.TotalAllocated);
        machine.Kfence.OpenGate();
        Assert.Equal(-1, machine.Slabs.FastId);
        void* p = machine.Kmalloc(64, Gfp.Kernel);
        Assert.True(machine.Kfence.Contains(p));
        Assert.Equal(machine.CpuSet.Id, machine.Slabs.FastId);
        Assert.False(machine.Kfence.Contains(machine.Kmalloc(64, Gfp.Kernel)));
        machine.Kfree(p);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public async Task The_timer_samples_by_itself()
    {
        using Machine machine = Boot(new KfenceOptions { SampleInterval = 1 });
        unsafe void Use() => machine.Kfree(machine.Kmalloc(64, Gfp.Kernel));
        for (int i = 0; i < 1000 && machine.Kfence!.TotalAllocated < 3; i++)
        {
            await Task.Delay(5, TestContext.Current.CancellationToken);
            Use();
        }

        Assert.InRange(machine.Kfence!.TotalAllocated, 3, 1000);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(60)]
    public unsafe void A_byte_beside_an_object_is_reported_when_it_is_freed(int at)
    {
        using Machine machine = Boot();
        byte* p;
        do
            p = (byte*)machine.Kmalloc(60, Gfp.Kernel);
        while ((at == 0) == ((nint)p % 4096 == 0)); // there is room at this side
        long offset = at == 0 ? -1 : 60;
        p[offset] = 0x41;
        Assert.Equal("KFENCE-01", Assert.Single(machine.Validate()).Id);
        string said = Try(() => machine.Kfree(p));
        Assert.StartsWith(new string('=', 66) + "\nBUG: KFENCE: memory corruption in Kmem.Tests.KfenceTests", said);
        Assert.Contains($"\nCorrupted memory at 0x{machine.Slabs.KernelAddress(p + offset):x16} [ 0x41", said);
        Assert.Contains("size=60, cache=kmalloc-64\n\nallocated by task ", said);
        Assert.EndsWith(new string('=', 66), said);
        Assert.EndsWith(said + "\n", machine.Dmesg.ToString());
        machine.Kfree(p);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void Frees_that_are_none_are_reported_with_both_stacks()
    {
        using Machine machine = Boot();
        var p = (byte*)machine.Kmalloc(60, Gfp.Kernel);
        string inside = Try(() => machine.Kfree(p + 8));
        Assert.Contains("BUG: KFENCE: invalid free in Kmem.Tests.KfenceTests", inside);
        Assert.Contains($"\nInvalid free of 0x{machine.Slabs.KernelAddress(p + 8):x16} (in kfence-#", inside);
        machine.Kfree(p);
        string twice = Try(() => machine.Kfree(p));
        Assert.Contains($"\nInvalid free of 0x{machine.Slabs.KernelAddress(p):x16} (in kfence-#", twice);
        Assert.Contains("\nallocated by task ", twice);
        Assert.Contains("\nfreed by task ", twice);
        Assert.Equal(2, machine.Kfence!.TotalBugs);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void An_access_is_explained_before_it_is_made_and_after_it_killed_somebody()
    {
        using Machine machine = Boot();
        byte* p;
        do
            p = (byte*)machine.Kmalloc(64, Gfp.Kernel);
        while ((nint)p % 4096 == 0); // its end is the page's
        ulong address = machine.Slabs.KernelAddress(p);
        machine.Kfence!.CheckAccess(p, 64, write: true);
        string beyond = Try(() => machine.Kfence.CheckAccess(p, 65, write: false));
        Assert.Contains("BUG: KFENCE: out-of-bounds read in Kmem.Tests.KfenceTests", beyond);
        Assert.Contains($"\nOut-of-bounds read at 0x{address + 64:x16} (64B right of kfence-#", beyond);
        Assert.StartsWith(
            $"Out-of-bounds access at 0x{address + 70:x16} (70B right of kfence-#", machine.Kfence.Explain(p + 70));
        Assert.StartsWith("Valid access at", machine.Kfence.Explain(p));
        machine.Kfree(p);
        string after = Try(() => machine.Kfence.CheckAccess(p + 5, 1, write: true));
        Assert.Contains($"\nUse-after-free write at 0x{address + 5:x16} (in kfence-#", after);
        Assert.Contains("\nfreed by task ", machine.Kfence.Explain(p));
        int local = 0;
        Assert.EndsWith("is not in the pool of guarded objects", machine.Kfence.Explain(&local));
        Assert.Contains("freed by task ", machine.Kfence.ObjectsText());
        Assert.Contains("total bugs: 2\n", machine.Kfence.StatsText());
    }

    [Fact]
    public unsafe void Sizes_zeroing_constructors_and_reallocation_are_as_elsewhere()
    {
        using Machine machine = Boot();
        var p = (byte*)machine.Kzalloc(100, Gfp.Kernel);
        Assert.Equal(100u, machine.Ksize(p));
        Assert.Equal(-1, new Span<byte>(p, 100).IndexOfAnyExcept((byte)0));
        new Span<byte>(p, 100).Fill(7);
        Assert.True(machine.Krealloc(p, 50, Gfp.Kernel) == p);
        Assert.Equal(50u, machine.Ksize(p));
        p = (byte*)machine.Krealloc(p, 3000, Gfp.Kernel);
        Assert.Equal(-1, new Span<byte>(p, 50).IndexOfAnyExcept((byte)7));
        machine.KfreeSensitive(p);
        p = (byte*)machine.Kmalloc(10, Gfp.Kernel);
        machine.KfreeRcu(p);
        machine.RcuBarrier();
        Assert.Equal(0, machine.Kfence!.Allocated);
        KmemCache built = machine.CreateCache("built", 64, constructor: obj => *(long*)obj = 42);
        var objects = new nint[3];
        Assert.Equal(3, built.AllocBulk(Gfp.Kernel, objects));
        Assert.All(objects, obj => Assert.Equal(42, *(long*)obj));
        Assert.Contains("Objects remaining", Try(built.Destroy));
        built.FreeBulk(objects);
        built.Destroy();
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void What_cannot_be_guarded_is_not_and_a_full_pool_does_no_harm()
    {
        using Machine machine = Boot(new KfenceOptions { EveryNth = 1, Objects = 4 });
        KmemCache safe = machine.CreateCache("safe", 64, flags: SlabFlags.TypesafeByRcu);
        Assert.False(machine.Kfence!.Contains(safe.Alloc(Gfp.Kernel)));
        Assert.False(machine.Kfence.Contains(machine.Kmalloc(5000, Gfp.Kernel)));
        Assert.False(machine.Kfence.Contains(machine.Kmalloc(64, Gfp.Kernel | Gfp.Dma)));
        int guarded = 0;
        for (int i = 0; i < 50; i++)
            guarded += machine.Kfence.Contains(machine.Kmalloc(64, Gfp.Kernel)) ? 1 : 0;

        // From three of four objects on, one stack gets no second one.
        Assert.Equal(3, guarded);
        Assert.Contains("skipped allocations (covered): 47\n", machine.Kfence.StatsText());
        using KmemCache<long> typed = machine.CreateCache<long>("typed");
        KmemHandle<long> handle = typed.Rent();
        typed.Return(handle);
        Assert.False(typed.IsLive(handle));
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public unsafe void Without_guard_pages_a_write_after_free_is_found_at_reuse()
    {
        using Machine machine = Boot(new KfenceOptions
        {
            EveryNth = 1, Objects = 1, SkipCoveredPercent = 101, WithoutGuardPages = true,
        });
        Assert.False(machine.Kfence!.IsGuarded);
        var p = (byte*)machine.Kmalloc(64, Gfp.Kernel);
        machine.Kfree(p);
        p[3] = 0x41;
        Assert.Equal("", machine.Dmesg.ToString());
        machine.Kfree(machine.Kmalloc(64, Gfp.Kernel));
        string said = machine.Dmesg.ToString();
        Assert.Contains("BUG: KFENCE: use-after-free write in Kmem.Tests.KfenceTests", said);
        Assert.Contains(
            $"\nUse-after-free write at 0x{machine.Slabs.KernelAddress(p + 3):x16} [ 0x41 ] (in kfence-#0):", said);
        Assert.Contains("\nfreed by task ", said);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    public void Options_that_cannot_be_are_refused()
    {
        using Machine machine = Boot();
        Assert.Equal(OperatingSystem.IsLinux(), machine.Kfence!.IsGuarded);
        Assert.Throws<ArgumentException>(() => Boot(new KfenceOptions { Objects = 0 }));
        Assert.Throws<ArgumentException>(() => Boot(new KfenceOptions { Objects = 512 }));
        Assert.Throws<ArgumentException>(() => Boot(new KfenceOptions { EveryNth = -1 }));
    }

    [Fact]
    public unsafe void Threads_that_allocate_while_the_gate_swings_keep_their_memory_apart()
    {
        using Machine machine = Boot(new KfenceOptions { SampleInterval = 0, Objects = 50 });
        var crew = new Crew();
        crew.Add(1, _ =>
        {
            while (crew.Working)
                machine.Kfence!.OpenGate();
        });
        crew.Add(3, worker =>
        {
            var live = new Queue<(nint At, byte Fill)>();
            for (byte fill = 1; crew.Working; fill = (byte)(fill == 255 ? 1 : fill + 1))
            {
                void* p = machine.Kmalloc(100, Gfp.Kernel);
                new Span<byte>(p, 100).Fill(fill);
                live.Enqueue(((nint)p, fill));
                if (live.Count < 20)
                    continue;

                (nint at, byte its) = live.Dequeue();
                Assert.Equal(-1, new Span<byte>((void*)at, 100).IndexOfAnyExcept(its));
                machine.Kfree((void*)at);
            }

            foreach ((nint at, byte _) in live)
                machine.Kfree((void*)at);
        });
        crew.Run();
        Assert.InRange(machine.Kfence!.TotalAllocated, 10, long.MaxValue);
        Assert.Equal(0, machine.Kfence.Allocated);
        Assert.Empty(machine.Validate());
        Assert.Equal("", machine.Dmesg.ToString());
    }
}
