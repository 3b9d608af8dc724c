using System.Diagnostics.CodeAnalysis;
using System.Globalization;

namespace Kmem;

/// <content>What vm_map_ram needs: addresses without a vm_struct, and frames shown there.</content>
internal sealed partial class VmallocAllocator
{
    /// <summary>The machine's CPUs.</summary>
    public CpuSet Cpus => _cpus;

    /// <summary>vm_map_ram.</summary>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    public unsafe void* MapRam(ReadOnlySpan<Pfn> frames)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        return frames.IsEmpty || (ulong)frames.Length > _totalRam ? null : Blocks.Map(frames);
    }

    /// <summary>vm_unmap_ram.</summary>
    /// <exception cref="KernelBugException">
    /// No mapping of so many pages starts there, or this context may not sleep. Nothing was changed.
    /// </exception>
    public unsafe void UnmapRam(void* pointer, int pages)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        FreeDeferred();
        ulong va = AreaStart(pointer, "vm_unmap_ram");
        if (pages <= 0)
            ThrowBadUnmapRam(va, pages, "that is no number of pages");
        Blocks.Unmap(va, pages);
    }

    /// <summary>Addresses for a mapping of more than 64 pages; 0 if there are none.</summary>
    public unsafe ulong ReserveRam(ulong bytes)
    {
        VmapArea* area = Vmap.Alloc(
            new VmapRequest(bytes, PageSize, Vmap.Start, Vmap.End) { Flags = VmapAreaFlags.Ram }, null, out _);
        return area == null ? 0 : area->Start;
    }

    /// <summary>Addresses for a block; null if there are none.</summary>
    public unsafe VmapArea* ReserveBlock() => Vmap.Alloc(
        new VmapRequest(VmapBlocks.BlockBytes, VmapBlocks.BlockBytes, Vmap.Start, Vmap.End)
        {
            Flags = VmapAreaFlags.Ram | VmapAreaFlags.Block,
        },
        null,
        out _);

    public unsafe VmapBlock* NewBlockState() =>
        (VmapBlock*)_kmalloc.AllocOwn(VmapBlock.SizeInBytes, Gfp.Kernel | Gfp.Zero);

    public unsafe void FreeBlockState(VmapBlock* state, bool afterReaders)
    {
        if (afterReaders)
            _kmalloc.FreeRcu(state);
        else
            _kmalloc.Free(state);
    }

    public unsafe void FreeBlockArea(ulong start)
    {
        VmapArea* area = Vmap.Unlink(start);
        Bug.On(area == null || area->Start != start, "the addresses of a vm_map_ram block are gone");
        Vmap.FreeNoflush(area);
    }

    /// <summary>Ends a mapping of more than 64 pages.</summary>
    public unsafe void FreeRam(ulong va, int pages)
    {
        VmapArea* area = Vmap.NodeOf(va).TakeRam(va, (ulong)pages);
        if (area == null)
            ThrowBadUnmapRam(va, pages, "no such mapping starts there, or it was unmapped already");

        Tables.Unmap(va, (ulong)pages);
        Vmap.FreeNoflush(area);
    }

    public void UnmapTables(ulong va, ulong pages) => Tables.Unmap(va, pages);

    /// <summary>Makes addresses fault now.</summary>
    public void Hide(ulong va, ulong bytes) => Unshow(new VmapRange(va, va + bytes));

    /// <summary>Maps frames at addresses that nobody else has, PAGE_KERNEL.</summary>
    /// <returns>False if tables or mappings ran out; then nothing is mapped.</returns>
    public bool ShowFrames(ulong va, ReadOnlySpan<Pfn> frames, ulong bytes)
    {
        if (Volatile.Read(ref _unmapRefused) != 0 && WindowAt(va).Unmap(va, bytes) != WindowResult.Done)
            return false;

        for (int i = 0; i < frames.Length;)
        {
            int run = 1;
            while (i + run < frames.Length && frames[i + run].Value == frames[i].Value + (ulong)run)
                run++;
            ulong at = va + ((ulong)i << Pfn.PageShift);
            bool mapped = Tables.Map(
                at, frames[i].Value, (ulong)run, PageProt.Kernel, CacheMode.WriteBack, Pfn.PageShift, Gfp.Kernel);
            if (!mapped || !ShowRun(at, frames[i].Value, (ulong)run, PageProt.Kernel))
            {
                Tables.Unmap(va, (ulong)frames.Length);
                Hide(va, bytes);
                return false;
            }

            i += run;
        }

        return true;
    }

    [DoesNotReturn]
    public void ThrowBadUnmapRam(ulong va, int pages, string why) => _pages.ThrowBug(string.Create(
        CultureInfo.InvariantCulture, $"WARNING: Trying to vm_unmap_ram() {pages} pages at 0x{va:x16}: {why}"));
}
