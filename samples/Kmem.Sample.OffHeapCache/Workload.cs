using System.Buffers.Binary;
using System.Diagnostics;
using System.Runtime.CompilerServices;

namespace Kmem.Samples;

/// <summary>What came of a workload.</summary>
/// <param name="Operations">Lookups.</param>
/// <param name="Hits">Those that found something.</param>
/// <param name="Wrong">Those that found something wrong.</param>
/// <param name="Elapsed">How long they took, after the cache had been filled.</param>
/// <param name="TotalPause">Time that the garbage collector stopped the process.</param>
/// <param name="LongestPause">The longest of these stops that was seen.</param>
/// <param name="FullCollections">Collections of generation 2.</param>
/// <param name="HeapBytes">The GC heap's size at the end.</param>
public sealed record WorkloadResult(
    long Operations,
    long Hits,
    long Wrong,
    TimeSpan Elapsed,
    TimeSpan TotalPause,
    TimeSpan LongestPause,
    int FullCollections,
    long HeapBytes);

/// <summary>
/// Looks up numbers, some far more often than others, and puts what is missing; each value says whose it is. Between
/// lookups it makes garbage, as a program that answers requests does: that is what makes the collector run.
/// </summary>
public static class Workload
{
    /// <summary>Runs it.</summary>
    /// <param name="cache">The cache.</param>
    /// <param name="entries">How many entries fill it. Twice as many keys are used.</param>
    /// <param name="operations">Lookups.</param>
    /// <param name="seed">Of the keys.</param>
    /// <returns>What came of it.</returns>
    public static WorkloadResult Run(ILruCache cache, int entries, long operations, int seed = 1)
    {
        Span<byte> value = stackalloc byte[OffHeapCache.MaxValue];
        for (ulong key = 0; key < (ulong)entries; key++)
            Put(cache, key, value);
        GC.Collect();

        var random = new Random(seed);
        long hits = 0, wrong = 0;
        var longest = TimeSpan.Zero;
        int collections = GC.CollectionCount(2), seen = GC.CollectionCount(0);
        TimeSpan pause = GC.GetTotalPauseDuration(), before = pause;
        var clock = Stopwatch.StartNew();
        for (long i = 0; i < operations; i++)
        {
            // The cube of a uniform number: a tenth of the keys gets nearly half of the lookups.
            double uniform = random.NextDouble();
            var key = (ulong)(uniform * uniform * uniform * 2 * entries);
            int length = cache.TryGet(key, value);
            if (length >= 0)
            {
                hits++;
                wrong += IsRight(key, value[..length]) ? 0 : 1;
            }
            else
            {
                Put(cache, key, value);
            }

            MakeGarbage(i);
            if ((i & 63) == 0 && GC.CollectionCount(0) != seen)
            {
                seen = GC.CollectionCount(0);
                TimeSpan now = GC.GetTotalPauseDuration();
                longest = now - before > longest ? now - before : longest;
                before = now;
            }
        }

        clock.Stop();
        return new WorkloadResult(
            operations,
            hits,
            wrong,
            clock.Elapsed,
            GC.GetTotalPauseDuration() - pause,
            longest,
            GC.CollectionCount(2) - collections,
            GC.GetTotalMemory(forceFullCollection: true));
    }

    private static readonly byte[][] s_garbage = new byte[64][];

    private static void MakeGarbage(long i) => s_garbage[i & 63] = new byte[400];

    private static void Put(ILruCache cache, ulong key, Span<byte> buffer)
    {
        int length = LengthOf(key);
        Span<byte> value = buffer[..length];
        value.Fill((byte)key);
        BinaryPrimitives.WriteUInt64LittleEndian(value, key);
        cache.Put(key, value);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static int LengthOf(ulong key) => 100 + (int)(key % 101);

    private static bool IsRight(ulong key, ReadOnlySpan<byte> value) =>
        value.Length == LengthOf(key)
        && BinaryPrimitives.ReadUInt64LittleEndian(value) == key
        && value[8..].IndexOfAnyExcept((byte)key) < 0;
}
