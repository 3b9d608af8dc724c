namespace Kmem.Tests;

/// <summary>Each rule that <see cref="VmapValidator"/> checks, broken on purpose in live trees and pools.</summary>
public sealed class BrokenVmapRuleTests
{
    private const ulong Page = 4096;

    [Fact]
    [Trait("rule", "RB-01")]
    public unsafe void Red_root() => Breaks(["RB-01"], static (scene, patch) =>
    {
        RbNode* root = scene.Busiest->Root;
        Assert.True(root->Left->IsBlack && root->Right->IsBlack);
        patch.Do(() => root->IsBlack = false, () => root->IsBlack = true);
    });

    [Fact]
    [Trait("rule", "RB-02")]
    public unsafe void Red_below_red() => Breaks(["RB-02", "RB-03"], static (scene, patch) =>
    {
        // A black child of a red node: paths through it also lose a black node.
        RbNode* child = scene.FindBusy(static node => node->IsBlack && node->Parent != null && !node->Parent->IsBlack);
        patch.Do(() => child->IsBlack = false, () => child->IsBlack = true);
    });

    [Fact]
    [Trait("rule", "RB-03")]
    public unsafe void Longer_black_path() => Breaks(["RB-03"], static (scene, patch) =>
    {
        RbNode* leaf = scene.FindBusy(static node => !node->IsBlack && node->Left == null && node->Right == null);
        patch.Do(() => leaf->IsBlack = true, () => leaf->IsBlack = false);
    });

    [Fact]
    [Trait("rule", "VMAP-01")]
    public unsafe void Area_in_the_tree_but_not_in_the_list() => Breaks(["VMAP-01", "VMAP-05"], static (scene, patch) =>
    {
        ListHead* entry = &scene.FirstBusy->List;
        patch.SetLink(&entry->Prev->Next, entry->Next);
        patch.SetLink(&entry->Next->Prev, entry->Prev);
    });

    [Fact]
    [Trait("rule", "VMAP-02")]
    public unsafe void Empty_area() => Breaks(["VMAP-02", "VMAP-05"], static (scene, patch) =>
        patch.Set(&scene.FirstBusy->End, scene.FirstBusy->Start));

    [Fact]
    [Trait("rule", "VMAP-03")]
    public unsafe void Free_blocks_that_touch() => Breaks(["VMAP-03"], static (scene, patch) =>
    {
        // The first free block of more than a page, as two.
        FreeVmapTree free = scene.Vmap.Free;
        VmapArea* block = free.First;
        while (block->Size <= Page)
            block = free.Next(block);
        ulong end = block->End;
        var upper = (VmapArea*)scene.Vmap.Objects.Alloc(Gfp.Kernel | Gfp.Zero);
        patch.Do(
            () => scene.Vmap.ChangeFree(() =>
            {
                free.Remove(block);
                block->End = block->Start + Page;
                (upper->Start, upper->End) = (block->End, end);
                free.Add(block);
                free.Add(upper);
            }),
            () => scene.Vmap.ChangeFree(() =>
            {
                free.Remove(upper);
                free.Remove(block);
                block->End = end;
                free.Add(block);
                scene.Vmap.Objects.Free(upper);
            }));
    });

    [Fact]
    [Trait("rule", "VMAP-04")]
    public unsafe void Wrong_largest_block() => Breaks(["VMAP-04"], static (scene, patch) =>
        patch.Set(&scene.Vmap.Free.First->SubtreeMax, scene.Vmap.Free.First->SubtreeMax + Page));

    [Fact]
    [Trait("rule", "VMAP-05")]
    public unsafe void Address_that_belongs_to_nobody() => Breaks(["VMAP-05"], static (scene, patch) =>
        patch.Set(&scene.FirstBusy->End, scene.FirstBusy->End - Page));

    [Fact]
    [Trait("rule", "VMAP-05")]
    public unsafe void Address_that_belongs_to_two() => Breaks(["VMAP-05"], static (scene, patch) =>
    {
        VmapArea* last = scene.FirstBusy;
        for (VmapArea* next = last; next != null; next = VmapTree.Next(scene.Busiest, next))
            last = next;
        patch.Set(&last->End, last->End + Page);
    });

