using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem.Tool.Bench;

/// <summary>
/// <c>glibc-simple</c>: 25, 100, 400 and 1600 objects of 16 bytes, written, the older half freed oldest first and the
/// newer newest first; by the main thread, by a second one, and by the main thread again.
/// </summary>
internal sealed class GlibcSimpleCase<TA>(string name, TA allocator) : Case(name)
    where TA : struct, IHeap
{
    private const int Size = 16;
    private static readonly int[] s_counts = [25, 100, 400, 1600];

    private readonly nint[] _objects = new nint[s_counts[^1]];

    internal override long Least => 3L * s_counts.Length * s_counts[^1];

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        long each = operations / 3 / s_counts.Length;
        long done = Pass(each);
        Workers.Run(1, _ => done += Pass(each));
        return done + Pass(each);
    }

    private long Pass(long each)
    {
        long done = 0;
        foreach (int count in s_counts)
        {
            for (long i = 0; i <= each / count; i++, done += count) HoldAndFree(_objects.AsSpan(0, count));
        }
        return done;
    }

    private unsafe void HoldAndFree(Span<nint> objects)
    {
        TA a = allocator;
        for (int i = 0; i < objects.Length; i++)
        {
            objects[i] = a.Alloc(Size);
            new Span<byte>((void*)objects[i], Size).Fill((byte)i);
        }
        int half = objects.Length / 2;
        for (int i = 0; i < half; i++) a.Free(objects[i]);
        for (int i = objects.Length - 1; i >= half; i--) a.Free(objects[i]);
    }
}

/// <summary>
/// <c>glibc-thread</c>: independent threads, each with 1024 slots that it refills at random with 4 to 32768 bytes,
/// small sizes by far the most; every byte is written.
/// </summary>
internal sealed class GlibcThreadCase<TA> : Case
    where TA : struct, IHeap
{
    private const int Slots = 1024;
    private const double Smallest = 4;
    private const double Largest = 32768;

    private readonly TA _allocator;
    private readonly nint[][] _slots;
    private readonly int[] _picks = new int[4096];
    private readonly int[] _sizes = new int[8000];

    internal GlibcThreadCase(string name, TA allocator, int threads)
        : base(name)
    {
        _allocator = allocator;
        _slots = [.. Enumerable.Range(0, threads).Select(_ => new nint[Slots])];
        var dice = new Dice(4);
        for (int i = 0; i < _picks.Length; i++) _picks[i] = dice.Below(Slots);
        for (int i = 0; i < _sizes.Length; i++)
            _sizes[i] = (int)(1 / (((1 / Largest) - (1 / Smallest)) * dice.Unit() + (1 / Smallest)));
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        long each = Math.Max(1, operations / _slots.Length);
        Workers.Run(_slots.Length, thread => Refill(_slots[thread], each));
        return each * _slots.Length;
    }

    public override void Dispose()
    {
        foreach (nint[] slots in _slots)
        {
            foreach (nint obj in slots)
            {
                if (obj != 0) _allocator.Free(obj);
            }
            Array.Clear(slots);
        }
    }

    private unsafe void Refill(nint[] slots, long operations)
    {
        TA a = _allocator;
        int size = 0;
        for (long i = 0; i < operations; i++)
        {
            ref nint slot = ref slots[_picks[i % _picks.Length]];
            if (slot != 0) a.Free(slot);
            if (++size == _sizes.Length) size = 0;
            slot = a.Alloc((nuint)_sizes[size]);
            NativeMemory.Fill((void*)slot, (nuint)_sizes[size], (byte)i);
        }
    }
}

