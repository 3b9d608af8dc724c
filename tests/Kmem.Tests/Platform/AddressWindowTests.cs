using System.Globalization;

namespace Kmem.Tests;

public sealed class AddressWindowTests
{
    private const ulong Page = Ram.FrameBytes;
    private const ulong GiB = 1UL << 30;

    private static LinuxRam CreateRam(ulong bytes = 1 << 20)
    {
        Assert.SkipUnless(HostMemory.IsLinux && HostInfo.PageBytes == Page, "windows need Linux with 4 KiB pages");
        return LinuxRam.Create(bytes);
    }

    private static WindowResult Map(AddressWindow window, ulong page, ulong frame, ulong count = 1) =>
        window.Map(page * Page, frame * Page, count * Page, WindowProtection.ReadWrite);

    [Fact]
    public unsafe void BothMappingsShowTheSameBytes()
    {
        using LinuxRam ram = CreateRam();
        using AddressWindow window = AddressWindow.Reserve(GiB, ram);
        Assert.Equal(0UL, (ulong)window.Base % GiB);
        ram.Base[7 * Page + 5] = 0x11;

        Assert.Equal(WindowResult.Done, Map(window, page: 100, frame: 7, count: 2));

        Assert.Equal(0x11, window.Base[100 * Page + 5]);
        window.Base[101 * Page] = 0x22;
        Assert.Equal(0x22, ram.Base[8 * Page]);
        ram.Release(7 * Page, Page);
        Assert.Equal(0, window.Base[100 * Page + 5]);
    }

    [Fact]
    public unsafe void WhatIsNotMappedFaultsAndReadOnlyIsReadOnly()
    {
        using LinuxRam ram = CreateRam();
        using AddressWindow window = AddressWindow.Reserve(GiB, ram);
        using var probe = new MemoryProbe();
        window.Map(10 * Page, 0, 3 * Page, WindowProtection.ReadWrite);
        window.Map(20 * Page, 0, Page, WindowProtection.ReadOnly);

        Assert.Equal("--", probe.Access(window.Base));
        Assert.Equal("--", probe.Access(window.Base + 10 * Page - 1));
        Assert.Equal("rw", probe.Access(window.Base + 10 * Page));
        Assert.Equal("rw", probe.Access(window.Base + 13 * Page - 1));
        Assert.Equal("--", probe.Access(window.Base + 13 * Page));
        Assert.Equal("r-", probe.Access(window.Base + 20 * Page));

        ram.Base[Page] = 5;
        Assert.Equal(WindowResult.Done, window.Unmap(11 * Page, Page));
        Assert.Equal("rw", probe.Access(window.Base + 11 * Page - 1));
        Assert.Equal("--", probe.Access(window.Base + 11 * Page));
        Assert.Equal("rw", probe.Access(window.Base + 12 * Page));
        Assert.Equal(5, ram.Base[Page]);
    }

    [Fact]
    public unsafe void TheKernelsWholeVmallocSpaceCanBeReserved()
    {
        const ulong Asked = 32UL << 40;
        using LinuxRam ram = CreateRam();
        using AddressWindow window = AddressWindow.Reserve(Asked, ram);
        Assert.SkipWhen(window.Bytes < Asked, "the address space is limited here: " + window.Description);
        Assert.Equal(WindowResult.Done, Map(window, Asked / Page - 1, frame: 3));
        Assert.Equal(WindowResult.Done, Map(window, page: 0, frame: 3));
        window.Base[Asked - 1] = 9;
        Assert.Equal(9, window.Base[Page - 1]);
    }

