namespace Kmem.Tests;

/// <summary>
/// Random histories on several CPUs and nodes: after every operation each free list, chain and partial list of the
/// machine has the content and the order that <see cref="SlubReference"/> computed from the rules, and slabs went back
/// to the page allocator in its order.
/// </summary>
public sealed class SlubReferenceTests
{
    [Theory]
    [InlineData(1, 1, 1, 512, false)]
    [InlineData(2, 2, 1, 1024, false)]
    [InlineData(3, 3, 1, 4096, false)]
    [InlineData(4, 2, 1, 20000, false)]
    [InlineData(5, 4, 1, 2048, true)]
    [InlineData(6, 4, 2, 1024, false)]
    [InlineData(7, 4, 2, 4096, true)]
    [InlineData(8, 2, 1, 96, false)]
    [InlineData(9, 3, 1, 8192, false)]
    public void Orders_are_those_of_the_rules(int seed, int cpus, int nodes, int size, bool hardened)
    {
        var history = new History(seed, cpus, nodes, size, hardened);
        history.Run(4000);
    }

    private sealed class History
    {
        private readonly Random _random;
        private readonly Machine _machine;
        private readonly KmemCache[] _caches;
        private readonly SlubReference _reference = new();
        private readonly SlubReference.Cache[] _expected;
        private readonly List<nint>[] _live;
        private readonly TraceRecorder _trace = new();
        private readonly List<nint> _large = [];
        private readonly int _nodes;
        private string _what = "";
        private int _discards;

        public History(int seed, int cpus, int nodes, int size, bool hardened)
        {
            _random = new Random(seed);
            _nodes = nodes;
            _machine = Machine.Boot(new MachineOptions
            {
                Profile = KernelProfile.Linux618,
                RamBytes = 512 << 20,
                Cpus = cpus,
                Nodes = nodes,
                SlabFreelistHardened = hardened,
            });
            bool remote = seed % 2 == 0;
            int[] nodeOfCpu = Enumerable.Range(0, cpus).Select(cpu => cpu * nodes / cpus).ToArray();
            _caches = [Create("first", size), Create("second", 640)];
            _expected = _caches
                .Select(cache => new SlubReference.Cache(_reference, cache, nodeOfCpu, nodes, remote)).ToArray();
            _live = _caches.Select(_ => new List<nint>()).ToArray();
            foreach (KmemCache cache in _caches)
                cache.RemoteNodeDefragRatio = remote ? 1024 : 0;
            _machine.Trace = _trace;
        }

        public void Run(int steps)
        {
            using Machine machine = _machine;
            for (int step = 0; step < steps; step++)
            {
                try
                {
                    Step(growing: step / 300 % 2 == 0);
                    Compare();
                }
                catch (Exception error)
                {
                    throw new InvalidOperationException($"step {step}, {_what}: {error.Message}", error);
                }
            }

            Assert.Empty(machine.Validate());
            Assert.True(_discards > 5, $"only {_discards} slabs were given back");
        }

        private unsafe void Step(bool growing)
        {
            int which = _random.Next(4) == 0 ? 1 : 0;
            int cpu = _random.Next(_machine.Cpus);
            using CpuBinding binding = _machine.RunOn(cpu);
            KmemCache cache = _caches[which];
            List<nint> live = _live[which];
            int kind = _random.Next(20);
            if (kind < (growing ? 11 : 6))
            {
                int node = _nodes > 1 && _random.Next(5) == 0 ? _random.Next(_nodes) : -1;
                int count = _random.Next(1, 6);
                for (int i = 0; i < count; i++)
                    AllocOne(cache, _expected[which], cpu, node, live);
            }
            else if (kind < 16)
            {
                for (int count = _random.Next(1, 8); count > 0 && live.Count > 0; count--)
                    FreeOne(which, cpu, live);
            }
            else if (kind == 16)
            {
                FreeSome(which, cpu);
            }
            else if (kind == 17)
            {
                AllocSome(cache, _expected[which], cpu, live);
            }
            else if (kind == 18 && _random.Next(4) == 0)
            {
                _what = "shrink";
                cache.Shrink();
                _expected[which].Shrink();
            }
            else if (kind == 19 && _random.Next(4) == 0)
            {
                _what = "flush";
                cache.FlushAll();
                _expected[which].Flush();
            }
        }

        private unsafe void AllocOne(KmemCache cache, SlubReference.Cache expected, int cpu, int node, List<nint> live)
        {
            _what = $"cpu {cpu}: {cache.Name} alloc, node {node}";
            var obj = (nint)cache.Alloc(Gfp.Kernel, node);
            Assert.Equal(expected.Alloc(cpu, node, obj), obj);
            live.Add(obj);
        }

