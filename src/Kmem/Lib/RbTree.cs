using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kmem;

/// <summary>
/// A node of a red-black tree, embedded in the object that the tree orders (<c>struct rb_node</c>, 24 bytes). Parent
/// and colour share a word:
/// <code>
///   bits 63–3   address of the parent, 0 at the root
///   bit  0      colour: 1 black, 0 red
/// </code>
/// </summary>
[StructLayout(LayoutKind.Sequential)]
internal struct RbNode
{
    private const ulong BlackBit = 1;

    private ulong _parentColor;
    public unsafe RbNode* Left;
    public unsafe RbNode* Right;

    public unsafe RbNode* Parent
    {
        readonly get => (RbNode*)(_parentColor & ~BlackBit);
        set => _parentColor = (ulong)value | (_parentColor & BlackBit);
    }

    public bool IsBlack
    {
        readonly get => (_parentColor & BlackBit) != 0;
        set => _parentColor = (_parentColor & ~BlackBit) | (value ? BlackBit : 0);
    }
}

/// <summary>What a tree keeps in each node about the node's subtree.</summary>
internal interface IRbAugment
{
    /// <summary>Computes a node's value from the node and its children.</summary>
    /// <returns>Whether the value changed.</returns>
    static abstract unsafe bool Update(RbNode* node);
}

/// <summary>Keeps nothing.</summary>
internal readonly struct NoAugment : IRbAugment
{
    public static unsafe bool Update(RbNode* node) => false;
}

