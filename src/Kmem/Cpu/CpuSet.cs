using System.Numerics;
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
/// <c>Busy = 1</c> and then reads <c>Cpu</c>; the taker writes <c>Cpu = -1</c>, runs a barrier on every processor of
/// the process, and then waits until <c>Busy</c> is 0. Either the owner saw -1, or the taker sees the owner's 1.
/// </para>
/// <para>
/// A dead thread gives its CPU back with all it caches: nothing is flushed, nothing is lost. It is noticed when a CPU
/// gets crowded, when the list of threads has doubled, or when the garbage collector finds what it left.
/// </para>
/// <para>
/// Nothing here waits in a way that <see cref="Thread.Interrupt"/> could end: an exception between two sections of one
/// operation would lose what the operation has in hand.
/// </para>
/// </remarks>
internal sealed class CpuSet : IDisposable
{
    /// <summary>Most CPUs a machine can have.</summary>
    public const int MaxCpus = 1024;

    /// <summary>Largest per-CPU area.</summary>
    public const ulong MaxAreaBytes = 2 << 20;

    [ThreadStatic]
    private static unsafe CpuTask* t_task;

    [ThreadStatic]
    private static ThreadTasks? t_tasks;

    private static int s_lastId;

    /// <summary>After this many sections of a shared CPU a thread looks whether there is a better place.</summary>
    private const int LookAroundEvery = 256;

    private const int FirstPrune = 16;

    private readonly Slot[] _slots;
    private readonly SparseMemory _areas;
    private readonly unsafe byte* _area;
    private readonly int _areaShift;
    private readonly List<(nint Task, Thread Thread)> _tasks = [];
    private readonly int _id;
    private SpinLock _binding = new(LockRank.CpuBinding);
    private int _pruneAt = FirstPrune;
    private int _epoch; // changes when a CPU gets crowded or a thread is gone: time to choose anew

    /// <param name="count">Number of CPUs.</param>
    /// <param name="areaBytes">
    /// Bytes of zeroed memory that each CPU gets (the per-CPU area); used as it is touched.
    /// </param>
    public unsafe CpuSet(int count, ulong areaBytes = 4096)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(count, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(count, MaxCpus);
        _id = Interlocked.Increment(ref s_lastId);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(areaBytes, MaxAreaBytes);
        _areaShift = BitOperations.Log2(BitOperations.RoundUpToPowerOf2(areaBytes));
        _areas = SparseMemory.Create((ulong)count << _areaShift, "per-CPU areas");
        _area = _areas.Base;
        _slots = new Slot[count];
        for (int cpu = 0; cpu < count; cpu++)
            _slots[cpu] = new Slot();
    }

    /// <summary>
    /// The areas live as long as anybody can call: a stale reference finds an empty CPU, not a fault.
    /// </summary>
    ~CpuSet() => _areas?.Dispose(); // null if the constructor threw

    public int Count => _slots.Length;

    /// <summary>Tells this machine's tasks from those of others; never 0.</summary>
    public int Id => _id;

