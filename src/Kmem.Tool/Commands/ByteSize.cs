using System.Globalization;

namespace Kmem.Tool.Commands;

/// <summary>
/// Sizes as people write them: <c>512M</c>, <c>4G</c>, <c>64GiB</c>, <c>1.5g</c>, plain bytes. The letters are powers
/// of 1024, with or without <c>B</c> or <c>iB</c>, in either case, as in the kernel's <c>mem=</c>.
/// </summary>
internal static class ByteSize
{
    private const string Letters = "KMGTP";

    /// <summary>Reads a size; false if it is none, or no whole number of bytes, or above 2^64-1.</summary>
    internal static bool TryParse(ReadOnlySpan<char> text, out ulong bytes)
    {
        bytes = 0;
        int digits = text.IndexOfAnyExcept("0123456789.");
        ReadOnlySpan<char> number = digits < 0 ? text : text[..digits];
        ReadOnlySpan<char> unit = digits < 0 ? "" : text[digits..];
        if (!TryShift(unit, out int shift)
            || !decimal.TryParse(number, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out decimal n)
            || n > ulong.MaxValue)
        {
            return false;
        }

        decimal scale = 1UL << shift;
        if (n > ulong.MaxValue / scale || n * scale != decimal.Truncate(n * scale)) return false;
        bytes = (ulong)(n * scale);
        return true;
    }

    /// <summary>The size with one letter and at most one digit behind the point: <c>1.5 MiB</c>.</summary>
    internal static string Format(ulong bytes)
    {
        if (bytes < 1024) return $"{bytes} B";
        int power = Math.Min(Letters.Length, (63 - int.CreateChecked(ulong.LeadingZeroCount(bytes))) / 10);
        double value = bytes / Math.Pow(1024, power);
        return string.Create(CultureInfo.InvariantCulture, $"{value:0.#} {Letters[power - 1]}iB");
    }

    private static bool TryShift(ReadOnlySpan<char> unit, out int shift)
    {
        shift = 0;
        if (unit.IsEmpty || unit.Equals("B", StringComparison.OrdinalIgnoreCase)) return true;

        shift = 10 * (Letters.IndexOf(char.ToUpperInvariant(unit[0]), StringComparison.Ordinal) + 1);
        ReadOnlySpan<char> rest = unit[1..];
        return shift > 0 && (rest.IsEmpty || rest.Equals("B", StringComparison.OrdinalIgnoreCase)
            || rest.Equals("iB", StringComparison.OrdinalIgnoreCase));
    }
}
