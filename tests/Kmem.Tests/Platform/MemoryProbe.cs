namespace Kmem.Tests;

/// <summary>
/// Asks whether an address can be read or written without dying of the answer: the kernel copies to or from it on our
/// behalf and says EFAULT where a plain access would end the process.
/// </summary>
internal sealed class MemoryProbe : IDisposable
{
    private readonly string _path = Path.GetTempFileName();
    private readonly FileStream _file;

    public MemoryProbe()
    {
        _file = new FileStream(_path, FileMode.Open, FileAccess.ReadWrite);
        _file.WriteByte(0);
        _file.Flush();
    }

    /// <summary>Two marks as in ls -l: "rw", "r-", "--". A writable byte keeps its value.</summary>
    public unsafe string Access(byte* address)
    {
        bool readable = Try(() => RandomAccess.Write(_file.SafeFileHandle, new ReadOnlySpan<byte>(address, 1), 0));
        bool writable = readable && Try(() => RandomAccess.Read(_file.SafeFileHandle, new Span<byte>(address, 1), 0));
        return (readable ? "r" : "-") + (writable ? "w" : "-");
    }

    public void Dispose()
    {
        _file.Dispose();
        File.Delete(_path);
    }

    private static bool Try(Action copy)
    {
        try
        {
            copy();
            return true;
        }
        catch (IOException)
        {
            return false;
        }
    }
}
