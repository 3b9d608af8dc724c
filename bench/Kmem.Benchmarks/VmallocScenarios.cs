using BenchmarkDotNet.Attributes;

namespace Kmem.Benchmarks;

/// <summary>
/// The scenarios of the kernel's module test_vmalloc (lib/test_vmalloc.c): a first byte is written, nothing else is
/// touched. Times are per iteration of a scenario, which the module counts in loops.
/// </summary>
public class VmallocScenarios
{
    private const nuint PageSize = 4096;
    private const int Loops = 64;

    /// <summary>Areas that are held while others come and go: the module holds 15000.</summary>
    private const int BusyAreas = 15000;

    /// <summary>
    /// One-page holes between one-page areas. The module has 8192 for each bit of the number of CPUs; a process may not
    /// have so many mappings (vm.max_map_count), of which an area and its guard page take two.
    /// </summary>
    private const int Holes = 4096;

    private readonly List<nint> _held = [];
    private readonly Random _random = new(7);
    private Machine _machine = null!;

    [Params("native", "linux-6.18")]
    public string Profile { get; set; } = KernelProfile.Native.Name;

    [GlobalSetup(Targets = [nameof(FixSize), nameof(RandomSize), nameof(Vrealloc), nameof(MapPage)])]
    public void Setup()
    {
        KernelProfile profile = KernelProfile.Find(Profile)!;
        _machine = Machine.Boot(new MachineOptions { RamBytes = 1UL << 30, Cpus = 2, Profile = profile });
    }

    [GlobalSetup(Target = nameof(LongBusyList))]
    public void SetupBusy()
    {
        Setup();
        for (int i = 0; i < BusyAreas; i++)
            Hold(1);
    }

    [GlobalSetup(Target = nameof(FullFit))]
    public unsafe void SetupHoles()
    {
        Setup();
        List<nint> junk = [];
        for (int i = 0; i < Holes; i++)
        {
            Hold(1);
            junk.Add((nint)_machine.Vmalloc(PageSize));
        }
        foreach (nint area in junk)
            _machine.Vfree((void*)area);
    }

    [GlobalCleanup]
    public unsafe void Cleanup()
    {
        foreach (nint area in _held)
            _machine.Vfree((void*)area);
        _held.Clear();
        _machine.Dispose();
    }

    /// <summary>fix_size_alloc_test: one page.</summary>
    [Benchmark(OperationsPerInvoke = Loops)]
    public void FixSize()
    {
        for (int i = 0; i < Loops; i++)
            Once(1);
    }

    /// <summary>full_fit_alloc_test: one page, among thousands of holes that fit exactly.</summary>
    [Benchmark(OperationsPerInvoke = Loops)]
    public void FullFit()
    {
        for (int i = 0; i < Loops; i++)
            Once(1);
    }

    /// <summary>long_busy_list_alloc_test: a hundred pages and one page, while 15000 areas are held.</summary>
    [Benchmark(OperationsPerInvoke = Loops)]
    public unsafe void LongBusyList()
    {
        for (int i = 0; i < Loops; i++)
        {
            byte* large = Written(100);
            byte* small = Written(1);
            _machine.Vfree(large);
            _machine.Vfree(small);
        }
    }

    /// <summary>random_size_alloc_test: 1 to 100 pages.</summary>
    [Benchmark(OperationsPerInvoke = Loops)]
    public void RandomSize()
    {
        for (int i = 0; i < Loops; i++)
            Once(_random.Next(1, 101));
    }

    /// <summary>vrealloc_test: 1 page, 4, 1, half a page, 1.</summary>
    [Benchmark(OperationsPerInvoke = Loops)]
    public unsafe void Vrealloc()
    {
        for (int i = 0; i < Loops; i++)
        {
            byte* area = Written(1);
            foreach (nuint size in (ReadOnlySpan<nuint>)[4 * PageSize, PageSize, PageSize / 2, PageSize])
                area = (byte*)_machine.Vrealloc(area, size, Gfp.Kernel);
            if (*area != 1)
                throw new InvalidOperationException("vrealloc lost the first byte");
            _machine.Vfree(area);
        }
    }

    /// <summary>As vm_map_ram_test, by vmap and vunmap: one page that is there already.</summary>
    [Benchmark(OperationsPerInvoke = Loops)]
    public unsafe void MapPage()
    {
        ReadOnlySpan<Pfn> frames = [_machine.AllocPage(Gfp.Kernel)];
        for (int i = 0; i < Loops; i++)
        {
            var area = (byte*)_machine.Vmap(frames);
            *area = 1;
            _machine.Vunmap(area);
        }
        _machine.FreePage(frames[0]);
    }

    private unsafe void Hold(int pages) => _held.Add((nint)Written(pages));

    private unsafe void Once(int pages) => _machine.Vfree(Written(pages));

    private unsafe byte* Written(int pages)
    {
        var area = (byte*)_machine.Vmalloc((nuint)pages * PageSize);
        if (area == null)
            throw new InvalidOperationException("no memory for an area");
        *area = 1;
        return area;
    }
}
