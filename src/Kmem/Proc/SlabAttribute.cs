namespace Kmem;

/// <summary>The table of the files in a cache's directory: how each is read into and written from a
/// <see cref="SlabSysfs"/>.</summary>
internal sealed class SlabAttribute
{
    private static readonly string[] s_statistics =
    [
        "alloc_cpu_sheaf", "alloc_fastpath", "alloc_slowpath", "free_cpu_sheaf", "free_rcu_sheaf",
        "free_rcu_sheaf_fail", "free_fastpath", "free_slowpath", "free_frozen", "free_add_partial",
        "free_remove_partial", "alloc_from_partial", "alloc_slab", "alloc_refill", "alloc_node_mismatch", "free_slab",
        "cpuslab_flush", "deactivate_full", "deactivate_empty", "deactivate_to_head", "deactivate_to_tail",
        "deactivate_remote_frees", "deactivate_bypass", "order_fallback", "cmpxchg_double_fail",
        "cmpxchg_double_cpu_fail", "cpu_partial_alloc", "cpu_partial_free", "cpu_partial_node", "cpu_partial_drain",
        "sheaf_flush", "sheaf_refill", "sheaf_alloc", "sheaf_free", "barn_get", "barn_get_fail", "barn_put",
        "barn_put_fail", "sheaf_prefill_fast", "sheaf_prefill_slow", "sheaf_prefill_oversize", "sheaf_return_fast",
        "sheaf_return_slow",
    ];

    private static readonly HashSet<string> s_statisticNames = new(s_statistics, StringComparer.Ordinal);

    private readonly Func<SlabSysfs, string?> _render;
    private readonly Action<SlabSysfs, string> _parse;

    private SlabAttribute(string file, Func<SlabSysfs, string?> render, Action<SlabSysfs, string> parse)
    {
        File = file;
        _render = render;
        _parse = parse;
    }

    public static IReadOnlyList<SlabAttribute> All { get; } =
    [
        Geometry("object_size", c => c.ObjectSize, (c, v) => c.ObjectSize = (uint)v, uint.MaxValue),
        Geometry("slab_size", c => c.SlabSize, (c, v) => c.SlabSize = (uint)v, uint.MaxValue),
        Geometry("align", c => c.Align, (c, v) => c.Align = (uint)v, uint.MaxValue),
        Geometry("objs_per_slab", c => c.ObjsPerSlab, (c, v) => c.ObjsPerSlab = (uint)v, uint.MaxValue),
        Geometry("order", c => c.Order, (c, v) => c.Order = (uint)v, uint.MaxValue),
        Geometry("min_partial", c => c.MinPartial, (c, v) => c.MinPartial = v, ulong.MaxValue),
        Geometry("cpu_partial", c => c.CpuPartial, (c, v) => c.CpuPartial = (uint)v, uint.MaxValue),
        Number("sheaf_capacity", c => c.SheafCapacity, (c, v) => c.SheafCapacity = v),
        Number("aliases", c => c.Aliases, (c, v) => c.Aliases = v),
        Number("usersize", c => c.Usersize, (c, v) => c.Usersize = v),
        Number("remote_node_defrag_ratio", c => c.RemoteNodeDefragRatio, (c, v) => c.RemoteNodeDefragRatio = v),
        new("ctor", c => c.Ctor is null ? null : c.Ctor.Length == 0 ? "" : c.Ctor + "\n", ParseCtor),
        Count("objects_partial", c => c.ObjectsPartial, (c, v) => c.ObjectsPartial = v),
        Count("partial", c => c.Partial, (c, v) => c.Partial = v),
        Count("cpu_slabs", c => c.CpuSlabs, (c, v) => c.CpuSlabs = v),
        Count("objects", c => c.Objects, (c, v) => c.Objects = v),
        Count("total_objects", c => c.TotalObjects, (c, v) => c.TotalObjects = v),
        Count("slabs", c => c.Slabs, (c, v) => c.Slabs = v),
        new("slabs_cpu_partial", c => c.SlabsCpuPartial?.Render(), (c, text) =>
            c.SlabsCpuPartial = SlabCpuPartial.Parse(SlabSysfs.PathOf(c.Name, "slabs_cpu_partial"), text)),
        Flag("hwcache_align", c => c.HwcacheAlign, (c, v) => c.HwcacheAlign = v),
        Flag("reclaim_account", c => c.ReclaimAccount, (c, v) => c.ReclaimAccount = v),
        Flag("destroy_by_rcu", c => c.DestroyByRcu, (c, v) => c.DestroyByRcu = v),
        Flag("cache_dma", c => c.CacheDma, (c, v) => c.CacheDma = v),
        Flag("sanity_checks", c => c.SanityChecks, (c, v) => c.SanityChecks = v),
        Flag("red_zone", c => c.RedZone, (c, v) => c.RedZone = v),
        Flag("poison", c => c.Poison, (c, v) => c.Poison = v),
        Flag("store_user", c => c.StoreUser, (c, v) => c.StoreUser = v),
        Flag("trace", c => c.Trace, (c, v) => c.Trace = v),
        Flag("failslab", c => c.Failslab, (c, v) => c.Failslab = v),
        Flag("skip_kfence", c => c.SkipKfence, (c, v) => c.SkipKfence = v),
        Command("shrink", c => c.HasShrink, c => c.HasShrink = true),
        Command("validate", c => c.HasValidate, c => c.HasValidate = true),
    ];

