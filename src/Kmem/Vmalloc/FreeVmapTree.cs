using System.Diagnostics;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// Free address space: blocks that never touch each other, in a tree in which each node knows the largest block below
/// it. A request gets the lowest address that its search meets; what is given back melts into its neighbours.
/// <code>
///   cut full:        |■■■■■■■■|                 the block's object goes back to the slab
///   cut left edge:   |■■■■|        |            the block shrinks from below
///   cut right edge:  |        |■■■■|            the block shrinks from above
///   cut no edge:     |   |■■■■|    |            the object keeps the right part, a new one gets the left part
/// </code>
/// </summary>
/// <remarks>
/// mm/vmalloc.c, Linux 6.18: find_vmap_lowest_match, va_clip, merge_or_add_vmap_area. Which object survives, and in
/// which order the tree is changed, decides its shape, and the shape decides the answer to requests with more than page
/// alignment: both are the kernel's. The owner holds the lock.
/// </remarks>
internal sealed class FreeVmapTree : IDisposable
{
    private readonly VmapObjects _objects;
    private readonly Action? _assertLocked;
    private unsafe VmapTree* _tree;

    /// <param name="objects">Where blocks come from and go to.</param>
    /// <param name="assertLocked">Fails where the tree must not be changed; asked in debug builds.</param>
    public unsafe FreeVmapTree(VmapObjects objects, Action? assertLocked = null)
    {
        _assertLocked = assertLocked;
        _objects = objects;
        _tree = (VmapTree*)NativeMemory.Alloc((nuint)sizeof(VmapTree));
        VmapTree.Init(_tree);
    }

    public unsafe VmapTree* Tree => _tree;

    public unsafe VmapArea* First => VmapTree.First(_tree);

    public unsafe VmapArea* Next(VmapArea* block) => VmapTree.Next(_tree, block);

    /// <summary>The block below another, or null.</summary>
    public unsafe VmapArea* Previous(VmapArea* block) => VmapTree.Previous(_tree, block);

    public unsafe void Dispose()
    {
        NativeMemory.Free(_tree);
        _tree = null;
    }

    /// <summary>Forgets all blocks; their objects have been dealt with.</summary>
    public unsafe void Clear() => VmapTree.Init(_tree);

    /// <summary>
    /// Finds the block from which a request is served (find_vmap_lowest_match). Up to page alignment it is the lowest
    /// that fits; beyond, a block that is only just large enough is found only if the walk meets it.
    /// </summary>
    /// <returns>The block, or null.</returns>
    public unsafe VmapArea* FindLowest(in VmapRequest request)
    {
        AssertLocked();
        // A block of this length fits whatever its alignment; shorter ones are not looked for.
        ulong range = request.RangeEnd - request.RangeStart;
        ulong length = request.Align <= Pfn.PageSize || range == request.Size
            ? request.Size
            : request.Size + request.Align - 1;
        ulong from = request.RangeStart;
        RbNode* node = _tree->Root;
        while (node != null)
        {
            VmapArea* block = VmapArea.FromNode(node);
            if (LargestBlock.Of(node->Left) >= length && from < block->Start)
            {
                node = node->Left;
                continue;
            }

            if (Fits(block, request, from))
                return block;

            if (LargestBlock.Of(node->Right) >= length)
            {
                node = node->Right;
                continue;
            }

            node = Climb(node, request, length, ref from, out VmapArea* found);
            if (found != null)
                return found;
        }

        return null;
    }

    /// <summary>The address that a block offers to a request, and whether it lies within the range.</summary>
    public static unsafe VmapError Place(VmapArea* block, in VmapRequest request, out ulong start)
    {
        start = AlignUp(Math.Max(block->Start, request.RangeStart), request.Align);
        return start + request.Size > request.RangeEnd ? VmapError.OutOfRange : VmapError.None;
    }

    /// <summary>Cuts a range out of a block (va_clip).</summary>
    /// <param name="block">The block.</param>
    /// <param name="start">First byte of the range.</param>
    /// <param name="size">Bytes.</param>
    /// <param name="spare">This CPU's spare object, taken if the block is split in two.</param>
    public unsafe VmapError Cut(VmapArea* block, ulong start, ulong size, ref nint spare)
    {
        AssertLocked();
        ulong end = start + size;
        if (start < block->Start || end > block->End || end < start)
            return VmapError.Invalid;

        if (start == block->Start && end == block->End)
        {
            VmapTree.Remove<LargestBlock>(_tree, block);
            _objects.Free(block);
            return VmapError.None;
        }

        if (start == block->Start)
        {
            block->Start = end;
        }
        else if (end == block->End)
        {
            block->End = start;
        }
        else
        {
            var left = (VmapArea*)spare;
            spare = 0;
            if (left == null)
                left = _objects.Alloc(Gfp.NoWait);
            if (left == null)
                return VmapError.NoMemory;

            left->Start = block->Start;
            left->End = start;
            block->Start = end;
            RbTree<LargestBlock>.Propagate(&block->Node);
            InsertBefore(block, left);
            return VmapError.None;
        }

        RbTree<LargestBlock>.Propagate(&block->Node);
        return VmapError.None;
    }

