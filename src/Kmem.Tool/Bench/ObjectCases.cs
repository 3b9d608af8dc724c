using System.Runtime.CompilerServices;

namespace Kmem.Tool.Bench;

/// <summary>The numbers that the single-threaded loops run through: the same for every allocator, and for C.</summary>
internal static class Tables
{
    internal const int Size = 64;
    internal const int Batch = 100;
    internal const int Bulk = 64;
    internal const int Slots = 1000;
    internal const int Length = 4096;

    /// <summary>Sizes from 16 to 1024.</summary>
    internal static int[] Sizes { get; } = Make(it => 16 + (int)(it % 1009));

    /// <summary>Slots to replace.</summary>
    internal static int[] Picks { get; } = Make(it => (int)(it % Slots));

    /// <summary>The numbers from 0 to 99 in some order.</summary>
    internal static int[] Order { get; } = Shuffled();

    /// <summary>The numbers from 99 to 0.</summary>
    internal static int[] NewestFirst { get; } = [.. Enumerable.Range(0, Batch).Reverse()];

    /// <summary>The numbers from 0 to 63.</summary>
    internal static int[] OldestFirst { get; } = [.. Enumerable.Range(0, Bulk)];

    // A linear congruential generator, which the C program has as well.
    private static uint Next(ref uint state)
    {
        state = (state * 1664525) + 1013904223;
        return state >> 8;
    }

    private static int[] Make(Func<uint, int> number)
    {
        uint state = 42;
        var table = new int[Length];
        for (int i = 0; i < Length; i++) table[i] = number(Next(ref state));
        return table;
    }

    private static int[] Shuffled()
    {
        uint state = 7;
        int[] order = [.. Enumerable.Range(0, Batch)];
        for (int i = Batch - 1; i > 0; i--)
        {
            int other = (int)(Next(ref state) % (uint)(i + 1));
            (order[i], order[other]) = (order[other], order[i]);
        }
        return order;
    }
}

/// <summary><c>pair64c</c>: 64 bytes, a constant, allocated and freed at once.</summary>
internal sealed class ConstantPairCase<TA, TH>(string name, TA allocator) : Case(name)
    where TA : struct, IAllocator<TH>
{
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        TA a = allocator;
        for (long i = 0; i < operations; i++) a.Free(a.Alloc(Tables.Size));
        return operations;
    }
}

/// <summary><c>pair64</c>: 64 bytes, read from memory each time, allocated and freed at once.</summary>
internal sealed class PairCase<TA, TH>(string name, TA allocator) : Case(name)
    where TA : struct, IAllocator<TH>
{
    private readonly nuint[] _size = [Tables.Size];

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        TA a = allocator;
        ref nuint size = ref _size[0];
        for (long i = 0; i < operations; i++) a.Free(a.Alloc(Volatile.Read(ref size)));
        return operations;
    }
}

/// <summary>
/// <c>lifo100</c>, <c>rand100</c> and <c>bulk64</c>: objects of 64 bytes, freed newest first, in random order, or as
/// they came.
/// </summary>
/// <param name="name">The allocator's name.</param>
/// <param name="allocator">The allocator.</param>
/// <param name="order">The numbers of the objects in the order in which they are freed.</param>
internal sealed class OrderCase<TA, TH>(string name, TA allocator, int[] order) : Case(name)
    where TA : struct, IAllocator<TH>
{
    private readonly TH[] _objects = new TH[order.Length];

    internal override long Least => order.Length;

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        TA a = allocator;
        TH[] objects = _objects;
        int[] frees = order;
        long done = 0;
        for (; done < operations; done += frees.Length)
        {
            for (int i = 0; i < objects.Length; i++) objects[i] = a.Alloc(Tables.Size);
            foreach (int i in frees) a.Free(objects[i]);
        }
        return done;
    }
}

/// <summary><c>bulk64</c> of <c>kmem-bulk</c>: 64 objects by one call, and back by one.</summary>
internal sealed class BulkCallCase(string name, KmemCache cache) : Case(name)
{
    private readonly nint[] _objects = new nint[Tables.Bulk];