    /// <summary>The statistics files of Linux 6.18, in the kernel's order (CONFIG_SLUB_STATS).</summary>
    public static IReadOnlyList<string> Statistics => s_statistics;

    public string File { get; }

    /// <summary>In every kernel; without it the directory is no slab cache's.</summary>
    public bool IsGeometry { get; private init; }

    public static bool IsStatistic(string file) => s_statisticNames.Contains(file);

    public static bool IsKnown(string file)
    {
        foreach (SlabAttribute attribute in All)
        {
            if (attribute.File == file) return true;
        }
        return false;
    }

    public static void EndOfFile(ProcTextReader reader)
    {
        reader.Advance();
        if (reader.Line is not null) throw reader.Error("the file must have one line");
    }

    public string? Render(SlabSysfs cache) => _render(cache);

    public void Parse(SlabSysfs cache, string text) => _parse(cache, text);

    private static SlabAttribute Geometry(
        string file, Func<SlabSysfs, ulong> get, Action<SlabSysfs, ulong> set, ulong max) =>
        new(file, c => get(c) + "\n", (c, text) => set(c, ParseNumber(c, file, text, max))) { IsGeometry = true };

    private static SlabAttribute Number(string file, Func<SlabSysfs, uint?> get, Action<SlabSysfs, uint> set) =>
        new(file, c => get(c) is uint value ? value + "\n" : null,
            (c, text) => set(c, (uint)ParseNumber(c, file, text, uint.MaxValue)));

    private static SlabAttribute Flag(string file, Func<SlabSysfs, bool?> get, Action<SlabSysfs, bool> set) =>
        new(file, c => get(c) is bool value ? (value ? "1\n" : "0\n") : null,
            (c, text) => set(c, ParseNumber(c, file, text, max: 1) != 0));

    private static SlabAttribute Count(
        string file, Func<SlabSysfs, SlabCount?> get, Action<SlabSysfs, SlabCount> set) =>
        new(file, c => get(c)?.Render('N'),
            (c, text) => set(c, SlabCount.Parse(SlabSysfs.PathOf(c.Name, file), text, 'N')));

    /// <summary>A file to be written; it reads as nothing.</summary>
    private static SlabAttribute Command(string file, Func<SlabSysfs, bool> exists, Action<SlabSysfs> found) =>
        new(file, c => exists(c) ? "" : null, (c, text) =>
        {
            if (text.Length != 0)
                throw new ProcFormatException(SlabSysfs.PathOf(c.Name, file), 1, text, "the file must read as nothing");
            found(c);
        });

    private static void ParseCtor(SlabSysfs cache, string text)
    {
        string symbol = text.EndsWith('\n') ? text[..^1] : text;
        if (symbol.AsSpan().ContainsAny('\n', '\r') || (text.Length > 0 && symbol.AsSpan().Trim().IsEmpty))
        {
            string path = SlabSysfs.PathOf(cache.Name, "ctor");
            throw new ProcFormatException(path, 1, text, "one symbol or nothing expected");
        }
        cache.Ctor = symbol;
    }

    private static ulong ParseNumber(SlabSysfs cache, string file, string text, ulong max)
    {
        var reader = new ProcTextReader(SlabSysfs.PathOf(cache.Name, file), new StringReader(text));
        LineCursor fields = reader.Fields("a number");
        ulong value = fields.ULong("the value");
        fields.End();
        if (value > max) throw reader.Error($"a number up to {max} expected");
        EndOfFile(reader);
        return value;
    }
}