    /// <summary>
    /// Gives a range back (merge_or_add_vmap_area). The object is used up: it becomes a block, or goes to the slab
    /// when its range is added to a neighbour.
    /// </summary>
    /// <returns>False, and the range is lost, if it overlaps free space: something was freed twice.</returns>
    public unsafe bool Merge(VmapArea* area)
    {
        AssertLocked();
        if (!VmapTree.FindPlace(_tree, area, out RbNode* parent, out RbNode** link))
            return false;

        ListHead* next = NextEntry(parent, link);
        ListHead* previous = next->Prev;
        bool merged = false;
        if (next != &_tree->List && VmapArea.FromList(next)->Start == area->End)
        {
            VmapArea* successor = VmapArea.FromList(next);
            successor->Start = area->Start;
            _objects.Free(area);
            area = successor;
            merged = true;
        }

        if (previous != &_tree->List && VmapArea.FromList(previous)->End == area->Start)
        {
            VmapArea* predecessor = VmapArea.FromList(previous);
            if (merged)
                VmapTree.Remove<LargestBlock>(_tree, area);
            predecessor->End = area->End;
            _objects.Free(area);
            area = predecessor;
            merged = true;
        }

        if (merged)
            RbTree<LargestBlock>.Propagate(&area->Node);
        else
            Link(area, parent, link);
        return true;
    }

    /// <summary>Adds a block that touches no other, without looking.</summary>
    public unsafe void Add(VmapArea* block)
    {
        AssertLocked();
        bool placed = VmapTree.FindPlace(_tree, block, out RbNode* parent, out RbNode** link);
        Bug.On(!placed, "free address space overlaps");
        Link(block, parent, link);
    }

    /// <summary>Takes a whole block out; the caller owns its object.</summary>
    public unsafe void Remove(VmapArea* block)
    {
        AssertLocked();
        VmapTree.Remove<LargestBlock>(_tree, block);
    }

    /// <summary>The block with the highest start at or below an address, or null (pvm_find_va_enclose_addr).</summary>
    public unsafe VmapArea* FindAtOrBelow(ulong address)
    {
        VmapArea* best = null;
        for (RbNode* node = _tree->Root; node != null;)
        {
            VmapArea* at = VmapArea.FromNode(node);
            if (at->Start <= address)
            {
                best = at;
                node = node->Right;
            }
            else
            {
                node = node->Left;
            }
        }

        return best;
    }

    public static ulong AlignUp(ulong address, ulong align) => (address + align - 1) & ~(align - 1);

    [Conditional("DEBUG")]
    private void AssertLocked() => _assertLocked?.Invoke();

    /// <summary>
    /// From a node below which nothing is left: the nearest ancestor that fits, or the right child of one below which
    /// something may. Raising <paramref name="from"/> keeps the walk from going down the same way again.
    /// </summary>
    private static unsafe RbNode* Climb(
        RbNode* node, in VmapRequest request, ulong length, ref ulong from, out VmapArea* found)
    {
        found = null;
        while ((node = node->Parent) != null)
        {
            VmapArea* block = VmapArea.FromNode(node);
            if (Fits(block, request, from))
            {
                found = block;
                return node;
            }

            if (LargestBlock.Of(node->Right) >= length && from <= block->Start)
            {
                from = block->Start + 1;
                return node->Right;
            }
        }

        return null;
    }

    private static unsafe bool Fits(VmapArea* block, in VmapRequest request, ulong from)
    {
        ulong start = AlignUp(Math.Max(block->Start, from), request.Align);
        ulong end = start + request.Size;
        return end > start && start >= from && end <= block->End;
    }

    private unsafe ListHead* NextEntry(RbNode* parent, RbNode** link)
    {
        if (parent == null)
            return &_tree->List;
        ListHead* entry = &VmapArea.FromNode(parent)->List;
        return link == &parent->Left ? entry : entry->Next;
    }

    /// <summary>A block becomes the one right below another.</summary>
    private unsafe void InsertBefore(VmapArea* block, VmapArea* left)
    {
        RbNode* parent = &block->Node;
        RbNode** link = &parent->Left;
        while (*link != null)
        {
            parent = *link;
            link = &parent->Right;
        }

        Link(left, parent, link);
    }

    private unsafe void Link(VmapArea* block, RbNode* parent, RbNode** link)
    {
        block->SubtreeMax = 0;
        VmapTree.InsertAt<LargestBlock>(_tree, block, parent, link);
    }
}
