namespace Kmem.Tests;

/// <summary>The texts of real kernels are read and written again byte for byte.</summary>
public sealed class RecordedProcTests
{
    public static TheoryData<string, string> RecordedFiles()
    {
        var data = new TheoryData<string, string>();
        foreach (string recording in ProcTexts.Recordings)
        {
            foreach (string file in ProcTexts.Rewrite.Keys) data.Add(recording, file);
        }
        return data;
    }

    [Theory]
    [MemberData(nameof(RecordedFiles))]
    public void A_recorded_text_is_written_as_it_was_read(string recording, string file)
    {
        string text = ProcTexts.Read(recording, file);
        Assert.True(text.Length > 100, "the recording is too short to prove anything");
        Assert.Equal(text, ProcTexts.Rewrite[file](text));
    }

    [Theory]
    [MemberData(nameof(RecordedFiles))]
    public void Column_widths_line_ends_and_empty_lines_do_not_matter_for_reading(string recording, string file)
    {
        string text = ProcTexts.Read(recording, file);
        string foreign = text.Replace("\n", "\r\n\r\n", StringComparison.Ordinal);
        if (file != "/proc/slabinfo" && file != "/proc/pagetypeinfo")
            foreign = foreign.Replace("  ", " ", StringComparison.Ordinal);
        Assert.Equal(text, ProcTexts.Rewrite[file](foreign));
    }

    [Fact]
    public void Slabinfo_fields_stand_where_the_text_has_them()
    {
        SlabInfoText info = SlabInfoText.Parse(ProcTexts.Read("proc-git-before", "/proc/slabinfo"));
        Assert.Equal("btrfs_delayed_node", info.Rows[0].Name);
        SlabInfoRow row = Assert.IsType<SlabInfoRow>(info.Find("bio-312"));
        var expected = new SlabInfoRow
        {
            Name = "bio-312",
            ActiveObjs = 12,
            NumObjs = 12,
            ObjSize = 320,
            ObjPerSlab = 12,
            PagesPerSlab = 1,
            ActiveSlabs = 1,
            NumSlabs = 1,
        };
        Assert.Equal(expected, row);
        Assert.Null(info.Find("no such cache"));
    }

    [Fact]
    public void Buddyinfo_counts_the_blocks_that_pagetypeinfo_splits_by_type()
    {
        Dictionary<string, string> files = ProcTexts.Read("proc-git-before");
        BuddyInfoText buddy = BuddyInfoText.Parse(files["/proc/buddyinfo"]);
        PageTypeNode types = Assert.Single(PageTypeInfoText.Parse(files["/proc/pagetypeinfo"]).Nodes);
        Assert.Equal(["DMA", "DMA32", "Normal"], buddy.Rows.ConvertAll(row => row.Zone));
        Assert.Equal([1622UL, 926, 762, 465, 215, 124, 224, 142, 105, 35, 79], buddy.Rows[2].FreeBlocks);
        Assert.Equal(buddy.Rows.Count, types.Zones.Count);
        foreach ((BuddyInfoRow row, PageTypeZone zone) in buddy.Rows.Zip(types.Zones))
        {
            Assert.Equal(row.Zone, zone.Zone);
            for (int order = 0; order < row.FreeBlocks.Count; order++)
            {
                ulong sum = 0;
                foreach (PageTypeFree type in zone.Free) sum += type.Blocks[order].Value;
                Assert.Equal(row.FreeBlocks[order], sum);
            }
        }
        Assert.Equal(3840UL, buddy.Rows[0].FreePages);
        Assert.Equal([232UL, 937, 47, 0, 0], types.Zones[2].Blocks);
        Assert.Null(types.Zones[2].MixedBlocks);
    }

