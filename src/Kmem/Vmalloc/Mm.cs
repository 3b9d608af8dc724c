namespace Kmem;

/// <summary>
/// The address space of a process (<c>struct mm_struct</c> as far as its page tables go): a root of its own, user
/// mappings below, the kernel's shared tables above.
/// </summary>
/// <remarks>pgd_alloc and pgd_free, arch/x86/mm/pgtable.c, Linux 6.18.</remarks>
internal sealed class Mm : PageTable
{
    private readonly KernelPageTable _kernel;

    /// <summary>Creates an address space without user mappings.</summary>
    /// <exception cref="KernelBugException">No memory for the root.</exception>
    public Mm(KernelPageTable kernel, PageAllocator pages, MemMap map)
        : base(pages, map, kernel.Levels, Gfp.KernelAccount)
    {
        _kernel = kernel;
        kernel.Join(this);
    }

    /// <summary>
    /// The walk of a processor that runs in this address space. An entry that this root lacks is fetched by the fault
    /// handler if that is how address spaces are kept in step.
    /// </summary>
    public override PageWalk Access(ulong va)
    {
        PageWalk walk = Walk(va);
        return walk.IsMapped || !_kernel.HandleFault(this, va) ? walk : Walk(va);
    }

    internal ulong RootEntry(int slot) => Read(RootPfn, slot);

    internal void SetRootEntry(int slot, ulong entry) => Write(RootPfn, slot, entry);

    /// <summary>Kernel mappings are made in the kernel's tables.</summary>
    protected override bool Owns(ulong va) => va < KernelHalf;

    protected override void Close()
    {
        _kernel.Leave(this);
        FreeTablesUnder(RootPfn, Levels, 0, (EntriesPerTable / 2) - 1);
        FreeTable(RootPfn);
    }
}
