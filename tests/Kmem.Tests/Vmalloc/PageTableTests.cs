using CsCheck;

namespace Kmem.Tests;

/// <summary>Page tables: bits, walks, large leaves, and a dictionary as the model.</summary>
public sealed class PageTableTests
{
    private const ulong Base = 0xffff_c900_0000_0000;
    private const ulong Base5 = 0xffa0_0000_0000_0000;
    private const ulong Huge = 2UL << 20;
    private const ulong Giant = 1UL << 30;

    /// <summary>The table of page-tables.md, section 1: protections as the kernel names them.</summary>
    [Theory]
    [InlineData((int)PageProt.Kernel, 0x8000000000000163)]
    [InlineData((int)PageProt.KernelReadOnly, 0x8000000000000121)]
    [InlineData((int)PageProt.KernelExec, 0x163)]
    [InlineData((int)PageProt.KernelReadOnlyExec, 0x121)]
    [InlineData((int)(PageProt.Read | PageProt.Write), 0x8000000000000063)]
    [InlineData((int)(PageProt.Read | PageProt.Write | PageProt.User), 0x8000000000000027)]
    [InlineData((int)(PageProt.Read | PageProt.User | PageProt.Execute), 0x25)]
    public void ProtectionsAreTheKernels(int prot, ulong entry) =>
        Assert.Equal(entry, PageTableEntry.FlagsOf((PageProt)prot, CacheMode.WriteBack));

    /// <summary>PAT, PCD and PWT of small and large leaves, and back.</summary>
    [Theory]
    [InlineData(CacheMode.WriteBack, 0, 0)]
    [InlineData(CacheMode.WriteCombining, 0x08, 0x08)]
    [InlineData(CacheMode.UncachedMinus, 0x10, 0x10)]
    [InlineData(CacheMode.Uncached, 0x18, 0x18)]
    [InlineData(CacheMode.WriteProtected, 0x88, 0x1008)]
    [InlineData(CacheMode.WriteThrough, 0x98, 0x1018)]
    internal void CacheModesAreTheKernels(CacheMode mode, ulong small, ulong large)
    {
        ulong flags = PageTableEntry.FlagsOf(PageProt.Kernel, mode);
        Assert.Equal(0x8000000000000163 | small, PageTableEntry.Leaf(0, flags, 1));
        Assert.Equal(0x80000000000001e3 | large, PageTableEntry.Leaf(0, flags, 2));
        for (int level = 1; level <= 3; level++)
        {
            ulong entry = PageTableEntry.Leaf(512 * 512 * 3, flags, level);
            Assert.Equal(mode, PageTableEntry.CacheModeOf(entry, level));
            Assert.Equal(512UL * 512 * 3, PageTableEntry.PfnOf(entry, level));
            Assert.Equal(PageProt.Kernel, PageTableEntry.ProtOf(entry));
        }
    }

    /// <summary>
    /// A real kernel's vmalloc range: the same leaves, mapped one by one, give the same entries in the same order.
    /// The frames of the tables are the machine's own, so of an entry that points to a table only the flags can be
    /// compared. Two tables of the recording are empty: what they mapped is gone, they stay.
    /// </summary>
    [Fact]
    public void RecordedTablesComeOutBitForBit()
    {
        List<PageTableRow> recorded = ReadRecording("boot-1cpu/02-vm/pagetables-t1.tsv.gz");
        using var space = new Space();
        foreach (PageTableRow leaf in recorded.Where(row => row.Level == 1))
        {
            ulong pfn = PageTableEntry.PfnOf(leaf.Entry, 1);
            CacheMode mode = PageTableEntry.CacheModeOf(leaf.Entry, 1);
            Assert.True(space.Tables.Map(leaf.Va, pfn, 1, PageProt.Kernel, mode, 12, Gfp.Kernel));
        }

        List<PageTableRow> kept = [.. recorded.Where((row, i) => row.Level == 2 && recorded[i + 1].Level != 1)];
        Assert.Equal(2, kept.Count);
        foreach (PageTableRow table in kept)
        {
            Assert.True(space.Map(table.Va + 0x3000, 77, 1));
            space.Tables.Unmap(table.Va, 512);
        }

        static PageTableRow Comparable(PageTableRow row) =>
            row.Level == 1 ? row : row with { Entry = row.Entry & ~PageTableEntry.FrameMask };
        Assert.Equal(recorded.Select(Comparable), space.Tables.Rows().Select(Comparable));
        Assert.Equal(recorded.Count(row => row.Level > 1) + 1, space.Tables.TablePages);
        Assert.Equal(2817, recorded.Count(row => row.Level == 1));
    }

