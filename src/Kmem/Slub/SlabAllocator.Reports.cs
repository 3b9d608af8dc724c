using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Runtime.CompilerServices;
using System.Text;

namespace Kmem;

/// <content>What is refused or complained about, in the kernel's words.</content>
internal sealed partial class SlabAllocator
{
    private readonly HashSet<string> _warnedOnce = [];

    /// <summary>A free of something that no slab and no large block begins at.</summary>
    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    public unsafe void ThrowNotASlab(void* address, string operation)
    {
        string what;
        if (!Map.Contains(address))
        {
            what = DescribeForeign?.Invoke((nint)address) ?? "not memory of this machine";
        }
        else
        {
            Page* page = Map.PageAt(address);
            Page* head = Page.HeadOf(page);
            what = head->Type switch
            {
                PageType.Buddy => "the page is free",
                PageType.LargeKmalloc => "inside a large kmalloc block, not its start",
                PageType.Slab => "a slab object",
                _ when head->RefCount > 0 => "a page of the page allocator, not of a slab: use free_pages",
                _ => "the page is free or reserved",
            };
        }

        string where = Map.Contains(address)
            ? $"0x{KernelAddress(address):x16}"
            : $"pointer 0x{(ulong)address:x}";
        Pages.ThrowBug($"BUG: {operation}: {where}: Not a kmalloc allocation: {what}");
    }

    /// <summary>A free of an address in a slab at which no allocated object begins.</summary>
    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    public unsafe void ThrowBadFree(KmemCache cache, Page* slab, void* address)
    {
        if (cache.Debug != null)
            cache.ThrowBadFreeDebug(slab, address);

        byte* start = Map.AddressOf(slab);
        long offset = (byte*)address - start;
        long index = offset / cache.SlotSize;
        long within = offset % cache.SlotSize;
        SlabState state = SlabState.Read(slab);
        string what;
        if (index >= state.Objects)
        {
            what = "Invalid object pointer: behind the last object of the slab";
        }
        else if (within != 0)
        {
            string state1 = cache.IsLive(start + (index * cache.SlotSize)) ? "allocated" : "free";
            what = $"Invalid object pointer: {within} bytes into the {state1} object "
                + $"0x{KernelAddress(start + (index * cache.SlotSize)):x16}";
        }
        else
        {
            what = "Object already free";
        }

        Pages.ThrowBug(
            "=============================================================================\n"
            + $"BUG {cache.Name} (Not tainted): {what}\n"
            + "-----------------------------------------------------------------------------\n"
            + $"Slab 0x{KernelPageAddress(slab):x16} objects={state.Objects} used={cache.CountLiveIn(slab)}\n"
            + $"Object 0x{KernelAddress(address):x16} @offset={offset}\n"
            + $"FIX {cache.Name}: Object at 0x{KernelAddress(address):x16} not freed");
    }

    /// <summary>The kernel frees such an object where it belongs, and complains (cache_from_obj).</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public unsafe void WarnWrongCache(KmemCache given, KmemCache owner, void* obj) =>
        Log.Write(
            $"WARNING: cache_from_obj: Wrong slab cache. {given.Name} but object is from {owner.Name} "
            + $"(0x{KernelAddress(obj):x16})\n{owner.Debug?.TracksOf(obj)}");

    /// <summary>
    /// A stale pointer that the allocator itself uses meanwhile: freeing it would take its own arrays away.
    /// </summary>
    [DoesNotReturn]
    [MethodImpl(MethodImplOptions.NoInlining)]
    public unsafe void ThrowPrivate(KmemCache owner, void* obj) =>
        Pages.ThrowBug(
            $"BUG {owner.Name}: 0x{KernelAddress(obj):x16} is memory of the allocator itself: it was freed before, "
            + "or was never allocated");

    /// <summary>Logs the first warning of each kind (WARN_ON_ONCE).</summary>
    public void WarnOnce(string kind, string text)
    {
        lock (_warnedOnce)
        {
            if (!_warnedOnce.Add(kind))
                return;
        }

        Log.Write(text);
    }

    /// <summary>Drops flags that no slab or kmalloc request may carry, with a complaint (kmalloc_fix_flags).</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public Gfp FixFlags(Gfp gfp)
    {
        Gfp bad = gfp & GfpMask.SlabBug;
        Gfp rest = gfp & ~bad;
        Log.Write(
            $"Unexpected gfp: 0x{(uint)bad:x} ({bad.ToKernelString()}). "
            + $"Fixing up to gfp: 0x{(uint)rest:x} ({rest.ToKernelString()}). Fix your code!");
        return rest;
    }

    /// <summary>slab_out_of_memory(): what the cache has on each node. Silent with __GFP_NOWARN.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public void ReportOutOfMemory(KmemCache cache, Gfp gfp, int node)
    {
        if ((gfp & Gfp.NoWarn) != 0)
            return;

        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture, $"SLUB: Unable to allocate memory on node {node}, ")
            .Append(CultureInfo.InvariantCulture, $"gfp=0x{(uint)gfp:x}({gfp.ToKernelString()})\n")
            .Append(CultureInfo.InvariantCulture, $"  cache: {cache.Name}, object size: {cache.ObjectSize}, ")
            .Append(CultureInfo.InvariantCulture, $"buffer size: {cache.SlotSize}, default order: {cache.Geometry.Order}, ")
            .Append(CultureInfo.InvariantCulture, $"min order: {cache.Geometry.MinOrder}\n");
        if (cache.Geometry.MinOrder > PageOrder.ForSize((nuint)cache.ObjectSize))
            text.Append($"  {cache.Name} debugging increased min order, use slab_debug=O to disable.\n");
        for (int i = 0; i < cache.Nodes.Count; i++)
        {
            KmemCacheNode its = cache.Nodes[i];
            text.Append(CultureInfo.InvariantCulture, $"  node {i}: slabs: {its.NrSlabs}, objs: {its.TotalObjects}, ")
                .Append(CultureInfo.InvariantCulture, $"free: {its.CountPartialFree()}\n");
        }

        Log.Write(text.ToString());
    }
}
