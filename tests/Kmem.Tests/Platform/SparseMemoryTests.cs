namespace Kmem.Tests;

public sealed class SparseMemoryTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public unsafe void IsZeroAndZeroAgainAfterReset(bool heap)
    {
        using SparseMemory memory = SparseMemory.Create(
            1 << 20, "test", backing: heap ? PrivateBacking.Heap : PrivateBacking.Pages);
        var all = new Span<byte>(memory.Base, 1 << 20);
        Assert.Equal(-1, all.IndexOfAnyExcept((byte)0));

        all.Fill(1);
        memory.Reset();

        Assert.Equal(-1, all.IndexOfAnyExcept((byte)0));
    }

    [Fact]
    public unsafe void ADiscardedRunNeedsNoAlignment()
    {
        using SparseMemory memory = SparseMemory.Create(100_000, "test");
        var all = new Span<byte>(memory.Base, 100_000);
        all.Fill(9);

        memory.Discard(5_000, 70_001);

        Assert.Equal(-1, all[..5_000].IndexOfAnyExcept((byte)9));
        Assert.Equal(-1, all[5_000..75_001].IndexOfAnyExcept((byte)0));
        Assert.Equal(-1, all[75_001..].IndexOfAnyExcept((byte)9));
        Assert.Throws<ArgumentOutOfRangeException>(() => memory.Discard(99_999, 2));
    }

    [Fact]
    public unsafe void TheMemMapOfATebibyteCostsOnePagePerTouchedPage()
    {
        Assert.SkipUnless(HostMemory.CanReserve && !OperatingSystem.IsWindows(), "needs sparse private memory");
        using SparseMemory memory = SparseMemory.Create(16UL << 30, "mem_map");
        memory.Base[0] = 1;
        memory.Base[5UL << 30] = 1;
        memory.Base[(16UL << 30) - 1] = 1;
        Assert.Equal(3UL * HostInfo.PageBytes, memory.ResidentBytes);

        memory.Reset();
        Assert.Equal(0UL, memory.ResidentBytes);
    }

    [Fact]
    public unsafe void HugePagesAreRefused()
    {
        Assert.SkipUnless(HostMemory.IsLinux, "read from /proc/self/smaps");
        Assert.SkipWhen(HostInfo.HugePages is null, "this kernel has no transparent huge pages");
        using SparseMemory memory = SparseMemory.Create(64UL << 20, "test", alignment: 1 << 21);
        string start = ((ulong)memory.Base).ToString("x8") + "-";
        string vmFlags = File.ReadLines("/proc/self/smaps")
            .SkipWhile(l => !l.StartsWith(start, StringComparison.Ordinal))
            .First(l => l.StartsWith("VmFlags:", StringComparison.Ordinal));
        Assert.Contains(" nh", vmFlags, StringComparison.Ordinal);
    }

    [Fact]
    public unsafe void HonoursAlignment()
    {
        using SparseMemory memory = SparseMemory.Create(4096, "test", alignment: 1 << 21);
        Assert.Equal(0UL, (ulong)memory.Base % (1 << 21));
        Assert.Throws<ArgumentException>(() => SparseMemory.Create(4096, "test", alignment: 12288));
        Assert.Throws<ArgumentException>(() => SparseMemory.Create(4096, "test", alignment: 64));
    }

    [Fact]
    public unsafe void DisposeTwiceIsFineAndUseAfterItIsRefused()
    {
        SparseMemory memory = SparseMemory.Create(4096, "test");
        memory.Dispose();
        memory.Dispose();
        Assert.True(memory.Base == null);
        Assert.Throws<ObjectDisposedException>(memory.Reset);
        Assert.Throws<ArgumentOutOfRangeException>(() => SparseMemory.Create(0, "test"));
    }

    [Theory]
    [InlineData(0UL, 16384UL, 0UL, 16384UL, 0UL)]               // one whole host page of 16 KiB
    [InlineData(4096UL, 40960UL, 12288UL, 16384UL, 12288UL)]    // a part, a whole, a part
    [InlineData(4096UL, 16384UL, 16384UL, 0UL, 0UL)]            // two parts, nothing whole
    [InlineData(4096UL, 4096UL, 4096UL, 0UL, 0UL)]              // inside one
    [InlineData(16384UL, 4096UL, 4096UL, 0UL, 0UL)]             // the start of one
    public void RunsAreCutAtWholeHostPages(ulong start, ulong bytes, ulong head, ulong whole, ulong tail) =>
        Assert.Equal((head, whole, tail), HostMemory.SplitRun(start, bytes, hostPage: 16384));
}
