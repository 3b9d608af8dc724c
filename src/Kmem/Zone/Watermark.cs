using System.Numerics;

namespace Kmem;

/// <summary>What the formulas need to know of a zone.</summary>
/// <param name="Type">Which zone it is.</param>
/// <param name="Managed">Pages that belong to the page allocator.</param>
/// <param name="Present">Pages that exist; a zone without any is not populated.</param>
internal readonly record struct ZoneSize(ZoneType Type, long Managed, long Present);

/// <summary>The watermarks of a zone in free pages, without the boost.</summary>
/// <param name="Min">Below it only requests with a right to the reserves succeed.</param>
/// <param name="Low">Below it kswapd wakes.</param>
/// <param name="High">Above it kswapd sleeps again.</param>
/// <param name="Promo">Above it memory tiering stops demoting.</param>
internal readonly record struct Watermarks(long Min, long Low, long High, long Promo);

/// <summary>The limits of a zone's per-CPU page lists, in pages.</summary>
/// <param name="Batch">Pages moved at once between the lists and the buddy system.</param>
/// <param name="HighMin">The least number of pages the lists may grow to.</param>
/// <param name="HighMax">The largest number of pages they may grow to.</param>
internal readonly record struct PcpLimits(int Batch, int HighMin, int HighMax);

/// <summary>
/// How many free pages to keep back, and for whom: pure functions of the sizes of the zones.
/// </summary>
/// <remarks>
/// <c>mm/page_alloc.c</c>, <c>mm/khugepaged.c</c>, <c>mm/vmstat.c</c>, Linux 6.18.
/// <code>
///  free pages
///  managed ┬
///          │            nobody reclaims
///     HIGH ┼   kswapd sleeps again              gap
///      LOW ┼   kswapd wakes                     gap = max(t / 4, managed * scale factor / 10000)
///      MIN ┼   ordinary requests must reclaim   t = this zone's share of min_free_kbytes
///        0 ┴
/// </code>
/// To each mark lowmem_reserve is added for requests that could have used a higher zone.
/// </remarks>
internal static class Watermark
{
    /// <summary>vm.watermark_scale_factor by default: a gap of at least 0.1 % of the zone.</summary>
    internal const int DefaultScaleFactor = 10;

    /// <summary>min_free_kbytes before it is computed.</summary>
    internal const int InitialMinFreeKbytes = 1024;

    /// <summary>The least vm.percpu_pagelist_high_fraction, and the one behind high_max.</summary>
    internal const int MinHighFraction = 8;

    private const int KbytesPerPage = 4;
    private const int PagesPerMebibyte = 256;
    private const int MaxStatThreshold = 125;       // the differences are signed bytes
    private const int HugePagesPerZone = 2;
    private const int MobilityPairs = Migratetypes.PcpTypes * Migratetypes.PcpTypes;

    /// <summary>vm.lowmem_reserve_ratio by default, per zone type; 0 switches the protection off.</summary>
    internal static ReadOnlySpan<int> DefaultReserveRatios => [256, 256, 32, 0, 0];

    /// <summary>
    /// min_free_kbytes for a machine's zones: four times the square root of its low memory in KiB, 128 to 262144
    /// (<c>calculate_min_free_kbytes</c>). A value set by the user stays if it is not below the computed one.
    /// </summary>
    /// <param name="zones">All zones of all nodes.</param>
    /// <param name="highMarks">Their HIGH watermarks so far; empty at the first call, when they are 0.</param>
    /// <param name="userKbytes">What the user wrote to vm.min_free_kbytes, if anything.</param>
    internal static int MinFreeKbytes(
        ReadOnlySpan<ZoneSize> zones, ReadOnlySpan<long> highMarks = default, int? userKbytes = null)
    {
        long computed = SquareRoot(LowPagesAboveHigh(zones, highMarks) * KbytesPerPage * 16);
        if (userKbytes is { } user && computed <= user) return user;
        return (int)Math.Clamp(computed, 128, 262144);
    }

