using System.IO.Compression;

namespace Kmem.Tracing;

/// <summary>
/// The bytes of a trace: a stream as it is, or decompressed if it starts with gzip's magic number. Damage in the
/// compressed data ends the input and is kept in <see cref="Damage"/>.
/// </summary>
/// <remarks>
/// <see cref="GZipStream"/> does not tell data that is cut off from data that is complete. So we append one small gzip
/// member of our own to the compressed bytes. It is asked for only when everything before it was delivered; if what
/// comes out then is not its content, the bytes before it were not a whole file.
/// </remarks>
internal sealed class TraceInput(Stream stream, string name) : IDisposable
{
    /// <summary>
    /// Text taken from the decompressor at a time: what it had decompressed when it met damage is lost, so not much.
    /// </summary>
    private const int GzipPiece = 16 << 10;

    private static readonly byte[] s_endMark = "\0end of file\0"u8.ToArray();
    private static readonly byte[] s_packedEndMark = Pack(s_endMark);

    private readonly HeadStream _raw = new(stream);
    private Stream? _text;

    /// <summary>What to call the input in messages.</summary>
    public string Name => name;

    /// <summary>Bytes taken from the stream so far, before decompression.</summary>
    public long RawPosition => _raw.Position;

    /// <summary>What is wrong with the compressed data, once it was met.</summary>
    public InvalidDataException? Damage { get; private set; }

    /// <summary>
    /// Reads text. 0 at the end of the input, or where the compressed data cannot be read any further.
    /// </summary>
    /// <exception cref="IOException">The stream could not be read.</exception>
    /// <exception cref="TraceFormatException">The input is a known format that is no text.</exception>
    public int Read(Span<byte> buffer)
    {
        _text ??= Detect();
        if (_text is not GZipStream)
            return _text.Read(buffer);

        if (Damage is not null)
            return 0;

        try
        {
            int count = _text.Read(buffer[..Math.Min(buffer.Length, GzipPiece)]);
            if (!_raw.AtTail)
                return count;
            if (!buffer[..count].SequenceEqual(s_endMark))
                Damage = new InvalidDataException("The compressed data ends too early.");
        }
        catch (InvalidDataException e)
        {
            Damage = e;
        }

        return 0;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _text?.Dispose();
        _raw.Dispose();
    }

    private Stream Detect()
    {
        ReadOnlySpan<byte> head = _raw.PeekHead();
        if (head.StartsWith((ReadOnlySpan<byte>)[0x1f, 0x8b]))
        {
            _raw.Tail = s_packedEndMark;
            return new GZipStream(_raw, CompressionMode.Decompress);
        }

        string? other =
            head.StartsWith((ReadOnlySpan<byte>)[0x17, 0x08, 0x44])
                ? "a trace-cmd file; 'trace-cmd report' makes text of it" :
            head.StartsWith("PERFILE"u8) ? "a perf.data file; 'perf script' makes text of it" :
            head.StartsWith((ReadOnlySpan<byte>)[0x28, 0xb5, 0x2f, 0xfd])
                ? "compressed with zstd; decompress it first" :
            head.StartsWith((ReadOnlySpan<byte>)[0xfd, .. "7zXZ"u8]) ? "compressed with xz; decompress it first" :
            head.StartsWith("BZh"u8) ? "compressed with bzip2; decompress it first" :
            null;
        return other is null
            ? _raw
            : throw new TraceFormatException($"{name}: expected ftrace text, plain or gzip, but this is {other}.");
    }

    private static byte[] Pack(byte[] content)
    {
        var packed = new MemoryStream();
        using (var gzip = new GZipStream(packed, CompressionLevel.NoCompression))
            gzip.Write(content);
        return packed.ToArray();
    }

    /// <summary>
    /// A stream whose first bytes can be looked at before they are read, and that can have a tail appended.
    /// </summary>
    private sealed class HeadStream(Stream inner) : Stream
    {
        private readonly byte[] _head = new byte[8];
        private int _headStart;
        private int _headEnd;
        private long _position;
        private int _tailStart;

        /// <summary>Delivered when the inner stream has ended.</summary>
        public byte[] Tail { get; set; } = [];

        /// <summary>Some of the tail was delivered.</summary>
        public bool AtTail => _tailStart > 0;

        public override bool CanRead => true;

        public override bool CanSeek => false;

        public override bool CanWrite => false;

        public override long Length => throw new NotSupportedException();

        public override long Position
        {
            get => _position;
            set => throw new NotSupportedException();
        }

        /// <summary>Waits for the first bytes; fewer than 8 only if the input is shorter.</summary>
        public ReadOnlySpan<byte> PeekHead()
        {
            _headEnd = inner.ReadAtLeast(_head, _head.Length, throwOnEndOfStream: false);
            return _head.AsSpan(0, _headEnd);
        }

        public override int Read(Span<byte> buffer)
        {
            int count = Math.Min(_headEnd - _headStart, buffer.Length);
            if (count > 0)
            {
                _head.AsSpan(_headStart, count).CopyTo(buffer);
                _headStart += count;
            }
            else if (!AtTail)
            {
                count = inner.Read(buffer);
            }

            _position += count;
            return count > 0 || buffer.IsEmpty ? count : ReadTail(buffer);
        }

        private int ReadTail(Span<byte> buffer)
        {
            int count = Math.Min(Tail.Length - _tailStart, buffer.Length);
            Tail.AsSpan(_tailStart, count).CopyTo(buffer);
            _tailStart += count;
            return count;
        }

        public override int Read(byte[] buffer, int offset, int count) => Read(buffer.AsSpan(offset, count));

        public override void Flush()
        {
        }

        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

        public override void SetLength(long value) => throw new NotSupportedException();

        public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();

        protected override void Dispose(bool disposing)
        {
            if (disposing)
                inner.Dispose();
            base.Dispose(disposing);
        }
    }
}
