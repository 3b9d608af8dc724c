namespace Kmem;

/// <summary>/sys/kernel/slab/&lt;cache&gt;/: one cache's directory, a small file for each property.</summary>
/// <remarks>
/// <code>
/// slab_size          64
/// objects            1856 N0=1856              a count, then its parts by node
/// slabs_cpu_partial  256(8) C0=128(4) C1=128(4)
/// alloc_fastpath     5120 C0=5000 C1=120       a statistics file: parts by CPU
/// </code>
/// Which files there are depends on the kernel's configuration: a property is null where its file is missing. Only
/// the geometry is in every kernel. Kernel: <c>slab_attrs</c>, mm/slub.c, Linux 6.18. Not thread safe.
/// </remarks>
public sealed class SlabSysfs
{
    /// <summary>The cache's name: the directory.</summary>
    public required string Name { get; init; }

    /// <summary>Bytes that users asked for; after merging, the largest of them.</summary>
    public uint ObjectSize { get; set; }

    /// <summary>Bytes of a slot, metadata and alignment included.</summary>
    public uint SlabSize { get; set; }

    /// <summary>Alignment in bytes.</summary>
    public uint Align { get; set; }

    /// <summary>Objects in a slab of the preferred order.</summary>
    public uint ObjsPerSlab { get; set; }

    /// <summary>The preferred order.</summary>
    public uint Order { get; set; }

    /// <summary>Slabs that stay on a node's partial list even when empty.</summary>
    public ulong MinPartial { get; set; }

    /// <summary>Objects to keep on a CPU's partial chain.</summary>
    public uint CpuPartial { get; set; }

    /// <summary>Objects in a sheaf; 0 = the cache has no sheaves; null before Linux 6.18.</summary>
    public uint? SheafCapacity { get; set; }

    /// <summary>The constructor as a symbol with offset and length; empty = none.</summary>
    public string? Ctor { get; set; }

    /// <summary>Further users merged into this cache.</summary>
    public uint? Aliases { get; set; }

    /// <summary>Bytes of an object that copies to and from user space may touch.</summary>
    public uint? Usersize { get; set; }

    /// <summary>0 … 100: readiness to take slabs from other nodes.</summary>
    public uint? RemoteNodeDefragRatio { get; set; }

    /// <summary>Allocated objects on the nodes' partial slabs, by node.</summary>
    public SlabCount? ObjectsPartial { get; set; }

    /// <summary>Slabs on the nodes' partial lists, by node.</summary>
    public SlabCount? Partial { get; set; }

    /// <summary>CPU slabs and slabs on CPU partial chains, by node.</summary>
    public SlabCount? CpuSlabs { get; set; }

    /// <summary>Slots without the free ones on the nodes' partial slabs, by node.</summary>
    public SlabCount? Objects { get; set; }

    /// <summary>Slots, by node.</summary>
    public SlabCount? TotalObjects { get; set; }

    /// <summary>Slabs, by node.</summary>
    public SlabCount? Slabs { get; set; }

    /// <summary>The CPUs' partial chains.</summary>
    public SlabCpuPartial? SlabsCpuPartial { get; set; }

    /// <summary>Slots are aligned to cache lines.</summary>
    public bool? HwcacheAlign { get; set; }

    /// <summary>Pages count as reclaimable.</summary>
    public bool? ReclaimAccount { get; set; }

    /// <summary>SLAB_TYPESAFE_BY_RCU.</summary>
    public bool? DestroyByRcu { get; set; }

    /// <summary>Pages come from the DMA zone.</summary>
    public bool? CacheDma { get; set; }

    /// <summary>Debugging: consistency checks.</summary>
    public bool? SanityChecks { get; set; }

    /// <summary>Debugging: red zones.</summary>
    public bool? RedZone { get; set; }

    /// <summary>Debugging: poison.</summary>
    public bool? Poison { get; set; }

    /// <summary>Debugging: the last user of each object is stored.</summary>
    public bool? StoreUser { get; set; }

    /// <summary>Debugging: every operation is logged.</summary>
    public bool? Trace { get; set; }

    /// <summary>Fault injection is on for this cache.</summary>
    public bool? Failslab { get; set; }

    /// <summary>KFENCE leaves this cache alone.</summary>
    public bool? SkipKfence { get; set; }

    /// <summary>The file shrink exists; it is there to be written and reads as nothing.</summary>
    public bool HasShrink { get; set; } = true;

