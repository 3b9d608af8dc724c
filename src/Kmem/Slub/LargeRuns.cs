using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// Buffers of more than the largest block: neighbouring blocks of 4 MiB, contiguous, in private memory of huge pages,
/// at their place in the direct map. What kvmalloc would else map frame by frame costs a fault for each 2 MiB this way,
/// and nothing at all when it was used before.
/// <code>
///   blocks of RAM   | free | free |  run of 3 blocks   | kept | free | ...
///                                   ^ what the user has
///   head of a run: large kmalloc block, references −3; of its other blocks: references −1
/// </code>
/// What is freed is kept, private, up to a limit; given back, a block is empty and shared like all others.
/// </summary>
internal sealed class LargeRuns
{
    /// <summary>A larger buffer may be one whose user touches only parts of it; vmalloc maps it page by page.</summary>
    private const nuint Largest = 32 << 20;

    private const int Order = PageOrder.Max;
    private const ulong BlockBytes = Ram.PrivateBlockBytes;
    private const int MostKeptBlocks = (int)((128UL << 20) / BlockBytes);
    private const int KeptShareOfRam = 8;
    private const int Body = -1;

    /// <summary>A request with any other flag wants something special.</summary>
    private const Gfp AnyPagesDo = Gfp.Kernel | Gfp.Zero | Gfp.NoWarn | Gfp.HighMem | Gfp.NoFail;

    private readonly SlabAllocator _slabs;
    private readonly PageAllocator _pages;
    private readonly Ram _ram;
    private readonly Lock _gate = new();
    private readonly bool[] _kept;
    private readonly int _mostKept;
    private int _keptCount;

    public LargeRuns(SlabAllocator slabs, Ram ram)
    {
        _slabs = slabs;
        _pages = slabs.Pages;
        _ram = ram;
        _kept = new bool[ram.Bytes / BlockBytes];
        _mostKept = Math.Min(MostKeptBlocks, _kept.Length / KeptShareOfRam);
    }

    /// <summary>Blocks that were freed and are kept for the next buffer.</summary>
    public int KeptBlocks => Volatile.Read(ref _keptCount);

    /// <summary>Allocates a buffer; null if it should come from elsewhere.</summary>
    public unsafe void* Alloc(nuint size, Gfp gfp)
    {
        // Who watches, traces or makes requests fail sees the way of the kernel.
        if (!_ram.CanAlias || size <= KmallocLimit || size > Largest || (gfp & ~AnyPagesDo) != 0 || _slabs.FastId < 0
            || _pages.Faults != null || _pages.Trace != null)
        {
            return null;
        }

        int blocks = (int)((size + (nuint)BlockBytes - 1) / (nuint)BlockBytes);
        Page* head;
        bool isClear = false;
        SimPoint.Gate(_gate);
        lock (_gate)
        {
            int first = Find(blocks, keptOnly: true);
            if (first < 0)
            {
                first = Find(blocks, keptOnly: false);
                if (first < 0 || !TryClaim(first, blocks, out isClear))
                    return null;
            }

            head = PageOf(first);
            for (int block = first; block < first + blocks; block++)
                Use(block, block == first ? -blocks : Body);
        }

        void* buffer = _slabs.Map.AddressOf(head);
        if ((gfp & Gfp.Zero) != 0 && !isClear)
            NativeMemory.Clear(buffer, size);
        return buffer;
    }

    /// <summary>Blocks of the buffer that begins here; 1 for a block that is no run.</summary>
    public static unsafe int LengthOf(Page* head) => Math.Max(1, -head->RefCount);

    /// <summary>Whether a block is the second or a later one of a run.</summary>
    public static unsafe bool IsBody(Page* page) => page->RefCount == Body;

    /// <summary>Takes a buffer back whose head is no large block any more.</summary>
    public unsafe void Free(Page* head, int blocks)
    {
        SimPoint.Gate(_gate);
        lock (_gate)
        {
            int first = BlockOf(head);
            for (int block = first; block < first + blocks; block++)
            {
                Page* page = PageOf(block);
                page->Type = PageType.None;
                page->RefCount = 0;
                _slabs.AccountPages(page, -(1L << Order), SlabFlags.None);
                if (_ram.IsPrivate(block))
                    Keep(block);
                else
                    _pages.FreeFrozen(page, Order);     // of a machine that was restored
            }

            DropLocked(_keptCount - _mostKept);
        }
    }

    /// <summary>Gives kept blocks back.</summary>
    /// <param name="most">At most so many.</param>
    /// <returns>Frames freed.</returns>
    public long Drop(int most = int.MaxValue)
    {
        if (KeptBlocks == 0)
            return 0;

        SimPoint.Gate(_gate);
        lock (_gate)
            return DropLocked(most);
    }

    private static nuint KmallocLimit => (nuint)BlockBytes;

    private unsafe long DropLocked(int most)
    {
        long frames = 0;
        for (int block = 0; most > 0 && _keptCount > 0 && block < _kept.Length; block++)
        {
            if (!_kept[block] || !_ram.TryMakeShared(block))
                continue;

            _kept[block] = false;
            Volatile.Write(ref _keptCount, _keptCount - 1);
            PageOf(block)->RefCount = 0;
            _pages.FreeFrozen(PageOf(block), Order);
            frames += 1L << Order;
            most--;
        }

        return frames;
    }

    /// <summary>The first of so many neighbours, from the end of RAM on, that are kept, or else free; or -1.</summary>
    private int Find(int blocks, bool keptOnly)
    {
        if (keptOnly && _keptCount < blocks)
            return -1;

        int run = 0;
        for (int block = _kept.Length - 1; block >= 0; block--)
        {
            run = _kept[block] || (!keptOnly && _pages.IsLargestFree((ulong)block << Order)) ? run + 1 : 0;
            if (run == blocks)
                return block;
        }

        return -1;
    }

    /// <summary>Makes all blocks of a run kept ones.</summary>
    private unsafe bool TryClaim(int first, int blocks, out bool isClear)
    {
        isClear = true;
        for (int block = first; block < first + blocks; block++)
        {
            if (_kept[block])
            {
                isClear = false;
                continue;
            }

            Page* page = _pages.TryClaimLargest((ulong)block << Order);
            if (page == null)
                return false;
            if (!_ram.TryMakePrivate(block))
            {
                _pages.FreeFrozen(page, Order);
                return false;
            }

            Keep(block);
        }

        return true;
    }

    /// <summary>To others it is a block that somebody has one reference to.</summary>
    private unsafe void Keep(int block)
    {
        PageOf(block)->RefCount = 1;
        _kept[block] = true;
        Volatile.Write(ref _keptCount, _keptCount + 1);
    }

    private unsafe void Use(int block, int references)
    {
        Page* page = PageOf(block);
        _kept[block] = false;
        Volatile.Write(ref _keptCount, _keptCount - 1);
        page->RefCount = references;
        page->Type = PageType.LargeKmalloc;
        _slabs.AccountPages(page, 1L << Order, SlabFlags.None);
    }

    private unsafe Page* PageOf(int block) => _slabs.Map.PageOf((ulong)block << Order);

    private unsafe int BlockOf(Page* page) => (int)(_slabs.Map.PfnOf(page) >> Order);
}