    [Fact]
    [Trait("rule", "VMAP-06")]
    public unsafe void Area_in_the_tree_of_another_node() => Breaks(["VMAP-06"], static (scene, patch) =>
    {
        VmapArea* area = scene.FirstBusy;
        VmapNode home = scene.Vmap.NodeOf(area->Start);
        VmapNode other = scene.Vmap.Nodes.First(node => node != home);
        patch.Do(
            () =>
            {
                VmapTree.Remove<NoAugment>(home.Busy, area);
                VmapTree.Insert<NoAugment>(other.Busy, area);
            },
            () =>
            {
                VmapTree.Remove<NoAugment>(other.Busy, area);
                VmapTree.Insert<NoAugment>(home.Busy, area);
            });
    });

    [Fact]
    [Trait("rule", "VMAP-07")]
    public unsafe void Area_in_the_pool_of_another_size() => Breaks(["VMAP-07"], static (scene, patch) =>
    {
        VmapPool* pool = scene.FilledPool(out VmapNode node, out int pages);
        VmapPool* other = node.PoolOfPages(pages + 1);
        ListHead* entry = pool->List.Next;
        patch.SetLink(&entry->Prev->Next, entry->Next);
        patch.SetLink(&entry->Next->Prev, entry->Prev);
        patch.SetLink(&entry->Prev, &other->List);
        patch.SetLink(&entry->Next, other->List.Next);
        patch.SetLink(&other->List.Next->Prev, entry);
        patch.SetLink(&other->List.Next, entry);
        patch.Set(&pool->Length, pool->Length - 1);
        patch.Set(&other->Length, other->Length + 1);
    });

    [Fact]
    [Trait("rule", "VMAP-08")]
    public unsafe void Wrong_length_of_a_pool() => Breaks(["VMAP-08"], static (scene, patch) =>
    {
        VmapPool* pool = scene.FilledPool(out _, out _);
        patch.Set(&pool->Length, pool->Length + 1);
    });

    private static void Breaks(string[] rules, Action<Scene, LivePatch> damage)
    {
        using var scene = new Scene();
        Assert.Empty(VmapValidator.Run(scene.Vmap));
        var patch = new LivePatch();
        damage(scene, patch);
        string[] broken = [.. VmapValidator.Run(scene.Vmap).Select(rule => rule.Id).Distinct(StringComparer.Ordinal)];
        patch.Undo();
        Assert.Equal(rules, broken.Order(StringComparer.Ordinal).ToArray());
        Assert.Empty(VmapValidator.Run(scene.Vmap));
    }

    /// <summary>Two nodes with many areas, freed ones in pools.</summary>
    private sealed class Scene : IDisposable
    {
        private readonly Machine _machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 2 });

        public unsafe Scene()
        {
            Vmap = new VmapAllocator(_machine.Slabs, new VmapOptions { Nodes = 2 });
            using CpuBinding cpu = _machine.RunOn(0);
            var areas = new List<nint>();
            for (ulong i = 0; i < 120; i++)
            {
                var request = new VmapRequest(
                    (2 + (i % 5)) * Page, 1, VmapOptions.DefaultStart, VmapOptions.DefaultEnd);
                areas.Add((nint)Vmap.Alloc(request, null, out _));
            }

            for (int i = 20; i < 40; i += 2)
                Vmap.FreeNoflush(Vmap.Unlink(((VmapArea*)areas[i])->Start));
            Vmap.PurgeLazy(full: false);
            Busiest = Vmap.NodeOf(((VmapArea*)areas[0])->Start).Busy;
        }

        public VmapAllocator Vmap { get; }

        public unsafe VmapTree* Busiest { get; }

        public unsafe VmapArea* FirstBusy => VmapTree.First(Busiest);

        public unsafe RbNode* FindBusy(NodeTest test)
        {
            for (VmapArea* area = FirstBusy; area != null; area = VmapTree.Next(Busiest, area))
            {
                if (test(&area->Node))
                    return &area->Node;
            }

            Assert.Fail("the tree has no such node");
            return null;
        }

        public unsafe VmapPool* FilledPool(out VmapNode node, out int pages)
        {
            foreach (VmapNode candidate in Vmap.Nodes)
            {
                for (pages = 1; pages < VmapNode.MaxPoolPages; pages++)
                {
                    node = candidate;
                    if (candidate.PoolOfPages(pages)->Length > 0)
                        return candidate.PoolOfPages(pages);
                }
            }

            Assert.Fail("all pools are empty");
            node = null!;
            pages = 0;
            return null;
        }

        public void Dispose()
        {
            Vmap.Dispose();
            _machine.Dispose();
        }
    }

    private unsafe delegate bool NodeTest(RbNode* node);
}
