using System.Numerics;
using System.Runtime.CompilerServices;

namespace Kmem.Tracing;

/// <summary>
/// A hash table from addresses or frame numbers of the recorded kernel, never 0, to values: open addressing with linear
/// probing, key and value side by side, at most half full. Removing moves later entries up, so that there are no
/// tombstones and a long replay stays as fast as a short one.
/// </summary>
/// <typeparam name="T">The value.</typeparam>
internal sealed class AddressTable<T>
    where T : unmanaged
{
    private const ulong Multiplier = 0x9e37_79b9_7f4a_7c15;     // 2⁶⁴ / golden ratio

    private Slot[] _slots;
    private int _shift;

    public AddressTable(int capacity = 1024)
    {
        _slots = new Slot[(int)BitOperations.RoundUpToPowerOf2((uint)capacity)];
        _shift = 64 - BitOperations.Log2((uint)_slots.Length);
    }

    public int Count { get; private set; }

    /// <summary>The value of a key, or a null reference. Valid until the next <see cref="Add"/> or removal.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ref T Find(ulong key)
    {
        Slot[] slots = _slots;
        for (uint i = Home(key); ; i++)
        {
            ref Slot slot = ref slots[i & (uint)(slots.Length - 1)];
            if (slot.Key == key)
                return ref slot.Value;
            if (slot.Key == 0)
                return ref Unsafe.NullRef<T>();
        }
    }

    /// <summary>The value of a key, which is added with a default value if it is not there.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ref T Add(ulong key, out bool existed)
    {
        if (Count >= _slots.Length / 2)
            Grow();

        Slot[] slots = _slots;
        for (uint i = Home(key); ; i++)
        {
            ref Slot slot = ref slots[i & (uint)(slots.Length - 1)];
            if (slot.Key == key)
            {
                existed = true;
                return ref slot.Value;
            }

            if (slot.Key == 0)
            {
                slot.Key = key;
                Count++;
                existed = false;
                return ref slot.Value;
            }
        }
    }

    /// <summary>Removes a key and tells its value.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool Remove(ulong key, out T value)
    {
        Slot[] slots = _slots;
        for (uint i = Home(key); ; i++)
        {
            ref Slot slot = ref slots[i & (uint)(slots.Length - 1)];
            if (slot.Key == key)
            {
                value = slot.Value;
                Close(slots, i & (uint)(slots.Length - 1));
                Count--;
                return true;
            }

            if (slot.Key == 0)
            {
                value = default;
                return false;
            }
        }
    }

    /// <summary>
    /// Fills the hole with the next entry of the run that may stand there, and so on with the hole it leaves.
    /// </summary>
    private void Close(Slot[] slots, uint hole)
    {
        uint mask = (uint)(slots.Length - 1);
        for (uint i = (hole + 1) & mask; slots[i].Key != 0; i = (i + 1) & mask)
        {
            // An entry may move back to the hole unless its home lies behind the hole.
            uint fromHome = (i - Home(slots[i].Key)) & mask;
            if (fromHome < ((i - hole) & mask))
                continue;

            slots[hole] = slots[i];
            hole = i;
        }

        slots[hole] = default;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void Grow()
    {
        Slot[] old = _slots;
        _slots = new Slot[old.Length * 2];
        _shift--;
        uint mask = (uint)(_slots.Length - 1);
        foreach (Slot slot in old)
        {
            if (slot.Key == 0)
                continue;

            uint i = Home(slot.Key);
            while (_slots[i & mask].Key != 0)
                i++;
            _slots[i & mask] = slot;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private uint Home(ulong key) => (uint)((key * Multiplier) >> _shift);

    private struct Slot
    {
        public ulong Key;
        public T Value;
    }
}
