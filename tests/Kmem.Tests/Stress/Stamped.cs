namespace Kmem.Tests;

/// <summary>A block whose every word says who wrote it, so that two owners of one place find each other out.</summary>
internal sealed record Stamped(nint Address, int Size, ulong Stamp, KmemCache? Cache)
{
    private const ulong Step = 0x9e37_79b9_7f4a_7c15;

    public static unsafe Stamped Write(void* pointer, int size, ulong stamp, KmemCache? cache)
    {
        var words = new Span<ulong>(pointer, size / 8);
        for (int i = 0; i < words.Length; i++)
            words[i] = stamp + ((ulong)i * Step);
        new Span<byte>(pointer, size)[(size & ~7)..].Fill((byte)stamp);
        return new Stamped((nint)pointer, size, stamp, cache);
    }

    public unsafe void Verify()
    {
        var words = new ReadOnlySpan<ulong>((void*)Address, Size / 8);
        for (int i = 0; i < words.Length; i++)
        {
            if (words[i] != Stamp + ((ulong)i * Step))
            {
                throw new InvalidOperationException(
                    $"word {i} of {Size} bytes at 0x{Address:x} ({Cache?.Name ?? "kmalloc"}) is 0x{words[i]:x}, "
                    + $"not 0x{Stamp + ((ulong)i * Step):x}");
            }
        }

        if (new ReadOnlySpan<byte>((void*)Address, Size)[(Size & ~7)..].ContainsAnyExcept((byte)Stamp))
            throw new InvalidOperationException($"the last bytes of {Size} at 0x{Address:x} changed");
    }

    public unsafe void Free(Machine machine)
    {
        Verify();
        if (Cache != null)
            Cache.Free((void*)Address);
        else
            machine.Kfree((void*)Address);
    }
}
