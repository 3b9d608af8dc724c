namespace Kmem;

/// <summary>Checks the rules of the vmalloc address space. Reads only; nobody may be at work.</summary>
internal sealed class VmapValidator
{
    private readonly VmapAllocator _vmap;
    private readonly List<BrokenRule> _broken = [];
    private readonly List<VmapRange> _ranges = [];      // everything that has an owner, in any order

    private VmapValidator(VmapAllocator vmap) => _vmap = vmap;

    public static IReadOnlyList<BrokenRule> Run(VmapAllocator vmap)
    {
        var validator = new VmapValidator(vmap);
        validator.CheckFree();
        foreach (VmapNode node in vmap.Nodes)
            validator.CheckNode(node);
        validator.CheckCover();
        return validator._broken;
    }

    private unsafe void CheckFree()
    {
        VmapTree* tree = _vmap.Free.Tree;
        CheckTree("free", tree);
        ulong end = 0;
        for (VmapArea* block = VmapTree.First(tree); block != null; block = VmapTree.Next(tree, block))
        {
            Expect(block->Start != end, "VMAP-03", $"free 0x{block->Start:x}: touches the block below");
            ulong largest = Math.Max(
                block->Size, Math.Max(LargestBlock.Of(block->Node.Left), LargestBlock.Of(block->Node.Right)));
            Expect(
                block->SubtreeMax == largest,
                "VMAP-04",
                $"free 0x{block->Start:x}: largest block of the subtree is 0x{largest:x}, not 0x{block->SubtreeMax:x}");
            end = block->End;
        }
    }

    private unsafe void CheckNode(VmapNode node)
    {
        CheckTree($"busy {node.Id}", node.Busy);
        CheckTree($"lazy {node.Id}", node.Lazy);
        for (VmapArea* area = VmapTree.First(node.Busy); area != null; area = VmapTree.Next(node.Busy, area))
        {
            Expect(
                _vmap.NodeOf(area->Start) == node,
                "VMAP-06",
                $"busy 0x{area->Start:x}: in the tree of node {node.Id}, which is not that of its address");
        }

        for (int pages = 1; pages <= VmapNode.MaxPoolPages; pages++)
        {
            VmapPool* pool = node.PoolOfPages(pages);
            int length = 0;
            for (ListHead* entry = pool->List.Next; entry != &pool->List; entry = entry->Next, length++)
            {
                VmapArea* area = VmapArea.FromList(entry);
                Expect(
                    area->Pages == (ulong)pages,
                    "VMAP-07",
                    $"pool 0x{area->Start:x}: {area->Pages} pages in the pool of {pages}");
                _ranges.Add(new VmapRange(area->Start, area->End));
            }

            Expect(
                length == pool->Length,
                "VMAP-08",
                $"pool {node.Id}/{pages}: {length} areas, length says {pool->Length}");
        }
    }

    /// <summary>The red-black rules, the order, and that tree and list hold the same.</summary>
    private unsafe void CheckTree(string name, VmapTree* tree)
    {
        Expect(tree->Root == null || tree->Root->IsBlack, "RB-01", $"{name}: the root is red");
        int blackToEnd = -1;
        VmapArea* expected = VmapTree.First(tree);
        ulong end = 0;
        for (RbNode* at = RbWalk.First(tree->Root); at != null; at = RbWalk.Next(at))
        {
            VmapArea* area = VmapArea.FromNode(at);
            Expect(area == expected, "VMAP-01", $"{name} 0x{area->Start:x}: tree and list differ");
            if (area != expected)
                return;

            Expect(
                area->Start < area->End && area->Start >= end,
                "VMAP-02",
                $"{name} 0x{area->Start:x}: empty or out of order");
            Expect(
                at->IsBlack || at->Parent == null || at->Parent->IsBlack,
                "RB-02",
                $"{name} 0x{area->Start:x}: red below red");
            if (at->Left == null || at->Right == null)
            {
                int black = RbWalk.BlackDepth(at);
                blackToEnd = blackToEnd < 0 ? black : blackToEnd;
                Expect(
                    black == blackToEnd,
                    "RB-03",
                    $"{name} 0x{area->Start:x}: {black} black nodes above a gap, elsewhere {blackToEnd}");
            }

            _ranges.Add(new VmapRange(area->Start, area->End));
            end = area->End;
            expected = VmapTree.Next(tree, area);
        }

        Expect(expected == null, "VMAP-01", $"{name}: the list goes on after the tree");
    }

    /// <summary>Every address has exactly one owner.</summary>
    private void CheckCover()
    {
        _ranges.Sort((a, b) => a.Start.CompareTo(b.Start));
        ulong end = VmapAllocator.SpaceStart;
        foreach (VmapRange range in _ranges)
        {
            Expect(
                range.Start == end,
                "VMAP-05",
                $"0x{end:x}-0x{range.Start:x}: {(range.Start > end ? "belongs to nobody" : "belongs to two")}");
            end = range.End;
        }

        Expect(end == VmapAllocator.SpaceEnd, "VMAP-05", $"the space ends at 0x{end:x}");
    }

    private void Expect(bool holds, string id, string detail)
    {
        if (!holds && _broken.Count < 100)
            _broken.Add(new BrokenRule(id, detail));
    }
}
