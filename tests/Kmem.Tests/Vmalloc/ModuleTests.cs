using System.Buffers.Binary;
using System.Runtime.InteropServices;
using static Kmem.Tests.VmallocMachine;

namespace Kmem.Tests;

/// <summary>Modules in memory: place, relocations, rights, unloading; and the memory they come from.</summary>
public sealed class ModuleTests
{
    private const int Page = Pfn.PageSize;

    [Fact]
    public unsafe void A_module_is_relocated_and_its_sections_have_their_rights()
    {
        using Machine machine = Boot();
        using var probe = new MemoryProbe();
        using KernelModule module = machine.LoadModule(Counter().ToArray());
        var text = (byte*)module.AddressOf("count");
        var constants = (long*)module.AddressOf("step");
        var data = (nint*)module.AddressOf("pointer");
        var bss = (long*)module.AddressOf("counter");

        Assert.Equal(5, *constants);
        Assert.Equal((nint)bss, *data);
        Assert.Equal(0, *bss);
        Assert.Equal("r-", probe.Access(text));
        Assert.Equal("r-", probe.Access((byte*)constants));
        Assert.Equal("rw", probe.Access((byte*)data));
        Assert.Equal("rw", probe.Access((byte*)bss));
        Assert.Equal(0x121UL, Flags(machine, text));
        Assert.Equal(0x8000000000000121UL, Flags(machine, constants));
        Assert.Equal(0x8000000000000163UL, Flags(machine, data));
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        Assert.All(
            new[] { (nint)text, (nint)constants, (nint)data },
            at => Assert.InRange(
                vmalloc.AddressOf((void*)at), VmallocAllocator.ModulesStart, VmallocAllocator.ModulesEnd - 1));
        Assert.False(machine.IsVmallocAddr(text));
        Assert.Equal([module], machine.Modules);
        Assert.Equal("r-", probe.Access((byte*)machine.AddressOf(machine.VmallocToPage(text))));
        AssertWhole(machine);

        module.Dispose();
        module.Dispose();
        Assert.Empty(machine.Modules);
        Assert.Equal("--", probe.Access(text));
        Assert.Equal("--", probe.Access((byte*)data));
        Assert.True(module.AddressOf("count") == null);
        Assert.Equal(0, vmalloc.DirectMap.ChangedFrames);
        AssertWhole(machine);
    }

    /// <summary>Where the host lets memory be run, the code of the module works on its own variables.</summary>
    [Fact]
    public unsafe void The_text_of_a_module_runs()
    {
        Assert.SkipUnless(RuntimeInformation.ProcessArchitecture == Architecture.X64, "the text is for x86-64");
        using Machine machine = Boot();
        Assert.SkipUnless(
            IsExecutable(machine), "this host has no executable memory for memfd files (noexec or a security module)");
        using KernelModule module = machine.LoadModule(Counter());
        var count = (delegate* unmanaged<long>)module.AddressOf("count");
        Assert.Equal(5, count());
        Assert.Equal(10, count());
        Assert.Equal(10, *(long*)module.AddressOf("counter"));
        *(long*)module.AddressOf("counter") = 100;
        Assert.Equal(105, count());
    }

    [Fact]
    [Trait("rule", "KMOD-16")]
    public void A_name_is_loaded_once()
    {
        using Machine machine = Boot();
        KernelModule first = machine.LoadModule(Counter());
        Assert.Equal("KMOD-16", Assert.Throws<ModuleFormatException>(() => machine.LoadModule(Counter())).Rule);
        first.Dispose();
        machine.LoadModule(Counter()).Dispose();
        AssertWhole(machine);
    }

