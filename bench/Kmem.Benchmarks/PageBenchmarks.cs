using System.Buffers;
using System.Runtime.InteropServices;
using BenchmarkDotNet.Attributes;

namespace Kmem.Benchmarks;

/// <summary>
/// Page frames: one page and eight pages at a time. Times are per allocation with its free; nothing is touched.
/// </summary>
public class PageBenchmarks
{
    private const int Rounds = 100;

    private Machine _machine = null!;

    [GlobalSetup]
    public void Setup() => _machine = Machine.Boot(new MachineOptions { RamBytes = 1UL << 30, Cpus = 2 });

    [GlobalCleanup]
    public void Cleanup() => _machine.Dispose();

    [Benchmark(OperationsPerInvoke = Rounds)]
    [BenchmarkCategory("order0")]
    public void Order0AllocPages()
    {
        for (int i = 0; i < Rounds; i++)
            _machine.FreePages(_machine.AllocPages(Gfp.Kernel, 0), 0);
    }

    [Benchmark(OperationsPerInvoke = Rounds, Baseline = true)]
    [BenchmarkCategory("order0")]
    public unsafe void Order0NativeMemory()
    {
        for (int i = 0; i < Rounds; i++)
            NativeMemory.AlignedFree(NativeMemory.AlignedAlloc(4096, 4096));
    }

    [Benchmark(OperationsPerInvoke = Rounds)]
    [BenchmarkCategory("order0")]
    public void Order0ArrayPool()
    {
        for (int i = 0; i < Rounds; i++)
            ArrayPool<byte>.Shared.Return(ArrayPool<byte>.Shared.Rent(4096));
    }

    [Benchmark(OperationsPerInvoke = Rounds)]
    [BenchmarkCategory("order3")]
    public void Order3AllocPages()
    {
        for (int i = 0; i < Rounds; i++)
            _machine.FreePages(_machine.AllocPages(Gfp.Kernel, 3), 3);
    }

    [Benchmark(OperationsPerInvoke = Rounds, Baseline = true)]
    [BenchmarkCategory("order3")]
    public unsafe void Order3NativeMemory()
    {
        for (int i = 0; i < Rounds; i++)
            NativeMemory.AlignedFree(NativeMemory.AlignedAlloc(32768, 32768));
    }

    [Benchmark(OperationsPerInvoke = Rounds)]
    [BenchmarkCategory("order3")]
    public void Order3ArrayPool()
    {
        for (int i = 0; i < Rounds; i++)
            ArrayPool<byte>.Shared.Return(ArrayPool<byte>.Shared.Rent(32768));
    }
}
