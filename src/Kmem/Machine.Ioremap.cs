namespace Kmem;

/// <content>ioremap: the memory of devices.</content>
public sealed partial class Machine
{
    private readonly Lock _physicalGate = new();
    private BootMemoryMap? _bootMap;
    private PhysicalMap? _physical;

    /// <summary>What answers at physical addresses.</summary>
    internal PhysicalMap Physical
    {
        get
        {
            lock (_physicalGate)
                return _physical ??= CreatePhysical();
        }
    }

    /// <summary>
    /// Puts a device's memory on the machine's bus, zero at first. <see cref="Ioremap"/> then reaches it; what is
    /// written there the device sees at <see cref="DeviceMemory.Pointer"/>, and the other way round.
    /// </summary>
    /// <param name="start">Its first physical address; a multiple of 4096, below 2^46.</param>
    /// <param name="bytes">Its size; a multiple of 4096. Costs host memory as it is touched.</param>
    /// <param name="name">Its name, for reports.</param>
    /// <returns>The device's memory; the machine disposes it at its own end.</returns>
    /// <exception cref="ArgumentException">
    /// Not whole pages, beyond the physical addresses, or RAM or another device is there.
    /// </exception>
    /// <exception cref="PlatformException">The host has no address space left.</exception>
    public DeviceMemory AddDevice(PhysAddr start, ulong bytes, string name)
    {
        ArgumentException.ThrowIfNullOrEmpty(name);
        if (((start.Value | bytes) & (Pfn.PageSize - 1)) != 0 || bytes == 0)
            throw new ArgumentException($"{start} + 0x{bytes:x} are not whole pages", nameof(start));
        if (bytes > 1UL << PhysicalMap.AddressBits || start.Value > (1UL << PhysicalMap.AddressBits) - bytes)
            throw new ArgumentException($"{start} + 0x{bytes:x} ends beyond 2^46", nameof(start));

        ObjectDisposedException.ThrowIf(_disposed, this);
        return Physical.Add(start.Value, bytes, name);
    }

    /// <summary>
    /// Maps physical addresses that are no RAM (ioremap, arch/x86/mm/ioremap.c, Linux 6.18), uncached unless an MTRR
    /// says otherwise (UC−). The area is as aligned as it is large, up to 1 GiB, has a guard page, and uses mappings of
    /// 2 MiB and 1 GiB where addresses allow.
    /// </summary>
    /// <param name="address">First byte, of any alignment: the pointer has the same offset within its page.</param>
    /// <param name="size">Bytes.</param>
    /// <returns>
    /// A pointer; behind it is the device that <see cref="AddDevice"/> put there, or reserved RAM. Where nothing is,
    /// all ones are read and writing ends the process. Null, and a line in <see cref="Dmesg"/>, if the size is 0 or
    /// wraps, ends beyond 2^46, overlaps RAM of the page allocator, or is mapped already in a way that forbids this
    /// one; or if addresses, tables or mappings of the host ran out.
    /// </returns>
    /// <remarks>
    /// How a mapping is cached stands in the page tables only: the host caches all of them as it does other memory, so
    /// no access is slow, and none passes another.
    /// </remarks>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* Ioremap(PhysAddr address, nuint size) =>
        Vmallocs.IoRemap(address.Value, size, CacheMode.UncachedMinus, VmCaller.Ioremap);

    /// <summary>As <see cref="Ioremap"/>, uncached whatever the MTRRs say (ioremap_uc).</summary>
    /// <param name="address">First byte.</param>
    /// <param name="size">Bytes.</param>
    /// <returns>A pointer, or null.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* IoremapUc(PhysAddr address, nuint size) =>
        Vmallocs.IoRemap(address.Value, size, CacheMode.Uncached, VmCaller.IoremapUc);

