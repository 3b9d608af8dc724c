namespace Kmem;

/// <content>Modules, and what may be done with memory of the vmalloc space.</content>
public sealed partial class Machine
{
    private ModuleLoader? _modules;

    /// <summary>The loaded modules, newest first.</summary>
    public IReadOnlyList<KernelModule> Modules => Volatile.Read(ref _modules)?.Loaded ?? [];

    /// <summary>The module loader, made at its first use.</summary>
    internal ModuleLoader ModuleLoader => Volatile.Read(ref _modules) ?? CreateModules();

    /// <summary>Where text of modules comes from; null as long as nobody wanted any.</summary>
    internal Execmem? ExecmemIfUsed => Volatile.Read(ref _modules)?.Execmem;

    /// <summary>
    /// Loads a module (finit_module, kernel/module/main.c, Linux 6.18): its sections get memory in the address range of
    /// modules, its relocations are applied, and then text can only be read and run, constants only be read, variables
    /// not be run. Whatever else is done ends the process.
    /// </summary>
    /// <param name="image">A <see cref="ModuleImage"/>. Nothing in it is run; who wants that calls its symbols.</param>
    /// <returns>The module; dispose it to unload it.</returns>
    /// <exception cref="ModuleFormatException">
    /// The image breaks a rule of its format, or a module of this name is loaded; nothing is left behind.
    /// </exception>
    /// <exception cref="OutOfMemoryException">There is no room or no memory, or the host has no mappings
    /// left.</exception>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public KernelModule LoadModule(ReadOnlySpan<byte> image) => LoadModule(ModuleImage.Parse(image));

    /// <inheritdoc cref="LoadModule(ReadOnlySpan{byte})"/>
    public KernelModule LoadModule(ModuleImage image)
    {
        ArgumentNullException.ThrowIfNull(image);
        image.Check();
        return ModuleLoader.Load(image)
            ?? throw new OutOfMemoryException($"no room for module {image.Name} in the address range of modules");
    }

    /// <summary>
    /// Makes pages of an area read-only (set_memory_ro, arch/x86/mm/pat/set_memory.c, Linux 6.18), through its own
    /// addresses and in the direct map. Give the right back before the area is freed; if not, that is reported and done
    /// for you.
    /// </summary>
    /// <param name="pointer">First page; memory of vmalloc, vmap, ioremap, or of a module.</param>
    /// <param name="pages">Number of pages.</param>
    /// <returns>False if page tables or the host's mappings ran out; then nothing has changed.</returns>
    /// <exception cref="KernelBugException">Not pages of one area, or this context may not sleep.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe bool SetMemoryRo(void* pointer, int pages) =>
        Vmallocs.SetRights(pointer, Count(pages), PageProt.None, PageProt.Write, "set_memory_ro");

    /// <summary>
    /// Makes pages of an area writable again (set_memory_rw); what is writable is not run by the host.
    /// </summary>
    /// <param name="pointer">First page.</param>
    /// <param name="pages">Number of pages.</param>
    /// <returns>As <see cref="SetMemoryRo"/>.</returns>
    /// <exception cref="KernelBugException">As <see cref="SetMemoryRo"/>.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe bool SetMemoryRw(void* pointer, int pages) =>
        Vmallocs.SetRights(pointer, Count(pages), PageProt.Write, PageProt.None, "set_memory_rw");

    /// <summary>
    /// Makes pages of an area executable (set_memory_x). The host runs them once they are read-only, too, and if it
    /// allows that at all.
    /// </summary>
    /// <param name="pointer">First page.</param>
    /// <param name="pages">Number of pages.</param>
    /// <returns>As <see cref="SetMemoryRo"/>.</returns>
    /// <exception cref="KernelBugException">As <see cref="SetMemoryRo"/>.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe bool SetMemoryX(void* pointer, int pages) =>
        Vmallocs.SetRights(pointer, Count(pages), PageProt.Execute, PageProt.None, "set_memory_x");

    /// <summary>Makes pages of an area not executable (set_memory_nx), as they are at first.</summary>
    /// <param name="pointer">First page.</param>
    /// <param name="pages">Number of pages.</param>
    /// <returns>As <see cref="SetMemoryRo"/>.</returns>
    /// <exception cref="KernelBugException">As <see cref="SetMemoryRo"/>.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe bool SetMemoryNx(void* pointer, int pages) =>
        Vmallocs.SetRights(pointer, Count(pages), PageProt.None, PageProt.Execute, "set_memory_nx");

    /// <summary>Makes pages of an area read-only and executable at once (set_memory_rox).</summary>
    /// <param name="pointer">First page.</param>
    /// <param name="pages">Number of pages.</param>
    /// <returns>As <see cref="SetMemoryRo"/>.</returns>
    /// <exception cref="KernelBugException">As <see cref="SetMemoryRo"/>.</exception>
    /// <exception cref="NotSupportedException">The RAM cannot be mapped a second time.</exception>
    public unsafe bool SetMemoryRox(void* pointer, int pages) =>
        Vmallocs.SetRights(pointer, Count(pages), PageProt.Execute, PageProt.Write, "set_memory_rox");

    private static ulong Count(int pages)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(pages);
        return (ulong)pages;
    }

    private ModuleLoader CreateModules()
    {
        VmallocAllocator vmalloc = Vmallocs;
        SimPoint.Gate(_vmallocGate);
        lock (_vmallocGate)
        {
            if (_modules is { } other)
                return other;

            var made = new ModuleLoader(new Execmem(vmalloc, Dmesg, Options.KasanModuleShadow), vmalloc, Dmesg);
            Volatile.Write(ref _modules, made);
            return made;
        }
    }
}
