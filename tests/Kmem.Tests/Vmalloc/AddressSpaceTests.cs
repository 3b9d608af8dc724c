namespace Kmem.Tests;

/// <summary>Address spaces, the three ways to keep them in step, and what processors remember.</summary>
public sealed class AddressSpaceTests
{
    private const ulong Base = 0xffff_c900_0000_0000;
    private const ulong Slot = 1UL << 39;
    private const ulong UserBase = 0x0000_5555_5555_4000;

    /// <summary>Before 5.8: a root made earlier learns of a new top-level entry by a fault, once.</summary>
    [Theory]
    [InlineData(4)]
    [InlineData(5)]
    internal void OnFaultTheEntryIsFetched(int levels)
    {
        using var machine = Boot();
        using var kernel = new KernelPageTable(machine.Pages, machine.Map, levels, KernelTableSync.OnFault);
        using var mm = new Mm(kernel, machine.Pages, machine.Map);
        ulong va = levels == 5 ? 0xffa0_0000_0000_0000 : Base;
        Assert.Equal(1, kernel.TablePages);
        Map(kernel, va, 77, 8);

        Assert.False(mm.Walk(va).IsMapped);
        Assert.Equal(new Pfn(77), mm.Access(va).Pfn);
        Assert.Equal(new Pfn(84), mm.Access(va + 0x7000).Pfn);
        Assert.False(mm.Access(va + 0x8000).IsMapped);
        Assert.Equal((1, 0), (kernel.VmallocFaults, kernel.SyncCalls));

        // Whoever may not fault copies beforehand.
        ulong next = va + (levels == 5 ? 1UL << 48 : Slot);
        Map(kernel, next, 99, 1);
        kernel.SyncMappings(next, next);
        Assert.Equal(new Pfn(99), mm.Walk(next).Pfn);
        Assert.Equal((1, 1, 1), (kernel.VmallocFaults, kernel.SyncCalls, kernel.SyncedEntries));
    }

    /// <summary>5.8: a new top-level entry goes to every root at once, and only such entries.</summary>
    [Fact]
    public void OnMapEveryRootIsUpdated()
    {
        using var machine = Boot();
        using var kernel = new KernelPageTable(machine.Pages, machine.Map, 4, KernelTableSync.OnMap);
        using var first = new Mm(kernel, machine.Pages, machine.Map);
        using (var second = new Mm(kernel, machine.Pages, machine.Map))
        {
            Map(kernel, Base, 77, 8);
            Map(kernel, Base + 0x100000, 777, 8);       // below an entry that all have
            Assert.Equal((1, 2), (kernel.SyncCalls, kernel.SyncedEntries));
            Assert.Equal(new Pfn(778), first.Walk(Base + 0x101000).Pfn);
            Assert.Equal(new Pfn(778), second.Walk(Base + 0x101000).Pfn);
            Assert.Equal(2, kernel.AddressSpaces);
        }

        Map(kernel, Base + Slot - 4096, 5, 2);          // one old entry, one new, for the one root that is left
        Assert.Equal((2, 3, 0), (kernel.SyncCalls, kernel.SyncedEntries, kernel.VmallocFaults));
        Assert.Equal(new Pfn(6), first.Walk(Base + Slot).Pfn);
    }

    /// <summary>
    /// A call that is refused may have made a top-level entry before: the roots learn of it all the same.
    /// </summary>
    [Fact]
    public void ARefusedCallStillTellsTheRoots()
    {
        using var machine = Boot();
        using var kernel = new KernelPageTable(machine.Pages, machine.Map, 4, KernelTableSync.OnMap);
        using var mm = new Mm(kernel, machine.Pages, machine.Map);
        Map(kernel, Base + Slot, 77, 1);
        Assert.Throws<KernelBugException>(() => Map(kernel, Base + Slot - 4096, 5, 2));
        Assert.False(kernel.Walk(Base + Slot - 4096).IsMapped);
        Map(kernel, Base + Slot - 4096, 5, 1);
        Assert.Equal(new Pfn(5), mm.Walk(Base + Slot - 4096).Pfn);
    }

