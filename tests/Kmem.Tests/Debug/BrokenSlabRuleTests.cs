namespace Kmem.Tests;

/// <summary>
/// Each rule that <see cref="Machine.Validate"/> checks for slabs, broken on purpose in a live machine: it is named,
/// and no other but those that break with it; once the error is taken back, all rules hold again.
/// </summary>
public sealed class BrokenSlabRuleTests
{
    private const ulong FrozenBit = 1UL << 47;

    [Fact]
    [Trait("rule", "SLUB-01")]
    public unsafe void Slab_on_two_lists() => Breaks(["SLUB-01"], static (scene, patch) =>
        patch.Set((nint*)&scene.Cpu(1)->Partial, (nint)scene.Cpu(0)->Partial));

    [Fact]
    [Trait("rule", "SLUB-02")]
    public unsafe void Partial_slab_that_does_not_know_it() => Breaks(["SLUB-02"], static (scene, patch) =>
        patch.Set(&scene.Partial()->Flags, scene.Partial()->Flags & ~PageFlags.SlabOnPartialList));

    [Fact]
    [Trait("rule", "SLUB-03")]
    public unsafe void Frozen_slab_on_the_partial_list() => Breaks(["SLUB-03"], static (scene, patch) =>
        patch.Set(&scene.Partial()->SlabState, scene.Partial()->SlabState | FrozenBit));

    [Fact]
    [Trait("rule", "SLUB-04")]
    public void Wrong_length_of_the_partial_list() => Breaks(["SLUB-04"], static (scene, patch) =>
    {
        KmemCacheNode node = scene.Cache.Nodes[0];
        void Add(int slabs) =>
            typeof(KmemCacheNode).GetProperty(nameof(KmemCacheNode.NrPartial))!.SetValue(node, node.NrPartial + slabs);
        patch.Do(() => Add(1), () => Add(-1));
    });

    [Fact]
    [Trait("rule", "SLUB-05")]
    public void Wrong_number_of_slabs() => Breaks(["SLUB-05"], static (scene, patch) => patch.Do(
        () => scene.Cache.Nodes[0].CountSlab(1, 0), () => scene.Cache.Nodes[0].CountSlab(-1, 0)));

    [Fact]
    [Trait("rule", "SLUB-06")]
    public void Wrong_number_of_objects() => Breaks(["SLUB-06"], static (scene, patch) => patch.Do(
        () => scene.Cache.Nodes[0].CountSlab(0, 1), () => scene.Cache.Nodes[0].CountSlab(0, -1)));

    [Fact]
    [Trait("rule", "SLUB-07")]
    public unsafe void Free_list_without_a_slab() => Breaks(["SLUB-07"], static (scene, patch) =>
        patch.Set((nint*)&scene.Cpu(1)->Freelist, scene.Free()));

    [Fact]
    [Trait("rule", "SLUB-08")]
    public unsafe void Current_slab_that_is_not_frozen() => Breaks(["SLUB-08"], static (scene, patch) =>
        patch.Set(&scene.Cpu(0)->Slab->SlabState, scene.Cpu(0)->Slab->SlabState & ~FrozenBit));

    [Fact]
    [Trait("rule", "SLUB-09")]
    public unsafe void Wrong_length_of_a_cpu_s_chain() => Breaks(["SLUB-09"], static (scene, patch) =>
        patch.Set(&scene.Cpu(0)->Partial->CpuPartialSlabs, scene.Cpu(0)->Partial->CpuPartialSlabs + 1));

    [Fact]
    [Trait("rule", "SLUB-10")]
    public unsafe void Wrong_number_of_objects_in_use() => Breaks(["SLUB-10"], static (scene, patch) =>
    {
        SlabState state = SlabState.Read(scene.Partial());
        patch.Set(
            &scene.Partial()->SlabState,
            new SlabState(state.FreeIndex, state.InUse - 1, state.Objects, state.Frozen).Word);
    });

    [Fact]
    [Trait("rule", "SLUB-11")]
    public unsafe void Object_that_is_neither_free_nor_allocated() => Breaks(["SLUB-11"], static (scene, patch) =>
        patch.Set(scene.LiveByteOf(scene.Allocated()), (byte)0));

