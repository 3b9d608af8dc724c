namespace Kmem;

/// <content>Being looked at while it is at work.</content>
internal sealed partial class VmapAllocator
{
    /// <summary>The free tree from the root down, at most so many blocks; a block that is left out has no parent
    /// here.</summary>
    public unsafe List<VmapBlockState> ObserveFree(int most, out bool truncated)
    {
        var blocks = new List<VmapBlockState>(Math.Min(most, 64));
        truncated = false;
        var waiting = new Queue<nint>();
        _freeLock.Acquire();
        if (_free.Tree->Root != null)
            waiting.Enqueue((nint)_free.Tree->Root);
        while (waiting.TryDequeue(out nint at))
        {
            if (blocks.Count == most)
            {
                truncated = true;
                break;
            }

            var node = (RbNode*)at;
            VmapArea* block = VmapArea.FromNode(node);
            blocks.Add(new VmapBlockState(
                block->Start,
                block->End,
                node->Parent == null ? null : VmapArea.FromNode(node->Parent)->Start,
                node->IsBlack,
                block->SubtreeMax));
            if (node->Left != null)
                waiting.Enqueue((nint)node->Left);
            if (node->Right != null)
                waiting.Enqueue((nint)node->Right);
        }

        _freeLock.Release();
        return blocks;
    }
}
