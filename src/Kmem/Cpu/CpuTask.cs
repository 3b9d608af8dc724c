using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// A thread as one machine sees it: the CPU it runs on and the context it is in. Written only by its own thread, except
/// <see cref="Cpu"/>, which another thread may set to "none" (see <see cref="CpuSet"/>).
/// </summary>
/// <remarks>
/// Lives in native memory so that the fast path reads it through a thread-static pointer. <see cref="PreemptCount"/>
/// has the kernel's layout (include/linux/preempt.h):
/// <code>
///   bits  0–7   preempt depth          bits 16–19  hardirq depth
///   bits  8–15  softirq                bits 20–23  NMI depth
///               (1 = serving; a disabled bottom half counts 2)
/// </code>
/// </remarks>
[StructLayout(LayoutKind.Sequential, Size = 128)]
internal struct CpuTask
{
    public const uint PreemptOffset = 1;
    public const uint SoftirqOffset = 1 << 8;
    public const uint SoftirqDisableOffset = 2 << 8;
    public const uint HardirqOffset = 1 << 16;
    public const uint NmiOffset = 1 << 20;
    public const uint SoftirqMask = 0xff00;
    public const uint HardirqMask = 0xf_0000;
    public const uint NmiMask = 0xf0_0000;

    /// <summary>The machine this belongs to; 0 when the machine is gone.</summary>
    public int MachineId;

    /// <summary>
    /// <see cref="MachineId"/> as long as this context may sleep, else 0: both tests of the fast paths in one.
    /// </summary>
    public int SleepId;

    /// <summary>
    /// 0 outside; 1 inside a per-CPU section of an owned CPU; 2 inside, holding the shared CPU's lock.
    /// </summary>
    public int Busy;

    /// <summary>The CPU this thread owns and runs on, or -1: ask <see cref="CpuSet"/>.</summary>
    public int Cpu;

    /// <summary>
    /// The per-CPU area of <see cref="Cpu"/>, or one where nothing is as long as that is -1. It is what the inlined
    /// fast paths look at inside a section.
    /// </summary>
    public unsafe byte* Area;

    public uint PreemptCount;

    /// <summary>Non-zero: interrupts are off in this context.</summary>
    public int IrqsOff;

    /// <summary>The CPU this thread was told to run on (<see cref="Machine.RunOn"/>), or -1.</summary>
    public int Pinned;

    /// <summary>The CPU this thread used last, for the slow path; or -1.</summary>
    public int LastCpu;

    /// <summary>The state of the bindings in which <see cref="LastCpu"/> was chosen.</summary>
    public int Epoch;

    /// <summary>Sections entered with the CPU's lock, to look for a better place now and then.</summary>
    public uint SharedSections;

    public TaskFlags Flags;

    /// <summary>Frames that this thread freed while <see cref="TaskFlags.MemAlloc"/> was set (reclaim_state).</summary>
    public long Reclaimed;

    /// <summary>In NMI, hard or soft interrupt, or with bottom halves disabled (in_interrupt()).</summary>
    public readonly bool InInterrupt => (PreemptCount & (SoftirqMask | HardirqMask | NmiMask)) != 0;

    /// <summary>Serving a softirq (in_serving_softirq()).</summary>
    public readonly bool InServingSoftirq => (PreemptCount & SoftirqOffset) != 0;

    /// <summary>Neither serving a softirq nor in a hard interrupt or NMI (in_task()).</summary>
    public readonly bool InTask => (PreemptCount & (HardirqMask | NmiMask | SoftirqOffset)) == 0;

    /// <summary>Whether this context may sleep (the negation of what might_sleep() reports).</summary>
    public readonly bool MaySleep => (PreemptCount | (uint)IrqsOff) == 0;

    /// <summary>
    /// Whether this is a task of the machine, and a request with these flags is allowed in its context.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe bool Allows(CpuTask* task, Gfp gfp, int machineId) =>
        task != null && ((gfp & Gfp.DirectReclaim) != 0 ? task->SleepId : task->MachineId) == machineId;

    /// <summary>To be called after <see cref="PreemptCount"/> or <see cref="IrqsOff"/> has changed.</summary>
    public void ContextChanged() => SleepId = MaySleep ? MachineId : 0;
}

/// <summary>Task flags that the allocators look at (include/linux/sched.h, Linux 6.18).</summary>
[Flags]
internal enum TaskFlags : uint
{
    None = 0,

    /// <summary>Full access to the reserves; never enters reclaim (PF_MEMALLOC).</summary>
    MemAlloc = 0x0000_0800,

    /// <summary>
    /// At work on a request for an object, which empties the quarantine itself; Kmem's own (the kernel's bit is
    /// another's).
    /// </summary>
    WantsObject = 0x0000_0001,

    /// <summary>Allocations lose __GFP_FS (PF_MEMALLOC_NOFS).</summary>
    NoFs = 0x0004_0000,

    /// <summary>Allocations lose __GFP_IO and __GFP_FS (PF_MEMALLOC_NOIO).</summary>
    NoIo = 0x0008_0000,

    /// <summary>Allocations lose __GFP_MOVABLE (PF_MEMALLOC_PIN).</summary>
    Pin = 0x1000_0000,
}