    /// <summary>
    /// This thread as the machine that it used last sees it, or null: the inlined fast paths' way in.
    /// </summary>
    public static unsafe CpuTask* Here
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => t_task;
    }

    /// <summary>
    /// The memory that belongs to a CPU, as in the kernel's per-CPU allocator: one base, the same offsets.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public unsafe byte* AreaOf(int cpu) => _area + ((nuint)(uint)cpu << _areaShift);

    /// <summary>Threads on the list; a few of them may be dead.</summary>
    public int KnownThreads
    {
        get
        {
            _binding.Acquire();
            int count = _tasks.Count;
            _binding.Release();
            return count;
        }
    }

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
        SimPoint.Here();
        int cpu = Volatile.Read(ref task->Cpu);
        SimPoint.Here();
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
            SimPoint.Here();
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

    /// <summary>
    /// The CPU that this thread is on or was on last: for who is told of an event, inside a section or under any lock.
    /// </summary>
    public unsafe int LikelyCpu
    {
        get
        {
            CpuTask* task = Current;
            int cpu = task->Pinned >= 0 ? task->Pinned : task->Cpu >= 0 ? task->Cpu : task->LastCpu;
            return Math.Max(cpu, 0);
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
        SimPoint.Here();
        bool owned = Volatile.Read(ref _slots[cpu].Owner) == (nint)task;
        task->Cpu = owned ? cpu : -1;
        task->Area = owned ? AreaOf(cpu) : Nowhere.Area;
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
        _slots[cpu].Visitor = (nint)self;
    }

    public void ReleaseRemote(int cpu)
    {
        _slots[cpu].Visitor = 0;
        _slots[cpu].Lock.Release();
        _binding.Acquire();
        _slots[cpu].Remote--;
        _binding.Release();
    }

    /// <summary>
    /// Leaves whatever section this thread is in, after it broke off, and opens its locks. What others hold stays
    /// theirs: the finalizer of a thread that ended may be at work at any moment.
    /// </summary>
    public unsafe void Break()
    {
        LockOrder.Break();
        CpuTask* self = Current;
        self->Busy = 0;
        _binding.Break();
        _binding.Acquire();
        foreach (Slot slot in _slots)
        {
            if (!slot.Lock.IsHeldHere)
                continue;

            if (slot.Visitor == (nint)self)
                slot.Remote--;
            slot.Visitor = 0;
            slot.Lock.Break();
        }

        _binding.Release();
    }

    /// <summary>Ends the machine's part in every thread. No thread may be inside a section.</summary>
    public unsafe void Dispose()
    {
        _binding.Acquire();
        foreach ((nint task, Thread _) in _tasks)
            ((CpuTask*)task)->MachineId = ((CpuTask*)task)->SleepId = 0;
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
            SimPoint.Keep(tasks);
            *task = new CpuTask
            {
                MachineId = _id,
                SleepId = _id,
                Cpu = -1,
                Pinned = -1,
                LastCpu = -1,
                Area = Nowhere.Area,
            };
            _binding.Acquire();
            if (_tasks.Count >= _pruneAt)
                PruneLocked();
            _tasks.Add(((nint)task, Thread.CurrentThread));
            _binding.Release();
        }

        t_task = task;
        return task;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe int EnterSlow(CpuTask* task)
    {
        Volatile.Write(ref task->Busy, 0);
        while (true)
        {
            int cpu = task->Pinned >= 0 ? task->Pinned : task->LastCpu;
            if (cpu >= 0
                && cpu == task->LastCpu
                && Volatile.Read(ref _slots[cpu].Shared)
                && task->Epoch == Volatile.Read(ref _epoch)
                && ++task->SharedSections % LookAroundEvery != 0
                && TryEnterShared(task, cpu))
            {
                return cpu;
            }

            _binding.Acquire();
            cpu = ChooseCpuLocked(task);
            bool alone = UsersLocked(cpu) <= 1;
            if (!alone && PruneLocked())
            {
                cpu = ChooseCpuLocked(task);
                alone = UsersLocked(cpu) <= 1;
            }

            Slot slot = _slots[cpu];
            if (alone && slot.Remote == 0)
            {
                BecomeOwnerLocked(task, cpu);
                _binding.Release();
                LockOrder.Acquire(LockRank.CpuSection);
                return cpu;
            }

            if (!alone)
                ShareLocked(cpu, task);
            task->Epoch = _epoch;
            _binding.Release();

            // Without an owner the CPU's lock is enough: others that share it and visitors take it, too.
            if (TryEnterShared(task, cpu))
                return cpu;
        }
    }

    /// <summary>Takes the CPU from whoever had it; ends with <c>Busy = 1</c>, inside a section.</summary>
    private unsafe void BecomeOwnerLocked(CpuTask* task, int cpu)
    {
        Slot slot = _slots[cpu];
        RevokeLocked(cpu, task);
        Volatile.Write(ref slot.Shared, false);

        // A thread that saw this CPU shared a moment ago may hold its lock: it looks for an owner after taking
        // the lock, we look at the lock after becoming the owner, so one of the two steps back.
        slot.Owner = (nint)task;
        Interlocked.MemoryBarrier();
        SimPoint.Here();
        slot.Lock.WaitUntilFree();
        SimPoint.Here();
        task->Cpu = cpu;
        task->Area = AreaOf(cpu);
        Volatile.Write(ref task->Busy, 1);
    }

    /// <summary>From now on every section of this CPU takes its lock, the former owner's too.</summary>
    private unsafe void ShareLocked(int cpu, CpuTask* task)
    {
        Slot slot = _slots[cpu];
        RevokeLocked(cpu, task);
        if (slot.Shared)
            return;

        Volatile.Write(ref slot.Shared, true);
        Volatile.Write(ref _epoch, _epoch + 1); // the former owner may find a better place
    }

    /// <summary>
    /// Holding the lock of a CPU without an owner is being alone on it: who becomes the owner waits for the lock first.
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

    /// <summary>The pinned CPU; else the least used one, and the one used last if no other is better.</summary>
    private unsafe int ChooseCpuLocked(CpuTask* task)
    {
        int cpu = task->Pinned;
        if (cpu < 0)
        {
            cpu = task->LastCpu;
            int fewest = cpu < 0 ? int.MaxValue : UsersLocked(cpu) - 1;
            for (int candidate = 0; candidate < _slots.Length && fewest > 0; candidate++)
            {
                int users = candidate == task->LastCpu ? fewest : UsersLocked(candidate);
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
        foreach ((nint task, Thread _) in _tasks)
        {
            if (Volatile.Read(ref ((CpuTask*)task)->LastCpu) == cpu)
                users++;
        }

        return users;
    }

    /// <summary>Strikes dead threads off; their native memory goes when their finalizer runs.</summary>
    /// <returns>Whether there were any.</returns>
    private bool PruneLocked()
    {
        int before = _tasks.Count;
        for (int i = before - 1; i >= 0; i--)
        {
            if (!_tasks[i].Thread.IsAlive)
                StrikeOffLocked(i);
        }

        _pruneAt = Math.Max(FirstPrune, 2 * _tasks.Count);
        return _tasks.Count < before;
    }

    /// <summary>The CPUs of a task that is gone stay as they are, with all they cache, for the next one.</summary>
    private void StrikeOffLocked(int index)
    {
        nint task = _tasks[index].Task;
        _tasks[index] = _tasks[^1];
        _tasks.RemoveAt(_tasks.Count - 1);
        foreach (Slot slot in _slots)
        {
            if (slot.Owner == task)
                Volatile.Write(ref slot.Owner, 0);
        }

        Volatile.Write(ref _epoch, _epoch + 1);
    }

    /// <summary>Takes a CPU away from its owner and waits until the owner is out of its section.</summary>
    private unsafe void RevokeLocked(int cpu, CpuTask* self)
    {
        Slot slot = _slots[cpu];
        var owner = (CpuTask*)slot.Owner;
        if (owner == null)
            return;

        Volatile.Write(ref slot.Owner, 0);
        SimPoint.Here();
        if (owner == self)
        {
            if (self->Cpu == cpu)
            {
                self->Cpu = -1;
                self->Area = Nowhere.Area;
            }

            return;
        }

        do
        {
            // The owner may move to this CPU at this very moment (Pin); after the barrier it sees that it lost it.
            Interlocked.CompareExchange(ref owner->Cpu, -1, cpu);
            SimPoint.Here();
            Interlocked.CompareExchange(ref *(nint*)&owner->Area, (nint)Nowhere.Area, (nint)AreaOf(cpu));
            ProcessBarrier.Full();
            var wait = default(Backoff);
            while (Volatile.Read(ref owner->Busy) == 1)
                wait.Once();
        }
        while (Volatile.Read(ref owner->Cpu) == cpu || Volatile.Read(ref *(nint*)&owner->Area) == (nint)AreaOf(cpu));
    }

    /// <summary>The finalizer's notice that a thread has ended.</summary>
    private unsafe void ThreadGone(CpuTask* task)
    {
        _binding.Acquire();
        int index = _tasks.FindIndex(entry => entry.Task == (nint)task);
        if (index >= 0)
            StrikeOffLocked(index);
        _binding.Release();
    }

    /// <summary>
    /// The area of a thread that owns no CPU: all zero, which is empty and full at once. Never written.
    /// </summary>
    private static class Nowhere
    {
        private static readonly SparseMemory s_memory = SparseMemory.Create(MaxAreaBytes, "empty per-CPU area");

        public static unsafe byte* Area => s_memory.Base;
    }

    private sealed class Slot
    {
        /// <summary>The task that owns the CPU, or 0.</summary>
        public nint Owner;

        /// <summary>More than one thread uses this CPU: sections take the lock.</summary>
        public bool Shared;

        /// <summary>Number of threads that work on this CPU from outside.</summary>
        public int Remote;

        /// <summary>The one of them that holds the lock, or 0.</summary>
        public nint Visitor;

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
