using System.Globalization;
using System.Numerics;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// vm_map_ram: mappings for a short time, up to 64 pages each cut from blocks of 4 MiB that belong to CPUs
/// (mm/vmalloc.c, Linux 6.18).
/// <code>
///   queue of CPU 0 ─▶ [block] ─▶ [block] ─▶          a block:  |used|dirty|dirty|used|········ free ········|
///   queue of CPU 1 ─▶ [block] ─▶                                 slots are cut from the left ─▶ and never reused
///
///   index (address / 4 MiB) mod CPUs ─▶ { block number ─▶ block }         finds the block of an address
/// </code>
/// A slot has 2^n pages. When all pages of a block are dirty the block is freed as any area; a purge retires blocks of
/// which nothing is used. So unmapping needs no flush: the addresses come back in 4 MiB at a time. More than 64 pages
/// are an area of their own, without a guard page.
/// </summary>
/// <remarks>Thread-safe; everything may sleep.</remarks>
internal sealed class VmapBlocks
{
    /// <summary>Pages of the largest mapping that comes from a block (VMAP_MAX_ALLOC).</summary>
    public const int MaxAlloc = 64;

    /// <summary>Pages of a block (VMAP_BBMAP_BITS): 1024 for up to 2048 CPUs.</summary>
    public const int Bits = 1024;

    /// <summary>Bytes of a block, and its alignment (VMAP_BLOCK_SIZE).</summary>
    public const ulong BlockBytes = (ulong)Bits << Pfn.PageShift;

    private readonly VmallocAllocator _vmalloc;
    private readonly Queue[] _queues;
    private readonly Dictionary<ulong, Block>[] _index;

    public VmapBlocks(VmallocAllocator vmalloc)
    {
        _vmalloc = vmalloc;
        int cpus = vmalloc.Cpus.Count;
        _queues = new Queue[cpus];
        _index = new Dictionary<ulong, Block>[cpus];
        for (int cpu = 0; cpu < cpus; cpu++)
        {
            _queues[cpu] = new Queue();
            _index[cpu] = [];
        }
    }

    /// <summary>All blocks, for checks. Nobody may be at work.</summary>
    public IEnumerable<Block> All => _index.SelectMany(shard => shard.Values);

    /// <summary>The queue of a CPU, from the head, for tests.</summary>
    public IReadOnlyList<Block> QueueOf(int cpu) => _queues[cpu].Blocks;

    /// <summary>Shows frames for a short time (vm_map_ram).</summary>
    /// <returns>The address; null if memory, addresses, tables or mappings ran out.</returns>
    public unsafe void* Map(ReadOnlySpan<Pfn> frames)
    {
        ulong bytes = (ulong)frames.Length << Pfn.PageShift;
        ulong va = frames.Length <= MaxAlloc ? TakeSlot(frames.Length) : _vmalloc.ReserveRam(bytes);
        if (va == 0)
            return null;
        if (_vmalloc.ShowFrames(va, frames, bytes))
            return _vmalloc.PointerOf(va);

        Unmap(va, frames.Length);
        return null;
    }

    /// <summary>Ends a mapping (vm_unmap_ram).</summary>
    /// <exception cref="KernelBugException">No mapping of so many pages starts there. Nothing was changed.</exception>
    public void Unmap(ulong va, int pages)
    {
        if (pages > MaxAlloc)
            _vmalloc.FreeRam(va, pages);
        else
            FreeSlot(va, pages);
    }

    /// <summary>
    /// Retires the blocks of which nothing is in use (purge_fragmented_blocks): all of them, or those with less than a
    /// quarter left. In the others unmapped pages become unreachable.
    /// </summary>
    /// <returns>Whether there were such pages; the window was widened to cover them.</returns>
    public unsafe bool PurgeFragmented(bool force, ref ulong start, ref ulong end)
    {
        var retired = new List<Block>();
        bool dirty = false;
        for (int cpu = 0; cpu < _queues.Length; cpu++)
        {
            // An allocation that failed looks at the queues only: they hold the blocks that can still be cut.
            foreach (Block block in force ? Snapshot(_queues[cpu]) : Snapshot(_index[cpu]))
            {
                Queue owner = _queues[block.Cpu];
                SimPoint.Gate(owner.Gate);
                lock (owner.Gate)
                {
                    VmapBlock* state = block.State;
                    if (block.Freed)
                        continue;
                    if (state->Free + state->Dirty == Bits && state->Dirty != Bits && (force || state->Free < Bits / 4))
                    {
                        owner.Blocks.Remove(block);
                        state->Free = 0;
                        state->Dirty = Bits;
                        state->DirtyMin = 0;
                        state->DirtyMax = Bits;
                        block.Freed = true;
                        retired.Add(block);
                    }
                    else if (!force && state->DirtyMax != 0 && state->Dirty != Bits)
                    {
                        dirty = true;
                        FlushDirty(block, ref start, ref end);
                    }
                }
            }
        }

        foreach (Block block in retired)
            FreeBlock(block);
        return dirty;
    }

