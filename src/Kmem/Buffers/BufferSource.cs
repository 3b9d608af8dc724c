using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// One kind of thing that the .NET floor hands out (the blocks of a pool, the objects of a typed cache, regions, …) and
/// how many of it are outstanding. Counting is a plain add in a cell of the thread's own.
/// </summary>
internal sealed class BufferSource(BufferAccount account, string name)
{
    private readonly Cell[] _cells = new Cell[ThreadStripe.Count];

    public BufferAccount Account { get; } = account;

    /// <summary>What a leak report calls it, for example <c>KmemPool 'kestrel'</c>.</summary>
    public string Name { get; } = name;

    /// <summary>Called when the machine goes away: from then on its memory must not be touched.</summary>
    public Action? Closing { get; init; }

    /// <summary>Things handed out and not given back. Exact when nobody is at work.</summary>
    public long Count => Sum(static cell => cell.Count);

    /// <summary>Their bytes, as asked for.</summary>
    public long Bytes => Sum(static cell => cell.Bytes);

    /// <summary>Books one thing that was handed out, and where, if the machine keeps call sites.</summary>
    /// <returns>
    /// A number that no other call on this source gets: the thread's number, and its own sequence below it in
    /// <see cref="SerialBits"/> bits.
    /// </returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Charge(nint address, long bytes, string file, int line)
    {
        ulong serial = Add(1, bytes);
        if (Account.Sites != null)
            AddSite(address, bytes, file, line);
        return serial;
    }

    /// <summary>Books many things that were handed out at one place.</summary>
    /// <returns>The serial number of the first; <see cref="NextSerial"/> leads to the others.</returns>
    public ulong ChargeMany(ReadOnlySpan<nint> addresses, long bytesEach, string file, int line)
    {
        ulong first = Add(addresses.Length, addresses.Length * bytesEach, addresses.Length);
        if (Account.Sites != null)
        {
            foreach (nint address in addresses)
                AddSite(address, bytesEach, file, line);
        }

        return first;
    }

    /// <summary>Books many things that came back.</summary>
    public void DischargeMany(ReadOnlySpan<nint> addresses, long bytesEach)
    {
        Add(-addresses.Length, -addresses.Length * bytesEach);
        if (Account.Sites == null)
            return;

        foreach (nint address in addresses)
            RemoveSite(address);
    }

    /// <summary>The serial number behind another of the same call.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong NextSerial(ulong serial) => (serial & ~SerialMask) | ((serial + 1) & SerialMask);

    /// <summary>Books one thing that came back.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Discharge(nint address, long bytes)
    {
        Add(-1, -bytes);
        if (Account.Sites != null)
            RemoveSite(address);
    }

    /// <summary>Bits of a serial number that count; those above hold the thread's number (6 bits).</summary>
    public const int SerialBits = 42;

    private const ulong SerialMask = (1UL << SerialBits) - 1;

    /// <summary>Everything in one visit to the thread's cell: finding it is what costs.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private ulong Add(long count, long bytes, int serials = 1)
    {
        int stripe = ThreadStripe.Current;
        ref Cell cell = ref _cells[stripe];
        if (stripe == ThreadStripe.Shared)
            return AddShared(ref cell, count, bytes, serials);

        cell.Count += count;
        cell.Bytes += bytes;
        long serial = cell.Serial;
        cell.Serial = serial + serials;
        return Serial(stripe, serial);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static ulong AddShared(ref Cell cell, long count, long bytes, int serials)
    {
        Interlocked.Add(ref cell.Count, count);
        Interlocked.Add(ref cell.Bytes, bytes);
        return Serial(ThreadStripe.Shared, Interlocked.Add(ref cell.Serial, serials) - serials);
    }

    private static ulong Serial(int stripe, long number) =>
        ((ulong)stripe << SerialBits) | ((ulong)number & SerialMask);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void AddSite(nint address, long bytes, string file, int line) =>
        Account.Sites!.Add(address, new CallSite(this, file, line), bytes);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void RemoveSite(nint address) => Account.Sites!.Remove(address);

    private long Sum(Func<Cell, long> field)
    {
        long sum = 0;
        foreach (ref Cell cell in _cells.AsSpan())
            sum += field(cell);
        return sum;
    }

    /// <summary>One thread's part; a cache line, so that threads do not disturb each other.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 64)]
    private struct Cell
    {
        public long Count;
        public long Bytes;
        public long Serial;
    }
}
