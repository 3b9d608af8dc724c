using System.Numerics;

namespace Kmem;

/// <summary>
/// One bit per page of a window, in sparse memory: 32 TiB of window need 1 GiB of addresses here but only 4 KiB of
/// memory per 128 MiB that is really used.
/// </summary>
internal sealed class PageBits(ulong bits) : IDisposable
{
    private readonly SparseMemory _memory =
        SparseMemory.Create((bits + 63) / 64 * sizeof(ulong), "the window's page bits");

    /// <summary>Set bits among [first, end).</summary>
    public unsafe int Count(ulong first, ulong end)
    {
        ulong* words = (ulong*)_memory.Base;
        int count = 0;
        for (ulong bit = first; bit < end; bit = NextWord(bit))
            count += BitOperations.PopCount(words[bit / 64] & Mask(bit, end));
        return count;
    }

    public unsafe void Set(ulong first, ulong end)
    {
        ulong* words = (ulong*)_memory.Base;
        for (ulong bit = first; bit < end; bit = NextWord(bit)) words[bit / 64] |= Mask(bit, end);
    }

    public unsafe void Clear(ulong first, ulong end)
    {
        ulong* words = (ulong*)_memory.Base;
        for (ulong bit = first; bit < end; bit = NextWord(bit)) words[bit / 64] &= ~Mask(bit, end);
    }

    public void Dispose() => _memory.Dispose();

    private static ulong NextWord(ulong bit) => (bit | 63) + 1;

    /// <summary>
    /// The bits of the word of <paramref name="bit"/> from it up to, not including, <paramref name="end"/>.
    /// </summary>
    private static ulong Mask(ulong bit, ulong end)
    {
        ulong fromBit = ulong.MaxValue << (int)(bit % 64);
        return end >= NextWord(bit) ? fromBit : fromBit & ~(ulong.MaxValue << (int)(end % 64));
    }
}