        private unsafe void FreeOne(int which, int cpu, List<nint> live)
        {
            // Mostly young ones: whole slabs get empty that way.
            int index = _random.Next(3) == 0 ? _random.Next(live.Count) : Math.Max(0, live.Count - 1 - _random.Next(20));
            nint obj = live[index];
            live.RemoveAt(index);
            _what = $"cpu {cpu}: {_caches[which].Name} free 0x{obj:x}";
            _caches[which].Free((void*)obj);
            _expected[which].Free(cpu, [obj]);
        }

        private unsafe void AllocSome(KmemCache cache, SlubReference.Cache expected, int cpu, List<nint> live)
        {
            var objects = new nint[_random.Next(1, 40)];
            _what = $"cpu {cpu}: {cache.Name} bulk of {objects.Length}";
            Assert.Equal(objects.Length, cache.AllocBulk(Gfp.Kernel, objects));
            foreach (nint obj in objects)
                Assert.Equal(expected.Alloc(cpu, -1, obj), obj);
            live.AddRange(objects);
            if (_large.Count < 4)
                _large.Add((nint)_machine.Kmalloc(10_000, Gfp.Kernel));
        }

        private void FreeSome(int which, int cpu)
        {
            bool anyCache = _random.Next(2) == 0;
            _what = $"cpu {cpu}: bulk free, {(anyCache ? "any cache" : _caches[which].Name)}";
            var objects = new List<nint>();
            for (int i = 0; i < _caches.Length; i++)
            {
                if (i != which && !anyCache)
                    continue;

                int count = Math.Min(_random.Next(1, 25), _live[i].Count);
                objects.AddRange(_live[i].GetRange(_live[i].Count - count, count));
                _live[i].RemoveRange(_live[i].Count - count, count);
            }

            if (anyCache)
            {
                objects.AddRange(_large);
                _large.Clear();
            }

            nint[] array = objects.ToArray();
            if (_random.Next(3) != 0)
                _random.Shuffle(array);
            if (anyCache)
                _machine.KfreeBulk((nint[])array.Clone());
            else
                _caches[which].FreeBulk((nint[])array.Clone());
            _reference.FreeBulk(anyCache ? null : _expected[which], cpu, array);
        }

        private void Compare()
        {
            for (int i = 0; i < _caches.Length; i++)
            {
                KmemCache cache = _caches[i];
                SlubReference.Cache expected = _expected[i];
                for (int cpu = 0; cpu < _machine.Cpus; cpu++)
                {
                    nint current = SlabView.CurrentSlab(cache, cpu);
                    Assert.Equal(expected.Cpus[cpu].Slab?.Base ?? 0, current == 0 ? 0 : Start(current));
                    Same(expected.Cpus[cpu].Freelist, SlabView.Freelist(cache, cpu), $"free list of cpu {cpu}");
                    Same(Bases(expected.Cpus[cpu].Chain), Starts(SlabView.Chain(cache, cpu)), $"chain of cpu {cpu}");
                }

                for (int node = 0; node < _nodes; node++)
                {
                    Same(
                        Bases(expected.Partial[node]), Starts(SlabView.Partial(cache, node)), $"partial list of {node}");
                    Assert.Equal(expected.Partial[node].Count, cache.Nodes[node].NrPartial);
                }

                int slabs = 0;
                foreach (SlubReference.Slab slab in _reference.SlabsOf(expected))
                {
                    slabs++;
                    nint real = SlabOf(slab.Base);
                    Same(slab.Own, SlabView.Own(cache, real), $"own list of 0x{slab.Base:x}");
                    Assert.Equal((slab.InUse, slab.Frozen), (SlabView.State(real).InUse, SlabView.State(real).Frozen));
                }

                Assert.Equal(slabs, cache.SlabCount);
            }

            Same(_reference.GivenBack, _trace.PageFrees.ConvertAll(Address), "pages given back");
            _discards += _reference.GivenBack.Count;
            _reference.GivenBack.Clear();
            _trace.PageFrees.Clear();
        }

        private unsafe nint Address((Pfn Pfn, int Order) free) => (nint)_machine.AddressOf(free.Pfn);

        private unsafe nint SlabOf(nint start) => SlabView.SlabOf(_machine, (void*)start);

        private nint Start(nint slab) => SlabView.AddressOf(_machine, slab);

        private List<nint> Starts(List<nint> slabs) => slabs.ConvertAll(Start);

        private static List<nint> Bases(List<SlubReference.Slab> slabs) => slabs.ConvertAll(slab => slab.Base);

        private static void Same(List<nint> expected, List<nint> actual, string what)
        {
            if (!expected.SequenceEqual(actual))
            {
                Assert.Fail($"{what}: expected {string.Join(' ', expected.Select(at => $"{at:x}"))}, "
                    + $"got {string.Join(' ', actual.Select(at => $"{at:x}"))}");
            }
        }

        private KmemCache Create(string name, int size) => _machine.CreateCache(name, size, 0, SlabFlags.NoMerge);
    }
}
