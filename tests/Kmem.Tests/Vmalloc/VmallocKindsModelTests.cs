using System.Globalization;
using static Kmem.Tests.VmallocMachine;

namespace Kmem.Tests;

/// <summary>
/// All kinds of areas at once, by random operations, beside a model that knows what each page holds. Patterns are
/// written through one address and read through the other.
/// </summary>
public sealed class VmallocKindsModelTests
{
    private const int Page = Pfn.PageSize;
    private const ulong DeviceBase = 0xe000_0000;
    private const int DevicePages = 1024;

    public enum Kind
    {
        Vmalloc,
        Huge,
        Vmap,
        VmapPut,
        Ioremap,
        MapRam,
        Stack,
        Module,
        Sparse,
    }

    [Theory]
    [InlineData(1, 1, 4)]
    [InlineData(2, 2, 4)]
    [InlineData(3, 1, 5)]
    [InlineData(4, 3, 4)]
    public void One_thread_agrees_with_the_model(int seed, int cpus, int levels)
    {
        using Machine machine = Boot(cpus, ramBytes: 128UL << 20, options => options with { PageTableLevels = levels });
        DeviceMemory device = machine.AddDevice(new PhysAddr(DeviceBase), DevicePages * Page, "device");
        var worker = new Worker(machine, device, seed, firstPage: 0, pages: DevicePages);
        for (int step = 0; step < 1500; step++)
        {
            worker.Step();
            if (step % 250 == 0)
                worker.CheckAll();
        }

        worker.CheckAll();
        worker.FreeAll();
        Finish(machine);
    }

    [Fact]
    public void Many_threads_do_not_disturb_each_other()
    {
        using Machine machine = Boot(cpus: 2, ramBytes: 256UL << 20);
        DeviceMemory device = machine.AddDevice(new PhysAddr(DeviceBase), DevicePages * Page, "device");
        var crew = new Crew(seconds: 1.5);
        crew.Add(4, index =>
        {
            const int Share = DevicePages / 4;
            var worker = new Worker(machine, device, 100 + index, index * Share, Share);
            while (crew.Working)
                worker.Step();
            worker.CheckPatterns();
            worker.FreeAll();
        });
        crew.Run();
        Finish(machine);
    }

    private static void Finish(Machine machine)
    {
        VmallocAllocator vmalloc = machine.VmallocIfUsed!;
        machine.RcuBarrier();
        vmalloc.Stacks.Drain();
        machine.VmUnmapAliases();
        vmalloc.Vmap.ReclaimAndPurge();
        Assert.Empty(machine.Modules);
        Assert.Empty(vmalloc.Blocks.All);
        Assert.Equal(0, vmalloc.DirectMap.ChangedFrames);
        Assert.Equal(0, vmalloc.MemoryTypes.Count);
        Assert.Equal(0, vmalloc.PageCount);
        Assert.Equal("", machine.Proc.VmallocInfo());
        AssertWhole(machine);
    }

    private sealed class Worker(Machine machine, DeviceMemory device, int seed, int firstPage, int pages)
    {
        private readonly Random _random = new(seed);
        private readonly List<Area> _areas = [];
        private int _modules;

        public void Step()
        {
            int dice = _random.Next(100);
            if (dice < 45 && _areas.Count < 60)
                Add();
            else if (dice < 80 && _areas.Count > 0)
                Remove(_random.Next(_areas.Count));
            else if (dice < 92 && _areas.Count > 0)
                ToggleRights(_areas[_random.Next(_areas.Count)]);
            else if (dice < 94)
                machine.VmUnmapAliases();
            else if (_areas.Count > 0)
                CheckPattern(_areas[_random.Next(_areas.Count)]);
        }

        public void FreeAll()
        {
            while (_areas.Count > 0)
                Remove(_areas.Count - 1);
        }

        public void CheckPatterns() => _areas.ForEach(CheckPattern);

