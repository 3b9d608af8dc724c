namespace Kmem.Tests;

/// <summary>Rules of the formats that the recordings do not show, and the errors.</summary>
public sealed class ProcFormatTests
{
    [Fact]
    public void A_long_cache_name_pushes_its_row_to_the_right()
    {
        var info = new SlabInfoText
        {
            Rows =
            {
                new() { Name = "demo_inode", ActiveObjs = 412, NumObjs = 420, ObjSize = 584, ObjPerSlab = 28,
                    PagesPerSlab = 4, ActiveSlabs = 15, NumSlabs = 15 },
                new() { Name = "a_rather_long_cache_name", ActiveObjs = 7, NumObjs = 32, ObjSize = 128,
                    ObjPerSlab = 32, PagesPerSlab = 1, ActiveSlabs = 1, NumSlabs = 1 },
            },
        };
        const string Rows =
            "demo_inode           412    420    584   28    4" +
            " : tunables    0    0    0 : slabdata     15     15      0\n" +
            "a_rather_long_cache_name      7     32    128   32    1" +
            " : tunables    0    0    0 : slabdata      1      1      0\n";
        Assert.EndsWith("<sharedavail>\n" + Rows, info.Render(), StringComparison.Ordinal);
        Assert.Equal(info.Render(), info.ToString());
        Assert.Equal(info.Rows, SlabInfoText.Parse(info.Render()).Rows);
    }

    [Fact]
    public void Cache_names_may_hold_blanks_and_colons()
    {
        var info = new SlabInfoText
        {
            Rows =
            {
                new() { Name = "dentry(42:my group)", NumObjs = 1 },
                new() { Name = ":0000064" },
                new() { Name = "7 : tunables 1" },
            },
        };
        Assert.Equal(info.Rows, SlabInfoText.Parse(info.Render()).Rows);
    }

    [Fact]
    public void Counts_beyond_the_kernels_cap_carry_a_sign()
    {
        Assert.Equal(new CappedCount(99_999), CappedCount.Of(99_999));
        Assert.Equal(new CappedCount(100_000, Capped: true), CappedCount.Of(100_000));
        var free = new List<PageTypeFree>
        {
            new("Unmovable", [CappedCount.Of(3), CappedCount.Of(250_000)]),
            new("Movable", [CappedCount.Of(0), CappedCount.Of(0)]),
        };
        var info = new PageTypeInfoText
        {
            Nodes =
            {
                new() { Zones = [new() { Zone = "Normal", Free = free, Blocks = [1, 2] }] },
                new()
                {
                    Node = 1,
                    Zones = [new() { Zone = "Normal", Free = free, Blocks = [3, 4], MixedBlocks = [5, 6] }],
                },
            },
        };
        const string Text =
            "Page block order: 9\n" +
            "Pages per block:  512\n" +
            "\n" +
            "Free pages count per migrate type at order       0      1 \n" +
            "Node    0, zone   Normal, type    Unmovable      3 >100000 \n" +
            "Node    0, zone   Normal, type      Movable      0      0 \n" +
            "\n" +
            "Number of blocks type     Unmovable      Movable \n" +
            "Node 0, zone   Normal            1            2 \n" +
            "Page block order: 9\n" +
            "Pages per block:  512\n" +
            "\n" +
            "Free pages count per migrate type at order       0      1 \n" +
            "Node    1, zone   Normal, type    Unmovable      3 >100000 \n" +
            "Node    1, zone   Normal, type      Movable      0      0 \n" +
            "\n" +
            "Number of blocks type     Unmovable      Movable \n" +
            "Node 1, zone   Normal            3            4 \n" +
            "\n" +
            "Number of mixed blocks    Unmovable      Movable \n" +
            "Node 1, zone   Normal            5            6 \n";
        Assert.Equal(Text, info.ToString());
        PageTypeInfoText parsed = PageTypeInfoText.Parse(Text);
        Assert.Equal(ProcTexts.Fields(info), ProcTexts.Fields(parsed));
        Assert.Equal(new CappedCount(100_000, true), parsed.Nodes[1].Zones[0].Find("Unmovable")?.Blocks[1]);
    }

