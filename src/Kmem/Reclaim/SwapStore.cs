using System.Globalization;
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace Kmem;

/// <summary>Where a swap area's pages go: numbered slots of 4096 bytes.</summary>
internal interface ISwapStore : IDisposable
{
    /// <summary>For error messages: a path.</summary>
    string Name { get; }

    /// <exception cref="IOException">The page was not written, or not all of it.</exception>
    void Write(int slot, ReadOnlySpan<byte> page);

    /// <exception cref="IOException">The page cannot be read.</exception>
    void Read(int slot, Span<byte> page);
}

/// <summary>Slots in a file, which grows as they are used and goes with the store.</summary>
internal sealed class SwapFile : ISwapStore
{
    private readonly SafeFileHandle _file;

    private SwapFile(string path, SafeFileHandle file)
    {
        Name = path;
        _file = file;
    }

    /// <inheritdoc/>
    public string Name { get; }

    /// <summary>A new file in a directory, for nobody but its owner.</summary>
    /// <exception cref="IOException">The directory is not there, or takes no file.</exception>
    /// <exception cref="UnauthorizedAccessException">Not here.</exception>
    public static SwapFile Create(string directory)
    {
        string name = string.Create(CultureInfo.InvariantCulture, $"kmem-swap-{Environment.ProcessId}-{Guid.NewGuid():n}");
        string path = Path.Combine(directory, name);
        return new SwapFile(path, File.OpenHandle(
            path, FileMode.CreateNew, FileAccess.ReadWrite, FileShare.None, FileOptions.DeleteOnClose));
    }

    /// <summary>A file that is there already and stays.</summary>
    public static SwapFile Open(string path) =>
        new(path, File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite));

    /// <inheritdoc/>
    public void Write(int slot, ReadOnlySpan<byte> page) => RandomAccess.Write(_file, page, OffsetOf(slot));

    /// <inheritdoc/>
    public void Read(int slot, Span<byte> page)
    {
        for (int got = 0; got < page.Length;)
        {
            int more = RandomAccess.Read(_file, page[got..], OffsetOf(slot) + got);
            if (more == 0)
                throw new EndOfStreamException($"{Name} ends within slot {slot}: somebody has cut it");
            got += more;
        }
    }

    public void Dispose() => _file.Dispose();

    private static long OffsetOf(int slot) => (long)slot << Pfn.PageShift;
}

/// <summary>What is remembered of a page that went out: 64 bits of its content and of which page it is.</summary>
internal static class SwapChecksum
{
    private const ulong Odd = 0x9e37_79b9_7f4a_7c15;

    /// <summary>
    /// Every step is a bijection of the state, so a page that differs in one word has another sum; in general one in
    /// 2^64 goes unnoticed. The page's number finds pages that were written to, or read from, a wrong place.
    /// </summary>
    public static ulong Of(ReadOnlySpan<byte> page, ulong number)
    {
        ulong sum = (number + 1) * Odd;
        foreach (ulong word in MemoryMarshal.Cast<byte, ulong>(page))
            sum = (ulong.RotateLeft(sum, 27) ^ word) * Odd;
        return sum ^ (sum >> 32);
    }
}
