namespace Kmem.Tests;

/// <summary>Requests that fail on purpose, and what is left behind: nothing.</summary>
public sealed class FaultInjectionTests : IDisposable
{
    private readonly Machine _machine = Machine.Boot(new MachineOptions
    {
        Profile = KernelProfile.Linux618,
        RamBytes = 64 << 20,
        Cpus = 1,
        SlubDebug = "FZP",
    });

    public void Dispose() => _machine.Dispose();

    [Fact]
    public void The_attributes_decide_as_in_the_kernel()
    {
        FaultAttribute pages = _machine.FailPageAlloc;
        Assert.Equal(100, Succeed(100, 1));                     // off
        pages.Probability = 100;
        Assert.Equal(100, Succeed(100, 0));                     // min-order is 1
        Assert.Equal(100, Succeed(100, 1, Gfp.Kernel));         // may wait for reclaim
        Assert.Equal(99, Succeed(100, 1));                      // times is 1
        Assert.Equal((1L, 0), (pages.Failures, pages.Times));
        pages.Times = -1;
        Assert.Equal(0, Succeed(100, 1));
        Assert.Equal(10, Succeed(10, 1, Gfp.NoWait | Gfp.NoFail));
        pages.Interval = 4;
        Assert.Equal(75, Succeed(100, 1));
        pages.Interval = 1;
        pages.Space = 20;
        Assert.Equal(9, Succeed(100, 1));                       // as long as more than two frames are left
        pages.Space = 0;
        pages.Probability = 30;
        Assert.InRange(Succeed(1000, 1), 600, 800);
        pages.Probability = 0;
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void Objects_fail_too()
    {
        _machine.FailSlab.Probability = 100;
        _machine.FailSlab.Times = 3;
        int failed = 0;
        for (int i = 0; i < 10; i++)
        {
            void* p = _machine.Kmalloc(50, Gfp.Atomic);
            failed += p == null ? 1 : 0;
            _machine.Kfree(p);
        }

        Assert.Equal((3, 3L), (failed, _machine.FailSlab.Failures));
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public unsafe void Only_marked_caches_and_threads_fail_if_so_desired()
    {
        using Machine machine = Machine.Boot(new MachineOptions
        {
            RamBytes = 64 << 20,
            SlubDebug = "A,marked",
            FailSlab = "1,100,0,-1",
        });
        KmemCache marked = machine.CreateCache("marked", 64);
        KmemCache other = machine.CreateCache("other", 64, flags: SlabFlags.NoMerge);
        FaultAttribute faults = machine.FailSlab;
        Assert.True(marked.Alloc(Gfp.NoWait) == null && other.Alloc(Gfp.NoWait) == null);

        faults.CacheFilter = true;
        faults.Verbose = true;
        long lines = machine.Dmesg.TotalLines;
        Assert.True(marked.Alloc(Gfp.NoWait) == null);
        Assert.Contains("name failslab, interval 1, probability 100, space 0, times -1", machine.Dmesg.Lines[^1]);
        Assert.True(machine.Dmesg.TotalLines > lines);
        other.Free(other.Alloc(Gfp.NoWait));

        faults.CacheFilter = false;
        faults.TaskFilter = true;
        other.Free(other.Alloc(Gfp.NoWait));
        Machine.MakeItFail = true;
        Assert.True(other.Alloc(Gfp.NoWait) == null);
        Machine.MakeItFail = false;
        Assert.Empty(machine.Validate());
    }

    [Theory]
    [InlineData("1,2,3")]
    [InlineData("")]
    [InlineData("1,2,3,x")]
    [InlineData("1,2,3,4,5")]
    public void A_setting_that_makes_no_sense_is_refused(string setting) =>
        Assert.Throws<ArgumentException>(
            () => Machine.Boot(new MachineOptions { RamBytes = 16 << 20, FailPageAlloc = setting }));

    [Fact]
    public void Pages_in_high_memory_and_pages_in_bulk_fail_if_so_desired()
    {
        FaultAttribute pages = _machine.FailPageAlloc;
        (pages.Probability, pages.Times, pages.MinOrder, pages.IgnoreGfpWait) = (100, -1, 0, false);
        _machine.FreePage(_machine.AllocPage(Gfp.Kernel | Gfp.HighMem));
        pages.IgnoreGfpHighMem = false;
        Assert.False(_machine.AllocPage(Gfp.Kernel | Gfp.HighMem).IsValid);
        var many = new Pfn[5];
        Array.Fill(many, Pfn.None);
        Assert.Equal(0, _machine.AllocPagesBulk(Gfp.Kernel, many));
        pages.Probability = 0;
        Assert.Empty(_machine.Validate());
    }

    [Fact]
    public void Whichever_request_of_an_operation_fails_nothing_is_lost()
    {
        Operate();                                              // what is made at first use is there
        Settle();
        long objects = Objects();
        long pages = FreePages();
        int failed = 0;
        for (int n = 1; ; n++)
        {
            _machine.FailNth(n);
            bool complete = Operate();
            long left = _machine.FailNth(0);
            Settle();
            Assert.True(objects == Objects(), $"request {n}: {Objects() - objects} objects lost");
            Assert.True(pages == FreePages(), $"request {n}: {pages - FreePages()} frames lost");
            Assert.Empty(_machine.Validate());
            if (left > 0)
            {
                Assert.True(complete, "an operation without a failing request fails");
                break;
            }

            failed += complete ? 0 : 1;                         // a slab of a smaller order does as well
            Assert.InRange(n, 1, 2000);
        }

        Assert.True(failed > 20, $"only {failed} failures were noticed");
    }

    /// <summary>Something of everything; whatever it got, it gives back.</summary>
    private unsafe bool Operate()
    {
        var undo = new Stack<Action>();
        try
        {
            KmemCache cache = _machine.CreateCache("operation", 200, flags: SlabFlags.NoMerge);
            undo.Push(cache.Destroy);
            var batch = new nint[30];
            if (cache.AllocBulk(Gfp.Kernel, batch) == 0)
                return false;
            undo.Push(() => cache.FreeBulk(batch));
            foreach (int size in (int[])[8, 100, 5000, 20000])
            {
                var p = (nint)_machine.Kmalloc((nuint)size, Gfp.Kernel | Gfp.NoWarn);
                if (p == 0)
                    return false;
                undo.Push(() => _machine.Kfree((void*)p));
            }

            var small = (nint)_machine.Kmalloc(100, Gfp.Kernel);
            if (small == 0)
                return false;
            var grown = (nint)_machine.Krealloc((void*)small, 3000, Gfp.Kernel);
            undo.Push(() => _machine.Kfree((void*)(grown == 0 ? small : grown)));
            if (grown == 0)
                return false;

            if (OperatingSystem.IsLinux())
            {
                var area = (nint)_machine.Vmalloc(40_000, Gfp.Kernel | Gfp.NoWarn);
                if (area == 0)
                    return false;
                undo.Push(() => _machine.Vfree((void*)area));
            }

            return true;
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

    private int Succeed(int count, int order, Gfp gfp = Gfp.NoWait)
    {
        int succeeded = 0;
        for (int i = 0; i < count; i++)
        {
            Pfn block = _machine.AllocPages(gfp, order);
            if (block == Pfn.None)
                continue;

            succeeded++;
            _machine.FreePages(block, order);
        }

        return succeeded;
    }

    private void Settle()
    {
        if (OperatingSystem.IsLinux())
            _machine.VmUnmapAliases();
        _machine.ShrinkCaches();
        _machine.Pages.DrainAll();
    }

    private long Objects() => _machine.Caches.Sum(cache => cache.LiveCount);

    private long FreePages() => _machine.Pages.Zones.Sum(zone => zone.Zone.FreePagesExact);
}
