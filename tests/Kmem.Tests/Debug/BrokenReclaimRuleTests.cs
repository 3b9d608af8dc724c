using System.Reflection;

namespace Kmem.Tests;

/// <summary>The rules of movable pages and swap areas, each broken on purpose in a live machine.</summary>
public sealed class BrokenReclaimRuleTests
{
    [Fact]
    [Trait("rule", "MOVABLE-01")]
    public void Page_that_may_be_moved_and_is_on_no_list_of_movable_pages() => Breaks("MOVABLE-01", static (scene, patch) =>
    {
        unsafe
        {
            Page* page = scene.Machine.Map.PageOf(scene.Movable.Value);
            patch.Set(&page->Flags, page->Flags & ~PageFlags.Lru);
        }
    });

    [Fact]
    [Trait("rule", "MOVABLE-02")]
    public void Page_that_was_isolated_and_forgotten() => Breaks("MOVABLE-02", static (scene, patch) =>
    {
        unsafe
        {
            Page* page = scene.Machine.Map.PageOf(scene.Movable.Value);
            patch.Set(&page->Mapping, page->Mapping | 4);
        }
    });

    [Fact]
    [Trait("rule", "SWAPAREA-01")]
    public void Frame_of_another_page() => Breaks("SWAPAREA-01", static (scene, patch) =>
    {
        unsafe
        {
            Page* page = scene.Machine.Map.PageOf(scene.Table.FrameOf(1));
            patch.Set(&page->Index, 2UL);
        }
    });

    [Fact]
    [Trait("rule", "SWAPAREA-02")]
    public void Page_that_could_go_and_is_not_listed() => Breaks("SWAPAREA-02", static (scene, patch) => patch.Do(
        () => scene.Table.Delist(1, 0), () => scene.Table.Enlist(1, 0)));

    [Fact]
    [Trait("rule", "SWAPAREA-03")]
    public void Two_pages_in_one_slot() => Breaks("SWAPAREA-03", static (scene, patch) =>
    {
        int[] slots = scene.Field<int[]>("_slot");
        int before = slots[1];
        patch.Do(() => slots[1] = slots[0], () => slots[1] = before);
    });

    [Fact]
    [Trait("rule", "SWAPAREA-04")]
    public void Page_that_shows_its_frame_and_denies_it() => Breaks("SWAPAREA-04", static (scene, patch) => patch.Do(
        () => scene.Table.Clear(1, SwapPageFlags.Mapped), () => scene.Table.Set(1, SwapPageFlags.Mapped)));

    private static void Breaks(string rule, Action<Scene, LivePatch> damage)
    {
        using var scene = new Scene();
        Assert.Empty(scene.Machine.Validate());
        var patch = new LivePatch();
        damage(scene, patch);
        string[] broken = [.. scene.Machine.Validate().Select(found => found.Id).Distinct(StringComparer.Ordinal)];
        patch.Undo();
        Assert.Equal([rule], broken);
        Assert.Empty(scene.Machine.Validate());
    }

    /// <summary>A swap area with pages in memory and in slots, and a page that may be moved.</summary>
    private sealed class Scene : IDisposable
    {
        private readonly SwapArea _area;
        private readonly MovableObjects _objects;

        public Scene()
        {
            Machine = VmallocMachine.Boot(1, 32UL << 20);
            _area = Machine.CreateSwapAreaOn(64 * Pfn.PageSize, new MemoryStore());
            for (int round = 0; round < 2; round++)
            {
                for (ulong page = 0; page < 4; page++)
                {
                    using SwapPin pin = _area.Pin(page * Pfn.PageSize, 1);
                    pin.Span[0] = 7;
                }

                if (round == 0)
                    Machine.ReclaimMemory(1 << 20);
            }

            _objects = new MovableObjects(Machine);
            _objects.Fill(1);
        }

        public Machine Machine { get; }

        public SwapPages Table => (SwapPages)typeof(SwapArea)
            .GetField("_table", BindingFlags.Instance | BindingFlags.NonPublic)!.GetValue(_area)!;

        public Pfn Movable => _objects.First;

        public T Field<T>(string name) => (T)typeof(SwapPages)
            .GetField(name, BindingFlags.Instance | BindingFlags.NonPublic)!.GetValue(Table)!;

        public void Dispose()
        {
            _objects.Dispose();
            _area.Dispose();
            Machine.Dispose();
        }
    }
}