    /// <summary>
    /// min_free_kbytes as raised where transparent huge pages are on, so that grouping by mobility has room
    /// (<c>set_recommended_min_free_kbytes</c>): two pageblocks a zone and one for every pair of migrate types, but at
    /// most 5 % of low memory.
    /// </summary>
    /// <param name="minFreeKbytes">The value so far.</param>
    /// <param name="zones">All zones of all nodes.</param>
    /// <param name="highMarks">Their HIGH watermarks so far; empty if they are 0.</param>
    internal static int RaiseForHugePages(
        int minFreeKbytes, ReadOnlySpan<ZoneSize> zones, ReadOnlySpan<long> highMarks = default)
    {
        int populated = 0;
        foreach (ZoneSize zone in zones)
        {
            if (zone.Present > 0 && zone.Type <= ZoneType.Normal) populated++;
        }
        long pages = (long)(HugePagesPerZone + MobilityPairs) * populated << PageOrder.Pageblock;
        pages = Math.Min(pages, LowPagesAboveHigh(zones, highMarks) / 20);
        return (int)Math.Max(minFreeKbytes, pages * KbytesPerPage);
    }

    /// <summary>The watermarks of every zone (<c>__setup_per_zone_wmarks</c>).</summary>
    /// <param name="zones">All zones of all nodes.</param>
    /// <param name="minFreeKbytes">vm.min_free_kbytes.</param>
    /// <param name="marks">The result, as long as <paramref name="zones"/>.</param>
    /// <param name="scaleFactor">vm.watermark_scale_factor, 1 to 3000, in 1/10000 of a zone.</param>
    internal static void Compute(
        ReadOnlySpan<ZoneSize> zones, int minFreeKbytes, Span<Watermarks> marks, int scaleFactor = DefaultScaleFactor)
    {
        long minPages = minFreeKbytes / KbytesPerPage;
        long sharing = 0;
        foreach (ZoneSize zone in zones)
        {
            if (zone.Type != ZoneType.Movable) sharing += zone.Managed;
        }

        for (int i = 0; i < zones.Length; i++)
        {
            long managed = zones[i].Managed;
            // A machine with nothing but zone Movable has nobody to share the reserve among.
            long share = sharing == 0 ? 0 : minPages * managed / sharing;
            long min = zones[i].Type == ZoneType.Movable ? Math.Clamp(managed / 1024, 32, 128) : share;
            long gap = Math.Max(share / 4, managed * scaleFactor / 10000);
            marks[i] = new Watermarks(min, min + gap, min + (2 * gap), min + (3 * gap));
        }
    }

    /// <summary>
    /// How many more pages stay free in one zone for each highest zone a request could have used
    /// (<c>setup_per_zone_lowmem_reserve</c>; "protection" in /proc/zoneinfo).
    /// </summary>
    /// <param name="nodeZones">All zones of one node, indexed by type, empty ones too.</param>
    /// <param name="zone">The zone that is protected.</param>
    /// <param name="ratio">Its vm.lowmem_reserve_ratio; 0 for no protection.</param>
    /// <param name="reserve">The result in pages, as long as <paramref name="nodeZones"/>.</param>
    internal static void LowmemReserve(
        ReadOnlySpan<ZoneSize> nodeZones, ZoneType zone, int ratio, Span<long> reserve)
    {
        reserve.Clear();
        if (ratio <= 0 || nodeZones[(int)zone].Managed == 0) return;

        long above = 0;
        for (int j = (int)zone + 1; j < nodeZones.Length; j++)
        {
            above += nodeZones[j].Managed;
            reserve[j] = above / ratio;
        }
    }

    /// <summary>
    /// The pages of one zone that user data cannot count on (<c>calculate_totalreserve_pages</c>); their sum over all
    /// zones is totalreserve_pages.
    /// </summary>
    internal static long TotalReserve(long managed, long high, ReadOnlySpan<long> lowmemReserve)
    {
        long most = 0;
        foreach (long pages in lowmemReserve) most = Math.Max(most, pages);
        return Math.Min(managed, most + high);
    }