    /// <summary>As <see cref="Ioremap"/>, write-combining: frame buffers (ioremap_wc).</summary>
    /// <param name="address">First byte.</param>
    /// <param name="size">Bytes.</param>
    /// <returns>A pointer, or null.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* IoremapWc(PhysAddr address, nuint size) =>
        Vmallocs.IoRemap(address.Value, size, CacheMode.WriteCombining, VmCaller.IoremapWc);

    /// <summary>As <see cref="Ioremap"/>, write-through (ioremap_wt).</summary>
    /// <param name="address">First byte.</param>
    /// <param name="size">Bytes.</param>
    /// <returns>A pointer, or null.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* IoremapWt(PhysAddr address, nuint size) =>
        Vmallocs.IoRemap(address.Value, size, CacheMode.WriteThrough, VmCaller.IoremapWt);

    /// <summary>As <see cref="Ioremap"/>, cached as RAM is: for memory on a device (ioremap_cache).</summary>
    /// <param name="address">First byte.</param>
    /// <param name="size">Bytes.</param>
    /// <returns>A pointer, or null.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* IoremapCache(PhysAddr address, nuint size) =>
        Vmallocs.IoRemap(address.Value, size, CacheMode.WriteBack, VmCaller.IoremapCache);

    /// <summary>
    /// Ends an ioremap (iounmap): its addresses fault at once. Null and addresses of RAM are ignored.
    /// </summary>
    /// <param name="pointer">What it returned, or any address in the same page.</param>
    /// <exception cref="KernelBugException">
    /// No ioremap begins in that page, or this context may not sleep. Nothing was changed.
    /// </exception>
    public unsafe void Iounmap(void* pointer)
    {
        CheckContext(Gfp.Kernel);
        if (VmallocIfUsed is { } vmalloc)
            vmalloc.IoUnmap(pointer);
        else if (pointer != null && !_map.Contains(pointer))
            ThrowNoVmalloc(pointer, "iounmap");
    }

    /// <summary>
    /// A cached mapping of physical addresses of any kind (memremap with MEMREMAP_WB, kernel/iomem.c, Linux 6.18): of
    /// RAM the direct map's own address, of anything else as <see cref="IoremapCache"/>.
    /// </summary>
    /// <param name="address">First byte.</param>
    /// <param name="size">Bytes.</param>
    /// <returns>A pointer; null also for a range that is RAM only in part.</returns>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe void* Memremap(PhysAddr address, nuint size)
    {
        if (size == 0 || address.Value + size < address.Value)
            return null;

        ulong pfn = address.Value >> Pfn.PageShift;
        ulong pages = ((address.Value + size - 1) >> Pfn.PageShift) - pfn + 1;
        (bool any, bool all) = Physical.RamIn(pfn, pages);
        if (all)
            return _map.RamBase + address.Value;
        if (any)
        {
            Dmesg.Write($"WARNING: memremap attempted on mixed range {address} size: 0x{(ulong)size:x}");
            return null;
        }

        return Vmallocs.IoRemap(address.Value, size, CacheMode.WriteBack, VmCaller.Memremap);
    }

    /// <summary>Ends a <see cref="Memremap"/> (memunmap); that of RAM needs no end.</summary>
    /// <param name="pointer">What it returned, or null.</param>
    /// <exception cref="KernelBugException">No such mapping begins in that page.</exception>
    public unsafe void Memunmap(void* pointer) => Iounmap(pointer);

    private PhysicalMap CreatePhysical()
    {
        if (_bootMap is { } map)
            return new PhysicalMap([.. map.FreePages()], [.. map.PresentPages()]);

        // A state that came in from elsewhere tells pageblocks, not ranges.
        var present = new List<BootPages>();
        for (ulong pfn = 0; pfn < _map.EndPfn; pfn += PageOrder.PageblockPages)
        {
            if (_blocks.IsPresent(pfn))
                present.Add(new BootPages(pfn, Math.Min(_map.EndPfn, pfn + PageOrder.PageblockPages), 0));
        }

        return new PhysicalMap(present, present);
    }
}
