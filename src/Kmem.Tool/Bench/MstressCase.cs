using System.Runtime.CompilerServices;

namespace Kmem.Tool.Bench;

/// <summary>
/// <c>mstress</c>: threads of one round allocate objects of all sizes, keep some, free others, and exchange some with
/// other threads through a thousand shared slots; then new threads come. Every word of an object tells what it must
/// be, and is looked at when the object is freed.
/// </summary>
internal sealed class MstressCase<TA>(string name, TA allocator, int threads, int scale = 50) : Case(name)
    where TA : struct, IHeap
{
    private const ulong Cookie = 0xbf58476d1ce4e5b9;
    private const int WordBytes = 8;

    private readonly nint[] _shared = new nint[1000];
    private ulong _round;

    internal override long Least => Enumerable.Range(0, threads).Sum(OperationsOf);

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        long done = 0;
        var dice = new Dice(_round + 99);
        while (done < operations)
        {
            ulong round = ++_round;
            Workers.Run(threads, thread => Interlocked.Add(ref done, Work(thread, round)));
            for (int i = 0; i < _shared.Length; i++)
            {
                if (dice.Below(2) == 0) FreeChecked(Interlocked.Exchange(ref _shared[i], 0));
            }
        }
        return done;
    }

    public override void Dispose()
    {
        for (int i = 0; i < _shared.Length; i++) FreeChecked(Interlocked.Exchange(ref _shared[i], 0));
    }

    /// <summary>Allocates an object of so many words and writes them.</summary>
    internal unsafe nint AllocMarked(long words)
    {
        var obj = (ulong*)allocator.AllocAny((nuint)(words * WordBytes));
        if (obj == null) throw new InvalidOperationException($"{Allocator}: no memory for {words * WordBytes} bytes");
        for (long i = 0; i < words; i++) obj[i] = (ulong)(words - i) ^ Cookie;
        return (nint)obj;
    }

    /// <summary>Frees an object whose words are all as they were written.</summary>
    /// <exception cref="InvalidOperationException">One is not.</exception>
    internal unsafe void FreeChecked(nint address)
    {
        if (address == 0) return;

        var obj = (ulong*)address;
        ulong words = obj[0] ^ Cookie;
        for (ulong i = 0; i < words; i++)
        {
            if ((obj[i] ^ Cookie) != words - i)
            {
                throw new InvalidOperationException(
                    $"{Allocator}: word {i} of the object at 0x{address:x} is 0x{obj[i]:x}, not what was written");
            }
        }
        allocator.FreeAny(address);
    }

    private long OperationsOf(int thread)
    {
        long plain = 100L * scale * ((thread % 8) + 1);
        return plain + (plain / 2);
    }

    private long Work(int thread, ulong round)
    {
        var dice = new Dice((round << 8) + (ulong)thread);
        long all = OperationsOf(thread);
        long retains = all / 3;
        long allocs = all - retains;
        var plain = new GrowingArray(allocator);
        var retained = new nint[retains];
        int kept = 0;
        while (allocs > 0 || kept < retained.Length)
        {
            if (kept == retained.Length || (allocs > 0 && dice.Below(2) == 0))
            {
                allocs--;
                plain.Add(AllocMarked(Words(ref dice, 5)));
            }
            else
            {
                retained[kept++] = AllocMarked(Words(ref dice, 7));
            }
            if (plain.Count > 0 && dice.Below(100) < 66)
            {
                ref nint slot = ref plain[dice.Below(plain.Count)];
                FreeChecked(slot);
                slot = 0;
            }
            if (plain.Count > 0 && dice.Below(100) < 25)
            {
                ref nint own = ref plain[dice.Below(plain.Count)];
                own = Interlocked.Exchange(ref _shared[dice.Below(_shared.Length)], own);
            }
        }
        foreach (nint obj in retained) FreeChecked(obj);
        for (int i = 0; i < plain.Count; i++) FreeChecked(plain[i]);
        plain.Free();
        return all;
    }

    // 1, 2, 4 … words; one in a hundred a hundred times that, one in a thousand a thousand times, one in ten thousand …
    private static long Words(ref Dice dice, int powers)
    {
        long words = 1L << dice.Below(powers);
        int luck = dice.Below(10_000);
        return luck switch
        {
            0 => words * 10_000,
            <= 10 => words * 1000,
            <= 110 => words * 100,
            _ => words,
        };
    }

    /// <summary>Addresses in memory of the allocator under test, which moves as it grows.</summary>
    private unsafe struct GrowingArray(TA heap)
    {
        private nint* _items;
        private int _capacity;

        internal int Count { get; private set; }

        internal readonly ref nint this[int index] => ref _items[index];

        internal void Add(nint item)
        {
            if (Count == _capacity)
            {
                int capacity = Math.Max(64, 2 * _capacity);
                var items = (nint*)heap.AllocAny((nuint)capacity * (nuint)sizeof(nint));
                new ReadOnlySpan<nint>(_items, Count).CopyTo(new Span<nint>(items, Count));
                Free();
                _items = items;
                _capacity = capacity;
            }
            _items[Count++] = item;
        }

        internal readonly void Free()
        {
            if (_items != null) heap.FreeAny((nint)_items);
        }
    }
}
