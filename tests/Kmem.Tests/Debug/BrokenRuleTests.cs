namespace Kmem.Tests;

/// <summary>
/// Each rule that <see cref="Machine.Validate"/> checks for pages, broken on purpose in a live machine: it is named,
/// and no other but those that break with it; once the error is taken back, all rules hold again.
/// </summary>
public sealed class BrokenRuleTests
{
    [Fact]
    [Trait("rule", "BUDDY-01")]
    public void Misaligned_block() => Breaks(["BUDDY-01"], static (scene, patch) =>
    {
        unsafe
        {
            // The free block of four frames, one frame further down: its first frame is one of the neighbour's.
            Page* page = scene.PageOf(scene.FreeBlock);
            ListHead* before = page->Lru.Prev;
            patch.Unlink(page);
            patch.Describe(page, PageType.None, 0);
            patch.Describe(page - 1, PageType.Buddy, 2);
            patch.Link(before, page - 1);
        }
    });

    [Fact]
    [Trait("rule", "BUDDY-02")]
    public void Buddies_both_free() => Breaks(["BUDDY-02"], static (scene, patch) =>
    {
        unsafe
        {
            // The free block of four frames as two of two frames.
            Page* page = scene.PageOf(scene.FreeBlock);
            ListHead* list = scene.Zone.Buddy.ListOf(1, scene.TypeOfFreeBlock);
            patch.Unlink(page);
            patch.Describe(page, PageType.Buddy, 1);
            patch.Describe(page + 2, PageType.Buddy, 1);
            patch.Link(list, page);
            patch.Link(list, page + 2);
            patch.AddNrFree(scene.Zone.Buddy, 2, -1);
            patch.AddNrFree(scene.Zone.Buddy, 1, 2);
        }
    });

    [Fact]
    [Trait("rule", "BUDDY-03")]
    public void Wrong_number_of_blocks() => Breaks(
        ["BUDDY-03"], static (scene, patch) => patch.AddNrFree(scene.Zone.Buddy, 5, 1));

    [Fact]
    [Trait("rule", "BUDDY-04")]
    public void Block_with_another_order() => Breaks(["BUDDY-04"], static (scene, patch) =>
    {
        unsafe
        {
            patch.Set(&scene.PageOf(scene.FreeBlock)->Private, 1UL);
        }
    });

    [Fact]
    [Trait("rule", "BUDDY-05")]
    public void Links_that_do_not_match() => Breaks(["BUDDY-05"], static (scene, patch) =>
    {
        unsafe
        {
            ListHead* list = scene.Zone.Buddy.ListOf(2, scene.TypeOfFreeBlock);
            patch.SetLink(&list->Prev, list);
        }
    });

    [Fact]
    [Trait("rule", "BUDDY-06")]
    public void Block_of_another_zone() => Breaks(["BUDDY-06", "ZONE-04"], static (scene, patch) =>
    {
        unsafe
        {
            // A largest block of DMA on the list of DMA32; the counters agree with the lists.
            ListHead* from = scene.Dma.Buddy.ListOf(10, Migratetype.Movable);
            Page* page = Page.FromLru(from->Next);
            patch.Unlink(page);
            patch.Link(scene.Zone.Buddy.ListOf(10, Migratetype.Movable), page);
            foreach ((ZonePages zone, int sign) in new[] { (scene.Dma, -1), (scene.Zone, 1) })
            {
                patch.AddNrFree(zone.Buddy, 10, sign);
                patch.Do(() => Count(zone, sign), () => Count(zone, -sign));
            }
        }

        static void Count(ZonePages zone, int sign)
        {
            zone.Zone.AddFreePagesLocked(sign * 1024L, cpu: 0);
            zone.Zone.FreePagesInBlocks += sign * 1024L;
        }
    });

    [Fact]
    [Trait("rule", "BUDDY-07")]
    public void Reference_to_a_free_page() => Breaks(["BUDDY-07"], static (scene, patch) =>
    {
        unsafe
        {
            patch.Set(&scene.PageOf(scene.FreeBlock)->RefCount, 1);
        }
    });

    [Fact]
    [Trait("rule", "BUDDY-08")]
    public void Block_on_the_list_of_another_type() => Breaks(["BUDDY-08"], static (scene, patch) =>
    {
        Migratetype type = scene.TypeOfFreeBlock;
        Migratetype other = type == Migratetype.Reclaimable ? Migratetype.Movable : Migratetype.Reclaimable;
        patch.Do(
            () => scene.Machine.Blocks.SetType(scene.FreeBlock, other),
            () => scene.Machine.Blocks.SetType(scene.FreeBlock, type));
    });

    [Fact]
    [Trait("rule", "BUDDY-08")]
    public void Upper_pageblock_of_another_type() => Breaks(["BUDDY-08"], static (scene, patch) =>
    {
        unsafe
        {
            ulong pfn = scene.Machine.Map.PfnOf(Page.FromLru(scene.Zone.Buddy.ListOf(10, Migratetype.Movable)->Next));
            patch.Do(
                () => scene.Machine.Blocks.SetType(pfn + 512, Migratetype.Unmovable),
                () => scene.Machine.Blocks.SetType(pfn + 512, Migratetype.Movable));
        }
    });

    [Fact]
    [Trait("rule", "BUDDY-09")]
    public void Frame_in_use_inside_a_free_block() => Breaks(["BUDDY-09"], static (scene, patch) =>
    {
        unsafe
        {
            patch.Set(&scene.PageOf(scene.FreeBlock + 3)->RefCount, 1);
        }
    });

