using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// The CPUs of a machine and which thread is on which. A CPU is a slot that a thread borrows: whoever is inside a
/// <i>section</i> of a CPU (<see cref="Enter"/> … <see cref="Leave"/>) has that CPU's state for itself.
/// </summary>
/// <remarks>
/// <para>A CPU is in one of three states:</para>
/// <code>
///   free      nobody owns it, its lock is open
///   owned     one thread owns it; entering is two plain stores and a load, no interlocked instruction
///   shared    more threads than CPUs: each section takes the CPU's lock
/// </code>
/// <para>
/// Taking an owned CPU away from its thread is the rare, expensive side of an asymmetric protocol. The owner writes
/// <c>Busy = 1</c> and then reads <c>Cpu</c>; the taker writes <c>Cpu = -1</c>, runs a barrier on every processor of the
/// process, and then waits until <c>Busy</c> is 0. Either the owner saw -1, or the taker sees the owner's 1.
/// </para>
/// <para>A dead thread gives its CPU back with all it caches: nothing is flushed, nothing is lost.</para>
/// </remarks>
internal sealed class CpuSet : IDisposable
{
    /// <summary>Most CPUs a machine can have.</summary>
    public const int MaxCpus = 1024;

    [ThreadStatic]
    private static unsafe CpuTask* t_task;

    [ThreadStatic]
    private static ThreadTasks? t_tasks;

    private static int s_lastId;

    private readonly Slot[] _slots;
    private readonly List<nint> _tasks = [];
    private readonly int _id;
    private SpinLock _binding = new(LockRank.CpuBinding);

    public CpuSet(int count)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(count, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(count, MaxCpus);
        _id = Interlocked.Increment(ref s_lastId);
        _slots = new Slot[count];
        for (int cpu = 0; cpu < count; cpu++)
            _slots[cpu] = new Slot();
    }

    public int Count => _slots.Length;

