namespace Kmem;

/// <content>vm_map_ram: mappings for a short time; and kernel stacks.</content>
public sealed partial class Machine
{
    /// <summary>Bytes of a kernel stack, and its alignment (THREAD_SIZE, THREAD_ALIGN).</summary>
    public const int ThreadSize = ThreadStacks.Bytes;

    /// <summary>
    /// Shows frames side by side for a short time (vm_map_ram, mm/vmalloc.c, Linux 6.18): cheaper than
    /// <see cref="Vmap"/>, because up to 64 pages are cut from a block of 4 MiB of this CPU. There is no guard page.
    /// </summary>
    /// <param name="frames">Any frames of the machine, in any order; keep them until <see cref="VmUnmapRam"/>.</param>
    /// <returns>The address; null if frames is empty or memory, addresses, tables or mappings ran out.</returns>
    /// <exception cref="ArgumentException">The machine has no such frame.</exception>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* VmMapRam(ReadOnlySpan<Pfn> frames)
    {
        foreach (Pfn frame in frames)
        {
            if (frame.Value >= _map.EndPfn)
                throw new ArgumentOutOfRangeException(nameof(frames), frame, "no such page frame");
        }

        return Vmallocs.MapRam(frames);
    }

    /// <summary>
    /// Ends a <see cref="VmMapRam"/> (vm_unmap_ram). The addresses are used again when their whole block is done with,
    /// and reach the frames until then or until <see cref="VmUnmapAliases"/>.
    /// </summary>
    /// <param name="pointer">What it returned.</param>
    /// <param name="pages">How many frames it was given.</param>
    /// <exception cref="KernelBugException">
    /// No mapping of so many pages starts there, or this context may not sleep. Nothing was changed.
    /// </exception>
    public unsafe void VmUnmapRam(void* pointer, int pages)
    {
        CheckContext(Gfp.Kernel);
        if (VmallocIfUsed is { } vmalloc)
            vmalloc.UnmapRam(pointer, pages);
        else
            ThrowNoVmalloc(pointer, "vm_unmap_ram");
    }

    /// <summary>
    /// Allocates a cleared kernel stack of <see cref="ThreadSize"/> bytes with pages that fault on both sides
    /// (VMAP_STACK, kernel/fork.c, Linux 6.18). Each CPU keeps two dead stacks for reuse.
    /// </summary>
    /// <param name="node">Preferred node for a new one, or -1 for the CPU's own.</param>
    /// <returns>Its lowest address, a multiple of its size; or null.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* AllocThreadStack(int node = -1)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(node, Nodes);
        return Vmallocs.Stacks.Alloc(Math.Max(node, -1));
    }

    /// <summary>
    /// Frees a kernel stack: to this CPU's cache, or after a grace period of RCU. Any context may call it.
    /// </summary>
    /// <param name="stack">What <see cref="AllocThreadStack"/> returned, or null.</param>
    /// <exception cref="KernelBugException">No stack in use starts there. Nothing was changed.</exception>
    public unsafe void FreeThreadStack(void* stack)
    {
        if (VmallocIfUsed is { } vmalloc)
            vmalloc.Stacks.Free(stack);
        else if (stack != null)
            ThrowNoVmalloc(stack, "free_thread_stack");
    }
}
