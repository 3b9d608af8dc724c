namespace Kmem.Tests;

/// <summary>A swap store in memory that fails when a test says so.</summary>
internal sealed class MemoryStore : ISwapStore
{
    private readonly Dictionary<int, byte[]> _slots = [];

    public string Name => "memory";

    /// <summary>Asked before each write and read with its number, from 1; true: it fails.</summary>
    public Func<long, bool> FailsWrite { get; set; } = _ => false;

    public Func<long, bool> FailsRead { get; set; } = _ => false;

    public long Writes { get; private set; }

    public long Reads { get; private set; }

    public bool IsDisposed { get; private set; }

    public void Write(int slot, ReadOnlySpan<byte> page)
    {
        lock (_slots)
        {
            // A write that fails may have written half of the page.
            bool fails = FailsWrite(++Writes);
            if (!_slots.TryGetValue(slot, out byte[]? there))
                _slots.Add(slot, there = new byte[page.Length]);
            page[..(fails ? page.Length / 2 : page.Length)].CopyTo(there);
            if (fails)
                throw new IOException("No space left on device");
        }
    }

    public void Read(int slot, Span<byte> page)
    {
        lock (_slots)
        {
            if (FailsRead(++Reads))
                throw new IOException("Input/output error");
            _slots[slot].CopyTo(page);
        }
    }

    /// <summary>One bit of what is stored changes by itself.</summary>
    public void Flip(int slot, int bit)
    {
        lock (_slots)
            _slots[slot][bit / 8] ^= (byte)(1 << (bit % 8));
    }

    /// <summary>Two pages change places.</summary>
    public void Exchange(int a, int b)
    {
        lock (_slots)
            (_slots[a], _slots[b]) = (_slots[b], _slots[a]);
    }

    public void Dispose() => IsDisposed = true;
}
