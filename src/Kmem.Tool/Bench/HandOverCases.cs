using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem.Tool.Bench;

/// <summary><c>pc2</c>: one thread allocates 64 bytes, another frees them; batches of 64 go through a ring.</summary>
internal sealed class ProducerConsumerCase<TA>(string name, TA allocator) : Case(name)
    where TA : struct, IAllocator<nint>
{
    private const int Batch = 64;
    private const int Ring = 64;

    private readonly nint[] _ring = new nint[Ring * Batch];
    private RingEnds _ends;

    internal override long Least => Batch;

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        long batches = (operations + Batch - 1) / Batch;
        _ends = default;
        Workers.Run(2, thread =>
        {
            if (thread == 0) Produce(batches);
            else Consume(batches);
        });
        return batches * Batch;
    }

    private void Produce(long batches)
    {
        TA a = allocator;
        for (long batch = 0; batch < batches; batch++)
        {
            var spin = default(SpinWait);
            while (batch - Volatile.Read(ref _ends.Taken) == Ring) spin.SpinOnce(sleep1Threshold: -1);
            Span<nint> objects = _ring.AsSpan((int)(batch % Ring) * Batch, Batch);
            for (int i = 0; i < objects.Length; i++) objects[i] = a.Alloc(Tables.Size);
            Volatile.Write(ref _ends.Put, batch + 1);
        }
    }

    private void Consume(long batches)
    {
        TA a = allocator;
        for (long batch = 0; batch < batches; batch++)
        {
            var spin = default(SpinWait);
            while (Volatile.Read(ref _ends.Put) == batch) spin.SpinOnce(sleep1Threshold: -1);
            ReadOnlySpan<nint> objects = _ring.AsSpan((int)(batch % Ring) * Batch, Batch);
            for (int i = 0; i < objects.Length; i++) a.Free(objects[i]);
            Volatile.Write(ref _ends.Taken, batch + 1);
        }
    }
}

/// <summary>The two ends of a ring, on cache lines of their own.</summary>
[StructLayout(LayoutKind.Explicit, Size = 192)]
internal struct RingEnds
{
    [FieldOffset(64)]
    internal long Put;

    [FieldOffset(128)]
    internal long Taken;
}

/// <summary>
/// <c>xmalloc</c>: half of the threads allocate batches of 4096 objects of 64 bytes and write them, the other half
/// frees them; at most a hundred batches wait, the newest is taken first.
/// </summary>
internal sealed class XmallocCase<TA>(string name, TA allocator, int threads) : Case(name)
    where TA : struct, IHeap
{
    private const int Batch = 4096;
    private const int MostWaiting = 100;

    private readonly Stack<nint> _waiting = new();
    private int _allocating;

    internal override long Least => Batch;

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        long batches = Math.Max(1, operations / Batch / threads);
        _allocating = threads;
        Workers.Run(2 * threads, thread =>
        {
            if (thread < threads) AllocateBatches(batches);
            else ReleaseBatches();
        });
        return batches * threads * Batch;
    }

    private unsafe void AllocateBatches(long batches)
    {
        TA a = allocator;
        for (long i = 0; i < batches; i++)
        {
            var batch = (nint*)a.Alloc(Batch * (nuint)sizeof(nint));
            for (int k = 0; k < Batch; k++)
            {
                batch[k] = a.Alloc(Tables.Size);
                NativeMemory.Fill((void*)batch[k], Tables.Size, (byte)k);
            }
            lock (_waiting)
            {
                while (_waiting.Count >= MostWaiting) Monitor.Wait(_waiting);
                _waiting.Push((nint)batch);
                Monitor.PulseAll(_waiting);
            }
        }
        lock (_waiting)
        {
            _allocating--;
            Monitor.PulseAll(_waiting);
        }
    }

    private unsafe void ReleaseBatches()
    {
        TA a = allocator;
        while (TakeBatch() is var batch and not 0)
        {
            for (int k = 0; k < Batch; k++) a.Free(((nint*)batch)[k]);
            a.Free(batch);
        }
    }

    private nint TakeBatch()
    {
        lock (_waiting)
        {
            while (_waiting.Count == 0)
            {
                if (_allocating == 0) return 0;
                Monitor.Wait(_waiting);
            }
            nint batch = _waiting.Pop();
            Monitor.PulseAll(_waiting);
            return batch;
        }
    }
}