    [Fact]
    public void ATooLargeWindowShrinksOrSaysWhy()
    {
        using LinuxRam ram = CreateRam();
        using (AddressWindow window = AddressWindow.Reserve(1UL << 50, ram))
        {
            Assert.InRange(window.Bytes, GiB, 1UL << 47);
            Assert.Contains("the host has no free range of 1 PiB", window.Description, StringComparison.Ordinal);
        }

        var e = Assert.Throws<PlatformException>(() => AddressWindow.Reserve(1UL << 50, ram, atLeast: 1UL << 49));
        Assert.Contains("mmap of 512 TiB", e.Message, StringComparison.Ordinal);
        Assert.Contains("for the vmalloc window failed: ENOMEM", e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public unsafe void AFullBudgetLeavesAllWhole()
    {
        using LinuxRam ram = CreateRam();
        using var probe = new MemoryProbe();
        var budget = new MapBudget(10);
        using AddressWindow window = AddressWindow.Reserve(GiB, ram, budget: budget);

        // One for the reservation, then each isolated page adds itself and the gap behind it: 1 + 4 * 2 = 9, and no 11.
        ulong mapped = 0;
        while (Map(window, page: 2 * mapped + 1, frame: mapped) == WindowResult.Done)
            ram.Base[mapped++ * Page] = (byte)(0x40 + mapped);
        Assert.Equal(4UL, mapped);
        Assert.Equal(9, budget.Used);

        Assert.Equal(WindowResult.BudgetReached, Map(window, page: 9, frame: 20));
        Assert.Equal("--", probe.Access(window.Base + 9 * Page));
        for (ulong i = 0; i < mapped; i++) Assert.Equal(0x41 + (int)i, window.Base[(2 * i + 1) * Page]);
        Assert.Equal(9, window.MapCount);

        // A page next to a mapped one costs only itself; unmapping makes room again.
        Assert.Equal(WindowResult.Done, Map(window, page: 8, frame: 30));
        Assert.Equal(WindowResult.BudgetReached, Map(window, page: 11, frame: 20));
        Assert.Equal(WindowResult.Done, window.Unmap(0, 6 * Page));
        Assert.Equal(WindowResult.Done, Map(window, page: 11, frame: 20));

        window.Dispose();
        Assert.Equal(0, budget.Used);
    }

    [Fact]
    public unsafe void UnmappingIsNeverRefusedForTheBudget()
    {
        using LinuxRam ram = CreateRam();
        using var probe = new MemoryProbe();
        var budget = new MapBudget(3);
        using AddressWindow window = AddressWindow.Reserve(GiB, ram, budget: budget);
        Assert.Equal(WindowResult.Done, Map(window, page: 1, frame: 0, count: 3));

        Assert.Equal(WindowResult.Done, window.Unmap(2 * Page, Page));     // one run becomes run, gap, run

        Assert.Equal(5, budget.Used);
        Assert.Equal("--", probe.Access(window.Base + 2 * Page));
    }

    [Fact]
    public unsafe void ARefusalOfTheHostLeavesAllWhole()
    {
        using LinuxRam ram = CreateRam();
        using var probe = new MemoryProbe();
        var budget = new MapBudget(100);
        using AddressWindow window = AddressWindow.Reserve(GiB, ram, budget: budget);
        Map(window, page: 1, frame: 4);
        int before = budget.Used;

        window.FailHostCall(1);
        Assert.Equal(WindowResult.HostLimit, Map(window, page: 2, frame: 5));
        Assert.Equal("--", probe.Access(window.Base + 2 * Page));
        window.FailHostCall(1);
        Assert.Equal(WindowResult.HostLimit, window.Unmap(Page, Page));
        Assert.Equal("rw", probe.Access(window.Base + Page));
        Assert.Equal((before, before), (budget.Used, window.MapCount));

        Assert.Equal(WindowResult.Done, Map(window, page: 2, frame: 5));
        Assert.Equal(WindowResult.Done, window.Unmap(Page, 2 * Page));
        Assert.Equal((1, 1), (budget.Used, window.MapCount));
    }

    [Fact]
    public void WrongUseNamesTheRule()
    {
        using LinuxRam ram = CreateRam();
        using AddressWindow window = AddressWindow.Reserve(GiB, ram);
        AssertArgument("offset 0x1 is not a multiple", () => window.Map(1, 0, Page, WindowProtection.ReadWrite));
        AssertArgument("offset 0x2 is not a multiple", () => window.Map(0, 2, Page, WindowProtection.ReadWrite));
        AssertArgument("1 bytes are not a positive", () => window.Map(0, 0, 1, WindowProtection.ReadWrite));
        AssertArgument("outside the window of", () => window.Map(GiB, 0, Page, WindowProtection.ReadWrite));
        AssertArgument("outside the RAM of", () => window.Map(0, ram.Bytes, Page, WindowProtection.ReadWrite));
        AssertArgument("outside the window of", () => window.Unmap(GiB - Page, 2 * Page));
        AssertArgument("a window must be a positive", () => AddressWindow.Reserve(5, ram));

        Map(window, page: 5, frame: 0);
        Assert.Throws<InvalidOperationException>(() => Map(window, page: 4, frame: 1, count: 2));
        Assert.Equal(WindowResult.Done, window.Unmap(0, Page));            // nothing there: nothing to do
    }

    [Fact]
    public void DisposeTwiceIsFineAndUseAfterItIsRefused()
    {
        using LinuxRam ram = CreateRam();
        AddressWindow window = AddressWindow.Reserve(GiB, ram);
        Map(window, page: 5, frame: 0);
        window.Dispose();
        window.Dispose();
        Assert.Equal(0, window.MapCount);
        Assert.Throws<ObjectDisposedException>(() => window.Unmap(5 * Page, Page));
        Assert.Throws<ObjectDisposedException>(() => Map(window, page: 5, frame: 0));
    }

    [Fact]
    public unsafe void AWindowMayOutliveItsRam()
    {
        LinuxRam ram = CreateRam();
        using AddressWindow window = AddressWindow.Reserve(GiB, ram);
        Map(window, page: 5, frame: 0);
        ram.Base[0] = 3;
        ram.Dispose();
        Assert.Equal(3, window.Base[5 * Page]);
        Assert.Throws<ObjectDisposedException>(() => Map(window, page: 6, frame: 0));
        Assert.Equal(WindowResult.Done, window.Unmap(5 * Page, Page));
    }

    /// <summary>
    /// A dictionary page → frame beside the window: the same bytes everywhere, faults elsewhere, and a count that is
    /// never below the lines of /proc/self/maps.
    /// </summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public unsafe void RandomMappingsAgreeWithAModel(int seed)
    {
        const int Pages = 200, Frames = 64;
        using LinuxRam ram = CreateRam(Frames * Page);
        using var probe = new MemoryProbe();
        var budget = new MapBudget(60);
        using AddressWindow window = AddressWindow.Reserve(Pages * Page, ram, budget: budget);
        for (ulong frame = 0; frame < Frames; frame++) *(ulong*)(ram.Base + frame * Page) = frame + 1000;
        var model = new Dictionary<ulong, ulong>();
        var random = new Random(seed);
        int refused = 0;
        for (int step = 0; step < 400; step++)
        {
            ulong count = (ulong)random.Next(1, 9);
            ulong page = (ulong)random.NextInt64(Pages - (long)count + 1);
            if (random.Next(3) == 0)
            {
                Assert.Equal(WindowResult.Done, window.Unmap(page * Page, count * Page));
                for (ulong i = 0; i < count; i++) model.Remove(page + i);
            }
            else if (!Enumerable.Range((int)page, (int)count).Any(p => model.ContainsKey((ulong)p)))
            {
                ulong frame = (ulong)random.NextInt64(Frames - (long)count + 1);
                WindowResult result = Map(window, page, frame, count);
                if (result != WindowResult.Done) refused++;
                for (ulong i = 0; i < count && result == WindowResult.Done; i++) model[page + i] = frame + i;
            }

            if (step % 20 == 19) Compare(seed, step);
        }

        Assert.True(refused > 0, $"seed {seed}: the budget was never reached, so its path was not tested");
        window.Unmap(0, window.Bytes);
        Assert.Equal((1, 1), (window.MapCount, budget.Used));

        void Compare(int seed, int step)
        {
            for (ulong page = 0; page < Pages; page++)
            {
                byte* at = window.Base + page * Page;
                bool mapped = model.TryGetValue(page, out ulong frame);
                Assert.True(mapped == (probe.Access(at) == "rw"), $"seed {seed} step {step} page {page}");
                if (mapped) Assert.Equal(frame + 1000, *(ulong*)at);
            }

            // The two guards beside the window belong to the same reservation and are lines of their own once a page
            // next to them is mapped.
            Assert.InRange(HostMappings(window), 1, window.MapCount);
            Assert.Equal(window.MapCount, budget.Used);
        }
    }

    [Fact]
    public void TheCountIsExactWhenNothingMerges()
    {
        using LinuxRam ram = CreateRam();
        using AddressWindow window = AddressWindow.Reserve(GiB, ram);
        for (ulong i = 0; i < 50; i++) Map(window, page: 10 + i, frame: 200 - i);      // neighbours, frames going down
        Map(window, page: 100, frame: 0, count: 16);
        Assert.Equal(54, window.MapCount);
        Assert.Equal(54, HostMappings(window));
        window.Unmap(104 * Page, Page);
        window.Unmap(20 * Page, 3 * Page);
        Assert.Equal(54 + 2 - 2, window.MapCount);
        Assert.Equal(window.MapCount, HostMappings(window));
    }

    private static void AssertArgument(string rule, Action use) =>
        Assert.Contains(rule, Assert.ThrowsAny<ArgumentException>(use).Message, StringComparison.Ordinal);

    /// <summary>Lines of /proc/self/maps that overlap the window.</summary>
    private static unsafe int HostMappings(AddressWindow window)
    {
        ulong start = (ulong)window.Base, end = start + window.Bytes;
        int count = 0;
        foreach (string line in File.ReadLines("/proc/self/maps"))
        {
            int dash = line.IndexOf('-', StringComparison.Ordinal);
            int space = line.IndexOf(' ', StringComparison.Ordinal);
            if (Hex(line.AsSpan(0, dash)) < end && Hex(line.AsSpan(dash + 1, space - dash - 1)) > start) count++;
        }

        return count;
    }

    private static ulong Hex(ReadOnlySpan<char> digits) =>
        ulong.Parse(digits, NumberStyles.HexNumber, CultureInfo.InvariantCulture);
}
