namespace Kmem.Tests;

/// <summary>
/// A processor walks the tables that we made: KVM_TRANSLATE tells where it would go, and instructions show what it lets
/// through. Skipped where there is no /dev/kvm.
/// </summary>
public sealed class KvmPageTableTests
{
    private const int Page = 4096;
    private const ulong KernelCode = 0xffff_ffff_8000_0000;
    private const ulong UserCode = 0x40_0000;
    private const ulong UserData = 0x7f00_0000_0000;
    private const ulong UserHole = 0x5000_0000_0000;

    // mov al,[rdi]; hlt      mov [rdi],al; hlt      jmp rdi
    private const int Load = 0, Store = 16, Jump = 32;
    private static readonly byte[] s_kernelCode =
        [0x8a, 0x07, 0xf4, .. new byte[13], 0x88, 0x07, 0xf4, .. new byte[13], 0xff, 0xe7];

    // The same, and mov [rsi],al instead of hlt, which is not for programs.
    private static readonly byte[] s_userCode =
        [0x8a, 0x07, 0x88, 0x06, .. new byte[12], 0x88, 0x07, 0x88, 0x06, .. new byte[12], 0xff, 0xe7];

    private static Machine Boot(int levels, ulong ram = 2UL << 30)
    {
        Assert.SkipUnless(HostMemory.IsLinux && HostInfo.PageBytes == Page, "vmalloc needs Linux with 4 KiB pages");
        if (KvmGuest.WhyUnsupported is { } reason)
            Assert.Skip(reason);
        Assert.SkipUnless(
            levels == 4 || KvmGuest.HasFiveLevels, "this processor has no page tables of five levels (LA57)");
        return Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Linux618,
            Cpus = 1,
            RamBytes = ram,
            PageTableLevels = levels,
        });
    }

    /// <summary>
    /// Thousands of addresses: small and large areas, read-only ones, freed ones, guard pages, per-CPU memory, the
    /// direct map with its leaves of 1 GiB, 2 MiB and, where one was split, 4 KiB.
    /// </summary>
    [Theory]
    [InlineData(4)]
    [InlineData(5)]
    public unsafe void TheProcessorGoesWhereWeGo(int levels)
    {
        using Machine machine = Boot(levels);
        var random = new Random(levels);
        var interesting = new List<ulong>();
        for (int i = 0; i < 200; i++)
        {
            var size = (nuint)random.Next(1, 60 * Page);
            void* area = i % 20 == 0 ? machine.VmallocHuge(size + (4 << 20), Gfp.Kernel) : machine.Vmalloc(size);
            ulong start = machine.KernelAddressOf(area).Value;
            for (int n = 0; n < 12; n++)
                interesting.Add(start + (ulong)random.NextInt64((long)size + (2 * Page)));
            if (i % 3 == 0)
                machine.Vfree(area);
        }

        KernelPageTable tables = machine.VmallocIfUsed!.Tables;
        Pfn[] frames = [.. Enumerable.Range(0, 40).Select(_ => machine.AllocPage(Gfp.Kernel))];
        ulong readOnly = machine.KernelAddressOf(machine.Vmap(frames, readOnly: true)).Value;
        Assert.True(tables.ProtectDirect(frames[0].Value, 1, PageProt.KernelReadOnly));
        PercpuPointer percpu = machine.AllocPercpu(10 * Page, 64);
        for (ulong i = 0; i < 200; i++)
            interesting.AddRange([readOnly + (i * 900), percpu.Value + (i * 300)]);
        ulong directMap = AddressMap.For(levels).DirectMap;
        for (int i = 0; i < 2000; i++)
            interesting.Add(directMap + (ulong)random.NextInt64(5L << 30));
        for (ulong i = 0; i < 600; i++)
            interesting.Add(directMap + (frames[0].Value << 12) - (300 * Page) + (i * Page));

        using var guest = new KvmGuest(machine, levels);
        bool giant = KnowsGiantLeaves(machine, guest, levels);
        if (!giant)
        {
            // Some virtual processors have no leaves of 1 GiB: then there must be none.
            for (ulong start = 0; start < 2UL << 30; start += 1UL << 30)
                Assert.True(tables.SplitAt(directMap + start + (2UL << 20), Gfp.Kernel));
        }

        guest.Enter(tables.RootPfn, user: false);
        var seen = new Dictionary<ulong, int>();
        foreach (ulong address in interesting)
        {
            PageWalk ours = tables.Walk(address);
            ulong? its = guest.Translate(address);
            bool same = ours.IsMapped == its.HasValue && (its ?? 0) == ours.PhysicalAddress.Value;
            Assert.True(same, $"0x{address:x}: {ours}, {its:x}");
            seen[ours.LeafBytes] = seen.GetValueOrDefault(ours.LeafBytes) + 1;
        }

        Assert.True(interesting.Count > 5000);
        ulong[] sizes = giant ? [0, Page, 2 << 20, 1 << 30] : [0, Page, 2 << 20];
        Assert.Equal(sizes, seen.Keys.Order());
        Assert.All(seen.Values, count => Assert.True(count > 100));
    }

    /// <summary>Loads, stores and jumps of kernel code: what each mapping allows, and where the bytes arrive.</summary>
    [Theory]
    [InlineData(4)]
    [InlineData(5)]
    public unsafe void KernelCodeMayDoWhatTheEntriesSay(int levels)
    {
        using Machine machine = Boot(levels, ram: 256UL << 20);
        var small = (byte*)machine.Vmalloc(40 * Page);
        var large = (byte*)machine.VmallocHuge(2 << 20, Gfp.Kernel);
        Pfn[] frames = [.. Enumerable.Range(0, 8).Select(_ => machine.AllocPage(Gfp.Kernel))];
        void* readOnly = machine.Vmap(frames, readOnly: true);
        KernelPageTable tables = machine.VmallocIfUsed!.Tables;
        MapCode(machine, tables, KernelCode, s_kernelCode, PageProt.KernelReadOnlyExec);
        Pfn halt = machine.AllocPage(Gfp.Kernel);
        *(byte*)machine.AddressOf(halt) = 0xf4;
        const ulong Executable = KernelCode + (16 * Page), NotExecutable = KernelCode + (17 * Page);
        Assert.True(tables.Map(Executable, halt.Value, 1, PageProt.KernelExec, CacheMode.WriteBack, 12, Gfp.Kernel));
        Assert.True(tables.Map(NotExecutable, halt.Value, 1, PageProt.Kernel, CacheMode.WriteBack, 12, Gfp.Kernel));

        using var guest = new KvmGuest(machine, levels);
        GuestProbe Do(int what, ulong address, byte value = 0)
        {
            guest.Enter(tables.RootPfn, user: false);
            return guest.Execute(KernelCode + (ulong)what, address, al: value);
        }

        void Faults(int what, ulong address) =>
            Assert.Equal(new GuestProbe(GuestEnd.Fault, address, 0), Do(what, address));

        for (int i = 0; i < 40; i++)
        {
            byte* at = small + (i * Page) + (i * 7);
            Assert.Equal(GuestEnd.Done, Do(Store, machine.KernelAddressOf(at).Value, (byte)(i + 1)).End);
            Assert.Equal(i + 1, *at);
            *at = (byte)(200 - i);
            Assert.Equal(200 - i, Do(Load, machine.KernelAddressOf(at).Value).Value);
        }

        for (int i = 0; i < 2 << 20; i += 99_991)
        {
            Assert.Equal(GuestEnd.Done, Do(Store, machine.KernelAddressOf(large + i).Value, (byte)(i | 1)).End);
            Assert.Equal((byte)(i | 1), large[i]);
        }

        for (int i = 0; i < 8; i++)
        {
            ulong at = machine.KernelAddressOf(readOnly).Value + (ulong)((i * Page) + 5);
            *((byte*)machine.AddressOf(frames[i]) + 5) = (byte)(50 + i);
            Assert.Equal(50 + i, Do(Load, at).Value);
            Faults(Store, at);
            Assert.Equal(50 + i, *((byte*)machine.AddressOf(frames[i]) + 5));
        }

        Faults(Load, machine.KernelAddressOf(small + (40 * Page)).Value);
        Faults(Store, machine.KernelAddressOf(large + (2 << 20)).Value);
        Faults(Load, AddressMap.For(levels).DirectMap + (300UL << 20));
        Assert.Equal(GuestEnd.Done, Do(Jump, Executable).End);
        Faults(Jump, NotExecutable);
        Faults(Jump, machine.KernelAddressOf(small).Value);
    }

    /// <summary>
    /// User code in an address space of its own: what is shown to it, and nothing of the kernel's. The processor marks
    /// what it used in our entries.
    /// </summary>
    [Theory]
    [InlineData(4)]
    [InlineData(5)]
    public unsafe void UserCodeSeesWhatIsShownToItOnly(int levels)
    {
        using Machine machine = Boot(levels, ram: 256UL << 20);
        var area = (byte*)machine.VmallocUser(20 * Page);
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        using var process = new Mm(vmalloc.Tables, machine.Pages, machine.Map);
        Assert.Equal(VmapError.None, vmalloc.RemapToUser(process, UserData, 20 * Page, area, 0));
        MapCode(machine, process, UserCode, s_userCode, PageProt.Read | PageProt.Execute | PageProt.User);
        Assert.True(process.Map(
            UserHole, 1UL << 24, 1, PageProt.Read | PageProt.Write | PageProt.User, CacheMode.WriteBack, 12, Gfp.Kernel));
        Assert.Equal(0UL, process.Walk(UserData + (3 * Page)).Steps[^1].Entry & PageTableEntry.Dirty);

        using var guest = new KvmGuest(machine, levels);
        GuestProbe Do(int what, ulong address, byte value = 0)
        {
            guest.Enter(process.RootPfn, user: true);
            return guest.Execute(UserCode + (ulong)what, address, UserHole, value);
        }

        for (int i = 0; i < 20; i += 3)
        {
            Assert.Equal(GuestEnd.Done, Do(Store, UserData + (ulong)(i * Page) + 9, (byte)(i + 1)).End);
            Assert.Equal(i + 1, area[(i * Page) + 9]);
            area[(i * Page) + 10] = (byte)(77 + i);
            Assert.Equal(77 + i, Do(Load, UserData + (ulong)(i * Page) + 10).Value);
            Assert.NotEqual(0UL, process.Walk(UserData + (ulong)(i * Page)).Steps[^1].Entry & PageTableEntry.Dirty);
        }

        Assert.Equal(0UL, process.Walk(UserData + (4 * Page)).Steps[^1].Entry & PageTableEntry.Dirty);
        ulong kernel = machine.KernelAddressOf(area).Value;
        foreach ((int what, ulong address) in new[]
            { (Load, kernel), (Store, kernel), (Load, UserData + (20 * Page)), (Jump, UserData), (Store, UserCode) })
        {
            Assert.Equal(new GuestProbe(GuestEnd.Fault, address, 0), Do(what, address));
        }

        // Where the processor would go: its own addresses and the kernel's, in this address space.
        guest.Enter(process.RootPfn, user: true);
        for (ulong i = 0; i < 2000; i++)
        {
            ulong at = (i % 2 == 0 ? UserData : kernel) + (i * 43);
            PageWalk walk = process.Walk(at);
            Assert.Equal(walk.IsMapped ? walk.PhysicalAddress.Value : null, guest.Translate(at));
        }

        vmalloc.UnmapFromUser(process, UserData, 20 * Page);
        process.Unmap(UserHole, 1);
        process.Unmap(UserCode, 1);
    }

    /// <summary>
    /// Asked with tables made by hand, so that a mistake in ours does not pass for a missing feature.
    /// </summary>
    private static unsafe bool KnowsGiantLeaves(Machine machine, KvmGuest guest, int levels)
    {
        Pfn[] byHand = [.. Enumerable.Range(0, levels - 2).Select(_ => machine.AllocPage(Gfp.Kernel | Gfp.Zero))];
        for (int i = 0; i < byHand.Length; i++)
            *(ulong*)machine.AddressOf(byHand[i]) = i + 1 < byHand.Length ? (byHand[i + 1].Value << 12) | 3 : 0x83;
        guest.Enter(byHand[0].Value, user: false);
        bool knows = guest.Translate(0x1234_5678) == 0x1234_5678;
        foreach (Pfn table in byHand)
            machine.FreePage(table);
        return knows;
    }

    private static unsafe void MapCode(Machine machine, PageTable tables, ulong va, byte[] code, PageProt prot)
    {
        Pfn frame = machine.AllocPage(Gfp.Kernel | Gfp.Zero);
        code.CopyTo(new Span<byte>(machine.AddressOf(frame), Page));
        Assert.True(tables.Map(va, frame.Value, 1, prot, CacheMode.WriteBack, 12, Gfp.Kernel));
    }
}