    private static int OrderOf(int pages) => pages <= 1 ? 0 : BitOperations.Log2((uint)pages - 1) + 1;

    private static List<Block> Snapshot(Queue queue)
    {
        SimPoint.Gate(queue.Gate);
        lock (queue.Gate)
            return [.. queue.Blocks];
    }

    /// <summary>The blocks of a shard in the order of their numbers, as an xarray has them.</summary>
    private static List<Block> Snapshot(Dictionary<ulong, Block> shard)
    {
        lock (shard)
            return [.. shard.OrderBy(entry => entry.Key).Select(entry => entry.Value)];
    }

    /// <summary>vb_alloc.</summary>
    private unsafe ulong TakeSlot(int pages)
    {
        int order = OrderOf(pages);
        Queue queue = _queues[_vmalloc.Cpus.CurrentCpu];
        SimPoint.Gate(queue.Gate);
        lock (queue.Gate)
        {
            foreach (Block block in queue.Blocks)
            {
                if (block.State->Free >= 1UL << order)
                    return CutLocked(queue, block, pages, order);
            }
        }

        return NewBlock(pages, order);
    }

    /// <summary>new_vmap_block: the description, the addresses, the index; at last the queue.</summary>
    private unsafe ulong NewBlock(int pages, int order)
    {
        int cpu = _vmalloc.Cpus.CurrentCpu;
        VmapBlock* state = _vmalloc.NewBlockState();
        if (state == null)
            return 0;

        VmapArea* area = _vmalloc.ReserveBlock();
        if (area == null)
        {
            _vmalloc.FreeBlockState(state, afterReaders: false);
            return 0;
        }

        state->Area = area;
        state->Free = Bits;
        state->DirtyMin = Bits;
        state->Cpu = (uint)cpu;
        var block = new Block(state, area->Start, cpu);
        Dictionary<ulong, Block> shard = ShardOf(block.Start);
        lock (shard)
            shard.Add(NumberOf(block.Start), block);
        Queue queue = _queues[cpu];
        SimPoint.Gate(queue.Gate);
        lock (queue.Gate)
        {
            queue.Blocks.Add(block);
            return CutLocked(queue, block, pages, order);
        }
    }

    private static unsafe ulong CutLocked(Queue queue, Block block, int pages, int order)
    {
        VmapBlock* state = block.State;
        int at = Bits - (int)state->Free;
        state->Free -= 1UL << order;
        state->SetUsed(at, 1 << order, used: true);
        block.Slots[at] = (byte)pages;
        if (state->Free == 0)
            queue.Blocks.Remove(block);
        return block.Start + ((ulong)at << Pfn.PageShift);
    }

    /// <summary>vb_free.</summary>
    private unsafe void FreeSlot(ulong va, int pages)
    {
        Block? block = BlockOf(va);
        int at = (int)((va & (BlockBytes - 1)) >> Pfn.PageShift);
        if (block == null)
            _vmalloc.ThrowBadUnmapRam(va, pages, "no block of vm_map_ram is there");

        int order = OrderOf(pages);
        bool empty;
        SimPoint.Gate(_queues[block.Cpu].Gate);
        lock (_queues[block.Cpu].Gate)
        {
            int mapped = block.Freed ? 0 : block.Slots[at];
            if (mapped != pages)
            {
                _vmalloc.ThrowBadUnmapRam(va, pages, mapped == 0
                    ? "no mapping starts there, or it was unmapped already"
                    : $"{mapped} pages were mapped there");
            }

            VmapBlock* state = block.State;
            block.Slots[at] = 0;
            state->SetUsed(at, 1 << order, used: false);
            _vmalloc.UnmapTables(va, (ulong)pages);
            state->DirtyMin = Math.Min(state->DirtyMin, (ulong)at);
            state->DirtyMax = Math.Max(state->DirtyMax, (ulong)at + (1UL << order));
            state->Dirty += 1UL << order;
            empty = state->Dirty == Bits;
            block.Freed |= empty;
        }

        if (empty)
            FreeBlock(block);
    }

    /// <summary>free_vmap_block: its addresses are lazily free, its description goes after a grace period.</summary>
    private unsafe void FreeBlock(Block block)
    {
        Dictionary<ulong, Block> shard = ShardOf(block.Start);
        lock (shard)
            shard.Remove(NumberOf(block.Start));
        _vmalloc.FreeBlockArea(block.Start);
        _vmalloc.FreeBlockState(block.State, afterReaders: true);
    }