        /// <summary>Nobody else may be at work.</summary>
        public void CheckAll()
        {
            CheckPatterns();
            AssertWhole(machine);
            string info = machine.Proc.VmallocInfo();
            string[] lines = [.. info.Split('\n').Where(line => line.Length > 0)];
            foreach (Area area in _areas.Where(area => area.Info != null))
                Assert.Contains(area.Info! + "\n", info, StringComparison.Ordinal);
            int live = lines.Count(line => !line.Contains("unpurged", StringComparison.Ordinal)
                && !line.EndsWith(" vm_map_ram", StringComparison.Ordinal)
                && !line.Contains("ExecmemAlloc", StringComparison.Ordinal)
                && !line.Contains("AllocThreadStack", StringComparison.Ordinal));
            Assert.Equal(_areas.Count(area => area.Info != null && area.Kind is not (Kind.Stack or Kind.MapRam)), live);
        }

        private unsafe void Add()
        {
            var kind = (Kind)_random.Next(9);
            int count = _random.Next(4) == 0 ? _random.Next(1, 150) : _random.Next(1, 12);
            if (kind == Kind.Huge && _random.Next(8) != 0)
                kind = Kind.Vmalloc;
            Area area = Make(kind, count);
            if (area.Base == 0)
                throw new InvalidOperationException($"seed {seed}: {kind} of {count} pages failed:\n{machine.Dmesg}");
            _areas.Add(area);
            Fill(area);
            CheckPattern(area);
        }

        private unsafe Area Make(Kind kind, int count)
        {
            Pfn[] frames = kind is Kind.Vmap or Kind.VmapPut or Kind.MapRam or Kind.Sparse ? AllocPages(machine, count) : [];
            switch (kind)
            {
                case Kind.Vmalloc:
                    return Described(
                        kind, machine.Vmalloc((nuint)(count * Page)), count, $"Vmalloc pages={count} vmalloc");
                case Kind.Huge:
                    return Described(
                        kind, machine.VmallocHuge(2 << 20, Gfp.Kernel), 512, "VmallocHuge pages=512 vmalloc");
                case Kind.Vmap:
                    return Described(kind, machine.Vmap(frames), count, "Vmap vmap") with { Frames = frames };
                case Kind.VmapPut:
                    return Described(kind, machine.Vmap(frames, putPages: true), count, $"Vmap pages={count} vmap");
                case Kind.Ioremap:
                    count = Math.Min(count, pages);
                    int at = firstPage + _random.Next(pages - count + 1);
                    ulong phys = DeviceBase + (ulong)(at * Page);
                    void* registers = machine.Ioremap(new PhysAddr(phys), (nuint)(count * Page));
                    return Described(kind, registers, count, $"Ioremap phys=0x{phys:x16} ioremap") with { DevicePage = at };
                case Kind.MapRam:
                    var ram = (nint)machine.VmMapRam(frames);
                    return new Area(kind, ram, count, null) { Frames = frames };
                case Kind.Sparse:
                    void* sparse = machine.GetVmArea((nuint)(count * Page));
                    bool mapped = machine.VmAreaMapPages(sparse, 0, frames) == VmapError.None;
                    return Described(kind, mapped ? sparse : null, count, "GetVmArea sparse") with { Frames = frames };
                case Kind.Stack:
                    return Described(kind, machine.AllocThreadStack(), 4, "AllocThreadStack pages=4 vmalloc");
                default:
                    return LoadModule(count);
            }
        }

        private unsafe Area LoadModule(int count)
        {
            var image = new ModuleImage($"m{seed}-{_modules++}");
            var text = new byte[_random.Next(1, 9000)];
            _random.NextBytes(text);
            image.Sections.Add(new ModuleSection(ModuleSectionKind.Text, 16, text.Length, text));
            image.Sections.Add(new ModuleSection(ModuleSectionKind.Data, Page, count * Page, new byte[8]));
            image.Relocations.Add(new ModuleRelocation(1, 0, ModuleRelocationType.Absolute64, 0, 0));
            KernelModule module = machine.LoadModule(image);
            if (*(nint*)module.AddressOf(1) != (nint)module.AddressOf(0))
                throw new InvalidOperationException("the module was not relocated");
            return new Area(Kind.Module, (nint)module.AddressOf(1), count, null) { Module = module, Text = text };
        }