    [Fact]
    public void AWalkTellsEachStep()
    {
        using var space = new Space();
        ulong va = Base + 0x1234_5000;
        Assert.True(space.Map(va, 0x777, 1));
        PageWalk walk = space.Tables.Walk(va + 0x123);

        Assert.Equal("pgd pud pmd pte", Names(walk));
        Assert.Equal([402, 0, 0x91, 0x145], walk.Steps.Select(step => step.Index));
        Assert.Equal(space.Tables.RootPfn, walk.Steps[0].TablePfn);
        for (int i = 0; i < 3; i++)
        {
            Assert.False(walk.Steps[i].Leaf);
            Assert.Equal(0x067UL | (walk.Steps[i + 1].TablePfn << 12), walk.Steps[i].Entry);
        }

        Assert.True(walk.Steps[3].Leaf);
        Assert.Equal(0x8000000000777163, walk.Steps[3].Entry);
        Assert.Equal(new PhysAddr(0x777123), walk.PhysicalAddress);
        Assert.Equal(PageProt.Kernel, walk.Prot);
        Assert.Equal(
            $"PGD {walk.Steps[0].Entry:x} P4D {walk.Steps[0].Entry:x} PUD {walk.Steps[1].Entry:x} "
            + $"PMD {walk.Steps[2].Entry:x} PTE 8000000000777163",
            walk.ToString());
    }

    /// <summary>The entry is where the walk says, in memory that the machine can be asked for.</summary>
    [Fact]
    public unsafe void TablesAreInTheMachinesRam()
    {
        using var space = new Space();
        Assert.True(space.Map(Base, 0x777, 1));
        foreach (PageWalkStep step in space.Tables.Walk(Base).Steps)
        {
            byte* table = (byte*)space.Machine.AddressOf(new Pfn(step.TablePfn));
            Assert.Equal(step.Entry, ((ulong*)table)[step.Index]);
            Assert.Equal(PageType.Table, space.Machine.Map.PageOf(step.TablePfn)->Type);
        }
    }

    [Fact]
    public void FiveLevelsHaveAP4d()
    {
        using var space = new Space(levels: 5);
        Assert.True(space.Map(Base5 + 0x5000, 0x777, 3));
        PageWalk walk = space.Tables.Walk(Base5 + 0x7000);
        Assert.Equal("pgd p4d pud pmd pte", Names(walk));
        Assert.Equal(416, walk.Steps[0].Index);
        Assert.Equal(new Pfn(0x779), walk.Pfn);
        Assert.Equal(1 + 50 + 3, space.Tables.TablePages);
        Assert.DoesNotContain("P4D 0", walk.ToString(), StringComparison.Ordinal);

        // An address of the four-level layout is one as well, in another slot; one that is not canonical is none.
        Assert.False(space.Tables.Walk(0x0100_0000_0000_0000).IsMapped);
        Assert.Throws<KernelBugException>(() => space.Map(0x0100_0000_0000_0000, 1, 1));
        Assert.Equal(Base5 + 0x5000, space.Tables.Rows().First(row => row.Level == 1).Va);
    }

