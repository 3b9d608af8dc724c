namespace Kmem;

/// <summary>
/// Areas that do not overlap, ordered by address, twice: as a tree to search and as a list to walk
/// (<c>struct rb_list</c>, mm/vmalloc.c, Linux 6.18).
/// <code>
///   Root ─▶      [5–7)                     List ⇄ [1–3) ⇄ [5–7) ⇄ [8–9) ⇄ List
///               ╱     ╲
///           [1–3)     [8–9)
/// </code>
/// Lives in native memory, because the list's ends point to it. The owner holds the lock.
/// </summary>
internal struct VmapTree
{
    public unsafe RbNode* Root;
    public ListHead List;

    public static unsafe void Init(VmapTree* tree)
    {
        tree->Root = null;
        ListHead.Init(&tree->List);
    }

    /// <summary>Adds an area.</summary>
    /// <returns>False, and nothing is changed, if it overlaps one that is there.</returns>
    public static unsafe bool Insert<TAugment>(VmapTree* tree, VmapArea* area)
        where TAugment : struct, IRbAugment
    {
        if (!FindPlace(tree, area, out RbNode* parent, out RbNode** link))
            return false;

        InsertAt<TAugment>(tree, area, parent, link);
        return true;
    }

    /// <summary>Adds an area at the place that <see cref="FindPlace"/> told.</summary>
    public static unsafe void InsertAt<TAugment>(VmapTree* tree, VmapArea* area, RbNode* parent, RbNode** link)
        where TAugment : struct, IRbAugment
    {
        if (parent == null)
            ListHead.AddHead(&tree->List, &area->List);
        else if (link == &parent->Left)
            ListHead.AddTail(&VmapArea.FromNode(parent)->List, &area->List);
        else
            ListHead.AddHead(&VmapArea.FromNode(parent)->List, &area->List);
        RbTree<TAugment>.Insert(&tree->Root, parent, link, &area->Node);
    }

    public static unsafe void Remove<TAugment>(VmapTree* tree, VmapArea* area)
        where TAugment : struct, IRbAugment
    {
        RbTree<TAugment>.Erase(&tree->Root, &area->Node);
        ListHead.Remove(&area->List);
    }

    /// <summary>The missing child where an area belongs; false if it overlaps one that is there.</summary>
    public static unsafe bool FindPlace(VmapTree* tree, VmapArea* area, out RbNode* parent, out RbNode** link)
    {
        parent = null;
        link = &tree->Root;
        while (*link != null)
        {
            parent = *link;
            VmapArea* at = VmapArea.FromNode(parent);
            if (area->End <= at->Start)
                link = &parent->Left;
            else if (area->Start >= at->End)
                link = &parent->Right;
            else
                return false;
        }

        return true;
    }

    /// <summary>The area that contains an address, or null.</summary>
    public static unsafe VmapArea* Find(VmapTree* tree, ulong address)
    {
        for (RbNode* node = tree->Root; node != null;)
        {
            VmapArea* at = VmapArea.FromNode(node);
            if (address < at->Start)
                node = node->Left;
            else if (address >= at->End)
                node = node->Right;
            else
                return at;
        }

        return null;
    }

    /// <summary>The lowest area that ends above an address, or null.</summary>
    public static unsafe VmapArea* FindFrom(VmapTree* tree, ulong address)
    {
        VmapArea* best = null;
        for (RbNode* node = tree->Root; node != null;)
        {
            VmapArea* at = VmapArea.FromNode(node);
            if (at->End > address)
            {
                best = at;
                node = node->Left;
            }
            else
            {
                node = node->Right;
            }
        }

        return best;
    }

    public static unsafe VmapArea* First(VmapTree* tree) => Next(tree, &tree->List);

    public static unsafe VmapArea* Last(VmapTree* tree) => Previous(tree, &tree->List);

    public static unsafe VmapArea* Next(VmapTree* tree, VmapArea* area) => Next(tree, &area->List);

    public static unsafe VmapArea* Previous(VmapTree* tree, VmapArea* area) => Previous(tree, &area->List);

    private static unsafe VmapArea* Previous(VmapTree* tree, ListHead* entry)
    {
        entry = entry->Prev;
        return entry == &tree->List ? null : VmapArea.FromList(entry);
    }

    private static unsafe VmapArea* Next(VmapTree* tree, ListHead* entry)
    {
        entry = entry->Next;
        return entry == &tree->List ? null : VmapArea.FromList(entry);
    }
}

/// <summary>Each node of the free tree knows the largest block of its subtree (free_vmap_area_rb_augment_cb).</summary>
internal readonly struct LargestBlock : IRbAugment
{
    public static unsafe ulong Of(RbNode* node) => node == null ? 0 : VmapArea.FromNode(node)->SubtreeMax;

    public static unsafe bool Update(RbNode* node)
    {
        VmapArea* area = VmapArea.FromNode(node);
        ulong largest = Math.Max(area->Size, Math.Max(Of(node->Left), Of(node->Right)));
        if (area->SubtreeMax == largest)
            return false;

        area->SubtreeMax = largest;
        return true;
    }
}