/// <summary>
/// <c>larson</c>: servers with 5000 objects each of 8 to 999 bytes, which they replace at random; after half a million
/// operations a thread starts its successor, hands its objects over, and ends.
/// </summary>
internal sealed class LarsonCase<TA> : Case
    where TA : struct, IHeap
{
    private const int Objects = 5000;
    private const int Smallest = 8;
    private const int End = 1000;

    private readonly TA _allocator;
    private readonly int _generation;
    private readonly nint[][] _servers;
    private Exception? _failure;

    internal LarsonCase(string name, TA allocator, int threads, int generation = 500_000)
        : base(name)
    {
        _allocator = allocator;
        _generation = generation;
        _servers = [.. Enumerable.Range(0, threads).Select(_ => new nint[Objects])];
        var dice = new Dice(42);
        foreach (nint[] objects in _servers)
        {
            for (int i = 0; i < objects.Length; i++)
                objects[i] = allocator.Alloc((nuint)(Smallest + dice.Below(End - Smallest)));
        }
        // Servers free what others had first.
        nint[] all = [.. _servers.SelectMany(it => it)];
        new Random(42).Shuffle(all);
        for (int i = 0; i < all.Length; i++) _servers[i / Objects][i % Objects] = all[i];
        foreach (nint[] objects in _servers) Churn(objects, 4 * Objects, ref dice);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        long each = Math.Max(1, operations / _servers.Length);
        using var done = new CountdownEvent(_servers.Length);
        for (int i = 0; i < _servers.Length; i++) Start(_servers[i], each, (ulong)i + 1, done);
        done.Wait();
        if (_failure is { } failure) throw new InvalidOperationException(failure.Message, failure);
        return each * _servers.Length;
    }

    public override void Dispose()
    {
        foreach (nint[] objects in _servers)
        {
            foreach (nint obj in objects) _allocator.Free(obj);
            Array.Clear(objects);
        }
    }

    private void Start(nint[] objects, long left, ulong seed, CountdownEvent done) => new Thread(() =>
    {
        try
        {
            var dice = new Dice(seed);
            long now = Math.Min(left, _generation);
            Churn(objects, now, ref dice);
            if (left > now) Start(objects, left - now, seed + 1000, done);
            else done.Signal();
        }
        catch (Exception e)
        {
            _failure = e;
            done.Signal();
        }
    }).Start();

    private unsafe void Churn(nint[] objects, long operations, ref Dice random)
    {
        TA a = _allocator;
        Dice dice = random;
        for (long i = 0; i < operations; i++)
        {
            ref nint slot = ref objects[dice.Below(Objects)];
            a.Free(slot);
            int size = Smallest + dice.Below(End - Smallest);
            slot = a.Alloc((nuint)size);
            ((byte*)slot)[0] = 1;
            ((byte*)slot)[size - 1] = 2;
        }
        random = dice;
    }
}

/// <summary>
/// <c>cache-scratch</c>: adjacent one-byte objects are handed to one thread each, which frees its own and then works on
/// such objects of its own: slow if they lie in one cache line with another thread's. Times are per write.
/// </summary>
internal sealed class CacheScratchCase<TA>(string name, TA allocator, int threads) : Case(name)
    where TA : struct, IHeap
{
    private const int Writes = 10_000;

    internal override long Least => Writes;

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        long each = Math.Max(1, operations / Writes / threads);
        var first = new nint[threads];
        for (int i = 0; i < threads; i++) first[i] = allocator.Alloc(1);
        Workers.Run(threads, thread => Scratch(first[thread], each));
        return each * threads * Writes;
    }

    private unsafe void Scratch(nint first, long times)
    {
        TA a = allocator;
        a.Free(first);
        for (long i = 0; i < times; i++)
        {
            var obj = (byte*)a.Alloc(1);
            *obj = 0;
            for (int k = 0; k < Writes; k++) Volatile.Write(ref *obj, (byte)(Volatile.Read(ref *obj) + 1));
            a.Free((nint)obj);
        }
    }
}
