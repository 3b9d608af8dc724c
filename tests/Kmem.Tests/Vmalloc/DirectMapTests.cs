using CsCheck;

namespace Kmem.Tests;

/// <summary>The direct map in the kernel's page tables: large leaves, and how they are split.</summary>
public sealed class DirectMapTests
{
    private const ulong Mega2 = 2UL << 20;
    private const ulong Giga = 1UL << 30;

    private static Machine Boot(ulong ram, int levels = 4)
    {
        Assert.SkipUnless(HostMemory.IsLinux && HostInfo.PageBytes == 4096, "vmalloc needs Linux with 4 KiB pages");
        return Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            RamBytes = ram,
            Cpus = 1,
            PageTableLevels = levels,
        });
    }

    private static unsafe KernelPageTable TablesOf(Machine machine)
    {
        machine.Vfree(machine.Vmalloc(4096));
        return machine.VmallocIfUsed!.Tables;
    }

    [Theory]
    [InlineData(4)]
    [InlineData(5)]
    public void EveryFrameIsAtItsPlace(int levels)
    {
        using Machine machine = Boot(4 * Giga, levels);
        KernelPageTable tables = TablesOf(machine);
        ulong start = AddressMap.For(levels).DirectMap;
        int mapped = 0;
        for (ulong pfn = 0; pfn < machine.Map.EndPfn; pfn += 509)
        {
            PageWalk walk = tables.Walk(start + (pfn << 12));
            Assert.Equal(machine.Pages.IsPresent(pfn) ? new Pfn(pfn) : Pfn.None, walk.Pfn);
            if (!walk.IsMapped)
                continue;
            mapped++;
            Assert.Equal(PageProt.Kernel, walk.Prot);
            Assert.True(walk.LeafBytes >= Mega2);
        }

        Assert.True(mapped > 2000);
        Assert.True(tables.DirectMapLeaves(3) >= 2);
        ulong kilobytes = machine.Proc.ReadMemInfo().Lines
            .Where(line => line.Label.StartsWith("DirectMap", StringComparison.Ordinal))
            .Aggregate(0UL, (sum, line) => sum + line.Value);
        ulong leaves = tables.Rows().Where(row => row.Va < AddressMap.For(levels).VmallocStart)
            .Where(row => PageTableEntry.IsLeaf(row.Entry, row.Level))
            .Aggregate(0UL, (sum, row) => sum + (1UL << (PageTableEntry.ShiftOf(row.Level) - 10)));
        Assert.Equal(leaves, kilobytes);
    }

    /// <summary>One page read-only in a leaf of 1 GiB: two tables more, and all other pages as before.</summary>
    [Fact]
    public void OnePageOfALargeLeafSplitsItTwice()
    {
        using Machine machine = Boot(4 * Giga);
        KernelPageTable tables = TablesOf(machine);
        ulong start = AddressMap.PageOffset;
        ulong pfn = (Giga >> 12) + 1234;
        Assert.Equal(Giga, tables.Walk(start + (pfn << 12)).LeafBytes);
        long pages = tables.TablePages, giant = tables.DirectMapLeaves(3), large = tables.DirectMapLeaves(2);
        ulong counted = machine.Proc.ReadMemInfo().Find("PageTables")!.Value;
        Assert.Equal((ulong)pages * 4, counted);

        Assert.True(tables.ProtectDirect(pfn, 1, PageProt.KernelReadOnly));
        Assert.Equal(PageProt.KernelReadOnly, tables.Walk(start + (pfn << 12)).Prot);
        Assert.Equal((4096UL, 4096UL), (LeafAt(pfn), LeafAt(pfn + 1)));
        Assert.Equal(Mega2, LeafAt(pfn + 1024));
        for (ulong other = Giga >> 12; other < 2 * Giga >> 12; other++)
        {
            PageWalk walk = tables.Walk(start + (other << 12));
            Assert.Equal(new Pfn(other), walk.Pfn);
            Assert.Equal(other == pfn ? PageProt.KernelReadOnly : PageProt.Kernel, walk.Prot);
        }

        Assert.Equal(pages + 2, tables.TablePages);
        Assert.Equal(
            (giant - 1, large + 511, 512L),
            (tables.DirectMapLeaves(3), tables.DirectMapLeaves(2), tables.DirectMapLeaves(1)));
        Assert.Equal(counted + 8, machine.Proc.ReadMemInfo().Find("PageTables")!.Value);
        Assert.Contains($"nr_page_table_pages {pages + 2}\n", machine.Proc.VmStat(), StringComparison.Ordinal);
        Assert.Contains($"nr_page_table_pages {pages + 2}\n", machine.Proc.ZoneInfo(), StringComparison.Ordinal);
        Assert.Contains("DirectMap4k:        2048 kB\n", machine.Proc.MemInfo(), StringComparison.Ordinal);

        // Back again: rights return, tables stay split, and a second change needs no more of them.
        Assert.True(tables.ProtectDirect(pfn, 1, PageProt.Kernel));
        Assert.True(tables.ProtectDirect(pfn + 3, 200, PageProt.KernelReadOnly));
        Assert.Equal(pages + 2, tables.TablePages);
        Assert.Empty(machine.Validate());

        ulong LeafAt(ulong at) => tables.Walk(start + (at << 12)).LeafBytes;
    }

    /// <summary>Rights of random ranges, against an array; caching and PAT bits survive every split.</summary>
    [Fact]
    public void RandomRightsAgreeWithAnArray() =>
        Gen.Select(Gen.Int[0, 4000], Gen.Int[1, 1500], Gen.Bool).List[1, 12].Sample(
            steps =>
            {
                using Machine machine = Boot(64UL << 20);
                using var tables = new KernelPageTable(machine.Pages, machine.Map, 4);
                const ulong Start = 0xffff_c900_0000_0000;
                const int Pages = 4096;
                Assert.True(tables.Map(
                    Start, 512, Pages, PageProt.Kernel, CacheMode.WriteThrough, 21, Gfp.Kernel));
                var readOnly = new bool[Pages];
                foreach ((int first, int length, bool lockIt) in steps)
                {
                    int count = Math.Min(length, Pages - first);
                    PageProt prot = lockIt ? PageProt.KernelReadOnly : PageProt.Kernel;
                    Assert.True(tables.Protect(Start + ((ulong)first << 12), (ulong)count, prot));
                    readOnly.AsSpan(first, count).Fill(lockIt);
                }

                for (int i = 0; i < Pages; i++)
                {
                    PageWalk walk = tables.Walk(Start + ((ulong)i << 12));
                    Assert.Equal(new Pfn(512 + (ulong)i), walk.Pfn);
                    Assert.Equal(CacheMode.WriteThrough, walk.CacheMode);
                    Assert.Equal(readOnly[i] ? PageProt.KernelReadOnly : PageProt.Kernel, walk.Prot);
                }
            },
            iter: 30);

    /// <summary>A processor that had cached the large leaf asks again after the split.</summary>
    [Fact]
    public void TheSplitIsFlushed()
    {
        using Machine machine = Boot(4 * Giga);
        KernelPageTable tables = TablesOf(machine);
        var tlb = new TlbModel(2);
        tables.Tlb = tlb;
        tlb.Load(0, tables);
        ulong va = AddressMap.PageOffset + Giga + (77 << 12);
        Assert.True(tlb.Access(0, va, write: true).Pfn.IsValid);
        Assert.True(tables.ProtectDirect((Giga >> 12) + 77, 1, PageProt.KernelReadOnly));
        Assert.False(tlb.Access(0, va, write: true).Pfn.IsValid);
        Assert.True(tlb.Access(0, va).Pfn.IsValid);
        Assert.True(tlb.Access(0, va + 4096, write: true).Pfn.IsValid);
        Assert.Equal(0, tlb.StaleHits);
        tables.Tlb = null;
    }

    [Fact]
    public void NoMemoryForASplitChangesNothing()
    {
        using Machine machine = Boot(64UL << 20);
        KernelPageTable tables = TablesOf(machine);
        List<Pfn> all = [];
        for (Pfn page; (page = machine.AllocPage(Gfp.NoWait | Gfp.MemAlloc | Gfp.NoWarn)).IsValid;)
            all.Add(page);
        List<PageTableRow> before = [.. tables.Rows()];
        bool done = true;
        ulong pfn = 0;
        for (; done && pfn < machine.Map.EndPfn; pfn += 512)
            done = !machine.Pages.IsPresent(pfn) || tables.ProtectDirect(pfn, 1, PageProt.KernelReadOnly);
        Assert.False(done);
        Assert.Equal(
            before.Where(row => row.Va >= AddressMap.PageOffset + (pfn << 12)),
            tables.Rows().Where(row => row.Va >= AddressMap.PageOffset + (pfn << 12)));
        Assert.Equal(PageProt.Kernel, tables.Walk(AddressMap.PageOffset + ((pfn - 512) << 12)).Prot);
        foreach (Pfn page in all)
            machine.FreePage(page);
    }
}
