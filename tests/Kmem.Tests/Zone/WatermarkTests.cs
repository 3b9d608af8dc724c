using System.Text.RegularExpressions;

namespace Kmem.Tests;

public sealed class WatermarkTests
{
    private const long PagesPerGiB = 1 << 18;

    [Fact]
    public void WorkedExampleComesOut()
    {
        ZoneSize[] zones = [Zone(ZoneType.Dma, 3840), Zone(ZoneType.Dma32, 772_000), Zone(ZoneType.Normal, 3_300_000)];
        var marks = new Watermarks[3];
        Watermark.Compute(zones, 67584, marks);
        Assert.Equal(
            [
                new Watermarks(15, 18, 21, 24),
                new Watermarks(3200, 4000, 4800, 5600),
                new Watermarks(13679, 17098, 20517, 23936),
            ],
            marks);
    }

    [Theory]
    [InlineData(16, 512)]
    [InlineData(1024, 4096)]
    [InlineData(16384, 16384)]
    [InlineData(0, 128)]
    [InlineData(64 << 20, 262144)]
    public void MinFreeKbytesIsFourRootsOfLowMemory(long mebibytes, int expected)
    {
        ZoneSize[] zones = [Zone(ZoneType.Normal, mebibytes << 8)];
        Assert.Equal(expected, Watermark.MinFreeKbytes(zones));
    }

    [Fact]
    public void MinFreeKbytesLeavesOutHighZonesAndWhatIsKeptBack()
    {
        ZoneSize[] zones = [Zone(ZoneType.Normal, PagesPerGiB + 1000), Zone(ZoneType.Movable, PagesPerGiB),
            Zone(ZoneType.Dma, 100)];
        Assert.Equal(4096, Watermark.MinFreeKbytes(zones, [1000, 0, 200]));
    }

    [Theory]
    [InlineData(4095, 4096)]
    [InlineData(4096, 4096)]
    [InlineData(90, 4096)]
    [InlineData(500_000, 500_000)]
    public void UsersValueStaysUnlessItIsSmaller(int user, int expected)
    {
        ZoneSize[] zones = [Zone(ZoneType.Normal, PagesPerGiB)];
        Assert.Equal(expected, Watermark.MinFreeKbytes(zones, userKbytes: user));
    }

    [Fact]
    public void HugePagesRaiseItByElevenPageblocksAZone()
    {
        ZoneSize[] zones = [Zone(ZoneType.Dma, 3840), Zone(ZoneType.Dma32, 772_000), Zone(ZoneType.Normal, 3_300_000),
            Zone(ZoneType.Movable, 0)];
        Assert.Equal(67584, Watermark.RaiseForHugePages(8000, zones));
        Assert.Equal(70000, Watermark.RaiseForHugePages(70000, zones));

        ZoneSize[] small = [Zone(ZoneType.Dma, 4000), Zone(ZoneType.Dma32, 16000)];
        Assert.Equal(20000 / 20 * 4, Watermark.RaiseForHugePages(512, small));
        Assert.Equal(10000 / 20 * 4, Watermark.RaiseForHugePages(512, small, [5000, 6000]));   // Dma counts as nothing
    }

    [Fact]
    public void MovableZoneHasItsOwnMinimumAndAWiderGapCanBeAskedFor()
    {
        ZoneSize[] zones = [Zone(ZoneType.Normal, 1_000_000), Zone(ZoneType.Movable, 100_000)];
        var marks = new Watermarks[2];
        Watermark.Compute(zones, 40_000, marks, scaleFactor: 100);
        Assert.Equal(new Watermarks(10_000, 20_000, 30_000, 40_000), marks[0]);
        Assert.Equal(new Watermarks(97, 97 + 1000, 97 + 2000, 97 + 3000), marks[1]);
    }

    [Fact]
    public void MachineOfMovableMemoryOnlyHasWatermarks()
    {
        var marks = new Watermarks[1];
        Watermark.Compute([Zone(ZoneType.Movable, 1_000_000)], 1024, marks);
        Assert.Equal(new Watermarks(128, 1128, 2128, 3128), marks[0]);
    }

    [Fact]
    public void ProtectionIsOffForRatioZeroAndEmptyZones()
    {
        ZoneSize[] zones = [Zone(ZoneType.Dma, 0), Zone(ZoneType.Dma32, 1000), Zone(ZoneType.Normal, 6400),
            Zone(ZoneType.Movable, 3200)];
        long[] reserve = [9, 9, 9, 9];
        Watermark.LowmemReserve(zones, ZoneType.Dma, 256, reserve);
        Assert.Equal([0, 0, 0, 0], reserve);
        Watermark.LowmemReserve(zones, ZoneType.Dma32, 0, reserve);
        Assert.Equal([0, 0, 0, 0], reserve);
        Watermark.LowmemReserve(zones, ZoneType.Normal, 32, reserve);
        Assert.Equal([0, 0, 0, 100], reserve);
    }

    [Fact]
    public void HighFractionFixesTheLimitOfThePerCpuLists()
    {
        Assert.Equal(new PcpLimits(63, 6250, 6250), Watermark.Pcp(1_000_000, 9000, nodeCpus: 2, highFraction: 80));
        Assert.Equal(new PcpLimits(63, 4500, 62500), Watermark.Pcp(1_000_000, 9000, nodeCpus: 2));
        Assert.Equal(new PcpLimits(63, 252, 976), Watermark.Pcp(1_000_000, 9000, nodeCpus: 128));
        Assert.Equal(new PcpLimits(1, 4, 4), Watermark.Pcp(0, 0, nodeCpus: 4));
    }

