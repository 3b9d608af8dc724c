using System.Globalization;

namespace Kmem.Tests;

/// <summary>
/// One zone beside its model, random operations from a seed: the free lists, the per-CPU lists, every counter and every
/// event are equal after each step.
/// </summary>
public sealed class ZoneModelTests
{
    private const int Steps = 4000;

    public static TheoryData<int, int> Seeds()
    {
        var seeds = new TheoryData<int, int>();
        for (int shape = 0; shape < Shape.All.Length; shape++)
        {
            for (int seed = 1; seed <= 4; seed++)
                seeds.Add(shape, seed);
        }

        return seeds;
    }

    [Theory]
    [MemberData(nameof(Seeds))]
    [Trait("rule", "BUDDY-02")]
    [Trait("rule", "BUDDY-10")]
    [Trait("rule", "BUDDY-11")]
    [Trait("rule", "BUDDY-12")]
    [Trait("rule", "FALLBACK-01")]
    [Trait("rule", "FALLBACK-02")]
    [Trait("rule", "PCP-04")]
    [Trait("rule", "PCP-05")]
    public void A_zone_equals_its_model_after_every_step(int shape, int seed)
    {
        using var pair = new Pair(Shape.All[shape], seed);
        pair.HandOver();
        for (int step = 0; step < Steps; step++)
        {
            string what = pair.Step(step);
            pair.Compare($"shape {shape}, seed {seed}, step {step}: {what}");
        }

        pair.FreeAll();
        pair.Compare($"shape {shape}, seed {seed}, after freeing everything");
        Assert.Equal(pair.Managed, pair.FreeFrames);
        Assert.Empty(Shape.All[shape].Expects.Except(pair.Seen, StringComparer.Ordinal));
    }

    /// <summary>Size of the zone, holes, and what differs between kernels' configurations.</summary>
    private sealed record Shape(ulong Start, ulong End, int Cpus, int Batch, int HighMin, int HighMax)
    {
        private static readonly string[] s_small =
            ["claims a pageblock", "claims part of a pageblock", "drains", "raises BOOSTED"];

        // Below 51200 frames no HighAtomic reserve is allowed (1 % is less than a pageblock).
        public static readonly Shape[] All =
        [
            new(0, 8 * 512, 1, 1, 4, 4) { Expects = [.. s_small, "steals"] },
            new(0, 8 * 512, 2, 7, 28, 300) { Expects = ["claims a pageblock", "drains"], Grouping = false },
            new(512, (9 * 512) + 100, 2, 3, 12, 100) { Expects = [.. s_small, "steals"] },
            new(300, 5000, 1, 15, 60, 60) { Expects = s_small, HoleEvery = 700 },
            new(1024, 1024 + (20 * 512), 3, 31, 124, 900)
            {
                Expects = [.. s_small, "steals"], Threshold = 20, KeepsBatch = true,
            },
            new(0, 52224, 2, 7, 28, 600)
            {
                Expects = ["steals", "drains", "reserves", "claims part of a pageblock"],
                Threshold = 6,
                BoostFactor = 0,
                MeanOrder = 5,
            },
        ];

        /// <summary>What a run must have met to mean anything.</summary>
        public required string[] Expects { get; init; }

        public bool Grouping { get; init; } = true;

        public bool KeepsBatch { get; init; }

        public ulong HoleEvery { get; init; }

        /// <summary>The usual order of a request: large zones must fill up, too.</summary>
        public int MeanOrder { get; init; }

        public int Threshold { get; init; }

        public int BoostFactor { get; init; } = 15000;
    }

    private sealed class Pair : IDisposable
    {
        private readonly Shape _shape;
        private readonly Random _random;
        private readonly BareZone _real;
        private readonly ZoneModel _model;
        private readonly List<(ulong Pfn, int Order)> _live = [];
        private bool _growing = true;
        private int _failed;
        private int _full;
        private Migratetype _favourite = Migratetype.Unmovable;

