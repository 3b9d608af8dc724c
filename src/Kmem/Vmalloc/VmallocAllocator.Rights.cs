using System.Globalization;

namespace Kmem;

/// <content>
/// What may be done with an area's memory: set_memory_ro and its kin, and the way back when the area is freed.
/// <code>
///                        set_memory_ro                       vfree with VM_FLUSH_RESET_PERMS
///   PTEs of the area     rw ──▶ r-                           cleared
///   the window           rw ──▶ r-  (mprotect)               faults
///   the direct map       rw ──▶ r-  (PTEs and mprotect)      r- ──▶ absent ──▶ [flush] ──▶ rw, then the frames are free
/// </code>
/// </content>
internal sealed partial class VmallocAllocator
{
    private readonly HashSet<ulong> _stuckFrames = [];      // the host did not give their rights back; never freed

    /// <summary>Neighbouring frames.</summary>
    private readonly record struct FrameRun(ulong Pfn, ulong Count);

    /// <summary>A part of an area whose frames are neighbours and whose rights are equal.</summary>
    private readonly record struct RightsRun(ulong Va, ulong Pfn, ulong Pages, PageProt Prot);

    /// <summary>
    /// Changes what may be done with pages of an area (set_memory_ro, _rw, _x, _nx, _rox; change_page_attr_set_clr,
    /// arch/x86/mm/pat/set_memory.c, Linux 6.18). The right to write goes and comes in the linear map, too.
    /// </summary>
    /// <returns>False if tables or mappings of the host ran out; then nothing has changed.</returns>
    /// <exception cref="KernelBugException">Not pages of one area, or one of them is not mapped.</exception>
    public unsafe bool SetRights(void* pointer, ulong pages, PageProt set, PageProt clear, string operation)
    {
        _pages.CheckContext(Gfp.Kernel, _cpus.Current);
        if (pages == 0)
            return true;

        ulong va = AreaStart(pointer, operation);
        VmStruct* vm = AreaAround(va, pages, operation);
        ulong end = va + (pages << Pfn.PageShift);
        bool isRam = (vm->Flags & VmFlags.IoRemap) == 0;
        List<RightsRun> runs = RunsOf(va, pages, operation);
        if (!Tables.SplitAt(va, Gfp.Kernel) || !Tables.SplitAt(end, Gfp.Kernel))
            return false;

        Interlocked.Or(ref *(long*)&vm->Flags, (long)VmFlags.RightsChanged);
        int done = 0;
        while (done < runs.Count && ChangeRun(runs[done], (runs[done].Prot | set) & ~clear, isRam))
            done++;
        bool all = done == runs.Count;
        for (; !all && done >= 0; done--)
            ChangeRun(runs[done], runs[done].Prot, isRam);
        Tables.Tlb?.FlushRange(va, end);
        return all;
    }

    /// <summary>What the page tables of the direct map say of a frame.</summary>
    public bool DirectAllowsWriting(ulong pfn) =>
        (Tables.Walk(_slabs.Addresses.DirectMap + (pfn << Pfn.PageShift)).Prot & PageProt.Write) != 0;

    /// <summary>The rights of the host for those of a mapping. Memory that may be written is never run.</summary>
    private static WindowProtection HostRights(PageProt prot) =>
        (prot & PageProt.Write) != 0 ? WindowProtection.ReadWrite
        : (prot & PageProt.Execute) != 0 ? WindowProtection.ReadExecute
        : WindowProtection.ReadOnly;

    private unsafe VmStruct* AreaAround(ulong va, ulong pages, string operation)
    {
        VmapArea* area = Vmap.Find(va);
        VmStruct* vm = area == null ? null : area->Vm;
        if (vm != null && ((vm->Flags & VmFlags.Percpu) != 0 || vm->Caller == VmCaller.AllocThreadStack))
        {
            _pages.ThrowBug(string.Create(
                CultureInfo.InvariantCulture,
                $"WARNING: {operation}() at 0x{va:x16}: the rights of stacks and per-CPU memory do not change"));
        }

        if (vm == null || (vm->Flags & (VmFlags.Uninitialized | VmFlags.Deferred | VmFlags.Kept)) != 0
            || pages > (area->Start + MappedSize(vm) - va) >> Pfn.PageShift)
        {
            _pages.ThrowBug(string.Create(
                CultureInfo.InvariantCulture,
                $"WARNING: {operation}() of {pages} pages at 0x{va:x16}: they are not pages of one area"));
        }

        return vm;
    }

    private List<RightsRun> RunsOf(ulong va, ulong pages, string operation)
    {
        var runs = new List<RightsRun>();
        ulong end = va + (pages << Pfn.PageShift);
        while (va < end)
        {
            PageWalk walk = Tables.Walk(va);
            if (!walk.IsMapped)
                _pages.ThrowBug($"WARNING: CPA: called for zero pte. vaddr = {va:x}, {operation}()");

            ulong leafEnd = (va & ~(walk.LeafBytes - 1)) + walk.LeafBytes;
            ulong count = (Math.Min(end, leafEnd) - va) >> Pfn.PageShift;
            RightsRun last = runs.Count > 0 ? runs[^1] : default;
            if (last.Pages != 0 && last.Prot == walk.Prot && last.Pfn + last.Pages == walk.Pfn.Value)
                runs[^1] = last with { Pages = last.Pages + count };
            else
                runs.Add(new RightsRun(va, walk.Pfn.Value, count, walk.Prot));
            va += count << Pfn.PageShift;
        }

        return runs;
    }

