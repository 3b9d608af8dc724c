namespace Kmem.Tests;

/// <summary>Every sequence of six operations on a zone of eight frames, each step beside the model.</summary>
public sealed class TinyBuddyTests
{
    private const ulong Frames = 8;
    private const int Length = 6;

    /// <summary>An operation is an order to allocate (0 to 3), or 4 + the index of the live block to free.</summary>
    [Fact]
    [Trait("rule", "BUDDY-01")]
    [Trait("rule", "BUDDY-02")]
    [Trait("rule", "BUDDY-03")]
    [Trait("rule", "BUDDY-10")]
    [Trait("rule", "BUDDY-11")]
    [Trait("rule", "BUDDY-12")]
    public void All_sequences_of_six_operations_follow_the_rules()
    {
        var sequence = new List<int>();
        int runs = 0;
        int failures = 0;
        Extend(sequence, ref runs, ref failures);
        Assert.True(runs > 10_000, $"only {runs} sequences");
        Assert.True(failures > 1000, $"only {failures} allocations found nothing");
    }

    /// <summary>Depth first; each full sequence is run from an empty zone.</summary>
    private static void Extend(List<int> sequence, ref int runs, ref int failures)
    {
        int live = Run(sequence, ref failures);
        if (sequence.Count == Length)
        {
            runs++;
            return;
        }

        for (int operation = 0; operation < 4 + live; operation++)
        {
            sequence.Add(operation);
            Extend(sequence, ref runs, ref failures);
            sequence.RemoveAt(sequence.Count - 1);
        }
    }

    private static unsafe int Run(List<int> sequence, ref int failures)
    {
        using var real = new BareZone(0, Frames);
        var model = new ZoneModel(0, Frames, cpus: 1);
        real.HandOver(0, Frames);
        model.HandOver(0, Frames);
        Compare(real, model, [], sequence);
        var live = new List<(ulong Pfn, int Order)>();
        foreach (int operation in sequence)
        {
            if (operation < 4)
            {
                ulong? expected = model.Take(operation, Migratetype.Movable, cpu: 0);
                ulong? got = real.PfnOf(real.TakeBlock(operation, Migratetype.Movable));
                Assert.True(expected == got, $"[{string.Join(' ', sequence)}]: expected {expected}, got {got}");
                if (got is { } pfn)
                    live.Add((pfn, operation));
                else
                    failures++;
            }
            else
            {
                (ulong pfn, int order) = live[operation - 4];
                live.RemoveAt(operation - 4);
                model.FreeOne(pfn, order, Migratetype.Movable, toTail: false, cpu: 0);
                real.Pages.GiveToBuddy(real.PageOf(pfn), order, FreeFlags.None, cpu: 0);
            }

            Compare(real, model, live, sequence);
        }

        return live.Count;
    }

    private static unsafe void Compare(
        BareZone real, ZoneModel model, List<(ulong Pfn, int Order)> live, List<int> sequence)
    {
        string where = $"[{string.Join(' ', sequence)}]";
        var owner = new int[Frames];            // how many blocks claim each frame: exactly one
        foreach ((ulong pfn, int order) in live)
            Cover(owner, pfn, order);
        long free = 0;
        for (int order = 0; order <= PageOrder.Max; order++)
        {
            ulong[] expected = model.Free(order, Migratetype.Movable);
            ulong[] actual = real.Free(order, Migratetype.Movable);
            Assert.True(expected.SequenceEqual(actual), $"{where}: order {order}");
            Assert.True(actual.Length == real.Buddy.NrFree(order), $"{where}: nr_free of order {order}");
            foreach (ulong pfn in actual)
            {
                Assert.True(pfn % (1UL << order) == 0, $"{where}: {pfn} is not aligned to order {order}");
                Assert.True(real.PageOf(pfn)->Private == (ulong)order, $"{where}: {pfn} forgot its order");
                Assert.False(actual.Contains(pfn ^ (1UL << order)), $"{where}: {pfn} and its buddy are free");
                Cover(owner, pfn, order);
                free += 1L << order;
            }
        }

        Assert.True(owner.All(count => count == 1), $"{where}: frames are claimed {string.Join(' ', owner)} times");
        Assert.True(free == real.Zone.FreePages, $"{where}: {free} frames are free, counted {real.Zone.FreePages}");
    }

    private static void Cover(int[] owner, ulong pfn, int order)
    {
        for (ulong frame = pfn; frame < pfn + (1UL << order); frame++)
            owner[frame]++;
    }
}