        private unsafe Area Described(Kind kind, void* at, int count, string words)
        {
            if (at == null)
                return new Area(kind, 0, 0, null);
            ulong va = machine.VmallocIfUsed!.AddressOf(at);
            string size = ((count + 1) * Page).ToString(CultureInfo.InvariantCulture).PadLeft(7);
            string nodes = words.Contains("pages=", StringComparison.Ordinal) ? $" N0={count}" : "";
            ulong end = va + (ulong)((count + 1) * Page);
            return new Area(kind, (nint)at, count, $"0x{va:x16}-0x{end:x16} {size} {words}{nodes}");
        }

        private unsafe void Remove(int index)
        {
            Area area = _areas[index];
            CheckPattern(area);
            _areas.RemoveAt(index);
            var at = (void*)area.Base;
            if (area.ReadOnly && _random.Next(2) == 0)
                Require(machine.SetMemoryRw(at, area.Pages), "no way back");
            switch (area.Kind)
            {
                case Kind.Vmalloc or Kind.Huge or Kind.VmapPut:
                    machine.Vfree(at);
                    break;
                case Kind.Vmap:
                    machine.Vunmap(at);
                    break;
                case Kind.Ioremap:
                    machine.Iounmap(at);
                    break;
                case Kind.MapRam:
                    machine.VmUnmapRam(at, area.Pages);
                    break;
                case Kind.Sparse:
                    machine.FreeVmArea(at);
                    break;
                case Kind.Stack:
                    machine.FreeThreadStack(at);
                    break;
                default:
                    area.Module!.Dispose();
                    break;
            }

            foreach (Pfn frame in area.Kind == Kind.VmapPut ? [] : area.Frames)
            {
                *(int*)machine.AddressOf(frame) = seed;     // with all rights, whatever the area had
                machine.FreePage(frame);
            }
        }

        private unsafe void ToggleRights(Area area)
        {
            if (area.Kind is Kind.MapRam or Kind.Stack or Kind.Module)
                return;
            area.ReadOnly = !area.ReadOnly;
            bool done = area.ReadOnly
                ? machine.SetMemoryRo((void*)area.Base, area.Pages)
                : machine.SetMemoryRw((void*)area.Base, area.Pages);
            Require(done, "rights were not changed");
            if (!area.ReadOnly)
                Fill(area);
            CheckPattern(area);
        }

        private unsafe void Fill(Area area)
        {
            area.Stamp = _random.NextInt64();
            for (int i = 0; i < area.Pages; i++)
            {
                // One half through the area, the other half through the other address.
                *(long*)(area.Base + ((nint)i * Page) + 64) = area.Stamp + i;
                *(long*)(OtherAddress(area, i) + 2048) = area.Stamp - i;
            }
        }

        private unsafe void CheckPattern(Area area)
        {
            for (int i = 0; i < area.Pages; i++)
            {
                byte* here = (byte*)area.Base + ((nint)i * Page);
                byte* there = OtherAddress(area, i);

                // Two ioremaps of this worker may show one page of the device: both show the later stamp there.
                bool same = *(long*)(here + 64) == *(long*)(there + 64) && *(long*)(here + 2048) == *(long*)(there + 2048);
                bool kept = area.Kind == Kind.Ioremap
                    || (*(long*)(here + 64) == area.Stamp + i && *(long*)(there + 2048) == area.Stamp - i);
                Require(same && kept, $"page {i} of {area.Kind} holds something else");
            }

            if (area.Module is { } module)
                Require(new ReadOnlySpan<byte>(module.AddressOf(0), area.Text.Length).SequenceEqual(area.Text), "text changed");
        }

        private unsafe byte* OtherAddress(Area area, int page)
        {
            if (area.Kind == Kind.Ioremap)
                return device.Pointer + ((nint)(area.DevicePage + page) * Page);
            Pfn frame = machine.VmallocToPage((byte*)area.Base + ((nint)page * Page));
            return (byte*)machine.AddressOf(frame);
        }

        private void Require(bool holds, string what)
        {
            if (!holds)
                throw new InvalidOperationException($"seed {seed}: {what}");
        }
    }

    private sealed record Area(Kind Kind, nint Base, int Pages, string? Info)
    {
        public Pfn[] Frames { get; init; } = [];

        public int DevicePage { get; init; }

        public KernelModule? Module { get; init; }

        public byte[] Text { get; init; } = [];

        public long Stamp { get; set; }

        public bool ReadOnly { get; set; }
    }
}