    [Fact]
    public void Zoneinfo_of_a_kernel_before_6_7_has_narrower_pagesets()
    {
        const string Text =
            "Node 0, zone      DMA\n  per-node stats\n      nr_inactive_anon 8\n      nr_dirty     2\n" +
            "  pages free     3977\n        min      67\n        low      83\n        high     99\n" +
            "        spanned  4095\n        present  3998\n        managed  3977\n" +
            "        protection: (0, 2943, -1)\n      nr_free_pages 3977\n  pagesets\n    cpu: 0\n" +
            "              count: 0\n              high:  186\n              batch: 31\n" +
            "  vm stats threshold: 6\n  node_unreclaimable:  0\n  start_pfn:           1\n";
        ZoneInfoText info = ZoneInfoText.Parse(Text);
        ZoneInfoRecord zone = Assert.Single(info.Zones);
        Assert.Null(zone.Boost);
        Assert.Null(zone.Promo);
        Assert.Null(zone.Cma);
        Assert.Null(Assert.Single(zone.Pagesets).HighMin);
        Assert.Equal([0L, 2943, -1], zone.Protection);
        Assert.Equal(Text, info.ToString());
    }

    [Fact]
    public void Meminfo_values_outgrow_their_width_by_the_rule_of_their_label()
    {
        const string Text =
            "VmallocTotal:   34359738367 kB\n" +
            "Active(anon):   123456789 kB\n" +
            "ShadowCallStack:     512 kB\n" +
            "HardwareCorrupted: 123456 kB\n" +
            "HugePages_Total:   123456\n" +
            "HugePages_Surp:        0\n" +
            "SomethingNew:          1 kB\n";
        Assert.Equal(Text, MemInfoText.Parse(Text).ToString());
    }

    [Fact]
    public void A_counter_below_zero_is_a_large_number()
    {
        const string Text = "nr_slab_reclaimable 18446744073709551615\n";
        VmStatText info = VmStatText.Parse(Text);
        Assert.Equal(ulong.MaxValue, info.Stats.Find("nr_slab_reclaimable"));
        Assert.Equal(Text, info.ToString());
    }

    [Theory]
    [InlineData(FragIndexKind.UnusableIndex,
        "Node 0, zone   Normal 0.000 0.013 0.025 0.089 0.091 0.093 0.095 0.097 0.099 0.099 0.107 \n", 107)]
    [InlineData(FragIndexKind.UnusableIndex, "Node 12, zone      DMA 0.000 1.000 \n", 1000)]
    [InlineData(FragIndexKind.ExtfragIndex,
        "Node 0, zone   Normal -1.000 -1.000 -1.000 -1.000 -1.000 -1.000 -1.000 -1.000 -1.000 -1.000 -1.000 \n", -1000)]
    [InlineData(FragIndexKind.ExtfragIndex, "Node 0, zone    DMA32 -1.000 -1.000  0.007  0.512  0.999 \n", 999)]
    public void Fragmentation_indices_round_trip(FragIndexKind kind, string text, int last)
    {
        FragIndexText info = FragIndexText.Parse(text, kind);
        Assert.Equal(last, info.Rows[0].Thousandths[^1]);
        Assert.Equal(text, info.ToString());
    }

    [Fact]
    public void Cache_counts_omit_what_is_zero()
    {
        SlabCount count = SlabCount.Of(5, 0, 7);
        Assert.Equal("12 N0=5 N2=7\n", count.Render('N'));
        Assert.Equal("12 C0=5 C2=7\n", count.Render('C'));
        Assert.Equal("0\n", SlabCount.Of().Render('N'));
        Assert.Equal("0(0)\n", SlabCpuPartial.Of(64, 0, 0).Render());
        Assert.Equal("96(3) C1=96(3)\n", SlabCpuPartial.Of(64, 0, 3).Render());
    }

    [Fact]
    public void A_cache_directory_has_only_the_files_that_have_a_value()
    {
        var cache = new SlabSysfs { Name = "demo", ObjectSize = 40, SlabSize = 64, Align = 8, ObjsPerSlab = 64 };
        cache.Statistics["alloc_fastpath"] = SlabCount.Of(3, 4);
        cache.OtherFiles["brand_new"] = "what\never\n";
        cache.Ctor = "";
        cache.Failslab = true;
        IReadOnlyDictionary<string, string> files = cache.Render();
        string[] names =
        [
            "align", "alloc_fastpath", "brand_new", "cpu_partial", "ctor", "failslab", "min_partial", "object_size",
            "objs_per_slab", "order", "shrink", "slab_size", "validate",
        ];
        Assert.Equal(string.Join(' ', names), string.Join(' ', files.Keys));
        Assert.Equal("7 C0=3 C1=4\n", files["alloc_fastpath"]);
        Assert.Equal(("64\n", "", "", "1\n"),
            (files["slab_size"], files["ctor"], files["shrink"], files["failslab"]));
        SlabSysfs again = SlabSysfs.Parse("demo", files);
        Assert.Equal(ProcTexts.Fields(cache), ProcTexts.Fields(again));
        Assert.Contains("alloc_fastpath: 7 C0=3 C1=4\n", cache.ToString(), StringComparison.Ordinal);
        Assert.Equal(43, SlabAttribute.Statistics.Distinct(StringComparer.Ordinal).Count());
    }

