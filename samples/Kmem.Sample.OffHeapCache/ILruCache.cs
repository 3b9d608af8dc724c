namespace Kmem.Samples;

/// <summary>A cache of byte values by number that forgets what was not used for longest. Thread-safe.</summary>
public interface ILruCache : IDisposable
{
    /// <summary>Entries in it.</summary>
    int Count { get; }

    /// <summary>Entries forgotten to make room.</summary>
    long Evictions { get; }

    /// <summary>Copies a value out, and counts as a use.</summary>
    /// <param name="key">The key.</param>
    /// <param name="value">Filled from the start.</param>
    /// <returns>The value's length; -1 if it is not there.</returns>
    int TryGet(ulong key, Span<byte> value);

    /// <summary>Adds or replaces a value; the least recently used entry goes if the cache is full.</summary>
    /// <param name="key">The key.</param>
    /// <param name="value">The value.</param>
    void Put(ulong key, ReadOnlySpan<byte> value);
}
