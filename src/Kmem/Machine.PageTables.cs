namespace Kmem;

/// <content>The kernel's page tables, and what a frame is used for.</content>
public sealed partial class Machine
{
    /// <summary>
    /// Goes through the kernel's page tables as a processor would: vmalloc space, direct map, whatever is mapped.
    /// </summary>
    /// <param name="address">A kernel's address, as <see cref="KernelAddressOf"/> gives it; need not be mapped.</param>
    /// <returns>Each entry on the way; <see cref="PageWalk.IsMapped"/> tells whether it ended at a frame.</returns>
    /// <exception cref="ArgumentException">
    /// The address is not canonical: with four levels bits 63 to 47 have to be equal, with five bits 63 to 56.
    /// </exception>
    /// <exception cref="NotSupportedException">No vmalloc space here: see <see cref="Vmalloc(nuint)"/>.</exception>
    /// <exception cref="KernelBugException">First use: this context may not sleep.</exception>
    public PageWalk WalkPageTables(VirtAddr address)
    {
        if (!_slabs.Addresses.IsCanonical(address.Value))
        {
            string bits = _slabs.Addresses.Levels == 5 ? "63 to 56" : "63 to 47";
            throw new ArgumentException($"0x{address} is not canonical: its bits {bits} differ", nameof(address));
        }

        return Vmallocs.Tables.Walk(address.Value);
    }

    /// <summary>
    /// The kernel's page tables as text: ranges with equal rights, region by region (debugfs page_tables/kernel,
    /// arch/x86/mm/dump_pagetables.c, Linux 6.18).
    /// </summary>
    /// <returns>The text. While others map, each line shows some moment.</returns>
    /// <exception cref="NotSupportedException">No vmalloc space here: see <see cref="Vmalloc(nuint)"/>.</exception>
    public string DumpPageTables() => Vmallocs.Tables.Dump();

    /// <summary>Tells what a frame is used for at this moment (dump_page).</summary>
    /// <param name="frame">A frame number.</param>
    /// <returns>Its description; null for a hole, or beyond the end of memory.</returns>
    public unsafe PageFrameInfo? DescribeFrame(Pfn frame)
    {
        if (frame.Value >= _map.EndPfn || !_pages.IsPresent(frame.Value))
            return null;

        Page* page = _map.PageOf(frame.Value);
        Page* head = Page.HeadOf(page);
        (string use, int order) = UseOf(frame.Value, page, head);
        Zone zone = _pages.ZoneOf(frame.Value).Zone;
        PageFlags kernelFlags = page->Flags & (PageFlags)0xff_ffff;
        string[] flags = kernelFlags == PageFlags.None ? [] : kernelFlags.ToString().ToLowerInvariant().Split(", ");
        return new PageFrameInfo(frame, zone.NodeId, zone.Name, use, order, head->RefCount, flags);
    }

    private unsafe (string Use, int Order) UseOf(ulong pfn, Page* page, Page* head)
    {
        if (head->Type == PageType.Slab && _slabs.SlabOf(_map.AddressOf(page)) is var slab && slab != null)
            return ($"slab {_slabs.CacheOf(slab).Name}", PageAllocator.CompoundOrder(head));

        if (head->Type == PageType.Table)
            return ("page table", 0);
        if (head->Type == PageType.LargeKmalloc)
            return ("large kmalloc block", PageAllocator.CompoundOrder(head));
        for (int order = 0; order <= PageOrder.Max; order++)
        {
            Page* first = _map.PageOf(pfn & ~((1UL << order) - 1));
            if (first->Type == PageType.Buddy && (int)first->Private >= order)
                return ("free", (int)first->Private);
            if (first->AllocatedOrderPlusOne > order)
                return ("allocated", first->AllocatedOrderPlusOne - 1);
        }

        return head->RefCount > 0 ? ("allocated", 0) : ("in no block: on a list of a CPU, or reserved at boot", 0);
    }
}