    [Fact]
    [Trait("rule", "SLUB-12")]
    public unsafe void Slab_with_room_on_no_list() => Breaks(["SLUB-12"], static (scene, patch) =>
    {
        Page* slab = scene.Partial();
        KmemCacheNode node = scene.Cache.Nodes[0];
        patch.Do(
            () =>
            {
                node.Lock.Acquire();
                node.RemoveLocked(slab);
                node.Lock.Release();
            },
            () =>
            {
                node.Lock.Acquire();
                node.AddLocked(slab, tail: false);
                node.Lock.Release();
            });
    });

    [Fact]
    [Trait("rule", "SLUB-13")]
    public unsafe void Free_list_that_leads_astray() => Breaks(["SLUB-13"], static (scene, patch) =>
        patch.Set((nint*)(scene.LastFree() + scene.Cache.Geometry.FreePointerOffset), scene.Free() + 1));

    [Fact]
    [Trait("rule", "SLUB-14")]
    public unsafe void Allocated_object_on_a_free_list() => Breaks(["SLUB-14"], static (scene, patch) =>
    {
        byte* free = scene.LiveByteOf(scene.Free());
        byte* allocated = scene.LiveByteOf(scene.Allocated());
        patch.Set(free, *allocated);
        patch.Set(allocated, (byte)0);
    });

    [Fact]
    [Trait("rule", "SLUB-15")]
    public unsafe void Free_list_in_a_circle() => Breaks(["SLUB-10", "SLUB-11", "SLUB-15"], static (scene, patch) =>
        patch.Set((nint*)(scene.LastFree() + scene.Cache.Geometry.FreePointerOffset), scene.Free()));

    [Fact]
    [Trait("rule", "SHEAF-01")]
    public unsafe void Allocated_object_in_a_sheaf() => Breaks(["SHEAF-01"], static (scene, patch) =>
    {
        nint cached = Sheaf.Objects(scene.SheafOf(scene.Sheaved))[0];
        Page* slab = scene.Machine.Slabs.SlabOf((void*)cached);
        byte* there = scene.LiveByteOf(cached, scene.Sheaved);
        byte* allocated = scene.LiveByteOf(scene.AllocatedIn(slab, scene.Sheaved), scene.Sheaved);
        patch.Set(there, *allocated);
        patch.Set(allocated, (byte)0);
    });

    [Fact]
    [Trait("rule", "SHEAF-02")]
    public unsafe void Allocated_object_in_quarantine()
    {
        using var machine = Machine.Boot(new MachineOptions
        {
            Profile = KernelProfile.Hardened,
            RamBytes = 64 << 20,
            Cpus = 1,
        });
        KmemCache cache = machine.CreateCache("kept", 64);
        void* kept = cache.Alloc(Gfp.Kernel);
        void* allocated = cache.Alloc(Gfp.Kernel);
        cache.Free(kept);
        Assert.Empty(machine.Validate());
        byte* marks = machine.Slabs.Live.MapFor(cache.SlotSize);
        int shift = LiveObjects.ShiftFor(cache.SlotSize);
        byte* MarkOf(void* obj) => marks + (((byte*)obj - machine.Map.RamBase) >> shift);
        var patch = new LivePatch();
        patch.Set(MarkOf(kept), (byte)LiveObjects.Mark((nuint)kept));
        patch.Set(MarkOf(allocated), (byte)0);
        string[] broken = [.. machine.Validate().Select(rule => rule.Id)];
        patch.Undo();
        Assert.Equal(["SHEAF-02"], broken);
        Assert.Empty(machine.Validate());
    }

