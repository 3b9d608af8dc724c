using System.Collections.Concurrent;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// Kernel stacks in the vmalloc space (VMAP_STACK, kernel/fork.c, Linux 6.18): an overrun hits a page that faults.
/// <code>
///        …  guard of │ stack, 16 KiB, a multiple of 16 KiB │ guard │
///       the area below  ◀── grows downwards                           20 KiB of addresses
///
///   Alloc ◀── cache of this CPU: 2 stacks ◀──┬── Free
///         ◀── vmalloc        vfree ◀── grace period, then the cache again ◀── Free, cache full
/// </code>
/// A dead task may still be seen by readers, hence the grace period.
/// </summary>
/// <remarks>Thread-safe.</remarks>
internal sealed class ThreadStacks
{
    /// <summary>THREAD_SIZE, and THREAD_ALIGN.</summary>
    public const int Bytes = 16 << 10;

    /// <summary>NR_CACHED_STACKS.</summary>
    public const int CachedPerCpu = 2;

    private readonly VmallocAllocator _vmalloc;
    private readonly nint[] _cache;
    private readonly ConcurrentDictionary<nint, bool> _live = new();

    public ThreadStacks(VmallocAllocator vmalloc)
    {
        _vmalloc = vmalloc;
        _cache = new nint[vmalloc.Cpus.Count * CachedPerCpu];
    }

    /// <summary>Stacks in the caches.</summary>
    public int Cached => _cache.Count(stack => stack != 0);

    /// <summary>alloc_thread_stack_node: cleared, from the cache of this CPU if it has one.</summary>
    /// <returns>The lowest address, or null.</returns>
    public unsafe void* Alloc(int node)
    {
        _vmalloc.CheckMaySleep();
        int first = _vmalloc.Cpus.CurrentCpu * CachedPerCpu;
        void* stack = null;
        for (int slot = first; slot < first + CachedPerCpu && stack == null; slot++)
            stack = (void*)Interlocked.Exchange(ref _cache[slot], 0);
        if (stack != null)
        {
            NativeMemory.Clear(stack, Bytes);
        }
        else
        {
            stack = _vmalloc.Alloc(new VmallocRequest(Bytes, Gfp.Kernel | Gfp.Zero, VmCaller.AllocThreadStack)
            {
                Flags = VmFlags.Owned,
                Align = Bytes,
                Node = node,
            });
        }

        if (stack != null)
            _live[(nint)stack] = true;
        return stack;
    }

    /// <summary>free_thread_stack.</summary>
    /// <exception cref="KernelBugException">No stack in use starts there.</exception>
    public unsafe void Free(void* stack)
    {
        if (stack == null)
            return;
        if (!_live.TryRemove((nint)stack, out _))
            _vmalloc.ThrowNoStack(stack);
        if (TryCache((nint)stack))
            return;

        var dead = (nint)stack;
        _vmalloc.Rcu.Call(() =>
        {
            if (!TryCache(dead))
                _vmalloc.FreeOwned((void*)dead, "free_thread_stack");
        });
    }

    /// <summary>Gives the stacks in all caches back (free_vm_stack_cache, for a CPU that goes).</summary>
    public unsafe void Drain()
    {
        for (int slot = 0; slot < _cache.Length; slot++)
            _vmalloc.FreeOwned((void*)Interlocked.Exchange(ref _cache[slot], 0), "free_thread_stack");
    }

    private bool TryCache(nint stack)
    {
        int first = _vmalloc.Cpus.CurrentCpu * CachedPerCpu;
        for (int slot = first; slot < first + CachedPerCpu; slot++)
        {
            if (Interlocked.CompareExchange(ref _cache[slot], stack, 0) == 0)
                return true;
        }

        return false;
    }
}