    /// <summary>
    /// What was unmapped since the last time faults from now on. In the window between the first and the last such
    /// page others may be in use, so each run of pages is dealt with alone.
    /// </summary>
    private unsafe void FlushDirty(Block block, ref ulong start, ref ulong end)
    {
        VmapBlock* state = block.State;
        start = Math.Min(start, block.Start + (state->DirtyMin << Pfn.PageShift));
        end = Math.Max(end, block.Start + (state->DirtyMax << Pfn.PageShift));
        for (int at = (int)state->DirtyMin; at < (int)state->DirtyMax;)
        {
            int run = 0;
            while (at + run < (int)state->DirtyMax && !state->IsUsed(at + run))
                run++;
            if (run > 0)
                _vmalloc.Hide(block.Start + ((ulong)at << Pfn.PageShift), (ulong)run << Pfn.PageShift);
            at += Math.Max(run, 1);
        }

        state->DirtyMin = Bits;
        state->DirtyMax = 0;
    }

    private Block? BlockOf(ulong va)
    {
        Dictionary<ulong, Block> shard = ShardOf(va);
        lock (shard)
            return shard.GetValueOrDefault(NumberOf(va));
    }

    private Dictionary<ulong, Block> ShardOf(ulong va) => _index[(int)(va / BlockBytes % (ulong)_index.Length)];

    /// <summary>addr_to_vb_idx: counted from the block in which the vmalloc space begins.</summary>
    private ulong NumberOf(ulong va) => (va - (_vmalloc.Vmap.Start & ~(BlockBytes - 1))) / BlockBytes;

    /// <summary>A block as its users see it.</summary>
    internal sealed class Block
    {
        public unsafe Block(VmapBlock* state, ulong start, int cpu)
        {
            State = state;
            Start = start;
            Cpu = cpu;
        }

        public unsafe VmapBlock* State { get; }

        public ulong Start { get; }

        public int Cpu { get; }

        /// <summary>Pages asked for by the mapping that starts at a page; 0 where none starts.</summary>
        public byte[] Slots { get; } = new byte[Bits];

        /// <summary>Retired or used up, and on its way out.</summary>
        public bool Freed { get; set; }
    }

    /// <summary>The blocks of a CPU that can still be cut (vmap_block_queue).</summary>
    private sealed class Queue
    {
        /// <summary>Also guards the content of the CPU's blocks.</summary>
        public Lock Gate { get; } = new();

        public List<Block> Blocks { get; } = [];
    }
}

/// <summary>
/// What a block of vm_map_ram is (<c>struct vmap_block</c>, mm/vmalloc.c, Linux 6.18), from kmalloc-256, in the
/// kernel's layout. Pages are counted, not bytes.
/// <code>
///   off   0  lock        off  32  used bitmap, 1024 bits     off 176  queue link    off 208  purge link
///   off   8  Area        off 160  DirtyMin                   off 192  rcu head      off 224  Cpu
///   off  16  Free        off 168  DirtyMax
///   off  24  Dirty
/// </code>
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = SizeInBytes)]
internal struct VmapBlock
{
    public const int SizeInBytes = 232;

    [FieldOffset(8)]
    public unsafe VmapArea* Area;

    /// <summary>Pages not cut yet.</summary>
    [FieldOffset(16)]
    public ulong Free;

    /// <summary>Pages cut and unmapped again.</summary>
    [FieldOffset(24)]
    public ulong Dirty;

    [FieldOffset(32)]
    private unsafe fixed ulong _used[VmapBlocks.Bits / 64];

    /// <summary>First page unmapped since the last flush; 1024 if there is none.</summary>
    [FieldOffset(160)]
    public ulong DirtyMin;

    /// <summary>End of those pages; 0 if there are none.</summary>
    [FieldOffset(168)]
    public ulong DirtyMax;

    [FieldOffset(224)]
    public uint Cpu;

    public readonly unsafe bool IsUsed(int page) => (_used[page / 64] >> (page % 64) & 1) != 0;

    public unsafe void SetUsed(int first, int count, bool used)
    {
        for (int page = first; page < first + count; page++)
        {
            if (used)
                _used[page / 64] |= 1UL << (page % 64);
            else
                _used[page / 64] &= ~(1UL << (page % 64));
        }
    }

    public readonly int CountUsed()
    {
        int count = 0;
        for (int page = 0; page < VmapBlocks.Bits; page++)
            count += IsUsed(page) ? 1 : 0;
        return count;
    }
}
