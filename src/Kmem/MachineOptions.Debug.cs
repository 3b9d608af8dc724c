namespace Kmem;

/// <content>Debugging.</content>
public sealed partial record MachineOptions
{
    /// <summary>
    /// Slab debugging, in the syntax of the kernel's boot parameter slab_debug (mm/slub.c, Linux 6.18): letters F
    /// (consistency checks), Z (red zones), P (poison), U (last users), T (trace), A (fault injection), O (not where it
    /// would raise the smallest order of a slab), - (none); after a comma names of caches, <c>*</c> at the end for any;
    /// blocks with semicolons between them. Examples: <c>FZPU</c>; <c>FZ,kmalloc-*;P,dentry</c>. Empty: F Z P U for all
    /// caches. Null, the default: only caches created with such flags.
    /// </summary>
    /// <remarks>
    /// A debugged cache has no per-CPU state: every operation takes a lock, and with U walks the stack. The others are
    /// as fast as ever.
    /// </remarks>
    public string? SlubDebug { get; init; }

    /// <summary>
    /// Requests for objects that fail on purpose, in the syntax of the kernel's boot parameter failslab:
    /// <c>interval,probability,space,times</c> (setup_fault_attr, lib/fault-inject.c, Linux 6.18). In force once the
    /// machine has booted; <see cref="Machine.FailSlab"/> has the rest. Null: none.
    /// </summary>
    public string? FailSlab { get; init; }

    /// <summary>Requests for pages that fail on purpose (fail_page_alloc), in the same syntax. Null: none.</summary>
    public string? FailPageAlloc { get; init; }

    /// <summary>
    /// Keeps the call site of every allocation, for <see cref="Machine.Allocations"/> and
    /// <see cref="Machine.ScanForLeaks"/>; each one then takes microseconds. (For owners and handles of the .NET floor
    /// <see cref="TrackCallSites"/> is cheaper, and tells source lines.) Off by default.
    /// </summary>
    public bool TrackAllocations { get; init; }

    /// <summary>
    /// Puts some of the objects that are allocated on pages of their own, between pages that nobody may touch
    /// (CONFIG_KFENCE, mm/kfence, Linux 6.18), so that a use after free or past an end ends the process where it
    /// happens, in production, too. Null: none.
    /// </summary>
    public KfenceOptions? Kfence { get; init; }
}