    /// <summary>The file validate exists (CONFIG_SLUB_DEBUG); it is there to be written and reads as nothing.</summary>
    public bool HasValidate { get; set; } = true;

    /// <summary>The statistics files (CONFIG_SLUB_STATS) by name, counts by CPU; empty if not configured.</summary>
    public SortedDictionary<string, SlabCount> Statistics { get; } = new(StringComparer.Ordinal);

    /// <summary>Files that this library does not know, by name, with their text as it was.</summary>
    public SortedDictionary<string, string> OtherFiles { get; } = new(StringComparer.Ordinal);

    /// <summary>Reads the texts of a cache's files.</summary>
    /// <param name="name">The cache's name.</param>
    /// <param name="files">File name → text.</param>
    /// <exception cref="ProcFormatException">A file's text breaks its rule, or a file of the geometry is missing.
    /// </exception>
    public static SlabSysfs Parse(string name, IReadOnlyDictionary<string, string> files)
    {
        ArgumentNullException.ThrowIfNull(files);
        var cache = new SlabSysfs { Name = name, HasShrink = false, HasValidate = false };
        foreach (SlabAttribute attribute in SlabAttribute.All)
        {
            if (files.TryGetValue(attribute.File, out string? text)) attribute.Parse(cache, text);
            else if (attribute.IsGeometry)
                throw new ProcFormatException(PathOf(name, attribute.File), 1, "", "the file is missing");
        }
        foreach ((string file, string text) in files)
        {
            if (SlabAttribute.IsStatistic(file))
                cache.Statistics[file] = SlabCount.Parse(PathOf(name, file), text, 'C');
            else if (!SlabAttribute.IsKnown(file))
                cache.OtherFiles[file] = text;
        }
        return cache;
    }

    /// <summary>Reads a cache's directory, for instance <c>/sys/kernel/slab/kmalloc-64</c>.</summary>
    /// <exception cref="ProcFormatException">As <see cref="Parse"/>.</exception>
    /// <exception cref="IOException">The directory or a file cannot be read.</exception>
    /// <exception cref="UnauthorizedAccessException">The files may be read by root only.</exception>
    public static SlabSysfs ReadDirectory(string path)
    {
        var directory = new DirectoryInfo(path);
        var files = new Dictionary<string, string>(StringComparer.Ordinal);
        foreach (FileInfo file in directory.EnumerateFiles()) files[file.Name] = File.ReadAllText(file.FullName);
        return Parse(directory.Name, files);
    }

    /// <summary>Writes the text of each file as the kernel does, byte for byte.</summary>
    /// <returns>File name → text. Files without a value are left out.</returns>
    public IReadOnlyDictionary<string, string> Render()
    {
        var files = new SortedDictionary<string, string>(OtherFiles, StringComparer.Ordinal);
        foreach (SlabAttribute attribute in SlabAttribute.All)
        {
            if (attribute.Render(this) is string text) files[attribute.File] = text;
        }
        foreach ((string file, SlabCount count) in Statistics) files[file] = count.Render('C');
        return files;
    }

    /// <summary>The files as <c>name: text</c> lines, for people.</summary>
    public override string ToString()
    {
        var text = new ProcTextWriter();
        foreach ((string file, string content) in Render()) text.Text(file).Text(": ").Line(content.TrimEnd('\n'));
        return text.ToString();
    }

    internal static string PathOf(string name, string file) => $"/sys/kernel/slab/{name}/{file}";
}

/// <summary>A count and its parts by node or CPU: <c>1856 N0=1856</c>. Kernel: <c>show_slab_objects</c>,
/// <c>show_stat</c>, mm/slub.c, Linux 6.18.</summary>
/// <param name="Total">The sum.</param>
/// <param name="Parts">Number of the node or CPU and its count, ascending; those with 0 are omitted, and all of them
/// on kernels with one node or CPU only.</param>
public sealed record SlabCount(ulong Total, IReadOnlyList<SlabCountPart> Parts)
{
    /// <summary>The sum over nodes or CPUs 0, 1, 2 …</summary>
    public static SlabCount Of(params ReadOnlySpan<ulong> counts)
    {
        ulong total = 0;
        var parts = new List<SlabCountPart>();
        for (int i = 0; i < counts.Length; i++)
        {
            total += counts[i];
            if (counts[i] != 0) parts.Add(new SlabCountPart(i, counts[i]));
        }
        return new SlabCount(total, parts);
    }

