using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Kmem.Tracing;

/// <summary>
/// Goes through the fields of one event from left to right. Each method takes what it names and returns true, or
/// returns false; what it has taken until then is undefined, because the line is then given up.
/// </summary>
internal ref struct FieldCursor(ReadOnlySpan<byte> text)
{
    private ReadOnlySpan<byte> _rest = text;

    /// <summary>What was not taken yet.</summary>
    public readonly ReadOnlySpan<byte> Rest => _rest;

    /// <summary>The event ends here, or fields of a newer kernel follow.</summary>
    public readonly bool AtFieldEnd => _rest.IsEmpty || _rest[0] == (byte)' ';

    /// <summary>Takes a literal.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool Skip(ReadOnlySpan<byte> literal)
    {
        if (!_rest.StartsWith(literal))
            return false;
        _rest = _rest[literal.Length..];
        return true;
    }

    /// <summary>Takes the given number of bytes; there are so many.</summary>
    public ReadOnlySpan<byte> Take(int count)
    {
        ReadOnlySpan<byte> taken = _rest[..count];
        _rest = _rest[count..];
        return taken;
    }

    /// <summary>Takes everything up to a blank or the end.</summary>
    public ReadOnlySpan<byte> TakeWord()
    {
        int length = _rest.IndexOf((byte)' ');
        return Take(length < 0 ? _rest.Length : length);
    }

    /// <summary>
    /// Takes everything up to where <paramref name="next"/> stands; it begins with a blank and is not taken itself. The
    /// text may contain blanks.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool TakeUntil(ReadOnlySpan<byte> next, out ReadOnlySpan<byte> taken)
    {
        int length = 0;
        while (true)
        {
            int blank = _rest[length..].IndexOf((byte)' ');
            if (blank < 0)
            {
                taken = default;
                return false;
            }

            length += blank;
            if (_rest[length..].StartsWith(next))
                break;
            length++;
        }

        taken = Take(length);
        return true;
    }

    /// <summary>A decimal number without sign that fits in 64 bits.</summary>
    public bool Decimal(out ulong value)
    {
        const int SafeDigits = 19;      // 10^19 − 1 fits in 64 bits, and so do some numbers of 20 digits

        value = 0;
        int digits = 0;
        for (; digits < _rest.Length; digits++)
        {
            uint digit = (uint)_rest[digits] - '0';
            if (digit > 9)
                break;
            if (digits >= SafeDigits && (digits > SafeDigits || value > (ulong.MaxValue - digit) / 10))
                return false;
            value = (value * 10) + digit;
        }

        _rest = _rest[digits..];
        return digits > 0;
    }

    /// <summary>A decimal number from <paramref name="min"/> to <paramref name="max"/>, perhaps with a minus.</summary>
    public bool Integer(int min, int max, out int value)
    {
        bool negative = Skip("-"u8);
        bool ok = Decimal(out ulong magnitude) && magnitude <= int.MaxValue;
        value = negative ? -(int)magnitude : (int)magnitude;
        return ok && value >= min && value <= max;
    }

    /// <summary>0 or 1.</summary>
    public bool Flag(out bool value)
    {
        bool ok = Integer(0, 1, out int number);
        value = number != 0;
        return ok;
    }

    /// <summary>A number that is hexadecimal if it begins with 0x, else decimal (%lu of older kernels).</summary>
    public bool Number(out ulong value) => Skip("0x"u8) ? Hex(out value) : Decimal(out value);

    /// <summary>
    /// A printed pointer: hexadecimal digits, with or without 0x, or a text in round brackets in its place:
    /// <c>(null)</c>, or a reason why the kernel does not tell (<paramref name="hidden"/>).
    /// </summary>
    public bool Pointer(out ulong value, out bool hidden)
    {
        hidden = false;
        if (Hex16(out value))
            return true;
        if (Skip("0x"u8))
            return Hex(out value);

        ReadOnlySpan<byte> trimmed = _rest.TrimStart((byte)' ');     // (null) was padded to the width of an address
        if (trimmed.IsEmpty || trimmed[0] != (byte)'(')
            return Hex(out value);

        int close = trimmed.IndexOf((byte)')');
        if (close < 0)
            return false;
        hidden = !trimmed[..(close + 1)].SequenceEqual("(null)"u8);
        _rest = trimmed[(close + 1)..];
        return true;
    }

    /// <summary>1 to 16 hexadecimal digits.</summary>
    private bool Hex(out ulong value)
    {
        if (Hex16(out value))
            return true;

        ReadOnlySpan<byte> rest = _rest;
        int i = 0;
        for (; i < rest.Length; i++)
        {
            int nibble = Nibble(rest[i]);
            if (nibble < 0)
                break;
            if (i == 16)
                return false;
            value = (value << 4) | (uint)nibble;
        }

        _rest = rest[i..];
        return i > 0;
    }

    /// <summary>Exactly 16 hexadecimal digits, all at once; takes nothing if there are fewer.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool Hex16(out ulong value)
    {
        value = 0;
        if (_rest.Length < Vector128<byte>.Count)
            return false;

        Vector128<byte> chars = Vector128.Create(_rest);
        Vector128<byte> digit = chars - Vector128.Create((byte)'0');
        Vector128<byte> letter = (chars | Vector128.Create((byte)0x20)) - Vector128.Create((byte)'a');
        Vector128<byte> isDigit = Vector128.LessThan(digit, Vector128.Create((byte)10));
        Vector128<byte> isLetter = Vector128.LessThan(letter, Vector128.Create((byte)6));
        if (!Vector128.EqualsAll(isDigit | isLetter, Vector128<byte>.AllBitsSet))
            return false;

        // Two neighbours make a byte; the first of them, low in the 16-bit lane, is the upper half.
        Vector128<byte> nibbles = Vector128.ConditionalSelect(isDigit, digit, letter + Vector128.Create((byte)10));
        Vector128<ushort> pairs = nibbles.AsUInt16();
        Vector128<ushort> bytes = ((pairs << 4) | (pairs >> 8)) & Vector128.Create((ushort)0xff);
        ulong word = Vector128.Narrow(bytes, bytes).AsUInt64().ToScalar();
        value = BinaryPrimitives.ReverseEndianness(word);
        _rest = _rest[Vector128<byte>.Count..];
        return true;
    }

    private static int Nibble(byte c)
    {
        uint digit = (uint)c - '0';
        if (digit <= 9)
            return (int)digit;
        uint letter = (c | 0x20u) - 'a';
        return letter <= 5 ? (int)letter + 10 : -1;
    }
}