        public Pair(Shape shape, int seed)
        {
            _shape = shape;
            _random = new Random(seed);
            _real = new BareZone(shape.Start, shape.End, shape.Cpus);
            _model = new ZoneModel(shape.Start, shape.End, shape.Cpus);
        }

        public HashSet<string> Seen { get; } = new(StringComparer.Ordinal);

        public ulong Managed => (ulong)_model.Managed;

        public ulong FreeFrames
        {
            get
            {
                ulong frames = 0;
                for (int order = 0; order <= PageOrder.Max; order++)
                    frames += (ulong)_real.Buddy.NrFree(order) << order;
                return frames;
            }
        }

        public unsafe void HandOver()
        {
            for (ulong at = _shape.Start; at < _shape.End;)
            {
                // Holes of 37 frames, at odd places: they leave ragged edges.
                ulong end = _shape.HoleEvery == 0 ? _shape.End : Math.Min(_shape.End, at + _shape.HoleEvery);
                _real.HandOver(at, end);
                _model.HandOver(at, end);
                at = end + 37;
            }

            var marks = new Watermarks(40, 50, 60, 70);
            _real.Zone.Watermarks = marks;
            _real.Zone.StatThreshold = _shape.Threshold;
            _real.Buddy.WatermarkBoostFactor = _shape.BoostFactor;
            _real.Buddy.GroupingDisabled = !_shape.Grouping;
            _model.HighMark = marks.High;
            _model.StatThreshold = _shape.Threshold;
            _model.BoostFactor = _shape.BoostFactor;
            _model.GroupingDisabled = !_shape.Grouping;
            for (int cpu = 0; cpu < _shape.Cpus; cpu++)
            {
                PerCpuPages* pcp = _real.Pages.PcpOf(cpu);
                (pcp->Batch, pcp->HighMin, pcp->HighMax) = (_shape.Batch, _shape.HighMin, _shape.HighMax);
                pcp->Flags = _shape.KeepsBatch ? PcpFlags.FreeHighBatch : PcpFlags.None;
                ZoneModel.CpuLists lists = _model.Cpu(cpu);
                (lists.Batch, lists.HighMin, lists.HighMax) = (_shape.Batch, _shape.HighMin, _shape.HighMax);
                lists.KeepsBatch = _shape.KeepsBatch;
            }
        }

        public string Step(int step)
        {
            // Waves: until requests fail, then back to a third, with another favourite type each time. Types run short
            // at different moments, so that every fallback has its day.
            if (_growing && _failed > 10)
            {
                _growing = false;
                _full = _live.Count;
            }
            else if (!_growing && _live.Count <= _full / 3)
            {
                _growing = true;
                _failed = 0;
                _favourite = (Migratetype)_random.Next(3);
            }

            int cpu = _random.Next(_shape.Cpus);
            int roll = _random.Next(1000);
            if (roll < (_growing ? 800 : 300))
                return Alloc(cpu);
            if (roll < 940)
                return Free(cpu);
            if (roll < 970)
                return Toggle();
            if (roll < 980)
                return Maintain(cpu);
            return HighAtomic(cpu);
        }

        public unsafe void FreeAll()
        {
            while (_live.Count > 0)
                Free(cpu: 0);
            for (int cpu = 0; cpu < _shape.Cpus; cpu++)
            {
                _real.Pages.Drain(cpu, cpu);
                _model.DrainCpu(cpu);
            }
        }