    /// <summary>A leaf is as large as address, frame, length and permission allow.</summary>
    [Theory]
    [InlineData(0UL, 0UL, 512UL, 21, "pmd")]
    [InlineData(0UL, 0UL, 511UL, 21, "pte")]
    [InlineData(0UL, 1UL, 512UL, 21, "pte")]
    [InlineData(1UL, 1UL, 1023UL, 21, "pte pmd")]
    [InlineData(0UL, 0UL, 512UL, 12, "pte")]
    [InlineData(0UL, 0UL, 512UL * 512, 30, "pud")]
    [InlineData(0UL, 512UL, 512UL * 512, 30, "pmd")]
    [InlineData(0UL, 0UL, 512UL * 512, 21, "pmd")]
    [InlineData(511UL, 511UL, (512UL * 512 * 2) - 511 + 1, 30, "pte pmd pud pte")]
    public void LeavesAreAsLargeAsTheyCanBe(ulong page, ulong frame, ulong pages, int maxShift, string names)
    {
        using var space = new Space();
        ulong va = Base + (page << 12);
        ulong pfn = (1UL << 18) + frame;
        Assert.True(space.Tables.Map(va, pfn, pages, PageProt.Kernel, CacheMode.WriteBack, maxShift, Gfp.Kernel));

        var seen = new List<string>();
        for (ulong at = va; at < va + (pages << 12);)
        {
            PageWalk walk = space.Tables.Walk(at);
            Assert.Equal(new Pfn(pfn + ((at - va) >> 12)), walk.Pfn);
            if (seen.Count == 0 || seen[^1] != walk.Steps[^1].Name)
                seen.Add(walk.Steps[^1].Name);
            at += walk.LeafBytes;
        }

        Assert.Equal(names, string.Join(' ', seen));
        Assert.False(space.Tables.Walk(va + (pages << 12)).IsMapped);
        space.Tables.Unmap(va, pages);
        Assert.DoesNotContain(space.Tables.Rows(), row => PageTableEntry.IsLeaf(row.Entry, row.Level));
    }

    [Fact]
    public void UnmappingKeepsTablesAndTheyAreUsedAgain()
    {
        using var space = new Space();
        long before = space.Tables.TablePages;
        Assert.True(space.Map(Base, 100, 600));
        Assert.Equal(
            PageTableModification.Pud | PageTableModification.Pmd | PageTableModification.Pte,
            space.Tables.LastModified);
        Assert.Equal(before + 3, space.Tables.TablePages);
        space.Tables.Unmap(Base, 600);
        Assert.Equal(PageTableModification.Pte, space.Tables.LastModified);
        Assert.Equal(before + 3, space.Tables.TablePages);
        Assert.True(space.Map(Base, 300, 600));
        Assert.Equal(PageTableModification.Pte, space.Tables.LastModified);
        Assert.Equal(before + 3, space.Tables.TablePages);
    }

    /// <summary>An empty table gives way to a large leaf, and is freed; one in use does not.</summary>
    [Fact]
    public void ALargeLeafReplacesEmptyTablesOnly()
    {
        using var space = new Space();
        space.Tables.Tlb = new TlbModel(2);
        Assert.True(space.Map(Base, 100, 1));
        Assert.True(space.Map(Base + Giant - Huge, 100, 1));
        long tables = space.Tables.TablePages;
        ulong giant = 1UL << 18;
        Assert.Throws<KernelBugException>(() => space.Tables.Map(
            Base, giant, giant, PageProt.Kernel, CacheMode.WriteBack, 30, Gfp.Kernel));
        Assert.Equal(new Pfn(100), space.Tables.Translate(Base));
        Assert.Equal(tables, space.Tables.TablePages);

        space.Tables.Unmap(Base, giant);
        Assert.True(space.Tables.Map(Base, giant, giant, PageProt.Kernel, CacheMode.WriteBack, 30, Gfp.Kernel));
        Assert.Equal(PageTableModification.Pud, space.Tables.LastModified);
        Assert.Equal(tables - 3, space.Tables.TablePages);
        Assert.Equal(1, space.Tables.Tlb.RangeFlushes);
        Assert.Equal(new Pfn(giant + 77), space.Tables.Translate(Base + (77 << 12)));
        Assert.Throws<KernelBugException>(() => space.Map(Base + Huge, 1, 1));
    }

    /// <summary>What is refused changes nothing.</summary>
    [Fact]
    public void MisuseIsReportedAndChangesNothing()
    {
        using var space = new Space();
        Assert.True(space.Tables.Map(Base + Huge, 512, 512, PageProt.Kernel, CacheMode.WriteBack, 21, Gfp.Kernel));
        Assert.True(space.Map(Base + (4 * Huge), 9, 1));
        List<PageTableRow> leaves = space.Leaves();

        Action[] misuses =
        [
            () => space.Tables.Unmap(Base + Huge, 511),
            () => space.Tables.Unmap(Base + Huge + 4096, 511),
            () => space.Tables.Unmap(Base, 1000),
            () => space.Map(Base + (4 * Huge) - (50 << 12), 1, 100),
            () => space.Map(Base + 1, 1, 1),
            () => space.Map(0x0000_7fff_ffff_f000, 1, 2),
            () => space.Map(0xffff_ffff_ffff_f000, 1, 2),
            () => space.Map(0x1234_0000_0000_0000, 1, 1),
            () => space.Tables.Map(Base, 1, 1, PageProt.Write, CacheMode.WriteBack, 12, Gfp.Kernel),
        ];
        foreach (Action misuse in misuses)
        {
            Assert.Throws<KernelBugException>(misuse);
            Assert.Equal(leaves, space.Leaves());
        }

        string log = space.Machine.Dmesg.ToString();
        Assert.Contains("part of a large leaf", log, StringComparison.Ordinal);
        Assert.Contains("mapping over a mapping", log, StringComparison.Ordinal);
    }

