namespace Kmem.Tests;

/// <summary>
/// A slow, obvious model beside the real machine: which addresses are given out, how large they are and what was
/// written there. Every answer of the machine is held against it.
/// <code>
///   claims   one bit per 8 bytes of RAM: an allocation must find its bits clear, a free clears them
///   live     address → size, the seed of its content, where it came from
/// </code>
/// </summary>
internal sealed class SlabModel(Machine machine, ulong ramBytes)
{
    private const ulong PageOffset = 0xffff_8880_0000_0000;
    private const int LargeStride = 509; // of a large block only every 509th word is written and compared
    private readonly ulong[] _claims = new ulong[(ramBytes >> 9) + 1];
    private readonly Dictionary<nint, Block> _live = [];
    private readonly List<nint> _order = [];

    public int Count => _order.Count;

    public long Bytes { get; private set; }

    public Block this[nint address] => _live[address];

    public nint Pick(Random random) => _order[random.Next(_order.Count)];

    /// <summary>Checks what every allocation promises, writes a pattern, and remembers the block.</summary>
    public unsafe void Add(
        void* pointer, nuint requested, nuint slot, ulong align, KmemCache? cache, bool zeroed, ulong seed)
    {
        ulong physical = machine.PhysicalAddressOf(pointer).Value;
        ulong kernel = machine.KernelAddressOf(pointer).Value;
        Check(((ulong)pointer & (align - 1)) == 0 && (kernel & (align - 1)) == 0, $"0x{kernel:x} not aligned to {align}");
        Check(kernel - PageOffset == physical, $"0x{kernel:x} is not in the direct map of 0x{physical:x}");
        void* last = (byte*)pointer + Math.Max(requested, 1) - 1;
        Check(
            machine.KernelAddressOf(last).Value - kernel == Math.Max(requested, 1) - 1
                && machine.PfnOf(last) - machine.PfnOf(pointer) == ((physical & 4095) + Math.Max(requested, 1) - 1) >> 12,
            $"0x{kernel:x} is not contiguous");
        nuint usable = machine.Ksize(pointer);
        Check(usable >= requested, $"ksize {usable} of {requested} bytes at 0x{kernel:x}");
        if (zeroed)
            Check(IsZero((byte*)pointer, requested), $"{requested} bytes at 0x{kernel:x} are not zero");

        Claim(physical, slot, taken: true);
        var block = new Block(requested, slot, seed, cache);
        _live.Add((nint)pointer, block with { Position = _order.Count });
        _order.Add((nint)pointer);
        Bytes += (long)requested;
        Write((byte*)pointer, requested, seed);
    }

    public IEnumerable<nint> Addresses => _order;

    /// <summary>The content must still be there; from now on the place may be given out again.</summary>
    public Block Remove(nint address)
    {
        CheckContent(address, _live[address].Size);
        return Forget(address);
    }

    /// <summary>As <see cref="Remove"/>, of a block whose content is gone already.</summary>
    public unsafe Block Forget(nint address)
    {
        Block block = _live[address];
        _live.Remove(address);
        nint last = _order[^1];
        _order[block.Position] = last;
        _order.RemoveAt(_order.Count - 1);
        if (last != address)
            _live[last] = _live[last] with { Position = block.Position };
        Bytes -= (long)block.Size;
        Claim(machine.PhysicalAddressOf((void*)address).Value, block.Slot, taken: false);
        return block;
    }

    public unsafe void CheckContent(nint address, nuint count)
    {
        Block block = _live[address];
        Check(
            Matches((byte*)address, Math.Min(count, block.Size), block.Seed),
            $"the content of {block.Size} bytes at 0x{machine.KernelAddressOf((void*)address).Value:x} changed");
    }

    public void CheckAll()
    {
        foreach ((nint address, Block block) in _live)
            CheckContent(address, block.Size);
    }

    public static void Check(bool holds, string what)
    {
        if (!holds)
            throw new InvalidOperationException(what);
    }

    public static unsafe void Write(byte* start, nuint size, ulong seed)
    {
        nuint stride = size > 16384 ? (nuint)LargeStride * 8 : 8;
        nuint offset = 0;
        for (; offset + 8 <= size; offset += stride)
            *(ulong*)(start + offset) = seed + offset;
        for (offset = size & ~(nuint)7; offset < size; offset++)
            start[offset] = (byte)(seed + offset);
    }

    public static unsafe bool Matches(byte* start, nuint size, ulong seed, bool wasLarge = false)
    {
        nuint stride = size > 16384 || wasLarge ? (nuint)LargeStride * 8 : 8;
        for (nuint offset = 0; offset + 8 <= size; offset += stride)
        {
            if (*(ulong*)(start + offset) != seed + offset)
                return false;
        }

        if (wasLarge)
            return true;
        for (nuint offset = size & ~(nuint)7; offset < size; offset++)
        {
            if (start[offset] != (byte)(seed + offset))
                return false;
        }

        return true;
    }

    public static unsafe bool IsZero(byte* start, nuint size) =>
        new ReadOnlySpan<byte>(start, checked((int)size)).IndexOfAnyExcept((byte)0) < 0;

    private void Claim(ulong physical, nuint bytes, bool taken)
    {
        ulong first = physical >> 3;
        ulong count = ((ulong)bytes + 7) >> 3;
        for (ulong i = first; i < first + count;)
        {
            int bit = (int)(i & 63);
            ulong left = Math.Min(64 - (ulong)bit, first + count - i);
            ulong mask = (left == 64 ? ulong.MaxValue : (1UL << (int)left) - 1) << bit;
            ulong word = _claims[i >> 6] & mask;
            Check(word == (taken ? 0 : mask), taken ? $"physical 0x{i << 3:x} is given out twice" : "claim lost");
            _claims[i >> 6] ^= mask;
            i += left;
        }
    }

    /// <summary>One live allocation.</summary>
    /// <param name="Size">Bytes asked for; all of them carry the pattern.</param>
    /// <param name="Slot">Bytes that nobody else may get.</param>
    /// <param name="Seed">Of the pattern.</param>
    /// <param name="Cache">The cache, or null for kmalloc.</param>
    internal readonly record struct Block(nuint Size, nuint Slot, ulong Seed, KmemCache? Cache)
    {
        public int Position { get; init; }
    }
}
