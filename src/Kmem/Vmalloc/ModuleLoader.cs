using System.Buffers.Binary;
using System.Globalization;

namespace Kmem;

/// <summary>
/// Puts modules into memory (kernel/module/main.c, Linux 6.18): sections of a kind lie together, text in the ROX cache
/// of <see cref="Execmem"/>, constants and variables in areas of their own.
/// <code>
///   Load:  room ─▶ contents ─▶ relocations ─▶ rights           text r-x    constants r--    variables rw-
/// </code>
/// </summary>
/// <remarks>Thread-safe.</remarks>
internal sealed class ModuleLoader(Execmem execmem, VmallocAllocator vmalloc, KernelLog log)
{
    private readonly Lock _gate = new();
    private readonly List<KernelModule> _loaded = [];

    public Execmem Execmem => execmem;

    /// <summary>The loaded modules, newest first as in /proc/modules.</summary>
    public IReadOnlyList<KernelModule> Loaded
    {
        get
        {
            SimPoint.Gate(_gate);
            lock (_gate)
                return [.. _loaded];
        }
    }

    /// <summary>Loads an image.</summary>
    /// <returns>The module; null if there is no memory.</returns>
    /// <exception cref="ModuleFormatException">A rule is broken; nothing is left behind.</exception>
    public KernelModule? Load(ModuleImage image)
    {
        vmalloc.CheckMaySleep();
        SimPoint.Gate(_gate);
        lock (_gate)
        {
            ModuleImage.Require(
                _loaded.TrueForAll(other => other.Name != image.Name),
                "KMOD-16",
                $"a module {image.Name} is loaded already");
            var module = new KernelModule(this, image);
            bool done = false;
            try
            {
                done = Place(module, image);
                if (done)
                    _loaded.Insert(0, module);
            }
            finally
            {
                if (!done)
                    FreeParts(module);
            }

            if (!done)
                log.Write($"module {image.Name}: no memory");
            return done ? module : null;
        }
    }

    /// <summary>Unloads a module.</summary>
    /// <returns>False if it is unloaded already.</returns>
    public bool Unload(KernelModule module)
    {
        vmalloc.CheckMaySleep();
        SimPoint.Gate(_gate);
        lock (_gate)
        {
            if (!_loaded.Remove(module))
                return false;

            FreeParts(module);
            return true;
        }
    }

    private unsafe bool Place(KernelModule module, ModuleImage image)
    {
        foreach (KernelModule.Part part in module.Parts)
        {
            if (part.Bytes == 0)
                continue;
            part.Base = (nint)execmem.Alloc(part.Type, (nuint)part.Bytes);
            if (part.Base == 0)
                return false;
            if (part.IsText && !execmem.MakeWritable((void*)part.Base, (nuint)part.Bytes))
                return false;

            // Pads and the space between sections: traps in text, zeros elsewhere.
            new Span<byte>((void*)part.Base, part.Bytes).Fill(part.IsText ? (byte)0xcc : (byte)0);
        }

        for (int i = 0; i < image.Sections.Count; i++)
        {
            ModuleSection section = image.Sections[i];
            var to = new Span<byte>(module.AddressOf(i), section.Size);
            section.Content.Span.CopyTo(to);
            to[section.Content.Length..].Clear();
        }

        for (int i = 0; i < image.Relocations.Count; i++)
            Relocate(module, image.Relocations[i], i);
        return SetRights(module);
    }

    private static unsafe void Relocate(KernelModule module, ModuleRelocation relocation, int i)
    {
        byte* place = (byte*)module.AddressOf(relocation.Section) + relocation.Offset;
        long value = (long)module.AddressOf(relocation.Target) + relocation.Addend;
        if (relocation.Type == ModuleRelocationType.Absolute64)
        {
            BinaryPrimitives.WriteInt64LittleEndian(new Span<byte>(place, sizeof(long)), value);
            return;
        }

        value -= (long)place;
        ModuleImage.Require(
            value == (int)value,
            "KMOD-15",
            string.Create(
                CultureInfo.InvariantCulture,
                $"relocation {i}: overflow in relocation type {(int)relocation.Type} val {value:x}"));
        BinaryPrimitives.WriteInt32LittleEndian(new Span<byte>(place, sizeof(int)), (int)value);
    }