    [Fact]
    [Trait("rule", "PCP-01")]
    public void Wrong_count_of_a_per_cpu_list() => Breaks(["PCP-01", "ZONE-04"], static (scene, patch) =>
    {
        unsafe
        {
            PerCpuPages* pcp = scene.Zone.PcpOf(0);
            patch.Set(&pcp->Count, pcp->Count + 1);
        }
    });

    [Fact]
    [Trait("rule", "PCP-02")]
    public void Page_in_use_on_a_per_cpu_list() => Breaks(["PCP-02"], static (scene, patch) =>
    {
        unsafe
        {
            patch.Set(&scene.Cached()->RefCount, 1);
        }
    });

    [Fact]
    [Trait("rule", "PCP-03")]
    public void Page_on_the_per_cpu_list_of_another_zone() => Breaks(["PCP-03", "ZONE-04"], static (scene, patch) =>
    {
        unsafe
        {
            Page* page = scene.Cached();
            patch.Unlink(page);
            patch.Link(PerCpuPages.ListOf(scene.Dma.PcpOf(0), 0), page);
            patch.Set(&scene.Zone.PcpOf(0)->Count, scene.Zone.PcpOf(0)->Count - 1);
            patch.Set(&scene.Dma.PcpOf(0)->Count, scene.Dma.PcpOf(0)->Count + 1);
        }
    });

    [Fact]
    [Trait("rule", "ZONE-01")]
    public void Wrong_count_of_free_frames() => Breaks(["ZONE-01"], static (scene, patch) => patch.Do(
        () => scene.Zone.Zone.AddFreePagesLocked(1, cpu: 0), () => scene.Zone.Zone.AddFreePagesLocked(-1, cpu: 0)));

    [Fact]
    [Trait("rule", "ZONE-02")]
    public void Wrong_count_of_free_reserve() => Breaks(["ZONE-02"], static (scene, patch) => patch.Do(
        () => scene.Zone.Zone.FreeHighAtomic++, () => scene.Zone.Zone.FreeHighAtomic--));

    [Fact]
    [Trait("rule", "ZONE-03")]
    public void Wrong_count_of_free_pageblocks() => Breaks(["ZONE-03"], static (scene, patch) => patch.Do(
        () => scene.Zone.Zone.FreePagesInBlocks += 512, () => scene.Zone.Zone.FreePagesInBlocks -= 512));

    [Fact]
    [Trait("rule", "ZONE-04")]
    public void Lost_frame() => Breaks(["ZONE-04"], static (scene, patch) =>
    {
        unsafe
        {
            // An allocated frame that forgot it: leaked.
            patch.Set(&scene.PageOf(scene.FreeBlock - 4)->AllocatedOrderPlusOne, (byte)0);
        }
    });

    [Fact]
    [Trait("rule", "ZONE-05")]
    public void More_frames_managed_than_there_are() => Breaks(["ZONE-04", "ZONE-05"], static (scene, patch) =>
    {
        ulong managed = scene.Zone.Zone.Managed;
        patch.Do(() => scene.Zone.Zone.Managed = scene.Zone.Zone.Present + 1, () => scene.Zone.Zone.Managed = managed);
    });

    [Fact]
    [Trait("rule", "ZONE-06")]
    public void Wrong_size_of_the_reserve() => Breaks(["ZONE-06"], static (scene, patch) => patch.Do(
        () => scene.Zone.Zone.ReservedHighAtomic += 512, () => scene.Zone.Zone.ReservedHighAtomic -= 512));

    private static void Breaks(string[] rules, Action<Scene, LivePatch> damage)
    {
        using var scene = new Scene();
        Assert.Empty(scene.Machine.Validate());
        var patch = new LivePatch();
        damage(scene, patch);
        string[] broken = [.. scene.Machine.Validate().Select(rule => rule.Id).Distinct(StringComparer.Ordinal)];
        patch.Undo();
        Assert.Equal(rules, broken.Order(StringComparer.Ordinal).ToArray());
        Assert.Empty(scene.Machine.Validate());
        Assert.True(scene.Machine.AllocPages(Gfp.Kernel, 2).IsValid);
    }

    /// <summary>
    /// A machine with a free block of order 2, whose neighbours below are in use, and pages on its lists.
    /// </summary>
    private sealed class Scene : IDisposable
    {
        public Scene()
        {
            Machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 1 });
            Dma = Machine.Pages.Zones.First();
            Zone = Machine.Pages.Zones.Last();
            var blocks = new HashSet<ulong>();
            for (int i = 0; i < 64; i++)
                blocks.Add(Machine.AllocPages(Gfp.Kernel, 2).Value);
            ulong lower = blocks.Order().First(pfn => pfn % 8 == 0 && blocks.Contains(pfn + 4));
            FreeBlock = lower + 4;
            Pfn page = Machine.AllocPage(Gfp.Kernel);
            Machine.FreePages(new Pfn(FreeBlock), 2);
            Machine.DrainAllPages();
            Machine.FreePage(page);     // now, so that no refill takes the free block
        }

        public Machine Machine { get; }

        public ZonePages Dma { get; }

        public ZonePages Zone { get; }

        public ulong FreeBlock { get; }

        public Migratetype TypeOfFreeBlock => Machine.Blocks.TypeOf(FreeBlock);

        public unsafe Page* PageOf(ulong pfn) => Machine.Map.PageOf(pfn);

        /// <summary>A page on the CPU's list of unmovable frames.</summary>
        public unsafe Page* Cached() => Page.FromLru(PerCpuPages.ListOf(Zone.PcpOf(0), 0)->Next);

        public void Dispose() => Machine.Dispose();
    }
}
