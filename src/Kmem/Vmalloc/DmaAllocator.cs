using System.Numerics;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// Memory that devices and the CPU use at the same time (dma_alloc_coherent; kernel/dma/direct.c, kernel/dma/remap.c,
/// Linux 6.18).
/// <code>
///   device without IOMMU, sees caches     one block low enough       pointer into the direct map
///   device without IOMMU, does not        one block low enough       mapped again, uncached:    VM_DMA_COHERENT
///   device with IOMMU                     frames from anywhere       mapped side by side:       VM_DMA_COHERENT
/// </code>
/// </summary>
internal sealed class DmaAllocator(PageAllocator pages, MemMap map, Func<VmallocAllocator> vmalloc)
{
    private const ulong Mask24 = (1UL << 24) - 1;

    /// <summary>Allocates cleared memory.</summary>
    /// <returns>The CPU's pointer; null if there is no memory that the device can reach.</returns>
    public unsafe void* Alloc(DmaDevice device, nuint size, Gfp gfp, out DmaAddress address)
    {
        address = default;
        nuint count = (size + Pfn.PageSize - 1) >> Pfn.PageShift;
        if (size == 0 || count > map.EndPfn)
            return null;

        gfp &= ~(Gfp.Dma | Gfp.Dma32 | Gfp.HighMem | Gfp.Comp);
        bool remap = device.HasIommu || !device.IsCoherent;
        if (remap && !gfp.MayBlock())
            return null;

        DmaBuffer? buffer = device.HasIommu
            ? AllocScattered((int)count, gfp, device.Node)
            : AllocBlock(device, (int)count, gfp);
        if (buffer == null)
            return null;

        foreach (Pfn frame in buffer.Frames)
            NativeMemory.Clear(map.AddressOf(map.PageOf(frame.Value)), Pfn.PageSize);
        void* pointer = remap
            ? vmalloc().MapDma(buffer.Frames, CacheModeOf(device))
            : map.AddressOf(map.PageOf(buffer.Frames[0].Value));
        buffer = buffer with { IsRemapped = remap };
        if (pointer != null && device.Add((nint)pointer, buffer, out address))
            return pointer;

        Release(pointer, buffer);
        return null;
    }

    /// <summary>Frees a buffer (dma_free_coherent).</summary>
    /// <exception cref="KernelBugException">The device has no buffer there.</exception>
    public unsafe void Free(DmaDevice device, void* pointer)
    {
        if (pointer == null)
            return;
        if (device.Find((nint)pointer) is { IsRemapped: true })
            vmalloc().RequireSleep();
        DmaBuffer? buffer = device.Remove((nint)pointer);
        if (buffer == null)
        {
            pages.ThrowBug($"WARNING: trying to free invalid coherent area: 0x{(ulong)pointer:x}");
            return;
        }

        Release(pointer, buffer);
    }

    private static CacheMode CacheModeOf(DmaDevice device) =>
        device.WriteCombine ? CacheMode.WriteCombining
        : device.IsCoherent ? CacheMode.WriteBack
        : CacheMode.UncachedMinus;

    private unsafe void Release(void* pointer, DmaBuffer buffer)
    {
        if (buffer.IsRemapped && pointer != null)
            vmalloc().UnmapDma(pointer);
        if (buffer.Order >= 0)
        {
            pages.Free(buffer.Frames[0].Value, buffer.Order);
            return;
        }

        foreach (Pfn frame in buffer.Frames)
            pages.Free(frame.Value, 0);
    }

    /// <summary>
    /// One block that ends below the mask: from anywhere by luck, else from a zone that is low enough for certain
    /// (dma_direct_alloc_pages).
    /// </summary>
    private unsafe DmaBuffer? AllocBlock(DmaDevice device, int count, Gfp gfp)
    {
        int order = BitOperations.Log2(BitOperations.RoundUpToPowerOf2((uint)count));
        if (order > PageOrder.Max)
            return null;

        Gfp zone = device.CoherentMask <= Mask24 ? Gfp.Dma : device.CoherentMask <= uint.MaxValue ? Gfp.Dma32 : 0;
        while (true)
        {
            Page* page = pages.Alloc(gfp | zone, order, device.Node);
            if (page == null)
                return null;
            ulong pfn = map.PfnOf(page);
            ulong last = ((pfn + (ulong)count) << Pfn.PageShift) - 1;
            if (last <= device.CoherentMask)
            {
                var frames = new Pfn[count];
                for (int i = 0; i < count; i++)
                    frames[i] = new Pfn(pfn + (ulong)i);
                return new DmaBuffer(frames, order, IsRemapped: false);
            }

            pages.Free(pfn, order);
            if (zone == Gfp.Dma)
                return null;
            zone = zone == 0 ? Gfp.Dma32 : Gfp.Dma;
        }
    }

    /// <summary>Frames from the largest blocks that are easy to have (__iommu_dma_alloc_pages).</summary>
    private unsafe DmaBuffer? AllocScattered(int count, Gfp gfp, int node)
    {
        var frames = new Pfn[count];
        int done = 0;
        int order = PageOrder.Max;
        while (done < count)
        {
            order = Math.Min(order, BitOperations.Log2((uint)(count - done)));
            Gfp how = order > 0 ? (gfp | Gfp.NoRetry | Gfp.NoWarn) & ~Gfp.NoFail : gfp;
            Page* page = pages.Alloc(how, order, node);
            if (page == null && order > 0)
            {
                order--;
                continue;
            }

            if (page == null)
            {
                foreach (Pfn frame in frames.AsSpan(0, done))
                    pages.Free(frame.Value, 0);
                return null;
            }

            ulong pfn = map.PfnOf(page);
            if (order > 0)
                pages.Split(pfn, order);
            for (int i = 0; i < 1 << order; i++)
                frames[done++] = new Pfn(pfn + (ulong)i);
        }

        return new DmaBuffer(frames, Order: -1, IsRemapped: true);
    }
}
