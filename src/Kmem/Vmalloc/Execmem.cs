using System.Globalization;

namespace Kmem;

/// <summary>What memory in the address range of modules is for (enum execmem_type, include/linux/execmem.h).</summary>
internal enum ExecmemType
{
    ModuleText = 0,
    Kprobes = 1,
    Ftrace = 2,
    Bpf = 3,
    ModuleData = 4,
}

/// <summary>
/// Memory near the kernel's text (mm/execmem.c, arch/x86/mm/init.c, Linux 6.18).
/// <code>
///   module text, kprobes, ftrace    the ROX cache: 2 MiB at a time, read-only and executable from the start
///
///       |text of a |trap|trap|text of b     |trap ··················· trap|   one 2 MiB mapping, until a part of
///                   └─ free: filled with int3 ─┘                              it is made writable to be filled
///
///   BPF, module data                areas of their own, PAGE_KERNEL
/// </code>
/// All areas are VM_FLUSH_RESET_PERMS: freeing restores what the direct map allows. When 2 MiB are not to be had the
/// cache takes an area of the size asked for. As in the kernel it keeps such an area when nothing in it is in use any
/// more, until <see cref="DropUnused"/>.
/// </summary>
/// <remarks>
/// Thread-safe; everything sleeps. The kernel's trees of free and busy ranges are sorted lists here, searched from the
/// lowest address in both.
/// </remarks>
internal sealed class Execmem
{
    private const ulong CacheBlock = 2UL << 20;
    private const ulong PageSize = Pfn.PageSize;
    private const byte TrapByte = 0xcc;     // int3

    private readonly VmallocAllocator _vmalloc;
    private readonly KernelLog _log;
    private readonly bool _shadow;
    private readonly Lock _gate = new();
    private readonly SortedDictionary<ulong, ulong> _free = [];     // start to end of ranges in the ROX cache
    private readonly Dictionary<ulong, ulong> _busy = [];           // the same of those handed out
    private readonly List<ulong> _pendingFree = [];                 // busy ranges that could not be made free

    public Execmem(VmallocAllocator vmalloc, KernelLog log, bool shadow)
    {
        _vmalloc = vmalloc;
        _log = log;
        _shadow = shadow;
        vmalloc.OpenModuleSpace(shadow);
    }

    /// <summary>Bytes of the ROX cache that nobody has.</summary>
    public ulong CachedFree
    {
        get
        {
            SimPoint.Gate(_gate);
            lock (_gate)
                return _free.Aggregate(0UL, (sum, range) => sum + (range.Value - range.Key));
        }
    }

    /// <summary>Allocates (execmem_alloc).</summary>
    /// <returns>
    /// The address; null if there is no room or no memory. Memory of the ROX cache can only be read and run, until
    /// <see cref="MakeWritable"/>.
    /// </returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    public unsafe void* Alloc(ExecmemType type, nuint size)
    {
        _vmalloc.CheckMaySleep();
        if (size == 0)
            return null;

        ulong bytes = (size + PageSize - 1) & ~(PageSize - 1);
        void* got = type is ExecmemType.Bpf or ExecmemType.ModuleData
            ? AllocArea(bytes, VmFlags.None)
            : AllocCached(bytes);
        if (got == null)
            _log.Write("execmem: unable to allocate memory");
        return got;
    }

    /// <summary>Frees (execmem_free).</summary>
    /// <exception cref="KernelBugException">Nothing that was allocated here starts there.</exception>
    public unsafe void Free(void* pointer)
    {
        _vmalloc.CheckMaySleep();
        if (pointer == null)
            return;

        ulong va = _vmalloc.ContainsOrModule(pointer) ? _vmalloc.AddressOf(pointer) : 0;
        SimPoint.Gate(_gate);
        lock (_gate)
        {
            if (_busy.ContainsKey(va))
            {
                _pendingFree.Add(va);
                FreePendingLocked();
                return;
            }

            // The first range of a block of the cache starts where its area does, and is no area for that.
            if (_free.ContainsKey(va) || !VmallocAllocator.IsModuleAddress(va))
                _vmalloc.ThrowNoExecmem(pointer);
        }

        FreeArea(pointer);
    }

    /// <summary>
    /// Gives back the areas of the ROX cache of which nothing is in use, whatever their size; the kernel itself gives
    /// back those of whole 2 MiB only. Does nothing where sleeping is forbidden.
    /// </summary>
    public unsafe void DropUnused()
    {
        if (!_vmalloc.MaySleep)
            return;

        SimPoint.Gate(_gate);
        lock (_gate)
        {
            FreePendingLocked();
            foreach ((ulong start, ulong end) in _free.ToArray())
            {
                if (!_vmalloc.IsWholeArea(start, end))
                    continue;
                _free.Remove(start);
                FreeArea(_vmalloc.PointerOf(start));
            }
        }
    }