    [Theory]
    [InlineData(4095, 1)]               // 3 / 4 and everything below is one page
    [InlineData(8192, 1)]               // 8 / 4 = 2, half as much again is 3, rounded down 2, less 1
    [InlineData(16384, 3)]
    [InlineData(131071, 31)]
    [InlineData(262144, 63)]
    [InlineData(1L << 40, 63)]
    public void BatchGrowsToSixtyThreePages(long managed, int batch) =>
        Assert.Equal(batch, Watermark.Pcp(managed, 0, 1).Batch);

    [Fact]
    public void ThresholdsFitASignedByte()
    {
        Assert.Equal(2, Watermark.StatThreshold(0, 1));
        Assert.Equal(125, Watermark.StatThreshold(1L << 30, 1024));
        var marks = new Watermarks(1000, 1250, 1500, 1750);
        Assert.Equal(125, Watermark.PressureThreshold(marks, 1));
        Assert.Equal(62, Watermark.PressureThreshold(marks, 4));
        Assert.Equal(1, Watermark.PressureThreshold(marks, 1000));
    }

    [Fact]
    public void DriftMarkIsSetOnlyWhereTheDifferencesCanHideTheWayToMin()
    {
        var marks = new Watermarks(1000, 1250, 1500, 1750);
        Assert.Null(Watermark.PercpuDriftMark(marks, threshold: 125, onlineCpus: 2));
        Assert.Equal(1500 + 3 * 125, Watermark.PercpuDriftMark(marks, threshold: 125, onlineCpus: 3));
    }

    [Fact]
    public void TotalReserveOfTheOneCpuKernelComesOut()
    {
        List<RecordedZone> zones = ReadZones("boot-1cpu");
        Assert.Equal(1527, zones.Sum(z => Watermark.TotalReserve(z.Size.Managed, z.Marks.High, z.Protection)));
        Assert.Equal(100, Watermark.TotalReserve(100, 90, [0, 50]));
    }

    /// <summary>
    /// The zones of three running kernels. <paramref name="addedLater"/> is what zone DMA32 got from freed start-up
    /// memory after min_free_kbytes and the limits of the per-CPU lists were set; only the protection follows it.
    /// </summary>
    [Theory]
    [InlineData("git", true, 67584, 0)]
    [InlineData("gcc", true, 67584, 0)]
    [InlineData("boot-1cpu", false, 2817, 121592 - 120200)]     // huge pages are off below 512 MiB
    public void EveryNumberOfZoneinfoComesOut(string name, bool hugePages, int minFreeKbytes, long addedLater)
    {
        List<RecordedZone> recorded = ReadZones(name);
        ZoneSize[] now = [.. recorded.Select(z => z.Size)];
        ZoneSize[] atStart = [.. now];
        atStart[1] = atStart[1] with { Managed = atStart[1].Managed - addedLater };

        int minFree = Watermark.MinFreeKbytes(atStart);
        if (hugePages) minFree = Watermark.RaiseForHugePages(minFree, atStart);
        Assert.Equal(minFreeKbytes, minFree);

        var marks = new Watermarks[now.Length];
        Watermark.Compute(atStart, minFree, marks);
        for (int i = 0; i < now.Length; i++)
        {
            RecordedZone zone = recorded[i];
            Assert.Equal((ZoneType)i, zone.Size.Type);
            Assert.Equal(zone.Marks, marks[i]);

            var protection = new long[now.Length];
            Watermark.LowmemReserve(now, zone.Size.Type, Watermark.DefaultReserveRatios[i], protection);
            Assert.Equal(zone.Protection, protection);

            if (zone.Size.Present == 0) continue;       // the text shows no per-CPU part for empty zones
            int cpus = zone.Pcp.Length;
            Assert.Equal(name == "boot-1cpu" ? 1 : 2, cpus);
            PcpLimits limits = Watermark.Pcp(atStart[i].Managed, marks[i].Low, cpus);
            int threshold = Watermark.StatThreshold(atStart[i].Managed, cpus);
            Assert.All(zone.Pcp, pcp => Assert.Equal(limits, pcp));
            Assert.All(zone.Thresholds, t => Assert.Equal(threshold, t));
            Assert.Null(Watermark.PercpuDriftMark(marks[i], threshold, cpus));     // as in the one-CPU kernel's memory
        }
    }

    private static ZoneSize Zone(ZoneType type, long pages) => new(type, pages, pages);

    private sealed record RecordedZone(
        ZoneSize Size, Watermarks Marks, long[] Protection, PcpLimits[] Pcp, int[] Thresholds);

    private static List<RecordedZone> ReadZones(string name)
    {
        var zones = new List<RecordedZone>();
        string text = File.ReadAllText(TestData.PathOf($"zoneinfo/{name}.txt"));
        foreach (string part in text.Split("Node 0, zone", StringSplitOptions.RemoveEmptyEntries))
        {
            long[] All(string label) => [.. Regex.Matches(part, $@"^\s+{label}:?\s+(\d+)$", RegexOptions.Multiline)
                .Select(match => long.Parse(match.Groups[1].Value))];
            long One(string label) => Assert.Single(All(label));

            string typeName = part[..part.IndexOf('\n')].Trim();
            ZoneType type = Enum.GetValues<ZoneType>().Single(t => t.Name() == typeName);
            string protection = Regex.Match(part, @"protection: \(([\d, ]+)\)").Groups[1].Value;
            long[] batch = All("batch"), highMin = All("high_min"), highMax = All("high_max");
            zones.Add(new RecordedZone(
                new ZoneSize(type, One("managed"), One("present")),
                new Watermarks(One("min"), One("low"), All("high")[0], One("promo")),
                [.. protection.Split(", ").Select(long.Parse)],
                [.. batch.Select((b, i) => new PcpLimits((int)b, (int)highMin[i], (int)highMax[i]))],
                [.. All("vm stats threshold").Select(value => (int)value)]));
        }
        return zones;
    }
}