    /// <summary>
    /// Somebody wrote over a table: walks end there, changes are refused, neither follows the garbage.
    /// </summary>
    [Theory]
    [InlineData(0, 0x80UL | 0x067)]         // a leaf of 512 GiB, which no processor has
    [InlineData(1, 0xdead_beef_0000UL)]     // not present
    [InlineData(2, 0x6b6b_6b6b_6b6b_6b6b)]  // poison: present, but neither table nor leaf
    public unsafe void GarbageIsNotFollowed(int step, ulong garbage)
    {
        using var space = new Space();
        Assert.True(space.Map(Base, 77, 4));
        PageWalkStep victim = space.Tables.Walk(Base).Steps[step];
        ulong* entry = (ulong*)space.Machine.AddressOf(new Pfn(victim.TablePfn)) + victim.Index;
        *entry = garbage;

        PageWalk walk = space.Tables.Walk(Base);
        Assert.Equal((step + 1, false, true), (walk.Steps.Count, walk.IsMapped, walk.Steps[^1].Bad));
        Assert.Equal(Pfn.None, space.Tables.Translate(Base));
        Assert.Throws<KernelBugException>(() => space.Map(Base + 0x8000, 1, 1));
        Assert.Throws<KernelBugException>(() => space.Tables.Unmap(Base, 4));
        Assert.DoesNotContain(space.Tables.Rows(), row => row.Level == 1);
        Assert.NotEmpty(space.Tables.Dump());

        *entry = victim.Entry;
        Assert.Equal(new Pfn(77), space.Tables.Translate(Base));
    }

    [Fact]
    public void ProtectKeepsFrameAndCaching()
    {
        using var space = new Space();
        Assert.True(space.Tables.Map(Base, 512, 513, PageProt.Kernel, CacheMode.WriteThrough, 21, Gfp.Kernel));
        space.Tables.Protect(Base, 600, PageProt.KernelReadOnlyExec);
        PageWalk large = space.Tables.Walk(Base + 0x5000);
        PageWalk small = space.Tables.Walk(Base + Huge);
        Assert.Equal(0x0000000000201000UL | 0x1b9UL, large.Steps[^1].Entry);
        Assert.Equal(0x400000UL | 0x1b9UL, small.Steps[^1].Entry);
        Assert.Equal([CacheMode.WriteThrough, CacheMode.WriteThrough], [large.CacheMode, small.CacheMode]);
        Assert.Equal(PageProt.KernelReadOnlyExec, small.Prot);
        Assert.Equal(new Pfn(517), large.Pfn);
    }

    /// <summary>Random runs mapped, unmapped and walked, against a dictionary from page to frame.</summary>
    [Theory]
    [InlineData(4)]
    [InlineData(5)]
    public void BehavesAsADictionary(int levels) =>
        Gen.Select(Gen.Int[0, 1], Gen.Int[0, 1600], Gen.Int[1, 1200], Gen.Int[0, 3], Gen.Bool)
            .List[1, 25].Sample(
                steps =>
                {
                    using var space = new Space(levels);
                    var model = new Dictionary<ulong, ulong>();
                    var large = new HashSet<ulong>();
                    ulong origin = levels == 5 ? Base5 : Base;
                    foreach ((int action, int at, int length, int frame, bool aligned) in steps)
                    {
                        ulong page = aligned ? (ulong)at & ~511UL : (ulong)at;
                        if (action == 0)
                            MapFree(space, model, large, origin, page, (ulong)length, (ulong)frame);
                        else
                            UnmapWhole(space, model, large, origin, page, (ulong)length);
                        AssertSame(space, model, origin);
                    }
                },
                iter: 60);