    private bool ChangeRun(RightsRun run, PageProt prot, bool isRam)
    {
        bool inWindow = Retried(() => WindowAt(run.Va).Protect(run.Va, run.Pages, HostRights(prot)));
        if (!inWindow)
            return false;

        bool writable = (prot & PageProt.Write) != 0;
        if (isRam && (!writable || DirectMap.ChangedFrames > 0))
        {
            WindowProtection rights = writable ? WindowProtection.ReadWrite : WindowProtection.ReadOnly;
            PageProt direct = writable ? PageProt.Kernel : PageProt.KernelReadOnly;
            if (!Retried(() => DirectMap.Set(run.Pfn, run.Pages, rights))
                || !Tables.ProtectDirect(run.Pfn, run.Pages, direct))
            {
                return false;
            }
        }

        return Tables.Protect(run.Va, run.Pages, prot);
    }

    /// <summary>When mappings are short, those of freed areas are given back first.</summary>
    private bool Retried(Func<WindowResult> change)
    {
        if (change() == WindowResult.Done)
            return true;

        Vmap.UnmapAliases();
        return change() == WindowResult.Done;
    }

    /// <summary>The frames of an area that the linear map shows with fewer rights.</summary>
    private unsafe List<FrameRun> ChangedRights(VmStruct* vm) =>
        (vm->Flags & VmFlags.IoRemap) != 0 ? [] : ChangedRights(vm->Address, MappedSize(vm));

    private List<FrameRun> ChangedRights(ulong va, ulong bytes)
    {
        var changed = new List<FrameRun>();
        if (DirectMap.ChangedFrames == 0)
            return changed;

        for (ulong end = va + bytes; va < end; va += PageSize)
        {
            Pfn pfn = Tables.Translate(va);
            if (!pfn.IsValid || DirectMap.RightsOf(pfn.Value) == WindowProtection.ReadWrite)
                continue;
            if (changed.Count > 0 && changed[^1].Pfn + changed[^1].Count == pfn.Value)
                changed[^1] = changed[^1] with { Count = changed[^1].Count + 1 };
            else
                changed.Add(new FrameRun(pfn.Value, 1));
        }

        return changed;
    }

    /// <summary>
    /// Gives frames all rights back before they are freed (vm_reset_perms): nobody may ever see them with the old
    /// rights through one address and the new ones through the other.
    /// </summary>
    private unsafe void ResetRights(VmStruct* vm, List<FrameRun> changed)
    {
        ulong direct = _slabs.Addresses.DirectMap;
        ulong start = ulong.MaxValue;
        ulong end = 0;
        for (uint i = 0; i < vm->PageCount; i++)
        {
            ulong at = direct + (_slabs.Map.PfnOf(vm->Pages[i]) << Pfn.PageShift);
            start = Math.Min(start, at);
            end = Math.Max(end, at + PageSize);
        }

        if ((vm->Flags & VmFlags.FlushResetPerms) == 0)
            WarnForgotten(vm->Address);

        // Refused, they stay as they are, which also lets nobody write.
        foreach (FrameRun run in changed)
        {
            DirectMap.Set(run.Pfn, run.Count, WindowProtection.None);
            Tables.InvalidateDirect(run.Pfn, run.Count);
        }

        Vmap.UnmapAliases(start, end);
        GiveBack(changed);
    }

    /// <summary>Frames leave an area that stays: they get all rights back.</summary>
    private void ResetRights(ulong va, ulong bytes)
    {
        List<FrameRun> changed = ChangedRights(va, bytes);
        if (changed.Count == 0)
            return;

        WarnForgotten(va);
        GiveBack(changed);
    }

    private void WarnForgotten(ulong va) => _slabs.Log.Write(
        $"WARNING: the area 0x{va:x16} is freed and the rights of its frames are still changed: "
        + "set_memory_rw() is missing, or VM_FLUSH_RESET_PERMS. They are reset");

    private void GiveBack(List<FrameRun> changed)
    {
        foreach (FrameRun run in changed)
        {
            // The tables were split when the rights were taken, so this needs none.
            Tables.RestoreDirect(run.Pfn, run.Count);
            if (!Retried(() => DirectMap.Set(run.Pfn, run.Count, WindowProtection.ReadWrite))
                || !Tables.ProtectDirect(run.Pfn, run.Count, PageProt.Kernel))
            {
                Strand(run);
            }
        }
    }

    private void Strand(FrameRun run)
    {
        _slabs.Log.Write(
            $"WARNING: the host keeps the rights of frames 0x{run.Pfn:x} + {run.Count}; they stay allocated");
        lock (_stuckFrames)
        {
            for (ulong i = 0; i < run.Count; i++)
                _stuckFrames.Add(run.Pfn + i);
        }
    }

    private unsafe void FreePage(Page* page)
    {
        ulong pfn = _slabs.Map.PfnOf(page);
        if (_stuckFrames.Count > 0)
        {
            lock (_stuckFrames)
            {
                if (_stuckFrames.Contains(pfn))
                    return;
            }
        }

        _pages.Free(pfn, 0);
    }

    /// <summary>
    /// What is freed where sleeping is forbidden becomes an entry of a list, so it must be writable: refused before
    /// anything is done.
    /// </summary>
    private unsafe void RefuseUnwritable(void* pointer)
    {
        if (DirectMap.ChangedFrames == 0)
            return;

        Pfn pfn = PfnAt(pointer);
        if (pfn.IsValid && DirectMap.RightsOf(pfn.Value) != WindowProtection.ReadWrite)
        {
            _pages.ThrowBug(
                $"WARNING: Trying to vfree() read-only memory (0x{AddressOf(pointer):x16}) "
                + "where sleeping is forbidden");
        }
    }
}
