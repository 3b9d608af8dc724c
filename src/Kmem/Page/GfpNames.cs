using System.Globalization;
using System.Text;

namespace Kmem;

/// <summary>
/// Writes and reads <see cref="Gfp"/> flags in the kernel's words, as in <c>gfp_flags=GFP_KERNEL|__GFP_ZERO</c> of a
/// trace (<c>include/trace/events/mmflags.h</c>, Linux 6.18).
/// </summary>
public static class GfpNames
{
    // Longer than all names together: no printed form exceeds it.
    private const int MaxLength = 512;

    // In the order of matching: each composite takes its bits away if all of them are there.
    private static readonly (string Name, Gfp Value)[] s_composites =
    [
        ("GFP_TRANSHUGE", Gfp.TransHuge),
        ("GFP_TRANSHUGE_LIGHT", Gfp.TransHugeLight),
        ("GFP_HIGHUSER_MOVABLE", Gfp.HighUserMovable),
        ("GFP_HIGHUSER", Gfp.HighUser),
        ("GFP_USER", Gfp.User),
        ("GFP_KERNEL_ACCOUNT", Gfp.KernelAccount),
        ("GFP_KERNEL", Gfp.Kernel),
        ("GFP_NOFS", Gfp.NoFS),
        ("GFP_ATOMIC", Gfp.Atomic),
        ("GFP_NOIO", Gfp.NoIO),
        ("GFP_NOWAIT", Gfp.NoWait),
        ("GFP_DMA", Gfp.Dma),
        ("GFP_DMA32", Gfp.Dma32),
        ("__GFP_RECLAIM", Gfp.Reclaim),
    ];

    private static readonly (string Name, Gfp Value)[] s_bits =
    [
        ("__GFP_DMA", Gfp.Dma),
        ("__GFP_HIGHMEM", Gfp.HighMem),
        ("__GFP_DMA32", Gfp.Dma32),
        ("__GFP_MOVABLE", Gfp.Movable),
        ("__GFP_RECLAIMABLE", Gfp.Reclaimable),
        ("__GFP_HIGH", Gfp.High),
        ("__GFP_IO", Gfp.IO),
        ("__GFP_FS", Gfp.FS),
        ("__GFP_ZERO", Gfp.Zero),
        ("__GFP_DIRECT_RECLAIM", Gfp.DirectReclaim),
        ("__GFP_KSWAPD_RECLAIM", Gfp.KswapdReclaim),
        ("__GFP_WRITE", Gfp.Write),
        ("__GFP_NOWARN", Gfp.NoWarn),
        ("__GFP_RETRY_MAYFAIL", Gfp.RetryMayFail),
        ("__GFP_NOFAIL", Gfp.NoFail),
        ("__GFP_NORETRY", Gfp.NoRetry),
        ("__GFP_MEMALLOC", Gfp.MemAlloc),
        ("__GFP_COMP", Gfp.Comp),
        ("__GFP_NOMEMALLOC", Gfp.NoMemAlloc),
        ("__GFP_HARDWALL", Gfp.HardWall),
        ("__GFP_THISNODE", Gfp.ThisNode),
        ("__GFP_ACCOUNT", Gfp.Account),
        ("__GFP_ZEROTAGS", Gfp.ZeroTags),
        ("__GFP_NO_OBJ_EXT", Gfp.NoObjExt),
    ];

    // Bits of other builds; in the build this enumeration describes they are 0.
    private static readonly string[] s_absent = ["__GFP_SKIP_ZERO", "__GFP_SKIP_KASAN", "__GFP_NOLOCKDEP"];

    /// <summary>
    /// The flags as a trace prints them: composites first, then single bits in bit order, then unknown bits as one
    /// hexadecimal number, joined with <c>|</c>; <c>none</c> for no flag. Example: <c>GFP_KERNEL|__GFP_ZERO</c>.
    /// </summary>
    /// <param name="gfp">The flags to name.</param>
    public static string ToKernelString(this Gfp gfp)
    {
        if (gfp == Gfp.None) return "none";

        var text = new StringBuilder();
        Gfp rest = TakeNames(text, s_composites, gfp);
        rest = TakeNames(text, s_bits, rest);
        if (rest != Gfp.None) AppendName(text, $"0x{(uint)rest:x}");
        return text.ToString();
    }

    /// <summary>
    /// Reads what <see cref="ToKernelString"/> writes: names and hexadecimal numbers in any order, joined with
    /// <c>|</c>, or <c>none</c>. Names of bits that exist in other builds only (<c>__GFP_SKIP_ZERO</c>,
    /// <c>__GFP_SKIP_KASAN</c>, <c>__GFP_NOLOCKDEP</c>) are accepted and stand for nothing.
    /// </summary>
    /// <param name="text">The text, without surrounding blanks.</param>
    /// <param name="gfp">The flags; <see cref="Gfp.None"/> if the text is not of this form.</param>
    /// <returns>Whether every part of the text was understood.</returns>
    public static bool TryParse(ReadOnlySpan<char> text, out Gfp gfp)
    {
        gfp = Gfp.None;
        if (text.SequenceEqual("none")) return true;
        if (text.Length > MaxLength) return false;

        Gfp sum = Gfp.None;
        foreach (Range part in text.Split('|'))
        {
            if (!TryParsePart(text[part], out Gfp value)) return false;
            sum |= value;
        }
        gfp = sum;
        return true;
    }

    /// <inheritdoc cref="TryParse(ReadOnlySpan{char}, out Gfp)"/>
    /// <param name="utf8">The text in UTF-8, without surrounding blanks.</param>
    /// <param name="gfp">The flags; <see cref="Gfp.None"/> if the text is not of this form.</param>
    public static bool TryParse(ReadOnlySpan<byte> utf8, out Gfp gfp)
    {
        gfp = Gfp.None;
        if (utf8.Length > MaxLength) return false;

        Span<char> text = stackalloc char[MaxLength];
        int length = Encoding.Latin1.GetChars(utf8, text);      // one to one; what is not ASCII matches no name
        return TryParse(text[..length], out gfp);
    }

    private static Gfp TakeNames(StringBuilder text, (string Name, Gfp Value)[] names, Gfp gfp)
    {
        foreach ((string name, Gfp value) in names)
        {
            if ((gfp & value) != value) continue;
            AppendName(text, name);
            gfp &= ~value;
            if (gfp == Gfp.None) break;
        }
        return gfp;
    }

    private static void AppendName(StringBuilder text, string name)
    {
        if (text.Length > 0) text.Append('|');
        text.Append(name);
    }

    private static bool TryParsePart(ReadOnlySpan<char> part, out Gfp value)
    {
        if (part.StartsWith("0x"))
        {
            bool isNumber = uint.TryParse(part[2..], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture,
                out uint bits);
            value = (Gfp)bits;
            return isNumber;
        }
        return TryFind(s_composites, part, out value) || TryFind(s_bits, part, out value) || IsAbsent(part);
    }

    private static bool TryFind((string Name, Gfp Value)[] names, ReadOnlySpan<char> part, out Gfp value)
    {
        foreach ((string name, Gfp known) in names)
        {
            if (!part.SequenceEqual(name)) continue;
            value = known;
            return true;
        }
        value = Gfp.None;
        return false;
    }

    private static bool IsAbsent(ReadOnlySpan<char> part)
    {
        foreach (string name in s_absent)
        {
            if (part.SequenceEqual(name)) return true;
        }
        return false;
    }
}
