using CsCheck;

namespace Kmem.Tests;

/// <summary>Whatever a machine may fill into a model comes back from its text.</summary>
public sealed class ProcPropertyTests
{
    private static readonly Gen<string> s_word =
        Gen.Char["abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_-.()"].Array[1, 24].Select(c => "n" + new string(c));

    private static readonly Gen<ulong> s_ulong = Gen.OneOf(Gen.ULong[0, 20], Gen.ULong[0, 200_000_000], Gen.ULong);
    private static readonly Gen<uint> s_uint = Gen.OneOf(Gen.UInt[0, 20], Gen.UInt);
    private static readonly Gen<int> s_int = Gen.OneOf(Gen.Int[0, 20], Gen.Int[0, int.MaxValue]);
    private static readonly Gen<ulong?> s_maybe = Gen.Bool.SelectMany(b => s_ulong.Select(v => b ? v : (ulong?)null));
    private static readonly Gen<ProcStat> s_stat = Gen.Select(s_word, s_ulong, (name, v) => new ProcStat(name, v));

    private static readonly Gen<SlabInfoRow> s_slabRow =
        Gen.Select(s_word, s_ulong.Array[5], s_uint.Array[6], (name, l, i) => new SlabInfoRow
        {
            Name = name,
            ActiveObjs = l[0],
            NumObjs = l[1],
            ObjSize = i[0],
            ObjPerSlab = i[1],
            PagesPerSlab = i[2],
            Limit = i[3],
            BatchCount = i[4],
            SharedFactor = i[5],
            ActiveSlabs = l[2],
            NumSlabs = l[3],
            SharedAvail = l[4],
        });

    private static readonly Gen<ZonePageset> s_pageset =
        Gen.Select(s_int.Array[7], Gen.Bool, Gen.Bool, (i, smp, adaptive) => new ZonePageset
        {
            Cpu = i[0],
            Count = i[1],
            High = i[2],
            Batch = i[3],
            HighMin = adaptive ? i[4] : null,
            HighMax = adaptive ? i[5] : null,
            StatThreshold = smp ? i[6] : null,
        });

    private static readonly Gen<ZoneInfoRecord> s_zoneHead =
        Gen.Select(s_int, s_word, s_ulong.Array[6], s_maybe.Array[3], Gen.Long.Array[1, 5], s_stat.List[0, 5], Gen.Bool,
            (node, zone, l, maybe, protection, stats, first) => new ZoneInfoRecord
            {
                Node = node,
                Zone = zone,
                NodeStats = first ? Stats(stats) : null,
                Free = l[0],
                Boost = maybe[0],
                Min = l[1],
                Low = l[2],
                High = l[3],
                Promo = maybe[1],
                Spanned = l[4],
                Managed = l[5],
                Cma = maybe[2],
                Protection = protection,
            });

    private static readonly Gen<ZoneInfoRecord> s_zone =
        Gen.Select(s_zoneHead, s_ulong, s_stat.List[0, 4], s_ulong.List[0, 3], s_pageset.List[0, 3], s_int, s_ulong,
            (head, present, stats, numa, pagesets, unreclaimable, start) => present == 0 ? head : head with
            {
                Present = present,
                ZoneStats = Stats(stats),
                NumaStats = Stats(numa.Select((v, i) => new ProcStat("numa_" + i, v))),
                Pagesets = pagesets,
                NodeUnreclaimable = unreclaimable,
                StartPfn = start,
            });

    [Fact]
    public void Slabinfo() => s_slabRow.List[0, 6].Sample(rows =>
    {
        var info = new SlabInfoText { Rows = rows };
        Same(info, SlabInfoText.Parse(info.Render()), info.Render());
    });

    [Fact]
    public void Buddyinfo() => Gen.Int[1, 12].SelectMany(orders =>
        Gen.Select(s_int, s_word, s_ulong.List[orders], (n, z, c) => new BuddyInfoRow(n, z, c)).List[1, 5])
        .Sample(rows =>
        {
            var info = new BuddyInfoText { Rows = rows };
            Same(info, BuddyInfoText.Parse(info.Render()), info.Render());
        });

    [Fact]
    public void Pagetypeinfo() => Node().List[1, 3].Sample(nodes =>
    {
        var info = new PageTypeInfoText { Nodes = nodes };
        Same(info, PageTypeInfoText.Parse(info.Render()), info.Render());
    });

    [Fact]
    public void Zoneinfo() => s_zone.List[1, 4].Sample(zones =>
    {
        var info = new ZoneInfoText { Zones = zones };
        Same(info, ZoneInfoText.Parse(info.Render()), info.Render());
    });

