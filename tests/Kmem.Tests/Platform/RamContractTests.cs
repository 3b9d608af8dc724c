namespace Kmem.Tests;

/// <summary>What every kind of RAM promises; one subclass per kind.</summary>
public abstract class RamContractTests
{
    private protected const ulong MiB = 1UL << 20;
    private protected const ulong GiB = 1UL << 30;

    private protected abstract Ram Create(ulong bytes);

    [Fact]
    public unsafe void FramesAreZeroAndKeepWhatIsWritten()
    {
        using Ram ram = Create(8 * MiB);
        Assert.Equal(8 * MiB, ram.Bytes);
        for (ulong frame = 0; frame < ram.Bytes / Ram.FrameBytes; frame += 255)
        {
            ulong* word = (ulong*)(ram.Base + frame * Ram.FrameBytes + 4088);
            Assert.Equal(0UL, *word);
            *word = frame ^ 0xfeed;
        }

        for (ulong frame = 0; frame < ram.Bytes / Ram.FrameBytes; frame += 255)
            Assert.Equal(frame ^ 0xfeed, *(ulong*)(ram.Base + frame * Ram.FrameBytes + 4088));
    }

    [Theory]
    [InlineData(4096UL)]
    [InlineData(3 * MiB)]
    [InlineData(64 * MiB)]
    public unsafe void BaseIsAlignedForTheLargestBuddyBlock(ulong bytes)
    {
        using Ram ram = Create(bytes);
        Assert.Equal(0UL, (ulong)ram.Base % (4 * MiB));
        ram.Base[0] = 1;
        ram.Base[bytes - 1] = 1;
    }

    [Fact]
    public unsafe void ReleasedFramesReadAsZeroAndTheirNeighboursStay()
    {
        using Ram ram = Create(4 * MiB);
        new Span<byte>(ram.Base, (int)ram.Bytes).Fill(0x6b);

        ram.Release(16 * 4096, 32 * 4096);

        Assert.Equal(-1, new Span<byte>(ram.Base + 16 * 4096, 32 * 4096).IndexOfAnyExcept((byte)0));
        Assert.Equal(-1, new Span<byte>(ram.Base, 16 * 4096).IndexOfAnyExcept((byte)0x6b));
        Assert.Equal(-1, new Span<byte>(ram.Base + 48 * 4096, (int)ram.Bytes - 48 * 4096).IndexOfAnyExcept((byte)0x6b));
        ram.Base[16 * 4096] = 1;
        Assert.Equal(1, ram.Base[16 * 4096]);
    }

    [Fact]
    public unsafe void ResidentBytesFallWhenFramesAreReleased()
    {
        using Ram ram = Create(16 * MiB);
        bool tells = ram.CanRelease && !OperatingSystem.IsWindows();
        Assert.SkipUnless(tells, "this backing cannot tell: " + ram.Description);
        ulong page = HostInfo.PageBytes;
        Assert.Equal(0UL, ram.ResidentBytes);

        for (ulong offset = 0; offset < 256 * page; offset += page) ram.Base[offset] = 1;
        Assert.Equal(256 * page, ram.ResidentBytes);

        ram.Release(0, 200 * page);
        Assert.Equal(56 * page, ram.ResidentBytes);
        ram.Release(0, ram.Bytes);
        Assert.Equal(0UL, ram.ResidentBytes);
    }