    [Fact]
    [Trait("rule", "KMOD-15")]
    public void A_relocation_that_overflows_is_refused_and_leaves_nothing()
    {
        using Machine machine = Boot();
        machine.LoadModule(Counter()).Dispose();
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        ulong before = machine.ModuleLoader.Execmem.CachedFree;
        long pages = vmalloc.PageCount;
        ModuleImage image = Counter();
        image.Relocations.Add(new ModuleRelocation(2, 0, ModuleRelocationType.Relative32, 0, 1L << 32));

        ModuleFormatException broken = Assert.Throws<ModuleFormatException>(() => machine.LoadModule(image));
        Assert.StartsWith(
            "KMOD-15: relocation 3: overflow in relocation type 2 val ", broken.Message, StringComparison.Ordinal);
        Assert.Empty(machine.Modules);
        Assert.Equal(before, machine.ModuleLoader.Execmem.CachedFree);
        Assert.Equal(pages, vmalloc.PageCount);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Sections_are_aligned_and_do_not_overlap()
    {
        using Machine machine = Boot();
        var random = new Random(4711);
        for (int round = 0; round < 20; round++)
        {
            var image = new ModuleImage("layout");
            for (int i = 0; i < 16; i++)
            {
                var kind = (ModuleSectionKind)random.Next(4);
                int size = random.Next(1, 6000);
                var content = new byte[kind == ModuleSectionKind.Bss ? 0 : size / 2];
                Array.Fill(content, (byte)(i + 1));
                image.Sections.Add(new ModuleSection(kind, 1 << random.Next(13), size, content));
            }

            using KernelModule module = machine.LoadModule(image);
            for (int i = 0; i < image.Sections.Count; i++)
            {
                ModuleSection section = image.Sections[i];
                var bytes = new ReadOnlySpan<byte>(module.AddressOf(i), section.Size);
                Assert.Equal(0, (nint)module.AddressOf(i) % section.Alignment);
                Assert.Equal(section.Content.ToArray(), bytes[..section.Content.Length].ToArray());
                Assert.Equal(-1, bytes[section.Content.Length..].IndexOfAnyExcept((byte)0));
            }
        }

        AssertWhole(machine);
    }

    [Fact]
    public unsafe void The_rox_cache_takes_two_megabytes_and_cuts_them()
    {
        using Machine machine = Boot(cpus: 1);
        using var probe = new MemoryProbe();
        Execmem execmem = machine.ModuleLoader.Execmem;
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        var first = (byte*)execmem.Alloc(ExecmemType.ModuleText, 5000);
        var second = (byte*)execmem.Alloc(ExecmemType.Kprobes, Page);
        var third = (byte*)execmem.Alloc(ExecmemType.Ftrace, Page);

        Assert.Equal((nint)first + (2 * Page), (nint)second);
        Assert.Equal((nint)second + Page, (nint)third);
        Assert.Equal(512, vmalloc.PageCount);
        Assert.Equal("pmd", Walk(machine, first).Steps[^1].Name);
        Assert.Equal(0x1a1UL, Flags(machine, first));
        Assert.Equal("2101248 ExecmemAlloc pages=512 vmalloc N0=512", InfoLine(machine, first));
        Assert.Equal(0xcc, *second);
        Assert.Equal("r-", probe.Access(second));

        Assert.True(execmem.MakeWritable(second, Page));
        *second = 0xc3;
        Assert.Equal("pte", Walk(machine, second).Steps[^1].Name);
        Assert.Equal(0x8000000000000163UL, Flags(machine, second));
        Assert.True(execmem.RestoreRox(second, Page));
        Assert.Equal("r-", probe.Access(second));
        AssertWhole(machine);

        // Freed text is full of traps, and the lowest hole that fits is used first.
        execmem.Free(second);
        Assert.Equal(0xcc, *second);
        Assert.Equal((nint)second, (nint)execmem.Alloc(ExecmemType.ModuleText, 1));
        AssertRefused(machine, () => execmem.Free(second + Page + Page));
        execmem.Free(first);
        execmem.Free(third);
        Assert.Equal(512, vmalloc.PageCount);
        execmem.Free(second);
        Assert.Equal(0, vmalloc.PageCount);
        Assert.Equal(0UL, execmem.CachedFree);
        Assert.Equal("--", probe.Access(first));
        Assert.Equal(0, vmalloc.DirectMap.ChangedFrames);
        AssertWhole(machine);
    }

    /// <summary>
    /// Two requests fail in one load: the 2 MiB, large leaves and small ones. What is taken instead is kept, used
    /// again, and given back by <see cref="Machine.Trim"/>.
    /// </summary>
    [Fact]
    public unsafe void Without_two_megabytes_the_rox_cache_takes_an_area_of_the_size_needed()
    {
        using Machine machine = Boot(cpus: 1);
        Execmem execmem = machine.ModuleLoader.Execmem;
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        execmem.Free(execmem.Alloc(ExecmemType.ModuleText, 5000));
        Inventory before = Inventory.Take(machine);
        FailNext(machine.FailSlab, 2);
        var text = (nint)execmem.Alloc(ExecmemType.ModuleText, 5000);
        Assert.Equal(2, machine.FailSlab.Failures);
        Assert.Equal(2, vmalloc.PageCount);
        execmem.Free((void*)text);
        Assert.Equal((2L, 2UL * Page), (vmalloc.PageCount, execmem.CachedFree));

        Assert.Equal(text, (nint)execmem.Alloc(ExecmemType.Kprobes, Page));
        machine.Trim();
        Assert.Equal((2L, (ulong)Page), (vmalloc.PageCount, execmem.CachedFree));
        execmem.Free((void*)text);
        using (machine.Atomic())
            machine.Trim();
        Assert.Equal((2L, 2UL * Page), (vmalloc.PageCount, execmem.CachedFree));
        machine.Trim();
        Assert.Equal((0L, 0UL), (vmalloc.PageCount, execmem.CachedFree));
        Assert.Equal(0, vmalloc.DirectMap.ChangedFrames);
        Assert.Equal(before, Inventory.Take(machine));
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Text_that_cannot_be_freed_for_lack_of_tables_is_freed_later()
    {
        using Machine machine = Boot(cpus: 1);
        Execmem execmem = machine.ModuleLoader.Execmem;
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        void* text = execmem.Alloc(ExecmemType.ModuleText, 5000);
        FailNext(machine.FailPageAlloc, 1);
        execmem.Free(text);
        Assert.Equal(1, machine.FailPageAlloc.Failures);
        Assert.Equal((512L, 510UL * Page), (vmalloc.PageCount, execmem.CachedFree));
        machine.Trim();
        Assert.Equal((0L, 0UL), (vmalloc.PageCount, execmem.CachedFree));
        AssertWhole(machine);
    }

    /// <summary>In an area of 4 MiB a free half is no area.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public unsafe void A_free_half_of_a_long_text_does_not_take_the_other_half_with_it(bool lower)
    {
        using Machine machine = Boot(cpus: 1);
        Execmem execmem = machine.ModuleLoader.Execmem;
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        const int Half = 2 << 20;
        const long WithPageArray = 1024 + 2;
        void* all = execmem.Alloc(ExecmemType.ModuleText, Half + Page);
        void* last = execmem.Alloc(ExecmemType.ModuleText, Half - Page);
        execmem.Free(all);
        void* first = execmem.Alloc(ExecmemType.ModuleText, Half);
        void* middle = execmem.Alloc(ExecmemType.ModuleText, Page);
        if (lower)
        {
            execmem.Free(first);
        }
        else
        {
            execmem.Free(middle);
            execmem.Free(last);
        }

        Assert.Equal((WithPageArray, (ulong)Half), (vmalloc.PageCount, execmem.CachedFree));
        Assert.Equal(0xcc, *(byte*)(lower ? middle : first));
        AssertWhole(machine);
        if (lower)
        {
            execmem.Free(last);
            execmem.Free(middle);
        }
        else
        {
            execmem.Free(first);
        }

        Assert.Equal((0L, 0UL), (vmalloc.PageCount, execmem.CachedFree));
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void Bpf_and_data_have_areas_of_their_own_that_reset_rights()
    {
        using Machine machine = Boot(cpus: 1);
        Execmem execmem = machine.ModuleLoader.Execmem;
        void* bpf = execmem.Alloc(ExecmemType.Bpf, 100);
        void* data = execmem.Alloc(ExecmemType.ModuleData, Page);
        ulong va = machine.VmallocIfUsed!.AddressOf(bpf);
        Assert.Equal(VmallocAllocator.ModulesStart, va);
        Assert.Equal(
            VmFlags.Alloc | VmFlags.FlushResetPerms | VmFlags.Owned, machine.VmallocIfUsed.Vmap.Find(va)->Vm->Flags);
        Assert.True(machine.SetMemoryRox(bpf, 1));
        execmem.Free(bpf);
        execmem.Free(data);
        Assert.True(execmem.Alloc(ExecmemType.Bpf, 0) == null);
        Assert.Equal(0, machine.VmallocIfUsed.DirectMap.ChangedFrames);
        AssertWhole(machine);
    }

    [Fact]
    public unsafe void When_the_range_of_modules_is_full_it_says_so()
    {
        using Machine machine = Boot(cpus: 1);
        Execmem execmem = machine.ModuleLoader.Execmem;
        const nuint Tall = 1008 << 20;
        Assert.True(execmem.Alloc(ExecmemType.ModuleData, Tall) == null);
        Assert.Contains("execmem: unable to allocate memory\n", machine.Dmesg.ToString(), StringComparison.Ordinal);
        var image = new ModuleImage("large");
        image.Sections.Add(new ModuleSection(ModuleSectionKind.Bss, 1, 60 << 20, Array.Empty<byte>()));
        Assert.Throws<OutOfMemoryException>(() => machine.LoadModule(image));
        Assert.Empty(machine.Modules);
        AssertWhole(machine);
    }

    /// <summary>The shadow lies where the address says, has no guard page, and goes with its module.</summary>
    [Fact]
    public unsafe void Modules_have_shadow_memory_if_asked_for()
    {
        using Machine machine = Boot(cpus: 1, change: options => options with { KasanModuleShadow = true });
        Execmem execmem = machine.ModuleLoader.Execmem;
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        void* data = execmem.Alloc(ExecmemType.ModuleData, 100_000);
        ulong va = vmalloc.AddressOf(data);
        VmStruct* vm = vmalloc.Vmap.Find(va)->Vm;
        Assert.Equal(
            VmFlags.Alloc | VmFlags.FlushResetPerms | VmFlags.DeferKmemleak | VmFlags.Kasan | VmFlags.Owned, vm->Flags);
        ulong shadow = (va >> 3) + 0xdffffc0000000000;
        VmapArea* area = vmalloc.Vmap.Find(shadow);
        Assert.Equal((shadow, 4UL * Page), (area->Start, area->Size));
        Assert.Equal(VmFlags.Alloc | VmFlags.NoGuard | VmFlags.Owned, area->Vm->Flags);
        Assert.Equal("16384 KasanAllocModuleShadow pages=4 vmalloc N0=4", InfoLine(machine, vmalloc.PointerOf(shadow)));
        Assert.Equal(0xfe, *(byte*)vmalloc.PointerOf(shadow));
        using (KernelModule module = machine.LoadModule(Counter()))
            AssertWhole(machine);

        execmem.Free(data);
        Assert.True(vmalloc.Vmap.Find(shadow) == null);
        Assert.Equal(0, vmalloc.PageCount);
        AssertWhole(machine);
    }

    [Fact]
    public void Loading_sleeps()
    {
        using Machine machine = Boot();
        using (machine.Atomic())
            Assert.Throws<KernelBugException>(() => machine.LoadModule(Counter()));
        KernelModule module = machine.LoadModule(Counter());
        using (machine.Atomic())
            Assert.Throws<KernelBugException>(module.Dispose);
        module.Dispose();
        AssertWhole(machine);
    }

    /// <summary>
    /// long count() { return *pointer += step; }: text finds the pointer to the counter and the step by relative
    /// relocations, the pointer is an absolute one.
    /// </summary>
    private static ModuleImage Counter()
    {
        byte[] text =
        [
            0x48, 0x8b, 0x0d, 0, 0, 0, 0,       // mov rcx, [rip + pointer]
            0x48, 0x8b, 0x05, 0, 0, 0, 0,       // mov rax, [rip + step]
            0x48, 0x03, 0x01,                   // add rax, [rcx]
            0x48, 0x89, 0x01,                   // mov [rcx], rax
            0xc3,                               // ret
        ];
        var step = new byte[8];
        BinaryPrimitives.WriteInt64LittleEndian(step, 5);
        var image = new ModuleImage("counter");
        image.Sections.Add(new ModuleSection(ModuleSectionKind.Text, 16, text.Length, text));
        image.Sections.Add(new ModuleSection(ModuleSectionKind.ReadOnlyData, 8, 8, step));
        image.Sections.Add(new ModuleSection(ModuleSectionKind.Data, 8, 8, new byte[8]));
        image.Sections.Add(new ModuleSection(ModuleSectionKind.Bss, 8, 8, Array.Empty<byte>()));
        image.Relocations.Add(new ModuleRelocation(0, 3, ModuleRelocationType.Relative32, 2, -4));
        image.Relocations.Add(new ModuleRelocation(0, 10, ModuleRelocationType.Relative32, 1, -4));
        image.Relocations.Add(new ModuleRelocation(2, 0, ModuleRelocationType.Absolute64, 3, 0));
        image.Symbols.Add(new ModuleSymbol("count", 0, 0));
        image.Symbols.Add(new ModuleSymbol("step", 1, 0));
        image.Symbols.Add(new ModuleSymbol("pointer", 2, 0));
        image.Symbols.Add(new ModuleSymbol("counter", 3, 0));
        return image;
    }

    private static void FailNext(FaultAttribute faults, int times)
    {
        faults.IgnoreGfpWait = false;
        faults.IgnoreGfpHighMem = false;
        faults.MinOrder = 0;
        faults.Times = times;
        faults.Probability = 100;
    }

    /// <summary>Looks at the process's own mappings: a refusal shows as text without x.</summary>
    private static unsafe bool IsExecutable(Machine machine)
    {
        void* area = machine.Vmalloc(Page);
        machine.SetMemoryRox(area, 1);
        bool runs = File.ReadLines("/proc/self/maps").Any(
            line => line.StartsWith($"{(ulong)area:x}-", StringComparison.Ordinal)
                && line.Contains(" r-xs ", StringComparison.Ordinal));
        machine.SetMemoryRw(area, 1);
        machine.Vfree(area);
        return runs;
    }

    private static unsafe ulong Flags(Machine machine, void* pointer)
    {
        PageWalkStep leaf = Walk(machine, pointer).Steps[^1];
        return leaf.Entry & ~PageTableEntry.FrameMask;
    }
}