    [Fact]
    [Trait("rule", "KFENCE-01")]
    public unsafe void Changed_byte_beside_a_guarded_object()
    {
        using var machine = Machine.Boot(new MachineOptions
        {
            RamBytes = 64 << 20,
            Cpus = 1,
            Kfence = new KfenceOptions { EveryNth = 1 },
        });
        var p = (byte*)machine.Kmalloc(60, Gfp.Kernel);
        byte* beside = (nint)p % 4096 == 0 ? p + 60 : p - 1;
        Assert.Empty(machine.Validate());
        var patch = new LivePatch();
        patch.Set(beside, (byte)~*beside);
        string[] broken = [.. machine.Validate().Select(rule => rule.Id)];
        patch.Undo();
        Assert.Equal(["KFENCE-01"], broken);
        Assert.Empty(machine.Validate());
    }

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
        unsafe
        {
            Assert.True(scene.Cache.Alloc(Gfp.Kernel) != null);
        }
    }

    /// <summary>
    /// A cache with a current slab, a chain of partial slabs on CPU 0 and some on its node; another one with sheaves.
    /// </summary>
    private sealed class Scene : IDisposable
    {
        public unsafe Scene()
        {
            Machine = Machine.Boot(new MachineOptions { Profile = KernelProfile.Linux618, RamBytes = 64 << 20, Cpus = 2 });
            Cache = Machine.CreateCache("broken", 512, 512, SlabFlags.NoMerge);
            Sheaved = Machine.CreateCache("sheaved", 512, 512, SlabFlags.NoMerge, sheafCapacity: 12);
            using CpuBinding cpu = Machine.RunOn(0);
            var objects = new List<nint>();
            for (int i = 0; i < 800; i++)
                objects.Add((nint)Cache.Alloc(Gfp.Kernel));

            // Three free objects in each slab but the last, which stays current: more than fit on the CPU's chain.
            foreach (IGrouping<nint, nint> slab in objects.GroupBy(obj => (nint)Machine.Slabs.SlabOf((void*)obj)).SkipLast(1))
            {
                foreach (nint obj in slab.Take(3))
                    Cache.Free((void*)obj);
            }

            for (int i = 0; i < 10; i++)
                objects[i] = (nint)Sheaved.Alloc(Gfp.Kernel);
            for (int i = 0; i < 5; i++)
                Sheaved.Free((void*)objects[i]);
            Assert.True(Cpu(0)->Slab != null && Cpu(0)->Partial != null && Cache.Nodes[0].NrPartial > 0);
            Assert.True(Cpu(1)->Slab == null && Cpu(1)->Partial == null);
        }

        public Machine Machine { get; }

        public KmemCache Cache { get; }

        public KmemCache Sheaved { get; }

        public unsafe KmemCacheCpu* Cpu(int cpu) => Cache.StateOf(cpu);

        /// <summary>The first slab of the node's partial list.</summary>
        public unsafe Page* Partial() => Page.FromSlabList(Cache.Nodes[0].Partial->Next);

        /// <summary>The first free object of that slab.</summary>
        public unsafe nint Free() => (nint)Cache.ObjectOf(Partial(), SlabState.Read(Partial()).FreeIndex);

        /// <summary>The last one of its free list.</summary>
        public unsafe nint LastFree()
        {
            nint last = Free();
            while (Cache.NextFree((void*)last) != null)
                last = (nint)Cache.NextFree((void*)last);
            Assert.NotEqual(Free(), last);
            return last;
        }

        /// <summary>An allocated object of that slab.</summary>
        public unsafe nint Allocated() => AllocatedIn(Partial(), Cache);

        public unsafe nint AllocatedIn(Page* slab, KmemCache cache)
        {
            int index = 0;
            while (!cache.IsLive(cache.ObjectOf(slab, index)))
                index++;
            return (nint)cache.ObjectOf(slab, index);
        }

        public unsafe Sheaf* SheafOf(KmemCache cache) =>
            (Sheaf*)cache.AllSheaves().First(sheaf => ((Sheaf*)sheaf)->Size > 0);

        public unsafe byte* LiveByteOf(nint obj) => LiveByteOf(obj, Cache);

        public unsafe byte* LiveByteOf(nint obj, KmemCache cache) =>
            Machine.Slabs.Live.MapFor(cache.SlotSize)
            + ((obj - (nint)Machine.Map.RamBase) >> LiveObjects.ShiftFor(cache.SlotSize));

        public void Dispose() => Machine.Dispose();
    }
}