    [Fact]
    public void An_error_names_file_line_text_and_rule()
    {
        const string Text = "Node 0, zone      DMA      0      1 \nNode 0, zone    DMA32      0 \n";
        ProcFormatException error = Assert.Throws<ProcFormatException>(() => BuddyInfoText.Parse(Text));
        Assert.Equal(("/proc/buddyinfo", 2), (error.FileKind, error.LineNumber));
        Assert.Equal("Node 0, zone    DMA32      0 ", error.Line);
        Assert.Equal("2 orders expected, as in the first line", error.Rule);
        Assert.Equal(
            "/proc/buddyinfo, line 2: 2 orders expected, as in the first line: \"Node 0, zone    DMA32      0 \"",
            error.Message);
    }

    [Fact]
    public void An_error_shows_the_beginning_of_a_long_line_without_control_characters()
    {
        string line = "x\u0007" + new string('y', 500);
        ProcFormatException error = Assert.Throws<ProcFormatException>(() => VmStatText.Parse(line));
        Assert.Equal("x?" + new string('y', 78) + "…", error.Line);
    }

    [Theory]
    [InlineData("/proc/slabinfo", "", 1)]
    [InlineData("/proc/slabinfo", "slabinfo - version: 2.0\n", 1)]
    [InlineData("/proc/slabinfo", "slabinfo - version: 2.1\nkmalloc-8 1 2\n", 2)]
    [InlineData("/proc/slabinfo", "slabinfo - version: 2.1\n# name\n1 2 3 4 5 : tunables 0 0 0 : slabdata 1 1 0\n", 3)]
    [InlineData("/proc/slabinfo", "slabinfo - version: 2.1\n# name\na 1 2 3 4 5 : tunables 0 0 0\n", 3)]
    [InlineData("/proc/buddyinfo", "\n\n", 3)]
    [InlineData("/proc/buddyinfo", "Node 0, zone DMA\n", 1)]
    [InlineData("/proc/buddyinfo", "Node 0, zone DMA 1 -2\n", 1)]
    [InlineData("/proc/buddyinfo", "Node 0, zone DMA 1 99999999999999999999\n", 1)]
    [InlineData("/proc/buddyinfo", "Node 3000000000, zone DMA 1\n", 1)]
    [InlineData("/proc/pagetypeinfo", "Page block order: 9\nPages per block: 512\n", 3)]
    [InlineData("/proc/zoneinfo", "Node 0, zone DMA\n  pages free 1\n", 3)]
    [InlineData("/proc/vmstat", "nr_free_pages 1 2\n", 1)]
    [InlineData("/proc/vmstat", "nr_free_pages\n", 1)]
    [InlineData("/proc/meminfo", "MemTotal 1 kB\n", 1)]
    [InlineData("/proc/meminfo", "MemTotal: 1 MB\n", 1)]
    [InlineData("/proc/meminfo", ": 1 kB\n", 1)]
    public void Broken_texts_are_refused_at_their_line(string file, string text, int line)
    {
        ProcFormatException error = Assert.Throws<ProcFormatException>(() => ProcTexts.Rewrite[file](text));
        Assert.Equal((file, line), (error.FileKind, error.LineNumber));
    }

    [Theory]
    [InlineData("object_size", "x\n")]
    [InlineData("object_size", "4294967296\n")]
    [InlineData("order", "1\n2\n")]
    [InlineData("red_zone", "2\n")]
    [InlineData("objects", "5 C0=5\n")]
    [InlineData("alloc_slab", "5 N0=5\n")]
    [InlineData("slabs_cpu_partial", "5(1\n")]
    [InlineData("slabs_cpu_partial", "")]
    [InlineData("ctor", "a\nb\n")]
    [InlineData("shrink", "1\n")]
    public void Broken_cache_files_are_refused_by_name(string file, string text)
    {
        var files = new Dictionary<string, string>(
            new SlabSysfs { Name = "demo" }.Render(), StringComparer.Ordinal)
        { [file] = text };
        ProcFormatException error = Assert.Throws<ProcFormatException>(() => SlabSysfs.Parse("demo", files));
        Assert.Equal("/sys/kernel/slab/demo/" + file, error.FileKind);
    }

    [Fact]
    public void A_directory_without_geometry_is_no_cache()
    {
        Dictionary<string, string> files = new(new SlabSysfs { Name = "demo" }.Render(), StringComparer.Ordinal);
        Assert.True(files.Remove("slab_size"));
        Assert.Throws<ProcFormatException>(() => SlabSysfs.Parse("demo", files));
    }
}
