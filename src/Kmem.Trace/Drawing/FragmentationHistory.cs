namespace Kmem.Tracing;

/// <summary>How cut up a machine's free memory was at moments that somebody chose; see
/// <see cref="Pictures.Fragmentation"/>.</summary>
public sealed class FragmentationHistory
{
    /// <summary>The orders whose share is noted.</summary>
    internal static readonly int[] Orders = [3, 6, 9];

    private readonly List<Sample> _samples = [];

    /// <summary>What time is counted in, for the axis: <c>events</c> unless said otherwise.</summary>
    public string Unit { get; init; } = "events";

    /// <summary>Moments noted so far.</summary>
    public int Count => _samples.Count;

    internal IReadOnlyList<Sample> Samples => _samples;

    /// <summary>Notes the machine as it is. No other thread may be at work on it.</summary>
    /// <param name="machine">The machine.</param>
    /// <param name="time">When: a number of events or of steps, not below the one before.</param>
    /// <exception cref="ArgumentOutOfRangeException">Time goes backwards.</exception>
    public void Add(Machine machine, long time)
    {
        ArgumentNullException.ThrowIfNull(machine);
        if (_samples.Count > 0)
            ArgumentOutOfRangeException.ThrowIfLessThan(time, _samples[^1].Time);

        long free = 0;
        var suitable = new long[Orders.Length];
        foreach (ZonePages zone in machine.Pages.Zones)
        {
            free += zone.Zone.FreePagesExact;
            for (int order = 0; order <= PageOrder.Max; order++)
            {
                for (int i = 0; i < Orders.Length; i++)
                    suitable[i] += order >= Orders[i] ? zone.Buddy.NrFree(order) << order : 0;
            }
        }

        _samples.Add(new Sample(
            time, free, [.. suitable.Select(frames => free == 0 ? 1.0 : 1 - ((double)frames / free))]));
    }

    /// <summary>One moment.</summary>
    /// <param name="Time">When.</param>
    /// <param name="Free">Frames free.</param>
    /// <param name="Unusable">For each of <see cref="Orders"/> the part of free memory in blocks that are too
    /// small.</param>
    internal sealed record Sample(long Time, long Free, double[] Unusable);
}

/// <summary><see cref="Pictures.Fragmentation"/>: a line for each order, and below them how much is free.</summary>
internal static class FragmentationPicture
{
    private const double Left = 74;
    private const double Right = 930;
    private const double Top = 66;
    private const double Height = 220;
    private const double FreeTop = 326;
    private const double FreeHeight = 90;
    private static readonly string[] s_dashes = ["", "7 4", "2 4"];

    public static string Draw(FragmentationHistory history)
    {
        if (history.Count == 0)
            throw new ArgumentException("nothing was noted", nameof(history));

        IReadOnlyList<FragmentationHistory.Sample> samples = history.Samples;
        var svg = new Svg(Svg.PageWidth);
        long from = samples[0].Time;
        long to = Math.Max(from + 1, samples[^1].Time);
        double X(long time) => Left + ((Right - Left) * (time - from) / (to - from));
        svg.Word(20, Top - 12, "part of free memory in blocks smaller than the order", "s");
        for (int percent = 0; percent <= 100; percent += 25)
        {
            double y = Top + (Height * (100 - percent) / 100.0);
            svg.Stroke(Left, y, Right, y);
            svg.Word(Left - 8, y + 4, Svg.Text($"{percent} %"), "s e");
        }

        for (int i = 0; i < FragmentationHistory.Orders.Length; i++)
        {
            svg.Curve(samples.Select(it => (X(it.Time), Top + (Height * (1 - it.Unusable[i])))), i + 1, s_dashes[i]);
            double x = Left + (i * 190);
            svg.Curve([(x, FreeTop + FreeHeight + 50), (x + 34, FreeTop + FreeHeight + 50)], i + 1, s_dashes[i]);
            svg.Word(x + 42, FreeTop + FreeHeight + 54, Svg.Text($"order {FragmentationHistory.Orders[i]}, ")
                + Svg.Bytes((double)Pfn.PageSize * (1 << FragmentationHistory.Orders[i])), "i");
        }

        DrawFree(svg, samples, X);
        svg.Word(Left, FreeTop + FreeHeight + 20, Svg.Text($"{from}"), "s");
        svg.Word(Right, FreeTop + FreeHeight + 20, Svg.Text($"{to}"), "s e");
        svg.Word((Left + Right) / 2, FreeTop + FreeHeight + 20, history.Unit, "s c");
        string end = string.Join(", ", FragmentationHistory.Orders.Select((order, i) =>
            Svg.Text($"{100 * samples[^1].Unusable[i]:0} % for order {order}")));
        string start = string.Join(", ", FragmentationHistory.Orders.Select((order, i) =>
            Svg.Text($"{100 * samples[0].Unusable[i]:0} % for order {order}")));
        return svg.Finish(
            FreeTop + FreeHeight + 74,
            "How free memory is cut up over time",
            $"The part of free memory that is in blocks too small, at first {start}; at the end {end}.");
    }

    private static void DrawFree(Svg svg, IReadOnlyList<FragmentationHistory.Sample> samples, Func<long, double> x)
    {
        long most = Math.Max(1, samples.Max(it => it.Free));
        svg.Word(20, FreeTop - 10, Svg.Text($"free memory, at most {Svg.Bytes((double)most * Pfn.PageSize)}"), "s");
        svg.Stroke(Left, FreeTop + FreeHeight, Right, FreeTop + FreeHeight);
        svg.Curve(samples.Select(it => (x(it.Time), FreeTop + (FreeHeight * (1 - ((double)it.Free / most))))), 4, "");
        svg.Word(Left - 8, FreeTop + FreeHeight + 4, "0", "s e");
    }
}
