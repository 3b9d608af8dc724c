using System.Diagnostics;
using System.Text;

namespace Kmem.Tests;

/// <summary>
/// Feeds a reader with a real sample that was damaged at random, a seed each. It refuses with its own exception or
/// understands, in bounded time and memory. <c>KMEM_FUZZ_ROUNDS</c> sets how many inputs each reader gets.
/// </summary>
internal static class Fuzzer
{
    private const long MostBytes = 1L << 30;
    private static readonly TimeSpan s_longest = TimeSpan.FromSeconds(90);     // they take milliseconds; the machine may be busy

    /// <summary>The same for a reader of text.</summary>
    public static void Texts(string what, string sample, int rounds, Action<string> read, params Type[] own) =>
        Fuzz(what, Encoding.UTF8.GetBytes(sample), rounds, input => read(Encoding.UTF8.GetString(input)), own);

    public static void Fuzz(string what, byte[] sample, int rounds, Action<byte[]> read, params Type[] own)
    {
        if (double.TryParse(Environment.GetEnvironmentVariable("KMEM_FUZZ_ROUNDS"), out double factor))
            rounds = (int)(rounds * factor);
        int refused = 0;
        for (int seed = 0; seed < rounds; seed++)
        {
            byte[] damaged = Damage(sample, new Random(seed));
            var watch = Stopwatch.StartNew();
            long before = GC.GetAllocatedBytesForCurrentThread();
            try
            {
                read(damaged);
            }
            catch (Exception error) when (own.Any(type => type.IsInstanceOfType(error)))
            {
                Assert.NotEmpty(error.Message);
                refused++;
            }
            catch (Exception error)
            {
                Assert.Fail($"{what}, seed {seed}: {error}");
            }

            Assert.True(watch.Elapsed < s_longest, $"{what}, seed {seed}: {watch.Elapsed}");
            long bytes = GC.GetAllocatedBytesForCurrentThread() - before;
            Assert.True(bytes < MostBytes, $"{what}, seed {seed}: {bytes} bytes");
        }

        Figures.Add("fuzzing", what, rounds);
        TestContext.Current.TestOutputHelper?.WriteLine($"{what}: {rounds} inputs, {refused} refused");
    }

    /// <summary>One to four accidents: bytes changed, cut, doubled, moved; numbers made extreme.</summary>
    private static byte[] Damage(byte[] sample, Random random)
    {
        List<byte> damaged = [.. sample];
        for (int i = random.Next(1, 5); i > 0 && damaged.Count > 0; i--)
        {
            int at = random.Next(damaged.Count);
            int length = Math.Min(random.Next(1, 20), damaged.Count - at);
            switch (random.Next(8))
            {
                case 0:
                    damaged[at] = (byte)random.Next(256);
                    break;
                case 1:
                    damaged.RemoveRange(at, length);
                    break;
                case 2:
                    damaged.InsertRange(random.Next(damaged.Count), damaged.GetRange(at, length));
                    break;
                case 3 when random.Next(4) == 0:
                    damaged.RemoveRange(at, damaged.Count - at);
                    break;
                default:
                    ChangeNumber(damaged, at, random);
                    break;
            }
        }

        return [.. damaged];
    }

    /// <summary>The next number of a text becomes another one, often an extreme one.</summary>
    private static void ChangeNumber(List<byte> text, int from, Random random)
    {
        int start = text.FindIndex(from, b => b is >= (byte)'0' and <= (byte)'9');
        if (start < 0)
            return;

        int end = text.FindIndex(start, b => b is < (byte)'0' or > (byte)'9');
        string[] numbers =
        [
            "0", "1", "-1", "7", "255", "4096", "2147483647", "2147483648", "4294967295", "9223372036854775807",
            "18446744073709551615", "99999999999999999999", random.Next(100_000).ToString(),
        ];
        text.RemoveRange(start, (end < 0 ? text.Count : end) - start);
        text.InsertRange(start, Encoding.ASCII.GetBytes(numbers[random.Next(numbers.Length)]));
    }
}
