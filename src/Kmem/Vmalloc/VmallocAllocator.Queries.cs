using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Runtime.CompilerServices;

namespace Kmem;

/// <content>Looking things up, and what is refused or complained about.</content>
internal sealed partial class VmallocAllocator
{
    /// <summary>warn_alloc: one complaint in ten seconds.</summary>
    private readonly RateLimit _failures = new("warn_alloc", TimeSpan.FromSeconds(10), 1);

    /// <summary>Why a pointer is none of kmalloc's, for its reports; null if vmalloc knows nothing of it,
    /// either.</summary>
    public unsafe string? Describe(nint pointer) =>
        WindowOf((void*)pointer) != null
            ? string.Create(
                CultureInfo.InvariantCulture, $"a vmalloc address (0x{AddressOf((void*)pointer):x16}): use vfree")
            : null;

    /// <summary>The frame behind a pointer into an area (vmalloc_to_page); none where nothing is mapped.</summary>
    public unsafe Pfn PfnAt(void* pointer) =>
        WindowOf(pointer) != null ? Tables.Translate(AddressOf(pointer)) : Pfn.None;

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

        if (WindowOf(pointer) == null)
            ThrowNoArea(pointer, operation);
        return AddressOf(pointer);
    }

    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    private unsafe void ThrowNoArea(void* pointer, string operation) => _pages.ThrowBug(string.Create(
        CultureInfo.InvariantCulture,
        $"WARNING: Trying to {operation}() nonexistent vm area (0x{Shown(pointer):x16}): "
        + $"{WhyNoArea(pointer, operation)}"));

    private unsafe string WhyNoArea(void* pointer, string operation)
    {
        if (_slabs.Map.Contains(pointer))
            return "an address of the direct map: use kfree or free_pages";
        if (WindowOf(pointer) == null)
            return "not memory of this machine";

        ulong va = AddressOf(pointer);
        VmapArea* area = Vmap.Find(va);
        if (area == null)
            return "it is free already, or was never allocated";
        if (area->Start != va)
            return string.Create(CultureInfo.InvariantCulture, $"it lies inside the area 0x{area->Start:x16}");
        if (area->Vm == null)
            return "it is of vm_map_ram: use vm_unmap_ram";

        VmFlags flags = area->Vm->Flags;
        return (flags & VmFlags.Deferred) != 0 ? "it is being freed already"
            : (flags & VmFlags.Kept) != 0 ? "it is free already"
            : (flags & VmFlags.Owned) != 0 && operation == "vfree" ? "a stack or memory of modules: its owner frees it"
            : (flags & VmFlags.FlushResetPerms) != 0 && operation is "vfree" or "execmem_free"
                ? "its rights have to be reset (VM_FLUSH_RESET_PERMS), which sleeps, and this context may not"
            : (flags & VmFlags.IoRemap) != 0 ? "it is of ioremap: use iounmap"
            : (flags & VmFlags.MapPutPages) != 0 ? "it owns its frames: use vfree"
            : (flags & VmFlags.Map) != 0 ? "it is of vmap: use vunmap"
            : (flags & VmFlags.Alloc) != 0 ? "the area is of another kind: use vfree"
            : "the area is of another kind";
    }

    private unsafe ulong Shown(void* pointer) =>
        WindowOf(pointer) != null ? AddressOf(pointer)
        : _slabs.Map.Contains(pointer) ? _slabs.KernelAddress(pointer)
        : (ulong)pointer;

    private void Warn(in VmallocRequest request, string what)
    {
        if ((request.Gfp & Gfp.NoWarn) != 0 || !_failures.Allows(_slabs.Log))
            return;

        _slabs.Log.Write(string.Create(
            CultureInfo.InvariantCulture,
            $"vmalloc error: size {request.Size}, {what}, "
            + $"mode:0x{(uint)request.Gfp:x}({request.Gfp.ToKernelString()})"));
    }
}