    /// <summary>5.9 and later: nothing to do in the vmalloc range; elsewhere as in 5.8 (6.17).</summary>
    [Theory]
    [InlineData(4, 64, Base)]
    [InlineData(5, 50, 0xffa0_0000_0000_0000)]
    public void PreallocatedEntriesNeedNoSync(int levels, int slots, ulong va)
    {
        using var machine = Boot();
        using var kernel = new KernelPageTable(machine.Pages, machine.Map, levels);
        using var mm = new Mm(kernel, machine.Pages, machine.Map);
        Assert.Equal(1 + slots, kernel.TablePages);
        for (ulong slot = 0; slot < (ulong)slots; slot++)
            Map(kernel, va + (slot << (levels == 5 ? 48 : 39)), 77 + slot, 1);
        Assert.Equal((0, 0), (kernel.SyncCalls, kernel.VmallocFaults));
        Assert.Equal(new Pfn(77 + (ulong)slots - 1), mm.Walk(va + ((ulong)(slots - 1) << (levels == 5 ? 48 : 39))).Pfn);

        ulong vmemmap = levels == 5 ? 0xffd4_0000_0000_0000 : AddressMap.VmemmapBase;
        Map(kernel, vmemmap, 5, 1);
        Assert.Equal((1, 1), (kernel.SyncCalls, kernel.SyncedEntries));
        Assert.Equal(new Pfn(5), mm.Walk(vmemmap).Pfn);
    }

    /// <summary>
    /// User mappings are private; the tables of the kernel's half are not the process's to change or free.
    /// </summary>
    [Fact]
    public void ProcessesShareTheKernelsHalfOnly()
    {
        using var machine = Boot();
        using var kernel = new KernelPageTable(machine.Pages, machine.Map, 4);
        Map(kernel, Base, 77, 1);
        long tables = kernel.TablePages;
        long before = FreePages(machine);
        PageProt user = PageProt.Read | PageProt.Write | PageProt.User;
        using (var first = new Mm(kernel, machine.Pages, machine.Map))
        using (var second = new Mm(kernel, machine.Pages, machine.Map))
        {
            Assert.True(first.Map(UserBase, 10, 3, user, CacheMode.WriteBack, 12, Gfp.KernelAccount));
            Assert.True(second.Map(UserBase, 20, 3, user, CacheMode.WriteBack, 12, Gfp.KernelAccount));
            Assert.Equal(new Pfn(12), first.Walk(UserBase + 0x2000).Pfn);
            Assert.Equal(new Pfn(22), second.Walk(UserBase + 0x2000).Pfn);
            Assert.Equal(user, first.Walk(UserBase).Prot);
            Assert.False(kernel.Walk(UserBase).IsMapped);
            Assert.Equal(4, first.TablePages);
            Assert.Equal(first.Walk(Base).Steps[1].TablePfn, second.Walk(Base).Steps[1].TablePfn);
            Assert.NotEqual(first.RootPfn, second.RootPfn);
            Assert.Equal(before - 8, FreePages(machine));
            Assert.Throws<KernelBugException>(
                () => first.Map(Base + 0x10000, 1, 1, PageProt.Kernel, CacheMode.WriteBack, 12, Gfp.Kernel));
        }

        Assert.Equal(before, FreePages(machine));
        Assert.Equal(tables, kernel.TablePages);
        Assert.Equal(new Pfn(77), kernel.Walk(Base).Pfn);
        Assert.Empty(machine.Validate());
    }

