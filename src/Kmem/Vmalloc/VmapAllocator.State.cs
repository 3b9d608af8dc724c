using System.Diagnostics.CodeAnalysis;

namespace Kmem;

/// <content>The state as plain data: checkpoints, and the way a real kernel's state comes in.</content>
internal sealed partial class VmapAllocator
{
    /// <summary>Writes the state down. Nobody may be at work, no purge under way.</summary>
    public unsafe VmapState Capture()
    {
        var free = new List<VmapBlockState>();
        for (VmapArea* block = _free.First; block != null; block = _free.Next(block))
        {
            RbNode* parent = block->Node.Parent;
            ulong? above = parent == null ? null : VmapArea.FromNode(parent)->Start;
            free.Add(new VmapBlockState(
                block->Start, block->End, above, block->Node.IsBlack, block->SubtreeMax, _objects.AddressOf(block)));
        }

        return new VmapState
        {
            Free = free,
            Nodes = _nodes.Select(CaptureNode).ToArray(),
            LazyPages = LazyPages,
            Spare = _spare.Select(spare => spare == 0 ? 0 : _objects.AddressOf((VmapArea*)spare)).ToArray(),
        };
    }

    /// <summary>Replaces the state. Nobody may be at work.</summary>
    /// <param name="state">The new state, of as many nodes and CPUs as this allocator has.</param>
    /// <param name="objectFor">
    /// Finds the object, already allocated from <see cref="Objects"/>, that the state knows by an address; null: new
    /// objects are allocated.
    /// </param>
    /// <exception cref="ArgumentException">The state does not describe an allocator like this one.</exception>
    /// <exception cref="OutOfMemoryException">No memory for the objects.</exception>
    public unsafe void Restore(VmapState state, Func<ulong, nint>? objectFor = null)
    {
        if (state.Nodes.Length != _nodes.Length || state.Spare.Length != _spare.Length)
            throw new ArgumentException("the state is of another number of vmap nodes or CPUs", nameof(state));

        Release();
        if (state.ShapeKnown)
            RestoreTree(state.Free, objectFor);
        else
            state.Free.ForEach(block => AddFree(Place(block.Start, block.End, block.Object, objectFor)));

        long lazy = 0;
        for (int id = 0; id < _nodes.Length; id++)
        {
            VmapNode node = _nodes[id];
            foreach (VmapAreaState area in state.Nodes[id].Busy)
                Require(node.InsertBusy(Place(area, objectFor)), area.Start, "overlaps another busy area");
            foreach (VmapAreaState area in state.Nodes[id].Lazy)
            {
                Require(node.InsertLazy(Place(area, objectFor)), area.Start, "overlaps another lazy area");
                lazy += (long)((area.End - area.Start) >> Pfn.PageShift);
            }

            foreach (VmapAreaState area in state.Nodes[id].Pools.Values.SelectMany(pool => Enumerable.Reverse(pool)))
                Require(node.PutIntoPool(Place(area, objectFor)), area.Start, "is too large for a pool");
        }

        for (int cpu = 0; cpu < _spare.Length; cpu++)
            _spare[cpu] = state.Spare[cpu] == 0 ? 0 : (nint)Place(0, 0, state.Spare[cpu], objectFor);
        _lazyPages = lazy;
    }

    /// <summary>
    /// The areas that a purge under way has set aside in a node; <see cref="Capture"/> leaves them out.
    /// </summary>
    internal unsafe List<VmapAreaState> CapturePurging(VmapNode node) => CaptureTree(node.Purging);

    /// <summary>Puts them back after a <see cref="Restore"/>.</summary>
    internal unsafe void RestorePurging(VmapNode node, List<VmapAreaState> areas)
    {
        foreach (VmapAreaState state in areas)
        {
            VmapArea* area = Place(state, objectFor: null);
            ListHead.AddTail(&node.Purging->List, &area->List);
            _lazyPages += (long)area->Pages;
        }
    }

    private unsafe VmapNodeState CaptureNode(VmapNode node)
    {
        var state = new VmapNodeState { Busy = CaptureTree(node.Busy), Lazy = CaptureTree(node.Lazy) };
        for (int pages = 1; pages <= VmapNode.MaxPoolPages; pages++)
        {
            VmapPool* pool = node.PoolOfPages(pages);
            if (ListHead.IsEmpty(&pool->List))
                continue;

            List<VmapAreaState> areas = state.Pools[pages] = [];
            for (ListHead* entry = pool->List.Next; entry != &pool->List; entry = entry->Next)
                areas.Add(StateOf(VmapArea.FromList(entry)));
        }

        return state;
    }