    [Fact]
    public void Vmstat() => s_stat.List[1, 9].Sample(stats =>
    {
        var info = new VmStatText { Stats = Stats(stats) };
        Same(info, VmStatText.Parse(info.Render()), info.Render());
    });

    [Fact]
    public void Meminfo() => Gen.Select(s_word, s_ulong, Gen.Bool, (n, v, kb) => new MemInfoLine(n, v, kb)).List[1, 9]
        .Sample(lines =>
        {
            var info = new MemInfoText { Lines = lines };
            Same(info, MemInfoText.Parse(info.Render()), info.Render());
        });

    [Fact]
    public void Fragmentation_indices() => Gen.Bool.SelectMany(Gen.Int[1, 12], (unusable, orders) =>
        Gen.Select(s_int, s_word, Index(unusable).List[orders], (n, z, i) => new FragIndexRow(n, z, i)).List[1, 4]
            .Select(rows => (Unusable: unusable, Rows: rows)))
        .Sample(input =>
        {
            var info = new FragIndexText(input.Unusable ? FragIndexKind.UnusableIndex : FragIndexKind.ExtfragIndex)
            {
                Rows = input.Rows,
            };
            Same(info, FragIndexText.Parse(info.Render(), info.Kind), info.Render());
        });

    [Fact]
    public void Cache_directories() =>
        Gen.Select(s_uint.Array[11], s_ulong.Array[0, 4], Gen.UInt[0, 1000].Array[0, 4], Gen.Bool.Array[14], s_word)
            .Sample((u, counts, chains, flags, word) =>
            {
                SlabSysfs cache = Cache(u, SlabCount.Of(counts), SlabCpuPartial.Of(32, chains), flags, word);
                SlabSysfs parsed = SlabSysfs.Parse(cache.Name, cache.Render());
                Assert.Equal(ProcTexts.Fields(cache), ProcTexts.Fields(parsed));
                Assert.Equal(cache.Render(), parsed.Render());
            });

    private static void Same<T>(T model, T parsed, string text)
    {
        Assert.Equal(ProcTexts.Fields(model), ProcTexts.Fields(parsed));
        Assert.Equal(text, parsed!.ToString());
    }

    private static ProcStats Stats(IEnumerable<ProcStat> stats)
    {
        var list = new ProcStats();
        foreach (ProcStat stat in stats) list.Add(stat);
        return list;
    }

    private static Gen<int> Index(bool unusable) =>
        unusable ? Gen.Int[0, 1000] : Gen.OneOf(Gen.Int[0, 1000], Gen.Const(-1000));

    /// <summary>A node whose zones have different names and the same types, as the kernel prints them.</summary>
    private static Gen<PageTypeNode> Node() =>
        Gen.Int[1, 3].SelectMany(Gen.Int[1, 12], Gen.Int[1, 6], Gen.Bool, (zones, orders, types, mixed) =>
            Gen.Select(s_int, s_int, s_ulong, Zone(orders, types, mixed).List[zones], (node, order, pages, list) =>
                new PageTypeNode
                {
                    Node = node,
                    PageBlockOrder = order,
                    PagesPerBlock = pages,
                    Zones = [.. list.Select((zone, i) => zone with { Zone = "Zone" + i })],
                }));

    private static Gen<PageTypeZone> Zone(int orders, int types, bool mixed) =>
        Gen.Select(s_ulong.Select(CappedCount.Of).List[orders].List[types], s_ulong.List[types], (free, blocks) =>
            new PageTypeZone
            {
                Zone = "",
                Free = [.. free.Select((counts, i) => new PageTypeFree("Type" + i, counts))],
                Blocks = blocks,
                MixedBlocks = mixed ? blocks : null,
            });

    private static SlabSysfs Cache(uint[] u, SlabCount count, SlabCpuPartial chains, bool[] flags, string word)
    {
        var cache = new SlabSysfs
        {
            Name = word,
            ObjectSize = u[0],
            SlabSize = u[1],
            Align = u[2],
            ObjsPerSlab = u[3],
            Order = u[4],
            MinPartial = u[5],
            CpuPartial = u[6],
            SheafCapacity = flags[0] ? u[7] : null,
            Aliases = flags[1] ? u[8] : null,
            Usersize = flags[2] ? u[9] : null,
            RemoteNodeDefragRatio = flags[3] ? u[10] : null,
            Ctor = flags[4] ? word : flags[5] ? "" : null,
            ObjectsPartial = flags[6] ? count : null,
            Partial = count,
            SlabsCpuPartial = flags[7] ? chains : null,
            Poison = flags[8] ? flags[9] : null,
            Trace = flags[10],
            HasShrink = flags[11],
            HasValidate = flags[12],
        };
        if (flags[13]) cache.Statistics["barn_get"] = count;
        return cache;
    }
}
