using System.Numerics;
using System.Runtime.CompilerServices;

namespace Kmem.Samples;

/// <summary>
/// The cache off the heap: entries are objects of a <see cref="KmemCache{T}"/>, tied together by handles; the table of
/// buckets is a few rented blocks. For the garbage collector it is a handful of objects, however many entries there
/// are.
/// <code>
///   buckets [ h | · | h | … ]          recency:  newest ⇄ … ⇄ oldest
///             │       └─▶ entry ─▶ entry         (both through handles in the entries)
///             └─▶ entry
/// </code>
/// </summary>
public sealed class OffHeapCache : ILruCache
{
    /// <summary>Longest value.</summary>
    public const int MaxValue = 200;

    /// <summary>Buckets in a block: 2 MiB, which every host can give, also one without vmalloc.</summary>
    private const int BlockShift = 17;

    private readonly KmemCache<Entry> _entries;
    private readonly KmemOwner<KmemHandle<Entry>>[] _buckets;
    private readonly Lock _gate = new();
    private readonly int _capacity;
    private readonly int _mask;
    private KmemHandle<Entry> _newest;
    private KmemHandle<Entry> _oldest;

    /// <summary>Makes an empty cache.</summary>
    /// <param name="machine">Where its memory comes from.</param>
    /// <param name="capacity">Most entries.</param>
    public OffHeapCache(Machine machine, int capacity)
    {
        _capacity = capacity;
        var buckets = (int)BitOperations.RoundUpToPowerOf2((uint)capacity);
        _mask = buckets - 1;
        _buckets = new KmemOwner<KmemHandle<Entry>>[((buckets - 1) >> BlockShift) + 1];
        for (int i = 0; i < _buckets.Length; i++)
            _buckets[i] = machine.Rent<KmemHandle<Entry>>(Math.Min(buckets, 1 << BlockShift), clear: true);
        _entries = machine.CreateCache<Entry>("cache-entry");
    }

    /// <inheritdoc/>
    public int Count { get; private set; }

    /// <inheritdoc/>
    public long Evictions { get; private set; }

    /// <inheritdoc/>
    public int TryGet(ulong key, Span<byte> value)
    {
        lock (_gate)
        {
            KmemHandle<Entry> found = Find(key);
            if (found.IsNull)
                return -1;

            Touch(found);
            ref Entry entry = ref _entries[found];
            Span<byte> bytes = entry.Value;
            bytes[..entry.Length].CopyTo(value);
            return entry.Length;
        }
    }

    /// <inheritdoc/>
    public void Put(ulong key, ReadOnlySpan<byte> value)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(value.Length, MaxValue);
        lock (_gate)
        {
            KmemHandle<Entry> handle = Find(key);
            if (!handle.IsNull)
            {
                Touch(handle);
            }
            else
            {
                if (Count == _capacity)
                    Evict();
                ref KmemHandle<Entry> bucket = ref BucketOf(key);
                handle = _entries.Rent();
                ref Entry fresh = ref _entries[handle];
                fresh.Key = key;
                fresh.NextInBucket = bucket;
                bucket = handle;
                LinkNewest(handle);
                Count++;
            }

            ref Entry entry = ref _entries[handle];
            entry.Length = value.Length;
            value.CopyTo(entry.Value);
        }
    }

    /// <summary>Gives all memory back.</summary>
    public void Dispose()
    {
        lock (_gate)
        {
            if (_entries.IsDisposed)
                return;

            while (!_oldest.IsNull)
                Remove(_oldest);
            _entries.Dispose();
            Array.ForEach(_buckets, block => block.Dispose());
        }
    }

    private ref KmemHandle<Entry> BucketOf(ulong key)
    {
        int bucket = (int)((key * 0x9E37_79B9_7F4A_7C15) >> 32) & _mask;
        return ref _buckets[bucket >> BlockShift].Span[bucket & ((1 << BlockShift) - 1)];
    }

    private KmemHandle<Entry> Find(ulong key)
    {
        KmemHandle<Entry> at = BucketOf(key);
        while (!at.IsNull)
        {
            ref Entry entry = ref _entries[at];
            if (entry.Key == key)
                return at;
            at = entry.NextInBucket;
        }

        return default;
    }

    private void Evict()
    {
        Remove(_oldest);
        Evictions++;
    }

    private void Remove(KmemHandle<Entry> handle)
    {
        ref KmemHandle<Entry> link = ref BucketOf(_entries[handle].Key);
        while (link != handle)
            link = ref _entries[link].NextInBucket;
        link = _entries[handle].NextInBucket;
        Unlink(handle);
        _entries.Return(handle);
        Count--;
    }

    private void Touch(KmemHandle<Entry> handle)
    {
        if (handle == _newest)
            return;

        Unlink(handle);
        LinkNewest(handle);
    }

    private void LinkNewest(KmemHandle<Entry> handle)
    {
        ref Entry entry = ref _entries[handle];
        entry.Newer = default;
        entry.Older = _newest;
        if (_newest.IsNull)
            _oldest = handle;
        else
            _entries[_newest].Newer = handle;
        _newest = handle;
    }

    private void Unlink(KmemHandle<Entry> handle)
    {
        ref Entry entry = ref _entries[handle];
        if (entry.Newer.IsNull)
            _newest = entry.Older;
        else
            _entries[entry.Newer].Older = entry.Older;
        if (entry.Older.IsNull)
            _oldest = entry.Newer;
        else
            _entries[entry.Older].Newer = entry.Newer;
    }

    private struct Entry
    {
        public ulong Key;
        public KmemHandle<Entry> NextInBucket;
        public KmemHandle<Entry> Newer;
        public KmemHandle<Entry> Older;
        public int Length;
        public Bytes Value;
    }

    [InlineArray(MaxValue)]
    private struct Bytes
    {
        private byte _first;
    }
}
