using System.Globalization;

namespace Kmem.Tool.Commands;

/// <summary>Addresses of a kernel as people write them: hexadecimal digits, with or without 0x.</summary>
internal static class HexAddress
{
    internal static bool TryParse(string text, out ulong address)
    {
        string digits = text.StartsWith("0x", StringComparison.OrdinalIgnoreCase) ? text[2..] : text;
        return ulong.TryParse(digits, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out address);
    }

    /// <summary>What to say about a text that is none.</summary>
    internal static string Rule(string text) =>
        $"ADDRESS is '{text}', expected up to 16 hexadecimal digits, such as 0xffffc90000000000";
}