    private unsafe List<VmapAreaState> CaptureTree(VmapTree* tree)
    {
        var areas = new List<VmapAreaState>();
        for (VmapArea* area = VmapTree.First(tree); area != null; area = VmapTree.Next(tree, area))
            areas.Add(StateOf(area));
        return areas;
    }

    private unsafe VmapAreaState StateOf(VmapArea* area) =>
        new(area->Start, area->End, area->Flags, (nint)area->Vm, _objects.AddressOf(area));

    /// <summary>The cache that the objects of a state belong to: its name is another one if it was merged.</summary>
    private unsafe KmemCache CacheOf(VmapState state)
    {
        Require(state.Free.Count > 0, SpaceStart, "is not there: the free tree is empty");
        ulong first = state.Free[0].Object;
        RequireObject(first);
        return _slabs.CacheOf(_slabs.SlabOf(_slabs.PointerOf(first)));
    }

    private nint RestoredObject(ulong address)
    {
        RequireObject(address);
        return _objects.Restored(address);
    }

    private unsafe void RequireObject(ulong address)
    {
        void* obj = _slabs.PointerOf(address);
        Page* slab = _slabs.SlabOf(obj);
        Require(
            slab != null && _slabs.CacheOf(slab).IsLive(obj), address, "(an address of an object) is no object in use");
    }

    /// <summary>Gives all objects back to the slab.</summary>
    private unsafe void Release()
    {
        ReleaseTree(_free.Tree);
        foreach (VmapNode node in _nodes)
        {
            ReleaseTree(node.Busy);
            ReleaseTree(node.Lazy);
            ReleaseTree(node.Purging);
            for (int pages = 1; pages <= VmapNode.MaxPoolPages; pages++)
                ReleaseList(&node.PoolOfPages(pages)->List);
            node.Clear();
        }

        for (int cpu = 0; cpu < _spare.Length; cpu++)
        {
            _objects.Free((VmapArea*)_spare[cpu]);
            _spare[cpu] = 0;
        }

        _lazyPages = 0;
    }

    private unsafe void ReleaseTree(VmapTree* tree)
    {
        ReleaseList(&tree->List);
        VmapTree.Init(tree);
    }

    private unsafe void ReleaseList(ListHead* list)
    {
        while (!ListHead.IsEmpty(list))
        {
            VmapArea* area = VmapArea.FromList(list->Next);
            ListHead.Remove(&area->List);
            _objects.Free(area);
        }
    }

    /// <summary>Links the blocks as the state says; the values of the subtrees follow from the shape.</summary>
    private unsafe void RestoreTree(List<VmapBlockState> blocks, Func<ulong, nint>? objectFor)
    {
        VmapTree* tree = _free.Tree;
        var byStart = new Dictionary<ulong, nint>(blocks.Count);
        foreach (VmapBlockState state in blocks)
        {
            VmapArea* block = Place(state.Start, state.End, state.Object, objectFor);
            block->Node = default;
            block->SubtreeMax = 0;
            VmapArea* last = VmapTree.Last(tree);
            Require(last == null || last->End <= state.Start, state.Start, "is out of order in the free tree");
            byStart.Add(state.Start, (nint)block);
            ListHead.AddTail(&tree->List, &block->List);
        }

        foreach (VmapBlockState state in blocks)
        {
            var block = (VmapArea*)byStart[state.Start];
            RbNode* parent = null;
            RbNode** link = &tree->Root;
            if (state.Parent is { } above)
            {
                bool known = byStart.TryGetValue(above, out nint found);
                Require(known, state.Start, "has an unknown parent in the free tree");
                parent = &((VmapArea*)found)->Node;
                link = state.Start < above ? &parent->Left : &parent->Right;
            }

            Require(*link == null, state.Start, "has the place of another block in the free tree");
            *link = &block->Node;
            block->Node.Parent = parent;
            block->Node.IsBlack = state.IsBlack;
        }

        for (VmapArea* block = _free.First; block != null; block = _free.Next(block))
            RbTree<LargestBlock>.Propagate(&block->Node);
    }

    private unsafe VmapArea* Place(in VmapAreaState state, Func<ulong, nint>? objectFor)
    {
        VmapArea* area = Place(state.Start, state.End, state.Object, objectFor);
        area->Flags = state.Flags;
        area->Vm = (VmStruct*)state.Vm;
        return area;
    }

    private unsafe VmapArea* Place(ulong start, ulong end, ulong address, Func<ulong, nint>? objectFor)
    {
        if (objectFor == null)
            return NewObject(start, end);

        var area = (VmapArea*)objectFor(address);
        area->Start = start;
        area->End = end;
        return area;
    }

    private static void Require([DoesNotReturnIf(false)] bool holds, ulong start, string what)
    {
        if (!holds)
            throw new ArgumentException($"the area at 0x{start:x} {what}");
    }
}
