using System.Buffers.Binary;
using System.Numerics;
using System.Text;

namespace Kmem.Tracing;

/// <summary>
/// Gives each distinct text of a trace a small number, in the order of first appearance. Number 0 is the empty text
/// and means "none".
/// </summary>
/// <remarks>
/// A text that was seen before costs one hash and one comparison and allocates nothing. The table has a budget, so
/// that a hostile trace cannot fill memory: when it is used up, new texts get number 0 and are counted in
/// <see cref="Dropped"/>. Not thread-safe; the reader that owns the table writes to it.
/// </remarks>
public sealed class StringTable
{
    /// <summary>Bytes of text that one table keeps at most; a kernel's symbols all together are about 5 MiB.</summary>
    private const int MaxBytes = 16 << 20;

    /// <summary>Number of texts that one table keeps at most.</summary>
    private const int MaxCount = 1 << 20;

    /// <summary>What <see cref="Intern"/> answers to a text with control characters.</summary>
    internal const int Unprintable = -1;

    private int[] _slots = new int[1024];           // open addressing, linear probing, at most half full; 0 = free
    private Entry[] _entries = new Entry[256];      // [0] is the empty text
    private string?[] _strings = new string?[256];  // made when asked for
    private byte[] _bytes = new byte[8192];
    private int _used;

    internal StringTable()
    {
    }

    /// <summary>Number of texts, the empty one included: valid numbers are 0 to <c>Count</c> − 1.</summary>
    public int Count { get; private set; } = 1;

    /// <summary>How often a text was not taken because the budget was used up.</summary>
    public long Dropped { get; private set; }

    /// <summary>The text with a number, decoded as UTF-8 (bad sequences become U+FFFD); made once, then kept.</summary>
    /// <param name="id">A number that a <see cref="TraceEvent"/> of the same reader holds.</param>
    /// <exception cref="ArgumentOutOfRangeException">No text has this number.</exception>
    public string this[int id]
    {
        get
        {
            ReadOnlySpan<byte> utf8 = Utf8(id);
            return _strings[id] ??= Encoding.UTF8.GetString(utf8);
        }
    }

    /// <summary>The bytes of the text with a number, as they stood in the trace; valid until the next read.</summary>
    /// <param name="id">A number that a <see cref="TraceEvent"/> of the same reader holds.</param>
    /// <exception cref="ArgumentOutOfRangeException">No text has this number.</exception>
    public ReadOnlySpan<byte> Utf8(int id)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual((uint)id, (uint)Count, nameof(id));
        return _bytes.AsSpan(_entries[id].Offset, _entries[id].Length);
    }

    /// <summary>The number of a text; 0 if empty or over budget; <see cref="Unprintable"/>.</summary>
    internal int Intern(ReadOnlySpan<byte> text)
    {
        uint hash = Hash(text);
        int[] slots = _slots;
        for (uint i = hash; ; i++)
        {
            int id = slots[i & (uint)(slots.Length - 1)];
            if (id == 0)
                return InternSlow(text, hash);

            ref readonly Entry entry = ref _entries[id];
            if (entry.Hash == hash && text.SequenceEqual(_bytes.AsSpan(entry.Offset, entry.Length)))
                return id;
        }
    }

    private int InternSlow(ReadOnlySpan<byte> text, uint hash)
    {
        if (text.IsEmpty)
            return 0;

        // Checked here only: what is in the table is clean, so a hit needs no check.
        if (text.ContainsAnyInRange((byte)0, (byte)0x1f) || text.Contains((byte)0x7f))
            return Unprintable;

        if (_used + text.Length > MaxBytes || Count == MaxCount)
        {
            Dropped++;
            return 0;
        }

        while (_used + text.Length > _bytes.Length)
            Array.Resize(ref _bytes, _bytes.Length * 2);
        if (Count == _entries.Length)
            Grow();

        int id = Count++;
        _entries[id] = new Entry(_used, text.Length, hash);
        text.CopyTo(_bytes.AsSpan(_used));
        _used += text.Length;
        Place(id, hash);
        return id;
    }

    private void Grow()
    {
        Array.Resize(ref _entries, Count * 2);
        Array.Resize(ref _strings, Count * 2);
        _slots = new int[_slots.Length * 2];
        for (int id = 1; id < Count; id++)
            Place(id, _entries[id].Hash);
    }

    private void Place(int id, uint hash)
    {
        uint mask = (uint)(_slots.Length - 1);
        uint i = hash & mask;
        while (_slots[i] != 0)
            i = (i + 1) & mask;
        _slots[i] = id;
    }

    /// <summary>Eight bytes at a time; the last word may overlap the one before it.</summary>
    private static uint Hash(ReadOnlySpan<byte> text)
    {
        const ulong Multiplier = 0x9e37_79b9_7f4a_7c15;
        ulong hash = (ulong)text.Length * Multiplier;
        if (text.Length >= sizeof(ulong))
        {
            ulong last = BinaryPrimitives.ReadUInt64LittleEndian(text[^sizeof(ulong)..]);
            while (text.Length > sizeof(ulong))
            {
                ulong word = BinaryPrimitives.ReadUInt64LittleEndian(text);
                hash = (BitOperations.RotateLeft(hash, 29) ^ word) * Multiplier;
                text = text[sizeof(ulong)..];
            }

            hash = (BitOperations.RotateLeft(hash, 29) ^ last) * Multiplier;
        }
        else
        {
            foreach (byte b in text)
                hash = (BitOperations.RotateLeft(hash, 29) ^ b) * Multiplier;
        }

        return (uint)(hash >> 32);
    }

    private readonly record struct Entry(int Offset, int Length, uint Hash);
}
