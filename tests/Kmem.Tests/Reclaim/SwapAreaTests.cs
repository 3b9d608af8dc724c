using System.Runtime.InteropServices;

namespace Kmem.Tests;

/// <summary>
/// Memory larger than the machine: every byte that was written is read back, or an error says why not.
/// </summary>
public sealed class SwapAreaTests
{
    private const int PageBytes = Pfn.PageSize;

    [Theory]
    [InlineData(1)]
    [InlineData(4)]
    [Trait("rule", "SWAP-01")]
    public void An_area_of_four_times_the_memory_keeps_every_byte(int threads)
    {
        using Machine machine = Boot(cpus: 4);
        string path;
        using (SwapArea area = machine.CreateSwapArea(4 * machine.Options.RamBytes))
        {
            path = area.FilePath;
            int pages = (int)(area.Bytes / PageBytes);
            var crew = new Crew(seconds: 100);
            crew.Add(threads, index =>
            {
                for (int page = index; page < pages; page += threads)
                    Write(area, page, version: 1);
                for (int page = index; page < pages; page += threads)
                    Assert.True(Holds(area, page, version: 1), $"page {page} is not what was written");
            });
            crew.Run();
            SwapAreaReport report = area.Report;
            Assert.True(File.Exists(path));
            Assert.Equal(0, report.Pinned);
            Assert.InRange(report.Resident, 1, (long)machine.Options.RamBytes / PageBytes);
            Assert.True(report.SwapOuts >= pages - report.Resident, report.ToString());
            Assert.True(report.SwapIns > 0);
            Assert.Equal((ulong)report.SwapOuts, machine.Proc.ReadVmStat().Stats.Find("pswpout"));
            Assert.Empty(machine.Validate());
            TestContext.Current.TestOutputHelper?.WriteLine($"{threads} threads: {report}");
        }

        Assert.False(File.Exists(path), "the swap file is still there");
        Assert.Empty(machine.Validate());
        Assert.Equal(0, machine.Dmesg.TotalLines);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(5)]
    [Trait("rule", "SWAP-01")]
    [Trait("rule", "SWAP-03")]
    public void Random_pins_writes_discards_and_faults_agree_with_a_model(int seed)
    {
        using Machine machine = Boot(cpus: 1);
        var store = new MemoryStore();
        const int Pages = 6000;
        using SwapArea area = machine.CreateSwapAreaOn(Pages * PageBytes, store);
        using var ballast = new Ballast(machine, 7000);
        var random = new Random(seed);
        var faults = new Random(seed + 1);
        store.FailsWrite = _ => faults.Next(10) == 0;
        store.FailsRead = _ => faults.Next(50) == 0;
        (machine.FailPageAlloc.Times, machine.FailPageAlloc.MinOrder) = (-1, 0);
        machine.FailPageAlloc.IgnoreGfpWait = false;
        var model = new int[Pages];
        int refused = 0;
        for (int step = 0; step < 30_000; step++)
        {
            machine.FailPageAlloc.Probability = random.Next(200) == 0 ? 100 : 0;
            int page = random.Next(3) == 0 ? random.Next(Pages) : random.Next(Pages / 4);
            int action = random.Next(20);
            try
            {
                if (action < 9)
                {
                    Write(area, page, step + 1);
                    model[page] = step + 1;
                }
                else if (action < 19)
                {
                    Assert.True(Holds(area, page, model[page]), $"seed {seed}, step {step}: page {page} has changed");
                }
                else
                {
                    area.Discard((ulong)page * PageBytes, PageBytes);
                    model[page] = 0;
                }
            }
            catch (Exception error) when (error is SwapException or OutOfMemoryException)
            {
                refused++;
            }

            if (step % 5000 == 0)
                Assert.Empty(machine.Validate());
        }

        machine.FailPageAlloc.Probability = 0;
        store.FailsRead = store.FailsWrite = _ => false;
        for (int page = 0; page < Pages; page++)
            Assert.True(Holds(area, page, model[page]), $"seed {seed}, at the end: page {page} has changed");
        SwapAreaReport report = area.Report;
        Assert.True(
            refused > 0 && report.WriteErrors > 0 && report.ReadErrors > 0 && report.Dropped > 0, $"{refused}, {report}");
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "SWAP-02")]
    public void What_is_pinned_stays_where_it_is()
    {
        using Machine machine = Boot(cpus: 1);
        using SwapArea area = machine.CreateSwapAreaOn(64 << 20, new MemoryStore());
        Write(area, 5, 77);
        using (SwapPin pin = area.Pin(5 * PageBytes, PageBytes))
        {
            for (int page = 100; page < 16_000; page++)
                Write(area, page, page);
            Assert.True(area.Report.SwapOuts > 4000);
            Assert.Equal(1, area.Report.Pinned);
            long outs = area.Report.SwapOuts;
            Assert.Equal(77, MemoryMarshal.Read<int>(pin.Span));
            pin.Span[0] = 78;
            using SwapPin again = area.Pin(5 * PageBytes, 1, write: false);
            Assert.Equal(78, again.Span[0]);
            Assert.Equal(outs, area.Report.SwapOuts);
        }

        Assert.Equal(0, area.Report.Pinned);
        KernelBugException error = Assert.Throws<KernelBugException>(() =>
        {
            using SwapPin pin = area.Pin(0, 10);
            area.Dispose();
        });
        Assert.Contains("disposed with 1 pinned pages", error.Message, StringComparison.Ordinal);
        error = Assert.Throws<KernelBugException>(() =>
        {
            using SwapPin pin = area.Pin(0, 10);
            area.Discard(0, PageBytes);
        });
        Assert.Contains("is discarded while it is pinned", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    [Trait("rule", "SWAP-02")]
    public void A_pin_that_memory_does_not_suffice_for_is_refused_and_undone()
    {
        using Machine machine = Boot(cpus: 1);
        using SwapArea area = machine.CreateSwapAreaOn(64 << 20, new MemoryStore());
        OutOfMemoryException error = Assert.Throws<OutOfMemoryException>(() =>
        {
            using SwapPin all = area.Pin(0, 64 << 20);
        });
        Assert.Contains("pages are pinned", error.Message, StringComparison.Ordinal);
        Assert.Equal(0, area.Report.Pinned);
        using (SwapPin half = area.Pin(0, 16 << 20))
            half.Span.Fill(3);
        Assert.Empty(machine.Validate());
        Assert.Throws<ArgumentOutOfRangeException>(() => area.Pin(64 << 20, 1).Span.Length);
        Assert.Throws<ArgumentOutOfRangeException>(() => area.Pin(ulong.MaxValue, 2).Span.Length);
        Assert.Equal(0, area.Pin(64 << 20, 0).Span.Length);
        Assert.Throws<KernelBugException>(() =>
        {
            using ContextScope atomic = machine.Atomic();
            area.Pin(0, 1).Dispose();
        });
    }

    [Fact]
    [Trait("rule", "SWAP-03")]
    public void A_full_disk_keeps_pages_in_memory_and_says_so()
    {
        Assert.SkipUnless(File.Exists("/dev/full"), "no /dev/full on this host");
        using Machine machine = Boot(cpus: 1);
        using SwapArea area = machine.CreateSwapAreaOn(64 << 20, SwapFile.Open("/dev/full"));
        int written = 0;
        OutOfMemoryException error = Assert.Throws<OutOfMemoryException>(() =>
        {
            for (; written < 16_000; written++)
                Write(area, written, written + 1);
        });
        Assert.Contains("swap area /dev/full cannot come back", error.Message, StringComparison.Ordinal);
        Assert.Contains(
            machine.Dmesg.Lines,
            line => line.StartsWith("Write-error on swap-device (/dev/full, slot ", StringComparison.Ordinal)
                && line.Contains("space", StringComparison.OrdinalIgnoreCase)
                && line.EndsWith("stays in memory", StringComparison.Ordinal));
        Assert.True(machine.Dmesg.Lines.Count(line => line.StartsWith("Write-error", StringComparison.Ordinal)) <= 10);
        Assert.True(written > 5000);
        Assert.Equal(0, area.Report.SwapOuts);
        for (int page = 0; page < written; page++)
            Assert.True(Holds(area, page, page + 1), $"page {page} is lost");
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "SWAP-04")]
    public void Pages_that_changed_in_the_file_are_noticed()
    {
        using Machine machine = Boot(cpus: 1);
        var store = new MemoryStore();
        using SwapArea area = machine.CreateSwapAreaOn(64 << 20, store);
        for (int page = 0; page < 10; page++)
            Write(area, page, page + 1);
        EvictAll(machine, area);
        Assert.Equal(10, area.Report.Slots);
        store.Flip(3, 12345);
        store.Exchange(6, 7);
        foreach (int bad in (int[])[3, 6, 7])
        {
            SwapException error = Assert.Throws<SwapException>(() => area.Pin((ulong)bad * PageBytes, 1).Dispose());
            Assert.StartsWith(
                $"Read-error on swap-device (memory, slot {bad})", error.Message, StringComparison.Ordinal);
            Assert.Contains("is not what was written", error.Message, StringComparison.Ordinal);
            Assert.Equal((ulong)bad * PageBytes, error.Offset);
        }

        // What the slot holds is kept: when the disk has come to its senses, so has the page.
        store.Flip(3, 12345);
        store.Exchange(6, 7);
        for (int page = 0; page < 10; page++)
            Assert.True(Holds(area, page, page + 1));
        Assert.Equal(3, area.Report.ReadErrors);
    }

    [Fact]
    [Trait("rule", "SWAP-04")]
    public void A_file_that_was_cut_is_an_error_of_those_pages_only()
    {
        using Machine machine = Boot(cpus: 1);
        string path = Path.GetTempFileName();
        using SwapArea area = machine.CreateSwapAreaOn(64 << 20, SwapFile.Open(path));
        for (int page = 0; page < 10; page++)
            Write(area, page, page + 1);
        EvictAll(machine, area);
        using (var file = new FileStream(path, FileMode.Open, FileAccess.Write, FileShare.ReadWrite))
            file.SetLength((5 * PageBytes) + 100);
        for (int page = 0; page < 5; page++)
            Assert.True(Holds(area, page, page + 1));
        for (int page = 5; page < 10; page++)
        {
            SwapException error = Assert.Throws<SwapException>(() => area.Pin((ulong)page * PageBytes, 1).Dispose());
            Assert.Contains("somebody has cut it", error.Message, StringComparison.Ordinal);
        }

        File.Delete(path);
    }

    [Fact]
    [Trait("rule", "SWAP-05")]
    public void The_longest_unpinned_go_first_and_unchanged_ones_are_not_written_again()
    {
        using Machine machine = Boot(cpus: 1);
        var store = new MemoryStore();
        using SwapArea area = machine.CreateSwapAreaOn(64 << 20, store);
        for (int page = 0; page < 64; page++)
            Write(area, page, page + 1);
        for (int page = 0; page < 32; page++)
            Assert.True(Holds(area, page, page + 1));       // now 32 … 63 are the coldest
        int gone = (int)(machine.ReclaimMemory(16 * PageBytes) / PageBytes);
        Assert.InRange(gone, 16, 32);
        Assert.Equal(gone, store.Writes);
        for (int page = 0; page < 64; page++)
        {
            bool wasOut = page >= 32 && page < 32 + gone;
            long reads = store.Reads;
            Assert.True(Holds(area, page, page + 1));
            Assert.True(store.Reads - reads == (wasOut ? 1 : 0), $"page {page}");
        }

        EvictAll(machine, area);
        Assert.Equal(64, store.Writes);
        Assert.Equal(gone, area.Report.Dropped);

        // Zeros need no place in the file.
        using (SwapPin pin = area.Pin(0, 64 * PageBytes))
            pin.Span.Clear();
        EvictAll(machine, area);
        Assert.Equal((64, 0), (store.Writes, area.Report.Slots));
    }

    [Fact]
    [Trait("rule", "SWAP-05")]
    public void Who_must_not_do_io_does_not_write_pages()
    {
        using Machine machine = Boot(cpus: 1);
        var store = new MemoryStore();
        using SwapArea area = machine.CreateSwapAreaOn(64 << 20, store);
        for (int page = 0; page < 2000; page++)
            Write(area, page, page + 1);
        List<Pfn> held = [];
        using (machine.MemallocNoIo())
        {
            while (machine.AllocPage(Gfp.Kernel | Gfp.NoWarn) is { IsValid: true } frame)
                held.Add(frame);
        }

        Assert.Equal(0, store.Writes);
        Pfn more = machine.AllocPage(Gfp.Kernel);
        Assert.True(more.IsValid);
        Assert.True(store.Writes > 0);
        held.Add(more);
        held.ForEach(machine.FreePage);
    }

    [Fact]
    public void A_machine_takes_its_areas_with_it()
    {
        var store = new MemoryStore();
        SwapArea area;
        using (Machine machine = Boot(cpus: 1))
        {
            area = machine.CreateSwapAreaOn(1 << 20, store);
            Write(area, 0, 1);
        }

        Assert.True(store.IsDisposed);
        Assert.Throws<ObjectDisposedException>(() => area.Pin(0, 1).Dispose());
        area.Dispose();
        using Machine other = Boot(cpus: 1);
        Assert.ThrowsAny<IOException>(() => other.CreateSwapArea(1 << 20, "/no/such/directory"));
        Assert.Empty(other.Validate());
    }

    [Fact]
    [Trait("rule", "SWAP-02")]
    public void Threads_that_pin_the_same_pages_see_each_others_writes()
    {
        using Machine machine = Boot(cpus: 4);
        using SwapArea area = machine.CreateSwapArea(2 * machine.Options.RamBytes);
        int pages = (int)(area.Bytes / PageBytes);
        var locks = new Lock[pages];
        for (int i = 0; i < pages; i++)
            locks[i] = new Lock();
        var versions = new int[pages];
        var crew = new Crew(seconds: 3);
        crew.Add(4, index =>
        {
            var random = new Random(index);
            while (crew.Working)
            {
                int page = random.Next(pages);
                lock (locks[page])
                {
                    Assert.True(Holds(area, page, versions[page]), $"page {page} has changed");
                    Write(area, page, ++versions[page]);
                }
            }
        });
        crew.Run();
        Assert.True(area.Report.SwapOuts > 0);
        Assert.Empty(machine.Validate());
    }

    private static Machine Boot(int cpus) => VmallocMachine.Boot(cpus, 32UL << 20);

    private static void Write(SwapArea area, int page, int version)
    {
        using SwapPin pin = area.Pin((ulong)page * PageBytes, PageBytes);
        MemoryMarshal.Cast<byte, int>(pin.Span).Fill(version);
        MemoryMarshal.Write(pin.Span[^4..], version == 0 ? 0 : version ^ page);
    }

    private static void EvictAll(Machine machine, SwapArea area)
    {
        while (machine.ReclaimMemory(area.Bytes) != 0)
        {
        }

        Assert.Equal(0, area.Report.Resident);
    }

    private static bool Holds(SwapArea area, int page, int version)
    {
        using SwapPin pin = area.Pin((ulong)page * PageBytes, PageBytes, write: false);
        return !MemoryMarshal.Cast<byte, int>(pin.Span[..^4]).ContainsAnyExcept(version)
            && MemoryMarshal.Read<int>(pin.Span[^4..]) == (version == 0 ? 0 : version ^ page);
    }

    /// <summary>Frames that somebody else has, so that little is left.</summary>
    private sealed class Ballast : IDisposable
    {
        private readonly Machine _machine;
        private readonly List<Pfn> _frames = [];

        public Ballast(Machine machine, int leave)
        {
            _machine = machine;
            long free = machine.Pages.Zones.Sum(zone => zone.Zone.FreePagesExact);
            for (long i = leave / 2; i < free; i++)
                _frames.Add(machine.AllocPage(Gfp.Kernel));
            _frames.RemoveAll(frame => !frame.IsValid);
        }

        public void Dispose() => _frames.ForEach(_machine.FreePage);
    }
}
