using System.Globalization;
using System.Text;

namespace Kmem;

/// <summary>Builds a kernel text field by field, with C's widths: a field wider than its width pushes the rest to the
/// right, as printf does. Lines end with "\n" on every platform.</summary>
internal sealed class ProcTextWriter
{
    private readonly StringBuilder _text = new();

    public ProcTextWriter Text(string text)
    {
        _text.Append(text);
        return this;
    }

    /// <summary>%-Ns</summary>
    public ProcTextWriter Left(string text, int width)
    {
        _text.Append(text);
        if (text.Length < width) _text.Append(' ', width - text.Length);
        return this;
    }

    /// <summary>%Ns</summary>
    public ProcTextWriter Right(ReadOnlySpan<char> text, int width)
    {
        if (text.Length < width) _text.Append(' ', width - text.Length);
        _text.Append(text);
        return this;
    }

    /// <summary>%Nlu</summary>
    public ProcTextWriter Number(ulong value, int width = 0)
    {
        Span<char> digits = stackalloc char[20];
        value.TryFormat(digits, out int length, default, CultureInfo.InvariantCulture);
        return Right(digits[..length], width);
    }

    /// <summary>%Nld</summary>
    public ProcTextWriter Number(long value, int width = 0)
    {
        Span<char> digits = stackalloc char[20];
        value.TryFormat(digits, out int length, default, CultureInfo.InvariantCulture);
        return Right(digits[..length], width);
    }

    /// <summary>Ends the line.</summary>
    public ProcTextWriter Line(string text = "")
    {
        _text.Append(text).Append('\n');
        return this;
    }

    public override string ToString() => _text.ToString();
}