    [Theory]
    [InlineData(1UL, 4096UL, "offset 0x1 is not a multiple of 4096")]
    [InlineData(0UL, 100UL, "100 bytes are not a positive multiple of 4096")]
    [InlineData(0UL, 0UL, "0 bytes are not a positive multiple of 4096")]
    [InlineData(MiB, 4096UL, "outside the RAM of 0x100000 bytes")]
    [InlineData(0UL, MiB + 4096, "outside the RAM of 0x100000 bytes")]
    [InlineData(ulong.MaxValue - 4095, 8192UL, "outside the RAM of 0x100000 bytes")]
    public unsafe void ReleaseNamesTheRuleThatIsBroken(ulong offset, ulong bytes, string rule)
    {
        using Ram ram = Create(MiB);
        ram.Base[0] = ram.Base[MiB - 1] = 7;

        ArgumentException e = Assert.ThrowsAny<ArgumentException>(() => ram.Release(offset, bytes));

        Assert.Contains(rule, e.Message, StringComparison.Ordinal);
        Assert.Equal(7, ram.Base[0]);
        Assert.Equal(7, ram.Base[MiB - 1]);
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(4095UL)]
    [InlineData(4097UL)]
    [InlineData(ulong.MaxValue - 4095)]
    public void ASizeThatCannotBeIsRefused(ulong bytes)
    {
        var e = Assert.Throws<ArgumentOutOfRangeException>(() => Create(bytes));
        Assert.Contains("positive multiple of 4096", e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public unsafe void DisposeTwiceIsFineAndUseAfterItIsRefused()
    {
        Ram ram = Create(MiB);
        ram.Dispose();
        ram.Dispose();
        Assert.True(ram.Base == null);
        Assert.Throws<ObjectDisposedException>(() => ram.Release(0, 4096));
        Assert.Throws<ObjectDisposedException>(() => ram.ResidentBytes);
    }

    [Fact]
    public unsafe void ThreadsWriteAndReleaseTheirOwnFramesAtOnce()
    {
        const int Threads = 4, Rounds = 200;
        using Ram ram = Create(4 * MiB);
        ulong share = ram.Bytes / Threads;
        Parallel.For(0, Threads, t =>
        {
            byte* mine = ram.Base + (ulong)t * share;
            for (int round = 0; round < Rounds; round++)
            {
                ulong offset = (ulong)(round % 64) * 4096;
                mine[offset] = (byte)(t + 1);
                mine[offset + 4096] = (byte)(t + 1);
                ram.Release((ulong)t * share + offset, 4096);
                Assert.Equal(0, mine[offset]);
                Assert.Equal(t + 1, mine[offset + 4096]);
            }
        });
    }
}

/// <summary>A memfd: the only kind with windows.</summary>
public sealed class LinuxRamTests : RamContractTests
{
    private protected override Ram Create(ulong bytes)
    {
        Assert.SkipUnless(HostMemory.IsLinux, "memfd exists on Linux only");
        return LinuxRam.Create(bytes);
    }

    [Fact]
    public void IsWhatLinuxGetsByDefault()
    {
        Assert.SkipUnless(HostMemory.IsLinux, "memfd exists on Linux only");
        using var ram = Ram.Create(MiB);
        Assert.IsType<LinuxRam>(ram);
        Assert.True(ram.CanRelease);
        Assert.True(ram.CanAlias);
        Assert.StartsWith("memfd kmem-ram-", ram.Description, StringComparison.Ordinal);
    }

    [Fact]
    public unsafe void ATebibyteCostsOnlyWhatIsTouched()
    {
        const ulong TiB = 1UL << 40;
        var ram = (LinuxRam)Create(TiB);
        Assert.Equal(0UL, (ulong)ram.Base % GiB);
        for (ulong offset = 0; offset < TiB; offset += TiB / 16) ram.Base[offset + 4095] = 1;
        ram.Base[TiB - 1] = 1;

        Assert.Equal(17UL * HostInfo.PageBytes, ram.ResidentBytes);
        Assert.Contains(ram.Name, File.ReadAllText("/proc/self/maps"), StringComparison.Ordinal);

        ram.Dispose();
        Assert.DoesNotContain(ram.Name + " ", File.ReadAllText("/proc/self/maps"), StringComparison.Ordinal);
    }

    [Fact]
    public unsafe void RunningOverEitherEndFaults()
    {
        using Ram ram = Create(3 * MiB);
        using var probe = new MemoryProbe();
        Assert.Equal("rw", probe.Access(ram.Base));
        Assert.Equal("rw", probe.Access(ram.Base + ram.Bytes - 1));
        Assert.Equal("--", probe.Access(ram.Base - 1));
        Assert.Equal("--", probe.Access(ram.Base + ram.Bytes));
    }

    [Fact]
    public void TheDescriptorAndTheLinearMapStayOutOfChildren()
    {
        var ram = (LinuxRam)Create(MiB);
        using (ram)
        {
            string fd = $"/proc/self/fdinfo/{ram.BackingFile.DangerousGetHandle()}";
            string flags = File.ReadLines(fd).First(l => l.StartsWith("flags:", StringComparison.Ordinal));
            Assert.NotEqual(0, Convert.ToInt32(flags["flags:".Length..].Trim(), 8) & 0x80000);      // O_CLOEXEC

            Assert.Contains(" dc ", FieldOf(ram, "VmFlags:"), StringComparison.Ordinal);            // VM_DONTCOPY
        }
    }

    [Fact]
    public void HugePagesAreAskedForWhenWanted()
    {
        Assert.SkipWhen(HostInfo.SharedHugePages is null, "this kernel has no huge pages");
        using LinuxRam ram = LinuxRam.Create(4 * MiB, hugePages: true);
        using LinuxRam plain = LinuxRam.Create(4 * MiB);
        Assert.Contains(" hg ", FieldOf(ram, "VmFlags:"), StringComparison.Ordinal);
        Assert.DoesNotContain(" hg ", FieldOf(plain, "VmFlags:"), StringComparison.Ordinal);
        Assert.Equal(LinuxRam.GivesHugePages, ram.Description.Contains("huge pages", StringComparison.Ordinal));
    }

    [Fact]
    public unsafe void OneTouchedFrameIsAHugePageWhereTheHostAllowsIt()
    {
        Assert.SkipUnless(LinuxRam.GivesHugePages, "shmem_enabled of this host is never or deny");
        using LinuxRam ram = LinuxRam.Create(4 * MiB, hugePages: true);
        using LinuxRam plain = LinuxRam.Create(4 * MiB);
        ram.Base[0] = 1;
        plain.Base[0] = 1;
        Assert.Equal((2 * MiB, 4096UL), (ram.ResidentBytes, plain.ResidentBytes));
    }

    private static string FieldOf(LinuxRam ram, string field) => File.ReadLines("/proc/self/smaps")
        .SkipWhile(l => !l.Contains(ram.Name + " ", StringComparison.Ordinal))
        .First(l => l.StartsWith(field, StringComparison.Ordinal)) + " ";

    [Fact]
    public void MoreThanTheAddressSpaceIsAPlatformExceptionThatSaysSo()
    {
        var e = Assert.Throws<PlatformException>(() => Create(1UL << 50));
        Assert.Contains("128 TiB of address space", e.Message, StringComparison.Ordinal);
        Assert.Contains("ENOMEM", e.Message, StringComparison.Ordinal);
        Assert.Equal("mmap", e.Call);
        Assert.Equal(1UL << 50, e.Bytes);
        Assert.Equal(12, e.Error);
    }
}

/// <summary>Private pages: the choice on other systems, forced here.</summary>
public sealed class PortableRamTests : RamContractTests
{
    private protected override Ram Create(ulong bytes)
    {
        Assert.SkipUnless(HostMemory.CanReserve, "this system has no reservations");
        return Ram.CreatePortable(bytes, PrivateBacking.Pages);
    }

    [Fact]
    public unsafe void SaysWhatItCannotDo()
    {
        using Ram ram = Create(2 * GiB);
        Assert.Equal(0UL, (ulong)ram.Base % GiB);
        Assert.True(ram.CanRelease);
        Assert.False(ram.CanAlias);
        Assert.Contains("no vmalloc windows", ram.Description, StringComparison.Ordinal);
        var e = Assert.Throws<PlatformNotSupportedException>(() => AddressWindow.Reserve(GiB, ram));
        Assert.Contains("cannot be mapped a second time", e.Message, StringComparison.Ordinal);
    }
}

/// <summary>The C heap: the last resort.</summary>
public sealed class HeapRamTests : RamContractTests
{
    private protected override Ram Create(ulong bytes) => Ram.CreatePortable(bytes, PrivateBacking.Heap);

    [Fact]
    public void SaysWhatItCannotDo()
    {
        using Ram ram = Create(MiB);
        Assert.False(ram.CanRelease);
        Assert.False(ram.CanAlias);
        Assert.Equal(MiB, ram.ResidentBytes);
        Assert.Contains("stay allocated", ram.Description, StringComparison.Ordinal);
    }

    [Fact]
    public void IsForSmallSizesOnly()
    {
        var e = Assert.Throws<ArgumentOutOfRangeException>(() => Create(SparseMemory.MaxHeapBytes + 4096));
        Assert.Contains("the C heap backs at most", e.Message, StringComparison.Ordinal);
    }
}
