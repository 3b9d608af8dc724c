namespace Kmem.Samples;

/// <summary>
/// The same on the GC heap, as one would write it: a dictionary, a linked list, an array for each value.
/// </summary>
public sealed class HeapCache(int capacity) : ILruCache
{
    private readonly Dictionary<ulong, LinkedListNode<(ulong Key, byte[] Value)>> _entries = new(capacity);
    private readonly LinkedList<(ulong Key, byte[] Value)> _byRecency = new();
    private readonly Lock _gate = new();

    /// <inheritdoc/>
    public int Count => _entries.Count;

    /// <inheritdoc/>
    public long Evictions { get; private set; }

    /// <inheritdoc/>
    public int TryGet(ulong key, Span<byte> value)
    {
        lock (_gate)
        {
            if (!_entries.TryGetValue(key, out LinkedListNode<(ulong Key, byte[] Value)>? node))
                return -1;

            _byRecency.Remove(node);
            _byRecency.AddFirst(node);
            node.ValueRef.Value.CopyTo(value);
            return node.ValueRef.Value.Length;
        }
    }

    /// <inheritdoc/>
    public void Put(ulong key, ReadOnlySpan<byte> value)
    {
        lock (_gate)
        {
            if (_entries.Remove(key, out LinkedListNode<(ulong Key, byte[] Value)>? old))
            {
                _byRecency.Remove(old);
            }
            else if (_entries.Count == capacity)
            {
                _entries.Remove(_byRecency.Last!.Value.Key);
                _byRecency.RemoveLast();
                Evictions++;
            }

            _entries.Add(key, _byRecency.AddFirst((key, value.ToArray())));
        }
    }

    /// <summary>Nothing to do: the garbage collector has the work.</summary>
    public void Dispose()
    {
    }
}