    /// <summary>
    /// The limits of a zone's per-CPU page lists (<c>zone_batchsize</c>, <c>zone_highsize</c>,
    /// <c>zone_set_pageset_high_and_batch</c>).
    /// </summary>
    /// <param name="managed">The zone's managed pages.</param>
    /// <param name="low">Its LOW watermark, boost included.</param>
    /// <param name="nodeCpus">CPUs of its node, one that is coming up included; if none, all online CPUs.</param>
    /// <param name="highFraction">
    /// vm.percpu_pagelist_high_fraction: 0, or at least 8 to fix the limit at this part of the zone.
    /// </param>
    internal static PcpLimits Pcp(long managed, long low, int nodeCpus, int highFraction = 0)
    {
        int fitting = (int)Math.Max(Math.Min(managed >> 10, PagesPerMebibyte) / 4, 1);
        int batch = Math.Max(1, (1 << BitOperations.Log2((uint)(fitting + (fitting / 2)))) - 1);

        int high = HighFor(highFraction > 0 ? managed / highFraction : low, nodeCpus, batch);
        int highMax = highFraction > 0 ? high : HighFor(managed / MinHighFraction, nodeCpus, batch);
        return new PcpLimits(batch, high, highMax);
    }

    /// <summary>
    /// How far a CPU's private difference of a counter may grow before it is folded into the global part
    /// (<c>calculate_normal_threshold</c>).
    /// </summary>
    internal static int StatThreshold(long managed, int onlineCpus)
    {
        int blocksOf128Mib = (int)(managed >> 15);
        return Math.Min(MaxStatThreshold, 2 * BitLength(onlineCpus) * (1 + BitLength(blocksOf128Mib)));
    }

    /// <summary>
    /// The threshold while kswapd is awake, small enough that all differences together cannot hide the way from LOW
    /// to MIN (<c>calculate_pressure_threshold</c>). Used only in zones with a drift mark.
    /// </summary>
    internal static int PressureThreshold(Watermarks marks, int onlineCpus) =>
        (int)Math.Clamp((marks.Low - marks.Min) / onlineCpus, 1, MaxStatThreshold);

    /// <summary>
    /// The number of free pages below which the global part of the counter is not trusted
    /// (<c>percpu_drift_mark</c>, <c>refresh_zone_stat_thresholds</c>); <c>null</c> if the differences cannot hide
    /// the way from LOW to MIN: the zone then keeps the mark it has, at first 0.
    /// </summary>
    /// <param name="marks">The zone's watermarks.</param>
    /// <param name="threshold">Its normal threshold, <see cref="StatThreshold"/>.</param>
    /// <param name="onlineCpus">CPUs online.</param>
    internal static long? PercpuDriftMark(Watermarks marks, int threshold, int onlineCpus)
    {
        long drift = (long)onlineCpus * threshold;
        return drift > marks.Low - marks.Min ? marks.High + drift : null;
    }

    // Pages of the zones up to Normal that are not kept back (nr_free_buffer_pages).
    private static long LowPagesAboveHigh(ReadOnlySpan<ZoneSize> zones, ReadOnlySpan<long> highMarks)
    {
        long pages = 0;
        for (int i = 0; i < zones.Length; i++)
        {
            if (zones[i].Type > ZoneType.Normal) continue;
            long high = highMarks.IsEmpty ? 0 : highMarks[i];
            pages += Math.Max(zones[i].Managed - high, 0);
        }
        return pages;
    }

    private static int HighFor(long pages, int cpus, int batch) =>
        (int)Math.Clamp(pages / cpus, 4 * batch, int.MaxValue);

    private static int BitLength(int value) => 32 - BitOperations.LeadingZeroCount((uint)value);

    private static long SquareRoot(long value)
    {
        long root = (long)Math.Sqrt(value);
        while (root * root > value) root--;             // the double has only 53 bits
        while ((root + 1) * (root + 1) <= value) root++;
        return root;
    }
}
