namespace Kmem.Tests;

/// <summary>
/// Long random histories of caches and kmalloc, compared with <see cref="SlabModel"/> after every step.
/// </summary>
public sealed class SlabModelTests
{
    private static readonly int[] s_classes = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];

    // The native profile has these in between, for ordinary requests.
    private static readonly int[] s_fineClasses =
    [
        8, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024,
        1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192,
        10240, 12288, 14336, 16384, 20480, 24576, 28672, 32768,
    ];

    [Theory]
    [InlineData(1, 1, 1, 64, "")]
    [InlineData(2, 2, 1, 64, "random")]
    [InlineData(3, 3, 1, 64, "hardened")]
    [InlineData(4, 4, 1, 64, "random hardened")]
    [InlineData(5, 2, 2, 96, "")]
    [InlineData(6, 4, 2, 96, "random hardened")]
    [InlineData(7, 2, 1, 16, "tiny")]
    [InlineData(8, 4, 2, 20, "tiny random hardened")]
    [InlineData(9, 2, 1, 64, "portable nomerge")]
    [InlineData(10, 2, 1, 64, "native")]
    [InlineData(11, 4, 1, 20, "native tiny random hardened")]
    [InlineData(12, 2, 1, 64, "native secure")]
    [InlineData(13, 4, 2, 96, "native secure")]
    public void Every_answer_agrees_with_the_model(int seed, int cpus, int nodes, int ramMiB, string options)
    {
        int scale = int.TryParse(Environment.GetEnvironmentVariable("KMEM_MODEL_RUNS"), out int runs) ? runs : 1;
        for (int run = 0; run < scale; run++)
        {
            int actual = seed + (run * 1000);
            try
            {
                new History(actual, cpus, nodes, ramMiB, options).Run(6000);
            }
            catch (Exception error)
            {
                Assert.Fail($"seed {actual}: {error}");
            }
        }
    }

    private sealed class History
    {
        private readonly Random _random;
        private readonly Machine _machine;
        private readonly SlabModel _model;
        private readonly bool _tiny;
        private readonly bool _native;
        private readonly long _budget;
        private readonly List<(KmemCache Cache, ulong Align, bool Constructed)> _caches = [];
        private readonly List<(int Id, IDisposable Reader)> _readers = [];
        private readonly List<(nint Address, HashSet<int> Readers)> _deferred = [];
        private ulong _stamp;
        private int _readerId;
        private int _step;
        private string _what = "";
        private long _nulls;

        public History(int seed, int cpus, int nodes, int ramMiB, string options)
        {
            _random = new Random(seed);
            _tiny = options.Contains("tiny");
            _native = options.Contains("native");
            ulong ram = (ulong)ramMiB << 20;
            _budget = _tiny ? long.MaxValue : (long)ram / 3;
            _machine = Machine.Boot(new MachineOptions
            {
                RamBytes = ram,
                Cpus = cpus,
                Nodes = nodes,
                Seed = (ulong)seed,
                SlabFreelistRandom = options.Contains("random"),
                SlabFreelistHardened = options.Contains("hardened"),
                PortableMemory = options.Contains("portable"),
                DecaySeconds = 0,
                Profile = options.Contains("secure") ? KernelProfile.Hardened
                    : options.Contains("native") ? KernelProfile.Native : options.Contains("nomerge")
                    ? KernelProfile.Linux618 with { SlabMerge = false } : KernelProfile.Linux618,
            });
            _model = new SlabModel(_machine, _machine.Map.EndPfn << 12);
        }

        public void Run(int steps)
        {
            using Machine machine = _machine;
            long before = FreeFrames();
            try
            {
                for (_step = 0; _step < steps; _step++)
                {
                    Step();
                    if (_step % 500 == 499)
                        Validate();
                }

                WindUp();
            }
            catch (Exception error)
            {
                throw new InvalidOperationException($"step {_step}, {_what}: {error.Message}", error);
            }

            SlabModel.Check(FreeFrames() == before, $"{before - FreeFrames()} frames are lost");
            foreach (KmemCache cache in _machine.Caches.Where(cache => (cache.Flags & SlabFlags.Kmalloc) != 0))
                SlabModel.Check(cache.SlabCount == 0, $"{cache.Name} still has {cache.SlabCount} slabs");
            SlabModel.Check(!_tiny || _nulls > 3, $"only {_nulls} failures on the tiny machine: the test misses its point");
            SlabModel.Check(_tiny || _nulls == 0, $"{_nulls} allocations failed with memory left");
        }

        private void Step()
        {
            using CpuBinding cpu = _random.Next(4) == 0 ? _machine.RunOn(_random.Next(_machine.Cpus)) : default;
            bool grow = _model.Bytes < _budget && (_tiny || _step / 700 % 3 != 2 || _random.Next(4) == 0);
            switch (_random.Next(100))
            {
                case < 38 when grow: Allocate(); break;
                case < 50 when grow: AllocateFromCache(); break;
                case < 53 when grow: AllocateBulk(); break;
                case < 60 when grow: Reallocate(); break;
                case < 62: Rarely(); break;
                case < 66: FreeDeferred(); break;
                case < 70: ReaderComesOrGoes(); break;
                case < 76: FreeBulk(); break;
                default:
                    if (!_tiny || _random.Next(4) == 0)
                        Free();
                    break;
            }
        }

        private unsafe void Allocate()
        {
            nuint size = RandomSize();
            Gfp gfp = RandomGfp();
            int kind = _random.Next(6);
            _what = $"kmalloc {size} {gfp} as {kind}";
            ulong seed = NextStamp();
            void* p;
            bool zeroed = false;
            switch (kind)
            {
                case 0:
                    p = _machine.Kzalloc(size, gfp);
                    zeroed = true;
                    break;
                case 1:
                    p = _machine.Kcalloc(size / 8, 8, gfp);
                    size = size / 8 * 8;
                    zeroed = true;
                    break;
                case 2 when size <= 8192:
                    byte[] content = new byte[size];
                    fixed (byte* start = content)
                        SlabModel.Write(start, size, seed);
                    p = _machine.Kmemdup(content, gfp);
                    SlabModel.Check(
                        (nuint)p <= 16 || SlabModel.Matches((byte*)p, size, seed), "kmemdup copied something else");
                    break;
                case 3 when _machine.Nodes > 1:
                    int node = _random.Next(_machine.Nodes);
                    p = _machine.KmallocNode(size, gfp | (size % 2 == 0 ? Gfp.ThisNode : 0), node);
                    SlabModel.Check(
                        (nuint)p <= 16 || size % 2 != 0 || NodeOf(p) == node, $"{size} bytes not from node {node}");
                    break;
                default:
                    p = _machine.Kmalloc(size, gfp);
                    break;
            }

            Took(p, size, null, KmallocAlign(size, gfp), zeroed, seed, gfp);
        }

        private unsafe void Took(
            void* p,
            nuint size,
            KmemCache? cache,
            ulong align,
            bool zeroed,
            ulong seed,
            Gfp gfp = Gfp.Kernel,
            nuint keptSlot = 0)
        {
            bool dma = (gfp & Gfp.Dma) != 0;
            if (p == null)
            {
                _nulls += dma ? 0 : 1; // the DMA zone is small on every machine
                return;
            }

            if (cache == null && size == 0)
            {
                SlabModel.Check((nuint)p == 16, "zero bytes do not have the zero-size address");
                return;
            }

            ulong physical = _machine.PhysicalAddressOf(p).Value;
            SlabModel.Check(!dma || physical < 16 << 20, $"0x{physical:x} is not in zone DMA");
            nuint slot = cache != null ? (nuint)cache.SlotSize
                : keptSlot != 0 ? keptSlot : KmallocSlot(size, ClassesFor(gfp));
            SlabModel.Check(
                cache != null || _machine.Ksize(p) == slot, $"ksize {_machine.Ksize(p)} of {size} bytes, not {slot}");
            _model.Add(p, size, slot, align, cache, zeroed, seed);
        }

        private unsafe void AllocateFromCache()
        {
            (KmemCache cache, ulong align, bool constructed) = SomeCache();
            Gfp gfp = RandomGfp() & ~Gfp.Dma;
            bool zero = !constructed && _random.Next(3) == 0;
            _what = $"{cache.Name} alloc {gfp}";
            void* p = cache.Alloc(zero ? gfp | Gfp.Zero : gfp);
            if (p != null && constructed)
                SlabModel.Check(*(ulong*)p == 0xc0de, $"{cache.Name} handed out an object that was not constructed");
            Took(p, (nuint)cache.ObjectSize, cache, align, zero, NextStamp());
        }

        private unsafe void AllocateBulk()
        {
            (KmemCache cache, ulong align, bool _) = SomeCache();
            var objects = new nint[_random.Next(1, 70)];
            _what = $"{cache.Name} bulk of {objects.Length}";
            int got = cache.AllocBulk(RandomGfp() & ~Gfp.Dma, objects);
            SlabModel.Check(got == objects.Length || got == 0, $"bulk gave {got} of {objects.Length}");
            _nulls += got == 0 ? 1 : 0;
            foreach (nint p in objects.AsSpan(0, got))
                Took((void*)p, (nuint)cache.ObjectSize, cache, align, zeroed: false, NextStamp());
        }

        private unsafe void Reallocate()
        {
            if (_model.Count == 0)
                return;

            nint old = _model.Pick(_random);
            SlabModel.Block block = _model[old];
            if (block.Cache != null || _deferred.Any(entry => entry.Address == old))
                return;

            nuint size = _random.Next(3) switch
            {
                0 => block.Size / 2,
                1 => Math.Min(block.Size * 2, 100_000),
                _ => RandomSize(),
            };
            bool zero = _random.Next(2) == 0;
            _what = $"krealloc {block.Size} to {size}{(zero ? " zeroed" : "")}";
            bool stays = size > 0 && size <= block.Slot;
            _model.CheckContent(old, block.Size);
            void* p = _machine.Krealloc((void*)old, size, zero ? Gfp.Kernel | Gfp.Zero : Gfp.Kernel);
            if (p == null)
            {
                _nulls++;
                SlabModel.Check(!stays, "krealloc failed to do nothing");
                _model.CheckContent(old, block.Size);
                return;
            }

            SlabModel.Check(!stays || (nint)p == old, "krealloc moved a block that is large enough");
            SlabModel.Check(stays || (nint)p != old, "krealloc grew a block in place beyond its slot");
            if (size == 0)
            {
                SlabModel.Check((nuint)p == 16, "krealloc to zero bytes gives the zero-size address");
                _model.Forget(old);
                return;
            }

            bool kept = SlabModel.Matches(
                (byte*)p, Math.Min(size, block.Size) & ~(nuint)7, block.Seed, wasLarge: block.Size > 16384);
            SlabModel.Check(kept, "krealloc lost content");
            nuint tailFrom = stays ? size : block.Slot;
            nuint tailTo = stays ? block.Slot : size;
            SlabModel.Check(
                !zero || SlabModel.IsZero((byte*)p + tailFrom, tailTo - tailFrom), "what krealloc added is not zero");
            _model.Forget(old);
            Took(p, size, null, 8, zeroed: false, NextStamp(), keptSlot: stays ? block.Slot : 0);
        }

        private unsafe void Free()
        {
            if (_model.Count == 0)
                return;

            nint address = _model.Pick(_random);
            if (_deferred.Any(entry => entry.Address == address))
                return;

            SlabModel.Block block = _model.Remove(address);
            _what = $"free {block.Size} of {block.Cache?.Name ?? "kmalloc"}";
            RestoreConstructed(address, block);
            int way = _random.Next(4);
            if (block.Cache != null && way != 0)
                block.Cache.Free((void*)address);
            else if (way == 1)
                _machine.KfreeSensitive((void*)address);
            else
                _machine.Kfree((void*)address);
        }

        private void FreeBulk()
        {
            var addresses = new List<nint>();
            int wanted = Math.Min(_random.Next(1, 50), _model.Count);
            KmemCache? only = _random.Next(2) == 0 ? _caches.Select(entry => entry.Cache).LastOrDefault() : null;
            _what = $"bulk free of up to {wanted}";
            for (int i = 0; i < wanted && _model.Count > 0; i++)
            {
                nint address = _model.Pick(_random);
                SlabModel.Block block = _model[address];
                if ((only != null && block.Cache != only) || _deferred.Any(entry => entry.Address == address))
                    continue;
                _model.Remove(address);
                RestoreConstructed(address, block);
                addresses.Add(address);
            }

            if (only != null)
                only.FreeBulk(addresses.ToArray());
            else
                _machine.KfreeBulk(addresses.ToArray());
        }

        private unsafe void FreeDeferred()
        {
            if (_model.Count == 0)
                return;

            nint address = _model.Pick(_random);
            SlabModel.Block block = _model[address];
            if (_deferred.Any(entry => entry.Address == address) || block.Cache is { HasConstructor: true })
                return;

            _what = $"kfree_rcu {block.Size} with {_readers.Count} readers";
            if (_readers.Count == 0)
                _model.Remove(address);
            else
                _deferred.Add((address, _readers.Select(reader => reader.Id).ToHashSet()));
            _machine.KfreeRcu((void*)address);
        }

        private void ReaderComesOrGoes()
        {
            if (_readers.Count < 3 && _random.Next(2) == 0)
            {
                _what = "reader comes";
                _readers.Add((_readerId++, new Reader(_machine)));
            }
            else if (_readers.Count > 0)
            {
                _what = "reader goes";
                EndReader(_random.Next(_readers.Count));
            }
        }

        private void EndReader(int index)
        {
            (int id, IDisposable reader) = _readers[index];
            _readers.RemoveAt(index);
            foreach ((nint _, HashSet<int> readers) in _deferred)
                readers.Remove(id);

            // What only this reader held is checked now and may be given out as soon as it has gone.
            foreach ((nint address, HashSet<int> _) in _deferred.Where(entry => entry.Readers.Count == 0))
                _model.Remove(address);
            _deferred.RemoveAll(entry => entry.Readers.Count == 0);
            reader.Dispose();
        }

        private void Rarely()
        {
            switch (_random.Next(8))
            {
                case 0 when _caches.Count > 0:
                    _what = "shrink";
                    SomeCache().Cache.Shrink();
                    break;
                case 1:
                    _what = "shrink all";
                    _machine.ShrinkCaches();
                    break;
                case 2:
                    _what = "drain";
                    _machine.DrainAllPages();
                    break;
                case 3 when _caches.Count > 2:
                    DestroyCache(_random.Next(_caches.Count));
                    break;
                case 4:
                    _what = "texts";
                    SlabModel.Check(_machine.Proc.SlabInfo().Length > 0, "no slabinfo");
                    break;
                default:
                    SomeCache();
                    break;
            }
        }

        private (KmemCache Cache, ulong Align, bool Constructed) SomeCache()
        {
            if (_caches.Count < 8 && (_caches.Count < 3 || _random.Next(6) == 0))
                _caches.Add(CreateCache());
            return _caches[_random.Next(_caches.Count)];
        }

        private unsafe (KmemCache Cache, ulong Align, bool Constructed) CreateCache()
        {
            int size = _random.Next(4) switch
            {
                0 => _random.Next(1, 64),
                1 => _random.Next(64, 600),
                2 => _random.Next(600, 5000),
                _ => _random.Next(5000, 20001),
            };
            int align = _random.Next(3) == 0 ? 1 << _random.Next(3, 10) : 0;
            SlabFlags flags = SlabFlags.None;
            foreach (SlabFlags flag in (ReadOnlySpan<SlabFlags>)
                [SlabFlags.HwcacheAlign, SlabFlags.TypesafeByRcu, SlabFlags.ReclaimAccount, SlabFlags.NoMerge])
            {
                flags |= _random.Next(3) == 0 ? flag : SlabFlags.None;
            }

            bool constructed = size >= 8 && _random.Next(4) == 0;
            int sheaf = _random.Next(3) == 0 ? _random.Next(1, 50) : 0;
            _what = $"create {size} bytes, align {align}, {flags}, sheaf {sheaf}";
            KmemCache cache = _machine.CreateCache(
                $"c{_step}", size, align, flags, constructed ? obj => *(ulong*)obj = 0xc0de : null, sheafCapacity: sheaf);
            ulong promised = (ulong)Math.Max(align, 8);
            if ((flags & SlabFlags.HwcacheAlign) != 0)
            {
                ulong line = 64;
                while ((ulong)size <= line / 2)
                    line /= 2;
                promised = Math.Max(promised, line);
            }

            SlabModel.Check(cache.ObjectSize >= size && cache.SlotSize >= cache.ObjectSize, "objects do not fit");
            return (cache, promised, constructed);
        }

        private unsafe void DestroyCache(int index)
        {
            KmemCache cache = _caches[index].Cache;
            _what = $"destroy {cache.Name}";
            bool last = _caches.Count(entry => entry.Cache == cache) == 1;
            EndAllReaders();
            if (last)
            {
                bool inUse = _model.Addresses.Any(address => _model[address].Cache == cache);
                if (inUse)
                {
                    Assert.Throws<KernelBugException>(cache.Destroy);
                    SlabModel.Check(_machine.Caches.Contains(cache), "a cache with objects was destroyed");
                }

                foreach (nint address in _model.Addresses.Where(address => _model[address].Cache == cache).ToArray())
                {
                    SlabModel.Block block = _model.Remove(address);
                    RestoreConstructed(address, block);
                    cache.Free((void*)address);
                }
            }

            cache.Destroy();
            _caches.RemoveAt(index);
        }

        /// <summary>Destroying waits for readers, and they are on this very thread.</summary>
        private void EndAllReaders()
        {
            while (_readers.Count > 0)
                EndReader(_readers.Count - 1);
            SlabModel.Check(_deferred.Count == 0, "deferred frees without readers");
        }

        private void WindUp()
        {
            _what = "winding up";
            _model.CheckAll();
            while (_caches.Count > 0)
                DestroyCache(_caches.Count - 1);
            EndAllReaders();
            while (_model.Count > 0)
                Free();
            Validate();
            _machine.RcuBarrier();
            _machine.ShrinkCaches();
            Validate();
        }

        private void Validate() =>
            SlabModel.Check(_machine.Validate() is { Count: 0 }, string.Join('\n', _machine.Validate()));

        private long FreeFrames()
        {
            _machine.ShrinkCaches();
            _machine.DrainAllPages();
            return _machine.Pages.Zones.Sum(zone => zone.Zone.FreePagesExact);
        }

        private static unsafe void RestoreConstructed(nint address, SlabModel.Block block)
        {
            if (block.Cache is { HasConstructor: true })
                *(ulong*)address = 0xc0de;
        }

        private unsafe int NodeOf(void* p) => _machine.Slabs.NodeOf(_machine.Map.PageAt(p));

        private nuint RandomSize() => (nuint)(_random.Next(40) switch
        {
            0 => 0,
            < 12 => _random.Next(1, 65),
            < 22 => _random.Next(65, 513),
            < 30 => _random.Next(513, 4097),
            < 35 => _random.Next(4097, 8193),
            < 37 => s_classes[_random.Next(s_classes.Length)],
            < 39 => _random.Next(8193, 70_000),
            _ => _random.Next(70_000, 1_000_000),
        });

        private Gfp RandomGfp() => _random.Next(12) switch
        {
            0 => Gfp.Atomic,
            1 => Gfp.NoWait,
            2 => Gfp.KernelAccount,
            3 => Gfp.Kernel | Gfp.Reclaimable,
            4 => Gfp.Kernel | Gfp.Dma | Gfp.NoWarn,
            5 => Gfp.Kernel | Gfp.NoRetry,
            _ => Gfp.Kernel | Gfp.NoWarn,
        };

        private ulong NextStamp() => _stamp += 0x9e37_79b9_7f4a_7c15;

        private ulong KmallocAlign(nuint size, Gfp gfp)
        {
            ulong slot = KmallocSlot(Math.Max(size, 1), ClassesFor(gfp));
            return slot & ~(slot - 1);
        }

        /// <summary>Reclaimable and DMA memory is of the kernel's classes in every profile.</summary>
        private int[] ClassesFor(Gfp gfp) =>
            _native && (gfp & (Gfp.Dma | Gfp.Reclaimable)) == 0 ? s_fineClasses : s_classes;

        private static nuint KmallocSlot(nuint size, int[] classes)
        {
            foreach (int slot in classes)
            {
                if (size <= (nuint)slot)
                    return (nuint)slot;
            }

            nuint pages = 4096;
            while (pages < size)
                pages *= 2;
            return pages;
        }

        private sealed class Reader(Machine machine) : IDisposable
        {
            private readonly int _phase = machine.Slabs.Rcu.ReadLock();

            public void Dispose() => machine.Slabs.Rcu.ReadUnlock(_phase);
        }
    }
}
