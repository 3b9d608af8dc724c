using System.Globalization;
using Kmem.Tracing;

namespace Kmem.Tests;

/// <summary>
/// Recorded phases in which one line is not what the kernel said: the mistake counts once, whatever kind of line it is,
/// and lines in another order that means the same change nothing.
/// </summary>
public sealed class OneWrongAnswerTests
{
    private const int MostOfOneLine = 4;

    [Theory]
    [InlineData("00-slab", "PA KA KM PZ")]
    [InlineData("01-page", "PA PZ PD PX")]
    [InlineData("02-vm", "PA PZ KA KM VA VF VP")]
    [InlineData("03-fork", "PA KA SP VA")]
    [InlineData("09-tvm", "PA KA KM VA")]
    public void One_wrong_answer_of_each_kind_counts_once(string phase, string kinds)
    {
        string[] lines = PhaseLines.Read(phase);
        string[] all = kinds.Split(' ');
        for (int kind = 0; kind < all.Length; kind++)
        {
            int[] places = PhaseLines.Of(lines, all[kind]);
            int at = places[places.Length * (kind + 1) / (all.Length + 2)];
            string other = Other(lines, places, at);
            Assert.NotEqual(lines[at], other, StringComparer.Ordinal);
            lines[at] = other;
        }

        StatePrediction prediction = PhaseLines.Predict(phase, lines);

        Assert.NotNull(prediction.First);
        Assert.InRange(PhaseLines.Wrong(prediction), 1, all.Length);
        Assert.InRange(prediction.StateDifferences, 0, 2);
    }

    [Theory]
    [InlineData("00-slab", "KA KM KF")]
    [InlineData("01-page", "PA PF PZ")]
    [InlineData("03-fork", "KA KC")]
    public void One_missing_line_of_each_kind_counts_a_few_times(string phase, string kinds)
    {
        List<string> lines = [.. PhaseLines.Read(phase)];
        string[] all = kinds.Split(' ');
        for (int kind = 0; kind < all.Length; kind++)
        {
            int[] places = PhaseLines.Of([.. lines], all[kind]);
            lines.RemoveAt(places[places.Length * (kind + 1) / (all.Length + 2)]);
        }

        Assert.InRange(PhaseLines.Wrong(PhaseLines.Predict(phase, lines)), 0, MostOfOneLine * all.Length);
    }

    [Theory]
    [InlineData("00-slab", "KA KM KF")]
    [InlineData("01-page", "PA PF PZ")]
    [InlineData("03-fork", "KA KC")]
    public void One_doubled_line_of_each_kind_counts_a_few_times(string phase, string kinds)
    {
        List<string> lines = [.. PhaseLines.Read(phase)];
        string[] all = kinds.Split(' ');
        for (int kind = 0; kind < all.Length; kind++)
        {
            int[] places = PhaseLines.Of([.. lines], all[kind]);
            int at = places[places.Length * (kind + 1) / (all.Length + 2)];
            lines.Insert(at, lines[at]);
        }

        Assert.InRange(PhaseLines.Wrong(PhaseLines.Predict(phase, lines)), 0, MostOfOneLine * all.Length);
    }

    /// <summary>Whatever stands in a line that is no known event is passed over and counted.</summary>
    [Fact]
    public void Unknown_kinds_of_events_change_nothing()
    {
        string[] lines = PhaseLines.Read("03-fork");
        int half = lines.Length / 2;
        string unknown = string.Join('\t', [.. lines[half].Split('\t')[..5], "KSWAPD", "1", "x"]);

        StatePrediction prediction = PhaseLines.Predict("03-fork", [.. lines[..half], unknown, .. lines[half..]]);

        Assert.Equal(1, prediction.UnknownEvents);
        Assert.True(prediction.IsExact);
    }

    /// <summary>A task's lines say the same on whatever number it has.</summary>
    [Fact]
    public void Names_of_tasks_do_not_matter()
    {
        string[] lines = PhaseLines.Read("03-fork");
        for (int i = 1; i < lines.Length; i++)
        {
            string[] fields = lines[i].Split('\t');
            if (fields.Length > 5 && fields[4] != RecordedEvent.IdleTask)
                fields[4] = $"{int.Parse(fields[4], CultureInfo.InvariantCulture) + 5000}";
            lines[i] = string.Join('\t', fields);
        }

        Assert.True(PhaseLines.Predict("03-fork", lines).IsExact);
    }

    /// <summary>An answer that the kernel might have given: the one of a later request of the same kind.</summary>
    private static string Other(string[] lines, int[] places, int at)
    {
        string[] fields = lines[at].Split('\t');
        int answer = fields[5] switch { "KA" => 7, "SP" => 9, "VF" => 7, "VP" => 8, _ => 6 };
        fields[answer] = fields[5] switch
        {
            "PZ" or "PD" or "PX" => Shifted(1L << int.Parse(fields[7], CultureInfo.InvariantCulture)),
            "VF" or "VP" => Shifted(1),
            "VA" => (Convert.ToUInt64(fields[6], 16) + 0x100_0000).ToString("x", CultureInfo.InvariantCulture),
            "SP" => "ffff888001000000",
            _ => Later(),
        };
        return string.Join('\t', fields);

        string Shifted(long by) =>
            (long.Parse(fields[answer], CultureInfo.InvariantCulture) ^ by).ToString(CultureInfo.InvariantCulture);

        string Later() => places.Where(i => i > at).Skip(40).Select(i => lines[i].Split('\t'))
            .First(other => other[answer] != fields[answer] && IsLike(other, fields))[answer];
    }

    /// <summary>The same size of block, the same cache, the same size in bytes.</summary>
    private static bool IsLike(string[] other, string[] fields) => fields[5] switch
    {
        "PA" => other[7] == fields[7],
        "KA" => other[6] == fields[6],
        _ => other[8] == fields[8],
    };
}
