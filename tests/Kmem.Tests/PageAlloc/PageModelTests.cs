namespace Kmem.Tests;

/// <summary>
/// A whole machine beside an obvious model: who owns each frame, and what was written into it. Random requests of every
/// kind from a seed; each answer must be aligned, of a zone that the request may use, disjoint from all others, and
/// keep its content. Once all is freed, the free blocks are those of a machine just booted.
/// </summary>
public sealed class PageModelTests
{
    private const int Steps = 3000;
    private const ulong MiB = 1UL << 20;

    private static readonly Dictionary<string, Shape> s_shapes = new(StringComparer.Ordinal)
    {
        ["tiny"] = new(new() { RamBytes = 8 * MiB, Cpus = 1 }),
        ["16 MiB"] = new(new() { RamBytes = 16 * MiB, Cpus = 1 }),
        ["64 MiB, 2 CPUs"] = new(new() { RamBytes = 64 * MiB, Cpus = 2 }),
        ["64 MiB, 2 nodes"] = new(new() { RamBytes = 64 * MiB, Cpus = 4, Nodes = 2 }),
        ["128 MiB, 4 nodes, 3 CPUs"] = new(new() { RamBytes = 128 * MiB, Cpus = 3, Nodes = 4 }),
        ["64 MiB, movable from 40 MiB"] = new(
            new() { RamBytes = 64 * MiB, Cpus = 2, MovableBytes = 24 * MiB }, [40 * MiB]),
        ["128 MiB, 2 nodes, half movable"] = new(
            new() { RamBytes = 128 * MiB, Cpus = 2, Nodes = 2, MovableBytes = 32 * MiB }, [32 * MiB, 96 * MiB]),
        ["holes"] = new(new() { MemoryMap = WithHoles(), Cpus = 2 }),
        ["two nodes with holes"] = new(new() { MemoryMap = TwoNodesWithHoles(), Cpus = 2 }),
        ["1 GiB"] = new(new() { RamBytes = 1024 * MiB, Cpus = 4 }),
        ["5 GiB"] = new(new() { RamBytes = 5 * 1024 * MiB, Cpus = 3 }),
        ["6 GiB, 2 nodes"] = new(new() { RamBytes = 6 * 1024 * MiB, Cpus = 4, Nodes = 2 }),
    };

    public static TheoryData<string, int> Runs()
    {
        var runs = new TheoryData<string, int>();
        foreach (string shape in s_shapes.Keys)
        {
            for (int seed = 1; seed <= 3; seed++)
                runs.Add(shape, seed);
        }

        return runs;
    }

    [Theory]
    [MemberData(nameof(Runs))]
    [Trait("rule", "PAGE-01")]
    [Trait("rule", "PAGE-02")]
    [Trait("rule", "PAGE-03")]
    [Trait("rule", "PAGE-04")]
    [Trait("rule", "PAGE-05")]
    [Trait("rule", "ZONE-04")]
    public void A_machine_keeps_its_promises(string shape, int seed)
    {
        using var run = new Run(s_shapes[shape], seed, $"{shape}, seed {seed}");
        for (int step = 0; step < Steps; step++)
            run.Step(step);
        run.End();
    }

    private static BootMemoryMap WithHoles()
    {
        var map = new BootMemoryMap();
        map.AddMemory(0x1000, 0x9f000);
        map.AddMemory(MiB, 15 * MiB);
        map.AddMemory((17 * MiB) + 0x5000, (17 * MiB) + 0x7000);
        map.AddMemory(20 * MiB, (61 * MiB) + 0x123000);
        map.AddMemory(4096 * MiB, (4096 + 33) * MiB);
        map.Reserve(0, 0x10000);
        map.Reserve(21 * MiB, (23 * MiB) + 0x1800);
        for (ulong at = 30 * MiB; at < 40 * MiB; at += 0x77000)
            map.Reserve(at, at + 0x3000);
        return map;
    }

    private static BootMemoryMap TwoNodesWithHoles()
    {
        var map = new BootMemoryMap();
        map.AddMemory(MiB, 30 * MiB, node: 1);              // the node with DMA is not the first one
        map.AddMemory(34 * MiB, (40 * MiB) + 0xb000, node: 0);
        map.AddMemory(42 * MiB, 70 * MiB, node: 0);
        map.AddMemory(90 * MiB, 110 * MiB, node: 1);
        map.AddMemory(4096 * MiB, (4096 + 20) * MiB, node: 0);
        map.Reserve(50 * MiB, 51 * MiB);
        return map;
    }