    [Fact]
    public void Zoneinfo_fields_stand_where_the_text_has_them()
    {
        ZoneInfoText info = ZoneInfoText.Parse(ProcTexts.Read("proc-git-before", "/proc/zoneinfo"));
        Assert.Equal(["DMA", "DMA32", "Normal", "Movable", "Device"], info.Zones.ConvertAll(zone => zone.Zone));
        Assert.Equal(51, info.Zones[0].NodeStats?.Count);
        Assert.Equal(20799UL, info.Zones[0].NodeStats?.Find("nr_slab_reclaimable"));

        ZoneInfoRecord normal = Assert.IsType<ZoneInfoRecord>(info.Find(0, "Normal"));
        Assert.Null(normal.NodeStats);
        Assert.Equal((175858UL, 0UL, 7517UL, 9396UL), (normal.Free, normal.Boost!.Value, normal.Min, normal.Low));
        Assert.Equal((11275UL, 13154UL, 5505024UL), (normal.High, normal.Promo!.Value, normal.Spanned));
        Assert.Equal((5505024UL, 622592UL, 0UL), (normal.Present, normal.Managed, normal.Cma!.Value));
        Assert.Equal([0L, 0, 0, 0, 0], normal.Protection);
        Assert.Equal(11, normal.ZoneStats.Count);
        Assert.Equal(3367UL, normal.ZoneStats.Find("nr_mlock"));
        Assert.Equal(6, normal.NumaStats.Count);
        Assert.Equal(1123UL, normal.NumaStats.Find("numa_interleave"));
        var cpu1 = new ZonePageset
        {
            Cpu = 1,
            Count = 19302,
            High = 38912,
            Batch = 63,
            HighMin = 4698,
            HighMax = 38912,
            StatThreshold = 24,
        };
        Assert.Equal(cpu1, normal.Pagesets[1]);
        Assert.Equal((0, 1048576UL), (normal.NodeUnreclaimable, normal.StartPfn));

        ZoneInfoRecord movable = info.Zones[3];
        Assert.False(movable.IsPopulated);
        Assert.Empty(movable.Pagesets);
        Assert.Equal(32UL, movable.Min);
    }

    [Fact]
    public void Meminfo_and_vmstat_are_found_by_name()
    {
        Dictionary<string, string> files = ProcTexts.Read("proc-git-before");
        MemInfoText mem = MemInfoText.Parse(files["/proc/meminfo"]);
        Assert.Equal(24684084UL, mem.Find("MemTotal"));
        Assert.Equal(34359738367UL, mem.Find("VmallocTotal"));
        Assert.False(Assert.IsType<MemInfoLine>(mem.Lines.Find(line => line.Label == "HugePages_Free")).IsKilobytes);
        Assert.Null(mem.Find("MemTotal:"));

        VmStatText vm = VmStatText.Parse(files["/proc/vmstat"]);
        Assert.Equal("nr_free_pages", vm.Stats[0].Name);
        Assert.Equal("nr_unstable", vm.Stats[^1].Name);
        Assert.Equal(4535668UL, vm.Stats.Find("pgfree"));
    }

    [Fact]
    public void Every_file_of_recorded_cache_directories_is_written_as_it_was_read()
    {
        var caches = ProcTexts.Read("slab-sysfs").GroupBy(
            pair => pair.Key[..pair.Key.IndexOf('/')],
            pair => KeyValuePair.Create(pair.Key[(pair.Key.IndexOf('/') + 1)..], pair.Value),
            StringComparer.Ordinal);
        int count = 0;
        foreach (IGrouping<string, KeyValuePair<string, string>> files in caches)
        {
            var texts = files.ToDictionary(StringComparer.Ordinal);
            SlabSysfs cache = SlabSysfs.Parse(files.Key, texts);
            Assert.Equal(texts.OrderBy(f => f.Key, StringComparer.Ordinal), cache.Render());
            Assert.Empty(cache.OtherFiles);
            count++;
        }
        Assert.Equal(6, count);
    }

    [Fact]
    public void Cache_directory_values_have_their_types()
    {
        var texts = ProcTexts.Read("slab-sysfs")
            .Where(f => f.Key.StartsWith("anon_vma/", StringComparison.Ordinal))
            .ToDictionary(f => f.Key["anon_vma/".Length..], f => f.Value, StringComparer.Ordinal);
        SlabSysfs cache = SlabSysfs.Parse("anon_vma", texts);
        Assert.Equal((96u, 104u, 39u, 0u), (cache.ObjectSize, cache.SlabSize, cache.ObjsPerSlab, cache.Order));
        Assert.Equal("anon_vma_ctor+0x0/0x50", cache.Ctor);
        Assert.True(cache.DestroyByRcu);
        Assert.False(cache.Poison);
        Assert.Null(cache.Failslab);
        Assert.Equal(0u, cache.SheafCapacity);

        // The two CPUs' chains are recorded as 136(7) C0=19(1) C1=117(6): the same formula for sum and parts.
        SlabCpuPartial chains = SlabCpuPartial.Of(39, 1, 6);
        Assert.Equal(ProcTexts.Fields(chains), ProcTexts.Fields(cache.SlabsCpuPartial));
        Assert.Equal(texts["slabs_cpu_partial"], chains.Render());
        SlabCount objects = Assert.IsType<SlabCount>(cache.TotalObjects);
        Assert.Equal(new SlabCountPart(0, objects.Total), Assert.Single(objects.Parts));
    }
}