    /// <summary>Every table comes from the buddy system and goes back, whatever was mapped.</summary>
    [Theory]
    [InlineData(4)]
    [InlineData(5)]
    public void DisposeGivesEveryTableBack(int levels)
    {
        using Machine machine = Machine.Boot(
            new MachineOptions { Profile = KernelProfile.Linux618, Cpus = 2, RamBytes = 64 << 20 });
        long Free()
        {
            machine.DrainAllPages();
            return machine.NodeList.SelectMany(node => node.Zones).Sum(zone => zone.FreePagesExact);
        }

        long before = Free();
        using (var tables = new KernelPageTable(machine.Pages, machine.Map, levels))
        {
            ulong origin = levels == 5 ? Base5 : Base;
            for (ulong i = 0; i < 200; i++)
            {
                ulong va = origin + (i * 37 * Huge);
                int maxShift = i % 2 == 0 ? 12 : 21;
                Assert.True(tables.Map(va, i << 9, 512, PageProt.Kernel, CacheMode.WriteBack, maxShift, Gfp.Kernel));
            }

            Assert.True(tables.TablePages > 150);
            Assert.Equal(before - tables.TablePages, Free());
            Assert.Empty(machine.Validate());
        }

        Assert.Equal(before, Free());
        Assert.Empty(machine.Validate());
    }

    /// <summary>Memory for a table runs out in the middle: what is mapped can be unmapped, and nothing leaks.</summary>
    [Fact]
    public void NoMemoryForATableLeavesThingsWhole()
    {
        using var space = new Space(ramBytes: 16 << 20);
        var taken = new List<Pfn>();
        for (Pfn pfn; (pfn = space.Machine.AllocPages(Gfp.NoWait | Gfp.NoWarn, 0)).IsValid;)
            taken.Add(pfn);
        Gfp gfp = Gfp.NoWait | Gfp.NoWarn;
        space.Machine.FreePages(taken[^1], 0);
        space.Machine.FreePages(taken[^2], 0);
        space.Machine.FreePages(taken[^3], 0);
        taken.RemoveRange(taken.Count - 3, 3);
        ulong pages = 512 * 200;
        Assert.False(space.Tables.Map(Base, 1, pages, PageProt.Kernel, CacheMode.WriteBack, 12, gfp));
        space.Tables.Unmap(Base, pages);
        Assert.Empty(space.Leaves());

        foreach (Pfn pfn in taken)
            space.Machine.FreePages(pfn, 0);
        Assert.True(space.Map(Base, 1, pages));
        Assert.Equal(new Pfn(pages), space.Tables.Translate(Base + ((pages - 1) << 12)));
        Assert.Empty(space.Machine.Validate());
    }

    /// <summary>
    /// Threads that map neighbouring ranges race for the tables above them; each table is hung in once.
    /// </summary>
    [Fact]
    public void ThreadsShareTables()
    {
        using var space = new Space();
        long before = space.Tables.TablePages;
        Parallel.For(0, 8, new ParallelOptions { MaxDegreeOfParallelism = 8 }, worker =>
        {
            for (ulong round = 0; round < 40; round++)
            {
                ulong va = Base + (round * Huge) + ((ulong)worker << 18);
                Assert.True(space.Map(va, ((ulong)worker << 20) + round, 64));
                if (round % 3 == 0)
                    space.Tables.Unmap(va, 64);
            }
        });

        Assert.Equal(before + 1 + 40, space.Tables.TablePages);
        for (ulong worker = 0; worker < 8; worker++)
        {
            for (ulong round = 0; round < 40; round++)
            {
                Pfn expected = round % 3 == 0 ? Pfn.None : new Pfn((worker << 20) + round + 63);
                Assert.Equal(expected, space.Tables.Translate(Base + (round * Huge) + (worker << 18) + (63 << 12)));
            }
        }

        Assert.Empty(space.Machine.Validate());
    }

    /// <summary>The lines of page-tables.md, section 9.</summary>
    [Fact]
    public void TheDumpIsTheKernels()
    {
        using var space = new Space();
        Assert.True(space.Map(Base, 100, 4));
        Assert.True(space.Tables.Map(Base + Huge, 512, 512, PageProt.Kernel, CacheMode.WriteBack, 21, Gfp.Kernel));
        string blank = new(' ', 30);
        string[] lines = space.Tables.Dump().Split('\n');
        int start = Array.IndexOf(lines, "---[ vmalloc() Area ]---");
        Assert.Equal(
            [
                "0xffffc90000000000-0xffffc90000004000          16K     RW                 GLB NX pte",
                $"0xffffc90000004000-0xffffc90000200000        2032K {blank}pte",
                "0xffffc90000200000-0xffffc90000400000           2M     RW         PSE     GLB NX pmd",
                $"0xffffc90000400000-0xffffc90040000000        1020M {blank}pmd",
            ],
            lines[(start + 1)..(start + 5)]);
        Assert.Equal("---[ User Space ]---", lines[0]);
        Assert.Equal($"0x0000000000000000-0x0000800000000000         128T {blank}pgd", lines[1]);
        Assert.Equal("---[ Kernel Space ]---", lines[2]);
    }