    /// <summary>A machine, and where zone Movable starts on each node (none: nowhere).</summary>
    private sealed record Shape(MachineOptions Options, ulong[]? MovableStart = null);

    private sealed class Block(ulong pfn, int order, bool compound)
    {
        public ulong Pfn { get; } = pfn;

        public int Order { get; set; } = order;

        public bool Compound { get; } = compound;

        public int References { get; set; } = 1;

        /// <summary>Allocated by size: freed by the same size.</summary>
        public nuint ExactBytes { get; init; }

        public ulong Frames => ExactBytes != 0 ? (ulong)(ExactBytes + 4095) / 4096 : 1UL << Order;
    }

    private sealed class Run : IDisposable
    {
        private static readonly Gfp[] s_bases =
        [
            Gfp.Kernel, Gfp.Kernel, Gfp.Kernel, Gfp.Atomic, Gfp.NoWait, Gfp.NoIO, Gfp.NoFS, Gfp.User, Gfp.HighUser,
            Gfp.HighUserMovable, Gfp.HighUserMovable, Gfp.Kernel | Gfp.Movable, Gfp.Kernel | Gfp.Reclaimable,
            Gfp.Dma, Gfp.Kernel | Gfp.Dma, Gfp.Kernel | Gfp.Dma32, Gfp.Atomic | Gfp.Dma32, Gfp.Kernel | Gfp.NoRetry,
            Gfp.Kernel | Gfp.RetryMayFail, Gfp.Kernel | Gfp.MemAlloc, Gfp.Kernel | Gfp.High, Gfp.None,
            Gfp.Atomic | Gfp.NoMemAlloc, Gfp.Dma | Gfp.Movable, Gfp.Kernel | Gfp.Dma32 | Gfp.Movable,
        ];

        private readonly Machine _machine;
        private readonly Shape _shape;
        private readonly BootMemoryMap _boot;
        private readonly Random _random;
        private readonly string _name;
        private readonly long[] _freeAtBoot;
        private readonly List<Block> _live = [];
        private readonly Dictionary<ulong, Block> _owner = [];
        private readonly ulong _mostFrames;
        private readonly HashSet<(int Node, ZoneType Zone)> _used = [];
        private ulong _frames;
        private bool _growing = true;
        private bool _reserved;
        private string _where = "";

        public Run(Shape shape, int seed, string name)
        {
            _shape = shape;
            _random = new Random(seed);
            _name = name;
            _machine = Machine.Boot(shape.Options);
            _boot = shape.Options.MemoryMap ?? BootMemoryMap.ForRam(shape.Options.RamBytes, shape.Options.Nodes);
            _machine.DrainAllPages();
            _freeAtBoot = FreeBlocks();

            // Machines of up to 128 MiB are used to the last frame, the others stay sparse.
            _mostFrames = Math.Min(1UL << 15, _boot.MemoryBytes / 4096);
        }

        public void Step(int step)
        {
            _where = $"{_name}, step {step}";
            if (_growing && _frames >= _mostFrames * 9 / 10)
                _growing = false;
            else if (_frames <= _mostFrames / 10)
                _growing = true;

            using CpuBinding on = _machine.RunOn(_random.Next(_machine.Cpus));
            int roll = _random.Next(100);
            if (roll < (_growing ? 50 : 20))
                Alloc();
            else if (roll < (_growing ? 54 : 22))
                AllocBulk();
            else if (roll < (_growing ? 58 : 24))
                AllocExact();
            else if (roll < 85)
                Free();
            else if (roll < 90)
                TakeReference();
            else if (roll < 94)
                Split();
            else if (roll == 94)
                _machine.DrainAllPages();
            else if (roll == 95 && _random.Next(20) == 0)
                _machine.ReturnFreeMemory(_random.Next(6, 11));
            if (step % 500 == 499)
                AssertValid();
        }

        public void End()
        {
            AssertValid();
            while (_live.Count > 0)
                Free();
            _where = $"{_name}, at the end";
            foreach (ZonePages zone in _machine.Pages.Zones)
            {
                _reserved |= zone.Zone.ReservedHighAtomic > 0;
                while (zone.Buddy.UnreserveHighAtomic(Migratetype.Movable, force: true, cpu: 0))
                    Assert.True(zone.Zone.ReservedHighAtomic >= 0);
            }

            _machine.DrainAllPages();
            AssertValid();
            long[] free = FreeBlocks();
            if (_reserved)
            {
                // Pageblocks that were reserve did not merge with their buddies when they became free.
                for (int at = 9; at < free.Length; at += 11)
                {
                    free[at] += 2 * free[at + 1];
                    _freeAtBoot[at] += 2 * _freeAtBoot[at + 1];
                    free[at + 1] = _freeAtBoot[at + 1] = 0;
                }
            }

            Assert.Equal(_freeAtBoot, free);
            Assert.True(
                _used.Count >= _machine.Pages.Zones.Count() - 1, $"{_where}: only {_used.Count} zones were used");
        }