/// <summary>
/// <c>rptest</c>: threads with a thousand slots of 8 to 16000 bytes, small sizes the most; they free some with a prime
/// stride, allocate others, and every second time send a batch to the next thread, which frees it.
/// </summary>
internal sealed class RptestCase<TA> : Case
    where TA : struct, IHeap
{
    private const int Slots = 1000;
    private const int Smallest = 8;
    private const int Largest = 16000;
    private const int Least0 = 30;
    private const int Spread = 70;

    private static readonly int[] s_primes = [3, 7, 11, 13, 17, 19, 23, 29, 31, 37];

    private readonly TA _allocator;
    private readonly nint[][] _slots;
    private readonly nint[] _mail;

    internal RptestCase(string name, TA allocator, int threads)
        : base(name)
    {
        _allocator = allocator;
        _slots = [.. Enumerable.Range(0, threads).Select(_ => new nint[Slots])];
        _mail = new nint[threads];
    }

    internal override long Least => Least0 + Spread;

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        long each = Math.Max(1, operations / _slots.Length);
        long done = 0;
        Workers.Run(_slots.Length, thread => Interlocked.Add(ref done, Work(thread, each)));
        return done;
    }

    public override void Dispose()
    {
        for (int thread = 0; thread < _slots.Length; thread++)
        {
            FreeMail(thread);
            foreach (nint obj in _slots[thread])
            {
                if (obj != 0) _allocator.Free(obj);
            }
            Array.Clear(_slots[thread]);
        }
    }

    private long Work(int thread, long operations)
    {
        TA a = _allocator;
        nint[] slots = _slots[thread];
        var dice = new Dice((ulong)thread + 1);
        long done = 0;
        for (int turn = 0; done < operations; turn++)
        {
            int count = Least0 + dice.Below(Spread);
            int stride = s_primes[turn % s_primes.Length];
            int at = dice.Below(Slots);
            for (int i = 0; i < count * 4 / 5; i++, at = (at + stride) % Slots)
            {
                if (slots[at] != 0) a.Free(slots[at]);
                slots[at] = 0;
            }
            FreeMail(thread);
            at = dice.Below(Slots);
            for (int i = 0; i < count; i++, at = (at + stride) % Slots)
            {
                if (slots[at] != 0) a.Free(slots[at]);
                slots[at] = AllocTouched(ref dice);
            }
            done += count;
            if ((turn & 1) == 0) continue;

            done += count;
            Send((thread + 1) % _slots.Length, count, ref dice);
        }
        return done;
    }

    // A batch is a list through the first words of its objects. A box holds one: were it more, memory would grow while one
    // thread is ahead of the other, and resident memory would tell of the scheduler.
    private unsafe void Send(int to, int count, ref Dice dice)
    {
        nint batch = 0;
        for (int i = 0; i < count; i++)
        {
            nint obj = AllocTouched(ref dice);
            *(nint*)obj = batch;
            batch = obj;
        }
        FreeBatch(Interlocked.Exchange(ref _mail[to], batch));
    }

    private void FreeMail(int thread) => FreeBatch(Interlocked.Exchange(ref _mail[thread], 0));

    private unsafe void FreeBatch(nint obj)
    {
        while (obj != 0)
        {
            nint next = *(nint*)obj;
            _allocator.Free(obj);
            obj = next;
        }
    }

    private unsafe nint AllocTouched(ref Dice dice)
    {
        double fall = Math.Abs(dice.Unit() + dice.Unit() - 1) * dice.Unit();
        int size = Smallest + (int)(fall * (Largest - Smallest));
        var obj = (byte*)_allocator.Alloc((nuint)size);
        for (int at = 0; at < size; at += 4096) obj[at] = 1;
        obj[size - 1] = 1;
        return (nint)obj;
    }
}

/// <summary>
/// <c>mleak</c>: threads come and go, ten at a time; each allocates 128 bytes, swaps them for what is in one of a
/// thousand slots, and frees that. Times are per thread; what counts is that resident memory does not grow.
/// </summary>
internal sealed class LeakCase<TA>(string name, TA allocator) : Case(name)
    where TA : struct, IHeap
{
    private const int Size = 128;
    private const int AtOnce = 10;

    private readonly nint[] _slots = new nint[1000];
    private ulong _seed;

    internal override long Least => AtOnce;

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        long times = Math.Max(1, operations / AtOnce);
        for (long i = 0; i < times; i++) Workers.Run(AtOnce, Swap);
        return times * AtOnce;
    }

    public override void Dispose()
    {
        foreach (nint obj in _slots)
        {
            if (obj != 0) allocator.Free(obj);
        }
        Array.Clear(_slots);
    }

    private unsafe void Swap(int thread)
    {
        var dice = new Dice(Interlocked.Increment(ref _seed));
        nint obj = allocator.Alloc(Size);
        NativeMemory.Clear((void*)obj, Size);
        nint before = Interlocked.Exchange(ref _slots[dice.Below(_slots.Length)], obj);
        if (before != 0) allocator.Free(before);
    }
}

/// <summary>
/// <c>malloc-large</c>: a random one of twenty buffers of 5 to 25 MiB is freed, and another allocated and cleared.
/// Times are per MiB, as the sizes of one round are not those of another.
/// </summary>
internal sealed class LargeCase<TA>(string name, TA allocator) : Case(name)
    where TA : struct, IHeap
{
    private const int Smallest = 5;
    private const int Spread = 21;

    private readonly nint[] _slots = new nint[20];
    private Dice _dice = new(11);

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override unsafe long Round(long operations)
    {
        long cleared = 0;
        while (cleared < operations)
        {
            ref nint slot = ref _slots[_dice.Below(_slots.Length)];
            if (slot != 0) allocator.FreeAny(slot);
            int mebibytes = Smallest + _dice.Below(Spread);
            nuint size = (nuint)mebibytes << 20;
            slot = allocator.AllocAny(size);
            if (slot == 0) throw new InvalidOperationException($"{Allocator}: no memory for {mebibytes} MiB");
            NativeMemory.Clear((void*)slot, size);
            cleared += mebibytes;
        }
        return cleared;
    }

    public override void Dispose()
    {
        foreach (nint obj in _slots)
        {
            if (obj != 0) allocator.FreeAny(obj);
        }
        Array.Clear(_slots);
    }
}