    private unsafe bool SetRights(KernelModule module)
    {
        foreach (KernelModule.Part part in module.Parts)
        {
            if (part.Base == 0)
                continue;
            ulong pages = ((ulong)part.Bytes + Pfn.PageSize - 1) >> Pfn.PageShift;
            bool done = part.Kind switch
            {
                ModuleSectionKind.Text => execmem.RestoreRox((void*)part.Base, (nuint)part.Bytes),
                ModuleSectionKind.ReadOnlyData => vmalloc.SetRights(
                    (void*)part.Base, pages, PageProt.None, PageProt.Write, "set_memory_ro"),
                _ => true,
            };
            if (!done)
                return false;
        }

        return true;
    }

    private unsafe void FreeParts(KernelModule module)
    {
        foreach (KernelModule.Part part in module.Parts)
        {
            nint at = part.Base;
            part.Base = 0;
            execmem.Free((void*)at);
        }
    }
}

/// <summary>A module in memory; see <see cref="Machine.LoadModule(ReadOnlySpan{byte})"/>.</summary>
/// <remarks>Thread-safe. No pointer into it may be used after <see cref="Dispose"/>.</remarks>
public sealed class KernelModule : IDisposable
{
    private readonly ModuleLoader _loader;
    private readonly ModuleImage _image;
    private readonly (Part Part, int Offset)[] _places;
    private readonly Part[] _parts =
    [
        new(ModuleSectionKind.Text, ExecmemType.ModuleText),
        new(ModuleSectionKind.ReadOnlyData, ExecmemType.ModuleData),
        new(ModuleSectionKind.Data, ExecmemType.ModuleData),
    ];

    internal KernelModule(ModuleLoader loader, ModuleImage image)
    {
        _loader = loader;
        _image = image;
        _places = new (Part, int)[image.Sections.Count];

        // Variables without content come behind those with: the part ends in zeros.
        foreach (ModuleSectionKind kind in Enum.GetValues<ModuleSectionKind>())
        {
            Part part = _parts[Math.Min((int)kind, _parts.Length - 1)];
            for (int i = 0; i < image.Sections.Count; i++)
            {
                if (image.Sections[i].Kind != kind)
                    continue;
                int align = image.Sections[i].Alignment;
                int offset = (part.Bytes + align - 1) & ~(align - 1);
                _places[i] = (part, offset);
                part.Bytes = offset + image.Sections[i].Size;
            }
        }
    }

    /// <summary>Its name.</summary>
    public string Name => _image.Name;

    /// <summary>Bytes of all its sections, with what lies between them; as the second column of lsmod.</summary>
    public int Size => _parts.Sum(part => part.Bytes);

    internal IReadOnlyList<Part> Parts => _parts;

    /// <summary>The address of a section's first byte.</summary>
    /// <param name="section">Its index in the image.</param>
    /// <returns>A pointer; null if the section and its neighbours are empty, or after <see cref="Dispose"/>.</returns>
    public unsafe void* AddressOf(int section)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(section);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(section, _places.Length);
        (Part part, int offset) = _places[section];
        return part.Base == 0 ? null : (byte*)part.Base + offset;
    }

    /// <summary>The address of a name.</summary>
    /// <param name="symbol">One of the image's symbols.</param>
    /// <returns>A pointer; null if the image has no such symbol.</returns>
    public unsafe void* AddressOf(string symbol)
    {
        foreach (ModuleSymbol known in _image.Symbols)
        {
            if (known.Name == symbol)
                return (byte*)AddressOf(known.Section) + known.Offset;
        }

        return null;
    }

    /// <summary>Unloads the module; its addresses fault. Twice is fine.</summary>
    /// <exception cref="KernelBugException">This context may not sleep.</exception>
    public void Dispose() => _loader.Unload(this);

    /// <summary>Sections that are in memory side by side.</summary>
    internal sealed class Part(ModuleSectionKind kind, ExecmemType type)
    {
        public ModuleSectionKind Kind => kind;

        public ExecmemType Type => type;

        public bool IsText => kind == ModuleSectionKind.Text;

        public int Bytes { get; set; }

        public nint Base { get; set; }
    }
}
