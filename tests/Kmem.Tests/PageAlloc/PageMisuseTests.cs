namespace Kmem.Tests;

/// <summary>
/// Misuse of page frames: refused, reported in the log as the kernel does, and without harm: all rules hold afterwards
/// and the machine goes on.
/// </summary>
public sealed class PageMisuseTests
{
    [Fact]
    [Trait("rule", "MISUSE-01")]
    public void Freeing_twice_is_refused_wherever_the_frame_went()
    {
        Refuse("page is already free", machine =>
        {
            Pfn pfn = machine.AllocPage(Gfp.Kernel);
            machine.FreePage(pfn);          // on the per-CPU list now
            return () => machine.FreePage(pfn);
        });
        Refuse("page is already free", machine =>
        {
            Pfn pfn = machine.AllocPage(Gfp.Kernel);
            machine.FreePage(pfn);
            machine.DrainAllPages();        // somewhere inside a large free block
            return () => machine.FreePage(pfn);
        });
        Refuse("page is already free", machine =>
        {
            Pfn pfn = machine.AllocPages(Gfp.Kernel, 10);
            machine.FreePages(pfn, 10);     // the head of a free block
            return () => machine.FreePages(pfn, 10);
        });
        Refuse("page is already free", machine =>
        {
            Pfn pfn = machine.AllocPages(Gfp.Kernel | Gfp.Comp, 3);
            machine.FreePages(pfn, 3);
            return () => machine.FreePages(pfn + 5, 0);
        });
    }

    [Theory]
    [InlineData(3, 2, false)]
    [InlineData(3, 4, false)]
    [InlineData(3, 0, true)]
    [InlineData(0, 1, false)]
    [InlineData(10, 9, true)]
    [Trait("rule", "MISUSE-02")]
    public void The_order_must_be_that_of_the_allocation(int order, int wrong, bool compound)
    {
        Machine machine = Refuse($"the block was allocated with order {order}", machine =>
        {
            Pfn pfn = machine.AllocPages(Gfp.Kernel | (compound ? Gfp.Comp : 0), order);
            return () => machine.FreePages(pfn, wrong);
        });
        Assert.NotNull(machine);
    }

    [Theory]
    [InlineData(11)]
    [InlineData(-1)]
    [InlineData(int.MaxValue)]
    [InlineData(int.MinValue)]
    [Trait("rule", "MISUSE-02")]
    public void An_order_that_cannot_be_is_refused(int order) =>
        Refuse("order is not between 0 and 10", machine =>
        {
            Pfn pfn = machine.AllocPage(Gfp.Kernel);
            return () => machine.FreePages(pfn, order);
        });

    [Fact]
    [Trait("rule", "MISUSE-03")]
    public void Only_the_start_of_a_block_can_be_freed()
    {
        Refuse("page is the tail of a compound block", machine =>
        {
            Pfn pfn = machine.AllocPages(Gfp.Kernel | Gfp.Comp, 2);
            return () => machine.FreePages(pfn + 1, 0);
        });
        Refuse("page is the tail of a compound block", machine =>
        {
            Pfn pfn = machine.AllocPages(Gfp.Kernel | Gfp.Comp, 3);
            return () => machine.FreePages(pfn + 4, 2);
        });
        Refuse("never allocated", machine =>
        {
            Pfn pfn = machine.AllocPages(Gfp.Kernel, 2);
            return () => machine.FreePages(pfn + 2, 1);
        });
    }

    [Fact]
    [Trait("rule", "MISUSE-03")]
    public unsafe void Frames_of_slabs_are_not_the_callers()
    {
        Refuse("page belongs to Slab", machine =>
        {
            void* p = machine.Kmalloc(100, Gfp.Kernel);
            return () => machine.FreePage(machine.PfnOf(p));
        });
        Refuse("page belongs to LargeKmalloc", machine =>
        {
            void* p = machine.Kmalloc(100_000, Gfp.Kernel);
            return () => machine.FreePages(machine.PfnOf(p), 5);
        });
        Refuse("page is the tail of a compound block", machine =>
        {
            void* p = machine.Kmalloc(100_000, Gfp.Kernel);
            return () => machine.FreePages(machine.PfnOf(p) + 1, 0);
        });
    }

