using System.Globalization;
using System.Numerics;
using System.Text;

namespace Kmem;

/// <content>
/// Objects that nobody can reach any more (kmemleak): from the roots on, each word that looks like an address inside an
/// object makes that object reachable, and then its own words count. What is left over is reported.
/// </content>
public sealed partial class AllocationTracker
{
    private readonly Lock _rootsGate = new();
    private readonly SortedDictionary<nint, nuint> _roots = [];

    /// <summary>
    /// Declares memory outside the machine as a place where pointers to its objects are kept: a pinned array, a block
    /// of native memory, a static that is pinned. It is read at each scan and must stay valid until
    /// <see cref="RemoveRoot"/>.
    /// </summary>
    /// <param name="start">First byte.</param>
    /// <param name="bytes">How many; only words at multiples of 8 are looked at.</param>
    public unsafe void AddRoot(void* start, nuint bytes)
    {
        lock (_rootsGate)
            _roots[(nint)start] = bytes;
    }

    /// <summary>The memory is no longer looked at.</summary>
    /// <param name="start">As given to <see cref="AddRoot"/>.</param>
    /// <returns>Whether it was a root.</returns>
    public unsafe bool RemoveRoot(void* start)
    {
        lock (_rootsGate)
            return _roots.Remove((nint)start);
    }

    /// <summary>
    /// The object is in use, whoever refers to it, and what it refers to is, too (kmemleak_not_leak).
    /// </summary>
    /// <param name="obj">Where it begins.</param>
    /// <exception cref="ArgumentException">No tracked object begins there.</exception>
    public unsafe void NotALeak(void* obj) => Find(obj).Colour = LeakColour.Grey;

    /// <summary>The object is in use, and has no pointers worth looking at (kmemleak_ignore).</summary>
    /// <param name="obj">Where it begins.</param>
    /// <exception cref="ArgumentException">No tracked object begins there.</exception>
    public unsafe void Ignore(void* obj) => Find(obj).Colour = LeakColour.Black;

    /// <summary>
    /// Finds the objects that cannot be reached from the roots (kmemleak_scan). Conservative: any word with the value
    /// of an address inside an object counts, so a leak may be missed; and an object whose only pointer is on a stack,
    /// in a register, or in a managed field is taken for one, until <see cref="NotALeak"/> or a root says otherwise.
    /// </summary>
    /// <param name="minAge">Younger objects are not reported; null for the kernel's 5 s.</param>
    /// <returns>The leaks, oldest first. Objects that only leaks refer to, cycles too, are among them.</returns>
    /// <remarks>No other thread may be at work on the machine, nor change the roots' content.</remarks>
    public IReadOnlyList<Leak> ScanForLeaks(TimeSpan? minAge = null)
    {
        TimeSpan least = minAge ?? TimeSpan.FromSeconds(5);
        var scan = new Scan(_live.Values);
        lock (_rootsGate)
        {
            foreach ((nint start, nuint bytes) in _roots)
                scan.Words(start, bytes);
        }

        scan.Run();

        // An object that changes is in use by somebody, whom the roots do not tell.
        foreach (Tracked it in scan.White())
        {
            uint now = ChecksumOf(it);
            if (it.Checksum is { } before && before != now)
                scan.Reach(it);
            it.Checksum = now;
        }

        scan.Run();
        long oldest = Nanoseconds - (long)least.TotalNanoseconds;
        return [.. scan.White().Where(it => it.At <= oldest).OrderBy(it => it.At).Select(ToLeak)];
    }

    private unsafe Tracked Find(void* obj) => _live.TryGetValue((nint)obj, out Tracked? it)
        ? it
        : throw new ArgumentException($"no tracked object begins at 0x{(ulong)obj:x}", nameof(obj));

    private static unsafe uint ChecksumOf(Tracked it)
    {
        uint sum = uint.MaxValue;
        foreach (byte b in new ReadOnlySpan<byte>((void*)it.Address, (int)Math.Min(it.Bytes, int.MaxValue)))
            sum = BitOperations.Crc32C(sum, b);
        return ~sum;
    }

    private unsafe Leak ToLeak(Tracked it)
    {
        const int Shown = 32;
        byte[] content = new ReadOnlySpan<byte>((void*)it.Address, (int)Math.Min(it.Bytes, Shown)).ToArray();
        ulong address = _slabs.Map.Contains((void*)it.Address)
            ? _slabs.KernelAddress((void*)it.Address)
            : (ulong)it.Address;
        return new Leak(
            it.Address,
            address,
            (long)it.Bytes,
            it.Source,
            it.Thread,
            it.At / 1_000_000,
            TimeSpan.FromMilliseconds((Nanoseconds - it.At) / 1e6),
            _slabs.Stacks.Find(it.Stack) ?? [],
            content,
            it.Checksum ?? 0);
    }

