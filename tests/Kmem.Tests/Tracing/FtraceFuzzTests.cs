using System.Text;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// Recorded lines, damaged at random from fixed seeds: nothing but the reader's own exceptions escapes, and lines
/// that were left alone read as before.
/// </summary>
public sealed class FtraceFuzzTests
{
    private static readonly Lazy<(byte[] Line, string Event)[]> s_lines = new(SampleLines);

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void LinesLeftAloneReadTheSame(int seed)
    {
        var random = new Random(seed);
        for (int round = 0; round < 50; round++)
        {
            byte[] text = DamageSomeLines(random, out Dictionary<long, string> expected);
            if (random.Next(4) == 0)
                text = TraceText.Gzip(text);

            int left = expected.Count;
            using FtraceReader r = FtraceReader.Open(new TraceText.Trickle(text, random.Next(1, 100_000)), "fuzz");
            TraceEvent e = default;
            while (r.TryRead(ref e))
            {
                if (!expected.TryGetValue(e.Line, out string? original))
                    continue;
                Assert.True(
                    original == TraceText.Describe(r, e), $"seed {seed} round {round} line {e.Line}: {original}");
                left--;
            }

            Assert.True(left == 0, $"seed {seed} round {round}: {left} good lines were not delivered");
            Assert.True(r.Damage.All(d => !expected.ContainsKey(d.Line)), $"seed {seed} round {round}");
        }
    }

    [Theory]
    [InlineData(11, false)]
    [InlineData(12, false)]
    [InlineData(13, true)]
    [InlineData(14, true)]
    public void OnlyTheReadersOwnExceptionsEscape(int seed, bool gzip)
    {
        byte[] original = [.. Encoding.ASCII.GetBytes(TraceText.Header), .. s_lines.Value.SelectMany(l => l.Line)];
        if (gzip)
            original = TraceText.Gzip(original);
        var random = new Random(seed);
        for (int round = 0; round < 300; round++)
        {
            byte[] bytes = original[random.Next(4) == 0 ? random.Next(original.Length).. : ..];
            for (int i = random.Next(1, 30); i > 0 && bytes.Length > 0; i--)
                bytes[random.Next(bytes.Length)] = (byte)random.Next(256);
            bytes = random.Next(3) == 0 ? bytes[..random.Next(bytes.Length + 1)] : bytes;
            try
            {
                using FtraceReader r = TraceText.Open(bytes);
                TraceText.ReadAll(r);
                Assert.Equal(Math.Min(20, r.DamagedCount), r.Damage.Count);
            }
            catch (Exception e) when (e is TraceFormatException or IOException)
            {
                Assert.NotEmpty(e.Message);
            }
            catch (Exception e) when (e is not Xunit.Sdk.XunitException)
            {
                Assert.Fail($"seed {seed} round {round}: {e}");
            }
        }
    }

    /// <summary>Every prefix and every single changed byte of one line of each kind.</summary>
    [Fact]
    public void EveryCutAndEveryFlipOfEachKindOfLine()
    {
        (byte[] Line, string Event)[] kinds =
            [.. s_lines.Value.DistinctBy(l => l.Event.Split(' ')[0], StringComparer.Ordinal)];
        Assert.Equal(12, kinds.Length);
        foreach (byte[] line in kinds.Select(k => k.Line))
        {
            var text = new MemoryStream();
            text.Write(Encoding.ASCII.GetBytes(TraceText.Header));
            int variants = 0;
            for (int i = 0; i < line.Length - 1; i++)
            {
                text.Write([.. line[..i], (byte)'\n']);
                byte[] changed = [.. line];
                foreach (byte value in (byte[])[0, .. " -[:"u8, 0xff, (byte)(line[i] ^ 1)])
                {
                    changed[i] = value == (byte)'\n' ? (byte)'?' : value;
                    text.Write(changed);
                    variants++;
                }
            }

            using FtraceReader r = TraceText.Open(text.ToArray());
            int events = TraceText.ReadAll(r).Count;
            Assert.InRange(events + r.DamagedCount, variants, r.Lines);
            Assert.True(r.DamagedCount > variants / 4);
        }
    }

    /// <summary>A trace in which about one line of ten was damaged, and what the others hold, by line number.</summary>
    private static byte[] DamageSomeLines(Random random, out Dictionary<long, string> expected)
    {
        expected = [];
        var text = new MemoryStream();
        text.Write(Encoding.ASCII.GetBytes(TraceText.Header));
        long number = TraceText.Header.Count(c => c == '\n');
        foreach ((byte[] line, string original) in s_lines.Value)
        {
            byte[] written = line;
            bool alone = random.Next(10) != 0;
            if (alone)
                expected.Add(number + 1, original);
            else
                written = Damage(random, line, ref alone);

            if (alone && written.Length == 2 * line.Length)
            {
                expected.Add(number + 1, original);
                expected.Add(number + 2, original);
            }

            number += written.Count((byte)'\n');
            text.Write(written);
        }

        return text.ToArray();
    }

    /// <summary>Damages a line, keeping its last newline; a line that is only written twice is not damaged.</summary>
    private static byte[] Damage(Random random, byte[] line, ref bool alone)
    {
        byte[] damaged = [.. line];
        int at = random.Next(line.Length - 1);
        switch (random.Next(7))
        {
            case 0:
                return [.. line[..at], (byte)'\n'];
            case 1:
                damaged[at] ^= (byte)(1 << random.Next(8));
                return damaged;
            case 2:
                alone = true;
                return [.. line, .. line];
            case 3:
                damaged.AsSpan(at, random.Next(line.Length - 1 - at)).Clear();
                return damaged;
            case 4:
                return [.. line[..at], .. line[random.Next(at, line.Length - 1)..]];
            case 5:
                return [.. line[..at], .. line[..at], .. line];
            default:
                byte[] garbage = new byte[random.Next(300)];
                random.NextBytes(garbage);
                return [.. line[..at], .. garbage, .. line[at..]];
        }
    }

    /// <summary>40 lines of each kind in each recording, and what they hold.</summary>
    private static (byte[] Line, string Event)[] SampleLines()
    {
        var sample = new List<(byte[], string)>();
        foreach (string path in TraceText.Recorded)
        {
            string[] lines = Encoding.UTF8.GetString(TraceText.Gunzip(path)).Split('\n');
            var taken = new Dictionary<TraceEventKind, int>();
            using FtraceReader r = FtraceReader.Open(path);
            TraceEvent e = default;
            while (r.TryRead(ref e))
            {
                taken[e.Kind] = taken.GetValueOrDefault(e.Kind) + 1;
                if (taken[e.Kind] <= 40)
                    sample.Add((Encoding.UTF8.GetBytes(lines[e.Line - 1] + "\n"), TraceText.Describe(r, e)));
            }
        }

        return [.. sample];
    }
}
