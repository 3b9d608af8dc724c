namespace Kmem.Tracing;

/// <summary>
/// Cuts a stream into lines inside one buffer of fixed size. A line longer than <see cref="MaxLine"/> is delivered cut
/// off and marked; the rest of it is skipped.
/// </summary>
/// <remarks>
/// <code>
///   _buffer  |....delivered....|== line ==\n== line ==\n== half a li|.....free.....|
///                              ^_start                 ^_scanned     ^_end
/// </code>
/// The unfinished line at the end moves to the front when there is no room for the rest of it, so at most
/// <see cref="MaxLine"/> bytes are copied per <c>BufferSize − MaxLine</c> bytes read.
/// </remarks>
internal sealed class LineReader(TraceInput input)
{
    /// <summary>
    /// Longest line in bytes. The longest line the kernel prints is 4 KiB (a page), but markers may differ.
    /// </summary>
    public const int MaxLine = 64 << 10;

    private const int BufferSize = 4 * MaxLine;     // fits in the second-level cache with room to spare

    private readonly byte[] _buffer = new byte[BufferSize];
    private int _start;
    private int _scanned;       // no newline between _start and here
    private int _end;
    private bool _skipping;     // inside a line that was too long
    private bool _atEnd;

    /// <summary>Number of the line delivered last, from 1.</summary>
    public long Line { get; private set; }

    /// <summary>The line delivered last is only the beginning of one that is too long.</summary>
    public bool IsCut { get; private set; }

    /// <summary>Bytes of text delivered so far.</summary>
    public long Position { get; private set; }

    /// <summary>The next line without its line end; valid until the next call. False at the end of the input.</summary>
    public bool TryNext(out ReadOnlySpan<byte> line)
    {
        int length = _buffer.AsSpan(_scanned, _end - _scanned).IndexOf((byte)'\n');
        if (length < 0 || _skipping)
            return TryNextSlow(out line);

        length += _scanned - _start;
        if (length > MaxLine)
            return TryNextSlow(out line);

        line = Take(length, lineEnd: 1);
        return true;
    }

    private bool TryNextSlow(out ReadOnlySpan<byte> line)
    {
        while (true)
        {
            int newline = _buffer.AsSpan(_scanned, _end - _scanned).IndexOf((byte)'\n');
            int length = newline < 0 ? _end - _start : newline + _scanned - _start;
            if (_skipping)
            {
                _start += length;
                Position += length;
                _scanned = _start;
                if (newline >= 0)
                {
                    Take(0, lineEnd: 1);
                    Line--;             // the end of a line that was counted when its beginning was delivered
                    _skipping = false;
                    continue;
                }
            }
            else if (length > MaxLine)
            {
                line = Take(MaxLine, lineEnd: 0);
                IsCut = _skipping = true;
                return true;
            }
            else if (newline >= 0)
            {
                line = Take(length, lineEnd: 1);
                return true;
            }

            _scanned = _end;
            if (Fill())
                continue;

            line = default;
            if (_start == _end || input.Damage is not null)     // half a line before damage would be misread
                return false;

            line = Take(_end - _start, lineEnd: 0);
            return true;
        }
    }

    private ReadOnlySpan<byte> Take(int length, int lineEnd)
    {
        ReadOnlySpan<byte> line = _buffer.AsSpan(_start, length);
        _start += length + lineEnd;
        _scanned = _start;
        Position += length + lineEnd;
        Line++;
        IsCut = false;
        return line is [.., (byte)'\r'] ? line[..^1] : line;
    }

    /// <summary>Reads once. False at the end of the input.</summary>
    private bool Fill()
    {
        if (_atEnd)
            return false;

        if (_start == _end)
        {
            _start = _scanned = _end = 0;
        }
        else if (BufferSize - _end < MaxLine)
        {
            _buffer.AsSpan(_start, _end - _start).CopyTo(_buffer);
            _end -= _start;
            _scanned -= _start;
            _start = 0;
        }

        int count = input.Read(_buffer.AsSpan(_end));
        _end += count;
        _atEnd = count == 0;
        return !_atEnd;
    }
}
