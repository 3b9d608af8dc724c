using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>Looking things up, and what is refused or complained about.</content>
internal sealed partial class VmallocAllocator
{
    /// <summary>Why a pointer is none of kmalloc's, for its reports; null if vmalloc knows nothing of it,
    /// either.</summary>
    public unsafe string? Describe(nint pointer) =>
        Contains((void*)pointer)
            ? string.Create(
                CultureInfo.InvariantCulture, $"a vmalloc address (0x{AddressOf((void*)pointer):x16}): use vfree")
            : null;

    /// <summary>The frame behind a pointer into an area (vmalloc_to_page); none where nothing is mapped.</summary>
    public unsafe Pfn PfnAt(void* pointer) => Contains(pointer) ? Tables.Translate(AddressOf(pointer)) : Pfn.None;

    /// <summary>The area of vmalloc that starts at a pointer; it may be used as long as its owner does not free
    /// it.</summary>
    private unsafe VmStruct* AllocatedAt(void* pointer, string operation)
    {
        ulong va = AreaStart(pointer, operation);
        VmapArea* area = Vmap.Find(va);
        if (area == null || area->Start != va || area->Vm == null
            || (area->Vm->Flags & (VmFlags.Alloc | NotFreeable | VmFlags.Deferred)) != VmFlags.Alloc)
        {
            ThrowNoArea(pointer, operation);
        }

        return area->Vm;
    }

    private unsafe ulong AreaStart(void* pointer, string operation)
    {
        if (((ulong)pointer & (PageSize - 1)) != 0)
        {
            _pages.ThrowBug(string.Create(
                CultureInfo.InvariantCulture,
                $"WARNING: Trying to {operation}() bad address (0x{Shown(pointer):x16}): not page aligned"));
        }

        if (!Contains(pointer))
            ThrowNoArea(pointer, operation);
        return AddressOf(pointer);
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void ThrowNoArea(void* pointer, string operation) => _pages.ThrowBug(string.Create(
        CultureInfo.InvariantCulture,
        $"WARNING: Trying to {operation}() nonexistent vm area (0x{Shown(pointer):x16}): {WhyNoArea(pointer)}"));

    private unsafe string WhyNoArea(void* pointer)
    {
        if (_slabs.Map.Contains(pointer))
            return "an address of the direct map: use kfree or free_pages";
        if (!Contains(pointer))
            return "not memory of this machine";

        ulong va = AddressOf(pointer);
        VmapArea* area = Vmap.Find(va);
        if (area == null)
            return "it is free already, or was never allocated";
        if (area->Start != va)
            return string.Create(CultureInfo.InvariantCulture, $"it lies inside the area 0x{area->Start:x16}");
        return area->Vm != null && (area->Vm->Flags & VmFlags.Deferred) != 0
            ? "it is being freed already"
            : "the area is of another kind";
    }

    private unsafe ulong Shown(void* pointer) =>
        Contains(pointer) ? AddressOf(pointer)
        : _slabs.Map.Contains(pointer) ? _slabs.KernelAddress(pointer)
        : (ulong)pointer;

    private void Warn(in VmallocRequest request, string what)
    {
        if ((request.Gfp & Gfp.NoWarn) != 0)
            return;

        _slabs.Log.Write(string.Create(
            CultureInfo.InvariantCulture,
            $"vmalloc error: size {request.Size}, {what}, "
            + $"mode:0x{(uint)request.Gfp:x}({request.Gfp.ToKernelString()})"));
    }
}
