using System.Runtime.InteropServices;
using CsCheck;

namespace Kmem.Tests;

/// <summary>
/// The tree against a sorted set, with the red-black rules and the augmented values checked after each step.
/// </summary>
public sealed class RbTreeTests
{
    /// <summary>A positive number inserts the key, or removes it if it is there.</summary>
    [Fact]
    public void RandomOperationsKeepOrderColoursAndMaxima() =>
        Gen.Int[0, 60].List[0, 200].Sample(keys =>
        {
            using var tree = new KeyTree();
            var model = new SortedSet<int>();
            foreach (int key in keys)
            {
                if (model.Add(key))
                {
                    tree.Insert(key);
                }
                else
                {
                    model.Remove(key);
                    tree.Erase(key);
                }

                tree.Check(model);
            }
        });

    /// <summary>All orders of inserting six keys, and from each tree all orders of removing them.</summary>
    [Fact]
    public void EverySmallTree()
    {
        int[][] orders = Permutations(6).ToArray();
        foreach (int[] insert in orders)
        {
            foreach (int[] erase in orders.Where((_, i) => i % 24 == insert[0]))
            {
                using var tree = new KeyTree();
                var model = new SortedSet<int>();
                foreach (int key in insert)
                {
                    tree.Insert(key);
                    model.Add(key);
                    tree.Check(model);
                }

                foreach (int key in erase)
                {
                    tree.Erase(key);
                    model.Remove(key);
                    tree.Check(model);
                }
            }
        }
    }

    [Fact]
    public void AscendingKeysGiveTheWellKnownShape()
    {
        using var tree = new KeyTree();
        for (int key = 1; key <= 8; key++)
            tree.Insert(key);
        Assert.Equal("((1b 2r 3b) 4b (5b 6r (7b 8r)))", tree.Shape());

        tree.Erase(4);      // the successor takes its place, not the predecessor
        Assert.Equal("((1b 2r 3b) 5b (6b 7r 8b))", tree.Shape());
    }

    private static IEnumerable<int[]> Permutations(int count)
    {
        if (count == 0)
            return [[]];
        return Permutations(count - 1).SelectMany(
            rest => Enumerable.Range(0, count).Select(at => rest[..at].Append(count - 1).Concat(rest[at..]).ToArray()));
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct KeyNode
    {
        public RbNode Node;
        public int Key;
        public int Largest;     // of the subtree, of a value that is not ordered like the keys

        public readonly int Value => Key * 37 % 61;
    }

    private readonly struct LargestValue : IRbAugment
    {
        public static unsafe bool Update(RbNode* node)
        {
            var at = (KeyNode*)node;
            int largest = Math.Max(at->Value, Math.Max(Of(node->Left), Of(node->Right)));
            bool changed = at->Largest != largest;
            at->Largest = largest;
            return changed;
        }

        public static unsafe int Of(RbNode* node) => node == null ? -1 : ((KeyNode*)node)->Largest;
    }

    /// <summary>A tree of numbers that owns its nodes.</summary>
    private sealed class KeyTree : IDisposable
    {
        private readonly unsafe RbNode** _root = (RbNode**)NativeMemory.AllocZeroed((nuint)sizeof(RbNode*));
        private readonly Dictionary<int, nint> _nodes = [];

        public unsafe void Insert(int key)
        {
            var node = (KeyNode*)NativeMemory.Alloc((nuint)sizeof(KeyNode));
            node->Key = key;
            node->Largest = -1;
            _nodes.Add(key, (nint)node);
            RbNode* parent = null;
            RbNode** link = _root;
            while (*link != null)
            {
                parent = *link;
                link = key < ((KeyNode*)parent)->Key ? &parent->Left : &parent->Right;
            }

            RbTree<LargestValue>.Insert(_root, parent, link, &node->Node);
        }

        public unsafe void Erase(int key)
        {
            _nodes.Remove(key, out nint node);
            RbTree<LargestValue>.Erase(_root, (RbNode*)node);
            NativeMemory.Free((void*)node);
        }

        public unsafe void Check(SortedSet<int> model)
        {
            var keys = new List<int>();
            for (RbNode* node = RbWalk.First(*_root); node != null; node = RbWalk.Next(node))
                keys.Add(((KeyNode*)node)->Key);
            Assert.Equal(model, keys);
            Assert.True(*_root == null || ((*_root)->IsBlack && (*_root)->Parent == null), "the root is red");
            CheckNode(*_root);
        }

        public unsafe string Shape() => Shape(*_root);

        public unsafe void Dispose()
        {
            foreach (nint node in _nodes.Values)
                NativeMemory.Free((void*)node);
            NativeMemory.Free(_root);
        }

        /// <returns>Black nodes on every way down.</returns>
        private static unsafe int CheckNode(RbNode* node)
        {
            if (node == null)
                return 0;

            foreach (nint child in new[] { (nint)node->Left, (nint)node->Right })
            {
                var at = (RbNode*)child;
                Assert.True(at == null || at->Parent == node, "a child has another parent");
                Assert.True(at == null || node->IsBlack || at->IsBlack, "red below red");
            }

            int left = CheckNode(node->Left);
            Assert.Equal(left, CheckNode(node->Right));
            int largest = Math.Max(
                ((KeyNode*)node)->Value, Math.Max(LargestValue.Of(node->Left), LargestValue.Of(node->Right)));
            Assert.Equal(largest, ((KeyNode*)node)->Largest);
            return left + (node->IsBlack ? 1 : 0);
        }

        private static unsafe string Shape(RbNode* node)
        {
            string self = $"{((KeyNode*)node)->Key}{(node->IsBlack ? 'b' : 'r')}";
            if (node->Left == null && node->Right == null)
                return self;
            string left = node->Left == null ? "" : Shape(node->Left) + " ";
            string right = node->Right == null ? "" : " " + Shape(node->Right);
            return $"({left}{self}{right})";
        }
    }
}