    internal override long Least => Tables.Bulk;

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        KmemCache c = cache;
        nint[] objects = _objects;
        long done = 0;
        for (; done < operations; done += Tables.Bulk)
        {
            if (c.AllocBulk(Gfp.Kernel, objects) != objects.Length)
                throw new InvalidOperationException("AllocBulk: no memory");
            c.FreeBulk(objects);
        }
        return done;
    }
}

/// <summary><c>rsize</c>: random sizes from 16 to 1024, freed at once.</summary>
internal sealed class RandomSizeCase<TA, TH>(string name, TA allocator) : Case(name)
    where TA : struct, IAllocator<TH>
{
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        TA a = allocator;
        int[] sizes = Tables.Sizes;
        for (long i = 0; i < operations; i++) a.Free(a.Alloc((nuint)sizes[(int)i & (Tables.Length - 1)]));
        return operations;
    }
}

/// <summary>
/// <c>slots1000</c>: a random one of a thousand live objects is freed, and another of random size allocated.
/// </summary>
internal sealed class SlotsCase<TA, TH>(string name, TA allocator) : Case(name)
    where TA : struct, IAllocator<TH>
{
    private readonly TH[] _slots = new TH[Tables.Slots];

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations)
    {
        TA a = allocator;
        TH[] slots = _slots;
        int[] sizes = Tables.Sizes;
        int[] picks = Tables.Picks;
        for (long i = 0; i < operations; i++)
        {
            ref TH slot = ref slots[picks[(int)i & (Tables.Length - 1)]];
            if (!a.IsNone(slot)) a.Free(slot);
            slot = a.Alloc((nuint)sizes[(int)(i * 7) & (Tables.Length - 1)]);
        }
        return operations;
    }

    public override void Dispose()
    {
        foreach (TH slot in _slots)
        {
            if (!allocator.IsNone(slot)) allocator.Free(slot);
        }
        Array.Clear(_slots);
    }
}

/// <summary><c>kmem-scope</c>: the loop holds a <see cref="CacheScope"/>.</summary>
/// <param name="name">The allocator's name.</param>
/// <param name="cache">The cache.</param>
/// <param name="order">
/// The order of the frees, as in <see cref="OrderCase{TA, TH}"/>; null where each object is freed at once.
/// </param>
internal sealed class ScopeCase(string name, KmemCache cache, int[]? order) : Case(name)
{
    private readonly nint[] _objects = new nint[order?.Length ?? 0];

    internal override long Least => order?.Length ?? 1;

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override long Round(long operations) =>
        order == null ? Pairs(cache, operations) : Ordered(cache, _objects, order, operations);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static unsafe long Pairs(KmemCache cache, long operations)
    {
        using CacheScope scope = cache.Enter(Gfp.Kernel);
        for (long i = 0; i < operations; i++) scope.Free(scope.Alloc());
        return operations;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static unsafe long Ordered(KmemCache cache, nint[] objects, int[] order, long operations)
    {
        using CacheScope scope = cache.Enter(Gfp.Kernel);
        long done = 0;
        for (; done < operations; done += order.Length)
        {
            for (int i = 0; i < objects.Length; i++) objects[i] = (nint)scope.Alloc();
            foreach (int i in order) scope.Free((void*)objects[i]);
        }
        return done;
    }
}

/// <summary>
/// <c>vmalloc16</c>, <c>vmalloc4k</c>: an area is allocated, one byte of each page written, and freed.
/// </summary>
internal sealed class AreaCase<TA>(string name, TA allocator, int pages) : Case(name)
    where TA : struct, IAllocator<nint>
{
    private const int PageSize = 4096;

    [MethodImpl(MethodImplOptions.NoInlining)]
    internal override unsafe long Round(long operations)
    {
        TA a = allocator;
        nuint size = (nuint)pages * PageSize;
        for (long i = 0; i < operations; i++)
        {
            nint area = a.Alloc(size);
            if (a.IsNone(area)) throw new InvalidOperationException($"{Allocator}: no memory for an area");
            for (int page = 0; page < pages; page++) ((byte*)area)[page * PageSize] = (byte)page;
            a.Free(area);
        }
        return operations;
    }
}
