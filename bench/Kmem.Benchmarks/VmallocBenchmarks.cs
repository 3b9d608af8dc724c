using System.Runtime.InteropServices;
using BenchmarkDotNet.Attributes;

namespace Kmem.Benchmarks;

/// <summary>
/// One area: allocated, one byte of each page written, freed; beside the system's mmap with munmap, and the C library's
/// aligned allocation, which keeps small areas for the next request.
/// </summary>
public partial class VmallocBenchmarks
{
    private const nuint PageSize = 4096;
    private const int ReadWrite = 3;
    private const int PrivateAnonymous = 0x22;

    private Machine _machine = null!;

    /// <summary>Whose rules; the peers have none.</summary>
    [Params("native", "linux-6.18")]
    public string Profile { get; set; } = KernelProfile.Native.Name;

    [Params(1, 16, 4096)]
    public int Pages { get; set; }

    private nuint Size => (nuint)Pages * PageSize;

    [GlobalSetup]
    public void Setup()
    {
        KernelProfile profile = KernelProfile.Find(Profile)!;
        _machine = Machine.Boot(new MachineOptions { RamBytes = 1UL << 30, Cpus = 2, Profile = profile });
    }

    [GlobalCleanup]
    public void Cleanup() => _machine.Dispose();

    [Benchmark]
    [BenchmarkCategory("area")]
    public unsafe void AreaVmalloc()
    {
        void* area = _machine.Vmalloc(Size);
        Touch(area);
        _machine.Vfree(area);
    }

    [Benchmark(Baseline = true)]
    [BenchmarkCategory("area")]
    public unsafe void AreaMmap()
    {
        void* area = Mmap(null, Size, ReadWrite, PrivateAnonymous, -1, 0);
        Touch(area);
        if (Munmap(area, Size) != 0)
            throw new InvalidOperationException("munmap failed");
    }

    [Benchmark]
    [BenchmarkCategory("area")]
    public unsafe void AreaAlignedAlloc()
    {
        void* area = NativeMemory.AlignedAlloc(Size, PageSize);
        Touch(area);
        NativeMemory.AlignedFree(area);
    }

    private unsafe void Touch(void* area)
    {
        for (nuint at = 0; at < Size; at += PageSize)
            ((byte*)area)[at] = 1;
    }

    [LibraryImport("libc", EntryPoint = "mmap")]
    private static unsafe partial void* Mmap(void* address, nuint length, int protection, int flags, int file, nint at);

    [LibraryImport("libc", EntryPoint = "munmap")]
    private static unsafe partial int Munmap(void* address, nuint length);
}
