using System.Diagnostics;

namespace Kmem.Tool.Soak;

/// <summary>What a soak is to do.</summary>
/// <param name="Seconds">How long threads work.</param>
/// <param name="Threads">Threads at work at a time.</param>
/// <param name="RamBytes">The machine's memory.</param>
/// <param name="Profile">Whose rules it follows.</param>
/// <param name="Seed">Of all random choices; which thread does what when is the host's affair.</param>
internal sealed record SoakOptions(double Seconds, int Threads, ulong RamBytes, KernelProfile Profile, int Seed);

/// <summary>What came of it; sizes in bytes.</summary>
internal sealed record SoakResult(
    double Seconds, int Threads, int Seed, string Profile, long Operations, double OperationsPerSecond, long RemoteFrees,
    long ThreadsStarted, long BytesChecked, long Refused, long LeftObjects, IReadOnlyList<string> BrokenRules, string? Failure,
    ulong ResidentStart, ulong ResidentPeak, ulong ResidentEnd, bool Passed);

/// <summary>
/// Threads allocate, stamp, hand each other, verify and free memory of every kind for a while; in the end nothing may
/// be left, no rule broken, and the host must have its memory back.
/// <code>
///   worker 0 ─┐                          ┌─▶ verifies every word, frees
///   worker 1 ─┼─▶ table of 4096 blocks ──┤
///   visitors ─┘   (whoever comes swaps)  └─▶ short-lived threads, one after another
/// </code>
/// </summary>
internal sealed class SoakRun : IDisposable
{
    private const int TableSize = 4096;
    private const ulong Slack = 4 << 20; // descriptors of what a machine keeps, and page tables
    private static readonly int[] s_cacheSizes = [24, 72, 200, 640, 4096];

    private readonly SoakOptions _options;
    private readonly Machine _machine;
    private readonly KmemCache[] _caches;
    private readonly Block?[] _table = new Block?[TableSize];
    private long _operations;
    private long _remoteFrees;
    private long _threads;
    private long _bytes;
    private long _refused;
    private volatile bool _stop;
    private string? _failure;

    public SoakRun(SoakOptions options)
    {
        _options = options;
        _machine = Machine.Boot(new MachineOptions { RamBytes = options.RamBytes, Profile = options.Profile, DecaySeconds = 1 });
        _caches = [.. s_cacheSizes.Select(size => _machine.CreateCache($"soak-{size}", size))];
    }

    /// <summary>Operations so far.</summary>
    public long Operations => Volatile.Read(ref _operations);

    public void Dispose() => _machine.Dispose();

    /// <summary>Runs it; <paramref name="cancel"/> ends it early, and what is there is checked all the same.</summary>
    public SoakResult Run(CancellationToken cancel)
    {
        _machine.Trim();
        ulong start = _machine.ResidentBytes;
        ulong peak = start;
        var clock = Stopwatch.StartNew();
        Thread[] threads = [.. Enumerable.Range(0, _options.Threads).Select(Start), StartVisitors()];
        while (clock.Elapsed.TotalSeconds < _options.Seconds && !cancel.IsCancellationRequested && _failure == null)
        {
            Thread.Sleep(Math.Clamp((int)((_options.Seconds - clock.Elapsed.TotalSeconds) * 1000), 1, 100));
            peak = Math.Max(peak, _machine.ResidentBytes);
        }

        _stop = true;
        Array.ForEach(threads, thread => thread.Join());
        double seconds = clock.Elapsed.TotalSeconds;
        foreach (Block? block in _table)
            Release(block);
        _machine.Trim();        // also frees the areas of vmalloc that are kept, and what describes them
        long left = _caches.Sum(cache => cache.LiveCount) + _machine.Caches
            .Where(cache => (cache.Flags & SlabFlags.Kmalloc) != 0 && cache.Name != "kmem_cache").Sum(cache => cache.LiveCount);
        string[] broken = [.. _machine.Validate().Select(rule => rule.ToString()!)];
        ulong end = _machine.ResidentBytes;
        bool passed = _failure == null && broken.Length == 0 && left == 0 && end <= start + Slack;
        return new SoakResult(
            Math.Round(seconds, 3), _options.Threads, _options.Seed, _options.Profile.Name, _operations,
            Math.Round(_operations / seconds), _remoteFrees, _threads, _bytes, _refused, left, broken, _failure, start, peak,
            end, passed);
    }

    private Thread Start(int index)
    {
        var thread = new Thread(() => Guard(() => Work(index, () => !_stop))) { IsBackground = true };
        Interlocked.Increment(ref _threads);
        thread.Start();
        return thread;
    }

    /// <summary>
    /// Threads that live for a thousand operations each: what they leave in their CPU's stores must not add up.
    /// </summary>
    private Thread StartVisitors()
    {
        var host = new Thread(() => Guard(() =>
        {
            for (int visitor = 0; !_stop; visitor++)
            {
                int left = 1000;
                int index = 1000 + visitor;
                var thread = new Thread(() => Guard(() => Work(index, () => --left > 0)));
                Interlocked.Increment(ref _threads);
                thread.Start();
                thread.Join();
            }
        }))
        { IsBackground = true };
        host.Start();
        return host;
    }

