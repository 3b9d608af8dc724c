namespace Kmem;

/// <summary>An object of which each CPU has a copy: not an address, but what leads to one for each CPU.</summary>
/// <param name="Value">A kernel's address of CPU 0's copy; 0 is no object.</param>
public readonly record struct PercpuPointer(ulong Value)
{
    /// <summary>No object: what a failed allocation returns.</summary>
    public static PercpuPointer Null => default;

    /// <summary>Whether there is no object.</summary>
    public bool IsNull => Value == 0;
}

/// <content>Per-CPU memory (mm/percpu.c).</content>
public sealed partial class Machine
{
    private readonly Lock _percpuGate = new();
    private PercpuAllocator? _percpu;

    /// <summary>The per-CPU allocator, made at its first use; null until then.</summary>
    internal PercpuAllocator? PercpuIfUsed => Volatile.Read(ref _percpu);

    /// <summary>
    /// Allocates an object of which each CPU has a copy, all cleared (__alloc_percpu, mm/percpu.c, Linux 6.18). Copies
    /// of one object are as far apart as those of any other; each lies on its CPU's node.
    /// </summary>
    /// <param name="size">Bytes for each CPU; at most 2 MiB, with many CPUs 256 KiB.</param>
    /// <param name="align">A power of two, at most 4096.</param>
    /// <param name="gfp">Without sleeping only frames that are there already are used.</param>
    /// <returns>The object; null if size or alignment are out of range, or there is no memory.</returns>
    /// <exception cref="KernelBugException">The request may sleep and this context may not.</exception>
    /// <exception cref="NotSupportedException">No vmalloc space here: see <see cref="Vmalloc(nuint)"/>.</exception>
    public PercpuPointer AllocPercpu(nuint size, nuint align, Gfp gfp = Gfp.Kernel)
    {
        PercpuAllocator? percpu = PercpuIfUsed;
        if (percpu == null)
        {
            VmallocAllocator vmalloc = Vmallocs;
            SimPoint.Gate(_percpuGate);
            lock (_percpuGate)
            {
                percpu = _percpu ??= new PercpuAllocator(vmalloc, _slabs);
                Proc.Percpu = percpu;
            }
        }

        return new PercpuPointer(percpu.Alloc(size, align, gfp));
    }

    /// <summary>A CPU's copy of a per-CPU object (per_cpu_ptr).</summary>
    /// <param name="pointer">The object.</param>
    /// <param name="cpu">The CPU, from 0.</param>
    /// <returns>Its address in this process; valid until <see cref="FreePercpu"/>.</returns>
    /// <exception cref="ArgumentException">There is no such object or no such CPU.</exception>
    public unsafe void* PerCpuPtr(PercpuPointer pointer, int cpu)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(cpu);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(cpu, Cpus);
        if (PercpuIfUsed is not { } percpu || !percpu.Owns(pointer.Value))
            throw new ArgumentException($"0x{pointer.Value:x} is no per-CPU object", nameof(pointer));
        return Vmallocs.PointerOf(pointer.Value + percpu.UnitOffset(cpu));
    }

    /// <summary>
    /// Frees a per-CPU object, all its copies (free_percpu). Pages that are left without objects lose their frames, but
    /// for a few.
    /// </summary>
    /// <param name="pointer">The object; <see cref="PercpuPointer.Null"/> is ignored. Any context.</param>
    /// <exception cref="KernelBugException">No object starts there: it is free already, or never was one.</exception>
    public void FreePercpu(PercpuPointer pointer)
    {
        if (pointer.IsNull)
            return;
        if (PercpuIfUsed is { } percpu)
            percpu.Free(pointer.Value);
        else
            _pages.ThrowBug($"WARNING: free_percpu of 0x{pointer.Value:x}: no per-CPU object starts there");
    }
}
