namespace Kmem.Tests;

/// <summary>
/// The page allocator under simulated CPUs: per-CPU lists, drains from other CPUs, splitting and merging.
/// </summary>
public sealed class PageSimulationTests
{
    [Theory]
    [InlineData(2)]
    [InlineData(4)]
    public void Blocks_of_pages(int cpus) =>
        new Explorer($"pages-{cpus}", seed => new Blocks(seed, cpus, threads: cpus, pinned: true)).MustHold(200);

    [Fact]
    public void More_threads_than_cpus() =>
        new Explorer("pages-threads", seed => new Blocks(seed, 2, threads: 3, pinned: false)).MustHold(150);

    [Fact]
    public void A_lock_that_does_not_lock_is_found()
    {
        var explorer = new Explorer("planted", seed => new Blocks(seed, 2, threads: 3, pinned: true))
        {
            Open = LockRank.Zone,
        };
        Failure? failure = explorer.Explore(3000);
        Assert.True(failure != null, $"nothing found in {explorer.Interleavings} interleavings");
        TestContext.Current.TestOutputHelper?.WriteLine(failure.ToString());
    }

    private sealed class Blocks : SimulatedMachine
    {
        private readonly (Pfn Pfn, int Order)?[] _table = new (Pfn, int)?[8];
        private readonly Dictionary<ulong, ulong> _owned = [];

        public Blocks(int seed, int cpus, int threads, bool pinned)
            : base(seed, seed % 2 == 0 ? KernelProfile.Linux618 : KernelProfile.Native, cpus)
        {
            for (int i = 0; i < threads; i++)
                AddCpu(25, (random, _, _) => Thing(random), pinned ? i % cpus : null, pinned ? 1 : 2);
        }

        public override void Check()
        {
            for (int i = 0; i < _table.Length; i++)
                Exchange(i, null);
            Assert.Empty(_owned);
            base.Check();
        }

        private void Thing(Random random)
        {
            switch (random.Next(20))
            {
                case < 14:
                    int order = random.Next(4) == 0 ? random.Next(11) : random.Next(4);
                    Gfp gfp = random.Next(2) == 0 ? Gfp.Kernel : Gfp.Atomic | Gfp.Movable;
                    Pfn pfn = Machine.AllocPages(gfp | Gfp.NoWarn, order);
                    if (pfn == Pfn.None)
                        break;

                    Own(pfn, order);
                    if (order > 0 && random.Next(4) == 0)
                        SplitAndFree(pfn, order);
                    else
                        Exchange(random.Next(_table.Length), (pfn, order));
                    break;
                case < 17:
                    Exchange(random.Next(_table.Length), null);
                    break;
                case 17:
                    Machine.DrainAllPages();
                    break;
                case 18:
                    Machine.Tick();
                    break;
                default:
                    var pages = new Pfn[random.Next(1, 20)];
                    Array.Fill(pages, Pfn.None);
                    int got = Machine.AllocPagesBulk(Gfp.Kernel, pages);
                    foreach (Pfn page in pages.AsSpan(0, got))
                        Own(page, 0);
                    SimPoint.Here();
                    foreach (Pfn page in pages.AsSpan(0, got))
                        Free(page, 0);
                    break;
            }
        }

        private void SplitAndFree(Pfn pfn, int order)
        {
            Machine.SplitPages(pfn, order);
            for (ulong i = 0; i < 1UL << order; i++)
                Free(new Pfn(pfn.Value + i), 0);
        }

        private void Exchange(int place, (Pfn Pfn, int Order)? block)
        {
            (Pfn Pfn, int Order)? before = _table[place];
            _table[place] = block;
            if (before is { } old)
                Free(old.Pfn, old.Order);
        }

        /// <summary>The specification: no frame has two owners.</summary>
        private void Own(Pfn pfn, int order)
        {
            for (ulong frame = pfn.Value; frame < pfn.Value + (1UL << order); frame++)
                Assert.True(_owned.TryAdd(frame, pfn.Value), $"frame {frame} was handed out twice");
        }

        private void Free(Pfn pfn, int order)
        {
            for (ulong frame = pfn.Value; frame < pfn.Value + (1UL << order); frame++)
                Assert.True(_owned.Remove(frame), $"frame {frame} had no owner");
            Machine.FreePages(pfn, order);
        }
    }
}