    /// <summary>
    /// Makes a range of the ROX cache writable and not executable, to be filled (execmem_make_temp_rw).
    /// </summary>
    public unsafe bool MakeWritable(void* pointer, nuint size) => _vmalloc.SetRights(
        pointer, PagesOf(size), PageProt.Write, PageProt.Execute, "execmem_make_temp_rw");

    /// <summary>Makes it read-only and executable again (execmem_restore_rox).</summary>
    public unsafe bool RestoreRox(void* pointer, nuint size) => _vmalloc.SetRights(
        pointer, PagesOf(size), PageProt.Execute, PageProt.Write, "execmem_restore_rox");

    private static ulong PagesOf(nuint size) => ((ulong)size + PageSize - 1) >> Pfn.PageShift;

    private unsafe void FreeArea(void* pointer) => _vmalloc.FreeOwned(pointer, "execmem_free");

    private unsafe void* AllocArea(ulong bytes, VmFlags flags)
    {
        void* area = _vmalloc.Alloc(new VmallocRequest((nuint)bytes, Gfp.Kernel | Gfp.NoWarn, VmCaller.ExecmemAlloc)
        {
            Flags = VmFlags.FlushResetPerms | VmFlags.Owned | flags | (_shadow ? VmFlags.DeferKmemleak : VmFlags.None),
            Align = _shadow ? PageSize << 3 : PageSize,     // the shadow of the area begins at a page
            Range = VmallocAllocator.ModuleRange,
        });
        if (area == null || !_shadow || _vmalloc.AllocShadow(area))
            return area;

        FreeArea(area);
        return null;
    }

    private unsafe void* AllocCached(ulong bytes)
    {
        SimPoint.Gate(_gate);
        lock (_gate)
        {
            FreePendingLocked();
            ulong start = CarveLocked(bytes);
            if (start == 0 && PopulateLocked(bytes))
                start = CarveLocked(bytes);
            return start == 0 ? null : _vmalloc.PointerOf(start);
        }
    }

    private ulong CarveLocked(ulong bytes)
    {
        foreach ((ulong start, ulong end) in _free)
        {
            if (end - start < bytes)
                continue;

            _free.Remove(start);
            if (start + bytes < end)
                _free.Add(start + bytes, end);
            _busy.Add(start, start + bytes);
            return start;
        }

        return 0;
    }

    /// <summary>execmem_cache_populate.</summary>
    private unsafe bool PopulateLocked(ulong bytes)
    {
        ulong size = (bytes + CacheBlock - 1) & ~(CacheBlock - 1);
        void* area = AllocArea(size, VmFlags.AllowHugeVmap);
        if (area == null)
        {
            size = bytes;
            area = AllocArea(size, VmFlags.None);
        }

        if (area == null)
            return false;

        new Span<byte>(area, checked((int)size)).Fill(TrapByte);
        if (!RestoreRox(area, (nuint)size))
        {
            FreeArea(area);
            return false;
        }

        ulong va = _vmalloc.AddressOf(area);
        _free.Add(va, va + size);
        return true;
    }

    /// <summary>
    /// Makes busy ranges free: filled with traps, read-only again, joined with their neighbours. One whose rights
    /// cannot be changed now, because tables or mappings of the host ran out, waits for the next call.
    /// </summary>
    private unsafe void FreePendingLocked()
    {
        for (int i = _pendingFree.Count - 1; i >= 0; i--)
        {
            ulong start = _pendingFree[i];
            ulong end = _busy[start];
            void* pointer = _vmalloc.PointerOf(start);
            var size = (nuint)(end - start);
            if (!MakeWritable(pointer, size))
                continue;
            new Span<byte>(pointer, checked((int)size)).Fill(TrapByte);
            if (!RestoreRox(pointer, size))
                continue;

            _pendingFree.RemoveAt(i);
            _busy.Remove(start);
            MergeLocked(start, end);
        }
    }

    private unsafe void MergeLocked(ulong start, ulong end)
    {
        foreach ((ulong otherStart, ulong otherEnd) in _free.Where(
            other => other.Value == start || other.Key == end).ToArray())
        {
            _free.Remove(otherStart);
            start = Math.Min(start, otherStart);
            end = Math.Max(end, otherEnd);
        }

        // execmem_cache_clean: areas of 2 MiB mappings go back. The kernel does not look whether such a range is all of
        // its area, of which another part may be in use when the text is longer than 2 MiB.
        if (((start | end) & (CacheBlock - 1)) == 0 && _vmalloc.IsWholeArea(start, end))
            FreeArea(_vmalloc.PointerOf(start));
        else
            _free.Add(start, end);
    }

    /// <summary>For reports.</summary>
    /// <returns>How much of the cache is in use.</returns>
    public override string ToString()
    {
        SimPoint.Gate(_gate);
        lock (_gate)
        {
            return string.Create(
                CultureInfo.InvariantCulture, $"execmem: {_busy.Count} ranges in use, {_free.Count} free");
        }
    }
}