    [Fact]
    [Trait("rule", "MISUSE-03")]
    public void Frames_that_were_never_given_out_are_refused()
    {
        Refuse("never allocated", machine => () => machine.FreePage(new Pfn(5)));           // reserved at boot
        Refuse("never allocated", machine => () => machine.FreePage(new Pfn(0)));           // no memory at all
        Refuse("no such page frame", machine => () => machine.FreePage(new Pfn(1UL << 40)));
        Refuse("no such page frame", machine => () => machine.FreePages(new Pfn(ulong.MaxValue - 1), 3));
        Refuse("no such page frame", machine => () => machine.FreePage(new Pfn(machine.Map.EndPfn)));
        using Machine quiet = Boot();
        quiet.FreePage(Pfn.None);
        Assert.Empty(quiet.Dmesg.Lines);
    }

    [Fact]
    [Trait("rule", "MISUSE-04")]
    public unsafe void A_page_that_is_still_in_use_is_not_put_back()
    {
        foreach ((PageFlags flag, ulong mapping) in new[]
        {
            (PageFlags.Locked, 0UL), (PageFlags.Lru, 0UL), (PageFlags.Writeback, 0UL), (PageFlags.None, 0x1000UL),
        })
        {
            Refuse("the page is not put back", machine =>
            {
                Pfn pfn = machine.AllocPage(Gfp.Kernel);
                machine.Map.PageOf(pfn.Value)->Flags |= flag;
                machine.Map.PageOf(pfn.Value)->Mapping = mapping;
                return () => machine.FreePage(pfn);
            });
        }
    }

