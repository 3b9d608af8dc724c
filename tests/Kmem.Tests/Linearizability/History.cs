using System.Numerics;

namespace Kmem.Tests;

/// <summary>One operation as its caller saw it: what it did, and between which two ticks.</summary>
/// <param name="IsFree">Gives <paramref name="Item"/> back; else takes one.</param>
/// <param name="Item">What was given or taken; 0 if nothing could be taken.</param>
/// <param name="Called">The tick before the call.</param>
/// <param name="Returned">The tick after it.</param>
internal readonly record struct Operation(bool IsFree, ulong Item, long Called, long Returned);

/// <summary>
/// What several threads did with an allocator, and whether a sequential allocator could have done it: whether each
/// operation can be given one instant between its call and its return so that, in the order of these instants, the
/// specification holds (Herlihy and Wing, 1990; the search is Wing and Gong's, 1993).
/// <code>
///   state:  the set of items that somebody has
///   take i: i was not in the set, and is now        give i: i was in the set, and is not now
///   take 0: the set has at least so many items      (it may fail only then)
/// </code>
/// </summary>
internal sealed class History
{
    private readonly Lock _gate = new();
    private readonly List<Operation> _operations = [];
    private long _clock;

    public IReadOnlyList<Operation> Operations => _operations;

    /// <summary>Performs and records a request.</summary>
    public ulong Take(Func<ulong> alloc)
    {
        long called = Interlocked.Increment(ref _clock);
        ulong item = alloc();
        Add(new Operation(false, item, called, Interlocked.Increment(ref _clock)));
        return item;
    }

    /// <summary>Performs and records a free.</summary>
    public void Give(ulong item, Action free)
    {
        long called = Interlocked.Increment(ref _clock);
        free();
        Add(new Operation(true, item, called, Interlocked.Increment(ref _clock)));
    }

    /// <summary>Whether a sequential allocator could have done this.</summary>
    /// <param name="operations">At most 64.</param>
    /// <param name="mayFailAt">A request may fail when so many items are taken.</param>
    public static bool IsLinearizable(IReadOnlyList<Operation> operations, int mayFailAt)
    {
        Assert.InRange(operations.Count, 0, 64);
        ulong all = operations.Count == 64 ? ulong.MaxValue : (1UL << operations.Count) - 1;
        return Search(operations, mayFailAt, all, 0, [], []);
    }

    private void Add(Operation operation)
    {
        lock (_gate)
            _operations.Add(operation);
    }

    /// <summary>
    /// Tries every operation that may come next: none that is still to come returned before it was called. The set of
    /// items follows from which operations came, not from their order, so no such set is tried twice.
    /// </summary>
    private static bool Search(
        IReadOnlyList<Operation> operations, int mayFailAt, ulong all, ulong done, HashSet<ulong> taken, HashSet<ulong> tried)
    {
        if (done == all)
            return true;
        if (!tried.Add(done))
            return false;

        long firstReturn = long.MaxValue;
        for (ulong left = all & ~done; left != 0; left &= left - 1)
            firstReturn = Math.Min(firstReturn, operations[BitOperations.TrailingZeroCount(left)].Returned);
        for (ulong left = all & ~done; left != 0; left &= left - 1)
        {
            int index = BitOperations.TrailingZeroCount(left);
            Operation operation = operations[index];
            if (operation.Called > firstReturn || !Apply(operation, taken, mayFailAt))
                continue;
            if (Search(operations, mayFailAt, all, done | (1UL << index), taken, tried))
                return true;
            Revert(operation, taken);
        }

        return false;
    }

    private static bool Apply(Operation operation, HashSet<ulong> taken, int mayFailAt) =>
        operation.IsFree ? taken.Remove(operation.Item)
        : operation.Item == 0 ? taken.Count >= mayFailAt
        : taken.Add(operation.Item);

    private static void Revert(Operation operation, HashSet<ulong> taken)
    {
        if (operation.IsFree)
            taken.Add(operation.Item);
        else if (operation.Item != 0)
            taken.Remove(operation.Item);
    }
}
