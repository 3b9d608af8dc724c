namespace Kmem.Tests;

/// <summary>vmalloc under simulated CPUs: busy and lazy areas, purges, kept areas, piecemeal mappings.</summary>
public sealed class VmallocSimulationTests
{
    private static void SkipElsewhere() => Assert.SkipUnless(
        HostMemory.IsLinux && HostInfo.PageBytes == Pfn.PageSize, "vmalloc needs Linux with 4 KiB pages");

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void Areas_of_the_kernel_profile(int cpus)
    {
        SkipElsewhere();
        new Explorer($"vmalloc-{cpus}", seed => new Areas(seed, KernelProfile.Linux618, cpus)).MustHold(100);
    }

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void Kept_areas_of_the_native_profile(int cpus)
    {
        SkipElsewhere();
        new Explorer($"kept-{cpus}", seed => new Areas(seed, KernelProfile.Native, cpus)).MustHold(100);
    }

    private sealed class Areas : SimulatedMachine
    {
        private readonly (nint Area, int Pages, ulong Stamp)?[] _table = new (nint, int, ulong)?[5];

        public Areas(int seed, KernelProfile profile, int cpus)
            : base(seed, profile, cpus, 32 << 20, Prepare)
        {
            for (int i = 0; i < cpus; i++)
                AddCpu(10, (random, _, stamp) => Thing(random, stamp), i);
        }

        public override void Check()
        {
            for (int i = 0; i < _table.Length; i++)
                Exchange(i, null);
            base.Check();
        }

        /// <summary>The vmalloc space, and page tables, which stay.</summary>
        private static unsafe void Prepare(Machine machine)
        {
            var areas = new nint[24];
            for (int i = 0; i < areas.Length; i++)
                areas[i] = (nint)machine.Vmalloc(16 * (nuint)Pfn.PageSize);
            foreach (nint area in areas)
                machine.Vfree((void*)area);
            for (int cpu = 0; cpu < machine.Cpus; cpu++)
            {
                using CpuBinding binding = machine.RunOn(cpu);
                Pfn frame = machine.AllocPage(Gfp.Kernel);
                machine.VmUnmapRam(machine.VmMapRam([frame]), 1);
                machine.FreePage(frame);
            }
        }

        private unsafe void Thing(Random random, ulong stamp)
        {
            switch (random.Next(16))
            {
                case < 8:
                    int pages = random.Next(1, 5);
                    void* area = Machine.Vmalloc((nuint)pages * (nuint)Pfn.PageSize);
                    Assert.True(area != null, "no area");
                    for (int i = 0; i < pages; i++)
                        *(ulong*)((byte*)area + (i * (int)Pfn.PageSize)) = stamp + (ulong)i;
                    Exchange(random.Next(_table.Length), ((nint)area, pages, stamp));
                    break;
                case < 11:
                    Exchange(random.Next(_table.Length), null);
                    break;
                case 11:
                    Machine.VmUnmapAliases();
                    break;
                case 12:
                    Machine.VmallocIfUsed!.Vmap.PurgeLazy(full: random.Next(2) == 0);
                    break;
                case 13:
                    Machine.VmallocIfUsed!.DropKept(random.Next(3));
                    break;
                case 14:
                    FreeWhereSleepingIsForbidden(stamp);
                    break;
                default:
                    MapRam(random, stamp);
                    break;
            }
        }

        private unsafe void FreeWhereSleepingIsForbidden(ulong stamp)
        {
            void* area = Machine.Vmalloc(2 * (nuint)Pfn.PageSize);
            *(ulong*)area = stamp;
            using (Machine.HardIrq())
                Machine.Vfree(area);
        }

        private unsafe void MapRam(Random random, ulong stamp)
        {
            var frames = new Pfn[random.Next(1, 4)];
            for (int i = 0; i < frames.Length; i++)
                frames[i] = Machine.AllocPage(Gfp.Kernel);
            void* mapping = Machine.VmMapRam(frames);
            Assert.True(mapping != null, "no mapping");
            *(ulong*)mapping = stamp;
            SimPoint.Here();
            Assert.Equal(stamp, *(ulong*)Machine.AddressOf(frames[0]));
            Machine.VmUnmapRam(mapping, frames.Length);
            foreach (Pfn frame in frames)
                Machine.FreePage(frame);
        }

        private unsafe void Exchange(int place, (nint Area, int Pages, ulong Stamp)? area)
        {
            (nint Area, int Pages, ulong Stamp)? before = _table[place];
            _table[place] = area;
            if (before is not { } old)
                return;

            for (int i = 0; i < old.Pages; i++)
                Assert.Equal(old.Stamp + (ulong)i, *(ulong*)(old.Area + (i * (int)Pfn.PageSize)));
            Machine.Vfree((void*)old.Area);
        }
    }
}