    /// <summary>One walk over everything that can be reached.</summary>
    private sealed class Scan
    {
        private readonly Tracked[] _byAddress;
        private readonly bool[] _reached;
        private readonly Queue<int> _toScan = new();
        private readonly nint _low;
        private readonly nint _high;

        public Scan(IEnumerable<Tracked> live)
        {
            _byAddress = [.. live.OrderBy(it => it.Address)];
            _reached = new bool[_byAddress.Length];
            _low = _byAddress.Length == 0 ? 0 : _byAddress[0].Address;
            _high = _byAddress.Length == 0 ? 0 : _byAddress[^1].Address + (nint)_byAddress[^1].Bytes;
            for (int i = 0; i < _byAddress.Length; i++)
            {
                if (_byAddress[i].Colour != LeakColour.White)
                    Reach(i);
            }
        }

        public IEnumerable<Tracked> White() => _byAddress.Where((_, i) => !_reached[i]);

        public void Reach(Tracked it) => Reach(Array.IndexOf(_byAddress, it));

        /// <summary>Looks at each aligned word of a range.</summary>
        public unsafe void Words(nint start, nuint bytes)
        {
            nint first = (start + sizeof(nint) - 1) & ~(nint)(sizeof(nint) - 1);
            for (nint at = first; at + sizeof(nint) <= start + (nint)bytes; at += sizeof(nint))
            {
                nint word = *(nint*)at;
                if (word >= _low && word < _high && IndexOf(word) is >= 0 and var index)
                    Reach(index);
            }
        }

        /// <summary>Scans all that was reached, until nothing new comes up.</summary>
        public void Run()
        {
            while (_toScan.TryDequeue(out int index))
                Words(_byAddress[index].Address, _byAddress[index].Bytes);
        }

        private void Reach(int index)
        {
            if (_reached[index])
                return;

            _reached[index] = true;
            if (_byAddress[index].Colour != LeakColour.Black)
                _toScan.Enqueue(index);
        }

        /// <summary>The object that an address lies in, its first byte or any other; -1 for none.</summary>
        private int IndexOf(nint address)
        {
            int low = 0;
            int high = _byAddress.Length - 1;
            while (low <= high)
            {
                int middle = (low + high) / 2;
                Tracked it = _byAddress[middle];
                if (address < it.Address)
                    high = middle - 1;
                else if (address >= it.Address + (nint)it.Bytes)
                    low = middle + 1;
                else
                    return middle;
            }

            return -1;
        }
    }
}

/// <summary>An object that nobody can reach.</summary>
/// <param name="Pointer">Where it begins in this process.</param>
/// <param name="Address">The kernel address that reports show.</param>
/// <param name="Bytes">Its size, as asked for.</param>
/// <param name="Source">Its cache, or <c>kmalloc</c> or <c>vmalloc</c>.</param>
/// <param name="Thread">Number of the managed thread that allocated it.</param>
/// <param name="Jiffies">When: milliseconds since boot.</param>
/// <param name="Age">How long it exists.</param>
/// <param name="Stack">Who allocated it, innermost frame first.</param>
/// <param name="Content">Its first bytes, 32 at most.</param>
/// <param name="Checksum">CRC-32C of its content.</param>
public sealed record Leak(
    nint Pointer,
    ulong Address,
    long Bytes,
    string Source,
    int Thread,
    long Jiffies,
    TimeSpan Age,
    IReadOnlyList<string> Stack,
    ReadOnlyMemory<byte> Content,
    uint Checksum)
{
    private const int BytesPerRow = 16;

    /// <summary>The block of lines that the file kmemleak shows for an object.</summary>
    /// <returns>The text, several lines.</returns>
    public override string ToString()
    {
        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture, $"unreferenced object 0x{Address:x16} (size {Bytes}):\n")
            .Append(CultureInfo.InvariantCulture, $"  comm \"dotnet\", pid {Thread}, jiffies {Jiffies}\n")
            .Append(CultureInfo.InvariantCulture, $"  hex dump (first {Content.Length} bytes):\n");
        ReadOnlySpan<byte> content = Content.Span;
        for (int row = 0; row < content.Length; row += BytesPerRow)
        {
            ReadOnlySpan<byte> bytes = content[row..Math.Min(row + BytesPerRow, content.Length)];
            text.Append("    ");
            foreach (byte b in bytes)
                text.Append(CultureInfo.InvariantCulture, $"{b:x2} ");
            text.Append(' ', (3 * (BytesPerRow - bytes.Length)) + 1);
            foreach (byte b in bytes)
                text.Append(b is >= 0x20 and < 0x7f ? (char)b : '.');
            text.Append('\n');
        }

        text.Append(CultureInfo.InvariantCulture, $"  backtrace (crc {Checksum:x}):\n");
        foreach (string frame in Stack)
            text.Append("    ").Append(frame).Append('\n');
        return text.ToString();
    }
}