        public void Dispose() => _machine.Dispose();

        private long[] FreeBlocks() =>
            [.. _machine.Pages.Zones.SelectMany(zone => Enumerable.Range(0, 11).Select(zone.Buddy.NrFree))];

        private void AssertValid() =>
            Assert.True(_machine.Validate() is { Count: 0 }, $"{_where}: {string.Join("\n", _machine.Validate())}");

        private void Alloc()
        {
            int order = _random.Next(10) switch { < 5 => 0, < 9 => _random.Next(5), _ => _random.Next(11) };
            Gfp gfp = s_bases[_random.Next(s_bases.Length)] | Gfp.NoWarn;
            gfp |= _random.Next(3) == 0 ? Gfp.Comp : 0;
            gfp |= _random.Next(4) == 0 ? Gfp.Zero : 0;
            int node = _random.Next(3) == 0 ? _random.Next(_machine.Nodes) : -1;
            gfp |= node >= 0 && _random.Next(2) == 0 ? Gfp.ThisNode : 0;
            Pfn pfn;
            if ((gfp & Gfp.DirectReclaim) == 0 && _random.Next(2) == 0)
            {
                using ContextScope atomic = _random.Next(2) == 0 ? _machine.Atomic() : _machine.SoftIrq();
                pfn = _machine.AllocPages(gfp, order, node);
            }
            else
            {
                pfn = _machine.AllocPages(gfp, order, node);
            }

            if (pfn.IsValid)
                Own(new Block(pfn.Value, order, (gfp & Gfp.Comp) != 0 && order > 0), gfp, node);
            else
                _growing &= order > 3;
        }

        private void AllocBulk()
        {
            var pages = new Pfn[_random.Next(1, 40)];
            Array.Fill(pages, Pfn.None);
            Gfp gfp = s_bases[_random.Next(s_bases.Length)] | Gfp.NoWarn | (_random.Next(3) == 0 ? Gfp.Zero : 0);
            int keep = _random.Next(3) == 0 ? _random.Next(pages.Length) : -1;
            Pfn kept = keep < 0 ? Pfn.None : _machine.AllocPages(Gfp.Kernel | Gfp.NoWarn, 0);
            if (keep >= 0)
                pages[keep] = kept;
            int filled = _machine.AllocPagesBulk(gfp, pages);
            int expected = Array.FindIndex(pages, pfn => !pfn.IsValid);
            Assert.True(filled == (expected < 0 ? pages.Length : expected), $"{_where}: bulk said {filled}");
            if (keep >= 0)
                Assert.Equal(kept, pages[keep].IsValid && !kept.IsValid ? Pfn.None : pages[keep]);
            for (int i = 0; i < pages.Length; i++)
            {
                if (pages[i].IsValid)
                    Own(new Block(pages[i].Value, 0, compound: false), pages[i] == kept ? Gfp.Kernel : gfp, -1);
            }
        }

        private unsafe void AllocExact()
        {
            var bytes = (nuint)_random.Next(1, 300_000);
            Gfp gfp = _random.Next(2) == 0 ? Gfp.Kernel : Gfp.Kernel | Gfp.Zero | Gfp.Dma32;
            void* address = _machine.AllocPagesExact(bytes, gfp | Gfp.NoWarn);
            if (address != null)
                Own(new Block(_machine.PfnOf(address).Value, 0, compound: false) { ExactBytes = bytes }, gfp, -1);
        }

        private unsafe void Free()
        {
            if (_live.Count == 0)
                return;

            int index = _random.Next(_live.Count);
            Block block = _live[index];
            CheckContent(block);
            block.References--;
            if (block.References == 0)
            {
                Disown(block, 0);
                _live[index] = _live[^1];
                _live.RemoveAt(_live.Count - 1);
            }
            else if (!block.Compound)
            {
                Disown(block, 1);       // the remaining reference covers the first frame only
            }

            if (block.ExactBytes != 0)
                _machine.FreePagesExact(_machine.AddressOf(new Pfn(block.Pfn)), block.ExactBytes);
            else
                _machine.FreePages(new Pfn(block.Pfn), block.Order);
            if (block.References > 0 && !block.Compound)
                block.Order = 0;
        }

