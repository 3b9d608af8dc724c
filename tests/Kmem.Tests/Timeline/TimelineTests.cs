using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>A moment that is sought is the moment that a plain replay comes to, whatever way led there.</summary>
public sealed class TimelineTests
{
    private const int Events = 30_000;
    private static readonly Lazy<Timeline> s_timeline = new(() => Read(Events));

    [Fact]
    public void EveryEventOfTheRecordingIsThere()
    {
        using Timeline all = Read(Events);
        Assert.Equal(Events, all.Events);
        Assert.True(all.IsCut);
        Assert.Contains(Enumerable.Range(0, Events), n => all.EventAt(n).Result == EventResult.Internal);
        Assert.All(Enumerable.Range(0, Events), n => Assert.NotEqual(EventResult.Refused, all.EventAt(n).Result));
    }

    [Fact]
    public void FramesAtAMomentAreThoseOfAMachineThatIsReplayedToIt()
    {
        Timeline timeline = s_timeline.Value;
        var random = new Random(7);
        TimelineCursor cursor = timeline.Open();
        for (int i = 0; i < 8; i++)
        {
            int t = i switch { 0 => 0, 1 => Events, _ => random.Next(Events + 1) };
            cursor.MoveTo(t);
            timeline.Machines.Ask(t, machine =>
            {
                AssertSameFrames(new FrameScan(machine).Read(), cursor.Map, t);
                AssertCounts(machine, cursor, t);
                return 0;
            });
        }
    }

    [Fact]
    public void SeekingEndsWhereSingleStepsEnd()
    {
        Timeline timeline = s_timeline.Value;
        TimelineCursor jumping = timeline.Open();
        TimelineCursor stepping = timeline.Open();
        var random = new Random(8);
        int from = Events / 2;
        stepping.MoveTo(from);
        for (int i = 0; i < 40; i++)
        {
            // Away, and back to the neighbour of the moment before, both ways.
            int t = from + (i % 2 == 0 ? i : -i);
            for (int way = Math.Sign(t - stepping.Moment); stepping.Moment != t;)
                stepping.MoveTo(stepping.Moment + way);
            jumping.MoveTo(random.Next(Events + 1));
            jumping.MoveTo(t);
            AssertEqual(stepping.Map, jumping.Map, t);
            Assert.Equal(stepping.Counter(TickKind.Split), jumping.Counter(TickKind.Split));
            Assert.Equal(stepping.Counter(TickKind.ObjectAlloc), jumping.Counter(TickKind.ObjectAlloc));
        }
    }

    [Fact]
    public void AMomentDoesNotKnowWhatComesAfterIt()
    {
        using Timeline shorter = Read(Events / 3);
        TimelineCursor end = shorter.Open();
        end.MoveTo(shorter.Events);
        TimelineCursor cursor = s_timeline.Value.Open();
        cursor.MoveTo(Events);
        cursor.MoveTo(shorter.Events);
        AssertEqual(end.Map, cursor.Map, shorter.Events);
    }

    [Fact]
    public void TheBeginningIsTheBeginningAgain()
    {
        TimelineCursor cursor = s_timeline.Value.Open();
        cursor.MoveTo(Events);
        cursor.MoveTo(0);
        AssertEqual(s_timeline.Value.Start, cursor.Map, 0);
        foreach (TickKind kind in Enum.GetValues<TickKind>())
            Assert.Equal(0, cursor.Counter(kind));
    }

    private static Timeline Read(int events)
    {
        var stream = new FileStream(
            TestData.PathOf("../../samples/traces/git/trace.txt.gz"), FileMode.Open, FileAccess.Read);
        return Timeline.Read(
            FtraceReader.Open(stream, "git"),
            new TimelineOptions { MaxEvents = events, Replay = new ReplayOptions { RamBytes = 1UL << 30 } });
    }

    private static void AssertSameFrames(FrameMap expected, FrameMap actual, int t)
    {
        for (ulong pfn = 0; pfn < expected.Frames; pfn++)
        {
            FrameCell want = expected.At(pfn);
            FrameCell have = actual.At(pfn);
            bool same = have.Kind is FrameKind.Movable or FrameKind.Unmovable or FrameKind.Reclaimable
                ? want.Kind is FrameKind.Movable or FrameKind.Unmovable or FrameKind.Reclaimable
                : have.Kind == want.Kind && have.Order == want.Order && have.Owner == want.Owner
                    && have.InUse == want.InUse && have.Objects == want.Objects;
            Assert.True(same, $"t={t} pfn={pfn}: a replay has {Text(want)}, the time line {Text(have)}");
            Assert.Equal(expected.TypeOf(pfn), actual.TypeOf(pfn));
        }
    }

    private static void AssertCounts(Machine machine, TimelineCursor cursor, int t)
    {
        int index = 0;
        foreach (ZonePages zone in machine.Pages.Zones)
        {
            for (int order = 0; order <= PageOrder.Max; order++)
            {
                long free = Enum.GetValues<Migratetype>().Sum(type => cursor.Map.FreeBlocks(index, order, type));
                Assert.True(zone.Buddy.NrFree(order) == free, $"t={t} {zone.Zone.Name} order {order}: {free}");
            }

            for (int cpu = 0; cpu < machine.Cpus; cpu++)
                Assert.Equal(zone.CountOf(cpu), cursor.Map.PcpFrames(index, cpu));
            index++;
        }

        foreach (KmemCache cache in machine.Slabs.Caches)
        {
            Assert.True(cache.SlabCount == cursor.Map.Slabs(cache.Id + 1),
                $"t={t} {cache.Name}: {cache.SlabCount} slabs");
            Assert.Equal(cache.LiveCount, cursor.Active(cache.Id + 1));
        }
    }

    private static void AssertEqual(FrameMap expected, FrameMap actual, int t)
    {
        for (ulong pfn = 0; pfn < expected.Frames; pfn++)
        {
            Assert.True(
                expected.At(pfn).Equals(actual.At(pfn)) && expected.TypeOf(pfn) == actual.TypeOf(pfn)
                && expected.UsedOf(pfn) == actual.UsedOf(pfn),
                $"t={t} pfn={pfn}: {Text(expected.At(pfn))} and {Text(actual.At(pfn))}");
        }

        foreach (FrameKind kind in Enum.GetValues<FrameKind>())
            Assert.Equal(expected.FramesOf(kind), actual.FramesOf(kind));
    }

    private static string Text(FrameCell cell) =>
        $"{cell.Kind} order {cell.Order} owner {cell.Owner} {cell.InUse}/{cell.Objects} born {cell.Born}";
}