/// <summary>
/// Insertion and removal in a red-black tree of embedded nodes, with the kernel's results: from the same tree the same
/// operations give the same shape and the same colours (lib/rbtree.c, include/linux/rbtree_augmented.h, Linux 6.18).
/// <code>
///   rotate P to the left          P              w
///   (w = its right child):       / \            / \
///                               a   w    ─▶    P   c      in-order sequence unchanged: a P b w c
///                                  / \        / \
///                                 b   c      a   b
/// </code>
/// </summary>
/// <remarks>
/// Rules: the root is black, a red node has no red child, every way from the root to a missing child has the same
/// number of black nodes. The caller finds the place of a node and holds the lock: nothing here compares keys. The
/// tree owns no memory. A missing child counts as black.
/// </remarks>
/// <typeparam name="TAugment">What each node knows about its subtree.</typeparam>
internal static class RbTree<TAugment>
    where TAugment : struct, IRbAugment
{
    /// <summary>Links a node in place of a missing child and restores the rules.</summary>
    /// <param name="root">The root's link.</param>
    /// <param name="parent">The node that gets a child; null in an empty tree.</param>
    /// <param name="link">The parent's empty link, or <paramref name="root"/>.</param>
    /// <param name="node">The new node.</param>
    public static unsafe void Insert(RbNode** root, RbNode* parent, RbNode** link, RbNode* node)
    {
        Bug.OnVm(*link != null, "a tree node is linked where another one is");
        *node = default;            // red, no children
        node->Parent = parent;
        *link = node;
        TAugment.Update(node);
        Propagate(parent);
        BalanceInserted(root, node);
    }

    /// <summary>Takes a node out and restores the rules. The node itself is not written to.</summary>
    public static unsafe void Erase(RbNode** root, RbNode* node)
    {
        RbNode* deficient;          // the parent of a missing child that lacks one black node
        RbNode* parent = node->Parent;
        if (node->Left != null && node->Right != null)
        {
            deficient = EraseInner(root, node);
        }
        else
        {
            RbNode* child = node->Left != null ? node->Left : node->Right;
            ReplaceChild(root, parent, node, child);
            if (child != null)
            {
                child->Parent = parent;
                child->IsBlack = node->IsBlack;
            }

            deficient = child == null && node->IsBlack ? parent : null;
            Propagate(parent);
        }

        if (deficient != null)
            BalanceErased(root, deficient);
    }

    /// <summary>A node's own value changed: brings its ancestors' values up to date.</summary>
    public static unsafe void Propagate(RbNode* node)
    {
        while (node != null && TAugment.Update(node))
            node = node->Parent;
    }

    private static unsafe void BalanceInserted(RbNode** root, RbNode* node)
    {
        while (true)                // node is red; each round is two levels higher
        {
            RbNode* parent = node->Parent;
            if (parent == null)
            {
                node->IsBlack = true;
                return;
            }

            if (parent->IsBlack)
                return;

            RbNode* grandparent = parent->Parent;
            bool onLeft = grandparent->Left == parent;
            RbNode* uncle = onLeft ? grandparent->Right : grandparent->Left;
            if (!IsBlackOrNone(uncle))
            {
                uncle->IsBlack = true;
                parent->IsBlack = true;
                grandparent->IsBlack = false;
                node = grandparent;
                continue;
            }

            if (node == (onLeft ? parent->Right : parent->Left))
            {
                Rotate(root, parent, onLeft);
                parent = node;
            }

            Rotate(root, grandparent, !onLeft);
            parent->IsBlack = true;
            grandparent->IsBlack = false;
            return;
        }
    }

    /// <summary>A node with two children: its successor takes its place.</summary>
    private static unsafe RbNode* EraseInner(RbNode** root, RbNode* node)
    {
        RbNode* successor = node->Right;
        while (successor->Left != null)
            successor = successor->Left;

        RbNode* child = successor->Right;
        RbNode* gap = successor == node->Right ? successor : successor->Parent;
        if (gap != successor)
        {
            gap->Left = child;
            successor->Right = node->Right;
            node->Right->Parent = successor;
        }

        successor->Left = node->Left;
        node->Left->Parent = successor;
        ReplaceChild(root, node->Parent, node, successor);
        bool wasBlack = successor->IsBlack;
        successor->Parent = node->Parent;
        successor->IsBlack = node->IsBlack;
        if (child != null)
        {
            child->Parent = gap;
            child->IsBlack = true;
        }

        // The successor's value is that of its old place: everything below it must be right before it is computed.
        for (RbNode* at = gap; at != successor; at = at->Parent)
            TAugment.Update(at);
        TAugment.Update(successor);
        Propagate(successor->Parent);
        return child == null && wasBlack ? gap : null;
    }

    private static unsafe void BalanceErased(RbNode** root, RbNode* parent)
    {
        RbNode* node = null;        // the child of parent whose ways lack one black node
        while (parent != null)      // each round is one level higher
        {
            bool onRight = parent->Right == node;
            RbNode* sibling = onRight ? parent->Left : parent->Right;
            if (!sibling->IsBlack)
            {
                Rotate(root, parent, !onRight);
                sibling->IsBlack = true;
                parent->IsBlack = false;
                sibling = onRight ? parent->Left : parent->Right;
            }

            RbNode* far = onRight ? sibling->Left : sibling->Right;
            RbNode* near = onRight ? sibling->Right : sibling->Left;
            if (IsBlackOrNone(far))
            {
                if (IsBlackOrNone(near))
                {
                    sibling->IsBlack = false;
                    if (!parent->IsBlack)
                    {
                        parent->IsBlack = true;
                        return;
                    }

                    node = parent;
                    parent = node->Parent;
                    continue;
                }

                Rotate(root, sibling, onRight);
                near->IsBlack = true;
                sibling->IsBlack = false;
                far = sibling;
                sibling = near;
            }

            Rotate(root, parent, !onRight);
            sibling->IsBlack = parent->IsBlack;
            parent->IsBlack = true;
            far->IsBlack = true;
            return;
        }
    }

    /// <summary>Rotates a node down to one side; its child on the other side takes its place. Colours stay.</summary>
    private static unsafe void Rotate(RbNode** root, RbNode* down, bool toLeft)
    {
        RbNode* up = toLeft ? down->Right : down->Left;
        RbNode* inner = toLeft ? up->Left : up->Right;
        ReplaceChild(root, down->Parent, down, up);
        up->Parent = down->Parent;
        down->Parent = up;
        if (toLeft)
        {
            up->Left = down;
            down->Right = inner;
        }
        else
        {
            up->Right = down;
            down->Left = inner;
        }

        if (inner != null)
            inner->Parent = down;
        TAugment.Update(down);
        TAugment.Update(up);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static unsafe void ReplaceChild(RbNode** root, RbNode* parent, RbNode* old, RbNode* replacement)
    {
        if (parent == null)
            *root = replacement;
        else if (parent->Left == old)
            parent->Left = replacement;
        else
            parent->Right = replacement;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static unsafe bool IsBlackOrNone(RbNode* node) => node == null || node->IsBlack;
}

/// <summary>Walking any tree, for checks and reports.</summary>
internal static class RbWalk
{
    /// <summary>The leftmost node, or null.</summary>
    public static unsafe RbNode* First(RbNode* root)
    {
        while (root != null && root->Left != null)
            root = root->Left;
        return root;
    }

    /// <summary>The next node in order, or null.</summary>
    public static unsafe RbNode* Next(RbNode* node)
    {
        if (node->Right != null)
            return First(node->Right);

        RbNode* parent = node->Parent;
        while (parent != null && parent->Right == node)
        {
            node = parent;
            parent = node->Parent;
        }

        return parent;
    }

    /// <summary>Black nodes from the root to a node, both included.</summary>
    public static unsafe int BlackDepth(RbNode* node)
    {
        int black = 0;
        for (; node != null; node = node->Parent)
            black += node->IsBlack ? 1 : 0;
        return black;
    }
}