        public unsafe void Compare(string when)
        {
            Assert.True(
                _model.Events.SequenceEqual(_real.Trace.Events, StringComparer.Ordinal), when + ": " + EventsDiffer());
            foreach (ExtfragEvent fallback in _real.Trace.Fallbacks)
            {
                Seen.Add(
                    !fallback.ChangeOwnership ? "steals"
                    : fallback.Fragmenting ? "claims part of a pageblock"
                    : "claims a pageblock");
            }

            if (_real.Trace.Events.Exists(text => text.StartsWith("drain", StringComparison.Ordinal)))
                Seen.Add("drains");
            if (_model.ReservedHighAtomic > 0)
                Seen.Add("reserves");
            if (_model.BoostedWatermark)
                Seen.Add("raises BOOSTED");
            _real.Trace.Fallbacks.Clear();
            _model.Events.Clear();
            _real.Trace.Events.Clear();
            for (int order = 0; order <= PageOrder.Max; order++)
            {
                long blocks = 0;
                for (Migratetype type = 0; type <= Migratetype.Isolate; type++)
                {
                    ulong[] expected = _model.Free(order, type);
                    blocks += expected.Length;
                    Same(expected, _real.Free(order, type), $"{when}: free list of order {order}, {type}");
                }

                Same(blocks, _real.Buddy.NrFree(order), $"{when}: nr_free of order {order}");
            }

            for (ulong pfn = _shape.Start & ~511UL; pfn < _shape.End; pfn += 512)
                Same(_model.TypeOf(pfn), _real.Blocks.TypeOf(pfn), $"{when}: type of the pageblock at {pfn}");
            Same(_model.FreePages, _real.Zone.FreePages, $"{when}: NR_FREE_PAGES");
            Same(_model.FreeHighAtomic, _real.Zone.FreeHighAtomic, $"{when}: free HighAtomic");
            Same(_model.ReservedHighAtomic, _real.Zone.ReservedHighAtomic, $"{when}: reserved HighAtomic");
            Same(_model.Boost, _real.Zone.Boost, $"{when}: boost");
            Same(_model.BelowHigh, (_real.Zone.Flags & ZoneFlags.BelowHigh) != 0, $"{when}: BELOW_HIGH");
            Same(
                _model.BoostedWatermark, (_real.Zone.Flags & ZoneFlags.BoostedWatermark) != 0, $"{when}: BOOSTED");
            for (int cpu = 0; cpu < _shape.Cpus; cpu++)
                ComparePerCpu(cpu, when);
        }

        public void Dispose() => _real.Dispose();

        private static void Same<T>(T expected, T actual, string what) =>
            Assert.True(EqualityComparer<T>.Default.Equals(expected, actual), $"{what}: {expected} != {actual}");

        private static void Same(ulong[] expected, ulong[] actual, string what) =>
            Assert.True(
                expected.SequenceEqual(actual),
                $"{what}: [{string.Join(' ', expected)}] != [{string.Join(' ', actual)}]");

        private unsafe string Alloc(int cpu)
        {
            int order = Math.Min(10, _shape.MeanOrder + _random.Next(10) switch
            {
                < 6 => 0,
                < 9 => _random.Next(4),
                _ => _random.Next(-_shape.MeanOrder, 11),
            });
            Migratetype type = !_shape.Grouping ? Migratetype.Unmovable
                : _random.Next(3) == 0 ? (Migratetype)_random.Next(3)
                : _favourite;
            AllocFlags flags = _random.Next(8) switch
            {
                0 => AllocFlags.NoFragment | AllocFlags.Kswapd,
                1 => AllocFlags.NonBlock | AllocFlags.MinReserve | (order > 0 ? AllocFlags.HighAtomic : 0),
                2 => AllocFlags.Oom,
                _ => AllocFlags.Kswapd,
            };
            string what = string.Create(CultureInfo.InvariantCulture, $"cpu {cpu} takes order {order} {type} {flags}");
            ulong? expected = _model.Alloc(order, type, flags, cpu);
            Page* page = _real.Take(order, type, flags, cpu);
            Assert.True(expected == _real.PfnOf(page), $"{what}: {expected} expected, got {_real.PfnOf(page)}");
            if (expected is not { } pfn)
            {
                _failed++;
                return what + ": nothing";
            }

            if (_random.Next(4) == 0)
            {
                page->Flags |= PageFlags.Lru;
                _model.Lru.Add(pfn);
            }

            if ((flags & AllocFlags.HighAtomic) != 0)
            {
                _real.Buddy.ReserveHighAtomic(page, order, cpu);
                _model.Reserve(pfn, order, cpu);
            }

            _live.Add((pfn, order));
            return $"{what}: {pfn}";
        }