    internal static SlabCount Parse(string file, string text, char mark)
    {
        var reader = new ProcTextReader(file, new StringReader(text));
        LineCursor fields = reader.Fields("a number");
        ulong total = fields.ULong("the sum");
        var parts = new List<SlabCountPart>();
        while (!fields.AtEnd)
        {
            fields.Expect(mark == 'N' ? "N" : "C");
            int index = fields.Int("the number of the node or CPU");
            fields.Expect("=");
            parts.Add(new SlabCountPart(index, fields.ULong("the count")));
        }
        SlabAttribute.EndOfFile(reader);
        return new SlabCount(total, parts);
    }

    internal string Render(char mark)
    {
        var text = new ProcTextWriter().Number(Total);
        foreach (SlabCountPart part in Parts)
            text.Text(mark == 'N' ? " N" : " C").Number(part.Index).Text("=").Number(part.Count);
        return text.Line().ToString();
    }
}

/// <summary>One node's or CPU's part of a <see cref="SlabCount"/>.</summary>
/// <param name="Index">The number of the node or CPU.</param>
/// <param name="Count">Its count.</param>
public readonly record struct SlabCountPart(int Index, ulong Count);

/// <summary>The file slabs_cpu_partial: <c>256(8) C0=128(4) C1=128(4)</c>. Kernel: <c>slabs_cpu_partial_show</c>,
/// mm/slub.c, Linux 6.18.</summary>
/// <param name="Objects">Free objects, estimated: each slab is taken to be half full.</param>
/// <param name="Slabs">Slabs on the chains.</param>
/// <param name="Cpus">The CPUs that have a chain, ascending.</param>
public sealed record SlabCpuPartial(uint Objects, uint Slabs, IReadOnlyList<SlabCpuPartialPart> Cpus)
{
    /// <summary>What the kernel shows for chains of these lengths.</summary>
    /// <param name="objsPerSlab">Objects in a slab of the preferred order.</param>
    /// <param name="slabsOfCpu">Slabs on the chain of CPU 0, 1, 2 …</param>
    public static SlabCpuPartial Of(uint objsPerSlab, params ReadOnlySpan<uint> slabsOfCpu)
    {
        uint slabs = 0;
        var cpus = new List<SlabCpuPartialPart>();
        for (int cpu = 0; cpu < slabsOfCpu.Length; cpu++)
        {
            if (slabsOfCpu[cpu] == 0) continue;
            slabs += slabsOfCpu[cpu];
            cpus.Add(new SlabCpuPartialPart(cpu, slabsOfCpu[cpu] * objsPerSlab / 2, slabsOfCpu[cpu]));
        }
        return new SlabCpuPartial(slabs * objsPerSlab / 2, slabs, cpus);
    }

    internal static SlabCpuPartial Parse(string file, string text)
    {
        var reader = new ProcTextReader(file, new StringReader(text));
        LineCursor fields = reader.Fields("a number");
        (uint objects, uint slabs) = Pair(ref fields);
        var cpus = new List<SlabCpuPartialPart>();
        while (!fields.AtEnd)
        {
            fields.Expect("C");
            int cpu = fields.Int("the number of the CPU");
            fields.Expect("=");
            (uint cpuObjects, uint cpuSlabs) = Pair(ref fields);
            cpus.Add(new SlabCpuPartialPart(cpu, cpuObjects, cpuSlabs));
        }
        SlabAttribute.EndOfFile(reader);
        return new SlabCpuPartial(objects, slabs, cpus);

        static (uint Objects, uint Slabs) Pair(ref LineCursor fields)
        {
            uint objects = fields.UInt("the objects");
            fields.Expect("(");
            uint slabs = fields.UInt("the slabs");
            fields.Expect(")");
            return (objects, slabs);
        }
    }

    internal string Render()
    {
        var text = new ProcTextWriter().Number(Objects).Text("(").Number(Slabs).Text(")");
        foreach (SlabCpuPartialPart part in Cpus)
        {
            text.Text(" C").Number(part.Cpu).Text("=").Number(part.Objects);
            text.Text("(").Number(part.Slabs).Text(")");
        }
        return text.Line().ToString();
    }
}

/// <summary>One CPU's chain in <see cref="SlabCpuPartial"/>.</summary>
/// <param name="Cpu">The CPU's number.</param>
/// <param name="Objects">Free objects, estimated.</param>
/// <param name="Slabs">Slabs on its chain.</param>
public readonly record struct SlabCpuPartialPart(int Cpu, uint Objects, uint Slabs);
