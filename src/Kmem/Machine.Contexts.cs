namespace Kmem;

/// <content>CPUs and contexts of the calling thread.</content>
public sealed partial class Machine
{
    /// <summary>
    /// Binds this thread to a CPU of the machine until the result is disposed. Several threads may be bound to one CPU;
    /// they take turns.
    /// </summary>
    /// <param name="cpu">CPU number, from 0.</param>
    /// <returns>Dispose it on the same thread to go back to where the thread was before.</returns>
    /// <exception cref="ArgumentOutOfRangeException">The machine has no such CPU.</exception>
    public CpuBinding RunOn(int cpu)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(cpu);
        return new CpuBinding(_cpus, _cpus.Pin(cpu));
    }

    /// <summary>
    /// An atomic section, as under a spinlock: until disposed, requests that may sleep are refused.
    /// </summary>
    /// <returns>Dispose it on the same thread.</returns>
    public unsafe ContextScope Atomic() => ContextScope.Count(_cpus.Current, CpuTask.PreemptOffset);

    /// <summary>Softirq context: timers, network receive, RCU callbacks.</summary>
    /// <returns>Dispose it on the same thread.</returns>
    public unsafe ContextScope SoftIrq() => ContextScope.Count(_cpus.Current, CpuTask.SoftirqOffset);

    /// <summary>A tasklet: softirq context by another name.</summary>
    /// <returns>Dispose it on the same thread.</returns>
    public ContextScope Tasklet() => SoftIrq();

    /// <summary>A hard interrupt handler.</summary>
    /// <returns>Dispose it on the same thread.</returns>
    public unsafe ContextScope HardIrq() => ContextScope.Count(_cpus.Current, CpuTask.HardirqOffset);

    /// <summary>Bottom halves disabled (local_bh_disable).</summary>
    /// <returns>Dispose it on the same thread.</returns>
    public unsafe ContextScope BottomHalvesDisabled() =>
        ContextScope.Count(_cpus.Current, CpuTask.SoftirqDisableOffset);

    /// <summary>Interrupts disabled (local_irq_save).</summary>
    /// <returns>Dispose it on the same thread.</returns>
    public unsafe ContextScope IrqsDisabled() => ContextScope.IrqsOff(_cpus.Current);

    /// <summary>Requests of this thread do no I/O: they lose __GFP_IO and __GFP_FS (memalloc_noio_save).</summary>
    /// <returns>Dispose it on the same thread. Scopes nest.</returns>
    public unsafe ContextScope MemallocNoIo() => ContextScope.Flag(_cpus.Current, TaskFlags.NoIo);

    /// <summary>Requests of this thread do not enter file systems: they lose __GFP_FS (memalloc_nofs_save).</summary>
    /// <returns>Dispose it on the same thread. Scopes nest.</returns>
    public unsafe ContextScope MemallocNoFs() => ContextScope.Flag(_cpus.Current, TaskFlags.NoFs);

    /// <summary>Requests of this thread may use all reserves and never reclaim (memalloc_noreclaim_save).</summary>
    /// <returns>Dispose it on the same thread. Scopes nest.</returns>
    public unsafe ContextScope MemallocNoReclaim() => ContextScope.Flag(_cpus.Current, TaskFlags.MemAlloc);

    /// <summary>Requests of this thread lose __GFP_MOVABLE (memalloc_pin_save).</summary>
    /// <returns>Dispose it on the same thread. Scopes nest.</returns>
    public unsafe ContextScope MemallocPin() => ContextScope.Flag(_cpus.Current, TaskFlags.Pin);

    /// <summary>
    /// A read-side section (rcu_read_lock): what is freed with <see cref="KfreeRcu"/> meanwhile stays until it ends. It
    /// is atomic: a reader that slept would hold up everybody's frees.
    /// </summary>
    /// <returns>Dispose it on the same thread. Sections nest.</returns>
    public RcuReader RcuRead() => new(_slabs.Rcu, Atomic());

    /// <summary>Waits until everything freed with <see cref="KfreeRcu"/> so far is really free (rcu_barrier).</summary>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    public unsafe void RcuBarrier()
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        _slabs.Rcu.Barrier();
    }
}

/// <summary>A thread bound to a CPU; see <see cref="Machine.RunOn"/>.</summary>
public readonly struct CpuBinding : IDisposable, IEquatable<CpuBinding>
{
    private readonly CpuSet _cpus;
    private readonly int _before;

    internal CpuBinding(CpuSet cpus, int before)
    {
        _cpus = cpus;
        _before = before;
    }

    /// <summary>Goes back to the CPU that the thread was bound to before, or to none.</summary>
    public void Dispose() => _cpus?.Pin(_before);

    /// <inheritdoc/>
    public bool Equals(CpuBinding other) => ReferenceEquals(_cpus, other._cpus) && _before == other._before;

    /// <inheritdoc/>
    public override bool Equals(object? obj) => obj is CpuBinding other && Equals(other);

    /// <inheritdoc/>
    public override int GetHashCode() => HashCode.Combine(_cpus, _before);
}

/// <summary>A context that a thread is in until it is disposed, on the same thread and innermost first.</summary>
public ref struct ContextScope
{
    private unsafe CpuTask* _task;
    private readonly uint _count;
    private readonly int _irqsOff;
    private readonly TaskFlags _flags;

    private unsafe ContextScope(CpuTask* task, uint count, int irqsOff, TaskFlags flags)
    {
        _task = task;
        _count = count;
        _irqsOff = irqsOff;
        _flags = flags;
    }

    /// <summary>Leaves the context.</summary>
    public unsafe void Dispose()
    {
        if (_task == null)
            return;

        _task->PreemptCount -= _count;
        _task->IrqsOff -= _irqsOff;
        _task->Flags &= ~_flags;
        _task->ContextChanged();
        _task = null;
    }

    internal static unsafe ContextScope Count(CpuTask* task, uint count)
    {
        task->PreemptCount += count;
        task->ContextChanged();
        return new ContextScope(task, count, 0, TaskFlags.None);
    }

    internal static unsafe ContextScope IrqsOff(CpuTask* task)
    {
        task->IrqsOff++;
        task->ContextChanged();
        return new ContextScope(task, 0, 1, TaskFlags.None);
    }

    /// <summary>Takes back only what it set itself, so that scopes nest.</summary>
    internal static unsafe ContextScope Flag(CpuTask* task, TaskFlags flag)
    {
        TaskFlags added = flag & ~task->Flags;
        task->Flags |= flag;
        return new ContextScope(task, 0, 0, added);
    }
}

/// <summary>A read-side section; see <see cref="Machine.RcuRead"/>.</summary>
public ref struct RcuReader
{
    private readonly int _phase;
    private ContextScope _atomic;
    private Rcu? _rcu;

    internal RcuReader(Rcu rcu, ContextScope atomic)
    {
        _rcu = rcu;
        _atomic = atomic;
        _phase = rcu.ReadLock();
    }

    /// <summary>Ends the section.</summary>
    public void Dispose()
    {
        _atomic.Dispose();
        _rcu?.ReadUnlock(_phase);
        _rcu = null;
    }
}
