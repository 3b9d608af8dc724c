using System.IO.Compression;
using System.Text;

namespace Kmem.Tool.Commands;

/// <summary>Opens what a user names as input; every failure is a line that names the input and the rule.</summary>
internal static class InputFile
{
    private const int MaxTextBytes = 64 << 20;

    private static readonly byte[] s_endMark = "\0end\0"u8.ToArray();

    /// <summary>What to call the input in messages: <c>-</c> is standard input.</summary>
    internal static string NameOf(string path) => path == "-" ? "standard input" : path;

    /// <summary>Opens a file, or standard input for <c>-</c>; unbuffered.</summary>
    /// <exception cref="ToolException">There is no such file, or it cannot be read.</exception>
    internal static Stream Open(string path)
    {
        if (path == "-")
        {
            if (!Console.IsInputRedirected)
                throw new ToolException("standard input is a terminal; expected a file or a pipe");
            return Console.OpenStandardInput();
        }
        if (path.Length == 0) throw new ToolException("the name of the input file is empty");
        if (Directory.Exists(path)) throw new ToolException($"{path}: is a directory; expected a file");

        try
        {
            return new FileStream(path, new FileStreamOptions { BufferSize = 0, Options = FileOptions.SequentialScan });
        }
        catch (Exception e) when (e is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new ToolException($"{path}: no such file", e);
        }
        catch (UnauthorizedAccessException e)
        {
            throw new ToolException($"{path}: no permission to read it", e);
        }
        catch (Exception e) when (e is IOException or ArgumentException or NotSupportedException)
        {
            throw new ToolException($"{path}: cannot be read: {e.Message}", e);
        }
    }

    /// <summary>Reads a whole text, plain or gzip, UTF-8.</summary>
    /// <exception cref="ToolException">
    /// It cannot be read, is larger than 64 MiB, or its compressed data is damaged or cut off.
    /// </exception>
    internal static string ReadText(string path)
    {
        using Stream stream = Open(path);
        try
        {
            byte[] bytes = ReadAll(stream, NameOf(path));
            if (bytes.AsSpan().StartsWith((ReadOnlySpan<byte>)[0x1f, 0x8b])) bytes = Unpack(bytes, NameOf(path));
            return Encoding.UTF8.GetString(bytes);
        }
        catch (IOException e)
        {
            throw new ToolException($"{NameOf(path)}: cannot be read: {e.Message}", e);
        }
    }

    // GZipStream does not tell data that is cut off from data that is complete. A small member of our own behind it
    // comes out unharmed only if everything before it was whole.
    private static byte[] Unpack(byte[] packed, string name)
    {
        using var input = new MemoryStream();
        input.Write(packed);
        using (var mark = new GZipStream(input, CompressionLevel.NoCompression, leaveOpen: true)) mark.Write(s_endMark);
        input.Position = 0;

        try
        {
            using var gzip = new GZipStream(input, CompressionMode.Decompress);
            byte[] text = ReadAll(gzip, name);
            if (text.AsSpan().EndsWith(s_endMark)) return text[..^s_endMark.Length];
        }
        catch (InvalidDataException)
        {
            // said below
        }
        throw new ToolException($"{name}: the gzip data is damaged or cut off");
    }

    private static byte[] ReadAll(Stream stream, string name)
    {
        using var all = new MemoryStream();
        byte[] piece = new byte[64 << 10];
        while (stream.Read(piece) is > 0 and int count)
        {
            all.Write(piece, 0, count);
            if (all.Length > MaxTextBytes)
                throw new ToolException(
                    $"{name}: is larger than {ByteSize.Format(MaxTextBytes)}, too much for a table");
        }
        return all.ToArray();
    }
}