        private void TakeReference()
        {
            if (_live.Count == 0 || _live[_random.Next(_live.Count)] is not { ExactBytes: 0 } block)
                return;

            _machine.GetPage(new Pfn(block.Pfn));
            block.References++;
        }

        private void Split()
        {
            if (_live.Count == 0)
                return;

            int index = _random.Next(_live.Count);
            Block block = _live[index];
            if (block.Compound || block.References > 1 || block.ExactBytes != 0)
                return;

            CheckContent(block);
            _machine.SplitPages(new Pfn(block.Pfn), block.Order);
            _live[index] = _live[^1];
            _live.RemoveAt(_live.Count - 1);
            for (ulong frame = block.Pfn; frame < block.Pfn + block.Frames; frame++)
            {
                var single = new Block(frame, 0, compound: false);
                _live.Add(single);
                _owner[frame] = single;
                Write(single);
            }
        }

        private unsafe void Own(Block block, Gfp gfp, int node)
        {
            Assert.True(
                block.ExactBytes != 0 || block.Pfn % block.Frames == 0, $"{_where}: {block.Pfn} is not aligned");
            (int Node, ZoneType Zone) first = ZoneOf(block.Pfn);
            _used.Add(first);
            Assert.True(first.Zone <= HighestZone(gfp), $"{_where}: {gfp} got a frame of {first.Zone}");
            Assert.True((gfp & Gfp.ThisNode) == 0 || first.Node == node, $"{_where}: {gfp} left node {node}");
            for (ulong frame = block.Pfn; frame < block.Pfn + block.Frames; frame++)
            {
                Assert.True(ZoneOf(frame) == first, $"{_where}: {block.Pfn} spans zones");
                Assert.False(_boot.IsReserved(frame * 4096), $"{_where}: frame {frame} is reserved");
                Assert.True(_owner.TryAdd(frame, block), $"{_where}: frame {frame} was given out twice");
                if ((gfp & Gfp.Zero) != 0)
                {
                    var memory = new ReadOnlySpan<byte>(_machine.AddressOf(new Pfn(frame)), 4096);
                    Assert.True(memory.IndexOfAnyExcept((byte)0) < 0, $"{_where}: frame {frame} is not zero");
                }
            }

            _frames += block.Frames;
            _live.Add(block);
            Write(block);
        }

        private void Disown(Block block, ulong keep)
        {
            for (ulong frame = block.Pfn + keep; frame < block.Pfn + block.Frames; frame++)
                Assert.True(_owner.Remove(frame));
            _frames -= block.Frames - keep;
        }

        private unsafe void Write(Block block)
        {
            for (ulong frame = block.Pfn; frame < block.Pfn + block.Frames; frame++)
            {
                var words = (ulong*)_machine.AddressOf(new Pfn(frame));
                words[0] = Pattern(block, frame);
                words[511] = ~Pattern(block, frame);
            }
        }

        private unsafe void CheckContent(Block block)
        {
            for (ulong frame = block.Pfn; frame < block.Pfn + block.Frames; frame++)
            {
                var words = (ulong*)_machine.AddressOf(new Pfn(frame));
                Assert.True(
                    words[0] == Pattern(block, frame) && words[511] == ~Pattern(block, frame),
                    $"{_where}: frame {frame} of block {block.Pfn} was overwritten");
            }
        }

        private static ulong Pattern(Block block, ulong frame) => (block.Pfn << 32) ^ (frame * 0x9e3779b97f4a7c15);

        private (int Node, ZoneType Zone) ZoneOf(ulong pfn)
        {
            int node = _boot.NodeOfPage(pfn);
            Assert.True(node >= 0, $"{_where}: frame {pfn} is no memory");
            ulong address = pfn * 4096;
            if (_shape.MovableStart is { } movable && address >= movable[node])
                return (node, ZoneType.Movable);
            return (node, address < 16 * MiB ? ZoneType.Dma : address < 4096 * MiB ? ZoneType.Dma32 : ZoneType.Normal);
        }

        private static ZoneType HighestZone(Gfp gfp) =>
            (gfp & Gfp.Dma) != 0 ? ZoneType.Dma
            : (gfp & Gfp.Dma32) != 0 ? ZoneType.Dma32
            : (gfp & (Gfp.Movable | Gfp.HighMem)) == (Gfp.Movable | Gfp.HighMem) ? ZoneType.Movable
            : ZoneType.Normal;
    }
}