        private unsafe string Free(int cpu)
        {
            if (_live.Count == 0)
                return "nothing to free";

            int index = _random.Next(3) == 0 ? _live.Count - 1 : _random.Next(_live.Count);
            (ulong pfn, int order) = _live[index];
            _live[index] = _live[^1];
            _live.RemoveAt(_live.Count - 1);
            _real.PageOf(pfn)->Flags = PageFlags.None;
            _model.Lru.Remove(pfn);
            if (_random.Next(8) == 0)
            {
                _real.Pages.GiveToBuddy(_real.PageOf(pfn), order, FreeFlags.ToTail, cpu);
                _model.FreeToBuddy(pfn, order, toTail: true, cpu);
                return $"cpu {cpu} frees {pfn} of order {order} to the tail";
            }

            _real.Give(_real.PageOf(pfn), order, cpu);
            _model.FreePage(pfn, order, cpu);
            return $"cpu {cpu} frees {pfn} of order {order}";
        }

        private string Toggle()
        {
            ZoneFlags flag = _random.Next(2) == 0 ? ZoneFlags.BelowHigh : ZoneFlags.ReclaimActive;
            bool on = (_real.Zone.Flags & flag) == 0;
            if (on)
                _real.Zone.SetFlag(flag);
            else
                _real.Zone.ClearFlag(flag);
            if (flag == ZoneFlags.BelowHigh)
                _model.BelowHigh = on;
            else
                _model.ReclaimActive = on;
            return $"{flag} {on}";
        }

        private string Maintain(int cpu)
        {
            if (_random.Next(2) == 0)
            {
                _real.Pages.Decay(cpu);
                _model.Decay(cpu);
                return $"cpu {cpu} decays";
            }

            _real.Pages.Drain(cpu, cpu);
            _model.DrainCpu(cpu);
            return $"cpu {cpu} drains";
        }

        private string HighAtomic(int cpu)
        {
            bool force = _random.Next(2) == 0;
            var to = (Migratetype)(_shape.Grouping ? _random.Next(3) : 0);
            bool expected = _model.Unreserve(to, force, cpu);
            Assert.Equal(expected, _real.Buddy.UnreserveHighAtomic(to, force, cpu));
            return $"unreserve for {to}: {expected}";
        }

        private string EventsDiffer()
        {
            int at = 0;
            List<string> expected = _model.Events, actual = _real.Trace.Events;
            while (at < expected.Count && at < actual.Count && expected[at] == actual[at])
                at++;
            return $"event {at} is '{actual.ElementAtOrDefault(at)}', expected '{expected.ElementAtOrDefault(at)}'";
        }

        private unsafe void ComparePerCpu(int cpu, string when)
        {
            PerCpuPages* pcp = _real.Pages.PcpOf(cpu);
            ZoneModel.CpuLists lists = _model.Cpu(cpu);
            string who = $"{when}: cpu {cpu}";
            Same(lists.Count, pcp->Count, $"{who} count");
            Same(lists.High, pcp->High, $"{who} high");
            Same(lists.AllocFactor, pcp->AllocFactor, $"{who} alloc_factor");
            Same(lists.FreeCount, pcp->FreeCount, $"{who} free_count");
            Same(
                lists.PreviousWasHigh, (pcp->Flags & PcpFlags.PrevFreeHighOrder) != 0, $"{who} PREV_FREE_HIGH_ORDER");
            for (int index = 0; index < PerCpuPages.ListCount; index++)
                Same([.. lists.Blocks[index]], _real.PerCpu(cpu, index), $"{who} list {index}");
        }
    }
}
