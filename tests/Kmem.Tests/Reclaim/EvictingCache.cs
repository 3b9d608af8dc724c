using System.Runtime.InteropServices;

namespace Kmem.Tests;

/// <summary>
/// A cache that may be as large as memory lets it: values in a slab cache of the machine, oldest first out, and a
/// shrinker that evicts. A value is its key's number, repeated: reading checks every byte of it.
/// </summary>
internal sealed class EvictingCache : IDisposable
{
    private readonly Lock _gate = new();
    private readonly Dictionary<ulong, LinkedListNode<(ulong Key, nint Value)>> _entries = [];
    private readonly LinkedList<(ulong Key, nint Value)> _byAge = new();
    private readonly KmemCache _values;

    public EvictingCache(Machine machine, int valueBytes, int seeks = Shrinker.DefaultSeeks)
    {
        ValueBytes = valueBytes;
        _values = machine.CreateCache("cached-values", valueBytes, flags: SlabFlags.ReclaimAccount);
        Shrinker = machine.RegisterShrinker("values", _ => Volatile.Read(ref _count), Scan, seeks);
    }

    private long _count;

    public int ValueBytes { get; }

    public Shrinker Shrinker { get; }

    public long Inserted { get; private set; }

    public long Evicted { get; private set; }

    /// <summary>The most values that were there at once.</summary>
    public long Most { get; private set; }

    public int Count
    {
        get
        {
            lock (_gate)
                return _entries.Count;
        }
    }

    /// <summary>False if there was no memory for the value, which must not happen.</summary>
    public unsafe bool TryInsert(ulong key)
    {
        // Not under the lock: this is where memory runs short, and Scan wants the lock then.
        void* value = _values.Alloc(Gfp.Kernel | Gfp.NoWarn);
        if (value == null)
            return false;

        new Span<ulong>(value, ValueBytes / sizeof(ulong)).Fill(key);
        lock (_gate)
        {
            _entries.Add(key, _byAge.AddLast((key, (nint)value)));
            Inserted++;
            Most = Math.Max(Most, ++_count);
        }

        return true;
    }

    /// <summary>Whether a key is there; fails if its value is not what was written.</summary>
    public bool Contains(ulong key)
    {
        lock (_gate)
        {
            if (!_entries.TryGetValue(key, out LinkedListNode<(ulong Key, nint Value)>? entry))
                return false;
            Check(entry.Value);
            return true;
        }
    }

    public void CheckAll()
    {
        lock (_gate)
        {
            foreach ((ulong, nint) entry in _byAge)
                Check(entry);
            Assert.Equal(_entries.Count, _byAge.Count);
            Assert.Equal(Inserted, Evicted + _entries.Count);
        }
    }

    public void Dispose()
    {
        Shrinker.Dispose();
        while (EvictOldest())
        {
        }

        _values.Destroy();
    }

    private long Scan(ShrinkControl control)
    {
        // Nobody allocates while holding the lock, so whoever has it will not wait for what this frees.
        lock (_gate)
        {
            long freed = 0;
            while (freed < control.ToScan && EvictOldest())
                freed++;
            return freed;
        }
    }

    private unsafe bool EvictOldest()
    {
        if (_byAge.First is not { } oldest)
            return false;

        _byAge.RemoveFirst();
        _entries.Remove(oldest.Value.Key);
        Check(oldest.Value);
        _values.Free((void*)oldest.Value.Value);
        _count--;
        Evicted++;
        return true;
    }

    private unsafe void Check((ulong Key, nint Value) entry) => Assert.True(
        !new Span<ulong>((void*)entry.Value, ValueBytes / sizeof(ulong)).ContainsAnyExcept(entry.Key),
        $"the value of key {entry.Key} has changed");
}