    /// <summary>
    /// Clearing an entry does not reach what processors remember: until the flush they go on using the frame. That is
    /// the window that lazy purging keeps safe by not reusing the addresses.
    /// </summary>
    [Fact]
    public void AStaleTranslationLivesUntilTheFlush()
    {
        using var machine = Boot();
        using var kernel = new KernelPageTable(machine.Pages, machine.Map, 4);
        var tlb = new TlbModel(4);
        for (int cpu = 0; cpu < 4; cpu++)
            tlb.Load(cpu, kernel);
        Map(kernel, Base, 77, 40);

        Assert.Equal(new TlbAccess(new Pfn(77), false, false), tlb.Access(2, Base));
        Assert.Equal(new TlbAccess(new Pfn(77), true, false), tlb.Access(2, Base, write: true));
        kernel.Unmap(Base, 40);
        Assert.Equal(new TlbAccess(new Pfn(77), true, true), tlb.Access(2, Base));
        Assert.Equal(new TlbAccess(Pfn.None, false, false), tlb.Access(1, Base));
        Assert.Equal((2, 1), (tlb.Hits, tlb.StaleHits));

        tlb.FlushRange(Base, Base + (33 << 12));
        Assert.Equal(Pfn.None, tlb.Access(2, Base).Pfn);
        Assert.Equal((1, 0, 4 * 33, 3), (tlb.RangeFlushes, tlb.FullFlushes, tlb.PageInvalidations, tlb.Interrupts));
        tlb.FlushRange(Base, Base + (34 << 12));
        Assert.Equal((1, 1, 4 * 33, 6), (tlb.RangeFlushes, tlb.FullFlushes, tlb.PageInvalidations, tlb.Interrupts));
    }

    /// <summary>
    /// One invalidation anywhere in a large leaf removes all of it; a flush of other addresses does not.
    /// </summary>
    [Fact]
    public void LargeLeavesAreForgottenWhole()
    {
        using var machine = Boot();
        using var kernel = new KernelPageTable(machine.Pages, machine.Map, 4);
        var tlb = new TlbModel(1);
        tlb.Load(0, kernel);
        Assert.True(kernel.Map(Base, 512, 512, PageProt.Kernel, CacheMode.WriteBack, 21, Gfp.Kernel));
        tlb.Access(0, Base + 0x5000);
        Assert.Equal(new TlbAccess(new Pfn(512 + 9), true, false), tlb.Access(0, Base + 0x9000));
        tlb.FlushRange(Base + 0x20_0000, Base + 0x20_1000);
        Assert.True(tlb.Access(0, Base).Hit);
        tlb.FlushRange(Base + 0x7000, Base + 0x8000);
        Assert.False(tlb.Access(0, Base).Hit);
    }

    /// <summary>Global translations survive a change of address space; a process's own do not.</summary>
    [Fact]
    public void ChangingTheAddressSpaceKeepsGlobals()
    {
        using var machine = Boot();
        using var kernel = new KernelPageTable(machine.Pages, machine.Map, 4, KernelTableSync.OnFault);
        using var first = new Mm(kernel, machine.Pages, machine.Map);
        using var second = new Mm(kernel, machine.Pages, machine.Map);
        PageProt user = PageProt.Read | PageProt.Write | PageProt.User;
        Assert.True(first.Map(UserBase, 10, 1, user, CacheMode.WriteBack, 12, Gfp.KernelAccount));
        Map(kernel, Base, 77, 1);
        var tlb = new TlbModel(1);
        tlb.Load(0, first);
        Assert.Equal(new Pfn(10), tlb.Access(0, UserBase).Pfn);
        Assert.Equal(new Pfn(77), tlb.Access(0, Base).Pfn);
        tlb.Load(0, second);
        Assert.Equal(Pfn.None, tlb.Access(0, UserBase).Pfn);
        Assert.True(tlb.Access(0, Base).Hit);

        // The second root has never seen the entry: it faults only when nothing is cached any more.
        Assert.Equal(1, kernel.VmallocFaults);
        tlb.FlushAll();
        Assert.Equal(new Pfn(77), tlb.Access(0, Base).Pfn);
        Assert.Equal(2, kernel.VmallocFaults);
    }