    /// <summary>This thread as this machine sees it; created at first use.</summary>
    public unsafe CpuTask* Current
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get
        {
            CpuTask* task = t_task;
            return task != null && task->MachineId == _id ? task : CurrentSlow();
        }
    }

    /// <summary>Enters a section of the CPU this thread is on.</summary>
    /// <returns>The CPU's number. No other thread touches that CPU's state until <see cref="Leave"/>.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe int Enter(CpuTask* task)
    {
        Bug.OnVm(task->Busy != 0, "per-CPU section entered twice");
        Volatile.Write(ref task->Busy, 1);
        int cpu = Volatile.Read(ref task->Cpu);
        if (cpu < 0)
            return EnterSlow(task);

        LockOrder.Acquire(LockRank.CpuSection);
        return cpu;
    }

    /// <summary>Leaves the section entered last.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe void Leave(CpuTask* task)
    {
        if (task->Busy == 1)
        {
            LockOrder.Release(LockRank.CpuSection);
            Volatile.Write(ref task->Busy, 0);
        }
        else
        {
            LeaveShared(task);
        }
    }

    /// <summary>The CPU this thread would run on now, without entering a section; a hint unless pinned.</summary>
    public unsafe int CurrentCpu
    {
        get
        {
            CpuTask* task = Current;
            int cpu = Enter(task);
            Leave(task);
            return cpu;
        }
    }

    /// <summary>Binds this thread to a CPU; -1 lets it run anywhere again.</summary>
    /// <returns>The CPU it was bound to before, or -1.</returns>
    public unsafe int Pin(int cpu)
    {
        if (cpu < -1 || cpu >= _slots.Length)
        {
            throw new ArgumentOutOfRangeException(
                nameof(cpu), cpu, $"this machine has CPUs 0 to {_slots.Length - 1}");
        }

        CpuTask* task = Current;
        int before = task->Pinned;
        if (cpu == before)
            return before;

        task->Pinned = cpu;
        if (cpu < 0)
            return before;

        // Moving between CPUs that this thread owns already is what a replay does at every other event.
        Volatile.Write(ref task->Busy, 1);
        task->Cpu = Volatile.Read(ref _slots[cpu].Owner) == (nint)task ? cpu : -1;
        task->LastCpu = cpu;
        Volatile.Write(ref task->Busy, 0);
        return before;
    }

    /// <summary>
    /// Takes CPU <paramref name="cpu"/> for work from outside (draining its lists). Its owner finds it gone at the next
    /// section and comes back. Must not be called inside a section.
    /// </summary>
    public unsafe void AcquireRemote(int cpu)
    {
        CpuTask* self = Current;
        Bug.OnVm(self->Busy != 0, "remote CPU taken inside a section");
        _binding.Acquire();
        RevokeLocked(cpu, self);
        _slots[cpu].Remote++;       // nobody becomes its owner before ReleaseRemote
        _binding.Release();
        _slots[cpu].Lock.Acquire();
    }

    public void ReleaseRemote(int cpu)
    {
        _slots[cpu].Lock.Release();
        _binding.Acquire();
        _slots[cpu].Remote--;
        _binding.Release();
    }

    /// <summary>Ends the machine's part in every thread. No thread may be inside a section.</summary>
    public unsafe void Dispose()
    {
        _binding.Acquire();
        foreach (nint task in _tasks)
            ((CpuTask*)task)->MachineId = 0;
        _tasks.Clear();
        _binding.Release();
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe CpuTask* CurrentSlow()
    {
        ThreadTasks tasks = t_tasks ??= new ThreadTasks();
        CpuTask* task = tasks.Find(_id);
        if (task == null)
        {
            task = tasks.Add(this);
            *task = new CpuTask { MachineId = _id, Cpu = -1, Pinned = -1, LastCpu = -1 };
            _binding.Acquire();
            _tasks.Add((nint)task);
            _binding.Release();
        }

        t_task = task;
        return task;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe int EnterSlow(CpuTask* task)
    {
        Volatile.Write(ref task->Busy, 0);
        var spin = default(SpinWait);
        while (true)
        {
            int cpu = task->Pinned >= 0 ? task->Pinned : task->LastCpu;
            if (cpu == task->LastCpu && cpu >= 0 && Volatile.Read(ref _slots[cpu].Shared) && TryEnterShared(task, cpu))
                return cpu;

            _binding.Acquire();
            cpu = ChooseCpuLocked(task);
            Slot slot = _slots[cpu];
            if (UsersLocked(cpu) > 1)
            {
                // From now on every section of this CPU takes its lock, the former owner's too.
                RevokeLocked(cpu, task);
                Volatile.Write(ref slot.Shared, true);
                _binding.Release();
                continue;
            }

            if (slot.Remote == 0)
            {
                RevokeLocked(cpu, task);
                slot.Shared = false;

                // A thread that saw this CPU shared a moment ago may hold its lock: it looks for an owner after taking
                // the lock, we look at the lock after becoming the owner, so one of the two steps back.
                slot.Owner = (nint)task;
                Interlocked.MemoryBarrier();
                slot.Lock.WaitUntilFree();
                task->Cpu = cpu;
                Volatile.Write(ref task->Busy, 1);
                _binding.Release();
                LockOrder.Acquire(LockRank.CpuSection);
                return cpu;
            }

            _binding.Release();
            spin.SpinOnce();
        }
    }

    /// <summary>
    /// Nobody can become the owner while this thread counts as a user of the CPU, so holding the lock of a CPU without
    /// an owner is being alone on it.
    /// </summary>
    private unsafe bool TryEnterShared(CpuTask* task, int cpu)
    {
        Slot slot = _slots[cpu];
        slot.Lock.Acquire();
        if (Volatile.Read(ref slot.Owner) == 0)
        {
            task->Busy = 2;
            return true;
        }

        slot.Lock.Release();
        return false;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void LeaveShared(CpuTask* task)
    {
        Bug.OnVm(task->Busy != 2, "per-CPU section left without being entered");
        int cpu = task->LastCpu;
        task->Busy = 0;
        _slots[cpu].Lock.Release();
    }

    /// <summary>The pinned CPU; else the one used last unless it is crowded; else the least used one.</summary>
    private unsafe int ChooseCpuLocked(CpuTask* task)
    {
        int cpu = task->Pinned;
        if (cpu < 0 && task->LastCpu >= 0 && UsersLocked(task->LastCpu) <= 1)
            cpu = task->LastCpu;

        if (cpu < 0)
        {
            int fewest = int.MaxValue;
            for (int candidate = 0; candidate < _slots.Length; candidate++)
            {
                int users = UsersLocked(candidate) - (task->LastCpu == candidate ? 1 : 0);
                if (users < fewest)
                {
                    fewest = users;
                    cpu = candidate;
                }
            }
        }

        task->LastCpu = cpu;
        return cpu;
    }

    private unsafe int UsersLocked(int cpu)
    {
        int users = 0;
        foreach (nint task in _tasks)
        {
            if (((CpuTask*)task)->LastCpu == cpu)
                users++;
        }

        return users;
    }

    /// <summary>Takes a CPU away from its owner and waits until the owner is out of its section.</summary>
    private unsafe void RevokeLocked(int cpu, CpuTask* self)
    {
        Slot slot = _slots[cpu];
        var owner = (CpuTask*)slot.Owner;
        if (owner == null)
            return;

        Volatile.Write(ref slot.Owner, 0);
        if (owner == self)
        {
            if (self->Cpu == cpu)
                self->Cpu = -1;
            return;
        }

        var spin = default(SpinWait);
        do
        {
            // The owner may move to this CPU at this very moment (Pin); after the barrier it sees that it lost it.
            Interlocked.CompareExchange(ref owner->Cpu, -1, cpu);
            ProcessBarrier.Full();
            while (Volatile.Read(ref owner->Busy) == 1)
                spin.SpinOnce(sleep1Threshold: 200);
        }
        while (Volatile.Read(ref owner->Cpu) == cpu);
    }

    /// <summary>Gives back what a dead thread had: its CPUs stay as they are, with all they cache, for the next one.</summary>
    private unsafe void ThreadGone(CpuTask* task)
    {
        _binding.Acquire();
        _tasks.Remove((nint)task);
        foreach (Slot slot in _slots)
        {
            if (slot.Owner == (nint)task)
                Volatile.Write(ref slot.Owner, 0);
        }

        // A CPU that only one thread is left on stops being shared when that thread enters next.
        for (int cpu = 0; cpu < _slots.Length; cpu++)
        {
            if (_slots[cpu].Shared && UsersLocked(cpu) <= 1)
                Volatile.Write(ref _slots[cpu].Shared, false);
        }

        _binding.Release();
    }

    private sealed class Slot
    {
        /// <summary>The task that owns the CPU, or 0.</summary>
        public nint Owner;

        /// <summary>More than one thread uses this CPU: sections take the lock.</summary>
        public bool Shared;

        /// <summary>Number of threads that work on this CPU from outside.</summary>
        public int Remote;

        public SpinLock Lock = new(LockRank.CpuSection);
    }

    /// <summary>
    /// One thread's tasks, one for each machine it used. Referenced only from a thread-static, so it becomes garbage
    /// when the thread ends, and its finalizer is the notice of that.
    /// </summary>
    private sealed class ThreadTasks
    {
        private readonly List<(CpuSet Cpus, nint Task)> _entries = [];

        ~ThreadTasks()
        {
            foreach ((CpuSet cpus, nint task) in _entries)
                Release(cpus, task);
        }

        public unsafe CpuTask* Find(int machineId)
        {
            CpuTask* found = null;
            for (int i = _entries.Count - 1; i >= 0; i--)
            {
                (CpuSet cpus, nint entry) = _entries[i];
                var task = (CpuTask*)entry;
                if (task->MachineId == machineId)
                {
                    found = task;
                }
                else if (task->MachineId == 0)
                {
                    _entries.RemoveAt(i);
                    Release(cpus, entry);
                }
            }

            return found;
        }

        public unsafe CpuTask* Add(CpuSet cpus)
        {
            var task = (CpuTask*)NativeMemory.AlignedAlloc((nuint)sizeof(CpuTask), 128);
            _entries.Add((cpus, (nint)task));
            return task;
        }

        private static unsafe void Release(CpuSet cpus, nint task)
        {
            cpus.ThreadGone((CpuTask*)task);
            NativeMemory.AlignedFree((void*)task);
        }
    }
}
