using System.Globalization;

namespace Kmem;

/// <summary>
/// The lines of a kernel text with one line in view: a parser looks at <see cref="Line"/>, decides, and steps on with
/// <see cref="Advance"/>. Knows the line number, so that every error can name its place.
/// </summary>
/// <remarks>Empty lines are stepped over and the field readers skip blanks before what they read: the kernel pads for
/// the eye, and the widths differ between versions, so they are rules of writing and never of reading.</remarks>
internal sealed class ProcTextReader
{
    private readonly TextReader _source;

    public ProcTextReader(string fileKind, TextReader source)
    {
        ArgumentNullException.ThrowIfNull(source);
        FileKind = fileKind;
        _source = source;
        Advance();
    }

    public string FileKind { get; }

    public int LineNumber { get; private set; }

    /// <summary>The line in view, never an empty one; null when the text is used up.</summary>
    public string? Line { get; private set; }

    public void Advance()
    {
        do
        {
            Line = _source.ReadLine();
            LineNumber++;
        }
        while (Line is not null && Line.AsSpan().Trim().IsEmpty);
    }

    /// <summary>Starts reading the fields of the line in view; an error if the text ends here.</summary>
    public LineCursor Fields(string expected) =>
        new(this, Line ?? throw Error($"the text ends where {expected} should stand"));

    /// <summary>An error at the line in view.</summary>
    public ProcFormatException Error(string rule) => new(FileKind, LineNumber, Line ?? "", rule);

    /// <summary>An error at the start: a text without a single line is no answer of a kernel.</summary>
    public void RejectEmpty()
    {
        if (Line is null) throw Error("the text is empty");
    }
}

/// <summary>Reads the fields of one line from left to right.</summary>
internal ref struct LineCursor
{
    private readonly ProcTextReader _owner;
    private ReadOnlySpan<char> _rest;

    public LineCursor(ProcTextReader owner, ReadOnlySpan<char> line)
    {
        _owner = owner;
        _rest = line;
    }

    /// <summary>What is left of the line, blanks at both ends cut off.</summary>
    public readonly ReadOnlySpan<char> Rest => _rest.Trim();

    public readonly bool AtEnd => Rest.IsEmpty;

    public bool TryTake(string literal)
    {
        ReadOnlySpan<char> rest = _rest.TrimStart();
        if (!rest.StartsWith(literal, StringComparison.Ordinal)) return false;
        _rest = rest[literal.Length..];
        return true;
    }

    public void Expect(string literal)
    {
        if (!TryTake(literal)) throw _owner.Error($"\"{literal}\" expected");
    }

    /// <summary>Takes the characters up to the next blank.</summary>
    public ReadOnlySpan<char> Word(string what)
    {
        ReadOnlySpan<char> rest = _rest.TrimStart();
        int length = 0;
        while (length < rest.Length && !char.IsWhiteSpace(rest[length])) length++;
        if (length == 0) throw _owner.Error($"{what} is missing");
        _rest = rest[length..];
        return rest[..length];
    }

    /// <summary>Takes the characters before <paramref name="mark"/>, and the mark too.</summary>
    public ReadOnlySpan<char> Until(char mark, string what)
    {
        int at = _rest.IndexOf(mark);
        if (at < 0) throw _owner.Error($"'{mark}' expected after {what}");
        ReadOnlySpan<char> head = _rest[..at].Trim();
        _rest = _rest[(at + 1)..];
        return head;
    }

    public ulong ULong(string what) => ULong(Digits(what), what);

    public uint UInt(string what)
    {
        ulong value = ULong(what);
        return value <= uint.MaxValue ? (uint)value : throw _owner.Error($"{what} exceeds 32 bits");
    }

    /// <summary>Takes a number that is never negative but is printed as a C <c>int</c>.</summary>
    public int Int(string what)
    {
        ulong value = ULong(what);
        return value <= int.MaxValue ? (int)value : throw _owner.Error($"{what} exceeds 31 bits");
    }

    public long Long(string what)
    {
        bool negative = TryTake("-");
        ulong value = ULong(what);
        ulong limit = negative ? 1UL << 63 : long.MaxValue;
        if (value > limit) throw _owner.Error($"{what} exceeds 64 bits");
        return negative ? unchecked(-(long)value) : (long)value;
    }

    /// <summary>Takes a hexadecimal number without prefix.</summary>
    public ulong Hex(string what)
    {
        ReadOnlySpan<char> rest = _rest.TrimStart();
        int length = 0;
        while (length < rest.Length && char.IsAsciiHexDigit(rest[length])) length++;
        if (length == 0) throw _owner.Error($"{what} must be a hexadecimal number");
        _rest = rest[length..];
        CultureInfo culture = CultureInfo.InvariantCulture;
        return ulong.TryParse(rest[..length], NumberStyles.AllowHexSpecifier, culture, out ulong value)
            ? value
            : throw _owner.Error($"{what} exceeds 64 bits");
    }

    public readonly void End()
    {
        if (!AtEnd) throw _owner.Error("the line goes on after its last field");
    }

    private readonly ulong ULong(ReadOnlySpan<char> digits, string what)
    {
        if (ulong.TryParse(digits, NumberStyles.None, CultureInfo.InvariantCulture, out ulong value)) return value;
        throw _owner.Error($"{what} exceeds 64 bits");
    }

    private ReadOnlySpan<char> Digits(string what)
    {
        ReadOnlySpan<char> rest = _rest.TrimStart();
        int length = 0;
        while (length < rest.Length && char.IsAsciiDigit(rest[length])) length++;
        if (length == 0) throw _owner.Error($"{what} must be a decimal number");
        _rest = rest[length..];
        return rest[..length];
    }
}
