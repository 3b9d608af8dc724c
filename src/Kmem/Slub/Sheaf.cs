using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// An array of free objects of a cache with its count (<c>struct slab_sheaf</c>): handed out and taken back at the end,
/// without looking at slabs. It is itself a kmalloc block.
/// <code>
///   | Next | Capacity | – | Size, Node | object 0 | object 1 | … | object Size−1 |  room  |
///     32 bytes                                                     ↑ next one out
/// </code>
/// </summary>
[StructLayout(LayoutKind.Sequential, Size = HeaderBytes)]
internal struct Sheaf
{
    public const int HeaderBytes = 32;

    /// <summary>The next sheaf of the barn's list.</summary>
    public unsafe Sheaf* Next;

    public long Capacity;

    private readonly long _reserved;

    public int Size;

    /// <summary>The node where it was filled.</summary>
    public int Node;

    /// <summary>
    /// Objects above <see cref="LargeSlot"/> are as many as come to this many bytes, but no fewer than four.
    /// </summary>
    private const int LargeSlot = 8192;
    private const int LargeSheafBytes = 12 * LargeSlot;
    private const int LeastCapacity = 4;

    /// <summary>
    /// Objects in a sheaf of a cache that does not say: its sheaves are of 1024, 512, 256 or 128 bytes (as in Linux
    /// 7.0, which has half as many).
    /// </summary>
    public static int DefaultCapacity(int slotSize) => slotSize switch
    {
        > LargeSlot => Math.Max(LargeSheafBytes / slotSize, LeastCapacity),
        >= 4096 => 12,
        >= 1024 => 28,
        >= 256 => 60,
        _ => 124,
    };

    public readonly bool IsFull => Size >= Capacity;

    public static unsafe void** ObjectsOf(Sheaf* sheaf) => (void**)((byte*)sheaf + HeaderBytes);

    public static unsafe void Push(Sheaf* sheaf, void* obj) => ObjectsOf(sheaf)[sheaf->Size++] = obj;

    public static unsafe void* Pop(Sheaf* sheaf) => ObjectsOf(sheaf)[--sheaf->Size];

    public static unsafe Span<nint> Objects(Sheaf* sheaf) => new((byte*)sheaf + HeaderBytes, sheaf->Size);
}

/// <summary>
/// A node's store of full and of empty sheaves of a cache (<c>struct node_barn</c>). CPUs exchange whole sheaves here,
/// so that objects freed on one CPU reach another one many at a time.
/// </summary>
internal sealed class Barn
{
    /// <summary>Full sheaves, and empty ones, that a node keeps of a cache (MAX_FULL_SHEAVES).</summary>
    private const int KernelLimit = 10;

    /// <summary>
    /// Where threads pass on batches of thousands, more is kept: up to this many sheaves and bytes of objects.
    /// </summary>
    private const int NativeLimit = 64;
    private const int NativeBytes = 1 << 20;

    /// <summary>
    /// And where nobody asks for full sheaves, fewer: each of their objects may keep a slab of its own from going.
    /// </summary>
    private const int NativeLeast = 2;

    private readonly int _least;
    private readonly int _most;
    private SpinLock _lock = new(LockRank.Barn);
    private int _limit;
    private unsafe Sheaf* _full;
    private unsafe Sheaf* _empty;

    /// <param name="sheafBytes">
    /// Bytes of the objects of a sheaf, for a limit by bytes that follows demand; 0 for the kernel's limit.
    /// </param>
    public Barn(int sheafBytes)
    {
        _most = sheafBytes == 0 ? KernelLimit : Math.Clamp(NativeBytes / sheafBytes, KernelLimit, NativeLimit);
        _least = sheafBytes == 0 ? KernelLimit : NativeLeast;
        _limit = sheafBytes == 0 ? KernelLimit : NativeLeast;
    }

    /// <summary>
    /// How many full sheaves are enough, and how many empty ones. In a barn whose limit follows demand each full sheaf
    /// asked for raises it by two, and each one offered lowers it by one.
    /// </summary>
    public int Limit => Volatile.Read(ref _limit);

    public int FullCount { get; private set; }

    public int EmptyCount { get; private set; }

    public void BreakLock() => _lock.Break();