    [Fact]
    [Trait("rule", "MISUSE-04")]
    public void References_keep_a_block_until_the_last_is_dropped()
    {
        using Machine machine = Boot();
        Pfn compound = machine.AllocPages(Gfp.Kernel | Gfp.Comp, 3);
        machine.GetPage(compound);
        machine.FreePages(compound, 3);
        Assert.Empty(machine.Validate());
        machine.FreePages(compound, 3);
        Assert.Throws<KernelBugException>(() => machine.FreePages(compound, 3));

        // A plain block keeps only its first frame for the other holder: the rest is freed as 4 + 2 + 1 frames.
        var trace = new RecordingTrace();
        Pfn plain = machine.AllocPages(Gfp.Kernel, 3);
        machine.GetPage(plain);
        machine.Trace = trace;
        machine.FreePages(plain, 3);
        ulong first = plain.Value;
        Assert.Equal(
            [RecordingTrace.Freed(first + 4, 2), RecordingTrace.Freed(first + 2, 1), RecordingTrace.Freed(first + 1, 0)],
            trace.Events.FindAll(text => text.StartsWith("free", StringComparison.Ordinal)).ToArray());
        machine.Trace = null;
        Assert.Empty(machine.Validate());
        Assert.Throws<KernelBugException>(() => machine.FreePages(plain, 3));
        machine.FreePage(plain);
        Assert.Throws<KernelBugException>(() => machine.FreePage(plain));
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "MISUSE-05")]
    public unsafe void Other_operations_check_their_frame_too()
    {
        Refuse("page is already free", machine =>
        {
            Pfn pfn = machine.AllocPage(Gfp.Kernel);
            machine.FreePage(pfn);
            return () => machine.GetPage(pfn);
        });
        Refuse("page belongs to Slab", machine =>
        {
            void* p = machine.Kmalloc(100, Gfp.Kernel);
            return () => machine.GetPage(machine.PfnOf(p));
        });
        Refuse("a compound block cannot be split", machine =>
        {
            Pfn pfn = machine.AllocPages(Gfp.Kernel | Gfp.Comp, 3);
            return () => machine.SplitPages(pfn, 3);
        });
        Refuse("allocated with order 3", machine =>
        {
            Pfn pfn = machine.AllocPages(Gfp.Kernel, 3);
            return () => machine.SplitPages(pfn, 4);
        });
        Refuse("no such page frame", machine => () => machine.SplitPages(Pfn.None, 0));
        Refuse("already free", machine =>
        {
            void* p = machine.AllocPagesExact(3 * 4096, Gfp.Kernel);
            machine.FreePagesExact(p, 3 * 4096);
            return () => machine.FreePagesExact(p, 3 * 4096);
        });
        Refuse("already free", machine =>
        {
            void* p = machine.AllocPagesExact(5 * 4096, Gfp.Kernel);
            return () => machine.FreePagesExact(p, (5 * 4096) + 1);
        });
    }

    [Theory]
    [InlineData(Gfp.Dma | Gfp.Dma32)]
    [InlineData(Gfp.Dma | Gfp.HighMem)]
    [InlineData(Gfp.Kernel | Gfp.Dma32 | Gfp.HighMem | Gfp.Movable)]
    [InlineData(Gfp.Kernel | Gfp.Movable | Gfp.Reclaimable)]
    [Trait("rule", "MISUSE-06")]
    public unsafe void Flags_that_exclude_each_other_are_refused(Gfp gfp)
    {
        Refuse("exclude each other", machine => () => machine.AllocPage(gfp));
        Refuse("exclude each other", machine => () => machine.AllocPagesBulk(gfp, [Pfn.None, Pfn.None, Pfn.None]));
        if ((gfp & Gfp.HighMem) == 0)
            Refuse("exclude each other", machine => () => machine.AllocPagesExact(10_000, gfp));
    }

    [Fact]
    [Trait("rule", "MISUSE-06")]
    public unsafe void Arguments_that_no_machine_has_are_refused()
    {
        using Machine machine = Boot();
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.AllocPages(Gfp.Kernel, -1));
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.AllocPages(Gfp.Kernel, 0, node: 1));
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.AllocPagesBulk(Gfp.Kernel, [Pfn.None], node: 7));
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.GetPage(Pfn.None));
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.AddressOf(new Pfn(machine.Map.EndPfn)));
        Assert.Throws<ArgumentOutOfRangeException>(() => machine.RunOn(machine.Cpus));
        ulong local = 0;
        nint outside = (nint)(&local);
        Assert.Throws<ArgumentException>(() => machine.PfnOf((void*)outside));
        Assert.Throws<ArgumentException>(() => machine.FreePages((void*)outside, 0));
        Assert.Throws<ArgumentException>(() => machine.FreePagesExact((void*)outside, 4096));
        machine.FreePages((void*)null, 3);
        machine.FreePagesExact(null, 100);
        Assert.Empty(machine.Validate());
        Assert.Empty(machine.Dmesg.Lines);
    }

    [Fact]
    [Trait("rule", "MISUSE-06")]
    public unsafe void Exact_sizes_are_never_compound_and_never_empty()
    {
        using Machine machine = Boot();
        void* p = machine.AllocPagesExact(5 * 4096, Gfp.Kernel | Gfp.Comp);
        Assert.True(p != null);
        Assert.Contains("__GFP_COMP", machine.Dmesg.Lines[0], StringComparison.Ordinal);
        machine.FreePagesExact(p, 5 * 4096);
        Assert.True(machine.AllocPagesExact(0, Gfp.Kernel) == null);
        Assert.True(machine.AllocPagesExact((4 << 20) + 1, Gfp.Kernel) == null);
        Assert.True(machine.AllocPagesExact(nuint.MaxValue, Gfp.Kernel) == null);
        Assert.Empty(machine.Validate());
    }

    private static Machine Boot() => Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 2 });

    /// <summary>Runs the misuse on a machine of its own, twice: the second time must find the same.</summary>
    private static Machine Refuse(string reason, Func<Machine, Action> prepare)
    {
        using Machine machine = Boot();
        Action misuse = prepare(machine);
        Assert.Empty(machine.Validate());
        var bug = Assert.Throws<KernelBugException>(misuse);
        Assert.Contains(reason, bug.Message, StringComparison.Ordinal);
        Assert.Equal(bug.Message.TrimEnd(), machine.Dmesg.ToString().TrimEnd());
        Assert.Empty(machine.Validate());
        Assert.Throws<KernelBugException>(misuse);
        Assert.Empty(machine.Validate());
        for (int order = 0; order <= 10; order++)
        {
            Pfn pfn = machine.AllocPages(Gfp.Kernel, order);
            Assert.True(pfn.IsValid);
            machine.FreePages(pfn, order);
        }

        machine.DrainAllPages();
        Assert.Empty(machine.Validate());
        return machine;
    }
}