    private void Guard(Action work)
    {
        try
        {
            work();
        }
        catch (Exception error)
        {
            Interlocked.CompareExchange(ref _failure, error.Message, null);
            _stop = true;
        }
    }

    private void Work(int index, Func<bool> goOn)
    {
        var random = new Random(unchecked((_options.Seed * 7919) + index));
        long operations = 0;
        while (goOn() && _failure == null)
        {
            Block? mine = random.Next(64) switch
            {
                0 => Bulk(random),
                1 => Scope(random),
                2 => Allocate(random, Kind.Vmalloc),
                < 24 => Allocate(random, Kind.Cache),
                _ => Allocate(random, Kind.Kmalloc),
            };
            Block? other = Interlocked.Exchange(ref _table[random.Next(TableSize)], mine);
            if (other != null && other.Thread != Environment.CurrentManagedThreadId)
                Interlocked.Increment(ref _remoteFrees);
            Release(other);
            if ((++operations & 255) == 0)
                Interlocked.Add(ref _operations, 256);
        }
    }

    private unsafe Block? Allocate(Random random, Kind kind)
    {
        int cache = random.Next(_caches.Length);
        int size = kind switch
        {
            Kind.Cache => s_cacheSizes[cache],
            Kind.Vmalloc => random.Next(4097, 100_000),
            _ => random.Next(40) == 0 ? random.Next(8193, 70_000) : random.Next(8, 2000),
        };
        void* memory = kind switch
        {
            Kind.Cache => _caches[cache].Alloc(Gfp.Kernel),
            Kind.Vmalloc => _machine.Kvmalloc((nuint)size, Gfp.Kernel),
            _ => _machine.Kmalloc((nuint)size, Gfp.Kernel),
        };
        if (memory == null)
        {
            Interlocked.Increment(ref _refused);
            return null;
        }

        return Block.Stamp(memory, size, kind, cache, random.NextInt64());
    }

    /// <summary>64 objects at once, all but one freed at once; that one goes on.</summary>
    private unsafe Block? Bulk(Random random)
    {
        int cache = random.Next(_caches.Length);
        Span<nint> objects = stackalloc nint[64];
        if (_caches[cache].AllocBulk(Gfp.Kernel, objects) == 0)
        {
            Interlocked.Increment(ref _refused);
            return null;
        }

        foreach (nint obj in objects)
            new Span<byte>((void*)obj, s_cacheSizes[cache]).Fill((byte)obj.GetHashCode());
        Block kept = Block.Stamp((void*)objects[0], s_cacheSizes[cache], Kind.Cache, cache, random.NextInt64());
        _caches[cache].FreeBulk(objects[1..]);
        return kept;
    }

    private unsafe Block? Scope(Random random)
    {
        int cache = random.Next(_caches.Length);
        using CacheScope scope = _caches[cache].Enter(Gfp.Kernel);
        Block? kept = null;
        for (int i = 0; i < 50; i++)
        {
            void* obj = scope.Alloc();
            if (obj == null)
                continue;

            Block block = Block.Stamp(obj, s_cacheSizes[cache], Kind.Cache, cache, random.NextInt64());
            if (kept == null)
            {
                kept = block;
                continue;
            }

            Interlocked.Add(ref _bytes, block.Verify());
            scope.Free(obj);
        }

        return kept;
    }

    private unsafe void Release(Block? block)
    {
        if (block == null)
            return;

        Interlocked.Add(ref _bytes, block.Verify());
        switch (block.Kind)
        {
            case Kind.Cache: _caches[block.Cache].Free((void*)block.Address); break;
            case Kind.Vmalloc: _machine.Kvfree((void*)block.Address); break;
            default: _machine.Kfree((void*)block.Address); break;
        }
    }

    private enum Kind
    {
        Kmalloc,
        Cache,
        Vmalloc,
    }

    /// <summary>Memory with a content that follows from its stamp.</summary>
    private sealed record Block(nint Address, int Size, Kind Kind, int Cache, long Seed, int Thread)
    {
        public static unsafe Block Stamp(void* memory, int size, Kind kind, int cache, long seed)
        {
            var words = new Span<long>(memory, size / sizeof(long));
            for (int i = 0; i < words.Length; i++)
                words[i] = seed + i;
            return new Block((nint)memory, size, kind, cache, seed, Environment.CurrentManagedThreadId);
        }

        public unsafe long Verify()
        {
            var words = new Span<long>((void*)Address, Size / sizeof(long));
            for (int i = 0; i < words.Length; i++)
            {
                if (words[i] != Seed + i)
                {
                    throw new InvalidOperationException(
                        $"a block of {Size} bytes ({Kind}) does not hold what was written: word {i} is 0x{words[i]:x}, "
                        + $"expected 0x{Seed + i:x}");
                }
            }

            return Size;
        }
    }
}