    public unsafe void PutFull(Sheaf* sheaf)
    {
        _lock.Acquire();
        AddFullLocked(sheaf);
        OfferedLocked();
        _lock.Release();
    }

    public unsafe void PutEmpty(Sheaf* sheaf)
    {
        _lock.Acquire();
        AddEmptyLocked(sheaf);
        _lock.Release();
    }

    public unsafe Sheaf* TakeFull()
    {
        _lock.Acquire();
        Sheaf* sheaf = TakeFullLocked();
        _lock.Release();
        return sheaf;
    }

    public unsafe Sheaf* TakeEmpty()
    {
        _lock.Acquire();
        Sheaf* sheaf = TakeEmptyLocked();
        _lock.Release();
        return sheaf;
    }

    /// <summary>Gives a full sheaf for an empty one, if there is a full one.</summary>
    public unsafe Sheaf* ExchangeForFull(Sheaf* empty)
    {
        _lock.Acquire();
        Sheaf* full = TakeFullLocked();
        if (full != null)
            AddEmptyLocked(empty);

        _lock.Release();
        return full;
    }

    /// <summary>Gives an empty sheaf for a full one, if there is an empty one and room for a full one.</summary>
    /// <param name="full">The full one.</param>
    /// <param name="noRoom">Set if there are enough full ones.</param>
    public unsafe Sheaf* ExchangeForEmpty(Sheaf* full, out bool noRoom)
    {
        _lock.Acquire();
        noRoom = FullCount >= Limit;
        Sheaf* empty = noRoom ? null : TakeEmptyLocked();
        if (empty != null)
            AddFullLocked(full);

        OfferedLocked();
        _lock.Release();
        return empty;
    }

    /// <summary>Whether a full sheaf here has an object; others may be at work.</summary>
    public unsafe bool Holds(nint obj)
    {
        bool found = false;
        _lock.Acquire();
        for (Sheaf* sheaf = _full; sheaf != null && !found; sheaf = sheaf->Next)
            found = Sheaf.Objects(sheaf).Contains(obj);
        _lock.Release();
        return found;
    }

    /// <summary>A full sheaf more than <see cref="Limit"/>, for the caller to empty; null if there is none.</summary>
    public unsafe Sheaf* TakeSurplus()
    {
        if (_least == _most)
            return null;

        _lock.Acquire();
        Sheaf* sheaf = FullCount > _limit ? UnlinkFullLocked() : null;
        _lock.Release();
        return sheaf;
    }

    /// <summary>Sheaves of a list, head first, for checks and state dumps.</summary>
    public unsafe List<nint> List(bool full)
    {
        var sheaves = new List<nint>();
        for (Sheaf* sheaf = full ? _full : _empty; sheaf != null; sheaf = sheaf->Next)
        {
            sheaves.Add((nint)sheaf);
            Bug.On(sheaves.Count > FullCount + EmptyCount + NativeLimit, "a barn's list goes in a circle");
        }

        return sheaves;
    }

    private void OfferedLocked()
    {
        _lock.AssertHeld();
        _limit = Math.Max(_least, _limit - 1);
    }

    private unsafe void AddFullLocked(Sheaf* sheaf)
    {
        _lock.AssertHeld();
        sheaf->Next = _full;
        _full = sheaf;
        FullCount++;
    }

    private unsafe void AddEmptyLocked(Sheaf* sheaf)
    {
        _lock.AssertHeld();
        sheaf->Next = _empty;
        _empty = sheaf;
        EmptyCount++;
    }

    private unsafe Sheaf* TakeFullLocked()
    {
        _limit = Math.Min(_most, _limit + 2);
        return UnlinkFullLocked();
    }

    private unsafe Sheaf* UnlinkFullLocked()
    {
        _lock.AssertHeld();
        Sheaf* sheaf = _full;
        if (sheaf != null)
        {
            SimPoint.Here();
            _full = sheaf->Next;
            FullCount--;
        }

        return sheaf;
    }

    private unsafe Sheaf* TakeEmptyLocked()
    {
        _lock.AssertHeld();
        Sheaf* sheaf = _empty;
        if (sheaf != null)
        {
            SimPoint.Here();
            _empty = sheaf->Next;
            EmptyCount--;
        }

        return sheaf;
    }
}
