using System.Globalization;

namespace Kmem.Tests;

/// <summary>Tests that measure this process: no other test runs beside them.</summary>
[CollectionDefinition(DisableParallelization = true)]
public sealed class MeasuredAlone;

/// <summary>Machines far larger than their host, memory given back, and machines shaped like recorded ones.</summary>
[Collection(typeof(MeasuredAlone))]
public sealed class BigMachineTests
{
    private const ulong GiB = 1UL << 30;

    [Theory]
    [InlineData(64, 300)]
    [InlineData(1024, 1500)]        // a page of descriptors for each of 262144 free blocks
    [Trait("rule", "BOOT-05")]
    public void A_machine_costs_what_it_uses(int gibibytes, int mostMebibytes)
    {
        GC.Collect();
        long before = ResidentHere();
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = (ulong)gibibytes * GiB, Cpus = 2 });
        Assert.InRange(machine.ResidentBytes, 1UL, 1UL << 20);      // the slabs of the first caches

        // Far below one descriptor per frame: 1 and 16 GiB.
        Assert.InRange(ResidentHere() - before, long.MinValue, (long)mostMebibytes << 20);
        ulong managed = (ulong)machine.Pages.Zones.Sum(zone => (long)zone.Zone.Managed);
        Assert.InRange(managed * 4096, ((ulong)gibibytes * GiB) - (2 << 20), (ulong)gibibytes * GiB);
        Pfn top = machine.AllocPages(Gfp.Kernel, 10);
        Assert.True(top.Value >= 1UL << 20);
        machine.FreePages(top, 10);
        Assert.Equal(
            (ulong)machine.Pages.Zones.Sum(zone => zone.Buddy.NrFree(10)),
            machine.Proc.ReadBuddyInfo().Rows.Aggregate(0UL, (sum, row) => sum + row.FreeBlocks[10]));
    }

    [Fact]
    [Trait("rule", "BOOT-05")]
    public unsafe void Memory_that_is_returned_leaves_the_host_and_reads_as_zero()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "other systems do not tell how much of the memory is in use");
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = GiB, Cpus = 1 });
        var blocks = new List<Pfn>();
        for (int i = 0; i < 16; i++)
        {
            Pfn pfn = machine.AllocPages(Gfp.Kernel, 10);
            new Span<byte>(machine.AddressOf(pfn), 4 << 20).Fill(0xa5);
            blocks.Add(pfn);
        }

        Pfn kept = blocks[^1];
        foreach (Pfn pfn in blocks[..^1])
            machine.FreePages(pfn, 10);
        ulong used = machine.ResidentBytes;
        Assert.True(used >= 64 << 20);
        ulong returned = machine.ReturnFreeMemory();
        Assert.True(returned >= 60 << 20, $"{returned} bytes returned");
        Assert.InRange(machine.ResidentBytes, 4UL << 20, 8UL << 20);
        Assert.Equal(0UL, machine.ReturnFreeMemory());      // nothing was used in between
        Assert.True(new Span<byte>(machine.AddressOf(kept), 4 << 20).IndexOfAnyExcept((byte)0xa5) < 0);
        foreach (Pfn pfn in blocks[..^1])
        {
            var memory = new Span<byte>(machine.AddressOf(pfn), 4 << 20);
            Assert.True(memory.IndexOfAnyExcept((byte)0) < 0);
        }

        Assert.Empty(machine.Validate());
        Pfn again = machine.AllocPages(Gfp.Kernel, 10);
        machine.FreePages(again, 10);
        Assert.Equal(4UL << 20, machine.ReturnFreeMemory());    // only the block that was used
        Assert.Equal(BytesBelowPageblocks(machine), machine.ReturnFreeMemory(minOrder: 0));
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "BOOT-05")]
    public void Returning_small_blocks_leaves_the_lists_whole()
    {
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });
        var random = new Random(5);
        List<(Pfn Pfn, int Order)> live = [];
        for (int round = 0; round < 20; round++)
        {
            for (int i = 0; i < 100; i++)
            {
                int order = random.Next(6);
                Gfp gfp = random.Next(2) == 0 ? Gfp.Kernel : Gfp.Kernel | Gfp.Movable;
                Pfn pfn = machine.AllocPages(gfp | Gfp.NoWarn, order);
                if (pfn.IsValid)
                    live.Add((pfn, order));
            }

            for (int i = live.Count - 1; i >= 0; i -= 2)
            {
                machine.FreePages(live[i].Pfn, live[i].Order);
                live.RemoveAt(i);
            }

            machine.ReturnFreeMemory(random.Next(11));
            Assert.Empty(machine.Validate());
            Assert.Equal(0UL, machine.ReturnFreeMemory(10));
        }
    }

    [Fact]
    [Trait("rule", "BOOT-05")]
    public unsafe void A_machine_of_ordinary_memory_works_alike()
    {
        using var machine = Machine.Boot(
            new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 256 << 20, Cpus = 2, PortableMemory = true });
        using var usual = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 256 << 20, Cpus = 2 });
        Assert.Equal(usual.Proc.ZoneInfo(), machine.Proc.ZoneInfo());
        Assert.Equal(usual.Proc.PageTypeInfo(), machine.Proc.PageTypeInfo());
        var objects = new List<nint>();
        for (int i = 1; i < 2000; i++)
        {
            nuint size = (nuint)(i * 7 % 9000) + 1;
            byte* p = (byte*)machine.Kmalloc(size, Gfp.Kernel);
            Assert.True(p != null);
            Assert.Equal(
                (nint)usual.Kmalloc(size, Gfp.Kernel) - (nint)usual.AddressOf(new Pfn(0)),
                (nint)p - (nint)machine.AddressOf(new Pfn(0)));
            new Span<byte>(p, (int)size).Fill((byte)i);
            objects.Add((nint)p);
        }

        for (int i = 1; i < 2000; i++)
        {
            int size = (i * 7 % 9000) + 1;
            Assert.True(new Span<byte>((void*)objects[i - 1], size).IndexOfAnyExcept((byte)i) < 0);
            machine.Kfree((void*)objects[i - 1]);
        }

        Assert.Empty(machine.Validate());
        Pfn block = machine.AllocPages(Gfp.Kernel, 10);
        new Span<byte>(machine.AddressOf(block), 4 << 20).Fill(1);
        machine.FreePages(block, 10);
        machine.ReturnFreeMemory();
        Pfn zeroed = machine.AllocPages(Gfp.Kernel | Gfp.Zero, 10);
        Assert.True(new Span<byte>(machine.AddressOf(zeroed), 4 << 20).IndexOfAnyExcept((byte)0) < 0);
    }

    [Theory]
    [InlineData("git")]
    [InlineData("gcc")]
    [Trait("rule", "WMARK-08")]
    public void A_machine_of_the_recorded_size_has_the_recorded_numbers(string name)
    {
        List<ZoneInfoRecord> recorded =
            ZoneInfoText.Parse(File.ReadAllText(TestData.PathOf($"zoneinfo/{name}.txt"))).Zones;
        using var machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, MemoryMap = MapOf(recorded), Cpus = 2 });
        List<ZoneInfoRecord> ours = machine.Proc.ReadZoneInfo().Zones;
        Assert.Equal(67584, machine.MinFreeKbytes);
        Assert.Equal(recorded.Count, ours.Count);
        for (int i = 0; i < recorded.Count; i++)
        {
            ZoneInfoRecord theirs = recorded[i];
            ZoneInfoRecord mine = ours[i];
            Assert.Equal((theirs.Node, theirs.Zone), (mine.Node, mine.Zone));
            Assert.Equal(
                (theirs.Spanned, theirs.Present, theirs.Managed), (mine.Spanned, mine.Present, mine.Managed));
            Assert.Equal(
                (theirs.Min, theirs.Low, theirs.High, theirs.Promo), (mine.Min, mine.Low, mine.High, mine.Promo));
            Assert.Equal(theirs.Protection, mine.Protection);
            Assert.Equal(theirs.StartPfn, mine.StartPfn);
            Assert.Equal(
                theirs.Pagesets.Select(set => (set.Batch, set.HighMin, set.HighMax, set.StatThreshold)),
                mine.Pagesets.Select(set => (set.Batch, set.HighMin, set.HighMax, set.StatThreshold)));
        }
    }

    /// <summary>
    /// Memory where the recorded zones have it, with holes and reservations so that the counts are theirs.
    /// </summary>
    private static BootMemoryMap MapOf(List<ZoneInfoRecord> zones)
    {
        var map = new BootMemoryMap();
        foreach (ZoneInfoRecord zone in zones.Where(zone => zone.Present > 0))
        {
            // The hole in the middle, so that the span is right; what is reserved lies before it.
            ulong end = zone.StartPfn + zone.Spanned;
            ulong upper = Math.Min(zone.Present, 64);
            bool reachesItsEnd = zone.Zone != "DMA32";
            ulong lower = zone.Present - (reachesItsEnd ? upper : 0);
            map.AddMemory(zone.StartPfn << 12, (zone.StartPfn + lower) << 12);
            if (reachesItsEnd)
                map.AddMemory((end - upper) << 12, end << 12);
            ulong reserved = zone.Present - zone.Managed;
            map.Reserve(zone.StartPfn << 12, (zone.StartPfn + reserved) << 12);
        }

        return map;
    }

    private static ulong BytesBelowPageblocks(Machine machine) =>
        (ulong)machine.Pages.Zones.Sum(zone => Enumerable.Range(0, 9).Sum(order => zone.Buddy.NrFree(order) << order))
            << 12;

    /// <summary>Resident bytes of this process.</summary>
    private static long ResidentHere()
    {
        if (!OperatingSystem.IsLinux())
            return Environment.WorkingSet;
        string line = File.ReadLines("/proc/self/status").First(
            text => text.StartsWith("VmRSS:", StringComparison.Ordinal));
        return long.Parse(line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[^2], CultureInfo.InvariantCulture) << 10;
    }
}
