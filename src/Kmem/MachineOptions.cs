namespace Kmem;

/// <summary>What a machine is made of.</summary>
public sealed partial record MachineOptions
{
    /// <summary>
    /// Bytes of RAM. Costs address space only: host memory is used as pages are touched. Ignored if
    /// <see cref="MemoryMap"/> is given.
    /// </summary>
    public ulong RamBytes { get; init; } = 1UL << 30;

    /// <summary>
    /// Number of CPUs: how many threads can work without sharing per-CPU state. As many as the host has; where a CPU is
    /// but a slot for a thread (<see cref="KernelProfile.SheavesEverywhere"/>), four times as many, and at least 16.
    /// </summary>
    public int Cpus
    {
        get => _cpus ?? (Profile.SheavesEverywhere
            ? Math.Clamp(4 * Environment.ProcessorCount, 16, CpuSet.MaxCpus)
            : Math.Max(1, Environment.ProcessorCount));
        init => _cpus = value;
    }

    private readonly int? _cpus;

    /// <summary>
    /// Number of NUMA nodes; memory and CPUs are divided evenly. Ignored if <see cref="MemoryMap"/> is given.
    /// </summary>
    public int Nodes { get; init; } = 1;

    /// <summary>Distance between two nodes, 10 for a node and itself; null for 10 and 20.</summary>
    public Func<int, int, int>? NodeDistance { get; init; }

    /// <summary>
    /// Which physical addresses are memory, and which of them are taken; null for a PC with <see cref="RamBytes"/>.
    /// </summary>
    public BootMemoryMap? MemoryMap { get; init; }

    /// <summary>
    /// Bytes at the top of each node's memory that only movable allocations may use (movablecore); usually 0.
    /// </summary>
    public ulong MovableBytes { get; init; }

    /// <summary>Whose rules the machine follows.</summary>
    public KernelProfile Profile { get; init; } = KernelProfile.Native;

    /// <summary>vm.min_free_kbytes; null lets the kernel's formula decide.</summary>
    public int? MinFreeKbytes { get; init; }

    /// <summary>vm.watermark_scale_factor: distance between watermarks in 1/10000 of a zone, 1 to 3000.</summary>
    public int WatermarkScaleFactor { get; init; } = 10;

    /// <summary>
    /// vm.watermark_boost_factor: how far a fallback raises the watermarks, in 1/10000 of the high one; 0 is off.
    /// </summary>
    public int WatermarkBoostFactor { get; init; } = 15000;

    /// <summary>
    /// vm.percpu_pagelist_high_fraction: 0 tunes per-CPU lists automatically, 8 and more fixes their limit.
    /// </summary>
    public int PercpuPagelistHighFraction { get; init; }

    /// <summary>
    /// Seed of everything random in the machine. Same options, same seed, same requests on the same CPUs: same
    /// addresses.
    /// </summary>
    public ulong Seed { get; init; } = 1;

    /// <summary>Objects of a new slab are handed out in random order (CONFIG_SLAB_FREELIST_RANDOM).</summary>
    public bool SlabFreelistRandom { get; init; }

    /// <summary>Free pointers are stored encoded (CONFIG_SLAB_FREELIST_HARDENED).</summary>
    public bool SlabFreelistHardened { get; init; }

    /// <summary>
    /// kmalloc fails above 128 KiB, as it did in Linux 2.2 to 2.6.21 and as text books of that time say; off by
    /// default.
    /// </summary>
    public bool HistoricKmallocLimit { get; init; }

    /// <summary>Bytes of a CPU cache line, a power of two.</summary>
    public int CacheLineSize { get; init; } = 64;

    /// <summary>
    /// Levels of the kernel's page tables, 4 or 5 (LA57): 5 has other addresses, and a vmalloc space of 12.5 PiB
    /// instead of 32 TiB.
    /// </summary>
    public int PageTableLevels { get; init; } = 4;

    /// <summary>
    /// Memory of modules gets shadow memory beside it, an eighth of its size, as in a kernel with CONFIG_KASAN and
    /// without CONFIG_KASAN_VMALLOC. Kmem gives it the kernel's place and life; it checks no access with it.
    /// </summary>
    public bool KasanModuleShadow { get; init; }

    /// <summary>
    /// Seconds after which memory that was free all the time goes back to the host, and whether the machine does its
    /// once-a-second work by itself (<see cref="Machine.Tick"/>). 0: never. Null: 0 in the profile of a kernel, because
    /// a machine that follows a kernel's rules must not act on its own clock; in the native profile 3, and what exceeds
    /// 8 MiB and a sixteenth of the frames in use goes within some tens of milliseconds when slabs become free.
    /// </summary>
    public double? DecaySeconds { get; init; }

    /// <summary>
    /// Ask the host to back the RAM with huge pages of 2 MiB (MADV_HUGEPAGE). They save page faults and TLB misses
    /// where most of the RAM is used; a sparse machine costs 2 MiB for each frame that is touched first, and memory
    /// goes back to the host in whole huge pages or by splitting them. Has effect on Linux where
    /// <c>/sys/kernel/mm/transparent_hugepage/shmem_enabled</c> is not <c>never</c> or <c>deny</c>;
    /// <see cref="Machine.RamDescription"/> says so.
    /// </summary>
    public bool HugePages { get; init; }

    /// <summary>Use ordinary process memory for the RAM even where something better is there.</summary>
    public bool PortableMemory { get; init; }
}