    /// <summary>A and D appear as the processor sets them; a read-only page is not written.</summary>
    [Fact]
    public void AccessesLeaveTheirMarks()
    {
        using var machine = Boot();
        using var kernel = new KernelPageTable(machine.Pages, machine.Map, 4);
        using var mm = new Mm(kernel, machine.Pages, machine.Map);
        var tlb = new TlbModel(1);
        tlb.Load(0, mm);
        PageProt user = PageProt.Read | PageProt.Write | PageProt.User;
        Assert.True(mm.Map(UserBase, 10, 1, user, CacheMode.WriteBack, 12, Gfp.KernelAccount));
        Assert.Equal(0x800000000000a027, mm.Walk(UserBase).Steps[^1].Entry);
        tlb.Access(0, UserBase);
        Assert.Equal(0x800000000000a027, mm.Walk(UserBase).Steps[^1].Entry);
        tlb.Access(0, UserBase, write: true);
        Assert.Equal(0x800000000000a067, mm.Walk(UserBase).Steps[^1].Entry);

        kernel.Map(Base, 5, 1, PageProt.KernelReadOnly, CacheMode.WriteBack, 12, Gfp.Kernel);
        Assert.Equal(new Pfn(5), tlb.Access(0, Base).Pfn);
        Assert.Equal(Pfn.None, tlb.Access(0, Base, write: true).Pfn);
    }

    /// <summary>Processes come and go while top-level entries appear: nobody misses one.</summary>
    [Fact]
    public void NobodyMissesAnEntry()
    {
        using var machine = Boot();
        using var kernel = new KernelPageTable(machine.Pages, machine.Map, 4, KernelTableSync.OnMap);
        var spaces = new Mm[60];
        Parallel.Invoke(
            () =>
            {
                for (int i = 0; i < spaces.Length; i++)
                    spaces[i] = new Mm(kernel, machine.Pages, machine.Map);
            },
            () =>
            {
                for (ulong slot = 0; slot < 60; slot++)
                    Map(kernel, Base + (slot * Slot), slot, 1);
            });
        foreach (Mm space in spaces)
        {
            for (ulong slot = 0; slot < 60; slot++)
                Assert.Equal(new Pfn(slot), space.Walk(Base + (slot * Slot)).Pfn);
            space.Dispose();
        }

        Assert.Equal((0, 60), (kernel.AddressSpaces, kernel.SyncCalls));
    }

    /// <summary>Too little memory for the first tables: all of it comes back.</summary>
    [Fact]
    public void NoMemoryAtBootGivesEverythingBack()
    {
        using var machine = Boot(16 << 20);
        var taken = new List<Pfn>();
        for (Pfn pfn; (pfn = machine.AllocPages(Gfp.Kernel | Gfp.NoWarn | Gfp.NoRetry, 0)).IsValid;)
            taken.Add(pfn);
        for (int i = 0; i < 20; i++)
            machine.FreePages(taken[i], 0);
        long before = FreePages(machine);
        Assert.Throws<KernelBugException>(() => new KernelPageTable(machine.Pages, machine.Map, 4).Dispose());
        Assert.Equal(before, FreePages(machine));
        Assert.Contains(machine.Dmesg.Lines, line => line.Contains("pre-allocate pud pages", StringComparison.Ordinal));
        foreach (Pfn pfn in taken.Skip(20))
            machine.FreePages(pfn, 0);
        Assert.Empty(machine.Validate());
    }

    private static Machine Boot(ulong ramBytes = 64 << 20) =>
        Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            Cpus = 2,
            RamBytes = ramBytes,
            WatermarkBoostFactor = 0,
        });

    private static long FreePages(Machine machine)
    {
        machine.DrainAllPages();
        return machine.NodeList.SelectMany(node => node.Zones).Sum(zone => zone.FreePagesExact);
    }

    private static void Map(KernelPageTable tables, ulong va, ulong pfn, ulong pages) =>
        Assert.True(tables.Map(va, pfn, pages, PageProt.Kernel, CacheMode.WriteBack, 12, Gfp.Kernel));
}
