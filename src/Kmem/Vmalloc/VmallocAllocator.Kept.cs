using System.Numerics;
using System.Runtime.InteropServices;

namespace Kmem;

/// <content>
/// The fast way of the native profile: an area that is freed stays as it is, marked, until the next request of its
/// size; and a new one is made of few large blocks.
/// <code>
///   vfree ──▶ kept (busy, marked; frames and mappings stay) ──▶ vmalloc of the same size
///                │ too many, a purge, memory or addresses run out, Trim
///                ▼
///             freed as in the kernel
/// </code>
/// </content>
internal sealed partial class VmallocAllocator
{
    private const ulong MostKeptBytes = 128UL << 20;
    private const ulong KeptShareOfRam = 8;

    /// <summary>A request with any other flag wants something that a kept area may not have.</summary>
    private const Gfp AnyPagesDo = Gfp.Kernel | Gfp.Zero | Gfp.NoWarn | Gfp.HighMem | Gfp.NoFail;

    /// <summary>Areas with any other flag are somebody's special case.</summary>
    private const VmFlags Keepable = VmFlags.Alloc | VmFlags.AllowHugeVmap;

    /// <summary>A larger area is not populated beforehand: its user may want to touch only parts of it.</summary>
    private const ulong LargestPopulated = (32UL << 20) >> Pfn.PageShift;

    private readonly KeptAreas? _kept;
    private long _reused;

    /// <summary>Freed areas that are kept, and their pages.</summary>
    public (int Areas, ulong Pages) Kept => _kept == null ? (0, 0) : (_kept.Count, _kept.Pages);

    /// <summary>Requests that were served by a kept area.</summary>
    public long Reused => Volatile.Read(ref _reused);

    /// <summary>Gives kept areas back, the oldest first.</summary>
    /// <param name="most">At most so many.</param>
    /// <returns>Frames freed.</returns>
    public unsafe long DropKept(int most = int.MaxValue)
    {
        long frames = 0;
        for (; most > 0 && _kept != null && _kept.TakeOldest() is var kept && kept != 0; most--)
        {
            ulong start = ((VmapArea*)kept)->Start;
            frames += ((VmapArea*)kept)->Vm->PageCount;
            VmapArea* area = Vmap.NodeOf(start).TakeBusy(start, VmFlags.None, VmFlags.None, VmFlags.Kept);
            Bug.On(area == null, "a kept area is gone");
            try
            {
                Release(area);
            }
            catch (KernelBugException)
            {
                // Somebody freed one of its frames meanwhile. It is in the log, and whoever is here did not do it.
            }
        }

        return frames;
    }

    /// <summary>An area of the size asked for that was freed and kept; null if there is none that will do.</summary>
    private unsafe void* TakeKept(in VmallocRequest request)
    {
        bool special = request.Range != null || request.Prot != PageProt.Kernel || (request.Gfp & ~AnyPagesDo) != 0
            || (request.Flags & ~VmFlags.AllowHugeVmap) != 0 || (request.Node >= 0 && _pages.Nodes.Count > 1);
        if (special)
            return null;

        ulong pages = ((ulong)request.Size + PageSize - 1) >> Pfn.PageShift;
        var area = (VmapArea*)_kept!.Take(pages, request.Align);
        if (area == null)
            return null;

        VmStruct* vm = area->Vm;
        vm->Caller = request.Caller;
        vm->RequestedSize = request.Size;
        void* pointer = PointerOf(vm->Address);
        if ((request.Gfp & Gfp.Zero) != 0)
            NativeMemory.Clear(pointer, (nuint)(pages << Pfn.PageShift));
        Interlocked.And(ref *(long*)&vm->Flags, ~(long)VmFlags.Kept);
        Interlocked.Increment(ref _reused);
        return pointer;
    }

    /// <summary>Keeps an area that its owner frees.</summary>
    /// <returns>False: it is none of those that can be kept, or none at all. Nothing has changed.</returns>
    private unsafe bool TryKeep(ulong va)
    {
        VmapNode node = Vmap.NodeOf(va);
        VmapArea* area = node.TakeBusy(va, ~Keepable, VmFlags.Kept, VmFlags.Alloc);
        if (area == null)
            return false;

        ulong pages = MappedSize(area->Vm) >> Pfn.PageShift;
        if (pages > _kept!.MostPages || !OwnsAllFrames(area->Vm, pages))
        {
            Interlocked.And(ref *(long*)&area->Vm->Flags, ~(long)VmFlags.Kept);
            return false;
        }

        _kept.Put((nint)area, va, pages);
        while (_kept.IsTooFull)
            DropKept(most: 1);
        return true;
    }

    /// <summary>
    /// Somebody else may hold a reference to a frame, or have freed it behind our back: it must not be used again.
    /// </summary>
    private static unsafe bool OwnsAllFrames(VmStruct* vm, ulong pages)
    {
        if (vm->PageCount != pages)
            return false;

        for (uint i = 0; i < vm->PageCount; i++)
        {
            Page* page = vm->Pages[i];
            if (page->RefCount != 1 || page->AllocatedOrderPlusOne != 1)
                return false;
        }

        return true;
    }

    /// <summary>
    /// Fills the page array from the largest blocks that are free anyway (as vm_area_alloc_pages does from 6.19 on):
    /// each is one mapping of the host. Single frames do for the rest.
    /// </summary>
    private unsafe void TakeLargeBlocks(VmStruct* vm, uint count, Gfp gfp, int node)
    {
        Gfp trying = (gfp | Gfp.NoWarn | Gfp.NoRetry) & ~(Gfp.DirectReclaim | Gfp.NoFail | Gfp.Comp);
        for (int order = PageOrder.Max; order > 0 && vm->PageCount < count;)
        {
            order = Math.Min(order, BitOperations.Log2(count - vm->PageCount));
            Page* page = order > 0 ? _pages.Alloc(trying, order, node) : null;
            if (page == null)
            {
                order--;
                continue;
            }

            _pages.Split(_slabs.Map.PfnOf(page), order);
            for (int i = 0; i < 1 << order; i++)
                vm->Pages[vm->PageCount++] = page + i;
        }
    }
}
