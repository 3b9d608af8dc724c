using System.Buffers;
using System.Runtime.InteropServices;
using BenchmarkDotNet.Attributes;

namespace Kmem.Benchmarks;

/// <summary>
/// Objects of some bytes: allocated and freed at once, held a hundred at a time, and of mixed sizes. Times are per
/// allocation with its free, on one thread that owns its CPU.
/// </summary>
public class ObjectBenchmarks
{
    private const int Held = 100;
    private const int Size = 64;

    private readonly nint[] _pointers = new nint[Held];
    private readonly byte[][] _arrays = new byte[Held][];
    private readonly int[] _sizes = new int[1024];
    private readonly int[] _order = new int[Held];
    private Machine _machine = null!;
    private KmemCache _cache = null!;

    /// <summary>Whose rules; the peers have none, and their rows of both profiles are the same thing.</summary>
    [Params("native", "linux-6.18")]
    public string Profile { get; set; } = KernelProfile.Native.Name;

    [GlobalSetup]
    public void Setup()
    {
        KernelProfile profile = KernelProfile.Find(Profile)!;
        _machine = Machine.Boot(new MachineOptions { RamBytes = 1UL << 30, Cpus = 2, Profile = profile });
        _cache = _machine.CreateCache("bench", Size, flags: SlabFlags.NoMerge);
        var random = new Random(42);
        for (int i = 0; i < _sizes.Length; i++)
            _sizes[i] = random.Next(16, 1025);
        for (int i = 0; i < Held; i++)
            _order[i] = i;
        random.Shuffle(_order);
    }

    [GlobalCleanup]
    public void Cleanup() => _machine.Dispose();

    [Benchmark(OperationsPerInvoke = Held)]
    [BenchmarkCategory("pair64")]
    public unsafe void Pair64Kmalloc()
    {
        for (int i = 0; i < Held; i++)
            _machine.Kfree(_machine.Kmalloc(Size, Gfp.Kernel));
    }

    [Benchmark(OperationsPerInvoke = Held)]
    [BenchmarkCategory("pair64")]
    public unsafe void Pair64KmemCache()
    {
        for (int i = 0; i < Held; i++)
            _cache.Free(_cache.Alloc(Gfp.Kernel));
    }

    [Benchmark(OperationsPerInvoke = Held)]
    [BenchmarkCategory("pair64")]
    public unsafe void Pair64CacheScope()
    {
        using CacheScope scope = _cache.Enter(Gfp.Kernel);
        for (int i = 0; i < Held; i++)
            scope.Free(scope.Alloc());
    }

    [Benchmark(OperationsPerInvoke = Held, Baseline = true)]
    [BenchmarkCategory("pair64")]
    public unsafe void Pair64NativeMemory()
    {
        for (int i = 0; i < Held; i++)
            NativeMemory.Free(NativeMemory.Alloc(Size));
    }

    [Benchmark(OperationsPerInvoke = Held)]
    [BenchmarkCategory("pair64")]
    public void Pair64ArrayPool()
    {
        for (int i = 0; i < Held; i++)
            ArrayPool<byte>.Shared.Return(ArrayPool<byte>.Shared.Rent(Size));
    }

    [Benchmark(OperationsPerInvoke = Held)]
    [BenchmarkCategory("rand100")]
    public unsafe void Batch100Kmalloc()
    {
        for (int i = 0; i < Held; i++)
            _pointers[i] = (nint)_machine.Kmalloc(Size, Gfp.Kernel);
        foreach (int i in _order)
            _machine.Kfree((void*)_pointers[i]);
    }

    [Benchmark(OperationsPerInvoke = Held)]
    [BenchmarkCategory("rand100")]
    public void Batch100KmemCacheBulk()
    {
        _cache.AllocBulk(Gfp.Kernel, _pointers);
        _cache.FreeBulk(_pointers);
    }

    [Benchmark(OperationsPerInvoke = Held, Baseline = true)]
    [BenchmarkCategory("rand100")]
    public unsafe void Batch100NativeMemory()
    {
        for (int i = 0; i < Held; i++)
            _pointers[i] = (nint)NativeMemory.Alloc(Size);
        foreach (int i in _order)
            NativeMemory.Free((void*)_pointers[i]);
    }

    [Benchmark(OperationsPerInvoke = Held)]
    [BenchmarkCategory("rand100")]
    public void Batch100ArrayPool()
    {
        for (int i = 0; i < Held; i++)
            _arrays[i] = ArrayPool<byte>.Shared.Rent(Size);
        foreach (int i in _order)
            ArrayPool<byte>.Shared.Return(_arrays[i]);
    }

    [Benchmark(OperationsPerInvoke = 1024)]
    [BenchmarkCategory("rsize")]
    public unsafe void MixedSizesKmalloc()
    {
        foreach (int size in _sizes)
            _machine.Kfree(_machine.Kmalloc((nuint)size, Gfp.Kernel));
    }

    [Benchmark(OperationsPerInvoke = 1024, Baseline = true)]
    [BenchmarkCategory("rsize")]
    public unsafe void MixedSizesNativeMemory()
    {
        foreach (int size in _sizes)
            NativeMemory.Free(NativeMemory.Alloc((nuint)size));
    }

    [Benchmark(OperationsPerInvoke = 1024)]
    [BenchmarkCategory("rsize")]
    public void MixedSizesArrayPool()
    {
        foreach (int size in _sizes)
            ArrayPool<byte>.Shared.Return(ArrayPool<byte>.Shared.Rent(size));
    }
}