    private static string Names(PageWalk walk) => string.Join(' ', walk.Steps.Select(step => step.Name));

    private static List<PageTableRow> ReadRecording(string name) =>
        [.. TestData.ReadGzip(name).TrimEnd('\n').Split('\n').Skip(1).Select(line => line.Split('\t')).Select(fields =>
            new PageTableRow(int.Parse(fields[0]), Convert.ToUInt64(fields[1], 16), Convert.ToUInt64(fields[2], 16)))];

    private static void MapFree(
        Space space,
        Dictionary<ulong, ulong> model,
        HashSet<ulong> large,
        ulong origin,
        ulong page,
        ulong length,
        ulong frame)
    {
        ulong pfn = (1UL << 20) + (frame * 512) + page;
        bool busy = Enumerable.Range(0, (int)length).Any(i => model.ContainsKey(page + (ulong)i));
        bool Try() => space.Tables.Map(
            origin + (page << 12), pfn, length, PageProt.Kernel, CacheMode.WriteBack, 21, Gfp.Kernel);
        if (busy)
        {
            Assert.Throws<KernelBugException>(() => Try());
            return;
        }

        Assert.True(Try());
        for (ulong i = 0; i < length; i++)
            model.Add(page + i, pfn + i);
        for (ulong block = (page + 511) & ~511UL; block + 512 <= page + length; block += 512)
            large.Add(block);
    }

    private static void UnmapWhole(
        Space space, Dictionary<ulong, ulong> model, HashSet<ulong> large, ulong origin, ulong page, ulong length)
    {
        ulong end = page + length;
        bool cut = large.Any(block =>
            block < end && block + 512 > page && (block < page || block + 512 > end));
        if (cut)
        {
            Assert.Throws<KernelBugException>(() => space.Tables.Unmap(origin + (page << 12), length));
            return;
        }

        space.Tables.Unmap(origin + (page << 12), length);
        for (ulong at = page; at < end; at++)
            model.Remove(at);
        large.RemoveWhere(block => block >= page && block < end);
    }

    private static void AssertSame(Space space, Dictionary<ulong, ulong> model, ulong origin)
    {
        for (ulong page = 0; page < 3000; page++)
        {
            Pfn expected = model.TryGetValue(page, out ulong pfn) ? new Pfn(pfn) : Pfn.None;
            Pfn found = space.Tables.Translate(origin + (page << 12));
            if (found != expected)
                Assert.Fail($"page {page}: {found}, expected {expected}: {space.Tables.Walk(origin + (page << 12))}");
        }

        foreach (ulong page in model.Keys.Take(3))
            Assert.Equal(new Pfn(model[page]), space.Tables.Walk(origin + (page << 12)).Pfn);
        Assert.Equal(model.Count, space.Leaves().Sum(row => 1L << (PageTableEntry.ShiftOf(row.Level) - 12)));
    }

    private sealed class Space : IDisposable
    {
        public Space(int levels = 4, ulong ramBytes = 64 << 20)
        {
            Machine = Machine.Boot(
                new MachineOptions { Profile = KernelProfile.Linux618, Cpus = 2, RamBytes = ramBytes });
            Tables = new KernelPageTable(Machine.Pages, Machine.Map, levels);
        }

        public Machine Machine { get; }

        public KernelPageTable Tables { get; }

        public bool Map(ulong va, ulong pfn, ulong pages) =>
            Tables.Map(va, pfn, pages, PageProt.Kernel, CacheMode.WriteBack, 12, Gfp.Kernel);

        public List<PageTableRow> Leaves() =>
            [.. Tables.Rows().Where(row => PageTableEntry.IsLeaf(row.Entry, row.Level))];

        public void Dispose()
        {
            Tables.Dispose();
            Machine.Dispose();
        }
    }
}
